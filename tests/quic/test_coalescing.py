"""Frames that belong together share a packet: the datagrams of an exchange are counted."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair


async def exchange(connection: phoenix_trio.QuicConnection) -> None:
    async with await connection.open_stream() as stream:
        await stream.send_all(b"question")
        await stream.send_eof()
        assert b"".join([bytes(chunk) async for chunk in stream]) == b"question"


async def serve(connection: phoenix_trio.QuicConnection) -> None:
    async def echo(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams():
            nursery.start_soon(echo, stream)


async def datagrams_per_exchange(count: int, concurrent: int) -> float:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(serve, server)
        await exchange(client)
        await trio.sleep(5)  # the search for larger packets is over
        before = network.statistics().sent
        for _ in range(count // concurrent):
            async with trio.open_nursery() as callers:
                for _ in range(concurrent):
                    callers.start_soon(exchange, client)
        sent = network.statistics().sent - before
        nursery.cancel_scope.cancel()
    return sent / count


@pytest.mark.parametrize(
    ("concurrent", "bound"),
    [
        # Request, answer, and an acknowledgement now and then: 2.5 measured, and 3.0 when
        # each frame leaves as soon as it is written.
        (1, 2.7),
        (4, 0.85),  # 0.67, and 1.02
        (16, 0.42),  # 0.33, and 0.50
        (64, 0.30),  # 0.22, and 0.39
    ],
)
async def test_an_exchange_takes_few_datagrams(
    concurrent: int, bound: float, autojump_clock: MockClock
) -> None:
    assert await datagrams_per_exchange(128, concurrent) <= bound


async def test_an_answer_and_the_end_of_its_stream_share_a_datagram(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        await trio.sleep(5)
        async with await client.open_send_stream() as stream:
            before = network.statistics().sent
            await stream.send_all(b"all there is")
        receiver = await server.accept_receive_stream()
        assert await receiver.receive_some() == b"all there is"
        assert await receiver.receive_some() == b""
        assert network.statistics().sent - before == 1
