"""The send buffer holds the same as a plain bytes object."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.send_buffer import SendBuffer
from tests.support import examples

writes = st.lists(
    st.tuples(st.sampled_from([1, 7, 1000, 16_383, 16_384, 40_000, 70_000]), st.integers(0, 2)),
    max_size=12,
)


@given(writes=writes, data=st.data())
@examples(100)
def test_any_range_can_be_read_until_it_is_released(
    writes: list[tuple[int, int]], data: st.DataObject
) -> None:
    buffer = SendBuffer()
    model = b""
    for number, (size, kind) in enumerate(writes):
        piece = bytes([number + 1]) * size
        given_piece: bytes | bytearray | memoryview = piece
        if kind == 1:
            given_piece = bytearray(piece)
        elif kind == 2:
            given_piece = memoryview(b"x" + piece)[1:]
        kept = buffer.append(given_piece)
        assert kept == (size >= 16_384 and kind != 1)
        if kind == 1:
            given_piece[:] = b"\0" * size  # type: ignore[index] # a later change by the caller
        model += piece
        assert (buffer.start, buffer.stop) == (buffer.start, len(model))
        start = data.draw(st.integers(buffer.start, len(model)))
        stop = data.draw(st.integers(start, len(model)))
        assert buffer.read(start, stop) == model[start:stop]
        offset = data.draw(st.integers(0, len(model)))
        buffer.release(offset)
        assert buffer.start <= len(model)
        assert len(buffer) == buffer.stop - buffer.start
        assert buffer.read(buffer.start, buffer.stop) == model[buffer.start :]
    buffer.clear()
    assert len(buffer) == 0
    assert not buffer._chunks


def test_released_bytes_are_freed() -> None:
    buffer = SendBuffer()
    for _ in range(100):
        buffer.append(b"x" * 20_000)
    buffer.release(1_990_000)
    assert sum(len(chunk) for chunk in buffer._chunks) <= 20_000
    for _ in range(1000):
        buffer.append(b"y" * 100)
    assert len(buffer._chunks) < 10, "small writes are joined"
