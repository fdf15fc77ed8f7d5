"""Leaves out packet numbers, as traps for a receiver that acknowledges too much.

Floor 0, sans-IO.  A receiver can acknowledge packets that it has not received, and so get more
than its share of the path (RFC 9000 section 21.4).  So a sender skips a packet number at
unpredictable intervals.  An honest receiver never acknowledges a skipped number; a receiver that
guesses soon does.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable

__all__ = ["SkippedNumbers"]

#: The average of packets between two skipped numbers at first.  A connection that begins to
#: cheat in slow start is found out before its window is large.
FIRST_PERIOD = 64

#: The same later on.  The period doubles up to this, since each gap costs the receiver an
#: acknowledgement range for a while.
LONGEST_PERIOD = 512

#: The number of skipped numbers remembered.  They reach further back than the oldest packet that
#: can be unacknowledged, and acknowledging an older number gains nothing.
REMEMBERED = 128

_NEVER = 1 << 62  # larger than any packet number


class SkippedNumbers:
    """Chooses the unused packet numbers of one packet number space.

    Args:
      choose: ``choose(n)`` returns an unpredictable integer from 0 to before `n`.
    """

    __slots__ = ("_choose", "_numbers", "_period", "count", "newest", "next")

    def __init__(self, choose: Callable[[int], int] = secrets.randbelow) -> None:
        self._choose = choose
        self._numbers: list[int] = []  # ascending
        self._period = FIRST_PERIOD
        self.next: int = _NEVER
        """The next number to skip.  A run of packets has to end before it."""
        self.newest: int = -1
        """The largest number skipped so far."""
        self.count: int = 0
        """Numbers skipped so far."""

    def begin(self, following: int) -> None:
        """Skip numbers from now on; the next packet would have the number `following`."""
        self._choose_next(following)

    def skip(self, number: int) -> int:
        """Skip `number`, which follows the last one used; returns the number to use instead."""
        numbers = self._numbers
        numbers.append(number)
        if len(numbers) > REMEMBERED:
            del numbers[0]
        self.newest = number
        self.count += 1
        self._period = min(2 * self._period, LONGEST_PERIOD)
        self._choose_next(number + 1)
        return number + 1

    def _choose_next(self, following: int) -> None:
        # At least one packet in between, so that no two traps are side by side.
        self.next = following + 1 + self._choose(2 * self._period)

    def includes(self, start: int, stop: int) -> bool:
        """Whether there is a skipped number in ``range(start, stop)``."""
        numbers = self._numbers
        if start > self.newest:
            return False
        return numbers[bisect_left(numbers, start)] < stop

    def before(self, number: int, packets: int) -> int:
        """The number of the packet sent `packets` packets before `number`.

        A skipped number is not a packet that could have overtaken another one, so it does not
        count towards the packet threshold (RFC 9002 section 6.1.1).
        """
        result = number - packets
        numbers = self._numbers
        if self.newest >= result:
            for skipped in reversed(numbers):
                if skipped < result:
                    break
                if skipped <= number:
                    result -= 1
        return result
