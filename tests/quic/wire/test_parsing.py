"""The types of frames, and arbitrary input of a peer: against a plain parser and aioquic."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.packet import (
    NON_ACK_ELICITING_FRAME_TYPES,
    PROBING_FRAME_TYPES,
    QuicFrameType,
    pull_ack_frame,
)
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    FRAME_ENCODING_ERROR,
    PROTOCOL_VIOLATION,
    TransportError,
)
from phoenix_trio.quic.wire.varint import VARINT_MAX
from tests.hostile.frames import random_payload
from tests.packets import LAYOUTS
from tests.support import examples

# ----------------------------------------------------------------------------------- types


def test_the_tables_say_what_aioquic_says() -> None:
    known = {*map(int, QuicFrameType), *range(0x08, 0x10)}
    eliciting = known - set(map(int, NON_ACK_ELICITING_FRAME_TYPES))
    for kind in range(256):
        assert frames.IS_KNOWN[kind] == (kind in known)
        assert frames.IS_ACK_ELICITING[kind] == (kind in eliciting)
        assert frames.IS_PROBING[kind] == (kind in PROBING_FRAME_TYPES)


def test_the_frames_of_0_rtt_are_those_of_rfc_9000() -> None:
    # Section 12.4, table 3.
    refused_types = {
        *(frames.ACK, frames.ACK_ECN, frames.CRYPTO, frames.NEW_TOKEN),
        *(frames.PATH_RESPONSE, frames.HANDSHAKE_DONE),
    }
    for kind in range(256):
        expected = frames.IS_KNOWN[kind] and kind not in refused_types
        assert frames.IS_ALLOWED_IN_0RTT[kind] == expected


@pytest.mark.parametrize(
    ("data", "code", "kind"),
    [
        (b"\x1f", FRAME_ENCODING_ERROR, 0x1F),
        (b"\x21\x00", FRAME_ENCODING_ERROR, 0x21),
        (b"\x40\x1f", FRAME_ENCODING_ERROR, 0x1F),
        (b"\x52\x34", FRAME_ENCODING_ERROR, 0x1234),
        (b"\xff" * 8, FRAME_ENCODING_ERROR, VARINT_MAX),
        (b"\x40", FRAME_ENCODING_ERROR, 0),
        (b"\xc0\x00\x00", FRAME_ENCODING_ERROR, 0),
        (b"\x40\x01", PROTOCOL_VIOLATION, 0x01),
        (b"\x80\x00\x00\x30", PROTOCOL_VIOLATION, 0x30),
    ],
)
def test_other_types_are_errors(data: bytes, code: int, kind: int) -> None:
    assert not frames.IS_KNOWN[data[0]]
    error = frames.unknown_type(b"\x00" + data, 1)
    assert (error.code, error.frame_type) == (code, kind)
    assert f"0x{kind:x}" in str(error)


# ------------------------------------------------------------------- arbitrary input of a peer

PARSERS: dict[int, Callable[..., Any]] = {
    0x00: frames.parse_padding,
    0x01: frames.parse_ping,
    0x02: frames.parse_ack,
    0x03: frames.parse_ack,
    0x04: frames.parse_reset_stream,
    0x05: frames.parse_stop_sending,
    0x06: frames.parse_crypto,
    0x07: frames.parse_new_token,
    **dict.fromkeys(range(0x08, 0x10), frames.parse_stream),
    0x10: frames.parse_max_data,
    0x11: frames.parse_max_stream_data,
    0x12: frames.parse_max_streams,
    0x13: frames.parse_max_streams,
    0x14: frames.parse_data_blocked,
    0x15: frames.parse_stream_data_blocked,
    0x16: frames.parse_streams_blocked,
    0x17: frames.parse_streams_blocked,
    0x18: frames.parse_new_connection_id,
    0x19: frames.parse_retire_connection_id,
    0x1A: frames.parse_path_challenge,
    0x1B: frames.parse_path_response,
    0x1C: frames.parse_close,
    0x1D: frames.parse_close,
    0x1E: frames.parse_handshake_done,
    0x30: frames.parse_datagram,
    0x31: frames.parse_datagram,
}


def plain_end(data: bytes, at: int) -> int:
    """The end of a frame, by aioquic's buffer and the layouts.

    Raises:
      BufferReadError, ValueError: it is malformed.
    """
    kind = data[at]
    buffer = Buffer(data=data)
    buffer.seek(at + 1)
    numbers = []
    for field in LAYOUTS[kind]:
        if field == "n":
            numbers.append(buffer.pull_uint_var())
        elif field == "d":
            numbers.append(buffer.pull_uint_var())
            buffer.pull_bytes(numbers[-1])
        elif field == "r":
            numbers.append(len(data) - buffer.tell())
            buffer.seek(len(data))
        elif field == "c":
            size = buffer.pull_uint8()
            if not 1 <= size <= 20:
                raise ValueError("connection ID")
            buffer.pull_bytes(size)
        elif field == "t":
            buffer.pull_bytes(16)
        elif field == "p":
            buffer.pull_bytes(8)
        else:
            buffer.seek(at + 1)
            pull_ack_frame(buffer)
    if (kind == 0x06 or 0x0C <= kind < 0x10) and sum(numbers[-2:]) > VARINT_MAX:
        raise ValueError("beyond the largest offset")
    if kind in (0x12, 0x13, 0x16, 0x17) and numbers[0] > 1 << 60:
        raise ValueError("streams")
    if kind == 0x18 and numbers[1] > numbers[0]:
        raise ValueError("retires itself")
    if kind == 0x07 and not numbers[0]:
        raise ValueError("empty")
    return buffer.tell()


def end_of(kind: int, found: Any) -> int:
    """The position behind the frame, from its parser's result."""
    if isinstance(found, int):
        return found
    end: int = found[3] if frames.STREAM <= kind < frames.STREAM + 8 else found[-1]
    return end


@given(st.integers(0, 1 << 32))
@examples(1000)
def test_random_payloads_are_parsed_as_by_plain_means(seed: int) -> None:
    data = random_payload(random.Random(seed), closes=True)
    at = 0
    while at < len(data):
        kind = data[at]
        if not frames.IS_KNOWN[kind]:
            assert frames.unknown_type(data, at).code in (FRAME_ENCODING_ERROR, PROTOCOL_VIOLATION)
            return
        if kind in (frames.PADDING, frames.PING):
            at = PARSERS[kind](data, at)
            continue
        try:
            expected = plain_end(data, at)
        except (BufferReadError, ValueError, AssertionError):
            with pytest.raises(TransportError) as caught:
                PARSERS[kind](data, at)
            assert (caught.value.code, caught.value.frame_type) == (FRAME_ENCODING_ERROR, kind)
            return
        assert end_of(kind, PARSERS[kind](data, at)) == expected
        at = expected


@given(st.binary(max_size=80), st.sampled_from(sorted(PARSERS)))
@examples(500)
def test_any_bytes_are_parsed_or_refused(rest: bytes, kind: int) -> None:
    data = bytes((kind,)) + rest
    try:
        found = PARSERS[kind](data, 0)
    except TransportError as caught:
        found = caught
    if isinstance(found, TransportError):
        assert (found.code, found.frame_type) == (FRAME_ENCODING_ERROR, kind)
    else:
        assert 1 <= end_of(kind, found) <= len(data)
