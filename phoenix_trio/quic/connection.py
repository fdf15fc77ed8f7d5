"""A QUIC connection for Trio: open and accept streams, datagrams, close.

Floor 3.  The engine below knows the protocol, the driver turns the crank; this
class turns the engine's events into woken tasks.  It needs no task of its own:
keep-alive, acknowledgements and timeouts are the driver's timers.

When a connection ends, every call on it and on its streams raises why, after
what had arrived has been read.  A handler is not cancelled for it: unread data
would be lost silently.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final
from weakref import WeakValueDictionary

import trio

from ..errors import (
    ApplicationErrorCode,
    ConnectionClosedByPeer,
    DatagramsUnsupported,
    DatagramTooLarge,
    StreamReset,
    StreamStopped,
)
from ..metrics import ConnectionStatistics
from . import events
from .conflict import ConflictDetector
from .construction import NoPublicConstructor
from .datagram_queue import DatagramQueue
from .packet_io import display_address, local_socket_address
from .path_address import Address, SocketAddress, local_of
from .stream import QuicStream, ReceiveStream, SendStream, check_error_code, fresh
from .waiter import Lot

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from .driver import Route, SocketDriver
    from .engine import Engine
    from .remains import ConnectionRemains

__all__ = ["QuicConnection"]

logger = logging.getLogger("phoenix_trio.quic")

S = TypeVar("S", QuicStream, ReceiveStream)


@final
class QuicConnection(trio.abc.AsyncResource, metaclass=NoPublicConstructor):
    """A connection to one peer.

    Obtained from :func:`open_connection`, :meth:`Endpoint.connect`,
    :meth:`QuicListener.accept`, or as the argument of a :func:`serve` handler.
    As a context manager it is closed in good order when the block is left
    normally (see :meth:`aclose`), and aborted with
    :attr:`ApplicationErrorCode.CANCELLED` when it is left by an exception.

    Its methods may be called from several tasks at once.
    """

    def __init__(self, driver: SocketDriver, engine: Engine) -> None:
        self._driver = driver
        self._engine: Engine | ConnectionRemains = engine
        self._route: Route | None = None
        self._receivers: MutableMapping[int, ReceiveStream] = {}
        self._senders: dict[int, SendStream] = {}
        self._incoming: deque[QuicStream] = deque()
        self._incoming_one_way: deque[ReceiveStream] = deque()
        self._take_stream: Callable[[QuicStream], None] | None = None
        self._on_ready: Callable[[], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._close_when_idle = False

        self._alpn_protocol: str | None = None
        self._session_resumed = False
        self._early_data_accepted: bool | None = None
        self._is_ready = False
        self._handshake_complete = False
        self._confirmed = False
        self._closing = False
        self._ended = False
        self._error: Exception | None = None
        self._address: Address | None = None

        self._datagrams = DatagramQueue(engine.config.datagram_queue_length, engine.receive_memory)
        self._flow_control_stalls = 0
        self._stream_credit_stalls = 0
        self._pings: dict[int, trio.lowlevel.ParkingLot] = {}
        self._ping_uid = 0
        self._waiting_for_room: dict[int, trio.lowlevel.ParkingLot] = {}
        self._waiting_for_progress: dict[trio.lowlevel.ParkingLot, int] = {}

        self._state_lot = trio.lowlevel.ParkingLot()  # handshake, confirmation, end
        self._accept_lot = trio.lowlevel.ParkingLot()
        self._credit_lot = trio.lowlevel.ParkingLot()
        self._send_lot = trio.lowlevel.ParkingLot()
        self._datagram_lot = trio.lowlevel.ParkingLot()
        self._key_update = ConflictDetector("another task is updating this connection's keys")

    def __repr__(self) -> str:
        state = "closed" if self._ended else "open" if self._handshake_complete else "connecting"
        return f"<QuicConnection with {self.peer_address} ({state})>"

    # ------------------------------------------------------------------ facts

    @property
    def peer_address(self) -> SocketAddress:
        """The peer's address as ``(host, port)``; it changes when the peer migrates."""
        return display_address(self._path_address())

    @property
    def local_address(self) -> SocketAddress:
        """The address at which the peer reaches us, as ``(host, port)`` or longer for IPv6.

        Of an outgoing connection, and where the system does not tell: the address of
        the endpoint's socket.
        """
        address = self._driver.socket.address
        local = local_of(self._path_address())
        return address if local is None else local_socket_address(local, address[1])

    def _path_address(self) -> Address:
        """The address of the present path, or of the last one."""
        self._address = self._engine.get_peer_address() or self._address
        return ("", 0) if self._address is None else self._address

    @property
    def alpn_protocol(self) -> str | None:
        """The application protocol which was negotiated (RFC 7301)."""
        return self._alpn_protocol

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate (``cryptography.x509.Certificate``).

        ``None`` on a server whose client showed none, and where a session was resumed.
        """
        return self._engine.peer_certificate if self._is_ready else None

    @property
    def session_resumed(self) -> bool:
        """Whether a TLS session was resumed (RFC 8446 section 2.2)."""
        return self._session_resumed

    @property
    def early_data_accepted(self) -> bool | None:
        """Whether the server accepted 0-RTT data; ``None`` until the handshake is complete."""
        return self._early_data_accepted

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended, from whichever side."""
        return self._ended

    @property
    def idle_timeout(self) -> float:
        """Seconds without a word from the peer after which the connection ends.

        The smaller of both sides' values (RFC 9000 section 10.1), so it is known once the
        handshake is complete; on slow paths it lasts longer, at least three probe timeouts.
        ``math.inf``: there is none, or the connection has ended.
        """
        return self._engine.idle_timeout

    @property
    def keep_alive(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never.

        ``TransportConfig.keep_alive``, and half of the effective idle timeout at most.
        """
        return self._engine.keep_alive

    @property
    def close_reason(self) -> Exception | None:
        """Why the connection ended; ``None`` while it is open, or if it was closed here."""
        return self._error

    @property
    def available_streams(self) -> int:
        """How many bidirectional streams can be opened at present without waiting.

        The peer's stream credit which is not used yet (RFC 9000 section 4.6); 0 once
        the connection is closing.  It falls with each stream opened here, and rises
        when the peer has seen streams end and says so.
        """
        if self._is_closing:
            return 0
        return self._engine.available_streams

    @property
    def is_congested(self) -> bool:
        """Whether more waits to be sent than the congestion window lets through in a round trip.

        What is written now leaves more than a round trip from now, so that another
        connection, which takes one to open, would be no later.  ``False`` where the
        peer's flow control is what holds data back, and once the connection has ended.
        """
        if self._ended:
            return False
        return self._engine.is_congested

    @property
    def streams_opened(self) -> int:
        """How many streams this side has opened so far."""
        return self._engine.streams_opened

    def statistics(self) -> ConnectionStatistics:
        """A frozen snapshot of the counters and estimates; also after the end."""
        return self._engine.statistics(
            datagrams_dropped_incoming=self._datagrams.dropped,
            flow_control_stalls=self._flow_control_stalls,
            stream_credit_stalls=self._stream_credit_stalls,
            receive_buffer_bytes=sum(r._buffer.size for r in self._receivers.values()),
        )

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

    async def _open(self, *, unidirectional: bool) -> int:
        await trio.lowlevel.checkpoint()
        stalled = False
        while True:
            if self._is_closing:
                raise self._ended_error()
            stream_id = self._engine.open_stream(unidirectional=unidirectional)
            if stream_id is not None:
                return stream_id
            if not stalled:
                stalled = True
                self._stream_credit_stalls += 1
            self._engine.want_stream(1, unidirectional=unidirectional)
            self._touch()  # (its timers have changed)
            try:
                await self._wait(self._credit_lot)
            finally:
                self._engine.want_stream(-1, unidirectional=unidirectional)

    async def accept_stream(self) -> QuicStream:
        """The next bidirectional stream which the peer has opened, in the order of their IDs.

        A peer which uses a stream opens all lower-numbered ones too (RFC 9000
        section 2.1), so a stream can be accepted before anything arrives on it.
        Streams opened before the connection ended can still be accepted.

        Cancellation: no stream is lost.

        Raises:
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        return await self._accept(self._incoming)

    async def accept_receive_stream(self) -> ReceiveStream:
        """The next unidirectional stream which the peer has opened; see :meth:`accept_stream`."""
        return await self._accept(self._incoming_one_way)

    async def _accept(self, queue: deque[S]) -> S:
        if queue or self._closing or self._ended:
            await trio.lowlevel.checkpoint()
        while not queue:
            if self._closing or self._ended:
                raise self._ended_error()
            await self._wait(self._accept_lot)
        stream = queue.popleft()
        if self._ended:
            stream._attach(self)  # (see on_released)
        return stream

    def incoming_streams(self) -> AsyncIterator[QuicStream]:
        """Iterate over :meth:`accept_stream`; ends when the connection is closed in good order.

        That is: closed here, or by the peer with code 0.  Any other end raises
        :class:`ConnectionBroken`.
        """
        return _Incoming(self, self._incoming)

    def incoming_receive_streams(self) -> AsyncIterator[ReceiveStream]:
        """Iterate over :meth:`accept_receive_stream`; see :meth:`incoming_streams`."""
        return _Incoming(self, self._incoming_one_way)

    # ------------------------------------------------------------------ datagrams

    @property
    def max_datagram_size(self) -> int | None:
        """The largest datagram which can be sent at present, in bytes; ``None``: none at all.

        It can change while the connection lives (with the path's MTU).
        """
        return self._engine.max_datagram_payload if self._is_ready else None

    def _check_datagram(self, data: bytes | bytearray | memoryview) -> bytes:
        if self._is_closing:
            raise self._ended_error()
        maximum = self._engine.max_datagram_payload
        if maximum is None:
            raise DatagramsUnsupported(
                "datagrams (RFC 9221) are switched off on this side or by the peer, or the peer's"
                " limit (max_datagram_frame_size) does not hold even an empty one"
            )
        payload = bytes(data)
        if len(payload) > maximum:
            raise DatagramTooLarge(len(payload), maximum)
        return payload

    async def send_datagram(self, data: bytes | bytearray | memoryview) -> None:
        """Send an unreliable datagram (RFC 9221), waiting while the queue is full.

        It may be lost or arrive out of order, but never in part.  The queue holds
        ``TransportConfig.datagram_queue_length`` datagrams.

        Cancellation: the datagram was not sent.

        Raises:
          DatagramTooLarge: larger than :attr:`max_datagram_size`.
          DatagramsUnsupported: the peer takes none, not even an empty one.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        await trio.lowlevel.checkpoint()
        payload = self._check_datagram(data)
        while self._engine.datagram_queue_is_full:
            self._engine.want_datagram_room()
            await self._wait_for_progress(self._send_lot)
            payload = self._check_datagram(payload)
        self._engine.send_datagram(payload)
        self._touch()

    def send_datagram_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """Send an unreliable datagram; if the queue is full, its oldest one is dropped instead.

        Drops are counted in :meth:`statistics`.  Raises like :meth:`send_datagram`.
        """
        self._engine.send_datagram(self._check_datagram(data))
        self._touch()

    async def receive_datagram(self) -> bytes:
        """The next datagram from the peer.

        At most ``datagram_queue_length`` are kept; when more arrive unread, the
        oldest are dropped and counted.  What arrived before the end of the
        connection can still be received.

        Cancellation: no datagram is lost.

        Raises:
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._datagrams:
            if self._closing or self._ended:
                raise self._ended_error()
            await self._wait(self._datagram_lot)
        return self._datagrams.popleft()

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
        self._closing = True
        self._wake_all()
        try:
            await trio.lowlevel.checkpoint()
            engine = self._engine
            while not self._ended and (
                engine.has_unacknowledged_streams or engine.has_queued_datagrams
            ):
                if engine.has_queued_datagrams:
                    engine.want_datagram_room()
                await self._wait_for_progress(self._send_lot)
        finally:
            self.abort(code, reason)

    def abort(self, code: int = ApplicationErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close at once: unsent data is dropped, the peer is told `code` and `reason`.

        Synchronous and idempotent; every pending call raises
        :class:`trio.ClosedResourceError`.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        code = check_error_code(code)
        self._closing = True
        if not self._ended:
            self._engine.close_application(code, reason)
            self._end(None)
            self._touch()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort(ApplicationErrorCode.CANCELLED)
        await self.aclose()

    # ------------------------------------------------------------------ for streams

    @property
    def _is_closing(self) -> bool:
        return self._closing or self._ended

    @property
    def _is_driven_by_waiters(self) -> bool:
        return not self._driver.has_own_tasks

    def _ended_error(self) -> BaseException:
        if self._error is not None:
            return fresh(self._error)
        return trio.ClosedResourceError("this connection was closed")

    def _touch(self) -> None:
        if self._route is not None:
            self._driver.touch(self._route)

    def _wait(self, lot: Lot) -> Coroutine[object, Any, None]:
        """Wait in `lot`, where a change of this connection or stream is told."""
        driver = self._driver
        self._rest()
        # Where the driver has tasks of its own, its end is this connection's, which wakes all.
        return lot.park() if driver.has_own_tasks else driver.wait(lot)

    async def _wait_for_room(self, stream_id: int, lot: trio.lowlevel.ParkingLot) -> None:
        """Park in `lot` until the stream may have room to send."""
        self._waiting_for_room[stream_id] = lot
        self._rest()
        try:
            await self._driver.wait(lot)
        finally:
            self._waiting_for_room.pop(stream_id, None)

    async def _wait_for_progress(self, lot: trio.lowlevel.ParkingLot) -> None:
        """Park in `lot` until something was acknowledged or sent, too."""
        waiting = self._waiting_for_progress
        waiting[lot] = waiting.get(lot, 0) + 1
        self._rest()
        try:
            await self._driver.wait(lot)
        finally:
            if waiting[lot] == 1:
                del waiting[lot]
            else:
                waiting[lot] -= 1

    def _note_stall(self) -> None:
        self._flow_control_stalls += 1

    def _write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        self._engine.write(stream_id, data, end_stream=end_stream)
        route = self._route
        if route is not None:
            self._driver.touch(route)
            route.writers.add(trio.lowlevel.current_task())

    def _rest(self) -> None:
        """The running task is about to wait, or is done with a stream."""
        route = self._route
        if route is not None and route.writers:
            self._driver.on_rest(route)

    def _reset_sending(self, stream_id: int, code: int) -> None:
        self._engine.reset_sending(stream_id, code)
        self._touch()

    def _stop_receiving(self, stream_id: int, code: int) -> None:
        self._engine.stop_receiving(stream_id, code)
        self._touch()

    def _consumed(self, stream_id: int, count: int) -> None:
        engine = self._engine
        if engine.consume(stream_id, count):
            engine.extend_credit(stream_id, trio.current_time())
            if engine.has_limits_to_send:
                self._touch()

    def _let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> None:
        if self._engine.let_go(stream_id, sending=sending, receiving=receiving):
            self._forget_stream(stream_id)
        if self._engine.has_limits_to_send:
            self._touch()

    # ------------------------------------------------------------------ events from below

    def bind(self, route: Route) -> None:
        """Called by the driver: from now on, `route` leads to the peer."""
        self._route = route

    def handle_events(self, batch: list[events.Event]) -> None:
        """Called by the driver with what has happened."""
        for event in batch:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)

    def on_released(self, remains: ConnectionRemains) -> None:
        """Called by the driver: the connection is over, and its engine freed.

        What refers to this connection is let go of, so that it is freed as soon as the
        application lets go of it.  Streams which were not accepted yet still can be.
        """
        self._ended = True
        self._engine = remains
        self._route = None
        self._on_ready = self._on_end = self._take_stream = None
        self._senders.clear()
        self._receivers = WeakValueDictionary(self._receivers)
        for stream in self._incoming:
            stream._detach()
        for receiver in self._incoming_one_way:
            receiver._detach()

    def _on_stream_data(self, event: events.StreamDataReceived) -> None:
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver._on_data(event.data, event.end_stream)

    def _on_stream_opened(self, event: events.StreamOpened) -> None:
        stream_id = event.stream_id
        if stream_id & 2:
            receiver = self._make_receiver(stream_id)
            self._incoming_one_way.append(receiver)
        else:
            stream = self._make_stream(stream_id)
            if self._take_stream is not None:
                self._take_stream(stream)
                return
            self._incoming.append(stream)
        if self._accept_lot:
            self._accept_lot.unpark_all()

    def _on_stream_reset(self, event: events.StreamResetReceived) -> None:
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver._on_reset(
                StreamReset(
                    f"the peer reset stream {event.stream_id} with code 0x{event.error_code:x}",
                    stream_id=event.stream_id,
                    error_code=event.error_code,
                )
            )

    def _on_stream_stop(self, event: events.StreamStopReceived) -> None:
        sender = self._senders.get(event.stream_id)
        if sender is not None:
            sender._on_stopped(
                StreamStopped(
                    f"the peer stopped stream {event.stream_id} with code 0x{event.error_code:x}",
                    stream_id=event.stream_id,
                    error_code=event.error_code,
                )
            )

    def _on_stream_forgotten(self, event: events.StreamForgotten) -> None:
        self._forget_stream(event.stream_id)

    def _forget_stream(self, stream_id: int) -> None:
        self._receivers.pop(stream_id, None)
        self._senders.pop(stream_id, None)
        self._close_if_idle()

    def _on_progress(self, event: events.SendProgress) -> None:
        # Only those who can go on: a hundred blocked writers must not all wake for one ACK.
        if self._waiting_for_room:
            for stream_id, lot in list(self._waiting_for_room.items()):
                if self._engine.has_send_room(stream_id):
                    lot.unpark_all()
        if self._waiting_for_progress:
            for lot in list(self._waiting_for_progress):
                lot.unpark_all()

    def _on_streams_available(self, event: events.StreamsAvailable) -> None:
        self._credit_lot.unpark_all()

    def _on_datagram(self, event: events.DatagramReceived) -> None:
        self._datagrams.append(event.data)
        self._datagram_lot.unpark_all()

    def _on_ping(self, event: events.PingAcknowledged) -> None:
        lot = self._pings.pop(event.uid, None)
        if lot is not None:
            lot.unpark_all()

    def _on_early_data(self, event: events.EarlyDataReady) -> None:
        self._alpn_protocol = event.alpn_protocol
        self._become_ready()

    def _on_handshake(self, event: events.HandshakeCompleted) -> None:
        self._alpn_protocol = event.alpn_protocol
        self._session_resumed = event.session_resumed
        self._early_data_accepted = event.early_data_accepted
        self._handshake_complete = True
        self._become_ready()
        self._state_lot.unpark_all()
        self._credit_lot.unpark_all()

    def _become_ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            on_ready, self._on_ready = self._on_ready, None
            if on_ready is not None:
                on_ready()

    def _on_confirmed(self, event: events.HandshakeConfirmed) -> None:
        self._confirmed = True
        self._state_lot.unpark_all()

    def _on_terminated(self, event: events.Terminated) -> None:
        self._end(event.error)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        _ = self.peer_address  # keep it for later questions
        self._ended = True
        self._error = error
        if error is not None:
            logger.debug("connection with %s ended: %s", self._address, error)
        self._wake_all()
        if self._on_end is not None:
            self._on_end()

    def _wake_all(self) -> None:
        for lot in (
            self._state_lot,
            self._accept_lot,
            self._credit_lot,
            self._send_lot,
            self._datagram_lot,
            *self._pings.values(),
            *self._waiting_for_room.values(),
            *self._waiting_for_progress,
        ):
            lot.unpark_all()
        if self._ended:
            for receiver in self._receivers.values():
                receiver._waiter.unpark_all()
        for sender in self._senders.values():
            sender._wake()

    # ------------------------------------------------------------------ inside

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

    def _close_if_idle(self) -> None:
        if self._close_when_idle and not self._receivers and not self._senders:
            self.abort(ApplicationErrorCode.NO_ERROR)


class _Incoming(Generic[S]):
    """An iterator rather than an async generator, so that a loop can be left at any point."""

    def __init__(self, connection: QuicConnection, queue: deque[S]) -> None:
        self._connection = connection
        self._queue: deque[S] = queue

    def __aiter__(self) -> _Incoming[S]:
        return self

    async def __anext__(self) -> S:
        try:
            return await self._connection._accept(self._queue)
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None
        except ConnectionClosedByPeer as error:
            if error.is_clean:
                raise StopAsyncIteration from None
            raise


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
    events.EarlyDataReady: QuicConnection._on_early_data,
    events.HandshakeCompleted: QuicConnection._on_handshake,
    events.HandshakeConfirmed: QuicConnection._on_confirmed,
    events.Terminated: QuicConnection._on_terminated,
}
