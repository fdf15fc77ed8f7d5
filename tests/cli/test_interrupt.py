"""Ctrl-C ends each command with one line and the status 130: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

from phoenix_trio.cli.failures import failures_in_one_line

PROGRAM = [sys.executable, "-m", "phoenix_trio"]


def is_reached(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Its processes that run the library; Python itself starts others while it loads."""
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rsplit(")", 1)[1].split()
            command = (task.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"phoenix_trio" in command:
            found.append(int(task.parent.name))
    return found


def end_with(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    """As a terminal does it: the signal goes to the whole group of processes."""
    children = children_of(process.pid)
    os.killpg(process.pid, number)
    try:
        output, errors = process.communicate(timeout=15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    for child in children:
        assert not Path(f"/proc/{child}").exists(), "a child process is left"
    return process.returncode, output, errors


def start(*arguments: str, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return] # the keywords vary
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def receiver(directory: Path, *arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A receiver that listens, and the arguments with which to send to it."""
    process = start(
        *("receive", str(directory / "in"), "--host", "127.0.0.1", "--port", "0", *arguments)
    )
    assert process.stdout is not None
    process.stdout.readline()
    words = process.stdout.readline().split()  # "send with: phoenix-trio send HOST FILE --pin PIN"
    return process, ["send", words[4], "--pin", words[-1]]


def test_receive_ends_in_the_middle_of_a_transfer_and_send_without_data(tmp_path: Path) -> None:
    """The sender reads a pipe that stays silent: a thread of it is blocked."""
    server, to_server = receiver(tmp_path)
    client = start(*to_server, "-", "--name", "piped", stdin=subprocess.PIPE)
    assert client.stdin is not None
    client.stdin.write("hello")
    client.stdin.flush()
    part = tmp_path / "in" / ".phoenix-trio"
    is_reached(lambda: any(part.glob("piped*")), client)
    status, _, errors = end_with(server)
    assert (status, errors) == (130, "phoenix-trio: interrupted\n")
    pipe, client.stdin = client.stdin, None  # communicate() would close it
    status, _, errors = end_with(client)
    pipe.close()
    assert (status, errors.splitlines()[-1]) == (130, "phoenix-trio: interrupted")
    assert "Traceback" not in errors
    assert "Fatal" not in errors


def test_send_ends_while_it_waits_for_the_next_attempt(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"x")
    client = start("send", "127.0.0.1:9", str(payload), "--pin", "00" * 32, "--retry-delay", "60")
    assert client.stderr is not None
    assert "attempt 1 of 10" in client.stderr.readline()
    status, output, errors = end_with(client)
    assert (status, output, errors) == (130, "", "phoenix-trio: interrupted\n")


def test_the_demo_ends_its_processes_and_removes_its_files(tmp_path: Path) -> None:
    process = start("demo", "--size", "40MB", env=os.environ | {"TMPDIR": str(tmp_path)})
    is_reached(lambda: len(children_of(process.pid)) == 2, process)
    status, _, errors = end_with(process)
    assert (status, errors.splitlines()[-1]) == (130, "phoenix-trio: interrupted")
    assert "Traceback" not in errors
    assert errors.count("interrupted") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["serve-bench", "--port", "0", "--host", "127.0.0.1"], "measure with"),
        (["simulate", "--relay", "--size", "100", "--bandwidth", "5"], ""),
        (["simulate", "--size", "3000"], ""),
        (["bench", "--quick", "--only", "echoes*"], ""),
    ],
    ids=["serve-bench", "simulate --relay", "simulate", "bench"],
)
def test_measurements_end_with_their_processes(arguments: list[str], first: str) -> None:
    pytest.importorskip("phoenix_trio_bench")
    process = start(*arguments)
    if first:
        assert process.stdout is not None
        assert first in process.stdout.readline()
    elif "--size" in arguments and "--relay" not in arguments:
        # Its data fills the memory once it is at work.
        status = Path(f"/proc/{process.pid}/statm")
        is_reached(lambda: int(status.read_text().split()[1]) * 4096 > 150e6, process)
    else:
        is_reached(lambda: len(children_of(process.pid)) > 0, process)
    status_code, _, errors = end_with(process)
    assert (status_code, errors) == (130, "phoenix-trio: interrupted\n")


def test_sigterm_ends_a_receiver_in_good_order(tmp_path: Path) -> None:
    server, to_server = receiver(tmp_path)
    client = start(*to_server, "-", "--name", "piped", "--retries", "0", stdin=subprocess.PIPE)
    is_reached(lambda: any((tmp_path / "in" / ".phoenix-trio").glob("piped*")), client)
    status, _, errors = end_with(server, signal.SIGTERM)
    assert (status, errors) == (143, "")
    _, errors = client.communicate(timeout=10)
    assert client.returncode == 1
    assert "timed out" not in errors, "the sender was told at once"


def failing(error: BaseException) -> int:
    @failures_in_one_line
    def command() -> None:
        raise error

    result = CliRunner().invoke(click.command()(command))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code


def test_ctrl_c_counts_beside_failures_that_it_has_caused() -> None:
    inner = BaseExceptionGroup("", [KeyboardInterrupt(), trio.BrokenResourceError("gone")])
    assert failing(BaseExceptionGroup("", [RuntimeError(), inner])) == 130


def test_expected_failures_of_a_group_are_a_line_each() -> None:
    assert failing(ExceptionGroup("", [OSError("disk"), ValueError("option")])) == 1


def test_a_mistake_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ExceptionGroup):
        failing(ExceptionGroup("", [OSError("disk"), RuntimeError("a bug")]))


def test_loading_is_interrupted_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from phoenix_trio import cli

    monkeypatch.delitem(sys.modules, "phoenix_trio.cli.program", raising=False)

    class Interrupt:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "phoenix_trio.cli.program":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
