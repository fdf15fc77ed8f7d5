"""Fan-out: a slow subscriber delays no other, costs bounded memory, and leaving is no crash."""

from __future__ import annotations

import math
import struct
from functools import partial
from typing import Any

import attrs
import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, Broadcast, SubscriberSummary, TransportConfig
from phoenix_trio.streams.batching import BatchReceiver
from phoenix_trio.streams.broadcast import WhenSlow
from phoenix_trio.testing import SimulatedNetwork
from tests.support import PORT, SERVER, client_tls, connected_pair, server_tls, stream_pair

PRODUCERS = 50
SUBSCRIBERS = 20
EACH = 6
EVERY = 0.1
HEADER = struct.Struct("!dHH")
MESSAGE = 1000

#: Small buffers, so that a slow subscriber is found in seconds.
RELAY = TransportConfig(stream_send_buffer_size=64 * 1024)
NARROW = TransportConfig(receive_buffer_size=16 * 1024, stream_receive_buffer_size=16 * 1024)
QUEUE = 32 * 1024


@attrs.define
class Outcome:
    delays: list[float] = attrs.field(factory=list)  # at the fast subscribers
    counts: list[int] = attrs.field(factory=list)  # messages of each of these
    summaries: list[SubscriberSummary] = attrs.field(factory=list)
    slow_codes: list[int] = attrs.field(factory=list)
    largest_queue: int = 0

    @property
    def p99(self) -> float:
        return sorted(self.delays)[math.ceil(0.99 * len(self.delays)) - 1]


async def fan_out(slow: int, when_slow: WhenSlow) -> Outcome:
    """A relay with producers and subscribers on hosts of their own; some subscribers are slow."""
    outcome = Outcome()
    # No loss: a lost packet delays about 1 % of the messages, so that chance alone would move p99.
    network = SimulatedNetwork(delay=0.01, jitter=0.002, bandwidth=100e6, seed=5)
    broadcast = Broadcast(max_queued_bytes=QUEUE, when_slow=when_slow)
    ready = trio.Event()
    subscribed = 0

    async def relay(connection: phoenix_trio.QuicConnection) -> None:
        nonlocal subscribed
        async with await connection.accept_stream() as stream:
            if await stream.receive_some(1) == b"P":
                async for message in BatchReceiver(stream):
                    broadcast.publish_nowait(message)
                    outcome.largest_queue = max(
                        outcome.largest_queue, broadcast.statistics().largest_queue
                    )
            else:
                subscribed += 1
                if subscribed == SUBSCRIBERS:
                    ready.set()
                outcome.summaries.append(await broadcast.serve(stream))
        await connection.wait_closed()

    async def produce(number: int) -> None:
        host = network.host(f"10.0.1.{number}")
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), network=host
        ) as connection:
            await ready.wait()
            await trio.sleep(EVERY * number / PRODUCERS)
            async with await connection.open_stream() as stream:
                await stream.send_all(b"P")
                async with phoenix_trio.streams.open_batch_sender(stream, max_delay=0) as sender:
                    for index in range(EACH):
                        await trio.sleep(EVERY)
                        header = HEADER.pack(trio.current_time(), number, index)
                        await sender.send(header.ljust(MESSAGE))

    async def subscribe(number: int) -> None:
        is_slow = number < slow
        host = network.host(f"10.0.2.{number}")
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), network=host, config=NARROW if is_slow else None
        ) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"S")
            if is_slow:
                await read_slowly(stream, number)
                return
            nexts = dict.fromkeys(range(PRODUCERS), 0)
            async for message in BatchReceiver(stream):
                sent, producer, index = HEADER.unpack(message[: HEADER.size])
                assert nexts[producer] == index
                nexts[producer] += 1
                outcome.delays.append(trio.current_time() - sent)
            outcome.counts.append(sum(nexts.values()))

    async def read_slowly(stream: phoenix_trio.QuicStream, number: int) -> None:
        try:
            if number == 0:
                await trio.sleep(10)  # it reads nothing
            while await stream.receive_some(1000):
                await trio.sleep(0.1 * number)
        except phoenix_trio.StreamReset as error:
            outcome.slow_codes.append(error.error_code)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                relay,
                PORT,
                host=SERVER,
                tls=server_tls(),
                network=network.host(SERVER),
                config=RELAY,
                strict=True,
            )
        )
        async with trio.open_nursery() as subscribers:
            for number in range(SUBSCRIBERS):
                subscribers.start_soon(subscribe, number)
            async with trio.open_nursery() as producers:
                for number in range(PRODUCERS):
                    producers.start_soon(produce, number)
            await trio.sleep(1)
            broadcast.close()
            await trio.sleep(30)
            subscribers.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return outcome


@pytest.fixture(scope="module")
def without_slow_ones() -> Outcome:
    return trio.run(fan_out, 0, "drop-oldest", clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("when_slow", ["drop-oldest", "end"])
def test_slow_subscribers_delay_no_others_and_cost_bounded_memory(
    when_slow: WhenSlow, without_slow_ones: Outcome
) -> None:
    assert without_slow_ones.counts == [PRODUCERS * EACH] * SUBSCRIBERS
    outcome = trio.run(fan_out, 3, when_slow, clock=MockClock(autojump_threshold=0))
    assert outcome.counts == [PRODUCERS * EACH] * (SUBSCRIBERS - 3)
    assert outcome.p99 <= 1.2 * without_slow_ones.p99
    assert QUEUE / 2 < outcome.largest_queue <= QUEUE
    slow = [each for each in outcome.summaries if each.messages_dropped]
    assert len(slow) == 3
    if when_slow == "end":
        assert [each.end for each in slow] == ["too-slow"] * 3
        assert outcome.slow_codes == [ApplicationErrorCode.TOO_SLOW] * 3
    for each in outcome.summaries:
        if each.end == "closed":
            assert each.messages_sent + each.messages_dropped == PRODUCERS * EACH


# ------------------------------------------------------------------ rules


async def test_the_oldest_messages_make_room_and_are_counted(autojump_clock: MockClock) -> None:
    send, receive = trio.testing.lockstep_stream_one_way_pair()
    broadcast = Broadcast(max_queued_bytes=50)
    summaries: list[SubscriberSummary] = []

    async def serve() -> None:
        summaries.append(await broadcast.serve(send))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.sleep(1)
        await broadcast.publish(b"first")  # goes into the stream, which takes no more
        await trio.sleep(1)
        for number in range(20):
            broadcast.publish_nowait(b"%09d" % number)
        statistics = broadcast.statistics()
        assert statistics.subscribers == 1
        assert statistics.queued_bytes == statistics.largest_queue == 50
        assert statistics.messages_published == 21
        assert statistics.messages_dropped == 15
        broadcast.close()
        got = [message async for message in BatchReceiver(receive)]
    assert got == [b"first", *(b"%09d" % number for number in range(15, 20))]
    assert summaries == [SubscriberSummary("closed", 6, 15, None)]
    assert broadcast.statistics().messages_dropped == 15
    assert broadcast.statistics().subscribers == 0


async def test_a_subscriber_which_is_too_slow_is_told_so_and_others_get_everything(
    autojump_clock: MockClock,
) -> None:
    small = attrs.evolve(NARROW, stream_send_buffer_size=16 * 1024)
    async with connected_pair(config=small) as one, connected_pair() as another:
        slow, served_slow = await stream_pair(*one)
        fast, served_fast = await stream_pair(*another)
        broadcast = Broadcast(max_queued_bytes=QUEUE, when_slow="end")
        summaries: dict[str, SubscriberSummary] = {}
        got: list[bytes] = []

        async def serve(name: str, stream: phoenix_trio.QuicStream) -> None:
            summaries[name] = await broadcast.serve(stream)

        async def receive() -> None:
            got.extend([message async for message in BatchReceiver(fast)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, "slow", served_slow)
            nursery.start_soon(serve, "fast", served_fast)
            nursery.start_soon(receive)
            await trio.sleep(1)
            while "slow" not in summaries:
                await broadcast.publish(bytes(1000))
                if broadcast.statistics().messages_published % 10 == 0:
                    await trio.sleep(0.01)
            broadcast.close()
            with pytest.raises(phoenix_trio.StreamReset) as caught:
                while await slow.receive_some():
                    await trio.sleep(0.1)
            assert caught.value.error_code == ApplicationErrorCode.TOO_SLOW
        assert summaries["slow"].end == "too-slow"
        assert summaries["slow"].messages_dropped > 0
        assert summaries["slow"].messages_sent + summaries["slow"].messages_dropped <= len(got)
        assert summaries["fast"] == SubscriberSummary("closed", len(got), 0, None)
        assert broadcast.statistics().subscribers_too_slow == 1


@pytest.mark.parametrize("how", ["stop", "abort", "cancel"])
async def test_a_subscriber_which_leaves_is_no_crash_and_is_noticed_at_once(
    how: str, autojump_clock: MockClock
) -> None:
    broadcast = Broadcast()
    async with connected_pair() as pair, trio.open_nursery() as nursery:
        client, server = await stream_pair(*pair)
        summaries: list[SubscriberSummary] = []
        scope = trio.CancelScope()

        @nursery.start_soon
        async def serve() -> None:
            with scope:
                summaries.append(await broadcast.serve(server))

        await trio.sleep(1)
        broadcast.publish_nowait(b"x")
        assert await BatchReceiver(client).receive() == b"x"
        if how == "stop":
            client.stop_receiving(7)
        elif how == "abort":
            pair[0].abort(7)
        else:
            scope.cancel()
        await trio.sleep(0.1)  # nothing is published meanwhile
        assert broadcast.statistics().subscribers == 0
        broadcast.publish_nowait(b"y")
        if how == "cancel":
            assert not summaries
        else:
            (summary,) = summaries
            assert (summary.end, summary.messages_sent) == ("left", 1)
            kinds = {
                "stop": phoenix_trio.StreamStopped,
                "abort": phoenix_trio.ConnectionClosedByPeer,
            }
            assert type(summary.error) is kinds[how]


async def test_values_are_encoded_once_and_typed(autojump_clock: MockClock) -> None:
    encoded = 0

    def encode(value: dict[str, int]) -> bytes:
        nonlocal encoded
        encoded += 1
        return msgspec.json.encode(value)

    broadcast = Broadcast(encode=encode)
    async with trio.open_nursery() as nursery:
        receivers = []
        for _ in range(3):
            send, receive = trio.testing.memory_stream_one_way_pair()
            nursery.start_soon(broadcast.serve, send)
            receivers.append(BatchReceiver(receive, decode=msgspec.json.decode))
        await trio.sleep(1)
        with broadcast:
            await broadcast.publish({"a": 1})
        for receiver in receivers:
            assert [value async for value in receiver] == [{"a": 1}]
    assert encoded == 1


async def test_a_message_above_the_queue_and_a_closed_broadcast_are_refused(
    autojump_clock: MockClock,
) -> None:
    broadcast = Broadcast(max_queued_bytes=10)
    broadcast.publish_nowait(bytes(9))
    with pytest.raises(phoenix_trio.MessageTooLarge) as caught:
        await broadcast.publish(bytes(10))
    assert (caught.value.size, caught.value.limit) == (10, 10)
    wrong: Any = {"a": 1}
    with pytest.raises(TypeError, match="pass encode="):
        await broadcast.publish(wrong)
    broadcast.close()
    with pytest.raises(trio.ClosedResourceError):
        await broadcast.publish(b"x")
    send, _ = trio.testing.memory_stream_one_way_pair()
    with pytest.raises(trio.ClosedResourceError):
        await broadcast.serve(send)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_queued_bytes": 0}, "max_queued_bytes"),
        ({"max_queued_bytes": 2**30}, "max_queued_bytes"),
        ({"when_slow": "wait"}, "when_slow"),
    ],
)
def test_arguments_out_of_range_are_refused(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Broadcast(**options)
