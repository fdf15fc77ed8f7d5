"""Listeners: connections, or flat streams, as :func:`trio.serve_listeners` takes them.

Floor 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import final

import trio

from ..errors import ApplicationErrorCode
from ..metrics import EndpointStatistics
from .connection import QuicConnection, QuicStream, refuse
from .construction import NoPublicConstructor
from .driver import SocketDriver
from .path_address import SocketAddress

__all__ = ["QuicListener", "StreamListener"]


@final
class QuicListener(trio.abc.Listener[QuicConnection], metaclass=NoPublicConstructor):
    """Accepts connections on an endpoint's socket.

    Obtained from :func:`open_listener`, :meth:`Endpoint.listen`, or started by
    :func:`serve`.  A connection can be accepted when its handshake is complete (or,
    with early data, when its first 0-RTT data has arrived).
    """

    def __init__(self, driver: SocketDriver) -> None:
        self._driver = driver
        self._queue: deque[QuicConnection] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._take: Callable[[QuicConnection], None] | None = None
        self._stopped = False
        self._owns_socket = False

    def __repr__(self) -> str:
        state = "closed" if self._stopped else "open"
        return f"<QuicListener on {self.address} ({state}, {len(self._queue)} connections wait)>"

    @property
    def address(self) -> SocketAddress:
        """The local address, ``(host, port)`` or longer for IPv6."""
        return self._driver.socket.address

    @property
    def port(self) -> int:
        """The local UDP port."""
        return self._driver.socket.address[1]

    def statistics(self) -> EndpointStatistics:
        """A frozen snapshot of the endpoint's counters."""
        return self._driver.statistics()

    async def accept(self) -> QuicConnection:
        """The next connection; close it when done with it.

        A listener from :func:`open_listener` has no nursery: its socket is driven
        while a task waits in a call of this library, such as this one.

        Cancellation: no connection is lost.

        Raises:
          trio.ClosedResourceError: the listener was closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._stopped:
                raise trio.ClosedResourceError("this listener was closed")
            await self._driver.wait(self._lot)
        return self._queue.popleft()

    async def aclose(self) -> None:
        """Stop accepting.  Waiting connections are closed, accepted ones stay."""
        self._stop()
        await trio.lowlevel.checkpoint()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._driver.refuse_clients()
        while self._queue:
            self._queue.popleft().abort(ApplicationErrorCode.NOT_PROCESSED)
        self._lot.unpark_all()
        if self._owns_socket:
            self._driver.close_when_unused = True
            self._driver.close_if_unused()

    def _watch(self, connection: QuicConnection) -> None:
        def on_ready() -> None:
            if self._stopped:
                connection.abort(ApplicationErrorCode.NOT_PROCESSED)
            elif self._take is not None:
                self._take(connection)
            elif len(self._queue) >= self._driver.config.accept_backlog:
                self._driver.note_refused()
                connection.abort(ApplicationErrorCode.NOT_PROCESSED, "the accept backlog is full")
            else:
                self._queue.append(connection)
                self._lot.unpark_all()

        connection._on_ready = on_ready


@final
class StreamListener(trio.abc.Listener[QuicStream], metaclass=NoPublicConstructor):
    """Accepts the bidirectional streams of all connections, for code written for streams.

    Obtained from :func:`open_stream_listener`.  A connection is closed when its
    peer closes it; after :meth:`aclose`, as soon as it has no open stream.
    """

    def __init__(self, listener: QuicListener) -> None:
        self._listener = listener
        self._queue: deque[QuicStream] = deque()
        self._connections: set[QuicConnection] = set()
        self._lot = trio.lowlevel.ParkingLot()
        self._stopped = False
        # Connections are taken as soon as they are ready, without a task for it.
        listener._take = self._add

    def __repr__(self) -> str:
        state = "closed" if self._stopped else "open"
        return f"<StreamListener on {self.address} ({state}, {len(self._queue)} streams wait)>"

    @property
    def address(self) -> SocketAddress:
        """The local address, ``(host, port)`` or longer for IPv6."""
        return self._listener.address

    @property
    def port(self) -> int:
        """The local UDP port."""
        return self._listener.port

    def statistics(self) -> EndpointStatistics:
        """A frozen snapshot of the endpoint's counters."""
        return self._listener.statistics()

    async def accept(self) -> QuicStream:
        """The next stream of any peer; close it when done with it.

        The socket is driven while a task waits in a call of this library, such as this
        one.

        Cancellation: no stream is lost.

        Raises:
          trio.ClosedResourceError: the listener was closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._stopped:
                raise trio.ClosedResourceError("this listener was closed")
            await self._listener._driver.wait(self._lot)
        return self._queue.popleft()

    async def aclose(self) -> None:
        """Stop accepting.  Waiting streams are reset, accepted ones stay."""
        if not self._stopped:
            self._stopped = True
            self._listener._stop()
            while self._queue:
                refuse(self._queue.popleft())
            for connection in list(self._connections):
                connection._close_when_idle = True
                connection._close_if_idle()
            self._lot.unpark_all()
        await trio.lowlevel.checkpoint()

    def _add(self, connection: QuicConnection) -> None:
        self._connections.add(connection)

        def take(stream: QuicStream) -> None:
            if self._stopped:
                refuse(stream)
            else:
                self._queue.append(stream)
                self._lot.unpark_all()

        connection._take_stream = take
        connection._on_end = lambda: self._connections.discard(connection)
        # Streams from before the connection was ready.
        while connection._incoming:
            take(connection._incoming.popleft())
