"""A sender's call returns when the receiving program has stored the transfer, or says why not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransferCode
from phoenix_trio.pool import IncomingTransfer, TransferHub, serve_hub
from phoenix_trio.testing import SimulatedNetwork
from tests.pool.test_transfer_hub import STRIPE, no_threads, still_works, two_hubs
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

__all__ = ["no_threads"]  # a fixture: virtual time does not wait for threads

DATA = os.urandom(20 * STRIPE + 7)

Dial = Callable[[], Awaitable[phoenix_trio.QuicConnection]]


class ReceivingProcess:
    """A program that can be killed and started anew, at the same address."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {"max_stripe_size": STRIPE, "window": 16 * STRIPE, **settings}
        self.hub = TransferHub(**self.settings)
        self.connections: list[phoenix_trio.QuicConnection] = []

    async def serve(self, connection: phoenix_trio.QuicConnection) -> None:
        self.connections.append(connection)
        await serve_hub(connection, self.hub)

    def lose_connections(self) -> None:
        for connection in self.connections:
            connection.abort(9)
        self.connections.clear()

    def restart(self) -> None:
        """Lose everything except the files on the disk."""
        self.hub = TransferHub(**self.settings)
        self.lose_connections()


@asynccontextmanager
async def a_receiver(
    network: SimulatedNetwork | None = None, **settings: Any
) -> AsyncIterator[tuple[TransferHub, ReceivingProcess, Dial]]:
    """The sender's hub, the receiver, and a function that opens a connection between the two."""
    network = network or SimulatedNetwork(delay=0.01)
    receiver = ReceivingProcess(**settings)
    sender = TransferHub()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                receiver.serve,
                PORT,
                host=SERVER,
                tls=server_tls(),
                alpn=ALPN,
                network=network.host(SERVER),
            )
        )
        host = network.host(CLIENT)

        async def hold(*, task_status: trio.TaskStatus[phoenix_trio.QuicConnection]) -> None:
            async with phoenix_trio.open_connection(
                SERVER, PORT, tls=client_tls(), alpn=ALPN, network=host
            ) as connection:
                task_status.started(connection)
                await serve_hub(connection, sender)

        async def dial() -> phoenix_trio.QuicConnection:
            connection: phoenix_trio.QuicConnection = await nursery.start(hold)
            return connection

        yield sender, receiver, dial
        nursery.cancel_scope.cancel()


async def test_the_senders_call_returns_when_the_program_has_left_its_block(
    autojump_clock: MockClock,
) -> None:
    left_at: list[float] = []
    async with two_hubs() as (client, sender, receiver):

        async def receive() -> None:
            async with await receiver.accept() as transfer:
                assert await transfer.read_all(max_size=10**6) == DATA
                await trio.sleep(500)  # a slow database
                assert transfer.is_verified
                assert not transfer.is_confirmed
                left_at.append(trio.current_time())
            assert transfer.is_confirmed

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await sender.send([client], DATA)
            assert left_at
            assert trio.current_time() - left_at[0] < 0.2
        await still_works(client, sender, receiver)


async def test_a_program_may_confirm_before_it_leaves_the_block(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            async with await receiver.accept() as transfer:
                async for _ in transfer:
                    pass
                await transfer.confirm()
                await transfer.confirm()
                await trio.sleep(500)
                raise LookupError("too late to matter to the sender")

        async def expect_it() -> None:
            with pytest.raises(LookupError):
                await receive()

        nursery.start_soon(expect_it)
        started = trio.current_time()
        await sender.send([client], DATA)
        assert trio.current_time() - started < 10


async def test_a_program_which_fails_after_reading_tells_the_sender_so(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):

        async def receive() -> None:
            with pytest.raises(LookupError):
                async with await receiver.accept() as transfer:
                    await transfer.read_all(max_size=10**6)
                    raise LookupError("the database is gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(
                phoenix_trio.TransferRefused, match="failed before it had stored"
            ) as caught:
                await sender.send([client], DATA)
        assert caught.value.code == TransferCode.NOT_STORED
        await still_works(client, sender, receiver)


async def test_a_program_which_is_cancelled_after_reading_tells_the_sender_so(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):

        async def receive() -> None:
            with trio.move_on_after(50):
                async with await receiver.accept() as transfer:
                    await transfer.read_all(max_size=10**6)
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(
                phoenix_trio.TransferRefused, match="left the transfer before it had stored"
            ) as caught:
                await sender.send([client], DATA)
        assert caught.value.code == TransferCode.CANCELLED
        await still_works(client, sender, receiver)


async def test_a_cancellation_while_the_block_is_left_does_not_take_the_confirmation_back(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def receive() -> None:
            with trio.CancelScope() as scope:
                async with await receiver.accept() as transfer:
                    await transfer.read_all(max_size=10**6)
                    scope.cancel()
            assert scope.cancelled_caught
            assert transfer.is_confirmed

        nursery.start_soon(receive)
        await sender.send([client], DATA)


async def test_a_receiver_which_never_confirms_holds_the_sender_no_longer_than_its_scope(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                transfer = await receiver.accept()
                await transfer.read_all(max_size=10**6)
                await trio.sleep(1005)
                with pytest.raises(phoenix_trio.TransferAbandoned):
                    await transfer.confirm()
                await transfer.aclose()

            nursery.start_soon(receive)
            with trio.move_on_after(1000) as scope:
                await sender.send([client], DATA)
            assert scope.cancelled_caught
        await still_works(client, sender, receiver)


async def test_what_was_not_read_to_its_end_cannot_be_confirmed(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(phoenix_trio.TransferRefused):
                await sender.send([client], DATA)

        nursery.start_soon(send)
        transfer = await receiver.accept()
        await anext(transfer)
        with pytest.raises(RuntimeError, match="after it was read to its end"):
            await transfer.confirm()
        await transfer.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await transfer.confirm()


async def verified(receiver: ReceivingProcess) -> IncomingTransfer:
    """A transfer that was read and not confirmed."""
    transfer = await receiver.hub.accept()
    await transfer.read_all(max_size=10**6)
    return transfer


async def test_a_connection_lost_before_the_confirmation_leaves_it_unknown(
    autojump_clock: MockClock,
) -> None:
    async with a_receiver() as (sender, receiver, dial):
        connection = await dial()

        async def lose() -> None:
            await verified(receiver)
            receiver.lose_connections()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            with pytest.raises(
                phoenix_trio.TransferUnconfirmed, match="unknown whether it is stored"
            ) as caught:
                await sender.send([connection], DATA)
        assert isinstance(caught.value, phoenix_trio.TransferInterrupted)
        # The receiver's program stores it in the end, and the same call gets the result.
        assert receiver.hub.incoming == 1
        (transfer,) = receiver.hub._incoming.values()
        await trio.sleep(1000)
        assert receiver.hub.incoming == 1, "what was verified is not given up"
        await transfer.confirm()
        assert receiver.hub.incoming == 0
        summary = await sender.send(
            [await dial()], DATA, transfer_id=caught.value.transfer_id, window=STRIPE
        )
        assert (summary.size, summary.bytes_skipped) == (len(DATA), len(DATA))


async def test_a_confirmation_finds_its_way_over_another_connection(
    autojump_clock: MockClock,
) -> None:
    async with a_receiver() as (sender, receiver, dial):
        connection = await dial()

        async def lose_and_confirm() -> None:
            transfer = await verified(receiver)
            receiver.lose_connections()
            await trio.sleep(20)
            await transfer.confirm()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_and_confirm)
            summary = await sender.send([connection], DATA, replace=dial)
        assert summary.size == len(DATA)
        assert summary.bytes_skipped == 0


@pytest.mark.parametrize("when", ["in the middle", "after the end"])
async def test_a_receiver_which_was_started_anew_interrupts_the_transfer(
    when: str, autojump_clock: MockClock
) -> None:
    data = DATA * 5 if when == "in the middle" else DATA
    async with a_receiver() as (sender, receiver, dial):
        connection = await dial()

        async def restart() -> None:
            if when == "in the middle":
                await anext(await receiver.hub.accept())
            else:
                await verified(receiver)
            await trio.sleep(1)
            receiver.restart()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart)
            with pytest.raises(
                phoenix_trio.TransferInterrupted, match="does not know the transfer any more"
            ) as caught:
                await sender.send([connection], data, replace=dial)
        assert isinstance(caught.value, phoenix_trio.TransferUnconfirmed) == (
            when == "after the end"
        )


async def test_other_data_under_the_id_of_a_stored_transfer_are_an_error(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                async with await receiver.accept() as transfer:
                    await transfer.read_all(max_size=10**6)

            nursery.start_soon(receive)
            await sender.send([client], DATA, transfer_id=b"i" * 16)
        again = await sender.send([client], DATA, transfer_id=b"i" * 16)
        assert again.bytes_skipped == len(DATA)
        assert again.stripes_sent == 0
        with pytest.raises(phoenix_trio.ChecksumMismatch, match="other data under this"):
            await sender.send([client], DATA[::-1], transfer_id=b"i" * 16)
        with pytest.raises(phoenix_trio.ChecksumMismatch, match="other data under this"):
            await sender.send([client], b"", transfer_id=b"i" * 16)


async def test_a_transfer_which_the_program_failed_to_store_can_be_sent_again(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs() as (client, sender, receiver):
        got: list[bytes] = []

        async def receive() -> None:
            with pytest.raises(LookupError):
                async with await receiver.accept() as transfer:
                    await transfer.read_all(max_size=10**6)
                    raise LookupError
            async with await receiver.accept() as transfer:
                got.append(await transfer.read_all(max_size=10**6))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(phoenix_trio.TransferRefused):
                await sender.send([client], DATA, transfer_id=b"i" * 16)
            summary = await sender.send([client], DATA, transfer_id=b"i" * 16)
        assert got == [DATA]
        assert summary.bytes_skipped == 0
