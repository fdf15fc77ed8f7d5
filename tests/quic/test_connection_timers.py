"""A connection's timer follows its engine's deadline, and wakes the task that sleeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from phoenix_trio.quic.connection_timers import TIMER_GRANULARITY, ConnectionTimers
from phoenix_trio.quic.route import NO_SINK, Route
from phoenix_trio.quic.routing_table import RETIRED_ID_SECONDS, RoutingTable


class Engine:
    reset_tokens_changed = False

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.after_timer: float | None = None
        self.end_deadline = 100.0
        self.ack_deadline: float | None = None
        self.has_more = False
        self.calls: list[str] = []

    def next_deadline(self) -> float | None:
        return self.deadline

    def has_more_to_send(self, now: float) -> bool:
        return self.has_more

    def only_acknowledgement_due(self) -> float | None:
        return self.ack_deadline

    def on_timer(self, now: float) -> None:
        self.calls.append("timer")
        self.deadline = self.after_timer

    def on_handshake_timeout(self) -> None:
        self.calls.append("handshake timeout")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def route(engine: Engine) -> Route:
    engine_any: Any = engine
    return Route(engine_any, NO_SINK)


@pytest.fixture
def timers() -> ConnectionTimers:
    return ConnectionTimers(RoutingTable())


def test_a_timer_is_set_to_the_deadline(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    timers.update(route, 0.0, is_blocked=False)
    assert timers.next_deadline() == math.inf
    for deadline in (5.0, 3.0):
        engine.deadline = deadline
        timers.update(route, 0.0, is_blocked=False)
        assert timers.next_deadline() == deadline
    timers.cancel(route)
    assert timers.next_deadline() == math.inf


def test_a_deadline_that_has_passed_is_looked_at_again_a_little_later(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    engine.deadline = 1.0
    timers.update(route, 2.0, is_blocked=False)
    assert timers.next_deadline() == 2.0 + TIMER_GRANULARITY


def test_packets_that_wait_for_the_socket_need_no_timer_but_the_end_does(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    engine.deadline = 1.0
    timers.update(route, 2.0, is_blocked=True)
    assert timers.next_deadline() == engine.end_deadline


def test_a_handshake_ends_at_its_deadline(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    route.is_pending, route.handshake_deadline = True, 10.0
    engine.deadline = 30.0
    timers.update(route, 0.0, is_blocked=False)
    assert timers.next_deadline() == 10.0
    touched: dict[Route, None] = {}
    timers.run_due(9.9, touched)
    assert not touched
    timers.run_due(10.0, touched)
    assert engine.calls == ["handshake timeout"]
    assert list(touched) == [route]


def test_an_early_timer_is_set_again_and_does_nothing_else(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    timers.schedule(route, 1.0)
    engine.deadline = 4.0
    touched: dict[Route, None] = {}
    timers.run_due(1.0, touched)
    assert not touched
    assert not engine.calls
    assert timers.next_deadline() == 4.0
    engine.after_timer = 7.0
    timers.run_due(4.0, touched)
    assert engine.calls == ["timer"]
    assert list(touched) == [route]
    assert timers.next_deadline() == 7.0


def test_a_delayed_acknowledgement_sets_the_timer_and_never_moves_it_past_another_deadline(
    timers: ConnectionTimers, route: Route, engine: Engine
) -> None:
    assert not timers.only_delayed_ack_pending(route, 0.0)
    engine.ack_deadline = engine.deadline = 1.0
    assert timers.only_delayed_ack_pending(route, 0.0)
    assert timers.next_deadline() == 1.0
    engine.ack_deadline, engine.deadline = 5.0, 2.0  # (the latter for loss recovery)
    assert timers.only_delayed_ack_pending(route, 0.999)
    assert timers.next_deadline() == 2.0
    engine.reset_tokens_changed = True
    assert not timers.only_delayed_ack_pending(route, 1.0)


async def test_the_sleeping_task_wakes_at_the_next_deadline_however_it_moves(
    autojump_clock: MockClock, timers: ConnectionTimers, route: Route
) -> None:
    woken: list[float] = []

    async def sleep() -> None:
        await timers.sleep()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        timers.schedule(route, start + 5)
        nursery.start_soon(sleep)
        await wait_all_tasks_blocked()
        timers.schedule(route, start + 9)
        await trio.sleep(6)
        assert not woken
        timers.schedule(route, start + 8)
    assert woken == [start + 8]


async def test_held_work_and_retired_connection_ids_wake_the_task_as_well(
    autojump_clock: MockClock, route: Route
) -> None:
    table = RoutingTable()
    timers = ConnectionTimers(table)
    start = trio.current_time()
    table.add(route, [b"first"])
    table.retire(route, b"first", start)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.sleep)
        await wait_all_tasks_blocked()
        timers.held_work_at = start + 1
        timers.set_alarm()
    assert trio.current_time() == start + 1
    timers.held_work_at = math.inf
    await timers.sleep()
    assert trio.current_time() == start + RETIRED_ID_SECONDS
    timers.run_due(trio.current_time(), {})
    assert not table.by_connection_id
    assert timers.next_deadline() == math.inf
