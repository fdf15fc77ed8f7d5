"""Keeps the sleep of a stalled process out of the path's round-trip time.

Floor 0, sans-IO: takes times, gives verdicts.  A stopped process, a blocked event loop or a
suspended machine reads packets long after their arrival.  Two facts tell the difference:

* :class:`Arrivals` (one for each socket, for the driver): when the socket was last found empty.
  Packets read now have arrived since then; more is not known.
* :class:`StallFilter` (one for each connection, for loss recovery): while an acknowledgement is
  awaited, a timer is due after each probe timeout (RFC 9002 section 6.2).  If it was not run by
  then, or the socket was not looked at for longer, this side stood still.

A sample within the probe timeout is taken as it is, since it does no harm.  From a longer one,
the time of the stall is left out.  If the rest is longer than the probe timeout, it is still a
sample, because the path was that slow while this side was awake.
"""

from __future__ import annotations

import math

__all__ = ["ON_TIME", "Arrivals", "StallFilter"]

#: Samples of longer round trips are ignored, in seconds: the largest `initial_rtt`.  A peer that
#: withholds acknowledgements could stretch three probe timeouts, and with them the idle timeout
#: (RFC 9000 section 10.1), to hours.
LONGEST_ROUND_TRIP = 10.0

#: Timers wait for a backlog to be read if it is older than this, in seconds.
_OLD_BACKLOG = 0.1


class Arrivals:
    """Tracks since when packets read from a socket may have waited there.

    Args:
      capacity: the most bytes held in the socket's receive buffer.
    """

    __slots__ = ("_capacity", "_mark", "_read", "earliest")

    def __init__(self, capacity: int) -> None:
        self.earliest: float = -math.inf
        """Data being read now has arrived after this time."""
        self._capacity = capacity
        self._mark: float | None = None
        self._read = 0

    def is_behind(self, now: float, *, drained: bool) -> bool:
        """Whether more packets wait to be read that may have arrived long ago.

        Then timers must not run yet: the packets that they wait for may be among them.
        """
        return not drained and now - self.earliest > _OLD_BACKLOG

    def on_read(self, began: float, size: int, *, drained: bool) -> None:
        """A round of reading, which began at `began`, has found `size` bytes.

        `drained`: the socket was empty afterwards.  Otherwise, the packets that waited at that
        time are known to be read once further bytes, as many as the buffer holds, have been
        read.
        """
        if drained:
            self.earliest = began
            self._mark = None
            return
        if self._mark is None:
            self._mark = began
            self._read = 0
        self._read += size
        if self._read >= self._capacity:
            self.earliest = self._mark
            self._mark = began
            self._read = 0


class _OnTime(Arrivals):
    """For engines without a driver: everything is read the moment it arrives."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)
        self.earliest = math.inf


ON_TIME: Arrivals = _OnTime()


class StallFilter:
    """Decides which part of a connection's round-trip samples counts."""

    __slots__ = ("_began", "_ended")

    def __init__(self) -> None:
        # The last stall: its beginning and its end.
        self._began = self._ended = -math.inf

    def on_timer(self, due: float, now: float, earliest: float, patience: float) -> bool:
        """Run a timer due at `due` now; whether it was late because of a stall."""
        if now - due <= patience:
            return False
        self._note(min(due, earliest), now)
        return True

    def sample(
        self, sent: float, now: float, earliest: float, due: float, patience: float
    ) -> float | None:
        """Seconds of round trip proved by an acknowledgement; ``None``: nothing is proved.

        Args:
          sent: when the newest packet acknowledged was sent.
          now: when it was read.
          earliest: it has not arrived before; see :attr:`Arrivals.earliest`.
          due: when the probe timer was due.
          patience: the probe timeout, without backoff.
        """
        sample = now - sent
        if sample <= patience:
            return sample
        unseen = max(earliest, sent)
        if now - unseen > patience:
            if now > due:
                self._note(unseen, now)
            else:
                # The timer has backed off, so it proves nothing: perhaps the acknowledgement
                # came now.
                sample = unseen - sent
        if sent < self._ended:
            sample -= self._ended - max(self._began, sent)
        return min(sample, LONGEST_ROUND_TRIP) if sample > patience else None

    def _note(self, began: float, ended: float) -> None:
        # (Another round of the same backlog belongs to the same stall.)
        if began >= self._ended:
            self._began = began
        self._ended = ended

    @property
    def last(self) -> tuple[float, float]:
        """The last stall: its beginning and its end."""
        return self._began, self._ended
