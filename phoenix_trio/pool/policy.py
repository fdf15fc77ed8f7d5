"""Decides which lease gets which connection, what to dial and what to close.

Floor 4, sans-IO: knows no Trio and reads no clock.  :func:`decide` takes a frozen picture of
the pool and returns what to do at this moment, and when to ask again.  The Trio half carries
the decision out, and asks again after every event.  A second question about the same moment
gets an empty answer.

The rules, in order of priority:

1. A lease shares an open connection that has a stream to spare: an uncongested connection
   before a congested one, then the one with the fewest leases, then the oldest.
   Leases of one target are served in the order in which they were asked for.
2. If no connection has a stream to spare, one is dialled, one at a time for a target.  If all
   are congested, one is dialled for later leases.
3. A connection needs a slot.  Slots go to the call that has waited longest, for a lease or for
   several connections at once.
   To free a slot, the pool closes the connection that has been idle longest, or gives up a
   dial that no lease needs any more.  After `patience` it makes a busy connection of another
   target yield: that connection takes no leases asked for later.
4. If no connection can be dialled, or that takes longer than `patience`, leases share a
   connection beyond its spare streams, up to the number of streams that its peer once
   permitted: the stream of a lease that has just ended becomes available in a moment.
5. A connection leased exclusively is not shared.  A connection whose other leases must end
   before an exclusive lease gets it takes no leases asked for later.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from enum import Enum
from functools import partial
from operator import attrgetter, itemgetter
from typing import Protocol, TypeVar

import attrs

from .config import IDLE_SHARE, PoolConfig

__all__ = [
    "ConnectionState",
    "Decision",
    "PoolState",
    "Reason",
    "TargetState",
    "Waiter",
    "Wish",
    "choose",
    "decide",
]

#: Seconds for which the slot of a closing connection counts as about to become free; after that,
#: another connection has to go for a waiter.  Delivering the rest takes a few round trips.
CLOSING_ALLOWANCE = 1.0


class Reason(Enum):
    """Why the pool closes a connection."""

    IDLE = "nobody has leased it for the idle timeout"
    EVICTED = "another target needs its slot"
    DRAINED = "it was drained, and its last lease has ended"


@attrs.frozen
class ConnectionState:
    """One connection at one moment."""

    id: int
    """Unique in the pool; an older connection has a lower one."""
    leases: int = 0
    reserved: int = 0
    """Leases that, as far as can be seen, have not opened their stream yet."""
    available_streams: int = 100
    """Streams that can be opened at present."""
    most_streams: int = 100
    """The highest value of `available_streams` so far; 0: that value says nothing."""
    is_congested: bool = False
    is_closing: bool = False
    """It is being closed, or has ended: it only holds its slot."""
    closing_since: float = 0.0
    is_draining: bool = False
    """It takes no further leases, and is closed after the last one."""
    yields_to: int | None = None
    """The ticket of another target's waiter that needs its slot: it takes no later leases."""
    closed_from: int | None = None
    """It takes no lease asked for later than with this ticket, because one lease has it
    exclusively, or waits for that."""
    idle_since: float = 0.0
    """When the last lease ended, or the connection was opened."""
    checked_at: float = -math.inf
    """When its last health check began."""
    is_checking: bool = False
    idle_limit: float = math.inf
    """Seconds of silence after which the transport ends it without telling the peer."""

    @property
    def is_usable(self) -> bool:
        """Whether leases can use it, now or when it need not yield any more."""
        return not self.is_closing and not self.is_draining


@attrs.frozen
class Waiter:
    """A lease that was asked for and not granted yet."""

    ticket: int
    """An earlier waiter has a lower one."""
    since: float
    """When the wait began."""


@attrs.frozen
class Wish:
    """A task waits until there are so many different connections at once."""

    waiter: Waiter
    count: int


@attrs.frozen
class TargetState:
    """Everything about one target at one moment."""

    target: Hashable
    connections: Sequence[ConnectionState] = ()
    waiters: Sequence[Waiter] = ()
    """In the order in which they were asked for."""
    is_dialling: bool = False
    is_abandoned: bool = False
    """The dial is being given up; it holds its slot until it has ended."""
    may_dial_at: float = -math.inf
    """A target without a connection is not dialled before this time."""
    may_grow_at: float = -math.inf
    """Neither a further connection nor a warm one is dialled before this time."""
    warm: int = 0
    """How many connections are kept open."""
    wishes: Sequence[Wish] = ()
    """Calls that wait for several connections at once, in the order in which they were made.
    They keep the connections open so far, but not from earlier waiters."""
    wants_more: bool = False
    """A lease granted a moment ago has to share a congested connection."""


@attrs.frozen
class PoolState:
    """A picture of the whole pool."""

    now: float
    targets: Sequence[TargetState]


@attrs.frozen
class Decision:
    """What to do now."""

    grants: tuple[tuple[Hashable, int], ...]
    """Target and connection: the target's first waiter gets a lease on it, and so on."""
    dials: tuple[Hashable, ...]
    abandoned: tuple[Hashable, ...]
    """Targets whose dial has to be given up."""
    closures: tuple[tuple[int, Reason], ...]
    yielding: frozenset[tuple[int, int]]
    """All connections that yield from now on, each with the ticket to which it yields."""
    checks: tuple[int, ...]
    """Connections to check for health."""
    wake_at: float
    """When to ask again, if nothing happens before; ``math.inf``: no need."""


class Seat(Protocol):
    """The properties that :func:`choose` looks at."""

    id: int
    leases: int
    most_streams: int

    @property
    def reserved(self) -> int: ...

    @property
    def available_streams(self) -> int: ...

    @property
    def is_congested(self) -> bool: ...


S = TypeVar("S", bound=Seat)


def has_spare_stream(seat: Seat) -> bool:
    """Whether one more lease will find a stream at once.

    If a peer never permitted a bidirectional stream, the application uses other means to
    talk to it, so the peer's stream credit says nothing.
    """
    return seat.available_streams > seat.reserved or seat.most_streams == 0


def choose(seats: Iterable[S], limit: float) -> S | None:
    """The connection which takes the next lease (rule 1); ``None``: none has room.

    Args:
      seats: the target's open connections.
      limit: the most leases on one connection.
    """
    best: S | None = None
    congested: S | None = None
    # With one candidate, the usual case, there is nothing to sort.
    for seat in sorted(
        [seat for seat in seats if seat.leases < limit and has_spare_stream(seat)],
        key=_by_load,
    ):
        if not seat.is_congested:
            best = seat
            break
        congested = congested or seat
    return best or congested


_by_load = attrgetter("leases", "id")


class _Seat:
    """A connection while a decision is being made."""

    __slots__ = (
        "account",
        "available_streams",
        "id",
        "is_closing",
        "is_congested",
        "leases",
        "most_streams",
        "reserved",
        "state",
        "yields_to",
    )

    def __init__(self, account: _Account, state: ConnectionState) -> None:
        self.account = account
        self.state = state
        self.id = state.id
        self.leases = state.leases
        self.reserved = state.reserved
        self.available_streams = state.available_streams
        self.most_streams = state.most_streams
        self.is_congested = state.is_congested
        self.is_closing = state.is_closing
        self.yields_to = state.yields_to

    @property
    def is_usable(self) -> bool:
        return not self.is_closing and not self.state.is_draining

    def may_take(self, ticket: float) -> bool:
        closed_from = self.state.closed_from
        return (
            self.is_usable
            and (self.yields_to is None or ticket < self.yields_to)
            and (closed_from is None or ticket <= closed_from)
        )

    @property
    def is_idle(self) -> bool:
        return self.leases == 0 and self.is_usable


class _Account:
    """A target while a decision is being made."""

    def __init__(self, state: TargetState) -> None:
        self.state = state
        self.seats = [_Seat(self, connection) for connection in state.connections]
        self.served = 0
        self.is_dialling = state.is_dialling
        self.wants_more = state.wants_more
        self.is_given_up = state.is_abandoned

    @property
    def next_waiter(self) -> Waiter | None:
        waiters = self.state.waiters
        return waiters[self.served] if self.served < len(waiters) else None

    @property
    def waiter_to_dial_for(self) -> Waiter | None:
        """The longest-waiting waiter that a further connection would help."""
        waiter, several = self.next_waiter, self.waiter_for_several
        if waiter is None or (several is not None and several.ticket < waiter.ticket):
            return several
        return waiter

    @property
    def waiter_for_several(self) -> Waiter | None:
        """The longest-waiting waiter that needs more connections at once than are open."""
        if not self.state.wishes:
            return None
        usable = len(self.usable)
        return next((wish.waiter for wish in self.state.wishes if wish.count > usable), None)

    @property
    def usable(self) -> list[_Seat]:
        return [seat for seat in self.seats if seat.is_usable]

    def keeps(self, ticket: float = math.inf) -> int:
        """How many connections it keeps from a waiter with `ticket`: its warm connections, and
        those that an earlier waiter collects.
        """
        older = (wish.count for wish in self.state.wishes if wish.waiter.ticket < ticket)
        return max(self.state.warm, *older, 0)

    def has_surplus(self, ticket: float = math.inf) -> bool:
        """Whether one connection could go to a waiter with `ticket`."""
        return len(self.usable) > self.keeps(ticket)


def decide(state: PoolState, config: PoolConfig) -> Decision:
    """Decide what to do now, by the rules at the top of this module.

    The result has to be carried out whole.  All input is in the arguments, and nothing else
    is read or changed.
    """
    return _Turn(state, config).run()


class _Turn:
    """One decision in the making."""

    def __init__(self, state: PoolState, config: PoolConfig) -> None:
        self._now = state.now
        self._config = config
        self._accounts = [_Account(target) for target in state.targets]
        self._grants: list[tuple[Hashable, int]] = []
        self._dials: list[Hashable] = []
        self._abandoned: list[Hashable] = []
        self._closures: list[tuple[int, Reason]] = []
        self._checks: list[int] = []
        self._yielding: dict[int, int] = {}
        self._wake_at = math.inf

    def run(self) -> Decision:
        for account in self._accounts:
            self._close_drained(account)
        for account in self._accounts:
            self._serve(account)
        self._share_out_slots()
        for account in self._accounts:
            for seat in account.seats:
                seat.yields_to = self._yielding.get(seat.id)
            if account.next_waiter is not None:
                self._serve(account)  # connections that need not yield any more
                self._hand_over(account)
        if self._config.health_check_interval is not None:
            for account in self._accounts:
                self._check_health(account, self._config.health_check_interval)
        return Decision(
            grants=tuple(self._grants),
            dials=tuple(self._dials),
            abandoned=tuple(self._abandoned),
            closures=tuple(self._closures),
            yielding=frozenset(self._yielding.items()),
            checks=tuple(self._checks),
            wake_at=self._wake_at,
        )

    # ------------------------------------------------------------------ closing

    def _close(self, seat: _Seat, reason: Reason) -> None:
        seat.is_closing = True
        self._closures.append((seat.id, reason))

    def _close_drained(self, account: _Account) -> None:
        for seat in account.seats:
            if seat.state.is_draining and seat.leases == 0 and not seat.is_closing:
                self._close(seat, Reason.DRAINED)
        if account.state.waiters:
            return  # every idle connection has something to do
        idle = [seat for seat in account.seats if seat.is_idle]
        for seat in sorted(idle, key=lambda seat: (seat.state.idle_since, -seat.id)):
            if not account.has_surplus():
                break
            patience = self._config.idle_for(seat.state.idle_limit)
            if self._is_due(seat.state.idle_since + patience):
                self._close(seat, Reason.IDLE)

    def _is_due(self, time: float) -> bool:
        """Whether the time has come; otherwise remember to ask again then."""
        if time <= self._now:
            return True
        self._wake_at = min(self._wake_at, time)
        return False

    def _check_health(self, account: _Account, interval: float) -> None:
        for seat in account.seats:
            state = seat.state
            due = max(state.idle_since, state.checked_at)
            due += min(interval, state.idle_limit * IDLE_SHARE)
            if seat.is_idle and not state.is_checking and self._is_due(due):
                self._checks.append(seat.id)

    # ------------------------------------------------------------------ leases

    def _grant(self, account: _Account, seat: _Seat) -> None:
        seat.leases += 1
        seat.reserved += 1
        account.served += 1
        self._grants.append((account.state.target, seat.id))

    def _serve(self, account: _Account) -> None:
        """Rule 1."""
        while (waiter := account.next_waiter) is not None:
            seats = [seat for seat in account.seats if seat.may_take(waiter.ticket)]
            seat = choose(seats, self._config.seats)
            if seat is None:
                return
            account.wants_more = account.wants_more or seat.is_congested
            self._grant(account, seat)

    def _hand_over(self, account: _Account) -> None:
        """Rule 4."""
        while (waiter := account.next_waiter) is not None:
            room = [
                seat
                for seat in account.seats
                if seat.may_take(waiter.ticket) and seat.leases < self._most_leases(seat)
            ]
            if not room:
                return
            if account.is_dialling and not self._is_due(waiter.since + self._config.patience):
                return
            self._grant(account, min(room, key=_by_load))

    def _most_leases(self, seat: _Seat) -> float:
        return min(self._config.seats, max(1, seat.most_streams))

    # ------------------------------------------------------------------ slots

    def _share_out_slots(self) -> None:
        """Rules 2 and 3."""
        free = self._config.max_connections
        coming = 0  # slots that become free without further action
        for account in self._accounts:
            free -= len(account.seats) + account.is_dialling
            coming += account.is_given_up + sum(self._slot_is_nearly_free(s) for s in account.seats)
        starving: list[tuple[_Account, Waiter]] = []
        queue = self._targets_to_dial()
        seen: set[_Account] = set()
        while queue:
            account = queue.pop(0)
            seen.add(account)
            # Looked at now: an account served before this one may have taken a connection from it.
            waiter, usable = account.next_waiter, account.usable
            is_first = waiter is not None and not usable
            gate = account.state.may_dial_at if is_first else account.state.may_grow_at
            claimant = account.waiter_to_dial_for
            is_urgent = claimant is not None or len(usable) < account.state.warm
            # (A waiter that needs only a lease can share its target's connections.)
            starver = account.waiter_for_several if usable else claimant
            if not (self._is_due(gate) if is_urgent else gate <= self._now):
                continue
            if free > 0:
                free -= 1
                account.is_dialling = True
                self._dials.append(account.state.target)
            elif coming > 0:
                coming -= 1
            elif not is_urgent:
                continue
            elif self._make_room(account):
                # An account that collected the closed connection may want a further one itself
                # now, if it was not asked yet.
                queue = [each for each in self._targets_to_dial() if each not in seen]
            elif starver is None:
                continue
            elif self._is_due(starver.since + self._config.patience):
                starving.append((account, starver))
        self._choose_yielding(starving)

    def _slot_is_nearly_free(self, seat: _Seat) -> bool:
        """Whether a connection is being closed, and its slot still counts as about to be free."""
        if not seat.is_closing:
            return False
        if not seat.state.is_closing:
            return True  # it was decided a moment ago
        return not self._is_due(seat.state.closing_since + CLOSING_ALLOWANCE)

    def _targets_to_dial(self) -> list[_Account]:
        """The targets that want one more connection, the first to be served first."""
        waiting: list[tuple[int, _Account]] = []
        warm: list[_Account] = []
        growing: list[_Account] = []
        for account in self._accounts:
            if account.is_dialling or len(account.seats) >= self._config.per_target:
                continue
            claimant = account.waiter_to_dial_for
            if claimant is not None:
                waiting.append((claimant.ticket, account))
            elif len(account.usable) < account.state.warm:
                warm.append(account)
            elif account.wants_more:
                growing.append(account)
        waiting.sort(key=itemgetter(0))
        return [account for _, account in waiting] + warm + growing

    def _make_room(self, account: _Account) -> bool:
        """Let go of something that another target does not use; whether there was something."""
        claimant = account.waiter_to_dial_for
        ticket = math.inf if claimant is None else claimant.ticket
        idle = [
            seat
            for other in self._accounts
            if other is not account and other.has_surplus(ticket)
            for seat in other.seats
            # An idle connection belongs to its own target's waiters, unless they came later.
            if seat.is_idle and (other.next_waiter is None or other.next_waiter.ticket > ticket)
        ]
        if idle:
            # A yielding connection became idle for this very purpose.
            first = min(idle, key=lambda seat: (seat.yields_to is None, seat.state.idle_since))
            self._close(first, Reason.EVICTED)
            return True
        for other in self._accounts:
            if (
                other.state.is_dialling
                and not other.is_given_up
                and other.waiter_to_dial_for is None
                and len(other.usable) >= other.state.warm
            ):
                other.is_given_up = True
                self._abandoned.append(other.state.target)
                return True
        return False

    def _choose_yielding(self, starving: list[tuple[_Account, Waiter]]) -> None:
        """Choose, for each target that has waited long enough, a connection that yields to it."""
        # (The targets' claims on slots may have been earlier ones.)
        for account, waiter in sorted(starving, key=lambda each: each[1].ticket):
            candidates = [
                seat
                for other in self._accounts
                if other is not account and self._has_surplus_connection(other, waiter.ticket)
                for seat in other.usable
                if seat.id not in self._yielding
            ]
            if not candidates:
                continue
            chosen = min(candidates, key=partial(_yield_order, waiter.ticket))
            self._yielding[chosen.id] = waiter.ticket

    def _has_surplus_connection(self, account: _Account, ticket: int) -> bool:
        staying = [seat for seat in account.usable if seat.id not in self._yielding]
        return len(staying) > account.keeps(ticket)


def _yield_order(ticket: int, seat: _Seat) -> tuple[bool, bool, int, int, int]:
    """Sort key: a connection once chosen stays chosen, or none would ever come to its end.

    Otherwise the target with the most connections yields one, and of these the one whose
    leases will probably end first.
    """
    return (
        seat.yields_to != ticket,
        seat.yields_to is None,
        -len(seat.account.usable),
        seat.leases,
        seat.id,
    )
