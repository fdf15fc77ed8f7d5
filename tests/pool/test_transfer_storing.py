"""Transfers into files: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import PartLimits, TransferCode
from phoenix_trio.pool import IncomingTransfer, TransferHub
from phoenix_trio.storage.checked_file import CheckedFile
from phoenix_trio.storage.directory import PARTS_DIRECTORY, Storage
from phoenix_trio.storage.ledger import Header
from phoenix_trio.testing import SimulatedNetwork
from tests.pool.test_transfer_hub import STRIPE, no_threads, still_works, two_hubs

__all__ = ["no_threads"]  # a fixture: virtual time does not wait for threads

SIZE = 100 * STRIPE + 1000
DATA = os.urandom(SIZE)
ID = b"../../etc/passwd"  # 16 bytes, as any others


def slow_network() -> SimulatedNetwork:
    """About two seconds for the data."""
    return SimulatedNetwork(delay=0.01, bandwidth=2e6)


def parts(directory: Path) -> list[str]:
    """The suffixes of the files beside the targets."""
    beside = directory / PARTS_DIRECTORY
    return sorted(path.suffix for path in beside.iterdir()) if beside.exists() else []


def part(directory: Path, suffix: str = ".part") -> Path:
    (path,) = (directory / PARTS_DIRECTORY).glob(f"*{suffix}")
    return path


async def store(hub: TransferHub, path: Path, **options: Any) -> IncomingTransfer:
    async with await hub.accept() as transfer:
        await transfer.store(path, **options)
    return transfer


# ------------------------------------------------------------------ whole or not at all


async def test_an_existing_file_is_replaced_when_the_new_one_is_whole(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"before")

    def still_there(done: int) -> None:
        if done < SIZE // 2:
            assert path.read_bytes() == b"before"

    async with two_hubs(slow_network()) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store, receiver, path)
            summary = await sender.send([client], DATA, on_progress=still_there)
            assert path.read_bytes() == DATA, "it is there when the sender's call returns"
        assert summary.sha256 == hashlib.sha256(DATA).digest()
        assert os.listdir(tmp_path) == ["copy"]
        await still_works(client, sender, receiver)


async def test_a_file_and_its_name_are_on_the_disk_before_the_sender_hears_of_it(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        log.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: str, target: str, **options: int) -> None:
        if target == "copy":
            log.append("name")
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(store, receiver, tmp_path / "copy")
        await sender.send([client], DATA)
        assert log == ["file", "file", "name", "directory"], "the ledger, then the file"


@pytest.mark.parametrize("size", [0, 1, STRIPE, 3 * STRIPE])
async def test_files_of_any_size_are_stored(
    size: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(store, receiver, tmp_path / "copy")
        await sender.send([client], DATA[:size])
    assert (tmp_path / "copy").read_bytes() == DATA[:size]
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_symbolic_link_leads_to_the_file_which_is_replaced(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(store, receiver, tmp_path / "link")
        await sender.send([client], b"some")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"some"


async def test_a_cancelled_receiver_leaves_the_target_and_a_part(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"before")
    async with two_hubs(slow_network()) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with trio.move_on_after(1):
                    await store(receiver, path)

            nursery.start_soon(receive)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], DATA)
        assert caught.value.code == TransferCode.CANCELLED
        assert path.read_bytes() == b"before"
        assert parts(tmp_path) == [".ledger", ".part"]
        await still_works(client, sender, receiver)


@pytest.mark.parametrize("call", ["fsync", "replace", "pwrite", "ftruncate"])
async def test_a_disk_which_fails_is_an_error_on_both_sides(
    call: str, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"before")

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(5, "the disk is gone")

    async with two_hubs() as (client, sender, receiver):
        monkeypatch.setattr(os, call, fail)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(OSError, match="the disk is gone"):
                    await store(receiver, path)

            nursery.start_soon(receive)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], DATA)
        assert caught.value.code == TransferCode.NOT_STORED
        monkeypatch.undo()
        assert path.read_bytes() == b"before"


async def test_a_full_disk_is_an_error_on_both_sides(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(OSError, match="full"):
                await store(receiver, tmp_path / "copy", limits=PartLimits(keep_free=2**62))

        nursery.start_soon(receive)
        with pytest.raises(phoenix_trio.TransferRefused) as caught:
            await sender.send([client], DATA)
        assert caught.value.code == TransferCode.NOT_STORED
    assert os.listdir(tmp_path) == []


async def test_a_cancellation_while_the_file_gets_its_name_does_not_take_it_back(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = trio.CancelScope()
    commit = CheckedFile.commit

    def commit_and_cancel(file: CheckedFile) -> None:
        scope.cancel()
        commit(file)

    monkeypatch.setattr(CheckedFile, "commit", commit_and_cancel)
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            with scope:
                await store(receiver, tmp_path / "copy")
            assert scope.cancelled_caught

        nursery.start_soon(receive)
        await sender.send([client], DATA)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_sender_which_gives_up_in_the_last_moment_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CheckedFile.commit
    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await sender.send([client], DATA)

            nursery.start_soon(send)
            async with await receiver.accept() as transfer:

                def commit_late(file: CheckedFile) -> None:
                    commit(file)
                    code = TransferCode.CANCELLED
                    transfer._give_up(code, "the sender has given up", by_sender=True)

                monkeypatch.setattr(CheckedFile, "commit", commit_late)
                await transfer.store(tmp_path / "copy")
            nursery.cancel_scope.cancel()
        assert transfer.is_verified
        assert not transfer.is_confirmed
    assert (tmp_path / "copy").read_bytes() == DATA


async def test_a_part_which_another_process_writes_is_busy(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    storage = Storage(str(tmp_path), overwrite=True, trust_names=True)
    other = CheckedFile.begin(storage, "copy", Header(SIZE, bytes(32)), identity=ID.hex(), peer="")
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BusyResourceError, match="another receiver"):
                await store(receiver, path)
            other.close()
            await store(receiver, path)

        nursery.start_soon(receive)
        with pytest.raises(phoenix_trio.TransferRefused) as caught:
            await sender.send([client], DATA, transfer_id=ID)
        assert caught.value.code == TransferCode.NOT_STORED
        await sender.send([client], DATA, transfer_id=ID)
    storage.close()
    assert path.read_bytes() == DATA


async def test_a_clean_up_which_fails_does_not_undo_what_was_stored(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    close = CheckedFile.close

    def close_and_fail(file: CheckedFile) -> None:
        close(file)
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(CheckedFile, "close", close_and_fail)
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(store, receiver, tmp_path / "copy")
        await sender.send([client], DATA)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert "could not be cleaned up" in caplog.text


async def test_a_closed_hub_ends_what_is_being_stored_and_keeps_its_part(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with two_hubs(slow_network()) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await store(receiver, tmp_path / "copy")

            async def close() -> None:
                await trio.sleep(1)
                receiver.close()

            nursery.start_soon(receive)
            nursery.start_soon(close)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], DATA)
        assert caught.value.code == TransferCode.SHUTTING_DOWN
    assert parts(tmp_path) == [".ledger", ".part"]
