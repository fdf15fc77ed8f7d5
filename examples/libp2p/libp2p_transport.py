"""A QUIC transport for py-libp2p on phoenix_trio, in place of its own one.

    host = new_host(key_pair=key_pair, transports=[QuicTransport(key_pair.private_key)])

libp2p runs protocols on streams, and has interfaces for what carries them: ITransport dials
and listens, IMuxedConn is a connection with streams, IMuxedStream one of those.  Each of
ours hands on what phoenix_trio has already; errors get libp2p's names.  The peers' identity
is verified inside the handshake (see libp2p_identity.py).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

import trio
from libp2p.abc import IListener, IMuxedConn, IMuxedStream, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from libp2p.transport.exceptions import OpenConnectionError
from libp2p_identity import check_peer, make_certificate, peer_of
from multiaddr import Multiaddr

import phoenix_trio

ALPN = ("libp2p",)
CONFIG = phoenix_trio.TransportConfig(keep_alive=10.0)
#: Seconds in which a connection that is closed may deliver what was written.
CLOSE_TIMEOUT = 5.0

Handler = Callable[["Connection"], Awaitable[None]]


def address_of(maddr: Multiaddr) -> tuple[str, int] | None:
    """Host and port of ``/ip4/.../udp/.../quic-v1``; ``None``: it is something else."""
    names = [protocol.name for protocol in maddr.protocols()]
    if names[:3] not in (["ip4", "udp", "quic-v1"], ["ip6", "udp", "quic-v1"]):
        return None
    if names[3:] not in ([], ["p2p"]):
        return None  # WebTransport, or a relay
    return str(maddr.value_for_protocol(names[0])), int(maddr.value_for_protocol("udp"))


def multiaddr_of(address: tuple[str, int] | tuple[str, int, int, int]) -> Multiaddr:
    version = ipaddress.ip_address(address[0].partition("%")[0]).version
    return Multiaddr(f"/ip{version}/{address[0]}/udp/{address[1]}/quic-v1")


@contextmanager
def stream_errors() -> Iterator[None]:
    try:
        yield
    except trio.ClosedResourceError as error:
        raise MuxedStreamClosed(str(error)) from error
    except trio.BrokenResourceError as error:
        raise MuxedStreamReset(str(error)) from error


class Stream(IMuxedStream):
    """One stream of a connection."""

    def __init__(self, connection: Connection, stream: phoenix_trio.QuicStream) -> None:
        self.muxed_conn = connection
        self._stream = stream
        self.is_closed = False

    async def read(self, n: int | None = None) -> bytes:
        """At least one byte and at most `n`, as many as are there."""
        with stream_errors():
            data = await self._stream.receive_some(n if n is not None and n > 0 else None)
        if not data:
            raise MuxedStreamEOF("the peer has sent all")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        with stream_errors():
            await self._stream.send_all(data)

    async def close_write(self) -> None:
        with stream_errors():
            await self._stream.send_eof()

    async def close(self) -> None:
        self.is_closed = True
        await self._stream.aclose()

    async def reset(self) -> None:
        self.is_closed = True
        self._stream.reset()
        self._stream.stop_receiving()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("with Trio, the caller's cancel scope is the deadline")

    def get_remote_address(self) -> tuple[str, int]:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await (self.close() if exc_type is None else self.reset())


class Connection(IMuxedConn):
    """A connection whose handshake is complete, and whose peer is known therefore."""

    def __init__(self, quic: phoenix_trio.QuicConnection, *, is_initiator: bool) -> None:
        certificate = quic.peer_certificate
        assert certificate is not None
        self._quic = quic
        self._is_initiator = is_initiator
        self.peer_id = peer_of([certificate])
        self.event_started = trio.Event()
        self.negotiated_security_protocol = "/tls/1.0.0"

    @property
    def is_initiator(self) -> bool:
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        return not self._quic.is_closed

    @property
    def is_closed(self) -> bool:
        return self._quic.is_closed

    async def start(self) -> None:
        self.event_started.set()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._quic.aclose()

    async def open_stream(self) -> Stream:
        with connection_errors():
            return Stream(self, await self._quic.open_stream())

    async def accept_stream(self) -> Stream:
        with connection_errors():
            return Stream(self, await self._quic.accept_stream())

    def get_remote_address(self) -> tuple[str, int]:
        host, port, *_ = self._quic.peer_address
        return host, port

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [multiaddr_of(self._quic.peer_address)]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


@contextmanager
def connection_errors() -> Iterator[None]:
    try:
        yield
    except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
        raise MuxedConnUnavailable(str(error)) from error


class Listener(IListener):
    """Takes connections on one address."""

    def __init__(self, transport: QuicTransport, handler: Handler) -> None:
        self._transport = transport
        self._handler = handler
        self._endpoint: phoenix_trio.Endpoint | None = None

    async def listen(self, maddr: Multiaddr) -> None:
        address = address_of(maddr)
        if address is None:
            raise OpenConnectionError(f"{maddr} is no address of QUIC version 1")
        self._endpoint = await self._transport.open_endpoint(*address)
        listener = self._endpoint.listen(tls=self._transport.server_tls, alpn=ALPN)
        self._transport.nursery.start_soon(self._accept, listener)

    async def _accept(self, listener: phoenix_trio.QuicListener) -> None:
        while True:
            try:
                quic = await listener.accept()
            except trio.ClosedResourceError:
                return
            connection = Connection(quic, is_initiator=False)
            self._transport.nursery.start_soon(self._handler, connection)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return () if self._endpoint is None else (multiaddr_of(self._endpoint.address),)

    async def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
        await trio.lowlevel.checkpoint()


class QuicTransport(ITransport):
    """Dials and listens, in the nursery which the swarm hands over when it starts.

    Args:
      private_key: this peer's libp2p identity.
      config: of all its connections.
    """

    provides_native_muxing = True

    def __init__(
        self, private_key: PrivateKey, config: phoenix_trio.TransportConfig = CONFIG
    ) -> None:
        self._certificate, self._key = make_certificate(private_key)
        self._config = config
        self._nursery: trio.Nursery | None = None
        self._dialler: phoenix_trio.Endpoint | None = None
        self._dialler_lock = trio.Lock()
        self._closing = trio.Event()
        self.server_tls = phoenix_trio.ServerTLS(self._certificate, self._key, verify=check_peer)

    def set_background_nursery(self, nursery: trio.Nursery) -> None:
        """Called by the swarm before anything else."""
        self._nursery = nursery

    @property
    def nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("this transport's host does not run")
        return self._nursery

    async def dial(self, maddr: Multiaddr) -> Connection:
        address = address_of(maddr)
        name = maddr.get_peer_id()
        if address is None or name is None:
            raise OpenConnectionError(f"{maddr} is no address of QUIC version 1 with a peer ID")
        tls = phoenix_trio.ClientTLS(
            certificate=self._certificate,
            private_key=self._key,
            verify=partial(check_peer, expected=ID.from_string(name)),
        )
        try:
            async with self._dialler_lock:
                if self._dialler is None:
                    self._dialler = await self.open_endpoint(None, 0)
            quic: phoenix_trio.QuicConnection = await self.nursery.start(
                self._hold_connection, self._dialler, *address, tls
            )
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise OpenConnectionError(f"{maddr} could not be dialled: {error}") from error
        return Connection(quic, is_initiator=True)

    def create_listener(self, handler_function: Handler) -> Listener:
        return Listener(self, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        return address_of(maddr) is not None

    def can_listen(self, maddr: Multiaddr) -> bool:
        return address_of(maddr) is not None

    def protocols(self) -> list[str]:
        return ["quic-v1"]

    async def close(self) -> None:
        """Close all connections and sockets in good order."""
        self._closing.set()
        await trio.lowlevel.checkpoint()

    async def open_endpoint(self, host: str | None, port: int) -> phoenix_trio.Endpoint:
        """A socket which stays open until the transport is closed."""
        endpoint: phoenix_trio.Endpoint = await self.nursery.start(self._hold_endpoint, host, port)
        return endpoint

    async def _hold_endpoint(
        self,
        host: str | None,
        port: int,
        task_status: trio.TaskStatus[phoenix_trio.Endpoint] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with phoenix_trio.Endpoint.open(host, port, config=self._config) as endpoint:
            task_status.started(endpoint)
            await self._closing.wait()

    async def _hold_connection(
        self,
        endpoint: phoenix_trio.Endpoint,
        host: str,
        port: int,
        tls: phoenix_trio.ClientTLS,
        task_status: trio.TaskStatus[phoenix_trio.QuicConnection] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with endpoint.connect(host, port, tls=tls, alpn=ALPN) as quic:
            task_status.started(quic)
            await quic.wait_closed()
