"""Sends CRYPTO data in 1-RTT packets, such as session tickets.

Floor 1, sans-IO.  The data is repeated until it is acknowledged (RFC 9000 section 13.3).
"""

from __future__ import annotations

from ..wire import frames
from ..wire.ranges import Ranges

__all__ = ["CryptoSender"]

#: Type, offset and length of a CRYPTO frame at most.
_OVERHEAD = 1 + 8 + 4


class CryptoSender:
    """A stream of bytes without an end."""

    __slots__ = ("_acknowledged", "_data", "_pending", "_released", "has_pending")

    def __init__(self) -> None:
        self._data = bytearray()
        self._released = 0  # the offset of the first byte of _data
        self._pending = Ranges()
        self._acknowledged = Ranges()
        self.has_pending: bool = False
        """Whether anything is to be sent."""

    def write(self, data: bytes) -> None:
        """Add data at the end."""
        start = self._released + len(self._data)
        self._data += data
        self._pending.add(start, start + len(data))
        self.has_pending = True

    def fill(self, parts: list[bytes], room: int, control: list[tuple[int, int, int]]) -> int:
        """Add CRYPTO frames that fit into `room` (RFC 9000 section 19.6); returns the room left."""
        pending = self._pending
        while len(pending) and room > _OVERHEAD:
            start = pending.starts[0]
            stop = min(pending.stops[0], start + room - _OVERHEAD)
            data = bytes(self._data[start - self._released : stop - self._released])
            frame = frames.build_crypto(start, data)
            pending.subtract(start, stop)
            parts.append(frame)
            room -= len(frame)
            control.append((frames.CRYPTO, start, stop))
        self.has_pending = len(pending) > 0
        return room

    def on_acknowledged(self, start: int, stop: int) -> None:
        """Note that a frame has arrived."""
        acknowledged = self._acknowledged
        acknowledged.add(start, stop)
        self._pending.subtract(start, stop)
        self.has_pending = len(self._pending) > 0
        if acknowledged.starts[0] <= self._released < acknowledged.stops[0]:
            del self._data[: acknowledged.stops[0] - self._released]
            self._released = acknowledged.stops[0]

    def on_lost(self, start: int, stop: int) -> None:
        """Send the unacknowledged part of a lost frame again."""
        self._pending.add(start, stop)
        for known in self._acknowledged:
            self._pending.subtract(known.start, known.stop)
        self.has_pending = len(self._pending) > 0
