"""The search for the path MTU: the state machine alone, then over simulated paths."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.path_mtu import _COMMON, MtuSearch
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import (
    ack_eliciting_in_flight,
    begin_mtu_search,
    fail_when_building,
    is_mtu_probe_under_way,
    mtu_search_deadline,
    statistics,
)
from tests.support import EnginePair, connected_pair, examples, stream_pair, take_apart


def search_on(search: MtuSearch, path: int, now: float = 0.0) -> list[int]:
    """Answer probes like a path that carries `path` bytes; returns the sizes probed."""
    probed: list[int] = []
    while True:
        announced = search.is_probing or search.deadline <= now
        size = search.next_probe(now)
        if size is None:
            assert not search.is_probing
            break
        assert announced
        assert search.next_probe(now) is None, "one at a time"
        probed.append(size)
        assert len(probed) < 100
        if size <= path:
            assert search.on_probe_acknowledged(size)
        else:
            search.on_probe_lost(size)
    return probed


@given(path=st.integers(1200, 65_507), ceiling=st.integers(1200, 65_507))
@examples(200)
def test_the_search_ends_at_what_the_path_carries(path: int, ceiling: int) -> None:
    search = MtuSearch(ceiling)
    probed = search_on(search, path)
    best = min(path, ceiling)
    assert search.size <= best
    common = max(size for size in (1200, *_COMMON) if size <= best)
    assert search.size >= common
    assert search.size == common or best - search.size <= 16
    assert len(probed) <= 40
    assert all(1200 < size <= ceiling for size in probed)


@pytest.mark.parametrize("ceiling", [1200, 1452, 1472, 8972, 65_507])
def test_an_honest_interface_needs_one_probe(ceiling: int) -> None:
    search = MtuSearch(ceiling)
    assert search_on(search, 65_507) == ([] if ceiling == 1200 else [ceiling])
    assert search.size == ceiling


@pytest.mark.parametrize("path", [1472, 1452, 1392])
def test_common_paths_behind_a_larger_interface_are_found_soon(path: int) -> None:
    search = MtuSearch(8972)
    probed = search_on(search, path)
    assert path - search.size <= 16
    assert len(probed) <= 20


def test_one_lost_probe_is_no_verdict() -> None:
    search = MtuSearch(1452)
    assert search.next_probe(0.0) == 1452
    search.on_probe_lost(1452)
    assert search.next_probe(0.0) == 1452
    assert search.on_probe_acknowledged(1452)
    assert not search.on_probe_acknowledged(1452), "an old acknowledgement means nothing"


def test_a_black_hole_leads_back_to_the_smallest_size_and_on_below() -> None:
    search = MtuSearch(8972)
    search_on(search, 8972)
    assert search.size == 8972
    assert not search.on_lost(8972)
    search.on_acknowledged(300)
    assert not search.on_lost(8972)
    assert search.on_lost(8972), "small ones arrive, large ones do not"
    assert search.size == 1200
    search_on(search, 1400)
    assert 1384 <= search.size <= 1400


def test_congestion_is_no_black_hole() -> None:
    search = MtuSearch(1452)
    search_on(search, 1452)
    for _ in range(100):
        search.on_lost(1452)
        search.on_acknowledged(1452)
    assert search.size == 1452
    for _ in range(5):
        assert not search.on_lost(1452), "nothing else arrives either: perhaps the path is down"
    assert search.on_lost(1452)
    assert not search.on_lost(1452), "at 1200 there is nothing left to blame on the size"


def test_packets_between_the_sizes_say_nothing_for_the_large_ones() -> None:
    """Datagrams of 1300 bytes arrive while a stream's of 9000 do not."""
    search = MtuSearch(8972)
    search_on(search, 8972)
    verdicts = []
    for _ in range(6):
        search.on_acknowledged(1300)
        verdicts.append(search.on_lost(8972))
    assert any(verdicts)
    search_on(search, 1392)
    assert search.size == 1392
    # But an arrival larger than the lost packets proves that the path is fine.
    for _ in range(20):
        assert not search.on_lost(1300)
        search.on_acknowledged(1392)


def test_after_ten_minutes_it_looks_again() -> None:
    search = MtuSearch(1452)
    search_on(search, 1300)
    found = search.size
    assert found < 1452
    assert search.next_probe(599.0) is None
    assert search.deadline == pytest.approx(600.0)
    search_on(search, 1452, now=601.0)
    assert search.size == 1452


@pytest.mark.parametrize(
    ("mtu", "wanted"), [(1200, None), (1280, None), (1452, None), (1472, 1472), (8972, 9000)]
)
async def test_connections_find_the_path_mtu(
    mtu: int, wanted: int | None, autojump_clock: MockClock
) -> None:
    config = TransportConfig(max_udp_payload_size=wanted)
    network = SimulatedNetwork(delay=0.01, mtu=mtu)
    async with connected_pair(network, client_config=config, server_config=config) as (
        client,
        server,
    ):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(300_000))
        await ours.wait_acked()
        await trio.sleep(5)
        for connection in (client, server):
            found = connection.statistics().path_mtu
            assert mtu - 48 <= found <= mtu
        await theirs.aclose()


async def test_a_path_which_shrinks_in_the_middle_of_a_transfer(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02)
    data = random.Random(5).randbytes(2_000_000)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        received = bytearray()

        async def receive() -> None:
            async for chunk in theirs:
                received.extend(chunk)

        async def send() -> None:
            await ours.send_all(data[:1_000_000])
            await ours.wait_acked()
            assert client.statistics().path_mtu == 1452
            network.set_conditions(mtu=1300)
            await ours.send_all(data[1_000_000:])
            await ours.send_eof()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
        assert received == data
        assert 1200 <= client.statistics().path_mtu <= 1300


async def test_datagrams_which_no_longer_fit_do_not_block_the_queue(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        maximum = client.max_datagram_size
        assert maximum is not None
        assert maximum > 1300
        network.set_conditions(mtu=1250)

        async def send() -> None:
            await ours.send_all(bytes(500_000))
            await ours.send_eof()

        async def receive() -> None:
            async for _chunk in theirs:
                pass

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)
        smaller = client.max_datagram_size
        assert smaller is not None
        assert smaller < maximum
        with pytest.raises(phoenix_trio.DatagramTooLarge):
            await client.send_datagram(bytes(maximum))
        await client.send_datagram(b"still alive")
        with trio.fail_after(5):
            while await server.receive_datagram() != b"still alive":
                pass


def test_nothing_is_probed_after_the_end() -> None:
    """The keys are gone by then: an exception here once stopped the whole endpoint."""
    pair = EnginePair().connect()
    engine = pair.client.engine
    engine.path_ceiling = lambda address: 9000
    begin_mtu_search(engine)
    late = pair.now + 1000.0
    engine.on_timer(late)
    assert engine.is_terminated
    assert engine.transmit(late) == []


def test_a_failure_to_build_packets_ends_one_connection_with_a_farewell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = EnginePair().connect()
    engine = pair.client.engine
    fail_when_building(engine)
    (goodbye,) = take_apart(engine.transmit(pair.now))
    assert goodbye
    (ending,) = [e for e in engine.take_events() if isinstance(e, events.Terminated)]
    assert isinstance(ending.error, phoenix_trio.ProtocolError)
    # And if not even the close can be built, the connection ends without one.
    other = EnginePair().connect().client.engine
    fail_when_building(other, even_the_goodbye=True)
    other.send_ping(1)
    assert other.transmit(pair.now) == []
    assert other.is_terminated
    assert "internal error" in caplog.text


def test_probes_are_not_in_flight_and_their_loss_is_no_congestion() -> None:
    """RFC 8899 section 3: otherwise each step of the search would cost half the window."""
    pair = EnginePair(client_config=TransportConfig(max_udp_payload_size=9000))
    pair.drop = lambda destination, data: len(data) > 1200
    pair.run(0.2)
    engine = pair.client.engine
    assert pair.client.of(events.HandshakeConfirmed)
    window = statistics(engine).congestion_window
    probes = 0
    for _ in range(2000):
        pair.step()
        if is_mtu_probe_under_way(engine) and ack_eliciting_in_flight(engine) == 1:
            probes += 1
            in_flight = statistics(engine).bytes_in_flight
            assert in_flight == 0, "the probe is all that is under way"
        if mtu_search_deadline(engine) != float("inf"):
            break
    else:
        raise AssertionError("the search does not end")
    assert probes
    pair.run(0.1)  # A small packet may still have been under way, as packet numbers are skipped.
    facts = statistics(engine)
    assert facts.path_mtu == 1200
    assert facts.packets_lost >= 2
    assert facts.congestion_window >= window
    assert facts.bytes_in_flight == 0
