"""A QUIC connection for Trio: open and accept streams, datagrams, close.

Floor 3.  The calls of applications.
:class:`~phoenix_trio.quic.connection_state.ConnectionState` wakes their tasks on events of
the driver.

A connection and its streams name each other's types, so this module defines both.  The
streams are those of :mod:`.stream` and the modules of its parts, which are generic in the
type of their connection.

When a connection ends, calls on it and on its streams raise the reason, once the application
has read all arrived data.  The handler is not cancelled: unread data would be lost silently.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, final

import trio

from ..errors import (
    ApplicationErrorCode,
    ConnectionBroken,
    ShuttingDown,
)
from . import events
from .connection_paths import PathCalls
from .construction import NoPublicConstructor
from .exchange import exchange
from .logs import bounded_logger
from .misuse import bytes_needed
from .receiving_part import ReceivingPart
from .sending_part import SendingPart
from .stream import BidirectionalStream
from .stream_errors import check_error_code, check_limit
from .until_closed import UntilClosed

if TYPE_CHECKING:
    from .driver import SocketDriver
    from .engine import Engine
    from .faces import ApplicationFace

__all__ = ["QuicConnection", "QuicStream", "ReceiveStream", "SendStream"]

logger: logging.Logger = bounded_logger("phoenix_trio")


@final
class ReceiveStream(ReceivingPart["QuicConnection"]):
    """The receiving direction of a stream.

    Obtained from :meth:`QuicConnection.accept_receive_stream`, or as
    :attr:`QuicStream.receive_stream`.

    One task at a time may receive.  Arriving data is buffered up to the
    connection's flow-control limits; the peer gets more credit only as the
    application reads.  Data that arrived before the end of the connection can still be read.

    As a context manager, a block left normally closes the stream, a block left by
    an exception stops it with :attr:`ApplicationErrorCode.CANCELLED`.
    """

    __slots__ = ()


@final
class SendStream(SendingPart["QuicConnection"]):
    """The sending direction of a stream.

    Obtained from :meth:`QuicConnection.open_send_stream`, or as
    :attr:`QuicStream.send_stream`.

    One task at a time may send.  As a context manager, a block left normally
    ends the stream (FIN), and all sent data is still delivered.  A block left by an
    exception or cancellation resets it with :attr:`ApplicationErrorCode.CANCELLED`,
    so that the peer never mistakes a part for the whole.
    """

    __slots__ = ()


@final
class QuicStream(BidirectionalStream["QuicConnection", SendStream, ReceiveStream]):
    """A bidirectional stream: a :class:`trio.abc.HalfCloseableStream`.

    Obtained from :meth:`QuicConnection.open_stream`,
    :meth:`QuicConnection.accept_stream` or a :class:`StreamListener`.  Libraries
    for Trio's streams can use it.

    The peer does not see a stream before something is sent on it (RFC 9000
    section 2.1), so the side that opens it has to send first.

    As a context manager, a block left normally closes the stream in good
    order, a block left by an exception or cancellation resets it.
    """

    __slots__ = ()


S = TypeVar("S", QuicStream, ReceiveStream)


@final
class QuicConnection(PathCalls, trio.abc.AsyncResource, metaclass=NoPublicConstructor):
    """A connection to one peer.

    Obtained from :func:`open_connection`, :meth:`Endpoint.connect`,
    :meth:`QuicListener.accept`, or as the argument of a :func:`serve` handler.
    As a context manager it is closed in good order when the block is left
    normally (see :meth:`aclose`), and aborted with
    :attr:`ApplicationErrorCode.CANCELLED` when it is left by an exception.

    Its methods may be called from several tasks at once.
    """

    def __init__(self, driver: SocketDriver, engine: Engine) -> None:
        super().__init__(driver, engine)
        self._incoming: deque[QuicStream] = deque()
        self._incoming_one_way: deque[ReceiveStream] = deque()
        self._takes_one_way = False  # or has been warned of
        self._take_stream: Callable[[QuicStream], None] | None = None
        # The lowest ID of a bidirectional stream that the peer has not opened yet.
        self._next_incoming = int(engine.is_client)  # (RFC 9000 section 2.1)
        self._refuses_from: int | None = None

    # ------------------------------------------------------------------ streams

    async def open_stream(self) -> QuicStream:
        """Open a bidirectional stream, waiting until the peer permits one more.

        The peer sees the stream when something is sent on it.

        Cancellation: no stream was opened.

        Raises:
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        stream_id = await self._open(unidirectional=False)
        return self._make_stream(stream_id)

    async def open_send_stream(self) -> SendStream:
        """Open a unidirectional stream; see :meth:`open_stream`."""
        stream_id = await self._open(unidirectional=True)
        return self._make_sender(stream_id)

    async def request(
        self, data: bytes | bytearray | memoryview, *, max_answer: int | None = None
    ) -> bytes:
        """Send `data` on a bidirectional stream of its own, and return the peer's whole answer.

        The stream ends with `data`; the answer is all that the peer sends on it.  A peer may
        answer early, and stop the rest of the request (STOP_SENDING): the answer counts.  It
        may also answer while it reads: the call sends and receives at the same time.

        Waits until the peer permits one more stream, until there is room for `data` in the
        send buffer, and for the answer.  In most cases the task is woken once, or twice where
        other streams of the connection are open.

        Args:
          data: the request; it may be empty.
          max_answer: the limit for the answer, in bytes, 0 or more; ``None``: the
            configuration's ``max_message_size``.

        Cancellation: the peer may or may not have seen the request.  Both directions are
        given up with :attr:`ApplicationErrorCode.CANCELLED`: the peer's calls on the stream
        raise :class:`StreamReset` or :class:`StreamStopped`.  Errors below do the same.

        Raises:
          StreamReset: the peer gave up its answer.
          StreamStopped: the peer stopped the request, and gave up its answer.
          StreamTooLarge: the answer is longer than `max_answer`; this side has stopped it
            with :attr:`ApplicationErrorCode.MESSAGE_TOO_LARGE`.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended before the answer was complete.
          TypeError: `data` is not bytes-like, or `max_answer` no integer.
          ValueError: `max_answer` is negative.
        """
        if max_answer is None:
            max_answer = self._engine.config.max_message_size
        check_limit(max_answer)
        if type(data) is not bytes:
            try:
                data = memoryview(data).cast("B")
            except TypeError:
                raise bytes_needed(data, "a request") from None
        await trio.lowlevel.checkpoint_if_cancelled()
        stream_id = self._open_now(unidirectional=False)
        if stream_id is None:
            stream_id = await self._wait_for_stream(unidirectional=False)
        return await exchange(
            self._make_sender(stream_id),
            self._make_receiver(stream_id),
            data,
            max_answer,
            is_alone=len(self._senders) == 1,
        )

    async def _open(self, *, unidirectional: bool) -> int:
        await trio.lowlevel.checkpoint()
        stream_id = self._open_now(unidirectional=unidirectional)
        if stream_id is None:
            return await self._wait_for_stream(unidirectional=unidirectional)
        return stream_id

    def _open_now(self, *, unidirectional: bool) -> int | None:
        """A new stream; ``None``: no stream credit."""
        if self._is_closing:
            error = self._ended_error()
            if isinstance(error, ConnectionBroken):
                error.processed = False  # nothing was sent
            raise error
        return self._engine.open_stream(unidirectional=unidirectional)

    async def _wait_for_stream(self, *, unidirectional: bool) -> int:
        self._stream_credit_stalls += 1
        while True:
            self._engine.want_stream(1, unidirectional=unidirectional)
            self._touch()  # (its timers have changed)
            try:
                await self._wait(self._credit_lots[unidirectional])
            except BaseException:
                self._offer_streams()  # This call may have been woken for one.
                raise
            finally:
                self._engine.want_stream(-1, unidirectional=unidirectional)
            stream_id = self._open_now(unidirectional=unidirectional)
            if stream_id is not None:
                return stream_id

    async def accept_stream(self) -> QuicStream:
        """The next bidirectional stream of the peer, in the order of their IDs.

        Using a stream opens all lower-numbered ones as well (RFC 9000 section 2.1), so a
        stream can be accepted before anything arrives on it.
        Streams opened before the connection ended can still be accepted.

        Cancellation: no stream is lost.

        Raises:
          ShuttingDown: this side refuses further streams (:meth:`refuse_streams`).
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        return await self._accept(self._incoming)

    async def accept_receive_stream(self) -> ReceiveStream:
        """The next unidirectional stream of the peer; see :meth:`accept_stream`."""
        self._takes_one_way = True
        return await self._accept(self._incoming_one_way)

    async def _accept(self, queue: deque[S]) -> S:
        if queue or self._is_closing or self._refuses_from is not None:
            await trio.lowlevel.checkpoint()
        while not queue:
            if self._is_closing:
                raise self._ended_error()
            if self._refuses_from is not None and queue is self._incoming:
                raise ShuttingDown("this connection takes no further streams")
            if self._incoming_one_way and not self._takes_one_way:
                for _ in range(2):  # (another task, just started, may be about to accept it)
                    await trio.lowlevel.checkpoint()
                self._warn_of_one_way_streams()
                continue
            await self._wait(self._accept_lot)
        stream = queue.popleft()
        if self._ended:
            stream._attach(self)  # (see on_released)
        return stream

    if not TYPE_CHECKING:

        def __aiter__(self):
            raise TypeError(
                "iterate over connection.incoming_streams(), incoming_receive_streams(),"
                " or call receive_datagram(); a connection has no single sequence of data"
            )

    def incoming_streams(self) -> AsyncIterator[QuicStream]:
        """Iterate over :meth:`accept_stream`; ends when the connection is closed in good order.

        Good order means: closed here, or by the peer with code 0.  The iteration also ends
        when this side shuts down.  Any other end raises :class:`ConnectionBroken`.

        The peer's unidirectional streams (its :meth:`open_send_stream`) are not among these:
        :meth:`incoming_receive_streams` has them.  If such a stream waits while only this
        iterator is in use, a warning is logged, once a connection.
        """
        return UntilClosed(partial(self._accept, self._incoming))

    def incoming_receive_streams(self) -> AsyncIterator[ReceiveStream]:
        """Iterate over :meth:`accept_receive_stream`; see :meth:`incoming_streams`."""
        self._takes_one_way = True
        return UntilClosed(partial(self._accept, self._incoming_one_way))

    def _warn_of_one_way_streams(self) -> None:
        """Warn once if unidirectional streams wait, and no task has ever asked for them."""
        if not self._takes_one_way:
            self._takes_one_way = True
            logger.warning(
                "%s has opened a unidirectional stream, and no task accepts it:"
                " incoming_streams() and accept_stream() have bidirectional streams alone, use"
                " incoming_receive_streams() or accept_receive_stream() as well",
                self._address,
            )

    def refuse_streams(self) -> int:
        """From now on, refuse the peer's new bidirectional streams; idempotent.

        For a side that ends soon: :func:`serve` and ``phoenix.shutdown`` call it.
        Streams that wait for :meth:`accept_stream`, and all later ones, are refused with
        :attr:`ApplicationErrorCode.NOT_PROCESSED`, so that the peer may send the same again
        elsewhere.  :meth:`accept_stream` raises :class:`ShuttingDown`.  Accepted streams,
        unidirectional ones and datagrams go on.

        Returns the ID of the first refused stream; no task here sees data of it or of later
        ones.
        """
        if self._refuses_from is None:
            self._refuses_from = self._incoming[0].id if self._incoming else self._next_incoming
            if not self._ended:
                while self._incoming:
                    refuse(self._incoming.popleft())
            self._accept_lot.unpark_all()
        return self._refuses_from

    # ------------------------------------------------------------------ liveness and keys

    async def ping(self) -> float:
        """Send a PING and wait for its acknowledgement.

        Returns the time in seconds, including the peer's acknowledgement delay.

        Raises:
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended first.
        """
        await trio.lowlevel.checkpoint()
        if self._is_closing:
            raise self._ended_error()
        started = trio.current_time()
        self._ping_uid += 1
        uid = self._ping_uid
        lot = self._pings[uid] = trio.lowlevel.ParkingLot()
        try:
            self._engine.send_ping(uid)
            self._touch()
            while uid in self._pings:
                if self._ended:
                    raise self._ended_error()
                await self._wait(lot)
        finally:
            self._pings.pop(uid, None)
        return trio.current_time() - started

    async def update_keys(self) -> None:
        """Replace the packet protection keys (RFC 9001 section 6), and wait for the peer's.

        Raises:
          trio.BusyResourceError: another task is updating the keys.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended first.
        """
        with self._key_update:
            await self.wait_confirmed()
            if not self._engine.can_update_keys:
                # An automatic update is not acknowledged yet.
                await self.ping()
            self._engine.update_keys()
            # RFC 9001 section 6.1: no further update before this one was acknowledged.
            await self.ping()

    async def wait_confirmed(self) -> None:
        """Wait until the handshake is confirmed (RFC 9001 section 4.1.2).

        An attacker can replay early data (0-RTT).  Wait for this before you send or do
        anything that must not happen twice.

        Raises:
          HandshakeFailed, ConnectionBroken: the connection ended first.
          trio.ClosedResourceError: it was closed here first.
        """
        await trio.lowlevel.checkpoint()
        while not self._confirmed:
            if self._ended:
                raise self._ended_error()
            await self._wait(self._state_lot)

    async def _wait_ready(self) -> None:
        """Client: wait until the connection can be used."""
        while not self._ended:
            # In TLS 1.3 a client completes its handshake before the server has checked the
            # client's certificate.  Only the confirmation shows that it was accepted.
            if self._handshake_complete and (
                self._confirmed or not self._engine.client_certificate_requested
            ):
                return
            await self._wait(self._state_lot)
        raise self._ended_error()

    # ------------------------------------------------------------------ the end

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, on either side; see :attr:`close_reason`."""
        await trio.lowlevel.checkpoint()
        while not self._ended:
            await self._wait(self._state_lot)

    async def aclose(self, code: int = ApplicationErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close in good order: deliver all sent data, then send CONNECTION_CLOSE.

        Waits until the peer's transport has acknowledged all stream data and
        queued datagrams have left; new calls to open, send or accept raise
        :class:`trio.ClosedResourceError` meanwhile.  The caller's cancel scope bounds the
        time, and so do the idle timeout if the peer is gone, and
        ``TransportConfig.max_blocked_time`` if it reads nothing.
        Idempotent; never raises because the peer is gone.

        Args:
          code: the application error code for the peer; 0 is a clean close.
          reason: text for the peer's log, cut to 256 bytes of UTF-8.

        Cancellation: the connection is closed at once, as by :meth:`abort`.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        code = check_error_code(code)
        self._is_closing = True
        self._wake_all()
        try:
            await trio.lowlevel.checkpoint()
            while not self._ended and not self._has_delivered_all():
                await self._wait_for_progress(self._send_lot, self._has_delivered_all)
        finally:
            self.abort(code, reason)

    def _has_delivered_all(self) -> bool:
        engine = self._engine
        if engine.has_queued_datagrams:
            engine.want_datagram_room()
            return False
        return not engine.has_unacknowledged_streams

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort(ApplicationErrorCode.CANCELLED)
        await self.aclose()

    # ------------------------------------------------------------------ streams from below

    def handle_events(self, batch: list[events.Event]) -> None:
        """Called by the driver with events of the engine."""
        for event in batch:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)

    def on_released(self, remains: ApplicationFace) -> None:
        """Called by the driver: the connection is over, and its engine freed.

        Waiting streams can still be accepted.
        """
        super().on_released(remains)
        self._take_stream = None
        # The connection refers to the streams, so a reference back would be a cycle.
        for stream in self._incoming:
            stream._detach()
        for receiver in self._incoming_one_way:
            receiver._detach()

    def _on_stream_opened(self, event: events.StreamOpened) -> None:
        stream_id = event.stream_id
        if stream_id & 2:
            receiver = self._make_receiver(stream_id)
            self._incoming_one_way.append(receiver)
        else:
            stream = self._make_stream(stream_id)
            self._next_incoming = stream_id + 4
            if self._refuses_from is not None:
                refuse(stream)
                return
            if self._take_stream is not None:
                self._take_stream(stream)
                return
            self._incoming.append(stream)
        if self._accept_lot:
            self._accept_lot.unpark_all()

    def _make_sender(self, stream_id: int) -> SendStream:
        sender = self._senders[stream_id] = SendStream._create(self, stream_id)
        return sender

    def _make_receiver(self, stream_id: int) -> ReceiveStream:
        receiver = self._receivers[stream_id] = ReceiveStream._create(self, stream_id)
        return receiver

    def _make_stream(self, stream_id: int) -> QuicStream:
        stream: QuicStream = QuicStream._create(
            self._make_sender(stream_id), self._make_receiver(stream_id)
        )
        return stream


def refuse(stream: QuicStream) -> None:
    """Refuse a stream as not processed: no task here has seen data of it."""
    stream.reset(ApplicationErrorCode.NOT_PROCESSED)
    stream.stop_receiving(ApplicationErrorCode.NOT_PROCESSED)


_HANDLERS: dict[type, Callable[[QuicConnection, Any], None]] = {
    events.StreamDataReceived: QuicConnection._on_stream_data,
    events.SendProgress: QuicConnection._on_progress,
    events.StreamOpened: QuicConnection._on_stream_opened,
    events.StreamResetReceived: QuicConnection._on_stream_reset,
    events.StreamStopReceived: QuicConnection._on_stream_stop,
    events.StreamForgotten: QuicConnection._on_stream_forgotten,
    events.StreamsAvailable: QuicConnection._on_streams_available,
    events.DatagramReceived: QuicConnection._on_datagram,
    events.DatagramsLost: QuicConnection._on_datagrams_lost,
    events.PingAcknowledged: QuicConnection._on_ping,
    events.PathProbed: QuicConnection._on_path_probed,
    events.EarlyDataReady: QuicConnection._on_early_data,
    events.HandshakeCompleted: QuicConnection._on_handshake,
    events.HandshakeConfirmed: QuicConnection._on_confirmed,
    events.Terminated: QuicConnection._on_terminated,
}
