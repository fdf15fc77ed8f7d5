"""Measures the gain of the memory pool and of zero copy: `python tools/measure_memory_pool.py`.

1. Receiving into reused buffers, against new memory each time: runs of several sizes over a pair
   of sockets, all of a turn held at once, in turns.  Several processes are used, because the
   heap of a process decides whether the C library gives the memory back to the system after each
   turn.
2. A transfer on loopback from one process to another, with `enable_memory_pool`,
   `memory_pool_size` and `enable_zero_copy` changed one by one.  Every run has two new
   processes, and the kinds of run take turns.  Processor time is that of the whole process
   (getrusage) during the transfer.

Prints medians, and medians of the ratios to the run with the defaults in the same round.  Takes
six minutes, or twice as long on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import sys
import time
from functools import partial
from typing import Any

import attrs
import trio
from rich.console import Console
from rich.table import Table

import phoenix_trio
from phoenix_trio.quic.packet_io import UdpSocket
from phoenix_trio.quic.receive_pool import LARGEST_DATAGRAM, ReceivePool
from phoenix_trio_bench.processes import Process
from phoenix_trio_bench.server import development_tls

RUNS = 16
SIZES = (100, 1452, 16_000, 65_000)
MEBIBYTE = 1024 * 1024

CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "enable_memory_pool=False": {"enable_memory_pool": False},
    "memory_pool_size=64 KiB": {"memory_pool_size": 64 * 1024},
    "memory_pool_size=256 KiB": {"memory_pool_size": 256 * 1024},
    "enable_zero_copy=False": {"enable_zero_copy": False},
}


def measure_socket(size: int, rounds: int) -> tuple[float, float]:
    """Microseconds a run: pooled, new."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for each in (sender, raw):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        each.bind(("127.0.0.1", 0))
    raw.setblocking(False)
    receiver = UdpSocket(raw, dual_stack=False)
    pool = ReceivePool(RUNS * LARGEST_DATAGRAM)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for pooled in (True, False) if turn % 2 else (False, True):
            for _ in range(RUNS):
                sender.sendto(bytes(size), raw.getsockname())
            start = time.perf_counter()
            runs = receiver.receive_runs(RUNS, pool if pooled else None)
            spent[pooled].append((time.perf_counter() - start) / len(runs) * 1e6)
            del runs
    raw.close()
    sender.close()
    return statistics.median(spent[True]), statistics.median(spent[False])


def compare_receiving(processes: int, rounds: int) -> None:
    """Print a table of all sizes."""
    found: list[list[tuple[float, float]]] = []
    for _ in range(processes):
        process = Process([sys.executable, __file__, "--sockets", "--rounds", str(rounds)])
        try:
            found.append(process.read(60)["microseconds"])
        finally:
            process.end()
    print(f"us a run, the medians of {processes} processes: smallest, median, largest")
    print(f"{'bytes a run':>12} {'pooled':>24} {'new':>24}")
    for size, *pairs in zip(SIZES, *found, strict=True):
        columns = [
            f"{min(values):8.2f}{statistics.median(values):8.2f}{max(values):8.2f}"
            for values in zip(*pairs, strict=True)
        ]
        print(f"{size:>12} {columns[0]} {columns[1]}")


class Usage:
    """The resources used by this process since the object was made."""

    def __init__(self) -> None:
        self._start = resource.getrusage(resource.RUSAGE_SELF)

    def figures(self, side: str) -> dict[str, float]:
        """Seconds of processor time, and page faults."""
        start, now = self._start, resource.getrusage(resource.RUSAGE_SELF)
        return {
            f"{side} processor": now.ru_utime - start.ru_utime + now.ru_stime - start.ru_stime,
            f"{side} faults": now.ru_minflt - start.ru_minflt,
        }


async def serve(config: phoenix_trio.TransportConfig) -> None:
    """The receiving process: each stream is read to its end and answered with figures."""
    tls, pin = development_tls()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_streams():
            async with stream:
                usage = Usage()
                while await stream.receive_some(MEBIBYTE):
                    pass
                await stream.send_all(json.dumps(usage.figures("receiver")).encode())

    async with trio.open_nursery() as nursery:
        run = partial(phoenix_trio.serve, handler, 0, host="127.0.0.1", tls=tls, config=config)
        (listener,) = await nursery.start(run)
        sys.stdout.write(json.dumps({"port": listener.port, "pin": pin}) + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def send(config: phoenix_trio.TransportConfig, port: int, pin: str, megabytes: int) -> None:
    """The sending process: one transfer to warm up, and one to measure."""
    payload = bytes(MEBIBYTE)
    tls = phoenix_trio.ClientTLS(pinned_sha256=pin)
    figures: dict[str, float] = {}
    async with phoenix_trio.open_connection("127.0.0.1", port, tls=tls, config=config) as conn:
        await trio.sleep(0.3)  # the search for the path MTU
        for count in (megabytes // 4, megabytes):
            async with await conn.open_stream() as stream:
                usage, start = Usage(), time.perf_counter()
                for _ in range(count):
                    await stream.send_all(payload)
                await stream.send_eof()
                answer = await stream.receive_some()
                figures = {"seconds": time.perf_counter() - start, **usage.figures("sender")}
                while more := await stream.receive_some():
                    answer += more
                figures |= json.loads(answer)
        figures["kept"] = conn.statistics().zero_copy_operations
    sys.stdout.write(json.dumps(figures) + "\n")


def measure_transfer(change: dict[str, Any], megabytes: int) -> dict[str, float]:
    """One transfer between two new processes."""
    here = [sys.executable, __file__, "--config", json.dumps(change)]
    server = Process([*here, "--serve"])
    try:
        there = server.read(30)
        work = [str(there["port"]), there["pin"], str(megabytes)]
        client = Process([*here, "--send", *work])
        try:
            return client.read(120)
        finally:
            client.end()
    finally:
        server.end()


def compare_transfers(runs: int, megabytes: int, common: dict[str, Any]) -> None:
    """Print a table of all changes."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CHANGES}
    names = list(CHANGES)
    for turn in range(runs):
        for name in names if turn % 2 else reversed(names):
            found[name].append(measure_transfer({**common, **CHANGES[name]}, megabytes))
    gigabytes = megabytes * MEBIBYTE / 1e9
    table = Table("", "Gbit/s", "ratio")
    for side in ("sender", "receiver"):
        for column in ("s a GB", "ratio", "faults"):
            table.add_column(f"{side}\n{column}")
    table.add_column("writes\nkept")
    for name, rows in found.items():
        figures = {field: statistics.median(row[field] for row in rows) for field in rows[0]}
        ratios = {
            field: statistics.median(
                row[field] / plain[field]
                for row, plain in zip(rows, found["defaults"], strict=True)
            )
            for field in ("seconds", "sender processor", "receiver processor")
        }
        cells = [f"{8 * gigabytes / figures['seconds']:.2f}", f"{1 / ratios['seconds']:.2f}"]
        for side in ("sender", "receiver"):
            cells.append(f"{figures[f'{side} processor'] / gigabytes:.2f}")
            cells.append(f"{ratios[f'{side} processor']:.2f}")
            cells.append(f"{figures[f'{side} faults']:,.0f}")
        table.add_row(name, *cells, f"{figures['kept']:,.0f}")
    Console(width=140).print(table)


def main() -> None:
    """Measure and print, or be one of the two processes."""
    parser = argparse.ArgumentParser(description="gain of the memory pool and of zero copy")
    parser.add_argument("--rounds", type=int, default=300, help="of the first part")
    parser.add_argument("--processes", type=int, default=16, help="of the first part")
    parser.add_argument("--runs", type=int, default=15, help="transfers of each kind")
    parser.add_argument("--megabytes", type=int, default=200, help="of each transfer")
    parser.add_argument("--config", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--sockets", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = attrs.evolve(phoenix_trio.TransportConfig(), **options.config)
    if options.serve:
        trio.run(serve, config)
        return
    if options.send:
        port, pin, megabytes = options.send
        trio.run(send, config, int(port), pin, int(megabytes))
        return
    if options.sockets:
        figures = [measure_socket(size, options.rounds) for size in SIZES]
        sys.stdout.write(json.dumps({"microseconds": figures}) + "\n")
        return
    compare_receiving(options.processes, options.rounds)
    for packets, common in (
        ("packets as large as the path takes", {}),
        ("packets of 1,452 bytes", {"max_udp_payload_size": 1452}),
    ):
        print(f"\n{options.megabytes} MiB, {packets}, {options.runs} runs of each kind")
        compare_transfers(options.runs, options.megabytes, common)


if __name__ == "__main__":
    main()
