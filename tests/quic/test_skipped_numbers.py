"""Packet numbers are left out at unpredictable places, and remembered for a while."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic import events
from phoenix_trio.quic.established.skipped_numbers import (
    FIRST_PERIOD,
    LONGEST_PERIOD,
    REMEMBERED,
    SkippedNumbers,
)
from tests.engine_access import (
    change_connection_id,
    marked_packets,
    next_packet_number,
    skipped_numbers,
    statistics,
)
from tests.support import EnginePair, Side, ending, examples, in_runs_or_singly, skip_numbers


def test_no_number_is_skipped_before_it_begins() -> None:
    skipped = SkippedNumbers()
    assert skipped.next > 1 << 60
    skipped.begin(10)
    assert 10 < skipped.next <= 10 + 2 * FIRST_PERIOD


def test_the_period_grows_up_to_its_longest_and_the_memory_up_to_its_bound() -> None:
    skipped = SkippedNumbers(lambda n: n - 1)
    skipped.begin(0)
    places = []
    for _ in range(3 * REMEMBERED):
        places.append(skipped.next)
        assert skipped.skip(skipped.next) == places[-1] + 1
    assert places[0] == 2 * FIRST_PERIOD
    assert places[-1] - places[-2] == 2 * LONGEST_PERIOD + 1
    assert skipped.count == len(places)
    assert not skipped.includes(0, places[-REMEMBERED])
    assert all(skipped.includes(place, place + 1) for place in places[-REMEMBERED:])


@examples(200)
@given(
    seed=st.integers(0, 1000),
    skips=st.integers(0, 40),
    start=st.integers(0, 300),
    length=st.integers(1, 300),
    packets=st.integers(0, 5),
)
def test_it_answers_as_a_plain_list_of_numbers_would(
    seed: int, skips: int, start: int, length: int, packets: int
) -> None:
    generator = random.Random(seed)
    skipped = SkippedNumbers(lambda n: generator.randrange(8))
    number, left_out = 0, set()
    skipped.begin(number)
    for _ in range(skips):
        number = skipped.next
        left_out.add(number)
        number = skipped.skip(number)
    assert skipped.includes(start, start + length) == any(
        start <= each < start + length for each in left_out
    )
    used = [each for each in range(-10, 700) if each not in left_out]
    at = used.index(start) if start in used else None
    if at is not None:
        assert skipped.before(start, packets) == used[at - packets]


# ------------------------------------------------------------------ in a connection


def paired(in_runs: bool, skips: Callable[[int], int] | None) -> EnginePair:
    pair = EnginePair(skips=skips).connect()
    pair.in_runs = in_runs
    return pair


def transfer(pair: EnginePair, source: Side, size: int) -> tuple[int, bytes]:
    stream_id = source.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(size).randbytes(size)
    source.engine.write(stream_id, data, end_stream=True)
    return stream_id, data


@in_runs_or_singly
def test_a_gap_in_the_numbers_costs_no_packet_and_is_no_loss(in_runs: bool) -> None:
    """Two packets may overtake a third one whether or not a number is left out between them."""
    generator = random.Random(3)
    pair = paired(in_runs, lambda n: generator.randrange(12))
    assert pair.server is not None
    pair.run(2.0)
    stream_id, data = transfer(pair, pair.client, 2_000_000)
    engine = pair.client.engine
    skipped = skipped_numbers(engine).count
    sent = statistics(engine).packets_sent
    number = next_packet_number(engine)
    pair.run(20.0)
    assert pair.server.received[stream_id] == data
    skipped = skipped_numbers(engine).count - skipped
    assert skipped > 50
    assert statistics(engine).packets_lost == 0
    assert statistics(engine).packets_sent - sent == next_packet_number(engine) - number - skipped


@in_runs_or_singly
def test_packets_which_two_others_overtook_are_not_lost_beside_a_skipped_number(
    in_runs: bool,
) -> None:
    pair = paired(in_runs, None)
    pair.run(2.0)
    client = pair.client.engine
    skip_numbers(client, lambda n: 0)
    first = next_packet_number(client)
    skipped_numbers(client).begin(first)  # after this packet, and each following one
    for uid in range(3):
        client.send_ping(uid)
        for _, _, destination, data, source in take_wire(pair, pair.client):
            # The first packet comes last, after two with the numbers + 2 and + 4.
            arrival = pair.now + (0.0101 if uid == 0 else 0.01)
            pair.wire.append((arrival, pair._sequence + 10 * uid, destination, data, source))
    assert skipped_numbers(client).count >= 2
    assert next_packet_number(client) >= first + 5
    pair.run(1.0)
    assert len(pair.client.of(events.PingAcknowledged)) == 3
    assert statistics(client).packets_lost == 0


def take_wire(pair: EnginePair, side: Side) -> list[tuple[float, int, Side, bytes, tuple]]:  # type: ignore[type-arg]
    """Take the datagrams that `side` sends now off the wire."""
    before = len(pair.wire)
    pair.flush(side)
    taken = pair.wire[before:]
    del pair.wire[before:]
    return taken


def test_marked_packets_are_counted_without_the_skipped_numbers() -> None:
    """RFC 9000 section 13.4.2: a count of marks above that of packets fails the path."""
    generator = random.Random(5)
    pair = EnginePair(skips=lambda n: generator.randrange(4)).connect()
    pair.run(2.0)
    engine = pair.client.engine
    transfer(pair, pair.client, 300_000)
    marked = 0
    sent = marked_packets(engine)
    for _ in range(100):
        for data, _, size, mark in engine.transmit(pair.now):
            marked += -(-len(data) // size) if mark else 0
    assert skipped_numbers(engine).count > 3
    assert marked_packets(engine) - sent == marked


@examples(10)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.02, 0.1]),
    jitter=st.sampled_from([0.0, 0.001, 0.02]),
    in_runs=st.booleans(),
)
def test_an_honest_peer_never_acknowledges_a_skipped_number(
    seed: int, loss: float, jitter: float, in_runs: bool
) -> None:
    """Under loss, reordering, key updates, new ports and new connection IDs."""
    generator = random.Random(seed)
    pair = paired(in_runs, lambda n: generator.randrange(8))
    server = pair.server
    assert server is not None
    pair.drop = lambda destination, data: generator.random() < loss
    pair.jitter = lambda: generator.random() * jitter
    expected = {}
    for source, target in ((pair.client, server), (server, pair.client)):
        stream_id, data = transfer(pair, source, 150_000)
        expected[stream_id] = (target, data)
    for _ in range(10):
        pair.run(0.05)
        what = generator.randrange(4)
        side = generator.choice([pair.client, server])
        if what == 0 and side.engine.can_update_keys:
            side.engine.update_keys()
        elif what == 1:
            pair.client.address = (pair.client.address[0], generator.randrange(1024, 65_000))
        elif what == 2:
            change_connection_id(side.engine)
    pair.drop = lambda destination, data: False
    pair.run(20.0)
    assert ending(pair.client) is None
    assert ending(server) is None
    for stream_id, (target, data) in expected.items():
        assert target.received[stream_id] == data
    assert skipped_numbers(server.engine).count > 10
