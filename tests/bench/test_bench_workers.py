"""The benchmark's processes: their protocol, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from phoenix_trio.cli.program import program
from phoenix_trio_bench import protocol
from phoenix_trio_bench.peers import PHOENIX, find_peers
from phoenix_trio_bench.processes import Pair, Process, Remote, Unsupported, WorkerFailed
from phoenix_trio_bench.rows import list_workloads
from phoenix_trio_bench.workloads import Plan, run

# ------------------------------------------------------------------ the protocol


def receipt(data: bytes, *, size: int | None = None, pieces: int = 7) -> bytes:
    """A server's answer to `data`, announced as `size` bytes."""
    intake = protocol.Intake(
        protocol.Buffers(), protocol.TRANSFER, len(data) if size is None else size
    )
    answer = b""
    step = max(1, len(data) // pieces)
    for at in range(0, len(data), step):
        if intake.add(data[at : at + step]):
            answer += protocol.ACKNOWLEDGED
    if intake.end():
        answer += protocol.ACKNOWLEDGED
    answer += intake.trailer()
    intake.close()
    return answer


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_a_receipt_of_the_payload_is_good(size: int) -> None:
    data, digest = protocol.payload(size)
    assert len(data) == size
    assert protocol.check_answer(receipt(data), digest) >= 0


def test_payloads_are_random_and_repeatable() -> None:
    data, _ = protocol.payload(100_000)
    assert len(set(data)) == 256
    assert protocol.payload(100_000)[0] is data
    protocol._payloads.clear()
    assert protocol.payload(100_000)[0] == data
    assert protocol.payload(100_001)[0][:100_000] != data


@pytest.mark.parametrize("change", ["a bit", "swapped", "short"])
def test_what_is_corrupted_on_the_way_is_noticed(change: str) -> None:
    data, digest = protocol.payload(1000)
    wrong = bytearray(data)
    if change == "a bit":
        wrong[500] ^= 1
    elif change == "swapped":
        wrong[:100], wrong[100:200] = wrong[100:200], wrong[:100]
    else:
        del wrong[-1]
    with pytest.raises(ValueError, match="not what was sent"):
        protocol.check_answer(receipt(bytes(wrong), size=1000), digest)


def test_more_than_was_announced_is_refused() -> None:
    with pytest.raises(ValueError, match="announced"):
        receipt(bytes(1001), size=1000)


@pytest.mark.parametrize("answer", [b"", b"\x06", b"\x00" * 41, b"\x06" * 40])
def test_an_answer_which_is_no_receipt_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"no receipt|not what"):
        protocol.check_answer(answer, bytes(32))


def test_a_server_takes_in_no_more_than_it_has_room_for() -> None:
    buffers = protocol.Buffers(limit=1000)
    first = buffers.take(600)
    with pytest.raises(ValueError, match="no room"):
        buffers.take(600)
    buffers.give_back(first)
    assert len(buffers.take(700)) == 700  # buffers not in use have made room


async def test_a_repeated_request_is_answered_with_its_median_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [
        json.dumps({"op": "work", "repeat": 3, "size": 5}),
        json.dumps({"op": "prepare", "size": 10}),
        json.dumps({"op": "nothing of ours"}),
        json.dumps({"op": "fail"}),
        "",
    ]
    times = iter([0.3, 0.1, 0.2])

    async def work(size: int) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"seconds": next(times), "size": size}

    async def fail() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        raise OSError("burst")

    async def read_line() -> str:
        await trio.lowlevel.checkpoint()
        return lines.pop(0)

    await protocol.answer_requests({"work": work, "fail": fail}, read_line)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [
        {"seconds": 0.2, "size": 5},
        {},
        {"unsupported": "this implementation cannot do that"},
        {"error": "OSError: burst"},
    ]


# ------------------------------------------------------------------ processes


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(python(request.param))
    yield process
    process.end(patience=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(
    "process", ["import sys; print('oh, no', file=sys.stderr); sys.exit(3)"], indirect=True
)
def test_a_worker_which_ends_is_quoted(process: Process) -> None:
    with pytest.raises(WorkerFailed, match="status 3: oh, no"):
        process.read(10)


@pytest.mark.parametrize("process", ["print('rubbish')"], indirect=True)
def test_a_worker_which_prints_something_else_has_failed(process: Process) -> None:
    with pytest.raises(WorkerFailed, match="rubbish"):
        process.read(10)


@pytest.mark.parametrize("process", ["import time; time.sleep(60)"], indirect=True)
def test_a_worker_which_does_not_answer_is_killed(process: Process) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerFailed, match="no answer"):
        process.read(0.1)
    process.end(patience=0.1)
    assert time.monotonic() - started < 10


def test_a_pair_whose_server_does_not_start_leaves_nothing_behind() -> None:
    with pytest.raises(WorkerFailed, match="ended"):
        Pair(python("raise SystemExit(1)"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(PHOENIX.command) as pair:
        yield pair


def test_workers_answer_every_kind_of_request(pair: Pair) -> None:
    assert pair.udp_payload is not None
    assert pair.udp_payload >= 1200
    assert pair.ask("transfer", size=10_000, write=4096)["seconds"] > 0
    assert len(pair.ask("round_trip", count=3, size=64)["seconds"]) == 3
    assert len(pair.ask("request", count=3, size=10_000)["seconds"]) == 3
    assert pair.ask("requests", count=30, size=64, concurrent=10)["seconds"] > 0
    assert pair.ask("datagrams", count=50, size=100)["received"] > 0
    assert set(pair.memory()) == set(pair.descriptors()) == {"client", "server"}


def test_a_request_which_fails_does_not_end_the_worker(pair: Pair) -> None:
    with pytest.raises(WorkerFailed, match="transfer: TypeError"):
        pair.ask("transfer", nonsense=1)
    with pytest.raises(Unsupported):
        pair.ask("fly")
    assert pair.ask("echo", count=1, size=64)["seconds"]


def test_workers_can_be_started_again(pair: Pair) -> None:
    before = pair._pids()
    pair.restart()
    assert set(before.values()).isdisjoint(pair._pids().values())
    assert pair.ask("echo", count=1, size=64)["seconds"]


# ------------------------------------------------------------------ rows


def test_there_is_a_row_for_all_that_is_promised() -> None:
    names = {
        figure.name
        for workload in list_workloads(quick=False, with_gigabyte=True)
        for figure in workload.figures
    }
    for size in ("1 KB", "64 KB", "1 MiB", "10 MB", "100 MB", "1 GB"):
        assert {f"transfer {size}", f"transfer {size}: rate"} <= names
    assert {
        "connection, full handshake",
        "connection, resumed",
        "connection, pooled",
        "opening a stream",
        "64 bytes there and back",
        "new stream and a 64-byte echo",
        "start of a transfer of 10 MB",
        "echoes a second, 1 at a time",
        "echoes a second, 16 at a time",
        "echoes a second, 100 at a time",
        "request and a 64-byte answer",
        "requests a second, 1 at a time",
        "requests a second, 16 at a time",
        "requests a second, 100 at a time",
        "datagrams a second, received",
        "memory of an idle connection, client",
        "memory of an idle connection, server",
        "memory which load adds to a connection, client",
        "file descriptors of a connection, server",
        "100 MB beside 1,000 idle streams, against none",
    } <= names


def test_all_implementations_take_part_in_a_row() -> None:
    found, _ = find_peers({})
    heard: list[str] = []
    rows = run(
        Plan(quick=True, runs=1, only=("transfer 64 KB*", "64 bytes*"), peers=tuple(found)),
        heard.append,
    )
    assert {row.implementation for row in rows} == {"phoenix_trio", *(p.name for p in found)}
    for row in rows:
        assert row.runs, row
        assert row.minimum is not None
        assert row.minimum > 0
        # Single operations are kept where a run has several.
        assert len(row.samples) == (51 * len(row.runs) if row.name.startswith("64 bytes") else 0)
        if row.samples:
            assert row.samples[0] < row.minimum < row.samples[-1]
    assert any("64 KB" in name for name in heard)


def test_quick_begins_with_what_is_short_and_reports_in_the_usual_order() -> None:
    heard: list[str] = []
    rows = run(Plan(quick=True, runs=1, only=("*64 *",)), heard.append)
    assert [name for name in heard if "64" in name] == [
        "64 bytes there and back",
        "transfer 64 KB",
        "transfer 100 MB, 64 KB writes",
    ]
    assert [row.name for row in rows if not row.name.endswith("rate")] == [
        "transfer 64 KB",
        "transfer 100 MB, 64 KB writes",
        "64 bytes there and back",
    ]


# ------------------------------------------------------------------ the command


def test_bench_writes_what_it_was_asked_for(tmp_path: Path) -> None:
    files = {name: tmp_path / f"report.{name}" for name in ("json", "html", "markdown")}
    arguments = ["bench", "--quick", "--runs", "1"]
    arguments += ["--only", "transfer 1 KB*", "--only", "opening a stream"]
    for name, path in files.items():
        arguments += [f"--{name}", str(path)]
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 0, result.output
    assert "transfer 1 KB" in result.output
    again = CliRunner().invoke(program, [*arguments, "--compare", str(files["json"])])
    assert again.exit_code == 0, again.output
    assert "compared with" in again.output
    assert {row["name"] for row in json.loads(files["json"].read_text())["rows"]} == {
        "transfer 1 KB",
        "transfer 1 KB: rate",
        "opening a stream",
    }
    assert "| transfer 1 KB |" in files["markdown"].read_text()
    assert files["html"].stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no such row"], "no row is called"),
        (["--pin", "ab"], "--pin needs --connect"),
        (["--connect", "localhost:1", "--peers"], "--peers needs"),
        (["--peer-python", "qh3=/x"], "needs --peers"),
        (["--peers", "--peer-python", "quinn=/x"], "PEER=PYTHON"),
    ],
)
def test_contradictions_are_refused_at_once(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(program, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_file_which_cannot_be_written_is_noticed_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    for option in ("--json", "--html", "--markdown"):
        nowhere = str(tmp_path / "nowhere" / "file")
        result = CliRunner().invoke(program, ["bench", "--quick", option, nowhere])
        assert result.exit_code == 2
        assert "nowhere" in result.output


def test_a_server_elsewhere_with_another_certificate_is_a_failure_which_says_so() -> None:
    command = [sys.executable, "-m", "phoenix_trio", "serve-bench", "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        words = server.stdout.readline().replace("HOST", "127.0.0.1").split()
        arguments = ["--connect", words[words.index("--connect") + 1], "--pin", "ab" * 32]
        result = CliRunner().invoke(
            program, ["bench", "--quick", "--only", "64 bytes*", *arguments]
        )
        assert result.exit_code == 1
        assert "CertificatePinMismatch" in result.output
    finally:
        server.kill()
        server.communicate()


def test_a_server_elsewhere_is_measured_with_what_it_printed() -> None:
    command = [sys.executable, "-m", "phoenix_trio", "serve-bench", "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        words = server.stdout.readline().replace("HOST", "127.0.0.1").split()
        arguments = words[words.index("--connect") :]
        plan = Plan(
            quick=True,
            runs=1,
            only=("64 bytes*",),
            remote=Remote("127.0.0.1", int(arguments[1].rpartition(":")[2]), arguments[3]),
        )
        (row,) = run(plan, lambda name: None)
        assert row.runs
        result = CliRunner().invoke(
            program, ["bench", "--quick", "--runs", "1", "--only", "64 bytes*", *arguments]
        )
        assert result.exit_code == 0, result.output
        assert "64 bytes there and back" in result.output
    finally:
        server.kill()
        server.communicate()
