"""One UDP socket for dialling and listening: the public face of the driver.

Floor 3.  Holds the parts shared by all connections of a socket: the network, the
configuration, key log and traces.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TextIO, final

import trio

from ..config import TransportConfig
from ..errors import ApplicationErrorCode, HandshakeFailed
from ..metrics import EndpointStatistics
from .arguments import (
    check_alpn,
    check_client_tls,
    check_config,
    check_local_address,
    check_server_tls,
    check_target,
)
from .connection import QuicConnection
from .construction import NoPublicConstructor
from .datagram_socket import DatagramSocket, Network
from .driver import SocketDriver
from .engine import Engine
from .given_socket import adopt_socket, check_socket
from .groups import unwrap_lone
from .handshake.admission import Admit
from .handshake.tls import ClientTLS, ServerTLS
from .handshake.trace import TraceDirectory
from .listener import QuicListener
from .packet_io import UdpNetwork
from .path_address import SocketAddress, display_address
from .preferred_address import PreferredAddresses, PreferredAddressOption, preferred_addresses
from .setup import make_client_engine, make_server_engine
from .worker_socket import WorkerSocket

__all__ = ["DEFAULT_ALPN", "Endpoint", "open_connection"]

#: Our own application layer (docs: specification); programs with another protocol name theirs.
DEFAULT_ALPN = ("phoenix/1",)

#: RFC 8305 section 5: the recommended pause before the next address is tried as well.
CONNECTION_ATTEMPT_DELAY = 0.25


@final
class Endpoint(metaclass=NoPublicConstructor):
    """One UDP socket.  It can dial any number of servers and listen at the same time.

    Obtained from :meth:`Endpoint.open`.
    """

    def __init__(
        self,
        driver: SocketDriver,
        network: Network,
        key_log: TextIO | None,
        traces: TraceDirectory | None,
    ) -> None:
        self._driver = driver
        self._network = network
        self._key_log = key_log
        self._traces = traces
        self._listener: QuicListener | None = None
        self._reuses_port = False

    def __repr__(self) -> str:
        if self._driver.is_closed:
            state = "closed"
        else:
            state = "open" if self._driver.accept is None else "listening"
        return f"<Endpoint on {self.address} with {len(self._driver.sinks)} connections ({state})>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        host: str | None = None,
        port: int = 0,
        *,
        socket: sockets.socket | None = None,
        reuse_port: bool = False,
        config: TransportConfig | None = None,
        network: Network | None = None,
    ) -> AsyncIterator[Endpoint]:
        """Open a socket and drive it for as long as the block lasts.

        When the block is left normally, every connection is closed in good order
        (:meth:`QuicConnection.aclose`) first.  Then the block waits for the answers of the
        peers: one round trip if no packet is lost, at most
        ``TransportConfig.close_linger``.  When it is left by an exception or cancellation,
        connections are aborted without any wait.

        Args:
          host: the local address or name; ``None``: all, IPv4 and IPv6 (dual stack)
            where the system allows.
          port: the local UDP port; 0: any free one.
          socket: a bound UDP socket to use instead of a new one (``host`` and ``port`` are
            left out then).  Once this call has checked it, the endpoint owns it and
            closes it at the end; pass ``socket.dup()`` to keep yours.  It becomes
            non-blocking; buffer sizes set by the program stay.
          reuse_port: let other sockets be bound to the same port (``SO_REUSEPORT``), so that
            processes share it.  The system distributes peers by their addresses.  So packets
            of a client that moves may reach another process, which resets the connection.
            :func:`run_workers` passes them on instead.
          config: the default for the endpoint's connections.
          network: makes the sockets; ``None``: real UDP.  For tests:
            :class:`phoenix_trio.testing.SimulatedNetwork`.

        Raises:
          OSError: the name is unknown, or the port is in use; or, later, the socket
            has failed for good (calls on its connections raise
            :class:`trio.BrokenResourceError` then).
          TypeError: `socket` is not a :class:`socket.socket`.
          ValueError: `socket` is not a bound UDP socket over IPv4 or IPv6, is connected or
            closed, or an argument contradicts it.  It is left as it was.
          NotADirectoryError, PermissionError: `qlog_dir` or `keylog_file` cannot be used.
        """
        endpoint = await cls._open(
            host, port, socket=socket, reuse_port=reuse_port, config=config, network=network
        )
        driver = endpoint._driver
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(driver.run)
                    yield endpoint
                    await endpoint._close_connections()
                    await driver.linger()
                except trio.BrokenResourceError:
                    if driver.failure is None:
                        raise
                    # The body got the socket's failure from its calls; the driver raises the
                    # same failure.  One error is clearer than two.
                    await trio.sleep_forever()
                finally:
                    endpoint.close()
                    nursery.cancel_scope.cancel()

    @classmethod
    async def _open(
        cls,
        host: str | None,
        port: int,
        *,
        socket: sockets.socket | None = None,
        reuse_port: bool = False,
        config: TransportConfig | None,
        network: Network | None,
    ) -> Endpoint:
        """An endpoint without a driving task."""
        if socket is not None:
            if host is not None or port:
                raise ValueError("a socket has its address already: leave out host and port")
            if reuse_port:
                raise ValueError("reuse_port comes before a socket is bound, and this one is")
            if network is not None:
                raise ValueError("a socket is one of the real network: leave out network")
            check_socket(socket)
            await trio.lowlevel.checkpoint()
        check_local_address(host, port)
        config = TransportConfig() if config is None else check_config(config)
        relay = socket.relay if isinstance(socket, WorkerSocket) else None
        if relay is not None and len(config.connection_id_server_id or b"") > 1:
            raise ValueError("connection_id_server_id must have 1 byte in a worker")
        network = UdpNetwork() if network is None else network
        traces = TraceDirectory(config.qlog_dir, trio.current_time) if config.qlog_dir else None
        key_log_path = config.keylog_file or os.environ.get("SSLKEYLOGFILE")
        key_log = open(key_log_path, "a", encoding="ascii") if key_log_path else None  # noqa: SIM115, ASYNC230
        try:
            own: DatagramSocket
            if socket is not None:
                own = adopt_socket(socket, config.socket_buffer_size)
            else:
                own = await network.open_socket(
                    host, port, buffer_size=config.socket_buffer_size, reuse_port=reuse_port
                )
        except BaseException:
            if key_log is not None:
                key_log.close()
            raise
        key = config.stateless_reset_key or os.urandom(32)
        driver = SocketDriver(own, config, key, relay)
        endpoint: Endpoint = cls._create(driver, network, key_log, traces)
        driver.on_close = endpoint._close_logs
        endpoint._reuses_port = reuse_port
        driver.rebinding.open_socket = partial(
            network.open_socket, buffer_size=config.socket_buffer_size
        )
        return endpoint

    @property
    def address(self) -> SocketAddress:
        """The local address of the socket, ``(host, port)`` or longer for IPv6."""
        return self._driver.socket.address

    @property
    def port(self) -> int:
        """The local UDP port."""
        return self._driver.socket.address[1]

    def statistics(self) -> EndpointStatistics:
        """A frozen snapshot of the socket's counters."""
        return self._driver.statistics()

    @asynccontextmanager
    async def connect(
        self,
        host: str,
        port: int,
        *,
        tls: ClientTLS | None = None,
        alpn: Sequence[str] = DEFAULT_ALPN,
        config: TransportConfig | None = None,
    ) -> AsyncIterator[QuicConnection]:
        """Dial a server, for the length of the block.

        A name with several addresses is dialled the happy-eyeballs way (RFC 8305):
        the next address is tried 0.25 s after the last, or as soon as it fails,
        and the first handshake that completes wins.  With `early_data` in `tls` and
        a ticket in its session store, the block begins before the handshake is
        complete; an attacker can replay data sent by then.

        When the block is left normally, the connection is closed in good order;
        when it is left by an exception, it is aborted.

        Args:
          host: a name or address.
          port: the UDP port.
          tls: trust, and this client's own certificate; default: the system's authorities.
          alpn: protocol names, the preferred one first.
          config: overrides the endpoint's.

        Cancellation: the attempt is given up; nothing stays behind.

        Raises:
          OSError: the name is unknown, or no address of it can be reached from this socket; or
            the socket belongs to a :class:`Worker`, where answers may reach another process.
          ServerUnreachable: the network reports that no program listens there, or that there
            is no route; on Linux, and where ICMP messages pass.
          HandshakeTimedOut: no answer in ``TransportConfig.handshake_timeout``.
          HandshakeFailed: another reason; see its subclasses.
          TypeError, ValueError: an argument is wrong; the text says what to write instead.
          trio.ClosedResourceError: the endpoint is closed.
        """
        connection = await self._dial(host, port, tls=tls, alpn=alpn, config=config)
        try:
            yield connection
        except BaseException:
            connection.abort(ApplicationErrorCode.CANCELLED)
            raise
        await connection.aclose()

    def listen(
        self,
        *,
        tls: ServerTLS,
        alpn: Sequence[str] = DEFAULT_ALPN,
        config: TransportConfig | None = None,
        preferred_address: PreferredAddressOption | None = None,
    ) -> QuicListener:
        """Accept connections on this socket from now on, until the listener is closed.

        Args:
          tls: the server's identity.
          alpn: protocol names, the preferred one first.
          config: overrides the endpoint's for accepted connections.
          preferred_address: another address of this socket, to which clients are asked to
            move as soon as the handshake is over (RFC 9000 section 9.6): from an address which
            several hosts share, for example, to one of this host alone.  A numeric address,
            to which the endpoint's port belongs, or a pair of address and port; or a sequence of
            these, one for IPv4 and one for IPv6.  A client takes the one of its own family,
            tries it first, and stays where it is if nothing answers there.  The socket has to
            receive what is sent to that address: it is bound to all addresses of the host
            (the default) and the port is its own, or something in front of it forwards.

        Raises:
          TypeError, ValueError: an argument is wrong, such as a :class:`ClientTLS` as `tls`; or
            `preferred_address` is given, and the socket was opened with ``reuse_port``, so that
            clients that move can come to another process.
          trio.BusyResourceError: the endpoint is listening already.
          trio.ClosedResourceError: the endpoint is closed.
        """
        check_server_tls(tls)
        if config is not None:
            check_config(config)
        driver = self._driver
        if driver.is_closed:
            raise trio.ClosedResourceError("this endpoint was closed")
        if driver.accept is not None:
            raise trio.BusyResourceError("this endpoint is listening already")
        names = check_alpn(alpn)
        preferred: PreferredAddresses | None = None
        if preferred_address is not None:
            if self._reuses_port:
                raise ValueError(
                    "preferred_address contradicts reuse_port: at another address, the system can "
                    "give the client to another process, which resets its connection"
                )
            preferred = preferred_addresses(preferred_address, self.port)
        driver.report_local_addresses()
        listener: QuicListener = QuicListener._create(driver)
        own_config = driver.config if config is None else config
        if driver.config.stateless_reset_key is None:
            # The same after a restart, so that a restarted server resets its old connections.
            driver.set_reset_key(tls.stateless_reset_secret())
        keys = tls.shared_keys or driver.worker_keys
        driver.share_keys(keys)

        def accept(admit: Admit, address: SocketAddress) -> tuple[Engine, QuicConnection]:
            engine = make_server_engine(
                config=own_config,
                server_tls=tls,
                alpn=names,
                admit=admit,
                reset_token=driver.reset_token,
                make_connection_id=driver.make_connection_id,
                keys=keys,
                preferred=preferred,
                memory=driver.memory,
                key_log=self._key_log,
                trace_logger=self._traces,
            )
            connection: QuicConnection = QuicConnection._create(driver, engine)
            connection._address = address
            listener._watch(connection)
            return engine, connection

        driver.accept = accept
        self._listener = listener
        return listener

    def close(self) -> None:
        """Close the socket, and abort open connections.  Idempotent."""
        if self._listener is not None:
            self._listener._stop()
        self._driver.close()

    async def _close_connections(self) -> None:
        """Close all connections in good order, all at once."""
        if self._listener is not None:
            self._listener._stop()
        connections = [sink for sink in self._driver.sinks if isinstance(sink, QuicConnection)]
        async with trio.open_nursery() as nursery:
            for connection in connections:
                if not connection.is_closed:
                    nursery.start_soon(connection.aclose)

    def _close_logs(self) -> None:
        if self._traces is not None:
            self._traces.close()
        if self._key_log is not None:
            self._key_log.close()

    # ------------------------------------------------------------------ dialling

    async def _dial(
        self,
        host: str,
        port: int,
        *,
        tls: ClientTLS | None,
        alpn: Sequence[str],
        config: TransportConfig | None,
    ) -> QuicConnection:
        check_target(host, port)
        names = check_alpn(alpn)
        check_client_tls(tls)
        if config is not None:
            check_config(config)
        tls = ClientTLS() if tls is None else tls
        driver = self._driver
        if driver.is_closed:
            raise trio.ClosedResourceError("this endpoint was closed")
        if driver.shares_port:
            raise OSError(
                errno.EOPNOTSUPP,
                "a worker's socket cannot dial, since answers may come to another worker;"
                " dial from another endpoint",
            )
        resolved = await self._network.resolve(host, port)
        targets = [t for a in resolved if (t := driver.socket.reachable(a)) is not None]
        if not targets:
            shown = ", ".join(str(display_address(a)[0]) for a in resolved)
            raise OSError(
                f"{host!r} cannot be reached from a socket bound to {self.address[0]!r}:"
                f" it has only the addresses {shown}"
            )

        def begin(target: SocketAddress) -> QuicConnection:
            engine = make_client_engine(
                config=driver.config if config is None else config,
                client_tls=tls,
                host=host,
                port=port,
                alpn=names,
                reset_token=driver.reset_token,
                memory=driver.memory,
                key_log=self._key_log,
                trace_logger=self._traces,
            )
            connection: QuicConnection = QuicConnection._create(driver, engine)
            engine.start(target, trio.current_time())
            route = driver.add(engine, connection)
            driver.flush_soon(route)
            return connection

        async def establish(target: SocketAddress) -> QuicConnection:
            connection = begin(target)
            try:
                if tls.early_data and connection._engine.can_send_early_data:
                    connection._is_ready = True
                    await trio.lowlevel.checkpoint()
                else:
                    await connection._wait_ready()
            except BaseException:
                connection.abort(ApplicationErrorCode.CANCELLED)
                raise
            return connection

        ordered = _interleave(targets)
        if len(ordered) == 1:
            return await establish(ordered[0])
        return await _happy_eyeballs(ordered, establish)


def _interleave(addresses: list[SocketAddress]) -> list[SocketAddress]:
    """RFC 8305 section 4: alternate the families, beginning with the preferred one."""

    def family(address: SocketAddress) -> bool:
        host = display_address(address)[0]
        return ":" in host

    first = family(addresses[0])
    preferred = [a for a in addresses if family(a) is first]
    others = [a for a in addresses if family(a) is not first]
    result: list[SocketAddress] = []
    for index in range(max(len(preferred), len(others))):
        result += preferred[index : index + 1] + others[index : index + 1]
    return result


async def _happy_eyeballs(
    targets: list[SocketAddress],
    establish: Callable[[SocketAddress], Awaitable[QuicConnection]],
) -> QuicConnection:
    """The first successful attempt; each starts when the previous one fails or is slow."""
    winner: list[QuicConnection] = []
    failures: list[tuple[SocketAddress, Exception]] = []

    with unwrap_lone():
        async with trio.open_nursery() as nursery:

            async def attempt(target: SocketAddress, failed: trio.Event) -> None:
                try:
                    connection = await establish(target)
                except (OSError, HandshakeFailed, trio.BrokenResourceError) as error:
                    failures.append((target, error))
                    failed.set()
                    return
                if winner:
                    connection.abort(ApplicationErrorCode.CANCELLED)
                    return
                winner.append(connection)
                nursery.cancel_scope.cancel()

            try:
                for target in targets:
                    failed = trio.Event()
                    nursery.start_soon(attempt, target, failed)
                    with trio.move_on_after(CONNECTION_ATTEMPT_DELAY):
                        await failed.wait()
            except BaseException:
                # Cancelled from outside: the established connection has no owner.
                if winner and not nursery.cancel_scope.cancel_called:
                    winner.pop().abort(ApplicationErrorCode.CANCELLED)
                raise
    if winner:
        return winner[0]
    first = failures[0][1]
    for target, error in failures[1:]:
        first.add_note(f"and {display_address(target)[0]}: {error}")
    raise first


@asynccontextmanager
async def open_connection(
    host: str,
    port: int,
    *,
    tls: ClientTLS | None = None,
    alpn: Sequence[str] = DEFAULT_ALPN,
    config: TransportConfig | None = None,
    network: Network | None = None,
) -> AsyncIterator[QuicConnection]:
    """Dial a server from a socket of its own, for the length of the block.

    Each address of the name is tried, 0.25 s after the last one or as soon as that fails (RFC
    8305); the first handshake that completes wins.  With `early_data` in `tls` and a ticket in
    its session store, the block begins before the handshake is complete; an attacker can replay
    data sent by then.

    When the block is left normally, the connection is closed in good order: all sent data is
    delivered.  When it is left by an exception, the connection is aborted.  A program with many
    connections should open one :class:`Endpoint` for all of them.

    Args:
      host: a name or address.
      port: the UDP port.
      tls: trust, and this client's own certificate; default: the system's authorities.
      alpn: protocol names, the preferred one first.
      config: limits, buffers and timers; default: ``TransportConfig()``.
      network: makes the socket, such as a host of a
        :class:`~phoenix_trio.testing.SimulatedNetwork`; ``None``: real UDP.

    Cancellation: the attempt is given up; nothing stays behind.

    Raises:
      OSError: the name is unknown, or no address of it can be reached.
      ServerUnreachable: the network reports that no program listens there, or that there is no
        route; on Linux, and where ICMP messages pass.
      HandshakeTimedOut: no answer in ``TransportConfig.handshake_timeout``.
      HandshakeFailed: another reason; see its subclasses.
      TypeError, ValueError: an argument is wrong; the text says what to write instead.
    """
    async with (
        Endpoint.open(config=config, network=network) as endpoint,
        endpoint.connect(host, port, tls=tls, alpn=alpn) as connection,
    ):
        try:
            yield connection
        finally:
            # The cancellation of the endpoint follows, and can keep this frame alive.
            del connection
