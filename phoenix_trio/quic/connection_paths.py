"""The calls of a connection about its network paths (RFC 9000 section 9).

Floor 3.  A part of :class:`~phoenix_trio.quic.connection.QuicConnection`, which documents
the whole.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from ..errors import MigrationForbidden, NoConnectionIdLeft, PathNotValidated
from ..metrics import PathStatistics
from .connection_datagrams import DatagramCalls
from .path_address import Address, SocketPath, display_address, remote_of

__all__ = ["PathCalls"]

#: Round trips to wait for a connection ID of the server: earlier ones may have been lost, or
#: used by earlier moves.
_ROUND_TRIPS_FOR_CONNECTION_ID = 3


class PathCalls(DatagramCalls):
    """Moves a connection to another path, and reports its paths."""

    if TYPE_CHECKING:
        # Of QuicConnection.
        async def ping(self) -> float: ...
        async def wait_confirmed(self) -> None: ...

    async def migrate(self, local_address: str | tuple[str, int] | None = None) -> None:
        """Client: move to another socket, so to another path, without losing anything.

        For a device that joins another network, or prefers another one of its networks.  The
        call opens a socket, and sends a challenge to the server on the new path.  Once the
        server has answered, the connection uses that path (RFC 9000 sections 8.2 and 9.2); until
        then, the old one.  Round-trip time, congestion window, packet size and ECN are measured
        anew on the new path.  Other connections of the endpoint do not move.

        Waits for the confirmation of the handshake first, then for the server's answer: a round
        trip, if nothing is lost.  The challenge is sent up to five times, and given up
        after 31 times the larger of the probe timeout and ``2 * TransportConfig.initial_rtt``:
        6.2 s by default where the round trip is short.  A cancel scope can shorten the wait.

        The connection has at most two such sockets besides the endpoint's: the one in use, and
        the previous one, for late packets.

        Args:
          local_address: the address of the new socket: a host, or a host and a port.  The host
            is a numeric address or a name of this machine; port 0 is any free port.  ``None``:
            all addresses and a free port; the system chooses the address by the route.

        Cancellation: the connection stays on the old path.

        Raises:
          OSError: the address is unknown or not local, the port is in use, or the server cannot
            be reached from there: it has no address of that family.
          MigrationForbidden: this side is the server, or the server permits no moves.
          NoConnectionIdLeft: the server has given no connection ID for the new path, for three
            round trips.
          PathNotValidated: the server has not answered on the new path.
          trio.BusyResourceError: another task is moving the connection.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended first.
          TypeError, ValueError: `local_address` is not an address.
        """
        host, port = _host_and_port(local_address)
        with self._move:
            await self.wait_confirmed()
            if self._is_closing:
                raise self._ended_error()
            if not self._is_client:
                raise MigrationForbidden("only clients move to another path (RFC 9000 section 9)")
            if self._engine.peer_forbids_moves:
                raise MigrationForbidden(
                    "the server permits no moves to another path (disable_active_migration)"
                )
            address = await self._open_path(host, port)
            try:
                await self._validate(address)
                before = self._path_address()
                if not self._engine.move_to_path(address):
                    raise NoConnectionIdLeft("the server has given no connection ID for this path")
            except BaseException:
                self._close_path(address)
                raise
            finally:
                self._probed.clear()
            self._touch()
            self._close_paths_except(address, before)

    def paths(self) -> tuple[PathStatistics, ...]:
        """Statistics of each network path, the active one first; empty after the end.

        A connection keeps at most eight paths: paths in use, in validation, and left ones.
        """
        engine = self._engine
        found: list[PathStatistics] = []
        for address, is_validated in engine.path_facts():
            is_active = not found
            found.append(
                PathStatistics(
                    local_address=self._local_end(address),
                    peer_address=display_address(address),
                    is_active=is_active,
                    is_validated=is_validated,
                    rtt_min=engine.rtt_min if is_active else None,
                    rtt_smoothed=engine.rtt_smoothed if is_active else None,
                    congestion_window=engine.congestion_window if is_active else None,
                    path_mtu=engine.path_mtu if is_active else None,
                )
            )
        return tuple(found)

    async def _open_path(self, host: str | None, port: int) -> SocketPath:
        """Open a socket for the path from there to the server."""
        driver, route = self._driver, self._route
        assert driver.rebinding.open_socket is not None
        socket = await driver.rebinding.open_socket(host, port)
        if route is None or self._ended:
            socket.close()
            raise self._ended_error()
        remote = remote_of(self._path_address())
        address = driver.add_socket(socket, route, remote)
        if address is None:
            name = socket.address[0]
            socket.close()
            raise OSError(
                errno.EAFNOSUPPORT,
                f"{display_address(remote)[0]} cannot be reached from a socket bound to {name!r}",
            )
        return address

    async def _validate(self, address: SocketPath) -> None:
        """Wait until the server has answered on this path."""
        for _ in range(_ROUND_TRIPS_FOR_CONNECTION_ID):
            if self._engine.probe_path(address, trio.current_time()):
                break
            await self.ping()
        else:
            raise NoConnectionIdLeft("the server has given no connection ID for another path")
        self._touch()
        while address not in self._probed:
            await self._wait(self._move_lot)
            if self._ended:
                raise self._ended_error()
        if not self._probed[address]:
            local = self._driver.sockets.address_of(address)
            raise PathNotValidated(
                f"the server {display_address(address)} has not answered on the path from {local}"
            )

    def _close_path(self, address: Address) -> None:
        """Remove a path, and close its socket if it has one of its own."""
        self._engine.forget_path(address)
        if type(address) is SocketPath:
            self._driver.sockets.close(address.name)
        self._touch()

    def _close_paths_except(self, *kept: Address) -> None:
        for address in self._driver.sockets.paths_of(self._route):
            if address not in kept:
                self._close_path(address)


def _host_and_port(local_address: str | tuple[str, int] | None) -> tuple[str | None, int]:
    """The local address to bind to, checked."""
    host, port = local_address if isinstance(local_address, tuple) else (local_address, 0)
    if host is not None and not isinstance(host, str):
        raise TypeError(f"local_address must be a host, or a host and a port, not {host!r}")
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"the port of local_address must be an integer, not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"the port of local_address must be between 0 and 65535, not {port}")
    return host, port
