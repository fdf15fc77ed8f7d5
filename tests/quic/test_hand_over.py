"""Waiting tasks take turns at running a job; it never stops while one of them waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from phoenix_trio.quic.hand_over import HandOver
from phoenix_trio.quic.waiter import Lot, Waiter
from tests.support import examples


class Job:
    """Runs until cancelled, and counts; delivers posted items a turn later."""

    def __init__(self, *, turns_to_stop: int = 0) -> None:
        self.running = self.starts = self.stops = self.unattended = 0
        self.failure: Exception | None = None
        self.returns = False
        self.posted: list[Place] = []
        self._bell = trio.lowlevel.ParkingLot()
        self._turns_to_stop = turns_to_stop
        self.hand_over = HandOver(self._run, on_stop=self._on_stop, on_unattended=self._on_alone)

    async def _run(self) -> None:
        assert self.hand_over.is_running
        assert not self.running, "two tasks run the job"
        self.running += 1
        self.starts += 1
        try:
            while not self.returns:
                if self.failure is not None:
                    failure, self.failure = self.failure, None
                    raise failure
                posted, self.posted = self.posted, []
                for place in posted:
                    place.ready = True
                    place.lot.unpark_all()
                await self._bell.park()
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(self._turns_to_stop):
                    await trio.lowlevel.checkpoint()
            self.running -= 1

    def post(self, place: Place) -> None:
        self.posted.append(place)
        self.ring()

    def ring(self) -> None:
        self._bell.unpark_all()

    def _on_stop(self) -> None:
        assert not self.hand_over.is_running
        self.stops += 1

    def _on_alone(self) -> None:
        self.unattended += 1


class Place:
    """Something to wait for, like a stream's data."""

    def __init__(self, lot: Lot) -> None:
        self.lot = lot
        self.ready = False

    async def wait(self, job: Job) -> None:
        while not self.ready:
            await job.hand_over.wait(self.lot)


LOTS: list[Callable[[], Lot]] = [trio.lowlevel.ParkingLot, Waiter]


@pytest.mark.parametrize("make_lot", LOTS)
async def test_a_task_that_waits_alone_runs_the_job_and_hears_of_its_result(
    make_lot: Callable[[], Lot],
) -> None:
    job, place = Job(), Place(make_lot())
    job.post(place)  # (before the job runs: it checks when it starts)
    with trio.fail_after(1):
        await place.wait(job)
    assert (job.starts, job.stops, job.running, job.unattended) == (1, 1, 0, 1)
    assert not job.hand_over.is_running


@pytest.mark.parametrize("make_lot", LOTS)
async def test_the_second_of_two_waiting_tasks_takes_over_when_the_leader_is_woken(
    autojump_clock: MockClock, make_lot: Callable[[], Lot]
) -> None:
    job, first, second = Job(), Place(make_lot()), Place(make_lot())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.wait, job)
        await wait_all_tasks_blocked()
        nursery.start_soon(second.wait, job)
        await wait_all_tasks_blocked()
        assert (job.starts, job.running) == (1, 1)
        job.post(first)
        await wait_all_tasks_blocked()
        assert (job.starts, job.running, job.unattended) == (2, 1, 0)
        job.post(second)
    assert (job.starts, job.stops, job.unattended) == (2, 2, 1)


async def test_a_follower_is_woken_while_the_leader_goes_on(autojump_clock: MockClock) -> None:
    job, first, second = Job(), Place(Waiter()), Place(Waiter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.wait, job)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as inner:
            inner.start_soon(second.wait, job)
            await wait_all_tasks_blocked()
            job.post(second)
        assert (job.starts, job.running) == (1, 1)
        job.post(first)


async def test_two_tasks_in_one_lot_take_over_from_each_other(autojump_clock: MockClock) -> None:
    job, lot = Job(), trio.lowlevel.ParkingLot()
    first, second = Place(lot), Place(lot)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.wait, job)
        await wait_all_tasks_blocked()
        nursery.start_soon(second.wait, job)
        await wait_all_tasks_blocked()
        job.post(first)
        await wait_all_tasks_blocked()
        assert (job.starts, job.running, job.unattended) == (2, 1, 0)
        job.post(second)
    assert (job.running, job.unattended) == (0, 1)


async def test_a_spurious_wake_up_of_the_leader_stops_nothing_for_long(
    autojump_clock: MockClock,
) -> None:
    job, first, second = Job(), Place(Waiter()), Place(Waiter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.wait, job)
        nursery.start_soon(second.wait, job)
        await wait_all_tasks_blocked()
        for _ in range(3):
            for place in (first, second):
                place.lot.unpark_all()
                await wait_all_tasks_blocked()
                assert job.running == 1
        assert job.unattended == 0
        job.post(first)
        job.post(second)


@pytest.mark.parametrize("turns_to_stop", [0, 1, 3])
@pytest.mark.parametrize("posts", [False, True])
@pytest.mark.parametrize("turns", range(10))
async def test_a_leader_cancelled_at_any_checkpoint_hands_over_and_loses_no_wake_up(
    autojump_clock: MockClock, turns: int, posts: bool, turns_to_stop: int
) -> None:
    job, first, second = Job(turns_to_stop=turns_to_stop), Place(Waiter()), Place(Waiter())
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await first.wait(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        nursery.start_soon(second.wait, job)
        if posts:
            job.post(first)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        leader.cancel()
        job.post(second)
        with trio.fail_after(1):
            while nursery.child_tasks:
                await trio.sleep(0.01)
    assert second.ready
    assert job.running == 0
    assert job.starts == job.stops
    assert not job.hand_over.is_running


async def test_a_leader_cancelled_before_it_waits_leaves_no_trace() -> None:
    job, place = Job(), Place(Waiter())
    with trio.CancelScope() as scope:
        scope.cancel()
        await place.wait(job)
    assert scope.cancelled_caught
    assert (job.running, job.unattended) == (0, 1)
    assert not job.hand_over.is_running
    job.post(place)
    with trio.fail_after(1):
        await place.wait(job)


async def test_a_leader_woken_and_cancelled_at_once_hands_over(autojump_clock: MockClock) -> None:
    job, first, second = Job(), Place(Waiter()), Place(Waiter())
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await first.wait(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await wait_all_tasks_blocked()
        nursery.start_soon(second.wait, job)
        await wait_all_tasks_blocked()
        first.ready = True
        first.lot.unpark_all()
        leader.cancel()
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        assert (job.starts, job.running, job.unattended) == (2, 1, 0)
        job.post(second)


async def test_the_leader_raises_what_the_job_raises_and_the_next_task_leads(
    autojump_clock: MockClock,
) -> None:
    job, first, second = Job(), Place(Waiter()), Place(Waiter())

    async def expect_failure() -> None:
        with pytest.raises(OSError, match="gone"):
            await first.wait(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_failure)
        await wait_all_tasks_blocked()
        nursery.start_soon(second.wait, job)
        await wait_all_tasks_blocked()
        job.failure = OSError("gone")
        job.ring()
        await wait_all_tasks_blocked()
        assert (job.starts, job.running) == (2, 1)
        job.post(second)


async def test_a_job_that_returns_wakes_its_leader(autojump_clock: MockClock) -> None:
    job, place = Job(), Place(Waiter())
    job.returns = True
    with trio.fail_after(1):
        await job.hand_over.wait(place.lot)
    assert not job.hand_over.is_running


async def test_run_gives_the_job_a_task_of_its_own(autojump_clock: MockClock) -> None:
    job, place = Job(), Place(Waiter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job.hand_over.run)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await job.hand_over.run()
        async with trio.open_nursery() as waiting:
            waiting.start_soon(place.wait, job)
            await wait_all_tasks_blocked()
            job.post(place)
        assert (job.starts, job.running) == (1, 1)
        nursery.cancel_scope.cancel()
    assert (job.stops, job.running, job.unattended) == (1, 0, 0)


async def test_close_wakes_all_and_no_later_wait_starts_the_job(autojump_clock: MockClock) -> None:
    job, first, second = Job(), Place(Waiter()), Place(trio.lowlevel.ParkingLot())
    woken: list[Place] = []

    async def wait_once(place: Place) -> None:
        await job.hand_over.wait(place.lot)
        woken.append(place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_once, first)
        nursery.start_soon(wait_once, second)
        await wait_all_tasks_blocked()
        job.hand_over.close()
        await wait_all_tasks_blocked()
        assert set(woken) == {first, second}
        starts = job.starts
        nursery.start_soon(wait_once, first)
        await wait_all_tasks_blocked()
        assert (job.starts, job.running) == (starts, 0)
        first.lot.unpark_all()


# ------------------------------------------------------------------ any order of things

TASKS = st.integers(0, 4)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["wait", "cancel", "post", "wake"]), TASKS),
    st.tuples(st.just("turns"), st.integers(1, 4)),
    st.tuples(st.just("fail"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
)


class Waits:
    """At most five tasks, in three lots; each of them waits, is woken, or is cancelled."""

    def __init__(self, nursery: trio.Nursery, turns_to_stop: int) -> None:
        self.job = Job(turns_to_stop=turns_to_stop)
        self.nursery = nursery
        shared = trio.lowlevel.ParkingLot()
        lots: list[Lot] = [shared, shared, Waiter(), Waiter(), trio.lowlevel.ParkingLot()]
        self.places = [Place(lot) for lot in lots]
        self.scopes: dict[int, trio.CancelScope] = {}
        self.failures_caught = self.failures_caused = 0

    async def _wait(self, number: int) -> None:
        place = self.places[number]
        with self.scopes[number]:
            while not place.ready:
                try:
                    await place.wait(self.job)
                except OSError:
                    self.failures_caught += 1
        del self.scopes[number]
        place.ready = False

    async def step(self, name: str, number: int) -> None:
        job = self.job
        if name == "wait" and number not in self.scopes:
            self.scopes[number] = trio.CancelScope()
            self.nursery.start_soon(self._wait, number)
        elif name == "cancel" and number in self.scopes:
            self.scopes[number].cancel()
        elif name == "post":
            job.post(self.places[number])
        elif name == "wake":
            self.places[number].lot.unpark_all()
        elif name == "fail" and job.failure is None:
            self.failures_caused += 1
            job.failure = OSError("gone")
            job.ring()
        elif name == "turns":
            for _ in range(number):
                await trio.lowlevel.checkpoint()
        elif name == "settle":
            await self.check_settled()

    async def check_settled(self) -> None:
        """With all tasks at rest, check that the job runs if and only if some task waits."""
        await wait_all_tasks_blocked()
        job = self.job
        assert bool(job.running) == bool(self.scopes) == job.hand_over.is_running
        assert job.starts == job.stops + job.running
        assert bool(job.hand_over._waiting) == bool(self.scopes)
        for number in self.scopes:
            assert not self.places[number].ready, "a wake-up was lost"
        if self.scopes:
            assert not job.posted
            assert job.failure is None


async def live_through(steps: list[tuple[str, int]], turns_to_stop: int) -> None:
    async with trio.open_nursery() as nursery:
        waits = Waits(nursery, turns_to_stop)
        for name, number in steps:
            await waits.step(name, number)
        await waits.check_settled()
        # A failure that is still to come is raised in the next task that waits.
        for number in range(len(waits.places)):
            await waits.step("wait", number)
            await waits.step("post", number)
        with trio.fail_after(1):
            while waits.scopes:
                await trio.sleep(0.01)
        assert waits.failures_caught == waits.failures_caused
        await waits.check_settled()


@examples(150)
@given(st.lists(STEPS, max_size=40), st.integers(0, 2), st.integers(0, 2**32))
def test_in_any_order_of_waits_wake_ups_cancellations_and_failures_nothing_is_lost(
    steps: list[tuple[str, int]], turns_to_stop: int, seed: int
) -> None:
    scheduler = trio._core._run._r  # the order of tasks in a pass is random
    state = scheduler.getstate()
    scheduler.seed(seed)
    try:
        run: Callable[[], Awaitable[None]] = partial(live_through, steps, turns_to_stop)
        trio.run(run, clock=MockClock(autojump_threshold=0))
    finally:
        scheduler.setstate(state)
