"""Describes one connection for the driver, and the interface of the floor above.

Floor 2.  A :class:`Route` joins an engine to its :class:`Sink`, with the driver's records of the
connection: its connection IDs, its timer, its cost, its writers.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

from . import events
from .faces import ApplicationFace, DriverFace
from .handshake.places import Place
from .path_address import Address, PathAddress
from .timers import INITIAL_PACE
from .turn_budget import Account

__all__ = ["NO_SINK", "Route", "Sink"]


class Sink(Protocol):
    """Takes a connection's events: the connection of the floor above."""

    def bind(self, route: Route) -> None:
        """Learn the route; called once, before any event."""

    def handle_events(self, batch: list[events.Event]) -> None:
        """Take events, in order.  Must not block and must not raise."""

    def on_released(self, remains: ApplicationFace) -> None:
        """Take note that the connection is over and its engine freed; the last call."""


class _NoSink:
    """Takes the place of the sink of a connection that is over."""

    def bind(self, route: Route) -> None: ...

    def handle_events(self, batch: list[events.Event]) -> None: ...

    def on_released(self, remains: ApplicationFace) -> None: ...


NO_SINK: Sink = _NoSink()


class Route:
    """One connection: its engine, its sink, and the driver's records of it.

    Args:
      engine: the protocol; replaced when the connection is over, see :meth:`DriverFace.release`.
      sink: takes its events.
      place: an incoming connection's place among those of the endpoint; ``None`` if it was
        dialled from here.
    """

    __slots__ = (
        "account",
        "connection_ids",
        "engine",
        "handshake_deadline",
        "initial_connection_id",
        "is_pending",
        "looked_at",
        "pace",
        "place",
        "reset_keys",
        "scheduled_at",
        "sink",
        "writers",
    )

    def __init__(self, engine: DriverFace, sink: Sink, *, place: Place | None = None) -> None:
        self.engine: DriverFace = engine
        self.sink: Sink = sink
        self.place: Place | None = place
        self.is_pending: bool = place is not None
        """Whether this is an incoming connection whose handshake is not complete."""
        self.account: Account | None = None
        """The recent processor time of the connection; ``None`` during the handshake."""
        self.handshake_deadline: float = math.inf
        """When the handshake fails for being too slow; infinite: it is complete, or has failed."""
        self.connection_ids: set[bytes] = set()
        """All IDs of this route (see :class:`~phoenix_trio.quic.routing_table.RoutingTable`)."""
        self.reset_keys: set[bytes] = set()
        """Hashes of the peer's stateless reset tokens."""
        self.initial_connection_id: bytes | None = None
        """The ID chosen by the client, until the handshake is confirmed."""
        self.scheduled_at: float = math.inf
        self.looked_at: float = math.inf
        self.pace: float = INITIAL_PACE
        # (These three: see :class:`~phoenix_trio.quic.timers.Timed`.)
        self.writers: set[trio.lowlevel.Task] = set()
        """Tasks that have written since packets were last built, and may write more."""

    def path(self, address: Address) -> Address:
        """The path of a received datagram of this connection.

        A server has to answer from the address to which the client sends, because clients
        discard packets of an unknown server address (RFC 9000 section 9).  A client must not tie
        itself to its own address: the system chooses it by the route to the server.  When the
        device goes from Wi-Fi to a mobile network, the next packet leaves from the new address,
        and the server takes that for a migration.  A socket that both dials and listens has
        connections of both kinds.
        """
        if type(address) is PathAddress and self.place is None:
            return address.remote
        return address
