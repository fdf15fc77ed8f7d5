"""StreamReader: parts of a stream, however it arrives, and one checkpoint for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from phoenix_trio.streams.framing import FramingError, encode_frame, encode_varint
from phoenix_trio.streams.reader import StreamReader
from tests.support import connected_pair, steps_of

Read = Callable[[StreamReader], Awaitable[object]]

READS: dict[str, tuple[bytes, Read, object]] = {
    "a varint": (encode_varint(100_000), lambda reader: reader.read_varint(), 100_000),
    "so many bytes": (b"12345", lambda reader: reader.read_exactly(5), b"12345"),
    "no bytes": (b"", lambda reader: reader.read_exactly(0), b""),
    "a frame": (encode_frame(b"x" * 100), lambda reader: reader.read_frame(100), b"x" * 100),
    "an empty frame": (encode_frame(b""), lambda reader: reader.read_frame(100), b""),
    "some": (b"12345", lambda reader: reader.read_some(5), b"12345"),
}


@pytest.mark.parametrize("name", READS)
async def test_each_part_is_one_checkpoint_where_all_has_arrived(name: str) -> None:
    data, read, expected = READS[name]
    send, receive = trio.testing.memory_stream_one_way_pair()
    reader = StreamReader(receive)
    await send.send_all(b"\0" + 3 * data)
    await send.aclose()
    assert await reader.read_varint() == 0  # all of it is in the reader now, or nothing follows
    for _ in range(3):
        with trio.testing.assert_checkpoints():
            assert await read(reader) == expected
    await send.aclose()
    with trio.testing.assert_checkpoints():
        assert await reader.read_varint() is None
    with trio.testing.assert_checkpoints():
        assert await reader.read_varint() is None


@pytest.mark.parametrize("name", READS)
async def test_parts_which_arrive_byte_by_byte(name: str) -> None:
    data, read, expected = READS[name]
    send, receive = trio.testing.memory_stream_one_way_pair()
    reader = StreamReader(receive)
    async with trio.open_nursery() as nursery:

        async def trickle() -> None:
            for byte in data:
                await send.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(trickle)
        got = b""
        while name == "some" and len(got) < len(data):
            got += bytes(await reader.read_some())
        if name != "some":
            assert await read(reader) == expected


@pytest.mark.parametrize("name", ["a varint", "so many bytes", "a frame"])
async def test_a_part_which_is_cut_off_is_an_error(name: str) -> None:
    data, read, _ = READS[name]
    send, receive = trio.testing.memory_stream_one_way_pair()
    reader = StreamReader(receive)
    await send.send_all(data[:-1])
    await send.aclose()
    with pytest.raises(FramingError):
        await read(reader)


async def test_without_reading_ahead_the_rest_stays_in_the_stream(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        sender = await client.open_send_stream()
        await sender.send_all(encode_varint(7) + encode_varint(70_000) + b"the rest", end=True)
        stream = await server.accept_receive_stream()
        await trio.sleep(1)
        reader = StreamReader(stream)
        assert await reader.read_varint(read_ahead=0) == 7
        assert server.statistics().stream_bytes_read == 1
        assert await reader.read_varint(read_ahead=0) == 70_000
        assert server.statistics().stream_bytes_read == 5
        assert await stream.receive_some() == b"the rest"
        assert await reader.read_varint(read_ahead=0) is None


async def test_what_was_read_ahead_can_be_given_back(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        sender = await client.open_send_stream()
        await sender.send_all(encode_varint(7) + bytes(range(256)) * 100, end=True)
        stream = await server.accept_receive_stream()
        await trio.sleep(1)
        reader = StreamReader(stream)
        assert await reader.read_varint(read_ahead=100) == 7
        assert server.statistics().stream_bytes_read == 100
        reader.give_back(stream)
        assert server.statistics().receive_buffer_bytes == 25_600
        assert await steps_of(stream.receive_all(25_600)) == 1
        assert server.statistics().stream_bytes_read == 25_601
        reader.give_back(stream)  # nothing
        assert await stream.receive_all(0) == b""


async def test_what_is_given_back_is_part_of_what_is_received(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        sender = await client.open_send_stream()
        data = bytes(range(256)) * 100
        await sender.send_all(encode_varint(7) + data)
        stream = await server.accept_receive_stream()
        reader = StreamReader(stream)
        assert await reader.read_varint() == 7
        reader.give_back(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            with trio.move_on_after(1):
                await stream.receive_all(30_000)
        await sender.send_all(b"end", end=True)
        assert await stream.receive_some(10) == data[:10]
        assert await stream.receive_all(30_000) == data[10:] + b"end"
