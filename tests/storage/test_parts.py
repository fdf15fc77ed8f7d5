"""The choice of the partial files that have to go."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.storage.parts import (
    Part,
    PartLimits,
    choose_removed_parts,
    next_expiry,
    to_remove,
)

ANY_PARTS = st.lists(
    st.builds(
        Part,
        name=st.integers(0, 10**6).map(str),
        peer=st.sampled_from("abcd"),
        size=st.integers(1, 1000),
        written_at=st.floats(0, 100),
    ),
    max_size=30,
    unique_by=lambda part: part.name,
)


def test_the_old_go_first_then_what_is_above_the_quotas() -> None:
    parts = [
        Part("old", "a", 10, 0.0),
        Part("a1", "a", 10, 50.0),
        Part("a2", "a", 10, 60.0),
        Part("a3", "a", 10, 70.0),
        Part("b1", "b", 10, 40.0),
    ]
    limits = PartLimits(lifetime=100.0, max_count_per_peer=2, max_count=100, max_bytes=1000)
    assert [part.name for part in to_remove(parts, limits, 100.0, free=0)] == ["old", "a1"]


def test_who_has_most_loses_first() -> None:
    many = [Part(f"a{n}", "a", 10, 50.0 + n) for n in range(5)]
    other = Part("b", "b", 20, 1.0)  # older, and larger than each of the others
    limits = PartLimits(max_bytes=50)
    gone = to_remove([*many, other], limits, 60.0, free=10**6)
    assert [part.name for part in gone] == ["a0", "a1"]
    assert [part.name for part in choose_removed_parts([*many, other], 25)] == ["a0", "a1", "a2"]


def test_nothing_gives_way_where_all_would_not_be_enough() -> None:
    parts = [Part("a", "a", 10, 1.0), Part("b", "b", 20, 1.0)]
    assert choose_removed_parts(parts, 31) == []
    assert len(choose_removed_parts(parts, 30)) == 2
    assert choose_removed_parts(parts, 0) == []


def test_parts_may_have_half_of_what_is_free_without_them() -> None:
    parts = [Part("a", "a", 60, 1.0), Part("b", "b", 50, 2.0)]
    assert to_remove(parts, PartLimits(), 3.0, free=110) == []
    assert [part.name for part in to_remove(parts, PartLimits(), 3.0, free=109)] == ["a"]


@given(
    ANY_PARTS,
    st.integers(0, 20),
    st.integers(0, 8),
    st.none() | st.integers(0, 3000),
    st.none() | st.integers(0, 3000),
    st.integers(0, 5000),
)
def test_afterwards_every_limit_holds(
    parts: list[Part],
    max_count: int,
    per_peer: int,
    max_bytes: int | None,
    bytes_per_peer: int | None,
    free: int,
) -> None:
    limits = PartLimits(
        lifetime=50.0,
        max_count=max_count,
        max_count_per_peer=per_peer,
        max_bytes=max_bytes,
        max_bytes_per_peer=bytes_per_peer,
    )
    gone = to_remove(parts, limits, 100.0, free=free)
    assert len(set(gone)) == len(gone)
    rest = [part for part in parts if part not in gone]
    assert all(100.0 - part.written_at < 50.0 for part in rest)
    assert len(rest) <= max_count
    allowed = (free + sum(part.size for part in parts)) // 2 if max_bytes is None else max_bytes
    assert sum(part.size for part in rest) <= allowed
    for peer in "abcd":
        mine = [part for part in rest if part.peer == peer]
        assert len(mine) <= per_peer
        if bytes_per_peer is not None:
            assert sum(part.size for part in mine) <= bytes_per_peer


@given(ANY_PARTS, st.integers(0, 40_000))
def test_no_more_give_way_than_are_needed(parts: list[Part], needed: int) -> None:
    gone = choose_removed_parts(parts, needed)
    freed = sum(part.size for part in gone)
    if sum(part.size for part in parts) >= needed:
        assert freed >= needed
        assert not gone or freed - gone[-1].size < needed
    else:
        assert not gone


def test_the_next_look_is_when_the_next_part_is_too_old() -> None:
    parts = [Part("a", "a", 1, 10.0), Part("b", "b", 1, 5.0), Part("late", "b", 1, -100.0)]
    limits = PartLimits(lifetime=100.0)
    assert next_expiry(parts, limits, 50.0) == 105.0
    assert next_expiry([], limits, 50.0) == math.inf


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(PartLimits)])
def test_limits_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        PartLimits(**{field: -1})
