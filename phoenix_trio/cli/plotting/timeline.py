"""Keeps figures over time in a bounded number of points, without losing extremes.

Floor 6, pure.  Time is cut into intervals of equal length.  When there would be too many, their
length doubles, and neighbours are joined.
"""

from __future__ import annotations

from typing import final

__all__ = ["Counter", "Gauge", "Timeline"]

Point = tuple[float, float]


@final
class Timeline:
    """The intervals of all figures of one trace.

    Args:
      most: intervals at most; there is room for half of them at least once it was full.
    """

    def __init__(self, most: int = 400) -> None:
        self._most = most
        self.width: float = 0.01
        """Of an interval, in milliseconds."""
        self._kept: list[Gauge | Counter] = []

    def interval(self, time: float) -> int:
        """The number of the interval of a time, in milliseconds of 0 or more."""
        number = int(time / self.width)
        while number >= self._most:
            self.width *= 2
            number = int(time / self.width)
            for each in self._kept:
                each.join_pairs()
        return number

    def gauge(self) -> Gauge:
        """A new figure that has a value at each moment."""
        kept = Gauge(self)
        self._kept.append(kept)
        return kept

    def counter(self) -> Counter:
        """A new figure that is a sum."""
        kept = Counter(self)
        self._kept.append(kept)
        return kept

    def forget(self, counter: Counter) -> None:
        """Keep a counter no longer."""
        self._kept.remove(counter)


@final
class Gauge:
    """Of each interval the first, the last, the smallest and the largest value."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._found: dict[int, tuple[Point, Point, Point, Point]] = {}

    def add(self, time: float, value: float) -> None:
        """Note a value.  Times do not go back."""
        number = self._timeline.interval(time)
        point = (time, value)
        known = self._found.get(number)
        if known is None:
            self._found[number] = (point, point, point, point)
        else:
            first, low, high, _ = known
            self._found[number] = (
                first,
                point if value < low[1] else low,
                point if value > high[1] else high,
                point,
            )

    def join_pairs(self) -> None:
        """Make one interval of two."""
        joined: dict[int, tuple[Point, Point, Point, Point]] = {}
        for number, (first, low, high, last) in sorted(self._found.items()):
            known = joined.get(number // 2)
            if known is not None:
                first = known[0]
                low = min(known[1], low, key=lambda point: point[1])
                high = max(known[2], high, key=lambda point: point[1])
            joined[number // 2] = (first, low, high, last)
        self._found = joined

    def points(self) -> list[Point]:
        """Times in milliseconds and values, four for each interval at most."""
        points: list[Point] = []
        for _, (first, low, high, last) in sorted(self._found.items()):
            points.append(first)
            between = sorted({low, high} - {first, last}, key=lambda point: point[0])
            points += between
            if points[-1] != last:
                points.append(last)
        return points


@final
class Counter:
    """Of each interval the sum."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._found: dict[int, float] = {}
        self.total: float = 0.0

    def add(self, time: float, count: float = 1) -> None:
        """Count something."""
        number = self._timeline.interval(time)
        self._found[number] = self._found.get(number, 0) + count
        self.total += count

    def add_all(self, other: Counter) -> None:
        """Count all that `other` has counted."""
        for number, count in other._found.items():
            self._found[number] = self._found.get(number, 0) + count
        self.total += other.total

    def join_pairs(self) -> None:
        """Make one interval of two."""
        joined: dict[int, float] = {}
        for number, count in self._found.items():
            joined[number // 2] = joined.get(number // 2, 0) + count
        self._found = joined

    def counts(self, together: int = 1) -> list[Point]:
        """The middle of each interval from the first on, in milliseconds, and its sum.

        Args:
          together: so many intervals are taken as one.
        """
        width = self._timeline.width * together
        sums: dict[int, float] = {}
        for number, count in self._found.items():
            sums[number // together] = sums.get(number // together, 0.0) + count
        last = max(sums, default=-1)
        return [((n + 0.5) * width, sums.get(n, 0.0)) for n in range(last + 1)]

    def sums(self) -> list[Point]:
        """How the total has grown."""
        width = self._timeline.width
        total = 0.0
        points: list[Point] = []
        for number, count in sorted(self._found.items()):
            start = number * width
            if not points or points[-1][0] < start:
                points.append((start, total))
            total += count
            points.append((start + width, total))
        return points
