"""Handshakes while many datagrams are lost: the content of probes, and their number.

``tools/measure_handshakes.py`` prints the times of such handshakes.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

import phoenix_trio
from phoenix_trio.quic import events
from tests.engine_access import is_path_validated, statistics
from tests.engine_packets import open_sent
from tests.packets import Frame, Level
from tests.support import SERVER, EnginePair, Side, authority

PADDING, PING, CRYPTO, STREAM = 0x00, 0x01, 0x06, 0x08
QUESTION, ANSWER = b"question" * 12, b"answer" * 16

#: The events measured by a lossy pair, in order.
EVENTS = ("client is complete", "server is complete", "confirmed", "asked", "answered", "all done")


class LossyPair(EnginePair):
    """A handshake, a question and its answer, where each datagram may be lost.

    Args:
      seed: chooses the lost datagrams.
      loss: the share of lost datagrams.
      arguments: see `EnginePair`.
    """

    delay = 0.025

    def __init__(self, seed: int, loss: float, **arguments: Any) -> None:
        self.times: dict[str, float] = {}
        """The time of the first notice of each of :data:`EVENTS`."""
        self.datagrams = 0
        self.probes: list[int] = []
        """Datagrams sent for each probe timeout."""
        self._probe_timeouts = {True: 0, False: 0}
        self._to_server = self._to_client = 0
        self._stream_id: int | None = None
        generator = random.Random(seed)
        super().__init__(skips=None, **arguments)
        self.drop = lambda destination, data: generator.random() < loss

    def arrive(self, destination: Side, data: bytes, source: tuple[str, int]) -> None:
        if destination is self.server:
            self._to_server += len(data)
        super().arrive(destination, data, source)

    def flush(self, side: Side) -> None:
        before = len(self.wire)
        super().flush(side)
        sent = [data for _, _, _, data, _ in self.wire[before:]]
        self.datagrams += len(sent)
        timeouts, is_client = statistics(side.engine).probe_timeouts, side is self.client
        if timeouts > self._probe_timeouts[is_client]:
            self._probe_timeouts[is_client] = timeouts
            # (Larger ones search for the path MTU.)
            self.probes.append(sum(len(data) <= 1200 for data in sent))
        if not is_client:
            self._to_client += sum(map(len, sent))
            if sent and not is_path_validated(side.engine):
                assert self._to_client <= 3 * self._to_server, "RFC 9000 section 8.1"

    def exchange(self, limit: float = 120.0) -> dict[str, float]:
        """Run until all events have happened, or for `limit` seconds; returns the times."""
        while len(self.times) < len(EVENTS) and self.now < limit and self.step():
            client, server = self.client, self.server
            if self._stream_id is None and client.of(events.HandshakeCompleted):
                self._stream_id = client.engine.open_stream(unidirectional=False)
                assert self._stream_id is not None
                client.engine.write(self._stream_id, QUESTION, end_stream=True)
            stream_id = -1 if self._stream_id is None else self._stream_id
            asked = server is not None and server.received.get(stream_id) == QUESTION
            if asked and "asked" not in self.times:
                assert server is not None
                server.engine.write(stream_id, ANSWER, end_stream=True)
            happened = (
                bool(client.of(events.HandshakeCompleted)),
                server is not None and bool(server.of(events.HandshakeCompleted)),
                bool(client.of(events.HandshakeConfirmed)),
                asked,
                client.received.get(stream_id) == ANSWER,
                asked and not any(each.engine.has_unacknowledged_streams for each in self.sides),
            )
            for name, has_happened in zip(EVENTS, happened, strict=True):
                if has_happened:
                    self.times.setdefault(name, self.now)
        return self.times


@pytest.mark.parametrize("loss", [0.2, 0.4])
def test_a_probe_timeout_sends_two_datagrams_at_most_and_the_handshake_succeeds(
    loss: float,
) -> None:
    for seed in range(30):
        pair = LossyPair(seed, loss)
        assert "answered" in pair.exchange(), f"seed {seed}"
        assert pair.probes or pair.times["all done"] < 0.2, f"seed {seed}"
        # (None, if the anti-amplification limit has no room.)
        assert max(pair.probes, default=0) <= 2, f"seed {seed}"


@cache
def long_tls() -> phoenix_trio.ServerTLS:
    """With a certificate too long for the anti-amplification limit of one hello."""
    names = [f"host{number}.example.org" for number in range(200)]
    issued = authority().issue_cert(SERVER, *names)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return phoenix_trio.ServerTLS(chain, issued.private_key_pem.bytes())


def test_probes_of_a_long_flight_keep_the_anti_amplification_limit() -> None:
    """A pair checks it each time the server sends."""
    for seed in range(10):
        pair = LossyPair(seed, 0.4, server=long_tls())
        assert "answered" in pair.exchange(), f"seed {seed}"


def frames_of(side: Side, datagram: bytes) -> list[tuple[Level, Frame]]:
    """The frames of a datagram just sent by a side, without its padding."""
    return [
        (packet.level, frame)
        for packet in open_sent(side.engine, datagram)
        for frame in packet.frames
        if frame.kind != PADDING
    ]


def lose_all_and_wait_for_probes(pair: EnginePair) -> list[list[tuple[Level, Frame]]]:
    """The frames of the datagrams of the client's next probe timeout."""
    pair.wire.clear()
    before = statistics(pair.client.engine).probe_timeouts
    while statistics(pair.client.engine).probe_timeouts == before:
        pair.wire.clear()
        assert pair.step()
    pair.flush(pair.client)
    return [frames_of(pair.client, data) for _, _, _, data, _ in pair.wire]


def test_a_lost_client_hello_is_repeated_in_two_datagrams() -> None:
    """RFC 9002 section 6.2.4: outstanding data, not a PING."""
    pair = EnginePair()
    (hello,) = [frames_of(pair.client, data) for _, _, _, data, _ in pair.wire]
    assert [(level, frame.kind) for level, frame in hello] == [(Level.INITIAL, CRYPTO)]
    assert lose_all_and_wait_for_probes(pair) == [hello, hello]
    assert {len(data) for _, _, _, data, _ in pair.wire} == {1200}


def test_a_lost_finished_is_repeated_with_the_question_in_both_datagrams() -> None:
    pair = EnginePair()
    while not pair.client.of(events.HandshakeCompleted):
        assert pair.step()
    stream_id = pair.client.engine.open_stream(unidirectional=False)
    assert stream_id is not None
    pair.client.engine.write(stream_id, QUESTION, end_stream=True)
    pair.flush(pair.client)
    probes = lose_all_and_wait_for_probes(pair)
    assert len(probes) == 2
    for probe in probes:
        assert [frame.data for _, frame in probe if frame.kind & ~7 == STREAM] == [QUESTION]
        (finished,) = [frame for _, frame in probe if frame.kind == CRYPTO]
        assert finished == next(frame for _, frame in probes[0] if frame.kind == CRYPTO)
        assert PING not in [frame.kind for _, frame in probe]
    pair.run(1.0)
    assert pair.server is not None
    assert pair.server.received[stream_id] == QUESTION


def test_a_client_without_data_in_flight_asks_the_server_for_more() -> None:
    """RFC 9002 section 6.2.2.1: the server may not be allowed to send anything."""
    pair = EnginePair(server=long_tls())
    pair.run(0.01)
    del pair.wire[1:]  # the first datagram of the server arrives alone
    pair.run(0.015)
    assert not pair.client.of(events.HandshakeCompleted)
    probes = lose_all_and_wait_for_probes(pair)
    assert [[(level, frame.kind) for level, frame in probe] for probe in probes] == [
        [(Level.HANDSHAKE, PING)]
    ] * 2
