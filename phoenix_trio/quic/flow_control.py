"""Receive windows: how much more may the peer send, given what was read?

Floor 0, sans-IO.  For the engine, which keeps one window a stream and one a
connection.  Goals: credit follows what the application has *read*, never what
has arrived (a reader that stalls must not make memory grow); few updates; and
a window that grows to what the path needs while the reader keeps up, bounded
by the configuration (RFC 9000 section 4.2 leaves the policy to us).

The growth rule: when more than half a window was read within two round trips,
the window, not the reader, is the limit, so it doubles.
"""

from __future__ import annotations

__all__ = ["ReceiveWindow"]

#: An update is worth a frame once this share of the window can be granted.
_UPDATE_SHARE = 4  # a quarter


class ReceiveWindow:
    """The sliding flow-control window of one stream or connection.

    Args:
      initial: bytes which the peer may send at first (announced in the
        transport parameters).
      maximum: bytes the window may grow to.
    """

    __slots__ = ("_due", "_epoch_released", "_epoch_start", "limit", "maximum", "released", "size")

    def __init__(self, initial: int, maximum: int) -> None:
        self.maximum = maximum
        self.size = min(initial, maximum)
        self.limit = self.size
        """The highest offset which the peer was or will be allowed to reach."""
        self.released = 0
        """Bytes which were read or discarded."""
        self._due = self.size // _UPDATE_SHARE
        self._epoch_start: float | None = None
        self._epoch_released = 0

    def release(self, count: int) -> None:
        """Note that `count` more bytes left the buffer."""
        self.released += count

    def update(self, now: float, rtt: float) -> bool:
        """Raise :attr:`limit` where that is worth a frame, growing the window if the path needs it.

        Returns whether the limit was raised.
        """
        if not self.is_due:
            return False
        if self._epoch_start is None:
            self._epoch_start = now
            self._epoch_released = self.released
        elif (read := self.released - self._epoch_released) * 2 > self.size:
            if now - self._epoch_start < 2 * rtt:
                self.size = min(2 * self.size, self.maximum)
            self._epoch_start = now
            self._epoch_released += read
        self.limit = self.released + self.size
        self._due = self.released + self.size // _UPDATE_SHARE
        return True

    @property
    def is_due(self) -> bool:
        """Whether so much was released that :meth:`update` has something to do."""
        return self.released >= self._due
