"""An exchange of messages sets few timers, and wakes no task for a timer that is not due."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.quic.connection_timers import TIMER_GRANULARITY
from phoenix_trio.quic.driver import SocketDriver
from phoenix_trio.quic.route import Route
from phoenix_trio.quic.timers import Timers
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair

ECHOES = 1000

#: The most seconds for which an acknowledgement waits.
ACK_DELAY = 0.001


class Counts:
    def __init__(self) -> None:
        self.timers = self.alarms = self.turns = 0

    def each(self) -> tuple[float, float, float]:
        """Timers set, alarms set and turns for each echo, at both ends together."""
        return self.timers / ECHOES, self.alarms / ECHOES, self.turns / ECHOES


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counts = Counts()
    schedule, turn = Timers.schedule, SocketDriver._turn
    deadline = trio.CancelScope.deadline

    def count_timers(timers: Timers[Any], timed: Any, at: float) -> None:
        counts.timers += 1
        schedule(timers, timed, at)

    def count_alarms(scope: trio.CancelScope, at: float) -> None:
        counts.alarms += 1
        deadline.fset(scope, at)

    def count_turns(driver: SocketDriver) -> bool:
        counts.turns += 1
        return turn(driver)

    monkeypatch.setattr(Timers, "schedule", count_timers)
    monkeypatch.setattr(trio.CancelScope, "deadline", property(deadline.fget, count_alarms))
    monkeypatch.setattr(SocketDriver, "_turn", count_turns)
    return counts


async def echo(connection: phoenix_trio.QuicConnection) -> None:
    stream = await connection.accept_stream()
    async for chunk in stream:
        await stream.send_all(chunk)


async def exchange(counts: Counts, *, round_trip: float, pause: float) -> tuple[float, ...]:
    network = SimulatedNetwork(delay=round_trip / 2)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        stream = await client.open_stream()
        for number in range(ECHOES + 100):
            if number == 100:
                vars(counts).update(timers=0, alarms=0, turns=0)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            if pause:
                await trio.sleep(pause)
        result = counts.each()
        nursery.cancel_scope.cancel()
    return result


# Before timers could stay, a rapid echo set 4 timers and 4 alarms, and a slow one took 5 turns.
@pytest.mark.parametrize(
    ("pause", "timers", "alarms", "turns"),
    [(0.0, 0.7, 0.7, 2.01), (0.002, 5.1, 4.1, 4.01), (0.05, 6.1, 5.1, 4.01)],
    ids=["rapid", "every 2 ms", "every 50 ms"],
)
async def test_an_echo_sets_few_timers_and_wakes_no_task_for_nothing(
    autojump_clock: MockClock,
    counts: Counts,
    pause: float,
    timers: float,
    alarms: float,
    turns: float,
) -> None:
    found = await exchange(counts, round_trip=0.0002, pause=pause)
    assert found[0] <= timers, found
    assert found[1] <= alarms, found
    assert found[2] <= turns, found


@pytest.mark.parametrize("seed", range(5))
async def test_no_timer_is_late_whatever_the_rhythm_of_an_exchange(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    end_or_schedule, turn = SocketDriver._end_or_schedule, SocketDriver._turn
    checks = 0

    def check(driver: SocketDriver) -> None:
        nonlocal checks
        soonest = math.inf
        for route in driver._routes:
            deadline = route.engine.next_deadline()
            if route in driver._sender.dirty or deadline is None:
                continue
            # (Work that is due but cannot be sent is tried again a little later.)
            due = max(deadline, trio.current_time() + TIMER_GRANULARITY + 1e-9)
            assert route.scheduled_at <= (due if deadline <= trio.current_time() else deadline)
            soonest = min(soonest, route.scheduled_at)
            checks += 1
        if driver._timers._sleep is not None:
            assert driver._timers._sleep.deadline <= soonest

    def checked_end_or_schedule(driver: SocketDriver, route: Route, now: float) -> None:
        end_or_schedule(driver, route, now)
        check(driver)

    def checked_turn(driver: SocketDriver) -> bool:
        more = turn(driver)
        check(driver)
        return more

    monkeypatch.setattr(SocketDriver, "_end_or_schedule", checked_end_or_schedule)
    monkeypatch.setattr(SocketDriver, "_turn", checked_turn)
    rhythm = random.Random(seed)
    network = SimulatedNetwork(seed=seed, delay=0.0001, jitter=0.0002, loss=0.02)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        stream = await client.open_stream()
        for _ in range(300):
            await stream.send_all(b"x")
            if rhythm.random() < 0.7:
                await stream.receive_some()
            if rhythm.random() < 0.5:
                await trio.sleep(rhythm.choice([0.0, 0.0003, 0.0009, 0.002, 0.03, 1.0]))
        nursery.cancel_scope.cancel()
    assert checks > 1000


async def test_a_delayed_acknowledgement_leaves_on_time_after_rapid_exchanges(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.0001)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        stream = await client.open_stream()
        one_way = await client.open_send_stream()
        for number in range(100):
            for _ in range(1 + number % 7):
                await stream.send_all(b"x")
                await stream.receive_some()
            await trio.sleep(0.05)  # everything is acknowledged
            for _ in range(1 + number % 5):
                await stream.send_all(b"x")
                await stream.receive_some()
            await one_way.send_all(b"x")
            sent = trio.current_time()
            await one_way.wait_acked()
            assert trio.current_time() - sent <= 0.0002 + ACK_DELAY + 1e-6
        nursery.cancel_scope.cancel()
