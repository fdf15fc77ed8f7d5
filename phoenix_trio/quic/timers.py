"""Keeps one timer for each connection, in a heap.

Floor 0, sans-IO.  Nearly every packet moves the deadline of a connection.  A timer must never be
late, but may be early: its owner looks at the deadline again and sets a new timer.  So when a
deadline moves to a later time, the timer stays if its owner will probably look at it before it
is due (:meth:`Timers.may_stay`).  A moved timer leaves its old entry in the heap, until the
entry comes up or most entries are stale.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, Protocol, TypeVar

__all__ = ["INITIAL_PACE", "STALE_TIMERS", "Timed", "Timers"]

#: Stale entries that may stay in the heap, besides four for each timer set.
STALE_TIMERS = 64

#: An early timer stays if the time until it is due is this many times the time between looks.
LOOKS_AHEAD = 2.0

#: The part of the old pace that stays at each look, if looks come faster: the looks of an
#: exchange come in a rapid sequence, and a pause follows.
PACE_KEPT = 0.5

#: Seconds between looks at a timer, before any look.
INITIAL_PACE = 0.002


class Timed(Protocol):
    """Has one timer, which :class:`Timers` sets."""

    scheduled_at: float
    """When the timer is due; infinite: it is not set."""
    looked_at: float
    """When the owner last looked at the timer; infinite: never."""
    pace: float
    """Seconds between recent looks; starts at :data:`INITIAL_PACE`."""


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """The timers of any number of objects, at most one for each."""

    __slots__ = ("_heap", "_sequence", "_set")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = itertools.count()
        self._set = 0

    def __len__(self) -> int:
        """Entries in the heap, stale ones included."""
        return len(self._heap)

    def schedule(self, timed: T, deadline: float) -> None:
        """Set the timer of `timed` to `deadline`, or move it there; infinite: cancel it."""
        if deadline == math.inf:
            self.cancel(timed)
            return
        if timed.scheduled_at == math.inf:
            self._set += 1
        timed.scheduled_at = deadline
        heapq.heappush(self._heap, (deadline, next(self._sequence), timed))
        self._drop_stale()

    def may_stay(self, timed: T, now: float) -> bool:
        """Whether the timer of `timed` may stay if it is early; call it once for each look.

        Otherwise it would probably wake the process for nothing, which costs more than moving it.
        """
        gap = now - timed.looked_at
        pace = timed.pace
        if gap:
            timed.looked_at = now
            pace = timed.pace = max(gap, pace * PACE_KEPT)
        return timed.scheduled_at - now > pace * LOOKS_AHEAD

    def cancel(self, timed: T) -> None:
        """Unset the timer of `timed`."""
        if timed.scheduled_at != math.inf:
            self._set -= 1
            timed.scheduled_at = math.inf
            self._drop_stale()

    def next_deadline(self) -> float:
        """When the next timer is due; infinite: none is set."""
        heap = self._heap
        while heap:
            deadline, _, timed = heap[0]
            if deadline == timed.scheduled_at:
                return deadline
            heapq.heappop(heap)
        return math.inf

    def pop_due(self, now: float) -> T | None:
        """Unset and return one timer due at `now`; ``None``: no more."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, _, timed = heapq.heappop(heap)
            if deadline == timed.scheduled_at:
                timed.scheduled_at = math.inf
                self._set -= 1
                return timed
        return None

    def _drop_stale(self) -> None:
        """Drop stale entries once most are: their number does not grow with the traffic."""
        if len(self._heap) > STALE_TIMERS + 4 * self._set:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].scheduled_at]
            heapq.heapify(self._heap)
