"""Runs a handler for each connection, and ends in good order: the life of one server.

Floor 3.  For :func:`phoenix_trio.serve` and for the application's transport.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from ..errors import ApplicationErrorCode, ConnectionBroken, ShuttingDown, StreamBroken
from .arguments import check_alpn, check_handler, check_server_tls
from .connection import QuicConnection
from .endpoint import Endpoint
from .groups import unwrap_lone
from .handshake.tls import ServerTLS
from .listener import QuicListener
from .logs import bounded_logger
from .preferred_address import PreferredAddressOption

__all__ = ["Server", "check_grace", "wait_for_peer_to_close"]

logger: logging.Logger = bounded_logger("phoenix_trio")

#: With these codes a peer lets go of a stream which it does not need any more.
_LEAVING = (ApplicationErrorCode.NO_ERROR, ApplicationErrorCode.CANCELLED)


def check_grace(name: str, value: float) -> float:
    """Seconds, 0 or more; ``math.inf`` is allowed."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return float(value)


async def wait_for_peer_to_close(connection: QuicConnection) -> None:
    """Wait for the peer to close the connection first; refuse its streams until then.

    Requests on the way when a connection is closed are lost without an answer.  After the
    peer has closed, there are none.  Returns after ``close_linger`` at the latest.
    """
    with trio.move_on_after(connection._engine.config.close_linger):
        await connection.wait_closed()


class Server:
    """Listens, and runs `handler` in a task for each connection.

    Args:
      handler: an async function of the connection.
      open_endpoints: opens the sockets.
      tls, alpn, preferred_address, on_error, strict, grace_period: see
        :func:`phoenix_trio.serve`.
      waits_for_peer: whether the server waits for the peer to close the connection when a
        handler returns while the server stops; otherwise `handler` itself waits.
      on_stop: called for each served connection when the server stops, with the ID of the
        first refused stream.
    """

    def __init__(
        self,
        handler: Callable[[QuicConnection], Awaitable[object]],
        open_endpoints: Callable[[], Awaitable[list[Endpoint]]],
        *,
        tls: ServerTLS,
        alpn: Sequence[str],
        preferred_address: PreferredAddressOption | None = None,
        on_error: Callable[[Exception], object] | None,
        strict: bool,
        grace_period: float,
        waits_for_peer: bool = True,
        on_stop: Callable[[QuicConnection, int], object] | None = None,
    ) -> None:
        check_handler(handler)
        check_server_tls(tls)
        check_alpn(alpn)
        self._handler = handler
        self._open_endpoints = open_endpoints
        self._tls = tls
        self._alpn = alpn
        self._preferred_address = preferred_address
        self._on_error = on_error
        self._strict = strict
        self._waits_for_peer = waits_for_peer
        self._on_stop = on_stop
        self._listeners: list[QuicListener] = []
        self._served: dict[QuicConnection, None] = {}
        self._handlers: trio.Nursery | None = None
        # Its tasks go on for the grace period after a cancellation of the server.
        self._scope = trio.CancelScope(shield=True)
        self.grace_period: float = check_grace("grace_period", grace_period)
        """Seconds for handlers to finish after a cancellation of :meth:`run`."""
        self.is_stopping: bool = False
        """Whether :meth:`stop` was called."""
        self.handlers_cancelled: int = 0
        """Handlers that had not finished at the end of the grace period."""
        self.ended: trio.Event = trio.Event()
        """Set when :meth:`run` is over."""

    def stop(self, deadline: float) -> None:
        """Take no new work from now on, and end when all handlers have returned.

        Args:
          deadline: when remaining handlers are cancelled; of several calls, the earliest
            deadline counts.
        """
        self._scope.deadline = min(self._scope.deadline, deadline)
        if self.is_stopping:
            return
        self.is_stopping = True
        for listener in self._listeners:
            listener._stop()
        for connection in self._served:
            self._refuse_streams(connection)

    def runs(self, task: trio.lowlevel.Task) -> bool:
        """Whether `task` is a handler of this server, or was started by one."""
        nursery = task.parent_nursery
        while nursery is not None and nursery is not self._handlers:
            nursery = nursery.parent_task.parent_nursery
        return nursery is not None

    def _refuse_streams(self, connection: QuicConnection) -> None:
        if not connection.is_closed:
            first = connection.refuse_streams()
            if self._on_stop is not None:
                self._on_stop(connection, first)

    async def run(
        self, *, task_status: trio.TaskStatus[list[QuicListener]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled or stopped, or until all listeners were closed.

        Raises:
          OSError: the address is unknown or not local, or the port is in use.
          ShuttingDown: :meth:`stop` was called before the sockets were open.
        """
        endpoints: list[Endpoint] = []
        try:
            endpoints = await self._open_endpoints()
            if self.is_stopping:
                raise ShuttingDown("the server was stopped before it listened")
            with unwrap_lone():
                async with trio.open_nursery() as outer:
                    outer.start_soon(self._watch_for_cancellation)
                    with self._scope:
                        await self._run(endpoints, task_status)
                    outer.cancel_scope.cancel()
        finally:
            for endpoint in endpoints:
                endpoint.close()
            if self.handlers_cancelled:
                logger.info(
                    "%d handlers were cancelled at the end of the grace period",
                    self.handlers_cancelled,
                )
            self.ended.set()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _watch_for_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stop(trio.current_time() + self.grace_period)

    async def _run(
        self, endpoints: list[Endpoint], task_status: trio.TaskStatus[list[QuicListener]]
    ) -> None:
        async with trio.open_nursery() as drivers:
            try:
                for endpoint in endpoints:
                    await drivers.start(endpoint._driver.run)
                    self._listeners.append(
                        endpoint.listen(
                            tls=self._tls,
                            alpn=self._alpn,
                            preferred_address=self._preferred_address,
                        )
                    )
                if self.is_stopping:
                    for listener in self._listeners:
                        listener._stop()
                task_status.started(self._listeners)
                async with trio.open_nursery() as handlers:
                    self._handlers = handlers
                    for listener in self._listeners:
                        handlers.start_soon(self._accept_forever, listener, handlers)
                for endpoint in endpoints:
                    await endpoint._driver.linger()
            finally:
                for endpoint in endpoints:
                    endpoint.close()
                drivers.cancel_scope.cancel()

    async def _accept_forever(self, listener: QuicListener, handlers: trio.Nursery) -> None:
        try:
            while True:
                connection = await listener.accept()
                handlers.start_soon(self._run_handler, connection)
                del connection  # else this frame keeps it until the next one arrives
        except trio.ClosedResourceError:
            if not listener._stopped:
                raise

    async def _run_handler(self, connection: QuicConnection) -> None:
        if self.is_stopping:
            connection.abort(ApplicationErrorCode.NOT_PROCESSED)
            return
        self._served[connection] = None
        try:
            await self._handler(connection)
        except Exception as error:
            if self._strict:
                connection.abort(ApplicationErrorCode.HANDLER_CRASHED)
                raise
            _on_handler_error(error, connection, self._on_error)
        except BaseException:
            if self._is_over_time:
                self.handlers_cancelled += 1
            connection.abort(ApplicationErrorCode.SHUTTING_DOWN)
            raise
        else:
            if self.is_stopping and self._waits_for_peer:
                await wait_for_peer_to_close(connection)
            await connection.aclose()
        finally:
            del self._served[connection]

    @property
    def _is_over_time(self) -> bool:
        return self.is_stopping and self._scope.deadline <= trio.current_time()


def _on_handler_error(
    error: Exception,
    connection: QuicConnection,
    on_error: Callable[[Exception], object] | None,
) -> None:
    remaining: BaseException | None = error
    # (An error of a channel over a stream is caused by that of the stream.)
    if isinstance(error, BaseExceptionGroup):
        remaining = error.split(lambda each: _is_departure(each, connection))[1]
    elif _is_departure(error, connection):
        remaining = None
    if remaining is None:
        if connection.close_reason is not None:
            logger.debug("connection with %s ended: %s", connection.peer_address, error)
            return
        connection.abort(ApplicationErrorCode.CANCELLED)
        logger.info(
            "the handler of the connection with %s ended, because the peer has left a stream: %s;"
            " catch trio.BrokenResourceError around the work on one stream to keep the others",
            connection.peer_address,
            error,
        )
        return
    connection.abort(ApplicationErrorCode.HANDLER_CRASHED)
    if on_error is not None:
        on_error(error)
    else:
        logger.error(
            "the handler of the connection with %s crashed",
            connection.peer_address,
            exc_info=error,
        )


def _is_departure(error: BaseException | None, connection: QuicConnection) -> bool:
    """Whether an error says only that the peer has gone, or has left the stream in use."""
    while isinstance(error, trio.BrokenResourceError):
        if isinstance(error, ConnectionBroken):
            return connection.close_reason is not None
        if isinstance(error, StreamBroken):
            return error.error_code in _LEAVING
        error = error.__cause__
    return False
