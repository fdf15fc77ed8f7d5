"""A video-like stream at a constant rate, and the jitter of its arrival.

    phoenix-trio certificate --directory certificates
    python examples/video.py watch --port 4433
    python examples/video.py stream --host localhost --port 4433 --seconds 10

Frames are the items of a sequence: a generator makes one every 40 ms, every 25th a large
key frame. Jitter is how far the gaps between arrivals are from the gaps between departures
(RFC 3550 section 6.4.1).
"""

import argparse
import os
import struct
from collections.abc import AsyncIterator
from functools import partial

import trio

import phoenix_trio

HEADER = struct.Struct("!Id")
KEY_FRAME_EVERY = 25


async def watch(options: argparse.Namespace) -> None:
    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        frames = size = 0
        jitter = worst = 0.0
        transit: float | None = None
        async with await connection.receive_stream_data() as items:
            async for frame in items:
                _, sent_at = HEADER.unpack_from(frame)
                before, transit = transit, trio.current_time() - sent_at
                if before is not None:
                    off = abs(transit - before)
                    worst = max(worst, off)
                    jitter += (off - jitter) / 16
                frames += 1
                size += len(frame)
        print(
            f"{frames} frames, {size} bytes, jitter {jitter * 1e3:.2f} ms,"
            f" at most {worst * 1e3:.2f} ms",
            flush=True,
        )
        await connection.quic.wait_closed()

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    config = phoenix_trio.TransportConfig.video()
    async with (
        phoenix_trio.open_phoenix("video", config=config, server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


async def frames(options: argparse.Namespace) -> AsyncIterator[bytes]:
    average = options.megabits * 1e6 / 8 / options.fps
    # A key frame is five times as large as the others.
    usual = average * KEY_FRAME_EVERY / (KEY_FRAME_EVERY + 4)
    start = trio.current_time()
    for number in range(round(options.seconds * options.fps)):
        await trio.sleep_until(start + number / options.fps)
        size = usual * (5 if number % KEY_FRAME_EVERY == 0 else 1)
        yield HEADER.pack(number, trio.current_time()) + os.urandom(round(size))


async def stream(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    config = phoenix_trio.TransportConfig.video()
    async with (
        phoenix_trio.open_phoenix("video", config=config, tls=tls) as phoenix,
        phoenix.connect((options.host, options.port)) as connection,
    ):
        start = trio.current_time()
        count = await connection.stream_data(frames(options))
        seconds = trio.current_time() - start
        metrics = connection.metrics()
    rate = metrics.bytes_sent * 8 / seconds / 1e6
    print(f"sent {count} frames in {seconds:.2f} s, {rate:.2f} Mbit/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A video-like stream at a constant rate")
    parser.add_argument("role", choices=["watch", "stream"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fps", type=float, default=25.0, help="frames a second")
    parser.add_argument("--megabits", type=float, default=8.0, help="a second, on average")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(watch if chosen.role == "watch" else stream, chosen)
