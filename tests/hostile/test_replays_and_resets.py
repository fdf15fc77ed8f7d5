"""Replays, forged stateless resets and streams that are reset at once change nothing."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import StreamReset, StreamStopped, TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, stream_ids
from tests.hostile.conftest import Figure
from tests.hostile.world import World
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    connected_pair,
    server_tls,
    stream_pair,
)


class Recorder:
    """Keeps each datagram towards an address; tap of the network."""

    def __init__(self, destination: str) -> None:
        self.destination = destination
        self.datagrams: list[Any] = []

    def __call__(self, datagram: Any) -> Any:
        if datagram.destination[0] == self.destination:
            self.datagrams.append(datagram)
        return datagram


async def test_replays_of_a_whole_connection_deliver_nothing_twice(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    to_server, to_client = Recorder(SERVER), Recorder(CLIENT)
    network.tap = lambda datagram: to_client(to_server(datagram))
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"once")
        await client.send_datagram(b"one")
        assert await theirs.receive_some() == b"once"
        assert await server.receive_datagram() == b"one"
        await trio.sleep(1)
        network.tap = None
        before = server.statistics(), client.statistics()
        generator = random.Random(3)
        replayed = to_server.datagrams + to_client.datagrams
        for _ in range(10):
            generator.shuffle(replayed)
            for datagram in replayed:
                network._send(datagram)
            await trio.sleep(0.1)
        after = server.statistics(), client.statistics()
        for now, then in zip(after, before, strict=True):
            assert now.stream_bytes_received == then.stream_bytes_received
            assert now.datagrams_received == then.datagrams_received
            assert now.streams_accepted == then.streams_accepted
        await ours.send_all(b"still")
        assert await theirs.receive_some() == b"still"


async def test_replays_from_another_address_do_not_move_a_connection(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 9.3: only the packet with the highest number can move it."""
    network = SimulatedNetwork(delay=0.01)
    recorder = network.tap = Recorder(SERVER)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        network.tap = None
        address = server.peer_address
        for datagram in recorder.datagrams:
            network._send(
                type(datagram)(("10.66.66.66", 4000), datagram.destination, datagram.data)
            )
        await trio.sleep(1)
        assert server.peer_address == address
        await theirs.send_all(b"to the right one")
        assert await ours.receive_some() == b"to the right one"


async def test_replayed_first_flights_of_an_ended_connection_start_no_old_stream(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        recorder = world.network.tap = Recorder(SERVER)
        await world.check_alive()
        await trio.sleep(20)  # the server has forgotten the connection and its IDs
        world.network.tap = None
        accepted = world.listener.statistics().connections_accepted
        for datagram in recorder.datagrams:
            await world.say(datagram.data)
        await trio.sleep(60)
        statistics = world.listener.statistics()
        assert statistics.connections_accepted == accepted
        assert statistics.connections == 0
        await world.check_alive()
        nursery.cancel_scope.cancel()


async def test_forged_stateless_resets_end_no_connection(autojump_clock: MockClock) -> None:
    """The token has 128 bits (RFC 9000 section 10.3.1)."""
    network = SimulatedNetwork(delay=0.01)
    to_server, to_client = Recorder(SERVER), Recorder(CLIENT)
    network.tap = lambda datagram: to_client(to_server(datagram))
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        network.tap = None
        samples = [to_server.datagrams[-1], to_client.datagrams[-1]]
        generator = random.Random(9)
        for number in range(3000):
            sample = samples[number % 2]
            connection_id = sample.data[1:9] if number % 3 else os.urandom(8)
            data = b"\x41" + connection_id + os.urandom(generator.choice((12, 20, 33, 200)))
            if number % 5 == 0:
                data = data[:-16] + sample.data[-16:]  # the tag of a true packet
            network._send(type(sample)(sample.source, sample.destination, data))
        await trio.sleep(1)
        await ours.send_all(b"alive")
        assert await theirs.receive_some() == b"alive"
        assert not client.is_closed
        assert not server.is_closed


def rapid_reset(pair: EnginePair, count: int) -> float:
    """Opens and resets streams as fast as the limit allows; processor seconds of the server."""
    server, client = pair.server, pair.client.engine
    assert server is not None
    spent = 0.0
    opened = 0
    for _ in range(count):
        if opened >= count:
            return spent
        packets = []
        while (stream_id := client.open_stream(unidirectional=False)) is not None:
            client.write(stream_id, b"GET /")
            client.reset_sending(stream_id, 1)
            client.let_go(stream_id, sending=True, receiving=True)
            opened += 1
        for data, _, size, _ in client.transmit(pair.now):
            packets += [bytes(data[at : at + size]) for at in range(0, len(data), size)]
        began = time.process_time()
        for packet in packets:
            server.engine.receive(packet, pair.client.address, pair.now)
        spent += time.process_time() - began
        server.gather(pair.now)
        for event in server.of(events.StreamOpened):
            server.engine.reset_sending(event.stream_id, 1)
            server.engine.let_go(event.stream_id, sending=True, receiving=True)
        server.log.clear()
        server.received.clear()
        pair.run(0.05)
    raise AssertionError(f"no credit after {opened} streams")


def test_streams_that_are_reset_at_once_cost_no_more_as_they_go_on(figure: Figure) -> None:
    pair = EnginePair().connect()
    rapid_reset(pair, 300)
    first = rapid_reset(pair, 1000)
    rapid_reset(pair, 3000)
    last = rapid_reset(pair, 1000)
    assert pair.server is not None
    engine = pair.server.engine
    assert not pair.server.of(events.Terminated)
    assert len(stream_ids(engine)) <= engine.config.max_bidirectional_streams + 1
    assert last < 5 * first + 0.05
    figure("server time a stream at first", first / 1000 * 1e6, "us")
    figure("server time a stream after 4,000 more", last / 1000 * 1e6, "us")


@pytest.mark.parametrize("kind", ["two-way", "one-way"])
async def test_streams_that_the_peer_resets_count_until_the_application_lets_go(
    kind: str, autojump_clock: MockClock
) -> None:
    """RFC 9000 section 4.6: else the queue of streams to accept would grow without end."""
    config = TransportConfig(max_bidirectional_streams=10, max_unidirectional_streams=10)
    async with connected_pair(server_config=config) as (client, server):
        opened = 0

        async def open_and_reset() -> None:
            nonlocal opened
            with trio.move_on_after(30):
                while True:
                    if kind == "two-way":
                        two_way = await client.open_stream()
                        two_way.stop_receiving(1)
                        stream = two_way.send_stream
                    else:
                        stream = await client.open_send_stream()
                    await stream.send_all(b"x")
                    stream.reset(1)
                    opened += 1

        await open_and_reset()
        assert opened == 10
        assert len(stream_ids(engine_of(server))) == 10
        for _ in range(5):
            if kind == "two-way":
                accepted = await server.accept_stream()
                with pytest.raises(StreamReset):
                    await accepted.receive_some()
                with pytest.raises(StreamStopped):
                    await accepted.send_all(b"y")
            else:
                with pytest.raises(StreamReset):
                    await (await server.accept_receive_stream()).receive_some()
        await open_and_reset()
        assert opened == 15
        for _ in range(10):
            if kind == "two-way":
                (await server.accept_stream()).close()
            else:
                (await server.accept_receive_stream()).close()
        await open_and_reset()
        assert opened == 25


async def test_a_flat_listener_bounds_the_streams_that_are_reset_before_they_are_accepted(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(max_bidirectional_streams=10)
    network = SimulatedNetwork(delay=0.01)
    listener = await phoenix_trio.open_stream_listener(
        PORT, tls=server_tls(), alpn=ALPN, config=config, network=network.host(SERVER)
    )
    opened = 0
    async with trio.open_nursery() as nursery:

        async def drive() -> None:
            await listener.accept()
            await trio.sleep_forever()

        nursery.start_soon(drive)
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
        ) as client:
            with trio.move_on_after(20):
                while True:
                    stream = await client.open_stream()
                    await stream.send_all(b"x")
                    stream.reset(1)
                    stream.stop_receiving(1)
                    opened += 1
            assert opened <= 11
            nursery.cancel_scope.cancel()
    await listener.aclose()


async def test_messages_that_are_reset_while_they_wait_count_until_they_are_taken(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(max_unidirectional_streams=10)
    network = SimulatedNetwork(delay=0.01)

    async def take_no_message(connection: phoenix_trio.PhoenixConnection) -> None:
        await trio.sleep(60)

    opened = 0
    async with (
        phoenix_trio.open_phoenix(
            "server", config=config, server_tls=server_tls(), network=network.host(SERVER)
        ) as phoenix,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(phoenix.serve, take_no_message, PORT))
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), network=network.host(CLIENT)
        ) as client:
            with trio.move_on_after(20):
                while True:
                    stream = await client.open_send_stream()
                    await stream.send_all(b"\x01\x00half a message")
                    await trio.sleep(0.05)
                    stream.reset(1)
                    opened += 1
            assert opened <= 11
        nursery.cancel_scope.cancel()
