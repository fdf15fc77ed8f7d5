"""Servers: a handler per connection, or a listener without a nursery.

Floor 3.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from ..config import TransportConfig
from .arguments import check_local_address
from .connection import QuicConnection
from .datagram_socket import Network
from .endpoint import DEFAULT_ALPN, Endpoint
from .handshake.tls import ServerTLS
from .listener import QuicListener, StreamListener
from .packet_io import UdpNetwork
from .preferred_address import PreferredAddressOption
from .server import Server

__all__ = ["open_endpoints", "open_listener", "open_stream_listener", "serve"]


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
    preferred_address: PreferredAddressOption | None = None,
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
    and the server goes on.  A peer that leaves is no crash: the :class:`ConnectionBroken` of
    an ended connection is only logged, at debug level.  A :class:`StreamBroken` with the code
    ``NO_ERROR`` or ``CANCELLED``, and an error that it has caused, are logged at info level,
    and the handler's connection is closed with :attr:`ApplicationErrorCode.CANCELLED`.

    The server ends when it is cancelled, or when all its listeners have been
    closed and their handlers have returned.

    Cancellation: from then on the server refuses new clients and new streams
    (:meth:`QuicConnection.refuse_streams`): iterating over ``incoming_streams()`` ends.
    Handlers have `grace_period` seconds to finish, including the delivery of sent data.  After
    a handler has returned, its connection refuses streams until the peer closes it, for
    ``TransportConfig.close_linger`` at most.  So the peer learns that its last requests were
    not processed.  After `grace_period`, remaining handlers are cancelled, and their
    connections closed with :attr:`ApplicationErrorCode.SHUTTING_DOWN`.

    Args:
      handler: an async function of the connection.
      port: the UDP port; 0: any free one.  Required unless `socket` is given.
      tls: the server's identity.
      host: the local address or name; ``None``: all, IPv4 and IPv6.  A name with
        several addresses gets a listener for each.
      socket: a bound UDP socket to use instead of new ones, for example one from systemd, or
        that of a :class:`Worker`; closed at the end, see :meth:`Endpoint.open`.
      reuse_port: let other processes bind to the same port, see :meth:`Endpoint.open`.
      alpn: protocol names, the preferred one first.
      config: limits, buffers, timers.
      preferred_address: another address of this host, to which clients are asked to move after
        the handshake, see :meth:`Endpoint.listen`.
      on_error: called with a handler's exception; ``None``: logged with its traceback.
      strict: let a handler's exception propagate and end the server instead.
      grace_period: seconds for handlers to finish when the server is cancelled;
        ``math.inf``: no limit.
      network: makes the sockets; ``None``: real UDP.
      task_status: ``nursery.start(serve, ...)`` returns the list of listeners
        (``listener.address``, ``listener.port``) once they are open.

    Raises:
      OSError: the address is unknown or not local, or the port is in use.
      TypeError: there is neither a port nor a socket, or an argument has the wrong type, such
        as a :class:`ClientTLS` as `tls`.
      ValueError: `socket` cannot be used, and is unchanged; see :meth:`Endpoint.open`.
        Or `grace_period` is negative, or `preferred_address` is none.
    """
    server = Server(
        handler,
        partial(
            open_endpoints,
            host,
            port,
            socket=socket,
            reuse_port=reuse_port,
            config=config,
            network=network,
        ),
        tls=tls,
        alpn=alpn,
        preferred_address=preferred_address,
        on_error=on_error,
        strict=strict,
        grace_period=grace_period,
    )
    await server.run(task_status=task_status)


async def open_listener(
    port: int | None = None,
    *,
    tls: ServerTLS,
    host: str | None = None,
    socket: sockets.socket | None = None,
    reuse_port: bool = False,
    alpn: Sequence[str] = DEFAULT_ALPN,
    config: TransportConfig | None = None,
    preferred_address: PreferredAddressOption | None = None,
    network: Network | None = None,
) -> QuicListener:
    """Open a listener for connections, for example for :func:`trio.serve_listeners`.

    It has no nursery.  A task that waits in a call on the listener, its connections or their
    streams drives the socket.  While no task waits in such a call, packets are not answered;
    :func:`serve` and :meth:`Endpoint.open` have no such limit.

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
        listener = endpoint.listen(tls=tls, alpn=alpn, preferred_address=preferred_address)
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
    preferred_address: PreferredAddressOption | None = None,
    network: Network | None = None,
) -> StreamListener:
    """Open a listener for streams, for code that is written for Trio's streams.

    ``await trio.serve_listeners(handler, [await open_stream_listener(...)])`` runs
    `handler` for every bidirectional stream of every connection.  See
    :func:`open_listener` for arguments, errors, and the task that drives the socket.
    """
    listener = await open_listener(
        port,
        tls=tls,
        host=host,
        socket=socket,
        reuse_port=reuse_port,
        alpn=alpn,
        config=config,
        preferred_address=preferred_address,
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


async def open_endpoints(
    host: str | None,
    port: int | None,
    *,
    socket: sockets.socket | None = None,
    reuse_port: bool = False,
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
    check_local_address(host, port)
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
