"""aioquic's per-stream and loss-recovery state, extended so that the engine hears of changes.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`: these are the
subclasses which the engine puts in the place of aioquic 1.7.2's own objects
(``quic/stream.py`` 25-340, ``quic/recovery.py`` 121-560, ``quic/connection.py``
``Limit`` 150).  aioquic looks at every open stream for every packet
(``connection.py`` 3711 and 3745); here a stream says itself when it has
something to send, so idle streams cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from aioquic.quic import events as aioquic_events
from aioquic.quic.connection import Limit, QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from .flow_control import ReceiveWindow

__all__ = [
    "CountingRecovery",
    "StreamCountLimit",
    "StreamOwner",
    "StreamRecord",
    "StreamTable",
    "TrackedReceiver",
    "TrackedSender",
]


class StreamOwner(Protocol):
    """What these classes tell the engine."""

    def activate(self, stream: QuicStream) -> None:
        """The stream has something to send, or has ended on the wire."""

    def note_buffered(self, count: int) -> None:
        """The send buffers have grown by `count` bytes (or shrunk)."""

    def note_acknowledged(self, count: int, fin: bool) -> None:
        """`count` more bytes at the front of a send buffer, or an end, were acknowledged."""

    def adopt_stream(self, stream: QuicStream) -> None:
        """aioquic has made a stream."""

    def on_stream_discarded(self, stream_id: int) -> None:
        """aioquic has dropped a stream which ended on the wire."""

    def take_streams_with_new_limit(self) -> list[QuicStream]:
        """The streams for which MAX_STREAM_DATA has to be sent."""


#: Half of what two bytes of packet number can tell apart, less a run and some reordering.
MAX_UNACKNOWLEDGED_PACKETS = 16_000

#: Gaps in what was received of one stream, above which the peer is refused.  Flow
#: control bounds the bytes but not the bookkeeping for bytes sent with holes.
MAX_GAPS = 1000


class TrackedSender(QuicStreamSender):
    """The sending part of a stream, which reports acknowledgements and new work."""

    def __init__(
        self, stream_id: int, writable: bool, engine: StreamOwner, stream: QuicStream
    ) -> None:
        super().__init__(stream_id=stream_id, writable=writable)
        self._engine = engine
        self._stream = stream

    @property
    def buffered(self) -> int:
        """Bytes held: unsent and unacknowledged."""
        return len(self._buffer)

    @property
    def written(self) -> int:
        """Bytes written so far; the offset of the next one."""
        return self._buffer_stop

    @property
    def acknowledged(self) -> int:
        """All bytes below this offset were acknowledged."""
        return self._buffer_start

    @property
    def has_fin(self) -> bool:
        """Whether the end of the stream was written."""
        return self._buffer_fin is not None

    @property
    def was_reset(self) -> bool:
        """Whether the sending part was reset."""
        return self._reset_error_code is not None

    @property
    def has_work(self) -> bool:
        """Whether there is something to send which flow control of this stream permits."""
        if self.reset_pending:
            return True
        if self.buffer_is_empty:
            return False
        if len(self._pending):
            return self._pending[0].start < self._stream.max_stream_data_remote
        return self._pending_eof

    def write(self, data: bytes, end_stream: bool = False) -> None:
        super().write(data, end_stream=end_stream)
        self._engine.note_buffered(len(data))
        self._engine.activate(self._stream)

    def reset(self, error_code: int) -> None:
        if self._reset_error_code is None and not self.is_finished:
            super().reset(error_code)
            # Nothing will be sent again: let go of the data (RESET_STREAM needs
            # only the highest offset).
            self._engine.note_buffered(-len(self._buffer))
            self._buffer = bytearray()
            self._engine.activate(self._stream)

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        before = len(self._buffer)
        super().on_data_delivery(delivery, start, stop, fin)
        if delivery is QuicDeliveryState.ACKED:
            self._engine.note_acknowledged(before - len(self._buffer), fin)
        if self.is_finished or not self.buffer_is_empty:
            self._engine.activate(self._stream)

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        if self.is_finished:
            # Whoever waits for everything to be acknowledged waits for resets, too.
            self._engine.note_acknowledged(0, fin=True)
        self._engine.activate(self._stream)


class TrackedReceiver(QuicStreamReceiver):
    """The receiving part of a stream, which reports its end and bounds its bookkeeping."""

    def __init__(
        self, stream_id: int, readable: bool, engine: StreamOwner, stream: QuicStream
    ) -> None:
        super().__init__(stream_id=stream_id, readable=readable)
        self._engine = engine
        self._stream = stream

    @property
    def is_complete(self) -> bool:
        """Whether no further credit is of use: the final size is known."""
        return self._final_size is not None or self.is_finished

    def handle_frame(self, frame: QuicStreamFrame) -> aioquic_events.StreamDataReceived | None:
        event = super().handle_frame(frame)
        if len(self._ranges) > MAX_GAPS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=QuicFrameType.STREAM_BASE,
                reason_phrase=f"More than {MAX_GAPS} gaps in stream {self._stream_id}",
            )
        if self.is_finished:
            self._engine.activate(self._stream)
        return event

    def handle_reset(
        self, *, final_size: int, error_code: int = QuicErrorCode.NO_ERROR
    ) -> aioquic_events.StreamReset | None:
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        if event is not None:
            self._buffer = bytearray()
            self._engine.activate(self._stream)
        return event

    def stop(self, error_code: int = QuicErrorCode.NO_ERROR) -> None:
        super().stop(error_code)
        self._engine.activate(self._stream)

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        if delivery is QuicDeliveryState.ACKED or self.is_finished:
            return
        super().on_stop_sending_delivery(delivery)
        self._engine.activate(self._stream)


class StreamRecord:
    """What the engine knows of a stream beyond aioquic's state, and for longer.

    It lives until the stream has ended on the wire *and* the application has
    let go of both directions; only then may the peer open another in its place.
    """

    __slots__ = (
        "discarding",
        "is_local",
        "receive_released",
        "receiver",
        "send_released",
        "sender",
        "stream",
        "stream_id",
        "window",
        "wire_done",
    )

    def __init__(
        self,
        stream: QuicStream,
        sender: TrackedSender,
        receiver: TrackedReceiver,
        window: ReceiveWindow | None,
        *,
        is_local: bool,
    ) -> None:
        assert stream.stream_id is not None
        self.stream_id: int = stream.stream_id
        self.stream = stream
        self.sender = sender
        self.receiver = receiver
        self.window = window
        self.is_local = is_local
        self.discarding = False
        self.wire_done = False
        self.send_released = sender.is_finished
        self.receive_released = receiver.is_finished


class StreamTable(dict[int, QuicStream]):
    """aioquic's ``_streams``, which tells the engine of streams that come and go.

    aioquic 1.7.2 iterates ``_streams.values()`` at one place only
    (``connection.py`` 3711: raise MAX_STREAM_DATA, for every packet), so
    :meth:`values` gives just the streams whose limit has to be announced.
    """

    def __init__(self, engine: StreamOwner) -> None:
        super().__init__()
        self._engine = engine

    def __setitem__(self, stream_id: int, stream: QuicStream) -> None:
        self._engine.adopt_stream(stream)
        super().__setitem__(stream_id, stream)

    def pop(self, stream_id: int, *default: Any) -> QuicStream:
        stream: QuicStream = super().pop(stream_id, *default)
        self._engine.on_stream_discarded(stream_id)
        return stream

    def values(self) -> list[QuicStream]:  # type: ignore[override]
        return self._engine.take_streams_with_new_limit()


class StreamCountLimit(Limit):
    """MAX_STREAMS which follows the application, not the wire.

    aioquic adds one to ``value`` as soon as a stream has ended on the wire, so a
    peer could open and end streams without end while nobody accepts them.  Here
    the assignment is without effect and only :meth:`release` gives credit.
    """

    def __init__(self, frame_type: int, name: str, value: int) -> None:
        self._maximum: int = value
        super().__init__(frame_type=frame_type, name=name, value=value)

    @property
    def value(self) -> int:
        """How many streams the peer may have opened in all."""
        return self._maximum

    @value.setter
    def value(self, value: int) -> None:
        """Ignore aioquic's own credit."""

    def release(self) -> None:
        """The application is done with one stream."""
        self._maximum += 1


class CountingRecovery(QuicPacketRecovery):
    """aioquic's loss recovery with counters."""

    packets_lost = 0
    packets_acknowledged = 0
    probe_timeouts = 0

    @property
    def congestion_window(self) -> int:
        """The controller's window, closed while too many packets are unacknowledged.

        aioquic sends two bytes of each packet number, which is unambiguous for at
        most 32,767 packets in flight (RFC 9000 section 17.1); large send buffers on
        long paths would exceed that, and the peer could not decrypt any more.
        """
        window: int = self._cc.congestion_window
        if self.spaces and len(self.spaces[-1].sent_packets) >= MAX_UNACKNOWLEDGED_PACKETS:
            return min(window, self.bytes_in_flight)
        return window

    def on_ack_received(self, *, space: QuicPacketSpace, **arguments: Any) -> None:
        outstanding, lost = len(space.sent_packets), self.packets_lost
        super().on_ack_received(space=space, **arguments)
        newly_lost = self.packets_lost - lost
        self.packets_acknowledged += outstanding - len(space.sent_packets) - newly_lost

    def on_loss_detection_timeout(self, *, now: float) -> None:
        if self._get_loss_space() is None:
            self.probe_timeouts += 1
        super().on_loss_detection_timeout(now=now)

    def _on_packets_lost(self, *, packets: Iterable[QuicSentPacket], **arguments: Any) -> None:
        lost = tuple(packets)
        self.packets_lost += len(lost)
        super()._on_packets_lost(packets=lost, **arguments)
