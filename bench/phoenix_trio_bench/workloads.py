"""Runs the rows: chooses implementations, order, number of runs and time limits."""

from __future__ import annotations

import fnmatch
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import attrs

from .over_time import Moment, Timeline
from .peers import PHOENIX, Implementation
from .processes import Pair, Remote, Unsupported, WorkerFailed
from .results import Row, thin
from .rows import SIZED, Sampled, Workload, list_workloads
from .simulate import Link, simulate

__all__ = ["Plan", "record", "run"]

_ETHERNET = 1452
_SMALLEST = 1200

#: ``--quick`` ends within 40 seconds; work under way at this time may take the rest.
_QUICK_SECONDS = 33.0
_QUICK_RECORDING_SECONDS = 4.0
_QUICK_RUN_SECONDS = 5.0
_QUICK_RUN_SECONDS_AMONG_PEERS = 1.2

#: ``--quick`` begins no further runs once a row has taken so long, with all its peers.
_QUICK_ROW_SECONDS = 1.2

_QUICK_SIZED = ("transfer 10 MB", "transfer 100 MB")

#: A run that takes longer counts at once and is not repeated; in ``--quick`` also with the
#: peers, which have to share its time.
_SLOW = 8.0
_SLOW_IN_QUICK = 1.5
_SLOW_AMONG_PEERS = 1.0


@attrs.frozen(kw_only=True)
class Plan:
    """The extent of a benchmark."""

    runs: int = 5
    quick: bool = False
    with_gigabyte: bool = False
    only: tuple[str, ...] = ("*",)
    """The rows, as a shell's patterns; a workload runs if one of its rows matches."""
    peers: tuple[Implementation, ...] = ()
    remote: Remote | None = None
    """A server elsewhere, instead of processes of our own."""
    records: bool = False
    """Whether transfers over time are recorded afterwards (:func:`record`)."""

    @property
    def slow(self) -> float:
        """Seconds; a run that takes longer is not repeated."""
        if not self.quick:
            return _SLOW
        return _SLOW_AMONG_PEERS if self.peers else _SLOW_IN_QUICK

    @property
    def longest_run(self) -> float:
        """Seconds; in ``--quick``, a run expected to take longer is left out."""
        return _QUICK_RUN_SECONDS_AMONG_PEERS if self.peers else _QUICK_RUN_SECONDS


@attrs.define
class _Contender:
    """One implementation, its workers at one packet size, and its results so far."""

    implementation: Implementation
    pair: Pair | None = None
    trouble: str = ""
    """Why there are no workers."""
    seconds_a_byte: float = 0.0
    """Of the latest large transfer."""


class _Tally:
    """One workload of one contender."""

    def __init__(self, workload: Workload) -> None:
        self.runs: list[Sequence[float | Sampled | None]] = []
        self.note = ""
        self.finished = False
        self._workload = workload

    def give_up(self, note: str) -> None:
        """No further runs, for this reason."""
        self.note = note
        self.finished = True

    def rows(self, name: str, suffix: str) -> Iterator[Row]:
        """For the report."""
        for index, figure in enumerate(self._workload.figures):
            values = [value for run in self.runs if (value := run[index]) is not None]
            samples = [
                each for value in values if isinstance(value, Sampled) for each in value.samples
            ]
            note = self.note
            if self.runs and not values:
                note = "the server runs elsewhere"
            yield Row(
                name=figure.name + suffix,
                implementation=name,
                unit=figure.unit,
                runs=[
                    statistics.median(value.samples) if isinstance(value, Sampled) else value
                    for value in values
                ],
                note=note,
                higher_is_better=figure.higher_is_better,
                samples=thin(samples),
            )


def _wanted(plan: Plan, size: int | None) -> list[Workload]:
    """The workloads at a packet size."""
    suffix = _suffix(size)
    chosen = []
    for workload in list_workloads(quick=plan.quick, with_gigabyte=plan.with_gigabyte):
        names = [figure.name for figure in workload.figures]
        if size is not None and not any(fnmatch.fnmatch(names[0], each) for each in SIZED):
            continue
        if size is not None and plan.quick and names[0] not in _QUICK_SIZED:
            continue
        if any(fnmatch.fnmatch(name + suffix, each) for name in names for each in plan.only):
            chosen.append(workload)
    return chosen


def _in_turn(plan: Plan, workloads: list[Workload]) -> list[Workload]:
    """The workloads in running order; in ``--quick``, long ones get the time that is left."""
    return sorted(workloads, key=lambda workload: workload.bytes) if plan.quick else workloads


def _suffix(size: int | None) -> str:
    return "" if size is None else f", {size}-byte packets"


def run(plan: Plan, on_row: Callable[[str], None]) -> list[Row]:
    """Measure everything; `on_row` is called with the name of each row before it begins.

    All implementations take turns, run by run, so that other load on the machine affects
    all of them.
    """
    rows: list[Row] = []
    deadline = float("inf")
    if plan.quick:
        deadline = time.monotonic() + _QUICK_SECONDS - plan.records * _QUICK_RECORDING_SECONDS
    # The sizes for which --quick may have no time left are the less important ones.
    sizes: list[int | None] = [_ETHERNET, None] if plan.quick else [None, _ETHERNET, _SMALLEST]
    if plan.remote is not None:
        sizes = [None]
    for size in sizes:
        workloads = _wanted(plan, size)
        if not workloads:
            continue
        contenders = [
            _Contender(each)
            for each in (PHOENIX, *plan.peers)
            if size is None or each.has_packet_size
        ]
        on_row("starting the workers")
        with ExitStack() as stack:
            _start_all(contenders, size, plan, stack)
            measured: dict[str, list[Row]] = {}
            for workload in _in_turn(plan, workloads):
                name = workload.figures[0].name
                on_row(name + _suffix(size))
                measured[name] = _measure(workload, contenders, size, plan, deadline)
            for workload in workloads:
                rows += measured[workload.figures[0].name]
    return sorted(rows, key=lambda row: "-byte packets" in row.name)


def _start_all(
    contenders: list[_Contender], size: int | None, plan: Plan, stack: ExitStack
) -> None:
    def start(contender: _Contender) -> None:
        try:
            contender.pair = _open(contender.implementation, size, plan)
        except WorkerFailed as failure:
            contender.trouble = f"failed: {failure}"

    with ThreadPoolExecutor() as threads:
        list(threads.map(start, contenders))
    for contender in contenders:
        if contender.pair is not None:
            stack.enter_context(contender.pair)


def _open(implementation: Implementation, size: int | None, plan: Plan) -> Pair:
    return Pair(implementation.command, udp_payload=size, remote=plan.remote)


def _measure(
    workload: Workload,
    contenders: list[_Contender],
    size: int | None,
    plan: Plan,
    deadline: float,
) -> list[Row]:
    tallies = [_Tally(workload) for _ in contenders]
    wanted = min(workload.runs or plan.runs, plan.runs)
    # The first round is the warm-up, except where processes are new each time.
    warm_up = 0 if workload.fresh else 1
    started = time.monotonic()
    for turn in range(wanted + warm_up):
        if plan.quick and turn > warm_up and time.monotonic() > started + _QUICK_ROW_SECONDS:
            break
        for contender, tally in zip(contenders, tallies, strict=True):
            if not tally.finished:
                _take_turn(contender, tally, workload, size, plan, deadline, turn < warm_up)
    return [
        row
        for contender, tally in zip(contenders, tallies, strict=True)
        for row in tally.rows(contender.implementation.name, _suffix(size))
    ]


def _take_turn(
    contender: _Contender,
    tally: _Tally,
    workload: Workload,
    size: int | None,
    plan: Plan,
    deadline: float,
    is_warm_up: bool,
) -> None:
    if contender.pair is None:
        tally.give_up(contender.trouble)
        return
    expected = workload.bytes * contender.seconds_a_byte
    if plan.quick and expected > plan.longest_run:
        tally.give_up(f"left out: about {expected:.0f} s a run is too long for --quick")
        return
    if time.monotonic() > deadline:
        tally.give_up("" if tally.runs else "left out: --quick had no time left")
        return
    try:
        if workload.payload and is_warm_up:
            contender.pair.ask("prepare", seconds=60.0, size=workload.payload)
        started = time.monotonic()
        if workload.fresh:
            with _open(contender.implementation, size, plan) as pair:
                values = workload.measure(pair)
        else:
            values = workload.measure(contender.pair)
    except Unsupported as reason:
        tally.give_up(str(reason))
        return
    except WorkerFailed as failure:
        tally.give_up(f"failed: {failure}")
        if not workload.fresh:
            _restart(contender)
        return
    taken = time.monotonic() - started
    if workload.bytes >= 10_000_000 and not workload.fresh:
        contender.seconds_a_byte = taken / workload.bytes
    slow = taken > plan.slow
    if slow and not workload.fresh:
        tally.note = "slow: one run, without one to warm up"
        tally.finished = True
    if slow or not is_warm_up:
        tally.runs.append(values)


def _restart(contender: _Contender) -> None:
    assert contender.pair is not None
    try:
        contender.pair.restart()
    except WorkerFailed as failure:
        contender.pair.close()
        contender.pair = None
        contender.trouble = f"failed: it could not be started again: {failure}"


#: Names of the timelines, for ``Plan.only``.
_HERE = "transfer over time"
_SIMULATED = "transfer over time, simulated link"

_RECORDED_BYTES = 100_000_000
_RECORDED_BYTES_ELSEWHERE = 20_000_000
_RECORDED_WRITE = 256 * 1024
_LINK = Link(rtt=0.05, bandwidth=50e6, queue_bytes=256 * 1024)
_LINK_BYTES = 10_000_000


def record(plan: Plan, on_row: Callable[[str], None]) -> list[Timeline]:
    """Record transfers of ours over time, after all rows and with workers of their own."""
    timelines = []
    if any(fnmatch.fnmatch(_HERE, each) for each in plan.only):
        on_row(_HERE)
        timelines.append(_record_here(plan))
    if any(fnmatch.fnmatch(_SIMULATED, each) for each in plan.only):
        on_row(_SIMULATED)
        outcome = simulate(_LINK, _LINK_BYTES, record=True)
        timelines.append(
            Timeline(
                name=f"{_LINK_BYTES // 1_000_000} MB, {_LINK.describe()}",
                moments=outcome.moments,
                bandwidth=_LINK.bandwidth,
            )
        )
    return timelines


def _record_here(plan: Plan) -> Timeline:
    elsewhere = plan.remote is not None
    size = _RECORDED_BYTES_ELSEWHERE if elsewhere else _RECORDED_BYTES
    way = "a server elsewhere" if elsewhere else "loopback"
    name = f"{size // 1_000_000} MB on a new connection, {way}"
    try:
        with _open(PHOENIX, None, plan) as pair:
            pair.ask("prepare", seconds=60.0, size=size)
            # The server takes fresh memory for the first transfer; that is no part of the picture.
            pair.ask("transfer", seconds=60.0, size=size, write=_RECORDED_WRITE)
            answer = pair.ask("over_time", seconds=60.0, size=size, write=_RECORDED_WRITE)
    except WorkerFailed as failure:
        return Timeline(name=name, note=f"failed: {failure}")
    return Timeline(name=name, moments=[Moment(*each) for each in answer["moments"]])
