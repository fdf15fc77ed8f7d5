"""Every frame, built and parsed: against a plain table of layouts, and against aioquic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.packet import (
    QuicFrameType,
    pull_ack_frame,
)
from hypothesis import example, given
from hypothesis import strategies as st

from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    FRAME_ENCODING_ERROR,
    TransportError,
)
from phoenix_trio.quic.wire.ranges import Ranges
from phoenix_trio.quic.wire.varint import VARINT_MAX, encode_varint, varint_size
from tests.support import examples

varints = st.one_of(*(st.integers(0, (1 << bits) - 1) for bits in (6, 14, 30, 62)))
stream_counts = st.integers(0, 1 << 60)
booleans = st.booleans()
payloads = st.binary(max_size=100)
texts = st.text(max_size=40)

BIG = 1 << 20


# ------------------------------------------------------------------- there and back


def parse_max_streams_with_kind(data: frames.Data, at: int) -> tuple[int, bool, int]:
    limit, end = frames.parse_max_streams(data, at)
    return limit, data[at] == frames.MAX_STREAMS_UNI, end


def parse_streams_blocked_with_kind(data: frames.Data, at: int) -> tuple[int, bool, int]:
    limit, end = frames.parse_streams_blocked(data, at)
    return limit, data[at] == frames.STREAMS_BLOCKED_UNI, end


def parse_crypto_with_data(data: frames.Data, at: int) -> tuple[int, bytes, int]:
    offset, begin, end = frames.parse_crypto(data, at)
    return offset, bytes(data[begin:end]), end


connection_ids = st.tuples(varints, varints).flatmap(
    lambda numbers: st.tuples(
        st.just(max(numbers)),
        st.just(min(numbers)),
        st.binary(min_size=1, max_size=20),
        st.binary(min_size=16, max_size=16),
    )
)
path_data = st.tuples(st.binary(min_size=8, max_size=8))

#: Builder, parser, and the fields that the builder takes and the parser returns.
SIMPLE: dict[str, tuple[Callable[..., bytes], Callable[..., tuple[Any, ...]], Any]] = {
    "reset_stream": (
        frames.build_reset_stream,
        frames.parse_reset_stream,
        st.tuples(varints, varints, varints),
    ),
    "stop_sending": (
        frames.build_stop_sending,
        frames.parse_stop_sending,
        st.tuples(varints, varints),
    ),
    "crypto": (
        frames.build_crypto,
        parse_crypto_with_data,
        st.tuples(st.integers(0, 1 << 61), payloads),
    ),
    "new_token": (
        frames.build_new_token,
        frames.parse_new_token,
        st.tuples(st.binary(min_size=1, max_size=100)),
    ),
    "max_data": (frames.build_max_data, frames.parse_max_data, st.tuples(varints)),
    "max_stream_data": (
        frames.build_max_stream_data,
        frames.parse_max_stream_data,
        st.tuples(varints, varints),
    ),
    "max_streams": (
        frames.build_max_streams,
        parse_max_streams_with_kind,
        st.tuples(stream_counts, booleans),
    ),
    "data_blocked": (frames.build_data_blocked, frames.parse_data_blocked, st.tuples(varints)),
    "stream_data_blocked": (
        frames.build_stream_data_blocked,
        frames.parse_stream_data_blocked,
        st.tuples(varints, varints),
    ),
    "streams_blocked": (
        frames.build_streams_blocked,
        parse_streams_blocked_with_kind,
        st.tuples(stream_counts, booleans),
    ),
    "new_connection_id": (
        frames.build_new_connection_id,
        frames.parse_new_connection_id,
        connection_ids,
    ),
    "retire_connection_id": (
        frames.build_retire_connection_id,
        frames.parse_retire_connection_id,
        st.tuples(varints),
    ),
    "path_challenge": (frames.build_path_challenge, frames.parse_path_challenge, path_data),
    "path_response": (frames.build_path_response, frames.parse_path_response, path_data),
    "transport_close": (
        lambda *fields: frames.build_transport_close(*fields, BIG),
        frames.parse_close,
        st.tuples(varints, varints, texts),
    ),
    "application_close": (
        lambda code, _, reason: frames.build_application_close(code, reason, BIG),
        frames.parse_close,
        st.tuples(varints, st.just(-1), texts),
    ),
}

TYPES = {
    "max_streams": ("max_streams_bidi", "max_streams_uni"),
    "streams_blocked": ("streams_blocked_bidi", "streams_blocked_uni"),
}


@pytest.mark.parametrize("name", SIMPLE)
@given(data=st.data(), before=st.binary(max_size=3), behind=st.binary(max_size=3))
@examples(60)
def test_what_is_built_is_parsed(name: str, data: Any, before: bytes, behind: bytes) -> None:
    build, parse, strategy = SIMPLE[name]
    fields = data.draw(strategy)
    frame = build(*fields)
    allowed = [QuicFrameType[each.upper()] for each in TYPES.get(name, (name,))]
    assert frame[0] in allowed
    at, end = len(before), len(before) + len(frame)
    whole = before + frame + behind
    assert parse(whole, at) == (*fields, end)
    assert parse(bytearray(whole), at) == (*fields, end)
    for cut in range(at + 1, end):
        with pytest.raises(TransportError) as caught:
            parse(whole[:cut], at)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, frame[0])


def test_the_frames_without_fields_are_their_type() -> None:
    assert bytes((frames.PING,)) == frames.PING_FRAME
    assert bytes((frames.HANDSHAKE_DONE,)) == frames.HANDSHAKE_DONE_FRAME
    assert frames.parse_handshake_done(b"\x00\x1e\x01", 1) == 2


def test_padding_and_pings_are_parsed_as_runs() -> None:
    data = b"\x00\x00\x00\x01\x01\x00" + bytes(60_000)
    assert frames.parse_padding(data, 0) == 3
    assert frames.parse_padding(data, 1) == 3
    assert frames.parse_ping(data, 3) == 5
    assert frames.parse_padding(data, 5) == len(data)
    assert frames.parse_ping(b"\x01\x01", 1) == 2


# ------------------------------------------------------------------------- acknowledgements


def ranges_of(pieces: list[tuple[int, int]], newest: int) -> Ranges:
    """Ranges downwards from `newest`: each piece is a length and the gap below it."""
    found = []
    stop = newest + 1
    for length, gap in pieces:
        if stop - length < 0:
            break
        found.append((stop - length, stop))
        stop -= length + gap
    ranges = Ranges()
    for start, stop in reversed(found or [(newest, newest + 1)]):
        ranges.add(start, stop)
    return ranges


sizes = st.one_of(st.integers(1, 70), st.integers(1, 20_000))
many_ranges = st.builds(
    ranges_of, st.lists(st.tuples(sizes, sizes), min_size=1, max_size=100), varints
)
ecn_counts = st.none() | st.tuples(varints, varints, varints)


def newest_first(ranges: Ranges) -> list[tuple[int, int]]:
    return [(each.start, each.stop) for each in reversed(list(ranges))]


@given(many_ranges, varints, ecn_counts)
@examples(300)
def test_acknowledgements_are_parsed(
    ranges: Ranges, delay: int, ecn: tuple[int, int, int] | None
) -> None:
    frame = frames.build_ack(ranges, delay, BIG, ecn)
    whole = b"\x00" + frame
    largest = ranges.stops[-1] - 1
    expected = (largest, delay, newest_first(ranges), ecn, len(whole))
    assert frames.parse_ack(whole, 1) == expected
    assert frames.parse_ack(bytearray(whole + b"\xff\xff"), 1) == expected
    buffer = Buffer(data=frame)
    assert buffer.pull_uint_var() == (frames.ACK if ecn is None else frames.ACK_ECN)
    pulled, pulled_delay = pull_ack_frame(buffer)
    assert list(pulled) == list(ranges)
    assert pulled_delay == delay
    if ecn is not None:
        assert tuple(buffer.pull_uint_var() for _ in ecn) == ecn
    assert buffer.eof()
    for cut in range(1, len(frame)):
        with pytest.raises(TransportError) as caught:
            frames.parse_ack(frame[:cut], 0)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, frame[0])


@given(many_ranges, varints, ecn_counts, st.integers(0, 150))
@examples(300)
def test_the_newest_ranges_stay_where_room_is_short(
    ranges: Ranges, delay: int, ecn: tuple[int, int, int] | None, room: int
) -> None:
    frame = frames.build_ack(ranges, delay, room, ecn)
    assert len(frame) <= room
    everything = newest_first(ranges)
    if not frame:
        assert room < 1 + 6 * 8 + varint_size(len(ranges))
        return
    _, _, kept, counts, end = frames.parse_ack(frame, 0)
    assert counts == ecn
    assert end == len(frame)
    assert kept == everything[: len(kept)]
    if len(kept) < len(everything):
        above, (start, stop) = kept[-1][0], everything[len(kept)]
        further = varint_size(above - stop - 1) + varint_size(stop - start - 1)
        # (One byte, for the count may take two.)
        assert len(frame) + further + 1 > room


@pytest.mark.parametrize("ecn", [None, (12_345, 0, 17)])
def test_an_everyday_acknowledgement_has_one_shape(ecn: tuple[int, int, int] | None) -> None:
    ranges = Ranges()
    for start, stop in ((0, 1), (7, 8), (100_000, 100_020)):
        ranges.add(start, stop)
        frame = frames.build_ack(ranges, 130, 1200, ecn)
        assert frames.parse_ack(frame, 0) == (stop - 1, 130, newest_first(ranges), ecn, len(frame))
        ranges.clear()
        assert len(frame) == (10 if ecn is None else 19)


@given(st.lists(varints, min_size=4, max_size=12), st.integers(0, 4), st.integers(2, 3))
@examples(300)
def test_any_acknowledgement_is_parsed_as_aioquic_does(
    numbers: list[int], more: int, kind: int
) -> None:
    numbers[2] = more
    frame = bytes((kind,)) + b"".join(map(encode_varint, numbers))
    buffer = Buffer(data=frame)
    buffer.pull_uint_var()
    try:
        ranges, delay = pull_ack_frame(buffer)
        counts = None if kind == frames.ACK else tuple(buffer.pull_uint_var() for _ in range(3))
    except (BufferReadError, ValueError, AssertionError):
        with pytest.raises(TransportError) as caught:
            frames.parse_ack(frame, 0)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, kind)
        return
    found = frames.parse_ack(frame, 0)
    assert found == (numbers[0], delay, newest_first_of(ranges), counts, buffer.tell())


def newest_first_of(ranges: Any) -> list[tuple[int, int]]:
    return [(each.start, each.stop) for each in reversed(list(ranges))]


WIDTHS = st.sampled_from((1, 2, 4, 8))


@given(
    st.integers(0, 200_000),
    st.integers(0, 300),
    st.integers(0, 300),
    st.none() | st.tuples(*[st.integers(0, 300)] * 3),
    st.lists(WIDTHS, min_size=7, max_size=7),
)
@example(100_000, 5, 7, (300, 3, 4), [4, 2, 1, 2, 4, 1, 1])
@example(100_000, 5, 7, (300, 3, 4), [4, 2, 1, 2, 4, 1, 2])
@example(100_000, 5, 7, (300, 3, 4), [4, 2, 1, 2, 4, 1, 8])
@example(100_000, 5, 7, (300, 3, 4), [4, 2, 1, 2, 4, 2, 4])
@example(100_000, 5, 7, (300, 3, 4), [4, 2, 1, 2, 2, 1, 4])
@example(100_000, 5, 7, None, [4, 2, 2, 2, 4, 1, 4])
@examples(300)
def test_integers_of_any_length_are_parsed_in_acknowledgements(
    largest: int, delay: int, first: int, ecn: tuple[int, int, int] | None, widths: list[int]
) -> None:
    first = min(first, largest)
    fields = (largest, delay, 0, first, *(ecn or ()))
    kind = frames.ACK if ecn is None else frames.ACK_ECN
    frame = bytes((kind,)) + b"".join(map(padded_varint, fields, widths))
    expected = (largest, delay, [(largest - first, largest + 1)], ecn, len(frame))
    assert frames.parse_ack(frame, 0) == expected
    assert frames.parse_ack(frame + bytes(9), 0) == expected


@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize("largest", [3, 70, 100_000])
def test_a_negative_packet_number_is_refused(largest: int, ecn: bool) -> None:
    kind = bytes((frames.ACK_ECN if ecn else frames.ACK,))
    counts = bytes(3) if ecn else b""
    number = (largest | 2 << 30).to_bytes(4, "big")
    zero = b"\x40\x00"
    first = kind + number + zero + b"\x00" + encode_varint(largest + 1) + counts
    second = kind + number + zero + b"\x01" + zero + encode_varint(largest) + b"\x00" + counts
    third = kind + number + zero + b"\x01" + zero + b"\x00" + encode_varint(largest) + counts
    for frame in (first, second, third):
        with pytest.raises(TransportError, match="negative") as caught:
            frames.parse_ack(frame, 0)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, kind[0])


def test_a_count_of_ranges_beyond_the_packet_costs_nothing() -> None:
    frame = b"\x02" + b"".join(map(encode_varint, (VARINT_MAX, 0, VARINT_MAX, 0))) + bytes(60_000)
    with pytest.raises(TransportError):
        frames.parse_ack(frame, 0)


# --------------------------------------------------------------------------------- streams


@given(varints, st.integers(0, 1 << 61), payloads, booleans, st.binary(max_size=9))
@examples(400)
def test_stream_frames_are_parsed(
    stream_id: int, offset: int, data: bytes, fin: bool, behind: bytes
) -> None:
    head = frames.build_stream_head(stream_id, offset, len(data), fin)
    assert len(head) == frames.stream_head_size(stream_id, offset)
    whole = b"\x01" + head + data + behind
    begin = 1 + len(head)
    expected = (stream_id, offset, begin, begin + len(data), int(fin))
    assert frames.parse_stream(whole, 1) == expected
    assert frames.parse_stream(bytearray(whole), 1) == expected
    for cut in range(2, begin + len(data)):
        with pytest.raises(TransportError) as caught:
            frames.parse_stream(whole[:cut], 1)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, head[0])


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 65_000])
@pytest.mark.parametrize("offset", [0, 1, (1 << 30) - 1, 1 << 30])
@pytest.mark.parametrize("stream_id", [0, 63, 64, 16_383, 16_384, 1 << 40])
def test_large_stream_frames_are_parsed(stream_id: int, offset: int, size: int) -> None:
    head = frames.build_stream_head(stream_id, offset, size, True)
    begin, end = len(head), len(head) + size
    assert frames.parse_stream(head + bytes(size), 0) == (stream_id, offset, begin, end, 1)


@given(varints, st.integers(0, 1 << 61), payloads)
@examples(200)
def test_frames_of_a_run_are_parsed(stream_id: int, offset: int, data: bytes) -> None:
    head = frames.build_stream_prefix(stream_id)
    head += (offset | frames.LONG_VARINT).to_bytes(8, "big")
    expected = (stream_id, offset, len(head), len(head) + len(data), 0)
    assert frames.parse_stream(head + data, 0) == expected


@given(
    st.integers(0, 7),
    varints,
    varints,
    varints,
    st.tuples(WIDTHS, WIDTHS, WIDTHS),
    payloads,
)
@examples(500)
def test_any_stream_frame_is_parsed_as_aioquic_does(
    bits: int, stream_id: int, offset: int, size: int, widths: tuple[int, ...], data: bytes
) -> None:
    fields = [stream_id]
    if bits & frames.STREAM_OFF:
        fields.append(offset)
    if bits & frames.STREAM_LEN:
        fields.append(size % 120)
    kind = frames.STREAM | bits
    frame = bytes((kind,)) + b"".join(map(padded_varint, fields, widths)) + data
    buffer = Buffer(data=frame)
    buffer.pull_uint_var()
    found_id = buffer.pull_uint_var()
    found_offset = buffer.pull_uint_var() if bits & frames.STREAM_OFF else 0
    length = buffer.pull_uint_var() if bits & frames.STREAM_LEN else len(frame) - buffer.tell()
    begin = buffer.tell()
    if found_offset + length > VARINT_MAX or begin + length > len(frame):
        with pytest.raises(TransportError) as caught:
            frames.parse_stream(frame, 0)
        assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, kind)
        return
    expected = (found_id, found_offset, begin, begin + length, bits & frames.STREAM_FIN)
    assert frames.parse_stream(frame, 0) == expected


def padded_varint(value: int, width: int) -> bytes:
    """A varint of at least `width` bytes."""
    width = max(width, varint_size(value))
    prefix = {1: 0, 2: 1, 4: 2, 8: 3}[width]
    return (value | prefix << 8 * width - 2).to_bytes(width, "big")


@pytest.mark.parametrize("offset", [VARINT_MAX, VARINT_MAX - 9])
def test_offsets_end_with_the_largest_integer(offset: int) -> None:
    room = VARINT_MAX - offset
    number = encode_varint(offset)
    for size in (room, room + 1):
        data = bytes(size)
        length = encode_varint(size)
        crypto = b"\x06" + number + length + data
        with_length = b"\x0e\x04" + number + length + data
        without = b"\x0c\x04" + number + data
        if size == room:
            assert frames.parse_crypto(crypto, 0)[0] == offset
            assert frames.parse_stream(with_length, 0)[1] == offset
            assert frames.parse_stream(without, 0)[1] == offset
            continue
        with pytest.raises(TransportError, match="2\\^62"):
            frames.parse_crypto(crypto, 0)
        for frame in (with_length, without):
            with pytest.raises(TransportError, match="2\\^62"):
                frames.parse_stream(frame, 0)


# ------------------------------------------------------------------------- other contents


@given(payloads, st.binary(max_size=3))
@examples(100)
def test_datagrams_are_parsed(data: bytes, behind: bytes) -> None:
    head = frames.build_datagram_head(len(data))
    begin, end = len(head), len(head) + len(data)
    assert frames.parse_datagram(head + data + behind, 0) == (begin, end)
    assert frames.parse_datagram(b"\x30" + data, 0) == (1, 1 + len(data))
    for cut in range(1, end):
        with pytest.raises(TransportError) as caught:
            frames.parse_datagram((head + data)[:cut], 0)
        assert caught.value.frame_type == 0x31


def refused(parse: Callable[..., object], frame: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        parse(frame, 0)
    assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, frame[0])


def test_an_empty_token_is_refused() -> None:
    refused(frames.parse_new_token, b"\x07\x00")


@pytest.mark.parametrize("uni", [False, True])
def test_more_streams_than_there_can_be_are_refused(uni: bool) -> None:
    assert frames.parse_max_streams(frames.build_max_streams(1 << 60, uni), 0)[0] == 1 << 60
    refused(frames.parse_max_streams, frames.build_max_streams((1 << 60) + 1, uni))
    refused(frames.parse_streams_blocked, frames.build_streams_blocked((1 << 60) + 1, uni))


@pytest.mark.parametrize("size", [0, 21, 255])
def test_connection_ids_have_one_to_twenty_bytes(size: int) -> None:
    frame = b"\x18\x05\x00" + bytes((size,)) + bytes(size + 16)
    refused(frames.parse_new_connection_id, frame)


def test_an_id_which_retires_itself_is_refused() -> None:
    frame = frames.build_new_connection_id(4, 5, bytes(8), bytes(16))
    refused(frames.parse_new_connection_id, frame)
    frame = frames.build_new_connection_id(5, 5, bytes(8), bytes(16))
    assert frames.parse_new_connection_id(frame, 0)[:2] == (5, 5)


@given(texts, st.integers(25, 60), varints, varints)
@examples(200)
def test_a_reason_is_cut_to_the_room_between_characters(
    reason: str, room: int, code: int, frame_type: int
) -> None:
    for frame in (
        frames.build_transport_close(code, frame_type, reason, room),
        frames.build_application_close(code, reason, room),
    ):
        found_code, _, found, end = frames.parse_close(frame, 0)
        assert found_code == code
        assert end == len(frame) <= room
        assert reason.startswith(found)
        if found != reason:
            left = reason[len(found)].encode()
            assert len(frame) + len(left) + 1 > room


def test_a_reason_which_is_no_text_is_left_out() -> None:
    assert frames.parse_close(b"\x1d\x05\x02\xff\xfe", 0) == (5, -1, "", 5)


def test_lone_surrogates_in_a_reason_do_no_harm() -> None:
    frame = frames.build_application_close(5, "a\ud800b", 100)
    assert frames.parse_close(frame, 0) == (5, -1, "a?b", len(frame))
