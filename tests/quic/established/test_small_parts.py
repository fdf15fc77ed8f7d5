"""CRYPTO data of 1-RTT packets, and queued datagrams."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.crypto import CryptoSender
from phoenix_trio.quic.established.datagrams import DatagramSender
from phoenix_trio.quic.wire import frames
from tests.support import examples


@given(st.integers(0, 1 << 30), st.lists(st.binary(min_size=1, max_size=300), max_size=8))
@examples(60)
def test_crypto_data_arrives_whole_whatever_is_lost(seed: int, writes: list[bytes]) -> None:
    chance = random.Random(seed)
    sender, got = CryptoSender(), {}
    for data in writes:
        sender.write(data)
        for _ in range(chance.randrange(3)):
            deliver(sender, got, chance, loss=0.5)
    for _ in range(100):
        deliver(sender, got, chance, loss=0.2)
    whole = b"".join(writes)
    assert bytes(got[at] for at in range(len(whole))) == whole
    assert not sender.has_pending
    assert not sender._data, "what was acknowledged is freed"


def deliver(
    sender: CryptoSender, got: dict[int, int], chance: random.Random, *, loss: float
) -> None:
    parts: list[bytes] = []
    control: list[tuple[int, int, int]] = []
    left = sender.fill(parts, 200, control)
    assert left == 200 - sum(map(len, parts)) >= 0
    fates = [
        (entry, part, chance.random() < loss) for entry, part in zip(control, parts, strict=True)
    ]
    chance.shuffle(fates)
    for (_, start, stop), part, is_lost in fates:
        if is_lost:
            sender.on_lost(start, stop)
            continue
        offset, begin, end = frames.parse_crypto(part, 0)
        assert (offset, offset + end - begin) == (start, stop)
        got.update(enumerate(part[begin:end], offset))
        sender.on_acknowledged(start, stop)


def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    queue = DatagramSender(2)
    for data in (b"1", b"2", b"3"):
        queue.add(data)
    assert list(queue.queue) == [b"2", b"3"]
    assert (queue.queued, queue.dropped) == (3, 1)


def test_datagrams_fill_a_packet_in_order_and_the_next_one_waits() -> None:
    queue = DatagramSender(10)
    sent = [bytes([number]) * size for number, size in enumerate((0, 1, 63, 64, 500, 700))]
    for data in sent:
        queue.add(data)
    parts: list[bytes] = []
    left = queue.fill(parts, 1000)
    payload = b"".join(parts)
    assert left == 1000 - len(payload)
    at, found = 0, []
    while at < len(payload):
        begin, at = frames.parse_datagram(payload, at)
        found.append(payload[begin:at])
    assert found == sent[:5]
    assert list(queue.queue) == sent[5:]


def test_room_is_reported_once_to_a_caller_who_waits() -> None:
    queue = DatagramSender(1)
    queue.add(b"x")
    queue.wants_room = True
    assert not queue.take_room()
    queue.fill([], 100)
    assert queue.take_room()
    assert not queue.take_room()


def test_what_never_fits_is_dropped() -> None:
    queue = DatagramSender(10)
    for size in (10, 1000, 20, 2000):
        queue.add(bytes(size))
    queue.drop_larger(100)
    assert [len(data) for data in queue.queue] == [10, 20]
    assert queue.dropped == 2
