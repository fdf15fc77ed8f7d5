"""Ended connections are freed by reference counting alone, however they end."""

from __future__ import annotations

import gc
import logging
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.established.closing import ClosingConnection
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import (
    ENGINE_CLASSES,
    change_connection_id,
    engine_of,
    fail_when_reading,
    has_engine,
)
from tests.hostile.conftest import Figure
from tests.hostile.test_admission import Attacker
from tests.hostile.world import World
from tests.packets import sealed_initial
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

#: Objects that must not be left.
HEAVY = (*ENGINE_CLASSES, phoenix_trio.QuicConnection, phoenix_trio.QuicStream)


def census() -> dict[str, int]:
    """The number of living objects of each class of :data:`HEAVY`, garbage included."""
    found = dict.fromkeys((kind.__name__ for kind in HEAVY), 0)
    for each in gc.get_objects():
        for kind in HEAVY:
            if isinstance(each, kind):
                found[kind.__name__] += 1
    return found


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Only reference counting frees memory during the test."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Meeting:
    """A server and clients of one network; tests end their connections in many ways."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork(delay=0.005)
        self.server: phoenix_trio.Endpoint
        self.client: phoenix_trio.Endpoint
        self.listener: phoenix_trio.QuicListener

    def dial(self, **arguments: Any) -> Any:
        arguments.setdefault("tls", client_tls())
        arguments.setdefault("alpn", ALPN)
        return self.client.connect(SERVER, PORT, **arguments)

    async def talk(self, client: phoenix_trio.QuicConnection) -> phoenix_trio.QuicConnection:
        """Use streams of both kinds, datagrams, and one stream that is never accepted."""
        server = await self.listener.accept()
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(os.urandom(20_000))
        await theirs.receive_some()
        async with await client.open_send_stream() as one_way:
            await one_way.send_all(b"one way")
        await (await server.accept_receive_stream()).receive_some()
        await (await client.open_stream()).send_all(b"nobody accepts this")
        await server.send_datagram(b"datagram")
        await client.receive_datagram()
        await trio.sleep(0.1)
        return server


@asynccontextmanager
async def meeting(**config: Any) -> AsyncIterator[Meeting]:
    place = Meeting()
    async with (
        phoenix_trio.Endpoint.open(
            SERVER,
            PORT,
            network=place.network.host(SERVER),
            config=TransportConfig(**config),
        ) as place.server,
        phoenix_trio.Endpoint.open(
            network=place.network.host(CLIENT), config=TransportConfig(**config)
        ) as place.client,
    ):
        place.listener = place.server.listen(tls=server_tls(), alpn=ALPN)
        yield place


async def close_in_good_order(place: Meeting) -> None:
    async with place.dial() as client:
        server = await place.talk(client)
    await trio.sleep(0.1)
    assert server.is_closed


async def close_by_server(place: Meeting) -> None:
    async with place.dial() as client:
        await (await place.talk(client)).aclose()
        await client.wait_closed()


async def abort(place: Meeting) -> None:
    async with place.dial() as client:
        await place.talk(client)
        client.abort(7, "enough")


async def idle_timeout(place: Meeting) -> None:
    async with place.dial() as client:
        server = await place.talk(client)
        place.network.tap = lambda datagram: None
        await client.wait_closed()
        await server.wait_closed()
        place.network.tap = None


async def stateless_reset(place: Meeting) -> None:
    async with place.dial() as client:
        server = await place.talk(client)
        driver, token = server._driver, next(iter(engine_of(client).take_reset_tokens()))
        driver.socket.send_run(b"\x41" + os.urandom(30) + token, client_address(place))
        await trio.sleep(0.1)
        assert isinstance(client.close_reason, phoenix_trio.StatelessReset)
        server.abort()


def client_address(place: Meeting) -> tuple[str, int]:
    return (CLIENT, place.client.port)


async def failed_handshake_here(place: Meeting) -> None:
    """The client does not trust the server."""
    with pytest.raises(phoenix_trio.HandshakeFailed):
        async with place.dial(tls=phoenix_trio.ClientTLS(pinned_sha256="00" * 32)):
            pass


async def failed_handshake_there(place: Meeting) -> None:
    """The server finds no common protocol."""
    with pytest.raises(phoenix_trio.NoCommonProtocol):
        async with place.dial(alpn=("unknown",)):
            pass


async def failed_handshake_in_time(place: Meeting) -> None:
    """The client goes away in the middle."""
    place.network.tap = lambda datagram: datagram if datagram.source[0] == CLIENT else None
    with trio.move_on_after(0.05):
        async with place.dial():
            pass
    place.network.tap = None


async def refused(place: Meeting) -> None:
    await trio.sleep(5)  # until the places of the last connections are free
    async with place.dial() as first, place.dial() as second:
        await place.listener.accept()
        await place.listener.accept()
        with pytest.raises(phoenix_trio.ConnectionRefused):
            async with place.dial():
                pass
        first.abort()
        second.abort()


async def crash(place: Meeting) -> None:
    """The server's engine has an internal error."""
    async with place.dial() as client:
        server = await place.talk(client)
        logging.disable()  # (pytest would keep the traceback)
        try:
            fail_when_reading(engine_of(server))
            change_connection_id(engine_of(client))
            client._touch()
            await client.wait_closed()
            await server.wait_closed()
        finally:
            logging.disable(logging.NOTSET)


ENDS: list[Callable[[Meeting], Awaitable[None]]] = [
    close_in_good_order,
    close_by_server,
    abort,
    idle_timeout,
    stateless_reset,
    failed_handshake_here,
    failed_handshake_there,
    failed_handshake_in_time,
    refused,
    crash,
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_nothing_waits_for_the_cyclic_collector(
    end: Callable[[Meeting], Awaitable[None]], autojump_clock: MockClock, without_collector: None
) -> None:
    config: dict[str, Any] = {"max_connections_per_address": 2} if end is refused else {}
    async with meeting(max_idle_timeout=5.0, **config) as place:
        before = census()
        for _ in range(5):
            await end(place)
        await trio.sleep(30)
        assert place.server.statistics().connections == 0
        assert place.client.statistics().connections == 0
        assert census() == before
        for endpoint in (place.server, place.client):
            assert not endpoint._driver._table.by_connection_id
            assert not endpoint._driver._table.by_reset_key


@pytest.mark.parametrize("end", [abort, failed_handshake_there], ids=lambda end: end.__name__)
async def test_the_engine_is_freed_before_the_closing_period_is_over(
    end: Callable[[Meeting], Awaitable[None]], autojump_clock: MockClock, without_collector: None
) -> None:
    async with meeting() as place:
        before = census()
        await end(place)
        while place.listener._queue:
            await place.listener.accept()
        await trio.sleep(0.02)
        assert place.server.statistics().connections == 1
        assert census() == before
        await trio.sleep(10)
        assert place.server.statistics().connections == 0


async def test_streams_which_are_done_are_freed_while_the_connection_lives(
    autojump_clock: MockClock, without_collector: None
) -> None:
    async with meeting() as place, place.dial() as client:
        server = await place.listener.accept()
        before = census()
        for _ in range(20):
            async with await client.open_stream() as ours:
                await ours.send_all(b"question")
                await ours.send_eof()
                async with await server.accept_stream() as theirs:
                    await theirs.receive_some()
                    await theirs.send_all(b"answer")
                while await ours.receive_some():
                    pass
        await trio.sleep(1)
        del ours, theirs
        assert census() == before


async def test_what_was_known_of_a_connection_can_be_asked_after_its_end(
    autojump_clock: MockClock, without_collector: None
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        unaccepted = await client.open_stream()
        await unaccepted.send_all(b"later")
        acked = await client.open_send_stream()
        await acked.send_all(b"acknowledged")
        await acked.wait_acked()
        await theirs.send_all(b"unread")
        await trio.sleep(0.1)
        certificate = client.peer_certificate
        assert certificate is not None
        before = client.statistics()
        address, maximum = client.peer_address, client.max_datagram_size
        await ours.send_all(b"never acknowledged")
        server.abort(9, "over")
        await client.wait_closed()
        await trio.sleep(10)
        for connection in (client, server):
            assert not has_engine(connection)
            with pytest.raises((trio.ClosedResourceError, phoenix_trio.ConnectionBroken)):
                await connection.open_stream()
            with pytest.raises((trio.ClosedResourceError, phoenix_trio.ConnectionBroken)):
                await connection.update_keys()
        assert client.peer_certificate is certificate
        assert client.peer_address == address
        assert client.max_datagram_size == maximum
        assert client.available_streams == 0
        assert not client.is_congested
        assert isinstance(client.close_reason, phoenix_trio.ConnectionClosedByPeer)
        after = client.statistics()
        assert after.receive_buffer_bytes == before.receive_buffer_bytes == 6
        assert after.streams_opened == client.streams_opened == 3
        await acked.wait_acked()
        with pytest.raises(phoenix_trio.ConnectionBroken):
            await ours.wait_acked()
        assert await ours.receive_some() == b"unread"
        final = client.statistics()
        assert final.receive_buffer_bytes == 0
        assert final.stream_bytes_read == before.stream_bytes_read + 6
        with pytest.raises(phoenix_trio.ConnectionBroken):
            await ours.receive_some()
        late = await server.accept_stream()
        assert late.connection is server
        assert await late.receive_some() == b"later"
        late.reset()
        late.stop_receiving()
        await late.aclose()


async def test_a_failed_handshake_leaves_a_small_record_only(
    autojump_clock: MockClock, without_collector: None, figure: Figure
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(
            nursery,
            retry="never",
            max_handshakes=2000,
            max_handshakes_per_address=2000,
            max_failure_rate_per_address=2000,
        ).start()
        attacker = Attacker(alpn=("unknown",))
        await world.say(attacker.initial())
        attacks = [attacker.initial() for _ in range(150)]
        attacks += [
            sealed_initial(b"\x06\x00\x04\x01\x00\x00\x00", destination_cid=b"bad%05d" % number)
            for number in range(150)
        ]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for data in attacks:
                world.stranger.send(data, (SERVER, PORT))
                await trio.sleep(0.0005)
                world.stranger.receive(10)
            await trio.sleep(0.01)
            during = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert world.listener.statistics().handshakes_failed == 301
        left = world.listener.statistics().connections
        assert left > 250, "their closing periods last"
        figure("memory of a failed handshake in its closing period", during / left / 1024, "KiB")
        assert during / left < 5_000
        await trio.sleep(5)
        assert world.listener.statistics().connections == 0
        assert len(world.listener._driver._timers) < 300
        nursery.cancel_scope.cancel()


def test_a_draining_connection_is_silent() -> None:
    closing = ClosingConnection([], 5.0)
    assert closing.receive_run(bytes(2000), 1000, 700, None, 1.0) == 1700
    assert closing.receive_run(bytes(2000), 1400, 700, None, 1.0, 0, 1900) == 1900
    assert not closing.transmit(1.0)
    assert closing.next_deadline() == 5.0
    closing.on_timer(4.9)
    assert not closing.is_terminated
    closing.on_timer(5.0)
    assert closing.is_terminated


def test_an_engine_which_is_released_in_mid_handshake_is_freed(without_collector: None) -> None:
    before = census()
    for end_at in range(8):
        pair = EnginePair()
        for _ in range(end_at):
            pair.step()
        for side in pair.sides:
            side.engine.release()
            side.log.clear()
        del pair, side
    assert census() == before


async def test_connections_end_together_when_the_socket_fails(
    autojump_clock: MockClock, without_collector: None
) -> None:
    async with meeting() as place:
        before = census()
        client = await place.client._dial(SERVER, PORT, tls=client_tls(), alpn=ALPN, config=None)
        server = await place.talk(client)
        place.client._driver._fail(OSError("gone"))
        assert client.is_closed
        assert not place.client._driver.sinks
        server.abort()
        del client, server
        await trio.sleep(5)
        assert census() == before


def test_a_client_endpoint_leaves_nothing(without_collector: None) -> None:
    async def main() -> None:
        network = SimulatedNetwork(delay=0.005)
        async with trio.open_nursery() as nursery:

            async def handler(connection: phoenix_trio.QuicConnection) -> None:
                async for stream in connection.incoming_streams():
                    async with stream:
                        await stream.send_all(await stream.receive_some())

            await nursery.start(
                partial(
                    phoenix_trio.serve,
                    handler,
                    PORT,
                    tls=server_tls(),
                    alpn=ALPN,
                    network=network.host(SERVER),
                )
            )
            counts = []
            for _ in range(3):
                for _ in range(3):
                    async with phoenix_trio.open_connection(
                        SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
                    ) as client:
                        async with await client.open_stream() as stream:
                            await stream.send_all(b"x")
                            await stream.send_eof()
                            await stream.receive_some()
                await trio.sleep(40)
                del client, stream
                counts.append(census())
            assert counts[0] == counts[-1]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
