"""A server that shuts down: its refusals, the work it finishes, and its clients' errors."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, QuicConnection
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls

Handler = Callable[[QuicConnection], Awaitable[object]]


class World:
    """One server on a simulated network, whose end the test decides."""

    def __init__(self, **conditions: float) -> None:
        self.network = SimulatedNetwork(delay=0.01, **conditions)
        self.ended = trio.Event()
        self._scope = trio.CancelScope()

    @asynccontextmanager
    async def serving(self, handler: Handler, **options: Any) -> AsyncIterator[World]:
        async def run(**more: Any) -> None:
            with self._scope:
                await phoenix_trio.serve(
                    handler,
                    PORT,
                    tls=server_tls(),
                    alpn=ALPN,
                    network=self.network.host(SERVER),
                    **options,
                    **more,
                )
            self.ended.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield self
            self.stop()

    def stop(self) -> None:
        self._scope.cancel()

    def connect(self) -> Any:
        return phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=self.network.host(CLIENT)
        )


async def answer(stream: phoenix_trio.QuicStream, *, seconds: float = 0.0) -> None:
    async with stream:
        question = await stream.receive_all(1000)
        await trio.sleep(seconds)
        await stream.send_all(question.upper(), end=True)


async def answer_all(connection: QuicConnection, *, seconds: float = 0.0) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams():
            nursery.start_soon(partial(answer, stream, seconds=seconds))


async def test_streams_in_hand_are_finished_and_later_ones_refused_as_not_processed(
    autojump_clock: MockClock,
) -> None:
    async with World().serving(partial(answer_all, seconds=2), grace_period=10) as world:
        async with world.connect() as connection, trio.open_nursery() as nursery:

            async def early() -> None:
                assert await connection.request(b"early") == b"EARLY"

            nursery.start_soon(early)
            await trio.sleep(1)
            started = trio.current_time()
            world.stop()
            assert not connection.peer_refuses_streams
            with pytest.raises(phoenix_trio.StreamBroken) as caught:
                await connection.request(b"late")
            assert caught.value.error_code == ApplicationErrorCode.NOT_PROCESSED
            assert caught.value.processed is False
            assert connection.peer_refuses_streams
        await world.ended.wait()
        # The handler has seen the end of its streams, so the grace period is not used up.
        assert trio.current_time() - started < 1.5


async def test_streams_which_were_not_accepted_are_refused(autojump_clock: MockClock) -> None:
    async def one(connection: QuicConnection) -> None:
        await answer(await connection.accept_stream(), seconds=2)
        with pytest.raises(phoenix_trio.ShuttingDown):
            await connection.accept_stream()

    outcomes: list[object] = []
    async with World().serving(one, grace_period=10, strict=True) as world:
        async with world.connect() as connection, trio.open_nursery() as nursery:

            async def request(question: bytes) -> None:
                try:
                    outcomes.append(await connection.request(question))
                except phoenix_trio.StreamBroken as error:
                    outcomes.append(error.processed)

            for question in (b"one", b"two", b"three"):
                nursery.start_soon(request, question)
                await trio.sleep(0.1)
            world.stop()
    assert outcomes == [False, False, b"ONE"]


async def test_a_client_which_dials_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with World().serving(partial(answer_all, seconds=5), grace_period=10) as world:
        async with world.connect() as connection, trio.open_nursery() as nursery:
            nursery.start_soon(connection.request, b"slow")
            await trio.sleep(1)
            world.stop()
            await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
            with pytest.raises(phoenix_trio.ConnectionRefused, match="shutting down"):
                async with world.connect():
                    raise AssertionError("it was let in")
            assert trio.current_time() - started < 0.1


async def test_a_connection_which_was_not_accepted_was_not_processed(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as endpoint:
        listener = endpoint.listen(tls=server_tls(), alpn=ALPN)
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
        ) as connection:
            async with trio.open_nursery() as nursery:

                async def request() -> None:
                    with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                        await connection.request(b"question")
                    assert caught.value.processed is False
                    assert not caught.value.is_clean

                nursery.start_soon(request)
                await trio.sleep(1)
                await listener.aclose()


async def test_a_client_in_the_middle_of_its_handshake_hears_that_it_was_not_processed(
    autojump_clock: MockClock,
) -> None:
    """Even if the server has nothing else to do, and ends at once."""
    async with World().serving(answer_all, grace_period=10) as world:
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                async with world.connect() as connection:
                    with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                        await connection.request(b"question")
                    assert caught.value.processed is False

            nursery.start_soon(client)
            await trio.sleep(0.025)  # of a handshake of 20 ms, and the server knows after 30
            world.stop()


async def test_what_a_cancelled_handler_had_taken_is_unknown(autojump_clock: MockClock) -> None:
    async with World().serving(partial(answer_all, seconds=math.inf), grace_period=1) as world:
        async with world.connect() as connection:
            async with trio.open_nursery() as nursery:

                async def request() -> None:
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await connection.request(b"question")
                    assert caught.value.processed is None  # type: ignore[attr-defined]

                nursery.start_soon(request)
                await trio.sleep(0.5)
                started = trio.current_time()
                world.stop()
            assert 0.9 < trio.current_time() - started < 1.1
            # A call after the end has sent nothing.
            with pytest.raises(phoenix_trio.ConnectionBroken) as caught:
                await connection.request(b"question")
            assert caught.value.processed is False


async def test_a_silent_client_holds_the_server_no_longer_than_the_grace_period(
    autojump_clock: MockClock,
) -> None:
    async def send(connection: QuicConnection) -> None:
        async with await connection.open_send_stream() as stream:
            await trio.sleep(1)
            await stream.send_all(b"never acknowledged")

    async with World().serving(send, grace_period=3) as world:
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                async with world.connect():
                    await trio.sleep_forever()

            nursery.start_soon(client)
            await trio.sleep(0.5)
            world.network.partition(CLIENT, SERVER)
            started = trio.current_time()
            world.stop()
            await world.ended.wait()
            assert 2.9 < trio.current_time() - started < 3.1
            nursery.cancel_scope.cancel()


async def test_a_refusing_connection_keeps_nothing_of_the_streams_which_it_refuses(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        for _ in range(3):
            await (await client.open_stream()).send_all(b"waits")
        await trio.sleep(0.1)
        first = await server.accept_stream()
        assert server.refuse_streams() == 4
        for _ in range(300):
            with pytest.raises(phoenix_trio.StreamBroken):
                await client.request(bytes(2000))
        await trio.sleep(0.1)
        assert server.refuse_streams() == 4
        assert list(server._receivers) == list(server._senders) == [first.id]
        assert not server._incoming


async def test_the_other_side_of_a_connection_can_refuse_streams_as_well(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        assert client.refuse_streams() == 1
        with pytest.raises(phoenix_trio.StreamBroken) as caught:
            await server.request(b"question")
        assert caught.value.processed is False
        # Streams opened by the refusing side itself go on.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, server)
            assert await client.request(b"question") == b"QUESTION"
            nursery.cancel_scope.cancel()


async def test_what_is_sent_after_the_last_answer_is_refused_rather_than_lost(
    autojump_clock: MockClock,
) -> None:
    """The client has received nothing, and goes on asking."""
    async with World().serving(answer_all, grace_period=10) as world:
        async with world.connect() as connection:
            assert await connection.request(b"first") == b"FIRST"
            started = trio.current_time()
            world.stop()
            await trio.sleep(0.5)
            with pytest.raises(phoenix_trio.StreamBroken) as caught:
                await connection.request(b"second")
            assert caught.value.processed is False
        await world.ended.wait()
        assert trio.current_time() - started < 0.7, "the client has closed"


@pytest.mark.parametrize("seed", range(3))
async def test_a_pool_of_bare_connections_loses_no_call_when_its_server_restarts(
    seed: int, autojump_clock: MockClock
) -> None:
    """Without any message of ``phoenix/1``, the first refused stream tells the pool."""
    network = SimulatedNetwork(delay=0.01, jitter=0.005, seed=seed)
    retry = phoenix_trio.Retry(attempts=10)
    answered = 0

    async def serve(task_status: trio.TaskStatus[tuple[trio.CancelScope, trio.Event]]) -> None:
        ended = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(
                        phoenix_trio.serve,
                        partial(answer_all, seconds=0.02),
                        PORT,
                        tls=server_tls(),
                        network=network.host(SERVER),
                        grace_period=5,
                    )
                )
                task_status.started((scope, ended))
        ended.set()

    async def ask(question: bytes) -> bytes:
        async with pool.lease((SERVER, PORT)) as connection:
            return await connection.request(question)

    async def call(number: int) -> None:
        nonlocal answered
        for _ in range(20):
            question = b"question %d" % number
            assert await retry.run(partial(ask, question)) == question.upper()
            answered += 1

    async with (
        phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint,
        phoenix_trio.open_pool(
            lambda target: endpoint.connect(target.host, target.port, tls=client_tls())
        ) as pool,
        trio.open_nursery() as servers,
    ):
        scope, ended = await servers.start(serve)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(call, number)
            await trio.sleep(0.3)
            before = answered
            scope.cancel()
            await ended.wait()
            scope, _ = await servers.start(serve)
        scope.cancel()
    assert 0 < before < answered == 1000
