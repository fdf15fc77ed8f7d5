"""Addresses which change, several addresses, full sockets: over the simulated network."""

from __future__ import annotations

import random
from functools import partial

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    client_tls,
    connected_pair,
    server_tls,
    stream_pair,
)


@pytest.mark.parametrize("new_address", [None, "192.0.2.9"])
async def test_a_transfer_survives_a_nat_rebinding(
    new_address: str | None, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01, bandwidth=10_000_000)
    async with connected_pair(network) as (client, server):
        before = server.peer_address
        ours, theirs = await stream_pair(client, server)
        data = random.Random(2).randbytes(1_000_000)
        received = bytearray()

        async def send() -> None:
            await ours.send_all(data)
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in theirs:
                received += chunk
                if len(received) > 300_000 and server.peer_address == before:
                    network.host(CLIENT).rebind(new_address)
        assert received == data
        assert server.peer_address != before
        assert new_address is None or server.peer_address[0] == new_address
        await theirs.send_all(b"back")
        assert await ours.receive_some() == b"back"


async def test_an_idle_connection_survives_a_rebinding_by_its_keep_alive(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(keep_alive=5.0)
    async with connected_pair(network, client_config=config) as (client, server):
        ours, theirs = await stream_pair(client, server)
        for _ in range(5):
            network.host(CLIENT).rebind()
            await trio.sleep(60)
        await theirs.send_all(b"found you")
        assert await ours.receive_some() == b"found you"


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            await stream.send_all(await stream.receive_some())


async def serve_on(nursery: trio.Nursery, network: SimulatedNetwork, host: str) -> None:
    await nursery.start(
        partial(
            phoenix_trio.serve,
            answer,
            PORT,
            tls=server_tls(),
            alpn=ALPN,
            network=network.host(host),
        )
    )


def dial(network: SimulatedNetwork, name: str, **config: float):  # type: ignore[no-untyped-def]
    return phoenix_trio.open_connection(
        name,
        PORT,
        tls=client_tls(server_name=SERVER),
        alpn=ALPN,
        network=network.host(CLIENT),
        config=TransportConfig(**config),  # type: ignore[arg-type]
    )


async def test_the_second_address_is_tried_after_a_quarter_of_a_second(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("two.example", "2001:db8::dead", SERVER)
    async with trio.open_nursery() as nursery:
        await serve_on(nursery, network, SERVER)
        started = trio.current_time()
        async with dial(network, "two.example") as connection:
            assert 0.25 <= trio.current_time() - started < 0.35
            assert connection.peer_address == (SERVER, PORT)
        nursery.cancel_scope.cancel()


async def test_a_slow_first_address_which_loses_is_given_up(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("two.example", "10.0.0.3", SERVER)
    for there, back in (("10.0.0.3", CLIENT), (CLIENT, "10.0.0.3")):
        network.link(there, back).set_conditions(delay=0.3)
    async with trio.open_nursery() as nursery:
        await serve_on(nursery, network, SERVER)
        await serve_on(nursery, network, "10.0.0.3")
        async with dial(network, "two.example") as connection:
            assert connection.peer_address == (SERVER, PORT)
            await trio.sleep(5)
            stream = await connection.open_stream()
            await stream.send_all(b"works")
            assert await stream.receive_some() == b"works"
        nursery.cancel_scope.cancel()


async def test_when_all_addresses_fail_the_error_names_them(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("none.example", "10.0.0.7", "10.0.0.8")
    with pytest.raises(phoenix_trio.HandshakeTimedOut) as caught:
        async with dial(network, "none.example", max_idle_timeout=2.0):
            pass
    assert "10.0.0.8" in "".join(caught.value.__notes__)


async def test_a_path_which_carries_1200_bytes_only_is_enough(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, mtu=1200)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(100_000))
        await ours.wait_acked()
        await theirs.aclose()
    assert network.statistics().too_large == 0


async def test_packets_which_did_not_fit_into_the_socket_are_kept(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        socket = client._driver.socket
        data = random.Random(3).randbytes(400_000)
        received = bytearray()

        async def clog() -> None:
            for _ in range(20):
                socket.block_sending = True  # type: ignore[attr-defined]
                await trio.sleep(0.02)
                socket.unblock_sending()  # type: ignore[attr-defined]
                await trio.sleep(0.005)

        async def send() -> None:
            await ours.send_all(data)
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clog)
            nursery.start_soon(send)
            async for chunk in theirs:
                received += chunk
        assert received == data
        assert client.statistics().packets_lost == 0, "nothing built was thrown away"
        assert socket.statistics.send_blocked > 0
