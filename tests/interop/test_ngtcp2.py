"""ngtcp2's programs (Debian's ngtcp2-client and ngtcp2-server) against our HTTP/3 examples."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

import phoenix_trio
from tests.example_programs import EXAMPLES, example_programs
from tests.support import authority_pem, client_tls, server_pem, server_tls

SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
CLIENT = shutil.which("gtlsclient", path=SEARCH) or shutil.which("ngtcp2-client", path=SEARCH)
SERVER = shutil.which("gtlsserver", path=SEARCH) or shutil.which("ngtcp2-server", path=SEARCH)

pytestmark = pytest.mark.interop


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    chain, key = server_pem()
    (tmp_path / "server.pem").write_bytes(chain)
    (tmp_path / "server-key.pem").write_bytes(key)
    (tmp_path / "ca.pem").write_bytes(authority_pem())
    return tmp_path


@contextmanager
def our_server(directory: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "http3_server.py"), "--port", "0"]
        + ["--certificate", "server.pem", "--key", "server-key.pem"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening"), process.communicate(timeout=10)
        yield line.split()[-1]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert "crashed" not in errors, errors


def their_client(directory: Path, *arguments: str) -> None:
    assert CLIENT is not None
    result = subprocess.run(
        [CLIENT, "--exit-on-all-streams-close", "--no-quic-dump", *arguments],
        cwd=directory,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.skipif(CLIENT is None, reason="Debian's ngtcp2-client is not installed")
def test_their_client_downloads_from_our_server(directory: Path) -> None:
    (directory / "download").mkdir()
    with our_server(directory) as port:
        their_client(
            directory,
            *("-q", "--download", "download", "127.0.0.1", port, "https://localhost/10000000"),
        )
    body = (bytes(range(251)) * 40_000)[:10_000_000]
    assert (directory / "download" / "10000000").read_bytes() == body


@pytest.mark.skipif(CLIENT is None, reason="Debian's ngtcp2-client is not installed")
def test_their_client_uploads_to_our_server_with_key_updates(directory: Path) -> None:
    upload = directory / "upload"
    upload.write_bytes(os.urandom(10_000_000))
    (directory / "download").mkdir()
    with our_server(directory) as port:
        their_client(
            directory,
            *("-q", "--data", "upload", "--http-method", "POST", "--key-update", "50ms"),
            *("--download", "download", "127.0.0.1", port, "https://localhost/answer"),
        )
    answer = (directory / "download" / "answer").read_text()
    assert answer == f"10000000 {hashlib.sha256(upload.read_bytes()).hexdigest()}\n"


@pytest.mark.skipif(CLIENT is None, reason="Debian's ngtcp2-client is not installed")
def test_their_client_opens_many_streams_and_resumes_a_session(directory: Path) -> None:
    with our_server(directory) as port:
        for _ in range(2):
            their_client(
                directory,
                *("-q", "-n", "50", "--session-file", "session", "--tp-file", "parameters"),
                *("127.0.0.1", port, "https://localhost/2000"),
            )


@pytest.mark.skipif(CLIENT is None, reason="Debian's ngtcp2-client is not installed")
async def test_their_client_moves_to_our_preferred_address(directory: Path) -> None:
    seen: list[str] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        try:
            await programs.http3_server.handler(connection)
        finally:
            seen.append(connection.local_address[0])

    with trio.fail_after(30), example_programs("http3", "http3_server") as programs:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                partial(
                    phoenix_trio.serve,
                    handler,
                    0,
                    host="0.0.0.0",
                    tls=server_tls(),
                    alpn=programs.http3_server.ALPN,
                    preferred_address="127.0.0.2",
                )
            )
            target = ("127.0.0.1", str(listener.port), "https://localhost/10000000")
            await trio.run_process(
                [str(CLIENT), "--exit-on-all-streams-close", "--no-quic-dump", "-q", *target],
                capture_stdout=True,
                capture_stderr=True,
                cwd=directory,
            )
            while not seen:
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert seen == ["127.0.0.2"]


@pytest.mark.skipif(SERVER is None, reason="Debian's ngtcp2-server is not installed")
async def test_our_client_moves_to_their_preferred_address(directory: Path) -> None:
    (directory / "htdocs").mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.2", 0))
        there = probe.getsockname()
    option = f"--preferred-ipv4-addr={there[0]}:{there[1]}"
    with trio.fail_after(30), their_server(directory, option) as port:
        async with phoenix_trio.open_connection(
            "127.0.0.1", int(port), tls=client_tls(server_name="localhost"), alpn=("h3",)
        ) as connection:
            while connection.peer_address != there:
                await trio.sleep(0.05)
            await connection.ping()


@contextmanager
def their_server(directory: Path, *options: str) -> Iterator[str]:
    assert SERVER is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = subprocess.Popen(
        [SERVER, "-q", "--htdocs", "htdocs", *options, "127.0.0.1", port]
        + ["server-key.pem", "server.pem"],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def our_client(directory: Path, port: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "http3_client.py"), "localhost", port, *arguments]
        + ["--ca", "ca.pem"],
        cwd=directory,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.decode(errors="replace")


@pytest.mark.skipif(SERVER is None, reason="Debian's ngtcp2-server is not installed")
def test_our_client_downloads_from_and_uploads_to_their_server(directory: Path) -> None:
    (directory / "htdocs").mkdir()
    big = directory / "htdocs" / "big.bin"
    big.write_bytes(os.urandom(10_000_000))
    with their_server(directory) as port:
        for _ in range(3):
            output = our_client(directory, port, "/big.bin")
            assert "status 200" in output
            assert hashlib.sha256(big.read_bytes()).hexdigest() in output
        output = our_client(directory, port, "/big.bin", "--post", str(big))
        assert "status 200" in output
