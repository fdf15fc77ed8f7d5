"""The everyday packet: acknowledgement, limits, datagrams, a little of some streams.

Floor 1, sans-IO, private to the engine; see :mod:`phoenix_trio.quic.fast_path`.
Requests, answers and feedback are such packets.  The same frames as aioquic's,
with the same delivery handlers, put together (:func:`build`) and taken apart
(:func:`take_frames`) without its general machinery, which costs three times as
much for a packet of 100 bytes.  Every other kind of frame is left to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket

from .fast_send import encode_varint

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["build", "take_frames"]

_ONE_RTT = tls.Epoch.ONE_RTT
_TAG = 16
_PACKET_NUMBER = 2
_LARGEST_LENGTH = 16383  # what two bytes of a frame's length can say
_MAX_RANGES = 16  # acknowledgement ranges; more are aioquic's
_LIMIT_FRAME = 1 + 8 + 8
_STREAMS = 32  # looked at for one packet
_STREAM_OVERHEAD = 1 + 8 + 8 + 2

_PADDING = 0x00
_PING_TYPE = 0x01
_PING = b"\x01"
_ACK = 0x02
_MAX_DATA = 0x10
_MAX_STREAM_DATA = 0x11
_MAX_STREAMS = 0x12
_STREAM_DATA_BLOCKED = 0x15
_STREAM_LIMITS = (_MAX_STREAM_DATA, _STREAM_DATA_BLOCKED)
_RETIRE_CONNECTION_ID = 0x19
_PATH_CHALLENGE = 0x1A
_PATH_RESPONSE = 0x1B
_MOST_STREAMS = 1 << 60  # RFC 9000 section 4.6
_STREAM = 0x08
_DATAGRAM = 0x30
_DATAGRAM_HEAD = b"\x31"  # with its length
_HAS_OFFSET = 0x04
_HAS_LENGTH = 0x02
_HAS_FIN = 0x01


# ---------------------------------------------------------------------- sending


def build(engine: Engine, now: float, *, with_streams: bool, with_datagrams: bool) -> bytes | None:
    """One packet with what there is to say; ``None``: nothing, or nothing for this module."""
    space = engine.application_space
    pair = engine.one_rtt_keys
    cid = engine._peer_cid.cid
    parts: list[bytes] = []
    handlers: list[tuple[Any, Any]] = []
    room: int = engine._max_datagram_size - 1 - len(cid) - _PACKET_NUMBER - _TAG
    acknowledges = space.ack_at is not None
    ranges = len(space.ack_queue)
    if acknowledges and (ranges > _MAX_RANGES or not ranges):
        return None
    # Now and then, ask for an acknowledgement, so that old ranges are forgotten (RFC 9000
    # section 13.2.4; connection.py 3885).
    eliciting = acknowledges and ranges > 1 and engine._packet_number % 8 == 0
    if eliciting:
        if not with_datagrams:
            return None  # (A PING needs room in the congestion window: aioquic looks.)
        parts.append(_PING)
        room -= len(_PING)
    if acknowledges:
        frame = _ack_frame(engine, space, now)
        parts.append(frame)
        room -= len(frame)
        handlers.append((engine._on_ack_delivery, (space, space.largest_received_packet)))
    if engine._limits_pending or engine._limits_to_send:
        for frame, handler, arguments in engine.limit_frames():
            parts.append(frame)
            room -= len(frame)
            handlers.append((handler, arguments))
            eliciting = True
            if room < _LIMIT_FRAME:
                break
    datagrams = engine._datagrams_pending if with_datagrams else ()
    while datagrams and len(datagrams[0]) + 3 <= min(room, _LARGEST_LENGTH):
        datagram = engine._datagrams_pending.popleft()
        # (With the shortest length: the peer's limit counts it, RFC 9221 section 3.)
        head = _DATAGRAM_HEAD + encode_varint(len(datagram))
        parts.append(head)
        parts.append(datagram)
        room -= len(head) + len(datagram)
        eliciting = True
    if with_streams:
        eliciting = _add_streams(engine, room, parts, handlers) or eliciting
    if not parts or (not eliciting and not acknowledges):
        return None
    if not eliciting and engine.wants_acknowledgement(space):
        parts.append(_PING)
        eliciting = True
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    number: int = engine._packet_number
    first = 0x40 | engine._spin_bit << 5 | pair.key_phase << 2 | _PACKET_NUMBER - 1
    header = bytes((first,)) + cid + (number & 0xFFFF).to_bytes(_PACKET_NUMBER, "big")
    data: bytes = pair.encrypt_packet(header, payload, number)

    # What aioquic keeps when it sends (connection.py 1597).
    if acknowledges:
        space.ack_at = None
        engine.unacknowledged_bytes = 0
    engine._packet_number = number + 1
    packet = QuicSentPacket(
        _ONE_RTT,
        eliciting,
        eliciting,
        False,
        number,
        QuicPacketType.ONE_RTT,
        now,
        len(data),
        handlers,
    )
    engine._loss.on_packet_sent(packet=packet, space=space)
    if eliciting:
        engine._pacer.update_after_send(now)
        if not engine._ack_eliciting_sent_since_receipt:
            engine._close_at = now + engine._idle_timeout()
            engine._ack_eliciting_sent_since_receipt = True
    engine._network_paths[0].bytes_sent += len(data)
    return data


def _ack_frame(engine: Engine, space: Any, now: float) -> bytes:
    """RFC 9000 section 19.3, the newest range first."""
    queue = space.ack_queue
    newest = queue[-1]
    delay = int((now - space.largest_received_time) * 1_000_000)
    fields = [
        b"\x02",
        encode_varint(newest.stop - 1),
        encode_varint(max(delay, 0) >> engine._local_ack_delay_exponent),
        encode_varint(len(queue) - 1),
        encode_varint(newest.stop - 1 - newest.start),
    ]
    start = newest.start
    for index in range(len(queue) - 2, -1, -1):
        older = queue[index]
        fields.append(encode_varint(start - older.stop - 1))
        fields.append(encode_varint(older.stop - older.start - 1))
        start = older.start
    marks = engine.marks_received.get(space)
    if marks is not None:
        fields[0] = b"\x03"  # RFC 9000 section 19.3.2
        fields += map(encode_varint, marks.as_fields())
    return b"".join(fields)


def _add_streams(
    engine: Engine, room: int, parts: list[bytes], handlers: list[tuple[Any, Any]]
) -> bool:
    """STREAM frames (RFC 9000 section 19.8) of the streams whose turn it is; whether any."""
    active = engine._active
    added = False
    for record in list(active.values())[:_STREAMS]:
        sender = record.sender
        if sender.reset_pending or record.receiver.stop_pending:
            break
        if room <= _STREAM_OVERHEAD:
            break
        start, end = sender.next_range()
        new = sender.highest_offset
        stop = min(
            end,
            start + min(room - _STREAM_OVERHEAD, _LARGEST_LENGTH),
            new + engine._remote_max_data - engine._remote_max_data_used,
            record.max_stream_data_remote,
        )
        stream_id = record.stream_id
        # Served streams go to the end of the line, those with nothing more to say leave it.
        del active[stream_id]
        if stop > start or (start == end and sender._pending_eof):
            fin = sender.note_sent(start, max(start, stop))
            data = sender.data.read(start, stop) if stop > start else b""
            size = len(data)
            kind = _STREAM | _HAS_LENGTH | (_HAS_OFFSET if start else 0) | fin
            head = bytes((kind,)) + encode_varint(stream_id)
            if start:
                head += encode_varint(start)
            head += (size | 0x4000).to_bytes(2, "big")
            parts.append(head)
            parts.append(data)
            room -= len(head) + size
            handlers.append((sender.on_data_delivery, (start, start + size, fin)))
            if stop > new:
                engine._remote_max_data_used += stop - new
            added = True
        if sender.has_work:
            active[stream_id] = record
    return added


# -------------------------------------------------------------------- receiving


def take_frames(engine: Engine, plain: bytes, now: float) -> bool:
    """Deal with the frames of an authenticated packet; whether it was ack-eliciting.

    Raises:
      QuicConnectionError: the peer broke the protocol.
    """
    at = 0
    length = len(plain)
    eliciting = False
    try:
        while at < length:
            kind = plain[at]
            if kind & 0xF8 == _STREAM:
                reached = _take_stream(engine, plain, at)
                if not reached:
                    break
                at = reached
                eliciting = True
            elif kind & 0xFE == _ACK:
                reached = _take_ack(engine, plain, at, now)
                if not reached:
                    break
                at = reached
            elif kind == _MAX_DATA:
                limit, at = _varint(plain, at + 1)
                if limit > engine._remote_max_data:
                    engine._remote_max_data = limit
                eliciting = True
            elif kind == _PING_TYPE:
                at += 1
                if at < length and plain[at] == _PING_TYPE:
                    at = length - len(plain[at:].lstrip(_PING))
                eliciting = True
            elif kind == _PADDING:
                at = length - len(plain[at:].lstrip(b"\0"))
            elif kind & 0xFE == _MAX_STREAMS:
                limit, reached = _varint(plain, at + 1)
                if limit > _MOST_STREAMS:
                    break
                engine.raise_stream_limit(limit, is_unidirectional=kind & 1 != 0)
                at = reached
                eliciting = True
            elif kind in _STREAM_LIMITS:
                reached = _take_stream_limit(engine, plain, at)
                if not reached:
                    break
                at = reached
                eliciting = True
            elif kind == _PATH_CHALLENGE and at + 9 <= length:
                engine.take_path_challenge(plain[at + 1 : at + 9])
                at += 9
                eliciting = True
            elif kind == _PATH_RESPONSE and at + 9 <= length and not engine.awaits_path_response:
                at += 9  # RFC 9000 section 19.18: to no challenge of ours
                eliciting = True
            elif kind == _RETIRE_CONNECTION_ID:
                number, at = _varint(plain, at + 1)
                engine.retire_connection_id(number, engine.host_cid)
                eliciting = True
            elif kind & 0xFE == _DATAGRAM:
                reached = _take_datagram(engine, plain, at)
                if not reached:
                    break
                at = reached
                eliciting = True
            else:
                break
    except IndexError:
        pass  # cut short: aioquic says how
    if at < length or not length:
        engine._fast.fallbacks["receive: frames"] += 1
        others = engine.take_other_frames(plain[at:] if at else plain)
        eliciting = eliciting or others
    return eliciting


def _varint(plain: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000 section 16) and where it ends."""
    first = plain[at]
    if first < 0x40:
        return first, at + 1
    width = 1 << (first >> 6)
    end = at + width
    if end > len(plain):
        raise IndexError
    return int.from_bytes(plain[at:end], "big") & (1 << 8 * width - 2) - 1, end


def _take_stream(engine: Engine, plain: bytes, start: int) -> int:
    """A STREAM frame with the next piece of an open stream; 0: aioquic's, else where it ends."""
    kind = plain[start]
    at = start + 2
    stream_id = plain[start + 1]
    if stream_id >= 0x40:
        stream_id, at = _varint(plain, start + 1)
    offset = 0
    if kind & _HAS_OFFSET:
        offset, at = _varint(plain, at)
    if kind & _HAS_LENGTH:
        count, at = _varint(plain, at)
        end = at + count
        if end > len(plain):
            return 0
    else:
        end = len(plain)
        count = end - at
    record = engine._records.get(stream_id)
    if record is None:
        if offset + count >> 62:
            return 0  # more than there can be: no stream is opened by that
        if (stream_id & 1 == 0) == engine._is_client:
            return 0
        if engine._stream_is_discarded(stream_id):
            return end  # a repetition of what is long over
        record = engine._get_or_create_stream(kind, stream_id)
    elif record.wire_done:
        return 0 if offset + count >> 62 else end
    receiver = record.receiver
    reached = offset + count
    credit = engine._local_max_data
    fin = kind & _HAS_FIN != 0
    if (
        offset != receiver._buffer_start
        or offset != receiver.highest_offset
        or receiver.is_finished
        or receiver._final_size is not None
        or reached > record.max_stream_data_local
        or credit.used + count > credit.value
    ):
        final = receiver._final_size
        if not receiver.is_finished or final is None or reached > final:
            return 0
        # A repetition of what is over, unless it contradicts the final size.
        return 0 if fin and reached != final else end
    credit.used += count
    receiver._buffer_start = receiver.highest_offset = reached
    if fin:
        receiver._final_size = reached
        receiver.is_finished = True
    if count or fin:
        engine.deliver_data(record, plain[at:end], end_stream=fin)
    if fin:
        engine.activate(record)
    return end


def _take_datagram(engine: Engine, plain: bytes, start: int) -> int:
    """A DATAGRAM frame (RFC 9221 section 4); 0: aioquic's, else where it ends."""
    limit = engine._configuration.max_datagram_frame_size
    at, end = start + 1, len(plain)
    if plain[start] & 1:
        count, at = _varint(plain, at)
        end = at + count
    if limit is None or end > len(plain) or end - start > limit:
        return 0
    engine.deliver_datagram(plain[at:end])
    return end


def _take_stream_limit(engine: Engine, plain: bytes, start: int) -> int:
    """A MAX_STREAM_DATA or STREAM_DATA_BLOCKED frame of an open stream (RFC 9000 sections
    19.10, 19.13) which is not one-way; 0: aioquic's, else where it ends."""
    stream_id, at = _varint(plain, start + 1)
    limit, at = _varint(plain, at)
    record = engine._records.get(stream_id)
    if record is None or record.wire_done or stream_id & 2:
        return 0
    if plain[start] == _MAX_STREAM_DATA and limit > record.max_stream_data_remote:
        record.max_stream_data_remote = limit
        engine.activate(record)
    return at


def _take_ack(engine: Engine, plain: bytes, start: int, now: float) -> int:
    """An ACK frame (RFC 9000 section 19.3); 0: aioquic's, else where it ends."""
    kind = plain[start]
    largest, at = _varint(plain, start + 1)
    delay, at = _varint(plain, at)
    more, at = _varint(plain, at)
    count, at = _varint(plain, at)
    start, stop = largest - count, largest + 1
    skipped = engine.skipped
    if start < 0 or largest >= engine._packet_number:
        return 0
    if start <= skipped.newest and skipped.includes(start, stop):
        return 0
    ranges = [range(start, stop)]
    if more:
        for _ in range(more):
            gap, at = _varint(plain, at)
            count, at = _varint(plain, at)
            stop = start - 1 - gap
            start = stop - 1 - count
            if start < 0 or skipped.includes(start, stop):
                return 0
            ranges.append(range(start, stop))
        ranges.reverse()
    counts: tuple[int, int, int] | None = None
    if kind & 1:
        ect_0, at = _varint(plain, at)
        ect_1, at = _varint(plain, at)
        congestion, at = _varint(plain, at)
        counts = (ect_0, ect_1, congestion)
    loss = engine._recovery
    space = engine.application_space
    before = space.largest_acked_packet
    if (
        largest <= before
        and counts is None
        and largest < next(iter(space.sent_packets), before + 1)
    ):
        return at  # all of that was acknowledged before
    loss.peer_completed_address_validation = True
    loss.on_ranges_acknowledged(
        ranges,
        ack_delay=(delay << engine._remote_ack_delay_exponent) / 1_000_000,
        now=now,
        space=space,
    )
    engine.on_ecn_feedback(counts, is_newest=largest > before)
    return at
