"""Sequences: any source in, a safe channel out; both sides notice the end, whichever ends it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode
from phoenix_trio.streams.framing import encode_varint
from phoenix_trio.streams.generator import SequenceReceiver, send_sequence
from phoenix_trio.streams.kinds import StreamKind
from phoenix_trio.streams.messages import MessageRefused
from phoenix_trio.streams.reader import StreamReader
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair

ITEMS = [b"%d" % number * (number % 50 + 1) for number in range(300)] + [b"", b"x" * 100_000]


async def receiver(connection: phoenix_trio.QuicConnection, **options: Any) -> SequenceReceiver:
    stream = await connection.accept_receive_stream()
    reader = StreamReader(stream)
    assert await reader.read_varint() == StreamKind.SEQUENCE
    return SequenceReceiver(reader, max_item_size=options.pop("max_item_size", 200_000), **options)


def a_list() -> Any:
    return ITEMS


def a_generator() -> Any:
    yield from ITEMS


async def an_async_generator() -> Any:
    for item in ITEMS:
        await trio.lowlevel.checkpoint()
        yield item


def a_function() -> Any:
    left = list(ITEMS)
    return lambda: left.pop(0) if left else None


def an_async_function() -> Any:
    left = list(ITEMS)

    async def give() -> bytes | None:
        await trio.sleep(0.001)
        return left.pop(0) if left else None

    return give


@pytest.mark.parametrize(
    "make", [a_list, a_generator, an_async_generator, a_function, an_async_function]
)
async def test_every_kind_of_source_arrives_whole_and_in_order(
    make: Any, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01, loss=0.03, reorder=0.05, seed=4)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        sent: list[int] = []

        async def send() -> None:
            sent.append(await send_sequence(client, make()))

        nursery.start_soon(send)
        with trio.fail_after(60):
            async with await receiver(server) as items:
                assert [item async for item in items] == ITEMS
                with pytest.raises(trio.EndOfChannel):
                    await items.receive()
    assert sent == [len(ITEMS)]


async def test_an_empty_source_is_an_empty_sequence(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_sequence, client, [])
        async with await receiver(server) as items:
            assert [item async for item in items] == []


async def test_items_can_be_typed(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: send_sequence(client, range(100), encode=lambda n: str(n).encode())
        )
        async with await receiver(server, decode=int) as items:
            assert [item async for item in items] == list(range(100))


async def test_an_item_goes_out_while_the_source_waits_for_the_next(
    autojump_clock: MockClock,
) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            await trio.sleep(10)

    times: list[float] = []
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_sequence, client, slowly())
        started = trio.current_time()
        async with await receiver(server) as items:
            with pytest.raises(trio.EndOfChannel):
                while True:
                    await items.receive()
                    times.append(trio.current_time() - started)
    assert [round(time / 10) for time in times] == [0, 1, 2]


async def test_a_slow_consumer_slows_its_producer(autojump_clock: MockClock) -> None:
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield bytes(10_000)

    config = phoenix_trio.TransportConfig(
        stream_receive_buffer_size=100_000,
        receive_buffer_size=100_000,
        stream_send_buffer_size=100_000,
        send_buffer_size=100_000,
    )
    async with connected_pair(config=config) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_sequence, client, endless())
        items = await receiver(server)
        for _ in range(5):
            await items.receive()
        await trio.sleep(20)
        assert given < 5 + 20 + 2 * 64
        nursery.cancel_scope.cancel()


async def test_a_source_which_raises_resets_the_stream(autojump_clock: MockClock) -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("burst")

    async with connected_pair() as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(LookupError, match="burst"):
                await send_sequence(client, broken())

        nursery.start_soon(send)
        with pytest.raises(phoenix_trio.StreamReset) as caught:
            items = await receiver(server)
            while True:
                await items.receive()
        assert caught.value.error_code == ApplicationErrorCode.SOURCE_FAILED


@pytest.mark.parametrize("wrong", ["text", b"bytes", 5, None])
async def test_what_is_no_source_is_refused(wrong: Any, autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, _):
        with pytest.raises(TypeError):
            await send_sequence(client, wrong)


async def test_an_item_which_is_not_bytes_is_refused(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, _):
        with pytest.raises(TypeError):
            await send_sequence(client, ["text"])


@asynccontextmanager
async def producing(
    client: phoenix_trio.QuicConnection, told: list[phoenix_trio.StreamStopped]
) -> AsyncIterator[list[str]]:
    """A source that waits for ever after its first item, and its end."""
    log: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            log.append("closed")

    async def send() -> None:
        try:
            await send_sequence(client, source())
        except phoenix_trio.StreamStopped as error:
            told.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield log


async def test_leaving_the_loop_tells_a_producer_which_is_waiting(
    autojump_clock: MockClock,
) -> None:
    told: list[phoenix_trio.StreamStopped] = []
    async with connected_pair() as (client, server):
        with trio.fail_after(5):
            async with producing(client, told) as log:
                async with await receiver(server) as items:
                    async for _ in items:
                        break
    assert [error.error_code for error in told] == [ApplicationErrorCode.NO_ERROR]
    assert log == ["closed"]


async def test_leaving_the_loop_by_an_exception_says_so(autojump_clock: MockClock) -> None:
    told: list[phoenix_trio.StreamStopped] = []
    async with connected_pair() as (client, server):
        with trio.fail_after(5):
            async with producing(client, told) as log:
                with pytest.raises(KeyError):
                    async with await receiver(server) as items:
                        async for item in items:
                            raise KeyError(item)
    assert [error.error_code for error in told] == [ApplicationErrorCode.CANCELLED]
    assert log == ["closed"]


async def test_a_generator_is_closed_when_the_sender_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    def source() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
        finally:
            log.append("closed")

    async with connected_pair() as (client, server):
        with trio.move_on_after(1):
            await send_sequence(client, source())
        assert log == ["closed"]
        items = await receiver(server)
        with pytest.raises(phoenix_trio.StreamReset) as caught:
            while True:
                await items.receive()
        assert caught.value.error_code == ApplicationErrorCode.CANCELLED


async def test_a_generator_with_a_scope_of_its_own_can_be_left_early(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        with trio.CancelScope():
            try:
                while True:
                    yield bytes(100_000)
            finally:
                log.append("closed")

    async with connected_pair() as (client, server):
        async with trio.open_nursery() as nursery:

            async def read_one() -> None:
                async with await receiver(server) as items:
                    await trio.sleep(1)  # the stream is full: the producer does not run its source
                    await items.receive()

            nursery.start_soon(read_one)
            with pytest.raises(phoenix_trio.StreamStopped):
                await send_sequence(client, source())
        with trio.move_on_after(1):
            await send_sequence(client, source())
        assert log == ["closed"] * 2


async def test_a_lost_connection_ends_the_producer(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                await send_sequence(client, trio.sleep_forever)

        nursery.start_soon(send)
        await trio.sleep(1)
        server.abort(5)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_varint(200_001), "MESSAGE_TOO_LARGE"),
        (encode_varint(2**61), "MESSAGE_TOO_LARGE"),
        (encode_varint(10) + b"short", "MALFORMED"),
        (b"\xc0", "MALFORMED"),
    ],
)
async def test_a_malformed_sequence_is_refused_and_the_connection_goes_on(
    data: bytes, code: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        async with await client.open_send_stream() as stream:
            await stream.send_all(encode_varint(StreamKind.SEQUENCE) + encode_varint(2) + b"ok")
            await stream.send_all(data)
        items = await receiver(server)
        assert await items.receive() == b"ok"
        with pytest.raises(MessageRefused) as caught:
            await items.receive()
        assert caught.value.code.name == code
        with pytest.raises(trio.ClosedResourceError):
            await items.receive()
        assert not server.is_closed


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.05, bandwidth=1e6)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_sequence, client, ITEMS)
        items = await receiver(server)
        got = []
        with pytest.raises(trio.EndOfChannel):
            while True:
                with trio.move_on_after(0.003):
                    got.append(await items.receive())
        assert got == ITEMS


async def test_two_tasks_cannot_receive_at_once(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_sequence, client, trio.sleep_forever)
        items = await receiver(server)
        nursery.start_soon(items.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await items.receive()
        nursery.cancel_scope.cancel()


async def test_breaking_out_of_a_loop_leaves_nothing_running(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            with trio.move_on_after(1):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_suppressing, client)
                    async with await receiver(server) as items:
                        async for _item in items:
                            break
        gc.collect()
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def _suppressing(client: phoenix_trio.QuicConnection) -> None:
    with pytest.raises(phoenix_trio.StreamStopped):
        await send_sequence(client, iter(lambda: bytes(1000), None))
