"""Measures small messages a second: `python tools/measure_messages.py`.

Two processes on loopback exchange 64-byte messages, in turns each on a stream of its own and in
batches over one stream.  The clock stops when the receiving application has answered that it has
them all.  Prints medians and the ratio.  Bounded: about 30 seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phoenix_trio
from phoenix_trio.streams.batching import BatchReceiver, open_batching_channel
from phoenix_trio.streams.messages import receive_message, send_message
from phoenix_trio.streams.reader import StreamReader
from phoenix_trio_bench.server import development_tls

CONFIG = phoenix_trio.TransportConfig(max_unidirectional_streams=1000)
WORKERS = 100


async def serve() -> None:
    """The receiving process: prints its port, and ends with standard input."""
    tls, pin = development_tls()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        """Counts the messages; each bidirectional stream gives the number to wait for."""
        count = 0
        changed = trio.lowlevel.ParkingLot()

        async def take(stream: phoenix_trio.ReceiveStream) -> None:
            nonlocal count
            async with stream:
                reader = StreamReader(stream)
                await reader.read_varint()
                assert len(await receive_message(reader, max_size=1000)) == 64
            count += 1
            changed.unpark_all()

        async def take_all() -> None:
            async for stream in connection.incoming_receive_streams():
                nursery.start_soon(take, stream)

        async def answer(stream: phoenix_trio.QuicStream) -> None:
            nonlocal count
            async with stream:
                how = bytes(await stream.receive_some(1))
                wanted = int.from_bytes(bytes(await stream.receive_some(8)), "big")
                if how == b"1":
                    while count < wanted:
                        await changed.park()
                    count -= wanted
                else:
                    receiver = BatchReceiver(stream)
                    got = 0
                    while got < wanted:
                        got += len(await receiver.receive_many())
                    assert got == wanted
                await stream.send_all(b"!")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_all)
            async for stream in connection.incoming_streams():
                nursery.start_soon(answer, stream)

    async with trio.open_nursery() as nursery:
        start = partial(phoenix_trio.serve, handler, 0, host="127.0.0.1", tls=tls, config=CONFIG)
        (listener,) = await nursery.start(start)
        print(listener.port, pin, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def measure(port: int, pin: str, runs: int, single: int, batched: int) -> None:
    """The sending process."""
    message = bytes(64)
    rates: dict[str, list[float]] = {}
    tls = phoenix_trio.ClientTLS(pinned_sha256=pin)
    async with phoenix_trio.open_connection(
        "127.0.0.1", port, tls=tls, config=CONFIG
    ) as connection:
        await trio.sleep(0.5)  # the search for the path MTU

        async def one_stream_each() -> None:
            async def some(count: int) -> None:
                for _ in range(count):
                    await send_message(connection, message)

            async with await connection.open_stream() as stream:
                await stream.send_all(b"1" + single.to_bytes(8, "big"))
                async with trio.open_nursery() as nursery:
                    for worker in range(WORKERS):
                        nursery.start_soon(some, (single + worker) // WORKERS)
                assert await stream.receive_some() == b"!"

        async def one_by_one() -> None:
            async with await connection.open_stream() as stream:
                await stream.send_all(b"b" + batched.to_bytes(8, "big"))
                async with open_batching_channel(stream) as (send, _):
                    for _ in range(batched):
                        await send.send(message)
                assert await stream.receive_some() == b"!"

        async def many() -> None:
            async with await connection.open_stream() as stream:
                await stream.send_all(b"b" + batched.to_bytes(8, "big"))
                async with open_batching_channel(stream) as (send, _):
                    chunk = [message] * 1000
                    for _ in range(batched // 1000):
                        await send.send_many(chunk)
                assert await stream.receive_some() == b"!"

        ways = {
            "a stream each (100 tasks)": (one_stream_each, single),
            "batched, send()": (one_by_one, batched),
            "batched, send_many()": (many, batched),
        }
        for turn in range(runs + 1):
            for name, (work, count) in ways.items():
                start = time.perf_counter()
                await work()
                if turn:
                    rates.setdefault(name, []).append(count / (time.perf_counter() - start))
    first = statistics.median(next(iter(rates.values())))
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:>26}: {median:>10,.0f} messages a second  {median / first:6.1f}x"
            f"   ({min(values):,.0f} to {max(values):,.0f})"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="small messages a second")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--single", type=int, default=3000, help="messages, a stream each")
    parser.add_argument("--batched", type=int, default=300_000, help="messages in batches")
    parser.add_argument("--serve", action="store_true", help="be the receiving process")
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port, pin = server.stdout.readline().split()
        try:
            trio.run(measure, int(port), pin, options.runs, options.single, options.batched)
        finally:
            server.stdin.close()


if __name__ == "__main__":
    main()
