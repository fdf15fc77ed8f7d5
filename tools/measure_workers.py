"""Measures servers with more workers: `python tools/measure_workers.py`; loopback, one client.

Prints, for 1 and for 2 workers, connections a second (each with a handshake, a request and a
goodbye) and the rate of uploads over several connections at once, with the processor time that
the client and the workers have used.  The client needs a processor, too: on a machine with two,
it is the bound.  Bounded: some ten seconds a number of workers.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
from phoenix_trio.quic.handshake.certificates import (
    create_development_ca,
    fingerprint,
    issue_certificate,
)

MEBIBYTE = 1024 * 1024


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    """Say how much came."""
    async for stream in connection.incoming_streams():
        async with stream:
            size = 0
            async for chunk in stream:
                size += len(chunk)
            await stream.send_all(b"%d" % size, end=True)


async def work(certificate: bytes, key: bytes, pin: str, worker: phoenix_trio.Worker) -> None:
    """One of the workers."""
    tls = phoenix_trio.ServerTLS(certificate, key)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(phoenix_trio.serve, answer, tls=tls, socket=worker.socket))
        os.write(1, f"{worker.port} {pin}\n".encode())  # (in one piece: others write, too)


async def connect(port: int, tls: phoenix_trio.ClientTLS, until: float, done: list[int]) -> None:
    """One connection after another."""
    while trio.current_time() < until:
        async with phoenix_trio.open_connection("127.0.0.1", port, tls=tls) as connection:
            await connection.request(b"hello")
        done[0] += 1


async def upload(
    port: int, tls: phoenix_trio.ClientTLS, size: int, begin: trio.Event, ready: list[int]
) -> None:
    """One large upload, from when all are connected."""
    data = bytes(size)
    async with phoenix_trio.open_connection("127.0.0.1", port, tls=tls) as connection:
        ready[0] -= 1
        if not ready[0]:
            begin.set()
        await begin.wait()
        assert int(await connection.request(data)) == size


async def measure(port: int, pin: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """Connections a second, bits a second, and the client's share of a processor in both."""
    tls = phoenix_trio.ClientTLS(pinned_sha256=pin)
    started, used = time.perf_counter(), time.process_time()
    done = [0]
    async with trio.open_nursery() as nursery:
        until = trio.current_time() + options.seconds
        for _ in range(options.clients):
            nursery.start_soon(connect, port, tls, until, done)
    connections = done[0] / (time.perf_counter() - started)
    begin, ready = trio.Event(), [options.uploads]
    size = options.megabytes * MEBIBYTE // options.uploads
    async with trio.open_nursery() as nursery:
        for _ in range(options.uploads):
            nursery.start_soon(upload, port, tls, size, begin, ready)
        await begin.wait()
        began = time.perf_counter()
    rate = 8 * size * options.uploads / (time.perf_counter() - began)
    busy = (time.process_time() - used) / (time.perf_counter() - started)
    return connections, rate, busy


def run(workers: int, options: argparse.Namespace) -> None:
    """Start so many workers, measure, print one line."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(workers)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline().split() for _ in range(workers)]
        port, pin = lines[0]
        connections, rate, busy = trio.run(measure, int(port), pin, options)
    finally:
        server.terminate()
        server.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{workers} workers: {connections:6.0f} connections a second, {rate / 1e6:6.0f} Mbit/s;"
        f" the client used {busy:.0%} of a processor,"
        f" servers {used.ru_utime + used.ru_stime:.1f} s so far"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what more workers bring")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="of connecting")
    parser.add_argument("--clients", type=int, default=16, help="which connect at once")
    parser.add_argument("--uploads", type=int, default=8, help="at once")
    parser.add_argument("--megabytes", type=int, default=256, help="of all uploads together")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is None:
        for workers in options.workers:
            run(workers, options)
        return
    issued = issue_certificate(create_development_ca(), ["localhost", "127.0.0.1"])
    chosen = partial(work, issued.certificate, issued.private_key, fingerprint(issued.certificate))
    phoenix_trio.run_workers(chosen, 0, workers=options.serve, host="127.0.0.1")


if __name__ == "__main__":
    main()
