"""``phoenix-trio top``: rates, tables, and the program beside a running application."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from click.testing import CliRunner, Result
from rich.console import Console
from trio.testing import MockClock

from phoenix_trio.cli import top as command
from phoenix_trio.cli.program import program
from phoenix_trio.cli.top_view import SORTS, Look, Rates, render
from phoenix_trio.inspection import ConnectionView, PoolView, Snapshot, TransportView
from tests.inspection.test_format import filled, snapshot

ROOT = Path(__file__).parents[2]


def link(number: int, **given: Any) -> ConnectionView:
    small = {"rtt": 0.02, "packets_sent": 1000, "packets_lost": 0, "streams": 3}
    small |= {"congestion_window": 20480, "bytes_in_flight": 10240}
    values = {"id": number, "peer": f"10.0.0.{number}:4433", "state": "open"}
    return filled(ConnectionView, **(small | values | given))  # type: ignore[no-any-return]


def at(seconds: float, *links: ConnectionView, **given: Any) -> Snapshot:
    """A snapshot with one transport, whose connections are given."""
    base = snapshot()
    counts = {field.name: 0 for field in attrs.fields(TransportView) if str(field.type) == "int"}
    pool = attrs.evolve(
        base.transports[0].pool, **{f.name: 1 for f in attrs.fields(PoolView) if f.type == "int"}
    )
    transport = attrs.evolve(base.transports[0], connections=links, pool=pool, **(counts | given))
    return attrs.evolve(base, time=seconds, transports=(transport,))  # type: ignore[no-any-return]


def shown(look: Look, sort: str = "throughput", **options: Any) -> str:
    console = Console(width=options.get("width", 140))
    with console.capture() as capture:
        console.print(render(look, sort, **options))
    return capture.get()


# ------------------------------------------------------------------ rates and tables


def test_rates_are_those_between_two_looks() -> None:
    earlier = at(10.0, link(1, bytes_sent=1000, bytes_received=0), total_bytes_sent=500)
    now = at(
        12.0,
        link(1, bytes_sent=251_000, bytes_received=25),
        link(2, bytes_sent=9, bytes_received=9),
        total_bytes_sent=250_500,
    )
    look = Look.between(earlier, now)
    assert look.rates == {1: Rates(1e6, 100.0)}
    assert look.delivered == (Rates(1e6, 0.0),)
    text = shown(look)
    assert "1.0 Mbit/s" in text
    assert "100 bit/s" in text


def test_the_first_look_has_no_rates() -> None:
    look = Look.between(None, at(1.0, link(1)))
    assert look.rates == {}
    assert look.delivered == (None,)
    (line,) = [line for line in shown(look).splitlines() if "10.0.0.1" in line]
    assert line.split()[-2:] == ["-", "-"]


def test_a_process_that_was_started_again_has_no_rates() -> None:
    earlier, now = at(1.0, link(1, bytes_sent=0)), at(2.0, link(1))
    assert Look.between(attrs.evolve(earlier, process=7), now).rates == {}


@pytest.mark.parametrize("sort", list(SORTS))
def test_connections_are_sorted_by_each_column(sort: str) -> None:
    first = link(1, rtt=None, bytes_in_flight=1, streams=1, bytes_sent=5, bytes_received=5)
    second = link(2, packets_lost=9, bytes_sent=9, bytes_received=9)
    before = (
        attrs.evolve(first, bytes_sent=5, bytes_received=5),
        attrs.evolve(second, bytes_sent=0, bytes_received=0),
    )
    text = shown(Look.between(at(1.0, *before), at(2.0, first, second)), sort)
    is_first_on_top = text.index("10.0.0.1") < text.index("10.0.0.2")
    assert is_first_on_top == (sort == "peer")


def test_a_short_terminal_shows_the_first_connections_and_counts_the_others() -> None:
    look = Look.between(None, at(1.0, *(link(n) for n in range(1, 41)), connections_left_out=2))
    for rows in (20, 30, 45):
        text = shown(look, "peer", rows=rows)
        assert rows - 3 <= len(text.splitlines()) <= rows
    text = shown(look, "peer", rows=20)
    assert "and 31 more connections" in text
    assert len(shown(look, "peer").splitlines()) > 40


def test_a_narrow_terminal_keeps_the_main_columns_whole() -> None:
    text = shown(Look.between(None, at(1.0, link(1, peer="192.168.100.100:44333"))), width=80)
    assert "to 192.168.100.100:44333" in text or "from 192.168.100.100:44333" in text
    assert "receiving" in text
    assert "cwnd" not in text


def test_text_of_a_hostile_application_cannot_command_the_terminal() -> None:
    base = at(1.0, link(1, peer="\x1b[2J[red]x", state="\x07"))
    hostile = attrs.evolve(base.transports[0], name="\x1b]0;title\x07[bold]")
    look = Look.between(None, attrs.evolve(base, transports=(hostile,)))
    console = Console(width=200, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(render(look, "peer", width=200))
    text = capture.get()
    assert "\x1b[2J" not in text
    assert "\x1b]0" not in text
    assert "\x07" not in text
    assert "[red]x" in text


async def test_a_slow_application_is_not_asked_in_a_burst_afterwards(
    autojump_clock: MockClock,
) -> None:
    asked: list[float] = []

    class Slow:
        async def look(self) -> Snapshot:
            asked.append(trio.current_time())
            await trio.sleep(5 if len(asked) == 2 else 0)
            return at(trio.current_time() + 1)

    start = trio.current_time()
    slow: Any = Slow()
    async with aclosing(command.looks(slow, 1.0)) as found:
        for _ in range(4):
            await anext(found)
    assert [each - start for each in asked] == pytest.approx([0, 1, 6, 7])


async def test_an_application_that_does_not_answer_is_given_up(autojump_clock: MockClock) -> None:
    class Stopped:
        look = staticmethod(trio.sleep_forever)

    stopped: Any = Stopped()
    with pytest.raises(trio.BrokenResourceError, match="not answered for 10 seconds"):
        await anext(command.looks(stopped, 1.0))


# ------------------------------------------------------------------ which application


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {"mover-17": "/a", "mover-18": "/b", "move-170": "/c"}
    monkeypatch.setattr(command, "find_applications", lambda: found)
    return found


@pytest.mark.parametrize(
    ("wanted", "path"),
    [("mover-17", "/a"), ("18", "/b"), ("move", "/c"), ("170", "/c"), ("/x/y.sock", "/x/y.sock")],
)
def test_an_application_is_found_by_name_process_or_path(
    running: dict[str, str], wanted: str, path: str
) -> None:
    assert command.find_socket(wanted) == path


@pytest.mark.parametrize(
    ("wanted", "text"),
    [(None, "move-170, mover-17, mover-18"), ("mover", "mover-17, mover-18"), ("x", "is called")],
)
def test_applications_to_choose_from_are_listed(
    running: dict[str, str], wanted: str | None, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        command.find_socket(wanted)


def test_the_only_application_needs_no_name(running: dict[str, str]) -> None:
    del running["mover-17"], running["mover-18"]
    assert command.find_socket(None) == "/c"
    running.clear()
    with pytest.raises(ValueError, match="no application of yours can be inspected"):
        command.find_socket(None)


# ------------------------------------------------------------------ the program


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "COLUMNS": "120",
        "LINES": "40",
    }


@pytest.fixture
def application(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "inspected_program.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.communicate("", timeout=10)


TOP = [sys.executable, "-m", "phoenix_trio", "top", "--interval", "0.1"]


def test_top_shows_a_running_application_without_a_terminal(
    application: subprocess.Popen[str],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", environment["XDG_RUNTIME_DIR"])

    def run(*more: str) -> Result:
        return CliRunner().invoke(program, ["top", "--interval", "0.1", *more])

    result = run("--once")
    assert result.exit_code == 0, result.output
    assert "mover" in result.stdout
    assert "to 10.0.0.1:4433" in result.stdout
    record = json.loads(run("--once", "--json", "mover").stdout)
    assert record["process"] == application.pid
    assert record["transports"][0]["connections"][0]["send_rate"] > 0
    refused = run()
    assert refused.exit_code == 2
    assert "no terminal" in refused.output


def test_ctrl_c_ends_the_live_view(
    application: subprocess.Popen[str], environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    try:
        viewer = subprocess.Popen([*TOP, "mover"], env=environment, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + 20
        while b"10.0.0.1:4433" not in seen:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536)
        viewer.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 5)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:
                break  # (how Linux says that the other end is closed)
        assert viewer.wait(timeout=10) == 130
    finally:
        os.close(ours)
    assert b"interrupted" in seen
    assert seen.rfind(b"\x1b[?1049l") > seen.find(b"\x1b[?1049h"), "the screen is given back"


def test_top_says_when_nothing_listens(tmp_path: Path) -> None:
    result = CliRunner().invoke(program, ["top", str(tmp_path / "none.sock"), "--once"])
    assert result.exit_code == 1
    assert "none.sock" in result.output
    assert result.output.count("\n") == 1
