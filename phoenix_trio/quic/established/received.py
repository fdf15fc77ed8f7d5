"""Records the received packets of the application space, and when to acknowledge them.

Floor 1, sans-IO (RFC 9000 sections 12.3 and 13.2).  A packet that arrives in order costs a few
assignments.  The records are bounded, because a peer chooses how many gaps it leaves.
"""

from __future__ import annotations

import math

from ..wire.ranges import Ranges
from .ecn import ReceivedMarks

__all__ = ["ACKNOWLEDGE_BYTES", "ACK_DELAY", "MAX_ACK_RANGES", "ReceivedPackets"]

#: Seconds until packets are acknowledged; far below the promised 25 ms.
ACK_DELAY = 0.001

#: After so many bytes, an acknowledgement does not wait for its timer: a sender must not run out
#: of its window (RFC 9000 section 13.2.2).
ACKNOWLEDGE_BYTES = 512 * 1024

#: The most ranges kept for the next acknowledgement (RFC 9000 section 13.2.3).
MAX_ACK_RANGES = 64

#: The most ranges kept to recognise duplicates.  A packet below all of them counts as received;
#: no packet is lost by that on a path that reorders packets by less than twice as many.
_MAX_KNOWN_RANGES = 64


class ReceivedPackets:
    """The packets received so far.

    Attributes:
      to_acknowledge: the content of the next ACK frame.
      expected: the number that follows the largest one received.
      largest: the largest number received; -1: none.
      largest_time: when it came.
      ack_at: when an acknowledgement is due; infinite: none is.
      ack_delay: seconds by which acknowledgements are delayed.
      unacknowledged_bytes: bytes received since the last acknowledgement.
      marks: packets by their ECN mark; ``None`` while no packet was marked.
    """

    __slots__ = (
        "_floor",
        "_known",
        "_top",
        "ack_at",
        "ack_delay",
        "expected",
        "largest",
        "largest_time",
        "marks",
        "to_acknowledge",
        "unacknowledged_bytes",
    )

    def __init__(self) -> None:
        self.to_acknowledge: Ranges = Ranges()
        self.expected: int = 0
        self.largest: int = -1
        self.largest_time: float = 0.0
        self.ack_at: float = math.inf
        self.ack_delay: float = ACK_DELAY
        self.unacknowledged_bytes: int = 0
        self.marks: ReceivedMarks | None = None
        # Packets below the floor count as received.  Those from `_top` up to `expected` were
        # received without a gap, and `_known` holds the packets received in between.
        self._floor: int = 0
        self._known: Ranges = Ranges()
        self._top: int = 0

    def is_duplicate(self, number: int) -> bool:
        """Whether a packet of this number was received before, or is too old to be sure."""
        if number >= self.expected:
            return False
        return number >= self._top or number < self._floor or number in self._known

    def note(self, number: int, now: float, eliciting: bool, mark: int, size: int) -> None:
        """Record a packet that is authentic, no duplicate, and has been handled.

        Args:
          number: its number.
          now: the time.
          eliciting: whether it has to be acknowledged.
          mark: its ECN mark.
          size: its bytes, as a UDP payload.
        """
        if number != self.expected or mark:
            self.note_run(number, number + 1, now, eliciting, mark, size)
            return
        following = number + 1
        ranges = self.to_acknowledge
        stops = ranges.stops
        if not stops:
            ranges.starts.append(number)
            stops.append(following)
        elif stops[-1] == number:
            stops[-1] = following
        else:
            self._note_range(number, following, now)
        self.expected = following
        self.largest = number
        self.largest_time = now
        if eliciting:
            unacknowledged = self.unacknowledged_bytes + size
            self.unacknowledged_bytes = unacknowledged
            if unacknowledged >= ACKNOWLEDGE_BYTES:
                self.ack_at = now
            elif self.ack_at == math.inf:
                self.ack_at = now + self.ack_delay

    def note_run(
        self, first: int, stop: int, now: float, eliciting: bool, mark: int, size: int
    ) -> None:
        """Record packets from `first` to before `stop`, with `size` bytes in all."""
        self._note_range(first, stop, now)
        if eliciting:
            self.unacknowledged_bytes += size
            if self.unacknowledged_bytes >= ACKNOWLEDGE_BYTES:
                self.ack_at = now
            elif self.ack_at == math.inf:
                self.ack_at = now + self.ack_delay
        if mark:
            if self.marks is None:
                self.marks = ReceivedMarks()
            self.marks.count(mark, stop - first)

    def _note_range(self, first: int, stop: int, now: float) -> None:
        expected = self.expected
        if first < expected:
            self._known.add(first, stop)
        elif first > expected:
            if expected > self._top:
                self._known.add(self._top, expected)
            self._top = first
        if stop > expected:
            self.expected = stop
            self.largest = stop - 1
            self.largest_time = now
        known = self._known
        if len(known) > _MAX_KNOWN_RANGES:
            self._floor = known.drop_first().stop
        ranges = self.to_acknowledge
        ranges.add(first, stop)
        count = len(ranges)
        if count >= MAX_ACK_RANGES:
            if count > MAX_ACK_RANGES:
                ranges.drop_first()
            # An older packet would be the next one to drop, and never be acknowledged.  So it
            # counts as received (RFC 9000 section 13.2.3).
            if ranges.starts[0] > self._floor:
                self._floor = ranges.starts[0]

    def on_ack_sent(self) -> None:
        """Note that an ACK frame with :attr:`to_acknowledge` leaves."""
        self.ack_at = math.inf
        self.unacknowledged_bytes = 0

    def on_ack_acknowledged(self, largest: int) -> None:
        """Stop repeating acknowledgements up to `largest`, since the peer has them.

        RFC 9000 section 13.2.4.
        """
        ranges = self.to_acknowledge
        starts, stops = ranges.starts, ranges.stops
        if not starts or starts[0] > largest:
            return
        if stops[-1] <= largest + 1:
            starts.clear()
            stops.clear()
        elif len(starts) == 1:
            starts[0] = largest + 1
        else:
            ranges.subtract(starts[0], largest + 1)
