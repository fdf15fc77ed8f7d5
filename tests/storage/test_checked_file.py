"""Partial files with a ledger: the parts kept of an earlier attempt, and the parts rejected."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.storage.checked_file import CheckedFile
from phoenix_trio.storage.directory import PARTS_DIRECTORY, Storage
from phoenix_trio.storage.ledger import (
    HEADER_SIZE,
    MAX_LEDGER_SIZE,
    RECORD_SIZE,
    Header,
    LedgerRefused,
    Span,
    decode_ledger,
    encode_header,
    encode_record,
    least_span,
)
from phoenix_trio.storage.names import Refused
from phoenix_trio.storage.open_storages import OpenStorages
from phoenix_trio.storage.parts import PartLimits
from tests.support import examples

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
UNIT = 64 * KIBIBYTE
SIZE = 5 * MEBIBYTE + 1000
DATA = os.urandom(SIZE)
HEADER = Header(SIZE, bytes(range(32)))


@contextmanager
def storing(
    directory: Path, header: Header = HEADER, *, unit: int = UNIT, identity: str = "id"
) -> Iterator[CheckedFile]:
    """The file as a new process has it: without any memory of earlier attempts."""
    storage = Storage(str(directory), overwrite=True, trust_names=True)
    try:
        file = CheckedFile.begin(storage, "name", header, identity=identity, peer="peer")
        try:
            for _ in file.check(unit):
                pass
            yield file
        finally:
            file.close()
    finally:
        storage.close()


def leave(directory: Path, size: int, header: Header = HEADER) -> None:
    """An attempt that ends after `size` bytes, written 100,000 bytes at a time."""
    with storing(directory, header) as file:
        for at in range(0, size, 100_000):
            file.write(DATA[at : min(at + 100_000, size)])


def only(directory: Path, suffix: str) -> Path:
    (path,) = (directory / PARTS_DIRECTORY).glob(f"*{suffix}")
    return path


def finish(file: CheckedFile, offset: int | None = None) -> None:
    """Continue at the present offset, and check that the whole is right."""
    if offset is not None:
        assert file.offset == offset
    file.write(DATA[file.offset :])
    while not file.catch_up():
        pass
    assert file.digest() == hashlib.sha256(DATA).digest()
    file.commit()


def is_stored(directory: Path) -> None:
    assert (directory / "name").read_bytes() == DATA
    assert os.listdir(directory) == ["name"], "nothing is left beside"


# ------------------------------------------------------------------ attempts


def test_a_file_is_continued_where_an_earlier_attempt_has_ended(tmp_path: Path) -> None:
    leave(tmp_path, 3 * MEBIBYTE)
    with storing(tmp_path) as file:
        finish(file, 3 * MEBIBYTE)
    is_stored(tmp_path)


def test_what_a_killed_process_has_recorded_is_kept(tmp_path: Path) -> None:
    program = f"""
import os, sys
from phoenix_trio.storage.checked_file import CheckedFile
from phoenix_trio.storage.directory import Storage
from phoenix_trio.storage.ledger import Header
storage = Storage({str(tmp_path)!r}, overwrite=True, trust_names=True)
header = Header({SIZE}, bytes(range(32)))
file = CheckedFile.begin(storage, "name", header, identity="id", peer="peer")
list(file.check({UNIT}))
while data := sys.stdin.buffer.read({UNIT}):
    file.write(data)
os.kill(os.getpid(), 9)
"""
    subprocess.run(
        [sys.executable, "-c", program], input=DATA[: 3 * MEBIBYTE + UNIT], check=False, timeout=20
    )
    assert only(tmp_path, ".part").stat().st_size == 3 * MEBIBYTE + UNIT
    with storing(tmp_path) as file:
        finish(file, 3 * MEBIBYTE)
    is_stored(tmp_path)


@pytest.mark.parametrize("unit", [UNIT, 100_000, 999_999, 1])
def test_what_is_kept_is_a_multiple_of_the_unit_and_goes_on_being_recorded(
    unit: int, tmp_path: Path
) -> None:
    leave(tmp_path, 2_500_000)
    with storing(tmp_path, unit=unit) as file:
        assert file.offset == 2_500_000 - 2_500_000 % unit
        file.write(DATA[file.offset : 4 * MEBIBYTE])
    with storing(tmp_path, unit=1) as file:
        finish(file, 4 * MEBIBYTE)
    is_stored(tmp_path)


def test_a_whole_file_is_kept_though_its_end_is_no_multiple(tmp_path: Path) -> None:
    leave(tmp_path, SIZE)
    with storing(tmp_path) as file:
        finish(file, SIZE)
    is_stored(tmp_path)


def test_many_short_attempts_leave_a_short_ledger(tmp_path: Path) -> None:
    for number in range(20):
        with storing(tmp_path, unit=1) as file:
            assert file.offset == number * 1000
            file.write(DATA[file.offset : file.offset + 1000])
    assert only(tmp_path, ".ledger").stat().st_size <= HEADER_SIZE + 2 * RECORD_SIZE
    with storing(tmp_path, unit=1) as file:
        finish(file, 20_000)
    is_stored(tmp_path)


def test_the_same_process_reads_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: read.append(a[1]) or pread(*a))  # type: ignore[func-returns-value]
    storage = Storage(str(tmp_path), overwrite=True, trust_names=True)
    for number in range(3):
        file = CheckedFile.begin(storage, "name", HEADER, identity="id", peer="peer")
        list(file.check(UNIT))
        assert file.offset == number * MEBIBYTE
        file.write(DATA[file.offset : file.offset + MEBIBYTE])
        file.close()
    storage.close()
    assert not read
    with storing(tmp_path) as file:
        assert sum(read) >= 3 * MEBIBYTE
        finish(file, 3 * MEBIBYTE)


def test_a_part_is_found_again_from_another_address_with_its_ledger(tmp_path: Path) -> None:
    leave(tmp_path, MEBIBYTE)
    storage = Storage(str(tmp_path), overwrite=True, trust_names=True)
    file = CheckedFile.begin(storage, "name", HEADER, identity="id", peer="another")
    list(file.check(UNIT))
    assert file.offset == MEBIBYTE
    file.close()
    storage.close()
    assert len(os.listdir(tmp_path / PARTS_DIRECTORY)) == 2


def test_two_attempts_at_once_are_refused(tmp_path: Path) -> None:
    with storing(tmp_path), pytest.raises(Refused) as caught:
        with storing(tmp_path):
            pass
    assert caught.value.code == "busy"


def test_a_discarded_file_leaves_nothing(tmp_path: Path) -> None:
    leave(tmp_path, MEBIBYTE)
    with storing(tmp_path) as file:
        file.discard()
    assert os.listdir(tmp_path) == []


def test_an_old_part_goes_with_its_ledger(tmp_path: Path) -> None:
    leave(tmp_path, MEBIBYTE)
    os.utime(only(tmp_path, ".part"), (1, 1))
    storage = Storage(str(tmp_path), limits=PartLimits(lifetime=1000.0))
    storage.clean()
    storage.close()
    assert os.listdir(tmp_path) == []


def test_a_ledger_whose_part_is_gone_is_removed(tmp_path: Path) -> None:
    leave(tmp_path, MEBIBYTE)
    only(tmp_path, ".part").unlink()
    storage = Storage(str(tmp_path))
    storage.clean()
    storage.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".hidden", "x" * 250, "a:b\\c", "caf\udce9", "\n"])
def test_a_program_may_choose_any_name_which_the_system_takes(name: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), overwrite=True, trust_names=True)
    for part in (DATA[:MEBIBYTE], DATA[MEBIBYTE:]):
        file = CheckedFile.begin(storage, name, HEADER, identity="id", peer="peer")
        list(file.check(UNIT))
        file.write(part)
        if len(part) > MEBIBYTE:
            file.commit()
        file.close()
    storage.close()
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == DATA


# ------------------------------------------------------------------ ledgers rejected


def truncated(path: Path) -> None:
    os.truncate(path, HEADER_SIZE - 1)


def with_a_wrong_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def with_a_gap(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:HEADER_SIZE] + data[HEADER_SIZE + RECORD_SIZE :])


def too_large(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(MAX_LEDGER_SIZE))


def beyond_the_end(path: Path) -> None:
    beginning = encode_header(HEADER)
    path.write_bytes(beginning + encode_record(beginning, Span(0, 2**63, 0)))


def empty_ranges(path: Path) -> None:
    beginning = encode_header(HEADER)
    path.write_bytes(beginning + encode_record(beginning, Span(0, 0, 0)) * 5)


def a_symbolic_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        truncated,
        lambda path: with_a_wrong_bit(path, 3),
        lambda path: with_a_wrong_bit(path, 12),
        lambda path: with_a_wrong_bit(path, 20),
        lambda path: with_a_wrong_bit(path, HEADER_SIZE + 3),
        with_a_gap,
        too_large,
        beyond_the_end,
        empty_ranges,
        a_symbolic_link,
        a_pipe,
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_ledger_which_is_wrong_is_not_used(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    damage(only(tmp_path, ".ledger"))
    with caplog.at_level(logging.WARNING), storing(tmp_path) as file:
        finish(file, 0)
    assert "the transfer starts from zero" in caplog.text
    is_stored(tmp_path)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (Header(SIZE - 1, HEADER.identity), f"of a transfer of {SIZE} bytes, not {SIZE - 1}"),
        (Header(None, HEADER.identity), f"of a transfer of {SIZE} bytes, not None"),
        (Header(SIZE, bytes(32)), "of another transfer"),
    ],
)
def test_a_ledger_of_another_transfer_is_not_used(
    header: Header, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    with caplog.at_level(logging.WARNING), storing(tmp_path, header) as file:
        assert file.offset == 0
    assert why in caplog.text


@pytest.mark.parametrize("tail", [b"x", bytes(RECORD_SIZE), bytes(5 * RECORD_SIZE + 1)])
def test_a_torn_tail_of_a_ledger_is_left_out(tail: bytes, tmp_path: Path) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    ledger = only(tmp_path, ".ledger")
    ledger.write_bytes(ledger.read_bytes() + tail)
    with storing(tmp_path) as file:
        finish(file, 4 * MEBIBYTE)
    is_stored(tmp_path)


def test_a_ledger_half_written_is_no_obstacle(tmp_path: Path) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    ledger = only(tmp_path, ".ledger")
    ledger.with_suffix(".ledger.new").write_bytes(b"half")
    with storing(tmp_path) as file:
        finish(file, 4 * MEBIBYTE)
    is_stored(tmp_path)


def test_a_part_shorter_than_its_ledger_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    os.truncate(only(tmp_path, ".part"), 3 * MEBIBYTE)
    with storing(tmp_path) as file:
        assert file.offset == 3 * MEBIBYTE
        finish(file)
    is_stored(tmp_path)


@pytest.mark.parametrize("unit", [1, UNIT, MEBIBYTE])
def test_a_part_is_kept_up_to_where_it_is_damaged(
    unit: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, 4 * MEBIBYTE)
    with_a_wrong_bit(only(tmp_path, ".part"), 3 * MEBIBYTE)
    with caplog.at_level(logging.WARNING), storing(tmp_path, unit=unit) as file:
        assert file.offset % unit == 0
        assert file.offset <= 3 * MEBIBYTE
        assert file.offset > MEBIBYTE
        file.write(DATA[file.offset : 4 * MEBIBYTE])
    assert "is damaged between byte" in caplog.text
    with storing(tmp_path) as file:
        finish(file, 4 * MEBIBYTE)
    is_stored(tmp_path)


@examples(100)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_ledger_or_refused(data: bytes) -> None:
    beginning = encode_header(HEADER)
    for ledger in (data, beginning + data):
        try:
            spans = decode_ledger(ledger, HEADER)
        except LedgerRefused:
            continue
        assert ledger.startswith(beginning)
        assert not spans


@examples(50)
@given(st.lists(st.integers(1, 2**40), max_size=20), st.booleans())
def test_a_ledger_is_read_as_it_was_written(lengths: list[int], is_known: bool) -> None:
    spans, at = [], 0
    for length in lengths:
        spans.append(Span(at, at + length, zlib.crc32(bytes([length % 256]))))
        at += length
    header = Header(at if is_known else None, HEADER.identity)
    beginning = encode_header(header)
    data = beginning + b"".join(encode_record(beginning, span) for span in spans)
    assert decode_ledger(data, header) == spans
    assert len(beginning) == HEADER_SIZE


def test_the_ledger_of_the_largest_part_is_small() -> None:
    at = count = 0
    while at < 2**62:
        # (Many equal steps at once.)
        steps = 64
        at += steps * least_span(at)
        count += steps
    assert HEADER_SIZE + (count + 64) * RECORD_SIZE < MAX_LEDGER_SIZE


def test_the_layout_of_a_ledger() -> None:
    beginning = encode_header(Header(1000, b"i" * 32))
    fields = b"PHXLEDG1" + (1000).to_bytes(8, "big") + b"i" * 32
    assert beginning == fields + zlib.crc32(fields).to_bytes(4, "big")
    record = encode_record(beginning, Span(5, 25, 0xDEADBEEF))
    fields = (5).to_bytes(8, "big") + (20).to_bytes(8, "big") + bytes.fromhex("deadbeef")
    assert record == fields + zlib.crc32(beginning + fields).to_bytes(4, "big")
    assert encode_header(Header(None, b"i" * 32))[8:16] == b"\xff" * 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_parts_are_not_put_where_another_user_can_change_them(tmp_path: Path) -> None:
    (tmp_path / PARTS_DIRECTORY).mkdir()
    os.chown(tmp_path / PARTS_DIRECTORY, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        with storing(tmp_path):
            pass
    assert os.listdir(tmp_path / PARTS_DIRECTORY) == []


# ------------------------------------------------------------------ storages that stay open


def test_a_directory_which_was_replaced_is_not_mistaken_for_the_new_one(tmp_path: Path) -> None:
    storages = OpenStorages()
    directory = tmp_path / "d"
    directory.mkdir()
    first = storages.acquire(str(directory), PartLimits())
    storages.release(first)
    assert storages.acquire(str(directory), PartLimits()) is first
    storages.release(first)
    directory.rmdir()
    directory.mkdir()
    second = storages.acquire(str(directory), PartLimits())
    assert second is not first
    storages.release(second)
    directory.rmdir()
    with pytest.raises(FileNotFoundError):
        storages.acquire(str(directory), PartLimits())
    storages.close()


def test_few_storages_stay_open_and_none_after_the_end(tmp_path: Path) -> None:
    storages = OpenStorages()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        (tmp_path / str(number)).mkdir()
        storages.release(storages.acquire(str(tmp_path / str(number)), PartLimits()))
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    last = storages.acquire(str(tmp_path), PartLimits())
    storages.close()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    storages.release(last)
    assert len(os.listdir("/proc/self/fd")) == before
