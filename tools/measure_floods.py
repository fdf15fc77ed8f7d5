"""Measures the cost of one hostile connection to a neighbour, in real processes over loopback.

A server runs on one processor.  On the other one, a client uploads, and an attacker with one
connection sends a few thousand packets a second: first harmless ones, then those of each flood
in ``tests/hostile/floods.py``.  Prints the client's rate, and its share of the rate beside as
many harmless packets.

    python tools/measure_floods.py [--rate 4000] [--seconds 2] [flood ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import trio

import phoenix_trio
from phoenix_trio.quic.setup import make_client_engine
from tests.engine_packets import seal_short
from tests.hostile.floods import FLOODS, Attacker, Flood, harmless
from tests.support import ALPN, authority, client_tls, server_pem, server_tls, take_apart

HOST = "127.0.0.1"


def pin(processor: int) -> None:
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[processor % len(processors)]})


# ------------------------------------------------------------------ server


def serve(ready: Any) -> None:
    pin(0)

    async def discard(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_streams():
            async for _ in stream:
                pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                lambda task_status: phoenix_trio.serve(
                    discard,
                    0,
                    host=HOST,
                    tls=server_tls(),
                    alpn=ALPN,
                    on_error=lambda *_: None,
                    task_status=task_status,
                )
            )
            ready.put(listener.port)
            await trio.sleep(600)

    trio.run(main)


# ------------------------------------------------------------------ honest client


def upload(port: int, seconds: float, result: Any) -> None:
    """Report the bytes a second acknowledged by the server, after a warm-up."""
    pin(1)

    async def main() -> None:
        async with phoenix_trio.open_connection(
            HOST, port, tls=client_tls(), alpn=ALPN
        ) as connection:
            async with await connection.open_stream() as stream:
                with trio.move_on_after(0.7 + seconds):
                    async with trio.open_nursery() as nursery:

                        async def send() -> None:
                            while True:
                                await stream.send_all(bytes(1 << 20))

                        nursery.start_soon(send)
                        await trio.sleep(0.7)
                        before = connection.statistics().stream_bytes_acknowledged
                        began = time.monotonic()
                        await trio.sleep(seconds - 0.1)
                        after = connection.statistics().stream_bytes_acknowledged
                        result.put((after - before) / (time.monotonic() - began))
                connection.abort(0)

    trio.run(main)


# ------------------------------------------------------------------ attacker


def attack(port: int, flood: Flood, rate: float, seconds: float, result: Any) -> None:
    pin(1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((HOST, port))
    sock.settimeout(0.002)
    server = (HOST, port)
    engine = make_client_engine(
        config=phoenix_trio.TransportConfig(),
        client_tls=client_tls(),
        host=HOST,
        port=port,
        alpn=ALPN,
        reset_token=lambda cid: (cid * 2)[:16],
        key_log=None,
        trace_logger=None,
    )

    def turn() -> None:
        now = time.monotonic()
        deadline = engine.next_deadline()
        if deadline is not None and deadline <= now:
            engine.on_timer(now)
        for data in take_apart(engine.transmit(now)):
            sock.send(data)
        engine.take_events()

    def hear(limit: int) -> None:
        for _ in range(limit):
            try:
                data = sock.recv(65536)
            except (TimeoutError, BlockingIOError, ConnectionRefusedError):
                return
            engine.receive_run(data, 0, len(data), server, time.monotonic())

    engine.start(server, time.monotonic())
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        turn()
        hear(1)
    sock.settimeout(0)
    attacker = Attacker(engine)
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds and not engine.is_ending:
        for _ in range(min(200, int(elapsed * rate) - attacker.packets)):
            data = seal_short(engine, flood(attacker))
            attacker.packets += 1
            try:
                sock.send(data)
            except (BlockingIOError, ConnectionRefusedError):
                pass
        turn()
        hear(20)
        time.sleep(0.002)
    result.put((attacker.packets, time.monotonic() - began, engine.is_ending))


# ------------------------------------------------------------------ measurement


def processor_time(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(flood: Flood | None, rate: float, seconds: float) -> tuple[float, str]:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    server = context.Process(target=serve, args=(queue,), daemon=True)
    server.start()
    port = queue.get(timeout=10)
    results, attacks = context.Queue(), context.Queue()
    client = context.Process(target=upload, args=(port, seconds, results), daemon=True)
    processes = [server, client]
    busy = 0.0
    if flood is not None:
        # (Its connection takes a second; the flood begins while the client warms up.)
        arguments = (port, flood, rate, seconds + 0.9, attacks)
        processes.append(context.Process(target=attack, args=arguments, daemon=True))
        processes[-1].start()
        time.sleep(0.7)
    client.start()
    note = ""
    try:
        speed = results.get(timeout=seconds + 20)
        busy = processor_time(server.pid)
        if flood is not None:
            packets, took, ended = attacks.get(timeout=seconds + 20)
            note = f"{packets / took:,.0f} packets/s, server {busy:.1f} s"
            note += ", closed by the server" * ended
    finally:
        for process in processes:
            process.kill()
            process.join()
    return speed, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=4000, help="packets a second")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("flood", nargs="*")
    options = parser.parse_args()
    authority(), server_pem()  # before processes fork
    alone, _ = measure(None, 0, options.seconds)
    print(f"{'alone':24}{alone / 1e6:8.0f} MB/s", flush=True)
    base, note = measure(harmless, options.rate, options.seconds)
    print(f"{'harmless':24}{base / 1e6:8.0f} MB/s  1.00  {note}", flush=True)
    for flood in FLOODS:
        if options.flood and flood.__name__ not in options.flood:
            continue
        speed, note = measure(flood, options.rate, options.seconds)
        print(
            f"{flood.__name__:24}{speed / 1e6:8.0f} MB/s  {speed / base:4.2f}  {note}", flush=True
        )


if __name__ == "__main__":
    main()
