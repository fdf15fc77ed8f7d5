"""aioquic's per-stream and loss-recovery state, extended so that the engine hears of changes.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`: these are the
subclasses which the engine puts in the place of aioquic 1.7.2's own objects
(``quic/stream.py`` 25-340, ``quic/recovery.py`` 121-560, ``quic/connection.py``
``Limit`` 150).  aioquic looks at every open stream for every packet
(``connection.py`` 3711 and 3745); here a stream says itself when it has
something to send, so idle streams cost nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol

from aioquic.quic import events as aioquic_events
from aioquic.quic.connection import Limit, QuicConnectionError
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicStreamFrame,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import (
    K_PACKET_THRESHOLD,
    K_PERSISTENT_CONGESTION_THRESHOLD,
    K_TIME_THRESHOLD,
    QuicPacketRecovery,
    QuicPacketSpace,
)
from aioquic.quic.stream import (
    FinalSizeError,
    QuicStream,
    QuicStreamReceiver,
    QuicStreamSender,
)
from aioquic.tls import Epoch

from .flow_control import ReceiveWindow
from .reassembly import PieceLimit, ReassemblyBuffer
from .send_buffer import SendBuffer
from .skipped_numbers import SkippedNumbers
from .stalls import ON_TIME, Arrivals, StallFilter

__all__ = [
    "BulkPacket",
    "BulkRun",
    "CountingRecovery",
    "CryptoSender",
    "SentPackets",
    "ManyRanges",
    "StreamCountLimit",
    "StreamOwner",
    "StreamRecord",
    "StreamTable",
    "TrackedReceiver",
    "TrackedSender",
]


class StreamOwner(Protocol):
    """What these classes tell the engine."""

    piece_limit: PieceLimit
    """Bounds the pieces which all streams hold behind gaps."""

    def activate(self, stream: StreamRecord) -> None:
        """The stream has something to send, or has ended on the wire."""

    def note_dropped(self, count: int, unsent: int) -> None:
        """`count` bytes were dropped from the send buffers, `unsent` of them never sent."""

    def note_first_sent(self, count: int) -> None:
        """So many bytes which were never sent before were sent."""

    def note_acknowledged(self, count: int, fin: bool) -> None:
        """`count` more bytes at the front of a send buffer, or an end, were acknowledged."""

    def on_stream_discarded(self, stream_id: int) -> None:
        """aioquic has dropped a stream which ended on the wire."""

    def take_streams_with_new_limit(self) -> list[StreamRecord]:
        """The streams for which MAX_STREAM_DATA has to be sent."""


#: Half of what two bytes of packet number can tell apart, less a run and some reordering.
MAX_UNACKNOWLEDGED_PACKETS = 16_000

#: The smallest round-trip time which is believed, in seconds (RFC 9002 section 6.1.2).
_GRANULARITY = 0.001

#: Ranges up to which looking at each is quicker.
_FEW_RANGES = 16


class ManyRanges(RangeSet):
    """Ranges which a peer makes many of, added to in logarithmic time.

    aioquic's :meth:`add` (``quic/rangeset.py`` 13) looks at each, so a packet with a
    hundred tiny pieces between a thousand gaps cost 25 ms.
    """

    def add(self, start: int, stop: int | None = None) -> None:
        """Add a range; what touches becomes one."""
        ranges: list[range] = vars(self)["_RangeSet__ranges"]
        if len(ranges) < _FEW_RANGES:
            super().add(start, stop)
            return
        if stop is None:
            stop = start + 1
        first = bisect_left(ranges, start, key=attrgetter("stop"))
        last = bisect_right(ranges, stop, lo=first, key=attrgetter("start"))
        if first < last:
            start = min(start, ranges[first].start)
            stop = max(stop, ranges[last - 1].stop)
        ranges[first:last] = [range(start, stop)]


class CryptoSender(QuicStreamSender):
    """The CRYPTO data to send at one encryption level, which probes may send several times.

    Aioquic's (``quic/stream.py`` 265) takes each range for either acknowledged or lost,
    once.  A probe repeats what may still arrive (RFC 9002 section 6.2.4), so here any
    copy may be acknowledged or lost, in any order.
    """

    def __init__(self) -> None:
        super().__init__(stream_id=None, writable=True)

    @classmethod
    def adopt(cls, sender: QuicStreamSender) -> None:
        """Extend the sender of aioquic's CRYPTO stream, which is new."""
        sender.__class__ = cls

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        """Send again what is not acknowledged of the bytes from `start` to `stop`."""
        self.on_data_delivery(QuicDeliveryState.LOST, start, stop, fin)

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        start = max(start, self._buffer_start)
        if stop <= start:
            return
        if delivery is QuicDeliveryState.ACKED:
            self._pending.subtract(start, stop)
            if not len(self._pending):
                self.buffer_is_empty = True
            super().on_data_delivery(delivery, start, stop, fin)
            return
        self._pending.add(start, stop)
        for each in self._acked:
            self._pending.subtract(each.start, each.stop)
        self.buffer_is_empty = not len(self._pending)


class TrackedSender(QuicStreamSender):
    """The sending part of a stream, which reports acknowledgements and new work.

    In the place of aioquic's ranges of pending bytes, a border: what lies behind
    :attr:`highest_offset` was never sent, what lies before it and was lost is kept as
    ranges.  Most streams never lose anything, and have no ranges at all.
    """

    def __init__(self, stream_id: int, writable: bool, engine: StreamOwner, stream: StreamRecord):
        # All of what stream.py 175-192 sets which is used here or by aioquic: its own
        # initialisation makes buffers and ranges for every stream.
        self.buffer_is_empty = True
        self.highest_offset = 0
        self.is_finished = not writable
        self.reset_pending = False
        self._acked_fin = False
        self._buffer_fin: int | None = None
        self._pending_eof = False
        self._reset_error_code: int | None = None
        self._stream_id = stream_id
        self._engine = engine
        self._stream = stream
        self.data = SendBuffer()
        self._lost: RangeSet | None = None
        self._acknowledged_ahead: RangeSet | None = None
        self._is_repeating = False

    @property
    def buffered(self) -> int:
        """Bytes held: unsent and unacknowledged."""
        return self.data.stop - self.data.start

    @property
    def written(self) -> int:
        """Bytes written so far; the offset of the next one."""
        return self.data.stop

    @property
    def acknowledged(self) -> int:
        """All bytes below this offset were acknowledged."""
        return self.data.start

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
        if self.buffer_is_empty:
            return self.reset_pending
        if self._lost is not None:
            return True
        if self.highest_offset < self.data.stop:
            return self.highest_offset < self._stream.max_stream_data_remote
        return self._pending_eof

    @property
    def is_blocked(self) -> bool:
        """Whether bytes which were never sent wait for credit of this stream."""
        return (
            self._reset_error_code is None
            and self._stream.max_stream_data_remote <= self.highest_offset < self.data.stop
        )

    def next_range(self) -> tuple[int, int]:
        """The next bytes to send, from where to where: first those lost, then the new ones."""
        if self._lost is not None:
            first = self._lost[0]
            return first.start, first.stop
        return self.highest_offset, self.data.stop

    @property
    def next_offset(self) -> int:
        """Stream.py 194: the offset of the next frame."""
        return self.next_range()[0]

    def note_written(self, end_stream: bool) -> None:
        """Something was appended to :attr:`data`, or (`end_stream`) the stream's end is known."""
        self.buffer_is_empty = False
        if end_stream:
            self._buffer_fin = self.data.stop
            self._pending_eof = True

    @property
    def is_writable(self) -> bool:
        """Whether anything may be added: the stream was neither ended nor reset."""
        return self._buffer_fin is None and self._reset_error_code is None

    def get_frame(self, max_size: int, max_offset: int | None = None) -> QuicStreamFrame | None:
        """Stream.py 205: the next frame, at most so long and up to that offset."""
        if max_size < 0:
            return None
        start, end = self.next_range()
        if start == end:
            if self._pending_eof:
                self.note_sent(start, start)
                return QuicStreamFrame(fin=True, offset=start)
            self.buffer_is_empty = True
            return None
        stop = min(end, start + max_size)
        if max_offset is not None:
            stop = min(stop, max_offset)
        if stop <= start:
            return None
        frame = QuicStreamFrame(data=self.data.read(start, stop), offset=start)
        frame.fin = self.note_sent(start, stop)
        return frame

    def note_sent(self, start: int, stop: int) -> bool:
        """The bytes from `start` to `stop` leave; whether the end of the stream goes with them."""
        lost = self._lost
        if lost is not None and stop > start:
            lost.subtract(start, stop)
            if not len(lost):
                self._lost = None
        if stop > self.highest_offset:
            self._engine.note_first_sent(stop - self.highest_offset)
            self.highest_offset = stop
        fin = self._buffer_fin == stop
        if fin:
            self._pending_eof = False
        if self._lost is None and self.highest_offset == self.data.stop and not self._pending_eof:
            self.buffer_is_empty = True
        return fin

    def reset(self, error_code: int) -> None:
        if self._reset_error_code is None and not self.is_finished:
            super().reset(error_code)
            # Nothing will be sent again: let go of the data (RESET_STREAM needs
            # only the highest offset).
            data = self.data
            self._engine.note_dropped(len(data), data.stop - self.highest_offset)
            data.clear()
            self._lost = self._acknowledged_ahead = None
            self._engine.activate(self._stream)

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        """Stream.py 265: a range (and the end) was acknowledged, or is lost."""
        if self._reset_error_code is not None:
            return
        if delivery is not QuicDeliveryState.ACKED:
            self._on_lost(start, stop, fin)
            return
        data = self.data
        before = data.start
        if self._is_repeating:
            # One copy has arrived, so the other need not leave.
            self._drop_lost(start, stop)
            self._pending_eof = self._pending_eof and not fin
        if stop > start:
            if start > before or self._acknowledged_ahead is not None:
                stop = self._acknowledge_range(start, stop)
            data.release(stop)
        if fin:
            self._acked_fin = True
        if self._acked_fin and data.start == self._buffer_fin:
            self.is_finished = True
        self._engine.note_acknowledged(data.start - before, fin)
        if self.is_finished or not self.buffer_is_empty:
            self._engine.activate(self._stream)

    def _acknowledge_range(self, start: int, stop: int) -> int:
        """Something behind a gap, or the gap; returns up to where all is acknowledged."""
        ahead = self._acknowledged_ahead
        if ahead is None:
            ahead = self._acknowledged_ahead = ManyRanges()
        ahead.add(start, stop)
        reached = self.data.start
        while len(ahead) and ahead[0].start <= reached:
            reached = max(reached, ahead.shift().stop)
        if not len(ahead):
            self._acknowledged_ahead = None
        return reached

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        """Send a copy of what may still be on its way, in a probe (RFC 9002 section 6.2.4).

        Only from now on can bytes be acknowledged and lost, or either of it twice.
        """
        if self._reset_error_code is None:
            self._is_repeating = True
            self._on_lost(start, stop, fin)

    def _drop_lost(self, start: int, stop: int) -> None:
        if self._lost is not None and stop > start:
            self._lost.subtract(start, stop)
            if not len(self._lost):
                self._lost = None

    def _on_lost(self, start: int, stop: int, fin: bool) -> None:
        if self._is_repeating:
            start = max(start, self.data.start)
            fin = fin and not self._acked_fin
        if stop > start:
            if self._lost is None:
                self._lost = ManyRanges()
            self._lost.add(start, stop)
            if self._is_repeating and self._acknowledged_ahead is not None:
                for each in self._acknowledged_ahead:
                    self._drop_lost(each.start, each.stop)
        if fin:
            self._pending_eof = True
        if stop > start or fin:
            self.buffer_is_empty = False
            self._engine.activate(self._stream)

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        if self.is_finished:
            # Whoever waits for everything to be acknowledged waits for resets, too.
            self._engine.note_acknowledged(0, fin=True)
        self._engine.activate(self._stream)


class TrackedReceiver(QuicStreamReceiver):
    """The receiving part of a stream, which reports its end and keeps only what came."""

    def __init__(self, stream_id: int, readable: bool, engine: StreamOwner, stream: StreamRecord):
        # Stream.py 32-41, but for its buffer and ranges: data nearly always comes in order,
        # so the reassembly buffer is made when a gap first appears.
        self.highest_offset = 0
        self.is_finished = not readable
        self.stop_pending = False
        self._buffer_start = 0
        self._final_size: int | None = None
        self._stream_id = stream_id
        self._stop_error_code: int | None = None
        self._engine = engine
        self._stream = stream
        self._pending: ReassemblyBuffer | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no further credit is of use: the final size is known."""
        return self._final_size is not None or self.is_finished

    @property
    def delivered(self) -> int:
        """All bytes below this offset were delivered, or discarded."""
        return self._buffer_start

    @property
    def pending_ranges(self) -> list[range]:
        """The offsets received behind a gap."""
        return self._pending.ranges() if self._pending is not None else []

    def handle_frame(self, frame: QuicStreamFrame) -> aioquic_events.StreamDataReceived | None:
        """Stream.py 54: take a STREAM frame; return what can be delivered now."""
        offset, data = frame.offset, frame.data
        stop = offset + len(data)
        self._check_final_size(stop, frame.fin)
        if self.is_finished:
            return None  # a duplicate, or late after a reset
        start = self._buffer_start
        if offset < start:
            data = data[start - offset :]
            offset = start
        if self._stream.discarding:
            # The application is done with it; the event gives the credit back.
            self._discard_received()
            return self._received(data)
        pending = self._pending
        if pending is None or not len(pending):
            if offset > start and data:
                self._keep(offset, data)
                return None
            taken: bytes | bytearray = data
        else:
            if data:
                self._keep(offset, data)
            taken = pending.take(start)
        if taken:
            self._buffer_start = start + len(taken)
        if self._buffer_start == self._final_size:
            self._finish()
        elif not taken:
            return None
        return self._received(taken)

    def _received(self, data: bytes | bytearray) -> aioquic_events.StreamDataReceived:
        return aioquic_events.StreamDataReceived(
            data=data,  # type: ignore[arg-type]  # (a bytearray is as good)
            end_stream=self.is_finished,
            stream_id=self._stream.stream_id,
        )

    def _check_final_size(self, stop: int, fin: bool) -> None:
        """RFC 9000 section 4.5: the final size never changes, and no data lies beyond it."""
        if self._final_size is not None:
            if stop > self._final_size:
                raise FinalSizeError("Data received beyond final size")
            if fin and stop != self._final_size:
                raise FinalSizeError("Cannot change final size")
        if fin:
            if stop < self.highest_offset:
                raise FinalSizeError("Data received beyond final size")
            self._final_size = stop
        self.highest_offset = max(self.highest_offset, stop)

    def _keep(self, offset: int, data: bytes) -> None:
        pending = self._pending
        limit = self._engine.piece_limit
        if pending is None:
            pending = self._pending = ReassemblyBuffer(limit)
        pending.add(offset, data)
        if limit.is_exceeded:
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=QuicFrameType.STREAM_BASE,
                reason_phrase="Too many gaps in streams",
            )

    def _finish(self) -> None:
        self.is_finished = True
        self._engine.activate(self._stream)

    def discard(self) -> None:
        """Drop what lies behind gaps, now and later: the application is done with the stream."""
        if not self.is_finished:
            self._discard_received()

    def _discard_received(self) -> None:
        self.drop_pending()
        self._buffer_start = self.highest_offset
        if self._final_size is not None:
            # All that is missing are bytes which would be dropped, and their credit is known.
            self._finish()

    def drop_pending(self) -> None:
        """Free what lies behind gaps."""
        if self._pending is not None:
            self._pending.clear()
            self._pending = None

    def handle_reset(
        self, *, final_size: int, error_code: int = QuicErrorCode.NO_ERROR
    ) -> aioquic_events.StreamReset | None:
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        if event is not None:
            self.drop_pending()
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


class StreamRecord(QuicStream):
    """aioquic's stream, and what the engine knows of it beyond that, and for longer.

    It is in aioquic's table until the stream has ended on the wire, and in the engine's
    until the application has let go of both directions, too; only then may the peer
    open another in its place.
    """

    stream_id: int
    sender: TrackedSender
    receiver: TrackedReceiver

    def __init__(
        self,
        engine: StreamOwner,
        stream_id: int,
        *,
        max_stream_data_local: int,
        max_stream_data_remote: int,
        readable: bool,
        writable: bool,
        window: ReceiveWindow | None,
        is_local: bool,
    ) -> None:
        # Stream.py 356-369, with halves which report.
        self.is_blocked = False
        self.max_stream_data_local = max_stream_data_local
        self.max_stream_data_local_sent = max_stream_data_local
        self.max_stream_data_remote = max_stream_data_remote
        self.stream_id = stream_id
        self.receiver = TrackedReceiver(stream_id, readable, engine, self)
        self.sender = TrackedSender(stream_id, writable, engine, self)
        self.window = window
        self.is_local = is_local
        self.discarding = False
        self.wire_done = False
        self.send_released = not writable
        self.receive_released = not readable

    def detach(self) -> None:
        """The stream is over: its halves refer to it no more, so it is freed at once.

        (Packets in flight may still refer to a half, and report to it.)
        """
        self.sender._stream = self.receiver._stream = _NO_STREAM


def _make_no_stream() -> StreamRecord:
    record = object.__new__(StreamRecord)
    record.stream_id = -1
    record.max_stream_data_remote = 0
    record.discarding = record.wire_done = True
    record.send_released = record.receive_released = True
    return record


#: In the place of a stream which is over.
_NO_STREAM = _make_no_stream()


class StreamTable(dict[int, QuicStream]):
    """aioquic's ``_streams``, which tells the engine of streams that go.

    aioquic 1.7.2 iterates ``_streams.values()`` at one place only
    (``connection.py`` 3711: raise MAX_STREAM_DATA, for every packet), so
    :meth:`values` gives just the streams whose limit has to be announced.
    """

    def __init__(self, engine: StreamOwner) -> None:
        super().__init__()
        self._engine = engine

    def pop(self, stream_id: int, *default: Any) -> QuicStream:
        stream: QuicStream = super().pop(stream_id, *default)
        self._engine.on_stream_discarded(stream_id)
        return stream

    def values(self) -> list[StreamRecord]:  # type: ignore[override]
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


class BulkPacket:
    """A sent packet with just one STREAM frame without FIN; see :class:`BulkRun`."""

    __slots__ = ("packet_number", "sender", "sent_bytes", "sent_time", "start", "stop")

    epoch = Epoch.ONE_RTT
    in_flight = True
    is_ack_eliciting = True
    is_crypto_packet = False
    packet_type = QuicPacketType.ONE_RTT

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        sender: TrackedSender,
        start: int,
        stop: int,
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.sender = sender
        self.start = start
        self.stop = stop

    @property
    def delivery_handlers(self) -> list[tuple[Any, tuple[int, int, bool]]]:
        """What aioquic calls when the packet is lost."""
        return [(self.sender.on_data_delivery, (self.start, self.stop, False))]


class BulkRun:
    """Packets of one stream's data which were built together; it stands in for each of them.

    One object a run instead of one a packet: most are acknowledged together, and nobody
    ever asks for a single one.  :class:`SentPackets` makes them where somebody does.
    """

    __slots__ = ("capacity", "first", "sender", "sent_bytes", "sent_time", "start", "stop")

    in_flight = True
    is_ack_eliciting = True

    def __init__(
        self,
        first: int,
        stop: int,
        sent_time: float,
        sent_bytes: int,
        sender: TrackedSender,
        start: int,
        capacity: int,
    ) -> None:
        self.first = first
        """The first packet number, and ..."""
        self.stop = stop
        """... the one behind the last."""
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        """The size of each packet."""
        self.sender = sender
        self.start = start
        """The offset of the first packet's data in the stream."""
        self.capacity = capacity
        """Bytes of the stream in each packet."""

    def offset(self, number: int) -> int:
        """Where the data of a packet begins in the stream."""
        return self.start + (number - self.first) * self.capacity

    def packet(self, number: int) -> BulkPacket:
        """One of them."""
        start = self.offset(number)
        return BulkPacket(
            number, self.sent_time, self.sent_bytes, self.sender, start, start + self.capacity
        )


class SentPackets(dict[int, Any]):
    """aioquic's ``sent_packets`` (recovery.py 75): by number, ascending.

    A number may stand for a :class:`BulkRun`; aioquic, which looks through all of them
    when it looks for losses, is shown packets.
    """

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        return (packet for _, packet in self.items())

    def items(self) -> Iterator[tuple[int, Any]]:  # type: ignore[override]
        for number, each in super().items():
            yield number, each.packet(number) if type(each) is BulkRun else each


def _in_range(sent: Mapping[int, Any], start: int, stop: int) -> list[int]:
    """The numbers in `sent` (ascending) from `start` to before `stop`."""
    # Nearly always everything in front, so do not touch the rest.
    for first in sent:
        found = list(islice(sent, max(0, stop - first)))
        return found[bisect_left(found, start) : bisect_left(found, stop)]
    return []


def _newly_acknowledged(sent: Mapping[int, Any], ranges: Sequence[range]) -> list[int]:
    """The numbers of the packets in `sent` (ascending) which the ranges cover, ascending."""
    # The peer chooses how many ranges and frames it sends: visit only what they cover,
    # and nothing where all of them lie below what is unacknowledged.
    found: list[int] = []
    for first in sent:
        numbers = list(islice(sent, max(0, ranges[-1].stop - first)))
        for each in ranges:
            if each.stop > first:
                found += numbers[bisect_left(numbers, each.start) : bisect_left(numbers, each.stop)]
        break
    return found


class CountingRecovery(QuicPacketRecovery):
    """aioquic's loss recovery with counters."""

    packets_lost = 0
    packets_acknowledged = 0
    probe_timeouts = 0
    newly_acknowledged: Sequence[int] = ()
    """What the last ACK frame acknowledged for the first time, ascending."""
    newest_sent_time = 0.0
    """When the last of them was sent."""
    arrivals: Arrivals = ON_TIME
    """What the driver knows of when packets have arrived."""
    longest_backoff = math.inf
    """Seconds up to which the interval between probes doubles."""
    stalls: StallFilter
    _path_since = -math.inf
    skipped: SkippedNumbers
    """Numbers which no 1-RTT packet has; handshake packets have smaller ones."""

    on_acknowledged: Callable[[int], None]
    """Told the largest size of the packets in each acknowledgement."""
    on_handshake_timeout: Callable[[], None]
    """Told of each probe timeout before the handshake is confirmed."""
    on_handshake_hint: Callable[[], bool]
    """Told that the peer seems to lack data of the handshake (RFC 9002 section 6.2.3)."""
    on_lost: Callable[[int], None]
    """Told the largest size of packets which were in flight and are lost."""

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

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """Recovery.py 289, with work for what is newly acknowledged only, in few calls.

        Packets of one stream which follow each other are acknowledged as one range,
        and the congestion controller hears of the whole acknowledgement once.
        """
        self.on_ranges_acknowledged(ack_rangeset, ack_delay=ack_delay, now=now, space=space)

    def on_ranges_acknowledged(
        self, ranges: Sequence[range], *, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """An ACK frame with these ranges of packet numbers, ascending."""
        if len(ranges) == 1:
            numbers = _in_range(space.sent_packets, ranges[0].start, ranges[0].stop)
        else:
            numbers = _newly_acknowledged(space.sent_packets, ranges)
        self._on_acknowledged(numbers, ranges[-1].stop - 1, ack_delay, now, space)

    def _on_acknowledged(
        self,
        numbers: list[int],
        largest: int,
        ack_delay: float,
        now: float,
        space: QuicPacketSpace,
    ) -> None:
        space.largest_acked_packet = max(space.largest_acked_packet, largest)
        self.newly_acknowledged = numbers
        if not numbers:
            return
        sent: dict[int, Any] = space.sent_packets
        packet: Any = None
        eliciting = size = largest_size = 0
        sender: TrackedSender | None = None
        start = stop = 0
        index, count = 0, len(numbers)
        while index < count:
            number = numbers[index]
            index += 1
            packet = sent.pop(number)
            if type(packet) is not BulkRun:
                if packet.in_flight:
                    size += packet.sent_bytes
                    largest_size = max(largest_size, packet.sent_bytes)
                if packet.is_ack_eliciting:
                    eliciting += 1
                for handler, handler_arguments in packet.delivery_handlers:
                    handler(QuicDeliveryState.ACKED, *handler_arguments)
                continue
            # Those which follow in the same run, if no number is missing among them.
            following = min(count - index, packet.stop - number - 1)
            if following and numbers[index + following - 1] == number + following:
                for each in range(number + 1, number + following + 1):
                    del sent[each]
                index += following
            else:
                following = 0
            size += (following + 1) * packet.sent_bytes
            largest_size = max(largest_size, packet.sent_bytes)
            eliciting += following + 1
            begin = packet.offset(number)
            if packet.sender is not sender or begin != stop:
                if sender is not None:
                    sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, False)
                sender, start = packet.sender, begin
            stop = begin + (following + 1) * packet.capacity
        if sender is not None:
            sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, False)
        self.packets_acknowledged += len(numbers)
        self.newest_sent_time = packet.sent_time
        space.ack_eliciting_in_flight -= eliciting
        horizon = now
        # No probe timeout is shorter than this (RFC 9002 section 6.2.1).
        ordinary = self._rtt_smoothed + self.max_ack_delay if self._rtt_initialized else 0.0
        if now - self.arrivals.earliest > ordinary:
            horizon = self._horizon(packet.sent_time, now)
        if size:
            self.on_acknowledged(largest_size)
            batch = QuicSentPacket(
                Epoch.ONE_RTT,  # (of the packets, only time and size matter here)
                True,
                True,
                False,
                numbers[-1],
                QuicPacketType.ONE_RTT,
                packet.sent_time,
                size,
            )
            self._cc.on_packet_acked(packet=batch, now=horizon)
        sampled = largest == numbers[-1] and eliciting > 0 and packet.sent_time >= self._path_since
        if sampled:
            sample = now - packet.sent_time
            if sample > ordinary:
                sampled = self._take_late_sample(packet.sent_time, ack_delay, now)
            else:
                self._sample_rtt(sample, ack_delay, now)
        for oldest in sent:
            if oldest <= space.largest_acked_packet:
                self._detect_loss(now=now, space=space, as_of=horizon)
            else:
                space.loss_time = None  # nothing is missing: recovery.py 433 says the same
            break
        else:
            space.loss_time = None
        if self.peer_completed_address_validation:
            self._pto_count = 0
        if self._quic_logger is not None:
            self._log_metrics_updated(log_rtt=sampled)

    def begin_path(self, now: float) -> None:
        """Another path: what was sent before says nothing of its delay (RFC 9000 section 9.4)."""
        self._path_since = now
        self._pto_count = 0
        self._rtt_initialized = False
        self._rtt_min = math.inf
        self._rtt_latest = self._rtt_smoothed = self._rtt_variance = 0.0

    def _take_late_sample(self, sent_time: float, ack_delay: float, now: float) -> bool:
        """The newest packet acknowledged was sent at `sent_time`, perhaps a probe timeout ago.

        Returns whether that is a sample.
        """
        sample = now - sent_time
        patience = self.get_probe_timeout()
        if sample > patience:
            due = self._time_of_last_sent_ack_eliciting_packet + patience * 2**self._pto_count
            believed = self.stalls.sample(sent_time, now, self.arrivals.earliest, due, patience)
            if believed is None:
                return False
            if believed < sample:
                sample, ack_delay = believed, 0.0  # (a part of it, the peer's delay included)
        self._sample_rtt(sample, ack_delay, now)
        return True

    def _horizon(self, sent_time: float, now: float) -> float:
        """When an acknowledgement of a packet of `sent_time`, which is read now, came at least.

        Losses by time are judged as of then (RFC 9002 section 6.1.2): what shows that there
        are none may wait in the socket, and the timer, which comes after it, looks again.
        """
        earliest = max(self.arrivals.earliest, sent_time)
        return earliest if now - earliest > self.get_probe_timeout() else now

    def _sample_rtt(self, sample: float, ack_delay: float, now: float) -> None:
        """RFC 9002 section 5.3, with aioquic's floor of a millisecond (its loss delay needs it)."""
        if sample < 0:
            return  # a guess: the packet had arrived before, and waited for its keys
        latest = max(sample, _GRANULARITY)
        self._rtt_min = min(self._rtt_min, latest)
        if self.handshake_confirmed:
            ack_delay = min(ack_delay, self.max_ack_delay)
        if latest >= self._rtt_min + ack_delay:
            latest -= ack_delay
        self._rtt_latest = latest
        if self._rtt_initialized:
            variation = abs(self._rtt_smoothed - latest)
            self._rtt_variance += (variation - self._rtt_variance) / 4
            self._rtt_smoothed += (latest - self._rtt_smoothed) / 8
        else:
            self._rtt_first_sample_time = now
            self._rtt_initialized = True
            self._rtt_variance = sample / 2
            self._rtt_smoothed = sample
        self._cc.on_rtt_measurement(now=now, rtt=sample)
        self._pacer.update_rate(
            congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed
        )

    def _detect_loss(
        self, *, now: float, space: QuicPacketSpace, as_of: float | None = None
    ) -> None:
        """Recovery.py 474: declare packets lost (RFC 9002 section 6.1).

        By time, only those which were lost at `as_of`, if that is given.
        """
        expired = now if as_of is None else as_of
        largest = space.largest_acked_packet
        threshold = self.skipped.before(largest, K_PACKET_THRESHOLD)
        delay = K_TIME_THRESHOLD * (
            max(self._rtt_latest, self._rtt_smoothed)
            if self._rtt_initialized
            else self._rtt_initial
        )
        lost = []
        space.loss_time = None
        packet: Any
        for number, packet in space.sent_packets.items():
            if number > largest:
                break
            loss_time: float = packet.sent_time + delay
            if number <= threshold or packet.sent_time <= expired - delay:
                lost.append(packet)
            elif space.loss_time is None or space.loss_time > loss_time:
                space.loss_time = loss_time
        self._on_packets_lost(
            now=now,
            packets=lost,
            persistent_congestion=self._in_persistent_congestion(packets=lost),
            space=space,
        )

    def _in_persistent_congestion(self, *, packets: list[QuicSentPacket]) -> bool:
        """Recovery.py 522 (RFC 9002 section 7.6.2): a number left out ends no period."""
        if not self._rtt_initialized:
            return False
        duration = self.get_probe_timeout() * K_PERSISTENT_CONGESTION_THRESHOLD
        previous = -1
        began: float | None = None
        for packet in packets:
            number = packet.packet_number
            if self.skipped.before(number, 1) != previous:
                began = None  # a packet in between may have been acknowledged
            previous = number
            sent_time = packet.sent_time
            assert sent_time is not None
            if packet.is_ack_eliciting and sent_time > self._rtt_first_sample_time:
                if began is None:
                    began = sent_time
                elif sent_time - began > duration:
                    return True
        return False

    def on_loss_detection_timeout(self, *, now: float) -> None:
        due = self.get_loss_detection_time(amplification_limited=False)
        patience = self.get_probe_timeout()
        if due is not None and self.stalls.on_timer(due, now, self.arrivals.earliest, patience):
            self._cc.exclude(*self.stalls.last)  # type: ignore[attr-defined]
        if self._get_loss_space() is None:
            self.probe_timeouts += 1
            if not self.handshake_confirmed:
                self.on_handshake_timeout()
                return
        super().on_loss_detection_timeout(now=now)
        if self._pto_count and patience * 2**self._pto_count > self.longest_backoff:
            self._pto_count -= 1

    def reschedule_data(self, *, now: float, speed_up_handshake: bool = False) -> None:
        """Recovery.py 378, without forgetting packets while the handshake is under way."""
        if self.handshake_confirmed:
            super().reschedule_data(now=now, speed_up_handshake=speed_up_handshake)
        else:
            self.on_handshake_hint()

    def _on_packets_lost(self, *, packets: Iterable[QuicSentPacket], **arguments: Any) -> None:
        lost = tuple(packets)
        self.packets_lost += len(lost)
        super()._on_packets_lost(packets=lost, **arguments)
        if lost:
            self.on_lost(max([packet.sent_bytes for packet in lost if packet.in_flight] or [0]))
