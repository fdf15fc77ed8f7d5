"""A client which moves to another path: over the simulated network and loopback."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.path_address import SocketPath
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.aioquic_pair import AioquicPair
from tests.engine_access import (
    answer_challenges,
    engine_of,
    forbid_moves,
    forget_spare_connection_ids,
    path_in_use,
    take_back_connection_id_of_probe,
    validated_addresses,
)
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    client_tls,
    connected_pair,
    established,
    stream_pair,
)

SECOND = "10.0.0.9"

Pair = tuple[phoenix_trio.QuicConnection, phoenix_trio.QuicConnection]


@asynccontextmanager
async def moving_pair(network: SimulatedNetwork, **arguments: Any) -> AsyncIterator[Pair]:
    """A connection whose client has a second address."""
    network.host(CLIENT, SECOND)
    async with connected_pair(network, **arguments) as pair:
        yield pair


async def exchange(
    client: phoenix_trio.QuicConnection, server: phoenix_trio.QuicConnection
) -> None:
    """Both sides have something to say."""
    ours, theirs = await stream_pair(client, server)
    await theirs.send_all(b"back", end=True)
    assert await ours.receive_all(10) == b"back"
    await ours.aclose()


async def carry(
    sender: phoenix_trio.QuicConnection, receiver: phoenix_trio.QuicConnection, size: int
) -> None:
    """Send so many bytes, all of which arrive."""
    data = random.Random(size).randbytes(size)
    async with trio.open_nursery() as nursery:
        stream = await sender.open_send_stream()
        nursery.start_soon(lambda: stream.send_all(data, end=True))
        assert await (await receiver.accept_receive_stream()).receive_all(size) == data


# ------------------------------------------------------------------ it works


@pytest.mark.parametrize("local_address", [None, SECOND, (SECOND, 0), (CLIENT, 7777)])
async def test_a_client_moves_to_another_socket(
    local_address: Any, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        await exchange(client, server)
        before = client.local_address
        with trio.fail_after(1):
            await client.migrate(local_address)
        assert client.local_address != before
        assert client.peer_address == (SERVER, PORT)
        await exchange(client, server)
        assert server.peer_address == client.local_address
        if isinstance(local_address, tuple):
            assert server.peer_address[0] == local_address[0]
            assert local_address[1] in (0, server.peer_address[1])
        elif local_address is not None:
            assert server.peer_address[0] == local_address
    assert not network._sockets, "all sockets are closed"


async def test_a_server_which_has_something_to_say_learns_of_the_move_at_once(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await client.migrate(SECOND)
        await trio.sleep(0.011)
        assert server.peer_address == client.local_address
        network.partition(CLIENT, SERVER)
        await theirs.send_all(b"there you are")
        with trio.fail_after(0.1):
            assert await ours.receive_some() == b"there you are"


async def test_transfers_in_both_directions_lose_nothing_while_the_client_moves(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01, bandwidth=20_000_000)
    async with moving_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(carry, client, server, 1_000_000)
        nursery.start_soon(carry, server, client, 1_000_000)
        for address in (SECOND, CLIENT, SECOND):
            await trio.sleep(0.1)
            await client.migrate(address)
            assert client.local_address[0] == address


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_client_moves_though_datagrams_are_lost(
    seed: int, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(seed, delay=0.01, loss=0.2, reorder=0.1, duplicate=0.05)
    async with moving_pair(network) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(carry, client, server, 200_000)
        nursery.start_soon(carry, server, client, 200_000)
        for address in (SECOND, CLIENT):
            await trio.sleep(0.05)
            await client.migrate(address)


async def test_a_client_leaves_a_path_which_is_dead(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        network.partition(CLIENT, SERVER)
        await ours.send_all(b"by another way")
        await trio.sleep(5)
        await client.migrate(SECOND)
        with trio.fail_after(1):
            assert await theirs.receive_some() == b"by another way"


async def test_a_client_moves_again_and_again_and_keeps_two_sockets(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        sockets = len(network._sockets)
        for _ in range(30):
            await client.migrate(SECOND)
            await exchange(client, server)
            assert server.peer_address == client.local_address
            assert len(network._sockets) <= sockets + 2


@pytest.mark.parametrize("updating", ["client", "server", "both"])
async def test_keys_can_be_updated_while_the_client_moves(
    updating: str, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01, loss=0.1, seed=5)
    async with moving_pair(network) as (client, server):
        await exchange(client, server)
        for address in (SECOND, CLIENT, SECOND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.migrate, address)
                for name, side in (("client", client), ("server", server)):
                    if updating in (name, "both"):
                        nursery.start_soon(side.update_keys)
            await exchange(client, server)
            assert server.peer_address == client.local_address


async def test_other_connections_of_the_endpoint_stay(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.host(CLIENT, SECOND)
    async with connected_pair(network) as (client, server):
        driver = client._driver
        before = client.local_address
        endpoint = phoenix_trio.Endpoint._create(driver, network.host(CLIENT), None, None)
        async with endpoint.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN) as another:
            await another.migrate(SECOND)
            assert another.local_address[0] == SECOND
            assert client.local_address == before
            await exchange(client, server)
            await another.ping()
            assert server.peer_address[0] == CLIENT
        await exchange(client, server)
        await trio.sleep(20)
        assert len(network._sockets) == 3, "the endpoints' own, one of which has two addresses"


# ------------------------------------------------------------------ what is learnt anew


async def test_a_new_path_is_met_with_a_new_window_and_round_trip_time(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.host(CLIENT, SECOND)
    for ends in ((SECOND, SERVER), (SERVER, SECOND)):
        network.link(*ends).set_conditions(delay=0.1)
    async with connected_pair(network) as (client, server):
        await carry(client, server, 2_000_000)
        await carry(server, client, 2_000_000)
        grown = client.statistics().congestion_window
        await client.migrate(SECOND)
        await carry(client, server, 5_000)
        await carry(server, client, 5_000)
        await trio.sleep(1)  # (the last acknowledgements)
        for side in (client, server):
            facts = side.statistics()
            assert facts.congestion_window < grown / 2
            assert facts.rtt_min is not None
            assert facts.rtt_min > 0.19


async def test_the_size_of_packets_and_ecn_are_tried_again_on_a_new_path(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.host(CLIENT, SECOND)
    for ends in ((SECOND, SERVER), (SERVER, SECOND)):
        network.link(*ends).set_conditions(mtu=1300)
    async with connected_pair(network) as (client, server):
        await carry(client, server, 500_000)
        assert client.statistics().path_mtu > 1400
        assert client.statistics().ecn_validated
        await client.migrate(SECOND)
        await client.ping()
        assert client.statistics().path_mtu <= 1300
        await trio.sleep(2)
        await carry(client, server, 500_000)
        assert 1200 < client.statistics().path_mtu <= 1300
        assert client.statistics().ecn_validated
        await carry(server, client, 500_000)
        await trio.sleep(1)
        assert server.statistics().ecn_validated


async def test_no_connection_id_is_used_on_two_paths(autojump_clock: MockClock) -> None:
    """RFC 9000 section 9.5: an observer of both must not know that they are one connection."""
    network = SimulatedNetwork(delay=0.01)
    used: dict[tuple[str, str], set[bytes]] = {}

    def watch(datagram: Datagram) -> Datagram:
        if not datagram.data[0] & 0x80:
            ends = (datagram.source[0], datagram.destination[0])
            used.setdefault(ends, set()).add(datagram.data[1:9])
        return datagram

    async with moving_pair(network) as (client, server):
        network.tap = watch
        await exchange(client, server)
        await client.migrate(SECOND)
        for _ in range(3):
            await exchange(client, server)
        await trio.sleep(1)
    assert used[CLIENT, SERVER]
    assert used[SECOND, SERVER]
    assert not used[CLIENT, SERVER] & used[SECOND, SERVER]
    assert not used[SERVER, CLIENT] & used[SERVER, SECOND]


# ------------------------------------------------------------------ what is told of paths


async def test_paths_tell_their_ends_and_what_is_known_of_the_active_one(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        await exchange(client, server)
        first = client.local_address
        (only,) = client.paths()
        assert (only.local_address, only.peer_address) == (first, (SERVER, PORT))
        assert only.is_active
        assert only.is_validated
        facts = client.statistics()
        assert only.rtt_smoothed == facts.rtt_smoothed
        assert only.rtt_min == facts.rtt_min == pytest.approx(0.02, abs=0.001)
        assert only.congestion_window == facts.congestion_window
        assert only.path_mtu == facts.path_mtu
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.migrate, SECOND)
            await trio.sleep(0.001)
            _, probed = client.paths()
            assert probed.local_address[0] == SECOND
            assert not probed.is_validated
            assert not probed.is_active
            assert probed.rtt_smoothed is probed.congestion_window is probed.path_mtu is None
        await exchange(client, server)
        moved, left = client.paths()
        assert moved.local_address == client.local_address
        assert moved.is_active
        assert moved.is_validated
        assert left.local_address == first
        assert {each.peer_address for each in server.paths()} == {first, client.local_address}
        assert all(each.local_address == (SERVER, PORT) for each in server.paths())
    assert client.paths() == ()


# ------------------------------------------------------------------ it does not work


async def test_a_path_which_does_not_answer_is_given_up_and_the_old_one_goes_on(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        await carry(client, server, 1_000_000)
        before, window = client.local_address, client.statistics().congestion_window
        sockets = len(network._sockets)
        network.partition(SECOND, SERVER)
        started = trio.current_time()

        async def keep_talking() -> None:
            while True:
                await client.ping()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking)
            with pytest.raises(phoenix_trio.PathNotValidated, match=SECOND):
                await client.migrate(SECOND)
            nursery.cancel_scope.cancel()
        assert 3 < trio.current_time() - started < 7
        assert len(network._sockets) == sockets
        assert client.local_address == before
        assert client.statistics().congestion_window >= window, "nothing was lost here"
        await exchange(client, server)
        assert server.peer_address == before
        network.heal(SECOND, SERVER)
        await client.migrate(SECOND)


async def test_the_answer_alone_getting_lost_moves_nothing(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        network.link(SERVER, SECOND).set_conditions(loss=1.0)
        with pytest.raises(phoenix_trio.PathNotValidated):
            await client.migrate(SECOND)
        await exchange(client, server)
        assert server.peer_address[0] == CLIENT


@pytest.mark.parametrize("after", [0.0, 0.005, 0.015, 0.3, 5.0])
async def test_a_cancelled_move_leaves_the_connection_where_it_was(
    after: float, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        before, sockets = client.local_address, len(network._sockets)
        if after > 0.1:
            network.partition(SECOND, SERVER)
        with trio.move_on_after(after) as scope:
            await client.migrate(SECOND)
        assert scope.cancelled_caught
        assert client.local_address == before
        assert len(network._sockets) == sockets
        await trio.sleep(1)
        await exchange(client, server)
        assert server.peer_address == before


async def test_servers_do_not_move(autojump_clock: MockClock) -> None:
    async with moving_pair(SimulatedNetwork(delay=0.01)) as (_, server):
        with pytest.raises(phoenix_trio.MigrationForbidden, match="only clients"):
            await server.migrate()


async def test_a_server_can_forbid_moves(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        sockets = len(network._sockets)
        forbid_moves(engine_of(client))
        with pytest.raises(phoenix_trio.MigrationForbidden, match="disable_active_migration"):
            await client.migrate(SECOND)
        assert len(network._sockets) == sockets
        await exchange(client, server)


async def test_without_a_spare_connection_id_nothing_moves(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        sockets = len(network._sockets)
        await client.wait_confirmed()
        await trio.sleep(1)
        forget_spare_connection_ids(engine_of(client))
        with pytest.raises(phoenix_trio.NoConnectionIdLeft):
            await client.migrate(SECOND)
        assert len(network._sockets) == sockets
        await exchange(client, server)


async def test_addresses_which_are_not_ours_are_refused(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        await server.ping()
        with pytest.raises(OSError, match=r"192\.0\.2\.1"):
            await client.migrate("192.0.2.1")
        with pytest.raises(OSError, match="in use"):
            await client.migrate((CLIENT, client.local_address[1]))
        with pytest.raises(ValueError, match="65536"):
            await client.migrate((CLIENT, 65536))
        with pytest.raises(TypeError, match="local_address"):
            await client.migrate(5)  # type: ignore[arg-type]
        await exchange(client, server)


async def test_only_one_task_moves_a_connection(autojump_clock: MockClock) -> None:
    async with moving_pair(SimulatedNetwork(delay=0.01)) as (client, _), trio.open_nursery() as n:
        n.start_soon(client.migrate)
        await trio.sleep(0.001)
        with pytest.raises(trio.BusyResourceError):
            await client.migrate()


@pytest.mark.parametrize("ending", ["here", "there", "endpoint"])
async def test_a_connection_which_ends_while_it_moves_says_so(
    ending: str, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with moving_pair(network) as (client, server):
        network.partition(SECOND, SERVER)
        kind = phoenix_trio.ConnectionBroken if ending == "there" else trio.ClosedResourceError
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                with pytest.raises(kind):
                    await client.migrate(SECOND)

            nursery.start_soon(move)
            await trio.sleep(1)
            if ending == "here":
                client.abort()
            elif ending == "there":
                server.abort(7)
            else:
                client._driver.close()
        await trio.sleep(20)
        with pytest.raises(kind):
            await client.migrate()
        assert all(port == PORT or ending != "endpoint" for _, port in network._sockets)
    assert not network._sockets


# ------------------------------------------------------------------ hostile peers, other peers


def test_an_answer_with_other_data_does_not_validate_a_path() -> None:
    pair, client, server = established()
    path = SocketPath((SERVER, PORT, "1"))
    assert client.engine.probe_path(path, pair.now)
    pair.flush(client)
    # The challenge is lost, so that the server answers others only.
    pair.wire.clear()
    answer_challenges(server.engine, b"a forged", b"response")
    pair.drop = lambda destination, data: destination is server and len(data) >= 1200
    pair.run(0.5)
    assert not client.of(events.PathProbed)
    assert not client.engine.move_to_path(path)
    pair.run(20)
    assert [each.is_validated for each in client.of(events.PathProbed)] == [False]
    assert path_in_use(client.engine) == (SERVER, PORT)


def test_an_unmodified_aioquic_server_follows_a_client_which_moves() -> None:
    pair = AioquicPair(we_are_client=True).connect()
    pair.run(1.0)
    path = SocketPath((SERVER, PORT, "1"))
    pair.other_paths[path] = ("192.0.2.7", 5555)
    engine = pair.ours.engine
    assert engine.probe_path(path, pair.now)
    pair.run(0.5)
    assert [each.is_validated for each in pair.ours.of(events.PathProbed)] == [True]
    assert path_in_use(engine) == (SERVER, PORT)
    assert engine.move_to_path(path)
    pair.run(0.5)
    assert path_in_use(engine) == path
    assert path in validated_addresses(engine)
    stream_id = pair.open_ours(unidirectional=False)
    data = random.Random(1).randbytes(100_000)
    engine.write(stream_id, data, end_stream=True)
    pair.run(5.0)
    assert pair.stock.received[stream_id] == data
    pair.stock.connection.send_stream_data(stream_id, data, end_stream=True)
    pair.run(5.0)
    assert pair.ours.received[stream_id] == data


def test_a_connection_id_which_the_server_takes_back_is_replaced_by_another() -> None:
    pair, client, _ = established()
    path = SocketPath((SERVER, PORT, "1"))
    assert client.engine.probe_path(path, pair.now)
    forget_spare_connection_ids(client.engine)
    take_back_connection_id_of_probe(client.engine)
    pair.run(20)
    assert [each.is_validated for each in client.of(events.PathProbed)] == [True]


# ------------------------------------------------------------------ real sockets


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is local on Linux")
async def test_a_client_moves_between_real_addresses() -> None:
    async with connected_pair(real=True, config=TransportConfig()) as (client, server):
        with trio.fail_after(5):
            for local_address in ("127.0.0.2", None, ("127.0.0.3", 0)):
                await client.migrate(local_address)
                await carry(client, server, 300_000)
                await carry(server, client, 300_000)
                assert server.peer_address[1] == client.local_address[1]
                if local_address is not None:
                    assert server.peer_address == client.local_address
            with pytest.raises(OSError, match="cannot be reached"):
                await client.migrate("::1")
            await exchange(client, server)
