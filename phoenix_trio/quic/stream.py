"""The streams of a connection as Trio knows streams.

Floor 3.  :class:`SendStream` and :class:`ReceiveStream` are the two directions
of QUIC streams (RFC 9000 section 2), :class:`QuicStream` is both.  They hold no
protocol: reading takes from a buffer which flow control bounds, writing appends
to the engine's bounded send buffer, and both wait where there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

import trio

from ..errors import ApplicationErrorCode, StreamBroken
from .construction import NoPublicConstructor
from .receive_buffer import ReceiveBuffer
from .waiter import Waiter

if TYPE_CHECKING:
    from .connection import QuicConnection

__all__ = ["QuicStream", "ReceiveStream", "SendStream"]

#: What ``receive_some()`` returns at most when it is not told: enough to keep calls few.
DEFAULT_RECEIVE_SIZE = 64 * 1024

#: RFC 9000 section 16: the largest value a variable-length integer holds.
_ERROR_CODE_MAX = 2**62 - 1

E = TypeVar("E", bound=BaseException)


def fresh(error: E) -> E:
    """A copy of a sticky error, so that tracebacks do not pile up on the original."""
    copy: E = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


def check_error_code(code: int) -> int:
    """An application error code as RFC 9000 section 20.2 allows it."""
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"an application error code must be an integer, not {code!r}")
    if not 0 <= code <= _ERROR_CODE_MAX:
        raise ValueError(f"an application error code must be between 0 and 2**62 - 1, not {code}")
    return int(code)


@final
class ReceiveStream(trio.abc.ReceiveStream, metaclass=NoPublicConstructor):
    """The receiving direction of a stream.

    Obtained from :meth:`QuicConnection.accept_receive_stream`, or as
    :attr:`QuicStream.receive_stream`.

    One task at a time may receive.  What arrives is buffered up to the
    connection's flow-control limits; the peer is granted more only as data is
    read.  Data which arrived before the connection ended can still be read.

    Used as a context manager, a block left normally closes the stream, a block
    left by an exception stops it with :attr:`ApplicationErrorCode.CANCELLED`.
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_buffer",
        "_busy",
        "_closed",
        "_connection",
        "_done",
        "_error",
        "_id",
        "_waiter",
    )

    def __init__(self, connection: QuicConnection, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._buffer = ReceiveBuffer()
        self._at_end = False
        self._error: StreamBroken | None = None
        self._closed = False
        self._done = False
        self._busy = False
        self._waiter = Waiter()

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._id

    @property
    def connection(self) -> QuicConnection:
        """The connection this stream belongs to."""
        return self._connection

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least one byte, or ``b""`` at the end of the stream.

        Args:
          max_bytes: return at most so many bytes; ``None`` lets the stream choose.

        Cancellation: nothing is lost; what was not returned is returned next time.

        Raises:
          trio.BusyResourceError: another task is receiving from this stream.
          trio.ClosedResourceError: the stream, or the connection, was closed here.
          StreamReset: the peer reset the stream; unread data is discarded.
          ConnectionBroken: the connection ended before the stream did, and all
            that had arrived was read.
        """
        if max_bytes is None:
            max_bytes = DEFAULT_RECEIVE_SIZE
        elif not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
            raise TypeError(f"max_bytes must be a positive integer or None, not {max_bytes!r}")
        elif max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive integer or None, not {max_bytes}")
        if self._busy:
            raise trio.BusyResourceError("another task is already receiving from this stream")
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
            self._connection._consumed(self._id, len(data))
        if self._at_end:
            if not self._buffer.size:
                self._let_go()
        elif not data:
            raise self._connection._ended_error()
        return data

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

        The peer's sending calls raise :class:`StreamStopped` with this code.
        Unread data is discarded.  Without effect once closed.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        self._stop(check_error_code(code))

    def _stop(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        if self._done:
            return  # read to its end: nothing is buffered, nobody waits
        self._buffer.clear()
        if not self._at_end and self._error is None:
            self._connection._stop_receiving(self._id, code)
        self._let_go()
        self._waiter.unpark_all()

    def close(self) -> None:
        """Close at once, discarding what was not read; idempotent.

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

    def _let_go(self) -> None:
        if not self._done:
            self._done = True
            self._connection._let_go(self._id, receiving=True)

    # -- called by the connection

    def _attach(self, connection: QuicConnection) -> None:
        self._connection = connection

    def _detach(self) -> None:
        """Not accepted yet: the connection, which keeps this, must not be kept alive by it."""
        del self._connection

    def _on_data(self, data: bytes | bytearray, at_end: bool) -> None:
        if not self._closed:
            self._buffer.append(data)
            if at_end:
                self._at_end = True
            self._waiter.unpark_all()

    def _on_reset(self, error: StreamBroken) -> None:
        # Not let go before the application has seen the error or has closed the stream: the
        # peer would get credit for new streams while this one waits to be accepted.
        if not self._closed:
            self._buffer.clear()
            self._error = error
            self._waiter.unpark_all()


@final
class SendStream(trio.abc.SendStream, metaclass=NoPublicConstructor):
    """The sending direction of a stream.

    Obtained from :meth:`QuicConnection.open_send_stream`, or as
    :attr:`QuicStream.send_stream`.

    One task at a time may send.  Used as a context manager, a block left
    normally ends the stream (FIN) and what was sent is still delivered; a block
    left by an exception or cancellation resets it with
    :attr:`ApplicationErrorCode.CANCELLED`, so that the peer never mistakes a
    part for the whole.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_closed",
        "_connection",
        "_done",
        "_error",
        "_finished",
        "_id",
        "_lot",
        "_was_reset",
    )

    def __init__(self, connection: QuicConnection, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._error: StreamBroken | None = None
        self._closed = False
        self._finished = False
        self._was_reset = False
        self._done = False
        self._busy = False
        self._lot: trio.lowlevel.ParkingLot | None = None  # made when somebody waits

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._id

    @property
    def connection(self) -> QuicConnection:
        """The connection this stream belongs to."""
        return self._connection

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Put all of `data` into the send buffer, waiting while it is full.

        Returning says nothing of the peer: :meth:`wait_acked` does.  The buffer
        is bounded by ``TransportConfig.stream_send_buffer_size`` and
        ``send_buffer_size``; a writer which found it full goes on when it is
        half empty.

        Cancellation: part of `data` may have been sent; reset the stream (as
        leaving its ``async with`` block does), or keep to what the application
        can make sense of.

        Raises:
          trio.BusyResourceError: another task is sending on this stream.
          trio.ClosedResourceError: the stream was ended, reset or closed here,
            or the connection was.
          StreamStopped: the peer does not want the rest.
          ConnectionBroken: the connection ended.
        """
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        self._begin()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            connection, size = self._connection, len(data)
            if size <= connection._engine.send_room(self._id, size):
                if size:
                    connection._write(self._id, data)
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._send_in_parts(memoryview(data))
        finally:
            self._busy = False

    async def _send_in_parts(self, view: memoryview) -> None:
        """More than there is room for now, which has to wait."""
        connection, stream_id = self._connection, self._id
        position, size = 0, len(view)
        while True:
            room = connection._engine.send_room(stream_id, size - position)
            if room > 0:
                connection._write(stream_id, view[position : position + room])
                position += room
            if position >= size:
                return
            await self._wait_for_room()
            self._check_open()

    def _begin(self) -> None:
        """One task at a time; the caller sets :attr:`_busy` to false again."""
        if self._busy:
            raise trio.BusyResourceError("another task is already sending on this stream")
        self._busy = True

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until :meth:`send_all` could put something into the buffer at once.

        Raises:
          The same errors as :meth:`send_all`.
        """
        self._begin()
        try:
            await trio.lowlevel.checkpoint()
            self._check_open()
            if self._connection._engine.send_room(self._id) <= 0:
                await self._wait_for_room()
                self._check_open()
        finally:
            self._busy = False

    async def _wait_for_room(self) -> None:
        connection = self._connection
        connection._note_stall()
        while self._is_open() and not connection._engine.has_send_room(self._id):
            await connection._wait_for_room(self._id, self._waiting_place())

    def _waiting_place(self) -> trio.lowlevel.ParkingLot:
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        return self._lot

    def _wake(self) -> None:
        if self._lot is not None:
            self._lot.unpark_all()

    def _is_open(self) -> bool:
        return not (
            self._closed
            or self._finished
            or self._error is not None
            or self._connection._is_closing
        )

    def _check_open(self) -> None:
        if self._closed or self._finished:
            raise trio.ClosedResourceError("this stream was closed for sending")
        if self._error is not None:
            raise self._seen_error()
        if self._connection._is_closing:
            raise self._connection._ended_error()

    async def send_eof(self) -> None:
        """End the stream (FIN): the peer reads all that was sent, then the end.  Idempotent.

        Raises:
          trio.BusyResourceError: another task is sending on this stream.
          trio.ClosedResourceError: the stream was closed or reset here.
          StreamStopped: the peer does not want the rest.
          ConnectionBroken: the connection ended.
        """
        self._begin()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self._finished or self._closed:
                self._check_open()
                # Before the rest of the checkpoint, so that it leaves together with the
                # data written just now.
                self._finish()
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._busy = False

    def _finish(self) -> None:
        self._finished = True
        self._connection._write(self._id, b"", end_stream=True)
        self._let_go()
        self._wake()

    async def wait_acked(self) -> None:
        """Wait until the peer's transport has acknowledged all that was sent so far.

        The end of the stream is included if it was sent.  An acknowledgement
        means that the peer's QUIC stack has the data, not that its application
        has read it.

        Raises:
          trio.ClosedResourceError: the stream was reset here, or the connection closed.
          StreamStopped: the peer stopped the stream first.
          ConnectionBroken: the connection ended first.
        """
        await trio.lowlevel.checkpoint()
        connection = self._connection
        offset = connection._engine.written(self._id)
        while True:
            if self._error is not None:
                raise self._seen_error()
            if self._was_reset:
                raise trio.ClosedResourceError("this stream was reset")
            if connection._engine.is_acknowledged(self._id, offset, with_fin=self._finished):
                return
            if connection._ended:
                raise connection._ended_error()
            await connection._wait_for_progress(self._waiting_place())

    async def wait_stopped(self) -> NoReturn:
        """Wait until nothing can be sent on this stream any more, and raise why.

        For a task beside one which waits for something to send, so that it hears of the
        peer's STOP_SENDING (RFC 9000 section 3.5) meanwhile.

        Raises:
          StreamStopped: the peer does not want more.
          trio.ClosedResourceError: the stream was ended, reset or closed here, or the
            connection was.
          ConnectionBroken: the connection ended.
        """
        await trio.lowlevel.checkpoint()
        while self._is_open():
            await self._connection._wait(self._waiting_place())
        self._check_open()
        raise AssertionError("a stream which is not open says why")

    def reset(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """Abandon the stream (RESET_STREAM, RFC 9000 section 3.1) and close it.

        What was sent may be lost; the peer's reads raise :class:`StreamReset`
        with this code.  After the end was sent it still cuts off what is not
        acknowledged.  Without effect once the stream is closed.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        code = check_error_code(code)
        if self._closed:
            return
        self._closed = True
        self._was_reset = True
        self._connection._reset_sending(self._id, code)
        self._let_go()
        self._wake()

    def close(self) -> None:
        """End the stream (FIN) and close it; what was sent is still delivered.  Idempotent.

        If another task is in the middle of :meth:`send_all`, the stream is reset
        instead, as its data is not whole; that task gets
        :class:`trio.ClosedResourceError`.
        """
        if self._closed:
            return
        if self._busy and not self._finished:
            self.reset(ApplicationErrorCode.CANCELLED)
            return
        self._closed = True
        if not self._finished and self._error is None and not self._connection._ended:
            self._finish()
        self._let_go()
        self._wake()

    async def aclose(self) -> None:
        """Like :meth:`close`, as a checkpoint.

        On the socket of :func:`open_listener`, which is served only while some task
        waits, it also waits until the peer has acknowledged everything: nobody
        else might be there to repair a loss.

        Cancellation: the stream is closed, but reset rather than ended, since
        whoever was cancelled may have sent a part only.
        """
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            if not self._finished:
                self.reset(ApplicationErrorCode.CANCELLED)
            self.close()
            raise
        self.close()
        connection = self._connection
        connection._rest()
        if connection._is_driven_by_waiters:
            offset = connection._engine.written(self._id)
            while not (
                self._was_reset
                or self._error is not None
                or connection._ended
                or connection._engine.is_acknowledged(self._id, offset, with_fin=True)
            ):
                await connection._wait_for_progress(self._waiting_place())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None and not self._finished:
            self.reset(ApplicationErrorCode.CANCELLED)
        await self.aclose()

    def _let_go(self) -> None:
        if not self._done:
            self._done = True
            self._connection._let_go(self._id, sending=True)

    def _seen_error(self) -> StreamBroken:
        """The sticky error, for the application: with that it has let go of the stream."""
        assert self._error is not None
        self._let_go()
        return fresh(self._error)

    # -- called by the connection

    def _attach(self, connection: QuicConnection) -> None:
        self._connection = connection

    def _detach(self) -> None:
        """As for a :class:`ReceiveStream`."""
        del self._connection

    def _on_stopped(self, error: StreamBroken) -> None:
        if not self._was_reset:
            self._error = error
            self._wake()


@final
class QuicStream(trio.abc.HalfCloseableStream, metaclass=NoPublicConstructor):
    """A bidirectional stream: a :class:`trio.abc.HalfCloseableStream`.

    Obtained from :meth:`QuicConnection.open_stream`,
    :meth:`QuicConnection.accept_stream` or a :class:`StreamListener`.  Any library
    which takes a Trio stream takes one of these.

    A stream on which nothing was sent is not visible to the peer (RFC 9000
    section 2.1), so the side which opens it has to send first.

    Used as a context manager, a block left normally closes the stream in good
    order, a block left by an exception or cancellation resets it.
    """

    __slots__ = ("__weakref__", "_receive", "_send")

    def __init__(self, send_stream: SendStream, receive_stream: ReceiveStream) -> None:
        self._send = send_stream
        self._receive = receive_stream

    def _attach(self, connection: QuicConnection) -> None:
        self._send._attach(connection)
        self._receive._attach(connection)

    def _detach(self) -> None:
        self._send._detach()
        self._receive._detach()

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._send.id

    @property
    def connection(self) -> QuicConnection:
        """The connection this stream belongs to."""
        return self._send.connection

    @property
    def send_stream(self) -> SendStream:
        """The sending direction."""
        return self._send

    @property
    def receive_stream(self) -> ReceiveStream:
        """The receiving direction."""
        return self._receive

    # The calls of every exchange hand on the coroutine of the direction concerned, rather
    # than wait for it in one of their own.

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[object, Any, None]:
        """See :meth:`SendStream.send_all`."""
        return self._send.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See :meth:`SendStream.wait_send_all_might_not_block`."""
        await self._send.wait_send_all_might_not_block()

    def send_eof(self) -> Coroutine[object, Any, None]:
        """See :meth:`SendStream.send_eof`."""
        return self._send.send_eof()

    async def wait_acked(self) -> None:
        """See :meth:`SendStream.wait_acked`."""
        await self._send.wait_acked()

    async def wait_stopped(self) -> NoReturn:
        """See :meth:`SendStream.wait_stopped`."""
        await self._send.wait_stopped()

    def receive_some(
        self, max_bytes: int | None = None
    ) -> Coroutine[object, Any, bytes | bytearray]:
        """See :meth:`ReceiveStream.receive_some`."""
        return self._receive.receive_some(max_bytes)

    def reset(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """See :meth:`SendStream.reset`; the receiving direction stays open."""
        self._send.reset(code)

    def stop_receiving(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """See :meth:`ReceiveStream.stop_receiving`; the sending direction stays open."""
        self._receive.stop_receiving(code)

    def close(self) -> None:
        """Close both directions at once: end sending in good order, discard what was not read."""
        self._send.close()
        self._receive.close()

    async def aclose(self) -> None:
        """Like :meth:`close`, as a checkpoint.  If cancelled, sending is reset instead of ended."""
        try:
            await self._send.aclose()
        finally:
            self._receive.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            if not self._send._finished:
                self._send.reset(ApplicationErrorCode.CANCELLED)
            self._receive.stop_receiving(ApplicationErrorCode.CANCELLED)
        await self.aclose()
