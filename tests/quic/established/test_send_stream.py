"""The sending part of a stream: every byte leaves until one copy of it is acknowledged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.send_stream import SendQueue, SendStream
from tests.support import examples

Frame = tuple[int, int, bool]


def make(size: int, *, limit: int = 1 << 20, end: bool = True) -> tuple[SendStream, SendQueue]:
    queue = SendQueue([])
    stream = SendStream(0, limit, queue)
    write(stream, queue, size)
    if end:
        stream.end()
    stream.activate()
    return stream, queue


def write(stream: SendStream, queue: SendQueue, size: int) -> None:
    stream.buffer.append(bytes(size))
    queue.buffered += size
    queue.unsent += size


def send(stream: SendStream, room: int = 1 << 20) -> Frame | None:
    """The next frame, with at most `room` bytes of data."""
    if not stream.has_work():
        return None
    start, end = stream.next_range()
    stop = min(end, start + room)
    if stream.lost is None:
        stop = min(stop, stream.limit)
    fin = stream.note_sent(start, stop)
    if not stream.has_work():
        stream._queue.active.pop(0, None)
    return start, stop, fin


@examples(150)
@given(
    size=st.integers(0, 400),
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.3, 0.7]),
)
def test_all_arrives_whatever_becomes_of_its_copies(size: int, seed: int, loss: float) -> None:
    """Send, repeat, lose and acknowledge at random until all is acknowledged."""
    generator = random.Random(seed)
    stream, queue = make(size)
    flying: list[Frame] = []
    arrived: set[int] = set()
    for step in range(20_000):
        action = generator.random()
        if action < 0.4 or not flying:
            frame = send(stream, generator.randint(1, 40))
            if frame is not None:
                flying.append(frame)
            elif not flying:
                break
        elif action < 0.55 and step < 300:
            stream.repeat(*generator.choice(flying))
        else:
            start, stop, fin = flying.pop(generator.randrange(len(flying)))
            if generator.random() < loss:
                stream.on_lost(start, stop, fin)
            else:
                arrived.update(range(start, stop))
                stream.on_acknowledged(start, stop, fin)
        assert (0 in queue.active) == stream.has_work()
        missing = set(range(size)) - arrived
        assert stream.buffer.start == min(missing, default=size)
        assert queue.buffered == size - stream.buffer.start
        assert queue.unsent == size - stream.sent
        again = set() if stream.lost is None else {n for each in stream.lost for n in each}
        assert not again & arrived, "what has arrived need not be sent again"
    else:
        raise AssertionError("sends for ever")
    assert len(arrived) == size
    assert stream.is_finished
    assert queue.ended == [0]
    assert queue.bytes_acknowledged == size
    assert queue.buffered == queue.unsent == 0
    assert stream.lost is stream.ahead is None


def test_bytes_beyond_the_limit_wait_for_credit() -> None:
    stream, queue = make(100, limit=60)
    assert send(stream) == (0, 60, False)
    assert not stream.has_work()
    assert stream.is_blocked()
    stream.raise_limit(50)
    assert not queue.active
    stream.raise_limit(80)
    assert queue.active == {0: stream}
    assert not stream.is_blocked()
    assert send(stream) == (60, 80, False)
    stream.raise_limit(1000)
    assert send(stream) == (80, 100, True)
    assert not stream.is_blocked()


def test_a_limit_of_nothing_permits_an_end_without_data() -> None:
    stream, queue = make(0, limit=0)
    assert queue.active == {0: stream}
    assert send(stream) == (0, 0, True)
    assert not stream.is_finished
    stream.on_acknowledged(0, 0, True)
    assert stream.is_finished
    assert queue.progress


def test_lost_bytes_go_before_new_ones_and_an_end_goes_last() -> None:
    stream, queue = make(10, end=False)
    assert send(stream) == (0, 10, False)
    write(stream, queue, 10)
    stream.end()
    assert send(stream, 5) == (10, 15, False)
    stream.on_lost(0, 10, False)
    assert send(stream, 4) == (0, 4, False)
    assert send(stream) == (4, 10, False)
    assert send(stream) == (15, 20, True)
    stream.on_lost(15, 20, True)
    stream.on_lost(10, 15, False)
    assert send(stream) == (10, 20, True)


def test_a_lost_end_without_data_is_sent_again() -> None:
    stream, _ = make(10, end=False)
    assert send(stream) == (0, 10, False)
    stream.end()
    assert send(stream) == (10, 10, True)
    stream.on_acknowledged(0, 10, False)
    assert not stream.is_finished
    stream.on_lost(10, 10, True)
    assert send(stream) == (10, 10, True)
    stream.on_acknowledged(10, 10, True)
    assert stream.is_finished


def test_an_end_without_data_may_be_acknowledged_first() -> None:
    stream, _ = make(10, end=False)
    assert send(stream) == (0, 10, False)
    stream.end()
    assert send(stream) == (10, 10, True)
    stream.on_acknowledged(10, 10, True)
    assert stream.ahead is None
    assert not stream.is_finished
    stream.on_acknowledged(0, 10, False)
    assert stream.is_finished


def test_the_loss_of_an_acknowledged_copy_sends_nothing() -> None:
    stream, queue = make(20)
    assert send(stream) == (0, 20, True)
    stream.repeat(0, 20, True)
    stream.on_acknowledged(5, 10, False)
    assert send(stream) == (0, 5, False)
    assert send(stream) == (10, 20, True)
    stream.on_lost(0, 10, False)
    assert send(stream) == (0, 5, False)
    stream.on_acknowledged(0, 20, True)
    stream.on_lost(10, 20, True)
    assert send(stream) is None
    assert queue.ended == [0], "it ends once"


# ------------------------------------------------------------------ reset


def test_a_reset_drops_what_was_not_acknowledged() -> None:
    stream, queue = make(100, limit=60)
    send(stream)
    stream.on_acknowledged(0, 10, False)
    stream.on_lost(20, 30, False)
    queue.progress = False
    stream.reset(7)
    assert queue.buffered == queue.unsent == 0
    assert queue.progress, "a writer which waits for room goes on"
    assert queue.resets == {0: stream}
    assert not queue.active
    assert not stream.has_work()
    assert not stream.is_blocked()
    assert (stream.reset_code, stream.sent) == (7, 60)
    stream.on_acknowledged(10, 60, False)
    stream.on_lost(10, 60, False)
    assert not queue.active
    assert queue.bytes_acknowledged == 10
    stream.reset(8)
    assert stream.reset_code == 7


def test_a_stream_ends_with_the_acknowledgement_of_its_reset() -> None:
    stream, queue = make(100)
    send(stream)
    stream.reset(0)
    queue.resets.clear()
    stream.on_reset_lost()
    assert queue.resets == {0: stream}
    queue.progress = False
    stream.on_reset_acknowledged()
    assert stream.is_finished
    assert queue.progress, "a call which waits until all is acknowledged goes on"
    assert not queue.resets
    stream.on_reset_lost()
    stream.on_reset_acknowledged()
    assert not queue.resets
    assert queue.ended == [0]


def test_a_stream_which_has_ended_is_not_reset() -> None:
    stream, queue = make(10)
    send(stream)
    stream.on_acknowledged(0, 10, True)
    stream.reset(1)
    assert stream.reset_code == -1
    assert not queue.resets


# ------------------------------------------------------------------ refused early data


def test_refused_early_data_counts_as_not_sent() -> None:
    stream, queue = make(100)
    assert send(stream) == (0, 100, True)
    stream.on_lost(10, 20, False)
    stream.hold()
    assert queue.unsent == queue.buffered == 100
    assert not queue.active
    stream.on_lost(0, 100, True)  # its packets are declared lost, before or after
    stream.activate()
    assert not queue.active
    stream.permit(60)
    assert queue.active == {0: stream}
    assert send(stream) == (0, 60, False)
    stream.raise_limit(1000)
    assert send(stream) == (60, 100, True)


def test_a_reset_of_refused_early_data_tells_that_nothing_was_sent() -> None:
    stream, queue = make(100)
    send(stream)
    stream.reset(3)
    queue.resets.clear()
    stream.hold()
    stream.on_reset_lost()
    assert not queue.resets
    stream.permit(60)
    assert queue.resets == {0: stream}
    assert stream.sent == 0
    assert not queue.active


def test_a_held_stream_which_is_reset_says_so_when_it_is_permitted() -> None:
    stream, queue = make(100)
    send(stream)
    stream.hold()
    stream.reset(3)
    assert not queue.resets
    assert queue.unsent == queue.buffered == 0
    stream.permit(0)
    assert queue.resets == {0: stream}


@pytest.mark.parametrize("end", [False, True])
def test_an_end_of_refused_early_data_is_sent_again(end: bool) -> None:
    stream, queue = make(0, end=end)
    assert send(stream) == ((0, 0, True) if end else None)
    stream.hold()
    stream.permit(10)
    assert bool(queue.active) == end
