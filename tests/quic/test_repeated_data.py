"""Data which was sent several times: any copy may arrive or be lost, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable

from aioquic.quic.packet_builder import QuicDeliveryState
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.stream_state import CryptoSender
from tests.engine_access import statistics, unsent_bytes
from tests.fast_path_access import permit_stream, stream_sender
from tests.support import EnginePair, examples

ACKED, LOST = QuicDeliveryState.ACKED, QuicDeliveryState.LOST

Frame = tuple[int, int, bool]


def deliver_copies(
    take: Callable[[int], tuple[int, bytes, bool] | None],
    on_delivery: Callable[[QuicDeliveryState, int, int, bool], None],
    repeat: Callable[[int, int, bool], None],
    data: bytes,
    seed: int,
    loss: float,
) -> None:
    """Send, repeat, lose and acknowledge at random until all is acknowledged."""
    generator = random.Random(seed)
    flying: list[Frame] = []
    arrived: dict[int, int] = {}
    for step in range(20_000):
        action = generator.random()
        if action < 0.4 or not flying:
            frame = take(generator.randint(0, 40))
            if frame is not None:
                offset, content, fin = frame
                assert content == data[offset : offset + len(content)]
                flying.append((offset, offset + len(content), fin))
            elif not flying:
                break
        elif action < 0.55 and step < 300:
            repeat(*generator.choice(flying))
        else:
            start, stop, fin = flying.pop(generator.randrange(len(flying)))
            if generator.random() < loss:
                on_delivery(LOST, start, stop, fin)
            else:
                arrived.update(dict.fromkeys(range(start, stop), 1))
                on_delivery(ACKED, start, stop, fin)
    else:
        raise AssertionError("sends for ever")
    assert len(arrived) == len(data)


@examples(150)
@given(size=st.integers(1, 400), seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.3, 0.7]))
def test_crypto_data_arrives_whole_whatever_becomes_of_its_copies(
    size: int, seed: int, loss: float
) -> None:
    data = random.Random(seed).randbytes(size)
    sender = CryptoSender()
    sender.write(data)

    def take(room: int) -> tuple[int, bytes, bool] | None:
        if sender.buffer_is_empty:
            return None
        frame = sender.get_frame(room + 1)
        return None if frame is None else (frame.offset, frame.data, False)

    deliver_copies(take, sender.on_data_delivery, sender.repeat, data, seed, loss)
    assert sender._buffer_start == size
    assert sender.buffer_is_empty or sender.get_frame(1000) is None


@examples(150)
@given(size=st.integers(1, 400), seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.3, 0.7]))
def test_stream_data_arrives_whole_whatever_becomes_of_its_copies(
    size: int, seed: int, loss: float
) -> None:
    engine = EnginePair().client.engine
    permit_stream(engine, 10_000)
    stream_id = engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(seed).randbytes(size)
    engine.write(stream_id, data, end_stream=True)
    sender = stream_sender(engine, stream_id)

    def take(room: int) -> tuple[int, bytes, bool] | None:
        if not sender.has_work:
            return None
        frame = sender.get_frame(room + 1)
        return None if frame is None else (frame.offset, frame.data, frame.fin)

    deliver_copies(take, sender.on_data_delivery, sender.repeat, data, seed, loss)
    assert sender.is_finished
    assert not sender.has_work
    assert statistics(engine).send_buffer_bytes == unsent_bytes(engine) == 0
