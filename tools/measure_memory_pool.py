"""What do the memory pool and zero copy gain?  `python tools/measure_memory_pool.py`.

1. Receiving into buffers which are used again, against new memory each time: runs of
   several sizes over a pair of sockets, all of a turn held at once, in turns.  New
   memory is dear where the C library gives it back to the system after each turn
   (glibc: until the program has once freed a block of more than 1 MiB), so both
   states are measured.
2. A transfer on loopback between two endpoints of one process, with the settings
   ``enable_memory_pool`` and ``enable_zero_copy`` on and off, in turns.

Prints medians.  Bounded: about 20 seconds.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import attrs
import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
from phoenix_trio.quic.packet_io import UdpSocket
from phoenix_trio.quic.receive_pool import LARGEST_DATAGRAM, ReceivePool
from phoenix_trio_bench.server import development_tls

RUNS = 16


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


async def transfer(
    config: phoenix_trio.TransportConfig, size: int
) -> tuple[float, phoenix_trio.ConnectionStatistics]:
    """Seconds which `size` bytes take, to the receiver's answer."""
    tls, pin = development_tls()
    payload = bytes(1024 * 1024)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async with await connection.accept_stream() as stream:
            while await stream.receive_some(1 << 20):
                pass
            await stream.send_all(b"!")

    async with trio.open_nursery() as nursery:
        serve = partial(phoenix_trio.serve, handler, 0, host="127.0.0.1", tls=tls, config=config)
        (listener,) = await nursery.start(serve)
        async with phoenix_trio.open_connection(
            "127.0.0.1",
            listener.port,
            tls=phoenix_trio.ClientTLS(pinned_sha256=pin),
            config=config,
        ) as connection:
            await trio.sleep(0.3)  # the search for the path MTU
            async with await connection.open_stream() as stream:
                start = time.perf_counter()
                for _ in range(size // len(payload)):
                    await stream.send_all(payload)
                await stream.send_eof()
                await stream.receive_some(1)
                taken = time.perf_counter() - start
            counters = connection.statistics()
        nursery.cancel_scope.cancel()
    return taken, counters


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="gain of the memory pool and of zero copy")
    parser.add_argument("--rounds", type=int, default=300, help="of the first part")
    parser.add_argument("--runs", type=int, default=7, help="transfers of each kind")
    parser.add_argument("--megabytes", type=int, default=100, help="of each transfer")
    options = parser.parse_args()
    for state in ("before", "after"):
        print(f"\n{state} a large block was freed")
        print(f"{'bytes a run':>12} {'pooled, us':>12} {'new, us':>12}")
        for size in (100, 1452, 16_000, 65_000):
            pooled, new = measure_socket(size, options.rounds)
            print(f"{size:>12} {pooled:>12.2f} {new:>12.2f}")
        bytes(16 << 20)
    plain = phoenix_trio.TransportConfig()
    configs = {
        "both": plain,
        "no memory pool": attrs.evolve(plain, enable_memory_pool=False),
        "no zero copy": attrs.evolve(plain, enable_zero_copy=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    kept: dict[str, int] = {}
    for _ in range(options.runs):
        for name, config in configs.items():
            taken, counters = trio.run(transfer, config, options.megabytes << 20)
            seconds[name].append(taken)
            kept[name] = counters.zero_copy_operations
    print(f"\n{'both ends, one process':>24} {'Gbit/s':>8} {'writes kept':>12}")
    for name, values in seconds.items():
        rate = (options.megabytes << 23) / statistics.median(values) / 1e9
        print(f"{name:>24} {rate:>8.2f} {kept[name]:>12}")


if __name__ == "__main__":
    main()
