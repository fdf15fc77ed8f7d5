"""``phoenix-trio demo``: a real transfer between two processes of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .failures import failures_in_one_line
from .options import SIZE, format_size
from .running import exit_on_terminate
from .transfer import TransferError

__all__ = ["demo"]

_CHUNK = 1024 * 1024
_START_SECONDS = 30.0
_END_SECONDS = 3.0


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
    with (
        exit_on_terminate(),
        tempfile.TemporaryDirectory(prefix="phoenix-trio-demo-") as directory,
    ):
        original = os.path.join(directory, "random.bin")
        expected = _make_file(original, size)
        click.echo(f"made a file of {format_size(size)} of random bytes, SHA-256 {expected}")
        ready = os.path.join(directory, "ready.json")
        incoming = os.path.join(directory, "incoming")
        program = [sys.executable, "-m", "phoenix_trio"]
        with _process(
            [
                *(*program, "receive", incoming, "--host", "127.0.0.1", "--port", "0"),
                *("--count", "1", "--ready-file", ready),
            ],
            is_quiet=True,
        ) as server:
            there = _wait_for(ready, server)
            click.echo(f"the server process {server.pid} listens on 127.0.0.1:{there['port']}")
            with _process(
                [
                    *(*program, "send", f"127.0.0.1:{there['port']}", original),
                    *("--pin", there["fingerprint"]),
                ]
            ) as client:
                if client.wait():
                    raise TransferError(f"the client process failed (status {client.returncode})")
            if server.wait(timeout=_START_SECONDS):
                raise TransferError(f"the server process failed (status {server.returncode})")
        found = _hash_file(os.path.join(incoming, "random.bin"))
    if found != expected:
        raise TransferError(f"the stored file differs: SHA-256 {found}")
    click.echo(f"the stored file, read again from disk, has SHA-256 {found}: correct")


@contextmanager
def _process(command: list[str], *, is_quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended when the block ends.

    In a session of its own: Ctrl-C is for this process, which ends the others.
    """
    output = subprocess.DEVNULL if is_quiet else None
    process = subprocess.Popen(  # noqa: S603 - our own program, our own arguments
        command, stdout=output, stderr=output, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()  # (without effect on one that has ended)
        try:
            process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
