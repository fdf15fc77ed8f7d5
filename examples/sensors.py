"""A fleet of sensors, each of which batches its readings to one collector.

    phoenix-trio certificate --directory certificates
    python examples/sensors.py collect --port 4433
    python examples/sensors.py fleet --host localhost --port 4433 --sensors 200

Readings wait up to a tenth of a second for further ones; an alarm leaves at once, together
with the readings before it. The collector checks that each sensor's readings arrive once and
in order, and prints how much memory it has taken.
"""

import argparse
import random
import resource
import struct
from functools import partial

import trio

import phoenix_trio

READING = struct.Struct("!IId")
ALARM = 3.0


def memory() -> float:
    """The most resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def collect(options: argparse.Namespace) -> None:
    readings = alarms = sensors = 0
    halfway = 0.0

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        nonlocal readings, alarms, sensors, halfway
        async with (
            await connection.accept_stream() as stream,
            connection.open_batching_channel(stream) as (send, receive),
        ):
            expected = 0
            async for reading in receive:
                _, number, value = READING.unpack(reading)
                if number != expected:
                    raise ValueError(f"reading {number} came instead of {expected}")
                expected += 1
                readings += 1
                alarms += value > ALARM
            await send.send(READING.pack(0, expected, 0.0))
        sensors += 1
        if sensors == options.sensors // 2:
            halfway = memory()
        if sensors == options.sensors:
            growth = memory() - halfway
            print(f"{readings} readings of {sensors} sensors, {alarms} alarms", flush=True)
            print(f"memory {memory():.0f} MiB, {growth:.1f} since half of them", flush=True)
        await connection.quic.wait_closed()

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    config = phoenix_trio.TransportConfig.sensors()
    async with (
        phoenix_trio.open_phoenix("collector", config=config, server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


async def fleet(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    config = phoenix_trio.TransportConfig.sensors()
    starting = trio.CapacityLimiter(20)  # handshakes at once
    batches = most = sent = 0

    async def sensor(endpoint: phoenix_trio.Endpoint, number: int) -> None:
        nonlocal batches, most, sent
        # Each sensor is a device of its own: a connection of its own, too.
        await starting.acquire()
        async with endpoint.connect(options.host, options.port, tls=tls) as connection:
            starting.release()
            async with (
                await connection.open_stream() as stream,
                phoenix_trio.open_batching_channel(
                    stream, max_delay=config.batch_delay, max_batch_bytes=config.batch_bytes
                ) as (send, receive),
            ):
                alarms, started = 0, trio.current_time()
                for count in range(options.readings):
                    value = random.gauss(0, 1)
                    reading = READING.pack(number, count, value)
                    alarms += value > ALARM
                    await send.send(reading, express=value > ALARM)
                    await trio.sleep(1 / options.rate)
                await send.aclose()
                # One for each alarm, one whenever the delay is over, and the rest at the end.
                duration = trio.current_time() - started
                most += alarms + int(duration / config.batch_delay) + 1
                _, received, _ = READING.unpack(await receive.receive())
                assert received == options.readings
                async for _ in receive:  # to its end, so that the collector ends in good order
                    raise ValueError("the collector says too much")
                batches += send.batches_sent
                sent += received

    async with phoenix_trio.Endpoint.open(config=config) as endpoint:
        async with trio.open_nursery() as nursery:
            for number in range(options.sensors):
                nursery.start_soon(sensor, endpoint, number)
    print(f"sent {sent} readings in {batches} batches, of {most} which alarms and delay permit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fleet of sensors and their collector")
    parser.add_argument("role", choices=["collect", "fleet"])
    parser.add_argument("--sensors", type=int, default=200)
    parser.add_argument("--readings", type=int, default=200, help="of each sensor")
    parser.add_argument("--rate", type=float, default=100.0, help="readings a second of each")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(collect if chosen.role == "collect" else fleet, chosen)
