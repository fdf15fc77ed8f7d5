"""Sets of ranges, against Python's own sets and aioquic's ranges."""

from __future__ import annotations

import pytest
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.wire.ranges import Ranges
from tests.support import examples

pieces = st.tuples(st.integers(0, 200), st.integers(1, 15))
steps = st.lists(st.tuples(st.booleans(), pieces), max_size=100)


def check(ranges: Ranges) -> None:
    """The ranges are sorted, not empty, and do not touch."""
    bounds = [bound for each in ranges for bound in (each.start, each.stop)]
    assert bounds == sorted(set(bounds))
    assert len(ranges) == len(ranges.starts) == len(ranges.stops)


@given(steps, st.integers(1, 4))
@examples(300)
def test_any_additions_and_removals_are_those_of_a_set(
    changes: list[tuple[bool, tuple[int, int]]], spread: int
) -> None:
    ranges, plain, numbers = Ranges(), RangeSet(), set[int]()
    for adds, (start, size) in changes:
        start *= spread
        if adds:
            ranges.add(start, start + size)
            plain.add(start, start + size)
            numbers.update(range(start, start + size))
        else:
            ranges.subtract(start, start + size)
            plain.subtract(start, start + size)
            numbers.difference_update(range(start, start + size))
        check(ranges)
        assert list(ranges) == list(plain)
    assert {number for each in ranges for number in each} == numbers
    for number in range(-1, 201 * spread + 15):
        assert (number in ranges) == (number in numbers)


def test_ranges_are_taken_off_at_the_beginning() -> None:
    ranges = Ranges()
    assert not ranges
    ranges.add(10, 12)
    ranges.add(0, 3)
    ranges.add(5, 6)
    assert ranges.first() == range(3)
    assert ranges.drop_first() == range(3)
    assert list(ranges) == [range(5, 6), range(10, 12)]
    ranges.clear()
    assert not ranges
    assert 5 not in ranges
    with pytest.raises(IndexError):
        ranges.first()
    with pytest.raises(IndexError):
        ranges.drop_first()


def test_growth_at_the_end_makes_no_new_range() -> None:
    ranges = Ranges()
    for number in range(1000):
        ranges.add(number, number + 1)
    assert list(ranges) == [range(1000)]
    ranges.add(5, 10)
    assert list(ranges) == [range(1000)]
    ranges.add(990, 1010)
    assert list(ranges) == [range(1010)]


def test_equal_sets_are_equal() -> None:
    one, other = Ranges(), Ranges()
    one.add(0, 5)
    one.add(5, 9)
    other.add(0, 9)
    assert one == other
    assert repr(one) == "Ranges([range(0, 9)])"
    other.add(20, 21)
    assert one != other
    assert one != [range(9)]
