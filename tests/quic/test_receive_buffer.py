"""The buffer between the network and the reader."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.receive_buffer import ReceiveBuffer


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=5000).map(lambda data: ("append", data)),
            st.integers(1, 9000).map(lambda size: ("take", size)),
            st.binary(max_size=5000).map(lambda data: ("put back", data)),
            st.just(("take all", 0)),
        )
    )
)
def test_bytes_come_out_as_they_went_in(operations: list[tuple[str, bytes | int]]) -> None:
    buffer = ReceiveBuffer()
    model = bytearray()
    for kind, argument in operations:
        if kind == "take all":
            assert buffer.take_all() == model
            model.clear()
        elif kind == "put back":
            assert isinstance(argument, bytes)
            buffer.put_back(argument)
            model[:0] = argument
        elif isinstance(argument, bytes):
            buffer.append(argument)
            model += argument
        else:
            taken = buffer.take(argument)
            assert len(taken) <= argument
            assert bool(taken) == bool(model)
            assert bytes(taken) == bytes(model[: len(taken)])
            del model[: len(taken)]
        assert len(buffer) == len(model)
    assert buffer.clear() == len(model)
    assert not buffer.take(1)


def test_bytes_which_arrive_one_by_one_cost_about_a_byte_each() -> None:
    buffer = ReceiveBuffer()
    for _ in range(200_000):
        buffer.append(b"x")
    assert sum(sys.getsizeof(piece) for piece in buffer._pieces) < 400_000


def test_a_large_read_joins_small_pieces() -> None:
    buffer = ReceiveBuffer()
    for _ in range(10):
        buffer.append(b"y" * 3000)
    assert len(buffer.take(65536)) == 30_000


def test_joining_keeps_what_was_not_taken() -> None:
    buffer = ReceiveBuffer()
    assert buffer.join() == b""
    for _ in range(10):
        buffer.append(b"abc" * 1000)
    first = buffer.take(100)
    assert first + buffer.join() == b"abc" * 10_000
    assert buffer.join() == (b"abc" * 10_000)[100:]
    assert len(buffer) == 29_900
    assert first + buffer.take(100_000) == b"abc" * 10_000
