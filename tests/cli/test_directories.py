"""Sending directories, and what a sender reports: over a simulated network, and as processes."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner
from rich.console import Console
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.cli import progress
from phoenix_trio.cli.failures import in_options
from phoenix_trio.cli.options import format_rate
from phoenix_trio.cli.places import Places
from phoenix_trio.cli.program import program
from phoenix_trio.cli.receive import Receiver
from phoenix_trio.cli.reports import Report, show_report
from phoenix_trio.cli.sending import Sending
from phoenix_trio.cli.sources import Directory, File, LeftOut, find_sources
from phoenix_trio.cli.transfer import TransferError, TransferRefused, receive_file, send_directory
from phoenix_trio.storage.directory import Storage
from phoenix_trio.streams.framing import encode_frame
from phoenix_trio.testing import SimulatedNetwork
from tests.cli.file_receiver import listening
from tests.support import CLIENT, PORT, SERVER, client_tls


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run thread work in place, because virtual time does not wait for threads."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


def write(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tree(directory: Path) -> dict[str, bytes | None]:
    """The paths below a directory; ``None`` for an empty directory."""
    found: dict[str, bytes | None] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[name] = None
    return found


# ---------------------------------------------------------------- what is sent


def test_everything_below_a_directory_is_found_in_order(tmp_path: Path) -> None:
    write(tmp_path / "photos/b.jpg")
    write(tmp_path / "photos/a/ü.jpg", b"12")
    (tmp_path / "photos/empty").mkdir()
    found = list(find_sources([str(tmp_path / "photos") + "/"], None))
    assert [source.name for source in found] == ["photos/a/ü.jpg", "photos/b.jpg", "photos/empty"]
    assert isinstance(found[0], File)
    assert found[0].size == 2
    assert isinstance(found[2], Directory)
    renamed, *_ = find_sources([str(tmp_path / "photos")], "other")
    assert renamed.name == "other/a/ü.jpg"


def test_what_cannot_be_sent_is_named_and_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret/key")
    write(tmp_path / "d/.git/config")
    write(tmp_path / "d/bad:name")
    os.symlink(tmp_path / "secret", tmp_path / "d/directory-link")
    os.symlink(tmp_path / "secret/key", tmp_path / "d/file-link")
    os.symlink("nowhere", tmp_path / "d/dangling")
    os.mkfifo(tmp_path / "d/pipe")
    write(tmp_path / "d" / os.fsdecode(b"latin-\xfc"))
    found = list(find_sources([str(tmp_path / "d")], None))
    assert all(isinstance(source, LeftOut) for source in found)
    reasons = {source.name.removeprefix("d/"): source.reason for source in found}  # type: ignore[union-attr]
    assert "hidden" in reasons[".git/"]
    assert "colons" in reasons["bad:name"]
    assert "surrogate" in reasons[os.fsdecode(b"latin-\xfc")]
    assert "not followed" in reasons["directory-link"]
    assert "not followed" in reasons["file-link"]
    assert "not followed" in reasons["dangling"]
    assert "regular" in reasons["pipe"]
    # An argument itself may be a link: the user has named it.
    (linked,) = find_sources([str(tmp_path / "d/file-link")], None)
    assert isinstance(linked, File)


def test_a_link_that_takes_a_files_place_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "d/file")
    (source,) = find_sources([str(tmp_path / "d")], None)
    assert isinstance(source, File)
    (tmp_path / "d/file").unlink()
    os.symlink("/etc/passwd", tmp_path / "d/file")
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP has no class of its own
        source.rewind()


def test_a_directory_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d/file")
    (tmp_path / "d/closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed, file = find_sources([str(tmp_path / "d")], None)
    assert closed == LeftOut("d/closed/", "Permission denied")
    assert file.name == "d/file"


# ---------------------------------------------------------------- over a network


@asynccontextmanager
async def receiving(directory: Path) -> AsyncIterator[SimulatedNetwork]:
    network = SimulatedNetwork(delay=0.001)
    storage = Storage(str(directory))
    receiver = Receiver(storage, Places(64, 8), 20.0, None, "quiet")
    async with listening(receiver, network):
        yield network
    storage.close()


async def send(
    network: SimulatedNetwork, *paths: Path, skip_existing: bool = False
) -> tuple[Sending, list[dict[str, Any]]]:
    """Send, and return the events of the report as well."""
    sources = list(find_sources(map(str, paths), None))
    sending = Sending(sources, 3, 0.1, skip_existing)
    events: list[dict[str, Any]] = []

    class Recording(Report):
        def _tell(self, text: str, event: str, facts: dict[str, object], **kind: bool) -> None:
            events.append({"event": event, "text": text, **facts})

    await sending.run(
        (SERVER, PORT),
        client_tls(),
        phoenix_trio.TransportConfig(),
        Recording(progress.NoDisplay()),
        network.host(CLIENT),
    )
    return sending, events


async def test_a_directory_arrives_with_its_empty_directories(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    write(tmp_path / "d/a/one", b"1" * 100_000)
    write(tmp_path / "d/two", b"")
    (tmp_path / "d/empty/inner").mkdir(parents=True)
    async with receiving(tmp_path / "in") as network:
        sending, events = await send(network, tmp_path / "d")
    assert sending.is_complete
    assert tree(tmp_path / "in" / "d") == tree(tmp_path / "d")
    total = events[-1]
    assert total["event"] == "total"
    assert (total["files"], total["directories"], total["bytes"]) == (2, 1, 100_000)
    assert total["text"].startswith("total: 2 files, 97.7 KiB in ")
    assert not total["missing"]


async def test_files_that_fail_do_not_hold_up_the_others(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "t" / name, name.encode())
    os.symlink("a", tmp_path / "t/link")
    write(tmp_path / "in/t/b", b"other")
    original = Sending.run

    async def run(self: Sending, *arguments: Any) -> None:
        (tmp_path / "t/c").unlink()  # after it was found
        await original(self, *arguments)

    monkeypatch.setattr(Sending, "run", run)
    async with receiving(tmp_path / "in") as network:
        sending, events = await send(network, tmp_path / "t")
    assert not sending.is_complete
    assert events[-1]["missing"] == ["t/link", "t/b", "t/c"]
    assert "3 not sent: t/link, t/b, t/c" in events[-1]["text"]
    by_path = {event.get("path"): event for event in events}
    assert by_path["t/b"]["code"] == "exists"
    assert by_path["t/c"]["message"] == "No such file or directory"
    assert tree(tmp_path / "in/t") == {"a": b"a", "b": b"other", "d": b"d"}


async def test_an_interrupted_directory_says_what_is_missing_and_goes_on_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    for number in range(6):
        write(tmp_path / f"d/{number}", bytes(300_000))
    async with receiving(tmp_path / "in") as network:
        sending = Sending(list(find_sources([str(tmp_path / "d")], None)), 3, 0.1, False)
        events: list[dict[str, Any]] = []

        class Interrupting(Report):
            def _tell(self, text: str, event: str, facts: dict[str, object], **kind: bool) -> None:
                events.append({"event": event, "text": text, **facts})
                if len(events) == 2:
                    scope.cancel()

        with trio.CancelScope() as scope:
            await sending.run(
                (SERVER, PORT),
                client_tls(),
                phoenix_trio.TransportConfig(),
                Interrupting(progress.NoDisplay()),
                network.host(CLIENT),
            )
        assert not sending.is_complete
        assert events[-1]["missing"] == [f"d/{number}" for number in range(2, 6)]
        assert "--skip-existing" in events[-1]["text"]
        await trio.sleep(1)
        again, _ = await send(network, tmp_path / "d", skip_existing=True)
    assert again.is_complete
    assert (again.existing, again.files) == (2, 4)
    assert tree(tmp_path / "in/d") == tree(tmp_path / "d")


# ---------------------------------------------------------------- directories on the wire


async def exchange(storage: Storage, *frames: bytes) -> list[dict[str, Any]]:
    here, there = trio.testing.memory_stream_pair()
    for frame in frames:
        await here.send_all(frame)
    await here.send_eof()
    with pytest.raises(TransferError) as caught:
        await receive_file(there, storage)
    assert isinstance(caught.value, TransferRefused)
    await there.aclose()
    answer = bytearray()
    async for chunk in here:
        answer += chunk
    return [json.loads(answer[answer.index(b"{") :])]


def directory_header(path: str) -> bytes:
    fields = {"version": 1, "path": path, "size": None, "identity": None, "directory": True}
    return encode_frame(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "path",
    ["/abs", "../up", "a/../b", ".hidden", "a/.b", "a//b", "", "a\\b", "c:d", "a\x00b", "\u202ea"],
)
async def test_hostile_names_of_directories_are_refused(path: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "in"))
    (told,) = await exchange(storage, directory_header(path))
    assert told["code"] == "bad-name"
    assert not list((tmp_path / "in").iterdir())
    storage.close()


async def test_a_directory_does_not_go_through_links_or_replace_files(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "out", tmp_path / "in/link")
    write(tmp_path / "in/file")
    codes = []
    for path in ("link", "link/below", "file", "file/below"):
        (told,) = await exchange(storage, directory_header(path))
        codes.append(told["code"])
    assert codes == ["bad-name"] * 4
    assert not list((tmp_path / "out").iterdir())
    assert (tmp_path / "in/file").read_bytes() == b"x"
    storage.close()


async def test_a_directory_is_made_once_and_its_layout_is_documented(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for _ in range(2):
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_file, there, storage)
            outcome = await send_directory(here, "a/b")
        assert outcome.is_directory
    assert (tmp_path / "a/b").is_dir()
    here, there = trio.testing.memory_stream_pair()
    await there.send_all(encode_frame(b'{"accepted": true, "offset": 0}'))
    with pytest.raises(TransferError, match="does not know empty directories"):
        await send_directory(here, "a/b")
    wire = bytearray()
    while not wire.endswith(b"}"):
        wire += await there.receive_some()
    assert bytes(wire) == directory_header("a/b")
    storage.close()


# ---------------------------------------------------------------- reports


def test_lines_above_bars_do_not_garble_them(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, output = io.StringIO(), io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=60)
    )
    long = "x" * 200
    with show_report() as report:
        monkeypatch.setattr(sys, "stdout", output)
        number = report.display.begin("file", 10)
        report.display.update(number, 5)
        report.note(f"[bold]note\x1b[2J {long}", "note")
        report.result("to the file", "stored")
    # Standard output is no terminal: results go there, and not between the bars.
    assert output.getvalue() == "to the file\n"
    assert f"[bold]note\\x1b[2J {long}\n" in screen.getvalue()
    assert "to the file" not in screen.getvalue()


def test_quiet_and_json_reports(capsys: pytest.CaptureFixture[str]) -> None:
    def tell(report: Report) -> None:
        report.result("fine", "stored", path="a\x1b")
        report.note("again", "retry")
        report.problem("bad", "failed", path="b")

    with show_report("quiet") as report:
        tell(report)
    assert capsys.readouterr() == ("", "bad\n")
    with show_report("json") as report:
        tell(report)
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.splitlines()[0] == '{"event": "stored", "path": "a\\u001b"}'
    assert [json.loads(line)["event"] for line in output.splitlines()] == [
        "stored",
        "retry",
        "failed",
    ]


def test_rates_are_for_people() -> None:
    shown = [format_rate(bits) for bits in (0, 9.4, 999, 1_234_000, 56_000_000, 2_340_000_000)]
    assert shown == ["0.0 bit/s", "9.4 bit/s", "999 bit/s", "1.2 Mbit/s", "56 Mbit/s", "2.3 Gbit/s"]


def test_errors_speak_of_options_and_leave_file_names_alone() -> None:
    assert in_options("private_key: 'x' does not belong to certificate: 'y'") == (
        "--key: 'x' does not belong to --certificate: 'y'"
    )
    assert in_options("[Errno 2] certificate: No such file or directory: 'private_key.pem'") == (
        "--certificate: No such file or directory: 'private_key.pem'"
    )
    assert in_options("the server's certificate (for 'ca') leads to no trusted authority") == (
        "the server's certificate (for 'ca') leads to no trusted authority"
    )
    with pytest.raises(ValueError, match="pinned_sha256") as caught:
        phoenix_trio.ClientTLS(pinned_sha256="00")
    assert in_options(str(caught.value)).startswith("--pin must be 64")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["send", "host:1", "x", "--key", "k"], "--certificate and --key go together"),
        (["send", "host:1", "/dev/null"], "neither a regular file nor a directory"),
        (["send", "host:1", "/"], "--name"),
    ],
)
def test_wrong_usage_of_send_is_named(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 2
    assert text in result.output
