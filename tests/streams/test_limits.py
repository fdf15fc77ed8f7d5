"""A message above its receiver's limit: the sender always gets an error; nothing else is lost."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import trio
import trio.testing
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import (
    ApplicationErrorCode,
    CompressionUnsupported,
    MessageRefused,
    MessageRefusedByPeer,
    MessageTooLarge,
    PhoenixConnection,
    TransportConfig,
    open_phoenix,
)
from phoenix_trio.quic.stream_errors import describe_code, split_code, too_large_code
from phoenix_trio.streams import (
    BatchReceiver,
    FramingError,
    Limits,
    MessageReceiver,
    SequenceReceiver,
    StreamKind,
    StreamReader,
    encode_limits,
    encode_varint,
    open_batch_sender,
    read_limits,
    receive_message,
    send_message,
    send_sequence,
)
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, PORT, SERVER, client_tls, connected_pair, examples, server_tls
from tests.support import stream_pair as quic_stream_pair

MEBIBYTE = 1024 * 1024
TARGET = f"{SERVER}:{PORT}"
SMALL = TransportConfig(max_message_size=1000)

Handler = Callable[[PhoenixConnection], Awaitable[object]]


@asynccontextmanager
async def lease(
    handler: Handler,
    *,
    server: TransportConfig = SMALL,
    client: TransportConfig | None = None,
    network: SimulatedNetwork | None = None,
) -> AsyncIterator[PhoenixConnection]:
    """The client's side of a connection of two transports; `handler` has the server's."""
    network = network or SimulatedNetwork(delay=0.01)
    async with (
        trio.open_nursery() as nursery,
        open_phoenix(
            config=server, server_tls=server_tls(), network=network.host(SERVER)
        ) as serving,
    ):
        await nursery.start(partial(serving.serve, handler, PORT, host=SERVER, strict=True))
        async with (
            open_phoenix(config=client, tls=client_tls(), network=network.host(CLIENT)) as dialling,
            dialling.connect(TARGET) as connection,
        ):
            yield connection
        await trio.sleep(1)  # for the handler to notice
        nursery.cancel_scope.cancel()


async def take(connection: phoenix_trio.QuicConnection, max_size: int = 1000) -> Any:
    """Receive the next stream, as a dispatcher without announcements does."""
    async with await connection.accept_receive_stream() as stream:
        reader = StreamReader(stream)
        assert await reader.read_varint() == StreamKind.MESSAGE
        return await receive_message(reader, max_size=max_size)


def announce_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhoenixConnection, "_announce", lambda _: None)

    async def never(_: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(PhoenixConnection, "_announce_later", never)


class Log:
    """A handler that receives everything."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.refused: list[MessageRefused] = []

    async def __call__(self, connection: PhoenixConnection) -> None:
        while True:
            try:
                self.got.append(await connection.receive_data())
            except MessageRefused as error:
                self.refused.append(error)
            except trio.BrokenResourceError:
                return


# ------------------------------------------------------------------ the sender always gets an error


async def test_a_message_above_the_announced_limit_is_not_sent_and_both_numbers_are_named(
    autojump_clock: MockClock,
) -> None:
    log = Log()
    async with lease(log, server=TransportConfig()) as connection:
        await connection.send_data(b"first")
        before = connection.quic.statistics().stream_bytes_sent
        with pytest.raises(MessageTooLarge, match=r"17825792 bytes.*16777216 bytes") as caught:
            await connection.send_data(bytes(17 * MEBIBYTE))
        assert (caught.value.size, caught.value.limit) == (17 * MEBIBYTE, 16 * MEBIBYTE)
        assert connection.quic.statistics().stream_bytes_sent == before
        with pytest.raises(MessageTooLarge), trio.testing.assert_checkpoints():
            # (The size before compression counts.)
            await connection.send_data(bytes(17 * MEBIBYTE), compress="zstd")
        await connection.send_data(b"last")
    assert log.got == [b"first", b"last"]


@pytest.mark.parametrize("size", [1001, 100_000])
@pytest.mark.parametrize("seed", range(12))
async def test_a_first_message_above_the_limit_never_counts_as_sent_whatever_is_lost(
    seed: int, size: int, autojump_clock: MockClock
) -> None:
    log = Log()
    network = SimulatedNetwork(delay=0.02, jitter=0.02, loss=0.25, reorder=0.2, seed=seed)
    with trio.fail_after(300):
        async with lease(log, network=network) as connection, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connection.send_data, b"good")
            with pytest.raises((MessageRefusedByPeer, MessageTooLarge)) as caught:
                await connection.send_data(os.urandom(size))
            assert (caught.value.size, caught.value.limit) == (size, 1000)
            await connection.send_data(b"good")
        assert log.got == [b"good"] * 4


@pytest.mark.parametrize(("size", "is_refused"), [(1000, False), (1001, True)])
async def test_a_sender_whose_data_is_acknowledged_waits_for_limits_which_come_late(
    size: int, is_refused: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_nothing(monkeypatch)

    async def look_at_nothing(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()  # so that STOP_SENDING does not help

    monkeypatch.setattr(PhoenixConnection, "_sort_message", look_at_nothing)

    async def handler(connection: PhoenixConnection) -> None:
        await trio.sleep(5)
        connection._announce_on(await connection.quic.open_send_stream())
        await connection.quic.wait_closed()

    async with lease(handler) as connection:
        if is_refused:
            with pytest.raises(MessageRefusedByPeer) as caught:
                await connection.send_data(bytes(size))
            assert (caught.value.size, caught.value.limit) == (1001, 1000)
        else:
            await connection.send_data(bytes(size))
        assert trio.current_time() >= 5


async def test_a_sender_which_waits_for_limits_hears_that_the_connection_ends(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_nothing(monkeypatch)

    async def handler(connection: PhoenixConnection) -> None:
        await trio.sleep(5)
        connection.quic.abort(7)

    async with lease(handler) as connection:
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer), trio.fail_after(6):
            await connection.send_data(b"x")


async def test_a_message_which_is_refused_while_the_application_receives_nothing_is_heard_of(
    autojump_clock: MockClock,
) -> None:
    got: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        await trio.sleep(20)
        with pytest.raises(MessageRefused, match="5000 bytes, more than 1000") as caught:
            await connection.receive_data()
        assert (caught.value.size, caught.value.limit) == (5000, 1000)
        got.append(await connection.receive_data())

    async with lease(handler) as connection:
        with pytest.raises(MessageRefusedByPeer), trio.fail_after(5):
            await connection.send_data(bytes(5000))
        await connection.send_data(b"good")
        await connection.quic.wait_closed()
    assert got == [b"good"]


# ------------------------------------------------------------------ a peer without announcements


async def test_a_refusal_while_the_sender_writes_stops_it_early(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, bandwidth=10e6)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(MessageRefused):
                await take(server)

        with pytest.raises(MessageRefusedByPeer, match=r"8388608 bytes.*1000 bytes") as caught:
            await send_message(client, bytes(8 * MEBIBYTE))
        error = caught.value
        assert (error.size, error.limit) == (8 * MEBIBYTE, 1000)
        assert error.error_code == ApplicationErrorCode.MESSAGE_TOO_LARGE
        assert isinstance(error, phoenix_trio.StreamStopped)
        assert client.statistics().bytes_sent < 200_000
        nursery.start_soon(send_message, client, b"next")
        assert await take(server) == b"next"


async def test_a_refusal_after_the_sender_has_written_all_is_heard_of(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.2, bandwidth=1e6)
    async with connected_pair(network) as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(MessageRefused):
                await take(server)

        stream = await client.open_send_stream()
        header = encode_varint(StreamKind.MESSAGE) + b"\0" + encode_varint(100_000)
        await stream.send_all(header + bytes(100_000), end=True)
        with pytest.raises(phoenix_trio.StreamStopped) as caught:
            await stream.wait_acked()
        assert split_code(caught.value.error_code) == (4, 1000)


async def test_a_refusal_before_the_sender_writes_anything_more_is_heard_of(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(MessageRefused):
                await take(server)

        stream = await client.open_send_stream()
        await stream.send_all(encode_varint(StreamKind.MESSAGE) + b"\0" + encode_varint(1001))
        await trio.sleep(1)
        with pytest.raises(phoenix_trio.StreamStopped, match="the limit is 1000 bytes"):
            await stream.send_all(b"x")


async def test_a_peer_which_announces_nothing_is_served_and_sent_to(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)

    async def handler(connection: PhoenixConnection) -> None:
        assert connection.quic.alpn_protocol == "phoenix/1"
        await connection.send_data(await connection.receive_data())

    async with (
        trio.open_nursery() as nursery,
        open_phoenix(server_tls=server_tls(), network=network.host(SERVER)) as serving,
    ):
        await nursery.start(partial(serving.serve, handler, PORT, host=SERVER, strict=True))
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), network=network.host(CLIENT)
        ) as client:
            await send_message(client, b"question")
            assert await take(client) == b"question"
        nursery.cancel_scope.cancel()


async def test_a_lease_works_with_a_server_which_knows_phoenix_1_only(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    got: list[bytes] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        got.append(await take(connection))
        await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        serve = partial(phoenix_trio.serve, tls=server_tls(), network=network.host(SERVER))
        await nursery.start(partial(serve, handler, PORT, host=SERVER, strict=True))
        async with (
            open_phoenix(tls=client_tls(), network=network.host(CLIENT)) as phoenix,
            phoenix.connect(TARGET) as connection,
        ):
            with trio.fail_after(5):
                await connection.send_data(b"hello")
            assert connection.quic.streams_opened == 1
        nursery.cancel_scope.cancel()
    assert got == [b"hello"]


async def test_limits_are_exchanged_after_early_data_unless_the_protocol_is_another_one_now(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    got: list[bytes] = []
    store = phoenix_trio.SessionStore()
    tls = client_tls(session_store=store, early_data=True)
    theirs = server_tls(early_data=True)

    async def old_server(connection: PhoenixConnection) -> None:
        with trio.fail_after(10):
            await connection.send_data(await connection.receive_data())
        await connection.quic.wait_closed()

    async def new_server(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_receive_streams():
            reader = StreamReader(stream)
            if await reader.read_varint() == StreamKind.MESSAGE:
                got.append(await receive_message(reader, max_size=1000))
            else:
                stream.stop_receiving(ApplicationErrorCode.MALFORMED)

    host = network.host(CLIENT)
    async with trio.open_nursery() as nursery:
        async with open_phoenix(server_tls=theirs, network=network.host(SERVER)) as old:
            await nursery.start(partial(old.serve, old_server, PORT, host=SERVER, strict=True))
            for accepted in (False, True):
                async with open_phoenix(tls=tls, network=host) as phoenix:
                    async with phoenix.connect(TARGET) as connection:
                        with trio.fail_after(10):
                            await connection.send_data(b"first")
                            await connection.receive_data()
                        assert bool(connection.quic.early_data_accepted) is accepted
                        assert connection._peer_limits.max_message_size == 16 * MEBIBYTE
                        await trio.sleep(1)  # for the ticket
        serve = partial(phoenix_trio.serve, tls=server_tls(), network=network.host(SERVER))
        await nursery.start(partial(serve, new_server, PORT, host=SERVER))
        async with open_phoenix(tls=tls, network=host) as phoenix:
            async with phoenix.connect(TARGET) as connection:
                assert connection.quic.alpn_protocol is None
                with trio.fail_after(10):
                    await connection.send_data(b"second")
                assert connection.quic.alpn_protocol == "phoenix/1"
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert got == [b"second"]


@pytest.mark.parametrize("places", [0, 1])
async def test_a_side_which_permits_hardly_any_stream_can_still_send(
    places: int, autojump_clock: MockClock
) -> None:
    log = Log()
    narrow = TransportConfig(max_unidirectional_streams=places)
    async with lease(log, server=TransportConfig(), client=narrow) as connection:
        with trio.fail_after(5):
            for number in range(5):
                await connection.send_data(b"%d" % number)
    assert log.got == [b"0", b"1", b"2", b"3", b"4"]


# ------------------------------------------------------------------ hostile announcements, headers


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x01\x0a\x01\x0b",
        b"\x01\x0a" + bytes(255),
        b"\xc0",
        encode_varint(99) + encode_varint(2**61),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
async def test_a_bad_announcement_costs_nothing_else(
    data: bytes, ends: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_nothing(monkeypatch)
    done = False

    async def handler(connection: PhoenixConnection) -> None:
        nonlocal done
        assert await connection.receive_data() == b"good"
        with trio.fail_after(10):
            await connection.send_data(b"answer")
        done = True
        await connection.quic.wait_closed()

    async with lease(handler) as connection:
        connection._peer_limits.settle(Limits())
        async with await connection.quic.open_send_stream() as stream:
            await stream.send_all(encode_varint(StreamKind.LIMITS) + data)
            await connection.send_data(b"good")
            if not ends:
                await trio.sleep(1)
                stream.reset()
        assert await connection.receive_data() == b"answer"
    assert done


async def test_limits_are_taken_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        await trio.sleep(1)
        assert connection._peer_limits.max_message_size == 16 * MEBIBYTE
        await connection.quic.wait_closed()

    async with lease(handler) as connection:
        await trio.sleep(0.1)
        stream = await connection.quic.open_send_stream()
        await stream.send_all(encode_limits(5, [0]))
        with pytest.raises(phoenix_trio.StreamStopped, match="MALFORMED"), trio.fail_after(5):
            await stream.wait_stopped()
        await trio.sleep(2)


@examples(100)
@given(data=st.binary(max_size=400))
def test_no_announcement_does_anything_but_give_limits_or_be_refused(data: bytes) -> None:
    async def main() -> None:
        send, receive = trio.testing.memory_stream_one_way_pair()
        await send.send_all(data)
        await send.aclose()
        try:
            limits = await read_limits(StreamReader(receive))
        except FramingError:
            return
        assert len(data) <= 256
        assert limits.max_message_size is None or 0 <= limits.max_message_size < 2**62

    trio.run(main)


def test_the_bytes_of_an_announcement_are_those_of_the_specification() -> None:
    assert encode_limits(16 * MEBIBYTE, [0, 1]) == b"\x07" + b"\x01\x81\x00\x00\x00" + b"\x02\x03"
    assert encode_limits(1, [0]) == b"\x07\x01\x01\x02\x01"


@pytest.mark.parametrize(
    ("announced", "sent", "text"),
    [
        (100, 101, "more than the 100 bytes"),
        (100, 900_000, "more than the 100 bytes"),
        (0, 1, "more than the 0 bytes"),
        (100, 99, "100 bytes were announced, 99 came"),
        (1000, 0, "1000 bytes were announced, 0 came"),
    ],
)
async def test_a_header_which_lies_is_refused_and_others_go_on(
    announced: int, sent: int, text: str, autojump_clock: MockClock
) -> None:
    got: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        with pytest.raises(MessageRefused, match=text) as caught:
            await connection.receive_data()
        assert caught.value.code == ApplicationErrorCode.MALFORMED
        got.append(await connection.receive_data())

    async with lease(handler) as connection:
        async with await connection.quic.open_send_stream() as stream:
            header = encode_varint(StreamKind.MESSAGE) + b"\0" + encode_varint(announced)
            await stream.send_all(header + bytes(sent), end=True)
        await connection.send_data(b"good")
        await connection.quic.wait_closed()
    assert got == [b"good"]


async def test_a_header_which_ends_early_is_refused(autojump_clock: MockClock) -> None:
    log = Log()
    async with lease(log) as connection:
        for header in (b"\x01", b"\x01\0", b"\x01\0\x80"):
            async with await connection.quic.open_send_stream() as stream:
                await stream.send_all(header)
        await connection.send_data(b"good")
    assert log.got == [b"good"]
    assert [error.code.name for error in log.refused] == ["MALFORMED"] * 3


async def test_messages_which_are_announced_and_never_sent_cost_no_memory(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await connection.receive_data()

    tracemalloc.start()
    try:
        async with lease(handler, server=TransportConfig()) as connection:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(50):
                stream = await connection.quic.open_send_stream()
                await stream.send_all(b"\x01\0" + encode_varint(16 * MEBIBYTE))
            await trio.sleep(2)
            assert tracemalloc.get_traced_memory()[0] - before < MEBIBYTE
    finally:
        tracemalloc.stop()


async def test_refused_messages_of_which_the_application_does_not_ask_stay_bounded(
    autojump_clock: MockClock,
) -> None:
    connections: list[PhoenixConnection] = []

    async def handler(connection: PhoenixConnection) -> None:
        connections.append(connection)
        await connection.quic.wait_closed()

    async def flood(connection: PhoenixConnection) -> None:
        for _ in range(600):
            stream = await connection.quic.open_send_stream()
            await stream.send_all(b"\x01\0" + encode_varint(1001), end=True)
            stream.close()

    async with lease(handler) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(flood, connection)
        await trio.sleep(10)
        served = connections[0]
        assert len(served._messages) <= 256 + 2 * 100
        for _ in range(600):
            with pytest.raises(MessageRefused, match="1001"):
                await served.receive_data()
        assert served.metrics().messages_refused == 600
        await connection.send_data(b"good")
        assert await served.receive_data() == b"good"


# ------------------------------------------------------------------ limits of one call


async def test_a_call_can_take_less_than_was_announced_but_not_more(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        with pytest.raises(MessageRefused, match="500 bytes, more than 100"):
            await connection.receive_data(max_size=100)
        assert await connection.receive_data(max_size=100) == bytes(100)
        with pytest.raises(MessageRefused, match="2000 bytes, more than 1000"):
            await connection.receive_data(max_size=3000)

    async with lease(handler) as connection:
        await connection.send_data(bytes(500))
        await connection.send_data(bytes(100))
        stream = await connection.quic.open_send_stream()
        await stream.send_all(b"\x01\0" + encode_varint(2000))
        await connection.quic.wait_closed()


# ------------------------------------------------------------------ compression


async def test_a_compression_which_the_peer_lacks_is_never_sent_as_if_it_had_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phoenix_trio.transport_connection.known_codecs", lambda: [0])
    log = Log()
    async with lease(log) as connection:
        with pytest.raises(MessageRefusedByPeer, match="UNSUPPORTED"):
            await connection.send_data(bytes(500), compress="zstd")
        with pytest.raises(CompressionUnsupported, match="without compress="):
            await connection.send_data(bytes(500), compress="zstd")
        await connection.send_data(bytes(500))


def test_zstd_is_announced_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from phoenix_trio.streams import messages

    assert messages.known_codecs() == [0, 1]
    missing: Callable[[str], ModuleSpec | None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(messages, "find_spec", missing)
    assert messages.known_codecs() == [0]


async def test_what_would_be_unpacked_beyond_the_limit_is_refused_by_its_header(
    autojump_clock: MockClock,
) -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(1001))
    async with connected_pair() as (client, server):
        stream = await client.open_send_stream()
        await stream.send_all(b"\x01\x01" + encode_varint(1001))
        incoming = await server.accept_receive_stream()
        reader = StreamReader(incoming)
        assert await reader.read_varint() == StreamKind.MESSAGE
        message = MessageReceiver(reader, max_size=1000)
        with pytest.raises(MessageRefused, match="1001"), trio.fail_after(1):
            await message.receive_header()
        assert message.is_refused
        with pytest.raises(MessageRefused, match="1001"), trio.testing.assert_checkpoints():
            await message.receive()
        await trio.sleep(1)
        with pytest.raises(phoenix_trio.StreamStopped):
            await stream.send_all(packed)


# ------------------------------------------------------------------ sequences and batches


async def test_an_item_above_the_announced_limit_ends_the_sequence_on_both_sides(
    autojump_clock: MockClock,
) -> None:
    got: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        async with await connection.receive_stream_data() as items:
            with pytest.raises(phoenix_trio.StreamReset, match=r"MESSAGE_TOO_LARGE \(0x4\)"):
                async for item in items:
                    got.append(item)  # noqa: PERF401 - items before the error count

    async def source() -> AsyncIterator[bytes]:
        yield bytes(1000)
        await trio.sleep(1)
        yield bytes(1001)

    async with lease(handler) as connection:
        with pytest.raises(MessageTooLarge) as caught:
            await connection.stream_data(source())
        assert (caught.value.size, caught.value.limit) == (1001, 1000)
        await connection.quic.wait_closed()
    assert got == [bytes(1000)]


@pytest.mark.parametrize("seed", range(5))
async def test_a_sequence_which_is_sent_before_the_limits_are_known_never_counts_as_sent(
    seed: int, autojump_clock: MockClock
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        await connection.quic.wait_closed()  # it receives nothing

    network = SimulatedNetwork(delay=0.02, loss=0.2, seed=seed)
    async with lease(handler, network=network) as connection:
        with pytest.raises((MessageRefusedByPeer, MessageTooLarge)) as caught:
            await connection.stream_data([b"small", bytes(1001)])
        assert (caught.value.size, caught.value.limit) == (1001, 1000)


async def test_an_item_which_its_receiver_refuses_is_named_to_the_sender(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            reader = StreamReader(await server.accept_receive_stream())
            assert await reader.read_varint() == StreamKind.SEQUENCE
            items = SequenceReceiver(reader, max_item_size=1000)
            with pytest.raises(MessageRefused, match="1500") as caught:
                await items.receive()
            assert (caught.value.size, caught.value.limit) == (1500, 1000)

        async def source() -> AsyncIterator[bytes]:
            yield bytes(1500)
            await trio.sleep_forever()

        with pytest.raises(MessageRefusedByPeer, match=r"1500 bytes.*1000 bytes") as caught:
            await send_sequence(client, source())
        assert (caught.value.size, caught.value.limit) == (1500, 1000)


async def test_a_batch_which_is_refused_is_named_to_the_sender(autojump_clock: MockClock) -> None:
    async with connected_pair() as pair:
        client, server = await quic_stream_pair(*pair)
        with pytest.raises(MessageRefusedByPeer, match=r"1500 bytes.*1000 bytes") as caught:
            async with open_batch_sender(client) as sender:
                await sender.send(bytes(1500), express=True)
                with pytest.raises(MessageRefused, match="1500"):
                    await BatchReceiver(server, max_message_size=1000).receive()
                await trio.sleep(1)
                while True:
                    await sender.send(b"x", express=True)
        assert (caught.value.size, caught.value.limit) == (1500, 1000)
        assert not pair[0].is_closed


async def test_a_batching_channel_sends_nothing_above_the_announced_limit(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        await connection.quic.wait_closed()

    async with lease(handler) as connection, await connection.open_stream() as stream:
        async with connection.open_batching_channel(stream) as (send, _):
            with pytest.raises(MessageTooLarge) as caught:
                await send.send(bytes(1001))
            assert (caught.value.size, caught.value.limit) == (1001, 1000)
            await send.send(bytes(1000))


async def test_a_peer_which_takes_nothing_at_all_gets_nothing_and_can_still_send(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        await connection._peer_limits.wait_settled()
        connection._peer_limits.settle(Limits(max_message_size=0))
        with pytest.raises(MessageTooLarge, match="is 0 bytes"):
            await connection.send_data(b"x")
        await connection.send_data(b"")
        async with (
            await connection.open_stream() as stream,
            connection.open_batching_channel(stream) as (send, _),
        ):
            with pytest.raises(MessageTooLarge):
                await send.send(b"xx")
        assert await connection.receive_data() == b"good"

    async with lease(handler) as connection:
        await connection.send_data(b"good")
        await connection.quic.wait_closed()


# ------------------------------------------------------------------ codes and types in texts


def test_codes_of_the_library_are_named_and_those_of_others_are_not() -> None:
    code = too_large_code(1000)
    assert split_code(code) == (ApplicationErrorCode.MESSAGE_TOO_LARGE, 1000)
    assert describe_code(code, None) == "MESSAGE_TOO_LARGE (0x4), the limit is 1000 bytes"
    assert describe_code(7, "phoenix/1") == "SOURCE_FAILED (0x7)"
    assert describe_code(7, "own/1") == describe_code(7, None) == "0x7"
    assert describe_code(77, "phoenix/1.1") == "0x4d"
    assert split_code(2**62 - 1) == (2**62 - 1, None)
    assert too_large_code(2**40) == ApplicationErrorCode.MESSAGE_TOO_LARGE
    assert split_code(too_large_code(0)) == (4, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1}, "not dict: pass encode="),
        ("text", r"not str: pass text.encode\(\), or encode="),
        (7, "not int: pass encode="),
        (None, "not NoneType: pass encode="),
    ],
)
async def test_what_is_no_bytes_says_how_to_send_it(
    value: Any, text: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, _):
        opened = client.streams_opened
        with pytest.raises(TypeError, match=text):
            await send_message(client, value)
        assert client.streams_opened == opened
        with pytest.raises(TypeError, match="an item must be bytes, " + text):
            await send_sequence(client, [value])
        with pytest.raises(TypeError, match="encode= must return bytes, not"):
            await send_message(client, value, encode=lambda each: each)
        stream = await client.open_stream()
        async with open_batch_sender(stream) as sender:
            with pytest.raises(TypeError, match=text):
                await sender.send(value)
            with pytest.raises(TypeError, match=text):
                await sender.send_many([value])
