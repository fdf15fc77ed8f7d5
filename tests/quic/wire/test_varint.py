"""Variable-length integers, against RFC 9000 and aioquic."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer, encode_uint_var, size_uint_var
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.wire.varint import VARINT_MAX, decode_varint, encode_varint, varint_size
from tests.support import examples

EDGES = sorted(
    edge + step for edge in (0, 1 << 6, 1 << 14, 1 << 30) for step in (-1, 0, 1) if edge + step >= 0
) + [VARINT_MAX - 1, VARINT_MAX]

values = st.one_of(st.sampled_from(EDGES), *(st.integers(0, 1 << bits) for bits in (6, 14, 30, 61)))


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_the_examples_of_rfc_9000_are_decoded(encoded: str, value: int) -> None:
    data = bytes.fromhex(encoded)
    assert decode_varint(data, 0) == (value, len(data))
    assert decode_varint(bytearray(b"\xff" + data + b"\xff"), 1) == (value, 1 + len(data))


@given(values)
@examples(300)
def test_encoding_is_the_shortest_and_decodes_again(value: int) -> None:
    encoded = encode_varint(value)
    assert encoded == encode_uint_var(value)
    assert len(encoded) == varint_size(value) == size_uint_var(value)
    assert decode_varint(b"\x00" + encoded + b"\x00", 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize("value", [-1, -(1 << 70), VARINT_MAX + 1, 1 << 70])
def test_what_no_variable_length_integer_can_be_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        encode_varint(value)


@given(values, st.integers(0, 7))
@examples(200)
def test_an_integer_which_is_cut_short_is_an_index_error(value: int, kept: int) -> None:
    encoded = encode_varint(value)[:kept]
    if len(encoded) < varint_size(value):
        with pytest.raises(IndexError):
            decode_varint(encoded, 0)


@given(st.binary(min_size=8, max_size=8))
@examples(300)
def test_any_bytes_decode_as_in_aioquic(data: bytes) -> None:
    buffer = Buffer(data=data)
    assert decode_varint(data, 0) == (buffer.pull_uint_var(), buffer.tell())
