"""Takes snapshots of a transport in its Trio loop, for threads of metrics libraries.

Floor 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, final

import trio

__all__ = ["Look"]

T = TypeVar("T")


@final
class Look(Generic[T]):
    """Takes a snapshot in the Trio loop that made this object, from any thread.

    Args:
      take: makes the snapshot; synchronous, runs in the loop.
      timeout: the most seconds that another thread waits for the loop.  After that, or when
        the loop has ended, it gets the previous snapshot again.
    """

    def __init__(self, take: Callable[[], T], *, timeout: float = 5.0) -> None:
        self._take = take
        self._timeout = timeout
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._last = take()

    def __call__(self) -> T:
        """A new snapshot."""
        if threading.get_ident() == self._thread:
            self._last = self._take()
            return self._last
        done = threading.Event()

        def look() -> None:
            self._last = self._take()
            done.set()

        try:
            self._token.run_sync_soon(look)
        except trio.RunFinishedError:
            return self._last
        done.wait(self._timeout)
        return self._last
