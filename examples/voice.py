"""Voice-like frames in real time: 50 a second each way, and a histogram of their round trips.

    phoenix-trio certificate --directory certificates
    python examples/voice.py answer --port 4433
    python examples/voice.py call --host localhost --port 4433 --seconds 10

A frame is 20 ms of sound in one datagram. A late frame is worthless, so nothing is sent
twice. The other side plays it back at once; the caller measures there and back.
"""

import argparse
import os
import struct
from functools import partial

import trio

import phoenix_trio

FRAME = struct.Struct("!Id")
SOUND = 160
EDGES = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)


async def answer(options: argparse.Namespace) -> None:
    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        frames = 0
        try:
            while True:
                frame = await connection.quic.receive_datagram()
                # The newest frame is worth more than the oldest one waiting.
                connection.quic.send_datagram_nowait(frame)
                frames += 1
        except phoenix_trio.ConnectionBroken:
            print(f"call ended after {frames} frames", flush=True)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    config = phoenix_trio.TransportConfig.realtime()
    async with (
        phoenix_trio.open_phoenix("voice", config=config, server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


async def call(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    config = phoenix_trio.TransportConfig.realtime()
    count = round(options.seconds * options.rate)
    latencies: list[float] = []

    async def speak(quic: phoenix_trio.QuicConnection) -> None:
        start = trio.current_time()
        for number in range(count):
            # By the clock, not by pauses: otherwise each delay would add up.
            await trio.sleep_until(start + number / options.rate)
            frame = FRAME.pack(number, trio.current_time()) + os.urandom(SOUND)
            # (Later than that, its place in the sound is over.)
            quic.send_datagram_nowait(frame, expires_after=0.2)

    async def listen(quic: phoenix_trio.QuicConnection) -> None:
        while len(latencies) < count:
            _, sent_at = FRAME.unpack_from(await quic.receive_datagram())
            latencies.append((trio.current_time() - sent_at) * 1e3)

    async with (
        phoenix_trio.open_phoenix("voice", config=config, tls=tls) as phoenix,
        phoenix.connect((options.host, options.port)) as connection,
    ):
        with trio.move_on_after(options.seconds + 1):  # frames that come later count as lost
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, connection.quic)
                await speak(connection.quic)
    show(latencies, count)


def show(latencies: list[float], count: int) -> None:
    print(f"{len(latencies)} of {count} frames came back")
    if not latencies:
        return
    ordered = sorted(latencies)
    for share in (50, 95, 99):
        print(f"{share} % within {ordered[(len(ordered) - 1) * share // 100]:.2f} ms")
    below = 0.0
    for edge in (*EDGES, float("inf")):
        found = sum(below <= latency < edge for latency in ordered)
        if found:
            print(f"{below:>6g} to {edge:<5g} ms {'#' * max(1, 60 * found // count)} {found}")
        below = edge


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Voice-like frames over QUIC datagrams")
    parser.add_argument("role", choices=["answer", "call"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=50.0, help="frames a second")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(answer if chosen.role == "answer" else call, chosen)
