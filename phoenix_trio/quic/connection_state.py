"""Keeps the state of one connection: facts, events from the engine, and waiting tasks.

Floor 3.  The engine below knows the protocol, and the driver calls it.  :class:`ConnectionState`
turns the engine's events into woken tasks.  It is the
:class:`~phoenix_trio.quic.stream_host.StreamHost` of the connection's streams.  The calls for
applications are in :mod:`.connection`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import trio

from ..errors import ApplicationErrorCode, ConnectionBroken, StreamReset, StreamStopped
from ..metrics import ConnectionStatistics
from . import events
from .conflict import ConflictDetector
from .established.datagram_queue import DatagramQueue
from .established.datagrams import MOST_LOSSES
from .logs import bounded_logger
from .path_address import (
    Address,
    SocketAddress,
    SocketPath,
    display_address,
    local_of,
    local_socket_address,
)
from .receiving_part import ReceivingPart
from .sending_part import SendingPart
from .stream_errors import check_error_code, describe_code, fresh
from .waiter import Lot

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from .driver import SocketDriver
    from .engine import Engine
    from .faces import ApplicationFace
    from .route import Route

__all__ = ["ConnectionState"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")


class ConnectionState:
    """The state of a connection, and the tasks that wait for it to change.

    It needs no task of its own: keep-alive, acknowledgements and timeouts are timers of the
    driver.  For users: :class:`QuicConnection`.
    """

    def __init__(self, driver: SocketDriver, engine: Engine) -> None:
        self._driver = driver
        self._use(engine)
        self._is_client = engine.is_client
        self._route: Route | None = None
        self._receivers: MutableMapping[int, ReceivingPart[Any]] = {}
        self._senders: dict[int, SendingPart[Any]] = {}
        self._on_ready: Callable[[], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._close_when_idle = False

        self._alpn_protocol: str | None = None
        self._session_resumed = False
        self._early_data_accepted: bool | None = None
        self._is_ready = False
        self._handshake_complete = False
        self._confirmed = False
        self._is_closing = False
        self._ended = False
        self._error: Exception | None = None
        self._address: Address | None = None
        self._peer_refuses = False
        self._peer_refuses_from: int | None = None

        self._lost_tags: deque[int] = deque(maxlen=MOST_LOSSES)
        self._datagrams = DatagramQueue(engine.config.datagram_queue_length, engine.receive_memory)
        self._flow_control_stalls = 0
        self._stream_credit_stalls = 0
        self._pings: dict[int, trio.lowlevel.ParkingLot] = {}
        self._ping_uid = 0
        self._waiting_for_room: dict[int, trio.lowlevel.ParkingLot] = {}
        self._waiting_for_progress: dict[
            object, tuple[trio.lowlevel.ParkingLot, Callable[[], bool]]
        ] = {}

        self._state_lot = trio.lowlevel.ParkingLot()  # handshake, confirmation, end
        self._accept_lot = trio.lowlevel.ParkingLot()
        self._credit_lots = (trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot())  # uni: 1
        self._send_lot = trio.lowlevel.ParkingLot()
        self._datagram_lot = trio.lowlevel.ParkingLot()
        self._lost_lot = trio.lowlevel.ParkingLot()
        self._key_update = ConflictDetector("another task is updating this connection's keys")
        self._move = ConflictDetector("another task is moving this connection")
        self._move_lot = trio.lowlevel.ParkingLot()
        self._probed: dict[Address, bool] = {}  # paths whose validation has ended

    def _use(self, engine: ApplicationFace) -> None:
        """Use `engine` from now on."""
        self._engine = engine
        # Streams use this for each write; the attribute saves a call in between.
        self._send_room = engine.send_room
        self._has_send_room = engine.has_send_room
        self._written = engine.written
        self._is_acknowledged = engine.is_acknowledged

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
        the endpoint's socket, or of the one to which the connection has moved.
        """
        return self._local_end(self._path_address())

    def _local_end(self, path: Address) -> SocketAddress:
        address = self._driver.sockets.address_of(path)
        local = None if type(path) is SocketPath else local_of(path)
        return address if local is None else local_socket_address(local, address[1])

    def _path_address(self) -> Address:
        """The address of the present path, or of the last one."""
        self._address = self._engine.get_peer_address() or self._address
        return ("", 0) if self._address is None else self._address

    @property
    def alpn_protocol(self) -> str | None:
        """The negotiated application protocol (RFC 7301)."""
        return self._alpn_protocol

    @property
    def version(self) -> int:
        """The QUIC version: 1 (RFC 9000) or 2 (RFC 9369).

        It is settled once the handshake is complete, and stays known after the end.
        """
        return self._engine.quic_version

    @property
    def cipher(self) -> str | None:
        """The TLS cipher suite (RFC 8446 appendix B.4), such as ``"TLS_AES_128_GCM_SHA256"``.

        ``None`` until it is agreed; known after the end, too.
        """
        return self._engine.cipher

    @property
    def key_exchange(self) -> str | None:
        """The group in which keys were exchanged (RFC 8446 section 4.2.7), as ``groups`` names it.

        ``"x25519mlkem768"`` protects against quantum computers, too.  ``None`` until it is
        agreed; known after the end, too.
        """
        return self._engine.key_exchange

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate (``cryptography.x509.Certificate``).

        ``None`` on a server whose client sent no certificate, and after the resumption of a
        session.
        """
        return self._engine.peer_certificate if self._is_ready else None

    @property
    def peer_certificate_chain(self) -> tuple[Certificate, ...]:
        """The peer's certificates, its own first, then the others in the order of arrival.

        Only the first is proved to be the peer's: a peer can send any others with it.  Empty
        where :attr:`peer_certificate` is ``None``.
        """
        return self._engine.peer_certificate_chain if self._is_ready else ()

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
        """Whether the connection has ended, by either side."""
        return self._ended

    @property
    def idle_timeout(self) -> float:
        """Seconds of silence by the peer until the connection ends.

        The smaller of both sides' values (RFC 9000 section 10.1), so it is known once the
        handshake is complete.  On slow paths the timeout lasts longer, at least three probe
        timeouts.  ``math.inf``: there is no timeout, or the connection has ended.
        """
        return self._engine.idle_timeout

    @property
    def keep_alive(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never.

        ``TransportConfig.keep_alive``, but at most half of the effective idle timeout.
        """
        return self._engine.keep_alive

    @property
    def close_reason(self) -> Exception | None:
        """Why the connection ended; ``None`` while it is open, or if it was closed here."""
        return self._error

    @property
    def available_streams(self) -> int:
        """The number of bidirectional streams that can be opened at present without waiting.

        This is the peer's unused stream credit (RFC 9000 section 4.6); 0 once the connection is
        closing.  It falls with each stream opened here, and rises when the peer notices the end
        of streams and grants new ones.
        """
        if self._is_closing:
            return 0
        return self._engine.available_streams

    @property
    def is_congested(self) -> bool:
        """Whether more data waits than the congestion window lets through in a round trip.

        Data written now leaves more than a round trip from now, so another connection, which
        takes a round trip to open, would be no slower.  ``False`` if the peer's flow control
        holds the data back, and once the connection has ended.
        """
        if self._ended:
            return False
        return self._engine.is_congested

    @property
    def peer_refuses_streams(self) -> bool:
        """Whether the peer has said that it takes no further streams, because it is going away.

        It says so by refusing a stream with :attr:`ApplicationErrorCode.NOT_PROCESSED`, or with
        a message of ``phoenix/1``.
        """
        return self._peer_refuses

    @property
    def streams_opened(self) -> int:
        """The number of streams opened by this side so far."""
        return self._engine.streams_opened

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight at present (RFC 9002 section 7); also after the end.

        This and the next two properties are fields of :meth:`statistics`, at a much lower cost.
        """
        return self._engine.congestion_window

    @property
    def rtt_smoothed(self) -> float | None:
        """The smoothed round-trip time in seconds; ``None`` before the first sample."""
        return self._engine.rtt_smoothed

    @property
    def path_mtu(self) -> int:
        """The largest UDP payload sent at present, in bytes."""
        return self._engine.path_mtu

    def statistics(self) -> ConnectionStatistics:
        """A frozen snapshot of the counters and estimates; also after the end."""
        return self._engine.statistics(
            datagrams_dropped_incoming=self._datagrams.dropped,
            flow_control_stalls=self._flow_control_stalls,
            stream_credit_stalls=self._stream_credit_stalls,
            receive_buffer_bytes=sum(r._buffer.size for r in self._receivers.values()),
        )

    # ------------------------------------------------------------------ for streams

    @property
    def _is_driven_by_waiters(self) -> bool:
        return not self._driver.has_own_tasks

    def _ended_error(self, stream_id: int | None = None) -> BaseException:
        if self._error is None:
            return trio.ClosedResourceError("this connection was closed")
        error = fresh(self._error)
        first = self._peer_refuses_from
        if (
            first is not None
            and stream_id is not None
            and stream_id >= first
            and (stream_id ^ first) & 0b11 == 0  # of the same kind (RFC 9000 section 2.1)
            and isinstance(error, ConnectionBroken)
        ):
            error.processed = False
        return error

    def _on_peer_refuses(self, first: int | None) -> None:
        """Note that the peer takes no further bidirectional streams of this side.

        Args:
          first: the first stream that its application does not see; ``None``: it is unknown.
        """
        self._peer_refuses = True
        if first is not None and (
            self._peer_refuses_from is None or first < self._peer_refuses_from
        ):
            self._peer_refuses_from = first

    def _touch(self) -> None:
        if self._route is not None:
            self._driver.flush_soon(self._route)

    def _wait(self, lot: Lot) -> Coroutine[object, Any, None]:
        """Wait in `lot`, which is unparked on a change of this connection or stream."""
        driver = self._driver
        self._rest()
        # A driver with tasks of its own ends this connection when it ends, which wakes all tasks.
        return lot.park() if driver.has_own_tasks else driver.wait(lot)

    async def _wait_for_room(self, stream_id: int, lot: trio.lowlevel.ParkingLot) -> None:
        """Park in `lot` until the stream may have room to send."""
        self._waiting_for_room[stream_id] = lot
        self._rest()
        try:
            await self._driver.wait(lot)
        finally:
            self._waiting_for_room.pop(stream_id, None)

    async def _wait_for_progress(
        self, lot: trio.lowlevel.ParkingLot, is_due: Callable[[], bool]
    ) -> None:
        """Park in `lot` until acknowledged or sent data has made `is_due` true, too."""
        call = object()
        self._waiting_for_progress[call] = (lot, is_due)
        self._rest()
        try:
            await self._driver.wait(lot)
        finally:
            del self._waiting_for_progress[call]

    def _note_stall(self) -> None:
        self._flow_control_stalls += 1

    def _write_end(self, stream_id: int, data: bytes | bytearray | memoryview) -> None:
        self._engine.write(stream_id, data, end_stream=True)

    def _flush_end(self) -> None:
        route = self._route
        if route is None:
            return
        if len(self._senders) <= 1:
            # Nothing else is likely to share the packet, and the peer can go on while this
            # task goes through the checkpoint of its call, and closes the stream.
            self._driver.flush_at_once(route)
        else:
            self._driver.flush_soon(route)
            route.writers.add(trio.lowlevel.current_task())

    def _write(self, stream_id: int, data: bytes | bytearray | memoryview) -> None:
        self._engine.write(stream_id, data)
        route = self._route
        if route is not None:
            self._driver.flush_soon(route)
            route.writers.add(trio.lowlevel.current_task())

    def _rest(self) -> None:
        """Note that the running task is about to wait, or is done with a stream."""
        route = self._route
        if route is not None and route.writers:
            self._driver.flush_if_writers_idle(route)

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
        """Called by the driver: take `route` as the way to the peer from now on."""
        self._route = route

    def on_released(self, remains: ApplicationFace) -> None:
        """Called by the driver: the connection is over, and its engine freed.

        References to this connection are cut, so that it is freed as soon as the application
        lets go of it.
        """
        self._is_closing = self._ended = True
        self._use(remains)
        self._route = None
        self._on_ready = self._on_end = None
        self._senders.clear()
        self._receivers = WeakValueDictionary(self._receivers)

    def _on_stream_data(self, event: events.StreamDataReceived) -> None:
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver._on_data(event.data, event.end_stream)

    def _on_stream_reset(self, event: events.StreamResetReceived) -> None:
        if event.error_code == ApplicationErrorCode.NOT_PROCESSED:
            self._on_peer_refuses(None)
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver._on_reset(
                StreamReset(
                    f"the peer reset stream {event.stream_id} with code"
                    f" {describe_code(event.error_code, self._alpn_protocol)}",
                    stream_id=event.stream_id,
                    error_code=event.error_code,
                )
            )

    def _on_stream_stop(self, event: events.StreamStopReceived) -> None:
        sender = self._senders.get(event.stream_id)
        if sender is not None:
            sender._on_stopped(
                StreamStopped(
                    f"the peer stopped stream {event.stream_id} with code"
                    f" {describe_code(event.error_code, self._alpn_protocol)}",
                    stream_id=event.stream_id,
                    error_code=event.error_code,
                )
            )

    def _on_stream_forgotten(self, event: events.StreamForgotten) -> None:
        self._forget_stream(event.stream_id)

    def _forget_stream(self, stream_id: int) -> None:
        self._receivers.pop(stream_id, None)
        self._senders.pop(stream_id, None)
        if self._close_when_idle:
            self._close_if_idle()

    def _on_progress(self, event: events.SendProgress) -> None:
        # Only the tasks that can go on: a hundred blocked writers must not all wake for one ACK.
        if self._waiting_for_room:
            for stream_id, lot in list(self._waiting_for_room.items()):
                if self._engine.has_send_room(stream_id):
                    lot.unpark_all()
        if self._waiting_for_progress:
            for lot, is_due in list(self._waiting_for_progress.values()):
                if is_due():
                    lot.unpark_all()

    def _on_streams_available(self, event: events.StreamsAvailable) -> None:
        self._offer_streams()

    def _offer_streams(self) -> None:
        """Wake as many calls that wait for a stream as there are streams."""
        for unidirectional, lot in enumerate(self._credit_lots):
            if lot:
                lot.unpark(count=self._engine.streams_left(unidirectional=bool(unidirectional)))

    def _on_datagram(self, event: events.DatagramReceived) -> None:
        self._datagrams.append(event.data)
        self._datagram_lot.unpark_all()

    def _on_datagrams_lost(self, event: events.DatagramsLost) -> None:
        self._lost_tags.extend(event.tags)
        self._lost_lot.unpark_all()

    def _on_ping(self, event: events.PingAcknowledged) -> None:
        lot = self._pings.pop(event.uid, None)
        if lot is not None:
            lot.unpark_all()

    def _on_path_probed(self, event: events.PathProbed) -> None:
        if self._move.busy:
            self._probed[event.address] = event.is_validated
            self._move_lot.unpark_all()

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
        self._offer_streams()

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

    # ------------------------------------------------------------------ the end

    def abort(self, code: int = ApplicationErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close at once: unsent data is dropped, the peer is told `code` and `reason`.

        Synchronous and idempotent; every pending call raises
        :class:`trio.ClosedResourceError`.

        Raises:
          ValueError: the code is not between 0 and 2**62 - 1.
        """
        code = check_error_code(code)
        self._is_closing = True
        if not self._ended:
            self._engine.close_application(code, reason)
            self._end(None)
            self._touch()

    def _close_if_idle(self) -> None:
        if self._close_when_idle and not self._receivers and not self._senders:
            self.abort(ApplicationErrorCode.NO_ERROR)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        _ = self.peer_address  # keep it for later questions
        self._is_closing = self._ended = True
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
            *self._credit_lots,
            self._send_lot,
            self._datagram_lot,
            self._lost_lot,
            self._move_lot,
            *self._pings.values(),
            *self._waiting_for_room.values(),
            *(lot for lot, _ in self._waiting_for_progress.values()),
        ):
            lot.unpark_all()
        if self._ended:
            for receiver in self._receivers.values():
                receiver._waiter.unpark_all()
        for sender in self._senders.values():
            sender._wake()
