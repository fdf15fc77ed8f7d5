"""Builds every frame (RFC 9000 section 19, RFC 9221).

Floor 0.  ACK and STREAM, the frames of most packets, have one shape each, so one call of
:mod:`struct` builds them.  For this, some of their integers have a fixed length; RFC 9000
section 16 permits that for all but the type.  The other integers are as short as possible.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from .frame_types import ACK, ACK_ECN, STREAM, STREAM_LEN, STREAM_OFF
from .ranges import Ranges
from .varint import encode_varint, varint_size

LONG_VARINT: Final = 3 << 62
"""``(value | LONG_VARINT).to_bytes(8, "big")`` is a varint of fixed size, for runs of packets."""

PING_FRAME: Final = b"\x01"
HANDSHAKE_DONE_FRAME: Final = b"\x1e"

#: The top bits of a varint of two and of four bytes (RFC 9000 section 16).
_V2: Final = 0x4000
_V4: Final = 0x8000_0000

#: The lowest values too large for a varint of two bytes, and of four.
_ABOVE_V2: Final = 1 << 14
_ABOVE_V4: Final = 1 << 30

#: ACK: type, largest, delay, count of further ranges, first range.
_pack_ack: Final = Struct(">BIHBH").pack

#: The counts of ACK_ECN: ECT(0), ECT(1), which is rare, and CE.
_pack_counts: Final = Struct(">IBI").pack

#: STREAM: type, stream ID (one or two bytes), offset unless it is 0, length.
_pack_stream_1: Final = Struct(">BBH").pack
_pack_stream_1_offset: Final = Struct(">BBIH").pack
_pack_stream_2: Final = Struct(">BHH").pack
_pack_stream_2_offset: Final = Struct(">BHIH").pack


def build_ack(
    ranges: Ranges, delay_field: int, room: int, ecn: tuple[int, int, int] | None
) -> bytes:
    """ACK (RFC 9000 section 19.3), the newest range first.

    Args:
      ranges: the packet numbers to acknowledge; at least one range.
      delay_field: microseconds since the newest packet came, shifted right by our
        ``ack_delay_exponent``.
      room: bytes available for the frame.  The oldest ranges are left out when they do not fit
        (section 13.2.3); when nothing fits, the result is empty.
      ecn: packets received with ECT(0), ECT(1) and CE (section 19.3.2); ``None``: no counts.
    """
    starts, stops = ranges.starts, ranges.stops
    start = starts[-1]
    largest = stops[-1] - 1
    first = largest - start
    older = len(starts) - 1
    if first >= _ABOVE_V2 or delay_field >= _ABOVE_V2 or largest >= _ABOVE_V4 or older >= 0x40:
        return _build_any_ack(ranges, delay_field, room, ecn)
    room -= 10
    kind = ACK
    counts = b""
    if ecn is not None:
        kind = ACK_ECN
        counts = _build_counts(ecn)
        room -= len(counts)
    if room < 0:
        return b""
    if older:
        older, further = _further_ranges(ranges, room)
        counts = further + counts
    head = _pack_ack(kind, largest | _V4, delay_field | _V2, older, first | _V2)
    return head + counts if counts else head


def _build_any_ack(
    ranges: Ranges, delay_field: int, room: int, ecn: tuple[int, int, int] | None
) -> bytes:
    """ACK with numbers of any size, or with many ranges."""
    largest = ranges.stops[-1] - 1
    first = largest - ranges.starts[-1]
    counts = b"" if ecn is None else _build_counts(ecn)
    fields = (largest, delay_field, len(ranges) - 1, first)
    room -= 1 + sum(map(varint_size, fields)) + len(counts)
    if room < 0:
        return b""
    older, further = _further_ranges(ranges, room)
    kind = b"\x02" if ecn is None else b"\x03"
    head = b"".join(map(encode_varint, (largest, delay_field, older, first)))
    return kind + head + further + counts


def _build_counts(ecn: tuple[int, int, int]) -> bytes:
    ect_0, ect_1, ce = ecn
    if ect_0 < _ABOVE_V4 and ect_1 < 0x40 and ce < _ABOVE_V4:
        return _pack_counts(ect_0 | _V4, ect_1, ce | _V4)
    return b"".join(map(encode_varint, ecn))


def _further_ranges(ranges: Ranges, room: int) -> tuple[int, bytes]:
    """How many ranges older than the newest fit, and their gaps and lengths."""
    starts, stops = ranges.starts, ranges.stops
    start = starts[-1]
    fields = bytearray()
    count = 0
    for index in range(len(starts) - 2, -1, -1):
        stop = stops[index]
        gap = start - stop - 1
        start = starts[index]
        length = stop - start - 1
        if gap < 0x40 and length < 0x40:
            room -= 2
            if room < 0:
                break
            fields.append(gap)
            fields.append(length)
        else:
            pair = encode_varint(gap) + encode_varint(length)
            room -= len(pair)
            if room < 0:
                break
            fields += pair
        count += 1
    return count, bytes(fields)


def build_stream_head(stream_id: int, offset: int, size: int, fin: bool) -> bytes:
    """The beginning of a STREAM frame (RFC 9000 section 19.8); its data has to follow.

    Args:
      stream_id: the stream.
      offset: the offset of the data in the stream.
      size: bytes of data.
      fin: whether the stream ends with this data.
    """
    kind = STREAM | STREAM_LEN | fin
    if size < _ABOVE_V2 and offset < _ABOVE_V4:
        if stream_id < 0x40:
            if offset:
                return _pack_stream_1_offset(kind | STREAM_OFF, stream_id, offset | _V4, size | _V2)
            return _pack_stream_1(kind, stream_id, size | _V2)
        if stream_id < _ABOVE_V2:
            if offset:
                return _pack_stream_2_offset(
                    kind | STREAM_OFF, stream_id | _V2, offset | _V4, size | _V2
                )
            return _pack_stream_2(kind, stream_id | _V2, size | _V2)
    head = encode_varint(stream_id)
    if offset:
        kind |= STREAM_OFF
        if offset < _ABOVE_V4:
            head += (offset | _V4).to_bytes(4, "big")
        else:
            head += (offset | LONG_VARINT).to_bytes(8, "big")
    if size < _ABOVE_V2:
        return bytes((kind,)) + head + (size | _V2).to_bytes(2, "big")
    return bytes((kind,)) + head + (size | _V4).to_bytes(4, "big")


def stream_head_size(stream_id: int, offset: int) -> int:
    """Bytes of :func:`build_stream_head` for less than 16,384 bytes of data."""
    size = 3 + varint_size(stream_id)
    if offset:
        size += 4 if offset < _ABOVE_V4 else 8
    return size


def build_stream_prefix(stream_id: int) -> bytes:
    """Type and stream ID of a STREAM frame that fills its packet.

    An offset of eight bytes has to follow (:data:`LONG_VARINT`), then data up to the end of the
    packet.  The stream does not end with this frame.
    """
    return bytes((STREAM | STREAM_OFF,)) + encode_varint(stream_id)


def build_reset_stream(stream_id: int, code: int, final_size: int) -> bytes:
    """RESET_STREAM (RFC 9000 section 19.4)."""
    return b"\x04" + encode_varint(stream_id) + encode_varint(code) + encode_varint(final_size)


def build_stop_sending(stream_id: int, code: int) -> bytes:
    """STOP_SENDING (RFC 9000 section 19.5)."""
    return b"\x05" + encode_varint(stream_id) + encode_varint(code)


def build_crypto(offset: int, data: bytes) -> bytes:
    """CRYPTO (RFC 9000 section 19.6)."""
    return b"\x06" + encode_varint(offset) + encode_varint(len(data)) + data


def build_new_token(token: bytes) -> bytes:
    """NEW_TOKEN (RFC 9000 section 19.7); the token must not be empty."""
    return b"\x07" + encode_varint(len(token)) + token


def build_max_data(limit: int) -> bytes:
    """MAX_DATA (RFC 9000 section 19.9)."""
    return b"\x10" + encode_varint(limit)


def build_max_stream_data(stream_id: int, limit: int) -> bytes:
    """MAX_STREAM_DATA (RFC 9000 section 19.10)."""
    return b"\x11" + encode_varint(stream_id) + encode_varint(limit)


def build_max_streams(limit: int, uni: bool) -> bytes:
    """MAX_STREAMS (RFC 9000 section 19.11) for unidirectional or bidirectional streams."""
    return (b"\x13" if uni else b"\x12") + encode_varint(limit)


def build_data_blocked(limit: int) -> bytes:
    """DATA_BLOCKED (RFC 9000 section 19.12)."""
    return b"\x14" + encode_varint(limit)


def build_stream_data_blocked(stream_id: int, limit: int) -> bytes:
    """STREAM_DATA_BLOCKED (RFC 9000 section 19.13)."""
    return b"\x15" + encode_varint(stream_id) + encode_varint(limit)


def build_streams_blocked(limit: int, uni: bool) -> bytes:
    """STREAMS_BLOCKED (RFC 9000 section 19.14) for unidirectional or bidirectional streams."""
    return (b"\x17" if uni else b"\x16") + encode_varint(limit)


def build_new_connection_id(sequence: int, retire_prior_to: int, cid: bytes, token: bytes) -> bytes:
    """NEW_CONNECTION_ID (RFC 9000 section 19.15).

    Args:
      sequence: the number of the ID.
      retire_prior_to: IDs with lower numbers are to be retired; at most `sequence`.
      cid: 1 to 20 bytes.
      token: the stateless reset token, 16 bytes.
    """
    return b"".join(
        (
            b"\x18",
            encode_varint(sequence),
            encode_varint(retire_prior_to),
            bytes((len(cid),)),
            cid,
            token,
        )
    )


def build_retire_connection_id(sequence: int) -> bytes:
    """RETIRE_CONNECTION_ID (RFC 9000 section 19.16)."""
    return b"\x19" + encode_varint(sequence)


def build_path_challenge(data: bytes) -> bytes:
    """PATH_CHALLENGE (RFC 9000 section 19.17) with its 8 bytes."""
    return b"\x1a" + data


def build_path_response(data: bytes) -> bytes:
    """PATH_RESPONSE (RFC 9000 section 19.18) with its 8 bytes."""
    return b"\x1b" + data


def build_transport_close(code: int, frame_type: int, reason: str, room: int) -> bytes:
    """CONNECTION_CLOSE of the transport (RFC 9000 section 19.19).

    Args:
      code: a transport error code.
      frame_type: the type of the frame at fault; 0 when none is known.
      reason: a text for people; it is cut to fit.
      room: bytes available for the frame, at least 25.
    """
    return _with_reason(b"\x1c" + encode_varint(code) + encode_varint(frame_type), reason, room)


def build_application_close(code: int, reason: str, room: int) -> bytes:
    """CONNECTION_CLOSE of the application (RFC 9000 section 19.19).

    Args:
      code: the application's error code.
      reason: a text for people; it is cut to fit.
      room: bytes available for the frame, at least 17.
    """
    return _with_reason(b"\x1d" + encode_varint(code), reason, room)


def _with_reason(head: bytes, reason: str, room: int) -> bytes:
    text = reason.encode("utf-8", "replace")
    room -= len(head)
    if varint_size(len(text)) + len(text) > room:
        # No character is cut in two.
        text = text[: max(room - varint_size(room), 0)].decode("utf-8", "ignore").encode()
    return head + encode_varint(len(text)) + text


def build_datagram_head(size: int) -> bytes:
    """The beginning of a DATAGRAM frame with its length (RFC 9221 section 4).

    The payload of `size` bytes has to follow.  The length is as short as possible, since
    the peer's limit counts it (section 3).
    """
    return b"\x31" + encode_varint(size)
