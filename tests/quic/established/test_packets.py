"""Packets on the wire: their numbers, marks, times and sizes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    FINAL_SIZE_ERROR,
    FLOW_CONTROL_ERROR,
    KEY_UPDATE_ERROR,
    PROTOCOL_VIOLATION,
)

from .pair import ADDRESSES, Half, Pair, parameters
from .test_early_data import early_pair, finish
from .test_exchange import assert_all_done, content, losing, write


def seal(half: Half, number: int, payload: bytes, *, length: int = 2, bits: int = 0) -> bytes:
    """A packet with so many bytes of its number, and more bits in its first byte."""
    keys, cid = half.state.keys, half.state.peer_ids.current.cid
    assert keys.send is not None
    assert keys.header_send is not None
    head = bytes((0x40 | length - 1 | bits | keys.phase << 2,)) + cid
    short = (number & (1 << 8 * length) - 1).to_bytes(length, "big")
    body = keys.send.encrypt(number, head + short, payload)
    mask = keys.header_send.mask(body[4 - length : 20 - length])
    first = bytes((head[0] ^ mask[0] & 0x1F,))
    return first + cid + bytes(a ^ b for a, b in zip(short, mask[1:], strict=False)) + body


# ------------------------------------------------------------------ packet numbers


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_packet_numbers_of_any_length_are_read(length: int) -> None:
    pair = Pair()
    for number in range(0, 200, 3):
        packet = seal(pair.client, number, b"\x01\0\0\0", length=length)
        pair.deliver(pair.server, [packet], ADDRESSES[True])
        assert pair.server.state.received.largest == number


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 40),
    st.lists(st.integers(-32_000, 32_000), min_size=1, max_size=12, unique=True),
)
def test_packet_numbers_are_decoded_around_the_expected_one(
    expected: int, offsets: list[int]
) -> None:
    """RFC 9000 appendix A.3; packets come one by one, and as a run."""
    for run in (False, True):
        pair = Pair()
        received = pair.server.state.received
        received.note_run(expected, expected + 1, 0.0, False, 0, 0)
        numbers = [expected + offset for offset in offsets if offset and expected + offset >= 0]
        # The expected number grows with each packet, so the next ones must not be too far back.
        numbers = [number for number in numbers if max(numbers) - number < 32_000]
        packets = [seal(pair.client, number, b"\x01\0\0\0") for number in numbers]
        if run and packets:
            pair.deliver(pair.server, packets, ADDRESSES[True])
        else:
            for packet in packets:
                pair.deliver(pair.server, [packet], ADDRESSES[True])
        found = {number for each in received.to_acknowledge for number in each}
        assert found == {expected, *numbers}


def test_a_packet_in_a_run_twice_counts_once() -> None:
    pair = Pair()
    one = seal(pair.client, 0, frames.build_stream_head(0, 0, 1, False) + b"a")
    two = seal(pair.client, 1, frames.build_stream_head(0, 1, 1, False) + b"b")
    pair.deliver(pair.server, [one, one], ADDRESSES[True])
    pair.deliver(pair.server, [two, two, two], ADDRESSES[True])
    assert pair.server.data(0) == b"ab"


def test_numbers_are_left_out_now_and_then() -> None:
    """RFC 9000 section 21.4: a peer that acknowledges too much is found out."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True)
    stream_id = pair.open()
    for _ in range(30):
        write(pair.client, stream_id, bytes(200_000), end=False)
        pair.run(2)
    sent = pair.traces[True].named("transport:packet_sent")
    numbers = [data["header"]["packet_number"] for data in sent]
    missing = set(range(numbers[-1])) - set(numbers)
    assert len(missing) == pair.client.state.recovery.skipped.count > 0
    assert pair.client.state.recovery.packets_lost == 0


# ------------------------------------------------------------------ first bytes


@pytest.mark.parametrize("bits", [0x08, 0x10, 0x18])
def test_reserved_bits_must_be_zero(bits: int) -> None:
    """RFC 9000 section 17.3.1."""
    pair = Pair()
    packet = seal(pair.client, 0, b"\x01\0\0\0", bits=bits)
    half = pair.server.half
    half.receive_run(packet, 0, len(packet), ADDRESSES[True], 0.0, 0, len(packet))
    assert pair.server.state.fault is not None
    assert pair.server.state.fault.code == PROTOCOL_VIOLATION


def test_a_packet_without_the_fixed_bit_is_ignored() -> None:
    pair = Pair()
    good = seal(pair.client, 0, b"\x01\0\0\0")
    bad = bytes((good[0] & ~0x40,)) + good[1:]
    later = seal(pair.client, 1, b"\x01\0\0\0")
    pair.deliver(pair.server, [bad, later], ADDRESSES[True])
    assert [*pair.server.state.received.to_acknowledge] == [range(1, 2)]


def test_the_spin_bit_turns_once_a_round_trip() -> None:
    """RFC 9000 section 17.4."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    seen: list[int] = []
    for _ in range(8):
        write(pair.client, stream_id, b"x", end=False)
        pair.run(1)
        seen.append(pair.client.state.spin)
    assert seen == [0x20, 0] * 4 or seen == [0, 0x20] * 4


# ------------------------------------------------------------------ ECN


def test_marks_are_counted_and_told() -> None:
    """RFC 9000 section 13.4."""
    pair = Pair()
    pair.remark = lambda mark: mark
    stream_id = pair.open()
    write(pair.client, stream_id, content(300_000))
    pair.run(5)
    assert pair.client.state.ecn.is_validated
    assert pair.server.state.received.marks is not None
    assert pair.client.state.ecn.signals == 0
    assert_all_done(pair)


def test_congestion_which_the_network_marks_shrinks_the_window_without_losses() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    pair.remark = lambda mark: mark
    stream_id = pair.open()
    write(pair.client, stream_id, content(300_000), end=False)
    pair.run(5)
    s = pair.client.state
    window = s.control.congestion_window
    pair.remark = lambda mark: 3 if mark else 0
    write(pair.client, stream_id, content(300_000), end=False)
    pair.run(5)
    assert s.ecn.signals > 0
    assert s.control.ssthresh < window
    assert s.recovery.packets_lost == 0


def test_a_path_which_drops_marks_is_not_marked_any_more() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, content(300_000))
    pair.run(5)
    assert not pair.client.state.ecn.is_validated
    assert pair.client.state.ecn.codepoint == 0
    assert len(pair.server.data(stream_id)) == 300_000


# ------------------------------------------------------------------ when packets leave


def test_a_delayed_acknowledgement_may_be_all_there_is_to_do() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(2)
    assert pair.server.half.only_acknowledgement_due() is None
    write(pair.client, stream_id, b"y", end=False)
    pair.flush(pair.client)
    assert pair.step()
    due = pair.server.half.only_acknowledgement_due()
    assert due == pair.server.half.deadline() == pytest.approx(pair.now + 0.001)
    write(pair.server, stream_id, b"answer", end=False)
    assert pair.server.half.only_acknowledgement_due() is None
    before = len(pair.sent)
    pair.flush(pair.server)
    assert len(pair.sent) == before + 1, "the answer carries the acknowledgement"
    assert pair.server.state.received.ack_at == math.inf


def test_packets_which_are_not_full_wait_while_the_application_keeps_writing() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    pair.run(1)
    half = pair.client.half

    def written(size: int) -> int:
        write(pair.client, stream_id, bytes(size), end=False)
        half.begin_pass()
        before = pair.client.state.recovery.next_number
        half.transmit(pair.now, None)
        return pair.client.state.recovery.next_number - before

    assert written(100) == 1, "a single write leaves at once"
    assert written(100) == 0
    assert half.has_more_to_send(pair.now)
    assert written(100) == 0
    assert written(2000) >= 1
    half.begin_pass()
    half.transmit(pair.now, None)
    half.begin_pass()
    half.transmit(pair.now, None)
    assert not pair.client.streams.sending.active, "writing has paused"


def test_a_server_sends_three_times_what_an_unvalidated_client_has_sent() -> None:
    """RFC 9000 section 8.1, for data before the handshake is complete."""
    pair = Pair(TransportConfig(), confirm=False)
    pair.install_keys()
    server = pair.server
    path = server.state.paths.all[0]
    path.is_validated = False
    path.bytes_received = 500
    server.half.set_parameters(
        parameters(pair.client.config, pair.client.streams), remembered=False
    )
    stream_id = pair.open(server)
    write(server, stream_id, content(20_000))
    pair.flush(server)
    assert 1200 < sum(len(data) for _, _, data in pair.sent) <= 1500
    assert path.bytes_sent <= 1500
    pair.wire.clear()
    path.is_validated = True
    pair.confirm()
    pair.run(10)
    assert pair.client.data(stream_id) == content(20_000)


def test_the_end_of_the_handshake_is_told_until_it_arrives() -> None:
    for seed in range(5):
        pair = Pair(drop=losing(0.5, seed))
        done: list[bool] = []
        pair.client.state.on_handshake_done = lambda done=done: done.append(True)
        pair.server.state.handshake_done_pending = True
        pair.run(30)
        assert done
        assert not pair.server.state.handshake_done_pending


def test_pings_leave_before_the_handshake() -> None:
    pair = early_pair()
    pair.client.state.pings.append(4)
    pair.run(0.1)
    assert next(half for _, half, _ in pair.sent) is pair.client
    finish(pair)
    pair.run(5)
    assert [each.uid for each in pair.client.of_type(events.PingAcknowledged)] == [4]


def test_the_interval_between_acknowledgements_of_bulk_data_is_bounded() -> None:
    chance = random.Random(1)
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, content(500_000))
    longest = 0.0
    for _ in range(3000):
        if not pair.step(30):
            break
        at = pair.server.state.received.ack_at
        if at < math.inf:
            longest = max(longest, at - pair.now)
        pair.delay = 0.01 + chance.random() / 1000
    assert 0 < longest <= 0.001 + 1e-9


# ------------------------------------------------------------------ runs that break rules


def bulk_run(pair: Pair, first: int, start: int, count: int) -> list[bytes]:
    """Packets of the client with 1000 bytes of stream 0 each, as bulk data is sent."""
    prefix = frames.build_stream_prefix(0)
    return [
        seal(
            pair.client,
            first + at,
            prefix + (start + 1000 * at | frames.LONG_VARINT).to_bytes(8, "big") + bytes(1000),
        )
        for at in range(count)
    ]


@pytest.mark.parametrize("which", ["stream", "connection"])
def test_a_run_stays_within_flow_control(which: str) -> None:
    """RFC 9000 section 4.1: the run is read up to the packet that exceeds a limit."""
    pair = Pair()
    server = pair.server
    pair.deliver(server, bulk_run(pair, 0, 0, 1), ADDRESSES[True])
    if which == "stream":
        server.streams.receivers[0].limit = 5500
    else:
        server.streams.receiving.max_data = 5500
    run = bulk_run(pair, 1, 1000, 10)
    data = b"".join(run)
    server.half.receive_run(data, 0, len(run[0]), ADDRESSES[True], 0.0, 0, len(data))
    fault, server.state.fault = server.state.fault, None
    assert fault is not None
    assert fault.code == FLOW_CONTROL_ERROR
    assert fault.frame_type & 0xF8 == frames.STREAM
    server.gather(0.0)
    assert len(server.data(0)) == 5000


def test_a_run_ends_with_the_final_size() -> None:
    pair = Pair()
    end = seal(pair.client, 0, frames.build_stream_head(0, 1500, 0, True))
    pair.deliver(pair.server, [end], ADDRESSES[True])
    run = bulk_run(pair, 1, 0, 3)
    data = b"".join(run)
    half = pair.server.half
    half.receive_run(data, 0, len(run[0]), ADDRESSES[True], 0.0, 0, len(data))
    assert pair.server.state.fault is not None
    assert pair.server.state.fault.code == FINAL_SIZE_ERROR


def test_old_keys_must_not_be_used_again() -> None:
    """RFC 9001 section 6.4; late packets with lower numbers are read."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(1)
    number = pair.client.state.recovery.next_number
    late = seal(pair.client, number, b"\x01\0\0\0")
    again = seal(pair.client, number + 2, b"\x01\0\0\0")
    pair.client.half.update_keys()
    pair.client.state.recovery.next_number = number + 1
    write(pair.client, stream_id, b"y", end=False)
    pair.flush(pair.client)
    assert pair.step()
    assert pair.server.data(stream_id) == b"xy"
    pair.deliver(pair.server, [late], ADDRESSES[True])
    assert pair.server.state.received.is_duplicate(number)
    half = pair.server.half
    half.receive_run(again, 0, len(again), ADDRESSES[True], pair.now, 0, len(again))
    assert pair.server.state.fault is not None
    assert pair.server.state.fault.code == KEY_UPDATE_ERROR


def test_a_lost_challenge_is_repeated() -> None:
    """RFC 9000 section 8.2.1."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(1)
    pair.client.address = ("10.0.0.2", 7777)
    write(pair.client, stream_id, b"y" * 1000, end=False)
    pair.flush(pair.client)
    assert pair.step()
    pair.drop = lambda data: True
    pair.flush(pair.server)
    pair.drop = lambda data: False
    path = pair.server.state.paths.all[0]
    assert not path.is_validated
    assert path.challenge_sent
    pair.run(1)
    assert path.is_validated


def test_a_peer_which_retires_connection_ids_again_and_again_gets_new_ones_slowly() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200, max_idle_timeout=600))
    pair.run(1)
    ids = pair.server.state.local_ids
    changes = 0
    while pair.client.state.peer_ids.change():
        changes += 1
        assert changes < 100, "no new ones at last"
        pair.run(0.03)
    assert changes >= 8
    assert len(ids.all) < 8
    assert pair.now < ids.replace_at < pair.now + 60
    pair.run(300)
    assert len(ids.all) == 8
    assert pair.client.state.peer_ids.change()
