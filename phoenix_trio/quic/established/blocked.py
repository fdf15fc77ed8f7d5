"""When a sender tells that flow control holds it back (RFC 9000 sections 4.1, 4.6, 19.12 to 19.14).

Floor 0, sans-IO: times in, deadlines out.  While data waits for credit and nothing is in
flight, both sides are silent, and the idle timeout would end a connection whose reader
only pauses.  So the sender says that it is blocked: once when that has lasted for a probe
timeout, then again and again.  The frames are ack-eliciting, so a peer which is alive
answers, and both idle timers restart; a peer which has gone does not, and the idle
timeout ends the connection as always.
"""

from __future__ import annotations

import math

__all__ = ["BlockedSignals"]

#: The frames are repeated after this share of the idle timeout, so that some may be lost.
_SHARE = 1 / 3


class BlockedSignals:
    """When the next BLOCKED frames of a connection are due.

    Args:
      patience: seconds without any progress after which no more are sent.
    """

    __slots__ = ("_patience", "_progress", "_said_at", "_since")

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._progress: object = None
        self._said_at = -math.inf
        self._since = 0.0

    def deadline(
        self, progress: object, quiet_since: float, probe_timeout: float, idle_timeout: float
    ) -> float:
        """When to say it, if this side is blocked and nothing is in flight.

        Args:
          progress: anything which changes when credit comes or is used.
          quiet_since: when the idle timer was restarted.
          probe_timeout: without backoff.
          idle_timeout: the effective one, of both sides.
        """
        if progress != self._progress:
            return quiet_since + probe_timeout
        due = max(quiet_since, self._said_at) + max(probe_timeout, idle_timeout * _SHARE)
        return due if due <= self._since + self._patience else math.inf

    def on_said(self, progress: object, now: float) -> None:
        """The frames have left."""
        if progress != self._progress:
            self._progress = progress
            self._since = now
        self._said_at = now
