"""Sets the timers of connections, and wakes one task when the next one is due.

Floor 2.  Each engine has one deadline, and nearly every packet moves it.  The timer of a
connection is never later than its deadline, but may be earlier
(:mod:`~phoenix_trio.quic.timers`).
"""

from __future__ import annotations

import math

import trio

from .route import Route
from .routing_table import RoutingTable
from .timers import Timers

__all__ = ["TIMER_GRANULARITY", "ConnectionTimers"]

#: Seconds until another look at a timer that is due but has nothing to do (RFC 9002
#: section 6.1.2: kGranularity).
TIMER_GRANULARITY = 0.001


class ConnectionTimers:
    """The timers of all connections of one socket.

    Args:
      table: the routing table; its retired connection IDs leave on time, too.
    """

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._timers: Timers[Route] = Timers()
        self._sleep: trio.CancelScope | None = None
        self.held_work_at: float = math.inf
        """When to do the work that is held back; call :meth:`set_alarm` after a change."""

    def __len__(self) -> int:
        """Entries in the heap of timers, stale ones included."""
        return len(self._timers)

    # ------------------------------------------------------------------ setting

    def schedule(self, route: Route, deadline: float) -> None:
        """Set the timer of a connection; a timer that is too early only costs time."""
        self._timers.schedule(route, deadline)
        self.set_alarm()

    def cancel(self, route: Route) -> None:
        """Cancel the timer of a connection."""
        self._timers.cancel(route)

    def update(self, route: Route, now: float, *, is_blocked: bool) -> None:
        """Set the timer of a connection after it has sent as much as it could.

        Args:
          is_blocked: whether its packets wait for the socket.
        """
        engine = route.engine
        deadline = engine.next_deadline()
        if is_blocked and deadline is not None and deadline <= now:
            # Packets are due, but the socket is full.  The flush that waits for the socket sets
            # the timer again.  Only the end of the connection must not wait for that.
            deadline = engine.end_deadline
        if deadline is None:
            return
        if deadline <= now and not engine.has_more_to_send(now):
            # All permitted packets were sent, and something is still due.  Another look at once
            # would find the same, and keep the processor busy.
            deadline = now + TIMER_GRANULARITY
        if route.handshake_deadline < deadline:
            deadline = route.handshake_deadline
        may_stay = self._timers.may_stay(route, now)
        scheduled = route.scheduled_at
        if deadline < scheduled or (deadline > scheduled and not may_stay):
            self.schedule(route, deadline)

    def only_delayed_ack_pending(self, route: Route, now: float) -> bool:
        """Whether a delayed acknowledgement is the only work; if so, its timer is set.

        It need not be flushed now, because it may leave with an answer of the application.
        """
        engine = route.engine
        deadline = engine.only_acknowledgement_due()
        if deadline is None or engine.reset_tokens_changed:
            return False
        may_stay = self._timers.may_stay(route, now)
        if deadline < route.scheduled_at:
            self.schedule(route, deadline)
        elif not may_stay:
            # (The present timer may have another reason than an acknowledgement.)
            self.schedule(route, engine.next_deadline() or deadline)
        return True

    # ------------------------------------------------------------------ due timers

    def next_deadline(self) -> float:
        """The time of the next work."""
        deadline = min(self._timers.next_deadline(), self.held_work_at)
        # (Retired IDs leave the table on time, not when the next datagram comes.)
        retired = self._table.retired
        return min(deadline, retired[0][0]) if retired else deadline

    def set_alarm(self) -> None:
        """Wake the task in :meth:`sleep` at the next deadline."""
        sleep = self._sleep
        if sleep is not None:
            deadline = self.next_deadline()
            if deadline != sleep.deadline:  # (Setting it is expensive.)
                sleep.deadline = deadline

    async def sleep(self) -> None:
        """Sleep until the next deadline.

        Only one task may sleep here.  Cancellation: no timer is lost.
        """
        try:
            with trio.CancelScope(deadline=self.next_deadline()) as self._sleep:
                await trio.sleep_forever()
        finally:
            self._sleep = None

    def run_due(self, now: float, touched: dict[Route, None]) -> None:
        """Run the timers that are due; connections to flush are added to `touched`."""
        while (route := self._timers.pop_due(now)) is not None:
            engine = route.engine
            if route.handshake_deadline <= now:
                engine.on_handshake_timeout()
                touched[route] = None
                continue
            deadline = engine.next_deadline()
            if deadline is not None and deadline <= now:
                engine.on_timer(now)
                touched[route] = None
                deadline = engine.next_deadline()
            if route.handshake_deadline < (math.inf if deadline is None else deadline):
                deadline = route.handshake_deadline
            if deadline is not None and deadline > now:
                # (A deadline that has passed means "flush", which follows at once.)
                self.schedule(route, deadline)
        self._table.remove_retired(now)
