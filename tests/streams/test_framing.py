"""Frames: any split gives the same ones, and none above the limit is buffered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.streams.framing import (
    VARINT_MAX,
    FrameDecoder,
    FrameTooLarge,
    FramingError,
    encode_frame,
    encode_varint,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # RFC 9000 appendix A.1
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
    ],
)
def test_integers_are_encoded_as_the_rfc_has_it(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, VARINT_MAX + 1])
def test_integers_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"2\*\*62"):
        encode_varint(value)


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_any_split_of_the_input_gives_the_same_frames(
    payloads: list[bytes], data: st.DataObject
) -> None:
    wire = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder(300)
    found: list[bytes] = []
    position = 0
    while position < len(wire):
        size = data.draw(st.integers(1, 40))
        decoder.feed(wire[position : position + size])
        found += decoder
        position += size
    decoder.end()
    assert found == payloads


@given(st.integers(101, VARINT_MAX), st.binary(max_size=50))
def test_a_frame_above_the_limit_is_refused_before_any_of_it_is_buffered(
    size: int, rest: bytes
) -> None:
    decoder = FrameDecoder(100)
    with pytest.raises(FrameTooLarge) as caught:
        for byte in encode_varint(size):
            decoder.feed(bytes([byte]))
    assert (caught.value.size, caught.value.limit) == (size, 100)
    with pytest.raises(FrameTooLarge):
        decoder.feed(rest)
    with pytest.raises(FrameTooLarge):
        decoder.next_frame()
    assert not decoder._buffer


def test_a_frame_above_the_limit_behind_a_good_one_is_refused_after_it() -> None:
    decoder = FrameDecoder(5)
    decoder.feed(encode_frame(b"good") + encode_varint(6) + b"123456")
    assert decoder.next_frame() == b"good"
    with pytest.raises(FrameTooLarge):
        decoder.next_frame()


@given(st.binary(min_size=1, max_size=50), st.data())
def test_an_end_in_the_middle_of_a_frame_is_an_error(payload: bytes, data: st.DataObject) -> None:
    wire = encode_frame(payload)
    cut = data.draw(st.integers(1, len(wire) - 1))
    decoder = FrameDecoder(100)
    decoder.feed(wire[:cut])
    assert decoder.next_frame() is None
    with pytest.raises(FramingError):
        decoder.end()


@given(st.binary(max_size=200))
def test_arbitrary_input_raises_nothing_else(junk: bytes) -> None:
    decoder = FrameDecoder(64)
    try:
        for byte in junk:
            decoder.feed(bytes([byte]))
            for frame in decoder:
                assert len(frame) <= 64
        decoder.end()
    except FramingError:
        pass
    assert len(decoder._buffer) <= 72
