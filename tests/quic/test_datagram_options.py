"""Datagrams that expire, are urgent, or get lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, queued_datagrams
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
