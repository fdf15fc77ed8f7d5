"""Parses every frame (RFC 9000 section 19, RFC 9221).

Floor 0.  A parser takes a packet's payload and the position of the frame's type byte.  The last
value it returns is the position behind the frame.  Data is not copied: parsers return where it
begins and ends.

Parsers check the rules that a single frame can break, and raise
:exc:`~phoenix_trio.quic.wire.errors.TransportError`.  Other modules check the rules that depend
on the state of streams or of the connection.  The work of a parser is bounded by the size of the
payload.

The parsers of ACK and STREAM try the shape of
:mod:`~phoenix_trio.quic.wire.frame_builders` first, then accept any other.
"""

from __future__ import annotations

import re
import struct
from struct import Struct
from typing import Final, TypeAlias

from .errors import FRAME_ENCODING_ERROR, PROTOCOL_VIOLATION, TransportError
from .frame_types import (
    ACK,
    ACK_ECN,
    CONNECTION_ID_MAX,
    CRYPTO,
    DATAGRAM_LEN,
    IS_KNOWN,
    NEW_CONNECTION_ID,
    NEW_TOKEN,
    PADDING,
    PATH_DATA_SIZE,
    STREAM_FIN,
    STREAM_LEN,
    STREAM_OFF,
    STREAMS_MAX,
    TOKEN_SIZE,
    TRANSPORT_CLOSE,
)
from .varint import VARINT_MAX, decode_varint

Data: TypeAlias = bytes | bytearray

#: The lowest value too large for a varint of four bytes.
_ABOVE_V4: Final = 1 << 30

#: ACK without its type: largest, delay, count of further ranges, first range.
_unpack_ack: Final = Struct(">xIHBH").unpack_from

#: The counts of ACK_ECN.
_unpack_counts: Final = Struct(">IBI").unpack_from

_unpack_offset_length: Final = Struct(">IH").unpack_from
_unpack_8: Final = Struct(">Q").unpack_from

_padding_at: Final = re.compile(rb"\x00+").match
_pings_at: Final = re.compile(rb"\x01+").match


def unknown_type(data: Data, at: int) -> TransportError:
    """The error for an unknown frame type, one not in :data:`IS_KNOWN` (RFC 9000 section 12.4).

    All known types have one byte.  A known type in more bytes than it needs is a protocol
    violation.
    """
    try:
        kind, _ = decode_varint(data, at)
    except IndexError:
        return TransportError(FRAME_ENCODING_ERROR, PADDING, "The frame type is cut short")
    if kind < 256 and IS_KNOWN[kind]:
        return TransportError(PROTOCOL_VIOLATION, kind, "The frame type is longer than needed")
    return TransportError(FRAME_ENCODING_ERROR, kind, "Unknown frame type")


def _cut_short(kind: int) -> TransportError:
    return TransportError(FRAME_ENCODING_ERROR, kind, "The frame is cut short")


def _one(data: Data, at: int) -> tuple[int, int]:
    """A frame with one field."""
    try:
        return decode_varint(data, at + 1)
    except IndexError:
        raise _cut_short(data[at]) from None


def _two(data: Data, at: int) -> tuple[int, int, int]:
    """A frame with two fields."""
    try:
        first, reached = decode_varint(data, at + 1)
        second, reached = decode_varint(data, reached)
    except IndexError:
        raise _cut_short(data[at]) from None
    return first, second, reached


def _sized(data: Data, kind: int, at: int) -> tuple[int, int]:
    """The begin and the end of the data whose length is at `at`."""
    try:
        size, begin = decode_varint(data, at)
    except IndexError:
        raise _cut_short(kind) from None
    end = begin + size
    if end > len(data):
        raise _cut_short(kind)
    return begin, end


def parse_padding(data: Data, at: int) -> int:
    """A whole run of PADDING (RFC 9000 section 19.1)."""
    found = _padding_at(data, at)
    assert found is not None
    return found.end()


def parse_ping(data: Data, at: int) -> int:
    """A whole run of PING (RFC 9000 section 19.2)."""
    found = _pings_at(data, at)
    assert found is not None
    return found.end()


Acknowledgement: TypeAlias = tuple[
    int, int, list[tuple[int, int]], tuple[int, int, int] | None, int
]


def parse_ack(data: Data, at: int) -> Acknowledgement:
    """ACK (RFC 9000 section 19.3).

    Returns:
      The largest packet number, the delay as it stands in the frame (the peer's
      ``ack_delay_exponent`` scales it), the ranges as (start, stop) with the newest first,
      the counts of ECT(0), ECT(1) and CE or ``None``, and the position behind.

    Raises:
      TransportError: it is cut short, or acknowledges a negative packet number.
    """
    kind = data[at]
    try:
        largest, delay, more, first = _unpack_ack(data, at)
        if more or largest >> 30 != 2 or delay >> 14 != 1 or first >> 14 != 1:
            return _parse_any_ack(data, at)
        largest &= 0x3FFF_FFFF
        delay &= 0x3FFF
        start = largest - (first & 0x3FFF)
        if start < 0:
            return _parse_any_ack(data, at)
        if kind == ACK:
            return largest, delay, [(start, largest + 1)], None, at + 10
        ect_0, ect_1, ce = _unpack_counts(data, at + 10)
        if ect_0 >> 30 != 2 or ect_1 >= 0x40 or ce >> 30 != 2:
            return _parse_any_ack(data, at)
    except struct.error:
        return _parse_any_ack(data, at)  # (Other shapes can be shorter.)
    ecn = (ect_0 & 0x3FFF_FFFF, ect_1, ce & 0x3FFF_FFFF)
    return largest, delay, [(start, largest + 1)], ecn, at + 19


def _parse_any_ack(data: Data, at: int) -> Acknowledgement:
    """ACK of any shape."""
    kind = data[at]
    try:
        largest, at = decode_varint(data, at + 1)
        delay, at = decode_varint(data, at)
        more, at = decode_varint(data, at)
        first, at = decode_varint(data, at)
        start = largest - first
        ranges = [(start, largest + 1)]
        for _ in range(more):  # (Each takes two bytes at least.)
            gap = data[at]
            length = data[at + 1]
            if gap < 0x40 and length < 0x40:
                at += 2
            else:
                gap, at = decode_varint(data, at)
                length, at = decode_varint(data, at)
            stop = start - 1 - gap
            start = stop - 1 - length
            ranges.append((start, stop))
        ecn: tuple[int, int, int] | None = None
        if kind == ACK_ECN:
            ect_0, at = decode_varint(data, at)
            ect_1, at = decode_varint(data, at)
            ce, at = decode_varint(data, at)
            ecn = (ect_0, ect_1, ce)
    except IndexError:
        raise _cut_short(kind) from None
    # The ranges go down, so the last one tells for all of them.
    if start < 0:
        raise TransportError(FRAME_ENCODING_ERROR, kind, "A packet number is negative")
    return largest, delay, ranges, ecn, at


def parse_stream(data: Data, at: int) -> tuple[int, int, int, int, int]:
    """STREAM (RFC 9000 section 19.8).

    Returns:
      The stream ID, the offset in the stream, where the data begins and ends in `data`, and
      1 if the stream ends with it, else 0.  The frame ends with its data.

    Raises:
      TransportError: it is cut short, or reaches beyond the largest offset.
    """
    kind = data[at]
    position = at
    try:
        stream_id = data[at + 1]
        if stream_id < 0x40:
            at += 2
        elif stream_id < 0x80:
            stream_id = (stream_id & 0x3F) << 8 | data[at + 2]
            at += 3
        else:
            stream_id, at = decode_varint(data, at + 1)
        offset = 0
        if kind & STREAM_OFF:
            offset = data[at]
            if offset < 0x40:
                at += 1
            elif offset < 0x80:
                offset = (offset & 0x3F) << 8 | data[at + 1]
                at += 2
            elif offset < 0xC0:
                offset, size = _unpack_offset_length(data, at)
                offset &= 0x3FFF_FFFF
                at += 4
                if kind & STREAM_LEN and size >> 14 == 1:
                    at += 2
                    end = at + (size & 0x3FFF)
                    if end > len(data):
                        raise _cut_short(kind)
                    return stream_id, offset, at, end, kind & STREAM_FIN
            else:
                (offset,) = _unpack_8(data, at)
                offset &= VARINT_MAX
                at += 8
        if kind & STREAM_LEN:
            size = data[at]
            if size < 0x40:
                at += 1
            elif size < 0x80:
                size = (size & 0x3F) << 8 | data[at + 1]
                at += 2
            else:
                size, at = decode_varint(data, at)
            end = at + size
            if end > len(data):
                raise _cut_short(kind)
        else:
            end = len(data)
    except (IndexError, struct.error):
        return _parse_last_stream(data, position)
    if offset >= _ABOVE_V4 and offset + end - at > VARINT_MAX:
        raise _beyond(kind)
    return stream_id, offset, at, end, kind & STREAM_FIN


def _parse_last_stream(data: Data, at: int) -> tuple[int, int, int, int, int]:
    """STREAM by plain means: a frame at the end of its packet, or cut short.

    A complete frame here has an offset of at most four bytes.
    """
    kind = data[at]
    offset = 0
    try:
        stream_id, at = decode_varint(data, at + 1)
        if kind & STREAM_OFF:
            offset, at = decode_varint(data, at)
    except IndexError:
        raise _cut_short(kind) from None
    begin, end = _sized(data, kind, at) if kind & STREAM_LEN else (at, len(data))
    return stream_id, offset, begin, end, kind & STREAM_FIN


def _beyond(kind: int) -> TransportError:
    return TransportError(FRAME_ENCODING_ERROR, kind, "offset + length cannot exceed 2^62 - 1")


def parse_reset_stream(data: Data, at: int) -> tuple[int, int, int, int]:
    """RESET_STREAM (RFC 9000 section 19.4): stream ID, error code, final size, position."""
    kind = data[at]
    stream_id, code, at = _two(data, at)
    try:
        final_size, at = decode_varint(data, at)
    except IndexError:
        raise _cut_short(kind) from None
    return stream_id, code, final_size, at


def parse_stop_sending(data: Data, at: int) -> tuple[int, int, int]:
    """STOP_SENDING (RFC 9000 section 19.5): stream ID, error code, position."""
    return _two(data, at)


def parse_crypto(data: Data, at: int) -> tuple[int, int, int]:
    """CRYPTO (RFC 9000 section 19.6): the offset, and the begin and the end of the data."""
    offset, at = _one(data, at)
    begin, end = _sized(data, CRYPTO, at)
    if offset + end - begin > VARINT_MAX:
        raise _beyond(CRYPTO)
    return offset, begin, end


def parse_new_token(data: Data, at: int) -> tuple[bytes, int]:
    """NEW_TOKEN (RFC 9000 section 19.7): the token, never empty, and the position."""
    begin, end = _sized(data, NEW_TOKEN, at + 1)
    if begin == end:
        raise TransportError(FRAME_ENCODING_ERROR, NEW_TOKEN, "The token is empty")
    return bytes(data[begin:end]), end


def parse_max_data(data: Data, at: int) -> tuple[int, int]:
    """MAX_DATA (RFC 9000 section 19.9): the limit and the position."""
    return _one(data, at)


def parse_max_stream_data(data: Data, at: int) -> tuple[int, int, int]:
    """MAX_STREAM_DATA (RFC 9000 section 19.10): stream ID, limit, position."""
    return _two(data, at)


def parse_max_streams(data: Data, at: int) -> tuple[int, int]:
    """MAX_STREAMS of either kind (RFC 9000 section 19.11): the limit and the position."""
    kind = data[at]
    limit, at = _one(data, at)
    if limit > STREAMS_MAX:
        raise TransportError(FRAME_ENCODING_ERROR, kind, "Maximum Streams cannot exceed 2^60")
    return limit, at


def parse_data_blocked(data: Data, at: int) -> tuple[int, int]:
    """DATA_BLOCKED (RFC 9000 section 19.12): the limit and the position."""
    return _one(data, at)


def parse_stream_data_blocked(data: Data, at: int) -> tuple[int, int, int]:
    """STREAM_DATA_BLOCKED (RFC 9000 section 19.13): stream ID, limit, position."""
    return _two(data, at)


def parse_streams_blocked(data: Data, at: int) -> tuple[int, int]:
    """STREAMS_BLOCKED of either kind (RFC 9000 section 19.14): the limit and the position."""
    return parse_max_streams(data, at)


def parse_new_connection_id(data: Data, at: int) -> tuple[int, int, bytes, bytes, int]:
    """NEW_CONNECTION_ID (RFC 9000 section 19.15).

    Returns:
      The ID's number, the number below which IDs are to be retired, the ID, its stateless
      reset token, and the position behind.

    Raises:
      TransportError: it is cut short, the ID does not have 1 to 20 bytes, or it would be retired
        at once.
    """
    sequence, retire_prior_to, at = _two(data, at)
    if at >= len(data):
        raise _cut_short(NEW_CONNECTION_ID)
    size = data[at]
    if not 1 <= size <= CONNECTION_ID_MAX:
        raise TransportError(
            FRAME_ENCODING_ERROR, NEW_CONNECTION_ID, f"A connection ID of {size} bytes"
        )
    begin = at + 1
    end = begin + size + TOKEN_SIZE
    if end > len(data):
        raise _cut_short(NEW_CONNECTION_ID)
    if retire_prior_to > sequence:
        raise TransportError(
            FRAME_ENCODING_ERROR,
            NEW_CONNECTION_ID,
            "Retire Prior To is greater than Sequence Number",
        )
    cid = bytes(data[begin : begin + size])
    return sequence, retire_prior_to, cid, bytes(data[begin + size : end]), end


def parse_retire_connection_id(data: Data, at: int) -> tuple[int, int]:
    """RETIRE_CONNECTION_ID (RFC 9000 section 19.16): the ID's number and the position."""
    return _one(data, at)


def parse_path_challenge(data: Data, at: int) -> tuple[bytes, int]:
    """PATH_CHALLENGE (RFC 9000 section 19.17): its 8 bytes and the position."""
    end = at + 1 + PATH_DATA_SIZE
    if end > len(data):
        raise _cut_short(data[at])
    return bytes(data[at + 1 : end]), end


def parse_path_response(data: Data, at: int) -> tuple[bytes, int]:
    """PATH_RESPONSE (RFC 9000 section 19.18): its 8 bytes and the position."""
    return parse_path_challenge(data, at)


def parse_close(data: Data, at: int) -> tuple[int, int, str, int]:
    """CONNECTION_CLOSE of either kind (RFC 9000 section 19.19).

    Returns:
      The error code, the type of the frame at fault or -1 if the application closes, the reason
      (empty if it is not UTF-8), and the position behind.

    Raises:
      TransportError: it is cut short.
    """
    kind = data[at]
    frame_type = -1
    if kind == TRANSPORT_CLOSE:
        code, frame_type, at = _two(data, at)
    else:
        code, at = _one(data, at)
    begin, end = _sized(data, kind, at)
    try:
        reason = data[begin:end].decode()
    except UnicodeDecodeError:
        reason = ""
    return code, frame_type, reason, end


def parse_handshake_done(data: Data, at: int) -> int:
    """HANDSHAKE_DONE (RFC 9000 section 19.20)."""
    return at + 1


def parse_datagram(data: Data, at: int) -> tuple[int, int]:
    """DATAGRAM of either kind (RFC 9221 section 4): the begin and the end of its payload."""
    kind = data[at]
    if kind & DATAGRAM_LEN:
        return _sized(data, kind, at + 1)
    return at + 1, len(data)
