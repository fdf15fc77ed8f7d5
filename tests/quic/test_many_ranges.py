"""The ranges of a stream against aioquic's own, which are slow but plain."""

from __future__ import annotations

from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.stream_state import ManyRanges
from tests.support import examples

pieces = st.tuples(st.integers(0, 300), st.integers(1, 12))


@given(added=st.lists(pieces, max_size=150), spread=st.integers(1, 5))
@examples(200)
def test_ranges_are_those_of_aioquic(added: list[tuple[int, int]], spread: int) -> None:
    plain, many = RangeSet(), ManyRanges()
    for number in range(0, 900, 9):  # many from the beginning
        plain.add(number, number + 2)
        many.add(number, number + 2)
    for start, size in added:
        plain.add(start * spread, start * spread + size)
        many.add(start * spread, start * spread + size)
        assert list(many) == list(plain)
    assert many.bounds() == plain.bounds()
    many.add(2000)
    plain.add(2000)
    while len(plain):
        assert many.shift() == plain.shift()
