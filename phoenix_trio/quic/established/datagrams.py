"""The datagrams of an application which wait to be sent (RFC 9221).

Floor 1, sans-IO.  They are not repeated and have no flow control, so the queue is
bounded: when it is full, the caller waits or the oldest one is dropped.
"""

from __future__ import annotations

from collections import deque

from ..wire.varint import encode_varint

__all__ = ["DatagramSender"]

#: DATAGRAM with its length (RFC 9221 section 4).
_TYPE = b"\x31"


class DatagramSender:
    """A bounded queue.

    Args:
      length: datagrams which it holds at most.
    """

    __slots__ = ("_length", "dropped", "limit", "queue", "queued", "wants_room")

    def __init__(self, length: int) -> None:
        self._length = length
        self.queue: deque[bytes] = deque()
        self.limit = -1
        """The largest payload which the peer takes, in bytes; -1: it takes no datagrams."""
        self.queued = 0
        """Datagrams queued so far."""
        self.dropped = 0
        """Datagrams dropped so far."""
        self.wants_room = False
        """Whether a caller waits for room in the queue."""

    @property
    def is_full(self) -> bool:
        """Whether the queue holds all it may."""
        return len(self.queue) >= self._length

    def add(self, data: bytes) -> None:
        """Queue a datagram; if the queue is full, the oldest one is dropped and counted."""
        if len(self.queue) >= self._length:
            self.queue.popleft()
            self.dropped += 1
        self.queued += 1
        self.queue.append(data)

    def fill(self, parts: list[bytes], room: int) -> int:
        """DATAGRAM frames which fit into `room` bytes; returns the room left."""
        queue = self.queue
        while queue:
            data = queue[0]
            size = len(data)
            # (With the shortest length: the peer's limit counts it, RFC 9221 section 3.)
            head = _TYPE + encode_varint(size)
            used = len(head) + size
            if used > room:
                break
            queue.popleft()
            parts.append(head)
            parts.append(data)
            room -= used
        return room

    def drop_larger(self, maximum: int) -> None:
        """Drop what can never leave, because packets or the peer's limit became smaller."""
        if not self.queue:
            return
        kept = [data for data in self.queue if len(data) <= maximum]
        self.dropped += len(self.queue) - len(kept)
        self.queue = deque(kept)

    def take_room(self) -> bool:
        """Whether a caller waited for room and there is some now; asked once."""
        if self.wants_room and len(self.queue) < self._length:
            self.wants_room = False
            return True
        return False
