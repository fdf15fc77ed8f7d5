"""Reassembly of stream data: every byte comes out once and in order, and memory follows bytes."""

from __future__ import annotations

import random
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.reassembly import FREE_PIECES, PieceLimit, ReassemblyBuffer
from tests.support import examples

CONTENT = random.Random(1).randbytes(70_000)

small = st.tuples(st.integers(0, 300), st.integers(0, 40))
large = st.tuples(st.integers(0, 60_000), st.sampled_from([1, 1200, 2047, 2048, 9000]))


@examples(300)
@given(st.lists(st.one_of(small, large, st.just("take")), max_size=80))
def test_every_byte_comes_out_once_and_in_order(
    operations: list[tuple[int, int] | str],
) -> None:
    limit = PieceLimit()
    buffer = ReassemblyBuffer(limit)
    start = 0
    held: set[int] = set()
    for operation in operations:
        if isinstance(operation, str):
            taken = buffer.take(start)
            assert taken == CONTENT[start : start + len(taken)]
            held -= set(range(start, start + len(taken)))
            start += len(taken)
            assert start not in held
        else:
            offset, size = operation
            offset += start
            data = CONTENT[offset : offset + size]
            buffer.add(offset, data)
            held |= set(range(offset, offset + len(data)))
        assert limit.held == len(held)
        assert limit.pieces == len(buffer)
        assert sum(map(len, buffer.ranges())) == len(held)
        assert all(each.start in held and each.stop - 1 in held for each in buffer.ranges())
    buffer.clear()
    assert (limit.held, limit.pieces) == (0, 0)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "twice"])
def test_bytes_which_come_one_by_one_become_few_pieces(order: str) -> None:
    limit = PieceLimit()
    buffer = ReassemblyBuffer(limit)
    offsets = list(range(1, 40_001))
    if order == "descending":
        offsets.reverse()
    elif order == "shuffled":
        random.Random(2).shuffle(offsets)
    elif order == "twice":
        offsets += offsets
    for offset in offsets:
        buffer.add(offset, CONTENT[offset : offset + 1])
    assert buffer.ranges() == [range(1, 40_001)]
    assert len(buffer) < 20
    assert sum(sys.getsizeof(piece) for piece in buffer._pieces) < 1.3 * 40_000
    assert buffer.take(1) == CONTENT[1:40_001]
    assert limit.pieces == 0


def test_a_byte_far_away_costs_a_byte() -> None:
    buffer = ReassemblyBuffer(PieceLimit())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        buffer.add(2**40, b"x")
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 1000
    assert buffer.take(0) == b""


def test_a_piece_over_many_small_ones_replaces_them() -> None:
    limit = PieceLimit()
    buffer = ReassemblyBuffer(limit)
    for offset in range(10, 4000, 2):
        buffer.add(offset, CONTENT[offset : offset + 1])
    buffer.add(5, CONTENT[5:5000])
    assert len(buffer) == 1
    assert (limit.pieces, limit.held) == (1, 4995)


def test_tiny_pieces_with_gaps_are_too_many_and_those_of_lost_packets_are_not() -> None:
    tiny, lost = PieceLimit(), PieceLimit()
    streams = [ReassemblyBuffer(tiny) for _ in range(10)]
    for number in range(FREE_PIECES):
        streams[number % 10].add(2 * number + 1, b"x")
        assert not tiny.is_exceeded
    for number in range(10):
        streams[number].add(10**6, b"x")
    assert tiny.is_exceeded
    buffer = ReassemblyBuffer(lost)
    packet = bytes(1100)
    for number in range(10_000):  # every other packet of 22 MB is lost
        buffer.add((2 * number + 1) * 1100, packet)
        assert not lost.is_exceeded
