"""What has come on a connection and waits for the application: a queue, and an iterator.

Floor 5.  For :class:`~phoenix_trio.PhoenixConnection`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from .errors import ConnectionClosedByPeer

__all__ = ["IncomingQueue", "Until"]

R = TypeVar("R")


class IncomingQueue(Generic[R]):
    """Incoming streams of one kind, the lowest stream ID first."""

    def __init__(self) -> None:
        self.lot = trio.lowlevel.ParkingLot()
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


class Until(Generic[R]):
    """An iterator rather than an async generator, so that a loop can be left at any point."""

    def __init__(self, accept: Callable[[], Awaitable[R]]) -> None:
        self._accept = accept

    def __aiter__(self) -> Until[R]:
        return self

    async def __anext__(self) -> R:
        try:
            return await self._accept()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None
        except ConnectionClosedByPeer as error:
            if error.is_clean:
                raise StopAsyncIteration from None
            raise
