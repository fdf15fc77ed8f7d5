"""Stored transfers are continued where an earlier attempt has ended."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import PartLimits, TransferCode
from phoenix_trio.pool import IncomingTransfer, TransferHub, TransferSummary, multiplex
from phoenix_trio.pool.transfer_records import (
    Manifest,
    Skipped,
    decode_record,
    encode_record,
    encode_stripe_header,
)
from phoenix_trio.storage import checked_file
from phoenix_trio.streams import StreamKind
from phoenix_trio.testing import SimulatedNetwork
from tests.pool.test_transfer_confirmation import Dial, ReceivingProcess, a_receiver
from tests.pool.test_transfer_hub import STRIPE, RawSender, no_threads, still_works, two_hubs
from tests.pool.test_transfer_storing import DATA, ID, SIZE, part, parts, slow_network, store

__all__ = ["no_threads"]  # a fixture: virtual time does not wait for threads


@asynccontextmanager
async def after_a_first_attempt(
    path: Path, source: Any = DATA, **settings: Any
) -> AsyncIterator[tuple[TransferHub, ReceivingProcess, Dial]]:
    """A transfer has ended in the middle, as has its receiver; another receiver is there."""
    async with a_receiver(slow_network(), **settings) as (sender, receiver, dial):
        scope = trio.CancelScope()

        async def receive() -> None:
            with scope:
                await store(receiver.hub, path)

        def stop(done: int) -> None:
            if done > SIZE // 2:
                receiver.restart()
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(trio.BrokenResourceError):
                await sender.send([await dial()], source, on_progress=stop, transfer_id=ID)
        assert parts(path.parent) == [".ledger", ".part"]
        yield sender, receiver, dial


async def send_again(
    sender: TransferHub,
    receiver: ReceivingProcess,
    dial: Dial,
    path: Path,
    data: Any = DATA,
    **options: Any,
) -> tuple[IncomingTransfer, TransferSummary]:
    stored: list[IncomingTransfer] = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            stored.append(await store(receiver.hub, path))

        nursery.start_soon(receive)
        summary = await sender.send([await dial()], data, transfer_id=ID, **options)
    return stored[0], summary


async def test_another_receiver_goes_on_where_the_first_was_ended(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        left = part(tmp_path).stat().st_size
        assert left > SIZE // 3
        assert ID.hex() not in part(tmp_path).name
        progress: list[int] = []
        transfer, summary = await send_again(
            sender, receiver, dial, path, on_progress=progress.append
        )
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["copy"]
    assert transfer.bytes_resumed == summary.bytes_skipped == left
    assert progress[0] >= left
    sent = summary.stripes_sent * summary.stripe_size
    assert sent < SIZE - left + STRIPE, "not one stripe which is there was sent again"


@pytest.mark.parametrize("stripe_size", [1024, 3000, STRIPE])
async def test_another_stripe_size_is_no_obstacle(
    stripe_size: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        left = part(tmp_path).stat().st_size
        transfer, summary = await send_again(sender, receiver, dial, path, stripe_size=stripe_size)
    assert path.read_bytes() == DATA
    assert summary.stripe_size == stripe_size
    assert left - stripe_size < transfer.bytes_resumed <= left


async def test_a_source_of_unknown_size_is_continued(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path, iter([DATA])) as (sender, receiver, dial):
        _, summary = await send_again(sender, receiver, dial, path, iter([DATA]))
    assert path.read_bytes() == DATA
    assert summary.bytes_skipped > SIZE // 3


async def test_a_source_which_takes_long_to_reach_what_is_missing_does_not_stall(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    monkeypatch.setattr(multiplex, "_SKIPPED_AT_ONCE", STRIPE)

    async def slow() -> AsyncIterator[bytes]:
        for at in range(0, SIZE, STRIPE):
            await trio.sleep(2)
            yield DATA[at : at + STRIPE]

    async with after_a_first_attempt(path, iter([DATA]), idle_timeout=10.0) as (
        sender,
        receiver,
        dial,
    ):
        started = trio.current_time()
        _, summary = await send_again(sender, receiver, dial, path, slow())
        assert trio.current_time() - started > 200
    assert path.read_bytes() == DATA
    assert summary.bytes_skipped > 5 * STRIPE


async def test_a_sender_cannot_skip_what_it_was_never_told(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with two_hubs(serve_sender=False) as (client, _, receiver):
        line = await RawSender(client).manifest(size=SIZE)
        transfer = await receiver.accept()
        await line.send_all(encode_record(Skipped(2**40)))
        with pytest.raises(phoenix_trio.TransferAbandoned) as caught:
            await transfer.store(tmp_path / "copy")
        assert caught.value.code == TransferCode.MALFORMED
    assert os.listdir(tmp_path) == []


async def expect_on_both_sides(
    sender: TransferHub,
    receiver: ReceivingProcess,
    dial: Dial,
    path: Path,
    data: Any,
    here: type[Exception],
    there: type[Exception],
) -> None:
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(there):
                await store(receiver.hub, path)

        nursery.start_soon(receive)
        with pytest.raises(here):
            await sender.send([await dial()], data, transfer_id=ID)
    assert os.listdir(path.parent) == [], "the part is of no use, and is gone"
    _, summary = await send_again(sender, receiver, dial, path)
    assert summary.bytes_skipped == 0
    assert path.read_bytes() == DATA


async def test_a_source_which_has_changed_is_found_by_the_checksum(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    changed = bytes([DATA[0] ^ 1]) + DATA[1:]
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        await expect_on_both_sides(
            sender,
            receiver,
            dial,
            path,
            changed,
            phoenix_trio.ChecksumMismatch,
            phoenix_trio.ChecksumMismatch,
        )


async def test_a_source_which_has_become_shorter_than_what_is_there_is_an_error(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path, iter([DATA])) as (sender, receiver, dial):
        await expect_on_both_sides(
            sender,
            receiver,
            dial,
            path,
            iter([DATA[: SIZE // 10]]),
            phoenix_trio.TransferRefused,
            phoenix_trio.TransferAbandoned,
        )


@pytest.mark.parametrize("change", ["size", "metadata"])
async def test_a_part_of_another_transfer_is_dropped_and_all_is_sent(
    change: str, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "copy"
    data, options = (DATA[:-1], {}) if change == "size" else (DATA, {"metadata": b"other"})
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        with caplog.at_level(logging.WARNING, "phoenix_trio.storage"):
            _, summary = await send_again(sender, receiver, dial, path, data, **options)
    assert path.read_bytes() == data
    assert summary.bytes_skipped == 0
    assert "the transfer starts from zero" in caplog.text


async def test_a_damaged_ledger_is_dropped_and_all_is_sent(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        part(tmp_path, ".ledger").write_bytes(os.urandom(200))
        with caplog.at_level(logging.WARNING, "phoenix_trio.storage"):
            _, summary = await send_again(sender, receiver, dial, path)
    assert path.read_bytes() == DATA
    assert summary.bytes_skipped == 0
    assert "the transfer starts from zero" in caplog.text


async def test_a_sender_which_leaves_has_no_more_of_its_part_read(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    monkeypatch.setattr(checked_file, "_CHUNK", STRIPE)
    monkeypatch.setattr(checked_file, "_STEP", STRIPE)
    async with after_a_first_attempt(path) as (_, receiver, dial):
        size = part(tmp_path).stat().st_size
        raw = RawSender(await dial(), ID)
        await raw.manifest(size=SIZE, may_resume=True)
        pread, read = os.pread, list[int]()
        async with await receiver.hub.accept() as transfer:

            def leave(descriptor: int, count: int, offset: int) -> bytes:
                read.append(count)
                transfer._give_up(TransferCode.CANCELLED, "the sender has left", by_sender=True)
                return pread(descriptor, count, offset)

            monkeypatch.setattr(os, "pread", leave)
            with pytest.raises(phoenix_trio.TransferAbandoned):
                await transfer.store(path)
        assert sum(read) == STRIPE
        assert part(tmp_path).stat().st_size == size, "it stays as it was"


async def test_a_damaged_part_is_sent_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        size = part(tmp_path).stat().st_size
        with part(tmp_path).open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(100))
        await send_again(sender, receiver, dial, path)
    assert path.read_bytes() == DATA


async def test_a_sender_which_was_cancelled_can_go_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    async with two_hubs(slow_network()) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(phoenix_trio.TransferAbandoned):
                    await store(receiver, path)
                await store(receiver, path)

            nursery.start_soon(receive)
            with trio.move_on_after(1):
                await sender.send([client], DATA, transfer_id=ID)
            summary = await sender.send([client], DATA, transfer_id=ID)
        assert summary.bytes_skipped > SIZE // 4
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("seed", range(4))
async def test_however_often_both_sides_are_interrupted_the_file_is_whole_in_the_end(
    seed: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    random = Random(seed)
    network = SimulatedNetwork(seed=seed, delay=0.01, bandwidth=2e6, loss=0.01, reorder=0.02)
    skipped, scope, attempts = 0, trio.CancelScope(), 0

    async def receive(receiver: ReceivingProcess) -> None:
        nonlocal scope
        while True:
            with trio.CancelScope() as scope:
                try:
                    await store(receiver.hub, path)
                except trio.BrokenResourceError:
                    await trio.lowlevel.checkpoint()

    async with a_receiver(network) as (sender, receiver, dial), trio.open_nursery() as nursery:
        nursery.start_soon(receive, receiver)
        while not path.exists():
            attempts += 1
            assert attempts < 50
            await trio.sleep(1)
            connections = [await dial() for _ in range(random.randint(1, 3))]
            with trio.move_on_after(random.uniform(0.05, 1.5)) as given_up:
                try:
                    summary = await sender.send(connections, DATA, replace=dial, transfer_id=ID)
                    skipped = summary.bytes_skipped
                except trio.BrokenResourceError:
                    pass
            if given_up.cancelled_caught and random.random() < 0.5:
                scope.cancel()
                receiver.restart()
            for connection in connections:
                connection.abort(9)
        nursery.cancel_scope.cancel()
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["copy"]
    assert attempts > 1
    assert skipped > 0


async def test_a_transfer_which_was_read_cannot_be_stored(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            async with await receiver.accept() as transfer:
                await anext(transfer)
                with pytest.raises(RuntimeError, match="read already"):
                    await transfer.store(tmp_path / "copy")

        nursery.start_soon(receive)
        with pytest.raises(phoenix_trio.TransferRefused):
            await sender.send([client], DATA)


async def test_old_parts_are_removed(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    async with after_a_first_attempt(path) as (sender, receiver, dial):
        week = 7 * 86_400
        for age, kept in ((week - 3600, True), (week + 3600, False)):
            written = part(tmp_path).stat().st_mtime - age
            os.utime(part(tmp_path), (written, written))
            receiver.restart()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store, receiver.hub, tmp_path / "another")
                await sender.send([await dial()], b"another transfer")
            assert bool(parts(tmp_path)) == kept


async def test_parts_of_one_sender_are_bounded(autojump_clock: MockClock, tmp_path: Path) -> None:
    limits = PartLimits(max_count_per_peer=3)
    async with two_hubs(serve_sender=False, resume_timeout=1.0) as (client, _, receiver):
        for number in range(10):
            raw = RawSender(client, bytes([number]) * 16)
            line = await raw.manifest()
            await trio.sleep(0.1)  # (of two streams, either may be served first)
            stripes = await raw.open(StreamKind.STRIPES, encode_stripe_header(0, STRIPE))
            await stripes.send_all(bytes(STRIPE))
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    with pytest.raises(phoenix_trio.TransferAbandoned):
                        await store(receiver, tmp_path / "copy", limits=limits)

                nursery.start_soon(receive)
                await trio.sleep(1)
                line.reset(TransferCode.CANCELLED)
            stripes.reset()
        assert parts(tmp_path) == [".ledger"] * 3 + [".part"] * 3


# ------------------------------------------------------------------ credit


async def test_a_sender_which_may_resume_gets_credit_when_the_transfer_is_read(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs(idle_timeout=10.0) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.give_up_in_time)

            async def receive() -> None:
                await trio.sleep(9)
                (waiting,) = receiver._incoming.values()
                assert waiting.bytes_received == 0
                await trio.sleep(100)  # (credit has come after ten seconds)
                async with await receiver.accept() as transfer:
                    assert transfer.bytes_received > 0
                    await transfer.read_all(max_size=10**6)

            nursery.start_soon(receive)
            await sender.send([client], DATA, transfer_id=ID)
            nursery.cancel_scope.cancel()
        await still_works(client, sender, receiver)


async def test_a_sender_which_may_resume_and_sends_nothing_is_given_up(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    config = phoenix_trio.TransportConfig(keep_alive=5.0)
    async with two_hubs(serve_sender=False, client_config=config, idle_timeout=10.0) as (
        client,
        _,
        receiver,
    ):
        await RawSender(client).manifest(size=SIZE, may_resume=True)
        transfer = await receiver.accept()
        await trio.sleep(100)
        with pytest.raises(phoenix_trio.TransferAbandoned) as caught:
            await transfer.store(tmp_path / "copy")
        assert caught.value.code == TransferCode.STALLED
        assert receiver.incoming == 0
    assert os.listdir(tmp_path) == []


async def test_silent_senders_which_may_resume_free_their_places_in_time(
    autojump_clock: MockClock,
) -> None:
    config = phoenix_trio.TransportConfig(keep_alive=5.0)
    async with (
        two_hubs(serve_sender=False, client_config=config, idle_timeout=10.0) as (
            client,
            _,
            receiver,
        ),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(receiver.give_up_in_time)
        for number in range(8):
            await RawSender(client, bytes([number]) * 16).manifest(size=SIZE, may_resume=True)
        await trio.sleep(1)
        assert len(receiver._incoming) == 8
        await trio.sleep(20)
        assert not receiver._incoming
        nursery.cancel_scope.cancel()


async def test_a_long_check_of_what_is_there_gives_no_credit_before_its_end(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    run_sync = trio.to_thread.run_sync

    async def slow(work: Any, *arguments: Any, **options: Any) -> Any:
        if work is next:
            await trio.sleep(100)
        return await run_sync(work, *arguments, **options)

    async with (
        after_a_first_attempt(path, idle_timeout=10.0) as (sender, receiver, dial),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(receiver.hub.give_up_in_time)
        monkeypatch.setattr(trio.to_thread, "run_sync", slow)
        _, summary = await send_again(sender, receiver, dial, path)
        nursery.cancel_scope.cancel()
    assert path.read_bytes() == DATA
    sent = summary.stripes_sent * summary.stripe_size
    assert sent < SIZE - summary.bytes_skipped + STRIPE
    assert summary.bytes_skipped > SIZE // 3


def test_a_manifest_says_whether_the_transfer_may_resume() -> None:
    manifest = Manifest(stripe_size=STRIPE, window=STRIPE, may_resume=True)
    data = encode_record(manifest)
    assert data[3] == 4  # the flags, after type, length and version
    assert decode_record(data[0], data[2:]) == manifest


def test_the_layout_of_what_was_skipped() -> None:
    assert encode_record(Skipped(5)) == b"\x07\x01\x05"
