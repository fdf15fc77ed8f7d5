"""``phoenix-trio demo``: a real transfer between two processes of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

import click

from .failures import failures_in_one_line
from .options import SIZE, format_size
from .transfer import TransferError

__all__ = ["demo"]

_CHUNK = 1024 * 1024
_START_SECONDS = 30.0


@click.command()
@click.option("--size", type=SIZE, default="128MiB", show_default=True, help="Of the file.")
@failures_in_one_line
def demo(size: int) -> None:
    """Move a file between two processes of this machine, and check it.

    Makes a file of random bytes, starts "phoenix-trio receive" as a server, sends
    the file with "phoenix-trio send" over QUIC on 127.0.0.1, and compares the
    stored file's SHA-256 with the original's.  Everything is removed at the end.

    \b
    Example:
        phoenix-trio demo --size 500MB
    """
    with tempfile.TemporaryDirectory(prefix="phoenix-trio-demo-") as directory:
        original = os.path.join(directory, "random.bin")
        expected = _make_file(original, size)
        click.echo(f"made a file of {format_size(size)} of random bytes, SHA-256 {expected}")
        ready = os.path.join(directory, "ready.json")
        incoming = os.path.join(directory, "incoming")
        program = [sys.executable, "-m", "phoenix_trio"]
        server = subprocess.Popen(  # noqa: S603 - our own program, our own arguments
            [
                *(*program, "receive", incoming, "--host", "127.0.0.1", "--port", "0"),
                *("--count", "1", "--ready-file", ready),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            there = _wait_for(ready, server)
            click.echo(f"the server process {server.pid} listens on 127.0.0.1:{there['port']}")
            client = subprocess.run(  # noqa: S603 - as above
                [
                    *(*program, "send", f"127.0.0.1:{there['port']}", original),
                    *("--pin", there["fingerprint"]),
                ],
                check=False,
            )
            if client.returncode:
                raise TransferError(f"the client process failed (status {client.returncode})")
            if server.wait(timeout=_START_SECONDS):
                raise TransferError(f"the server process failed (status {server.returncode})")
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
        found = _hash_file(os.path.join(incoming, "random.bin"))
    if found != expected:
        raise TransferError(f"the stored file differs: SHA-256 {found}")
    click.echo(f"the stored file, read again from disk, has SHA-256 {found}: correct")


def _make_file(path: str, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for start in range(0, size, _CHUNK):
            chunk = os.urandom(min(_CHUNK, size - start))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait_for(ready: str, server: subprocess.Popen[bytes]) -> dict[str, str]:
    deadline = time.monotonic() + _START_SECONDS
    while not os.path.exists(ready):
        if server.poll() is not None:
            raise TransferError(f"the server process ended (status {server.returncode})")
        if time.monotonic() > deadline:
            raise TransferError("the server process does not begin to listen")
        time.sleep(0.05)
    with open(ready, encoding="utf-8") as file:
        there: dict[str, str] = json.load(file)
    return there
