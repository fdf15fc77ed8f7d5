"""The file-transfer protocol over Trio's memory streams."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from phoenix_trio.cli.transfer import (
    Outcome,
    TransferError,
    TransferRefused,
    receive_file,
    send_file,
)
from phoenix_trio.storage.directory import Storage
from phoenix_trio.streams.framing import encode_frame


class Bytes:
    """A source in memory."""

    def __init__(self, data: bytes, identity: str | None = "id") -> None:
        self.data = data
        self.size: int | None = len(data)
        self.identity = identity
        self.position = 0

    def read(self, size: int) -> bytes:
        chunk = self.data[self.position : self.position + size]
        self.position += len(chunk)
        return chunk

    def seek(self, position: int) -> None:
        self.position = position


async def move(source: Bytes, storage: Storage, path: str = "name") -> Outcome:
    here, there = trio.testing.memory_stream_pair()
    outcomes: list[Outcome] = []

    async def receive() -> None:
        outcomes.append(await receive_file(there, storage))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        outcomes.append(await send_file(here, source, path))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@pytest.mark.parametrize("size", [0, 1, 300_000, 2_000_000])
async def test_a_file_arrives_whole(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    storage = Storage(str(tmp_path))
    outcome = await move(Bytes(data), storage)
    assert outcome == Outcome("name", size, hashlib.sha256(data).hexdigest(), 0)
    assert (tmp_path / "name").read_bytes() == data
    storage.close()


async def cut_transfer(data: bytes, storage: Storage, cut: int) -> None:
    """The stream breaks when `cut` bytes of the sender's have come through."""
    here, there = trio.testing.memory_stream_pair()
    passed = 0

    class Cutting(trio.abc.HalfCloseableStream):
        async def send_all(self, chunk: bytes | bytearray | memoryview) -> None:
            nonlocal passed
            part = bytes(chunk)[: cut - passed]
            passed += len(part)
            await here.send_all(part)
            if passed >= cut:
                raise trio.BrokenResourceError

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def send_eof(self) -> None:
            raise trio.BrokenResourceError

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await here.receive_some(max_bytes)

        async def aclose(self) -> None:
            await here.aclose()

    async def receive() -> None:
        with pytest.raises((TransferError, trio.BrokenResourceError)):
            await receive_file(there, storage)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(trio.BrokenResourceError):
            await send_file(Cutting(), Bytes(data), "name")
        await here.aclose()


@settings(max_examples=30)
@given(st.data())
def test_a_cut_transfer_goes_on_where_it_ended(data: st.DataObject) -> None:
    content = os.urandom(700_000)
    cuts = data.draw(st.lists(st.integers(0, 700_100), min_size=1, max_size=4))

    async def run(directory: str) -> None:
        storage = Storage(directory)
        for cut in cuts:
            await cut_transfer(content, storage, cut)
            if os.path.exists(os.path.join(directory, "name")):
                # The cut came after the last byte that mattered.
                with open(os.path.join(directory, "name"), "rb") as file:
                    assert file.read() == content
                return
        outcome = await move(Bytes(content), storage)
        assert outcome.sha256 == hashlib.sha256(content).hexdigest()
        assert os.listdir(directory) == ["name"]
        storage.close()

    with TemporaryDirectory() as directory:
        trio.run(run, directory)


async def test_a_tampered_partial_file_is_found_out_and_thrown_away(tmp_path: Path) -> None:
    data = os.urandom(600_000)
    storage = Storage(str(tmp_path))
    await cut_transfer(data, storage, 400_000)
    (partial,) = tmp_path.glob(".phoenix-trio/name.*.part")
    tampered = bytearray(partial.read_bytes())
    tampered[0] ^= 1
    partial.write_bytes(tampered)

    here, there = trio.testing.memory_stream_pair()

    async def receive() -> None:
        with pytest.raises(TransferRefused) as caught:
            await receive_file(there, storage)
        assert caught.value.code == "checksum"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(TransferRefused):
            await send_file(here, Bytes(data), "name")
    assert os.listdir(tmp_path) == []
    assert (await move(Bytes(data), storage)).resumed_at == 0
    storage.close()


async def test_a_refusal_reaches_the_sender_with_its_code(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    here, there = trio.testing.memory_stream_pair()

    async def receive() -> None:
        with pytest.raises(TransferRefused):
            await receive_file(there, storage)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(TransferRefused, match="absolute") as caught:
            await send_file(here, Bytes(b"x"), "/etc/passwd")
        assert caught.value.code == "bad-name"
    storage.close()


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\xff" * 20,
        encode_frame(b"not json"),
        encode_frame(b"[1]"),
        encode_frame(b"[" * 10_000),
        encode_frame(json.dumps({"version": 2, "path": "x"}).encode()),
        encode_frame(json.dumps({"version": 1, "path": 7}).encode()),
        encode_frame(json.dumps({"version": 1, "path": "x", "size": -1}).encode()),
        encode_frame(json.dumps({"version": 1, "path": "x", "size": True}).encode()),
        encode_frame(json.dumps({"version": 1, "path": "x", "size": 1, "identity": 5}).encode()),
        encode_frame(json.dumps({"version": 1, "path": "x", "size": 1, "identity": "i"}).encode())
        + encode_frame(b"")
        + encode_frame(b"{}"),
    ],
)
async def test_hostile_senders_get_an_error_and_leave_no_file(wire: bytes, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    here, there = trio.testing.memory_stream_pair()
    await here.send_all(wire)
    await here.send_eof()
    with pytest.raises(TransferError):
        await receive_file(there, storage)
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".part")]
    storage.close()
