"""Measures the cost of a packet with 1 and with 1,000 idle streams beside the busy one.

Both ends run in one process over an in-memory network on the real clock, so only processor time
counts.  Rounds alternate; medians and their ratio are printed.  For people who change the
engine:

    python tools/measure_idle_streams.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import trio

import phoenix_trio
from phoenix_trio.quic.handshake.certificates import create_development_ca, issue_certificate
from phoenix_trio.testing import SimulatedNetwork

SERVER, CLIENT, PORT = "10.0.0.1", "10.0.0.2", 4433


async def transfer(idle: int, size: int) -> tuple[float, int]:
    """Processor seconds and packets of one transfer beside `idle` open streams."""
    authority = create_development_ca()
    issued = issue_certificate(authority, [SERVER])
    tls = phoenix_trio.ServerTLS(issued.certificate, issued.private_key)
    config = phoenix_trio.TransportConfig(max_bidirectional_streams=5000)
    network = SimulatedNetwork()
    received = 0
    done = trio.Event()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        nonlocal received
        streams = [await connection.accept_stream() for _ in range(idle + 1)]
        while received < size + 1:
            received += len(await streams[-1].receive_some())
        done.set()
        await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                PORT,
                tls=tls,
                config=config,
                network=network.host(SERVER),
            )
        )
        async with phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=phoenix_trio.ClientTLS(ca=authority.certificate),
            config=config,
            network=network.host(CLIENT),
        ) as connection:
            streams = [await connection.open_stream() for _ in range(idle + 1)]
            for stream in streams:
                await stream.send_all(b"x")
                await stream.wait_acked()
            packets = connection.statistics().packets_sent
            started = time.process_time()
            await streams[-1].send_all(bytes(size))
            await done.wait()
            seconds = time.process_time() - started
            packets = connection.statistics().packets_sent - packets
            connection.abort(0)
        nursery.cancel_scope.cancel()
    return seconds, packets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=5_000_000, help="bytes a transfer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    costs: dict[int, list[float]] = {1: [], 1000: []}
    for _ in range(options.rounds):
        for idle, measured in costs.items():
            seconds, packets = trio.run(transfer, idle, options.size)
            measured.append(seconds / packets * 1e6)
    for idle, measured in costs.items():
        print(
            f"{idle:5d} idle streams: {statistics.median(measured):.1f} us of processor time a"
            f" packet, both ends together (from {min(measured):.1f} to {max(measured):.1f})"
        )
    ratio = statistics.median(costs[1000]) / statistics.median(costs[1])
    print(f"ratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
