"""A live view of a transport's statistics in the terminal, while it moves random data.

    phoenix-trio certificate --directory certificates
    python examples/dashboard.py serve --port 4433
    python examples/dashboard.py watch --host localhost --port 4433 --seconds 20

Nothing is counted for the view: each look is one call of `phoenix.stats()`.  The server
opens an inspection, so `phoenix-trio top sink` shows it in another terminal.
"""

import argparse
import os
from functools import partial

import trio
from rich.live import Live
from rich.table import Table

import phoenix_trio

BLOCK = 256 * 1024


async def serve(options: argparse.Namespace) -> None:
    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        size = 0
        async for message in connection.messages():
            size += len(message)
        print(f"took {size} bytes", flush=True)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with (
        phoenix_trio.open_phoenix("sink", server_tls=tls) as phoenix,
        phoenix_trio.open_inspection(phoenix),
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


def render(phoenix: phoenix_trio.PhoenixTransport) -> Table:
    stats = phoenix.stats()
    pool = phoenix.pool.statistics()
    table = Table(title=f"{stats.name}: {stats.throughput_gbps:.3f} Gbit/s")
    table.add_column("what")
    table.add_column("now", justify="right")
    latency = "-" if stats.latency_ms is None else f"{stats.latency_ms:.2f} ms"
    for name, value in (
        ("sending", f"{stats.send_rate / 1e6:.1f} Mbit/s"),
        ("acknowledged by the peer", f"{stats.total_bytes_sent / 1e6:.1f} MB"),
        ("latency", latency),
        ("connections", str(stats.active_connections)),
        ("leases", str(pool.leases)),
        ("operations", f"{stats.operations:,}"),
        ("writes without a copy", f"{stats.zero_copy_operations:,}"),
        ("packets lost", f"{stats.packets_lost:,}"),
    ):
        table.add_row(name, value)
    return table


async def watch(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    data = os.urandom(BLOCK)
    async with phoenix_trio.open_phoenix("dashboard", tls=tls) as phoenix:

        async def work() -> None:
            async with phoenix.connect((options.host, options.port)) as connection:
                while True:
                    await connection.send_data(data)

        with Live(render(phoenix), refresh_per_second=10) as live:
            with trio.move_on_after(options.seconds):
                async with trio.open_nursery() as nursery:
                    for _ in range(options.tasks):
                        nursery.start_soon(work)
                    while True:
                        await trio.sleep(0.25)
                        live.update(render(phoenix))
            live.update(render(phoenix))
        stats = phoenix.stats()
    print(f"{stats.operations} messages, {stats.total_bytes_sent} bytes acknowledged")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A live view of a transport's statistics")
    parser.add_argument("role", choices=["serve", "watch"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tasks", type=int, default=4, help="senders side by side")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else watch, chosen)
