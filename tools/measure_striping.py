"""Measures the gain and the memory of striped transfers: `python tools/measure_striping.py`.

1. A simulated link with 1 % loss and 50 ms of round trip, in virtual time: the same data over 1
   and over 10 connections.
2. With ``--file MEGABYTES``: a file from one process to another on loopback, over 10
   connections; one of them is killed at 30 %.  Prints the memory of both processes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from phoenix_trio_bench.server import development_tls

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


async def wait_closed(connection: phoenix_trio.PhoenixConnection) -> None:
    """A server's handler that waits while transfers run."""
    await connection.quic.wait_closed()


async def over_simulated_link(
    size: int, connections: int, loss: float, rtt: float
) -> tuple[float, phoenix_trio.TransferSummary]:
    """Virtual seconds of one transfer."""
    tls, pin = development_tls()
    network = SimulatedNetwork(seed=1, loss=loss, delay=rtt / 2)
    async with (
        trio.open_nursery() as nursery,
        phoenix_trio.open_phoenix(server_tls=tls, network=network.host(SERVER)) as server,
        phoenix_trio.open_phoenix(
            tls=phoenix_trio.ClientTLS(pinned_sha256=pin), network=network.host(CLIENT)
        ) as client,
    ):
        await nursery.start(partial(server.serve, wait_closed, 4433, host=SERVER))
        target = f"{SERVER}:4433"
        await client.enable_multiplexing(target, connections)

        async def receive() -> None:
            async with await server.receive_multiplexed() as transfer:
                async for _ in transfer:
                    pass

        nursery.start_soon(receive)
        summary = await client.send_multiplexed(target, os.urandom(size))
        nursery.cancel_scope.cancel()
    return summary.duration, summary


def simulate(size: int, loss: float, rtt: float) -> None:
    """Run the first part."""

    async def run_sync(work: Any, *arguments: Any, **_: Any) -> Any:
        # Virtual time does not wait for threads.
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    original, trio.to_thread.run_sync = trio.to_thread.run_sync, run_sync  # type: ignore[assignment]
    rates = {}
    try:
        for connections in (1, 10):
            clock = trio.testing.MockClock(autojump_threshold=0)
            seconds, _ = trio.run(over_simulated_link, size, connections, loss, rtt, clock=clock)
            rates[connections] = size * 8 / seconds / 1e6
            print(
                f"{size / 1e6:.0f} MB, {loss:.0%} loss, {rtt * 1e3:.0f} ms, {connections:>2}"
                f" connections: {seconds:7.2f} s  {rates[connections]:7.1f} Mbit/s (virtual time)"
            )
    finally:
        trio.to_thread.run_sync = original
    print(f"ratio: {rates[10] / rates[1]:.1f}")


def memory(pid: int, field: str) -> float:
    """A size of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the system does not say {field}")


async def receive_file(path: str) -> None:
    """The receiving process."""
    tls, pin = development_tls()
    async with (
        trio.open_nursery() as nursery,
        phoenix_trio.open_phoenix(server_tls=tls) as phoenix,
    ):
        (listener,) = await nursery.start(partial(phoenix.serve, wait_closed, 0, host="127.0.0.1"))
        print(listener.port, pin, flush=True)
        async with (
            await phoenix.receive_multiplexed() as transfer,
            await trio.open_file(path, "wb") as file,
        ):
            before = memory(os.getpid(), "VmRSS")
            await transfer.receive_into(file)
        print(f"{before:.1f} {memory(os.getpid(), 'VmHWM'):.1f}", flush=True)
        nursery.cancel_scope.cancel()


async def send_file(
    path: Path, port: int, pin: str, connections: int
) -> tuple[phoenix_trio.TransferSummary, float, float]:
    """The sending process: one connection is killed at 30 %."""
    size = path.stat().st_size  # noqa: ASYNC240 - before anything else runs
    tls = phoenix_trio.ClientTLS(pinned_sha256=pin)
    async with phoenix_trio.open_phoenix(tls=tls) as phoenix:
        target = f"127.0.0.1:{port}"
        await phoenix.enable_multiplexing(target, connections)
        killed = False

        def kill(done: int) -> None:
            nonlocal killed
            if done > size * 0.3 and not killed:
                killed = True
                phoenix.connections[0].quic.abort(1, "killed on purpose")

        before = memory(os.getpid(), "VmRSS")
        async with await trio.open_file(path, "rb") as file:
            summary = await phoenix.send_multiplexed(target, file, on_progress=kill)
        return summary, before, memory(os.getpid(), "VmHWM")


def move_file(megabytes: int, connections: int) -> None:
    """Run the second part."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "source", Path(directory) / "target"
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for _ in range(megabytes):
                block = os.urandom(1_000_000)
                digest.update(block)
                file.write(block)
        with subprocess.Popen(
            [sys.executable, __file__, "--receive", str(target)], stdout=subprocess.PIPE, text=True
        ) as receiver:
            assert receiver.stdout is not None
            port, pin = receiver.stdout.readline().split()
            start = time.perf_counter()
            summary, before, most = trio.run(send_file, source, int(port), pin, connections)
            seconds = time.perf_counter() - start
            theirs = receiver.stdout.readline().split()
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    print(
        f"{megabytes} MB over {connections} connections, one killed at 30 %: {seconds:.1f} s,"
        f" {megabytes * 8 / seconds:,.0f} Mbit/s"
    )
    print(f"checksum {'true' if found == digest.hexdigest() else 'FALSE'}")
    print(
        f"connections lost {summary.connections_lost}, replaced {summary.connections_replaced};"
        f" sent again {summary.bytes_sent_again / 1e6:.1f} MB"
    )
    print(f"sender's memory: {before:.1f} MiB before, {most:.1f} MiB at most")
    print(f"receiver's memory: {theirs[0]} MiB before, {theirs[1]} MiB at most")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="striped transfers")
    parser.add_argument("--megabytes", type=float, default=20, help="of the simulated transfer")
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--rtt", type=float, default=0.05, help="seconds")
    parser.add_argument("--file", type=int, default=0, metavar="MEGABYTES")
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--receive", metavar="PATH", help="be the receiving process")
    options = parser.parse_args()
    if options.receive:
        trio.run(receive_file, options.receive)
    elif options.file:
        move_file(options.file, options.connections)
    else:
        simulate(round(options.megabytes * 1e6), options.loss, options.rtt)


if __name__ == "__main__":
    main()
