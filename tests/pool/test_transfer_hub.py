"""Transfers between two hubs over real connections: slow readers, wrong peers, bounded memory."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransferCode
from phoenix_trio.pool import IncomingTransfer, TransferHub, serve_hub
from phoenix_trio.pool.transfer_records import (
    Accepted,
    Credit,
    End,
    Manifest,
    Verdict,
    encode_record,
    encode_stripe_header,
)
from phoenix_trio.pool.transfer_streams import read_record
from phoenix_trio.streams import StreamKind, StreamReader, encode_varint
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls

STRIPE = 4096
ID = bytes(range(16))


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run thread work in place, because virtual time does not wait for threads."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@asynccontextmanager
async def two_hubs(
    network: SimulatedNetwork | None = None,
    *,
    serve_sender: bool = True,
    client_config: phoenix_trio.TransportConfig | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[phoenix_trio.QuicConnection, TransferHub, TransferHub]]:
    """A connection, the sender's hub, and the receiver's hub with the settings."""
    settings.setdefault("max_stripe_size", STRIPE)
    settings.setdefault("window", 16 * STRIPE)
    async with (
        connected_pair(network, client_config=client_config) as (client, server),
        trio.open_nursery() as nursery,
    ):
        sender, receiver = TransferHub(), TransferHub(**settings)
        if serve_sender:  # (a served hub stops answers to transfers of others)
            nursery.start_soon(serve_hub, client, sender)
        nursery.start_soon(serve_hub, server, receiver)
        yield client, sender, receiver
        nursery.cancel_scope.cancel()


async def read(receiver: TransferHub, got: list[bytes]) -> None:
    async with await receiver.accept() as transfer:
        got.append(await transfer.read_all(max_size=10_000_000))


async def still_works(
    client: phoenix_trio.QuicConnection, sender: TransferHub, receiver: TransferHub
) -> None:
    """After any failure, another transfer goes through, and nothing is left."""
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, receiver, got)
        with trio.fail_after(30):
            await sender.send([client], b"still there", window=STRIPE)
    assert got == [b"still there"]
    assert (sender.outgoing, receiver.incoming) == (0, 0)


# ------------------------------------------------------------------ memory and speed


async def test_a_slow_reader_holds_no_more_than_its_window(autojump_clock: MockClock) -> None:
    data = os.urandom(100 * STRIPE)
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send([client], data, window=1_000_000))
        async with await receiver.accept() as transfer:
            got = bytearray()
            await trio.sleep(5)
            assert transfer.bytes_received <= 16 * STRIPE
            async for chunk in transfer:
                got += chunk
                assert transfer.bytes_received - transfer.bytes_read <= 17 * STRIPE
                await trio.sleep(0.05)
        assert got == data


async def test_a_source_is_read_no_further_than_the_window(autojump_clock: MockClock) -> None:
    given = 0

    def source() -> Any:
        nonlocal given
        for _ in range(1000):
            given += 1
            yield bytes(STRIPE)

    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send([client], source(), window=8 * STRIPE))
        transfer = await receiver.accept()
        await trio.sleep(5)
        assert given <= (8 + 16 + 8) + 1
        nursery.cancel_scope.cancel()
        await transfer.aclose()


async def test_a_transfer_goes_into_a_file(autojump_clock: MockClock) -> None:
    data = os.urandom(500_001)
    file = io.BytesIO()
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            async with await receiver.accept() as transfer:
                assert await transfer.receive_into(file) == len(data)
                assert transfer.is_verified

        nursery.start_soon(receive)
        summary = await sender.send([client], data)
    assert file.getvalue() == data
    assert summary.sha256 == hashlib.sha256(data).digest()


# ------------------------------------------------------------------ leaving


async def test_a_receiver_which_leaves_tells_the_sender(autojump_clock: MockClock) -> None:
    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                async with await receiver.accept() as transfer:
                    await anext(transfer)

            nursery.start_soon(leave)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], bytes(100 * STRIPE))
            assert caught.value.code == TransferCode.CANCELLED
        await still_works(client, sender, receiver)


async def test_a_file_which_cannot_be_written_tells_the_sender(
    autojump_clock: MockClock,
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "no space left")

    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                async with await receiver.accept() as transfer:
                    with pytest.raises(OSError, match="no space"):
                        await transfer.receive_into(Full())

            nursery.start_soon(receive)
            with pytest.raises(phoenix_trio.TransferRefused):
                await sender.send([client], bytes(50 * STRIPE))
        await still_works(client, sender, receiver)


async def test_a_source_which_raises_ends_the_transfer_on_both_sides(
    autojump_clock: MockClock,
) -> None:
    def broken() -> Any:
        yield bytes(STRIPE)
        raise LookupError("burst")

    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                transfer = await receiver.accept()
                with pytest.raises(phoenix_trio.TransferAbandoned):
                    await transfer.read_all(max_size=10**6)

            nursery.start_soon(receive)
            with pytest.raises(LookupError, match="burst"):
                await sender.send([client], broken())
        await still_works(client, sender, receiver)


async def test_a_source_with_a_scope_of_its_own_can_be_left_early(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        with trio.CancelScope():
            try:
                while True:
                    yield bytes(STRIPE)
            finally:
                log.append("closed")

    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                async with await receiver.accept():
                    await trio.sleep(1)

            nursery.start_soon(leave)
            with pytest.raises(phoenix_trio.TransferRefused):
                await sender.send([client], source(), window=4 * STRIPE)
        assert log == ["closed"]
        await still_works(client, sender, receiver)


@pytest.mark.parametrize("idle_timeout", [30.0, 4.0])
async def test_a_reader_may_pause_for_longer_than_any_idle_timeout(
    idle_timeout: float,
    autojump_clock: MockClock,
) -> None:
    data = os.urandom(100 * STRIPE)
    got = bytearray()
    config = phoenix_trio.TransportConfig(max_idle_timeout=idle_timeout)
    async with (
        two_hubs(client_config=config) as (client, sender, receiver),
        trio.open_nursery() as nursery,
    ):

        async def read_late() -> None:
            async with await receiver.accept() as transfer:
                await trio.sleep(1000)
                async for chunk in transfer:
                    got.extend(chunk)

        nursery.start_soon(read_late)
        summary = await sender.send([client], data, window=16 * STRIPE)
    assert got == data
    assert summary.connections_lost == 0


async def test_a_transfer_which_a_cancelled_task_has_found_goes_to_the_next(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send([client], b"for somebody"))
        transfer = await receiver.accept()  # (to know the receiver's side of the connection)
        scope = trio.CancelScope()

        async def accept_and_be_cancelled() -> None:
            with scope:
                await receiver.accept(connection=transfer.connection)

        nursery.start_soon(accept_and_be_cancelled)
        got: list[bytes] = []
        await trio.sleep(1)
        nursery.start_soon(read, receiver, got)
        await trio.sleep(1)
        # As if a transfer had woken the first of the two, which was cancelled at once.
        receiver._queue.append(transfer)
        receiver._accept_lot.unpark()
        scope.cancel()
        await trio.sleep(1)
        assert got == [b"for somebody"]


async def test_a_file_which_takes_nothing_is_an_error(autojump_clock: MockClock) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int | None:
            return None  # like a full pipe in non-blocking mode

    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            async with await receiver.accept() as transfer:
                with pytest.raises(BlockingIOError):
                    await transfer.receive_into(Full())

        nursery.start_soon(receive)
        with pytest.raises(phoenix_trio.TransferRefused):
            await sender.send([client], b"something")


async def test_a_closed_hub_refuses(autojump_clock: MockClock) -> None:
    async with two_hubs() as (client, sender, receiver):
        receiver.close()
        with pytest.raises(phoenix_trio.TransferRefused) as caught:
            await sender.send([client], b"x")
        assert caught.value.code == TransferCode.SHUTTING_DOWN
        with pytest.raises(trio.ClosedResourceError):
            await receiver.accept()
        await sender.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await sender.send([client], b"x")


# ------------------------------------------------------------------ limits


async def test_too_many_transfers_are_refused_and_the_first_ones_go_on(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs(max_transfers=2, max_transfers_per_peer=2) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(lambda n=number: sender.send([client], b"%d" % n * STRIPE))
            await trio.sleep(1)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], b"one more")
            assert caught.value.code == TransferCode.TOO_MANY_TRANSFERS
            got: list[bytes] = []
            await read(receiver, got)
            await read(receiver, got)
        assert sorted(got) == [b"0" * STRIPE, b"1" * STRIPE]
        await still_works(client, sender, receiver)


@asynccontextmanager
async def one_hub(
    clients: Sequence[str], **settings: Any
) -> AsyncIterator[tuple[list[phoenix_trio.QuicConnection], TransferHub]]:
    """A receiver's hub, and the connections of clients at these addresses, in their order."""
    network = SimulatedNetwork(delay=0.01)
    receiver = TransferHub(max_stripe_size=STRIPE, window=16 * STRIPE, **settings)

    async def serve(connection: phoenix_trio.QuicConnection) -> None:
        await serve_hub(connection, receiver)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                serve,
                PORT,
                host=SERVER,
                tls=server_tls(),
                alpn=ALPN,
                network=network.host(SERVER),
            )
        )
        async with AsyncExitStack() as stack:
            hosts = {address: network.host(address) for address in dict.fromkeys(clients)}
            yield (
                [
                    await stack.enter_async_context(
                        phoenix_trio.open_connection(
                            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=hosts[address]
                        )
                    )
                    for address in clients
                ],
                receiver,
            )
        nursery.cancel_scope.cancel()


async def test_one_peer_cannot_take_the_places_of_others_whatever_connections_it_opens(
    autojump_clock: MockClock,
) -> None:
    greedy, other = "10.0.0.7", "10.0.0.8"
    async with one_hub([greedy, greedy, greedy, other], max_transfers=4) as (connections, receiver):
        verdicts = []
        for number in range(6):
            raw = RawSender(connections[number % 3], bytes([number]) * 16)
            await raw.manifest()
            verdicts.append(await raw.verdict())
        assert verdicts == [None] * 2 + [TransferCode.TOO_MANY_TRANSFERS] * 4
        assert receiver.incoming == 2
        raw = RawSender(connections[3], b"o" * 16)
        await raw.manifest()
        assert await raw.verdict() is None
        # Its places are free again once its transfers have ended.
        for _ in range(2):
            await (await receiver.accept()).aclose()
        raw = RawSender(connections[0], b"again" + bytes(11))
        await raw.manifest()
        assert await raw.verdict() is None


async def test_a_connection_which_moves_takes_its_transfers_along(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    host = network.host(CLIENT)
    async with two_hubs(network, max_transfers=4) as (client, _, receiver):
        for number in range(6):
            raw = RawSender(client, bytes([number]) * 16)
            await raw.manifest()
            await trio.sleep(1)
            host.rebind(f"10.0.1.{number}")
            await client.ping()
        assert receiver.incoming == 2


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_too_large_is_refused(known: bool, autojump_clock: MockClock) -> None:
    data = bytes(20 * STRIPE)
    source: Any = data if known else iter([data])
    async with two_hubs(max_size=10 * STRIPE) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with trio.move_on_after(10):
                    transfer = await receiver.accept()
                    with pytest.raises(trio.BrokenResourceError):
                        await transfer.read_all(max_size=10**6)

            nursery.start_soon(receive)
            with pytest.raises(phoenix_trio.TransferRefused) as caught:
                await sender.send([client], source)
            assert caught.value.code == TransferCode.TOO_LARGE
        await still_works(client, sender, receiver)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_stripe_size": 10},
        {"window": 100},
        {"max_transfers": 0},
        {"max_transfers_per_peer": 0},
        {"resume_timeout": -1},
        {"idle_timeout": 0},
        {"max_size": -1},
    ],
)
async def test_settings_out_of_range_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        TransferHub(**arguments)


# ------------------------------------------------------------------ wrong senders


class CountSteps(trio.abc.Instrument):
    """How often a task has run."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += task is self.task


async def report(
    work: Callable[[], Awaitable[object]],
    *,
    task_status: trio.TaskStatus[trio.lowlevel.Task],
) -> None:
    task_status.started(trio.lowlevel.current_task())
    await work()


class RawSender:
    """Sends any bytes that the test gives it."""

    def __init__(self, connection: phoenix_trio.QuicConnection, transfer_id: bytes = ID) -> None:
        self.connection = connection
        self.id = transfer_id

    async def open(self, kind: int, data: bytes = b"") -> phoenix_trio.SendStream:
        stream = await self.connection.open_send_stream()
        await stream.send_all(encode_varint(kind) + self.id + data)
        return stream

    async def verdict(self) -> int | None:
        """The code of the answer; ``None`` if the transfer is accepted."""
        async with await self.connection.accept_receive_stream() as stream:
            reader = StreamReader(stream)
            assert await reader.read_varint() == StreamKind.TRANSFER_REPLY
            assert await reader.read_exactly(16) == self.id
            match await read_record(reader):
                case Verdict(code=code):
                    return code
                case Accepted():
                    return None
                case record:
                    raise AssertionError(record)

    async def manifest(self, **fields: Any) -> phoenix_trio.SendStream:
        fields.setdefault("stripe_size", STRIPE)
        fields.setdefault("window", 16 * STRIPE)
        return await self.open(StreamKind.TRANSFER, encode_record(Manifest(**fields)))


async def stopped_with(stream: phoenix_trio.SendStream) -> int:
    with pytest.raises(phoenix_trio.StreamStopped) as caught, trio.fail_after(10):
        await stream.wait_stopped()
    return caught.value.error_code


@pytest.mark.parametrize(
    ("stripe", "code"),
    [
        (encode_stripe_header(16 * STRIPE, STRIPE), TransferCode.BEYOND_CREDIT),
        (encode_stripe_header(2**60, STRIPE), TransferCode.BEYOND_CREDIT),
        (encode_stripe_header(7, STRIPE), TransferCode.MALFORMED),
        (encode_stripe_header(0, STRIPE + 1), TransferCode.MALFORMED),
        (encode_stripe_header(0, 2**50), TransferCode.MALFORMED),
    ],
)
async def test_a_stripe_against_the_rules_ends_its_transfer_only(
    stripe: bytes, code: TransferCode, autojump_clock: MockClock
) -> None:
    async with two_hubs() as (client, sender, receiver):
        raw = RawSender(client)
        await raw.manifest()
        transfer = await receiver.accept()
        stream = await raw.open(StreamKind.STRIPES, stripe)
        assert await stopped_with(stream) == code
        with pytest.raises(phoenix_trio.TransferAbandoned) as caught:
            await transfer.read_all(max_size=10**6)
        assert caught.value.code == code
        await still_works(client, sender, receiver)


async def test_a_torn_stripe_does_not_count_and_may_come_again(
    autojump_clock: MockClock,
) -> None:
    data = os.urandom(STRIPE + 100)
    async with two_hubs(serve_sender=False) as (client, _, receiver):
        raw = RawSender(client)
        line = await raw.manifest(size=len(data))
        transfer = await receiver.accept()
        torn = await raw.open(StreamKind.STRIPES, encode_stripe_header(0, STRIPE) + data[:1000])
        await torn.send_eof()
        await trio.sleep(1)
        assert transfer.bytes_received == 0
        again = await raw.open(
            StreamKind.STRIPES,
            encode_stripe_header(STRIPE, 100)
            + data[STRIPE:]
            + encode_stripe_header(0, STRIPE)
            + data[:STRIPE]
            + encode_stripe_header(0, STRIPE)  # twice: the second does not count
            + bytes(STRIPE),
        )
        await line.send_all(encode_record(End(len(data), hashlib.sha256(data).digest())))
        assert await transfer.read_all(max_size=10**6) == data
        await transfer.confirm()
        await again.send_eof()
        assert receiver.incoming == 0


async def test_a_wrong_checksum_is_found(autojump_clock: MockClock) -> None:
    data = os.urandom(STRIPE)
    async with two_hubs(serve_sender=False) as (client, _, receiver):
        raw = RawSender(client)
        line = await raw.manifest(size=len(data))
        transfer = await receiver.accept()
        await raw.open(StreamKind.STRIPES, encode_stripe_header(0, STRIPE) + data)
        await line.send_all(encode_record(End(len(data), bytes(32))))
        with pytest.raises(phoenix_trio.ChecksumMismatch):
            await transfer.read_all(max_size=10**6)
        assert receiver.incoming == 0


@pytest.mark.parametrize(
    "records",
    [
        encode_record(Credit(5)),
        b"\x02\x03abc",
        b"\x41",
        encode_record(End(100, bytes(32))) + encode_record(End(200, bytes(32))),
        b"\x02" + encode_varint(2**40),
    ],
)
async def test_records_against_the_rules_end_their_transfer_only(
    records: bytes, autojump_clock: MockClock
) -> None:
    async with two_hubs() as (client, sender, receiver):
        raw = RawSender(client)
        line = await raw.manifest()
        transfer = await receiver.accept()
        await line.send_all(records)
        if records != b"\x41":
            assert await stopped_with(line) == TransferCode.MALFORMED
        else:
            await line.send_eof()
        with pytest.raises(phoenix_trio.TransferAbandoned), trio.fail_after(10):
            await transfer.read_all(max_size=10**6)
        await still_works(client, sender, receiver)


@pytest.mark.parametrize("kind", [StreamKind.STRIPES, StreamKind.TRANSFER_REPLY])
async def test_streams_of_transfers_which_nobody_knows_are_refused(
    kind: StreamKind, autojump_clock: MockClock
) -> None:
    async with two_hubs() as (client, sender, receiver):
        stream = await RawSender(client).open(kind, encode_stripe_header(0, 10))
        code = await stopped_with(stream)
        assert code in (TransferCode.UNKNOWN_TRANSFER, 0)
        await still_works(client, sender, receiver)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"version": 9}, TransferCode.UNSUPPORTED),
        ({"checksum": 9}, TransferCode.UNSUPPORTED),
        ({"continues": True}, TransferCode.UNKNOWN_TRANSFER),
    ],
)
async def test_a_manifest_which_is_not_understood_gets_a_verdict(
    fields: dict[str, Any], code: TransferCode, autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(serve_hub, server, TransferHub())
        await RawSender(client).manifest(**fields)
        reply = StreamReader(await client.accept_receive_stream())
        assert await reader_kind(reply) == StreamKind.TRANSFER_REPLY
        assert await reply.read_exactly(16) == ID
        assert await reply.read_varint() == 6  # VERDICT
        payload = await reply.read_frame(100)
        assert payload is not None
        first = encode_varint(code)
        assert payload.startswith(first)
        nursery.cancel_scope.cancel()


async def reader_kind(reader: StreamReader) -> int | None:
    return await reader.read_varint()


async def test_a_repeated_manifest_which_differs_is_a_conflict(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):
        raw = RawSender(client)
        await raw.manifest(size=100)
        transfer = await receiver.accept()
        await raw.manifest(size=101)
        await trio.sleep(1)
        assert receiver.incoming == 1
        await transfer.aclose()
        await still_works(client, sender, receiver)


async def test_a_sender_which_does_not_come_back_is_given_up(autojump_clock: MockClock) -> None:
    async with two_hubs(resume_timeout=5.0) as (client, _, receiver):
        await RawSender(client).manifest(size=STRIPE)
        transfer: IncomingTransfer = await receiver.accept()
        started = trio.current_time()
        client.abort(9)
        with pytest.raises(phoenix_trio.TransferInterrupted):
            await transfer.read_all(max_size=10**6)
        assert 4 < trio.current_time() - started < 7
        assert receiver.incoming == 0


async def test_an_interrupted_transfer_is_let_go_in_time_though_nobody_looks(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs(serve_sender=False, resume_timeout=5.0) as (client, _, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.give_up_in_time)
            raw = RawSender(client)
            await raw.manifest(size=4 * STRIPE)
            await trio.sleep(1)
            stripes = await raw.open(StreamKind.STRIPES)
            for number in (0, 1):
                await stripes.send_all(encode_stripe_header(number * STRIPE, STRIPE))
                await stripes.send_all(bytes(STRIPE))
            await trio.sleep(1)
            (transfer,) = receiver._incoming.values()
            window = weakref.ref(transfer._window)
            assert transfer.bytes_received == 2 * STRIPE
            del transfer
            client.abort(9)
            await trio.sleep(4.9)
            assert len(receiver._incoming) == 1
            await trio.sleep(1)
            assert not receiver._incoming
            gc.collect()
            assert window() is None
            nursery.cancel_scope.cancel()


async def test_who_gives_up_in_time_sleeps_until_it_is_time(autojump_clock: MockClock) -> None:
    async with two_hubs(serve_sender=False, resume_timeout=1000.0) as (client, _, receiver):
        async with trio.open_nursery() as nursery:
            task: trio.lowlevel.Task = await nursery.start(report, receiver.give_up_in_time)
            counter = CountSteps(task)
            trio.lowlevel.add_instrument(counter)
            await RawSender(client).manifest(size=4 * STRIPE)
            await trio.sleep(1)
            client.abort(9)
            await trio.sleep(2000)
            assert not receiver._incoming
            assert counter.steps < 10
            trio.lowlevel.remove_instrument(counter)
            nursery.cancel_scope.cancel()


async def test_nobody_who_floods_a_hub_with_transfers_takes_more_than_its_memory(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs(max_transfers=3, max_transfers_per_peer=3, resume_timeout=5.0) as (
        client,
        sender,
        receiver,
    ):
        for number in range(50):
            stream = await client.open_send_stream()
            await stream.send_all(
                encode_varint(StreamKind.TRANSFER)
                + number.to_bytes(16, "big")
                + encode_record(Manifest(stripe_size=STRIPE, window=2**50))
            )
            await trio.sleep(0.05)
            stream.reset()
        assert receiver.incoming <= 3
        while receiver._queue:
            await (await receiver.accept()).aclose()
        await still_works(client, sender, receiver)
