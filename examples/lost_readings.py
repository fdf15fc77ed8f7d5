"""Readings of many sensors in datagrams: a lost one is replaced by the newest of its sensor.

    phoenix-trio certificate --directory certificates
    python examples/lost_readings.py --loss 0.2

Streams would send lost bytes again, and hold back all that comes behind them.  Here each reading
is a datagram of its own.  When one is lost, the sensor's newest reading leaves, which is not
always the lost one.  Both sides run in this program, over a simulated network that loses datagrams.
"""

import argparse
import struct
from contextlib import suppress
from functools import partial

import trio

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork

ALPN = ("readings/1",)
SERVER, CLIENT, PORT = "10.0.0.1", "10.0.0.2", 4433
#: Number of the sensor, number of the reading, value.
READING = struct.Struct("!HIf")
SENSORS = 40


class Station:
    """Sends what its sensors say."""

    def __init__(self, connection: phoenix_trio.QuicConnection) -> None:
        self._connection = connection
        self._newest: dict[int, bytes] = {}
        self.repaired = 0

    async def measure(self, rounds: int) -> None:
        for number in range(rounds):
            for sensor in range(SENSORS):
                self._newest[sensor] = READING.pack(sensor, number, 20.0 + sensor / 10)
                await self._connection.send_datagram(self._newest[sensor], tag=sensor)
            await trio.sleep(0.02)

    async def repair(self) -> None:
        async for sensor in self._connection.lost_datagrams():
            self.repaired += 1
            # (The server may have closed the connection meanwhile: it has all.)
            with suppress(phoenix_trio.ConnectionClosedByPeer):
                await self._connection.send_datagram(self._newest[sensor], tag=sensor)


async def watch(connection: phoenix_trio.QuicConnection, rounds: int) -> None:
    """Until the last reading of each sensor is there; then end the connection."""
    seen: dict[int, int] = {}
    while len(seen) < SENSORS or min(seen.values()) < rounds - 1:
        sensor, number, _ = READING.unpack(await connection.receive_datagram())
        # (Readings overtake each other, and a copy may come.)
        seen[sensor] = max(number, seen.get(sensor, 0))
    print(f"the last readings of {len(seen)} sensors have arrived", flush=True)
    await connection.aclose()


async def main(options: argparse.Namespace) -> None:
    network = SimulatedNetwork(delay=0.01, loss=options.loss)
    network.add_name("localhost", SERVER)
    server_tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    client_tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with trio.open_nursery() as nursery:
        serve = partial(
            phoenix_trio.serve,
            partial(watch, rounds=options.rounds),
            PORT,
            tls=server_tls,
            alpn=ALPN,
            network=network.host(SERVER),
        )
        await nursery.start(serve)
        async with phoenix_trio.open_connection(
            "localhost", PORT, tls=client_tls, alpn=ALPN, network=network.host(CLIENT)
        ) as connection:
            station = Station(connection)
            nursery.start_soon(station.measure, options.rounds)
            await station.repair()  # until the server has all, and closes the connection
        print(f"{station.repaired} readings were replaced on the way", flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lost readings are replaced by newer ones")
    parser.add_argument("--loss", type=float, default=0.2, help="share of packets")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
