"""The facts that the pool reads from a connection: spare stream credit, and congestion."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair


async def test_available_streams_fall_with_each_stream_and_return_after_its_end(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(max_bidirectional_streams=4)
    async with connected_pair(server_config=config) as (client, server):
        assert client.available_streams == 4
        streams = [await client.open_stream() for _ in range(4)]
        assert client.available_streams == 0
        with trio.move_on_after(1) as scope:
            await client.open_stream()
        assert scope.cancelled_caught, "the property promised no stream, and there was one"
        for stream in streams:
            await stream.send_all(b"x")
            async with await server.accept_stream():
                pass
            await stream.aclose()
        await trio.sleep(1)
        # (The peer grants new credit in batches, and not before half of the old one is used.)
        available = client.available_streams
        assert 2 <= available <= 4
        with trio.fail_after(1):
            for _ in range(available):
                await client.open_stream()


async def test_available_streams_do_not_count_unidirectional_ones(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        before = client.available_streams, server.available_streams
        await client.open_send_stream()
        await server.open_send_stream()
        assert (client.available_streams, server.available_streams) == before


async def test_a_connection_which_is_closing_has_no_streams_available(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        stream = await client.open_stream()
        await stream.send_all(b"x" * 100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            await trio.sleep(0.001)
            assert not client.is_closed
            assert client.available_streams == 0
        assert client.is_closed
        assert client.available_streams == 0
        assert not client.is_congested
        await server.wait_closed()


async def test_a_connection_is_congested_while_more_waits_than_the_path_takes_in_a_round_trip(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.05, bandwidth=100_000, seed=1)
    async with connected_pair(network) as (client, server):
        assert not client.is_congested
        stream = await client.open_stream()
        await stream.send_all(b"x" * 500)
        assert not client.is_congested
        await stream.send_all(bytes(500_000))
        await trio.sleep(0.05)
        assert client.is_congested
        theirs = await server.accept_stream()
        received = 0
        while received < 500_500:
            received += len(await theirs.receive_some())
        await stream.wait_acked()
        assert not client.is_congested


async def test_a_peer_which_does_not_read_is_no_congestion(autojump_clock: MockClock) -> None:
    config = TransportConfig(receive_buffer_size=64 * 1024, stream_receive_buffer_size=64 * 1024)
    async with connected_pair(server_config=config) as (client, server):
        stream = await client.open_stream()
        await stream.send_all(bytes(1_000_000))
        await server.accept_stream()
        await trio.sleep(5)
        assert client.statistics().send_buffer_bytes > 500_000
        assert not client.is_congested


async def test_single_facts_are_those_of_the_statistics(autojump_clock: MockClock) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01)) as (client, server):

        def compare() -> None:
            facts = client.statistics()
            assert client.congestion_window == facts.congestion_window
            assert client.rtt_smoothed == facts.rtt_smoothed
            assert client.path_mtu == facts.path_mtu

        compare()
        assert client.rtt_smoothed is not None
        before = client.congestion_window, client.path_mtu
        sender = await client.open_send_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, bytes(1_000_000))
            receiver = await server.accept_receive_stream()
            received = 0
            while received < 1_000_000:
                received += len(await receiver.receive_some())
                compare()
        assert client.congestion_window > before[0]
        assert client.path_mtu > before[1]
        await client.aclose()
        await trio.sleep(60)
        compare()
        assert client.congestion_window > before[0]
