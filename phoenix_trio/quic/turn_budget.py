"""Bounds the time that expensive datagrams of one connection take from other connections.

Floor 0, sans-IO.  Some frames are cheap to send and expensive to receive.  A peer that sends
only those could keep an endpoint busy, since all connections share one task.  So time is
measured, not frames: a connection whose datagrams cost more than ordinary ones on average is
*dear*, until they cost less.

Ordinary datagrams are never kept waiting, nor are those of a lone connection.  While other
connections are active, a dear connection has a part of the processor: two fifths, less the share
used by the others, and at least a fifth.  Its further datagrams wait in a bounded line, and are
dropped when that is full, as by a socket with a full buffer.

There are two clocks.  One is read for every run of datagrams; it is cheap, but goes on while
another process has the processor.  So it can only arouse suspicion: the next datagrams of such a
connection are measured by the processor time of this thread, which is exact, but takes five
times as long to read.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Account", "TurnBudget"]

Work = TypeVar("Work")

#: The permitted cost of an ordinary datagram, and of each byte of it, in seconds.  Measured: 15
#: us for a small one and for 1400 bytes of stream data, 25 us for 65,507, 45 us for the
#: acknowledgement of a megabyte; nearly twice as much leaves room for a slower machine.
DATAGRAM_SECONDS = 80e-6

#: On a slower machine, the permitted cost is this many times the cost of the cheapest run of
#: datagrams seen so far, which takes 10 to 25 us here; up to a machine of a fifth of the speed.
#: (A peer can make the cheapest run cheaper, which changes nothing here, but not dearer.)
TIMES_THE_CHEAPEST = 4
SLOWEST_DATAGRAM_SECONDS = 400e-6
BYTE_SECONDS = 5e-9

#: Seconds of excess, by the cheap clock, after which a connection is watched.
SUSPICIOUS_EXCESS = 250e-6

#: Seconds of excess, measured exactly, that make it dear, and the most that is remembered: the
#: first datagrams after a pause find nothing in the processor's caches.
DEAR_EXCESS = 1e-3
MOST_EXCESS = 2e-3

#: The part of the processor for a dear connection while others are active.
LEAST_PART = 0.2
MOST_PART = 0.4

#: Seconds of dear work in one piece, unless one datagram takes longer; and the most that a
#: connection can save up, or owe.
PIECE = 250e-6
MOST_SAVED = 1e-3
MOST_OWED = 4e-3

#: Seconds for which a connection counts as active after its last datagram: longer than the round
#: trips in which it waits for the endpoint.
ACTIVE_SECONDS = 0.1

#: Seconds of a turn after which dear work waits for the next one, even of a lone connection:
#: another connection may have sent something meanwhile.
TURN_SECONDS = 4e-3

#: Seconds over which the use of the processor is averaged.
WINDOW = 0.05

#: Seconds by which dear work begins later than it could: rounding must not begin a turn too
#: early to do anything.
WAIT_SLACK = 1e-4

#: Runs of datagrams measured exactly after a suspicious one.
WATCHED = 16

#: Bytes of memory that held work takes besides its own.
OVERHEAD = 256

#: One connection may have this part of all held bytes.
HELD_PART = 4


class _Use:
    """The part of the processor used recently: an average that forgets exponentially."""

    __slots__ = ("_at", "_seconds")

    def __init__(self) -> None:
        self._at = -math.inf
        self._seconds = 0.0

    def add(self, seconds: float, now: float) -> None:
        self._seconds = self.part(now) * WINDOW + seconds
        self._at = now

    def part(self, now: float) -> float:
        return self._seconds * math.exp((self._at - now) / WINDOW) / WINDOW


class Account:
    """The recent cost of one connection."""

    __slots__ = (
        "_at",
        "_excess",
        "_held_bytes",
        "_price",
        "_saved",
        "_use",
        "is_expensive",
        "watched",
    )

    def __init__(self) -> None:
        self.watched: int = 0
        """Runs still to be measured exactly."""
        self.is_expensive: bool = False
        """Whether its datagrams have to wait in line."""
        self._excess = 0.0  # seconds of excess, less the savings since
        self._price = 0.0  # seconds of a datagram, by the last measurement
        self._use = _Use()
        self._saved = 0.0  # seconds that it may use at once
        self._at = 0.0  # the time of that value
        self._held_bytes = 0


class TurnBudget(Generic[Work]):
    """Decides which work is done in this turn, later, or never.

    Args:
      capacity: the most bytes of work held back, of all connections together.
      clock: seconds of a clock that is cheap to read and only goes forward.
      processor_time: seconds of processor time of this thread.
    """

    def __init__(
        self,
        capacity: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._capacity = capacity
        self._clock = clock
        self._processor_time = processor_time
        self._held: dict[Account, deque[tuple[Work, int]]] = {}
        self._held_bytes = 0
        self._now = self._began = self._at = self._exact_at = 0.0
        self._time = 0.0  # seconds available for sharing so far ...
        self._shared_at = self._busy_at = 0.0  # ... at that time, on both clocks
        self._ordinary = 0.0  # seconds of ordinary work since then
        self._cheapest = math.inf  # seconds of the cheapest run of datagrams so far
        self._datagram_seconds = DATAGRAM_SECONDS
        self._use = _Use()  # of all connections
        self._latest: Account | None = None
        self._latest_at = self._other_at = -math.inf
        self.dropped: int = 0
        """Pieces of work dropped so far."""

    def begin_turn(self, now: float, *, rested: bool) -> None:
        """Begin a turn at `now`; `rested`: the task had nothing to do before."""
        if self._held:
            passed = now - self._shared_at
            busy = self._processor_time()
            if not rested:
                # Time taken by other processes was not available for sharing.
                passed = min(passed, busy - self._busy_at)
            self._busy_at = busy
            self._shared_at = now
            self._use.add(self._ordinary, self._time)
            self._time += passed
            self._ordinary = 0.0
        self._now = now
        self._began = self._at = self._clock()

    def note(self, account: Account, datagrams: int, size: int) -> None:
        """Count work of an unwatched connection done since the last call.

        Args:
          account: the connection's account.
          datagrams: the number of datagrams taken.
          size: their bytes together.
        """
        if account is not self._latest:
            self._other_at = self._latest_at
            self._latest = account
        self._latest_at = self._now
        at = self._clock()
        seconds = at - self._at
        self._at = at
        self._ordinary += seconds
        if seconds < self._cheapest:
            self._cheapest = seconds
            self._datagram_seconds = min(
                max(DATAGRAM_SECONDS, TIMES_THE_CHEAPEST * seconds), SLOWEST_DATAGRAM_SECONDS
            )
        if seconds <= DATAGRAM_SECONDS and not account._excess:
            return
        excess = account._excess + seconds - self._ordinary_cost(datagrams, size)
        if excess < SUSPICIOUS_EXCESS:
            account._excess = excess if excess > 0 else 0.0
        else:
            account._excess = 0.0
            account.watched = WATCHED
            account._price = seconds / datagrams

    def _ordinary_cost(self, datagrams: int, size: int) -> float:
        return datagrams * self._datagram_seconds + size * BYTE_SECONDS

    # ------------------------------------------------------------------ watched connections

    def must_wait(self, account: Account) -> bool:
        """Whether new work of a watched connection has to be held back."""
        return account.is_expensive or account in self._held

    def portion(self, account: Account) -> int:
        """The number of datagrams to take at once, so that they do not take long."""
        price = account._price
        return 1 << 16 if price <= self._datagram_seconds else max(1, int(PIECE / price))

    def begin(self) -> None:
        """Begin work of a watched connection."""
        self._exact_at = self._processor_time()

    def charge(self, account: Account, datagrams: int, size: int) -> None:
        """Count the work begun, now done; the arguments are those of :meth:`note`."""
        if account is not self._latest:
            self._other_at = self._latest_at
            self._latest = account
        self._latest_at = self._now
        seconds = self._measure(account)
        account._price = seconds / datagrams
        more = seconds - self._ordinary_cost(datagrams, size)
        excess = account._excess = min(MOST_EXCESS, max(0.0, account._excess + more))
        if more > 0:
            account.watched = WATCHED
            account.is_expensive = account.is_expensive or excess >= DEAR_EXCESS
        elif not account.is_expensive:
            account.watched -= 1
            if not account.watched:
                account._excess = 0.0
        elif not excess:
            account.is_expensive = False

    def charge_events(self, account: Account) -> None:
        """Count the work begun, now done: the delivery of events to the application."""
        self._measure(account)

    def _measure(self, account: Account) -> float:
        seconds = self._processor_time() - self._exact_at
        self._at = self._clock()
        account._use.add(seconds, self._time)
        self._use.add(seconds, self._time)
        account._saved = max(-MOST_OWED, account._saved - seconds)
        return seconds

    # ------------------------------------------------------------------ held work

    @property
    def has_held(self) -> bool:
        """Whether any work is held back."""
        return bool(self._held)

    def hold(self, account: Account, work: Work, size: int) -> bool:
        """Keep work of `size` bytes for later; False: there is no room, and it is dropped."""
        size += OVERHEAD
        if (
            account._held_bytes + size > self._capacity // HELD_PART
            or self._held_bytes + size > self._capacity
        ):
            self.dropped += 1
            return False
        if not self._held:
            self._busy_at = self._processor_time()
            self._time += self._now - self._shared_at
            self._shared_at = self._now
            self._ordinary = 0.0
        self._held.setdefault(account, deque()).append((work, size))
        account._held_bytes += size
        self._held_bytes += size
        return True

    def take_held(self) -> Work | None:
        """The next held work that may be done in this turn; ``None``: no more.

        Connections take turns.
        """
        if not self._held or self._clock() - self._began >= TURN_SECONDS:
            return None
        for account in self._held:
            if self._wait(account) <= 0:
                break
        else:
            return None
        queue = self._held.pop(account)
        work, size = queue.popleft()
        account._held_bytes -= size
        self._held_bytes -= size
        if queue:
            self._held[account] = queue
        return work

    def next_work_at(self) -> float:
        """When to begin the next turn because of held work; infinity: there is none."""
        if not self._held:
            return math.inf
        wait = min(self._wait(account) for account in self._held)
        return self._now + wait + WAIT_SLACK if wait > 0 else self._now

    def _wait(self, account: Account) -> float:
        """Seconds until the connection may do its next piece of work."""
        other_at = self._other_at if account is self._latest else self._latest_at
        if not account.is_expensive or self._now - other_at > ACTIVE_SECONDS:
            return 0.0
        at = self._time
        others = self._use.part(at) - account._use.part(at)
        part = max(LEAST_PART, MOST_PART - others)
        account._saved = min(MOST_SAVED, account._saved + (at - account._at) * part)
        account._at = at
        return -account._saved / part if account._saved < 0 else 0.0

    def forget(self, account: Account) -> None:
        """Drop the held work of a connection that is over."""
        if self._held.pop(account, None) is not None:
            self._held_bytes -= account._held_bytes
            account._held_bytes = 0
        if account is self._latest:
            self._latest = None
