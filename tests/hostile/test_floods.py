"""Packets that are cheap to send and expensive to receive: each is bounded, and all together."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.quic import events
from phoenix_trio.quic.turn_budget import TurnBudget
from tests.engine_access import (
    challenges_to_answer,
    change_connection_id,
    engine_of,
    intercept,
    lose_announcement,
    max_streams,
    next_connection_id_number,
    own_connection_id_numbers,
    spare_connection_ids,
)
from tests.engine_packets import seal_short
from tests.hostile.conftest import Figure
from tests.hostile.floods import FLOODS, Attacker, Flood, empty_datagrams, harmless, retired_all
from tests.hostile.world import World
from tests.packets import frame
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    client_tls,
    ending,
    established,
    hand_over,
    in_runs_or_singly,
)

#: The most calls of Python functions for a packet of 1150 bytes; it holds up to 575 frames.
MOST_CALLS = 4000


class Calls:
    """Counts the calls of Python functions, a measure of work that holds on every machine."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self.count += 1


def attack(flood: Flood, packets: int) -> tuple[list[int], list[float], str | None]:
    """The calls and the processor time that each packet costs the server, and its ending."""
    pair, client, server = established()
    attacker = Attacker(client.engine)
    calls, seconds = [], []
    while len(calls) < packets and not client.engine.is_ending:
        data = seal_short(client.engine, flood(attacker))
        attacker.packets += 1
        at = time.thread_time()
        with Calls() as counted:
            server.engine.receive_run(data, 0, len(data), client.address, pair.now)
            batch = server.engine.take_events()
            pair.flush(server)
        seconds.append(time.thread_time() - at)
        calls.append(counted.count)
        server.log += [event for event in batch if isinstance(event, events.Terminated)]
        pair.run(0.002)
    return calls, seconds, ending(server)


@pytest.mark.parametrize("flood", [harmless, *FLOODS], ids=lambda flood: flood.__name__)
def test_what_a_packet_costs_is_bounded_and_does_not_grow(flood: Flood, figure: Figure) -> None:
    calls, seconds, ended = attack(flood, 80)
    assert max(calls[1:]) <= MOST_CALLS
    assert calls[0] <= 3 * MOST_CALLS, "the first one may open streams"
    if ended is None:
        early, late = sorted(calls[20:50]), sorted(calls[50:80])
        assert late[15] <= 1.5 * early[15] + 50
    median = sorted(seconds)[len(seconds) // 2]
    figure("a packet, counting calls", 1e6 * median, "us")
    figure("a packet", sorted(calls)[len(calls) // 2], "calls")


# ------------------------------------------------------------------ connection IDs


@in_runs_or_singly
@pytest.mark.parametrize(
    ("number", "reason"),
    [(None, "never issued"), (1 << 40, "never issued"), (0, "to which the packet was sent")],
    ids=["the next one", "far beyond", "in use"],
)
def test_only_connection_ids_which_were_issued_can_be_retired(
    number: int | None, reason: str, in_runs: bool
) -> None:
    """RFC 9000 section 19.16."""
    pair, client, server = established(in_runs=in_runs)
    if number is None:
        number = next_connection_id_number(server.engine)
    hand_over(pair, client, server, seal_short(client.engine, frame(0x19, number)))
    assert "PROTOCOL_VIOLATION" in str(ending(server))
    assert reason in str(ending(server))


@in_runs_or_singly
def test_a_connection_id_which_was_made_but_not_told_cannot_be_retired(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    following = next_connection_id_number(server.engine)
    hand_over(
        pair, client, server, seal_short(client.engine, frame(0x19, 1) + frame(0x19, following))
    )
    assert "never issued" in str(ending(server)), "the new one has not left yet"


@in_runs_or_singly
def test_a_connection_id_whose_announcement_seemed_lost_can_be_retired(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    newest = own_connection_id_numbers(server.engine)[-1]
    lose_announcement(server.engine, newest)
    hand_over(pair, client, server, seal_short(client.engine, frame(0x19, newest)))
    hand_over(pair, client, server, seal_short(client.engine, frame(0x19, newest)))
    assert ending(server) is None
    assert newest not in own_connection_id_numbers(server.engine)


@in_runs_or_singly
def test_connection_ids_are_replaced_at_a_bounded_rate(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    attacker = Attacker(client.engine)
    began = pair.now
    for _ in range(400):
        hand_over(pair, client, server, seal_short(client.engine, retired_all(attacker)))
        pair.run(0.03)
    retired = len(server.of(events.ConnectionIdRetired))
    # 64 at once, and then twice a second the number of IDs.
    assert 64 < retired <= 64 + 7 * (1 + 2 * (pair.now - began))
    assert ending(server) is None, "another on the path can make a peer seem to move"
    pair.run(10.0)
    assert len(spare_connection_ids(client.engine)) == 7, "they come in time"


@in_runs_or_singly
def test_packets_which_overtake_each_other_use_up_one_connection_id(in_runs: bool) -> None:
    """RFC 9000 section 9.5: late packets do not show where the peer wants its packets."""
    pair, client, server = established(in_runs=in_runs)
    spare = len(spare_connection_ids(server.engine))
    late = [seal_short(client.engine, b"\x01") for _ in range(3)]
    change_connection_id(client.engine)
    for each in late:
        hand_over(pair, client, server, seal_short(client.engine, b"\x01"))
        hand_over(pair, client, server, each)
    assert len(spare_connection_ids(server.engine)) == spare - 1
    assert ending(server) is None


async def test_the_tables_of_connection_ids_stay_small(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        server = world.listener._driver
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=world.network.host(CLIENT)
        ) as connection:
            await trio.sleep(1)
            most = 0
            for _ in range(500):
                change_connection_id(engine_of(connection))
                connection._driver.flush_soon(connection._route)
                await trio.sleep(0.01)
                most = max(most, len(server._table.by_connection_id), len(server._table.retired))
            assert not connection.is_closed
            assert 60 < most < 150
        await trio.sleep(10)
        assert not server._table.by_connection_id
        await world.say(bytes(30))  # (The list is looked at when something arrives.)
        assert not server._table.retired
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ waiting packets and reports


def test_many_limits_in_one_packet_are_one_event() -> None:
    pair, client, server = established()
    frames = b"".join(frame(0x12, 1000 + each) for each in range(200))
    hand_over(pair, client, server, seal_short(client.engine, frames))
    assert len(server.of(events.StreamsAvailable)) <= 2
    assert max_streams(server.engine) == 1199


def test_only_the_first_stop_of_a_stream_is_told() -> None:
    pair, client, server = established()
    stream_id = client.engine.open_stream(unidirectional=False)
    assert stream_id == 0
    hand_over(pair, client, server, seal_short(client.engine, frame(0x05, 0, 7) * 300))
    assert len(server.of(events.StreamStopReceived)) == 1


def test_of_many_challenges_a_few_are_answered() -> None:
    pair, client, server = established()
    hand_over(pair, client, server, seal_short(client.engine, b"\x1a" + bytes(8)))
    challenges = b"".join(b"\x1a" + bytes([each] * 8) for each in range(100))
    hand_over(pair, client, server, seal_short(client.engine, challenges))
    assert challenges_to_answer(server.engine) <= 4


# ------------------------------------------------------------------ the driver


class Busy:
    """A server whose processor time is counted, not measured: a fixed cost for each datagram."""

    def __init__(self, world: World) -> None:
        self.seconds = 0.0
        self.driver = world.listener._driver
        self.driver._budget = self.driver._receiver._budget = TurnBudget(
            1 << 20, clock=lambda: self.seconds, processor_time=lambda: self.seconds
        )

    def cost(self, engine: Any, seconds: float) -> Callable[[], int]:
        """Set the cost of each datagram for this engine; returns a count of datagrams taken."""
        receive_run = engine.receive_run
        taken = 0

        def receive(data: bytes, start: int, size: int, *arguments: Any) -> int:
            nonlocal taken
            end: int = receive_run(data, start, size, *arguments)
            count = -(-(end - start) // size)
            taken += count
            self.seconds += seconds * count
            return end

        intercept(engine, "receive_run", receive)
        return lambda: taken


@asynccontextmanager
async def two_clients() -> AsyncIterator[
    tuple[World, list[phoenix_trio.QuicConnection], list[Any]]
]:
    """A server, two connections to it, and the server's engines of these."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        connections, engines = [], []
        async with AsyncExitStack() as stack:
            for _ in range(2):
                connection = phoenix_trio.open_connection(
                    SERVER, PORT, tls=client_tls(), alpn=ALPN, network=world.network.host(CLIENT)
                )
                connections.append(await stack.enter_async_context(connection))
                await trio.sleep(1)
                engines += [
                    route.engine
                    for route in world.listener._driver._routes
                    if route.engine not in engines
                ]
            yield world, connections, engines
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("has_neighbour", [True, False])
async def test_a_flood_waits_while_a_neighbour_is_served_and_is_not_dropped_when_alone(
    has_neighbour: bool, autojump_clock: MockClock, figure: Figure
) -> None:
    async with two_clients() as (world, (hostile, honest), (attacked, served)):
        busy = Busy(world)
        flooded = busy.cost(attacked, 500e-6)
        busy.cost(served, 20e-6)
        attacker = Attacker(engine_of(hostile))

        async def flood() -> None:
            for _ in range(100):
                for _ in range(10):
                    packet = seal_short(attacker.engine, empty_datagrams(attacker))
                    hostile._driver.socket.send_run(packet, (SERVER, PORT))
                await trio.sleep(0.001)

        async def converse() -> int:
            echoes = 0
            async with await honest.open_stream() as stream:
                with trio.move_on_after(0.1):
                    while True:
                        await stream.send_all(b"x" * 100)
                        received = 0
                        while received < 100:
                            received += len(await stream.receive_some())
                        echoes += 1
            return echoes

        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood)
            if has_neighbour:
                assert await converse() > 0.9 * 0.1 / 0.002, "the network's round trips"
        taken, dropped = flooded(), busy.driver.statistics().receives_dropped
        await trio.sleep(1)
        if has_neighbour:
            assert taken * 500e-6 < 0.1
            assert dropped > 0
            figure("of 1000 packets taken beside a neighbour", taken, "packets")
        else:
            assert dropped == 0
            assert flooded() >= 1000
        assert busy.driver._budget.next_work_at() == math.inf
        hostile.abort(0)
        honest.abort(0)


async def test_what_a_dear_connection_sent_is_still_read_in_order(
    autojump_clock: MockClock,
) -> None:
    """Held back, not lost."""
    async with two_clients() as (world, (one, two), (first, _)):
        Busy(world).cost(first, 800e-6)
        data = bytes(range(256)) * 400
        async with await one.open_stream() as dear, await two.open_stream() as other:

            async def chatter() -> None:
                while True:
                    await other.send_all(b"x")
                    await trio.sleep(0.005)

            async with trio.open_nursery() as talking:
                talking.start_soon(chatter)
                await dear.send_all(data)
                received = b""
                with trio.fail_after(30):
                    while len(received) < len(data):
                        received += await dear.receive_some()
                assert received == data
                talking.cancel_scope.cancel()
