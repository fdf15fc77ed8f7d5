"""Presents the receiving part of a stream as a Trio stream.

Floor 3.  Contains no protocol: reading takes bytes from a buffer bounded by flow control, and
waits while it is empty.
"""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

import trio

from ..errors import ApplicationErrorCode, StreamBroken, StreamTooLarge
from .construction import NoPublicConstructor
from .receive_buffer import ReceiveBuffer
from .stream_errors import check_error_code, check_limit, fresh
from .stream_host import StreamHost
from .waiter import Lot, Waiter

__all__ = ["ReceivingPart"]

#: The most bytes that ``receive_some()`` returns without an argument: enough to keep calls few.
DEFAULT_RECEIVE_SIZE = 64 * 1024

_BUSY = (
    "another task is already receiving from this stream: receive in one task, and pass the"
    " data on, for instance through trio.open_memory_channel()"
)

ConnectionT = TypeVar("ConnectionT", bound=StreamHost)


class ReceivingPart(trio.abc.ReceiveStream, Generic[ConnectionT], metaclass=NoPublicConstructor):
    """The receiving part of a stream (RFC 9000 section 3.2); for users: :class:`ReceiveStream`.

    Received data is buffered up to the flow-control limits of the connection, which is told of
    each read.
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_buffer",
        "_busy",
        "_closed",
        "_connection",
        "_credited",
        "_done",
        "_error",
        "_id",
        "_limit",
        "_waiter",
    )

    def __init__(self, connection: ConnectionT, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._buffer = ReceiveBuffer()
        self._credited = 0  # bytes at the front that were already credited to the peer
        self._limit: int | None = None  # of the running receive_all()
        self._at_end = False
        self._error: StreamBroken | None = None
        self._closed = False
        self._done = False
        self._busy = False
        self._waiter: Lot = Waiter()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id} ({self._state})>"

    @property
    def _state(self) -> str:
        if self._error is not None:
            return "reset by the peer"
        if self._closed:
            return "closed"
        if self._done:
            return "at its end"
        # (A stream never accepted before the end of its connection has no such attribute.)
        connection = getattr(self, "_connection", None)
        state = "open" if connection and not connection._ended else "connection closed"
        return f"{state}, {self._buffer.size} bytes to read"

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._id

    @property
    def connection(self) -> ConnectionT:
        """The connection this stream belongs to."""
        return self._connection

    @property
    def is_readable(self) -> bool:
        """Whether :meth:`receive_some` would return, or raise, without waiting for the peer.

        For a pool of idle streams, where no data is due: a readable one was ended, reset, or
        lost with its connection, and must not be used again.
        """
        return self._is_ready()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least one byte, or ``b""`` at the end of the stream.

        Args:
          max_bytes: the most bytes to return; ``None`` lets the stream choose.

        Cancellation: nothing is lost; the next call returns the data.

        Raises:
          trio.BusyResourceError: another task is receiving from this stream.
          trio.ClosedResourceError: the stream, or the connection, was closed here.
          StreamReset: the peer reset the stream; unread data is discarded.
          ConnectionBroken: the connection ended before the stream did, and all data that had
            arrived was read.
        """
        if max_bytes is None:
            max_bytes = DEFAULT_RECEIVE_SIZE
        elif not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
            raise TypeError(f"max_bytes must be a positive integer or None, not {max_bytes!r}")
        elif max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive integer or None, not {max_bytes}")
        if self._busy:
            raise trio.BusyResourceError(_BUSY)
        self._busy = True
        try:
            if self._is_ready():
                await trio.lowlevel.checkpoint()
            else:
                connection = self._connection
                while not self._is_ready():
                    await connection._wait(self._waiter)
        finally:
            self._busy = False
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._error is not None:
            self._let_go()
            raise fresh(self._error)
        data = self._buffer.take(max_bytes)
        if data:
            self._consume(len(data))
        if self._at_end:
            if not self._buffer.size:
                self._let_go()
        elif not data:
            raise self._connection._ended_error(self._id)
        return data

    async def receive_all(
        self, max_bytes: int, *, code: int = ApplicationErrorCode.MESSAGE_TOO_LARGE
    ) -> bytes:
        """Receive everything to the end of the stream, and return it.

        Data received before is not part of the result; at the end of the stream the result is
        ``b""``.  While the call waits, the peer is granted more credit as data arrives, and the
        task is not woken for each piece.

        Args:
          max_bytes: the most bytes to take, 0 or more.  At any time, the stream holds at most
            these bytes and those that flow control had let in (``stream_receive_buffer_size``).
            Only while the pieces are joined, at the end, the result exists twice.
          code: tells the peer, in STOP_SENDING, that it has sent more than `max_bytes`.

        Cancellation: nothing is lost; data that has arrived stays in the stream, for the next
        call of this method or of :meth:`receive_some`.

        Raises:
          StreamTooLarge: the peer sent more than `max_bytes`.  The data that had arrived is
            discarded, the peer is told to stop with `code`, and the stream is closed for
            receiving.
          trio.BusyResourceError: another task is receiving from this stream.
          trio.ClosedResourceError: the stream, or the connection, was closed here.
          StreamReset: the peer reset the stream; unread data is discarded.
          ConnectionBroken: the connection ended before the stream did; data that had arrived can
            still be read with :meth:`receive_some`.
          ValueError: `max_bytes` is negative, or `code` not between 0 and 2**62 - 1.
        """
        check_limit(max_bytes)
        if type(code) is not ApplicationErrorCode:
            code = check_error_code(code)
        if self._busy:
            raise trio.BusyResourceError(_BUSY)
        self._busy = True
        try:
            self._collect(max_bytes)
            if self._is_settled():
                await trio.lowlevel.checkpoint()
            else:
                connection = self._connection
                while not self._is_settled():
                    await connection._wait(self._waiter)
        finally:
            self._limit = None
            self._busy = False
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._error is not None:
            self._let_go()
            raise fresh(self._error)
        size = self._buffer.size
        if size > max_bytes:
            self._stop(code)
            raise StreamTooLarge(
                f"the peer sent more than {max_bytes} bytes on stream {self._id}",
                stream_id=self._id,
                maximum=max_bytes,
                code=code,
            )
        if not self._at_end:
            raise self._connection._ended_error(self._id)
        self._consume(size)
        self._let_go()
        return self._buffer.take_all()

    def _collect(self, limit: int) -> None:
        """Grant the peer more as data arrives from now on, while at most `limit` bytes are held."""
        self._limit = limit
        if self._buffer.size:
            self._credit_arrived()

    def _credit_arrived(self) -> None:
        """Credit data that has arrived and stays in the buffer, unless it is too much."""
        size = self._buffer.size
        if self._credited < size and not self._is_too_large:
            count, self._credited = size - self._credited, size
            self._connection._consumed(self._id, count)

    def _consume(self, count: int) -> None:
        """Credit `count` bytes that leave the buffer, except those credited before."""
        if self._credited:
            early = min(count, self._credited)
            self._credited -= early
            count -= early
        if count:
            self._connection._consumed(self._id, count)

    @property
    def _is_too_large(self) -> bool:
        """Whether more has arrived than the running :meth:`receive_all` takes."""
        return self._limit is not None and self._buffer.size > self._limit

    def _is_settled(self) -> bool:
        """Whether further data, if any, would not change the result of :meth:`receive_all`."""
        return bool(
            self._at_end
            or self._closed
            or self._error is not None
            or self._is_too_large
            or self._connection._ended
        )

    def _has_failed(self) -> bool:
        """Whether the running :meth:`receive_all` has failed, whatever arrives later."""
        return self._error is not None or self._is_too_large

    def _is_ready(self) -> bool:
        return bool(
            self._buffer.size
            or self._at_end
            or self._closed
            or self._error is not None
            or self._connection._ended
        )

    def stop_receiving(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """Tell the peer not to send the rest (STOP_SENDING, RFC 9000 section 3.5), and close.

        The peer's sending calls raise :class:`StreamStopped` with this code.  Unread data is
        discarded.  Has no effect once closed.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        self._stop(check_error_code(code))

    def _stop(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        self._buffer.clear()
        if self._done:
            return  # read to its end: the peer has nothing to stop, and no task waits
        if not self._at_end and self._error is None:
            self._connection._stop_receiving(self._id, code)
        self._let_go()
        self._waiter.unpark_all()

    def close(self) -> None:
        """Close at once, and discard unread data; idempotent.

        If the end of the stream has not arrived, the peer is told to stop with
        :attr:`ApplicationErrorCode.NO_ERROR`.  A task blocked in
        :meth:`receive_some` gets :class:`trio.ClosedResourceError`.
        """
        self._stop(ApplicationErrorCode.NO_ERROR)

    async def aclose(self) -> None:
        """Like :meth:`close`, as a checkpoint.  Closes even if cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.stop_receiving(ApplicationErrorCode.CANCELLED)
        await self.aclose()

    def _put_back(self, data: bytes | bytearray) -> None:
        """Put the data received last back to the front.

        It was credited to the peer, and stays so.
        """
        self._buffer.put_back(data)
        self._credited += len(data)

    def _let_go(self) -> None:
        if not self._done:
            self._done = True
            self._connection._let_go(self._id, receiving=True)

    # -- called by the connection

    def _attach(self, connection: ConnectionT) -> None:
        self._connection = connection

    def _detach(self) -> None:
        """Detach an unaccepted stream, so that it does not keep its connection alive."""
        del self._connection

    def _on_data(self, data: bytes | bytearray, at_end: bool) -> None:
        if not self._closed:
            self._buffer.append(data)
            if at_end:
                self._at_end = True
            if self._limit is None or at_end or self._is_too_large:
                self._waiter.unpark_all()
            else:
                self._credit_arrived()

    def _on_reset(self, error: StreamBroken) -> None:
        # The stream is let go only when the application has seen the error or has closed the
        # stream.  Otherwise the peer would get credit for new streams while this one waits to be
        # accepted.
        if not self._closed:
            self._buffer.clear()
            self._error = error
            self._waiter.unpark_all()
