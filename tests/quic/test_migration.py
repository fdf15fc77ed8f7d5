"""Changing addresses, several addresses, full sockets: over the simulated network."""

from __future__ import annotations

import random
from functools import partial

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.engine import Run
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import engine_of, intercept
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    client_tls,
    connected_pair,
    server_tls,
    stream_pair,
    take_apart,
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
        network.host(CLIENT).rebind("192.0.2.9")
        await trio.sleep(60)
        assert server.peer_address[0] == "192.0.2.9"
        assert client.peer_address == (SERVER, PORT)
        await theirs.send_all(b"again")
        assert await ours.receive_some() == b"again"


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


async def test_when_both_addresses_fail_in_different_ways_both_are_named(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("two.example", SERVER, "10.0.0.8")
    async with trio.open_nursery() as nursery:
        await serve_on(nursery, network, SERVER)
        with pytest.raises(phoenix_trio.HandshakeFailed) as caught:
            async with phoenix_trio.open_connection(
                "two.example",
                PORT,
                tls=client_tls(server_name=SERVER),
                alpn=("other/1",),
                network=network.host(CLIENT),
                config=TransportConfig(max_idle_timeout=2.0),
            ):
                pass
        assert isinstance(caught.value, phoenix_trio.NoCommonProtocol)
        notes = "".join(caught.value.__notes__)
        assert "10.0.0.8" in notes
        nursery.cancel_scope.cancel()


async def test_a_loser_which_would_complete_late_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    """Its answer comes after the winner is known: no connection and no socket stays."""
    network = SimulatedNetwork(delay=0.01)
    network.add_name("two.example", "10.0.0.3", SERVER)
    for source, destination in (("10.0.0.3", CLIENT), (CLIENT, "10.0.0.3")):
        network.link(source, destination).set_conditions(delay=0.13)
    open_networks = [network.host(host) for host in ("10.0.0.3", SERVER, CLIENT)]
    async with (
        phoenix_trio.Endpoint.open(port=PORT, network=open_networks[0]) as slow,
        phoenix_trio.Endpoint.open(port=PORT, network=open_networks[1]) as quick,
        phoenix_trio.Endpoint.open(network=open_networks[2]) as client,
    ):
        slow.listen(tls=server_tls(), alpn=ALPN)
        quick.listen(tls=server_tls(), alpn=ALPN)
        async with client.connect(
            "two.example", PORT, tls=client_tls(server_name=SERVER), alpn=ALPN
        ) as connection:
            # 0.26 s of the first, or 0.25 and 0.02 s of the second: a close race.
            loser = slow if connection.peer_address[0] == SERVER else quick
            await trio.sleep(10)
            assert client.statistics().connections == 1
            assert loser.statistics().connections == 0
            assert loser.statistics().handshakes == 0
            await connection.ping()
        await trio.sleep(10)
        for endpoint in (slow, quick, client):
            assert endpoint.statistics().connections == 0
    assert not network._sockets


@pytest.mark.parametrize("after", [0.0, 0.1, 0.24, 0.26, 0.27, 0.3, 0.5])
async def test_dialling_two_addresses_can_be_cancelled_at_any_time(
    after: float, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.1)
    network.add_name("two.example", "10.0.0.9", SERVER)
    async with (
        phoenix_trio.Endpoint.open(port=PORT, network=network.host(SERVER)) as server,
        phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as client,
    ):
        server.listen(tls=server_tls(), alpn=ALPN)
        with trio.move_on_after(after):
            async with client.connect(
                "two.example", PORT, tls=client_tls(server_name=SERVER), alpn=ALPN
            ) as connection:
                await connection.wait_closed()
        await trio.sleep(20)
        assert client.statistics().connections == 0
        assert server.statistics().connections == 0
        assert server.statistics().handshakes == 0


@pytest.mark.parametrize("new_address", [None, "192.0.2.9"])
@pytest.mark.parametrize("at", [0.005, 0.015, 0.025, 0.035])
async def test_a_rebinding_during_the_handshake_does_not_stop_it(
    at: float, new_address: str | None, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:
        await serve_on(nursery, network, SERVER)

        async def rebind() -> None:
            await trio.sleep(at)
            network.host(CLIENT).rebind(new_address)

        nursery.start_soon(rebind)
        with trio.fail_after(20):
            async with dial(network, SERVER) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
        nursery.cancel_scope.cancel()


async def test_hosts_may_have_ipv6_addresses(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("six.example", "2001:db8::1")
    async with trio.open_nursery() as nursery:
        await serve_on(nursery, network, "2001:db8::1")
        for name in ("six.example", "2001:DB8::1"):
            async with dial(network, name) as connection:
                assert connection.peer_address[:2] == ("2001:db8::1", PORT)
                stream = await connection.open_stream()
                await stream.send_all(b"six")
                assert await stream.receive_some() == b"six"
        nursery.cancel_scope.cancel()


async def test_a_connection_outlives_a_partition_shorter_than_its_idle_timeout(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(max_idle_timeout=30.0)
    async with connected_pair(network, config=config) as (client, server):
        ours, theirs = await stream_pair(client, server)
        network.partition(SERVER, CLIENT)
        await ours.send_all(b"patience")
        await trio.sleep(15)
        network.heal(SERVER, CLIENT)
        assert await theirs.receive_some() == b"patience"
        network.partition(SERVER, CLIENT)
        with pytest.raises(phoenix_trio.ConnectionTimedOut):
            await ours.receive_some()


async def test_a_copied_packet_with_a_forged_source_does_not_take_the_connection_away(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 9.3.2: an address without an answer to the challenge is given up."""
    network = SimulatedNetwork(delay=0.02)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        forged: list[Datagram] = []

        def tap(datagram: Datagram) -> Datagram | list[Datagram]:
            if datagram.source[0] == CLIENT and not forged:
                forged.append(Datagram(("192.0.2.66", 666), datagram.destination, datagram.data))
                return [forged[0], datagram]  # the copy comes first
            return datagram

        network.tap = tap
        await ours.send_all(b"one")
        assert await theirs.receive_some() == b"one"
        assert forged
        await theirs.send_all(bytes(100_000))
        received = 0
        with trio.fail_after(20):
            while received < 100_000:
                received += len(await ours.receive_some())
        await trio.sleep(1)
        await ours.send_all(b"two")
        assert await theirs.receive_some() == b"two"
        assert server.peer_address[0] == CLIENT


async def test_a_path_which_carries_1200_bytes_only_is_enough(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, mtu=1200)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(100_000))
        await ours.wait_acked()
        await theirs.aclose()
        assert client.statistics().path_mtu == server.statistics().path_mtu == 1200
    assert network.statistics().too_large < 20, "some probes of the path MTU, and nothing else"


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


async def test_packets_leave_in_the_order_in_which_they_were_built(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        socket = client._driver.socket
        engine = engine_of(client)
        built: list[bytes] = []
        accepted: list[bytes] = []
        transmit, send = engine.transmit, socket.send
        rng = random.Random(4)

        def watched_transmit(now: float, slab: bytearray | None = None) -> list[Run]:
            runs = transmit(now, slab)
            built.extend(take_apart(runs))
            return runs

        def clogging_send(data: bytes, address: tuple[str, int], mark: int = 0) -> bool:
            socket.block_sending = rng.random() < 0.2  # type: ignore[attr-defined]
            sent = send(data, address, mark)
            if sent:
                accepted.append(data)
            else:
                trio.lowlevel.spawn_system_task(unblock)
            return sent

        async def unblock() -> None:
            await trio.sleep(0.001)
            socket.unblock_sending()  # type: ignore[attr-defined]

        intercept(engine, "transmit", watched_transmit)
        monkeypatch.setattr(socket, "send", clogging_send)
        data = rng.randbytes(200_000)
        received = bytearray()

        async def send_all() -> None:
            await ours.send_all(data)
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            async for chunk in theirs:
                received += chunk
        assert received == data
        assert socket.statistics.send_blocked > 10
        assert accepted == built[: len(accepted)]
        assert len(accepted) > 120
