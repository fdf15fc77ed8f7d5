"""The keys of 1-RTT packets: updates, reordering, forged packets (RFC 9001 section 6)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.keys import OneRttKeys
from phoenix_trio.quic.wire.errors import KEY_UPDATE_ERROR, TransportError
from phoenix_trio.quic.wire.protection import NotAuthentic
from tests.support import examples

SUITES = [0x1301, 0x1302, 0x1303]
LENGTHS = {0x1301: 32, 0x1302: 48, 0x1303: 32}


def pair(suite: int = 0x1301) -> tuple[OneRttKeys, OneRttKeys]:
    client, server = OneRttKeys(), OneRttKeys()
    one, other = b"\1" * LENGTHS[suite], b"\2" * LENGTHS[suite]
    client.install(True, suite, one, 1)
    server.install(False, suite, one, 1)
    server.install(True, suite, other, 1)
    client.install(False, suite, other, 1)
    return client, server


def seal(keys: OneRttKeys, number: int) -> tuple[int, int, bytes]:
    """A packet: its key phase, its number, and its payload with the tag."""
    assert keys.send is not None
    return keys.phase, number, keys.send.encrypt(number, b"header", b"payload %d" % number)


def open_packet(keys: OneRttKeys, packet: tuple[int, int, bytes]) -> bytes:
    phase, number, body = packet
    assert keys.receive is not None
    if phase == keys.phase:
        payload = keys.receive.decrypt(number, b"header", body)
        keys.note_received(number)
        return payload
    return keys.open_other_phase(number, b"header", body)


def test_an_update_is_followed_and_answered() -> None:
    client, server = pair()
    open_packet(server, seal(client, 0))
    client.request_update(1)
    assert client.update_pending
    client.begin_update()
    assert open_packet(server, seal(client, 1)) == b"payload 1"
    assert server.phase == client.phase == 1
    assert open_packet(client, seal(server, 0)) == b"payload 0"
    assert client.updates == server.updates == 1


def test_old_packets_are_read_until_some_time_after_the_update() -> None:
    client, server = pair()
    late, later = seal(client, 0), seal(client, 1)
    client.request_update(2)
    client.begin_update()
    open_packet(server, seal(client, 2))
    assert open_packet(server, late) == b"payload 0"
    server.age(10.0, 1.0)
    assert server.has_previous
    server.age(11.0, 1.0)
    assert not server.has_previous
    with pytest.raises(NotAuthentic):
        open_packet(server, later)


def test_what_the_peer_sends_with_the_old_keys_after_an_update_of_ours_is_read() -> None:
    client, server = pair()
    client.request_update(0)
    client.begin_update()
    for number in range(100):
        assert open_packet(client, seal(server, number))


def test_going_back_to_old_keys_is_an_error() -> None:
    client, server = pair()
    old, _ = pair()
    client.request_update(0)
    client.begin_update()
    open_packet(server, seal(client, 1))
    with pytest.raises(TransportError) as caught:
        open_packet(server, seal(old, 2))
    assert caught.value.code == KEY_UPDATE_ERROR


def test_forged_packets_of_another_phase_change_nothing() -> None:
    client, server = pair()
    open_packet(server, seal(client, 0))
    for number in range(1, 50):
        with pytest.raises(NotAuthentic):
            open_packet(server, (1, number, bytes(32)))
    assert server.phase == 0
    assert server.updates == 0
    assert open_packet(server, seal(client, 60))


def test_no_update_before_the_last_one_is_acknowledged() -> None:
    client, server = pair()
    assert client.can_update(5, 0)
    client.request_update(5)
    assert not client.can_update(5, 4), "it is pending"
    client.begin_update()
    assert not client.can_update(6, 4), "nothing with the new keys is acknowledged"
    assert client.can_update(7, 5)
    # The peer has updated: its next acknowledgement was sent with the new keys.
    open_packet(server, seal(client, 5))
    assert not server.can_update(9, 8)
    assert server.can_update(12, 9)


def test_worn_keys_are_updated_or_tried_again_later() -> None:
    client, _ = pair()
    client.next_update = 100
    client.consider_update(100, largest_acknowledged=-1)
    assert not client.update_pending
    assert client.next_update > 100
    client.consider_update(2000, largest_acknowledged=50)
    assert client.update_pending


@pytest.mark.parametrize("suite", SUITES)
@given(st.integers(0, 1 << 30), st.integers(1, 6))
@examples(20)
def test_updates_by_both_sides_over_a_reordering_pipe(suite: int, seed: int, window: int) -> None:
    chance = random.Random(seed)
    sides = pair(suite)
    # Each packet acknowledges all packets received by its sender.
    pipes: list[list[tuple[tuple[int, int, bytes], int, int]]] = [[], []]
    numbers, acknowledged, largest = [0, 0], [-1, -1], [-1, -1]
    for _ in range(200):
        side = chance.randrange(2)
        keys = sides[side]
        if chance.random() < 0.2 and keys.can_update(numbers[side], acknowledged[side]):
            keys.request_update(numbers[side])
            keys.begin_update()
        pipes[side].append((seal(keys, numbers[side]), largest[side], keys.updates))
        numbers[side] += 1
        while len(pipes[side]) > window:
            packet, seen, updates = pipes[side].pop(chance.randrange(len(pipes[side])))
            other = 1 - side
            if updates < sides[other].updates - 1:
                continue  # as good as lost: keys are kept for one update
            assert open_packet(sides[other], packet) == b"payload %d" % packet[1]
            largest[other] = max(largest[other], packet[1])
            acknowledged[other] = max(acknowledged[other], seen)
    assert sides[0].updates > 0
