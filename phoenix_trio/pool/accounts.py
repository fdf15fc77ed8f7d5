"""Keeps the pool's records: of each connection, each target and each lease that waits.

Floor 4.  The pool's Trio half changes these records, and takes pictures of them for
:func:`~phoenix_trio.pool.policy.decide`.
"""

from __future__ import annotations

import math
from collections import deque

import attrs
import trio

from ..quic.connection import QuicConnection
from ..quic.stream_errors import fresh
from .policy import ConnectionState, TargetState, Waiter, Wish
from .targets import Target

__all__ = ["Demand", "Entry", "Pooled", "Waiting", "again"]


class Pooled:
    """A connection of the pool; a seat in the terms of :func:`~phoenix_trio.pool.policy.choose`."""

    __slots__ = (
        "checked_at",
        "closed_from",
        "closing_since",
        "entry",
        "id",
        "idle_since",
        "is_checking",
        "is_closing",
        "is_draining",
        "leases",
        "most_streams",
        "opened_at",
        "opened_before",
        "promised",
        "quic",
        "yields_to",
    )

    def __init__(self, number: int, entry: Entry, quic: QuicConnection, now: float) -> None:
        self.id: int = number
        self.entry: Entry = entry
        self.quic: QuicConnection = quic
        self.leases: int = 0
        self.most_streams: int = quic.available_streams
        # Leases granted and streams opened since the two counts were last equal.
        self.promised: int = 0
        self.opened_before: int = 0
        self.opened_at: float = now
        self.idle_since: float = now
        self.checked_at: float = -math.inf
        self.closing_since: float = 0.0
        self.is_checking: bool = False
        self.is_closing: bool = False
        self.is_draining: bool = False
        self.yields_to: int | None = None
        # Leases asked for later than with this ticket are not served here, because one lease
        # has the connection to itself, or waits for that.
        self.closed_from: int | None = None

    @property
    def is_usable(self) -> bool:
        return not (
            self.is_closing
            or self.is_draining
            or self.quic.is_closed
            or self.quic.peer_refuses_streams
        )

    def is_open_to(self, ticket: int) -> bool:
        return (self.yields_to is None or ticket < self.yields_to) and (
            self.closed_from is None or ticket <= self.closed_from
        )

    @property
    def available_streams(self) -> int:
        available = self.quic.available_streams
        if available > self.most_streams:
            self.most_streams = available
        return available

    @property
    def is_congested(self) -> bool:
        return self.quic.is_congested

    @property
    def reserved(self) -> int:
        """Leases that have not opened their stream yet, as far as can be seen."""
        opened = self.quic.streams_opened - self.opened_before
        missing = min(self.promised - opened, self.leases)
        if missing <= 0:
            self.promised = 0
            self.opened_before += opened
            return 0
        return missing

    @property
    def idle_limit(self) -> float:
        """Seconds of silence after which the connection would be lost; ``math.inf``: never."""
        return self.quic.idle_timeout if self.quic.keep_alive is None else math.inf

    def state(self) -> ConnectionState:
        return ConnectionState(
            self.id,
            leases=self.leases,
            reserved=self.reserved if self.leases else 0,
            available_streams=self.available_streams,
            most_streams=self.most_streams,
            is_congested=self.is_congested,
            is_closing=self.is_closing or self.quic.is_closed,
            closing_since=self.closing_since,
            is_draining=self.is_draining or self.quic.peer_refuses_streams,
            yields_to=self.yields_to,
            closed_from=self.closed_from,
            idle_since=self.idle_since,
            checked_at=self.checked_at,
            is_checking=self.is_checking,
            idle_limit=self.idle_limit,
        )


@attrs.define(eq=False)
class Waiting:
    """A waiting lease."""

    waiter: Waiter
    event: trio.Event = attrs.field(factory=trio.Event)
    granted: Pooled | None = None
    error: Exception | None = None


@attrs.define(eq=False)
class Demand:
    """A task needs so many different connections at once."""

    count: int
    waiter: Waiter | None
    """``None``: the connections were found, and are leased."""


@attrs.define(eq=False)
class Entry:
    """One target."""

    target: Target
    connections: list[Pooled] = attrs.field(factory=list)
    waiting: deque[Waiting] = attrs.field(factory=deque)
    dial_scope: trio.CancelScope | None = None
    is_abandoned: bool = False
    failures: int = 0
    may_dial_at: float = -math.inf
    may_grow_at: float = -math.inf
    failed_until: float = -math.inf
    error: Exception | None = None
    """Why the last dial failed."""
    kept_warm: int = 0
    demands: list[Demand] = attrs.field(factory=list)
    """In the order in which they were asked for."""
    wants_more: bool = False
    lot: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Tasks that wait for a further connection, or for a dial to fail."""
    leases_granted: int = 0
    dials: int = 0
    dial_failures: int = 0

    @property
    def usable(self) -> list[Pooled]:
        return [each for each in self.connections if each.is_usable]

    def is_over(self, now: float) -> bool:
        """Whether nothing about the target is worth remembering."""
        in_use = self.connections or self.waiting or self.dial_scope or self.kept_warm
        return not in_use and not self.demands and now >= self.failed_until

    def state(self) -> TargetState:
        return TargetState(
            self.target,
            [each.state() for each in self.connections],
            [each.waiter for each in self.waiting],
            is_dialling=self.dial_scope is not None,
            is_abandoned=self.is_abandoned,
            may_dial_at=self.may_dial_at,
            may_grow_at=self.may_grow_at,
            warm=self.kept_warm,
            wishes=[
                Wish(demand.waiter, demand.count)
                for demand in self.demands
                if demand.waiter is not None
            ],
            wants_more=self.wants_more,
        )


def again(error: Exception) -> Exception:
    """A copy of the error, so that tasks that share the error do not share its traceback."""
    if isinstance(error, OSError):
        copy: Exception = type(error)(*error.args)
        copy.__dict__.update(error.__dict__)
        copy.__cause__ = error.__cause__
        return copy
    if isinstance(error, trio.BrokenResourceError):
        return fresh(error)
    return error
