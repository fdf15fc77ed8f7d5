"""Keep-alive and the agreed idle timeout: the smaller one counts for both sides."""

from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.idle import keep_alive_interval
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import keep_alive_due
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

PROFILES = {
    "default": TransportConfig(),
    "realtime": TransportConfig.realtime(),
    "high_throughput": TransportConfig.high_throughput(),
    "sensors": TransportConfig.sensors(),
    "video": TransportConfig.video(),
}


@pytest.mark.parametrize(
    ("wanted", "idle_timeout", "interval"),
    [(5.0, 30.0, 5.0), (20.0, 15.0, 7.5), (25.0, 50.0, 25.0), (1.0, 1e9, 1.0)],
)
def test_a_ping_leaves_after_half_of_the_idle_timeout_at_the_latest(
    wanted: float, idle_timeout: float, interval: float
) -> None:
    assert keep_alive_interval(wanted, idle_timeout) == interval


@pytest.mark.parametrize(("client", "server"), list(itertools.product(PROFILES, PROFILES)))
async def test_profiles_stay_alive_together_if_one_of_them_keeps_alive(
    client: str, server: str, autojump_clock: MockClock
) -> None:
    ours, theirs = PROFILES[client], PROFILES[server]
    async with connected_pair(
        SimulatedNetwork(delay=0.02), client_config=ours, server_config=theirs
    ) as (one, other):
        await trio.sleep(600)
        alive = ours.keep_alive is not None or theirs.keep_alive is not None
        assert (not one.is_closed, not other.is_closed) == (alive, alive)
        if alive:
            stream, far = await stream_pair(one, other)
            await far.send_all(b"still here")
            assert await stream.receive_some() == b"still here"


@pytest.mark.parametrize("keeper", ["client", "server"])
async def test_a_keep_alive_above_the_peers_idle_timeout_is_shortened(
    keeper: str, autojump_clock: MockClock
) -> None:
    wanting = TransportConfig(keep_alive=20.0)
    strict = TransportConfig(max_idle_timeout=15.0)
    async with connected_pair(
        client_config=wanting if keeper == "client" else strict,
        server_config=strict if keeper == "client" else wanting,
    ) as (client, server):
        before = client.statistics().packets_sent + server.statistics().packets_sent
        await trio.sleep(600)
        assert not client.is_closed
        assert not server.is_closed
        sent = client.statistics().packets_sent + server.statistics().packets_sent - before
        assert 600 / 7.5 <= sent <= 4 * 600 / 7.5


async def test_a_tiny_idle_timeout_of_the_peer_is_no_flood_of_pings(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(
        SimulatedNetwork(delay=0.05),
        client_config=TransportConfig(keep_alive=20.0),
        server_config=TransportConfig(max_idle_timeout=0.001),
    ) as (client, server):
        before = client.statistics().packets_sent
        await trio.sleep(10)
        assert not client.is_closed
        # RFC 9000 section 10.1: at least three probe timeouts, each half a second here.
        assert client.statistics().packets_sent - before < 100
        assert not server.is_closed


async def test_the_dead_peer_of_a_connection_kept_alive_is_noticed_on_time(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    async with connected_pair(
        network,
        client_config=TransportConfig(keep_alive=20.0),
        server_config=TransportConfig(max_idle_timeout=15.0),
    ) as (client, _):
        await trio.sleep(100)
        network.partition(CLIENT, SERVER)
        since = trio.current_time()
        await client.wait_closed()
        assert 7.5 <= trio.current_time() - since <= 15.0 + 7.5 + 0.1


async def test_keep_alive_is_quiet_while_nobody_has_answered_the_handshake(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    network.partition(CLIENT, SERVER)
    with pytest.raises(phoenix_trio.HandshakeTimedOut):
        async with phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=client_tls(),
            alpn=ALPN,
            config=TransportConfig(keep_alive=1.0, max_idle_timeout=10.0),
            network=network.host(CLIENT),
        ):
            raise AssertionError("there is no server")


def test_remembered_parameters_shorten_the_keep_alive_of_early_data() -> None:
    store = phoenix_trio.SessionStore()
    tls = client_tls(session_store=store, early_data=True)
    wanting = TransportConfig(keep_alive=20.0)
    strict = TransportConfig(max_idle_timeout=15.0)
    server = server_tls(early_data=True)
    EnginePair(client=tls, server=server, client_config=wanting, server_config=strict).connect()
    again = EnginePair(client=tls, server=server, client_config=wanting, server_config=strict)
    assert again.client.engine.can_send_early_data
    assert keep_alive_due(again.client.engine) == 7.5
    again.connect()
    again.run(60.0)
    assert not again.client.of(events.Terminated)


def test_a_timeout_below_a_millisecond_is_not_announced_as_none() -> None:
    pair = EnginePair(server_config=TransportConfig(max_idle_timeout=0.0004)).connect()
    assert pair.client.engine.idle_timeout == 0.001
