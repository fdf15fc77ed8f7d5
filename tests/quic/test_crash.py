"""The other process is killed, and the survivor gets a clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import phoenix_trio
from tests.support import client_tls, server_pem

SERVER_PROGRAM = Path(__file__).with_name("crash_server.py")


@asynccontextmanager
async def server_process(directory: Path, port: int = 0) -> AsyncIterator[tuple[trio.Process, int]]:
    certificate, key = server_pem()
    (directory / "certificate.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    process = await trio.lowlevel.open_process(
        [
            sys.executable,
            str(SERVER_PROGRAM),
            str(directory / "certificate.pem"),
            str(directory / "key.pem"),
            str(port),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(20):
            line = bytearray()
            while not line.endswith(b"\n"):
                chunk = await process.stdout.receive_some(100)
                assert chunk, "the server process ended"
                line += chunk
        yield process, int(line)
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


async def test_a_killed_server_is_noticed_by_the_idle_timeout(tmp_path: Path) -> None:
    config = phoenix_trio.TransportConfig(max_idle_timeout=1.0)
    async with server_process(tmp_path) as (process, port):
        async with phoenix_trio.open_connection(
            "127.0.0.1", port, tls=client_tls(), config=config
        ) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            process.kill()
            await process.wait()
            with trio.fail_after(10), pytest.raises(phoenix_trio.ConnectionTimedOut):
                await stream.receive_some()


async def test_a_killed_and_restarted_server_resets_its_old_connections(tmp_path: Path) -> None:
    """The reset token is derived from the server's key, so the new process knows it."""
    async with server_process(tmp_path) as (process, port):
        async with phoenix_trio.open_connection("127.0.0.1", port, tls=client_tls()) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            process.kill()
            await process.wait()
            async with server_process(tmp_path, port):
                await stream.send_all(b"are you still there? " * 3)
                with (
                    trio.fail_after(10),
                    pytest.raises(phoenix_trio.StatelessReset, match="restarted") as caught,
                ):
                    await stream.receive_some()
                assert caught.value.by_peer
                assert isinstance(connection.close_reason, phoenix_trio.StatelessReset)
