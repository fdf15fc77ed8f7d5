"""The receiving part of a stream, against aioquic's slow but plain one."""

from __future__ import annotations

import random

import pytest
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.stream import FinalSizeError, QuicStreamReceiver
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.flow_control import ReceiveWindow
from phoenix_trio.quic.established.reassembly import PieceLimit
from phoenix_trio.quic.established.receive_stream import ReceiveStream
from phoenix_trio.quic.wire.errors import FINAL_SIZE_ERROR, INTERNAL_ERROR, TransportError
from tests.support import examples

DATA = random.Random(0).randbytes(200)


def make(limit: PieceLimit | None = None) -> ReceiveStream:
    return ReceiveStream(0, ReceiveWindow(1000, 1000), limit or PieceLimit())


frames = st.tuples(st.integers(0, 100), st.integers(0, 40), st.sampled_from([False, False, True]))
resets = st.integers(0, 120)


@examples(300)
@given(steps=st.lists(st.one_of(frames, frames, frames, resets), max_size=30))
def test_it_delivers_what_aioquic_delivers(steps: list[tuple[int, int, bool] | int]) -> None:
    ours, pieces = make(), PieceLimit()
    ours = make(pieces)
    theirs = QuicStreamReceiver(stream_id=0, readable=True)
    for step in steps:
        failure: str | None = None
        if isinstance(step, int):
            news = False
            try:
                news = theirs.handle_reset(final_size=step, error_code=1) is not None
            except FinalSizeError as error:
                failure = str(error)
            if failure is None:
                assert ours.reset(step) == news
            else:
                with pytest.raises(TransportError, match=failure) as caught:
                    ours.reset(step)
                assert caught.value.code == FINAL_SIZE_ERROR
        else:
            offset, size, fin = step
            data = DATA[offset : offset + size]
            event = None
            try:
                event = theirs.handle_frame(QuicStreamFrame(data=data, offset=offset, fin=fin))
            except FinalSizeError as error:
                failure = str(error)
            if failure is None:
                was_finished = ours.is_finished
                taken = ours.take(offset, data, fin)
                assert taken == (b"" if event is None else event.data)
                assert (ours.is_finished and not was_finished) == (
                    event is not None and event.end_stream
                )
            else:
                with pytest.raises(TransportError, match=failure) as caught:
                    ours.take(offset, data, fin)
                assert caught.value.code == FINAL_SIZE_ERROR
        if failure is not None:
            return
        assert ours.received == theirs.highest_offset
        assert ours.is_finished == theirs.is_finished
        if not ours.is_finished:
            assert ours.delivered == theirs.starting_offset()
            assert ours.pending_ranges() == [
                each for each in theirs._ranges if each.stop > ours.delivered
            ]
        else:
            assert pieces.held == pieces.pieces == 0
        assert (ours.pending is None) == (pieces.pieces == 0)


def test_what_lies_behind_a_gap_is_dropped_when_nothing_more_is_wanted() -> None:
    pieces = PieceLimit()
    stream = make(pieces)
    assert stream.take(10, b"later", False) == b""
    assert stream.pending_ranges() == [range(10, 15)]
    stream.is_discarding = True
    stream.discard()
    assert pieces.held == pieces.pieces == 0
    assert (stream.delivered, stream.received) == (15, 15)
    assert stream.take(0, b"x" * 10, False) == b""
    assert stream.take(20, b"x" * 10, False) == b""
    assert stream.delivered == 30
    assert not stream.is_finished
    assert stream.take(40, b"", True) == b""
    assert stream.is_finished, "all credit of what is missing is known"
    assert stream.delivered == 40


def test_a_stream_of_which_only_data_is_missing_ends_when_it_is_discarded() -> None:
    stream = make()
    stream.take(10, b"", True)
    assert not stream.is_finished
    stream.discard()
    assert stream.is_finished


def test_too_many_gaps_are_refused() -> None:
    stream = make()
    with pytest.raises(TransportError, match="gaps") as caught:
        for offset in range(1, 10_000, 2):
            stream.take(offset, b"x", False)
    assert caught.value.code == INTERNAL_ERROR
    assert len(stream.pending_ranges()) < 1100


def test_a_reset_frees_what_lies_behind_gaps() -> None:
    pieces = PieceLimit()
    stream = make(pieces)
    stream.take(10, b"later", False)
    assert stream.reset(15)
    assert pieces.held == 0
    assert (stream.final_size, stream.received) == (15, 15)
    assert not stream.reset(15)
    assert stream.take(0, b"late", False) == b""
