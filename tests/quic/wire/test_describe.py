"""Descriptions of frames in traces, against those of aioquic's logger."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from aioquic.quic.logger import QuicLoggerTrace
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.describe import describe_frames
from phoenix_trio.quic.wire.ranges import Ranges
from tests.hostile.frames import random_payload
from tests.support import examples

ORACLE = QuicLoggerTrace(is_client=True, odcid=b"")


def acknowledged() -> Ranges:
    ranges = Ranges()
    for start, stop in ((3, 5), (9, 10), (20, 30)):
        ranges.add(start, stop)
    return ranges


ACKED = RangeSet([range(3, 5), range(9, 10), range(20, 30)])
TOKEN = bytes(range(16))

#: A frame, and aioquic's description of it.
CASES: list[tuple[bytes, dict[str, Any]]] = [
    (bytes(5), ORACLE.encode_padding_frame()),
    (b"\x01", ORACLE.encode_ping_frame()),
    (frames.build_ack(acknowledged(), 77, 99, None), ORACLE.encode_ack_frame(ACKED, 77 * 8e-6)),
    (
        frames.build_ack(acknowledged(), 77, 99, (1, 2, 3)),
        ORACLE.encode_ack_frame(ACKED, 77 * 8e-6),
    ),
    (frames.build_reset_stream(4, 7, 9), ORACLE.encode_reset_stream_frame(7, 9, 4)),
    (frames.build_stop_sending(4, 7), ORACLE.encode_stop_sending_frame(7, 4)),
    (
        frames.build_crypto(100, b"abc"),
        ORACLE.encode_crypto_frame(QuicStreamFrame(data=b"abc", offset=100)),
    ),
    (frames.build_new_token(b"token"), ORACLE.encode_new_token_frame(b"token")),
    *(
        (
            frames.build_stream_head(8, offset, 3, fin) + b"abc",
            ORACLE.encode_stream_frame(QuicStreamFrame(data=b"abc", fin=fin, offset=offset), 8),
        )
        for fin in (False, True)
        for offset in (0, 1000)
    ),
    (frames.build_max_data(5000), ORACLE.encode_connection_limit_frame(0x10, 5000)),
    (frames.build_max_stream_data(4, 5000), ORACLE.encode_max_stream_data_frame(5000, 4)),
    (frames.build_max_streams(50, False), ORACLE.encode_connection_limit_frame(0x12, 50)),
    (frames.build_max_streams(50, True), ORACLE.encode_connection_limit_frame(0x13, 50)),
    (frames.build_data_blocked(5000), ORACLE.encode_data_blocked_frame(5000)),
    (frames.build_stream_data_blocked(4, 50), ORACLE.encode_stream_data_blocked_frame(50, 4)),
    (frames.build_streams_blocked(50, False), ORACLE.encode_streams_blocked_frame(False, 50)),
    (frames.build_streams_blocked(50, True), ORACLE.encode_streams_blocked_frame(True, 50)),
    (
        frames.build_new_connection_id(7, 3, b"connection", TOKEN),
        ORACLE.encode_new_connection_id_frame(b"connection", 3, 7, TOKEN),
    ),
    (frames.build_retire_connection_id(3), ORACLE.encode_retire_connection_id_frame(3)),
    (frames.build_path_challenge(b"12345678"), ORACLE.encode_path_challenge_frame(b"12345678")),
    (frames.build_path_response(b"12345678"), ORACLE.encode_path_response_frame(b"12345678")),
    (
        frames.build_transport_close(10, 8, "why", 99),
        ORACLE.encode_connection_close_frame(10, 8, "why"),
    ),
    (
        frames.build_application_close(10, "why", 99),
        ORACLE.encode_connection_close_frame(10, None, "why"),
    ),
    (b"\x1e", ORACLE.encode_handshake_done_frame()),
    (frames.build_datagram_head(3) + b"abc", ORACLE.encode_datagram_frame(3)),
]

#: Frames without a length, which end with the packet.
LAST: list[tuple[bytes, dict[str, Any]]] = [
    (
        b"\x08\x04abc",
        ORACLE.encode_stream_frame(QuicStreamFrame(data=b"abc", fin=False, offset=0), 4),
    ),
    (b"\x30abc", ORACLE.encode_datagram_frame(3)),
]


@pytest.mark.parametrize(("frame", "expected"), CASES + LAST)
def test_each_frame_is_described_as_by_aioquic(frame: bytes, expected: dict[str, Any]) -> None:
    if expected["frame_type"] == "ack":
        expected = {**expected, "ack_delay": pytest.approx(expected["ack_delay"])}
    assert describe_frames(frame) == [expected]
    assert describe_frames(bytearray(frame)) == [expected]


def test_the_exponent_scales_the_delay() -> None:
    frame = frames.build_ack(acknowledged(), 1000, 99, None)
    assert describe_frames(frame)[0]["ack_delay"] == 8.0
    assert describe_frames(frame, 10)[0]["ack_delay"] == 1024.0


def test_all_frames_of_a_packet_are_described_in_order() -> None:
    cases = CASES + LAST[:1]
    described = describe_frames(b"".join(frame for frame, _ in cases))
    assert [each["frame_type"] for each in described] == [
        expected["frame_type"] for _, expected in cases
    ]


@pytest.mark.parametrize(
    ("rest", "kind"), [(b"\x04\x01", 0x04), (b"\x52\x34\x00", 0x1234), (b"\x40\x01", 0x01)]
)
def test_what_cannot_be_parsed_is_an_unknown_frame_at_the_end(rest: bytes, kind: int) -> None:
    assert describe_frames(b"\x01" + rest) == [
        {"frame_type": "ping"},
        {"frame_type": "unknown", "raw_frame_type": kind, "raw_length": len(rest)},
    ]


@given(st.one_of(st.binary(max_size=60), st.builds(random.Random, st.integers(0, 1 << 32))))
@examples(300)
def test_any_payload_can_be_described(source: bytes | random.Random) -> None:
    plain = source if isinstance(source, bytes) else random_payload(source, closes=True)
    described = describe_frames(plain)
    assert bool(described) == bool(plain)
    json.dumps(described)
