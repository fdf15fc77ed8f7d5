"""Reuses memory for received datagrams from turn to turn.

Floor 0, no I/O.  The bytes in a buffer are decrypted or copied before the turn of the loop that
received them ends.  So one set of buffers serves all endpoints of a thread, and an idle
connection costs none.
"""

from __future__ import annotations

import threading

__all__ = ["LARGEST_DATAGRAM", "ReceivePool", "receive_pool"]

#: Room for any UDP datagram, and for any run of datagrams from a kernel.
LARGEST_DATAGRAM = 65_536


class ReceivePool:
    """Buffers of :data:`LARGEST_DATAGRAM` bytes, made when first needed and kept.

    Args:
      size: the most bytes of them.
      buffers: buffers made by other pools, to share; ``None``: none.
    """

    def __init__(self, size: int, buffers: list[bytearray] | None = None) -> None:
        self._limit = size // LARGEST_DATAGRAM
        self._buffers: list[bytearray] = [] if buffers is None else buffers

    def __len__(self) -> int:
        """The number of buffers that can be used again."""
        return min(len(self._buffers), self._limit)

    def buffer(self, index: int) -> bytearray | None:
        """The buffer with this number, counted from 0 without a gap.

        ``None``: the pool is too small for it.
        """
        if index >= self._limit:
            return None
        if index == len(self._buffers):
            self._buffers.append(bytearray(LARGEST_DATAGRAM))
        return self._buffers[index]


_thread = threading.local()


def receive_pool(size: int) -> ReceivePool:
    """A pool of at most `size` bytes that shares its buffers with the others of this thread."""
    buffers: list[bytearray] | None = getattr(_thread, "buffers", None)
    if buffers is None:
        buffers = _thread.buffers = []
    return ReceivePool(size, buffers)
