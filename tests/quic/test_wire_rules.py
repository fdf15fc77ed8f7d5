"""What RFC 9000 and 9001 demand of whoever receives a packet, asked on both paths.

A forger who has the keys of an established connection says what no honest engine
would; the batched path and aioquic's own code have to give the same answer.
"""

from __future__ import annotations

from typing import Any

import pytest
from aioquic import tls

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.fast_send import encode_varint
from tests.support import EnginePair, Side

ONE_RTT = tls.Epoch.ONE_RTT

both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "aioquic"])


def established(*, fast: bool = True, **config: Any) -> tuple[EnginePair, Side, Side]:
    settings = TransportConfig(enable_fast_path=fast, **config)
    pair = EnginePair(client_config=settings, server_config=settings).connect()
    pair.run(2.0)
    assert pair.server is not None
    return pair, pair.client, pair.server


def forge(side: Side, *frames: bytes, number: int | None = None) -> bytes:
    """A 1-RTT packet of `side` with these frames; it takes the next packet number."""
    engine = side.engine
    if number is None:
        number = engine._packet_number
        engine._packet_number += 1
    crypto = engine._cryptos[ONE_RTT]
    header = (
        bytes((0x40 | crypto.key_phase << 2 | 1,))
        + engine._peer_cid.cid
        + (number & 0xFFFF).to_bytes(2, "big")
    )
    plain = b"".join(frames).ljust(4, b"\0")  # long enough for a sample
    packet: bytes = crypto.encrypt_packet(header, plain, number)
    return packet


def hand_over(pair: EnginePair, source: Side, target: Side, *datagrams: bytes) -> None:
    for data in datagrams:
        target.engine.receive_run(data, 0, len(data), source.address, pair.now)
    target.gather(pair.now)


def ending(side: Side) -> str | None:
    """How the engine ended the connection, if it did."""
    ended = side.of(events.Terminated)
    if not ended:
        return None
    assert isinstance(ended[0].error, phoenix_trio.ProtocolError)
    return str(ended[0].error)


def ack(largest: int, first_range: int = 0, *more: tuple[int, int]) -> bytes:
    """An ACK frame: the largest number, how many below it, then gaps and lengths."""
    fields = [largest, 0, len(more), first_range]
    for gap, length in more:
        fields += [gap, length]
    return b"\x02" + b"".join(map(encode_varint, fields))


# ------------------------------------------------------------------ acknowledgements


@both_paths
@pytest.mark.parametrize("more", [(), ((0, 0),)], ids=["one range", "two ranges"])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_connection(
    fast: bool, more: tuple[tuple[int, int], ...]
) -> None:
    """RFC 9000 section 13.1: else a receiver which acknowledges ahead speeds its sender up."""
    pair, client, server = established(fast=fast)
    following = server.engine._packet_number
    hand_over(pair, client, server, forge(client, ack(following - 1, 0, *more)))
    assert ending(server) is None
    hand_over(pair, client, server, forge(client, ack(following, 0, *more)))
    assert "PROTOCOL_VIOLATION" in str(ending(server))
