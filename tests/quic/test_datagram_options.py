"""Datagrams that expire, are urgent, or get lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.established.datagrams import MOST_LOSSES, DatagramSender
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, has_tagged_packets, queued_datagrams
from tests.support import connected_pair


async def test_datagrams_which_expire_in_the_queue_never_leave_and_are_counted(
    autojump_clock: MockClock,
) -> None:
    """A round trip of four seconds: datagrams beyond the congestion window wait."""
    async with connected_pair(SimulatedNetwork(delay=2.0)) as (client, server):
        await client.wait_confirmed()
        while not queued_datagrams(engine_of(client)):
            client.send_datagram_nowait(bytes(1000))
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.001)
        client.send_datagram_nowait(b"patient", expires_after=30)
        for number in range(20):
            client.send_datagram_nowait(b"late %d" % number, expires_after=1)
        left = client.statistics().datagrams_sent
        assert left > 5
        received = [await server.receive_datagram() for _ in range(left + 2)]
        assert received[-1] == b"patient"
        await trio.sleep(10)
        statistics = client.statistics()
        assert statistics.datagrams_expired == 20
        assert statistics.datagrams_dropped_outgoing == statistics.datagrams_lost == 0
        assert statistics.datagrams_sent == server.statistics().datagrams_received == left + 2


async def test_sending_a_datagram_waits_no_longer_than_it_lives(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(datagram_queue_length=10)
    async with connected_pair(SimulatedNetwork(delay=2.0), client_config=config) as (client, _):
        await client.wait_confirmed()
        with trio.move_on_after(0.5):
            while True:
                await client.send_datagram(bytes(1000))
        started = trio.current_time()
        await client.send_datagram(b"late", expires_after=0.25)
        assert trio.current_time() - started == pytest.approx(0.25)
        assert client.statistics().datagrams_expired == 1
        with trio.move_on_after(0.25) as scope:
            await client.send_datagram(b"cancelled", expires_after=5)
        assert scope.cancelled_caught
        assert client.statistics().datagrams_expired == 1


async def test_urgent_datagrams_overtake_others_in_the_queue(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        await server.wait_confirmed()
        for number in range(5):
            client.send_datagram_nowait(b"usual %d" % number, priority=-1)
        await client.send_datagram(b"urgent", priority=1)
        assert await server.receive_datagram() == b"urgent"
        assert await server.receive_datagram() == b"usual 0"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"expires_after": 0}, ValueError, "expires_after must be more than 0"),
        ({"expires_after": -1.5}, ValueError, "expires_after must be more than 0"),
        ({"expires_after": math.nan}, ValueError, "expires_after must be more than 0"),
        ({"expires_after": "1"}, TypeError, "expires_after must be a number"),
        ({"expires_after": True}, TypeError, "expires_after must be a number"),
        ({"priority": 128}, ValueError, "priority must be between -128 and 127, not 128"),
        ({"priority": -129}, ValueError, "priority must be between"),
        ({"priority": 0.0}, TypeError, "priority must be an integer"),
        ({"priority": True}, TypeError, "priority must be an integer"),
    ],
)
async def test_options_of_a_datagram_are_checked(
    options: Any, error: type[Exception], text: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, _):
        with pytest.raises(error, match=text):
            client.send_datagram_nowait(b"x", **options)
        with pytest.raises(error, match=text):
            await client.send_datagram(b"x", **options)
        assert client.statistics().datagrams_sent == 0


async def test_lost_datagrams_are_counted(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=4, delay=0.01)
    async with connected_pair(network) as (client, server):
        await client.wait_confirmed()
        await client.ping()
        network.link("10.0.0.2", "10.0.0.1").set_conditions(loss=0.1)
        for number in range(200):
            await client.send_datagram(bytes(700), priority=number % 2)
            await trio.sleep(0.05)
        network.link("10.0.0.2", "10.0.0.1").set_conditions(loss=0.0)
        await client.ping()
        statistics = client.statistics()
        lost = 200 - server.statistics().datagrams_received
        assert statistics.datagrams_sent == 200
        assert statistics.datagrams_lost == lost
        assert 10 < lost < 40
        by_priority = statistics.datagrams_lost_by_priority
        assert by_priority.keys() == {0, 1}
        assert sum(by_priority.values()) == lost


async def collect(connection: phoenix_trio.QuicConnection, tags: list[int]) -> None:
    async for tag in connection.lost_datagrams():
        tags.append(tag)  # noqa: PERF401 - one by one, for a test that looks meanwhile


async def test_lost_datagrams_are_reported_with_their_tags(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=4, delay=0.01)
    async with trio.open_nursery() as nursery, connected_pair(network) as (client, server):
        await client.wait_confirmed()
        tags: list[int] = []
        nursery.start_soon(collect, client, tags)
        network.link("10.0.0.2", "10.0.0.1").set_conditions(loss=0.1)
        for number in range(100):
            await client.send_datagram(bytes(700) + bytes([number]), tag=number)
            client.send_datagram_nowait(b"without a tag")
            await trio.sleep(0.05)
        network.link("10.0.0.2", "10.0.0.1").set_conditions(loss=0.0)
        await client.ping()
        arrived = set()
        with trio.move_on_after(1):
            while True:
                arrived.add((await server.receive_datagram())[-1])
        lost = set(range(100)) - arrived
        assert sorted(tags) == sorted(lost)
        assert lost
        assert not client._lost_tags
        assert not has_tagged_packets(engine_of(client))
    # (The task has ended with the connection, so the nursery has.)


async def test_expired_datagrams_are_reported_whether_in_the_queue_or_before_it(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(datagram_queue_length=10)
    async with connected_pair(SimulatedNetwork(delay=2.0), client_config=config) as (client, _):
        await client.wait_confirmed()
        while not queued_datagrams(engine_of(client)):
            client.send_datagram_nowait(bytes(1000))
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.001)
        client.send_datagram_nowait(b"late", expires_after=1, tag=1)
        while queued_datagrams(engine_of(client)) < 10:
            client.send_datagram_nowait(b"patient", tag=2)
        await client.send_datagram(b"too late to wait", expires_after=0.1, tag=3)
        losses = client.lost_datagrams()
        assert [await anext(losses), await anext(losses)] == [3, 1]
        with trio.move_on_after(20) as scope:
            await anext(losses)
        assert scope.cancelled_caught, "the patient ones have arrived"


async def test_dropped_datagrams_are_reported_as_well(autojump_clock: MockClock) -> None:
    config = TransportConfig(datagram_queue_length=4)
    async with (
        trio.open_nursery() as nursery,
        connected_pair(SimulatedNetwork(delay=0.01), client_config=config) as (client, _),
    ):
        tags: list[int] = []
        nursery.start_soon(collect, client, tags)
        for number in range(10):
            client.send_datagram_nowait(bytes(100), tag=number, priority=int(number == 3))
        await trio.sleep(1)
        assert sorted(tags) == [0, 1, 2, 4, 5, 6], "the oldest of the lowest priority"


async def test_tags_that_no_task_takes_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phoenix_trio.quic.connection_state.MOST_LOSSES", 4)
    config = TransportConfig(datagram_queue_length=4)
    async with connected_pair(SimulatedNetwork(delay=0.01), client_config=config) as (client, _):
        for number in range(30):
            client.send_datagram_nowait(bytes(100), tag=number)
            if number % 10 == 9:
                await trio.sleep(0.1)
        losses = client.lost_datagrams()
        assert [await anext(losses) for _ in range(4)] == [22, 23, 24, 25]
        with trio.move_on_after(1) as scope:
            await anext(losses)
        assert scope.cancelled_caught


def test_the_engine_keeps_a_bounded_number_of_tags() -> None:
    queue = DatagramSender(1)
    for number in range(MOST_LOSSES + 100):
        queue.add(b"", tag=number)
    assert len(queue.losses) == MOST_LOSSES
    assert queue.losses[-1] == MOST_LOSSES + 98


async def test_a_connection_that_breaks_ends_the_report_with_its_error(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01)) as (client, server):
        losses = client.lost_datagrams()
        server.abort(7)
        with pytest.raises(phoenix_trio.ConnectionBroken):
            await anext(losses)


@pytest.mark.parametrize(
    ("tag", "error"), [(-1, ValueError), (1 << 62, ValueError), (True, TypeError), (1.0, TypeError)]
)
async def test_an_unfit_tag_is_refused(
    tag: Any, error: type[Exception], autojump_clock: MockClock
) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01)) as (client, _):
        with pytest.raises(error, match="tag must be"):
            client.send_datagram_nowait(b"x", tag=tag)
        with pytest.raises(error, match="tag must be"):
            await client.send_datagram(b"x", tag=tag)
