"""Both ends for test_namespaces.py, each run inside a network namespace of its own.

``serve DIRECTORY HOST CONFIG`` echoes each stream, and then sends JSON with the server's view of
the connection; CONFIG is JSON for TransportConfig.  ``send DIRECTORY HOST`` sends 5 MB, receives
them again, and prints both ends' view.  ``visit DIRECTORY HOST`` tries everything that a server
answers.  ``stay DIRECTORY HOST`` pings its connection for each line that it reads.
``dial DIRECTORY HOST`` prints how dialling ends, and after how many seconds.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

import phoenix_trio

PORT = 4433
SIZE = 5_000_000


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            data = bytearray()
            async for chunk in stream:
                data += chunk
            await stream.send_all(bytes(data))
            await stream.wait_acked()
            counters = connection._driver.socket.statistics
            report = {
                "path_mtu": connection.statistics().path_mtu,
                "local": connection.local_address[0],
                "gso": counters.gso,
                "ecn": counters.ecn,
                "validated": connection.statistics().ecn_validated,
                "retries": connection._driver.statistics().retries_sent,
                "datagrams per call": counters.datagrams_sent / counters.send_calls,
            }
            await stream.send_all(json.dumps(report).encode())


async def serve(directory: Path, host: str, config: str) -> None:
    tls = phoenix_trio.ServerTLS(directory / "certificate.pem", directory / "key.pem")
    settings = phoenix_trio.TransportConfig(**json.loads(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(phoenix_trio.serve, answer, PORT, host=host, tls=tls, config=settings)
        )
        print("ready", flush=True)


@asynccontextmanager
async def connect(directory: Path, host: str) -> AsyncIterator[phoenix_trio.QuicConnection]:
    tls = phoenix_trio.ClientTLS(ca=directory / "ca.pem", server_name="localhost")
    async with phoenix_trio.open_connection(host, PORT, tls=tls) as connection:
        yield connection


async def exchange(connection: phoenix_trio.QuicConnection, size: int) -> dict[str, Any]:
    """Send bytes and receive them again; returns the server's report."""
    data = random.Random(1).randbytes(size)
    async with await connection.open_stream() as stream:
        await stream.send_all(data)
        await stream.send_eof()
        received = bytearray()
        async for chunk in stream:
            received += chunk
    report: dict[str, Any] = json.loads(received[size:])
    report["intact"] = received[:size] == data
    return report


async def send(directory: Path, host: str) -> None:
    with trio.fail_after(60):
        async with connect(directory, host) as connection:
            report = await exchange(connection, SIZE)
            report["our path_mtu"] = connection.statistics().path_mtu
            print(json.dumps(report))


async def ask(host: str, data: bytes) -> bytes:
    """The answer from exactly that address."""
    found = await trio.socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)
    with trio.socket.socket(found[0][0], socket.SOCK_DGRAM) as stranger:
        await stranger.connect(found[0][4])
        await stranger.send(data)
        with trio.move_on_after(3):
            return await stranger.recv(2000)
        return b""


async def visit(directory: Path, host: str) -> None:
    with trio.fail_after(30):
        async with connect(directory, host) as connection:
            report = await exchange(connection, 3_000_000)
            try:
                async with connect(directory, host):
                    report["refused"] = "no"
            except phoenix_trio.HandshakeFailed as error:
                report["refused"] = str(error)
        unknown = b"\xc0\x1a\x2a\x3a\x4a" + b"\x08" + bytes(8) + b"\x08" + bytes(8)
        report["versions"] = (await ask(host, unknown.ljust(1200, b"\0"))).hex()
        report["reset"] = len(await ask(host, b"\x40" + bytes(99)))
        print(json.dumps(report))


async def stay(directory: Path, host: str) -> None:
    async with connect(directory, host) as connection:
        await exchange(connection, 10)
        print("connected", flush=True)
        lines = trio.lowlevel.FdStream(sys.stdin.fileno())
        async for _ in lines:
            try:
                with trio.fail_after(10):
                    await connection.ping()
                print("alive", flush=True)
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                print(type(error).__name__, flush=True)
                return


async def dial(directory: Path, host: str) -> None:
    started = trio.current_time()
    try:
        async with connect(directory, host):
            raise AssertionError("nothing listens there")
    except phoenix_trio.HandshakeFailed as error:
        seconds = trio.current_time() - started
        number = getattr(error, "errno", None)
        print(json.dumps({"error": type(error).__name__, "errno": number, "seconds": seconds}))


if __name__ == "__main__":
    command, directory, *rest = sys.argv[1:]
    program = {"serve": serve, "send": send, "visit": visit, "stay": stay, "dial": dial}[command]
    trio.run(program, Path(directory), *rest)
