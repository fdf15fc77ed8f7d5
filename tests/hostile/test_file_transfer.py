"""Hostile senders of files: names, sizes, full disks, leftover parts, slow and absent senders."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.cli import progress
from phoenix_trio.cli.places import Places
from phoenix_trio.cli.receive import Receiver
from phoenix_trio.cli.transfer import (
    ALPN,
    PrefixDigests,
    TransferError,
    TransferRefused,
    receive_file,
    send_file,
)
from phoenix_trio.storage.directory import PARTS_DIRECTORY, Storage, StoredFile
from phoenix_trio.storage.names import Refused, check_path, fold, printable
from phoenix_trio.storage.parts import PartLimits
from phoenix_trio.streams.framing import encode_frame
from phoenix_trio.testing import SimulatedNetwork
from tests.cli.file_receiver import listening
from tests.cli.test_transfer import Bytes
from tests.hostile.conftest import Figure
from tests.pool.test_transfer_hub import no_threads as plain_no_threads
from tests.support import CLIENT, PORT, SERVER, client_tls

MEBIBYTE = 1024 * 1024


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(str(tmp_path / "in"))
    yield made
    made.close()


@contextmanager
def storing(storage: Storage, *arguments: Any, **more: Any) -> Iterator[StoredFile]:
    stored = storage.begin(*arguments, **more)
    try:
        yield stored
    finally:
        stored.close()


def leave(storage: Storage, path: str, data: bytes, identity: str = "id", peer: str = "") -> None:
    """Break a transfer after `data`."""
    with storing(storage, path, None, identity, peer=peer) as stored:
        stored.write(data)


def parts_of(directory: Path) -> list[Path]:
    return sorted((directory / PARTS_DIRECTORY).glob("*.part"))


# ------------------------------------------------------------------ names

ODD = st.sampled_from(
    [chr(n) for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200B, 0x200E, 0x200F)]
    + ["\u061c", "\x1b", "\x9b", "\0", "\n", "\ud800", "\ufeff", "\u2025", "\uff0f", "\uff0e"]
    + ["/", "\\", ":", ".", " ", "..", "\u3000", "e\u0301", "\u212b", "\u0130", "\ufb01", "CON"]
)
NAMES = st.lists(ODD | st.text(max_size=3), max_size=12).map("".join)


@given(NAMES)
@example("\u2025")
@example("e\u0301/\u212b")
def test_what_is_taken_shows_what_it_is_and_stays_inside(name: str) -> None:
    try:
        parts = check_path(name)
    except Refused:
        return
    assert check_path("/".join(parts)) == parts, "there is one form of it"
    for part in parts:
        assert 0 < len(part.encode()) <= 255
        assert not part.startswith(".")
        assert part == part.strip()
        assert not {unicodedata.category(c) for c in part} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
        assert not set("/\\:\0") & set(unicodedata.normalize("NFKC", part))
        assert fold(unicodedata.normalize("NFD", part)) == fold(part)
    assert os.path.normpath(os.path.join("/base", *parts)) == "/".join(["/base", *parts])


@given(st.text() | NAMES)
def test_nothing_a_peer_says_commands_the_terminal(text: str) -> None:
    shown = printable(text)
    categories = {unicodedata.category(character) for character in shown}
    assert not categories & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    shown.encode()  # (half a surrogate pair could not be written)
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("README", "readme"),
        ("stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "CAFE\u0301"),
        ("\u212aelvin", "kelvin"),
        ("photos/a", "Photos/b"),
    ],
)
def test_names_which_some_systems_take_for_one_do_not_stand_side_by_side(
    there: str, asked: str, storage: Storage
) -> None:
    with storing(storage, there, 1, "1") as stored:
        stored.write(b"x")
        stored.commit()
    with pytest.raises(Refused) as caught:
        storage.begin(asked, 1, "2")
    assert caught.value.code == "exists"


def test_two_spellings_under_way_at_once_are_found_at_the_end(storage: Storage) -> None:
    with storing(storage, "Name", 1, "1") as one, storing(storage, "name", 1, "2") as two:
        one.write(b"1")
        two.write(b"2")
        one.commit()
        with pytest.raises(Refused):
            two.commit()


def test_decomposed_letters_are_stored_composed(storage: Storage, tmp_path: Path) -> None:
    with storing(storage, "cafe\u0301", 1, "1") as stored:
        stored.write(b"x")
        stored.commit()
    assert os.listdir(tmp_path / "in") == ["caf\u00e9"]


def test_the_look_at_the_other_names_is_bounded(storage: Storage, tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "in" / f"file{number}").touch()
    scans = 0
    original = os.scandir

    def scandir(where: Any) -> Any:
        nonlocal scans
        scans += 1
        return original(where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        for number in range(50):
            with storing(storage, f"new{number}", 1, f"{number}") as stored:
                stored.write(b"x")
                stored.commit()
    assert scans < 5, "the directory is read again only when another program has changed it"


def test_refused_transfers_leave_no_directories(storage: Storage, tmp_path: Path) -> None:
    with storing(storage, "a/b/c/d", 5, "1") as stored:
        stored.write(b"x")
        stored.discard()
    with storing(storage, "e/f/g", 5, None) as stored:
        stored.write(b"x")
    assert os.listdir(tmp_path / "in") == []


def test_the_longest_names_are_stored(storage: Storage, tmp_path: Path) -> None:
    name = "\u00e9" * 127
    with storing(storage, name, 1, "1") as stored:
        stored.write(b"x")
        stored.commit()
    assert (tmp_path / "in" / name).exists()


def test_markup_in_a_name_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=200)
    )
    with progress.show_progress() as display:
        for _ in range(30):
            number = display.begin("[blink]x[link=http://evil]y\x1b]0;title\x07", 10)
            display.update(number, 10)
            display.finish(number)
        assert len(display._bars.tasks) <= 21  # type: ignore[attr-defined]
    shown = screen.getvalue()
    assert "[blink]x[link=http://evil]y\\x1b]0;title\\x07" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b]8;" not in shown


# ------------------------------------------------------------------ sizes and disks


async def say(storage: Storage, *frames: bytes, **options: Any) -> tuple[Exception, list[Any]]:
    """Send these bytes as a sender; returns the end of the transfer, and the reports to it."""
    here, there = trio.testing.memory_stream_pair()
    for frame in frames:
        await here.send_all(frame)
    await here.send_eof()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the callers look at it
        await receive_file(there, storage, **options)
    await there.aclose()
    answer = bytearray()
    async for chunk in here:
        answer += chunk
    decoder = json.JSONDecoder()
    text, told = answer.decode(errors="replace"), []
    while (at := text.find("{")) >= 0:
        message, end = decoder.raw_decode(text[at:])
        told.append(message)
        text = text[at + end :]
    return caught.value, told


def header(**fields: Any) -> bytes:
    return encode_frame(json.dumps({"version": 1, "path": "x", **fields}).encode())


@pytest.mark.parametrize("excess", [1, 100_000])
async def test_more_than_the_announced_size_is_cut_off(
    excess: int, storage: Storage, tmp_path: Path
) -> None:
    ended, told = await say(
        storage,
        header(size=1000, identity="i"),
        encode_frame(bytes(600)),
        encode_frame(bytes(400 + excess)),
        encode_frame(bytes(100_000)),
    )
    assert isinstance(ended, TransferRefused)
    assert ended.code == "size"
    assert told[-1]["code"] == "size"
    assert "announced" in told[-1]["message"]
    assert os.listdir(tmp_path / "in") == []


async def test_less_than_the_announced_size_is_an_error(storage: Storage, tmp_path: Path) -> None:
    digest = hashlib.sha256(bytes(600)).hexdigest()
    trailer = encode_frame(json.dumps({"size": 600, "sha256": digest}).encode())
    ended, told = await say(
        storage,
        header(size=1000, identity="i"),
        encode_frame(bytes(600)) + encode_frame(b"") + trailer,
    )
    assert isinstance(ended, TransferRefused)
    assert (ended.code, told[-1]["stored"]) == ("size", False)
    assert os.listdir(tmp_path / "in") == []


@pytest.mark.parametrize(
    "fields",
    [
        {"size": -1, "identity": "i"},
        {"size": 2**62, "identity": "i"},
        {"size": 10**400, "identity": "i"},
        {"size": 2**61, "identity": "i"},
        {"size": 1.5, "identity": "i"},
        {"size": 1, "identity": "\ud800", "path": "/"},
        {"size": 1, "identity": "i", "path": "\ud800"},
        {"size": 1, "identity": "i", "path": "x" * 15_000},
        {"size": 1, "identity": "i", "path": "/".join("a" * 8000)},
    ],
)
async def test_absurd_headers_are_refused(
    fields: dict[str, Any], storage: Storage, tmp_path: Path
) -> None:
    ended, _ = await say(storage, header(**fields))
    assert isinstance(ended, TransferError)
    assert os.listdir(tmp_path / "in") == []


async def test_an_identity_may_be_any_json_string(storage: Storage) -> None:
    ended, told = await say(storage, header(size=1, identity="\ud800"))
    assert isinstance(ended, TransferError)
    assert told[0]["accepted"]


def test_what_cannot_fit_is_refused_before_a_byte_and_evicts_nothing(
    storage: Storage, tmp_path: Path
) -> None:
    leave(storage, "other", b"x" * 100, peer="victim")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    for announced in (2**61, free * 2):
        with pytest.raises(Refused) as caught:
            storage.begin("huge", announced, "id", peer="attacker")
        assert caught.value.code == "no-space"
    # A file that just fits is taken, and nothing is removed for an announcement alone.
    storage.begin("large", free // 2, "id", peer="attacker").close()
    assert len(parts_of(tmp_path / "in")) == 1


class SmallDisk:
    """A disk of so many bytes, as seen by the storage."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.lies = False
        """Whether it reports all of itself as free, but is full (as with a quota)."""
        self._pwrite = os.pwrite
        patch.setattr(Storage, "_free", lambda storage: (self.free, 0))
        patch.setattr(os, "pwrite", self.pwrite)

    @property
    def used(self) -> int:
        files = {p.stat().st_ino: p.stat() for p in self.directory.rglob("*") if p.is_file()}
        return sum(status.st_size for status in files.values())

    @property
    def free(self) -> int:
        return 10**9 if self.lies else self.size - self.used

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        room = self.size - self.used
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(descriptor, data[:room], offset)


@pytest.mark.parametrize("lies", [False, True])
def test_a_part_left_by_a_full_disk_gives_way_to_others(
    lies: bool, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(monkeypatch, tmp_path / "in", 1000)
    disk.lies = lies
    with storing(storage, "huge", None, "attack", peer="attacker") as stored:
        with pytest.raises(Refused) as caught:
            for _ in range(20):
                stored.write(bytes(100))
        assert caught.value.code == "no-space"
        assert stored.size == 1000
    # (Half of the disk is the parts' quota; with a lie, it is half of the reported size.)
    if not lies:
        assert parts_of(tmp_path / "in") == []
        disk.size = 2000
        leave(storage, "huge", bytes(1000), "attack", peer="attacker")
        disk.size = 1000
    assert disk.used == 1000
    with storing(storage, "wanted", 700, "id", peer="victim") as stored:
        stored.write(bytes(700))
        stored.commit()
    assert (tmp_path / "in" / "wanted").stat().st_size == 700


def test_a_part_being_written_never_gives_way(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDisk(monkeypatch, tmp_path / "in", 1000)
    with storing(storage, "first", 900, "1", peer="a") as first:
        first.write(bytes(900))
        with storing(storage, "second", None, "2", peer="b") as second:
            with pytest.raises(Refused):
                second.write(bytes(200))
        first.commit()
    assert (tmp_path / "in" / "first").stat().st_size == 900


def test_what_a_full_disk_has_interrupted_can_be_continued(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short writes are counted: the part holds exactly the hashed bytes."""
    data = os.urandom(1500)
    disk = SmallDisk(monkeypatch, tmp_path / "in", 1000)
    disk.lies = True
    with storing(storage, "name", 1500, "id") as stored, pytest.raises(Refused):
        stored.write(data)
    disk.size = 3000
    with storing(storage, "name", 1500, "id") as stored:
        assert stored.offset == 1000
        stored.write(data[1000:])
        assert stored.catch_up()
        assert stored.sha256() == hashlib.sha256(data).hexdigest()
        stored.commit()
    assert (tmp_path / "in" / "name").read_bytes() == data


def test_the_limit_of_a_files_size_is_a_refusal(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the write fails with EFBIG; the process lives, the part stays whole."""
    program = f"""
import resource
from phoenix_trio.storage.directory import Storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
storage = Storage({str(tmp_path)!r})
stored = storage.begin("name", 5000, "id")
try:
    for _ in range(5):
        stored.write(bytes(400))
except OSError as error:
    print(error.errno, stored.size)
stored.close()
print(storage.begin("name", 5000, "id").offset)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == [str(errno.EFBIG), "1000", "1000"]


# ------------------------------------------------------------------ parts


class Clock:
    """A clock moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_parts_have_a_lifetime(tmp_path: Path) -> None:
    clock = Clock()
    storage = Storage(str(tmp_path), limits=PartLimits(lifetime=100.0), clock=clock)
    leave(storage, "one", b"x")
    clock.now += 60
    leave(storage, "two", b"x", "2")
    assert storage.clean() == pytest.approx(40, abs=2)
    clock.now += 41
    storage.clean()
    assert [part.name.split(".")[0] for part in parts_of(tmp_path)] == ["two"]
    with storing(storage, "two", None, "2") as stored:
        clock.now += 1000
        storage.clean()
        assert len(parts_of(tmp_path)) == 1, "it is under way"
        assert stored.offset == 1
    storage.clean()
    assert len(parts_of(tmp_path)) == 1, "it was written just now"
    clock.now += 101
    storage.clean()
    assert os.listdir(tmp_path) == []
    storage.close()


def test_a_wall_clock_which_jumps_makes_no_part_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    storage = Storage(str(tmp_path), limits=PartLimits(lifetime=100.0), clock=clock)
    leave(storage, "name", b"x")
    storage.clean()
    real = time.time()
    for jump in (10**9, -(10**9)):
        monkeypatch.setattr(time, "time", lambda jump=jump: real + jump)
        storage.clean()
        assert len(parts_of(tmp_path)) == 1
    # A part of the future, as found by a process that starts with its clock put back.
    again = Storage(str(tmp_path), limits=PartLimits(lifetime=100.0), clock=clock)
    again.clean()
    assert len(parts_of(tmp_path)) == 1
    clock.now += 101
    again.clean()
    assert parts_of(tmp_path) == []
    storage.close()
    again.close()


def test_parts_of_a_process_before_grow_old_too(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    leave(storage, "name", b"x")
    (part,) = parts_of(tmp_path)
    os.utime(part, (time.time() - 90_000,) * 2)
    leave(storage, "other", b"x", "2")
    assert [part.name.split(".")[0] for part in parts_of(tmp_path)] == ["other"]
    storage.close()


def test_one_address_cannot_push_out_the_parts_of_others(tmp_path: Path, figure: Figure) -> None:
    limits = PartLimits(max_count=20, max_count_per_peer=10, max_bytes=2000)
    storage = Storage(str(tmp_path), limits=limits)
    leave(storage, "precious", bytes(200), peer="victim")
    for number in range(100):
        leave(storage, f"junk{number}", bytes(150), peer="attacker")
    left = Counter(part.name.split(".")[-2] for part in parts_of(tmp_path))
    assert len(left) == 2
    assert sorted(left.values()) == [1, 10]
    figure("parts of an attacker after 100 broken transfers", max(left.values()), "parts")
    assert storage.begin("precious", None, "id", peer="victim").offset == 200
    storage.close()


def test_parts_of_nothing_and_of_what_cannot_be_repeated_do_not_stay(
    storage: Storage, tmp_path: Path
) -> None:
    with storing(storage, "empty", 10, "id"):
        pass
    with storing(storage, "piped", None, None) as stored:
        stored.write(b"x")
    assert os.listdir(tmp_path / "in") == []


def test_a_hundred_resumptions_read_nothing_of_the_part(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    leave(storage, "name", b"x")
    (part,) = parts_of(tmp_path / "in")
    os.truncate(part, 1024 * MEBIBYTE)  # sparse, so that the test costs no disk
    reads = 0
    pread, read = os.pread, os.read

    def counting(call: Callable[..., bytes]) -> Callable[..., bytes]:
        def wrapped(*arguments: Any) -> bytes:
            nonlocal reads
            reads += arguments[1]
            return call(*arguments)

        return wrapped

    monkeypatch.setattr(os, "pread", counting(pread))
    monkeypatch.setattr(os, "read", counting(read))
    started = time.perf_counter()
    for _ in range(100):
        with storing(storage, "name", 2**31, "id") as stored:
            assert stored.offset == 1024 * MEBIBYTE
    figure("a resumption of 1 GiB", (time.perf_counter() - started) * 10, "ms")
    figure("bytes read in 100 resumptions", reads, "B")
    assert reads == 0


def test_a_process_reads_a_part_again_at_most_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * MEBIBYTE)
    storage = Storage(str(tmp_path))
    leave(storage, "name", data[:MEBIBYTE])
    storage.close()  # killed, and started again
    reads = 0
    original = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal reads
        chunk = original(descriptor, size, offset)
        reads += len(chunk)
        return chunk

    monkeypatch.setattr(os, "pread", pread)
    storage = Storage(str(tmp_path))
    for end in (MEBIBYTE + 1, 2 * MEBIBYTE):
        with storing(storage, "name", len(data), "id") as stored:
            stored.write(data[stored.size : end])
            while not stored.catch_up():
                pass
    with storing(storage, "name", len(data), "id") as stored:
        stored.write(data[stored.size :])
        assert stored.catch_up()
        assert stored.sha256() == hashlib.sha256(data).hexdigest()
        stored.commit()
    assert reads == MEBIBYTE + 1, "what was there when this process began, once"
    storage.close()


def test_a_part_which_another_program_has_changed_is_read_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    leave(storage, "name", b"aaaa")
    (part,) = parts_of(tmp_path)
    part.write_bytes(b"bbbb")
    with storing(storage, "name", None, "id") as stored:
        assert stored.catch_up()
        assert stored.sha256() == hashlib.sha256(b"bbbb").hexdigest()
    storage.close()


def test_a_receiver_killed_between_two_names_never_writes_to_the_stored_file(
    tmp_path: Path,
) -> None:
    """The link is made, the part not removed yet; then the user moves the file away."""
    storage = Storage(str(tmp_path))
    leave(storage, "name", b"whole")
    (part,) = parts_of(tmp_path)
    os.link(part, tmp_path / "moved")
    with storing(storage, "name", 100, "id") as stored:
        assert stored.offset == 0
        stored.write(b"XXXXXXXXXXX")
    assert (tmp_path / "moved").read_bytes() == b"whole"
    os.link(parts_of(tmp_path)[0], tmp_path / "again")
    storage.clean()
    assert parts_of(tmp_path) == [], "and such a part is cleaned up"
    storage.close()


def test_two_receivers_on_one_directory_do_not_mix(tmp_path: Path) -> None:
    one, two = Storage(str(tmp_path)), Storage(str(tmp_path), limits=PartLimits(max_count=0))
    with storing(one, "name", 2, "id") as stored:
        stored.write(b"x")
        with pytest.raises(Refused) as caught:
            two.begin("name", 2, "id")
        assert caught.value.code == "busy"
        two.clean()
        assert len(parts_of(tmp_path)) == 1, "the other one's is locked"
    two.clean()
    assert parts_of(tmp_path) == []
    one.close()
    two.close()


def test_a_part_goes_on_from_another_address_and_counts_there(
    storage: Storage, tmp_path: Path
) -> None:
    leave(storage, "name", b"abc", peer="here")
    (before,) = parts_of(tmp_path / "in")
    with storing(storage, "name", None, "id", peer="there") as stored:
        assert stored.offset == 3
    (after,) = parts_of(tmp_path / "in")
    assert before.name.split(".")[-2] != after.name.split(".")[-2]


def test_another_identity_neither_finds_nor_blocks_a_part(storage: Storage, tmp_path: Path) -> None:
    """A stranger who knows the name can neither poison nor hold another sender's part."""
    with storing(storage, "name", 4, "secret", peer="victim") as mine:
        mine.write(b"ab")
        with storing(storage, "name", 4, "guess", peer="attacker") as theirs:
            assert theirs.offset == 0
            theirs.write(b"junk")
        mine.write(b"cd")
        mine.commit()
    assert (tmp_path / "in" / "name").read_bytes() == b"abcd"


def test_modes_follow_the_umask_and_parts_are_private(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        storage = Storage(str(tmp_path))
        with storing(storage, "sub/name", 1, "id") as stored:
            stored.write(b"x")
            (part,) = parts_of(tmp_path)
            assert part.stat().st_mode & 0o777 == 0o600
            assert part.parent.stat().st_mode & 0o777 == 0o700
            stored.commit()
    finally:
        os.umask(previous)
    assert (tmp_path / "sub/name").stat().st_mode & 0o777 == 0o640
    storage.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_stores_all_the_same(
    number: int, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with storing(storage, "name", 1, "id") as stored:
        stored.write(b"x")
        stored.commit()
    assert (tmp_path / "in" / "name").read_bytes() == b"x"
    assert os.listdir(tmp_path / "in") == ["name"]


# ------------------------------------------------------------------ senders, over the network

no_threads = pytest.fixture(plain_no_threads.__wrapped__)


@asynccontextmanager
async def served(
    directory: Path, clock: MockClock, *, places: Places | None = None, timeout: float = 20.0
) -> AsyncIterator[tuple[Receiver, SimulatedNetwork]]:
    network = SimulatedNetwork(delay=0.005)
    storage = Storage(str(directory), limits=PartLimits(lifetime=500.0), clock=clock.current_time)
    receiver = Receiver(storage, places or Places(64, 8), timeout)
    async with listening(receiver, network):
        yield receiver, network
    storage.close()


def dial(network: SimulatedNetwork, host: str = CLIENT) -> Any:
    return phoenix_trio.open_connection(
        SERVER,
        PORT,
        tls=client_tls(),
        alpn=(ALPN,),
        config=phoenix_trio.TransportConfig(keep_alive=5.0),
        network=network.host(host),
    )


async def send(
    connection: phoenix_trio.QuicConnection, data: bytes, name: str, identity: str
) -> None:
    async with await connection.open_stream() as stream:
        await send_file(stream, Bytes(data, identity), name)


async def test_silent_transfers_free_the_places_of_their_address(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path, figure: Figure
) -> None:
    async with served(tmp_path, autojump_clock) as (receiver, network), dial(network) as attacker:
        streams = []
        for number in range(12):
            stream = await attacker.open_stream()
            await stream.send_all(header(path=f"x{number}", size=10, identity="i")[: 9 + number])
            streams.append(stream)
        await trio.sleep(1)
        assert receiver._places.taken == 8
        with pytest.raises(TransferRefused) as caught:
            await send(attacker, b"data", "same-address", "1")
        assert caught.value.code == "busy"
        async with dial(network, "10.0.0.77") as other:
            await send(other, b"data", "other-address", "2")
        started = trio.current_time()
        while receiver._places.taken:
            await trio.sleep(0.5)
            assert trio.current_time() - started < 100
        figure("places free again after", trio.current_time() - started, "s (timeout 20 s)")
        await send(attacker, b"data", "same-address", "1")
        for stream in streams:
            stream.close()


async def test_a_byte_now_and_then_does_not_hold_a_place(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path
) -> None:
    async with served(tmp_path, autojump_clock) as (receiver, network), dial(network) as attacker:
        async with await attacker.open_stream() as stream:
            await stream.send_all(header(size=10**6, identity="i"))
            started = trio.current_time()
            with pytest.raises(phoenix_trio.StreamStopped):
                while True:
                    await stream.send_all(encode_frame(b"x"))
                    await trio.sleep(1)
            assert 18 < trio.current_time() - started < 25
            assert receiver._places.taken == 0


async def test_a_part_of_a_vanished_sender_goes_in_time(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path
) -> None:
    async with served(tmp_path, autojump_clock) as (_, network):
        async with dial(network) as sender:
            stream = await sender.open_stream()
            await stream.send_all(header(size=10**6, identity="i") + encode_frame(bytes(50_000)))
            await trio.sleep(1)
            sender.abort(9)
        await trio.sleep(5)
        assert len(parts_of(tmp_path)) == 1
        await trio.sleep(480)
        assert len(parts_of(tmp_path)) == 1
        await trio.sleep(20)
        assert os.listdir(tmp_path) == []


async def test_a_continuation_takes_over_from_an_attempt_whose_sender_is_gone(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path
) -> None:
    """The receiver has not noticed yet that the first connection is dead."""
    data = os.urandom(100_000)
    async with served(tmp_path, autojump_clock) as (receiver, network), dial(network) as gone:
        stream = await gone.open_stream()
        await stream.send_all(header(size=len(data), identity="i", path="name"))
        await stream.send_all(encode_frame(data[:40_000]))
        await trio.sleep(1)
        assert receiver._places.taken == 1
        async with dial(network, "10.0.0.3") as again:
            started = trio.current_time()
            await send(again, data, "name", "i")
            assert trio.current_time() - started < 2
        assert (tmp_path / "name").read_bytes() == data
        stream.close()


async def test_a_sender_hears_why_it_is_cut_off(
    autojump_clock: MockClock,
    no_threads: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not "the stream broke", after which it would try again ten times."""
    SmallDisk(monkeypatch, tmp_path, 3 * MEBIBYTE)
    async with served(tmp_path, autojump_clock) as (_, network), dial(network) as sender:
        async with await sender.open_stream() as stream:
            source = Bytes(bytes(20 * MEBIBYTE))
            source.size = None
            with pytest.raises(TransferRefused) as caught:
                await send_file(stream, source, "name")
            assert caught.value.code == "no-space"
            assert source.position < 15 * MEBIBYTE


async def test_a_sender_which_reads_no_answer_holds_no_place(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path
) -> None:
    places = Places(1, 1)
    here, there = trio.testing.memory_stream_pair()

    class Deaf(trio.abc.HalfCloseableStream):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self) -> None:
            await trio.sleep_forever()

        async def send_eof(self) -> None:
            await trio.sleep_forever()

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await there.receive_some(max_bytes)

        async def aclose(self) -> None:
            await there.aclose()

    storage = Storage(str(tmp_path))
    await here.send_all(header(size=10, identity="i"))
    started = trio.current_time()
    with pytest.raises(TransferError):
        await receive_file(Deaf(), storage, places=places, idle_timeout=5.0)
    assert trio.current_time() - started < 11
    assert places.taken == 0
    storage.close()


async def test_a_part_which_was_tampered_with_costs_its_sender_one_more_attempt(
    autojump_clock: MockClock, no_threads: None, tmp_path: Path
) -> None:
    data = os.urandom(100_000)
    async with served(tmp_path, autojump_clock) as (_, network):
        storage = Storage(str(tmp_path))
        leave(storage, "name", b"junk" * 100, "i")
        storage.close()
        async with dial(network) as sender:
            with pytest.raises(TransferRefused) as caught:
                await send(sender, data, "name", "i")
            assert (caught.value.code, caught.value.resumed_at) == ("checksum", 400)
            await send(sender, data, "name", "i")
    assert (tmp_path / "name").read_bytes() == data


# ------------------------------------------------------------------ the sender's own side


def test_attempts_in_a_row_hash_each_byte_once() -> None:
    data = os.urandom(1000)
    digests = PrefixDigests(step=100)
    running, position = hashlib.sha256(), 0
    while position < 550:
        size = min(30, digests.until_next(position), 550 - position)
        running.update(data[position : position + size])
        position += size
        digests.note(position, running)
    for offset in (0, 99, 100, 333, 550, 999):
        known, digest = digests.before(offset)
        assert known == min(offset // 100 * 100, 500)
        assert digest.hexdigest() == hashlib.sha256(data[:known]).hexdigest()


async def test_a_second_attempt_reads_the_source_from_where_it_is_needed(tmp_path: Path) -> None:
    data = os.urandom(40 * MEBIBYTE)
    storage = Storage(str(tmp_path))
    digests = PrefixDigests()
    leave(storage, "name", data[: 33 * MEBIBYTE])
    read = []
    for _ in range(2):
        here, there = trio.testing.memory_stream_pair()
        source = Bytes(data)
        begins: list[int] = []

        def seek(position: int, source: Bytes = source, begins: list[int] = begins) -> None:
            begins.append(position)
            source.position = position

        source.seek = seek  # type: ignore[method-assign]

        async def receive(stream: trio.abc.HalfCloseableStream = there) -> None:
            with pytest.raises((TransferError, trio.BrokenResourceError)):
                await receive_file(stream, storage)

        def stop(position: int) -> None:
            if position > 35 * MEBIBYTE:
                raise TransferError("enough")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(TransferError, match="enough"):
                await send_file(here, source, "name", digests=digests, on_progress=stop)
            await here.aclose()
        read.append(begins)
    assert read == [[], [32 * MEBIBYTE]]
    storage.close()


@pytest.mark.parametrize("change", [-1, 1])
async def test_a_file_which_changes_while_it_is_sent_is_not_sent(
    change: int, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    here, there = trio.testing.memory_stream_pair()
    source = Bytes(bytes(1000))
    source.size = 1000 - change

    async def receive() -> None:
        with pytest.raises((TransferError, trio.BrokenResourceError)):
            await receive_file(there, storage)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(TransferError, match="while it was sent"):
            await send_file(here, source, "name")
        await here.aclose()
    assert not (tmp_path / "name").exists()
    storage.close()
