"""Lets client connections go on when the host loses the local address of their socket.

Floor 2.  A socket bound to one address cannot send once the host loses that address.  With
``TransportConfig.leave_lost_address``, the connection then goes on from a socket bound to all
addresses (RFC 9000 section 9.2).  There the system chooses the address of each packet by the
route.  The first packet that cannot leave starts this, so no polling is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from .datagram_socket import DatagramSocket
from .engine import Engine
from .local_sockets import LocalSockets
from .logs import bounded_logger
from .path_address import SocketAddress, SocketPath, remote_of
from .route import Route

__all__ = ["Rebinding"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: The most sockets opened for one connection.  One is enough; further attempts are needed if
#: the server has given no connection ID yet, or opening the socket fails.
_ATTEMPTS = 3


class Rebinding:
    """Moves connections away from lost local addresses.

    Args:
      sockets: those of the endpoint.
      sending: the connection whose packets are being sent.
      add_socket: drives another socket for a connection.
      flush_soon: sends the pending packets of a connection.
    """

    __slots__ = ("_add_socket", "_flush_soon", "_left", "_sending", "_sockets", "nursery",
                 "open_socket")  # fmt: skip

    def __init__(
        self,
        sockets: LocalSockets,
        *,
        sending: Callable[[], Route | None],
        add_socket: Callable[[DatagramSocket, Route, SocketAddress], SocketPath | None],
        flush_soon: Callable[[Route], None],
    ) -> None:
        self._sockets = sockets
        self._sending = sending
        self._add_socket = add_socket
        self._flush_soon = flush_soon
        self._left: dict[Route, int] = {}
        self.nursery: trio.Nursery | None = None
        """Set while a task drives."""
        self.open_socket: Callable[[str | None, int], Awaitable[DatagramSocket]] | None = None
        """Opens another socket, bound to a host and port."""

    def add(self, route: Route, socket: DatagramSocket) -> None:
        """Add a connection that uses this socket and may leave a lost address."""
        self._left.setdefault(route, _ATTEMPTS)
        socket.report_lost_address(self._on_lost_address)

    def watches(self, route: Route) -> bool:
        """Whether :meth:`add` was called for the connection."""
        return route in self._left

    def discard(self, route: Route) -> None:
        """The connection is over."""
        self._left.pop(route, None)

    def _on_lost_address(self) -> None:
        """Act on a packet that could not leave, because its socket's address is lost."""
        route = self._sending()
        if route is None or self.nursery is None or self._left.get(route, 0) <= 0:
            return
        # (Negative until the attempt has ended: the other packets of a run fail as well.)
        self._left[route] = 1 - self._left[route]
        self.nursery.start_soon(self._rebind, route)

    async def _rebind(self, route: Route) -> None:
        """Let the connection go on from a socket bound to all addresses."""
        assert self.open_socket is not None
        try:
            socket = await self.open_socket(None, 0)
        except OSError as error:
            logger.debug("no socket in the place of one whose address has gone: %s", error)
            return
        finally:
            if route in self._left:
                self._left[route] = -self._left[route]
        engine = route.engine
        before = engine.get_peer_address() if isinstance(engine, Engine) else None
        if before is None or route not in self._left or not isinstance(engine, Engine):
            socket.close()
            return
        path = self._add_socket(socket, route, remote_of(before))
        if path is None:
            socket.close()
            return
        if not engine.rebind(path):
            self._sockets.close(path.name)
            return
        if type(before) is SocketPath:
            engine.forget_path(before)
            self._sockets.close(before.name)
        self._flush_soon(route)
