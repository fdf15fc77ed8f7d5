"""A peer's limit of DATAGRAM frames counts the whole frame (RFC 9221 section 3)."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import endpoint, events
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.established.datagram_frame import largest_payload
from phoenix_trio.quic.handshake.tls_context import PhoenixTLSContext
from phoenix_trio.quic.wire.varint import encode_varint
from tests.aioquic_pair import AioquicPair
from tests.engine_access import announce_datagram_frame_size, set_datagram_size, statistics
from tests.engine_packets import open_sent
from tests.support import (
    EnginePair,
    Side,
    client_tls,
    connected_pair,
    server_tls,
)

LIMITS = [*range(71), 16_382, 16_383, *range(16_384, 16_392), 65_535]


def frame_size(payload: int) -> int:
    return 1 + len(encode_varint(payload)) + payload


def test_the_largest_payload_fills_the_frame() -> None:
    for limit in [*range(300), *range(16_000, 17_000), *range((1 << 30) - 9, (1 << 30) + 9)]:
        fitting = [p for p in range(max(0, limit - 10), limit) if frame_size(p) <= limit]
        assert largest_payload(limit) == max(fitting, default=None), limit
    assert largest_payload(None) is None


class Peer:
    """An aioquic server that announces a limit, and our client."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pair = AioquicPair(
            we_are_client=True,
            config=TransportConfig(max_udp_payload_size=1200),
            stock={"max_datagram_frame_size": limit},
        ).connect()
        self.client = self.pair.ours.engine
        self.frames: list[int] = []
        """The sizes of the DATAGRAM frames sent by our client."""
        self.pair.sent = self.measure

    def measure(self, data: bytes) -> None:
        for packet in open_sent(self.client, data):
            self.frames += [frame.size for frame in packet.of(0x30, 0x31)]

    def send(self, *sizes: int) -> None:
        """Send datagrams together; the server has to take all, in frames within its limit."""
        self.frames.clear()
        received = self.pair.stock.datagrams
        received.clear()
        for size in sizes:
            self.client.send_datagram(bytes(size))
        self.pair.run(0.2)
        assert sorted(map(len, received)) == sorted(sizes), self.limit
        assert max(self.frames) <= self.limit
        assert not self.client.is_ending


@pytest.mark.parametrize("limit", LIMITS)
def test_a_peer_never_sees_a_frame_above_its_limit(limit: int) -> None:
    peer = Peer(limit)
    maximum = peer.client.max_datagram_payload
    if limit < 2:
        assert maximum is None
        return
    if limit > 1200:
        # The limit is to be tested, not the path.
        set_datagram_size(peer.client, 65_000)
        maximum = peer.client.max_datagram_payload
    assert maximum is not None
    peer.send(maximum)
    if limit < 60_000:
        assert max(peer.frames) >= limit - 3, "as much as fits"
        assert frame_size(maximum + 1) > limit
    peer.send(0)
    peer.send(maximum, 0, maximum // 2, max(maximum - 1, 0))


def limited_pair(limit: int, **arguments: Any) -> EnginePair:
    """A connection whose server announces that it takes frames of `limit` bytes."""
    pair = EnginePair(**arguments)
    make_server = pair._make_server

    def make_limited(data: bytes) -> Side:
        side = make_server(data)
        announce_datagram_frame_size(side.engine, limit)
        return side

    pair._make_server = make_limited  # type: ignore[method-assign]
    return pair


def resuming_with(limit: int) -> EnginePair:
    """A client with 0-RTT keys of a server that took frames of 1000 bytes the last time."""
    tls = {
        "client": client_tls(session_store=phoenix_trio.SessionStore(), early_data=True),
        "server": server_tls(early_data=True),
    }
    limited_pair(1000, **tls).connect()
    again = limited_pair(limit, **tls)
    assert again.client.engine.can_send_early_data
    assert again.client.engine.max_datagram_payload == 997
    return again


def test_what_waits_since_0_rtt_is_dropped_if_the_new_limit_is_smaller() -> None:
    pair = resuming_with(40)
    engine = pair.client.engine
    for _ in range(30):  # more than the first congestion window takes
        engine.send_datagram(bytes(900))
    engine.send_datagram(bytes(38))
    pair.connect()
    assert pair.server is not None
    assert not pair.server.engine.tls_context.early_data_accepted
    assert engine.max_datagram_payload == 38
    assert statistics(engine).datagrams_dropped_outgoing > 10
    assert [len(event.data) for event in pair.server.of(events.DatagramReceived)] == [38]
    assert not engine.is_ending


def test_a_server_which_accepts_0_rtt_and_takes_smaller_frames_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 9221 section 3."""
    resuming_with(1000).connect()
    monkeypatch.setattr(PhoenixTLSContext, "_has_reduced_limits", lambda *_: False)
    pair = resuming_with(999)
    pair.run(1.0)
    (ended,) = pair.client.of(events.Terminated)
    assert isinstance(ended.error, phoenix_trio.HandshakeFailed)
    assert "smaller than the one remembered" in str(ended.error)


@pytest.mark.parametrize("limit", [1, 2, 3, 63, 66])
async def test_a_datagram_which_cannot_be_sent_is_refused_with_the_reason(
    limit: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = endpoint.make_server_engine

    def build_limited(**arguments: Any) -> Engine:
        engine = build(**arguments)
        announce_datagram_frame_size(engine, limit)
        return engine

    monkeypatch.setattr(endpoint, "make_server_engine", build_limited)
    async with connected_pair() as (client, server):
        if limit == 1:
            assert client.max_datagram_size is None
            with pytest.raises(phoenix_trio.DatagramsUnsupported, match="not hold even an empty"):
                await client.send_datagram(b"")
            with pytest.raises(phoenix_trio.DatagramsUnsupported, match="not hold even an empty"):
                client.send_datagram_nowait(b"")
            return
        maximum = client.max_datagram_size
        assert maximum == {2: 0, 3: 1, 63: 61, 66: 63}[limit]
        with pytest.raises(phoenix_trio.DatagramTooLarge) as caught:
            await client.send_datagram(bytes(maximum + 1))
        assert caught.value.maximum == maximum
        await client.send_datagram(bytes(maximum))
        assert await server.receive_datagram() == bytes(maximum)
