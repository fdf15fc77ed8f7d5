"""Packets for the rest of a datagram begun by the handshake (RFC 9000 section 12.2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .pair import ADDRESSES, Pair
from .test_early_data import early_pair, finish
from .test_exchange import assert_all_done, content, write


def ready_pair() -> Pair:
    """A pair with 1-RTT keys, whose handshake is not confirmed."""
    pair = early_pair()
    pair.install_keys()
    return pair


@settings(max_examples=60, deadline=None)
@given(st.integers(128, 1200), st.integers(1, 3000), st.booleans())
def test_a_packet_fits_and_fills_if_it_has_to(room: int, count: int, must_fill: bool) -> None:
    pair = ready_pair()
    data = content(count)
    stream_id = pair.open()
    write(pair.client, stream_id, data)
    packet = pair.client.half.coalesce(0.0, room, must_fill)
    assert packet
    assert len(packet) == room if must_fill else len(packet) <= room
    assert pair.client.state.paths.all[0].bytes_sent == len(packet)
    pair.deliver(pair.server, [packet], ADDRESSES[True])
    arrived = pair.server.data(stream_id)
    assert arrived == data[: len(arrived)]
    assert len(arrived) == count or len(arrived) > room - 60
    finish(pair)
    pair.run(5)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)


@pytest.mark.parametrize("must_fill", [True, False])
def test_nothing_to_say_is_no_packet(must_fill: bool) -> None:
    for pair in (early_pair(), ready_pair()):
        for half in pair.halves:
            assert half.half.coalesce(0.0, 1000, must_fill) == b""
            assert not half.state.recovery.sent
            assert not half.state.paths.all[0].bytes_sent


def test_an_acknowledgement_alone_is_not_padded() -> None:
    """Padding would put it into flight (RFC 9002 section 2)."""
    pair = ready_pair()
    write(pair.client, pair.open(), b"x", end=False)
    pair.deliver(pair.server, [pair.client.half.coalesce(0.0, 1000, False)], ADDRESSES[True])
    server = pair.server
    at = server.state.received.ack_at
    assert server.half.coalesce(at, 1000, True) == b""
    packet = server.half.coalesce(at, 1000, False)
    assert 0 < len(packet) < 60
    assert not server.state.control.bytes_in_flight


def test_data_waits_for_the_congestion_window() -> None:
    pair = ready_pair()
    stream_id = pair.open()
    write(pair.client, stream_id, content(100_000))
    state = pair.client.state
    state.control.bytes_in_flight = state.control.congestion_window - 500
    assert pair.client.half.coalesce(0.0, 600, False) == b""
    assert pair.client.half.coalesce(0.0, 400, False)


def test_early_data_is_not_padded() -> None:
    """Its packets have a length field."""
    pair = early_pair()
    write(pair.client, pair.open(), b"early")
    packet = pair.client.half.coalesce(0.0, 1000, True)
    assert 0 < len(packet) < 80
    assert packet[0] & 0xB0 == 0x90
