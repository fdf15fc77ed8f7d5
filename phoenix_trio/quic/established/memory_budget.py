"""Shares one endpoint's buffer memory among its connections.

Floor 0, sans-IO.  An endpoint has two budgets: for what peers may send before the
application reads it, and for what the application writes before peers acknowledge it.

Goals:

* the sum is bounded: all connections together hold at most the budget, and each of them
  the minimum besides;
* every connection makes progress, for the minimum is granted whatever the others hold;
* a few connections get all they ask for;
* under pressure shares are fair, also towards connections which come late, although
  credit which was announced cannot be taken back (RFC 9000 section 4.1).

The rules.  The minimum is not counted.  Of what is free, its own share included, a
connection may hold the larger of

1. its fair share: a third of the budget by the number of connections, and at most a
   quarter of what is free;
2. an eighth of what is free above the reserve, which is half of the budget.

By the second rule a few busy connections among many idle ones use what is there.  The
reserve pays the fair shares, so greedy connections do not cost the others theirs; the
part of it which is never shared out is for connections which come later.  A connection
begins with a 32nd of what is free above three quarters of the budget, at most: those
which are opened and not used leave three quarters to the others.

A connection which holds more than it may is granted nothing until it holds less.  What
no rule can mend: connections which grow one after the other while there is plenty, and
are not read any more, keep what they have; later ones may find the minimum only.
"""

from __future__ import annotations

from ...config import TransportConfig

__all__ = ["EndpointMemory", "MemoryAccount", "MemoryBudget"]

#: Rule 1: the part of the budget which is shared out, and of what is free at most.
_SHARED_PART = 3
_FAIR_PART = 4

#: Rule 2: the part of what is free above the reserve, and the reserve as a part of all.
_FREE_PART = 8
_RESERVE_PART = 2

#: What a new connection gets of what is free above so many quarters of the budget.
_INITIAL_PART = 32
_INITIAL_RESERVE_QUARTERS = 3


class MemoryBudget:
    """The memory of one endpoint, in one direction.

    Args:
      limit: bytes which all connections may hold together, the minimum of each aside.
      minimum: bytes which each may hold whatever the others do.
    """

    __slots__ = ("connections", "limit", "minimum", "used")

    def __init__(self, limit: int, minimum: int) -> None:
        self.limit = limit
        self.minimum = minimum
        self.used = 0
        """Bytes held above the minimums."""
        self.connections = 0
        """Connections among which the budget is shared."""

    def open(self, *, counts: bool = True) -> MemoryAccount:
        """A new account, which stands for a connection if it `counts`."""
        return MemoryAccount(self, counts=counts)

    @property
    def free(self) -> int:
        """Bytes which are not held."""
        return max(0, self.limit - self.used)


class MemoryAccount:
    """What one connection holds of a :class:`MemoryBudget`.

    It is closed once; an account which is forgotten closes itself, since the buffers
    for which it stands are gone with it.
    """

    __slots__ = ("_budget", "_is_counted", "held")

    def __init__(self, budget: MemoryBudget, *, counts: bool = True) -> None:
        self._budget = budget
        self._is_counted = counts
        self.held = 0
        """Bytes held above the minimum."""
        if counts:
            budget.connections += 1

    def __del__(self) -> None:
        self.close()

    def begin(self, wanted: int) -> int:
        """How many bytes a new connection may hold: `wanted`, or a half, a quarter, ... of it.

        Halves, so that connections which are opened one after the other begin alike:
        early data is refused where less is granted than the client remembers (RFC 9000
        section 7.4.1).
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
        """How many bytes the connection may hold now, at most `wanted`.

        Args:
          outstanding: what it holds in any case, because it was announced or written.
          wanted: what it would like to hold.

        The larger of `outstanding` and the result is counted.  Between two calls a
        connection may hold less than that, never more.
        """
        granted = self.permitted(wanted)
        self._hold(max(outstanding, granted) - self._budget.minimum)
        return granted

    def permitted(self, wanted: int) -> int:
        """What :meth:`adjust` would grant."""
        budget = self._budget
        if wanted <= budget.minimum:
            return wanted
        free = budget.free + self.held
        fair_share = budget.limit // _SHARED_PART // max(1, budget.connections)
        by_fairness = min(fair_share, free // _FAIR_PART)
        by_abundance = (free - budget.limit // _RESERVE_PART) // _FREE_PART
        return min(wanted, budget.minimum + max(by_fairness, by_abundance))

    def end(self, outstanding: int) -> None:
        """The connection has ended, and `outstanding` bytes of it are not read yet.

        It has no minimum any more, and the others share the budget without it.  May be
        called again as these bytes become fewer.
        """
        self._hold(outstanding)
        self._leave()

    def close(self) -> None:
        """Nothing is held any more.  Idempotent."""
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
        self.receive = MemoryBudget(config.endpoint_receive_memory, minimum)
        """For what the application has not read: stream data by the credit announced, and
        datagrams."""
        self.send = MemoryBudget(config.endpoint_send_memory, minimum)
        """For stream data which peers have not acknowledged."""
