"""Timers are due on time, whatever moved them before; stale entries stay few."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.timers import INITIAL_PACE, STALE_TIMERS, Timers
from tests.support import examples


class Timed:
    def __init__(self) -> None:
        self.scheduled_at = self.looked_at = math.inf
        self.pace = INITIAL_PACE


def all_due(timers: Timers[Timed], now: float) -> list[Timed]:
    due = []
    while (timed := timers.pop_due(now)) is not None:
        due.append(timed)
    return due


def test_a_timer_is_due_at_its_deadline_and_only_once() -> None:
    timers, timed = Timers[Timed](), Timed()
    assert timers.next_deadline() == math.inf
    timers.schedule(timed, 5.0)
    assert timers.next_deadline() == 5.0
    assert timers.pop_due(4.9) is None
    assert timers.pop_due(5.0) is timed
    assert timed.scheduled_at == math.inf
    assert timers.pop_due(math.inf) is None


def test_a_timer_moves_both_ways() -> None:
    timers, timed = Timers[Timed](), Timed()
    timers.schedule(timed, 5.0)
    timers.schedule(timed, 3.0)
    assert timers.next_deadline() == 3.0
    timers.schedule(timed, 9.0)
    assert timers.next_deadline() == 9.0
    assert timers.pop_due(8.9) is None
    assert timers.pop_due(9.0) is timed


def test_a_cancelled_timer_is_never_due() -> None:
    timers, first, second = Timers[Timed](), Timed(), Timed()
    timers.schedule(first, 1.0)
    timers.schedule(second, 2.0)
    timers.cancel(first)
    timers.cancel(first)
    assert timers.next_deadline() == 2.0
    timers.schedule(second, math.inf)
    assert timers.next_deadline() == math.inf
    assert timers.pop_due(10.0) is None


def test_timers_are_due_in_the_order_of_their_deadlines() -> None:
    timers = Timers[Timed]()
    timed = [Timed() for _ in range(10)]
    for number, one in enumerate(timed):
        timers.schedule(one, (number * 7) % 10)
    due = all_due(timers, 10.0)
    assert [timed.index(one) * 7 % 10 for one in due] == list(range(10))


def test_moving_a_timer_a_thousand_times_leaves_few_entries() -> None:
    timers, timed, silent = Timers[Timed](), Timed(), Timed()
    timers.schedule(silent, 1.0)  # hides the stale entries behind it
    for number in range(1000):
        timers.schedule(timed, 1000.0 + number)
        assert len(timers) <= STALE_TIMERS + 8
    assert timers.pop_due(1.0) is silent
    assert timers.next_deadline() == 1999.0


def test_a_thousand_cancelled_timers_leave_few_entries() -> None:
    timers, silent = Timers[Timed](), Timed()
    timers.schedule(silent, 1.0)
    crowd = [Timed() for _ in range(1000)]
    for timed in crowd:
        timers.schedule(timed, 1000.0)
    assert len(timers) == 1001
    for timed in crowd:
        timers.cancel(timed)
    assert len(timers) <= STALE_TIMERS + 4


def looks(timers: Timers[Timed], timed: Timed, *times: float) -> list[bool]:
    return [timers.may_stay(timed, at) for at in times]


def test_an_early_timer_stays_while_looks_come_faster_than_it_is_due() -> None:
    timers, timed = Timers[Timed](), Timed()
    timers.schedule(timed, 1.0)
    looks(timers, timed, *(number / 100 for number in range(50)))
    assert looks(timers, timed, 0.50, 0.60, 0.61) == [True, True, True]
    assert looks(timers, timed, 0.97, 0.99) == [False, False]


def test_an_early_timer_moves_after_a_pause_longer_than_the_time_until_it_is_due() -> None:
    timers, timed = Timers[Timed](), Timed()
    timers.schedule(timed, 100.0)
    looks(timers, timed, 99.0, 99.01, 99.02)
    timers.schedule(timed, 110.0)
    assert looks(timers, timed, 109.0, 109.01, 109.02) == [False] * 3
    assert looks(timers, timed, *(109.02 + number / 1000 for number in range(20)))[-1]


def test_looks_at_the_same_time_count_once() -> None:
    timers, timed = Timers[Timed](), Timed()
    looks(timers, timed, 0.0, 1.0)
    pace = timed.pace
    looks(timers, timed, *[1.0] * 100)
    assert timed.pace == pace == 1.0


TIMES = st.integers(0, 30).map(float)


@examples(300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("schedule"), st.integers(0, 3), TIMES),
            st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0.0)),
            st.tuples(st.just("due"), st.just(0), TIMES),
        ),
        max_size=300,
    )
)
def test_timers_agree_with_a_plain_table(steps: list[tuple[str, int, float]]) -> None:
    timers = Timers[Timed]()
    timed = [Timed() for _ in range(4)]
    expected: dict[int, float] = {}
    for name, number, at in steps:
        if name == "schedule":
            timers.schedule(timed[number], at)
            expected[number] = at
        elif name == "cancel":
            timers.cancel(timed[number])
            expected.pop(number, None)
        else:
            due = all_due(timers, at)
            wanted = {number for number, deadline in expected.items() if deadline <= at}
            assert len(due) == len(wanted)
            assert {timed.index(one) for one in due} == wanted
            for number in wanted:
                del expected[number]
        assert timers.next_deadline() == min(expected.values(), default=math.inf)
        assert len(timers) <= STALE_TIMERS + 4 * len(expected)
        for number, one in enumerate(timed):
            assert one.scheduled_at == expected.get(number, math.inf)
