"""The rows of the benchmark: what each measures, and how a worker is asked to do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from .processes import Pair, Unsupported

__all__ = ["SIZED", "Figure", "Sampled", "Workload", "list_workloads"]

_MEGABYTE = 1_000_000
_WRITE = 256 * 1024
_SIDES = ("client", "server")

#: Names of workloads that are also run at other packet sizes.
SIZED = ("transfer *", "start *", "new stream *", "echoes *", "cold *")


@attrs.frozen
class Sampled:
    """The times of single operations; their median is the figure."""

    samples: list[float]


#: The result of one measurement: a value for each figure; ``None`` if there is nothing to
#: measure, as with a server that runs elsewhere.
Measure = Callable[[Pair], Sequence[float | Sampled | None]]


@attrs.frozen
class Figure:
    """One row of the report."""

    name: str
    unit: str
    higher_is_better: bool | None = False
    """``None``: neither, it is only good to know."""


@attrs.frozen(kw_only=True)
class Workload:
    """Work for a pair of workers, and the figures that it gives."""

    figures: tuple[Figure, ...]
    measure: Measure
    runs: int | None = None
    """``None``: as many as the plan says."""
    fresh: bool = False
    """Each run has new processes, because earlier measurements leave traces in them."""
    payload: int = 0
    """The size of the random data that the client must have before."""
    bytes: int = 0
    """Bytes moved on one connection in one run; from them the time of a slow implementation
    is estimated before it begins."""


def _one(
    name: str, unit: str, measure: Callable[[Pair], float | Sampled], **options: object
) -> Workload:
    higher = bool(options.pop("higher_is_better", False))
    return Workload(
        figures=(Figure(name, unit, higher),),
        measure=lambda pair: [measure(pair)],
        **options,  # type: ignore[arg-type]
    )


def _transfer(
    name: str,
    size: int,
    *,
    write: int = _WRITE,
    runs: int | None = None,
    repeat: int = 1,
    with_processor: bool = False,
) -> Workload:
    seconds = max(30.0, size / _MEGABYTE)
    sides = _SIDES if with_processor else ()

    def measure(pair: Pair) -> list[float | None]:
        answer = pair.ask("transfer", seconds=seconds, repeat=repeat, size=size, write=write)
        taken = float(answer["seconds"])
        used = [float(answer[f"{side}_processor"]) for side in sides]
        return [taken * 1e3, size * 8 / taken / 1e6, *(each / size * 1e9 for each in used)]

    figures = (
        Figure(f"transfer {name}", "ms"),
        Figure(f"transfer {name}: rate", "Mbit/s", higher_is_better=True),
        *(Figure(f"transfer {name}: processor time a GB, {side}", "s") for side in sides),
    )
    return Workload(figures=figures, measure=measure, bytes=size, runs=runs, payload=size)


def _start(size: int) -> Workload:
    def measure(pair: Pair) -> float:
        return float(pair.ask("flow", size=size, write=_WRITE)["seconds"] * 1e3)

    name = f"start of a transfer of {size // _MEGABYTE} MB"
    return _one(name, "ms", measure, bytes=size, payload=size)


def _single_operations(name: str, unit: str, op: str, scale: float, **arguments: int) -> Workload:
    def measure(pair: Pair) -> Sampled:
        return Sampled([each * scale for each in pair.ask(op, **arguments)["seconds"]])

    return _one(name, unit, measure)


def _side_by_side(op: str, concurrent: int, count: int) -> Workload:
    """Echoes or requests."""

    def measure(pair: Pair) -> float:
        answer = pair.ask(op, count=count, size=64, concurrent=concurrent)
        return float(count / answer["seconds"])

    name = f"{op} a second, {concurrent} at a time"
    return _one(name, "1/s", measure, higher_is_better=True)


def _datagrams(count: int) -> Workload:
    def measure(pair: Pair) -> list[float | None]:
        answer = pair.ask("datagrams", count=count, size=1000)
        if not answer["received"]:
            raise Unsupported("no datagram arrived")
        return [answer["received"] / answer["seconds"], answer["received"] / count * 100]

    figures = (
        Figure("datagrams a second, received", "1/s", higher_is_better=True),
        Figure("datagrams received of those sent", "%", higher_is_better=True),
    )
    return Workload(figures=figures, measure=measure)


def _beside_idle_streams(size: int, streams: int) -> Workload:
    def measure(pair: Pair) -> float:
        # One right after the other, so that a busy machine slows both.
        pair.ask("idle_streams", count=streams)
        beside = pair.ask("transfer", size=size, write=_WRITE)["seconds"]
        pair.ask("close_idle_streams")
        without = pair.ask("transfer", size=size, write=_WRITE)["seconds"]
        return float(beside / without)

    name = f"{size // _MEGABYTE} MB beside {streams:,} idle streams, against none"
    return _one(name, "times", measure, bytes=2 * size, payload=size)


def _connections(count: int, loaded: int, size: int, runs: int, settle: float) -> Workload:
    """Memory of a connection, on both ends: idle, and with a transfer on it.

    A process keeps memory that it has had once, so each run has new processes.  The first few
    connections do not count, because some things are loaded and allocated only once.
    """

    def measure(pair: Pair) -> list[float | None]:
        pair.ask("idle_connections", count=10, settle=settle)
        memory, files = pair.memory(), pair.descriptors()
        pair.ask("idle_connections", count=count, settle=settle)
        idle = {side: (now - memory[side]) / count for side, now in pair.memory().items()}
        open_files = {side: (n - files[side]) / count for side, n in pair.descriptors().items()}
        pair.ask("close_idle")
        pair.ask("idle_connections", count=loaded, settle=settle)
        memory = pair.memory()
        pair.forget_peaks()
        pair.ask("load_idle", size=size)
        load = {side: (peak - memory[side]) / loaded for side, peak in pair.peaks().items()}
        pair.ask("close_idle")
        return [
            *(_in_kibibytes(idle.get(side)) for side in _SIDES),
            *(_in_kibibytes(load.get(side)) for side in _SIDES),
            *(open_files.get(side) for side in _SIDES),
        ]

    figures = (
        *(Figure(f"memory of an idle connection, {side}", "KiB") for side in _SIDES),
        *(Figure(f"memory which load adds to a connection, {side}", "KiB") for side in _SIDES),
        *(Figure(f"file descriptors of a connection, {side}", "") for side in _SIDES),
    )
    return Workload(figures=figures, measure=measure, runs=runs, fresh=True, bytes=loaded * size)


def _packets(pair: Pair) -> list[float | None]:
    if pair.udp_payload is None:
        raise Unsupported("it does not say")
    return [pair.udp_payload]


def _in_kibibytes(size: float | None) -> float | None:
    return None if size is None else size / 1024


def list_workloads(*, quick: bool, with_gigabyte: bool) -> Iterator[Workload]:
    """All of them, in the order of the report."""
    packets = (Figure("UDP payload of a full packet", "bytes", None),)
    yield Workload(figures=packets, measure=_packets, runs=1)
    few, many = (3, 51) if quick else (21, 401)
    yield _transfer("1 KB", 1000, repeat=few)
    yield _transfer("64 KB", 64 * 1024, repeat=few)
    yield _transfer("1 MiB", 1024 * 1024, repeat=3)
    yield _transfer("10 MB", 10 * _MEGABYTE)
    yield _transfer("100 MB", 100 * _MEGABYTE, with_processor=True)
    yield _transfer("100 MB, 64 KB writes", 100 * _MEGABYTE, write=64 * 1024)
    if with_gigabyte:
        yield _transfer("1 GB", 1000 * _MEGABYTE, runs=2)
    yield _start(10 * _MEGABYTE)
    yield _single_operations(
        "connection, full handshake", "ms", "handshake", 1e3, count=few, resume=False
    )
    yield _single_operations("connection, resumed", "ms", "handshake", 1e3, count=few, resume=True)
    yield _single_operations("connection, pooled", "us", "pooled", 1e6, count=many)
    yield _one(
        "cold connect and 1 MiB",
        "ms",
        lambda pair: float(pair.ask("cold", size=1024 * 1024)["seconds"] * 1e3),
        bytes=1024 * 1024,
        payload=1024 * 1024,
    )
    yield _single_operations("opening a stream", "us", "open_stream", 1e6, count=many)
    yield _single_operations(
        "64 bytes there and back", "us", "round_trip", 1e6, count=many, size=64
    )
    yield _single_operations(
        "new stream and a 64-byte echo", "us", "echo", 1e6, count=many, size=64
    )
    yield _single_operations(
        "request and a 64-byte answer", "us", "request", 1e6, count=many, size=64
    )
    for op in ("echoes", "requests"):
        for concurrent in (1, 16, 100):
            yield _side_by_side(op, concurrent, 400 if quick else 4000)
    yield _datagrams(2000 if quick else 10_000)
    yield (
        _connections(50, 5, size=4 * _MEGABYTE, runs=1, settle=0.3)
        if quick
        else _connections(200, 20, size=4 * _MEGABYTE, runs=3, settle=1.0)
    )
    yield _beside_idle_streams(100 * _MEGABYTE, 1000)
