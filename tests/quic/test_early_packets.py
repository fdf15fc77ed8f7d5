"""A few packets that arrive before their keys are kept."""

from __future__ import annotations

from phoenix_trio.quic.handshake.early_packets import MAX_BYTES, MAX_PACKETS, EarlyPackets


def test_packets_come_out_as_they_came_in_once_their_keys_are_there() -> None:
    early = EarlyPackets((2, 3))
    early.begin_datagram("here", 1.5, 2)
    assert early.offer(3, b"later level")
    assert early.offer(2, b"one")
    early.begin_datagram("there", 1.6, 0)
    assert early.offer(2, b"two")
    assert early.next_due() is None
    early.release(2)
    assert early.next_due() == (b"one", "here", 1.5, 2)
    assert early.next_due() == (b"two", "there", 1.6, 0)
    assert early.next_due() is None
    assert early.held == len(b"later level")
    assert not early.offer(2, b"its keys are gone by now"), "no packet is kept after its keys"
    assert not early.offer(4, b"x"), "none of this level may come"
    early.expect(4)
    assert early.offer(4, b"x")
    early.drop(4)
    early.drop(3)
    assert early.held == 0
    assert not early.offer(3, b"x")


def test_each_level_keeps_so_many_packets_and_bytes_and_no_more() -> None:
    early = EarlyPackets((2, 3))
    kept = [early.offer(3, bytes(1200)) for _ in range(1000)]
    assert kept.count(True) == MAX_PACKETS
    assert early.held == MAX_PACKETS * 1200
    assert early.offer(2, bytes(MAX_BYTES)), "one level's flood leaves the other its room"
    assert not early.offer(2, b"x")
    assert early.held <= 2 * MAX_BYTES
