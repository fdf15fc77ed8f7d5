"""The sockets of one endpoint: its own, and further ones of moved client connections.

Floor 2.  A client that moves to another path (RFC 9000 section 9.2) opens a socket for it.
Both paths lead to the same server, so the address of a datagram on such a socket names the
socket as well (:class:`~phoenix_trio.quic.path_address.SocketPath`).  From then on, the sender
and the receiver of the driver use :class:`LocalSockets` in place of the endpoint's own socket;
before that, it costs nothing.

Such a socket belongs to one connection, and must not affect others: a datagram that it cannot
send counts as lost.
"""

from __future__ import annotations

import logging

import attrs
import trio

from .datagram_socket import DatagramSocket, ReceivedRun, SocketStatistics
from .established.ecn import NOT_ECT
from .logs import bounded_logger
from .path_address import Address, SocketAddress, SocketPath, display_address
from .receive_pool import ReceivePool
from .route import Route

__all__ = ["LocalSockets"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: Counters summed over all sockets.
_COUNTERS = tuple(
    field.name
    for field in attrs.fields(SocketStatistics)
    if field.type in (int, "int") and not field.name.endswith("_size")
)


class _Socket:
    """A socket besides the endpoint's own.

    Args:
      socket: bound and non-blocking.
      route: the connection to which it belongs.
      path: that from it to the server.
    """

    __slots__ = ("path", "route", "socket")

    def __init__(self, socket: DatagramSocket, route: Route, path: SocketPath) -> None:
        self.socket = socket
        self.route = route
        self.path = path


class LocalSockets:
    """The sockets of one endpoint.

    Args:
      own: the endpoint's own socket.
    """

    __slots__ = ("_blocked", "_closed", "_next_name", "_own", "_turn", "more")

    def __init__(self, own: DatagramSocket) -> None:
        self._own = own
        self._blocked = own
        self._closed = dict.fromkeys(_COUNTERS, 0)
        self._next_name = 1
        self._turn = False
        self.more: dict[str, _Socket] = {}
        """The sockets besides the endpoint's own, by name."""

    # ------------------------------------------------------------------ coming and going

    def add(self, socket: DatagramSocket, route: Route, remote: SocketAddress) -> SocketPath | None:
        """Take up a socket; it is closed with the connection, or by :meth:`close`.

        Returns the path from it to `remote`; ``None``: it cannot reach `remote`, and the
        caller keeps the socket.
        """
        target = socket.reachable(display_address(remote))
        if target is None:
            return None
        name = str(self._next_name)
        self._next_name += 1
        path = SocketPath((*target, name))
        self.more[name] = _Socket(socket, route, path)
        return path

    def close(self, name: str) -> None:
        """Close one of :attr:`more`; does nothing if that has happened before."""
        found = self.more.pop(name, None)
        if found is None:
            return
        for counter in _COUNTERS:
            self._closed[counter] += getattr(found.socket.statistics, counter)
        found.socket.close()

    def close_of(self, route: Route) -> None:
        """The connection is over: close its sockets."""
        for path in self.paths_of(route):
            self.close(path.name)

    def close_all(self) -> None:
        """Close all but the endpoint's own socket."""
        for name in list(self.more):
            self.close(name)

    # ------------------------------------------------------------------ facts

    def address_of(self, path: Address) -> SocketAddress:
        """The local address of a path's socket."""
        found = self.more.get(path.name) if type(path) is SocketPath else None
        return self._own.address if found is None else found.socket.address

    def paths_of(self, route: Route | None) -> list[SocketPath]:
        """The paths of a connection which do not use the endpoint's own socket."""
        return [each.path for each in self.more.values() if each.route is route]

    @property
    def statistics(self) -> SocketStatistics:
        """The counters of all sockets together; the settings of the endpoint's own one."""
        own = self._own.statistics
        if self._next_name == 1:
            return own
        sums = {counter: getattr(own, counter) + self._closed[counter] for counter in _COUNTERS}
        for each in self.more.values():
            counters = each.socket.statistics
            for counter in _COUNTERS:
                sums[counter] += getattr(counters, counter)
        return attrs.evolve(own, **sums)

    def largest_payload(self, address: Address) -> int | None:
        """See :meth:`.datagram_socket.DatagramSocket.largest_payload`."""
        if type(address) is not SocketPath:
            return self._own.largest_payload(address)
        found = self.more.get(address.name)
        return None if found is None else found.socket.largest_payload(address.remote)

    # ------------------------------------------------------------------ for the driver

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        """See :meth:`.datagram_socket.DatagramSocket.receive_runs`.

        Every other time, the endpoint's own socket comes last, so that none starves.
        """
        self._turn = not self._turn
        runs = self._own.receive_runs(limit, pool) if self._turn else []
        for name, each in list(self.more.items()):
            if len(runs) >= limit:
                return runs
            try:
                # (Two sockets must not put their runs into the same buffers.)
                received = each.socket.receive_runs(limit - len(runs), None if runs else pool)
            except OSError as error:
                self._on_failure(name, error)
                continue
            for data, source, size, mark, stop in received:
                runs.append((data, SocketPath((*source, name)), size, mark, stop))
        if not self._turn and len(runs) < limit:
            runs += self._own.receive_runs(limit - len(runs), None if runs else pool)
        return runs

    def send_run(
        self,
        data: bytes | memoryview,
        address: Address,
        segment_size: int | None = None,
        mark: int = NOT_ECT,
    ) -> int:
        """See :meth:`.datagram_socket.DatagramSocket.send_run`.

        Datagrams for a closed or failing socket are lost.
        """
        if type(address) is not SocketPath:
            taken = self._own.send_run(data, address, segment_size, mark)
            if taken < len(data):
                self._blocked = self._own
            return taken
        found = self.more.get(address.name)
        if found is None:
            return len(data)
        try:
            taken = found.socket.send_run(data, address.remote, segment_size, mark)
        except OSError as error:
            self._on_failure(address.name, error)
            return len(data)
        if taken < len(data):
            self._blocked = found.socket
        return taken

    async def wait_writable(self) -> None:
        """Wait until the socket that was full last has room, or was removed.

        Raises:
          trio.ClosedResourceError: the endpoint's own socket was closed.
        """
        socket = self._blocked
        try:
            await socket.wait_writable()
        except trio.ClosedResourceError:
            if socket is self._own:
                raise

    def _on_failure(self, name: str, error: OSError) -> None:
        logger.debug("a socket to which a connection had moved has failed: %s", error)
        self.close(name)
