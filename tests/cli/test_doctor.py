"""``phoenix-trio doctor`` as users run it: real sockets on loopback, and one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from phoenix_trio.cli import doctor as command
from phoenix_trio.cli.doctor import render
from phoenix_trio.cli.program import program
from phoenix_trio.diagnosis import Finding, Report, Status, TargetServer, examine

MACHINE = {
    "versions",
    "core",
    "processors",
    "descriptors",
    "interface-mtu",
    "udp-drops",
    "socket-buffers",
    "ipv6",
    "offloads",
    "ecn",
    "aes",
    "loopback",
}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(program, ["doctor", *arguments], prog_name="phoenix-trio")


def use(monkeypatch: pytest.MonkeyPatch, *statuses: Status) -> list[Any]:
    """Let the command print findings with these statuses; returns what it asks for."""
    asked: list[Any] = []

    async def fake(target: TargetServer | None, symptom: str | None) -> Report:
        asked.append((target, symptom))
        findings = tuple(
            Finding(name="check", status=status, found="found", why="3 times", commands=("do it",))
            for status in statuses
        )
        return Report(version="0.1.0", system="linux", groups={"machine": findings})

    monkeypatch.setattr(command, "examine", fake)
    return asked


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_the_whole_program_looks_at_this_machine_and_changes_nothing() -> None:
    settings = Path("/proc/sys/net/core/rmem_max")
    before = settings.read_text() if settings.exists() else ""
    done = subprocess.run(
        [sys.executable, "-m", "phoenix_trio", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (1 if found["status"] == "fail" else 0)
    assert set(found) == {"format", "version", "system", "target", "symptom", "status", "checks"}
    assert {each["name"] for each in found["checks"]} >= MACHINE
    for each in found["checks"]:
        assert set(each) == {"group", "name", "status", "found", "why", "commands", "values"}
        assert each["status"] in ("ok", "warn", "fail", "unknown")
    assert (settings.read_text() if settings.exists() else "") == before


def test_a_closed_port_is_a_failure_with_status_1() -> None:
    port = free_port()
    result = invoke(f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert f"nothing listens on port {port}/udp" in " ".join(result.output.split())
    assert f"$ ss -ulnp 'sport = :{port}'" in result.output
    assert "1 failed" in result.output


@pytest.mark.parametrize(
    ("status", "strict", "expected"),
    [
        (Status.OK, True, 0),
        (Status.WARN, False, 0),
        (Status.WARN, True, 1),
        (Status.UNKNOWN, False, 0),
        (Status.UNKNOWN, True, 1),
        (Status.FAIL, False, 1),
    ],
)
def test_the_exit_status_is_that_of_the_worst_check(
    monkeypatch: pytest.MonkeyPatch, status: Status, strict: bool, expected: int
) -> None:
    use(monkeypatch, Status.OK, status)
    assert invoke(*(["--strict"] if strict else [])).exit_code == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["host:0"], "HOST:PORT"),
        (["--ca", "ca.pem"], "needs a server"),
        (["--alpn", "h3"], "needs a server"),
        (["host", "--ca", "/no/such/file"], "/no/such/file"),
        (["host", "--pin", "12"], "64 hexadecimal digits"),
        (["host", "--certificate", "x"], "private_key"),
        (["--symptom", "tired"], "low-throughput"),
    ],
)
def test_wrong_usage_has_status_2(arguments: list[str], text: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def test_options_become_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = use(monkeypatch, Status.OK)
    pin = "ab" * 32
    invoke("[::1]:99", "--pin", pin, "--alpn", "a", "--alpn", "b", "--symptom", "high-cpu")
    invoke("host")
    (target, symptom), (plain, _) = asked
    assert (target.host, target.port, target.alpn) == ("::1", 99, ("a", "b"))
    assert (target.pinned_sha256, symptom) == (pin, "high-cpu")
    assert (plain.port, plain.alpn[0]) == (4433, "phoenix/1")


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Status.WARN)
    assert "\x1b" not in invoke().output
    coloured = CliRunner().invoke(program, ["doctor"], color=True)
    assert "\x1b[33m" in coloured.output


def test_lines_fit_into_80_columns_and_commands_stay_whole() -> None:
    long = "word " * 60
    finding = Finding(
        name="versions-offered",
        status=Status.FAIL,
        found=long + "\x1b[2J",
        why=long,
        commands=("c" * 100,),
    )
    groups = {"target": (finding,)}
    report = Report(version="0", system="linux", target="h:1", groups=groups)  # type: ignore[arg-type]
    lines = list(render(report))
    assert all(len(line) <= 79 for line in map(plain, lines) if "$ " not in line)
    assert any(line.endswith("$ " + "c" * 100) for line in lines)
    assert "\x1b[2J" not in "".join(lines)
    assert plain(lines[1]).startswith("  fail    versions-offered  word")


def plain(line: str) -> str:
    import re

    return re.sub(r"\x1b\[\d+m", "", line)


def test_what_is_fine_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Status.OK)
    output = invoke().output
    assert "why" not in output
    assert "do it" not in output
    assert output.endswith("1 fine\n")


async def test_an_unknown_symptom_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="low-throughput"):
        await examine(symptom="tired")


PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "doctor.md").read_text()


def test_the_page_names_every_check_of_a_machine() -> None:
    for name in MACHINE:
        assert f"`{name}`" in PAGE


def test_the_program_on_the_page_runs(tmp_path: Path) -> None:
    program = PAGE.split("```python\n")[1].split("```")[0]
    program = program.replace("files.example.org", "127.0.0.1").replace("4433", str(free_port()))
    (tmp_path / "check.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "check.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "udp-ipv4\n    127.0.0.1 says that nothing listens" in done.stdout


def test_the_samples_on_the_page_have_the_form_of_the_output() -> None:
    import re

    lines = [
        line for line in PAGE.splitlines() if re.match(r"  (ok|warn|fail|unknown) +[a-z]", line)
    ]
    assert len(lines) >= 30
    for line in lines:
        status, name = line.split()[:2]
        finding = Finding(name=name, status=Status(status), found="x")
        made = list(render(report_of(finding)))[1]
        assert plain(made).startswith(line[:27]), "status and name stand in their columns"
        assert f"`{name}`" in PAGE, "the tables have it"


def report_of(finding: Finding) -> Report:
    return Report(version="0", system="linux", groups={"machine": (finding,)})
