"""A server bound to all addresses of a host answers each peer from the address it was sent to."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import packet_info
from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket, display_address
from phoenix_trio.quic.path_address import PathAddress, ends_of, local_of, remote_of
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import engine_of, probe_path, validated_addresses
from tests.hostile import world as hostile
from tests.hostile.world import echo, first_initial
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

SECOND = "10.0.0.9"
FIRST_IPV6, SECOND_IPV6 = "2001:db8::1", "2001:db8::9"
ADDRESSES = (SERVER, SECOND, FIRST_IPV6, SECOND_IPV6)

needs_packet_info = pytest.mark.skipif(
    sys.platform != "linux", reason="the system does not tell local addresses"
)


def tls_of_client() -> phoenix_trio.ClientTLS:
    return client_tls(server_name="localhost")


# ------------------------------------------------------------------ the values


def test_equal_ends_make_equal_paths() -> None:
    remote = ("10.0.0.2", 5000)
    path = PathAddress.join(remote, SERVER)
    assert path == PathAddress.join(("10.0.0.2", 5000), SERVER)
    assert hash(path) == hash(PathAddress.join(remote, SERVER))
    assert path != remote
    assert path != PathAddress.join(remote, SECOND)
    assert path != PathAddress.join(("10.0.0.2", 5001), SERVER)
    assert (path[0], path[1]) == remote
    assert (path.remote, path.local) == (remote, SERVER)
    assert type(path.remote) is tuple
    assert (remote_of(path), local_of(path)) == (remote, SERVER)
    assert (remote_of(remote), local_of(remote)) == (remote, None)
    assert ends_of(path) == ends_of(PathAddress.join(("10.0.0.2", 1), SERVER))
    assert ends_of(path) != ends_of(PathAddress.join(remote, SECOND))
    six = ("fe80::2", 5000, 0, 3)
    assert PathAddress.join(six, "fe80::1%3").remote == six


@pytest.mark.parametrize(
    ("family", "message", "local"),
    [
        (socket.AF_INET, "02000000 7f000002 7f000002", "127.0.0.2"),
        # A broadcast: the kernel names the interface's own address.
        (socket.AF_INET, "02000000 0a000001 0a0000ff", "10.0.0.1"),
        # Queued before the kernel was asked.
        (socket.AF_INET, "00000000 00000000 0a000001", "10.0.0.1"),
        (socket.AF_INET, "02000000 a9fe0101 a9fe0101", "169.254.1.1%2"),
        (socket.AF_INET, "02000000 e0000001 e0000001", None),
        (socket.AF_INET, "02000000 00000000 ffffffff", None),
        (socket.AF_INET, "02000000 00000000 00000000", None),
        (socket.AF_INET, "02000000", None),
        (socket.AF_INET6, "20010db8" + "0" * 23 + "1 03000000", "2001:db8::1"),
        (socket.AF_INET6, "fe80" + "0" * 27 + "1 03000000", "fe80::1%3"),
        (socket.AF_INET6, "0" * 20 + "ffff 7f000002 01000000", "::ffff:127.0.0.2"),
        (socket.AF_INET6, "0" * 20 + "ffff e0000001 01000000", None),
        (socket.AF_INET6, "0" * 20 + "ffff ffffffff 01000000", None),
        (socket.AF_INET6, "ff02" + "0" * 27 + "1 03000000", None),
        (socket.AF_INET6, "0" * 32 + "03000000", None),
        (socket.AF_INET6, "0" * 31 + "1", None),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the messages are little-endian")
def test_the_kernels_messages_are_read_and_answered(
    family: int, message: str, local: str | None
) -> None:
    level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
    assert packet_info.local_address(level, bytes.fromhex(message)) == local
    if local is None:
        return
    back_level, kind, value = packet_info.source_message(family, local)
    assert (back_level, kind) in packet_info.MESSAGES
    assert packet_info.local_address(back_level, value) == local
    assert len(value) + 16 <= packet_info.SPACE
    # Only a link-local address ties a datagram to an interface.
    interface = value[:4] if family == socket.AF_INET else value[16:20]
    assert (interface != bytes(4)) is ("%" in local)


# ------------------------------------------------------------------ the simulated network


class World(hostile.World):
    """A server on a host with four addresses, and a record of its datagrams and their sources."""

    def __init__(self, nursery: trio.Nursery, **config: Any) -> None:
        super().__init__(nursery, **config)
        self.host = self.network.host(*ADDRESSES)
        self.sent: list[Datagram] = []
        self.network.tap = self.watch
        self.network.set_conditions(delay=0.01)
        self.connections: list[phoenix_trio.QuicConnection] = []

    def watch(self, datagram: Datagram) -> Datagram | list[Datagram] | None:
        if datagram.source[0] in ADDRESSES:
            self.sent.append(datagram)
        return datagram

    async def start(self) -> World:
        async def handler(connection: phoenix_trio.QuicConnection) -> None:
            self.connections.append(connection)
            await echo(connection)

        self.scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            with self.scope:
                await phoenix_trio.serve(
                    handler,
                    PORT,
                    tls=server_tls(),
                    alpn=ALPN,
                    config=self.config,
                    network=self.host,
                    task_status=task_status,
                )

        (self.listener,) = await self.nursery.start(serve)
        return self

    def dial(self, address: str, **config: Any) -> Any:
        return phoenix_trio.open_connection(
            address,
            PORT,
            tls=tls_of_client(),
            alpn=ALPN,
            config=TransportConfig(**config),
            network=self.network.host(CLIENT),
        )

    async def ask(self, data: bytes, address: str) -> list[bytes]:
        """Send a datagram from a stranger's socket; returns the answers from that very address."""
        stranger = await self.network.host("10.7.7.7").open_socket(None, 0, buffer_size=65536)
        stranger.send(data, (address, PORT))
        await trio.sleep(0.1)
        answers = [data for data, source in stranger.receive(10) if source == (address, PORT)]
        stranger.close()
        return answers


async def exchange(connection: phoenix_trio.QuicConnection, size: int) -> None:
    async with await connection.open_stream() as stream:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(bytes(size))
                await stream.send_eof()

            nursery.start_soon(send)
            received = 0
            async for chunk in stream:
                received += len(chunk)
        assert received == size


async def small_exchange(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        assert world.connections[0].local_address[:2] == (address, PORT)
        assert world.connections[0].peer_address[0] == CLIENT
        assert connection.peer_address == (address, PORT)


async def bulk_and_path_mtu(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 300_000)
        assert world.connections[0].statistics().path_mtu > 1400


async def datagrams(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        await connection.send_datagram(b"there")
        (server,) = world.connections
        assert await server.receive_datagram() == b"there"
        await server.send_datagram(b"and back")
        assert await connection.receive_datagram() == b"and back"


async def keep_alive(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        await trio.sleep(100)
        await exchange(connection, 10)


async def path_challenge(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        world.network.host(CLIENT).rebind("10.5.5.5")
        await exchange(connection, 100_000)
        assert world.connections[0].peer_address[0] == "10.5.5.5"
        assert world.connections[0].local_address[:2] == (address, PORT)


async def closed_by_the_server(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        await world.connections[0].aclose(7, "enough")
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await connection.ping()


async def closed_by_the_server_and_the_goodbye_was_lost(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        world.network.link(address, CLIENT).set_conditions(loss=1.0)
        world.connections[0].abort(7)
        await trio.sleep(0.005)
        world.network.link(address, CLIENT).set_conditions(loss=0.0)
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await connection.ping()


async def handshake_failure(world: World, address: str) -> None:
    with pytest.raises(phoenix_trio.HandshakeFailed, match="ALPN"):
        async with phoenix_trio.open_connection(
            address,
            PORT,
            tls=tls_of_client(),
            alpn=["unknown/1"],
            network=world.network.host(CLIENT),
        ):
            pass


async def version_negotiation(world: World, address: str) -> None:
    hello = bytearray(first_initial())
    hello[1:5] = b"\x1a\x2a\x3a\x4a"
    (answer,) = await world.ask(bytes(hello), address)
    assert answer[1:5] == bytes(4)
    assert world.listener.statistics().version_negotiations_sent == 1


async def retry(world: World, address: str) -> None:
    assert await world.ask(first_initial(), address)
    assert world.listener.statistics().retries_sent == 1
    await small_exchange(world, address)
    assert world.listener.statistics().retries_sent == 2


async def refusal(world: World, address: str) -> None:
    async with world.dial(address):
        with pytest.raises(phoenix_trio.HandshakeFailed, match="takes no more"):
            async with world.dial(address):
                pass
    assert world.listener.statistics().connections_refused == 1


async def stateless_reset(world: World, address: str) -> None:
    async with world.dial(address) as connection:
        await exchange(connection, 10)
        world.network.link(address, CLIENT).set_conditions(loss=1.0)
        world.scope.cancel()
        await trio.sleep(0.1)
        world.network.link(address, CLIENT).set_conditions(loss=0.0)
        await world.start()
        with pytest.raises(phoenix_trio.StatelessReset):
            await connection.ping()
    assert world.listener.statistics().stateless_resets_sent == 1


Scenario = Callable[[World, str], Awaitable[None]]

SCENARIOS: dict[Scenario, dict[str, Any]] = {
    small_exchange: {},
    bulk_and_path_mtu: {},
    datagrams: {},
    keep_alive: {"keep_alive": 5.0},
    path_challenge: {},
    closed_by_the_server: {},
    closed_by_the_server_and_the_goodbye_was_lost: {},
    handshake_failure: {},
    version_negotiation: {},
    retry: {"retry": "always"},
    refusal: {"max_connections": 1},
    stateless_reset: {},
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_whatever_a_server_sends_leaves_from_the_address_that_was_dialled(
    scenario: Scenario, address: str, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, **SCENARIOS[scenario]).start()
        with trio.fail_after(300):
            await scenario(world, address)
        assert world.sent
        assert {datagram.source for datagram in world.sent} == {(address, PORT)}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("open_listener", ["open_listener", "open_stream_listener"])
async def test_a_listener_without_a_nursery_answers_from_the_right_address(
    open_listener: str, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    listener = await getattr(phoenix_trio, open_listener)(
        PORT, tls=server_tls(), alpn=ALPN, network=network.host(SERVER, SECOND)
    )
    async with trio.open_nursery() as nursery:
        if open_listener == "open_listener":
            nursery.start_soon(partial(trio.serve_listeners, echo, [listener]))
        else:

            async def answer(stream: phoenix_trio.QuicStream) -> None:
                async with stream:
                    async for chunk in stream:
                        await stream.send_all(chunk)

            nursery.start_soon(partial(trio.serve_listeners, answer, [listener]))
        for address in (SECOND, SERVER):
            async with phoenix_trio.open_connection(
                address,
                PORT,
                tls=tls_of_client(),
                alpn=ALPN,
                network=network.host(CLIENT),
            ) as connection:
                await exchange(connection, 1000)
        nursery.cancel_scope.cancel()


async def test_a_client_whose_route_changes_moves_and_the_server_follows(
    autojump_clock: MockClock,
) -> None:
    """Also if the client's socket listens as well, and so reports where datagrams arrive."""
    network = SimulatedNetwork(delay=0.01)
    device = network.host("192.168.1.5", "100.64.0.5")
    async with trio.open_nursery() as nursery:
        connections: list[phoenix_trio.QuicConnection] = []

        async def handler(connection: phoenix_trio.QuicConnection) -> None:
            connections.append(connection)
            await echo(connection)

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
        for listens in (False, True):
            device.prefer("192.168.1.5")
            network.heal("192.168.1.5", SERVER)
            async with phoenix_trio.Endpoint.open(network=device) as endpoint:
                if listens:
                    endpoint.listen(tls=server_tls(), alpn=ALPN)
                async with endpoint.connect(
                    SERVER, PORT, tls=tls_of_client(), alpn=ALPN
                ) as connection:
                    await exchange(connection, 1000)
                    assert connections[-1].peer_address[0] == "192.168.1.5"
                    device.prefer("100.64.0.5")
                    network.partition("192.168.1.5", SERVER)
                    await exchange(connection, 100_000)
                    assert connections[-1].peer_address[0] == "100.64.0.5"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def one_connection() -> AsyncIterator[
    tuple[World, phoenix_trio.QuicConnection, phoenix_trio.QuicConnection]
]:
    """A server's world, and both ends of a connection to its first address."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        async with world.dial(SERVER) as client:
            await exchange(client, 1000)
            (server,) = world.connections
            await trio.sleep(1)
            yield world, client, server
        nursery.cancel_scope.cancel()


async def test_when_packets_arrive_at_another_address_the_answers_leave_from_there(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 9.5: with a connection ID not used from the first address."""
    async with one_connection() as (world, client, server):

        def redirect(datagram: Datagram) -> Datagram:
            world.watch(datagram)
            if datagram.destination == (SERVER, PORT):
                return Datagram(datagram.source, (SECOND, PORT), datagram.data, datagram.ecn)
            if datagram.source == (SECOND, PORT):
                return Datagram((SERVER, PORT), datagram.destination, datagram.data, datagram.ecn)
            return datagram

        before = {datagram.data[1:9] for datagram in world.sent if datagram.data[0] < 0x80}
        world.sent.clear()
        world.network.tap = redirect
        await exchange(client, 100_000)
        assert server.local_address[:2] == (SECOND, PORT)
        assert {datagram.source for datagram in world.sent} == {(SECOND, PORT)}
        after = {datagram.data[1:9] for datagram in world.sent}
        assert before
        assert not before & after
        await trio.sleep(1)
        assert server.statistics().path_mtu > 1400
        world.network.tap = world.watch
        world.sent.clear()
        await exchange(client, 100_000)
        assert server.local_address[:2] == (SERVER, PORT)
        assert not after & {datagram.data[1:9] for datagram in world.sent}


async def test_a_client_which_probes_another_address_of_the_server_is_followed_there(
    autojump_clock: MockClock,
) -> None:
    """As it does with a preferred address (RFC 9000 section 9.6): challenge, then migrate."""
    async with one_connection() as (world, client, server):
        world.sent.clear()
        engine = engine_of(client)
        probe_path(engine, (SECOND, PORT))
        (route,) = client._driver._routes
        client._driver.flush_soon(route)
        await trio.sleep(0.025)
        assert (SECOND, PORT) in validated_addresses(engine)  # so the response left it
        # (Only that: the rest stays on the path in use.)
        assert {datagram.source for datagram in world.sent} == {(SERVER, PORT), (SECOND, PORT)}
        assert server.local_address[:2] == (SERVER, PORT)
        await exchange(client, 10)
        assert client.peer_address == (SECOND, PORT)
        assert server.local_address[:2] == (SECOND, PORT)
        await trio.sleep(1)
        world.sent.clear()
        await exchange(client, 100_000)
        assert {datagram.source for datagram in world.sent} == {(SECOND, PORT)}


async def test_a_packet_copied_to_another_address_does_not_take_the_connection_away(
    autojump_clock: MockClock,
) -> None:
    """RFC 9000 section 9.3.2, for the other end: the path is challenged, and then given up."""
    async with one_connection() as (world, client, server):
        copied: list[Datagram] = []

        def copy(datagram: Datagram) -> Datagram | list[Datagram]:
            if datagram.destination == (SERVER, PORT) and not copied:
                copied.append(Datagram(datagram.source, (SECOND, PORT), datagram.data))
                return [copied[0], datagram]  # the copy comes first
            world.watch(datagram)
            return datagram

        world.network.tap = copy
        await exchange(client, 10)
        assert copied
        assert SECOND in {datagram.source[0] for datagram in world.sent}
        await exchange(client, 100_000)
        assert server.local_address[:2] == (SERVER, PORT)
        world.sent.clear()
        await exchange(client, 100_000)
        assert {datagram.source for datagram in world.sent} == {(SERVER, PORT)}


# ------------------------------------------------------------------ real sockets


@asynccontextmanager
async def real_server(host: str | None, **config: Any) -> AsyncIterator[phoenix_trio.Endpoint]:
    """A server that echoes, on loopback."""
    if host is None or ":" in host:
        try:
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        except OSError:
            pytest.skip("no IPv6 here")
    async with phoenix_trio.Endpoint.open(host, config=TransportConfig(**config)) as endpoint:
        listener = endpoint.listen(tls=server_tls(), alpn=ALPN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, echo, [listener]))
            yield endpoint
            nursery.cancel_scope.cancel()


REAL = [
    (None, "127.0.0.1"),
    (None, "127.0.0.2"),
    (None, "::1"),
    ("0.0.0.0", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.2"),
    ("::", "127.0.0.2"),
    ("::", "::1"),
]


@needs_packet_info
@pytest.mark.parametrize(("host", "target"), REAL)
async def test_a_real_wildcard_socket_is_reached_at_every_address(
    host: str | None, target: str
) -> None:
    with trio.fail_after(20):
        # Packets as on Ethernet; the kernel takes many of them in one call.
        async with real_server(host, max_udp_payload_size=1452) as endpoint:
            async with phoenix_trio.open_connection(
                target, endpoint.port, tls=tls_of_client(), alpn=ALPN
            ) as connection:
                await exchange(connection, 3_000_000)
                assert connection.peer_address[:2] == (target, endpoint.port)
                (server,) = endpoint._driver.sinks
                assert isinstance(server, phoenix_trio.QuicConnection)
                assert server.local_address[:2] == (target, endpoint.port)
                statistics = endpoint._driver.socket.statistics
                if statistics.gso:
                    # Runs and marks go together with the address.
                    assert statistics.send_calls < statistics.datagrams_sent / 3
                if statistics.ecn:
                    assert server.statistics().ecn_validated


@needs_packet_info
@pytest.mark.parametrize(("host", "target"), REAL)
@pytest.mark.parametrize("kind", ["version negotiation", "retry", "stateless reset", "refusal"])
async def test_a_real_wildcard_socket_answers_strangers_from_the_right_address(
    kind: str, host: str | None, target: str
) -> None:
    data = first_initial()
    config: dict[str, Any] = {}
    if kind == "version negotiation":
        data = data[:1] + b"\x1a\x2a\x3a\x4a" + data[5:]
    elif kind == "retry":
        config["retry"] = "always"
    elif kind == "stateless reset":
        data = b"\x40" + bytes(100)
    else:
        config["max_connections"] = 1
    with trio.fail_after(20):
        async with real_server(host, **config) as endpoint:
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
            with trio.socket.socket(family, socket.SOCK_DGRAM) as stranger:
                # A connected socket receives from no other address.
                await stranger.connect((target, endpoint.port))
                if kind == "refusal":
                    with trio.socket.socket(family, socket.SOCK_DGRAM) as first:
                        await first.sendto(first_initial(), (target, endpoint.port))
                        await first.recv(2000)
                        await stranger.send(first_initial())
                        await stranger.recv(2000)
                    assert endpoint.statistics().connections_refused == 1
                else:
                    await stranger.send(data)
                    await stranger.recv(2000)


async def open_real(host: str | None) -> UdpSocket:
    try:
        opened = await UdpNetwork().open_socket(host, 0, buffer_size=256 * 1024)
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")
    opened.report_local_addresses()
    return opened


async def receive_one(receiver: UdpSocket) -> tuple[bytes, Any]:
    with trio.fail_after(5):
        await receiver.wait_readable()
    ((data, source, _, _, stop),) = receiver.receive_runs(1)
    return bytes(data[:stop]), source


@needs_packet_info
async def test_a_socket_bound_to_one_address_reports_nothing_more() -> None:
    one, other = await open_real("127.0.0.1"), await open_real("127.0.0.1")
    one.send_run(b"x", other.address)
    _, source = await receive_one(other)
    assert source == one.address
    one.close()
    other.close()


@needs_packet_info
@pytest.mark.parametrize("host", ["0.0.0.0", None])
@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("mark", [0, 2])
async def test_an_address_which_is_not_ours_any_more_costs_nobody_runs_or_marks(
    host: str | None, gso: bool, mark: int
) -> None:
    """Nor are the datagrams kept back: the system chooses another source."""
    one, other = await open_real(host), await open_real("127.0.0.1")
    one._gso = one._gso and gso
    before = one.statistics
    remote = one.reachable(other.address)
    assert remote is not None
    gone = "192.0.2.55" if len(remote) == 2 else "::ffff:192.0.2.55"
    for _ in range(20):
        assert one.send_run(bytes(2500), PathAddress.join(remote, gone), 1000, mark) == 2500
        assert one.send_run(b"single", PathAddress.join(remote, gone), None, mark) == 6
    sources = []
    while len(sources) < 20 * 4:
        with trio.fail_after(5):
            await other.wait_readable()
        for _, source, size, _, stop in other.receive_runs(100):
            sources += [source] * -(-stop // size)
    assert {source[0] for source in sources} == {"127.0.0.1"}
    after = one.statistics
    assert (after.gso, after.ecn, after.soft_errors) == (before.gso, before.ecn, 0)
    # And the next peer's datagrams leave from the right address.
    local = "127.0.0.2" if len(remote) == 2 else "::ffff:127.0.0.2"
    one.send_run(b"next", PathAddress.join(remote, local), None, mark)
    data, source = await receive_one(other)
    assert (data, source[0]) == (b"next", "127.0.0.2")
    one.close()
    other.close()


@needs_packet_info
@pytest.mark.parametrize("host", ["0.0.0.0", None])
async def test_a_broadcast_is_not_answered_from_the_broadcast_address(host: str | None) -> None:
    wildcard, other = await open_real(host), await open_real("127.0.0.1")
    other._raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    other.send_run(b"all", ("127.255.255.255", wildcard.address[1]))
    _, source = await receive_one(wildcard)
    wildcard.send_run(b"me", source)
    data, back = await receive_one(other)
    assert (data, back[0]) == (b"me", "127.0.0.1")
    assert wildcard.statistics.soft_errors == 0
    wildcard.close()
    other.close()


@needs_packet_info
async def test_the_largest_payload_is_asked_for_the_path_and_not_only_for_the_peer() -> None:
    wildcard = await open_real("0.0.0.0")
    remote = ("127.0.0.1", 9)
    plain = wildcard.largest_payload(remote)
    assert plain is not None
    assert wildcard.largest_payload(PathAddress.join(remote, "127.0.0.2")) == plain
    assert wildcard.largest_payload(PathAddress.join(remote, "192.0.2.55")) is None
    assert display_address(PathAddress.join(remote, "127.0.0.2")) == remote
    wildcard.close()
    wildcard.report_local_addresses()  # closed: nothing to ask
