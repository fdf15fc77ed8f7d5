"""Messages on streams of their own: whole or refused, typed, compressed, never a bomb."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest
import trio
import trio.testing
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode
from phoenix_trio.streams.framing import encode_varint
from phoenix_trio.streams.kinds import StreamKind
from phoenix_trio.streams.messages import (
    MessageReceiver,
    MessageRefused,
    receive_message,
    send_message,
)
from phoenix_trio.streams.reader import StreamReader
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair, examples

MEBIBYTE = 1024 * 1024


@attrs.define
class Threads:
    """Runs thread work in place, because virtual time does not wait for threads."""

    used: int = 0
    delay: float = 0.0  # until one is free

    async def run_sync(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await trio.sleep(self.delay)
        self.used += 1
        return work(*arguments)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr(trio.to_thread, "run_sync", threads.run_sync)
    return threads


async def take(connection: phoenix_trio.QuicConnection, **options: Any) -> Any:
    """Receive the next stream, as a dispatcher does."""
    options.setdefault("max_size", MEBIBYTE)
    async with await connection.accept_receive_stream() as stream:
        reader = StreamReader(stream)
        assert await reader.read_varint() == StreamKind.MESSAGE
        return await receive_message(reader, **options)


async def send_raw(connection: phoenix_trio.QuicConnection, data: bytes) -> None:
    async with await connection.open_send_stream() as stream:
        await stream.send_all(encode_varint(StreamKind.MESSAGE) + data)


@pytest.mark.parametrize("compress", [None, "zstd"])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 10_000, MEBIBYTE])
async def test_a_message_arrives_as_it_was_sent(
    size: int, compress: str | None, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01, loss=0.02, seed=size)
    data = (os.urandom(size // 2 + 1) * 2)[:size]
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: send_message(client, data, compress=compress))
        with trio.fail_after(60):
            assert await take(server) == data


async def test_sending_returns_when_the_peer_has_it(autojump_clock: MockClock) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.5)) as (client, server):
        before = trio.current_time()
        with trio.testing.assert_checkpoints():
            await send_message(client, b"x" * 1000)
        assert trio.current_time() - before >= 1.0
        assert await take(server) == b"x" * 1000


async def test_compression_saves_bytes_on_the_way(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        before = client.statistics().stream_bytes_sent
        await send_message(client, bytes(500_000), compress="zstd")
        assert client.statistics().stream_bytes_sent - before < 1000
        assert await take(server) == bytes(500_000)


class Reading(msgspec.Struct):
    sensor: int
    values: list[float]


async def test_messages_can_be_typed(autojump_clock: MockClock) -> None:
    reading = Reading(7, [1.5, 2.5])
    async with connected_pair() as (client, server):
        await send_message(client, reading, encode=msgspec.msgpack.encode)
        got = await take(server, decode=msgspec.msgpack.Decoder(Reading).decode)
        assert got == reading
        await send_message(client, b"\xc1", encode=bytes)
        with pytest.raises(msgspec.DecodeError):
            await take(server, decode=msgspec.msgpack.Decoder(Reading).decode)


@pytest.mark.parametrize("compress", [None, "zstd"])
async def test_one_which_is_too_large_is_refused_on_both_sides_and_others_go_on(
    compress: str | None, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(phoenix_trio.StreamStopped) as caught:
                    await send_message(client, os.urandom(2 * MEBIBYTE), compress=compress)
                assert caught.value.error_code == ApplicationErrorCode.MESSAGE_TOO_LARGE

            nursery.start_soon(send)
            with pytest.raises(MessageRefused, match="1048576") as refused:
                await take(server)
            assert refused.value.code == ApplicationErrorCode.MESSAGE_TOO_LARGE
        await send_message(client, b"small")
        assert await take(server) == b"small"


def bomb(announced: int, real: int) -> bytes:
    packed = zstandard.ZstdCompressor().compress(bytes(real))
    return encode_varint(1) + encode_varint(announced) + packed


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "MALFORMED"),
        (b"\x40", "MALFORMED"),
        (encode_varint(9) + b"x", "UNSUPPORTED"),
        (encode_varint(1), "MALFORMED"),
        (encode_varint(1) + encode_varint(100) + b"no zstd at all", "MALFORMED"),
        (bomb(1000, 1001), "MALFORMED"),
        (bomb(1001, 1000), "MALFORMED"),
        (bomb(1000, MEBIBYTE), "MALFORMED"),
        (bomb(1000, 100 * MEBIBYTE), "MALFORMED"),  # more bytes than 1000 bytes can need
        (bomb(100 * MEBIBYTE, 100 * MEBIBYTE), "MESSAGE_TOO_LARGE"),
        (bomb(1000, 1000)[:-3], "MALFORMED"),
    ],
)
async def test_what_is_malformed_is_refused_with_its_code(
    data: bytes, code: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        await send_raw(client, data)
        with pytest.raises(MessageRefused) as caught:
            await take(server)
        assert caught.value.code.name == code
        await send_message(client, b"next")
        assert await take(server) == b"next"


async def test_a_bomb_is_not_unpacked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    async with connected_pair() as (client, server):
        await send_raw(client, bomb(MEBIBYTE, 500 * MEBIBYTE))
        tracemalloc.start()
        try:
            with pytest.raises(MessageRefused):
                await take(server)
            assert tracemalloc.get_traced_memory()[1] < 20 * MEBIBYTE
        finally:
            tracemalloc.stop()


async def test_without_zstandard_both_sides_say_so(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected_pair() as (client, server):
        await send_raw(client, bomb(100, 100))
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(MessageRefused) as caught:
            await take(server)
        assert caught.value.code == ApplicationErrorCode.UNSUPPORTED
        with pytest.raises(ModuleNotFoundError, match=r"phoenix-trio\[zstd\]"):
            await send_message(client, b"x" * 100, compress="zstd")
        with pytest.raises(ValueError, match="compress must be"):
            await send_message(client, b"x", compress="gzip")


async def test_a_sender_which_is_cancelled_sends_nothing_or_everything(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.1, bandwidth=1e6)
    async with connected_pair(network) as (client, server):
        with trio.move_on_after(0.5):
            await send_message(client, os.urandom(MEBIBYTE))
        with pytest.raises(phoenix_trio.StreamReset):
            await take(server)


@pytest.mark.parametrize(("size", "used"), [(256 * 1024 - 1, 0), (256 * 1024, 2)])
async def test_only_large_messages_are_compressed_in_a_thread(
    threads: Threads, size: int, used: int, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        await send_message(client, bytes(size))
        assert await take(server) == bytes(size)
        assert threads.used == 0
        await send_message(client, bytes(size), compress="zstd")
        assert await take(server) == bytes(size)
        assert threads.used == used


async def test_a_receiver_which_is_cancelled_while_no_thread_is_free_loses_nothing(
    threads: Threads, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        await send_message(client, bytes(MEBIBYTE), compress="zstd")
        threads.delay = 0.1
        async with await server.accept_receive_stream() as stream:
            reader = StreamReader(stream)
            assert await reader.read_varint() == StreamKind.MESSAGE
            receiver = MessageReceiver(reader, max_size=MEBIBYTE)
            for _ in range(3):
                with trio.move_on_after(0.05) as scope:
                    await receiver.receive()
                assert scope.cancelled_caught
            assert await receiver.receive() == bytes(MEBIBYTE)


async def test_a_sender_which_is_cancelled_while_it_compresses_sends_nothing(
    threads: Threads, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        threads.delay = 0.1
        before = client.statistics().stream_bytes_sent
        with trio.move_on_after(0.05) as scope:
            await send_message(client, os.urandom(MEBIBYTE), compress="zstd")
        assert scope.cancelled_caught
        assert client.statistics().stream_bytes_sent == before
        threads.delay = 0
        await send_message(client, b"next")
        assert await take(server) == b"next"


async def test_others_have_their_turn_while_a_large_message_is_compressed(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # real threads, in real time
    ran_in: set[int] = set()
    compressor, decompressor = zstandard.ZstdCompressor, zstandard.ZstdDecompressor

    def note(which: Any) -> Any:
        def make(**arguments: Any) -> Any:
            ran_in.add(threading.get_ident())
            return which(**arguments)

        return make

    monkeypatch.setattr(zstandard, "ZstdCompressor", note(compressor))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", note(decompressor))
    data = os.urandom(MEBIBYTE // 2) * 2
    async with connected_pair(real=True) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: send_message(client, data, compress="zstd"))
        with trio.fail_after(30):
            assert await take(server) == data
    assert ran_in
    assert threading.get_ident() not in ran_in


@examples(100)
@given(header=st.binary(max_size=40))
def test_no_header_does_anything_but_give_a_message_or_refuse_it(header: bytes) -> None:
    async def main() -> None:
        send, receive = trio.testing.memory_stream_one_way_pair()
        await send.send_all(header)
        await send.aclose()
        try:
            message = await receive_message(StreamReader(receive), max_size=1000)
        except MessageRefused:
            return
        assert isinstance(message, bytes)
        assert len(message) <= 1000

    trio.run(main)
