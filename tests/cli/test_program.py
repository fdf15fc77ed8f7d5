"""The program as users run it: real processes on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from phoenix_trio.cli.program import program

PROGRAM = [sys.executable, "-m", "phoenix_trio"]


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False, **more
    )


@contextmanager
def receiver(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    if "--port" not in arguments:
        arguments = (*arguments, "--port", "0")
    process = subprocess.Popen(
        [*PROGRAM, "receive", str(directory / "in"), "--host", "127.0.0.1"]
        + ["--ready-file", str(ready), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "command",
    [[], ["receive"], ["send"], ["certificate"], ["demo"], ["doctor"], ["top"], ["plot"]],
)
def test_help_teaches_with_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(program, [*command, "--help"], prog_name="phoenix-trio")
    assert result.exit_code == 0
    assert f"phoenix-trio {' '.join(command)}".strip() in result.output
    assert "phoenix-trio demo" in result.output or "Example" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["send", "nowhere:0", "x"], "HOST:PORT"),
        (["send", "host:1"], "FILE"),
        (["send", "host:1", "-"], "--name"),
        (["send", "host:1", "a", "b", "--name", "c"], "single file"),
        (["receive", "d", "--certificate", "x"], "--key"),
        (["receive", "d", "--max-file-size", "many"], "not a size"),
        (["demo", "--size", "-5"], "not a size"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_a_missing_file_is_one_clear_line() -> None:
    result = run("send", "127.0.0.1:1", "/no/such/file", "--pin", "00" * 32)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "/no/such/file" in result.stderr


def test_certificates_are_written_safely_and_work(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    assert run("certificate", "--directory", str(certificates)).returncode == 0
    for name in ("ca-key.pem", "server-key.pem", "client-key.pem"):
        assert stat.S_IMODE((certificates / name).stat().st_mode) == 0o600
    again = run("certificate", "--directory", str(certificates))
    assert again.returncode == 1
    assert "--force" in again.stderr
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(50_000))
    c = str(certificates)
    with receiver(
        tmp_path,
        *("--certificate", f"{c}/server.pem", "--key", f"{c}/server-key.pem"),
        *("--client-ca", f"{c}/ca.pem"),
    ) as (_, there):
        target = f"127.0.0.1:{there['port']}"
        refused = run("send", target, str(payload), "--ca", f"{c}/ca.pem")
        assert refused.returncode == 1
        assert "certificate" in refused.stderr
        sent = run(
            *("send", target, str(payload), "--ca", f"{c}/ca.pem"),
            *("--certificate", f"{c}/client.pem", "--key", f"{c}/client-key.pem"),
        )
        assert sent.returncode == 0, sent.stderr
    assert (tmp_path / "in" / "payload").read_bytes() == payload.read_bytes()


def test_files_and_standard_input_are_stored_and_verified(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(400_000))
    second.write_bytes(b"")
    with receiver(tmp_path, "--count", "3") as (process, there):
        target, pin = f"127.0.0.1:{there['port']}", there["fingerprint"]
        sent = run("send", target, str(first), str(second), "--pin", pin)
        assert sent.returncode == 0, sent.stderr
        assert hashlib.sha256(first.read_bytes()).hexdigest() in sent.stdout
        wrong = run("send", target, str(first), "--pin", "00" * 32)
        assert wrong.returncode == 1
        assert "pin" in wrong.stderr.lower()
        exists = run("send", target, str(first), "--pin", pin)
        assert exists.returncode == 1
        assert "exists" in exists.stderr
        piped = run("send", target, "-", "--name", "sub/piped", "--pin", pin, input="hello\n")
        assert piped.returncode == 0, piped.stderr
        assert process.wait(timeout=20) == 0, "--count ends the receiver"
    assert (tmp_path / "in" / "first").read_bytes() == first.read_bytes()
    assert (tmp_path / "in" / "second").read_bytes() == b""
    assert (tmp_path / "in" / "sub" / "piped").read_text() == "hello\n"


def test_programs_can_read_what_a_transfer_of_a_directory_has_done(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "file").write_bytes(b"hello")
    (tmp_path / "d" / ".hidden").write_bytes(b"")
    with receiver(tmp_path, "--json", "--count", "1") as (process, there):
        target = f"127.0.0.1:{there['port']}"
        sent = run("send", target, str(tmp_path / "d"), "--pin", there["fingerprint"], "--json")
        received, _ = process.communicate(timeout=20)
    assert (sent.returncode, sent.stderr) == (1, ""), "the hidden file was not sent"
    events = [json.loads(line) for line in sent.stdout.splitlines()]
    assert [event["event"] for event in events] == ["left_out", "stored", "total"]
    assert events[1]["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert events[2]["files"] == 1
    assert events[2]["missing"] == ["d/.hidden"]
    theirs = [json.loads(line) for line in received.splitlines()]
    assert [event["event"] for event in theirs] == ["listening", "stored", "total"]
    assert theirs[0]["fingerprint"] == there["fingerprint"]
    assert theirs[1]["path"] == "d/sub/file"
    assert (tmp_path / "in" / "d" / "sub" / "file").read_bytes() == b"hello"


def test_quiet_commands_say_nothing_and_errors_speak_of_options(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    with receiver(tmp_path, "--quiet", "--count", "1") as (process, there):
        target = f"127.0.0.1:{there['port']}"
        wrong = run("send", target, str(tmp_path / "file"))
        assert wrong.returncode == 1
        assert "trust its authority with --ca, or exactly it with --pin" in wrong.stderr
        quiet = ["send", target, str(tmp_path / "file"), "--pin", there["fingerprint"], "--quiet"]
        sent = run(*quiet)
        assert (sent.returncode, sent.stdout, sent.stderr) == (0, "", "")
        assert process.communicate(timeout=20)[0] == ""


def test_a_killed_receiver_costs_what_was_under_way_only(tmp_path: Path) -> None:
    """Killed in mid-transfer and started again: the sender goes on where it was."""
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(40_000_000))
    certificates = str(tmp_path / "certificates")
    run("certificate", "--directory", certificates)
    identity = ["--certificate", f"{certificates}/server.pem"]
    identity += ["--key", f"{certificates}/server-key.pem"]
    incoming = tmp_path / "in"
    with receiver(tmp_path, *identity) as (process, there):
        port = str(there["port"])
        sender = subprocess.Popen(
            [*PROGRAM, "send", f"127.0.0.1:{port}", str(payload)]
            + ["--ca", f"{certificates}/ca.pem", "--retry-delay", "0.3", "--retries", "30"]
            + ["--idle-timeout", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        parts = incoming / ".phoenix-trio"
        while sum(p.stat().st_size for p in parts.glob("payload.*.part")) < 2_000_000:
            assert sender.poll() is None, sender.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (incoming / "payload").exists()
    try:
        with receiver(tmp_path, *identity, "--port", port):
            output, errors = sender.communicate(timeout=60)
    finally:
        sender.kill()
        sender.communicate()
    assert sender.returncode == 0, errors
    assert "resumed at" in output
    assert (incoming / "payload").read_bytes() == payload.read_bytes()


def test_the_demo_moves_a_file_and_proves_it() -> None:
    result = run("demo", "--size", "3MB")
    assert result.returncode == 0, result.stderr
    assert "bit/s" in result.stdout
    assert result.stdout.rstrip().endswith("correct")
