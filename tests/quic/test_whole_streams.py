"""Related steps in one call: the last data with the end, a whole stream, an exchange."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, QuicConnection, QuicStream, TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, connected_pair, steps_of, stream_pair

#: Less than most of the data sent in these tests.
SMALL = TransportConfig(
    send_buffer_size=16 * 1024,
    stream_send_buffer_size=8 * 1024,
    receive_buffer_size=32 * 1024,
    stream_receive_buffer_size=16 * 1024,
    max_bidirectional_streams=3,
    max_unidirectional_streams=3,
)

LARGE = bytes(range(251)) * 1000

Handler = Callable[[QuicStream], Awaitable[object]]


@asynccontextmanager
async def serving(
    handler: Handler, network: SimulatedNetwork | None = None, **arguments: Any
) -> AsyncIterator[tuple[QuicConnection, QuicConnection]]:
    """A pair of connections; each stream accepted by the server has a task."""
    async with connected_pair(network, **arguments) as (client, server):

        async def accept() -> None:
            async for stream in server.incoming_streams():
                nursery.start_soon(handler, stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield client, server
            nursery.cancel_scope.cancel()


async def nothing_is_left(*connections: QuicConnection) -> None:
    """Check that neither side holds a stream, and that another can be opened."""
    with trio.fail_after(60):
        while any(each._senders or each._receivers for each in connections):
            await trio.sleep(0.1)
        while not connections[0].available_streams:
            await trio.sleep(0.1)


async def echo(stream: QuicStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def answer(stream: QuicStream) -> None:
    async with stream:
        await stream.send_all(await stream.receive_all(1_000_000), end=True)


# ------------------------------------------------------------------ send_all(..., end=True)


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 500])
async def test_the_end_leaves_in_the_same_packet_as_the_last_data(
    data: bytes, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        sent: list[int] = []

        def tap(datagram: Any) -> Any:
            if datagram.source[0] == CLIENT:
                sent.append(len(datagram.data))
            return datagram

        network.tap = tap
        assert await steps_of(ours.send_all(data, end=True)) == 1
        await trio.sleep(0.005)
        assert len(sent) == 1
        network.tap = None
        assert await theirs.receive_all(1000) == data


async def test_nothing_is_sent_after_the_end(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"last", end=True)
        for end in (False, True):
            with pytest.raises(trio.ClosedResourceError):
                await ours.send_all(b"", end=end)
        await ours.send_eof()  # idempotent
        await ours.wait_acked()
        assert await theirs.receive_some() == b"last"
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"the other direction is open")
        assert await ours.receive_some() == b"the other direction is open"


async def test_more_than_the_buffer_holds_ends_with_its_last_byte(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        sender = await client.open_send_stream()
        received = bytearray()

        async def receive() -> None:
            async with await server.accept_receive_stream() as receiver:
                async for chunk in receiver:
                    received.extend(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await sender.send_all(memoryview(LARGE), end=True)
        assert received == LARGE
        await sender.aclose()


async def test_a_cancelled_last_call_does_not_end_the_stream(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        with trio.move_on_after(1) as scope:
            await ours.send_all(LARGE, end=True)
        assert scope.cancelled_caught
        with trio.move_on_after(1) as scope:
            received = bytearray()
            while chunk := await theirs.receive_some():
                received += chunk
        assert scope.cancelled_caught, "the peer took a part for the whole"
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.send_all(b"", end=True)
        assert scope.cancelled_caught
        await ours.send_all(b"!", end=True)
        assert (await theirs.receive_all(10)) == b"!"
        assert LARGE.startswith(received)


async def test_closing_during_the_last_call_resets(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await ours.send_all(LARGE, end=True)

            nursery.start_soon(send)
            await trio.sleep(1)
            with pytest.raises(trio.BusyResourceError):
                await ours.send_all(b"", end=True)
            ours.send_stream.close()
        with pytest.raises(phoenix_trio.StreamReset):
            await theirs.receive_all(10**6)


async def test_the_last_data_is_refused_like_other_data(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        theirs.stop_receiving(9)
        await trio.sleep(1)
        with pytest.raises(phoenix_trio.StreamStopped):
            await ours.send_all(b"x", end=True)
        ours, _ = await stream_pair(client, server)
        server.abort(3)
        await trio.sleep(1)
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await ours.send_all(b"x", end=True)


# ------------------------------------------------------------------ receive_all


@pytest.mark.parametrize("size", [0, 1, 1000, len(LARGE)])
async def test_a_whole_stream_is_received(size: int, autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, size, 3000):
                    await ours.send_all(LARGE[start : min(size, start + 3000)])
                    await trio.sleep(0.001)
                await ours.send_eof()

            nursery.start_soon(send)
            received = await theirs.receive_all(size)
            assert type(received) is bytes
            assert received == LARGE[:size]
        # After the end, the result is empty, and each call is a checkpoint.
        with trio.testing.assert_checkpoints():
            assert await theirs.receive_all(0) == b""
        with trio.testing.assert_checkpoints():
            assert await theirs.receive_some() == b""
        ours.close()
        theirs.close()
        await nothing_is_left(client)


async def test_what_was_received_before_is_no_part_of_the_rest(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"header and body", end=True)
        assert await theirs.receive_some(7) == b"header "
        assert await theirs.receive_all(8) == b"and body"


async def test_the_task_is_not_woken_for_each_piece(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await ours.send_all(LARGE, end=True)

            nursery.start_soon(send)
            assert await steps_of(theirs.receive_all(len(LARGE))) == 1
        assert server.statistics().stream_bytes_read == len(LARGE) + 1


@pytest.mark.parametrize("code", [None, 77])
@pytest.mark.parametrize("maximum", [0, 1, 5000, 100_000])
async def test_too_much_is_refused_and_the_peer_hears_of_it(
    maximum: int, code: int | None, autojump_clock: MockClock
) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        most = 0
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(phoenix_trio.StreamStopped) as caught:
                    while True:
                        await ours.send_all(bytes(1000))
                assert caught.value.error_code == (code or ApplicationErrorCode.MESSAGE_TOO_LARGE)

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, server.statistics().receive_buffer_bytes)
                    await trio.sleep(0.001)

            nursery.start_soon(send)
            nursery.start_soon(watch)
            with pytest.raises(phoenix_trio.StreamTooLarge) as caught:
                if code is None:
                    await theirs.receive_all(maximum)
                else:
                    await theirs.receive_all(maximum, code=code)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        error = caught.value
        assert (error.stream_id, error.maximum) == (ours.id, maximum)
        assert error.code == (code or ApplicationErrorCode.MESSAGE_TOO_LARGE)
        assert most <= maximum + SMALL.stream_receive_buffer_size
        assert server.statistics().receive_buffer_bytes == 0
        for receive in (theirs.receive_all(10), theirs.receive_some()):
            with pytest.raises(trio.ClosedResourceError):
                await receive
        await theirs.send_all(b"refused", end=True)
        assert await ours.receive_all(100) == b"refused"
        ours.close()
        await nothing_is_left(client)


async def test_too_much_is_refused_also_when_all_of_it_is_there(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(1001), end=True)
        await trio.sleep(1)
        with pytest.raises(phoenix_trio.StreamTooLarge):
            with trio.testing.assert_checkpoints():
                await theirs.receive_all(1000)
        await trio.sleep(1)
        await ours.wait_acked()


async def test_a_cancelled_call_leaves_everything_to_the_next(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(LARGE), 5000):
                    await ours.send_all(LARGE[start : start + 5000])
                    await trio.sleep(0.1)
                await ours.send_eof()

            nursery.start_soon(send)
            received = bytearray()
            for limit in (10**6, 200_000):
                with trio.move_on_after(1) as scope:
                    await theirs.receive_all(limit)
                assert scope.cancelled_caught
                received += await theirs.receive_some(700)
            received += await theirs.receive_all(10**6)
            assert received == LARGE
        assert server.statistics().stream_bytes_read == len(LARGE) + 1
        with trio.CancelScope() as scope:
            scope.cancel()
            await theirs.receive_all(10)
        assert scope.cancelled_caught


async def test_after_a_cancelled_call_the_window_is_as_wide_as_before(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        with trio.move_on_after(1):
            await theirs.receive_all(100_000)
        with trio.move_on_after(1):
            await ours.send_all(LARGE)
        held = server.statistics().receive_buffer_bytes
        assert held <= SMALL.stream_receive_buffer_size
        with trio.move_on_after(1):
            await theirs.receive_all(10**6)
        received = 0
        with trio.move_on_after(10):
            while True:
                received += len(await theirs.receive_some())
        assert received == client.statistics().stream_bytes_sent - 1


async def test_a_reset_ends_the_call(autojump_clock: MockClock) -> None:
    async with connected_pair(config=SMALL) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"a part")
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(phoenix_trio.StreamReset) as caught:
                    await theirs.receive_all(100)
                assert caught.value.error_code == 5

            nursery.start_soon(receive)
            await trio.sleep(1)
            ours.reset(5)
        with pytest.raises(phoenix_trio.StreamReset):
            await theirs.receive_all(100)
        theirs.close()
        ours.close()
        await nothing_is_left(client)


async def test_when_the_connection_ends_what_had_arrived_can_still_be_read(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        whole, theirs_whole = await stream_pair(client, server)
        part, theirs_part = await stream_pair(client, server)
        await whole.send_all(b"whole", end=True)
        await part.send_all(b"part")
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                    await theirs_part.receive_all(100)

            nursery.start_soon(receive)
            await trio.sleep(1)
            client.abort(7)
        await trio.sleep(1)
        assert await theirs_whole.receive_all(100) == b"whole"
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await theirs_part.receive_all(100)
        assert await theirs_part.receive_some() == b"part"
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await theirs_part.receive_some()


async def test_one_task_at_a_time_and_closing_wakes_it(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await theirs.receive_all(100)

            nursery.start_soon(receive)
            await ours.send_all(b"x")
            await trio.sleep(1)
            for other in (theirs.receive_all(10), theirs.receive_some()):
                with pytest.raises(trio.BusyResourceError):
                    await other
            theirs.receive_stream.close()


async def test_limits_are_checked_at_once(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        _, theirs = await stream_pair(client, server)
        for wrong in (-1, -(10**9)):
            with pytest.raises(ValueError, match="0 or more"):
                await theirs.receive_all(wrong)
            with pytest.raises(ValueError, match="0 or more"):
                await client.request(b"", max_answer=wrong)
        for nonsense in (1.5, True, "1", math.inf):
            with pytest.raises(TypeError):
                await theirs.receive_all(nonsense)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="error code"):
            await theirs.receive_all(1, code=-1)
        with pytest.raises(TypeError):
            await client.request("text")  # type: ignore[arg-type]
        assert client.streams_opened == 1


# ------------------------------------------------------------------ request


@pytest.mark.parametrize("handler", [echo, answer])
@pytest.mark.parametrize("size", [0, 1, 1000, len(LARGE)])
async def test_a_request_is_answered(
    size: int, handler: Handler, autojump_clock: MockClock
) -> None:
    async with serving(handler, config=SMALL) as (client, _):
        for data in (LARGE[:size], bytearray(LARGE[:size]), memoryview(LARGE)[:size]):
            received = await client.request(data, max_answer=size)
            assert type(received) is bytes
            assert received == LARGE[:size]
        await nothing_is_left(client)


async def test_a_request_wakes_its_task_once(autojump_clock: MockClock) -> None:
    async with serving(answer) as (client, _):
        assert await steps_of(client.request(b"question")) == 1
        assert await steps_of(client.request(LARGE)) == 1


async def test_requests_of_the_same_time_share_packets(autojump_clock: MockClock) -> None:
    """Also the next requests of tasks woken by one packet of answers."""
    network = SimulatedNetwork(delay=0.01)
    async with serving(answer, network) as (client, _):
        await trio.sleep(1)
        sent: list[int] = []

        def tap(datagram: Any) -> Any:
            if datagram.source[0] == CLIENT:
                sent.append(len(datagram.data))
            return datagram

        async def ask() -> None:
            for _ in range(20):
                assert await steps_of(client.request(b"question")) <= 2

        network.tap = tap
        async with trio.open_nursery() as asking:
            for _ in range(16):
                asking.start_soon(ask)
        network.tap = None
        assert len(sent) <= 30, "320 requests take about a packet for each 16"


async def test_many_requests_side_by_side_over_a_bad_network(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=7, delay=0.01)
    async with serving(answer, network, config=SMALL) as (client, _):
        network.set_conditions(loss=0.1, reorder=0.1, duplicate=0.05)
        async with trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                data = b"%d:" % number + LARGE[: number * 1000]
                assert await client.request(data, max_answer=len(data)) == data

            for number in range(30):
                nursery.start_soon(ask, number)
        await nothing_is_left(client)


async def test_the_longest_answer_is_that_of_messages_by_default(autojump_clock: MockClock) -> None:
    config = attrs.evolve(SMALL, max_message_size=1000)
    async with serving(echo, config=config) as (client, _):
        assert len(await client.request(bytes(1000))) == 1000
        with pytest.raises(phoenix_trio.StreamTooLarge) as caught:
            await client.request(bytes(1001))
        assert caught.value.maximum == 1000


@pytest.mark.parametrize("size", [10, len(LARGE)])
async def test_an_answer_which_is_too_long_is_refused(size: int, autojump_clock: MockClock) -> None:
    seen: list[int] = []

    async def talk(stream: QuicStream) -> None:
        async with stream:
            await stream.receive_some()
            try:
                while True:
                    await stream.send_all(bytes(1000))
            except phoenix_trio.StreamStopped as error:
                seen.append(error.error_code)

    async with serving(talk, config=SMALL) as (client, _):
        for _ in range(5):
            with pytest.raises(phoenix_trio.StreamTooLarge) as caught:
                await client.request(LARGE[:size], max_answer=20_000)
            assert caught.value.maximum == 20_000
        await nothing_is_left(client)
    assert seen == [ApplicationErrorCode.MESSAGE_TOO_LARGE] * 5


@pytest.mark.parametrize("how", ["too long", "reset"])
async def test_an_answer_which_fails_ends_the_waiting_for_room(
    how: str, autojump_clock: MockClock
) -> None:
    """Nothing else would: the peer reads nothing, and has acknowledged all the data it let in."""

    async def fail(stream: QuicStream) -> None:
        await trio.sleep(10)
        if how == "reset":
            stream.reset(5)
        else:
            await stream.send_all(bytes(1000))
        await trio.sleep(10)
        with pytest.raises(phoenix_trio.StreamReset):
            await stream.receive_all(10**6)
        stream.close()

    async with serving(fail, config=SMALL) as (client, server):
        started = trio.current_time()
        with pytest.raises((phoenix_trio.StreamTooLarge, phoenix_trio.StreamReset)):
            await client.request(LARGE, max_answer=500)
        assert trio.current_time() - started == pytest.approx(10, abs=0.2)
        await nothing_is_left(client, server)


@pytest.mark.parametrize("size", [0, 10, len(LARGE)])
async def test_an_early_answer_counts_though_the_rest_of_the_request_was_stopped(
    size: int, autojump_clock: MockClock
) -> None:
    async def hasty(stream: QuicStream) -> None:
        async with stream:
            await stream.send_all(b"enough")

    async with serving(hasty, config=SMALL) as (client, _):
        for _ in range(5):
            assert await client.request(LARGE[:size], max_answer=10) == b"enough"
        await nothing_is_left(client)


async def test_an_early_answer_counts_though_the_connection_is_closed_then(
    autojump_clock: MockClock,
) -> None:
    async def last(stream: QuicStream) -> None:
        await stream.send_all(b"goodbye", end=True)
        await stream.wait_acked()
        stream.connection.abort(0)

    async with connected_pair(config=SMALL) as (client, server):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await last(await server.accept_stream())

            nursery.start_soon(serve)
            assert await client.request(LARGE, max_answer=10) == b"goodbye"


async def test_a_peer_may_read_on_after_its_answer(autojump_clock: MockClock) -> None:
    """The request is sent to its end, since the peer has not stopped it."""
    received: list[bytes] = []

    async def answer_first(stream: QuicStream) -> None:
        async with stream:
            await stream.send_all(b"first", end=True)
            await trio.sleep(5)
            received.append(await stream.receive_all(10**6))

    async with serving(answer_first, config=SMALL) as (client, _):
        assert await client.request(LARGE, max_answer=10) == b"first"
        await trio.sleep(10)
        assert received == [LARGE]


@pytest.mark.parametrize("size", [10, len(LARGE)])
@pytest.mark.parametrize("how", ["reset", "stop and reset", "crash"])
async def test_an_answer_which_the_peer_gives_up_raises(
    how: str, size: int, autojump_clock: MockClock
) -> None:
    async def fail(stream: QuicStream) -> None:
        if how == "reset":
            await stream.receive_all(10**6)
            stream.reset(5)
        elif how == "stop and reset":
            await trio.sleep(1)
            await stream.receive_some(1)
            stream.stop_receiving(6)
            stream.reset(5)
        else:
            with pytest.raises(ZeroDivisionError):
                async with stream:
                    raise ZeroDivisionError

    async with serving(fail, config=SMALL) as (client, _):
        for _ in range(5):
            with pytest.raises(phoenix_trio.StreamBroken) as caught:
                await client.request(LARGE[:size])
            error = caught.value
            if how == "reset" or (size == 10 and how == "stop and reset"):
                # (All of a short request has arrived, so it cannot be stopped any more.)
                assert type(error) is phoenix_trio.StreamReset
                assert error.error_code == 5
            elif how == "stop and reset":
                assert type(error) is phoenix_trio.StreamStopped
                assert error.error_code == 6
                assert isinstance(error.__cause__, phoenix_trio.StreamReset)
            else:
                assert error.error_code == ApplicationErrorCode.CANCELLED
        await nothing_is_left(client)


async def test_a_request_which_the_peer_stops_waits_for_its_answer(
    autojump_clock: MockClock,
) -> None:
    async def reluctant(stream: QuicStream) -> None:
        await stream.receive_some(1)
        stream.stop_receiving(6)
        await trio.sleep(10)
        await stream.send_all(b"at last", end=True)

    async with serving(reluctant, config=SMALL) as (client, _):
        assert await client.request(LARGE) == b"at last"


@pytest.mark.parametrize("size", [10, len(LARGE)])
async def test_a_cancelled_request_is_seen_by_the_peer_and_gives_the_stream_back(
    size: int, autojump_clock: MockClock
) -> None:
    seen: list[tuple[type, int]] = []

    async def wait(stream: QuicStream) -> None:
        async with stream:
            try:
                await stream.receive_all(10**6)
                await stream.send_stream.wait_stopped()
            except phoenix_trio.StreamBroken as error:
                seen.append((type(error), error.error_code))

    async def slow(stream: QuicStream) -> None:
        await trio.sleep(2)
        await wait(stream)

    for handler, expected in (
        (wait, phoenix_trio.StreamStopped),
        (slow, phoenix_trio.StreamStopped if size == 10 else phoenix_trio.StreamReset),
    ):
        async with serving(handler, config=SMALL) as (client, _):
            seen.clear()
            for _ in range(5):
                with trio.move_on_after(1) as scope:
                    await client.request(LARGE[:size])
                assert scope.cancelled_caught
                await trio.sleep(2)
            await nothing_is_left(client)
        assert seen == [(expected, ApplicationErrorCode.CANCELLED)] * 5


async def test_a_request_in_a_cancelled_scope_opens_no_stream(autojump_clock: MockClock) -> None:
    async with serving(answer) as (client, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.request(b"x")
        assert scope.cancelled_caught
        assert client.streams_opened == 0
        with trio.testing.assert_checkpoints():
            await client.request(b"x")


async def test_requests_wait_for_stream_credit_and_can_be_cancelled_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async def slow(stream: QuicStream) -> None:
        await trio.sleep(5)
        await answer(stream)

    async with serving(slow, config=SMALL) as (client, _):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.request, b"x")
            await trio.sleep(1)
            assert client.available_streams == 0
            with trio.move_on_after(1) as scope:
                await client.request(b"y")
            assert scope.cancelled_caught
            assert client.streams_opened == 3
            assert await client.request(b"z") == b"z"
        assert client.statistics().stream_credit_stalls == 2


@pytest.mark.parametrize("size", [10, len(LARGE)])
async def test_requests_raise_why_the_connection_ended(
    size: int, autojump_clock: MockClock
) -> None:
    async def wait(stream: QuicStream) -> None:
        await trio.sleep_forever()

    for end in ("server", "client"):
        async with connected_pair(config=SMALL) as (client, server):
            async with trio.open_nursery() as nursery:

                async def ask(end: str, client: QuicConnection) -> None:
                    kind: type[Exception] = trio.ClosedResourceError
                    if end == "server":
                        kind = phoenix_trio.ConnectionClosedByPeer
                    with pytest.raises(kind):
                        await client.request(LARGE[:size])
                    with pytest.raises(kind):
                        await client.request(b"")

                for _ in range(4):  # one of them waits for stream credit
                    nursery.start_soon(ask, end, client)
                await trio.sleep(1)
                (server if end == "server" else client).abort(3)


async def test_a_request_without_a_nursery_for_the_server(autojump_clock: MockClock) -> None:
    """The socket of open_listener is served only while some task waits."""
    from tests.support import ALPN, PORT, SERVER, client_tls, server_tls

    network = SimulatedNetwork(delay=0.01)
    listener = await phoenix_trio.open_stream_listener(
        PORT, tls=server_tls(), alpn=ALPN, network=network.host(SERVER)
    )

    async def serve() -> None:
        while True:
            await answer(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
        ) as client:
            for data in (b"small", LARGE):
                assert await client.request(data) == data
        nursery.cancel_scope.cancel()
    await listener.aclose()
