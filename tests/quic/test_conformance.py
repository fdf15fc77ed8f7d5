"""Trio's own conformance checks, over the simulated network and over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import phoenix_trio
from tests.support import connected_pair, stream_pair

#: Small, so that a stream is clogged soon.
SMALL = phoenix_trio.TransportConfig(
    send_buffer_size=16 * 1024,
    stream_send_buffer_size=16 * 1024,
    receive_buffer_size=32 * 1024,
    stream_receive_buffer_size=16 * 1024,
    max_bidirectional_streams=1000,
    max_unidirectional_streams=1000,
)

Maker = Callable[[], Awaitable[tuple[Any, Any]]]


@asynccontextmanager
async def pair(real: bool) -> AsyncIterator[tuple[Any, Any]]:
    async with connected_pair(config=SMALL, real=real) as (client, server):
        yield client, server


async def one_way(
    client: phoenix_trio.QuicConnection, server: phoenix_trio.QuicConnection
) -> tuple[phoenix_trio.SendStream, phoenix_trio.ReceiveStream]:
    sender = await client.open_send_stream()
    # Invisible to the peer until something is sent.
    await sender.send_all(b"x")
    receiver = await server.accept_receive_stream()
    assert await receiver.receive_some(1) == b"x"
    return sender, receiver


async def clog(stream: Any) -> None:
    """Send until the buffers on both sides and the windows are full."""
    for _ in range(1000):
        # Several round trips on either network.
        with trio.move_on_after(0.1) as scope:
            await stream.wait_send_all_might_not_block()
        if scope.cancelled_caught:
            return
        with trio.move_on_after(0.1):
            await stream.send_all(bytes(16 * 1024))
    raise AssertionError("the stream never blocks")


def clogged(maker: Maker) -> Maker:
    async def make() -> tuple[Any, Any]:
        first, second = await maker()
        await clog(first)
        if isinstance(second, trio.abc.SendStream):
            await clog(second)  # Trio's checks use such a pair in both directions
        return first, second

    return make


@pytest.mark.parametrize("direction", ["client to server", "server to client"])
async def test_one_way_streams_over_the_simulated_network(
    direction: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with pair(real=False) as ends:
        if direction == "server to client":
            ends = ends[::-1]

        async def maker() -> tuple[Any, Any]:
            return await one_way(*ends)

        await trio.testing.check_one_way_stream(maker, clogged(maker))


async def test_bidirectional_streams_over_the_simulated_network(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair(real=False) as ends:

        async def maker() -> tuple[Any, Any]:
            return await stream_pair(*ends)

        await trio.testing.check_half_closeable_stream(maker, clogged(maker))


async def test_streams_opened_by_the_server_over_the_simulated_network(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair(real=False) as (client, server):

        async def maker() -> tuple[Any, Any]:
            return await stream_pair(server, client)

        await trio.testing.check_half_closeable_stream(maker, clogged(maker))


async def test_one_way_streams_over_loopback() -> None:
    async with pair(real=True) as ends:

        async def maker() -> tuple[Any, Any]:
            return await one_way(*ends)

        await trio.testing.check_one_way_stream(maker, clogged(maker))


async def test_bidirectional_streams_over_loopback() -> None:
    async with pair(real=True) as ends:

        async def maker() -> tuple[Any, Any]:
            return await stream_pair(*ends)

        await trio.testing.check_half_closeable_stream(maker, clogged(maker))
