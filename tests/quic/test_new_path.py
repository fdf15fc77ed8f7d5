"""Knowledge of one path does not hold for another one (RFC 9000 section 9.4)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from phoenix_trio.quic import events
from tests.engine_access import (
    forget_rtt,
    is_path_validated,
    path_in_use,
    statistics,
    validated_addresses,
)
from tests.support import CLIENT, EnginePair, Side, ending, established, in_runs_or_singly

ELSEWHERE = ("192.0.2.7", 5555)


def send(side: Side, size: int) -> tuple[int, bytes]:
    stream_id = side.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(size).randbytes(size)
    side.engine.write(stream_id, data, end_stream=True)
    return stream_id, data


def busy(*, in_runs: bool, **config: Any) -> tuple[EnginePair, Side, Side]:
    """A pair whose server has learnt that its path carries much."""
    pair, client, server = established(in_runs=in_runs, **config)
    send(server, 3_000_000)
    pair.run(1.0)
    assert statistics(server.engine).congestion_window > 1_000_000
    return pair, client, server


@in_runs_or_singly
def test_another_host_is_met_with_a_new_window_and_round_trip_time(in_runs: bool) -> None:
    pair, client, server = busy(in_runs=in_runs, max_udp_payload_size=1200)
    stream_id, data = send(server, 2_000_000)
    pair.run(0.005)
    client.address = ELSEWHERE
    pair.delay = 0.1
    client.engine.send_ping(1)
    windows = []
    for _ in range(200):
        pair.run(0.005)
        if path_in_use(server.engine) == ELSEWHERE:
            windows.append(statistics(server.engine).congestion_window)
    assert min(windows) <= 10 * 1200
    assert max(windows) > 10 * 1200, "and it grows again"
    pair.run(20.0)
    assert client.received[stream_id] == data
    assert statistics(server.engine).rtt_min == pytest.approx(0.2, abs=0.01)


@in_runs_or_singly
def test_another_port_of_the_same_host_changes_nothing(in_runs: bool) -> None:
    pair, client, server = busy(in_runs=in_runs, max_udp_payload_size=1452)
    before = statistics(server.engine).congestion_window
    client.address = (CLIENT, 7777)
    stream_id, data = send(server, 500_000)
    client.engine.send_ping(1)
    pair.run(2.0)
    assert path_in_use(server.engine) == (CLIENT, 7777)
    assert client.received[stream_id] == data
    assert statistics(server.engine).congestion_window >= before
    assert statistics(server.engine).path_mtu == 1452


@in_runs_or_singly
def test_a_forged_address_does_not_slow_the_connection_down(in_runs: bool) -> None:
    pair, client, server = busy(in_runs=in_runs)
    before = statistics(server.engine).congestion_window
    client.address, true = ELSEWHERE, client.address
    client.engine.send_ping(1)
    pair.flush(client)
    client.address = true
    pair.drop = lambda destination, data: bool(
        destination is client and path_in_use(server.engine) == ELSEWHERE
    )
    pair.run(0.02)
    assert path_in_use(server.engine) == ELSEWHERE
    client.engine.send_ping(2)
    pair.run(5.0)
    assert path_in_use(server.engine) == true
    assert statistics(server.engine).congestion_window >= before // 2


@in_runs_or_singly
def test_a_path_which_takes_less_is_validated_with_packets_which_pass(in_runs: bool) -> None:
    """From jumbo frames to a common network, with data going both ways."""
    pair, client, server = established(in_runs=in_runs, max_udp_payload_size=9000)
    pair.run(1.0)
    assert statistics(server.engine).path_mtu == 9000
    stream_id, data = send(server, 300_000)
    pair.run(0.001)
    client.address = ELSEWHERE
    pair.drop = lambda destination, data: len(data) > 1400
    challenges = []
    for number in range(60):  # small and many: the server may answer three times as much
        client.engine.send_datagram(bytes(1000))
        client.engine.send_ping(number)
        pair.run(0.005)
        if path_in_use(server.engine) == ELSEWHERE:
            challenges.append(statistics(server.engine).path_mtu)
    assert challenges[0] == 1200
    assert is_path_validated(server.engine)
    pair.run(20.0)
    assert client.received[stream_id] == data
    assert ending(server) is None
    assert not server.of(events.Terminated)
    assert 1200 <= statistics(server.engine).path_mtu <= 1400


@in_runs_or_singly
def test_what_was_sent_before_says_nothing_of_the_round_trip_time_of_another_path(
    in_runs: bool,
) -> None:
    """RFC 9000 section 9.4; it may be acknowledged only now, from the peer's present address."""
    pair, _, server = established(in_runs=in_runs)
    server.engine.send_ping(1)
    pair.flush(server)
    pair.now += 0.003
    forget_rtt(server.engine, pair.now)
    assert statistics(server.engine).rtt_latest is None
    pair.run(0.5)
    assert [ping.uid for ping in server.of(events.PingAcknowledged)] == [1]
    assert statistics(server.engine).rtt_latest is None, (
        "a sample of the path from which it went away"
    )
    pair.delay = 0.1
    server.engine.send_ping(2)
    pair.run(0.5)
    facts = statistics(server.engine)
    assert facts.rtt_min == facts.rtt_latest == pytest.approx(0.2, abs=0.03)


@in_runs_or_singly
def test_what_is_sent_at_the_very_moment_is_sent_on_the_new_path(in_runs: bool) -> None:
    pair, _, server = established(in_runs=in_runs)
    forget_rtt(server.engine, pair.now)
    server.engine.send_ping(1)
    pair.flush(server)
    pair.run(0.5)
    assert statistics(server.engine).rtt_latest is not None


@in_runs_or_singly
def test_a_client_which_moves_while_a_full_window_is_lost_gets_all_of_it_soon(
    in_runs: bool,
) -> None:
    """The challenge of its new address must not wait for packets sent to the old one.

    The client sends nothing besides one small packet, so that the server may send little to that
    address before it is validated.
    """
    pair, client, server = established(in_runs=in_runs)
    stream_id, data = send(server, 300_000)
    pair.drop = lambda destination, data: destination is client
    pair.run(0.005)
    client.address = (CLIENT, 7777)
    client.engine.send_ping(1)
    pair.run(0.012)
    pair.drop = lambda destination, data: False
    pair.run(3.0)
    assert validated_addresses(server.engine) >= {(CLIENT, 7777)}
    assert client.received[stream_id] == data
