"""Admits clients: answers first packets, makes connections, accounts for handshakes.

Floor 2.  Carries out what :class:`~phoenix_trio.quic.handshake.admission.Admission` decides.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from ..config import TransportConfig
from .datagram_socket import DatagramSocket
from .engine import Engine
from .handshake.admission import Admission, Admit, Answer, Drop
from .logs import bounded_logger
from .path_address import Address, SocketAddress, remote_of
from .route import Route, Sink

__all__ = ["Incoming"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")


class Incoming:
    """Answers datagrams that belong to no connection, and makes connections for clients.

    Args:
      socket: sends answers.
      config: limits of the endpoint.
      admission: decides about datagrams that belong to no connection.
      add: takes up the connection of a client.
    """

    __slots__ = ("_add", "_admission", "_config", "_socket", "accept", "answers",
                 "connections_accepted", "connections_refused", "datagrams_unroutable",
                 "handshakes_failed", "refuses_all")  # fmt: skip

    def __init__(
        self,
        socket: DatagramSocket,
        config: TransportConfig,
        admission: Admission,
        add: Callable[[Route, Engine], None],
    ) -> None:
        self._socket = socket
        self._config = config
        self._admission = admission
        self._add = add
        self.accept: Callable[[Admit, SocketAddress], tuple[Engine, Sink]] | None = None
        """Set while the endpoint listens: makes the connection of an admitted client."""
        self.refuses_all: bool = False
        """Set when the endpoint refuses all clients, so that they dial another server."""
        self.answers: dict[str, int] = {}
        """Answers sent without any state, by kind."""
        self.datagrams_unroutable: int = 0
        self.connections_accepted: int = 0
        self.connections_refused: int = 0
        self.handshakes_failed: int = 0

    def take_short(self, data: bytes, address: Address, now: float) -> None:
        """A datagram with a short header that belongs to no connection."""
        self.datagrams_unroutable += 1
        self._answer(self._admission.judge_short(data, now), address)

    def take_long(self, data: bytes, address: Address, now: float, mark: int) -> Route | None:
        """A datagram with a long header that belongs to no connection.

        Returns the connection that it has begun, if it has.
        """
        verdict = self._admission.judge_long(
            data,
            remote_of(address),
            now,
            listening=self.accept is not None,
            leaving=self.refuses_all,
        )
        if isinstance(verdict, Admit):
            return self._admit(verdict, data, address, now, mark)
        self.datagrams_unroutable += 1
        self._answer(verdict, address)
        return None

    def on_handshake_completed(self, route: Route) -> None:
        """An incoming connection is established."""
        if route.is_pending and route.place is not None:
            self._end_handshake(route)
            engine = route.engine
            route.place.on_handshake_completed(proves_address=engine.came_from_one_address)
            self.connections_accepted += 1

    def on_terminated(self, route: Route, now: float) -> None:
        """A connection has ended; if it was not established, its handshake has failed."""
        if route.is_pending and route.place is not None:
            self._end_handshake(route)
            # (It keeps its place until the driver forgets it.)
            self._admission.note_failure(route.place, now)
            self.handshakes_failed += 1

    @staticmethod
    def _end_handshake(route: Route) -> None:
        route.is_pending = False
        route.handshake_deadline = math.inf

    def _answer(self, verdict: Drop | Answer, address: Address) -> None:
        if isinstance(verdict, Answer):
            self.answers[verdict.kind] = self.answers.get(verdict.kind, 0) + 1
            # The answer has no state: it is dropped if the socket is full.
            self._socket.send_run(verdict.data, address)

    def _admit(
        self, verdict: Admit, data: bytes, address: Address, now: float, mark: int
    ) -> Route | None:
        assert self.accept is not None
        client = remote_of(address)
        try:
            engine, sink = self.accept(verdict, client)
        except Exception:
            # For example, a trace file that cannot be opened.  Other clients must still be
            # admitted.
            logger.exception("a connection from %s could not be made", client)
            return None
        engine.receive(data, address, now, mark)
        if not engine.has_peer and not engine.is_ending:
            # No packet of it was valid, so no state is kept.
            self.datagrams_unroutable += 1
            sink.on_released(engine.release()[1])
            return None
        route = Route(engine, sink, place=self._admission.enter(verdict, client, now))
        route.handshake_deadline = now + self._config.handshake_timeout
        route.initial_connection_id = verdict.destination_cid
        self._add(route, engine)
        sink.bind(route)
        return route
