"""Batching channels: order kept, nothing lost or doubled, delay bounded, exact at the end."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.streams.batching import (
    BatchReceiver,
    BatchSender,
    open_batch_sender,
    open_batching_channel,
)
from phoenix_trio.streams.framing import encode_frame, encode_varint
from phoenix_trio.streams.messages import MessageRefused
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair, examples, stream_pair


@asynccontextmanager
async def channel(**options: Any) -> AsyncIterator[tuple[BatchSender, BatchReceiver, Any]]:
    """Over an unbounded stream in memory."""
    send, receive = trio.testing.memory_stream_one_way_pair()
    receiving = {name: options.pop(name) for name in ("decode",) if name in options}
    async with open_batch_sender(send, **options) as sender:
        yield sender, BatchReceiver(receive, **receiving), send


async def drain(receiver: BatchReceiver) -> list[Any]:
    return [message async for message in receiver]


# ------------------------------------------------------------------ laws


@examples(150)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.binary(max_size=300)),
            st.tuples(st.just("many"), st.lists(st.binary(max_size=100), max_size=20)),
            st.tuples(st.just("express"), st.binary(max_size=50)),
            st.tuples(st.just("flush"), st.none()),
            st.tuples(st.just("wait"), st.floats(0, 0.01)),
            st.tuples(st.just("large"), st.integers(60, 5000)),
        ),
        max_size=40,
    ),
    max_batch_bytes=st.integers(1, 500),
    max_delay=st.sampled_from([0.0, 0.002, 1.0]),
    many=st.booleans(),
)
def test_order_is_kept_and_nothing_is_lost_or_doubled(
    steps: list[tuple[str, Any]], max_batch_bytes: int, max_delay: float, many: bool
) -> None:
    expected: list[bytes] = []
    got: list[bytes] = []

    async def receive(receiver: BatchReceiver) -> None:
        try:
            while True:
                got.extend(await receiver.receive_many() if many else [await receiver.receive()])
        except trio.EndOfChannel:
            pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with channel(max_batch_bytes=max_batch_bytes, max_delay=max_delay) as (
                sender,
                receiver,
                _,
            ):
                nursery.start_soon(receive, receiver)
                for what, value in steps:
                    if what in ("send", "express"):
                        await sender.send(value, express=what == "express")
                        expected.append(value)
                    elif what == "large":
                        await sender.send(bytes(value))
                        expected.append(bytes(value))
                    elif what == "many":
                        assert await sender.send_many(value) == len(value)
                        expected.extend(value)
                    elif what == "flush":
                        await sender.flush()
                        assert sender.messages_sent == len(expected)
                    else:
                        await trio.sleep(value)
            assert sender.messages_sent == len(expected)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert got == expected


async def test_a_message_waits_for_no_longer_than_the_delay(autojump_clock: MockClock) -> None:
    async with channel(max_delay=0.5) as (sender, receiver, _):
        started = trio.current_time()
        await sender.send(b"one")
        await trio.sleep(0.3)
        await sender.send(b"two")
        assert await receiver.receive() == b"one"
        assert trio.current_time() - started == pytest.approx(0.5)
        assert await receiver.receive() == b"two"
        assert trio.current_time() - started == pytest.approx(0.5)
        await trio.sleep(2)
        await sender.send(b"three")
        assert await receiver.receive() == b"three"
        assert trio.current_time() - started == pytest.approx(3.0)
        assert sender.batches_sent == 2


async def test_an_express_message_takes_those_before_it_along(autojump_clock: MockClock) -> None:
    async with channel(max_delay=100) as (sender, receiver, _):
        before = trio.current_time()
        await sender.send(b"patient")
        await sender.send(b"urgent", express=True)
        assert await receiver.receive_many() == [b"patient", b"urgent"]
        await sender.send_many([b"1", b"2"], express=True)
        assert await receiver.receive_many() == [b"1", b"2"]
        assert trio.current_time() == before


async def test_a_full_batch_leaves_at_once(autojump_clock: MockClock) -> None:
    async with channel(max_delay=100, max_batch_bytes=1000) as (sender, receiver, _):
        before = trio.current_time()
        for number in range(100):
            await sender.send(b"%099d" % number)
        for number in range(90):
            assert await receiver.receive() == b"%099d" % number
        assert trio.current_time() == before


async def test_without_a_delay_those_who_send_together_share_a_batch(
    autojump_clock: MockClock,
) -> None:
    async with channel(max_delay=0) as (sender, receiver, _):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(sender.send, b"%d" % number)
        await sender.flush()
        assert sender.batches_sent <= 5
        assert len(await receiver.receive_many()) >= 10


async def test_messages_can_be_typed(autojump_clock: MockClock) -> None:
    async with channel(
        encode=msgspec.json.encode, decode=msgspec.json.Decoder(dict[str, int]).decode
    ) as (sender, receiver, _):
        await sender.send({"a": 1})
        await sender.send_many([{"b": 2}, {"c": 3}])
        await sender.flush()
        assert await receiver.receive() == {"a": 1}
        assert await receiver.receive_many() == [{"b": 2}, {"c": 3}]


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc")])
async def test_what_is_sent_may_be_changed_afterwards(
    value: Any, autojump_clock: MockClock
) -> None:
    async with channel(max_delay=1) as (sender, receiver, _):
        await sender.send(value)
        await sender.send_many([value])
        if isinstance(value, bytearray):
            value[:] = b"xyz"
        assert await receiver.receive_many() == [b"abc", b"abc"]


# ------------------------------------------------------------------ back-pressure


async def test_memory_is_one_batch_and_the_one_which_is_being_written(
    autojump_clock: MockClock,
) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    accepted = 0
    async with trio.open_nursery() as nursery:
        async with open_batch_sender(send, max_batch_bytes=1000, max_delay=0) as sender:

            async def flood() -> None:
                nonlocal accepted
                for _ in range(200):
                    await sender.send(bytes(99))
                    accepted += 1

            nursery.start_soon(flood)
            await trio.sleep(10)
            assert accepted <= 2 * 10
            nursery.start_soon(drain, BatchReceiver(receive))
            with trio.fail_after(5):
                while accepted < 200:
                    await trio.sleep(0.01)


async def test_a_cancelled_send_has_queued_nothing(autojump_clock: MockClock) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    sent: list[bytes] = []
    async with trio.open_nursery() as nursery:
        async with open_batch_sender(send, max_batch_bytes=100, max_delay=0) as sender:
            for number in range(30):
                with trio.move_on_after(1) as scope:
                    await sender.send(b"%050d" % number)
                if not scope.cancelled_caught:
                    sent.append(b"%050d" % number)
            assert 0 < len(sent) < 30
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await sender.send(b"never")
            got: list[bytes] = []

            async def collect() -> None:
                got.extend(await drain(BatchReceiver(receive)))

            nursery.start_soon(collect)
    assert got == sent


async def test_who_waits_first_is_served_first_whatever_the_sizes(
    autojump_clock: MockClock,
) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    asked: list[bytes] = []
    got: list[bytes] = []

    async def ask(sender: BatchSender, message: bytes) -> None:
        asked.append(message)
        await sender.send(message)

    async with trio.open_nursery() as nursery:
        async with open_batch_sender(send, max_batch_bytes=500, max_delay=0) as sender:
            for number in range(60):
                size = 2000 if number % 20 == 10 else 40
                nursery.start_soon(ask, sender, b"%0*d" % (size, number))
                await trio.sleep(0.01)
            async for message in BatchReceiver(receive):
                got.append(message)
                if len(got) == 60:
                    break
    assert got == asked


async def test_a_message_above_the_size_of_a_batch_is_overtaken_by_no_newcomers(
    autojump_clock: MockClock,
) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    receiver = BatchReceiver(receive)
    received: list[bytes] = []
    since = 0
    async with open_batch_sender(send, max_batch_bytes=1000, max_delay=0) as sender:
        async with trio.open_nursery() as nursery:

            async def chatter() -> None:
                while True:
                    await sender.send(bytes(50))

            async def shout() -> None:
                nonlocal since
                await trio.sleep(1)
                since = len(received)
                await sender.send(bytes(5000))
                nursery.cancel_scope.cancel()

            async def collect() -> None:
                async for message in receiver:
                    received.append(message)
                    await trio.sleep(0.001)

            for _ in range(50):
                nursery.start_soon(chatter)
            nursery.start_soon(collect)
            nursery.start_soon(shout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, receiver)
            await sender.aclose()
    # Two batches on their way, and one message of each task that waited before it.
    assert len(received) - since <= 2 * 20 + 50


async def test_a_sender_which_is_cancelled_while_it_waits_gives_its_place_to_those_behind_it(
    autojump_clock: MockClock,
) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    leaver = trio.CancelScope()
    done: list[int] = []

    async def ask(number: int) -> None:
        await sender.send(b"%050d" % number)
        done.append(number)

    async def leave() -> None:
        with leaver:
            await sender.send(bytes(5000))

    async with trio.open_nursery() as nursery:
        async with open_batch_sender(send, max_batch_bytes=120, max_delay=0) as sender:
            for number in range(2):  # one in the stream, one in the batch
                nursery.start_soon(ask, number)
                await trio.sleep(0.01)
            nursery.start_soon(leave)
            await trio.sleep(0.01)
            for number in range(2, 6):
                nursery.start_soon(ask, number)
                await trio.sleep(0.01)
            assert done == [0, 1]
            leaver.cancel()
            await trio.sleep(0.01)
            assert done == [0, 1, 2]
            receiver = BatchReceiver(receive)
            assert [await receiver.receive() for _ in range(6)] == [
                b"%050d" % number for number in range(6)
            ]
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(done) == list(range(6))


async def test_those_who_send_many_take_turns_with_those_who_send_one(
    autojump_clock: MockClock,
) -> None:
    counts = {"many": 0, "one": 0}
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    async with open_batch_sender(send, max_batch_bytes=1000, max_delay=0) as sender:
        async with trio.open_nursery() as nursery:

            async def many() -> None:
                await sender.send_many(b"many" for _ in range(100_000))

            async def one() -> None:
                while True:
                    await sender.send(b"one")

            nursery.start_soon(many)
            await trio.sleep(0.01)
            for _ in range(300):
                nursery.start_soon(one)
            receiver = BatchReceiver(receive)
            while sum(counts.values()) < 20_000:
                for message in await receiver.receive_many():
                    counts[message.decode()] += 1
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, receiver)
            await sender.aclose()
    assert counts["one"] > 10_000


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.05, loss=0.05, seed=2)
    messages = [b"%d" % number * 20 for number in range(2000)]
    async with connected_pair(network) as pair, trio.open_nursery() as nursery:
        client, server = await stream_pair(*pair)

        async def send() -> None:
            async with open_batching_channel(client, max_batch_bytes=500) as (sender, _):
                await sender.send_many(messages)

        nursery.start_soon(send)
        receiver = BatchReceiver(server)
        got = []
        with trio.fail_after(600), pytest.raises(trio.EndOfChannel):
            while True:
                with trio.move_on_after(0.004):
                    got.append(await receiver.receive())
        assert got == messages


# ------------------------------------------------------------------ ends


async def test_both_directions_of_one_stream_are_channels(autojump_clock: MockClock) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        async with (
            open_batching_channel(client) as (send, receive),
            open_batching_channel(server) as (answer, requests),
        ):
            await send.send(b"question", express=True)
            assert await requests.receive() == b"question"
            await answer.send(b"answer", express=True)
            assert await receive.receive() == b"answer"
            await send.aclose()
            with pytest.raises(trio.EndOfChannel):
                await requests.receive()
            await answer.send(b"still", express=True)
            assert await receive.receive() == b"still"


async def test_closing_sends_what_is_queued_and_then_the_end(autojump_clock: MockClock) -> None:
    async with channel(max_delay=100) as (sender, receiver, _):
        await sender.send_many([b"1", b"2"])
        await sender.aclose()
        await sender.aclose()
        assert await drain(receiver) == [b"1", b"2"]
        with pytest.raises(trio.ClosedResourceError):
            await sender.send(b"3")
        with pytest.raises(trio.ClosedResourceError):
            await sender.flush()


async def test_leaving_by_an_exception_does_not_end_the_stream_as_if_all_were_sent(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        with pytest.raises(KeyError):
            async with client:
                async with open_batching_channel(client, max_delay=100) as (sender, _):
                    await sender.send(b"queued")
                    raise KeyError
        with pytest.raises(phoenix_trio.StreamReset):
            await BatchReceiver(server).receive()


async def test_a_sender_whose_block_was_left_takes_nothing_and_keeps_nobody_waiting(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[str] = []
    async with trio.open_nursery() as nursery:

        async def expect_closed(name: str, call: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()
            outcomes.append(name)

        send, receive = trio.testing.lockstep_stream_one_way_pair()
        with pytest.raises(KeyError):
            async with open_batch_sender(send, max_batch_bytes=10, max_delay=0) as sender:
                await sender.send(b"on its way")
                await trio.sleep(1)
                await sender.send(b"queued")
                nursery.start_soon(expect_closed, "send", lambda: sender.send(b"no room"))
                nursery.start_soon(expect_closed, "flush", sender.flush)
                await trio.sleep(1)
                raise KeyError
        with trio.fail_after(1):
            await expect_closed("later", lambda: sender.send(b"lost"))
            await expect_closed("later flush", sender.flush)
            await sender.aclose()
    assert sorted(outcomes) == ["flush", "later", "later flush", "send"]
    await receive.aclose()


async def test_a_peer_never_takes_a_part_for_the_whole_when_a_block_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        async with client:
            with trio.move_on_after(1):
                async with open_batching_channel(client, max_delay=100) as (sender, _):
                    await sender.send(b"queued")
                    await trio.sleep_forever()
            await server.send_all(b"this direction goes on")
            assert await client.receive_some() == b"this direction goes on"
        with pytest.raises(phoenix_trio.StreamReset):
            await BatchReceiver(server).receive()


async def test_a_cancelled_close_closes_forcefully(autojump_clock: MockClock) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    with trio.move_on_after(1) as scope:
        async with open_batch_sender(send) as sender:
            await sender.send(b"nobody reads this")
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await send.send_all(b"x")
    await receive.aclose()


async def test_a_peer_which_stops_breaks_those_who_send_and_who_wait(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        with pytest.raises(trio.BrokenResourceError):
            async with open_batching_channel(client, max_batch_bytes=100) as (sender, _):
                server.stop_receiving(77)
                with trio.fail_after(5):
                    while True:
                        await sender.send(bytes(50))
        assert isinstance(sender._error, phoenix_trio.StreamStopped)
        assert sender._error.error_code == 77


async def test_what_was_queued_when_the_stream_failed_is_reported(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        with pytest.raises(trio.BrokenResourceError, match="1 messages were queued"):
            async with open_batching_channel(client, max_delay=10) as (sender, _):
                await sender.send(b"queued")
                server.connection.abort(0)
                await trio.sleep(1)


async def test_two_tasks_cannot_receive_at_once(autojump_clock: MockClock) -> None:
    async with channel() as (_, receiver, _send), trio.open_nursery() as nursery:
        nursery.start_soon(receiver.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await receiver.receive_many()
        nursery.cancel_scope.cancel()


async def test_a_closed_receiver_says_so(autojump_clock: MockClock) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        receiver = BatchReceiver(server)
        await receiver.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()
        await server.send_all(b"the other direction lives")
        assert await client.receive_some() == b"the other direction lives"


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_varint(2 * 1024 * 1024), "MESSAGE_TOO_LARGE"),
        (encode_frame(b"\x05abc"), "MALFORMED"),
        (encode_frame(b"\x40"), "MALFORMED"),
        (encode_frame(encode_varint(1001) + bytes(1001)), "MESSAGE_TOO_LARGE"),
        (encode_varint(10) + b"torn", "MALFORMED"),
    ],
)
async def test_a_malformed_batch_is_refused_after_those_before_it(
    data: bytes, code: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        await client.send_all(encode_frame(encode_frame(b"good")) + encode_frame(b"") + data)
        await client.send_eof()
        receiver = BatchReceiver(server, max_message_size=1000)
        assert await receiver.receive() == b"good"
        for _ in range(2):
            with pytest.raises(MessageRefused) as caught:
                await receiver.receive()
            assert caught.value.code.name == code
        assert not server.connection.is_closed


async def test_a_batch_of_tiny_messages_takes_little_more_memory_than_its_bytes(
    autojump_clock: MockClock,
) -> None:
    batch = encode_frame(encode_frame(b"ab") * 1_000_000)
    send, receive = trio.testing.memory_stream_one_way_pair()
    await send.send_all(batch)
    await send.aclose()
    receiver = BatchReceiver(receive, max_batch_bytes=4_000_000)
    assert await receiver.receive() == b"ab"
    got = 1
    while True:
        try:
            some = await receiver.receive_many()
        except trio.EndOfChannel:
            break
        assert set(some) == {b"ab"}
        assert len(some) < 30_000
        got += len(some)
    assert got == 1_000_000


async def test_a_message_above_a_small_limit_is_refused(autojump_clock: MockClock) -> None:
    send, receive = trio.testing.memory_stream_one_way_pair()
    await send.send_all(encode_frame(encode_frame(bytes(10)) + encode_frame(bytes(11))))
    receiver = BatchReceiver(receive, max_message_size=10)
    with pytest.raises(MessageRefused, match="11"):
        await receiver.receive()


@examples(200)
@given(data=st.binary(max_size=200))
def test_no_input_does_anything_but_give_messages_or_be_refused(data: bytes) -> None:
    async def main() -> None:
        send, receive = trio.testing.memory_stream_one_way_pair()
        await send.send_all(data)
        await send.aclose()
        receiver = BatchReceiver(receive, max_message_size=100, max_batch_bytes=100)
        try:
            while True:
                assert len(await receiver.receive()) <= 100
        except (trio.EndOfChannel, MessageRefused):
            pass

    trio.run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_bytes": 0},
        {"max_batch_bytes": 2**30},
        {"max_delay": -1},
        {"max_delay": math.nan},
        {"max_message_size": 0},
    ],
)
async def test_arguments_out_of_range_are_refused(options: Any) -> None:
    send, _ = trio.testing.memory_stream_one_way_pair()
    with pytest.raises(ValueError, match=next(iter(options))):
        async with open_batch_sender(send, **options):
            pass


async def test_a_message_above_the_limit_is_refused_before_it_is_queued(
    autojump_clock: MockClock,
) -> None:
    async with channel(max_message_size=10) as (sender, receiver, _):
        with pytest.raises(phoenix_trio.MessageTooLarge, match=r"max_message_size\) is 10 bytes"):
            await sender.send(bytes(11))
        with pytest.raises(ValueError, match=r"max_message_size\) is 10 bytes"):
            await sender.send_many([b"ok", bytes(11)])
        await sender.aclose()
        assert await drain(receiver) == [b"ok"]
