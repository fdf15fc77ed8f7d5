"""The rows of the benchmark: what each measures, and how a worker is asked for it."""

from __future__ import annotations

import fnmatch
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import attrs

from .peers import PHOENIX, Implementation
from .processes import Pair, Unsupported, WorkerFailed
from .results import Row

__all__ = ["Plan", "run"]

_ETHERNET = 1452
_SMALLEST = 1200
_MEGABYTE = 1_000_000
_WRITE = 256 * 1024

Measure = Callable[[Pair], float]


@attrs.frozen(kw_only=True)
class Plan:
    """How much is measured."""

    runs: int = 5
    quick: bool = False
    with_gigabyte: bool = False
    only: str = "*"
    peers: tuple[Implementation, ...] = ()
    remote: tuple[str, int, str] | None = None
    """Host, port and fingerprint of a server elsewhere, instead of processes of our own."""


@attrs.frozen(kw_only=True)
class _Workload:
    name: str
    unit: str
    measure: Measure
    higher_is_better: bool = False
    runs: int | None = None
    slow_runs: int = 2
    """Runs for implementations which take more than a second each."""


def _transfer(size: int, write: int = _WRITE) -> Measure:
    def measure(pair: Pair) -> float:
        seconds: float = pair.ask("transfer", size=size, write=write)["seconds"]
        return seconds * 1e3 if size < 100 * _MEGABYTE else size * 8 / seconds / 1e6

    return measure


def _median(op: str, scale: float, **arguments: object) -> Measure:
    def measure(pair: Pair) -> float:
        return float(statistics.median(pair.ask(op, **arguments)["seconds"]) * scale)

    return measure


def _echoes(concurrent: int, count: int) -> Measure:
    def measure(pair: Pair) -> float:
        return count / float(
            pair.ask("echoes", count=count, size=64, concurrent=concurrent)["seconds"]
        )

    return measure


def _datagrams(count: int) -> Measure:
    def measure(pair: Pair) -> float:
        answer = pair.ask("datagrams", count=count, size=1000)
        return float(answer["received"] / answer["seconds"])

    return measure


def _beside_idle_streams(size: int, streams: int) -> Measure:
    def measure(pair: Pair) -> float:
        # Side by side, so that a busy machine slows both.
        without = pair.ask("transfer", size=size, write=_WRITE)["seconds"]
        pair.ask("idle_streams", count=streams)
        try:
            beside = pair.ask("transfer", size=size, write=_WRITE)["seconds"]
        finally:
            pair.ask("close_idle_streams")
        return float(beside / without)

    return measure


def _memory_per_connection(side: str, count: int) -> Measure:
    def measure(pair: Pair) -> float:
        before = pair.memory()
        pair.ask("idle_connections", count=count)
        after = pair.memory()
        pair.ask("close_idle")
        if side not in before:
            raise Unsupported("the server runs elsewhere")
        return (after[side] - before[side]) / count / 1024

    return measure


def _descriptors_per_connection(pair: Pair) -> float:
    before = sum(pair.descriptors().values())
    pair.ask("idle_connections", count=10)
    after = sum(pair.descriptors().values())
    pair.ask("close_idle")
    return (after - before) / 10


def _processor_per_gigabyte(side: str, size: int) -> Measure:
    def measure(pair: Pair) -> float:
        before = pair.processor_seconds()
        pair.ask("transfer", size=size, write=_WRITE)
        after = pair.processor_seconds()
        if side not in before:
            raise Unsupported("the server runs elsewhere")
        return (after[side] - before[side]) / size * 1e9

    return measure


def _memory_under_load(side: str) -> Measure:
    def measure(pair: Pair) -> float:
        pair.ask("transfer", size=10 * _MEGABYTE, write=_WRITE)
        memory = pair.memory()
        if side not in memory:
            raise Unsupported("the server runs elsewhere")
        return memory[side] / 2**20

    return measure


def _workloads(plan: Plan) -> Iterator[_Workload]:
    quick = plan.quick
    for size, name in ((1000, "1 KB"), (64 * 1024, "64 KB"), (1024 * 1024, "1 MiB")):
        yield _Workload(name=f"transfer {name}", unit="ms", measure=_transfer(size))
    yield _Workload(name="transfer 10 MB", unit="ms", measure=_transfer(10 * _MEGABYTE))
    yield _Workload(
        name="transfer 100 MB",
        unit="Mbit/s",
        measure=_transfer(100 * _MEGABYTE),
        higher_is_better=True,
    )
    yield _Workload(
        name="transfer 100 MB, 64 KB writes",
        unit="Mbit/s",
        measure=_transfer(100 * _MEGABYTE, 64 * 1024),
        higher_is_better=True,
    )
    if plan.with_gigabyte:
        yield _Workload(
            name="transfer 1 GB",
            unit="Mbit/s",
            measure=_transfer(1000 * _MEGABYTE),
            higher_is_better=True,
            runs=2,
        )
    yield _Workload(name="first byte of a new stream", unit="ms", measure=_transfer(1))
    few = 5 if quick else 20
    yield _Workload(
        name="connection, full handshake",
        unit="ms",
        measure=_median("handshake", 1e3, count=few, resume=False),
    )
    yield _Workload(
        name="connection, resumed",
        unit="ms",
        measure=_median("handshake", 1e3, count=few, resume=True),
    )
    yield _Workload(
        name="cold connect and 1 MiB",
        unit="ms",
        measure=lambda pair: float(pair.ask("cold", size=1024 * 1024)["seconds"] * 1e3),
    )
    many = 100 if quick else 400
    yield _Workload(
        name="opening a stream", unit="us", measure=_median("open_stream", 1e6, count=many)
    )
    yield _Workload(
        name="64 bytes there and back",
        unit="us",
        measure=_median("round_trip", 1e6, count=many, size=64),
    )
    yield _Workload(
        name="new stream and a 64-byte echo",
        unit="us",
        measure=_median("echo", 1e6, count=many, size=64),
    )
    for concurrent in (1, 16, 100):
        count = 400 if quick else 2000
        yield _Workload(
            name=f"echoes a second, {concurrent} at a time",
            unit="1/s",
            measure=_echoes(concurrent, count),
            higher_is_better=True,
        )
    yield _Workload(
        name="datagrams a second (1000 bytes, received)",
        unit="1/s",
        measure=_datagrams(2000 if quick else 10_000),
        higher_is_better=True,
    )
    for side in ("client", "server"):
        yield _Workload(
            name=f"memory of an idle connection, {side}",
            unit="KiB",
            measure=_memory_per_connection(side, 50 if quick else 200),
            runs=1 if quick else 3,
        )
    yield _Workload(
        name="file descriptors a connection, both ends",
        unit="",
        measure=_descriptors_per_connection,
        runs=1,
    )
    if not quick:
        for side in ("client", "server"):
            yield _Workload(
                name=f"processor seconds a GB, {side}",
                unit="s",
                measure=_processor_per_gigabyte(side, 100 * _MEGABYTE),
                runs=3,
            )
            yield _Workload(
                name=f"memory of the process under load, {side}",
                unit="MiB",
                measure=_memory_under_load(side),
                runs=1,
            )
        yield _Workload(
            name="100 MB beside 1,000 idle streams, against none",
            unit="times",
            measure=_beside_idle_streams(100 * _MEGABYTE, 1000),
        )


#: Rows which say something at other packet sizes, too.
_SIZED = ("transfer *", "new stream *", "echoes *", "cold *")


def run(plan: Plan, on_row: Callable[[str], None]) -> list[Row]:
    """Measure everything; `on_row` hears the name of each row before it begins.

    All implementations take turns, run by run, so that what else the machine does
    hits all of them.
    """
    rows: list[Row] = []
    sizes: list[int | None] = [None, _ETHERNET] if plan.quick else [None, _ETHERNET, _SMALLEST]
    if plan.remote is not None:
        sizes = [None]
    for size in sizes:
        implementations = [PHOENIX, *plan.peers]
        if size is not None:
            implementations = [each for each in implementations if each.has_packet_size]
        suffix = "" if size is None else f", {size}-byte packets"
        chosen = [
            workload
            for workload in _workloads(plan)
            if (size is None or any(fnmatch.fnmatch(workload.name, each) for each in _SIZED))
            and (size is None or not plan.quick or "MB" in workload.name)
            and fnmatch.fnmatch(workload.name + suffix, plan.only)
        ]
        if not chosen:
            continue
        with ExitStack() as stack:
            pairs: dict[str, Pair] = {}
            for each in implementations:
                pair = Pair(each.module, udp_payload=size, remote=plan.remote)
                pairs[each.name] = stack.enter_context(pair)
                pair.ask("connect")
            for workload in chosen:
                on_row(workload.name + suffix)
                rows += _measure(workload, suffix, pairs, plan)
    return rows


def _measure(workload: _Workload, suffix: str, pairs: dict[str, Pair], plan: Plan) -> list[Row]:
    runs: dict[str, list[float]] = {name: [] for name in pairs}
    notes: dict[str, str] = {}
    wanted = min(workload.runs or plan.runs, plan.runs)
    budget = dict.fromkeys(pairs, wanted)
    # The first round is the warm-up, unless one run is all there is.
    warm_up = 0 if workload.runs == 1 else 1
    for turn in range(wanted + warm_up):
        for name, pair in pairs.items():
            if name in notes or len(runs[name]) >= budget[name]:
                continue
            started = time.perf_counter()
            try:
                value = workload.measure(pair)
            except Unsupported as reason:
                notes[name] = str(reason)
                continue
            except WorkerFailed as failure:
                notes[name] = f"failed: {failure}"
                continue
            if turn >= warm_up:
                runs[name].append(value)
            elif time.perf_counter() - started > (1.0 if plan.quick else 5.0):
                budget[name] = min(wanted, 1 if plan.quick else workload.slow_runs)
    return [
        Row(
            name=workload.name + suffix,
            implementation=name,
            unit=workload.unit,
            runs=runs[name],
            note=notes.get(name, ""),
            higher_is_better=workload.higher_is_better,
        )
        for name in pairs
    ]
