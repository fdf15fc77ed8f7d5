"""Stock aioquic as client and as server, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import phoenix_trio
from tests.support import ALPN, authority_pem, client_tls, server_pem, server_tls

PEER = Path(__file__).with_name("aioquic_peer.py")


@asynccontextmanager
async def stock_server(directory: Path, *arguments: str) -> AsyncIterator[int]:
    chain, key = server_pem()
    (directory / "server.pem").write_bytes(chain)
    (directory / "server-key.pem").write_bytes(key)
    process = await trio.lowlevel.open_process(
        [sys.executable, str(PEER), "server", *arguments]
        + ["--certificate", str(directory / "server.pem")]
        + ["--key", str(directory / "server-key.pem")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(20):
            yield int(await process.stdout.receive_some(100))
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


async def exchange(connection: phoenix_trio.QuicConnection, size: int) -> None:
    data = os.urandom(size)
    received = bytearray()
    async with await connection.open_stream() as stream:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in stream:
                received += chunk
    assert received == data


@pytest.mark.parametrize("arguments", [(), ("--retry",)])
async def test_our_client_against_their_server(arguments: tuple[str, ...], tmp_path: Path) -> None:
    async with stock_server(tmp_path, *arguments) as port:
        with trio.fail_after(30):
            async with phoenix_trio.open_connection(
                "127.0.0.1", port, tls=client_tls(), alpn=ALPN
            ) as connection:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(exchange, connection, 1_000_000)
                await connection.update_keys()
                await exchange(connection, 10_000)
                await connection.send_datagram(b"datagram")
                assert await connection.receive_datagram() == b"datagram"


async def test_our_client_resumes_and_sends_early_data_to_their_server(tmp_path: Path) -> None:
    store = phoenix_trio.SessionStore()
    tls = client_tls(session_store=store, early_data=True)
    async with stock_server(tmp_path) as port:
        with trio.fail_after(20):
            for attempt in range(2):
                async with phoenix_trio.open_connection(
                    "127.0.0.1", port, tls=tls, alpn=ALPN
                ) as connection:
                    await exchange(connection, 5_000)
                    await connection.wait_confirmed()
                    assert connection.session_resumed is bool(attempt)
                    assert connection.early_data_accepted is bool(attempt)


async def run_stock_client(port: int, directory: Path, *arguments: str) -> dict[str, Any]:
    (directory / "ca.pem").write_bytes(authority_pem())
    with trio.fail_after(40):
        result = await trio.run_process(
            [sys.executable, str(PEER), "client", "--port", str(port)]
            + ["--ca", str(directory / "ca.pem"), *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr.decode()
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--size", "1000000", "--streams", "5"), {"resumed": False, "version": 1}),
        (("--moves",), {}),
        (("--version2",), {"version": 0x6B3343CF}),
        (("--resume",), {"resumed": True}),
        (("--resume", "--early", "--size", "3000"), {"resumed": True, "early": True}),
        (("--code", "77"), {}),
    ],
)
@pytest.mark.parametrize("retry", ["never", "always"])
async def test_their_client_against_our_server(
    retry: Any, arguments: tuple[str, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    if retry == "always" and "--early" in arguments:
        pytest.skip("aioquic 1.7.2's client loses 0-RTT data when it gets a Retry (ours must not)")
    ends: list[Exception | None] = []

    async def echo(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async def echo_datagrams() -> None:
            while True:
                await connection.send_datagram(await connection.receive_datagram())

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo_datagrams)
                while True:
                    nursery.start_soon(echo, await connection.accept_stream())
        finally:
            ends.append(connection.close_reason)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                0,
                host="127.0.0.1",
                tls=server_tls(early_data="--early" in arguments),
                alpn=ALPN,
                config=phoenix_trio.TransportConfig(retry=retry),
            )
        )
        found = await run_stock_client(listeners[0].port, tmp_path, *arguments)
        with trio.move_on_after(5):
            while len(ends) < (2 if "--resume" in arguments else 1):
                await trio.sleep(0.01)
        statistics = listeners[0].statistics()
        nursery.cancel_scope.cancel()
    assert expected.items() <= found.items()
    assert (statistics.retries_sent > 0) is (retry == "always")
    assert all(isinstance(end, phoenix_trio.ConnectionClosedByPeer) for end in ends)
    last = ends[-1]
    assert isinstance(last, phoenix_trio.ConnectionClosedByPeer)
    assert last.error_code == (77 if "--code" in arguments else 0)
