"""Keeps received datagrams (RFC 9221) until the application reads them.

Floor 0, sans-IO.  Datagrams have no flow control, so datagrams not read in time are dropped, the
oldest first: when there are too many, or when their bytes exceed the share of the endpoint's
memory that this connection has.
"""

from __future__ import annotations

from collections import deque

from .memory_budget import MemoryAccount, MemoryBudget

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """A bounded queue of received datagrams.

    Args:
      length: the most datagrams held.
      budget: grants memory beyond each connection's minimum.
    """

    __slots__ = ("_account", "_budget", "_length", "_queue", "dropped", "size")

    def __init__(self, length: int, budget: MemoryBudget) -> None:
        self._queue: deque[bytes] = deque()
        self._length = length
        self._budget = budget
        self._account: MemoryAccount | None = None  # made when the minimum is exceeded
        self.size: int = 0
        """Bytes held."""
        self.dropped: int = 0
        """Datagrams dropped so far."""

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def append(self, data: bytes) -> None:
        """Add a datagram, and drop older ones if there is no room for it."""
        queue = self._queue
        queue.append(data)
        self.size += len(data)
        if len(queue) > self._length:
            self._drop()
        if self.size > self._budget.minimum:
            self._find_room()

    def _find_room(self) -> None:
        if self._account is None:
            self._account = self._budget.open(counts=False)
        while self._account.adjust(0, self.size) < self.size and len(self._queue) > 1:
            self._drop()

    def _drop(self) -> None:
        self.size -= len(self._queue.popleft())
        self.dropped += 1

    def popleft(self) -> bytes:
        """Remove and return the oldest datagram.

        Raises:
            IndexError: the queue is empty.
        """
        data = self._queue.popleft()
        self.size -= len(data)
        if self._account is not None:
            if self.size > self._budget.minimum:
                self._account.adjust(0, self.size)
            else:
                self._account.close()
                self._account = None
        return data
