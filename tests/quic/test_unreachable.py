"""Servers that cannot be reached: dialling them ends soon, and harms nothing else."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import connection_id_in_use, is_handshake_confirmed
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    connected_pair,
    ending,
    server_tls,
)

# ------------------------------------------------------------------ credible reports


def test_a_client_ends_when_its_first_packet_cannot_arrive() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    assert engine.on_unreachable(
        (SERVER, PORT), connection_id_in_use(engine)[1], errno.ECONNREFUSED
    )
    pair.client.gather(pair.now)
    assert engine.is_terminated
    error = pair.client.of(phoenix_trio.quic.events.Terminated)[0].error
    assert type(error) is phoenix_trio.ServerUnreachable
    assert str(error) == f"connection refused: nothing listens on {SERVER} port {PORT}/udp"
    assert (error.errno, error.error_code, error.alert) == (errno.ECONNREFUSED, None, None)


def test_a_client_ignores_what_is_not_of_its_packets() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    cid = connection_id_in_use(engine)[1]
    for address, destination in [
        ((SERVER, PORT + 1), cid),
        ((CLIENT, PORT), cid),
        ((SERVER, PORT), cid[:-1] + bytes([cid[-1] ^ 1])),
        ((SERVER, PORT), b""),
    ]:
        assert not engine.on_unreachable(address, destination, errno.ECONNREFUSED)
    assert not engine.is_ending
    # The form in which a dual-stack socket has the address makes no difference.
    assert engine.on_unreachable((f"::ffff:{SERVER}", PORT, 0, 0), cid, errno.EHOSTUNREACH)


def test_a_client_ignores_it_once_the_server_has_answered() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    first = connection_id_in_use(engine)[1]
    while not engine.has_peer:
        pair.step()
    for cid in (first, connection_id_in_use(engine)[1]):
        assert not engine.on_unreachable((SERVER, PORT), cid, errno.ECONNREFUSED)
    while not is_handshake_confirmed(engine):
        pair.step()
    assert not engine.on_unreachable((SERVER, PORT), connection_id_in_use(engine)[1], 111)
    assert pair.server is not None
    assert not pair.server.engine.on_unreachable(
        (CLIENT, 5000), connection_id_in_use(pair.server.engine)[1], errno.ECONNREFUSED
    )
    assert ending(pair.client) is None


# ------------------------------------------------------------------ over the simulated network


async def refused(
    network: SimulatedNetwork, host: str, **arguments: Any
) -> tuple[phoenix_trio.HandshakeFailed, float]:
    """The error of dialling, and the seconds until it."""
    started = trio.current_time()
    with pytest.raises(phoenix_trio.HandshakeFailed) as caught:
        async with phoenix_trio.open_connection(
            host, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT), **arguments
        ):
            raise AssertionError("nothing listens there")
    return caught.value, trio.current_time() - started


async def test_dialling_a_port_without_a_server_ends_after_a_round_trip(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.05, port_unreachable=True)
    network.host(SERVER)
    error, seconds = await refused(network, SERVER)
    assert type(error) is phoenix_trio.ServerUnreachable
    assert f"nothing listens on {SERVER} port {PORT}/udp" in str(error)
    assert seconds == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TransportConfig(), 10.0),
        (TransportConfig(handshake_timeout=2.5), 2.5),
        (TransportConfig(handshake_timeout=60.0, max_idle_timeout=5.0), 5.0),
    ],
    ids=["by default", "configured", "idle timeout"],
)
async def test_dialling_a_silent_host_ends_after_the_handshake_timeout(
    config: TransportConfig, expected: float, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork()
    error, seconds = await refused(network, SERVER, config=config)
    assert type(error) is phoenix_trio.HandshakeTimedOut
    assert "is the address right" in str(error)
    assert seconds == pytest.approx(expected, abs=0.2)


async def test_the_handshake_timeout_ends_no_established_connection(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(handshake_timeout=1.0, keep_alive=5.0)
    async with connected_pair(SimulatedNetwork(), config=config) as (client, server):
        await trio.sleep(100)
        await client.ping()
        assert not server.is_closed


async def test_a_refused_address_lets_the_next_attempt_start_at_once(
    autojump_clock: MockClock,
) -> None:
    """RFC 8305 section 5: within 250 ms, as the attempt before has failed."""
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    network.add_name("two.example", "10.0.0.9", SERVER)
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)
        started = trio.current_time()
        async with phoenix_trio.open_connection(
            "two.example",
            PORT,
            tls=client_tls(server_name=SERVER),
            alpn=ALPN,
            network=network.host(CLIENT),
        ) as connection:
            assert connection.peer_address == (SERVER, PORT)
            assert trio.current_time() - started < 0.1


async def test_a_server_which_goes_away_ends_no_connection_by_its_unreachable_port(
    autojump_clock: MockClock,
) -> None:
    """After the handshake any host could forge it, and the path may come back."""
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    async with connected_pair(network) as (client, server):
        await client.wait_confirmed()
        network.host(SERVER).rebind()  # the client's datagrams find no socket any more
        endpoint_dials = client._driver._dialling
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            # The socket reports failures while it dials: the established connection ignores them.
            route = client._route
            assert route is not None
            endpoint_dials.add(route)
            await trio.sleep(5)
            assert network.statistics().no_listener > 2
            assert not client.is_closed
            endpoint_dials.discard(route)
            nursery.cancel_scope.cancel()
        server.abort()
        client.abort()


async def test_a_refused_attempt_leaves_the_other_connections_of_the_socket_alone(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as server:
        server.listen(tls=server_tls(), alpn=ALPN)
        async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
            dial = partial(endpoint.connect, tls=client_tls(), alpn=ALPN)
            async with dial(SERVER, PORT) as connection:
                for _ in range(3):
                    with pytest.raises(phoenix_trio.ServerUnreachable):
                        async with dial("10.0.0.9", PORT):
                            pass
                await connection.ping()
            assert not endpoint._driver._dialling.routes
            assert not endpoint._driver.sinks or connection.is_closed


async def test_a_retry_counts_as_an_answer(autojump_clock: MockClock) -> None:
    """Its integrity tag proves that the first packet has arrived (RFC 9001 section 5.8)."""
    network = SimulatedNetwork(delay=0.01)
    seen: list[Datagram] = []

    def pass_two(datagram: Datagram) -> Datagram | None:
        seen.append(datagram)
        return datagram if len(seen) <= 2 else None

    network.tap = pass_two
    config = TransportConfig(retry="always")
    async with phoenix_trio.Endpoint.open(
        SERVER, PORT, network=network.host(SERVER), config=config
    ) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)

        def forge() -> None:
            assert seen[1].source == (SERVER, PORT)
            assert seen[1].data[0] >> 4 == 0xF, "a Retry packet"
            assert seen[2].source[0] == CLIENT
            for answer in seen[:1] + seen[2:]:
                network._report_unreachable(answer, trio.current_time())

        async with trio.open_nursery() as nursery:

            async def forge_later() -> None:
                await trio.sleep(1)
                forge()

            nursery.start_soon(forge_later)
            error, seconds = await refused(network, SERVER)
    assert type(error) is phoenix_trio.HandshakeTimedOut
    assert seconds > 5


async def test_early_data_for_a_port_without_a_server_ends_the_same_way(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=True)
    dial = partial(
        phoenix_trio.open_connection,
        SERVER,
        PORT,
        tls=tls,
        alpn=ALPN,
        network=network.host(CLIENT),
    )
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as endpoint:
        endpoint.listen(tls=server_tls(early_data=True), alpn=ALPN)
        async with dial() as connection:
            await connection.ping()
            await connection.ping()
    async with dial() as connection:
        assert connection.early_data_accepted is None
        with pytest.raises(phoenix_trio.ServerUnreachable):
            await connection.request(b"early")


async def test_forged_reports_in_a_flood_are_bounded_and_ignored(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    seen: list[Datagram] = []

    def swallow(datagram: Datagram) -> None:
        seen.append(datagram)

    network.tap = swallow
    async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
        with trio.move_on_after(3) as scope:
            async with trio.open_nursery() as nursery:

                async def dial() -> None:
                    async with endpoint.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN):
                        pass

                nursery.start_soon(dial)
                await trio.sleep(0.5)
                network.port_unreachable = True
                (opened,) = set(network._sockets.values())
                first = seen[0].data
                for forged in (b"", first[:6], bytes(64), b"\xff" * 64, first[:20] + bytes(44)):
                    for _ in range(50):
                        network._report_unreachable(
                            Datagram((CLIENT, endpoint.port), (SERVER, PORT), forged), 0.0
                        )
                await trio.sleep(1)
                assert opened.take_failures() == [], "they have all been read"
        assert scope.cancelled_caught, "it goes on dialling"
