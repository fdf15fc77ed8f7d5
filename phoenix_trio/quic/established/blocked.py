"""Schedules BLOCKED frames while flow control holds a sender back.

Floor 0, sans-IO: takes times, gives deadlines (RFC 9000 sections 4.1, 4.6, 19.12 to 19.14).
While data waits for credit and nothing is in flight, both sides are silent, and the idle timeout
would end a connection whose reader only pauses.  So the sender says that it is blocked: first
after one probe timeout without progress, then again and again.  The frames are ack-eliciting, so
a live peer answers, and both idle timers restart.  A dead peer does not answer, and the idle
timeout ends the connection as always.
"""

from __future__ import annotations

import math

__all__ = ["BlockedSignals"]

#: The frames are repeated after this share of the idle timeout, to allow for lost frames.
_SHARE = 1 / 3


class BlockedSignals:
    """Tells when the next BLOCKED frames of a connection are due.

    Args:
      patience: seconds without any progress after which no more are sent.
    """

    __slots__ = ("_frames_sent_at", "_patience", "_progress", "_since")

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._progress: object = None
        self._frames_sent_at = -math.inf
        self._since = 0.0

    def deadline(
        self, progress: object, quiet_since: float, probe_timeout: float, idle_timeout: float
    ) -> float:
        """The time to send the frames, if this side is blocked and nothing is in flight.

        Args:
          progress: a value that changes whenever credit comes or is used.
          quiet_since: when the idle timer was restarted.
          probe_timeout: the probe timeout without backoff.
          idle_timeout: the effective idle timeout of both sides.
        """
        if progress != self._progress:
            return quiet_since + probe_timeout
        due = max(quiet_since, self._frames_sent_at) + max(probe_timeout, idle_timeout * _SHARE)
        return due if due <= self._since + self._patience else math.inf

    def on_frames_sent(self, progress: object, now: float) -> None:
        """Note that the frames were sent."""
        if progress != self._progress:
            self._progress = progress
            self._since = now
        self._frames_sent_at = now
