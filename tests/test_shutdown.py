"""Shutting down a transport: the work it finishes, the time it takes, the notice to its peers."""

from __future__ import annotations

import logging
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
from phoenix_trio import PhoenixConnection, PhoenixTransport, Retry, ShuttingDown
from phoenix_trio.pool import TransferHub
from phoenix_trio.streams import encode_varint
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, PORT, SERVER, client_tls, server_tls

TARGET = f"{SERVER}:{PORT}"

Handler = Callable[[PhoenixConnection], Awaitable[object]]


async def answer_all(connection: PhoenixConnection, *, seconds: float = 0.0) -> None:
    async def answer(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            question = await stream.receive_all(1000)
            await trio.sleep(seconds)
            await stream.send_all(question.upper(), end=True)

    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams():
            nursery.start_soon(answer, stream)


async def never_end(connection: PhoenixConnection) -> None:
    await trio.sleep_forever()


class World:
    """A server and a client; tests end the server."""

    client: PhoenixTransport
    server: PhoenixTransport

    def __init__(self) -> None:
        self.network = SimulatedNetwork(delay=0.01)
        self.ended_at = math.inf
        """The time when ``serve`` returned."""

    async def serve(self, handler: Handler, options: dict[str, Any], **more: Any) -> None:
        await self.server.serve(handler, PORT, host=SERVER, strict=True, **options, **more)
        self.ended_at = trio.current_time()


@asynccontextmanager
async def serving(
    handler: Handler = answer_all, *, client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[World]:
    world = World()
    async with (
        phoenix_trio.open_phoenix(
            "server",
            server_tls=server_tls(),
            tls=client_tls(server_name="localhost"),
            network=world.network.host(SERVER),
        ) as world.server,
        phoenix_trio.open_phoenix(
            "client", tls=client_tls(), network=world.network.host(CLIENT), **(client or {})
        ) as world.client,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(world.serve, handler, options)
        yield world
        nursery.cancel_scope.cancel()


def hub_of(transport: PhoenixTransport) -> TransferHub:
    return transport._hub


async def shut_down(world: World, grace: float = 10.0) -> float:
    """The seconds it took."""
    started = trio.current_time()
    await world.server.shutdown(grace)
    assert world.ended_at <= trio.current_time()
    return trio.current_time() - started


async def test_calls_in_hand_are_answered_and_serve_returns(autojump_clock: MockClock) -> None:
    async with serving(partial(answer_all, seconds=2)) as world:
        answers: list[bytes] = []

        async def call() -> None:
            answers.append(await world.client.request(TARGET, b"question"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call)
            await trio.sleep(1)
            taken = await shut_down(world)
        assert answers == [b"QUESTION"] * 20
        # The client's pool has closed its connection when the last lease had ended.
        assert 1.0 < taken < 1.2
        assert world.server.stats().handlers_cancelled == 0
        assert world.client.pool.statistics().drained == 1


async def test_a_lease_which_is_kept_does_not_use_up_the_grace(autojump_clock: MockClock) -> None:
    async with serving() as world:
        async with world.client.connect(TARGET) as connection:
            assert await connection.request(b"one") == b"ONE"
            async with trio.open_nursery() as nursery:

                async def late() -> None:
                    await trio.sleep(0.5)
                    with pytest.raises(phoenix_trio.StreamBroken) as caught:
                        await connection.request(b"two")
                    assert caught.value.processed is False

                nursery.start_soon(late)
                taken = await shut_down(world)
            assert 1.0 < taken < 1.2, "close_linger"
            assert connection.is_draining
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                await connection.request(b"three")
            assert caught.value.is_clean
            assert caught.value.processed is False


@pytest.mark.parametrize("grace", [0.0, 3.0])
async def test_handlers_which_do_not_finish_are_cancelled_and_counted(
    grace: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "phoenix_trio")
    async with serving(never_end) as world:
        async with world.client.connect(TARGET) as one:
            await trio.sleep(0.1)
            assert abs(await shut_down(world, grace) - grace) < 0.1
            await trio.sleep(0.1)
            reason = one.quic.close_reason
            assert isinstance(reason, phoenix_trio.ConnectionClosedByPeer)
            assert reason.error_code == phoenix_trio.ApplicationErrorCode.SHUTTING_DOWN
            assert reason.processed is None
        assert world.server.stats().handlers_cancelled == 1
    assert "1 handlers were cancelled" in caplog.text


async def test_a_silent_peer_cannot_delay_the_end(autojump_clock: MockClock) -> None:
    async def send_much(connection: PhoenixConnection) -> None:
        async with await connection.open_stream() as stream:
            await trio.sleep(1)
            await stream.send_all(bytes(100_000))

    async with serving(send_much) as world:
        async with world.client.connect(TARGET):
            await trio.sleep(0.5)
            world.network.partition(CLIENT, SERVER)
            assert 4.9 < await shut_down(world, 5.0) < 5.1


async def test_a_peer_which_gives_no_stream_credit_cannot_delay_the_end(
    autojump_clock: MockClock,
) -> None:
    """The peer cannot be told, and is closed like any other."""
    config = phoenix_trio.TransportConfig(max_unidirectional_streams=0)
    async with serving(client={"config": config}) as world:
        async with world.client.connect(TARGET) as connection:
            assert await connection.request(b"one") == b"ONE"
            assert await shut_down(world, 5.0) < 1.2


async def test_a_second_call_may_shorten_the_time_but_not_lengthen_it(
    autojump_clock: MockClock,
) -> None:
    async with serving(never_end) as world:
        async with world.client.connect(TARGET), trio.open_nursery() as nursery:
            await trio.sleep(0.1)
            taken: list[float] = []

            async def end(grace: float) -> None:
                taken.append(await shut_down(world, grace))

            nursery.start_soon(end, 10)
            await trio.sleep(1)
            nursery.start_soon(end, 60)
            await trio.sleep(1)
            await end(2)
        assert [round(each) for each in sorted(taken)] == [2, 3, 4]
        assert await shut_down(world) == 0


@pytest.mark.parametrize("which", ["first", "second"])
async def test_cancelling_shutdown_closes_at_once(which: str, autojump_clock: MockClock) -> None:
    async with serving(never_end) as world:
        async with world.client.connect(TARGET), trio.open_nursery() as nursery:
            await trio.sleep(0.1)
            if which == "second":
                nursery.start_soon(world.server.shutdown, 100)
            with trio.move_on_after(1) as scope:
                await world.server.shutdown(100)
            assert scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert trio.current_time() - world.ended_at < 0.1
            assert world.server.stats().handlers_cancelled == 1
        with pytest.raises(ShuttingDown):
            async with world.server.connect(TARGET):
                raise AssertionError


async def test_afterwards_nothing_new_begins(autojump_clock: MockClock) -> None:
    async with serving() as world:
        server = world.server
        await server.shutdown()
        with pytest.raises(ShuttingDown):
            async with server.connect(TARGET):
                raise AssertionError
        with pytest.raises(ShuttingDown):
            await server.request(TARGET, b"question")
        with pytest.raises(ShuttingDown):
            await server.serve(answer_all, PORT)
        with pytest.raises(trio.ClosedResourceError):
            await server.receive_multiplexed()
        with pytest.raises(trio.ClosedResourceError):
            await server.send_multiplexed(TARGET, b"data")
        assert "closed" in repr(server)
        with pytest.raises(ValueError, match="grace"):
            await server.shutdown(-1)


async def test_a_handler_may_use_the_transport_to_finish_its_work(
    autojump_clock: MockClock,
) -> None:
    """A proxy: requests to others on behalf of its own callers are work in hand."""
    backend = "10.0.0.3"
    answers: list[bytes] = []

    async def relay(connection: PhoenixConnection) -> None:
        async for stream in connection.incoming_streams():
            async with stream:
                question = await stream.receive_all(1000)
                await trio.sleep(2)
                answer = await world.server.request(f"{backend}:{PORT}", question)
                await stream.send_all(answer, end=True)

    async with serving(relay) as world, trio.open_nursery() as nursery:
        async with phoenix_trio.open_phoenix(
            server_tls=server_tls(), network=world.network.host(backend)
        ) as other:
            await nursery.start(partial(other.serve, answer_all, PORT))

            async def call() -> None:
                answers.append(await world.client.request(TARGET, b"question"))

            nursery.start_soon(call)
            await trio.sleep(1)
            assert await shut_down(world) < 3
        nursery.cancel_scope.cancel()
    assert answers == [b"QUESTION"]


async def test_calls_of_its_own_tasks_are_waited_for(autojump_clock: MockClock) -> None:
    async with serving(partial(answer_all, seconds=2)) as world, trio.open_nursery() as nursery:
        answers: list[bytes] = []

        async def call() -> None:
            answers.append(await world.client.request(TARGET, b"question"))

        nursery.start_soon(call)
        await trio.sleep(1)
        started = trio.current_time()
        await world.client.shutdown(10)
        assert 1 < trio.current_time() - started < 1.2
        assert answers == [b"QUESTION"]


async def test_leases_which_do_not_end_are_given_the_grace_and_no_more(
    autojump_clock: MockClock,
) -> None:
    """Also if a second call would give them more."""
    async with serving() as world, world.client.connect(TARGET) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.shutdown, 2)
            await trio.sleep(1)
            nursery.start_soon(world.client.shutdown, 100)
        assert 1.9 < trio.current_time() < 2.2
        with pytest.raises(trio.ClosedResourceError):
            await connection.request(b"question")


async def test_messages_which_are_on_their_way_are_received(autojump_clock: MockClock) -> None:
    received: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        async for message in connection.messages():
            await trio.sleep(0.1)
            received.append(message)

    async with serving(handler) as world:

        async def send() -> None:
            async with world.client.connect(TARGET) as connection:
                for number in range(20):
                    await connection.send_data(b"%d" % number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.2)
            await shut_down(world)
    assert received == [b"%d" % number for number in range(20)]


async def test_a_striped_transfer_under_way_is_finished_and_a_new_one_refused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_sync(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    # (Virtual time does not wait for threads.)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with serving(lambda connection: connection.quic.wait_closed()) as world:
        async with trio.open_nursery() as nursery:
            received: list[int] = []

            async def receive() -> None:
                async with await world.server.receive_multiplexed() as transfer:
                    await trio.sleep(1)
                    received.append(len(await transfer.read_all(max_size=10_000_000)))

            async def send() -> None:
                await world.client.send_multiplexed(TARGET, bytes(3_000_000), connections=1)

            nursery.start_soon(receive)
            nursery.start_soon(send)
            async with world.client.connect(TARGET) as connection:
                await trio.sleep(0.5)
                nursery.start_soon(world.server.shutdown, 10)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(ShuttingDown):
                    await world.server.receive_multiplexed()
                with pytest.raises(phoenix_trio.TransferRefused) as refused:
                    await hub_of(world.client).send([connection.quic], bytes(1000))
                assert refused.value.code == phoenix_trio.TransferCode.SHUTTING_DOWN
        assert received == [3_000_000]


async def test_a_handler_cannot_shut_down_the_server_which_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    refused: list[str] = []

    async def handler(connection: PhoenixConnection) -> None:
        async def shut_down_from_within() -> None:
            with pytest.raises(RuntimeError, match="a handler cannot") as caught:
                await world.server.shutdown()
            refused.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shut_down_from_within)
        await answer_all(connection)

    async with serving(handler) as world:
        # The attempt has no effect.
        assert await world.client.request(TARGET, b"question") == b"QUESTION"
        assert len(refused) == 1


async def start_in_scope(
    run: Callable[[], Awaitable[object]],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await run()


@pytest.mark.parametrize("grace_period", [0.0, 5.0])
@pytest.mark.parametrize("end", ["cancel", "leave", "fail"])
async def test_without_shutdown_the_grace_period_of_serve_counts(
    end: str, grace_period: float, autojump_clock: MockClock
) -> None:
    """It counts if serve is cancelled, or the block left normally; not if the block fails."""
    network = SimulatedNetwork(delay=0.01)
    answers: list[bytes] = []

    async def call(client: PhoenixTransport) -> None:
        try:
            answers.append(await client.request(TARGET, b"question"))
        except trio.BrokenResourceError:
            answers.append(b"")

    async with (
        phoenix_trio.open_phoenix(tls=client_tls(), network=network.host(CLIENT)) as client,
        trio.open_nursery() as calls,
        trio.open_nursery() as nursery,
    ):
        try:
            async with phoenix_trio.open_phoenix(
                server_tls=server_tls(), network=network.host(SERVER)
            ) as server:
                slow = partial(answer_all, seconds=2)
                serve = partial(server.serve, slow, PORT, grace_period=grace_period)
                scope = await nursery.start(start_in_scope, serve)
                calls.start_soon(call, client)
                await trio.sleep(1)
                if end == "cancel":
                    scope.cancel()
                    await trio.sleep(3)
                elif end == "fail":
                    raise KeyError
        except KeyError:
            assert end == "fail"
    assert answers == [b"QUESTION" if grace_period and end != "fail" else b""]


async def test_the_end_of_a_block_which_waits_can_be_cancelled(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with (
        phoenix_trio.open_phoenix(tls=client_tls(), network=network.host(CLIENT)) as client,
        trio.open_nursery() as nursery,
    ):
        with trio.move_on_after(3) as scope:
            async with phoenix_trio.open_phoenix(
                server_tls=server_tls(), network=network.host(SERVER)
            ) as server:
                serve = partial(server.serve, never_end, PORT)
                await nursery.start(partial(serve, grace_period=math.inf))
                async with client.connect(TARGET):
                    await trio.sleep(1)
        assert scope.cancelled_caught
        assert trio.current_time() < 3.5


# ------------------------------------------------------------------ on the wire


@pytest.mark.parametrize(
    ("details", "refuses_from"),
    [
        (b"", None),
        (encode_varint(8), 8),
        (encode_varint(5), "malformed"),
        (encode_varint(2), "malformed"),
        (b"\x40", "malformed"),
    ],
)
async def test_a_drain_stream_may_say_from_which_stream_on_nothing_is_processed(
    details: bytes, refuses_from: Any, autojump_clock: MockClock
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        async with await connection.quic.open_send_stream() as stream:
            is_cut = details == b"\x40"
            await stream.send_all(encode_varint(6) + details, end=is_cut)
            await trio.sleep(1)
            if refuses_from == "malformed" and not is_cut:
                with pytest.raises(phoenix_trio.StreamStopped) as caught:
                    await stream.send_all(b"more")
                assert caught.value.error_code == phoenix_trio.ApplicationErrorCode.MALFORMED
        await connection.quic.wait_closed()

    async with serving(handler) as world:
        async with world.client.connect(TARGET) as connection:
            await trio.sleep(2)
            quic = connection.quic
            assert quic.peer_refuses_streams is isinstance(refuses_from, int)
            assert connection.is_draining is (refuses_from != "malformed")
            streams = [await quic.open_stream() for _ in range(3)]
            for stream in streams:
                await stream.send_all(b"question")
            world.network.partition(SERVER, CLIENT)
            seen = []
            for stream in streams:
                with pytest.raises(phoenix_trio.ConnectionTimedOut) as timed_out:
                    await stream.receive_some()
                seen.append(timed_out.value.processed)
            assert seen == [None, None, False if refuses_from == 8 else None]


# ------------------------------------------------------------------ retries


async def test_what_was_not_processed_is_asked_again_and_the_unknown_is_not(
    autojump_clock: MockClock,
) -> None:
    calls = 0

    async def fail(processed: bool | None) -> bytes:
        nonlocal calls
        await trio.lowlevel.checkpoint()
        calls += 1
        if calls < 3:
            error = phoenix_trio.ConnectionTimedOut("gone")
            error.processed = processed
            raise error
        return b"answer"

    assert await Retry().run(partial(fail, False)) == b"answer"
    assert calls == 3
    calls = 0
    with pytest.raises(phoenix_trio.ConnectionTimedOut):
        await Retry().run(partial(fail, None))
    assert calls == 1
    calls = 0
    assert await Retry(idempotent=True).run(partial(fail, None)) == b"answer"
    calls = -1000
    with pytest.raises(phoenix_trio.ConnectionTimedOut):
        await Retry(attempts=4).run(partial(fail, False))
    assert calls == -996


@pytest.mark.parametrize("idempotent", [False, True])
def test_some_failures_are_not_over_the_next_time(idempotent: bool) -> None:
    retry = Retry(idempotent=idempotent)
    for kind in (phoenix_trio.CertificateUntrusted, phoenix_trio.NoCommonProtocol):
        final = kind("no")
        final.processed = False
        assert not retry.allows(final)
    refused = phoenix_trio.ConnectionRefused("full")
    refused.processed = False
    assert retry.allows(refused)
    reset = partial(phoenix_trio.StreamReset, "reset", stream_id=0)
    codes = phoenix_trio.ApplicationErrorCode
    assert retry.allows(reset(error_code=codes.NOT_PROCESSED))
    assert retry.allows(reset(error_code=codes.CANCELLED)) is idempotent
    assert not retry.allows(reset(error_code=codes.HANDLER_CRASHED))
    assert not retry.allows(trio.ClosedResourceError())
    assert not retry.allows(OSError())


async def test_the_caller_can_cancel_between_two_attempts(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        error = phoenix_trio.ConnectionTimedOut("gone")
        error.processed = False
        raise error

    backoff = phoenix_trio.Backoff(initial=100, maximum=100)
    with trio.move_on_after(5) as scope:
        await Retry(backoff=backoff).run(fail)
    assert scope.cancelled_caught


async def test_a_dial_which_fails_is_tried_again_by_a_request(autojump_clock: MockClock) -> None:
    async with serving() as world:
        config = phoenix_trio.TransportConfig(max_idle_timeout=1)
        async with phoenix_trio.open_phoenix(
            tls=client_tls(), config=config, network=world.network.host("10.0.0.4")
        ) as client:
            world.network.partition("10.0.0.4", SERVER)
            with pytest.raises(phoenix_trio.HandshakeTimedOut) as caught:
                await client.request(TARGET, b"question", retry=None)
            assert caught.value.processed is False
            async with trio.open_nursery() as nursery:

                async def heal() -> None:
                    await trio.sleep(2.5)
                    world.network.heal("10.0.0.4", SERVER)

                nursery.start_soon(heal)
                assert await client.request(TARGET, b"question") == b"QUESTION"


# ------------------------------------------------------------------ rolling restarts


@pytest.mark.parametrize("seed", range(3))
async def test_a_rolling_restart_under_load_loses_no_call(
    seed: int, autojump_clock: MockClock
) -> None:
    """The name has two addresses; the server at one of them ends, then begins again."""
    network = SimulatedNetwork(delay=0.01, jitter=0.005, loss=0.02, seed=seed)
    network.add_name("service", SERVER, "10.0.0.3")
    answers: list[bytes] = []
    counts = dict.fromkeys((SERVER, "10.0.0.3"), 0)

    async def serve(address: str, task_status: Any) -> None:
        async def handler(connection: PhoenixConnection) -> None:
            counts[address] += 1
            await answer_all(connection, seconds=0.02)

        async with (
            phoenix_trio.open_phoenix(
                server_tls=server_tls(), network=network.host(address)
            ) as phoenix,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(phoenix.serve, handler, PORT, strict=True))
            task_status.started(phoenix)

    async def call(client: PhoenixTransport) -> None:
        for number in range(20):
            question = b"question %d" % number
            # (No answer is unknown: a server that went has answered every request sent to it.)
            answers.append(await client.request(f"service:{PORT}", question))
            assert answers[-1] == question.upper()

    async with (
        phoenix_trio.open_phoenix(
            tls=client_tls(server_name="localhost"),
            network=network.host(CLIENT),
            max_connections=3,
        ) as client,
        trio.open_nursery() as servers,
    ):
        first = await servers.start(serve, SERVER)
        second = await servers.start(serve, "10.0.0.3")
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(call, client)
            await trio.sleep(0.3)
            await first.shutdown(5)
            await trio.sleep(0.3)
            first = await servers.start(serve, SERVER)
            await second.shutdown(5)
            await trio.sleep(0.3)
            second = await servers.start(serve, "10.0.0.3")
        for server in (first, second):
            await server.shutdown(0)
    assert len(answers) == 2000
    assert min(counts.values()) >= 1
