"""Striped transfers with a stalled sender: places and memory are free again in time."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransferCode
from phoenix_trio.pool.stall_clock import LEAST_PROGRESS, StallClock
from phoenix_trio.pool.transfer_records import encode_stripe_header
from phoenix_trio.streams import StreamKind
from tests.hostile.conftest import Figure
from tests.pool.test_transfer_hub import STRIPE, RawSender, no_threads, two_hubs

__all__ = ["no_threads"]  # a fixture: virtual time does not wait for threads

SILENT = 120.0

#: The connection of a silent sender stays open.
STAYS = phoenix_trio.TransportConfig(keep_alive=5.0)


async def test_eight_transfers_which_send_nothing_free_their_places_in_time(
    autojump_clock: MockClock, figure: Figure
) -> None:
    async with (
        two_hubs(serve_sender=False, client_config=STAYS, max_transfers=16) as (
            client,
            _,
            receiver,
        ),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(receiver.give_up_in_time)
        lines = [await RawSender(client, bytes([n]) * 16).manifest(size=STRIPE) for n in range(8)]
        await trio.sleep(1)
        started = trio.current_time()
        assert len(receiver._incoming) == 8
        replies = [await client.accept_receive_stream() for _ in range(8)]
        ninth = RawSender(client, b"9" * 16)
        lines.append(await ninth.manifest(size=STRIPE))
        assert await ninth.verdict() == TransferCode.TOO_MANY_TRANSFERS
        while receiver._incoming:
            await trio.sleep(1)
            assert trio.current_time() - started < 1000
        figure("places free again after", trio.current_time() - started, "s")
        assert SILENT - 5 < trio.current_time() - started < SILENT + 5
        tenth = RawSender(client, b"t" * 16)
        lines.append(await tenth.manifest(size=STRIPE))
        assert await tenth.verdict() is None
        for reply in replies:
            reply.close()
        nursery.cancel_scope.cancel()


async def test_the_reader_and_the_sender_of_a_stalled_transfer_are_told(
    autojump_clock: MockClock,
) -> None:
    async with two_hubs(serve_sender=False, client_config=STAYS, idle_timeout=5.0) as (
        client,
        _,
        receiver,
    ):
        await RawSender(client).manifest(size=STRIPE)
        transfer = await receiver.accept()
        started = trio.current_time()
        with pytest.raises(phoenix_trio.TransferAbandoned, match="given up") as caught:
            await transfer.read_all(max_size=10**6)
        assert caught.value.code == TransferCode.STALLED
        assert 4 < trio.current_time() - started < 6


async def test_a_byte_now_and_then_is_no_progress(autojump_clock: MockClock) -> None:
    async with two_hubs(serve_sender=False, client_config=STAYS, idle_timeout=10.0) as (
        client,
        _,
        receiver,
    ):
        raw = RawSender(client)
        line = await raw.manifest(size=STRIPE)
        await trio.sleep(1)
        stripes = await raw.open(StreamKind.STRIPES)
        await stripes.send_all(encode_stripe_header(0, STRIPE))
        sent = 0
        with pytest.raises(phoenix_trio.StreamStopped):
            while True:
                await stripes.send_all(b"x")
                sent += 1
                await trio.sleep(1)
                assert sent < 20
                _ = receiver.incoming
        assert receiver.incoming == 0
        line.close()


async def test_a_sender_which_only_comes_and_goes_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with (
        two_hubs(
            serve_sender=False, client_config=STAYS, idle_timeout=10.0, resume_timeout=60.0
        ) as (client, _, hub),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hub.give_up_in_time)
        started = trio.current_time()
        raw = RawSender(client)
        while trio.current_time() - started < 300:
            async with await raw.manifest(size=STRIPE):
                await trio.sleep(1)
            if not hub._incoming:
                break
            await trio.sleep(1)
        assert trio.current_time() - started < 30
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_is_not_the_senders_fault(autojump_clock: MockClock) -> None:
    data = bytes(64 * STRIPE)
    async with two_hubs(idle_timeout=5.0) as (client, sender, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.give_up_in_time)
            nursery.start_soon(lambda: sender.send([client], data, window=10**6))
            async with await receiver.accept() as transfer:
                got = 0
                async for chunk in transfer:
                    got += len(chunk)
                    await trio.sleep(20)
                assert got == len(data)
            nursery.cancel_scope.cancel()


async def test_a_peer_which_takes_no_answer_does_not_hold_the_reader(
    autojump_clock: MockClock,
) -> None:
    """The receiver cannot open the stream for its verdict, since the peer permits none."""
    network = phoenix_trio.testing.SimulatedNetwork(delay=0.01)
    async with two_hubs(
        network,
        serve_sender=False,
        idle_timeout=5.0,
        client_config=phoenix_trio.TransportConfig(max_unidirectional_streams=0),
    ) as (client, _, receiver):
        await RawSender(client).manifest(size=STRIPE)
        transfer = await receiver.accept()
        started = trio.current_time()
        await transfer.aclose()
        assert trio.current_time() - started < 6


async def test_who_looks_for_stalled_transfers_sleeps_between(autojump_clock: MockClock) -> None:
    """A transfer in good order costs one look in each timeout."""
    looks = 0
    async with two_hubs(idle_timeout=50.0, serve_sender=False, client_config=STAYS) as (
        client,
        _,
        receiver,
    ):
        expire = receiver._expire

        def count() -> None:
            nonlocal looks
            looks += 1
            expire()

        receiver._expire = count  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.give_up_in_time)
            raw = RawSender(client)
            line = await raw.manifest(size=16 * STRIPE)
            await trio.sleep(1)
            stripes = await raw.open(StreamKind.STRIPES)
            for number in range(16):
                await stripes.send_all(
                    encode_stripe_header(number * STRIPE, STRIPE) + bytes(STRIPE)
                )
                await trio.sleep(10)
            assert receiver._incoming
            assert looks < 12
            line.close()
            nursery.cancel_scope.cancel()


def test_the_clock_of_progress() -> None:
    clock = StallClock(10.0, now=0.0)
    assert clock.deadline == 10.0
    clock.note(LEAST_PROGRESS - 1, now=5.0)
    assert clock.deadline == 10.0, "not enough"
    clock.note(1, now=6.0)
    assert clock.deadline == 16.0
    clock.pause(4.0)
    assert clock.deadline == 20.0
    clock.restart_after_loss(now=10.0)
    clock.restart_after_loss(now=15.0)
    assert clock.deadline == 20.0, "excused once"
    clock.note(LEAST_PROGRESS, now=18.0)
    clock.restart_after_loss(now=20.0)
    assert clock.deadline == 30.0, "progress earns the next restart_after_loss"
    assert StallClock(math.inf, now=0.0).deadline == math.inf
