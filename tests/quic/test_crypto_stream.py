"""CRYPTO data comes out as the original TLS messages, and floods of it do not grow memory."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.crypto_stream import (
    CRYPTO_BUFFER_EXCEEDED,
    HANDSHAKE_WINDOW,
    INITIAL_WINDOW,
    MAX_GAPS,
    PROTOCOL_VIOLATION,
    CryptoReceiver,
    CryptoStreamError,
)
from tests.support import examples


def message(size: int, kind: int = 1) -> bytes:
    """A TLS handshake message with a body of `size` bytes."""
    return bytes((kind,)) + size.to_bytes(3, "big") + random.Random(size).randbytes(size)


def take_all(receiver: CryptoReceiver) -> list[bytes]:
    found = []
    while (each := receiver.next_message()) is not None:
        found.append(each)
    return found


@examples(300)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 4000), max_size=40),
    copies=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), max_size=12),
    seed=st.integers(0, 2**32),
)
def test_messages_survive_any_cuts_order_duplicates_and_overlaps(
    sizes: list[int], cuts: list[int], copies: list[tuple[int, int]], seed: int
) -> None:
    messages = [message(size, number) for number, size in enumerate(sizes)]
    data = b"".join(messages)
    borders = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    pieces = [(a, data[a:b]) for a, b in pairwise(borders)]
    # Retransmissions whose frames begin and end elsewhere.
    pieces += [(at % len(data), data[at % len(data) :][:size]) for at, size in copies]
    random.Random(seed).shuffle(pieces)
    receiver = CryptoReceiver()
    received: set[int] = set()
    found: list[bytes] = []
    for offset, piece in pieces:
        bytes_of_piece = set(range(offset, offset + len(piece)))
        assert receiver.receive(offset, piece) == (not bytes_of_piece <= received)
        received |= bytes_of_piece
        found += take_all(receiver)
        assert receiver.held <= HANDSHAKE_WINDOW
        assert receiver.gaps <= MAX_GAPS
    assert found == messages
    assert receiver.held == receiver.gaps == 0


def test_the_window_slides_with_the_messages_which_are_taken() -> None:
    receiver = CryptoReceiver(limit=1000)
    offset = 0
    for _ in range(50):
        assert receiver.receive(offset, message(900))
        assert receiver.next_message() == message(900)
        offset += 904
    assert receiver.receive(offset + 999, b"x")
    with pytest.raises(CryptoStreamError) as caught:
        receiver.receive(offset + 1000, b"x")
    assert caught.value.error_code == CRYPTO_BUFFER_EXCEEDED


def test_what_is_in_order_but_incomplete_counts_too() -> None:
    receiver = CryptoReceiver(limit=1000)
    receiver.receive(0, message(996)[:990])
    with pytest.raises(CryptoStreamError):
        receiver.receive(990, bytes(11))


def test_too_many_gaps_are_refused() -> None:
    receiver = CryptoReceiver()
    for number in range(MAX_GAPS):
        receiver.receive(2 * number + 1, b"x")
    with pytest.raises(CryptoStreamError, match="gaps") as caught:
        receiver.receive(2 * MAX_GAPS + 1, b"x")
    assert caught.value.error_code == CRYPTO_BUFFER_EXCEEDED


@pytest.mark.parametrize("size", [INITIAL_WINDOW - 3, 2**24 - 1])
def test_a_message_which_announces_more_than_the_window_is_refused_at_its_header(size: int) -> None:
    receiver = CryptoReceiver(INITIAL_WINDOW)
    receiver.receive(0, b"\x01" + size.to_bytes(3, "big"))
    with pytest.raises(CryptoStreamError, match="at most 16384") as caught:
        receiver.next_message()
    assert caught.value.error_code == CRYPTO_BUFFER_EXCEEDED


def test_new_data_of_a_level_which_is_over_is_refused_and_duplicates_are_not() -> None:
    """RFC 9001 section 4.1.3."""
    receiver = CryptoReceiver()
    receiver.receive(0, message(10))
    assert receiver.next_message() == message(10)
    receiver.close()
    assert not receiver.receive(3, message(10)[3:])
    assert receiver.next_message() is None
    with pytest.raises(CryptoStreamError) as caught:
        receiver.receive(13, b"xx")
    assert caught.value.error_code == PROTOCOL_VIOLATION


def test_data_which_is_left_over_when_its_level_ends_is_refused() -> None:
    receiver = CryptoReceiver()
    receiver.receive(0, message(10) + b"\x02")
    receiver.next_message()
    receiver.close()
    with pytest.raises(CryptoStreamError, match="left over"):
        receiver.next_message()
