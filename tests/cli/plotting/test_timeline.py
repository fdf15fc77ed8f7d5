"""Figures over time in few points: nothing that matters may get lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.cli.plotting.timeline import Timeline
from tests.support import examples

times = st.lists(st.floats(0, 1e15), min_size=1, max_size=200).map(sorted)


@given(times=times, data=st.data())
@examples(200)
def test_a_gauge_keeps_first_last_smallest_and_largest(
    times: list[float], data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.floats(0, 1e6), min_size=len(times), max_size=len(times)))
    timeline = Timeline(8)
    gauge = timeline.gauge()
    for time, value in zip(times, values, strict=True):
        gauge.add(time, value)
    points = gauge.points()
    assert len(points) <= 4 * 8
    assert points[0] == (times[0], values[0])
    assert points[-1] == (times[-1], values[-1])
    assert {min(values), max(values)} <= {value for _, value in points}
    assert set(points) <= set(zip(times, values, strict=True))
    assert [time for time, _ in points] == sorted(time for time, _ in points)


@given(times=times)
@examples(200)
def test_a_counter_loses_no_count(times: list[float]) -> None:
    timeline = Timeline(8)
    counter = timeline.counter()
    for time in times:
        counter.add(time)
    assert counter.total == len(times)
    assert sum(count for _, count in counter.counts()) == len(times)
    assert sum(count for _, count in counter.counts(3)) == len(times)
    assert len(counter.counts()) <= 8
    assert counter.sums()[-1][1] == len(times)


def test_sums_grow_from_nothing_and_stay_level_in_between() -> None:
    timeline = Timeline(10)
    timeline.interval(95)  # (intervals of 10.24 ms)
    counter = timeline.counter()
    counter.add(0, 5)
    counter.add(50, 2)
    width = timeline.width
    assert counter.sums() == [(0, 0), (width, 5), (4 * width, 5), (5 * width, 7)]


def test_counters_can_be_joined_and_forgotten() -> None:
    timeline = Timeline(4)
    one, other = timeline.counter(), timeline.counter()
    one.add(1, 3)
    other.add(2, 4)
    one.add_all(other)
    timeline.forget(other)
    timeline.interval(1e6)
    assert one.total == 7
    assert sum(count for _, count in one.counts()) == 7
