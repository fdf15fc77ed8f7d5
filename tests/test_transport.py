"""The application's transport over a simulated network: everything together."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import (
    ApplicationErrorCode,
    PhoenixConnection,
    PhoenixTransport,
    TransferCode,
    TransportConfig,
    open_phoenix,
)
from phoenix_trio.metrics import RateWindow
from phoenix_trio.streams import encode_varint
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, PORT, SERVER, client_tls, server_tls

MEBIBYTE = 1024 * 1024
TARGET = f"{SERVER}:{PORT}"


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run thread work in place, because virtual time does not wait for threads."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


Handler = Callable[[PhoenixConnection], Awaitable[object]]


async def wait_closed(connection: PhoenixConnection) -> None:
    await connection.quic.wait_closed()


@asynccontextmanager
async def two_transports(
    handler: Handler = wait_closed,
    *,
    network: SimulatedNetwork | None = None,
    config: TransportConfig | None = None,
    **options: Any,
) -> AsyncIterator[tuple[PhoenixTransport, PhoenixTransport]]:
    """A client's and a server's transport."""
    network = network or SimulatedNetwork(delay=0.01)
    async with (
        trio.open_nursery() as nursery,
        open_phoenix(
            "server", config=config, server_tls=server_tls(), network=network.host(SERVER)
        ) as server,
    ):
        serve = partial(server.serve, handler, PORT, host=SERVER, strict=True)
        await nursery.start(serve)
        async with open_phoenix(
            "client", config=config, tls=client_tls(), network=network.host(CLIENT), **options
        ) as client:
            yield client, server
        await trio.sleep(1)  # for handlers to notice
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ messages and sequences


async def test_messages_go_both_ways_in_order(autojump_clock: MockClock) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        async for message in connection.messages():
            await connection.send_data(message.upper())

    network = SimulatedNetwork(delay=0.01, loss=0.02, seed=1)
    async with two_transports(handler, network=network) as (client, _):
        async with client.connect(TARGET) as connection:
            for number in range(20):
                await connection.send_data(b"message %d" % number)
            for number in range(20):
                assert await connection.receive_data() == b"MESSAGE %d" % number
            metrics = connection.metrics()
    assert metrics.messages_sent == metrics.messages_received == 20
    assert metrics.operations == 40


async def test_a_cancelled_receive_loses_no_message(autojump_clock: MockClock) -> None:
    messages = [os.urandom(20_000) for _ in range(10)]

    async def handler(connection: PhoenixConnection) -> None:
        for message in messages:
            await connection.send_data(message)

    network = SimulatedNetwork(delay=0.03, bandwidth=2e6)
    got = []
    async with two_transports(handler, network=network) as (client, _):
        async with client.connect(TARGET) as connection:
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                while True:
                    with trio.move_on_after(0.01):
                        got.append(await connection.receive_data())
    assert got == messages


@pytest.mark.parametrize("size", [0, 1, 3000, 100_000])
async def test_messages_which_are_not_received_hold_their_sender_back(
    size: int, autojump_clock: MockClock
) -> None:
    """At most as many wait as there may be streams, and 256 small ones."""
    config = TransportConfig(max_unidirectional_streams=10)
    bound = 10 if size > 4096 else 256 + 2 * 10
    received = 0

    async def handler(connection: PhoenixConnection) -> None:
        nonlocal received
        await trio.sleep(100)
        async for message in connection.messages():
            assert len(message) == size
            received += 1

    async with two_transports(handler, config=config) as (client, _):
        async with client.connect(TARGET) as connection, trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(100):
                    await connection.send_data(bytes(size))

            for _ in range(5):
                nursery.start_soon(send)
            await trio.sleep(90)
            assert bound // 2 < connection.metrics().messages_sent <= bound
            assert connection.quic.streams_opened <= bound + 1  # and one of the limits
    assert received == 500


async def test_what_arrived_before_the_end_can_be_received_after_it(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        for number in range(5):
            await connection.send_data(b"%d" % number)

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            await connection.quic.wait_closed()
            await trio.sleep(5)
            assert [message async for message in connection.messages()] == [
                b"0",
                b"1",
                b"2",
                b"3",
                b"4",
            ]
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                await connection.receive_data()


async def test_one_bad_message_ends_nobodys_loop(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []
    metrics: list[Any] = []

    async def handler(connection: PhoenixConnection) -> None:
        async for message in connection.messages(max_size=100):
            got.append(message)  # noqa: PERF401 - messages before an error count
        metrics.append(connection.metrics())

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            await connection.send_data(b"first")
            with pytest.raises(phoenix_trio.MessageRefusedByPeer):
                await connection.send_data(os.urandom(10 * MEBIBYTE))
            async with await connection.quic.open_send_stream() as stream:
                await stream.send_all(encode_varint(1) + encode_varint(77))
            with trio.move_on_after(0.001):
                await connection.send_data(os.urandom(1000))
            await connection.send_data(b"last")
    assert got == [b"first", b"last"]
    assert metrics[0].messages_refused >= 2
    assert "refused" in caplog.text


@pytest.mark.parametrize("data", [encode_varint(99) + b"x", b"", b"\x40"])
async def test_a_stream_of_an_unknown_kind_is_refused_and_the_connection_goes_on(
    data: bytes, autojump_clock: MockClock
) -> None:
    got: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        got.append(await connection.receive_data())

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            stream = await connection.quic.open_send_stream()
            await stream.send_all(data)
            if data == encode_varint(99) + b"x":
                with pytest.raises(phoenix_trio.StreamStopped) as caught, trio.fail_after(5):
                    await stream.wait_stopped()
                assert caught.value.error_code == ApplicationErrorCode.MALFORMED
            else:
                await stream.send_eof()
            await connection.send_data(b"good")
            await connection.quic.wait_closed()
    assert got == [b"good"]


async def test_sequences_are_received_as_channels(autojump_clock: MockClock) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        async with await connection.receive_stream_data(decode=int) as items:
            total = sum([item async for item in items])
        await connection.send_data(b"%d" % total)

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            sent = await connection.stream_data(range(1000), encode=lambda n: b"%d" % n)
            assert sent == 1000
            assert await connection.receive_data() == b"%d" % sum(range(1000))


async def test_batches_use_the_configuration(autojump_clock: MockClock) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        async with (
            await connection.accept_stream() as stream,
            connection.open_batching_channel(stream) as (send, receive),
        ):
            async for message in receive:
                await send.send(message)

    config = attrs.evolve(TransportConfig(), batch_delay=0.5)
    async with two_transports(handler, config=config) as (client, _):
        async with (
            client.connect(TARGET) as connection,
            await connection.open_stream() as stream,
            connection.open_batching_channel(stream) as (send, receive),
        ):
            started = trio.current_time()
            await send.send(b"x")
            assert await receive.receive() == b"x"
            assert trio.current_time() - started == pytest.approx(1.02, abs=0.01)
            await send.aclose()
            assert [message async for message in receive] == []


# ------------------------------------------------------------------ the pool


async def test_leases_share_a_connection_and_a_pooled_one_costs_no_time(
    autojump_clock: MockClock,
) -> None:
    async with two_transports() as (client, server):
        async with client.connect(TARGET) as one:
            await trio.sleep(0.1)  # until the server has the connection, too
            before = trio.current_time()
            async with client.connect((SERVER, PORT)) as two:
                assert one is two
            assert trio.current_time() == before
        assert client.stats().active_connections == 1
        assert client.pool.statistics().leases == 0
        assert len(server.connections) == 1


@pytest.mark.parametrize("target", ["nowhere", "x:0", ("a",), 7, "https://x:1"])
async def test_what_is_no_target_is_said_at_once(target: Any, autojump_clock: MockClock) -> None:
    async with two_transports() as (client, _):
        with pytest.raises((ValueError, TypeError)):
            client.connect(target)


async def test_arguments_of_a_wrong_type_are_named_and_cost_nothing(
    autojump_clock: MockClock,
) -> None:
    wrong: Any = "3"

    async def handler(connection: PhoenixConnection) -> None:
        with pytest.raises(TypeError, match="max_size"):
            await connection.receive_data(max_size=wrong)
        assert await connection.receive_data() == b"kept"
        await connection.quic.wait_closed()

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            await connection.send_data(b"kept")
        with pytest.raises(TypeError, match="count must be an integer"):
            await client.enable_multiplexing(TARGET, wrong)
        with pytest.raises(TypeError, match="metadata must be bytes"):
            await client.send_multiplexed(TARGET, b"", connections=1, metadata=wrong)


async def test_a_draining_peer_gets_no_further_leases(autojump_clock: MockClock) -> None:
    async with two_transports() as (client, server):
        async with client.connect(TARGET) as first:
            await trio.sleep(0.1)
            await server.drain()
            await trio.sleep(1)
            assert first.is_draining
            async with client.connect(TARGET) as second:
                assert second is not first
                assert not first.quic.is_closed
        await trio.sleep(1)
        assert first.quic.is_closed
        assert client.pool.statistics().drained == 1


async def test_limits_are_those_of_the_argument(autojump_clock: MockClock) -> None:
    async with two_transports(max_connections=2) as (client, _):
        with pytest.raises(ValueError, match="between 1 and 2"):
            await client.enable_multiplexing(TARGET, 3)


# ------------------------------------------------------------------ striped transfers


async def receive_all(
    transport: PhoenixTransport, found: list[tuple[bytes, bytes]], count: int = 1
) -> None:
    for _ in range(count):
        async with await transport.receive_multiplexed() as transfer:
            found.append((transfer.metadata, await transfer.read_all(max_size=64 * MEBIBYTE)))


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 77_777):
        await trio.lowlevel.checkpoint()
        yield data[at : at + 77_777]


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MEBIBYTE + 1])
@pytest.mark.parametrize("kind", ["bytes", "file", "chunks"])
async def test_a_striped_transfer_arrives_whole(
    kind: str, size: int, autojump_clock: MockClock
) -> None:
    data = os.urandom(size)
    source: Any = {"bytes": data, "file": io.BytesIO(data), "chunks": chunks(data)}[kind]
    found: list[tuple[bytes, bytes]] = []
    progress: list[int] = []
    async with two_transports() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, server, found)
        await client.enable_multiplexing(TARGET, 3)
        assert client.stats().active_connections == 3
        summary = await client.send_multiplexed(
            TARGET, source, on_progress=progress.append, metadata=b"name"
        )
    assert found == [(b"name", data)]
    assert summary.sha256 == hashlib.sha256(data).digest()
    assert summary.size == size
    assert progress == sorted(progress)
    assert (progress[-1] if progress else 0) == size


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"data": "text"}, TypeError, "pass text.encode"),
        ({"data": 7}, TypeError, "not int"),
        ({"data": None}, TypeError, "not NoneType"),
        ({"metadata": "name"}, TypeError, "metadata must be bytes, not str"),
        ({"metadata": bytes(16 * 1024 + 1)}, ValueError, "metadata may have 16384 bytes"),
        ({"transfer_id": bytes(15)}, ValueError, "transfer_id must have 16 bytes"),
        ({"transfer_id": "sixteen letters!"}, TypeError, "transfer_id must be bytes, not str"),
        ({"transfer_id": 7}, TypeError, "transfer_id must be bytes, not int"),
        ({"connections": 0}, ValueError, "0"),
        ({"target": "no port"}, ValueError, "port"),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is_dialled(
    wrong: dict[str, Any], error: type[Exception], text: str, autojump_clock: MockClock
) -> None:
    arguments = {"target": TARGET, "data": b"some", **wrong}
    async with two_transports() as (client, server):
        with pytest.raises(error, match=text):
            await client.send_multiplexed(**arguments)
        assert client.stats().connections_opened == 0
        assert not any(each.dials for each in client.pool_statistics().targets.values())
        assert server.stats().incoming_transfers == 0


async def test_a_killed_connection_costs_only_its_unacknowledged_stripes_and_is_replaced(
    autojump_clock: MockClock,
) -> None:
    data = os.urandom(8 * MEBIBYTE)
    found: list[tuple[bytes, bytes]] = []
    killed: list[phoenix_trio.QuicConnection] = []
    network = SimulatedNetwork(delay=0.01, bandwidth=50e6, loss=0.001, seed=9)
    async with two_transports(network=network) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_all, server, found)
            await client.enable_multiplexing(TARGET, 4)

            def kill(done: int) -> None:
                if done > len(data) * 0.3 and not killed:
                    killed.append(client.connections[0].quic)
                    killed[0].abort(5)

            summary = await client.send_multiplexed(TARGET, data, on_progress=kill)
        assert found == [(b"", data)]
        assert killed
        assert summary.connections_lost == 1
        assert summary.connections_replaced == 1
        assert summary.bytes_sent_again < 4 * MEBIBYTE
        await trio.sleep(5)
        assert client.stats().active_connections == 4


async def test_an_interrupted_transfer_can_be_resumed(autojump_clock: MockClock) -> None:
    data = os.urandom(6 * MEBIBYTE)
    found: list[tuple[bytes, bytes]] = []
    network = SimulatedNetwork(delay=0.01, bandwidth=20e6)
    config = attrs.evolve(TransportConfig(), max_idle_timeout=2.0)
    async with two_transports(network=network, config=config) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_all, server, found)
            cut = False

            def partition(done: int) -> None:
                nonlocal cut
                if done > len(data) // 2 and not cut:
                    cut = True
                    network.partition(CLIENT, SERVER)

            with pytest.raises(phoenix_trio.TransferInterrupted) as caught:
                await client.send_multiplexed(TARGET, data, connections=2, on_progress=partition)
            assert caught.value.bytes_acknowledged > len(data) // 2
            network.heal(CLIENT, SERVER)
            await trio.sleep(1)
            summary = await client.send_multiplexed(
                TARGET, data, connections=2, transfer_id=caught.value.transfer_id
            )
        assert found == [(b"", data)]
        assert summary.stripes_sent * summary.stripe_size < len(data)


async def test_an_interrupted_transfer_gives_its_memory_back_although_nobody_accepts_it(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = attrs.evolve(TransportConfig(), max_idle_timeout=2.0)
    async with two_transports(network=network, config=config) as (client, server):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(phoenix_trio.TransferInterrupted):
                    await client.send_multiplexed(TARGET, bytes(MEBIBYTE), connections=2)

            nursery.start_soon(send)
            await trio.sleep(1)
            (transfer,) = server._hub._incoming.values()
            assert transfer.bytes_received == MEBIBYTE
            network.partition(CLIENT, SERVER)
            await trio.sleep(55)
            assert transfer._window.has_next  # the sender may come back
            await trio.sleep(10)
            assert not server._hub._incoming
            assert not transfer._window.has_next
        network.heal(CLIENT, SERVER)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, 8),
        ({"max_incoming_transfers": 5}, 3),
        ({"max_incoming_transfers": 5, "max_incoming_transfers_per_peer": 9}, 5),
        ({"max_incoming_transfers_per_peer": 2}, 2),
    ],
)
async def test_the_configuration_says_how_many_transfers_are_received_at_once(
    settings: dict[str, int], taken: int, autojump_clock: MockClock
) -> None:
    codes: list[int] = []
    async with two_transports(config=TransportConfig(**settings)) as (client, server):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                try:
                    await client.send_multiplexed(TARGET, b"some", connections=2)
                except phoenix_trio.TransferRefused as error:
                    codes.append(error.code)

            for _ in range(12):
                nursery.start_soon(send)
            await trio.sleep(5)
            assert codes == [TransferCode.TOO_MANY_TRANSFERS] * (12 - taken)
            assert server.stats().incoming_transfers == taken
            nursery.cancel_scope.cancel()


async def test_a_cancelled_transfer_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, bandwidth=5e6)
    outcomes: list[BaseException] = []

    async with two_transports(network=network) as (client, server):

        async def receive() -> None:
            try:
                async with await server.receive_multiplexed() as transfer:
                    await transfer.read_all(max_size=64 * MEBIBYTE)
            except phoenix_trio.TransferAbandoned as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with trio.move_on_after(1):
                await client.send_multiplexed(TARGET, bytes(20 * MEBIBYTE), connections=2)
        assert len(outcomes) == 1
        await trio.sleep(1)
        for transport in (client, server):
            stats = transport.stats()
            assert (stats.incoming_transfers, stats.outgoing_transfers) == (0, 0)
        assert client.pool.statistics().leases == 0


@pytest.mark.parametrize("kind", ["text", "path", "function"])
async def test_a_transfer_is_stored_in_a_file(
    kind: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    data = os.urandom(3 * MEBIBYTE + 1)
    path = tmp_path / "copy"

    def choose(transfer: phoenix_trio.IncomingTransfer) -> Path:
        return tmp_path / transfer.metadata.decode()

    chosen: Any = {"text": str(path), "path": path, "function": choose}[kind]
    async with two_transports() as (client, server), trio.open_nursery() as nursery:

        async def receive() -> None:
            async with await server.receive_multiplexed(path=chosen) as transfer:
                assert path.read_bytes() == data
                assert (transfer.size, transfer.metadata) == (len(data), b"copy")
                assert transfer.is_confirmed
                assert transfer.bytes_resumed == 0

        nursery.start_soon(receive)
        await client.send_multiplexed(TARGET, data, connections=2, metadata=b"copy")
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_target_which_cannot_be_is_found_before_a_transfer_is_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with two_transports() as (_, server):
        for path, error in (
            (tmp_path / "missing" / "copy", FileNotFoundError),
            (tmp_path / "pipe" / "copy", NotADirectoryError),
            (tmp_path, IsADirectoryError),
            (f"{tmp_path}/copy/", IsADirectoryError),
            (tmp_path / "pipe", FileExistsError),
        ):
            with pytest.raises(error):
                await server.receive_multiplexed(path=path)
        wrong: Any
        for wrong in (7, b"bytes"):
            with pytest.raises(TypeError):
                await server.receive_multiplexed(path=wrong)
    assert os.listdir(tmp_path) == ["pipe"]


async def test_a_function_which_chooses_no_path_refuses_the_transfer(
    autojump_clock: MockClock,
) -> None:
    def refuse(transfer: phoenix_trio.IncomingTransfer) -> str:
        raise LookupError(transfer.metadata)

    async with two_transports() as (client, server), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(LookupError):
                await server.receive_multiplexed(path=refuse)

        nursery.start_soon(receive)
        with pytest.raises(phoenix_trio.TransferRefused) as caught:
            await client.send_multiplexed(TARGET, b"some", connections=1)
        assert caught.value.code == TransferCode.NOT_STORED


async def test_transfers_can_be_taken_by_connection(autojump_clock: MockClock) -> None:
    found: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        async for transfer in connection.incoming_transfers():
            async with transfer:
                found.append(await transfer.read_all(max_size=MEBIBYTE))

    async with two_transports(handler) as (client, _):
        for number in range(3):
            await client.send_multiplexed(TARGET, b"%d" % number, connections=1)
    assert found == [b"0", b"1", b"2"]


# ------------------------------------------------------------------ statistics


async def test_statistics_count_at_the_receiver_and_fall_when_connections_end(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        async for _ in connection.messages():
            pass

    network = SimulatedNetwork(delay=0.05, bandwidth=8e6)
    async with two_transports(handler, network=network) as (client, server):
        assert client.stats().latency_ms is None
        assert client.stats().throughput_gbps == 0
        async with client.connect(TARGET) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.send_data, bytes(2_000_000))
                await trio.sleep(1)
                # Everything is in the local buffer; only arrived bytes count.
                assert 200_000 < client.stats().total_bytes_sent < 1_100_000
                assert 1e6 < client.stats().send_rate < 8e6
                assert connection.metrics().send_rate > 1e6
            stats = client.stats()
            assert stats.total_bytes_sent >= 2_000_000
            assert stats.active_connections == 1
            assert stats.latency_ms is not None
            assert stats.latency_ms >= 100
            assert stats.throughput_gbps > 0.001
            assert stats.zero_copy_operations >= 1
            await trio.sleep(1)
            assert server.stats().total_bytes_received >= 2_000_000
            await connection.quic.aclose()
        await trio.sleep(30)
        after = client.stats()
        assert (after.active_connections, after.connections_opened) == (0, 1)
        assert after.total_bytes_sent == stats.total_bytes_sent
        assert after.operations == stats.operations
        assert client.stats().send_rate < stats.send_rate
        assert server.stats().active_connections == 0


async def test_a_rate_falls_to_zero_when_nothing_moves() -> None:
    window = RateWindow(0.0, seconds=10.0)
    assert window.rate(0.0, 0) == 0
    assert window.rate(1.0, 100) == 100
    assert window.rate(2.0, 300) == 150
    for second in range(3, 30):
        last = window.rate(float(second), 300)
    assert last == 0
    assert window.rate(1000.0, 300 + 970) == pytest.approx(1.0, rel=0.05)
    assert len(window._samples) < 60


async def test_a_rate_needs_bounded_memory_however_often_one_looks() -> None:
    window = RateWindow(0.0, seconds=1.0)
    for look in range(100_000):
        window.rate(look / 10_000, look)
    assert len(window._samples) < 60


# ------------------------------------------------------------------ the end


async def test_everything_started_inside_ends_inside(autojump_clock: MockClock) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with two_transports() as (client, server):
        async with client.connect(TARGET) as connection:
            pass
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert connection.quic.is_closed
    for transport in (client, server):
        with pytest.raises(trio.ClosedResourceError):
            async with transport.connect(TARGET):
                pass
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive_multiplexed()


async def test_a_server_in_a_nursery_outside_ends_with_the_block(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    handled: list[str] = []

    async def handler(connection: PhoenixConnection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            handled.append("left")

    async def serve(**arguments: Any) -> None:
        await server.serve(handler, PORT, host=SERVER, **arguments)
        handled.append("served")

    async with (
        trio.open_nursery() as nursery,
        open_phoenix("client", tls=client_tls(), network=network.host(CLIENT)) as client,
    ):
        async with open_phoenix(
            "server", server_tls=server_tls(), network=network.host(SERVER)
        ) as server:
            await nursery.start(serve)
            async with client.connect(TARGET):
                await trio.sleep(1)
                assert server.stats().active_connections == 1
        assert handled[:1] == ["left"]
        assert server.stats().active_connections == 0
        await trio.sleep(1)
        assert handled == ["left", "served"]


async def test_a_connection_which_has_ended_is_not_active_though_its_handler_goes_on(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: PhoenixConnection) -> None:
        await trio.sleep_forever()

    async with two_transports(handler) as (client, server):
        async with client.connect(TARGET) as connection:
            await connection.send_data(b"x")
            assert server.stats().active_connections == 1
            await connection.quic.aclose()
        await trio.sleep(1)
        assert server.stats().active_connections == 0
        assert server.stats().latency_ms is None
        assert server.connections == ()


async def test_a_cancelled_drain_can_be_asked_for_again(autojump_clock: MockClock) -> None:
    served: list[PhoenixConnection] = []

    async def handler(connection: PhoenixConnection) -> None:
        served.append(connection)
        await connection.quic.wait_closed()

    async with two_transports(handler) as (client, _):
        async with client.connect(TARGET) as connection:
            await trio.sleep(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                await served[0].drain()
            assert scope.cancelled_caught
            # (One of the 100 was the stream of the limits.)
            streams = [await served[0].quic.open_send_stream() for _ in range(99)]
            with trio.move_on_after(1):
                await served[0].drain()  # waits for stream credit
            assert not connection.is_draining
            for stream in streams:
                stream.reset()
            await served[0].drain()
            await trio.sleep(1)
            assert connection.is_draining


async def test_leaving_the_block_delivers_what_was_sent(autojump_clock: MockClock) -> None:
    got = bytearray()

    async def handler(connection: PhoenixConnection) -> None:
        async with await connection.accept_stream() as stream:
            async for chunk in stream:
                got.extend(chunk)

    network = SimulatedNetwork(delay=0.02, bandwidth=10e6, loss=0.02, seed=3)
    data = os.urandom(MEBIBYTE)
    async with two_transports(handler, network=network) as (client, _):
        async with client.connect(TARGET) as connection:
            stream = await connection.open_stream()
            await stream.send_all(data)
            await stream.send_eof()
    assert got == data


async def test_a_task_can_close_the_transport_from_within(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    async with open_phoenix("alone", network=network.host(CLIENT)) as phoenix:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(1)
            await phoenix.aclose()
    with pytest.raises(trio.ClosedResourceError):
        async with phoenix.connect(TARGET):
            pass


async def test_an_exception_in_the_block_comes_out_alone(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    with pytest.raises(KeyError, match="mine"):
        async with open_phoenix("alone", network=network.host(CLIENT)):
            raise KeyError("mine")


async def test_serving_needs_an_identity(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    async with open_phoenix("alone", network=network.host(CLIENT)) as phoenix:
        with pytest.raises(ValueError, match="server_tls"):
            await phoenix.serve(wait_closed, PORT)


@pytest.mark.parametrize("profile", ["realtime", "high_throughput", "sensors", "video"])
async def test_every_profile_works(profile: str, autojump_clock: MockClock) -> None:
    config = getattr(TransportConfig, profile)()
    assert isinstance(config, TransportConfig)
    assert config != TransportConfig()
    assert attrs.evolve(config, batch_delay=0.25).batch_delay == 0.25
    documented = getattr(TransportConfig, profile).__doc__
    for field in attrs.fields(TransportConfig):
        if getattr(config, field.name) != field.default and "buffer_size" not in field.name:
            assert f"`{field.name}`" in documented, field.name
    got: list[bytes] = []

    async def handler(connection: PhoenixConnection) -> None:
        got.extend([message async for message in connection.messages()])

    async with two_transports(handler, config=config) as (client, _):
        async with client.connect(TARGET) as connection:
            await connection.send_data(bytes(50_000))
    assert got == [bytes(50_000)]
