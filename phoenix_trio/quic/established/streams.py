"""Runs the streams of one connection: the application's calls on them, and their frames.

Floor 1, sans-IO.  Received frames come parsed; frames to send are appended to a packet's parts.
"""

from __future__ import annotations

import math

from ...config import TransportConfig
from ..events import Event, StreamDataReceived, StreamResetReceived, StreamStopReceived
from ..wire.frames import (
    DATA_BLOCKED,
    MAX_DATA,
    MAX_STREAM_DATA,
    MAX_STREAMS_BIDI,
    MAX_STREAMS_UNI,
    RESET_STREAM,
    STOP_SENDING,
    STREAM,
    STREAM_DATA_BLOCKED,
    STREAMS_BLOCKED_BIDI,
    STREAMS_BLOCKED_UNI,
    build_data_blocked,
    build_max_streams,
    build_stream_data_blocked,
    build_streams_blocked,
)
from .blocked import BlockedSignals
from .memory_budget import EndpointMemory
from .receive_stream import ReceiveStream
from .sending import add_control
from .sent_packet import SentPacket
from .stream_table import StreamTable

__all__ = ["Streams"]

_LONGEST_MAX_STREAMS = 1 + 8

#: The most STREAM_DATA_BLOCKED frames at a time: enough to keep a connection alive.
_BLOCKED_STREAMS = 16

#: The most bytes of DATA_BLOCKED, STREAMS_BLOCKED of both kinds, and STREAM_DATA_BLOCKED frames.
_LONGEST_BLOCKED = 3 * (1 + 8) + _BLOCKED_STREAMS * (1 + 8 + 8)


class Streams(StreamTable):
    """The streams of one connection, with their data and their frames.

    Args: those of :class:`~phoenix_trio.quic.established.stream_table.StreamTable`.
    """

    __slots__ = ("_signals", "blocked_pending", "bytes_received")

    def __init__(
        self,
        is_client: bool,
        config: TransportConfig,
        memory: EndpointMemory,
        events: list[Event],
    ) -> None:
        super().__init__(is_client, config, memory, events)
        self._signals: BlockedSignals = BlockedSignals(config.max_blocked_time)
        self.blocked_pending: bool = False
        """Whether the frames that report blocking are to be sent now."""
        self.bytes_received: int = 0
        """Stream bytes delivered, or discarded."""

    # -- the application sends

    def send_room(self, stream_id: int, wanted: int = 1) -> int:
        """Bytes that may be written to the stream now within the limits of the send buffers.

        Args:
          stream_id: the stream.
          wanted: bytes that the caller has to write; so many are requested of the endpoint's
            memory.
        """
        sender = self.senders.get(stream_id)
        return self.sending.room(sender, wanted) if sender is not None else 0

    def has_send_room(self, stream_id: int) -> bool:
        """Whether a blocked writer should go on: the buffers are half empty."""
        sender = self.senders.get(stream_id)
        return sender is None or self.sending.has_room(sender)

    def write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        """Append to a stream's send buffer (the caller has asked :meth:`send_room`).

        Immutable data of some size is kept, not copied.

        Raises:
          RuntimeError: the stream has ended, or was reset.
        """
        self.sending.write(self.senders[stream_id], data, end_stream)

    def written(self, stream_id: int) -> int:
        """Bytes written to the stream so far."""
        sender = self.senders.get(stream_id)
        return sender.buffer.stop if sender is not None else 0

    def is_acknowledged(self, stream_id: int, offset: int, *, with_fin: bool) -> bool:
        """Whether the peer has acknowledged everything below `offset` (and the end)."""
        sender = self.senders.get(stream_id)
        if sender is None or sender.is_finished:
            return True
        return sender.buffer.start >= offset and not with_fin

    def has_unacknowledged_streams(self) -> bool:
        """Whether any stream holds data, or an end, not acknowledged by the peer."""
        return self.sending.buffered > 0 or any(
            not sender.is_finished and (sender.final_size >= 0 or sender.reset_code >= 0)
            for sender in self.senders.values()
        )

    def reset_sending(self, stream_id: int, error_code: int) -> None:
        """Send RESET_STREAM, and drop unacknowledged data."""
        sender = self.senders.get(stream_id)
        if sender is not None:
            sender.reset(error_code)

    # -- the application receives

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Send STOP_SENDING, and discard later data; its credit is given back."""
        receiver = self.receivers.get(stream_id)
        if receiver is None or receiver.is_discarding:
            return
        receiver.is_discarding = True
        if not receiver.is_finished:
            receiver.stop_code = error_code
            self._ask_to_stop(receiver)
            receiver.discard()
        self.receiving.release_up_to(receiver, receiver.received, self.now, self.rtt)

    def consume(self, stream_id: int, count: int) -> bool:
        """Credit `count` more bytes to the peer, since the application has read them.

        Returns whether :meth:`extend_credit` is to be called.
        """
        receiver = self.receivers.get(stream_id)
        if receiver is None:
            return False
        window, shared = receiver.window, self.receiving.window
        # A reset or the end of reading gives back all credit at once (RFC 9000 section 4.5);
        # bytes read afterwards, from the same batch of events, are not new.
        unread = receiver.received - window.released
        if count > unread:
            count = unread
        window.released += count
        shared.released += count
        return shared.is_due or (window.is_due and receiver.final_size < 0)

    def extend_credit(self, stream_id: int, now: float, rtt: float) -> None:
        """Announce the credit for bytes read since the last call; see :meth:`consume`.

        Args:
          stream_id: the stream.
          now: the time.
          rtt: the round-trip time, in seconds; windows grow by it.
        """
        self.now = now
        self.rtt = rtt
        receiver = self.receivers.get(stream_id)
        if receiver is not None:
            self.receiving.update(receiver, now, rtt)

    # -- received frames

    def take_stream(
        self, plain: bytes, stream_id: int, offset: int, begin: int, end: int, fin: int
    ) -> None:
        """Take a STREAM frame (RFC 9000 section 19.8), with its data at ``plain[begin:end]``.

        Raises:
          TransportError: the peer broke a rule.
        """
        receiver = self.receivers.get(stream_id)
        if receiver is None:
            receiver = self.find_receiver(stream_id, STREAM)
            if receiver is None:
                return
        receiving = self.receiving
        count = end - begin
        reached = offset + count
        if (
            receiver.delivered == offset == receiver.received
            and receiver.final_size < 0
            and reached <= receiver.limit
            and receiving.received + count <= receiving.max_data
            and not receiver.is_discarding
        ):
            if fin:
                receiver.final_size = reached
                receiver.is_finished = True
                self._ended.append(stream_id)
            elif not count:
                return
            receiving.received += count
            receiver.received = receiver.delivered = reached
            self.bytes_received += count
            self._events.append(StreamDataReceived(stream_id, plain[begin:end], fin != 0))
            return
        if receiver.is_finished and (
            reached == receiver.final_size or (reached < receiver.final_size and not fin)
        ):
            return  # a repetition
        self._take_out_of_order(receiver, offset, plain[begin:end], fin != 0)

    def _take_out_of_order(
        self, receiver: ReceiveStream, offset: int, data: bytes, fin: bool
    ) -> None:
        receiving = self.receiving
        new = receiving.check(receiver, offset + len(data), STREAM)
        was_finished = receiver.is_finished
        taken = receiver.take(offset, data, fin)
        receiving.received += new
        if was_finished:
            return
        if receiver.is_finished:
            self._ended.append(receiver.stream_id)
        if receiver.is_discarding:
            self.bytes_received += new
            receiving.release_up_to(receiver, receiver.received, self.now, self.rtt)
        elif taken or receiver.is_finished:
            self.bytes_received += len(taken)
            self._events.append(StreamDataReceived(receiver.stream_id, taken, receiver.is_finished))

    def bulk_limit(self, stream_id: int, offset: int) -> int:
        """The highest offset permitted for data that continues a stream in order from `offset`.

        -1: the data does not continue an open stream, or needs more work; use :meth:`take_stream`.
        """
        receiver = self.receivers.get(stream_id)
        if (
            receiver is None
            or not receiver.delivered == offset == receiver.received
            or receiver.final_size >= 0
            or receiver.is_discarding
        ):
            return -1
        receiving = self.receiving
        limit = offset + receiving.max_data - receiving.received
        return min(limit, receiver.limit)

    def take_bulk(self, stream_id: int, data: bytes | bytearray, reached: int) -> None:
        """Take in-order data up to the offset `reached`, permitted by :meth:`bulk_limit`."""
        receiver = self.receivers[stream_id]
        count = reached - receiver.received
        self.receiving.received += count
        receiver.received = receiver.delivered = reached
        self.bytes_received += count
        self._events.append(StreamDataReceived(stream_id, data, False))

    def take_reset(self, stream_id: int, code: int, final_size: int) -> None:
        """Take a RESET_STREAM frame (RFC 9000 section 19.4).

        Raises:
          TransportError: the peer broke a rule.
        """
        receiver = self.find_receiver(stream_id, RESET_STREAM)
        if receiver is None:
            return
        new = self.receiving.check(receiver, final_size, RESET_STREAM)
        if receiver.reset(final_size):
            self.receiving.received += new
            self._ended.append(stream_id)
            self.receiving.release_up_to(receiver, final_size, self.now, self.rtt)
            self._events.append(StreamResetReceived(stream_id, code))

    def take_stop_sending(self, stream_id: int, code: int) -> None:
        """Take a STOP_SENDING frame (RFC 9000 section 19.5): reset the stream with the same code.

        Raises:
          TransportError: the peer broke a rule.
        """
        sender = self.find_sender(stream_id, STOP_SENDING)
        if sender is None or sender.reset_code >= 0 or sender.is_finished:
            return  # (only the first one counts, and none once all was acknowledged)
        sender.reset(code)
        self._events.append(StreamStopReceived(stream_id, code))

    def take_max_data(self, maximum: int) -> None:
        """Take a MAX_DATA frame (RFC 9000 section 19.9)."""
        self.sending.take_max_data(maximum)

    def take_max_stream_data(self, stream_id: int, maximum: int) -> None:
        """Take a MAX_STREAM_DATA frame (RFC 9000 section 19.10).

        Raises:
          TransportError: the peer broke a rule.
        """
        sender = self.find_sender(stream_id, MAX_STREAM_DATA)
        if sender is not None:
            sender.raise_limit(maximum)

    def take_max_streams(self, maximum: int, unidirectional: bool) -> None:
        """Take a MAX_STREAMS frame (RFC 9000 section 19.11)."""
        self.permit_streams(maximum, unidirectional)

    def take_streams_blocked(self, limit: int, unidirectional: bool) -> None:
        """Take a STREAMS_BLOCKED frame (RFC 9000 section 19.14): no grant is too small now."""
        peer = self._peer[unidirectional]
        if limit >= peer.announced:
            peer.is_waiting = True
            self.max_streams_pending: bool = peer.is_due() or self.max_streams_pending

    def take_stream_data_blocked(self, stream_id: int) -> None:
        """Take a STREAM_DATA_BLOCKED frame (RFC 9000 section 19.13); it may open the stream.

        Raises:
          TransportError: the peer broke a rule.
        """
        self.find_receiver(stream_id, STREAM_DATA_BLOCKED)

    # -- frames to send

    def has_limits_to_send(self) -> bool:
        """Whether credit waits to be announced to the peer."""
        receiving = self.receiving
        return (
            receiving.max_data_pending
            or self.max_streams_pending
            or self.grant_at < math.inf  # (The timer has to be set.)
            or bool(receiving.limits_to_send)
        )

    def has_control(self) -> bool:
        """Whether :meth:`fill_control` has anything to add."""
        receiving = self.receiving
        return (
            receiving.max_data_pending
            or self.max_streams_pending
            or self.blocked_pending
            or bool(receiving.limits_to_send or receiving.stops or self.sending.resets)
        )

    def fill_control(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add the frames of streams other than their data.

        Frames that do not fit wait for the next packet.  Every frame added is ack-eliciting.

        Args:
          parts: the frames are appended to it.
          room: bytes left in the packet.
          packet: its `control` gets a note of each frame.

        Returns:
          The room left, in bytes.
        """
        receiving = self.receiving
        if receiving.max_data_pending:
            room = receiving.fill_max_data(parts, room, packet)
        if self.max_streams_pending:
            room = self._fill_max_streams(parts, room, packet)
        if receiving.limits_to_send:
            room = receiving.fill_stream_limits(parts, room, packet)
        if receiving.stops:
            room = receiving.fill_stops(parts, room, packet)
        if self.sending.resets:
            room = self.sending.fill_resets(parts, room, packet)
        if self.blocked_pending:
            room = self._fill_blocked(parts, room, packet)
        return room

    def _fill_max_streams(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add MAX_STREAMS frames (RFC 9000 section 19.11)."""
        if room < 2 * _LONGEST_MAX_STREAMS:
            return room
        self.max_streams_pending = False
        for kind, frame_type in enumerate((MAX_STREAMS_BIDI, MAX_STREAMS_UNI)):
            peer = self._peer[kind]
            if peer.is_due():
                maximum = peer.announced = peer.maximum
                peer.was_lost = peer.is_waiting = False
                frame = build_max_streams(maximum, kind == 1)
                room -= add_control(parts, packet, frame, frame_type, maximum, 0)
        return room

    def on_control_acknowledged(self, kind: int, a: int, b: int) -> None:
        """Note that a frame added by :meth:`fill_control` was acknowledged."""
        if kind == RESET_STREAM:
            sender = self.senders.get(a)
            if sender is not None:
                sender.on_reset_acknowledged()

    def on_control_lost(self, kind: int, a: int, b: int) -> None:
        """Note that a frame added by :meth:`fill_control` is lost.

        It is sent again while its content is the newest (RFC 9000 section 13.3).
        """
        if kind == MAX_DATA:
            self.receiving.on_max_data_lost(a)
        elif kind == MAX_STREAM_DATA:
            receiver = self.receivers.get(a)
            if receiver is not None:
                self.receiving.on_max_stream_data_lost(receiver, b)
        elif kind in (MAX_STREAMS_BIDI, MAX_STREAMS_UNI):
            peer = self._peer[kind == MAX_STREAMS_UNI]
            if a == peer.announced:
                peer.was_lost = self.max_streams_pending = True
        elif kind == RESET_STREAM:
            sender = self.senders.get(a)
            if sender is not None:
                sender.on_reset_lost()
        elif kind == STOP_SENDING:
            receiver = self.receivers.get(a)
            if receiver is not None and not receiver.is_finished:
                self._ask_to_stop(receiver)
        elif self._blocked_frames():  # (one that reports blocking)
            self.blocked_pending = True

    # -- blocked by flow control

    def has_blocked(self) -> bool:
        """Whether data, or a call, may wait for credit of the peer."""
        bidirectional, one_way = self._local
        return self.sending.unsent > 0 or bidirectional.wanted > 0 or one_way.wanted > 0

    def blocked_deadline(
        self, quiet_since: float, probe_timeout: float, idle_timeout: float
    ) -> float:
        """When to set :attr:`blocked_pending`, if nothing is in flight; infinite: never.

        Frames in flight are repeated until acknowledged, so they keep the connection alive as well.

        Args:
          quiet_since: when the idle timer was restarted.
          probe_timeout: the probe timeout without backoff, in seconds.
          idle_timeout: the effective idle timeout of both sides, in seconds.
        """
        if self.blocked_pending or not self.has_blocked():
            return math.inf
        return self._signals.deadline(
            self._credit_progress(), quiet_since, probe_timeout, idle_timeout
        )

    def _credit_progress(self) -> tuple[int, int, int, int]:
        """A value that changes whenever credit comes or is used."""
        sending = self.sending
        bidirectional, one_way = self._local
        return (
            sending.bytes_written - sending.unsent,
            sending.peer_max_data,
            bidirectional.permitted,
            one_way.permitted,
        )

    def _blocked_frames(self) -> list[tuple[int, int, int]]:
        """The frames that apply now: type, stream ID or 0, limit."""
        frames: list[tuple[int, int, int]] = []
        sending = self.sending
        if sending.unsent and sending.peer_max_data_used >= sending.peer_max_data:
            frames.append((DATA_BLOCKED, 0, sending.peer_max_data))
        bidirectional, one_way = self._local
        if bidirectional.is_blocked():
            frames.append((STREAMS_BLOCKED_BIDI, 0, bidirectional.permitted))
        if one_way.is_blocked():
            frames.append((STREAMS_BLOCKED_UNI, 0, one_way.permitted))
        if sending.unsent:
            room = _BLOCKED_STREAMS
            for stream_id, sender in self.senders.items():
                if sender.is_blocked() and not sender.is_held:
                    frames.append((STREAM_DATA_BLOCKED, stream_id, sender.limit))
                    room -= 1
                    if not room:
                        break
        return frames

    def _fill_blocked(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add frames of RFC 9000 sections 19.12 to 19.14, each with the limit that blocks now."""
        if room < _LONGEST_BLOCKED:
            return room
        self.blocked_pending = False
        for kind, stream_id, limit in self._blocked_frames():
            if kind == DATA_BLOCKED:
                frame = build_data_blocked(limit)
            elif kind == STREAM_DATA_BLOCKED:
                frame = build_stream_data_blocked(stream_id, limit)
            else:
                frame = build_streams_blocked(limit, kind == STREAMS_BLOCKED_UNI)
            room -= add_control(parts, packet, frame, kind, 0, 0)
        self._signals.on_frames_sent(self._credit_progress(), self.now)
        return room
