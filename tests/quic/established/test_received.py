"""Received packets: each number is taken once, whatever a peer or a path does to it."""

from __future__ import annotations

import math
import random

import pytest
from aioquic.quic.recovery import MAX_ACK_RANGES as AIOQUIC_RANGES
from aioquic.quic.recovery import QuicPacketSpace
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.ecn import CE, ECT_0, NOT_ECT
from phoenix_trio.quic.established.received import (
    ACK_DELAY,
    ACKNOWLEDGE_BYTES,
    MAX_ACK_RANGES,
    ReceivedPackets,
)
from tests.support import examples


def take(received: ReceivedPackets, number: int, now: float = 0.0) -> bool:
    """Receive a packet; whether it was new."""
    if received.is_duplicate(number):
        return False
    received.note(number, now, True, NOT_ECT, 100)
    return True


def ranges(received: ReceivedPackets) -> list[tuple[int, int]]:
    kept = received.to_acknowledge
    return list(zip(kept.starts, kept.stops, strict=True))


def test_packets_in_order_are_one_range() -> None:
    received = ReceivedPackets()
    for number in range(5):
        assert take(received, number, now=float(number))
        assert not take(received, number)
    assert ranges(received) == [(0, 5)]
    assert (received.largest, received.expected, received.largest_time) == (4, 5, 4.0)


def test_a_gap_may_be_filled_later_and_only_once() -> None:
    received = ReceivedPackets()
    take(received, 3, now=1.0)
    take(received, 4, now=2.0)
    take(received, 8, now=3.0)
    assert ranges(received) == [(3, 5), (8, 9)]
    assert take(received, 6, now=4.0)
    assert received.largest_time == 3.0, "of the largest one"
    for number in (3, 4, 6, 8):
        assert not take(received, number)
    for number in (5, 7, 0, 2, 1):
        assert take(received, number)
    assert ranges(received) == [(0, 9)]
    assert all(received.is_duplicate(number) for number in range(9))
    assert received.expected == 9


def test_a_run_is_noted_as_its_packets_would_be() -> None:
    received = ReceivedPackets()
    received.note_run(0, 10, 1.0, False, NOT_ECT, 0)
    received.note_run(20, 30, 2.0, True, ECT_0, 12_000)
    received.note_run(12, 15, 3.0, True, CE, 3600)
    assert ranges(received) == [(0, 10), (12, 15), (20, 30)]
    assert (received.largest, received.expected, received.largest_time) == (29, 30, 2.0)
    assert received.unacknowledged_bytes == 15_600
    assert received.marks is not None
    assert received.marks.as_fields() == (10, 0, 3)
    assert [n for n in range(32) if not received.is_duplicate(n)] == [
        *(10, 11),
        *range(15, 20),
        *(30, 31),
    ]


def test_marks_are_counted_once_there_are_any() -> None:
    received = ReceivedPackets()
    take(received, 0)
    assert received.marks is None
    received.note(1, 0.0, False, ECT_0, 100)
    received.note(2, 0.0, False, NOT_ECT, 100)
    received.note(5, 0.0, False, CE, 100)
    assert received.marks is not None
    assert received.marks.as_fields() == (1, 0, 1)


# ------------------------------------------------------------------ when to acknowledge


def test_an_acknowledgement_is_due_a_millisecond_after_the_first_packet_which_wants_one() -> None:
    received = ReceivedPackets()
    received.note(0, 1.0, False, NOT_ECT, 100)
    assert received.ack_at == math.inf
    received.note(1, 2.0, True, NOT_ECT, 100)
    received.note(2, 2.0005, True, NOT_ECT, 100)
    assert received.ack_at == 2.0 + ACK_DELAY
    received.on_ack_sent()
    assert received.ack_at == math.inf
    assert received.unacknowledged_bytes == 0
    received.note_run(3, 5, 3.0, True, NOT_ECT, 2400)
    assert received.ack_at == 3.0 + ACK_DELAY


def test_after_many_bytes_an_acknowledgement_does_not_wait() -> None:
    """RFC 9000 section 13.2.2: the sender must not run out of its window."""
    size = 60_000
    for is_run in (False, True):
        received = ReceivedPackets()
        number = 0
        while received.unacknowledged_bytes + size < ACKNOWLEDGE_BYTES:
            received.note(number, 1.0, True, NOT_ECT, size)
            number += 1
        assert received.ack_at == 1.0 + ACK_DELAY
        if is_run:
            received.note_run(number, number + 1, 1.0001, True, NOT_ECT, size)
        else:
            received.note(number, 1.0001, True, NOT_ECT, size)
        assert received.ack_at == 1.0001


def test_what_the_peer_knows_is_not_acknowledged_again_and_still_a_duplicate() -> None:
    """RFC 9000 section 13.2.4."""
    received = ReceivedPackets()
    for number in (0, 1, 2, 5, 6, 9):
        take(received, number)
    received.on_ack_acknowledged(1)
    assert ranges(received) == [(2, 3), (5, 7), (9, 10)]
    received.on_ack_acknowledged(5)
    assert ranges(received) == [(6, 7), (9, 10)]
    received.on_ack_acknowledged(3)
    assert ranges(received) == [(6, 7), (9, 10)]
    received.on_ack_acknowledged(9)
    assert ranges(received) == []
    received.on_ack_acknowledged(9)
    assert all(received.is_duplicate(number) for number in (0, 1, 2, 5, 6, 9))
    assert take(received, 10)
    assert take(received, 4), "a packet which comes late is acknowledged, too"
    assert ranges(received) == [(4, 5), (10, 11)]
    assert take(received, 11)
    received.on_ack_acknowledged(10)
    assert ranges(received) == [(11, 12)]


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize("pruned", [0.0, 0.2, 1.0])
def test_a_peer_which_leaves_gaps_without_end_costs_bounded_memory(pruned: float) -> None:
    received = ReceivedPackets()
    generator = random.Random(1)
    seen = []
    number = 0
    for _ in range(3000):
        number += generator.randrange(2, 5)
        assert take(received, number)
        seen.append(number)
        assert number in received.to_acknowledge
        if generator.random() < pruned:
            received.on_ack_acknowledged(number - generator.randrange(50))
    assert len(received.to_acknowledge) <= MAX_ACK_RANGES
    assert len(received._known) <= 64
    assert all(received.is_duplicate(each) for each in seen)


def test_a_packet_which_is_taken_is_acknowledged_however_many_gaps_there_are() -> None:
    """RFC 9000 section 13.2.1; an older packet, whose range would be dropped, is not taken."""
    for first in range(100, 103):
        received = ReceivedPackets()
        last = first + 2 * MAX_ACK_RANGES
        for number in range(first, last, 2):
            take(received, number)
        assert not take(received, 50)
        assert take(received, first + 21)
        assert not take(received, 60)
        taken = 0
        for number in range(last, 0, -1):
            if take(received, number):
                assert number in received.to_acknowledge
                taken += 1
        assert taken >= MAX_ACK_RANGES - 1


def test_the_first_packet_may_have_any_number() -> None:
    """RFC 9000 section 12.3: numbers may be skipped."""
    received = ReceivedPackets()
    assert take(received, 1000)
    assert len(received._known) == 0
    assert take(received, 0)
    assert ranges(received) == [(0, 1), (1000, 1001)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(1, 40), st.integers(1, 6)),
        st.tuples(st.just("old"), st.integers(0, 150), st.integers(1, 1)),
        st.tuples(st.just("acknowledged"), st.integers(0, 60), st.integers(1, 1)),
    ),
    max_size=150,
)


@examples(200)
@given(steps=steps)
def test_it_answers_as_a_plain_set_would(steps: list[tuple[str, int, int]]) -> None:
    received = ReceivedPackets()
    seen: set[int] = set()
    wanted: set[int] = set()
    for kind, amount, length in steps:
        if kind == "new":
            first = received.expected + amount - 1
            assert not received.is_duplicate(first)
            received.note_run(first, first + length, 0.0, True, NOT_ECT, 100)
            seen.update(range(first, first + length))
            wanted.update(range(first, first + length))
        elif kind == "old":
            number = max(0, received.expected - amount)
            if take(received, number):
                assert number not in seen
                assert number in received.to_acknowledge
                seen.add(number)
                wanted.add(number)
            elif len(seen) < MAX_ACK_RANGES:
                assert number in seen, "so few ranges are all remembered"
        else:
            largest = received.largest - amount
            received.on_ack_acknowledged(largest)
            wanted = {number for number in wanted if number > largest}
        assert all(received.is_duplicate(number) for number in seen)
        assert received.largest == max(seen, default=-1) == received.expected - 1
        kept = {number for each in received.to_acknowledge for number in each}
        assert kept <= wanted
        assert kept == wanted or len(received.to_acknowledge) == MAX_ACK_RANGES


@examples(100)
@given(
    seed=st.integers(0, 2**32),
    spread=st.integers(1, 60),
    loss=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_reordered_packets_are_taken_as_by_aioquic(seed: int, spread: int, loss: float) -> None:
    """Within the 128 numbers up to which aioquic tells duplicates from new packets."""
    generator = random.Random(seed)
    numbers = [number for number in range(400) if generator.random() >= loss]
    numbers += generator.choices(numbers, k=60)
    numbers.sort(key=lambda number: number + generator.random() * spread)
    ours, theirs = ReceivedPackets(), QuicPacketSpace()
    for number in numbers:
        was_new = number not in theirs.received_packets
        assert take(ours, number) == was_new
        if was_new:
            theirs.received_packets.add(number)
            theirs.ack_queue.add(number)
            if len(theirs.ack_queue) > AIOQUIC_RANGES:
                theirs.ack_queue.shift()
        if generator.random() < 0.05:
            largest = number - generator.randrange(100)
            if largest >= 0:
                ours.on_ack_acknowledged(largest)
                theirs.ack_queue.subtract(0, largest + 1)
        assert list(ours.to_acknowledge) == list(theirs.ack_queue)
