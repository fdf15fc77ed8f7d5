"""Measures the time of a lease: `python tools/measure_pool.py`.

Both ends run in one process over loopback.  Prints medians with the smallest and the largest:
the first lease, which dials; a lease on a pooled connection, with one and with eight connections
open.  Bounded: some seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
from phoenix_trio.pool.config import PoolConfig
from phoenix_trio.pool.pool import open_pool
from phoenix_trio.pool.targets import Target
from phoenix_trio_bench.server import development_tls


async def measure(rounds: int) -> None:
    """Serve, lease, print."""
    tls, pin = development_tls()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        serve = partial(phoenix_trio.serve, handler, 0, host="127.0.0.1", tls=tls)
        (listener,) = await nursery.start(serve)
        async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:

            def dial(target: Target) -> Any:
                client = phoenix_trio.ClientTLS(pinned_sha256=pin)
                return endpoint.connect(target.host, target.port, tls=client)

            target = f"127.0.0.1:{listener.port}"
            first = []
            for _ in range(10):
                async with open_pool(dial) as pool:
                    first.append(await lease(pool, target))
            show("first lease, with its handshake", first)
            async with open_pool(dial, PoolConfig(max_connections_per_target=8)) as pool:
                for connections in (1, 8):
                    async with pool.lease_several(target, connections):
                        await trio.sleep(0.2)
                    pooled = [await lease(pool, target) for _ in range(rounds)]
                    show(f"pooled lease, of {connections} open", pooled)
        nursery.cancel_scope.cancel()


async def lease(pool: Any, target: str) -> float:
    """Seconds from the request for a lease until it is there."""
    start = time.perf_counter()
    async with pool.lease(target):
        return time.perf_counter() - start


def show(name: str, seconds: list[float]) -> None:
    """Print one line."""
    median, least, most = (
        value * 1e6 for value in (statistics.median(seconds), min(seconds), max(seconds))
    )
    print(f"{name:>34}: {median:9.1f} us   ({least:.1f} to {most:.1f}, {len(seconds)} runs)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how long a lease takes")
    parser.add_argument("--rounds", type=int, default=5000, help="pooled leases")
    trio.run(measure, parser.parse_args().rounds)


if __name__ == "__main__":
    main()
