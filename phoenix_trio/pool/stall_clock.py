"""Tells when a transfer that waits for its sender counts as stalled.

Floor 4, sans-IO: takes the time, knows no Trio and no bytes.  Used by striped transfers
and by the file receiver of the ``phoenix-trio`` program.

A transfer holds a place, and often memory or a partial file.  A peer that opens transfers
and sends nothing would hold them for ever, and so would a peer that sends a byte now and
then.  So progress is :data:`LEAST_PROGRESS` bytes, and a transfer without progress for the
timeout has stalled.
"""

from __future__ import annotations

__all__ = ["LEAST_PROGRESS", "StallClock"]

#: Bytes that count as progress: with a timeout of two minutes, 137 bytes a second.
LEAST_PROGRESS = 16 * 1024


class StallClock:
    """Measures how long one transfer has made no progress.

    Args:
      timeout: seconds without progress after which the transfer has stalled;
        ``math.inf``: never.
      now: the time.
    """

    __slots__ = ("_count", "_excused", "_since", "timeout")

    def __init__(self, timeout: float, now: float) -> None:
        self.timeout: float = timeout
        self._since = now
        self._count = 0
        self._excused = False

    @property
    def deadline(self) -> float:
        """When the transfer has stalled, unless progress comes before."""
        return self._since + self.timeout

    def note(self, count: int, now: float) -> None:
        """So many new bytes have come from the sender."""
        self._count += count
        if self._count >= LEAST_PROGRESS:
            self.restart(now)
            self._excused = False

    def restart(self, now: float) -> None:
        """Give the sender a whole timeout from now on: it may do what it could not before."""
        self._since = now
        self._count = 0

    def restart_after_loss(self, now: float) -> None:
        """The sender is back after its connection was lost: restart, once between progress.

        Without that condition, a sender that only comes and goes would never stall.
        """
        if not self._excused:
            self._excused = True
            self.restart(now)

    def pause(self, seconds: float) -> None:
        """Discount so many seconds in which this side did not wait for the sender."""
        self._since += seconds
