"""Keys that change while packets are on their way (RFC 9001 sections 4.9 and 6)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio.quic import events
from tests.engine_access import next_packet_number, statistics
from tests.engine_packets import can_seal, key_phase, seal_short, update_keys_too_early
from tests.packets import Level
from tests.support import (
    EnginePair,
    Side,
    client_tls,
    ending,
    established,
    examples,
    hand_over,
    in_runs_or_singly,
    server_tls,
)


def lost(side: Side) -> int:
    return statistics(side.engine).packets_lost


def phases(*sides: Side) -> list[int]:
    return [key_phase(side.engine) for side in sides]


@in_runs_or_singly
@pytest.mark.parametrize("who", ["reader", "writer", "both"])
def test_an_update_in_the_middle_of_a_transfer_loses_nothing(in_runs: bool, who: str) -> None:
    """RFC 9001 section 6.1: packets sent before the peer knew of it are still read."""
    pair, client, server = established(in_runs=in_runs)
    stream_id = server.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(1).randbytes(900_000)
    server.engine.write(stream_id, data[:600_000])
    pair.run(0.045)
    for update in range(2):
        if who != "writer":
            client.engine.update_keys()
            client.engine.send_ping(update)
        if who != "reader":
            server.engine.update_keys()
        pair.run(0.2)
    server.engine.write(stream_id, data[600_000:], end_stream=True)
    pair.run(2.0)
    assert client.received[stream_id] == data
    assert lost(server) == lost(client) == 0
    assert phases(client, server) == [0, 0]


@in_runs_or_singly
def test_after_two_updates_of_the_peer_the_next_waits_for_an_acknowledgement(in_runs: bool) -> None:
    """RFC 9001 section 6.1.  (The phase bit has its first value again.)"""
    pair, client, server = established(in_runs=in_runs)
    for number in range(2):
        assert server.engine.can_update_keys
        server.engine.update_keys()
        server.engine.send_ping(number)
        pair.run(0.5)
        assert server.of(events.PingAcknowledged)[-1].uid == number
    assert not client.engine.can_update_keys, "nothing sent with these keys is acknowledged"
    client.engine.send_ping(9)
    pair.run(0.5)
    assert client.engine.can_update_keys
    assert server.engine.can_update_keys


@in_runs_or_singly
def test_a_peer_which_updates_twice_at_once_is_still_understood(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    server.engine.update_keys()
    server.engine.send_ping(1)
    pair.run(0.011)
    assert phases(client, server) == [1, 1]
    update_keys_too_early(client.engine)
    client.engine.send_ping(2)
    pair.run(0.5)
    assert phases(client, server) == [0, 0]
    assert 2 in [event.uid for event in client.of(events.PingAcknowledged)]


@in_runs_or_singly
def test_a_packet_of_the_old_phase_may_come_late(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    late = [seal_short(client.engine, b"\x30late%d" % number) for number in range(2)]
    client.engine.update_keys()
    client.engine.send_ping(1)
    pair.run(0.011)
    assert phases(server) == [1]
    hand_over(pair, client, server, late[0])
    assert [each.data for each in server.of(events.DatagramReceived)] == [b"late0"]
    pair.run(5.0)  # more than three probe timeouts (section 6.5)
    server.engine.send_ping(1)
    pair.run(1.0)
    hand_over(pair, client, server, late[1])
    assert len(server.of(events.DatagramReceived)) == 1
    assert ending(server) is None


@in_runs_or_singly
def test_the_old_keys_again_after_the_new_ones_end_the_connection(in_runs: bool) -> None:
    """RFC 9001 section 6.4."""
    pair, client, server = established(in_runs=in_runs)
    pair.drop = lambda destination, data: True
    old = seal_short(client.engine, b"\x01", number=next_packet_number(client.engine) + 1)
    client.engine.update_keys()
    hand_over(pair, client, server, seal_short(client.engine, b"\x01"))
    assert phases(server) == [1]
    assert ending(server) is None
    hand_over(pair, client, server, old)
    assert "KEY_UPDATE_ERROR" in str(ending(server))


@in_runs_or_singly
def test_a_forged_phase_bit_changes_nothing(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    client.engine.update_keys()
    client.engine.send_ping(1)
    pair.run(0.5)
    for flipped in range(200):
        forged = bytearray(seal_short(client.engine, b"\x01"))
        forged[0] ^= 0x04
        forged[-1] ^= flipped
        hand_over(pair, client, server, bytes(forged))
    assert phases(client, server) == [1, 1]
    client.engine.send_ping(2)
    pair.run(1.0)
    assert 2 in [event.uid for event in client.of(events.PingAcknowledged)]


@given(
    seed=st.integers(0, 2**32),
    in_runs=st.booleans(),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
    jitter=st.sampled_from([0.0, 0.01, 0.03]),
)
@examples(25)
def test_updates_at_any_time_under_loss_and_reordering_keep_every_byte(
    seed: int, in_runs: bool, loss: float, jitter: float
) -> None:
    pair, client, server = established(in_runs=in_runs)
    generator = random.Random(seed)
    pair.drop = lambda destination, data: generator.random() < loss
    pair.jitter = lambda: generator.random() * jitter
    wanted: dict[bool, dict[int, bytes]] = {True: {}, False: {}}
    for _ in range(12):
        by_client = generator.random() < 0.5
        side: Any = client if by_client else server
        if side.engine.can_update_keys and generator.random() < 0.7:
            side.engine.update_keys()
        stream_id = side.engine.open_stream(unidirectional=True)
        data = generator.randbytes(generator.choice([10, 3000, 60_000]))
        side.engine.write(stream_id, data, end_stream=True)
        wanted[by_client][stream_id] = data
        pair.run(generator.choice([0.001, 0.01, 0.05, 0.3]))
    pair.drop = lambda destination, data: False
    pair.run(20.0)
    assert client.received == wanted[False]
    assert server.received == wanted[True]
    assert_alike(pair)


def assert_alike(pair: EnginePair) -> None:
    assert pair.server is not None
    for side in (pair.client, pair.server):
        assert ending(side) is None
    assert phases(pair.client) == phases(pair.server)


def test_keys_of_early_data_are_gone_when_those_of_1_rtt_packets_are_in_use() -> None:
    """RFC 9001 section 4.9.3."""
    tls: dict[str, Any] = {
        "client": client_tls(session_store=phoenix_trio.SessionStore(), early_data=True),
        "server": server_tls(early_data=True),
    }
    EnginePair(**tls).connect()
    pair = EnginePair(**tls)
    client = pair.client.engine
    stream_id = client.open_stream(unidirectional=True)
    assert stream_id is not None
    client.write(stream_id, b"early", end_stream=True)
    assert can_seal(client, Level.ZERO_RTT)
    while not (pair.server and pair.server.received):
        assert pair.step()
    assert can_seal(pair.server.engine, Level.ZERO_RTT), "more of them may come"
    pair.connect()
    assert not can_seal(client, Level.ZERO_RTT)
    assert not can_seal(pair.server.engine, Level.ZERO_RTT)
    assert pair.server.received[stream_id] == b"early"
