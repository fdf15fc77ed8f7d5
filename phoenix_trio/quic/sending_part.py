"""Presents the sending part of a stream as a Trio stream.

Floor 3.  Contains no protocol: writing appends to the connection's bounded send buffer, and
waits while that is full.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

import trio

from ..errors import ApplicationErrorCode, StreamBroken
from .construction import NoPublicConstructor
from .misuse import bytes_needed
from .stream_errors import check_error_code, fresh
from .stream_host import StreamHost

__all__ = ["SendingPart"]

ConnectionT = TypeVar("ConnectionT", bound=StreamHost)


def _never() -> bool:
    return False


class SendingPart(trio.abc.SendStream, Generic[ConnectionT], metaclass=NoPublicConstructor):
    """The sending part of a stream (RFC 9000 section 3.1); for users: :class:`SendStream`."""

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

    def __init__(self, connection: ConnectionT, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._error: StreamBroken | None = None
        self._closed = False
        self._finished = False
        self._was_reset = False
        self._done = False
        self._busy = False
        self._lot: trio.lowlevel.ParkingLot | None = None  # made when a task waits

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id} ({self._state})>"

    @property
    def _state(self) -> str:
        if self._was_reset:
            return "reset"
        if self._error is not None:
            return "stopped by the peer"
        if self._finished or self._closed:
            return "ended" if self._finished else "closed"
        # (A stream never accepted before the end of its connection has no such attribute.)
        connection = getattr(self, "_connection", None)
        return "open" if connection and not connection._is_closing else "connection closed"

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._id

    @property
    def connection(self) -> ConnectionT:
        """The connection this stream belongs to."""
        return self._connection

    async def send_all(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> None:
        """Put all of `data` into the send buffer, waiting while it is full.

        Its return does not mean that the peer has the data; :meth:`wait_acked` waits for that.
        The buffer is bounded by ``TransportConfig.stream_send_buffer_size`` and
        ``send_buffer_size``; a writer that found it full goes on when it is half empty.

        Args:
          data: the bytes; may be empty.
          end: whether the stream ends with them.  The FIN leaves with the last of the data; with
            :meth:`send_eof` it would take another call.

        Cancellation: part of `data` may have been sent, and the stream was not ended.  Reset it
        (as leaving its ``async with`` block does), or continue only if the application can make
        sense of a part.

        Raises:
          TypeError: `data` is not bytes-like.
          trio.BusyResourceError: another task is sending on this stream.
          trio.ClosedResourceError: the stream was ended, reset or closed here,
            or the connection was.
          StreamStopped: the peer does not want the rest.
          ConnectionBroken: the connection ended.
        """
        if type(data) is not bytes:
            try:
                data = memoryview(data).cast("B")
            except TypeError:
                raise bytes_needed(data) from None
        self._begin()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            connection, size = self._connection, len(data)
            if size <= connection._send_room(self._id, size):
                if end:
                    self._finish(data)
                elif size:
                    connection._write(self._id, data)
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._send_in_parts(memoryview(data), end=end)
        finally:
            self._busy = False

    async def _send_in_parts(
        self, view: memoryview, *, end: bool, is_futile: Callable[[], bool] = _never
    ) -> None:
        """Wait to write more data than there is room for now; given up once `is_futile`.

        Every event that makes it futile has to wake the :meth:`_waiting_place`.
        """
        connection, stream_id = self._connection, self._id
        position, size = 0, len(view)
        while True:
            room = connection._send_room(stream_id, size - position)
            if room >= size - position and end:
                self._finish(view[position:])
                return
            if room > 0:
                connection._write(stream_id, view[position : position + room])
                position += room
            if position >= size:
                return
            await self._wait_for_room(is_futile)
            self._check_open()
            if is_futile():
                return

    def _begin(self) -> None:
        """Allow one task at a time; the caller sets :attr:`_busy` to false again."""
        if self._busy:
            raise trio.BusyResourceError(
                "another task is already sending on this stream: send from one task, hold a"
                " trio.Lock meanwhile, or open a stream for each task"
            )
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
            if self._connection._send_room(self._id) <= 0:
                await self._wait_for_room()
                self._check_open()
        finally:
            self._busy = False

    async def _wait_for_room(self, is_futile: Callable[[], bool] = _never) -> None:
        connection = self._connection
        connection._note_stall()
        while self._is_open() and not connection._has_send_room(self._id) and not is_futile():
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
            raise self._connection._ended_error(self._id)

    async def send_eof(self) -> None:
        """End the stream (FIN): the peer reads all sent data, then the end.  Idempotent.

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
                # Before the rest of the checkpoint, so that the end leaves together with data
                # written just before.
                self._finish()
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._busy = False

    def _finish(self, data: bytes | memoryview = b"") -> None:
        """Write the last bytes, for which there is room, and the end."""
        self._finished = True
        connection = self._connection
        connection._write_end(self._id, data)
        self._let_go()
        self._wake()
        connection._flush_end()

    async def wait_acked(self) -> None:
        """Wait until the peer's transport has acknowledged all data sent so far.

        The end of the stream is included if it was sent.  An acknowledgement means that the
        peer's QUIC stack has the data, not that its application has read it.

        Raises:
          trio.ClosedResourceError: the stream was reset here, or the connection closed.
          StreamStopped: the peer stopped the stream first.
          ConnectionBroken: the connection ended first.
        """
        connection = self._connection
        offset = connection._written(self._id)
        has_waited = False

        def is_acked() -> bool:
            return connection._is_acknowledged(self._id, offset, with_fin=self._finished)

        while True:
            if self._error is not None:
                raise self._seen_error()
            if self._was_reset:
                raise trio.ClosedResourceError("this stream was reset")
            if is_acked():
                if not has_waited:
                    await trio.lowlevel.checkpoint()
                return
            if connection._ended:
                raise connection._ended_error(self._id)
            await connection._wait_for_progress(self._waiting_place(), is_acked)
            has_waited = True

    async def wait_stopped(self) -> NoReturn:
        """Wait until nothing can be sent on this stream any more, and raise the reason.

        For use in a task beside one that waits for something to send, to notice the peer's
        STOP_SENDING (RFC 9000 section 3.5) meanwhile.

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

        Data sent before may be lost; the peer's reads raise :class:`StreamReset` with this code.
        After the end was sent, a reset still cuts off unacknowledged data.  Has no effect once
        the stream is closed.

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
        """End the stream (FIN) and close it; data sent before is still delivered.  Idempotent.

        If another task is in the middle of :meth:`send_all`, the stream is reset instead, as its
        data is not whole; that task gets :class:`trio.ClosedResourceError`.
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

        On the socket of :func:`open_listener`, which is served only while some task waits, it
        also waits until the peer has acknowledged everything: perhaps no other task would repair
        a loss.

        Cancellation: the stream is closed, but reset rather than ended, since a cancelled task
        may have sent only a part.
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
            offset = connection._written(self._id)

            def is_done() -> bool:
                return (
                    self._was_reset
                    or self._error is not None
                    or connection._ended
                    or connection._is_acknowledged(self._id, offset, with_fin=True)
                )

            while not is_done():
                await connection._wait_for_progress(self._waiting_place(), is_done)

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
        """The sticky error for the application, which is then done with the stream."""
        assert self._error is not None
        self._let_go()
        return fresh(self._error)

    # -- called by the connection

    def _attach(self, connection: ConnectionT) -> None:
        self._connection = connection

    def _detach(self) -> None:
        """See :class:`ReceiveStream`: detach an unaccepted stream."""
        del self._connection

    def _on_stopped(self, error: StreamBroken) -> None:
        if not self._was_reset:
            self._error = error
            self._wake()
