"""Keeps incoming streams which wait for the application.

Floor 5.  For :class:`~phoenix_trio.PhoenixConnection`.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

import trio

__all__ = ["IncomingQueue"]

R = TypeVar("R")


class IncomingQueue(Generic[R]):
    """Incoming streams of one kind, the lowest stream ID first."""

    def __init__(self) -> None:
        self.lot: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        """Woken for each stream; its users wait here while there is none."""
        self._heap: list[tuple[int, int, R]] = []
        self._number = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, stream_id: int, item: R) -> None:
        """Add a stream, and wake one of the tasks which wait."""
        # (The number keeps the heap from comparing items.)
        heapq.heappush(self._heap, (stream_id, next(self._number), item))
        self.lot.unpark()

    def pop(self) -> tuple[int, R] | None:
        """Remove and return the stream with the lowest ID; ``None``: there is none."""
        if not self._heap:
            return None
        stream_id, _, item = heapq.heappop(self._heap)
        return stream_id, item
