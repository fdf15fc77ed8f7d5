"""Transfers over time: what is recorded, and that it stays bounded."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
import trio
from click.testing import CliRunner

from phoenix_trio.cli.program import program
from phoenix_trio_bench import workloads
from phoenix_trio_bench.over_time import LIMIT, Moment, Recorder, Timeline
from phoenix_trio_bench.peers import PHOENIX
from phoenix_trio_bench.processes import Pair, WorkerFailed
from phoenix_trio_bench.simulate import Link, simulate
from phoenix_trio_bench.workloads import Plan


@attrs.define
class Counters:
    """As much of a connection, and of its statistics, as a recorder reads."""

    stream_bytes_acknowledged: int = 1000
    packets_lost: int = 5
    rtt_smoothed: float | None = None
    congestion_window: int = 10

    def statistics(self) -> Counters:
        return self


def recorder(*connections: Counters) -> Recorder:
    return Recorder(connections)  # type: ignore[arg-type]


async def test_several_connections_count_together(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Counters(), Counters(rtt_smoothed=0.1)
    record = recorder(first, second)
    await trio.sleep(0.25)
    first.stream_bytes_acknowledged = 4000
    second.packets_lost = 7
    record.take()
    assert record.moments() == [Moment(0.25, 3000, 0.1, 20, 2)]


async def test_a_long_transfer_is_recorded_more_sparsely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    counters = Counters()
    record = recorder(counters)
    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record.run)
            while True:
                await trio.sleep(0.01)
                counters.stream_bytes_acknowledged += 1
    moments = record.moments()
    assert LIMIT / 2 <= len(moments) <= LIMIT
    assert moments[0].seconds == 0
    assert moments[-1].seconds > 29
    gaps = [after.seconds - before.seconds for before, after in pairwise(moments)]
    assert max(gaps) < 3 * min(gaps)


async def test_nothing_is_kept_of_the_time_after_the_last_acknowledgement(
    autojump_clock: trio.testing.MockClock,
) -> None:
    counters = Counters()
    record = recorder(counters)
    for acknowledged in (1500, 2000, 2000, 2000):
        counters.stream_bytes_acknowledged = acknowledged
        record.take()
        await trio.sleep(1)
    assert [(each.seconds, each.acknowledged) for each in record.moments()] == [(0, 500), (1, 1000)]


def test_a_timeline_survives_its_file() -> None:
    timeline = Timeline(name="a", moments=[Moment(0.5, 10, None, 3, 0)], bandwidth=1e6, note="b")
    assert Timeline.from_json(timeline.to_json()) == timeline


def test_a_simulated_transfer_is_recorded_only_on_request() -> None:
    link = Link(rtt=0.02, bandwidth=20e6)
    assert simulate(link, 200_000).moments == []
    outcome = simulate(link, 400_000, connections=2, record=True)
    last = outcome.moments[-1]
    assert last.acknowledged >= 400_000
    assert last.seconds <= outcome.seconds + 1e-6
    assert last.rtt is not None
    assert last.rtt >= 0.02
    assert last.packets_lost <= outcome.packets_lost
    counts = [each.acknowledged for each in outcome.moments]
    assert counts == sorted(counts)


def test_a_worker_records_a_transfer_on_a_connection_of_its_own() -> None:
    with Pair(PHOENIX.command) as pair:
        answer = pair.ask("over_time", size=2_000_000, write=65536)
    moments = [Moment(*each) for each in answer["moments"]]
    assert len(moments) <= LIMIT
    assert moments[-1].acknowledged >= 2_000_000
    assert moments[0].acknowledged < moments[-1].acknowledged


def test_timelines_are_chosen_by_name_as_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "_LINK_BYTES", 100_000)
    heard: list[str] = []
    assert workloads.record(Plan(only=("echoes*",)), heard.append) == []
    assert heard == []
    (timeline,) = workloads.record(Plan(only=("*simulated link",)), heard.append)
    assert heard == ["transfer over time, simulated link"]
    assert timeline.moments
    assert timeline.bandwidth == 50e6
    assert "round trip 50 ms, 50 Mbit/s" in timeline.name


def test_workers_which_fail_leave_a_note_instead_of_a_timeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Pair:
        raise WorkerFailed("it burst")

    monkeypatch.setattr(workloads, "_open", fail)
    (timeline,) = workloads.record(Plan(only=("transfer over time",)), lambda name: None)
    assert timeline.moments == []
    assert timeline.note == "failed: it burst"


def test_a_timeline_without_a_file_for_it_is_not_recorded() -> None:
    result = CliRunner().invoke(program, ["bench", "--quick", "--only", "transfer over time*"])
    assert result.exit_code == 2
    assert "--html or --json" in result.output
