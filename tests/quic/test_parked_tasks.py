"""Calls that wait on a connection raise when its endpoint ends, whatever ends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

Connection = phoenix_trio.QuicConnection


async def receive(connection: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(b"x")
    await stream.receive_some()


async def accept(connection: Connection) -> None:
    await connection.accept_stream()


async def accept_one_way(connection: Connection) -> None:
    await connection.accept_receive_stream()


async def open_too_many(connection: Connection) -> None:
    while True:
        await connection.open_send_stream()


async def send_too_much(connection: Connection) -> None:
    stream = await connection.open_send_stream()
    await stream.send_all(bytes(10_000_000))


async def wait_for_room(connection: Connection) -> None:
    stream = await connection.open_send_stream()
    while True:
        await stream.wait_send_all_might_not_block()
        await stream.send_all(bytes(10_000))


async def wait_stopped(connection: Connection) -> None:
    stream = await connection.open_send_stream()
    await stream.wait_stopped()


async def wait_acked(connection: Connection) -> None:
    stream = await connection.open_send_stream()
    await stream.send_all(bytes(200_000))
    await stream.wait_acked()


async def receive_datagram(connection: Connection) -> None:
    await connection.receive_datagram()


async def wait_closed(connection: Connection) -> None:
    await connection.wait_closed()
    raise trio.ClosedResourceError  # as the others


@pytest.mark.parametrize("ending", ["close", "cancel", "failure"])
@pytest.mark.parametrize(
    "wait",
    [
        receive,
        accept,
        accept_one_way,
        open_too_many,
        send_too_much,
        wait_for_room,
        wait_stopped,
        wait_acked,
        receive_datagram,
        wait_closed,
    ],
    ids=lambda wait: wait.__name__,
)
async def test_blocked_calls_raise_when_the_endpoint_ends(
    autojump_clock: MockClock, wait: Callable[[Connection], Awaitable[None]], ending: str
) -> None:
    network = SimulatedNetwork(delay=0.01)
    small = TransportConfig(
        receive_buffer_size=16_384, stream_receive_buffer_size=16_384, max_unidirectional_streams=3
    )
    dialled: list[Connection] = []
    client_endpoint: list[phoenix_trio.Endpoint] = []
    scope = trio.CancelScope()

    async def client() -> None:
        with scope:
            async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
                client_endpoint.append(endpoint)
                dialled.append(
                    await endpoint._dial(SERVER, PORT, tls=client_tls(), alpn=ALPN, config=None)
                )
                await trio.sleep_forever()

    async def expect_the_end() -> None:
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await wait(dialled[0])

    async with phoenix_trio.Endpoint.open(
        SERVER, PORT, config=small, network=network.host(SERVER)
    ) as server:
        listener = server.listen(tls=server_tls(), alpn=ALPN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await listener.accept()
            while not dialled:
                await trio.sleep(0.01)
            await trio.sleep(1)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(expect_the_end)
                await wait_all_tasks_blocked(0.01)
                await trio.sleep(1)
                assert waiting.child_tasks, "it has to wait"
                with trio.fail_after(1):
                    if ending == "close":
                        client_endpoint[0].close()
                    elif ending == "cancel":
                        scope.cancel()
                    else:
                        client_endpoint[0]._driver._fail(OSError("gone"))
                    while waiting.child_tasks:
                        await trio.sleep(0.01)
            scope.cancel()
