"""Servers: a handler per connection, or a listener without a nursery.

Floor 3.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from ..config import TransportConfig
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
    and the server goes on; except that a :class:`ConnectionBroken` of a connection
    which has ended is no crash of the handler and is only logged at debug level.

    The server ends when it is cancelled, or when all its listeners have been
    closed and their handlers have returned.

    Cancellation: clients which dial are refused from then on, and so are new streams
    (:meth:`QuicConnection.refuse_streams`): iterating over ``incoming_streams()`` ends.
    Handlers have `grace_period` seconds to finish, delivery of what they sent included.  When
    one has returned, its connection refuses streams until the peer has closed it, for
    ``TransportConfig.close_linger`` at most, so that what the peer sends meanwhile is not lost;
    those which are left are cancelled then, and their connections are closed with
    :attr:`ApplicationErrorCode.SHUTTING_DOWN`.

    Args:
      handler: an async function which takes the connection.
      port: the UDP port; 0: any free one.  To be left out only with `socket`.
      tls: the server's identity.
      host: the local address or name; ``None``: all, IPv4 and IPv6.  A name with
        several addresses gets a listener for each.
      socket: a bound UDP socket to use instead of new ones, as systemd hands one to a
        service, or that of a :class:`Worker`; closed at the end, see :meth:`Endpoint.open`.
      reuse_port: let other processes be bound to the same port, see :meth:`Endpoint.open`.
      alpn: protocol names, the preferred one first.
      config: limits, buffers, timers.
      preferred_address: another address of this host, to which clients are asked to move after
        the handshake, see :meth:`Endpoint.listen`.
      on_error: called with a handler's exception; ``None``: logged with its traceback.
      strict: let a handler's exception propagate and end the server instead.
      grace_period: seconds which handlers are given to finish when the server is
        cancelled; ``math.inf``: as long as they take.
      network: where sockets come from; ``None``: the real UDP.
      task_status: ``nursery.start(serve, ...)`` returns the list of listeners
        (``listener.address``, ``listener.port``) once they are open.

    Raises:
      OSError: the address is unknown or not local, or the port is in use.
      TypeError: there is neither a port nor a socket, or `socket` is not one.
      ValueError: `socket` is not fit, and was left as it was; see :meth:`Endpoint.open`.
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
