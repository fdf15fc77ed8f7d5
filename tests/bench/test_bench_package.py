"""The benchmark is a package of its own: its version, its commands, the program without it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import phoenix_trio
from phoenix_trio.cli.bench import benchmark_commands
from phoenix_trio.cli.program import program
from phoenix_trio_bench.cli import COMMANDS
from phoenix_trio_bench.peers import NAMES, find_peers
from phoenix_trio_bench.processes import Pair

ROOT = Path(__file__).parents[2]

#: Runs the program as it is where the package is not installed.
WITHOUT = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name == "phoenix_trio_bench":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
from phoenix_trio.cli import main
main()
"""


def test_it_has_the_version_of_the_library_and_demands_it() -> None:
    project = tomllib.loads((ROOT / "bench" / "pyproject.toml").read_text())["project"]
    assert project["version"] == phoenix_trio.__version__
    assert f"phoenix-trio[cli]=={phoenix_trio.__version__}" in project["dependencies"]


def test_the_program_has_its_commands_where_it_is_installed() -> None:
    assert tuple(benchmark_commands()) == COMMANDS
    for command in COMMANDS:
        assert program.commands[command.name or ""] is command


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--quick", "--only", "x", "y"]])
def test_without_it_a_command_says_what_to_install(command: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, command, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"phoenix-trio: {command} needs the package phoenix-trio-bench: "
        "pip install ./bench in a clone of phoenix_trio\n"
    )


def test_without_it_the_program_still_helps() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "phoenix-trio demo" in done.stdout
    assert done.stdout.count("(needs the package phoenix-trio-bench)") == len(COMMANDS)


def test_a_broken_package_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "phoenix_trio_bench.cli")
    monkeypatch.setitem(sys.modules, "phoenix_trio_bench.simulate", None)
    monkeypatch.delitem(sys.modules, "phoenix_trio_bench.cli.simulate")
    with pytest.raises(ModuleNotFoundError, match=r"phoenix_trio_bench\.simulate"):
        benchmark_commands()


def test_the_help_names_the_peers_which_may_live_elsewhere() -> None:
    text = CliRunner().invoke(program, ["bench", "--help"]).output
    assert all(name in text for name in NAMES)


def test_a_peer_runs_under_an_interpreter_of_its_own() -> None:
    found, _ = find_peers({"aioquic": sys.executable})
    peer = next(each for each in found if each.name == "aioquic (asyncio)")
    assert peer.command[1].endswith("elsewhere.py")
    with Pair(peer.command) as pair:
        assert pair.ask("transfer", size=10_000, write=4096)["seconds"] > 0
