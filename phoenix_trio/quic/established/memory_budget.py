"""Shares one endpoint's buffer memory among its connections.

Floor 0, sans-IO.  An endpoint has two budgets: one for bytes that peers send before the
application reads them, one for bytes that the application writes before peers acknowledge them.

Goals:

* the sum is bounded: all connections together hold at most the budget, plus the minimum of each;
* every connection makes progress, since it gets the minimum whatever the others hold;
* a few connections get all they ask for;
* under pressure shares are fair, also towards later connections, although announced credit
  cannot be taken back (RFC 9000 section 4.1).

The rules.  The minimum is not counted.  Of the free bytes, its own share included, a connection
may hold the larger of

1. its fair share: a third of the budget divided by the number of connections, and at most a
   quarter of the free bytes;
2. an eighth of the free bytes above the reserve; the reserve is half of the budget.

The second rule lets a few busy connections among many idle ones use the free bytes.  The reserve
pays the fair shares, so greedy connections do not take them from the others.  The part of the
reserve that is never shared out is for later connections.  A connection begins with at most a
32nd of the free bytes above three quarters of the budget, so unused connections leave three
quarters to the others.

A connection that holds more than it may is granted nothing until it holds less.  One case is
beyond any rule: connections that grow one after the other while there is plenty, and are not
read any more, keep their bytes; later ones may get only the minimum.
"""

from __future__ import annotations

from ...config import TransportConfig

__all__ = ["EndpointMemory", "MemoryAccount", "MemoryBudget"]

#: Rule 1: the part of the budget that is shared out, and the largest part of the free bytes.
_SHARED_PART = 3
_FAIR_PART = 4

#: Rule 2: the part of the free bytes above the reserve, and the reserve as a part of all.
_FREE_PART = 8
_RESERVE_PART = 2

#: The part that a new connection gets of the free bytes above so many quarters of the budget.
_INITIAL_PART = 32
_INITIAL_RESERVE_QUARTERS = 3


class MemoryBudget:
    """The memory of one endpoint, in one direction.

    Args:
      limit: the most bytes held by all connections together, not counting the minimums.
      minimum: bytes that each connection may hold whatever the others do.
    """

    __slots__ = ("connections", "limit", "minimum", "used")

    def __init__(self, limit: int, minimum: int) -> None:
        self.limit: int = limit
        self.minimum: int = minimum
        self.used: int = 0
        """Bytes held above the minimums."""
        self.connections: int = 0
        """Connections that share the budget."""

    def open(self, *, counts: bool = True) -> MemoryAccount:
        """A new account, which stands for a connection if it `counts`."""
        return MemoryAccount(self, counts=counts)

    @property
    def free(self) -> int:
        """Bytes not held by any connection."""
        return max(0, self.limit - self.used)


class MemoryAccount:
    """The share of one connection in a :class:`MemoryBudget`.

    Close it once.  A forgotten account closes itself, since the buffers that it counts are gone,
    too.
    """

    __slots__ = ("_budget", "_is_counted", "held")

    def __init__(self, budget: MemoryBudget, *, counts: bool = True) -> None:
        self._budget = budget
        self._is_counted = counts
        self.held: int = 0
        """Bytes held above the minimum."""
        if counts:
            budget.connections += 1

    def __del__(self) -> None:
        self.close()

    def begin(self, wanted: int) -> int:
        """Bytes that a new connection may hold: `wanted`, or a half, a quarter, ... of it.

        The result is halved step by step, so that connections opened one after the other begin
        alike: a server refuses early data when less is granted than the client remembers (RFC
        9000 section 7.4.1).
        """
        budget = self._budget
        above = budget.free + self.held - budget.limit * _INITIAL_RESERVE_QUARTERS // 4
        allowed = budget.minimum + max(0, above) // _INITIAL_PART
        granted = wanted
        while granted > allowed:
            granted >>= 1
        granted = max(granted, min(wanted, budget.minimum))
        self._hold(granted - budget.minimum)
        return granted

    def adjust(self, outstanding: int, wanted: int) -> int:
        """Bytes that the connection may hold now, at most `wanted`.

        Args:
          outstanding: bytes held in any case, because they were announced or written.
          wanted: bytes that the connection would like to hold.

        The larger of `outstanding` and the result is counted.  Until the next call, the
        connection may hold less than that, never more.
        """
        granted = self.permitted(wanted)
        self._hold(max(outstanding, granted) - self._budget.minimum)
        return granted

    def permitted(self, wanted: int) -> int:
        """The result of :meth:`adjust`, without counting it."""
        budget = self._budget
        if wanted <= budget.minimum:
            return wanted
        free = budget.free + self.held
        fair_share = budget.limit // _SHARED_PART // max(1, budget.connections)
        by_fairness = min(fair_share, free // _FAIR_PART)
        by_abundance = (free - budget.limit // _RESERVE_PART) // _FREE_PART
        return min(wanted, budget.minimum + max(by_fairness, by_abundance))

    def end(self, outstanding: int) -> None:
        """Note that the connection has ended with `outstanding` bytes unread.

        It has no minimum any more, and the others share the budget without it.  May be called
        again as these bytes become fewer.
        """
        self._hold(outstanding)
        self._leave()

    def close(self) -> None:
        """Give everything back.  Idempotent."""
        self._hold(0)
        self._leave()

    def _hold(self, count: int) -> None:
        count = max(0, count)
        self._budget.used += count - self.held
        self.held = count

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._budget.connections -= 1


class EndpointMemory:
    """The two budgets of an endpoint."""

    __slots__ = ("receive", "send")

    def __init__(self, config: TransportConfig) -> None:
        minimum = config.minimum_connection_memory
        self.receive: MemoryBudget = MemoryBudget(config.endpoint_receive_memory, minimum)
        """For data that the application has not read: stream data by the credit announced, and
        datagrams."""
        self.send: MemoryBudget = MemoryBudget(config.endpoint_send_memory, minimum)
        """For stream data not acknowledged by peers."""
