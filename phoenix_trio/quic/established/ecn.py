"""Marks packets for explicit congestion notification, and judges marks (RFC 9000 section 13.4).

Floor 0, sans-IO: takes packet numbers and counts, gives verdicts.  Instead of dropping packets,
a router can mark them (explicit congestion notification, RFC 3168); the receiver counts the
marks and reports them.  Some networks and peers get this wrong, so each path is tested first: a
few packets are marked, and marking goes on only if their acknowledgements account for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["CE", "ECT_0", "ECT_1", "NOT_ECT", "EcnMarking", "ReceivedMarks"]

# The two bits in the IP header (RFC 3168 section 5).
NOT_ECT = 0
ECT_1 = 1
ECT_0 = 2
CE = 3

#: Packets marked before the first verdict (RFC 9000 appendix A.4).
TESTING_PACKETS = 10

_NEVER = 1 << 62


class ReceivedMarks:
    """Counts the received packets of one packet number space by their mark."""

    __slots__ = ("congestion", "ect_0", "ect_1")

    def __init__(self) -> None:
        self.ect_0: int = 0
        self.ect_1: int = 0
        self.congestion: int = 0

    def count(self, mark: int, packets: int = 1) -> None:
        """Count `packets` more, all with the same mark."""
        if mark == ECT_0:
            self.ect_0 += packets
        elif mark == CE:
            self.congestion += packets
        elif mark == ECT_1:
            self.ect_1 += packets

    def as_fields(self) -> tuple[int, int, int]:
        """The counts in the order of the ACK frame (RFC 9000 section 19.3.2)."""
        return self.ect_0, self.ect_1, self.congestion


class EcnMarking:
    """Decides whether to mark packets on the present path, and judges the reports.

    Args:
      enabled: whether packets are marked at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._failed = not enabled
        self._validated = False
        self._first = _NEVER  # packets from here on were marked ...
        self._stop = _NEVER  # ... up to here, while the verdict is pending ...
        self._resumed = _NEVER  # ... and again from here on
        self._sent = 0
        self._sent_ever = 0  # on the paths before as well
        self._acknowledged = 0
        self._reported = (0, 0, 0)
        self._base = (0, 0, 0)
        self.signals: int = 0
        """How often the peer reported new congestion marks."""

    @property
    def codepoint(self) -> int:
        """The mark for the next packets."""
        if self._failed or (not self._validated and self._sent >= TESTING_PACKETS):
            return NOT_ECT
        return ECT_0

    @property
    def is_validated(self) -> bool:
        """Whether path and peer were shown to report marks correctly."""
        return self._validated and not self._failed

    def begin_path(self) -> None:
        """Test another path from the beginning (RFC 9000 section 13.4.2)."""
        self._failed = not self._enabled
        self._validated = False
        self._first = self._stop = self._resumed = _NEVER
        self._sent = self._acknowledged = 0
        self._base = self._reported

    def on_sent(self, first: int, stop: int) -> None:
        """Note that packets from `first` to before `stop` were sent with :attr:`codepoint`."""
        if self.codepoint == NOT_ECT:
            return
        if self._validated:
            self._resumed = min(self._resumed, first)
        else:
            self._first = min(self._first, first)
            if self._sent + stop - first >= TESTING_PACKETS:
                self._stop = stop
        self._sent += stop - first
        self._sent_ever += stop - first

    def on_acknowledged(
        self, numbers: Sequence[int], counts: tuple[int, int, int] | None, *, is_newest: bool
    ) -> bool:
        """Take an ACK frame of 1-RTT packets; whether it reports new congestion.

        Args:
          numbers: the packets acknowledged for the first time, ascending.
          counts: ECT(0), ECT(1) and CE as reported; ``None``: a frame without them.
          is_newest: whether it raises the largest acknowledged packet number; other frames may
            come out of order and prove nothing.
        """
        if self._failed:
            return False
        marked = self._marked(numbers)
        self._acknowledged += marked
        if not is_newest:
            return False
        if counts is None:
            if marked:
                self._failed = True
            return False
        # (Plain comparisons, since this runs for each acknowledgement on a marked path.)
        before_0, before_1, before_ce = self._reported
        base_0, base_1, base_ce = self._base
        ect_0, ect_1, congestion = self._reported = counts
        marks = ect_0 - base_0 + congestion - base_ce
        if (
            ect_0 < before_0
            or ect_1 < before_1
            or congestion < before_ce
            or ect_1 != base_1
            or marks < self._acknowledged
            or ect_0 + congestion > self._sent_ever
        ):
            # Counts too low, too high or lower than before, or marks that we never make.
            self._failed = True
            return False
        if self._acknowledged:
            self._validated = True
        if congestion > before_ce:
            self.signals += 1
            return True
        return False

    def _marked(self, numbers: Sequence[int]) -> int:
        if not numbers or numbers[-1] < self._first:
            return 0
        if numbers[0] >= self._resumed and numbers[0] >= self._stop:
            return len(numbers)
        tested = bisect_left(numbers, self._stop) - bisect_left(numbers, self._first)
        return tested + len(numbers) - bisect_left(numbers, max(self._resumed, self._stop))
