"""The socket of ``open_listener()`` is driven by tasks that wait, or by none for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[phoenix_trio.QuicConnection, phoenix_trio.QuicStream]]:
    """The client's connection, and the server's end of its first stream."""
    network = SimulatedNetwork(delay=0.01)
    listener = await phoenix_trio.open_listener(
        PORT, tls=server_tls(), alpn=ALPN, network=network.host(SERVER)
    )
    accepted: list[phoenix_trio.QuicStream] = []

    async def accept() -> None:
        connection = await listener.accept()
        accepted.append(await connection.accept_stream())
        await accepted[0].receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
        ) as client:
            ours = await client.open_stream()
            await ours.send_all(b"x")
            with trio.fail_after(1):
                while not accepted or accepted[0]._receive._busy:
                    await trio.sleep(0.01)
            yield client, accepted[0]
            accepted[0].connection.abort()
        await listener.aclose()


@pytest.mark.parametrize("turns", range(8))
async def test_data_written_while_the_driving_task_is_cancelled_leaves_at_once(
    autojump_clock: MockClock, turns: int
) -> None:
    async with connected() as (client, stream):
        answer = await stream.connection.open_send_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            assert stream.connection._driver._hand_over.is_running
            await answer.send_all(b"one")
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert not stream.connection._driver._hand_over.is_running
        with trio.fail_after(1):
            incoming = await client.accept_receive_stream()
            assert await incoming.receive_some() == b"one"
        await answer.send_all(b"two")
        with trio.fail_after(1):
            assert await incoming.receive_some() == b"two"


async def test_data_left_over_from_a_flush_does_not_delay_later_writes(
    autojump_clock: MockClock,
) -> None:
    """No task waits, and the first writer has left more behind than one flush sends."""
    async with connected() as (client, stream):
        driver, route = stream.connection._driver, stream.connection._route
        assert route is not None
        assert not driver._hand_over.is_running
        driver._sender.dirty[route] = None
        answer = await stream.connection.open_send_stream()
        await answer.send_all(b"answer")
        with trio.fail_after(1):
            incoming = await client.accept_receive_stream()
            assert await incoming.receive_some() == b"answer"


async def test_abort_tells_the_peer_although_no_task_drives(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (client, stream):
        answer = await stream.connection.open_send_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            await answer.send_all(b"one")
            nursery.cancel_scope.cancel()
        stream.connection.abort(7)
        with trio.fail_after(1):
            await client.wait_closed()
        assert isinstance(client.close_reason, phoenix_trio.ConnectionClosedByPeer)
        assert client.close_reason.error_code == 7
