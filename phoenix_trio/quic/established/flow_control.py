"""Extends the peer's credit as the application reads.

Floor 0, sans-IO.  The engine keeps one window for each stream and one for the connection.
Goals: credit follows the bytes that the application has *read*, not the bytes that have arrived
(a stalled reader must not make memory grow); few updates; and a window that grows to the needs
of the path while the reader keeps up, bounded by the configuration (RFC 9000 section 4.2 leaves
the policy to us).

The growth rule: when more than half a window was read within two round trips, the window, not
the reader, is the limit, so it doubles.  A connection's window has an account with the
endpoint's memory, which may grant less.
"""

from __future__ import annotations

from .memory_budget import MemoryAccount

__all__ = ["ReceiveWindow"]

#: An update is worth a frame once this share of the window can be granted.
_UPDATE_SHARE = 4  # a quarter

#: RFC 9000 section 16: no offset reaches this.
_NEVER = 2**62


class ReceiveWindow:
    """The sliding flow-control window of one stream or connection.

    Args:
      initial: bytes that the peer may send at first (announced in the transport parameters).
      maximum: the largest size of the window, in bytes.
      account: grants memory, `initial` included; ``None``: another window bounds this one.
    """

    __slots__ = (
        "_account",
        "_due",
        "_epoch_released",
        "_epoch_start",
        "_has_ended",
        "limit",
        "maximum",
        "released",
        "size",
    )

    def __init__(self, initial: int, maximum: int, account: MemoryAccount | None = None) -> None:
        self.maximum: int = maximum
        self.size: int = min(initial, maximum)
        self.limit: int = self.size
        """The highest offset that the peer may reach; an update may still be unsent."""
        self.released: int = 0
        """Bytes read or discarded."""
        self._due = self.size // _UPDATE_SHARE
        self._epoch_start: float | None = None
        self._epoch_released = 0
        self._account = account
        self._has_ended = False

    def release(self, count: int) -> None:
        """Note that `count` more bytes left the buffer."""
        self.released += count

    def update(self, now: float, rtt: float, *, ceiling: int | None = None) -> bool:
        """Raise :attr:`limit` if that is worth a frame, and grow the window if the path needs it.

        Args:
          now: the time.
          rtt: the round-trip time, in seconds.
          ceiling: the most bytes outstanding, for this call.

        Returns whether the limit was raised.
        """
        if not self.is_due:
            return False
        if self._has_ended:
            self._settle()
            return False
        if self._epoch_start is None:
            self._epoch_start = now
            self._epoch_released = self.released
        elif (read := self.released - self._epoch_released) * 2 > self.size:
            if now - self._epoch_start < 2 * rtt:
                self.size = min(2 * self.size, self.maximum)
            self._epoch_start = now
            self._epoch_released += read
        size = self.size
        if ceiling is not None and ceiling < size:
            size = ceiling
        if self._account is not None:
            # If less is granted, the window grows from there by the same rule.
            size = self.size = self._account.adjust(self.limit - self.released, size)
        limit = max(self.limit, self.released + size)
        self._due = limit - size + size // _UPDATE_SHARE
        if limit == self.limit:
            return False
        self.limit = limit
        return True

    def end(self, received: int) -> None:
        """End the window: the connection has ended, and no bytes beyond `received` will come.

        Bytes read from now on are given back to the account.
        """
        self._has_ended = True
        self.limit = min(self.limit, received)
        self._settle()

    def _settle(self) -> None:
        unread = max(0, self.limit - self.released)
        if self._account is not None:
            self._account.end(unread)
        self._due = self.released + max(1, unread // _UPDATE_SHARE) if unread else _NEVER

    @property
    def is_due(self) -> bool:
        """Whether enough was released for :meth:`update` to have work."""
        return self.released >= self._due
