"""Worker processes for the memory and scale tests: each prints lines of JSON, reads commands."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from functools import partial
from typing import Any

import trio

import phoenix_trio

ALPN = ("test/1",)
CHUNK = 256 * 1024


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def resident() -> int:
    """Bytes of memory that this process occupies (RSS)."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def heard() -> str:
    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.strip()


async def run_receiver(certificate: str, key: str, **config: Any) -> None:
    """Accept streams and read nothing until told to; then read and hash everything."""
    go = trio.Event()
    finished: list[str] = []

    async def read(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            await go.wait()
            digest = hashlib.sha256()
            async for chunk in stream:
                digest.update(chunk)
            finished.append(digest.hexdigest())
            await stream.send_all(digest.digest())

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        connections.append(connection)
        async with trio.open_nursery() as streams:
            async for stream in connection.incoming_streams():
                streams.start_soon(read, stream)

    connections: list[phoenix_trio.QuicConnection] = []
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                0,
                host="127.0.0.1",
                tls=phoenix_trio.ServerTLS(certificate, key),
                alpn=ALPN,
                config=phoenix_trio.TransportConfig(**config),
            )
        )
        say(port=listeners[0].port)
        while (command := await heard()) != "end":
            if command == "measure":
                buffered = [c.statistics().receive_buffer_bytes for c in connections]
                say(resident=resident(), buffered=sum(buffered), connections=len(connections))
            elif command == "read":
                go.set()
        nursery.cancel_scope.cancel()


async def run_sender(port: str, ca: str, streams: str, size: str, **config: Any) -> None:
    """Offer `size` bytes on each of `streams` streams at once; measure when told to."""
    async with phoenix_trio.open_connection(
        "127.0.0.1",
        int(port),
        tls=phoenix_trio.ClientTLS(ca=ca),
        alpn=ALPN,
        config=phoenix_trio.TransportConfig(**config),
    ) as connection:
        verified = 0
        # One for all streams, so that only the library's buffers are measured.
        chunk = memoryview(bytes(range(256)) * (CHUNK // 256))

        async def offer() -> None:
            nonlocal verified
            digest = hashlib.sha256()
            async with await connection.open_stream() as stream:
                for start in range(0, int(size), CHUNK):
                    part = chunk[: min(CHUNK, int(size) - start)]
                    digest.update(part)
                    await stream.send_all(part)
                await stream.send_eof()
                answer = b"".join([bytes(piece) async for piece in stream])
            if answer == digest.digest():
                verified += 1

        say(resident=resident())
        async with trio.open_nursery() as nursery:
            for _ in range(int(streams)):
                nursery.start_soon(offer)
            while (command := await heard()) != "wait":
                if command == "measure":
                    statistics = connection.statistics()
                    say(
                        resident=resident(),
                        buffered=statistics.send_buffer_bytes,
                        written=statistics.stream_bytes_sent,
                    )
                elif command == "stop":
                    nursery.cancel_scope.cancel()
                    break
        say(verified=verified)


async def run_echo_server(certificate: str, key: str) -> None:
    """Serve any number of connections and streams; measure when told to."""

    async def echo(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async with trio.open_nursery() as streams:
            async for stream in connection.incoming_streams():
                streams.start_soon(echo, stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                0,
                host="127.0.0.1",
                tls=phoenix_trio.ServerTLS(certificate, key),
                alpn=ALPN,
            )
        )
        say(port=listeners[0].port)
        while (command := await heard()) != "end":
            if command == "measure":
                statistics = listeners[0].statistics()
                say(resident=resident(), connections=statistics.connections - statistics.handshakes)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    roles = {"receiver": run_receiver, "sender": run_sender, "echo": run_echo_server}
    positional = [a for a in sys.argv[2:] if "=" not in a]
    named = {k: int(v) for k, v in (a.split("=") for a in sys.argv[2:] if "=" in a)}
    trio.run(partial(roles[sys.argv[1]], *positional, **named))
