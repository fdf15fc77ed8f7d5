"""Keeps sets of integers as sorted ranges: packet numbers, or offsets of a stream.

Floor 0.  The ranges are disjoint, never empty, and never touch.  Their bounds are kept in two
parallel lists, so that loops over many ranges need no calls and no objects.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import ClassVar

__all__ = ["Ranges"]


class Ranges:
    """A set of integers, held as sorted half-open ranges.

    Adding at the end takes constant time; any other change takes logarithmic time to find its
    place.

    Attributes:
      starts: the first number of each range, ascending.
      stops: the number behind the last one of each range, ascending.  Range ``i`` is
        ``range(starts[i], stops[i])``.  Other modules may read both lists, and must not change
        them.
    """

    __slots__ = ("starts", "stops")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add ``range(start, stop)``, which must not be empty."""
        stops = self.stops
        if not stops or start > stops[-1]:
            self.starts.append(start)
            stops.append(stop)
            return
        starts = self.starts
        if start >= starts[-1]:
            # It touches or overlaps the last range, which is the common case.
            if stop > stops[-1]:
                stops[-1] = stop
            return
        # The ranges from `low` up to `high` touch or overlap the new one.
        low = bisect_left(stops, start)
        high = bisect_right(starts, stop, low)
        if low == high:
            starts.insert(low, start)
            stops.insert(low, stop)
            return
        if starts[low] < start:
            start = starts[low]
        if stops[high - 1] > stop:
            stop = stops[high - 1]
        starts[low:high] = (start,)
        stops[low:high] = (stop,)

    def subtract(self, start: int, stop: int) -> None:
        """Remove the numbers in ``range(start, stop)``, which must not be empty."""
        starts, stops = self.starts, self.stops
        # The ranges from `low` up to `high` overlap the removed one.
        low = bisect_right(stops, start)
        high = bisect_left(starts, stop, low)
        if low == high:
            return
        first, last = starts[low], stops[high - 1]
        if first >= start and last <= stop:
            del starts[low:high], stops[low:high]
        elif first >= start:
            starts[low:high] = (stop,)
            stops[low:high] = (last,)
        elif last <= stop:
            starts[low:high] = (first,)
            stops[low:high] = (start,)
        else:
            starts[low:high] = (first, stop)
            stops[low:high] = (start, last)

    def first(self) -> range:
        """The lowest range.

        Raises:
          IndexError: the set is empty.
        """
        return range(self.starts[0], self.stops[0])

    def drop_first(self) -> range:
        """Remove the lowest range, and return it.

        Raises:
          IndexError: the set is empty.
        """
        return range(self.starts.pop(0), self.stops.pop(0))

    def clear(self) -> None:
        """Remove everything."""
        self.starts.clear()
        self.stops.clear()

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self.starts, number) - 1
        return index >= 0 and number < self.stops[index]

    def __len__(self) -> int:
        """How many ranges there are; an empty set is false."""
        return len(self.starts)

    def __bool__(self) -> bool:
        return len(self.starts) > 0

    def __iter__(self) -> Iterator[range]:
        return map(range, self.starts, self.stops)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self.starts == other.starts and self.stops == other.stops

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"
