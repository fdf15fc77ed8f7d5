"""CRYPTO data of 1-RTT packets, and queued datagrams."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.crypto import CryptoSender
from phoenix_trio.quic.established.datagrams import DatagramSender
from phoenix_trio.quic.established.sent_packet import SentPacket
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
    assert queue.queue() == [b"2", b"3"]
    assert (queue.queued, queue.dropped, queue.waiting) == (3, 1, 2)


def test_datagrams_fill_a_packet_in_order_and_the_next_one_waits() -> None:
    queue = DatagramSender(10)
    sent = [bytes([number]) * size for number, size in enumerate((0, 1, 63, 64, 500, 700))]
    for data in sent:
        queue.add(data)
    parts: list[bytes] = []
    packet = SentPacket(0, 0.0)
    left = queue.fill(parts, 1000, packet, 0.0)
    payload = b"".join(parts)
    assert left == 1000 - len(payload)
    at, found = 0, []
    while at < len(payload):
        begin, at = frames.parse_datagram(payload, at)
        found.append(payload[begin:at])
    assert found == sent[:5]
    assert queue.queue() == sent[5:]
    assert packet.datagrams == [0] * 5


def test_room_is_reported_once_to_a_caller_who_waits() -> None:
    queue = DatagramSender(1)
    queue.add(b"x")
    queue.wants_room = True
    assert not queue.take_room()
    queue.fill([], 100, SentPacket(0, 0.0), 0.0)
    assert queue.take_room()
    assert not queue.take_room()


def test_what_never_fits_is_dropped() -> None:
    queue = DatagramSender(10)
    for size in (10, 1000, 20, 2000):
        queue.add(bytes(size))
    queue.drop_larger(100)
    assert [len(data) for data in queue.queue()] == [10, 20]
    assert queue.dropped == 2


def leaving(queue: DatagramSender, now: float) -> list[bytes]:
    """The datagrams that leave, in packets of one datagram each."""
    found: list[bytes] = []
    while queue.waiting:
        parts: list[bytes] = []
        if queue.fill(parts, 10, SentPacket(0, now), now) == 10:
            break
        found += parts[1::2]
    return found


def test_a_higher_priority_leaves_first_and_each_in_its_order() -> None:
    queue = DatagramSender(10)
    for data, priority in ((b"a1", 0), (b"b1", 5), (b"c1", -5), (b"a2", 0), (b"b2", 5)):
        queue.add(data, priority)
    assert queue.queue() == [b"b1", b"b2", b"a1", b"a2", b"c1"]
    assert leaving(queue, 0.0) == [b"b1", b"b2", b"a1", b"a2", b"c1"]
    queue.add(b"a3", 0)
    queue.add(b"b3", 5)
    assert leaving(queue, 0.0) == [b"b3", b"a3"]


def test_a_full_queue_drops_the_oldest_of_the_lowest_priority() -> None:
    queue = DatagramSender(3)
    for data, priority in ((b"high", 1), (b"old", 0), (b"new", 0), (b"higher", 2)):
        queue.add(data, priority)
    assert queue.queue() == [b"higher", b"high", b"new"]
    queue.add(b"lowest", -1)
    assert queue.queue() == [b"higher", b"high", b"new"]
    queue.add(b"newest", 0)
    assert queue.queue() == [b"higher", b"high", b"newest"]
    assert (queue.queued, queue.dropped, queue.waiting) == (6, 3, 3)


def test_what_has_expired_does_not_leave_and_makes_room() -> None:
    queue = DatagramSender(3)
    queue.add(b"soon", 0, 1.0, 0.0)
    queue.add(b"later", 0, 2.0, 0.0)
    queue.add(b"never", 0, now=0.0)
    assert not queue.has_room(0.99)
    assert queue.has_room(1.0)
    assert queue.queue() == [b"later", b"never"]
    queue.add(b"more", 0, 3.0, 1.0)
    assert leaving(queue, 2.5) == [b"never", b"more"]
    assert (queue.queued, queue.expired, queue.dropped, queue.waiting) == (4, 2, 0, 0)
    # Expired ones are dropped before others, whatever their priority.
    for data, priority, expires_at in ((b"1", 9, 4.0), (b"2", 0, math.inf), (b"3", 0, math.inf)):
        queue.add(data, priority, expires_at, 3.0)
    queue.add(b"4", 0, math.inf, 5.0)
    assert queue.queue() == [b"2", b"3", b"4"]
    assert (queue.expired, queue.dropped) == (3, 0)


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.sampled_from([1.0, 2.0, 5.0, math.inf]), st.booleans()),
        max_size=60,
    ),
    st.integers(1, 6),
)
@examples(60)
def test_every_datagram_leaves_waits_is_dropped_or_expires(
    steps: list[tuple[int, float, bool]], length: int
) -> None:
    queue = DatagramSender(length)
    left = 0
    tagged: set[int] = set()
    for number, (priority, life, leaves) in enumerate(steps):
        now = float(number) / 2
        queue.add(b"%d" % number, priority, now + life, now, number)
        assert queue.waiting == len(queue.queue()) <= length
        if leaves:
            packet = SentPacket(0, now)
            queue.fill([], 4, packet, now)
            left += len(packet.datagrams or ())
            assert len(packet.tags or ()) == len(packet.datagrams or ())
            tagged.update(packet.tags or ())
        lost = set(queue.losses)
        queue.losses.clear()
        assert not lost & tagged, "each is reported once, or has left"
        tagged |= lost
        waiting = {int(data) for data in queue.queue()}
        assert not waiting & tagged
        assert queue.queued == left + queue.dropped + queue.expired + queue.waiting
