"""One application's transport: its socket, its pool, its transfers, and one place for statistics.

Floor 5.  Everything started here runs in the nursery of :func:`open_phoenix` and ends with
its block.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, final

import attrs
import trio

from .config import MEBIBYTE, TransportConfig
from .errors import ShuttingDown
from .metrics import RateWindow, TransportStatistics
from .pool.config import PoolConfig
from .pool.hub import TransferHub
from .pool.pool import ConnectionPool, open_pool
from .pool.retry import Retry
from .pool.statistics import PoolStatistics
from .pool.targets import Target, TargetLike
from .quic.arguments import (
    check_alpn,
    check_client_tls,
    check_config,
    check_handler,
    check_server_tls,
)
from .quic.connection import QuicConnection
from .quic.construction import NoPublicConstructor
from .quic.datagram_socket import Network
from .quic.endpoint import DEFAULT_ALPN, Endpoint
from .quic.groups import unwrap_lone
from .quic.handshake.tls import ClientTLS, ServerTLS
from .quic.listener import QuicListener
from .quic.server import Server, check_grace, wait_for_peer_to_close
from .quic.serving import open_endpoints
from .streams.limits import ANNOUNCING_PROTOCOL
from .transport_connection import PhoenixConnection
from .transport_end import Ending
from .transport_lease import PhoenixLease
from .transport_transfers import TransferCalls

__all__ = ["PhoenixTransport", "open_phoenix"]

#: The most bytes of one striped transfer that wait in memory, and of one stripe.
_LARGEST_WINDOW = 64 * MEBIBYTE
_LARGEST_STRIPE = MEBIBYTE

#: The protocols of both sides: the first one, where the peer has it, announces limits.
_ALPN = (ANNOUNCING_PROTOCOL, *DEFAULT_ALPN)

_SAFE_RETRY = Retry()

#: A server's handler.
Handler = Callable[[PhoenixConnection], Awaitable[object]]


@attrs.define
class _Totals:
    """Sums over ended connections."""

    bytes_sent: int = 0
    bytes_received: int = 0
    operations: int = 0
    zero_copy_operations: int = 0
    packets_lost: int = 0


@final
class PhoenixTransport(TransferCalls, trio.abc.AsyncResource, metaclass=NoPublicConstructor):
    """Connections to and from any number of peers, with the protocol ``phoenix/1``.

    Obtained from :func:`open_phoenix`.
    """

    def __init__(
        self,
        name: str,
        config: TransportConfig,
        server_tls: ServerTLS | None,
        network: Network | None,
        alpn: Sequence[str],
    ) -> None:
        self._name = name
        self._config = config
        self._alpn = alpn
        self._server_tls = server_tls
        self._network = network
        # A transfer may hold as much as two connections, up to a fixed limit.
        self._window = min(_LARGEST_WINDOW, 2 * config.receive_buffer_size)
        self._hub = TransferHub(
            window=self._window,
            max_stripe_size=min(_LARGEST_STRIPE, self._window // 4),
            max_transfers=config.max_incoming_transfers,
            max_transfers_per_peer=config.max_incoming_transfers_per_peer,
            idle_timeout=config.transfer_idle_timeout,
        )
        self._connections: dict[QuicConnection, PhoenixConnection] = {}
        self._opened = 0
        self._past = _Totals()
        self._multiplexed: dict[Target, int] = {}
        now = trio.current_time()
        self._send_window = RateWindow(now)
        self._receive_window = RateWindow(now)
        self._ending = Ending()
        self._body: trio.CancelScope | None = None
        self._closed = False
        self._pool: ConnectionPool

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ending" if self._ending.has_begun else "open"
        count = len(self._connections)
        return f"<PhoenixTransport {self._name!r} with {count} connections ({state})>"

    @property
    def name(self) -> str:
        """The transport's name, for logs and statistics."""
        return self._name

    @property
    def config(self) -> TransportConfig:
        """The settings of all its connections."""
        return self._config

    @property
    def pool(self) -> ConnectionPool:
        """The pool from which :meth:`connect` leases: for draining, and its own statistics."""
        return self._pool

    @property
    def connections(self) -> tuple[PhoenixConnection, ...]:
        """All open connections, dialled and accepted."""
        return tuple(each for each in self._connections.values() if not each.quic.is_closed)

    # ------------------------------------------------------------------ connecting

    def connect(
        self, target: TargetLike, *, exclusive: bool = False
    ) -> AbstractAsyncContextManager[PhoenixConnection]:
        """A lease on a connection: ``async with phoenix.connect("there:4433") as connection``.

        Other tasks may hold leases on the same connection.  An open connection costs no round
        trip; without one, the pool dials.  The end of the block returns the lease, and the
        connection stays open for a while (``PoolConfig.idle_timeout``).

        Args:
          target: ``"host:port"``, ``"[v6-address]:port"``, or ``(host, port)``.
          exclusive: have the connection alone; see :meth:`ConnectionPool.lease`.

        Cancellation: while waiting, nothing is held.

        Raises (the call itself):
          TypeError, ValueError: not a valid target; the text says why.

        Raises (entering the block):
          OSError: the name is unknown, or the target cannot be reached.
          HandshakeFailed, ConnectionBroken: the connection could not be established.
          ShuttingDown: the transport was closed, or shut down.
        """
        lease = self._pool.lease(target, exclusive=exclusive)
        return PhoenixLease(lease, self._connections, lambda: self._closed)

    async def request(
        self,
        target: TargetLike,
        data: bytes | bytearray | memoryview,
        *,
        max_answer: int | None = None,
        retry: Retry | None = _SAFE_RETRY,
    ) -> bytes:
        """A request and its answer on a connection of the pool, again if that is safe.

        The same as :meth:`QuicConnection.request` within :meth:`connect`.

        Args:
          target: as for :meth:`connect`.
          data: the request.
          max_answer: the limit for the answer, in bytes; ``None``: the configuration's
            ``max_message_size``.
          retry: when the request is made again, on another connection.  By default, only if
            the server's application has certainly not seen it, for example because the server
            shuts down.  ``None``: never.

        Cancellation: the server may or may not have seen the request.

        Raises:
          Errors from ``QuicConnection.request`` and from entering ``connect``: that of the
            last attempt.
        """

        async def ask() -> bytes:
            async with self.connect(target) as connection:
                return await connection.request(data, max_answer=max_answer)

        return await (ask() if retry is None else retry.run(ask))

    # ------------------------------------------------------------------ serving

    async def serve(
        self,
        handler: Handler,
        port: int | None = None,
        *,
        host: str | None = None,
        socket: sockets.socket | None = None,
        tls: ServerTLS | None = None,
        alpn: Sequence[str] | None = None,
        on_error: Callable[[Exception], object] | None = None,
        strict: bool = False,
        grace_period: float = 0.0,
        task_status: trio.TaskStatus[list[QuicListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections and run `handler` for each, in a task of its own, until cancelled.

        Works as :func:`phoenix_trio.serve`, but the handler gets a
        :class:`PhoenixConnection`.  A connection is closed when its handler returns; for
        striped transfers alone, ``handler`` can be ``lambda c: c.quic.wait_closed()``.

        This call returns after :meth:`shutdown`, and when the block of :func:`open_phoenix`
        ends.  If the block is left normally, or this call is cancelled, handlers have
        `grace_period` seconds to finish.

        Args:
          handler: an async function.
          port: the UDP port; 0: any free one.  Required unless `socket` is given.
          host: the local address; ``None``: all.
          socket: a bound UDP socket to use instead of a new one, see
            :func:`phoenix_trio.serve`.
          tls: the server's identity; ``None``: that of :func:`open_phoenix`.
          alpn: protocol names, the preferred one first; ``None``: those of
            :func:`open_phoenix`.
          on_error, strict, grace_period, task_status: see :func:`phoenix_trio.serve`.

        Cancellation: as for :func:`phoenix_trio.serve`; peers get a DRAIN stream, as with
        :meth:`shutdown`.

        Raises:
          ValueError: no `tls` was given here or to :func:`open_phoenix`, or `grace_period` is
            negative.
          TypeError, ValueError: there is neither a port nor a socket, or it is not fit; see
            :func:`phoenix_trio.serve`.
          OSError: the address is not local, or the port is in use.
          ShuttingDown: the transport was closed, or is shutting down.
        """
        tls = self._server_tls if tls is None else tls
        if tls is None:
            raise ValueError(
                "serving needs a certificate: pass tls=ServerTLS(...) here,"
                " or server_tls=ServerTLS(...) to open_phoenix()"
            )
        check_handler(handler)
        self._check_open()

        async def handle(quic: QuicConnection) -> None:
            async with self._served(quic) as connection:
                await handler(connection)
                if server.is_stopping:
                    # (In this block, so that DRAIN can still be sent.)
                    await wait_for_peer_to_close(quic)

        server = Server(
            handle,
            partial(
                open_endpoints,
                host,
                port,
                socket=socket,
                config=self._config,
                network=self._network,
            ),
            tls=tls,
            alpn=self._alpn if alpn is None else alpn,
            on_error=on_error,
            strict=strict,
            grace_period=grace_period,
            waits_for_peer=False,
            on_stop=self._on_server_stops,
        )
        await self._ending.serve(server, task_status)

    def _on_server_stops(self, quic: QuicConnection, first_refused: int) -> None:
        connection = self._connections.get(quic)
        if connection is not None:
            connection._leave(first_refused)

    async def drain(self) -> None:
        """Ask the peers of all connections to open no further streams.

        A peer with a pool opens no more streams, and closes its connection once it is unused.
        New clients and new streams are still accepted: :meth:`shutdown` refuses them.
        """
        await trio.lowlevel.checkpoint()

        async def tell(connection: PhoenixConnection) -> None:
            try:
                await connection.drain()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.lowlevel.checkpoint()  # the connection has ended

        async with trio.open_nursery() as nursery:
            for connection in self.connections:
                nursery.start_soon(tell, connection)

    # ------------------------------------------------------------------ statistics

    def stats(self) -> TransportStatistics:
        """A frozen snapshot over all connections; see also ``pool.statistics()``.

        Sent bytes count when the peer has acknowledged them, received bytes when the
        application has read them.
        """
        facts = [connection.quic.statistics() for connection in self._connections.values()]
        # (A handler may go on after its connection has ended.)
        living = self.connections
        past = self._past
        sent = past.bytes_sent + sum(each.stream_bytes_acknowledged for each in facts)
        received = past.bytes_received + sum(each.stream_bytes_read for each in facts)
        now = trio.current_time()
        send_rate = 8 * self._send_window.rate(now, sent)
        receive_rate = 8 * self._receive_window.rate(now, received)
        samples = [rtt for each in living if (rtt := each.quic.rtt_smoothed) is not None]
        return TransportStatistics(
            name=self._name,
            throughput_gbps=(send_rate + receive_rate) / 1e9,
            send_rate=send_rate,
            receive_rate=receive_rate,
            latency_ms=sum(samples) / len(samples) * 1e3 if samples else None,
            active_connections=len(living),
            connections_opened=self._opened,
            total_bytes_sent=sent,
            total_bytes_received=received,
            operations=past.operations
            + sum(connection._operations for connection in self._connections.values()),
            zero_copy_operations=past.zero_copy_operations
            + sum(each.zero_copy_operations for each in facts),
            packets_lost=past.packets_lost + sum(each.packets_lost for each in facts),
            incoming_transfers=self._hub.incoming,
            outgoing_transfers=self._hub.outgoing,
            handlers_cancelled=self._ending.handlers_cancelled,
        )

    def pool_statistics(self) -> PoolStatistics:
        """The same as ``pool.statistics()``."""
        return self._pool.statistics()

    # ------------------------------------------------------------------ the end

    async def shutdown(self, grace: float = 10.0) -> None:
        """Take no new work, finish the present work within `grace` seconds, then close.

        1. At once, the transport refuses new clients.  On served connections it refuses
           streams that no handler has accepted, and all later ones, as not processed
           (:meth:`QuicConnection.refuse_streams`), and sends DRAIN.  The peers' pools give out
           no further leases on them, and :class:`Retry` repeats refused calls elsewhere.  New
           striped transfers are refused; :meth:`serve` raises :class:`ShuttingDown`.
        2. Handlers go on.  Iteration over ``incoming_streams()`` ends; messages and transfers
           still arrive, and :meth:`connect` still works.  After a handler has returned, its
           peer has ``TransportConfig.close_linger`` to close the connection.
        3. When all handlers have returned, each :meth:`serve` returns, and :meth:`connect`
           raises :class:`ShuttingDown`.  When all leases have been returned, dialled
           connections are closed in good order.
        4. When `grace` is over, remaining handlers are cancelled, and counted in
           ``TransportStatistics.handlers_cancelled``; their connections are closed with
           :attr:`ApplicationErrorCode.SHUTTING_DOWN`.  No peer can delay this step; a handler
           that shields itself from cancellation can.

        Returns when all steps are done.  The block of :func:`open_phoenix` goes on; calls on
        the transport raise :class:`trio.ClosedResourceError`.  A second call waits for the
        first one, and may shorten its time, but not lengthen it.

        Args:
          grace: seconds, 0 or more; ``math.inf``: no limit.

        Cancellation: as if `grace` were over.

        Raises:
          ValueError: `grace` is negative.
          RuntimeError: a handler of this transport called it, and would wait for itself.
        """
        check_grace("grace", grace)
        self._ending.check_caller()
        self._hub.refuse_new()
        await self._ending.run(grace, self._finish)

    async def _finish(self) -> None:
        """Close the pool and the hub after the servers have ended."""
        self._closed = True
        try:
            await self._pool.finish()
        finally:
            self._hub.close()
            await self._pool.aclose()

    async def aclose(self) -> None:
        """Close dialled connections in good order, then end the block of :func:`open_phoenix`.

        For a task inside of the block that has to stop the transport: all other tasks of the
        block are cancelled.  Idempotent.

        Cancellation: data not delivered yet is lost; the block ends all the same.
        """
        self._closed = True
        self._hub.close()
        try:
            await self._pool.aclose()
        finally:
            if self._body is not None:
                self._body.cancel()

    async def _end(self, *, at_once: bool) -> None:
        """End the servers, as their block ends."""
        self._hub.refuse_new()
        try:
            await self._ending.end_servers(at_once=at_once)
        finally:
            self._closed = True
            self._hub.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("this transport was closed")

    # ------------------------------------------------------------------ connections

    @asynccontextmanager
    async def _served(self, quic: QuicConnection) -> AsyncIterator[PhoenixConnection]:
        """A connection with its dispatching task, as long as the block lasts."""
        connection: PhoenixConnection = PhoenixConnection._create(quic, self._config, self._hub)
        connection._announce()
        self._connections[quic] = connection
        self._opened += 1
        try:
            with unwrap_lone():
                async with trio.open_nursery() as nursery:
                    connection._nursery = nursery
                    nursery.start_soon(connection._dispatch)
                    yield connection
                    if not quic.is_closed:
                        nursery.cancel_scope.cancel()
                    # (Otherwise it ends by itself, after the last arrived stream.)
        finally:
            connection._nursery = None
            del self._connections[quic]
            facts, past = quic.statistics(), self._past
            past.bytes_sent += facts.stream_bytes_acknowledged
            past.bytes_received += facts.stream_bytes_read
            past.operations += connection._operations
            past.zero_copy_operations += facts.zero_copy_operations
            past.packets_lost += facts.packets_lost

    @asynccontextmanager
    async def _dialled(
        self, endpoint: Endpoint, tls: ClientTLS | None, target: Target
    ) -> AsyncIterator[QuicConnection]:
        async with (
            endpoint.connect(
                target.host, target.port, tls=tls, alpn=self._alpn, config=self._config
            ) as quic,
            self._served(quic) as connection,
        ):
            connection._on_drain = self._pool.drain
            yield quic


@asynccontextmanager
async def open_phoenix(
    name: str = "phoenix",
    *,
    config: TransportConfig | None = None,
    tls: ClientTLS | None = None,
    server_tls: ServerTLS | None = None,
    max_connections: int | None = None,
    pool: PoolConfig | None = None,
    alpn: Sequence[str] = _ALPN,
    network: Network | None = None,
) -> AsyncIterator[PhoenixTransport]:
    """An application's transport, for the length of the block.

    When the block is left normally, connections are closed in good order: all sent data is
    delivered.  The caller's cancel scope bounds the time.  When the block is left by an
    exception, connections are aborted.

    Args:
      name: a name for logs and statistics.
      config: of all connections; see ``TransportConfig.realtime()``, ``high_throughput()``,
        ``sensors()`` and ``video()``.
      tls: trust, and this client's own certificate; default: the system's authorities.
      server_tls: the identity for :meth:`PhoenixTransport.serve`.
      max_connections: dialled connections at most; overrides that of `pool`.
      pool: limits, timeouts and back-off of dialled connections.
      alpn: protocol names, the preferred one first, for dialling and serving.  A program can
        name the version of its own protocol over ``phoenix/1``.
      network: makes the sockets; ``None``: real UDP.

    Raises:
      TypeError: an argument has the wrong type, such as a :class:`ServerTLS` as `tls`.
      ValueError: `max_connections` is out of range.
      OSError: a socket cannot be opened.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}; the rest are keyword arguments")
    config = TransportConfig() if config is None else check_config(config)
    check_client_tls(tls)
    if server_tls is not None:
        check_server_tls(server_tls, "server_tls")
    check_alpn(alpn)
    pool = PoolConfig() if pool is None else pool
    if not isinstance(pool, PoolConfig):
        raise TypeError(f"pool must be a PoolConfig, not {pool!r}")
    if max_connections is not None:
        pool = attrs.evolve(pool, max_connections=max_connections)
    transport: PhoenixTransport = PhoenixTransport._create(name, config, server_tls, network, alpn)
    with trio.CancelScope() as scope, unwrap_lone():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport._hub.give_up_in_time)
            async with Endpoint.open(config=config, network=network) as endpoint:
                dial: Any = partial(transport._dialled, endpoint, tls)
                async with open_pool(dial, pool) as transport._pool:
                    transport._body = scope
                    try:
                        yield transport
                    except BaseException:
                        await transport._end(at_once=True)
                        raise
                    else:
                        await transport._end(at_once=False)
            nursery.cancel_scope.cancel()
