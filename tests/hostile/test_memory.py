"""Peers that try to make this side hold more memory than the bytes they send."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.receive_buffer import ReceiveBuffer
from phoenix_trio.streams.framing import encode_varint
from phoenix_trio.streams.messages import MessageReceiver
from phoenix_trio.streams.reader import StreamReader
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import accept_data, credit_used, held_behind_gaps, statistics, stream_ids
from tests.engine_packets import seal_short
from tests.hostile.conftest import Figure
from tests.hostile.world import ended_with, rogue_pair
from tests.packets import reset_frame, stream_frame
from tests.support import ALPN, PORT, SERVER, EnginePair, client_tls, server_tls

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE

BIDIRECTIONAL = range(0, 400, 4)
"""The IDs of the 100 streams that a client may open."""


def say(pair: EnginePair, *frames: bytes) -> None:
    """Deliver a 1-RTT packet of the client with any frames to the server."""
    packet = seal_short(pair.client.engine, *frames)
    assert pair.server is not None
    pair.server.engine.receive_run(packet, 0, len(packet), pair.client.address, pair.now)
    pair.server.gather(pair.now)


def stalled_reader(**config: int) -> EnginePair:
    pair = rogue_pair(**config)
    assert pair.server is not None
    pair.server.read_automatically = False
    return pair


class Growth:
    """Bytes allocated by Python since the beginning."""

    def __init__(self) -> None:
        self._before = tracemalloc.get_traced_memory()[0]

    def now(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before


@contextmanager
def growth() -> Iterator[Growth]:
    gc.collect()
    tracemalloc.start()
    try:
        yield Growth()
    finally:
        tracemalloc.stop()


def test_one_byte_at_the_end_of_each_window_costs_no_window(figure: Figure) -> None:
    size = 8 * MEBIBYTE
    pair = stalled_reader(receive_buffer_size=128 * MEBIBYTE, stream_receive_buffer_size=size)
    assert pair.server is not None
    engine = pair.server.engine
    say(pair, *(stream_frame(each, 0, b"") for each in BIDIRECTIONAL))  # opens them all
    # The size to which windows grow while a reader keeps up.
    accept_data(engine, 128 * MEBIBYTE, size)
    with growth() as grown:
        for stream_id in BIDIRECTIONAL:
            if stream_id < 40:
                say(pair, stream_frame(stream_id, size - 1, b"x"))
        each = grown.now() / 10
    figure("memory a stream for one byte at the end of 8 MiB", each / KIBIBYTE, "KiB")
    assert not pair.server.of(events.Terminated)
    assert each < 4 * KIBIBYTE


def test_a_byte_at_each_of_many_offsets_costs_little_on_however_many_streams(
    figure: Figure,
) -> None:
    pair = stalled_reader()
    assert pair.server is not None
    say(pair, *(stream_frame(each, 0, b"") for each in BIDIRECTIONAL))
    packets = 0
    with growth() as grown:
        for offset in range(1, 2000, 2):
            say(pair, *(stream_frame(each, offset, b"x") for each in BIDIRECTIONAL))
            packets += 1
            if pair.server.of(events.Terminated):
                break
        used = grown.now()
    figure("packets until it was refused", packets, "packets")
    figure("memory", used / KIBIBYTE, "KiB")
    pair.run(1.0)
    assert "gaps" in str(ended_with(pair))
    assert used < MEBIBYTE
    assert held_behind_gaps(pair.server.engine)[1] <= 1200


def test_bytes_which_come_one_by_one_behind_a_gap_cost_about_a_byte_each(
    figure: Figure,
) -> None:
    pair = stalled_reader()
    assert pair.server is not None
    count = 0
    with growth() as grown:
        for start in range(1, 20_000, 200):
            frames = [stream_frame(0, start + at, b"x") for at in range(200)]
            say(pair, *frames)
            count += len(frames)
        used = grown.now()
    figure("memory for each byte behind a gap", used / count, "B")
    assert used < 4 * count + 64 * KIBIBYTE
    say(pair, stream_frame(0, 0, b"x", fin=False))
    assert bytes(pair.server.received[0]) == b"x" * (count + 1)


@pytest.mark.parametrize("how", ["reset", "stop", "let go", "let go, then more", "the end"])
def test_pieces_behind_gaps_are_freed_with_their_stream(how: str) -> None:
    pair = stalled_reader()
    assert pair.server is not None
    engine = pair.server.engine
    for each in range(0, 40, 4):
        say(pair, stream_frame(each, 1000, bytes(1000)), stream_frame(each, 5000, bytes(1000)))
    assert held_behind_gaps(engine) == (20, 20_000)
    for each in range(0, 40, 4):
        if how == "reset":
            say(pair, reset_frame(each, 6000))
        elif how == "stop":
            engine.stop_receiving(each, 1)
        elif how.startswith("let go"):
            engine.let_go(each, receiving=True)
    if how == "let go, then more":
        for each in range(0, 40, 4):
            say(pair, stream_frame(each, 8000, bytes(1000)), stream_frame(each, 10_000, b"x"))
    if how == "the end":
        engine.close_application(0, "")
    pair.server.gather(pair.now)
    assert held_behind_gaps(engine) == (0, 0)
    if how != "the end":
        # All of the credit used by the peer is given back.
        assert statistics(engine).stream_bytes_read == credit_used(engine)
        assert not pair.server.of(events.Terminated)


def test_a_stream_nobody_reads_ends_as_soon_as_its_size_is_known() -> None:
    pair = stalled_reader()
    assert pair.server is not None
    engine = pair.server.engine
    stream_id = 2  # one-way
    say(pair, stream_frame(stream_id, 0, b"x"))
    engine.let_go(stream_id, receiving=True)
    say(pair, stream_frame(stream_id, 5000, b"x", fin=True))  # the rest never comes
    assert not stream_ids(engine)
    assert statistics(engine).stream_bytes_read == credit_used(engine) == 5001


def test_a_byte_left_of_a_large_piece_does_not_keep_all_of_it(figure: Figure) -> None:
    with growth() as grown:
        buffers = []
        for _ in range(100):
            buffer = ReceiveBuffer()
            buffer.append(bytes(64 * KIBIBYTE))
            while len(buffer) > 1:
                buffer.take(min(1000, len(buffer) - 1))
            buffers.append(buffer)
        each = grown.now() / 100
    figure("memory for the last byte of 64 KiB", each, "B")
    assert each < 3 * KIBIBYTE


def test_what_was_not_sent_is_freed_when_the_connection_ends(figure: Figure) -> None:
    pair = rogue_pair()
    assert pair.server is not None
    engine = pair.server.engine
    stream_id = engine.open_stream(unidirectional=True)
    assert stream_id is not None
    with growth() as grown:
        engine.write(stream_id, bytearray(4 * MEBIBYTE))
        assert grown.now() > 4 * MEBIBYTE
        engine.close_application(0, "")
        left = grown.now()
    figure("memory of 4 MiB unsent after the end", left / KIBIBYTE, "KiB")
    assert left < 64 * KIBIBYTE
    assert not engine.is_acknowledged(stream_id, 1, with_fin=False)


async def test_a_message_which_trickles_in_costs_its_bytes(figure: Figure) -> None:
    size = 40_000

    class Trickle(trio.abc.ReceiveStream):
        """Two bytes at a time, and then nothing during the measurement."""

        def __init__(self) -> None:
            self.left = size

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self.left:
                await trio.sleep_forever()
            self.left -= 2
            return self.left.to_bytes(4, "big")[2:]

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    stream = Trickle()
    reader = StreamReader(stream)
    reader._buffer += b"\0" + encode_varint(size)  # the codec: as it is
    receiver = MessageReceiver(reader, max_size=MEBIBYTE)
    with growth() as grown:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            while stream.left:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            used = grown.now()
            nursery.cancel_scope.cancel()
    figure("memory for each byte of a message in pieces of two", used / size, "B")
    assert used < 2 * size


# ------------------------------------------------------------------ many connections


@attrs.define
class Crowd:
    """A server with one endpoint, many slow peers and a fast one, and their memory."""

    network: SimulatedNetwork
    config: TransportConfig
    slow_count: int
    connections: list[phoenix_trio.QuicConnection] = attrs.field(factory=list)
    largest_used: int = 0
    largest_buffered: int = 0
    largest_fast_window: int = 0

    def connect(self, host: str) -> AbstractAsyncContextManager[phoenix_trio.QuicConnection]:
        return phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=self.network.host(host)
        )

    @property
    def fair_share(self) -> int:
        return self.config.endpoint_receive_memory // 3 // (self.slow_count + 1)

    @property
    def bound(self) -> int:
        minimum = self.config.minimum_connection_memory
        return self.config.endpoint_receive_memory + (self.slow_count + 1) * minimum

    async def watch(self, listener: phoenix_trio.QuicListener) -> None:
        while True:
            facts = listener.statistics()
            assert facts.receive_memory_used <= facts.receive_memory_limit
            assert facts.send_memory_used <= facts.send_memory_limit
            self.largest_used = max(
                self.largest_used, facts.receive_memory_used, facts.send_memory_used
            )
            each = [connection.statistics() for connection in self.connections]
            buffered = sum(one.receive_buffer_bytes + one.send_buffer_bytes for one in each)
            self.largest_buffered = max(self.largest_buffered, buffered)
            if len(each) > self.slow_count:
                self.largest_fast_window = max(self.largest_fast_window, each[-1].receive_window)
            await trio.sleep(0.1)


crowds = pytest.mark.parametrize(
    ("slow_count", "memory", "size"),
    [
        pytest.param(16, 4 * MEBIBYTE, 1 * MEBIBYTE, id="16"),
        pytest.param(200, 64 * MEBIBYTE, 1 * MEBIBYTE, id="200", marks=pytest.mark.soak),
    ],
)


@asynccontextmanager
async def crowd(
    slow_count: int, memory: int, handler: Callable[[Crowd, phoenix_trio.QuicConnection], Any]
) -> AsyncIterator[tuple[Crowd, phoenix_trio.QuicListener]]:
    config = TransportConfig(endpoint_receive_memory=memory, endpoint_send_memory=memory)
    crowd = Crowd(SimulatedNetwork(delay=0.005), config, slow_count)

    async def handle(connection: phoenix_trio.QuicConnection) -> None:
        crowd.connections.append(connection)
        await handler(crowd, connection)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(
                phoenix_trio.serve,
                handle,
                PORT,
                tls=server_tls(),
                alpn=ALPN,
                config=config,
                network=crowd.network.host(SERVER),
            )
        )
        nursery.start_soon(crowd.watch, listener)
        yield crowd, listener
        await trio.sleep(5)
        facts = listener.statistics()
        assert (facts.receive_memory_used, facts.send_memory_used) == (0, 0)
        nursery.cancel_scope.cancel()


@crowds
async def test_slow_readers_of_uploads_leave_a_fast_one_its_share(
    slow_count: int, memory: int, size: int, autojump_clock: MockClock, figure: Figure
) -> None:
    go = trio.Event()
    received: list[int] = []

    async def handler(crowd: Crowd, connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.accept_receive_stream()
        kind = await stream.receive_some(1)
        if kind == b"s":
            await go.wait()
        total = 0
        async for chunk in stream:
            total += len(chunk)
            if kind == b"s":
                await trio.sleep(0.05)
        received.append(total)

    async with crowd(slow_count, memory, handler) as (here, _):

        async def upload(host: str, kind: bytes, count: int) -> None:
            async with here.connect(host) as connection:
                stream = await connection.open_send_stream()
                await stream.send_all(kind + bytes(count))
                await stream.send_eof()
                await stream.wait_acked()

        async with trio.open_nursery() as slow:
            for number in range(slow_count):
                slow.start_soon(upload, f"10.1.0.{number + 1}", b"s", size)
            await trio.sleep(5)
            started = trio.current_time()
            await upload("10.2.0.1", b"f", 4 * size)
            seconds = trio.current_time() - started
            assert received == [4 * size]
            figure("window of the fast one", here.largest_fast_window / KIBIBYTE, "KiB")
            figure("fair share", here.fair_share / KIBIBYTE, "KiB")
            figure("seconds of the fast one, virtual, 10 ms of round trip", seconds, "s")
            figure("bytes buffered at most", here.largest_buffered / MEBIBYTE, "MiB")
            figure("budget used at most", here.largest_used / MEBIBYTE, "MiB")
            go.set()
    assert received[1:] == [size] * slow_count, "nobody waits for ever"
    assert here.largest_fast_window >= here.fair_share
    assert here.largest_buffered <= here.bound


@crowds
async def test_peers_which_download_and_do_not_read_leave_a_fast_one_its_share(
    slow_count: int, memory: int, size: int, autojump_clock: MockClock, figure: Figure
) -> None:
    go = trio.Event()

    async def handler(crowd: Crowd, connection: phoenix_trio.QuicConnection) -> None:
        async with await connection.accept_stream() as stream:
            await stream.send_all(bytearray(size))

    async with crowd(slow_count, memory, handler) as (here, _):

        async def download(host: str, is_slow: bool) -> None:
            async with here.connect(host) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"?")
                await stream.send_eof()
                if is_slow:
                    await go.wait()
                assert sum([len(chunk) async for chunk in stream]) == size

        async with trio.open_nursery() as slow:
            for number in range(slow_count):
                slow.start_soon(download, f"10.1.0.{number + 1}", True)
            await trio.sleep(5)
            started = trio.current_time()
            await download("10.2.0.1", False)
            seconds = trio.current_time() - started
            figure("seconds of the fast one, virtual, 10 ms of round trip", seconds, "s")
            figure("bytes buffered at most", here.largest_buffered / MEBIBYTE, "MiB")
            figure("budget used at most", here.largest_used / MEBIBYTE, "MiB")
            go.set()
    assert seconds < 2
    assert here.largest_buffered <= here.bound


async def test_what_a_peer_sent_before_it_left_is_counted_until_it_was_read(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    got = bytearray()

    async def handler(crowd: Crowd, connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.accept_receive_stream()
        await connection.wait_closed()
        await go.wait()
        async for chunk in stream:
            got.extend(chunk)

    async with crowd(0, 8 * MEBIBYTE, handler) as (here, listener):
        async with here.connect("10.1.0.1") as connection:
            stream = await connection.open_send_stream()
            await stream.send_all(bytes(50_000))
            await stream.send_eof()
        await trio.sleep(10)
        assert listener.statistics().connections == 0
        assert listener.statistics().receive_memory_used == 50_000
        go.set()
    assert len(got) == 50_000
