"""A QUIC connection for Trio: open and accept streams, datagrams, close.

Floor 3.  What applications call; what happens below is turned into woken tasks by
:class:`~phoenix_trio.quic.connection_state.ConnectionState`.

A connection and its streams name each other's types, so those stand here together: the
streams are what :mod:`.stream` and the modules of its parts make of any host, with
:class:`QuicConnection` for the host.

When a connection ends, every call on it and on its streams raises why, after
what had arrived has been read.  A handler is not cancelled for it: unread data
would be lost silently.
"""

from __future__ import annotations

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

logger = bounded_logger("phoenix_trio")


@final
class ReceiveStream(ReceivingPart["QuicConnection"]):
    """The receiving direction of a stream.

    Obtained from :meth:`QuicConnection.accept_receive_stream`, or as
    :attr:`QuicStream.receive_stream`.

    One task at a time may receive.  What arrives is buffered up to the
    connection's flow-control limits; the peer is granted more only as data is
    read.  Data which arrived before the connection ended can still be read.

    Used as a context manager, a block left normally closes the stream, a block
    left by an exception stops it with :attr:`ApplicationErrorCode.CANCELLED`.
    """

    __slots__ = ()


@final
class SendStream(SendingPart["QuicConnection"]):
    """The sending direction of a stream.

    Obtained from :meth:`QuicConnection.open_send_stream`, or as
    :attr:`QuicStream.send_stream`.

    One task at a time may send.  Used as a context manager, a block left
    normally ends the stream (FIN) and what was sent is still delivered; a block
    left by an exception or cancellation resets it with
    :attr:`ApplicationErrorCode.CANCELLED`, so that the peer never mistakes a
    part for the whole.
    """

    __slots__ = ()


@final
class QuicStream(BidirectionalStream["QuicConnection", SendStream, ReceiveStream]):
    """A bidirectional stream: a :class:`trio.abc.HalfCloseableStream`.

    Obtained from :meth:`QuicConnection.open_stream`,
    :meth:`QuicConnection.accept_stream` or a :class:`StreamListener`.  Any library
    which takes a Trio stream takes one of these.

    A stream on which nothing was sent is not visible to the peer (RFC 9000
    section 2.1), so the side which opens it has to send first.

    Used as a context manager, a block left normally closes the stream in good
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
        # The lowest ID of a bidirectional stream which the peer has not opened yet.
        self._next_incoming = int(engine.is_client)  # (RFC 9000 section 2.1)
        self._refuses_from: int | None = None

    # ------------------------------------------------------------------ streams

    async def open_stream(self) -> QuicStream:
        """Open a bidirectional stream, waiting until the peer permits one more.

        The peer hears of it when something is sent on it.

        Cancellation: nothing was opened.

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

        The stream ends with `data`, and the answer is what the peer sends to the end of its
        direction.  A peer which has read enough may answer early, and stop the rest of the
        request (STOP_SENDING): the answer counts.  It may also answer while it reads; the
        answer is received while `data` is being sent.

        Waits until the peer permits one more stream, until there is room for `data` in the
        send buffer, and for the answer.  In most cases the task is woken once, or twice where
        other streams of the connection are open.

        Args:
          data: the request; none at all is allowed.
          max_answer: the longest answer which is taken, in bytes, 0 or more; ``None``: the
            configuration's ``max_message_size``.

        Cancellation: the peer may or may not have seen the request.  Both directions are
        given up with :attr:`ApplicationErrorCode.CANCELLED`: the peer's calls on the stream
        raise :class:`StreamReset` or :class:`StreamStopped`.  So it is on any error below.

        Raises:
          StreamReset: the peer gave up its answer.
          StreamStopped: the peer stopped the request, and gave up its answer.
          StreamTooLarge: the answer is longer than `max_answer`; the peer was told to stop
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
        """A new stream; ``None`` while the peer permits none."""
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
        """The next bidirectional stream which the peer has opened, in the order of their IDs.

        A peer which uses a stream opens all lower-numbered ones too (RFC 9000
        section 2.1), so a stream can be accepted before anything arrives on it.
        Streams opened before the connection ended can still be accepted.

        Cancellation: no stream is lost.

        Raises:
          ShuttingDown: this side refuses further streams (:meth:`refuse_streams`).
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        return await self._accept(self._incoming)

    async def accept_receive_stream(self) -> ReceiveStream:
        """The next unidirectional stream which the peer has opened; see :meth:`accept_stream`."""
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

        That is: closed here, or by the peer with code 0.  It ends also when this side is
        shutting down.  Any other end raises :class:`ConnectionBroken`.

        Unidirectional streams, which the peer opens with :meth:`open_send_stream`, are not among
        these: :meth:`incoming_receive_streams` has them.  If such a stream waits while only this
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
        """From now on, refuse bidirectional streams which the peer opens; idempotent.

        For a side that ends soon: :func:`serve` and ``phoenix.shutdown`` call it.
        Streams which wait to be accepted, and all later ones, are refused with
        :attr:`ApplicationErrorCode.NOT_PROCESSED`, so that the peer may send the same again
        elsewhere.  :meth:`accept_stream` raises :class:`ShuttingDown`.  Accepted streams,
        unidirectional ones and datagrams go on.

        Returns the ID of the first stream of which no task here sees anything.
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

        Returns the seconds it took, which include the peer's acknowledgement delay.

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
        """Replace the packet protection keys (RFC 9001 section 6) and wait until the peer has.

        Raises:
          trio.BusyResourceError: another task is updating the keys.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended first.
        """
        with self._key_update:
            await self.wait_confirmed()
            if not self._engine.can_update_keys:
                # An update which began by itself is not acknowledged yet.
                await self.ping()
            self._engine.update_keys()
            # RFC 9001 section 6.1: no further update before this one was acknowledged.
            await self.ping()

    async def wait_confirmed(self) -> None:
        """Wait until both sides know that the handshake is complete (RFC 9001 section 4.1.2).

        Of use with early data (0-RTT), which an attacker can replay: what must
        not happen twice has to wait for this.

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
            # In TLS 1.3 a client is done before the server has judged the client's
            # certificate: only the confirmation says that it was accepted.
            if self._handshake_complete and (
                self._confirmed or not self._engine.client_certificate_requested
            ):
                return
            await self._wait(self._state_lot)
        raise self._ended_error()

    # ------------------------------------------------------------------ the end

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, on whichever side; see :attr:`close_reason`."""
        await trio.lowlevel.checkpoint()
        while not self._ended:
            await self._wait(self._state_lot)

    async def aclose(self, code: int = ApplicationErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close in good order: deliver what was sent, then say goodbye (CONNECTION_CLOSE).

        Waits until the peer's transport has acknowledged all stream data and
        queued datagrams have left; new calls to open, send or accept raise
        :class:`trio.ClosedResourceError` meanwhile.  How long that takes is
        bounded by the caller's cancel scope, by the idle timeout if the peer has
        gone, and by ``TransportConfig.max_blocked_time`` if it reads nothing.
        Idempotent; never raises because the peer has gone.

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
        """Called by the driver with what has happened."""
        for event in batch:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)

    def on_released(self, remains: ApplicationFace) -> None:
        """Called by the driver: the connection is over, and its engine freed.

        Streams which were not accepted yet still can be.
        """
        super().on_released(remains)
        self._take_stream = None
        # This connection keeps them, so they must not keep it alive.
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
    """Tell the peer that no task here sees anything of this stream."""
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
    events.PingAcknowledged: QuicConnection._on_ping,
    events.PathProbed: QuicConnection._on_path_probed,
    events.EarlyDataReady: QuicConnection._on_early_data,
    events.HandshakeCompleted: QuicConnection._on_handshake,
    events.HandshakeConfirmed: QuicConnection._on_confirmed,
    events.Terminated: QuicConnection._on_terminated,
}
