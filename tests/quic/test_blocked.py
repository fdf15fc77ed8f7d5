"""A sender held back by flow control reports it, and its connection outlives the pause."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import QuicConnection, TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.blocked import BlockedSignals
from phoenix_trio.streams import send_message, send_sequence
from phoenix_trio.streams.batching import BatchReceiver, open_batch_sender
from phoenix_trio.streams.generator import SequenceReceiver
from phoenix_trio.streams.messages import receive_message
from phoenix_trio.streams.reader import StreamReader
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, stream_ids
from tests.engine_packets import open_sent, seal_short
from tests.packets import frame
from tests.support import CLIENT, PORT, SERVER, EnginePair, client_tls, connected_pair, server_tls

KIB = 1024
SIZE = 600_000
PAUSE = 60.0
IDLE = 5.0

#: Little credit: a stream is blocked first.
NARROW_STREAMS = TransportConfig(
    max_idle_timeout=IDLE,
    receive_buffer_size=256 * KIB,
    stream_receive_buffer_size=64 * KIB,
    max_bidirectional_streams=2,
    max_unidirectional_streams=2,
)
#: The same, but the connection is blocked first.
NARROW_CONNECTION = attrs.evolve(
    NARROW_STREAMS, receive_buffer_size=64 * KIB, stream_receive_buffer_size=256 * KIB
)
#: RFC 9000 section 20.1.
STREAM_STATE_ERROR = 0x05
FRAME_ENCODING_ERROR = 0x07

DATA = bytes(range(256)) * (SIZE // 256)

# ------------------------------------------------------------------ the rule itself


def test_it_is_said_after_a_probe_timeout_and_again_after_a_third_of_the_idle_timeout() -> None:
    signals = BlockedSignals(math.inf)
    assert signals.deadline("a", 10.0, 0.1, 30.0) == 10.1
    signals.on_frames_sent("a", 10.1)
    assert signals.deadline("a", 10.2, 0.1, 30.0) == 20.2
    assert signals.deadline("b", 12.0, 0.1, 30.0) == 12.1, "credit came, and is used up"
    assert signals.deadline("a", 10.2, 15.0, 30.0) == 25.2, "not before a probe timeout"


def test_a_signal_which_finds_nothing_to_say_is_not_repeated_at_once() -> None:
    signals = BlockedSignals(math.inf)
    signals.on_frames_sent("a", 50.0)
    assert signals.deadline("a", 10.0, 0.1, 30.0) == 60.0


def test_patience_is_measured_from_the_last_progress() -> None:
    signals = BlockedSignals(100.0)
    signals.on_frames_sent("a", 0.0)
    signals.on_frames_sent("a", 90.0)
    assert signals.deadline("a", 90.0, 0.1, 30.0) == 100.0
    signals.on_frames_sent("a", 100.0)
    assert signals.deadline("a", 100.0, 0.1, 30.0) == math.inf
    assert signals.deadline("b", 100.0, 0.1, 30.0) == 100.1


# ------------------------------------------------------------------ every way of being blocked


async def send_on_a_stream(connection: QuicConnection) -> None:
    stream = await connection.open_send_stream()
    await stream.send_all(DATA)
    await stream.aclose()
    await stream.wait_acked()


async def receive_from_a_stream(connection: QuicConnection) -> bytes:
    return b"".join([bytes(part) async for part in await connection.accept_receive_stream()])


async def close_in_good_order(connection: QuicConnection) -> None:
    stream = await connection.open_send_stream()
    await stream.send_all(DATA)
    await stream.aclose()
    await connection.aclose()


async def open_one_more(connection: QuicConnection) -> None:
    held = [await connection.open_stream() for _ in range(2)]
    for stream in held:
        await stream.send_all(b"held")
    async with await connection.open_stream() as last:
        await last.send_all(DATA[: 16 * KIB])


async def let_go_and_receive(connection: QuicConnection) -> bytes:
    held = [await connection.accept_stream() for _ in range(2)]
    for stream in held:
        stream.reset()
        stream.receive_stream.stop_receiving()
    last = await connection.accept_stream()
    data = b"".join([bytes(part) async for part in last])
    await last.aclose()
    return data


async def open_one_more_one_way(connection: QuicConnection) -> None:
    for _ in range(2):
        stream = await connection.open_send_stream()
        await stream.send_all(b"held")
        await stream.aclose()
    async with await connection.open_send_stream() as last:
        await last.send_all(DATA[: 16 * KIB])


async def accept_all_one_way(connection: QuicConnection) -> bytes:
    for _ in range(2):
        async with await connection.accept_receive_stream() as stream:
            assert await stream.receive_some() == b"held"
            assert await stream.receive_some() == b""
    return await receive_from_a_stream(connection)


async def send_one_message(connection: QuicConnection) -> None:
    await send_message(connection, DATA)


async def receive_one_message(connection: QuicConnection) -> bytes:
    reader = StreamReader(await connection.accept_receive_stream())
    await reader.read_varint()
    message: bytes = await receive_message(reader, max_size=2 * SIZE)
    return message


async def send_items(connection: QuicConnection) -> None:
    await send_sequence(connection, [DATA[at : at + 1000] for at in range(0, len(DATA), 1000)])


async def receive_items(connection: QuicConnection) -> bytes:
    reader = StreamReader(await connection.accept_receive_stream())
    await reader.read_varint()
    async with SequenceReceiver(reader, max_item_size=1000) as items:
        return b"".join([item async for item in items])


async def send_batches(connection: QuicConnection) -> None:
    async with (
        await connection.open_send_stream() as stream,
        open_batch_sender(stream) as channel,
    ):
        for at in range(0, len(DATA), 1000):
            await channel.send(DATA[at : at + 1000])


async def receive_batches(connection: QuicConnection) -> bytes:
    async with BatchReceiver(await connection.accept_receive_stream()) as channel:
        return b"".join([bytes(message) async for message in channel])


Send = Callable[[QuicConnection], Awaitable[None]]
Receive = Callable[[QuicConnection], Awaitable[bytes]]

WAYS: dict[str, tuple[TransportConfig, Send, Receive, bytes]] = {
    "stream": (NARROW_STREAMS, send_on_a_stream, receive_from_a_stream, DATA),
    "connection": (NARROW_CONNECTION, send_on_a_stream, receive_from_a_stream, DATA),
    "aclose": (NARROW_STREAMS, close_in_good_order, receive_from_a_stream, DATA),
    "open_stream": (NARROW_STREAMS, open_one_more, let_go_and_receive, DATA[: 16 * KIB]),
    "open_send_stream": (
        NARROW_STREAMS,
        open_one_more_one_way,
        accept_all_one_way,
        DATA[: 16 * KIB],
    ),
    "message": (NARROW_STREAMS, send_one_message, receive_one_message, DATA),
    "sequence": (NARROW_STREAMS, send_items, receive_items, DATA),
    "batches": (NARROW_CONNECTION, send_batches, receive_batches, DATA),
}


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_outlives_a_pause_of_its_reader(
    way: str, sender: str, autojump_clock: MockClock
) -> None:
    config, send, receive, expected = WAYS[way]
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network, config=config) as (client, server):
        ours, theirs = (client, server) if sender == "client" else (server, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, ours)
            await trio.sleep(1)
            packets = ours.statistics().packets_sent
            await trio.sleep(PAUSE)
            assert not ours.is_closed
            assert not theirs.is_closed
            # Some packets for each third of the idle timeout, and no more.
            assert ours.statistics().packets_sent - packets <= 3 * PAUSE / (IDLE / 3)
            assert await receive(theirs) == expected


async def test_leases_of_a_pool_outlive_a_pause_of_their_reader(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    received: list[bytes] = []

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        await trio.sleep(PAUSE)
        while len(received) < 3:
            received.append(await connection.receive_data(max_size=2 * SIZE))

    async with trio.open_nursery() as nursery:
        async with (
            phoenix_trio.open_phoenix(
                "server",
                config=NARROW_STREAMS,
                server_tls=server_tls(),
                network=network.host(SERVER),
            ) as there,
            phoenix_trio.open_phoenix(
                "client",
                config=NARROW_STREAMS,
                tls=client_tls(),
                network=network.host(CLIENT),
                max_connections=1,
            ) as here,
        ):

            async def serve(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
                await there.serve(handler, PORT, host=SERVER, task_status=task_status)

            await nursery.start(serve)

            async def send() -> None:
                async with here.connect(f"{SERVER}:{PORT}") as connection:
                    await connection.send_data(DATA)

            async with trio.open_nursery() as senders:
                for _ in range(3):
                    senders.start_soon(send)
        nursery.cancel_scope.cancel()
    assert received == [DATA] * 3


# ------------------------------------------------------------------ senders that are not blocked


@asynccontextmanager
async def blocked_sender(
    network: SimulatedNetwork, **changes: Any
) -> AsyncIterator[tuple[QuicConnection, QuicConnection]]:
    config = attrs.evolve(NARROW_STREAMS, **changes)
    async with (
        connected_pair(network, config=config) as (client, server),
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            stream = await client.open_send_stream()
            try:
                await stream.send_all(bytes(20 * SIZE))
            except phoenix_trio.ConnectionTimedOut:
                pass

        nursery.start_soon(send)
        await trio.sleep(1)
        yield client, server
        nursery.cancel_scope.cancel()


async def test_the_dead_peer_of_a_blocked_sender_is_noticed_on_time(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with blocked_sender(network) as (client, server):
        await trio.sleep(30)
        network.partition(CLIENT, SERVER)
        since = trio.current_time()
        await client.wait_closed()
        assert trio.current_time() - since <= IDLE + IDLE / 3 + 0.2
        await server.wait_closed()
        assert trio.current_time() - since <= IDLE + IDLE / 3 + 0.2


async def test_an_idle_connection_which_waits_for_nothing_still_ends_on_time(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01), config=NARROW_STREAMS) as (
        client,
        server,
    ):
        stream = await client.open_send_stream()
        await stream.send_all(b"all of it fits")
        await stream.wait_acked()
        since = trio.current_time()
        await client.wait_closed()
        assert IDLE - 0.1 <= trio.current_time() - since <= IDLE + 0.2
        await server.wait_closed()


async def test_a_call_given_up_does_not_keep_the_connection_alive(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01), config=NARROW_STREAMS) as (client, _):
        for _ in range(2):
            await (await client.open_stream()).send_all(b"held")
        with trio.move_on_after(30):
            await client.open_stream()
        assert not client.is_closed
        since = trio.current_time()
        await client.wait_closed()
        assert trio.current_time() - since <= IDLE + 0.2


async def test_a_peer_which_never_reads_is_borne_for_a_bounded_time(
    autojump_clock: MockClock,
) -> None:
    async with blocked_sender(SimulatedNetwork(delay=0.01), max_blocked_time=100.0) as (client, _):
        since = trio.current_time()
        await client.wait_closed()
        assert 95 <= trio.current_time() - since <= 100 + 2 * IDLE


async def test_lost_signals_are_repeated(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=3, delay=0.01)
    async with blocked_sender(network) as (client, server):
        network.set_conditions(loss=0.3)
        await trio.sleep(300)
        assert not client.is_closed
        assert not server.is_closed


async def test_nothing_is_said_in_a_transfer_which_flows(autojump_clock: MockClock) -> None:
    """A small window that is read all the time costs no further packets."""
    network = SimulatedNetwork(delay=0.01)
    kinds: Counter[int] = Counter()
    async with connected_pair(network, config=NARROW_STREAMS) as (client, server):
        engine = engine_of(client)

        def read(datagram: Any) -> Any:
            if datagram.source[0] == CLIENT:
                kinds.update(
                    frame.kind
                    for packet in open_sent(engine, datagram.data)
                    for frame in packet.frames
                )
            return datagram

        await client.wait_confirmed()
        network.tap = read
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_on_a_stream, client)
            assert await receive_from_a_stream(server) == DATA
        network.tap = None
    assert sum(kinds[kind] for kind in range(0x08, 0x10)) > 100, "STREAM frames"
    assert not any(kinds[kind] for kind in (0x14, 0x15, 0x16, 0x17))


# ------------------------------------------------------------------ receivers


def hear(pair: EnginePair, frames: bytes) -> Exception | None:
    """Deliver these frames to the server in a packet; returns the error of its close."""
    assert pair.server is not None
    packet = seal_short(pair.client.engine, frames)
    pair.server.engine.receive_run(packet, 0, len(packet), pair.client.address, pair.now)
    pair.server.gather(pair.now)
    ended = pair.server.of(events.Terminated)
    return ended[0].error if ended else None


@pytest.mark.parametrize("kind", [0x16, 0x17])
def test_streams_blocked_beyond_the_largest_count_is_an_encoding_error(kind: int) -> None:
    pair = EnginePair().connect()
    assert hear(pair, frame(kind, 1 << 60)) is None
    error = hear(pair, frame(kind, (1 << 60) + 1))
    assert isinstance(error, phoenix_trio.ProtocolError)
    assert error.error_code == FRAME_ENCODING_ERROR
    assert "2^60" in error.reason


def test_stream_data_blocked_of_a_stream_which_only_we_send_on_is_refused() -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    stream_id = pair.server.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    error = hear(pair, frame(0x15, stream_id, 5))
    assert isinstance(error, phoenix_trio.ProtocolError)
    assert error.error_code == STREAM_STATE_ERROR


def test_blocked_frames_of_a_peer_cost_no_memory() -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    frames = frame(0x14, 7) * 100 + frame(0x15, 0, 7) * 100
    for _ in range(200):
        assert hear(pair, frames) is None
    assert len(stream_ids(pair.server.engine)) == 1


async def test_a_client_at_its_limit_of_streams_gets_one_which_the_server_lets_go(
    autojump_clock: MockClock,
) -> None:
    """One of eight is not a quarter: the server waits a round trip for more to end."""
    config = TransportConfig(max_unidirectional_streams=8)
    async with connected_pair(SimulatedNetwork(delay=0.01), server_config=config) as (
        client,
        server,
    ):
        streams = [await client.open_send_stream() for _ in range(8)]
        for stream in streams:
            await stream.send_all(b"x")
        accepted = [await server.accept_receive_stream() for _ in range(8)]
        await trio.sleep(1.0)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_and_close, accepted[0])
            await streams[0].send_eof()
            await client.open_send_stream()
        # Half a round trip to the server, a whole one of waiting there, and half of one back.
        assert trio.current_time() - began == pytest.approx(0.04, abs=0.005)


async def read_and_close(stream: phoenix_trio.ReceiveStream) -> None:
    async with stream:
        assert await stream.receive_all(10) == b"x"
