"""Tasks are woken when they can go on, and not by events of others."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from phoenix_trio import TransportConfig
from tests.support import connected_pair, steps_of, stream_pair


@pytest.mark.parametrize("unidirectional", [False, True])
async def test_only_as_many_calls_are_woken_as_there_are_streams(
    unidirectional: bool, autojump_clock: MockClock
) -> None:
    config = TransportConfig(
        max_bidirectional_streams=0 if unidirectional else 2,
        max_unidirectional_streams=2 if unidirectional else 0,
    )
    async with connected_pair(config=config) as (client, server):
        steps = []

        async def take() -> None:
            while True:
                if unidirectional:
                    await (await server.accept_receive_stream()).receive_all(10)
                else:
                    stream = await server.accept_stream()
                    await stream.send_all(await stream.receive_all(10), end=True)

        async def one_way() -> None:
            sender = await client.open_send_stream()
            await sender.send_all(b"x", end=True)

        async def use() -> None:
            steps.append(await steps_of(one_way() if unidirectional else client.request(b"x")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            with trio.fail_after(10):
                async with trio.open_nursery() as asking:
                    for _ in range(40):
                        asking.start_soon(use)
            nursery.cancel_scope.cancel()
    # To wait for a stream, and to send (with a checkpoint to begin with) or for the answer.
    # The handshake's end may wake some for nothing.
    assert max(steps) <= 4
    assert sum(steps) <= 3 * 40 + 2


async def test_a_cancelled_call_leaves_its_stream_to_the_next(autojump_clock: MockClock) -> None:
    config = TransportConfig(max_bidirectional_streams=1)
    async with connected_pair(config=config) as (client, server):
        ours, theirs = await stream_pair(client, server)
        opened = []
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def give_up() -> None:
                with scope:
                    await client.open_stream()

            async def wait() -> None:
                opened.append(await client.open_stream())

            nursery.start_soon(give_up)
            await trio.sleep(1)
            nursery.start_soon(wait)
            await trio.sleep(1)
            scope.cancel()
            ours.close()
            theirs.close()
            with trio.fail_after(5):
                while not opened:
                    await trio.sleep(0.1)


async def test_an_acknowledgement_wakes_only_the_call_which_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, _):
        steps = []

        async def send(number: int) -> None:
            stream = await client.open_send_stream()
            await trio.sleep(number)
            await stream.send_all(b"x", end=number % 2 == 0)
            steps.append(await steps_of(stream.wait_acked()))
            # All data is acknowledged, so this is only a checkpoint.
            steps.append(await steps_of(stream.wait_acked()))

        async def wait_for_the_end() -> None:
            """Its bytes are acknowledged long before the end; the call waits for both."""
            stream = await client.open_send_stream()
            await stream.send_all(b"x")
            async with trio.open_nursery() as waiting:

                async def wait() -> None:
                    steps.append(await steps_of(stream.wait_acked()))

                await trio.sleep(3)
                await stream.send_eof()
                waiting.start_soon(wait)

        # (Soon enough: an idle timeout wakes all.)
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_the_end)
                for number in range(10):
                    nursery.start_soon(send, number)
                    nursery.start_soon(send, number)
        assert steps == [1] * 41


@pytest.mark.parametrize("size", [0, 10**6])
@pytest.mark.parametrize("datagrams", [0, 50])
async def test_closing_a_connection_is_woken_once_all_is_delivered(
    size: int, datagrams: int, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        received: list[bytes] = []

        async def read() -> None:
            receiver = await server.accept_receive_stream()
            received.append(await receiver.receive_all(10**7))

        async def read_datagrams() -> None:
            received.extend([await server.receive_datagram() for _ in range(datagrams)])

        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_datagrams)
                for _ in range(datagrams):
                    client.send_datagram_nowait(bytes(1000))
                if size:
                    nursery.start_soon(read)
                    sender = await client.open_send_stream()
                    await sender.send_all(bytes(size), end=True)
                # A checkpoint to begin with, then when all was delivered.
                assert await steps_of(client.aclose()) <= 2
            assert sum(map(len, received)) == 1000 * datagrams + size
