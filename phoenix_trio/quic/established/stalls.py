"""A process which stood still must not take its own sleep for the path's round trip.

Floor 0, sans-IO: times in, verdicts out.  A stopped process, a blocked event loop or a
suspended machine reads late what had arrived long before.  Two facts tell the difference:

* :class:`Arrivals` (one a socket, for the driver): when the socket was last found empty.
  What is read now has arrived since; more is not known.
* :class:`StallFilter` (one a connection, for loss recovery): while an acknowledgement is
  awaited, a timer is due after each probe timeout (RFC 9002 section 6.2).  If it was not
  run by then, or the socket was not looked at for longer, this side stood still.

A sample within the probe timeout is taken as it is: it cannot do harm.  Of a longer one,
the time of the stall is left out.  If what remains is longer than the probe timeout, it
is a sample still, because the path was that slow while this side was awake.
"""

from __future__ import annotations

import math

__all__ = ["ON_TIME", "Arrivals", "StallFilter"]

#: Round trips above which no sample is believed, in seconds: the largest `initial_rtt`.
#: A peer which withholds acknowledgements could stretch three probe timeouts, and with
#: them the idle timeout (RFC 9000 section 10.1), to hours.
LONGEST_ROUND_TRIP = 10.0

#: Seconds which a backlog may be old before timers wait until it was read.
_OLD_BACKLOG = 0.1


class Arrivals:
    """Since when what is read from a socket may have waited there.

    Args:
      capacity: bytes which the socket's receive buffer holds at most.
    """

    __slots__ = ("_capacity", "_mark", "_read", "earliest")

    def __init__(self, capacity: int) -> None:
        self.earliest = -math.inf
        """What is being read has arrived after this time."""
        self._capacity = capacity
        self._mark: float | None = None
        self._read = 0

    def is_behind(self, now: float, *, drained: bool) -> bool:
        """Whether more waits to be read which may have arrived long ago.

        Then timers are not to be run yet: what they are waiting for may be there.
        """
        return not drained and now - self.earliest > _OLD_BACKLOG

    def on_read(self, began: float, size: int, *, drained: bool) -> None:
        """A round of reading, which began at `began`, has found `size` bytes.

        `drained`: it has left nothing.  If it has, what waited at that time is known to be
        read once as many bytes as the buffer holds were read after it.
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
    """For engines which no driver owns: everything is read the moment it arrives."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)
        self.earliest = math.inf


ON_TIME: Arrivals = _OnTime()


class StallFilter:
    """Which round-trip samples of a connection are believed, and how much of them."""

    __slots__ = ("_began", "_ended")

    def __init__(self) -> None:
        # The last stall, from when to when.
        self._began = self._ended = -math.inf

    def on_timer(self, due: float, now: float, earliest: float, patience: float) -> bool:
        """A timer which was due at `due` is run at `now`; whether that was a stall."""
        if now - due <= patience:
            return False
        self._note(min(due, earliest), now)
        return True

    def sample(
        self, sent: float, now: float, earliest: float, due: float, patience: float
    ) -> float | None:
        """Seconds of round trip which an acknowledgement proves; ``None``: nothing is proved.

        Args:
          sent: when the newest packet which it acknowledges was sent.
          now: when it was read.
          earliest: it has not arrived before, see :attr:`Arrivals.earliest`.
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
                # The timer has backed off, so that it proves nothing: perhaps it came now.
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
        """The last stall, from when to when."""
        return self._began, self._ended
