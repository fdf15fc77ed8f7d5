"""A server which asks its clients to move to another address (RFC 9000 section 9.6)."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_quic_transport_parameters
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.handshake.parameters import LocalParameters, parse_parameters
from phoenix_trio.quic.preferred_address import preferred_addresses
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import engine_of, forbid_moves
from tests.hostile.world import echo
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

SECOND = "10.0.0.9"
FIRST_IPV6, SECOND_IPV6 = "2001:db8::1", "2001:db8::9"
CLIENT_IPV6, OTHER_CLIENT = "2001:db8::c", "10.0.0.77"
BOTH = (SECOND, SECOND_IPV6)


class World:
    """A server on a host with four addresses, of which it prefers some."""

    def __init__(self, preferred: Any = BOTH, **conditions: Any) -> None:
        self.preferred = preferred
        self.network = SimulatedNetwork(7, **{"delay": 0.01, **conditions})
        self.host = self.network.host(SERVER, SECOND, FIRST_IPV6, SECOND_IPV6)
        self.network.host(CLIENT, CLIENT_IPV6, OTHER_CLIENT)
        self.to_server: list[Datagram] = []
        self.from_server: list[Datagram] = []
        self.network.tap = self.watch
        self.connections: list[phoenix_trio.QuicConnection] = []

    def watch(self, datagram: Datagram) -> Datagram:
        from_server = datagram.source[1] == PORT
        (self.from_server if from_server else self.to_server).append(datagram)
        return datagram

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        self.connections.append(connection)
        await echo(connection)

    @asynccontextmanager
    async def serving(self, **config: Any) -> AsyncIterator[World]:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(
                    phoenix_trio.serve,
                    self.handle,
                    PORT,
                    tls=server_tls(),
                    alpn=ALPN,
                    config=TransportConfig(**config),
                    preferred_address=self.preferred,
                    network=self.host,
                )
            )
            yield self
            nursery.cancel_scope.cancel()

    def dial(self, address: str = SERVER) -> Any:
        return phoenix_trio.open_connection(
            address,
            PORT,
            tls=client_tls(server_name="localhost"),
            alpn=ALPN,
            network=self.network.host(CLIENT),
        )

    @property
    def server(self) -> phoenix_trio.QuicConnection:
        return self.connections[-1]


async def exchange(connection: phoenix_trio.QuicConnection, size: int) -> None:
    data = bytes(range(256)) * (size // 256)
    async with await connection.open_stream() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(partial(stream.send_all, data, end=True))
        assert await stream.receive_all(size) == data


def sources(datagrams: list[Datagram]) -> set[str]:
    return {datagram.source[0] for datagram in datagrams}


def connection_ids(datagrams: list[Datagram]) -> set[bytes]:
    return {datagram.data[1:9] for datagram in datagrams if datagram.data[0] < 0x80}


# ------------------------------------------------------------------ it works


@pytest.mark.parametrize("retry", ["never", "always"])
@pytest.mark.parametrize(("first", "second"), [(SERVER, SECOND), (FIRST_IPV6, SECOND_IPV6)])
async def test_a_client_moves_to_the_preferred_address_of_its_family(
    first: str, second: str, retry: str, autojump_clock: MockClock
) -> None:
    async with World().serving(retry=retry) as world, world.dial(first) as client:
        await exchange(client, 1024)
        await trio.sleep(0.1)
        assert client.peer_address == (second, PORT)
        await exchange(client, 1024)
        assert world.server.local_address[:2] == (second, PORT)
        at_first = [each for each in world.to_server if each.destination[0] == first]
        at_second = [each for each in world.to_server if each.destination[0] == second]
        # RFC 9000 section 9.5, and the connection ID of the transport parameter.
        assert not connection_ids(at_first) & connection_ids(at_second)
        world.from_server.clear()
        world.to_server.clear()
        await exchange(client, 100_000)
        assert sources(world.from_server) == {second}
        assert {each.destination[0] for each in world.to_server} == {second}
        assert client.paths()[0].peer_address[0] == second


async def test_the_first_packet_there_has_the_announced_connection_id(
    autojump_clock: MockClock,
) -> None:
    async with World().serving() as world, world.dial() as client:
        before = engine_of(world.server).connection_ids if world.connections else []
        await client.wait_confirmed()
        before = engine_of(world.server).connection_ids
        await trio.sleep(0.1)
        at_second = [each for each in world.to_server if each.destination[0] == SECOND]
        assert at_second[0].data[1:9] == before[1]
        assert len(at_second[0].data) == 1200
        after = engine_of(world.server).connection_ids
        assert len(after) == len(before) == 8, "as many as the client keeps"
        assert before[0] not in after, "that of the handshake is retired"


@pytest.mark.parametrize(
    ("preferred", "address"),
    [
        (None, SERVER),
        (SECOND_IPV6, SERVER),
        (SECOND, FIRST_IPV6),
        (SERVER, SERVER),
        ((SECOND, PORT + 1), SERVER),  # nothing listens there
        ("127.0.0.1", SERVER),  # of use for request forgery (section 21.5.6)
    ],
)
async def test_a_client_stays_where_no_address_is_of_use(
    preferred: Any, address: str, autojump_clock: MockClock
) -> None:
    async with World(preferred).serving() as world, world.dial(address) as client:
        await exchange(client, 1024)
        await trio.sleep(10)
        await exchange(client, 100_000)
        assert client.peer_address == (address, PORT)
        assert world.server.local_address[:2] == (address, PORT)


async def test_a_client_stays_where_nothing_answers_at_the_preferred_address(
    autojump_clock: MockClock,
) -> None:
    async with World().serving() as world:
        world.network.partition(CLIENT, SECOND)
        async with world.dial() as client:
            await exchange(client, 100_000)
            await trio.sleep(10)
            await exchange(client, 100_000)
            assert client.peer_address == (SERVER, PORT)
        tried = [each for each in world.to_server if each.destination[0] == SECOND]
        assert 1 <= len(tried) <= 5
        assert {len(each.data) for each in tried} == {1200}


@pytest.mark.parametrize(
    "faults",
    [{"loss": 0.05}, {"reorder": 0.3, "duplicate": 0.2, "jitter": 0.02}],
    ids=["loss", "reordering"],
)
async def test_a_transfer_goes_on_while_the_client_moves(
    faults: dict[str, float], autojump_clock: MockClock
) -> None:
    async with World(**faults).serving() as world:
        for _ in range(5):
            async with world.dial() as client:
                await exchange(client, 200_192)
                await trio.sleep(10)
                assert client.peer_address == (SECOND, PORT)
                await exchange(client, 200_192)


async def test_an_endpoint_and_both_listeners_take_the_option(autojump_clock: MockClock) -> None:
    for open_one in (phoenix_trio.open_listener, phoenix_trio.open_stream_listener):
        world = World()
        listener = await open_one(
            PORT, tls=server_tls(), alpn=ALPN, preferred_address=BOTH, network=world.host
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            async with world.dial() as client:
                await client.wait_confirmed()
                nursery.start_soon(listener.accept)
                await trio.sleep(1)
                assert client.peer_address == (SECOND, PORT)
            nursery.cancel_scope.cancel()
        await listener.aclose()


# ------------------------------------------------------------------ hostile networks, restarts


async def test_a_packet_led_there_by_others_does_not_move_the_server(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 9.6.2: it stays until the path is validated."""
    world = World()
    async with world.serving():
        world.network.partition(CLIENT, SECOND)
        async with world.dial() as client:
            await exchange(client, 1024)
            await trio.sleep(10)
            world.network.heal(CLIENT, SECOND)
            world.from_server.clear()
            led: list[Datagram] = []
            in_use: set[str] = set()

            def lead(datagram: Datagram) -> Datagram | None:
                in_use.add(world.server.local_address[0])
                if datagram.source[1] == PORT and datagram.source[0] == SECOND:
                    world.from_server.append(datagram)
                    return None
                if datagram.destination == (SERVER, PORT) and not led:
                    led.append(Datagram(datagram.source, (SECOND, PORT), datagram.data))
                    return led[0]
                return world.watch(datagram)

            world.network.tap = lead
            await exchange(client, 256)
            assert led
            assert in_use == {SERVER}
            challenges = [each for each in world.from_server if each.source[0] == SECOND]
            assert 1 <= len(challenges) <= 5, "which nothing answers"
            assert sum(len(each.data) for each in challenges) <= 3 * len(led[0].data)


async def test_a_restarted_server_resets_clients_there(autojump_clock: MockClock) -> None:
    """The stateless reset token of the announced connection ID is right."""
    world = World()
    tls = server_tls()
    world.network.host(CLIENT)

    @asynccontextmanager
    async def listening() -> AsyncIterator[phoenix_trio.Endpoint]:
        async with phoenix_trio.Endpoint.open(None, PORT, network=world.host) as endpoint:
            endpoint.listen(tls=tls, alpn=ALPN, preferred_address=BOTH)
            yield endpoint

    async with listening() as endpoint:
        async with world.dial() as client:
            await client.wait_confirmed()
            await trio.sleep(0.1)
            assert client.peer_address == (SECOND, PORT)
            for address in (SERVER, SECOND):
                world.network.partition(CLIENT, address)
            endpoint.close()
            await trio.sleep(1)
            for address in (SERVER, SECOND):
                world.network.heal(CLIENT, address)
            async with phoenix_trio.Endpoint.open(None, PORT, network=world.host) as again:
                again.listen(tls=tls, alpn=ALPN)
                with pytest.raises(phoenix_trio.StatelessReset):
                    await client.ping()


# ------------------------------------------------------------------ moves of the client


async def test_moves_may_be_forbidden_at_the_first_address_alone(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 18.2, disable_active_migration."""
    world = World()
    async with world.serving():
        world.network.partition(CLIENT, SECOND)
        async with world.dial() as client:
            forbid_moves(engine_of(client))
            with pytest.raises(phoenix_trio.MigrationForbidden):
                await client.migrate(OTHER_CLIENT)
            assert client.peer_address == (SERVER, PORT)
            world.network.heal(CLIENT, SECOND)
            await trio.sleep(5)
            assert client.peer_address == (SECOND, PORT)
            await client.migrate(OTHER_CLIENT)
            await exchange(client, 10_240)
            assert world.server.peer_address[0] == OTHER_CLIENT
            assert world.server.local_address[:2] == (SECOND, PORT)


async def test_a_late_answer_does_not_take_back_a_client_which_has_moved(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with world.serving():
        world.network.partition(CLIENT, SECOND)
        async with world.dial() as client:
            await client.migrate(OTHER_CLIENT)
            world.network.heal(CLIENT, SECOND)
            await trio.sleep(10)
            await exchange(client, 10_240)
            assert client.local_address[0] == OTHER_CLIENT
            assert world.server.peer_address[0] == OTHER_CLIENT


# ------------------------------------------------------------------ bytes and arguments


def test_the_transport_parameter_is_that_of_the_rfc() -> None:
    """RFC 9000 section 18.2, figure 22."""
    found = preferred_addresses([(SECOND_IPV6, 9), SECOND], 4433)
    content = found.build(b"connection", bytes(range(16)))
    assert content.hex() == (
        "0a000009" + "1151" + "20010db8000000000000000000000009" + "0009"
        "0a" + b"connection".hex() + bytes(range(16)).hex()
    )  # fmt: skip
    only = preferred_addresses((SECOND, 1), 4433).build(b"c", bytes(16))
    assert only == bytes((10, 0, 0, 9, 0, 1)) + bytes(18) + b"\x01c" + bytes(16)
    only = preferred_addresses(SECOND_IPV6, 1).build(b"c", bytes(16))
    assert only[:6] == bytes(6)
    parameters = LocalParameters(
        idle_timeout=30.0,
        max_data=1,
        max_stream_data=1,
        max_streams_bidi=1,
        max_streams_uni=1,
        max_datagram_frame_size=0,
    ).build(source_cid=b"source", version=1, versions=[1], preferred_address=content)
    theirs = pull_quic_transport_parameters(Buffer(data=parameters)).preferred_address
    assert theirs is not None
    assert (theirs.ipv4_address, theirs.ipv6_address) == ((SECOND, 4433), (SECOND_IPV6, 9))
    assert (theirs.connection_id, theirs.stateless_reset_token) == (
        b"connection",
        bytes(range(16)),
    )
    ours = parse_parameters(parameters, of_server=True).peer.preferred_address
    assert ours is not None
    assert (ours.ipv4, ours.ipv6) == ((SECOND, 4433), (SECOND_IPV6, 9))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (5, TypeError, "must be an address"),
        (b"10.0.0.9", TypeError, "must be an address"),
        ([5], TypeError, "must be an address"),
        ((SECOND, "4433"), ValueError, "'4433' is not a numeric address"),
        ([], ValueError, "no address"),
        ("example.org", ValueError, "'example.org' is not a numeric address"),
        ((SECOND, 0), ValueError, "must be 1 to 65535, not 0"),
        ((SECOND, 65536), ValueError, "not 65536"),
        ([SECOND, (SERVER, 1)], ValueError, "two IPv4"),
        ([SECOND_IPV6, FIRST_IPV6], ValueError, "two IPv6"),
        ("0.0.0.0", ValueError, "not the address of one host"),
        ("::", ValueError, "not the address of one host"),
        ("224.0.0.1", ValueError, "not the address of one host"),
        ("255.255.255.255", ValueError, "not the address of one host"),
        ("fe80::1%eth0", ValueError, "cannot be told"),
        ("::ffff:10.0.0.9", ValueError, "cannot be told"),
    ],
)
async def test_addresses_which_cannot_be_announced_are_refused(
    value: Any, error: type[Exception], text: str, autojump_clock: MockClock
) -> None:
    async with phoenix_trio.Endpoint.open(None, PORT, network=World().host) as endpoint:
        with pytest.raises(error, match=text):
            endpoint.listen(tls=server_tls(), alpn=ALPN, preferred_address=value)
        endpoint.listen(tls=server_tls(), alpn=ALPN)


async def test_a_port_shared_with_other_processes_has_no_preferred_address() -> None:
    async with phoenix_trio.Endpoint.open("127.0.0.1", reuse_port=True) as endpoint:
        with pytest.raises(ValueError, match="contradicts reuse_port"):
            endpoint.listen(tls=server_tls(), preferred_address="127.0.0.2")


# ------------------------------------------------------------------ real sockets


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell local addresses")
@pytest.mark.parametrize("host", [None, "0.0.0.0"])
async def test_a_real_client_moves_to_another_loopback_address(host: str | None) -> None:
    if host is None and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with trio.fail_after(20):
        async with phoenix_trio.Endpoint.open(host) as endpoint, trio.open_nursery() as nursery:
            listener = endpoint.listen(tls=server_tls(), alpn=ALPN, preferred_address="127.0.0.2")
            nursery.start_soon(partial(trio.serve_listeners, echo, [listener]))
            async with phoenix_trio.open_connection(
                "127.0.0.1", endpoint.port, tls=client_tls(server_name="localhost"), alpn=ALPN
            ) as client:
                await client.wait_confirmed()
                while client.peer_address[0] != "127.0.0.2":
                    await exchange(client, 1024)
                await exchange(client, 1_000_192)
                (server,) = endpoint._driver.sinks
                assert isinstance(server, phoenix_trio.QuicConnection)
                assert server.local_address[:2] == ("127.0.0.2", endpoint.port)
            nursery.cancel_scope.cancel()
