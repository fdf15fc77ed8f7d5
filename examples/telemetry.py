"""Telemetry in datagrams: fast, unordered, and a lost reading stays lost.

    phoenix-trio certificate --directory certificates
    python examples/telemetry.py collect --port 4433
    python examples/telemetry.py report --host localhost --port 4433 --count 500

Each datagram holds a sequence number and a reading; the collector counts gaps.
"""

import argparse
import math
import struct
from functools import partial

import trio

import phoenix_trio

ALPN = ("telemetry-example/1",)
READING = struct.Struct("!Id")


async def collect(options: argparse.Namespace) -> None:
    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        numbers: set[int] = set()
        total = 0.0
        try:
            while True:
                number, value = READING.unpack(await connection.receive_datagram())
                numbers.add(number)
                total += value
        except phoenix_trio.ConnectionClosedByPeer:
            pass
        expected = max(numbers, default=-1) + 1
        average = total / len(numbers) if numbers else math.nan
        print(f"{len(numbers)} of {expected} readings, average {average:.3f}", flush=True)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        server = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
        listeners = await nursery.start(server)
        print(f"listening on port {listeners[0].port}", flush=True)


async def report(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        for number in range(options.count):
            value = 20 + math.sin(number / 50)
            # In a hurry, the newest reading is worth more than the oldest.
            connection.send_datagram_nowait(READING.pack(number, value))
            await trio.sleep(1 / options.rate)
        await connection.ping()
        statistics = connection.statistics()
        print(f"sent {statistics.datagrams_sent}, {statistics.packets_lost} packets lost")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Telemetry over QUIC datagrams")
    parser.add_argument("role", choices=["collect", "report"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=500.0, help="readings a second")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(collect if chosen.role == "collect" else report, chosen)
