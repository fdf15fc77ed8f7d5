"""Servers: a handler per connection, or a listener without a nursery.

Floor 3.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Awaitable, Callable, Sequence

import trio

from ..config import TransportConfig
from ..errors import ApplicationErrorCode, ConnectionBroken
from .connection import QuicConnection
from .datagram_socket import Network
from .endpoint import DEFAULT_ALPN, Endpoint
from .groups import unwrap_lone
from .handshake.tls import ServerTLS
from .listener import QuicListener, StreamListener
from .logs import bounded_logger
from .packet_io import UdpNetwork

__all__ = ["open_listener", "open_stream_listener", "serve"]

logger = bounded_logger("phoenix_trio")


async def serve(
    handler: Callable[[QuicConnection], Awaitable[object]],
    port: int | None = None,
    *,
    tls: ServerTLS,
    host: str | None = None,
    socket: sockets.socket | None = None,
    reuse_port: bool = False,
    alpn: Sequence[str] = DEFAULT_ALPN,
    config: TransportConfig | None = None,
    on_error: Callable[[Exception], object] | None = None,
    strict: bool = False,
    grace_period: float = 0.0,
    network: Network | None = None,
    task_status: trio.TaskStatus[list[QuicListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections and run `handler` in a task for each, until cancelled.

    When a handler returns, its connection is closed in good order
    (:meth:`QuicConnection.aclose`).  When it raises, the connection is closed with
    :attr:`ApplicationErrorCode.HANDLER_CRASHED`, the exception goes to `on_error`,
    and the server goes on; except that a :class:`ConnectionBroken` of a connection
    which has ended is no crash of the handler and is only logged at debug level.

    The server ends when it is cancelled, or when all its listeners have been
    closed and their handlers have returned.

    Args:
      handler: an async function which takes the connection.
      port: the UDP port; 0: any free one.  To be left out only with `socket`.
      tls: the server's identity.
      host: the local address or name; ``None``: all, IPv4 and IPv6.  A name with
        several addresses gets a listener for each.
      socket: a bound UDP socket to use instead of new ones, as systemd hands one to a
        service; closed at the end, see :meth:`Endpoint.open`.
      reuse_port: let other processes be bound to the same port, see :meth:`Endpoint.open`.
      alpn: protocol names, the preferred one first.
      config: limits, buffers, timers.
      on_error: called with a handler's exception; ``None``: logged with its traceback.
      strict: let a handler's exception propagate and end the server instead.
      grace_period: seconds which handlers are given to finish when the server is
        cancelled; no connection is accepted meanwhile.
      network: where sockets come from; ``None``: the real UDP.
      task_status: ``nursery.start(serve, ...)`` returns the list of listeners
        (``listener.address``, ``listener.port``) once they are open.

    Raises:
      OSError: the address is unknown or not local, or the port is in use.
      TypeError: there is neither a port nor a socket, or `socket` is not one.
      ValueError: `socket` is not fit, and was left as it was; see :meth:`Endpoint.open`.
    """
    if not grace_period >= 0:
        raise ValueError(f"grace_period must not be negative, not {grace_period!r}")
    endpoints = await _open_endpoints(
        host, port, socket=socket, reuse_port=reuse_port, config=config, network=network
    )

    async def run_handler(connection: QuicConnection) -> None:
        try:
            await handler(connection)
        except Exception as error:
            if strict:
                connection.abort(ApplicationErrorCode.HANDLER_CRASHED)
                raise
            _on_handler_error(error, connection, on_error)
        except BaseException:
            connection.abort(ApplicationErrorCode.SHUTTING_DOWN)
            raise
        else:
            await connection.aclose()

    async def accept_forever(listener: QuicListener) -> None:
        try:
            while True:
                connection = await listener.accept()
                handlers.start_soon(run_handler, connection)
                del connection  # the handler's, and not kept until the next one comes
        except trio.ClosedResourceError:
            if not listener._stopped:
                raise

    try:
        with unwrap_lone():
            async with trio.open_nursery() as outer:
                # What runs in here outlives a cancellation of the server by the grace period.
                inner = trio.CancelScope(shield=True)

                async def watch_for_cancellation() -> None:
                    try:
                        await trio.sleep_forever()
                    finally:
                        for listener in listeners:
                            listener._stop()
                        inner.deadline = trio.current_time() + grace_period

                with inner:
                    async with trio.open_nursery() as drivers:
                        listeners: list[QuicListener] = []
                        outer.start_soon(watch_for_cancellation)
                        try:
                            for endpoint in endpoints:
                                await drivers.start(endpoint._driver.run)
                                listeners.append(endpoint.listen(tls=tls, alpn=alpn))
                            task_status.started(listeners)
                            async with trio.open_nursery() as handlers:
                                for listener in listeners:
                                    handlers.start_soon(accept_forever, listener)
                            for endpoint in endpoints:
                                await endpoint._driver.linger()
                        finally:
                            for endpoint in endpoints:
                                endpoint.close()
                            drivers.cancel_scope.cancel()
                outer.cancel_scope.cancel()
    finally:
        for endpoint in endpoints:
            endpoint.close()
    await trio.lowlevel.checkpoint_if_cancelled()


def _on_handler_error(
    error: Exception,
    connection: QuicConnection,
    on_error: Callable[[Exception], object] | None,
) -> None:
    remaining: BaseException | None = error
    if connection.close_reason is not None:
        # The peer has gone, which the call that the handler was in has raised.
        if isinstance(error, BaseExceptionGroup):
            remaining = error.split(ConnectionBroken)[1]
        elif isinstance(error, ConnectionBroken):
            remaining = None
    connection.abort(ApplicationErrorCode.HANDLER_CRASHED)
    if remaining is None:
        logger.debug("connection with %s ended: %s", connection.peer_address, error)
    elif on_error is not None:
        on_error(error)
    else:
        logger.error(
            "the handler of the connection with %s crashed",
            connection.peer_address,
            exc_info=error,
        )


async def open_listener(
    port: int | None = None,
    *,
    tls: ServerTLS,
    host: str | None = None,
    socket: sockets.socket | None = None,
    reuse_port: bool = False,
    alpn: Sequence[str] = DEFAULT_ALPN,
    config: TransportConfig | None = None,
    network: Network | None = None,
) -> QuicListener:
    """Open a listener for connections, to be used with :func:`trio.serve_listeners` for instance.

    There is no nursery behind it: the socket is served by whichever task waits in
    a call on the listener, its connections or their streams.  A program in which
    for a while no task does so answers nothing meanwhile; :func:`serve` and
    :meth:`Endpoint.open` have no such limit.

    The socket is closed when the listener and all its connections are.

    Args: as for :func:`serve`.

    Raises:
      OSError: the address is unknown or not local, or the port is in use.
      TypeError, ValueError: as for :func:`serve`.
    """
    endpoint = await Endpoint._open(
        host,
        _port(port, socket),
        socket=socket,
        reuse_port=reuse_port,
        config=config,
        network=network,
    )
    try:
        listener = endpoint.listen(tls=tls, alpn=alpn)
    except BaseException:
        endpoint.close()
        raise
    listener._owns_socket = True
    return listener


async def open_stream_listener(
    port: int | None = None,
    *,
    tls: ServerTLS,
    host: str | None = None,
    socket: sockets.socket | None = None,
    reuse_port: bool = False,
    alpn: Sequence[str] = DEFAULT_ALPN,
    config: TransportConfig | None = None,
    network: Network | None = None,
) -> StreamListener:
    """Open a listener which accepts streams, for code which knows only Trio's streams.

    ``await trio.serve_listeners(handler, [await open_stream_listener(...)])`` runs
    `handler` for every bidirectional stream of every connection.  See
    :func:`open_listener` for arguments, errors, and the task which serves the socket.
    """
    listener = await open_listener(
        port,
        tls=tls,
        host=host,
        socket=socket,
        reuse_port=reuse_port,
        alpn=alpn,
        config=config,
        network=network,
    )
    stream_listener: StreamListener = StreamListener._create(listener)
    return stream_listener


def _port(port: int | None, socket: sockets.socket | None) -> int:
    if port is None:
        if socket is None:
            raise TypeError("a port is needed, or a socket")
        return 0
    return port


async def _open_endpoints(
    host: str | None,
    port: int | None,
    *,
    socket: sockets.socket | None,
    reuse_port: bool,
    config: TransportConfig | None,
    network: Network | None,
) -> list[Endpoint]:
    """One endpoint per local address of `host`, all on the same port; or one for the socket."""
    port = _port(port, socket)
    if socket is not None:
        opened = await Endpoint._open(
            host, port, socket=socket, reuse_port=reuse_port, config=config, network=network
        )
        return [opened]
    network = UdpNetwork() if network is None else network
    hosts: list[str | None] = [None]
    if host is not None:
        hosts = list(dict.fromkeys(address[0] for address in await network.resolve(host, port)))
    endpoints: list[Endpoint] = []
    try:
        for address in hosts:
            endpoints.append(
                await Endpoint._open(
                    address,
                    endpoints[0].port if endpoints else port,
                    reuse_port=reuse_port,
                    config=config,
                    network=network,
                )
            )
    except BaseException:
        for endpoint in endpoints:
            endpoint.close()
        raise
    return endpoints
