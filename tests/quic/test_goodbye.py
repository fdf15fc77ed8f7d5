"""The end of a connection reaches the peer though packets are lost, and costs a round trip."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.closing import REPEATS, ClosingConnection, repeat_times
from phoenix_trio.quic.established.goodbye import has_close
from phoenix_trio.testing import SimulatedNetwork
from tests.packets import ack_frame
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    connected_pair,
    server_tls,
)

DELAY = 0.02
ROUND_TRIP = 2 * DELAY


class Server:
    """Notes when each of its connections ends."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()
        self.ended.append(trio.current_time())


@asynccontextmanager
async def serving(delay: float = DELAY) -> AsyncIterator[tuple[SimulatedNetwork, Server]]:
    network = SimulatedNetwork(delay=delay)
    server = Server()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                server.handle,
                PORT,
                tls=server_tls(),
                alpn=ALPN,
                network=network.host(SERVER),
            )
        )
        yield network, server
        nursery.cancel_scope.cancel()


def dial(network: SimulatedNetwork, **config: Any) -> Any:
    return phoenix_trio.open_connection(
        SERVER,
        PORT,
        tls=client_tls(),
        alpn=ALPN,
        config=TransportConfig(**config),
        network=network.host(CLIENT),
    )


async def test_a_block_ends_a_round_trip_after_its_close(autojump_clock: MockClock) -> None:
    async with serving() as (network, server):
        async with dial(network):
            await trio.sleep(1)
            started = trio.current_time()
        assert trio.current_time() - started == pytest.approx(ROUND_TRIP, abs=0.002)
        assert server.ended == [pytest.approx(started + DELAY, abs=0.002)]


async def test_a_lost_close_is_sent_again(autojump_clock: MockClock) -> None:
    async with serving() as (network, server), trio.open_nursery() as nursery:
        way = network.link(CLIENT, SERVER)

        async def mend() -> None:
            await trio.sleep(0.03)
            way.set_conditions(loss=0.0)

        async with dial(network):
            await trio.sleep(1)
            started = trio.current_time()
            way.set_conditions(loss=1.0)
            nursery.start_soon(mend)
        assert server.ended
        assert server.ended[0] - started < 0.2
        assert trio.current_time() - started < 0.25


async def test_an_endpoint_which_stays_open_sends_a_lost_close_again(
    autojump_clock: MockClock,
) -> None:
    async with (
        serving() as (network, server),
        phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint,
    ):
        way = network.link(CLIENT, SERVER)
        async with endpoint.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN):
            await trio.sleep(1)
            started = trio.current_time()
            way.set_conditions(loss=1.0)
        assert trio.current_time() - started < 0.001, "it does not wait"
        await trio.sleep(0.03)
        way.set_conditions(loss=0.0)
        await trio.sleep(0.5)
        assert server.ended


@pytest.mark.parametrize(("delay", "limit"), [(DELAY, 0.4), (1.0, 1.01)])
async def test_a_peer_which_does_not_answer_is_waited_for_briefly(
    delay: float, limit: float, autojump_clock: MockClock
) -> None:
    async with serving(delay) as (network, server):
        async with dial(network):
            await trio.sleep(3)
            started = trio.current_time()
            network.link(SERVER, CLIENT).set_conditions(loss=1.0)
        assert ROUND_TRIP < trio.current_time() - started < limit
        await trio.sleep(delay)
        assert server.ended


async def test_without_linger_a_block_ends_at_once(autojump_clock: MockClock) -> None:
    async with serving() as (network, _):
        async with dial(network, close_linger=0.0):
            await trio.sleep(1)
            started = trio.current_time()
        assert trio.current_time() == started


@pytest.mark.parametrize("how", ["cancelled", "raises", "cancelled while it waits"])
async def test_a_block_which_is_left_in_a_hurry_says_it_twice_and_does_not_wait(
    how: str, autojump_clock: MockClock
) -> None:
    async with serving() as (network, server):
        way = network.link(SERVER, CLIENT)
        with trio.CancelScope() as scope:
            try:
                async with dial(network):
                    await trio.sleep(1)
                    started = trio.current_time()
                    way.set_conditions(loss=1.0)
                    if how == "raises":
                        raise KeyError
                    if how == "cancelled":
                        scope.cancel()
                        await trio.sleep_forever()
                    scope.deadline = started + 0.005
            except KeyError:
                pass
        assert trio.current_time() - started <= 0.006
        await trio.sleep(1)
        assert len(server.ended) == 1


async def test_a_server_which_closes_is_heard_too(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=DELAY)
    async with connected_pair(network) as (client, server):
        await trio.sleep(1)
        network.set_conditions(loss=1.0)
        server.abort(0)
        await trio.sleep(0.03)
        network.set_conditions(loss=0.0)
        with trio.fail_after(0.5):
            await client.wait_closed()


def closed_pair() -> EnginePair:
    pair = EnginePair().connect()
    pair.run(1.0)
    pair.client.engine.close_application(0, "")
    return pair


def test_a_close_is_answered_once_and_then_there_is_silence() -> None:
    pair = closed_pair()
    assert pair.server is not None
    sent: dict[str, int] = {"client": 0, "server": 0}

    def count(destination: Any, data: bytes) -> bool:
        sent["server" if destination is pair.client else "client"] += 1
        return False

    pair.drop = count
    pair.run(5.0)
    assert sent == {"client": 1, "server": 1}
    (ended,) = pair.server.of(events.Terminated)
    assert isinstance(ended.error, phoenix_trio.ConnectionClosedByPeer)
    assert ended.error.by_peer


def count_datagrams(network: SimulatedNetwork) -> Counter[str]:
    """Count the datagrams that each host sends from now on."""
    counts: Counter[str] = Counter()
    transfer = network._transfer

    def counting(datagram: Any) -> None:
        counts[datagram.source[0]] += 1
        transfer(datagram)

    network._transfer = counting  # type: ignore[method-assign]
    return counts


async def test_a_close_costs_one_packet_each_way(autojump_clock: MockClock) -> None:
    async with serving() as (network, _):
        async with dial(network):
            await trio.sleep(1)
            counts = count_datagrams(network)
        await trio.sleep(5)
        assert counts == {CLIENT: 1, SERVER: 1}


async def test_where_answers_are_lost_the_close_is_sent_a_few_times(
    autojump_clock: MockClock,
) -> None:
    async with serving() as (network, _):
        async with dial(network):
            await trio.sleep(1)
            counts = count_datagrams(network)
            network.link(SERVER, CLIENT).set_conditions(loss=1.0)
        await trio.sleep(5)
        assert counts == {CLIENT: 1 + REPEATS, SERVER: 1}


async def test_late_packets_are_no_answer(autojump_clock: MockClock) -> None:
    """Packets under way when the close left do not show that the peer knows of it."""
    network = SimulatedNetwork(delay=DELAY)
    async with connected_pair(network) as (client, server):
        await trio.sleep(1)
        counts = count_datagrams(network)
        async with await server.open_stream() as stream:
            await stream.send_all(b"x" * 5000)
            await trio.sleep(0.001)
            network.link(CLIENT, SERVER).set_conditions(loss=1.0)
            client.abort(0)
            await trio.sleep(0.5)
        assert counts[SERVER] >= 4
        assert counts[CLIENT] >= 1 + REPEATS, "and answers to late packets"


# ------------------------------------------------------------------ parts


@given(st.binary(max_size=200))
def test_any_payload_can_be_looked_into(payload: bytes) -> None:
    has_close(payload)


def test_a_close_is_found_behind_an_acknowledgement() -> None:
    before = ack_frame(10, 3, (0, 2)) + b"\x00\x00\x01"
    assert not has_close(before)
    assert has_close(before + b"\x1d\x00\x00")
    assert not has_close(b"\x06\x00\x01\x1d\x1d"), "inside another frame it is data"
    assert not has_close(b"\x02\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x01" + bytes(65_000),
        b"\x01" * 65_000,
        b"\x02\x00\x00\x7f\xff\x00" + bytes(65_000),
        b"\x02\x00\x00\x00\x00" * 13_000,
    ],
    ids=["probe of the path MTU", "PING frames", "ranges", "ACK frames"],
)
def test_looking_into_a_long_packet_takes_few_steps(payload: bytes) -> None:
    steps = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal steps
        steps += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = has_close(payload)
    finally:
        sys.setprofile(before)
    assert not found
    assert steps < 200
    assert has_close(b"\x01" + bytes(65_000) + b"\x1c")


def test_repeats_end_with_the_answer_or_the_period() -> None:
    times = repeat_times(0.0, 0.1, 0.01)
    assert times[-1] == pytest.approx(0.14)
    assert repeat_times(0.0, 10.0, 5.0)[0] == pytest.approx(1.0), "the last one within a second"
    run: Any = (b"close", ("peer", 1), 5, 0)
    closing = ClosingConnection([run], 0.5, repeat_times(0.0, 0.1, 0.01), lambda data: data == b"!")
    assert closing.has_close_to_send
    assert closing.next_deadline() == times[-1]
    closing.on_timer(times[-1])
    assert closing.transmit(times[-1]) == [run]
    closing.receive(b"late", None, 0.2)
    assert closing.transmit(0.2) == [run], "the first late packet is answered"
    closing.receive(b"!", None, 0.2)
    assert not closing.has_close_to_send
    assert closing.transmit(0.2) == []
    closing.receive(b"more", None, 0.3)
    assert closing.transmit(0.3) == [], "it drains"
    assert closing.next_deadline() == 0.5
    closing.on_timer(0.5)
    assert closing.is_terminated
