"""Memory for received datagrams, used again from turn to turn.

Floor 0, no I/O.  The bytes in a buffer are decrypted from there, or copied, before the turn of
the loop that received them ends.  So one set of buffers serves all endpoints of a thread, and
an idle connection costs none.
"""

from __future__ import annotations

import threading

__all__ = ["LARGEST_DATAGRAM", "ReceivePool", "receive_pool"]

#: Room for any UDP datagram, and for any run of them which a kernel hands up.
LARGEST_DATAGRAM = 65_536


class ReceivePool:
    """Buffers of :data:`LARGEST_DATAGRAM` bytes, made when first needed and kept.

    Args:
      size: bytes of them at most.
      buffers: those which other pools have made, to share; ``None``: none.
    """

    def __init__(self, size: int, buffers: list[bytearray] | None = None) -> None:
        self._limit = size // LARGEST_DATAGRAM
        self._buffers: list[bytearray] = [] if buffers is None else buffers

    def __len__(self) -> int:
        """How many buffers are there to be used again."""
        return min(len(self._buffers), self._limit)

    def buffer(self, index: int) -> bytearray | None:
        """The buffer with this number, counted from 0 without a gap; ``None``: the pool is too
        small for it.
        """
        if index >= self._limit:
            return None
        if index == len(self._buffers):
            self._buffers.append(bytearray(LARGEST_DATAGRAM))
        return self._buffers[index]


_thread = threading.local()


def receive_pool(size: int) -> ReceivePool:
    """A pool of at most `size` bytes, which shares its buffers with the others of this thread."""
    buffers: list[bytearray] | None = getattr(_thread, "buffers", None)
    if buffers is None:
        buffers = _thread.buffers = []
    return ReceivePool(size, buffers)
