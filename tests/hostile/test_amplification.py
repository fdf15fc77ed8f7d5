"""A server sends an unvalidated address at most three times the bytes received from it.

RFC 9000 section 8.1.  A forger puts the victim's address on its datagrams; the victim answers
nothing.  The sum is checked at each datagram, for minutes of virtual time.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import (
    engine_of,
    intercept,
    is_path_validated,
    leave_room_before_validation,
    make_acknowledgement_due,
    mtu_search_deadline,
    path_in_use,
    unsent_bytes,
)
from tests.engine_packets import seal_short
from tests.hostile.conftest import Figure
from tests.hostile.frames import random_payload
from tests.hostile.test_admission import Attacker
from tests.hostile.world import STRANGER, World, first_initial
from tests.packets import sealed_initial
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    connected_pair,
    established,
    stream_pair,
)

LIMIT = 3.0


class Scale:
    """A tap of the network that counts bytes from and to the victim's address."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        self.largest = 0.0

    def __call__(self, datagram: Any) -> Any:
        if datagram.source[0] == STRANGER:
            self.sent += len(datagram.data)
        elif datagram.destination[0] == STRANGER:
            self.received += len(datagram.data)
            self.largest = max(self.largest, self.received / max(1, self.sent))
        return datagram


Scenario = Callable[[World], Awaitable[None]]
scenarios: dict[str, tuple[Scenario, dict[str, Any]]] = {}


def scenario(**config: Any) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        scenarios[function.__name__] = (function, config)
        return function

    return register


@scenario()
async def a_first_initial_and_silence(world: World) -> None:
    await world.say(first_initial())


@scenario()
async def the_same_initial_a_hundred_times(world: World) -> None:
    initial = first_initial()
    for _ in range(100):
        await world.say(initial)


@scenario(retry="never")
async def many_different_initials(world: World) -> None:
    attacker = Attacker()
    for _ in range(50):
        await world.say(attacker.initial())


@scenario(retry="always")
async def initials_that_are_answered_with_retry(world: World) -> None:
    attacker = Attacker()
    for _ in range(50):
        await world.say(attacker.initial())


@scenario(retry="always")
async def initials_with_invented_tokens(world: World) -> None:
    attacker = Attacker()
    for size in (1, 50, 100, 200):
        await world.say(attacker.initial(token=os.urandom(size)))


@scenario(max_connections=1, retry="never")
async def initials_that_are_refused(world: World) -> None:
    attacker = Attacker()
    for _ in range(50):
        await world.say(attacker.initial())


@scenario()
async def handshakes_that_fail(world: World) -> None:
    attacker = Attacker(alpn=("something/else",))
    for _ in range(20):
        await world.say(attacker.initial())
    for number in range(20):
        await world.say(sealed_initial(b"\x06\x00\x04abcd", destination_cid=b"broken%02d" % number))


@scenario()
async def initials_that_only_ping(world: World) -> None:
    for number in range(5):
        cid = b"pings%03d" % number
        for packet_number in range(5):
            await world.say(
                sealed_initial(b"\x01", destination_cid=cid, packet_number=packet_number)
            )


@scenario()
async def initials_with_any_frames(world: World) -> None:
    generator = random.Random(7)
    for number in range(100):
        frames = random_payload(generator, closes=True)
        await world.say(sealed_initial(frames[:1000], destination_cid=b"any%05d" % number))


@scenario()
async def datagrams_of_unknown_versions(world: World) -> None:
    for size in (30, 1199, 1200, 1452):
        for _ in range(20):
            data = b"\xc0\x1a\x2a\x3a\x4a\x14" + bytes(20) + b"\x14" + bytes(20)
            await world.say(data.ljust(size, b"\0"))


@scenario()
async def short_headers_for_no_connection(world: World) -> None:
    for size in range(1, 200):
        await world.say(b"\x41" + os.urandom(size))


@scenario()
async def handshake_and_0rtt_packets_for_no_connection(world: World) -> None:
    for first in (0xD0, 0xE0, 0xF0):
        for size in (50, 1200):
            head = bytes((first | 1,)) + b"\0\0\0\x01\x08" + os.urandom(8) + b"\x08" + bytes(8)
            await world.say((head + b"\x40\x40").ljust(size, b"\0"))


@scenario()
async def initials_with_garbage_behind_them(world: World) -> None:
    for number in range(20):
        short = sealed_initial(b"\x01", destination_cid=b"tail%04d" % number, size=1200)
        await world.say(short + os.urandom(200))


@scenario()
async def an_initial_in_two_datagrams(world: World) -> None:
    attacker = Attacker()
    half = len(attacker.frame) // 2
    content = attacker.frame[4:]
    for number in range(10):
        cid = b"halves%02d" % number
        first = b"\x06\x00" + (0x4000 | half).to_bytes(2, "big") + content[:half]
        seal = partial(sealed_initial, destination_cid=cid, source_cid=attacker.source_cid)
        await world.say(seal(first))
        rest = content[half:]
        second = b"\x06" + (0x4000 | half).to_bytes(2, "big")
        second += (0x4000 | len(rest)).to_bytes(2, "big") + rest
        await world.say(seal(second, packet_number=1))


@scenario()
async def a_fault_from_another_address(world: World) -> None:
    """It closes the connection when the victim has been sent all permitted bytes."""
    elsewhere = await world.network.host("10.8.8.8").open_socket(None, 0, buffer_size=100_000)
    initial = first_initial()
    cid = initial[6 : 6 + initial[5]]
    await world.say(initial)
    await trio.sleep(1)
    unknown_frame = sealed_initial(b"\x3f" * 20, destination_cid=cid, packet_number=100)
    elsewhere.send(unknown_frame, (SERVER, PORT))
    for _ in range(40):  # (some of which a closing connection answers)
        await trio.sleep(0.01)
        elsewhere.send(initial, (SERVER, PORT))
    elsewhere.close()


@pytest.mark.parametrize("name", list(scenarios))
async def test_a_strangers_address_gets_at_most_three_times_what_it_sent(
    name: str, autojump_clock: MockClock, figure: Figure
) -> None:
    attack, config = scenarios[name]
    async with trio.open_nursery() as nursery:
        world = await World(nursery, **config).start()
        scale = world.network.tap = Scale()
        await attack(world)
        await trio.sleep(120)
        assert scale.sent > 0
        assert scale.largest <= LIMIT
        figure("bytes received for each byte sent, at most", scale.largest, "times")
        world.network.tap = None
        if config.get("max_connections") is None:
            await world.check_alive()
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ established connections


@asynccontextmanager
async def download(world: World) -> AsyncIterator[phoenix_trio.QuicConnection]:
    """A client of the world's echo server that uploads, and so downloads, without end."""
    async with (
        phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=world.network.host(CLIENT)
        ) as connection,
        trio.open_nursery() as nursery,
    ):
        stream = await connection.open_stream()

        async def upload() -> None:
            while True:
                await stream.send_all(bytes(100_000))

        async def read() -> None:
            while True:
                await stream.receive_some()

        nursery.start_soon(upload)
        nursery.start_soon(read)
        yield connection
        nursery.cancel_scope.cancel()
        connection.abort()


class Redirector(Scale):
    """From now on, some of the client's datagrams seem to come from the victim's address."""

    def __init__(self, share: int) -> None:
        super().__init__()
        self.share = share
        self.count = 0

    def __call__(self, datagram: Any) -> Any:
        if datagram.source[0] == CLIENT:
            self.count += 1
            if self.count % self.share == 0:
                datagram = type(datagram)(
                    (STRANGER, 4000), datagram.destination, datagram.data, datagram.ecn
                )
        return super().__call__(datagram)


@pytest.mark.parametrize("share", [1, 2, 10])
async def test_packets_with_a_victims_address_do_not_redirect_a_download(
    share: int, autojump_clock: MockClock, figure: Figure
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        world.network.set_conditions(bandwidth=10_000_000.0)
        async with download(world):
            await trio.sleep(0.2)
            scale = world.network.tap = Redirector(share)
            await trio.sleep(2)
            assert scale.sent > 0
            assert scale.largest <= LIMIT
            figure("bytes received for each byte sent, at most", scale.largest, "times")
            world.network.tap = None
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def flooding_world() -> AsyncIterator[World]:
    """A server that sends without end as soon as it can."""

    async def flood(connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.open_stream()
        while True:
            await stream.send_all(bytes(100_000))

    async with trio.open_nursery() as nursery:
        yield await World(nursery, handler=flood).start()
        nursery.cancel_scope.cancel()


class Mover(Scale):
    """The client's datagrams, by number, seem to come from the victim or are lost."""

    def __init__(self, victims: range, last: int, *, copies: range = range(0)) -> None:
        super().__init__()
        self.victims, self.last, self.copies = victims, last, copies
        self.count = 0

    def __call__(self, datagram: Any) -> Any:
        if datagram.source[0] != CLIENT:
            return super().__call__(datagram)
        number, self.count = self.count, self.count + 1
        if number > self.last:
            return None
        moved = type(datagram)((STRANGER, 4000), *self._rest(datagram))
        if number in self.victims:
            return super().__call__(moved)
        if number in self.copies:
            return [super().__call__(moved), datagram]
        return datagram

    @staticmethod
    def _rest(datagram: Any) -> tuple[Any, bytes, int]:
        return datagram.destination, datagram.data, datagram.ecn


@pytest.mark.parametrize("copied", [False, True])
async def test_the_end_of_a_handshake_from_a_victims_address_proves_nothing(
    copied: bool, autojump_clock: MockClock, figure: Figure
) -> None:
    """The attacker reads the server's flight at its own address, and ends the handshake from
    the victim's.  Copied: the first packet has come from there as well.
    """
    async with flooding_world() as world:
        last = 3 if copied else 1
        scale = Mover(range(last, last + 1), last, copies=range(1 if copied else 0))
        world.network.tap = scale
        with pytest.raises(phoenix_trio.ConnectionTimedOut):
            async with phoenix_trio.open_connection(
                SERVER, PORT, tls=client_tls(), alpn=ALPN, network=world.network.host(CLIENT)
            ) as connection:
                await connection.ping()
        assert scale.sent > 0
        figure("bytes received for each byte sent, at most", scale.largest, "times")
        assert scale.largest <= LIMIT
        assert not world.listener._driver._routes
        assert not len(world.listener._driver._admission.places)


async def test_a_handshake_with_two_addresses_counts_as_unproved(
    autojump_clock: MockClock,
) -> None:
    """Otherwise an attacker would have a connection charged to each address that it can forge."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        places = world.listener._driver._admission.places
        world.network.tap = Mover(range(0), 1 << 30, copies=range(1))
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=world.network.host(CLIENT)
        ) as connection:
            await connection.ping()
            assert (places.connections, places.handshakes, places.unvalidated) == (1, 0, 1)
        world.network.tap = None
        await world.check_alive()
        await trio.sleep(10)
        assert (places.connections, places.handshakes, places.unvalidated) == (0, 0, 0)
        nursery.cancel_scope.cancel()


async def test_a_closed_connection_does_not_answer_a_victim_more_than_it_is_asked(
    autojump_clock: MockClock, figure: Figure
) -> None:
    """Replays of an ended connection's packets, with the victim's address."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        recorded: list[bytes] = []

        def record(datagram: Any) -> Any:
            if datagram.source[0] == CLIENT:
                recorded.append(datagram.data)
            return datagram

        world.network.tap = record
        await world.check_alive()
        scale = world.network.tap = Scale()
        for _ in range(20):
            for data in recorded:
                await world.say(data)
        await trio.sleep(60)
        assert scale.largest <= LIMIT
        figure("bytes received for each byte sent, at most", scale.largest, "times")
        nursery.cancel_scope.cancel()


async def turns_in(seconds: float, connection: phoenix_trio.QuicConnection) -> int:
    """The number of turns of the socket's tasks in so many virtual seconds."""
    driver = connection._driver
    turn, turns = driver._turn, 0

    def count() -> bool:
        nonlocal turns
        turns += 1
        if turns > 50_000:
            raise AssertionError("the driver never sleeps")
        return turn()

    driver._turn = count  # type: ignore[method-assign]
    await trio.sleep(seconds)
    driver._turn = turn  # type: ignore[method-assign]
    return turns


@pytest.mark.parametrize("room", [0, 1, 60, 73, 90, 120, 127, 128, 160, 300])
async def test_a_path_without_room_for_an_acknowledgement_costs_no_time(
    room: int, autojump_clock: MockClock
) -> None:
    """Otherwise a client could change its address, leave little room there, and stop."""
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(5)
        for _ in range(3):  # with ECN marks, which acknowledgements report
            await client.ping()
        sent: list[Any] = []

        def from_elsewhere(datagram: Any) -> Any:
            if datagram.source[0] != CLIENT:
                return None if datagram.destination[0] != CLIENT else datagram
            moved = type(datagram)((STRANGER, 9), datagram.destination, datagram.data, 2)
            sent.append(moved)
            return moved

        await theirs.send_all(bytes(500_000))
        await trio.sleep(0.02)
        network.tap = from_elsewhere
        await ours.send_all(b"x" * 500)
        await trio.sleep(0.011)
        engine = engine_of(server)
        assert path_in_use(engine)[0] == STRANGER
        assert not is_path_validated(engine)
        leave_room_before_validation(engine, room)
        make_acknowledgement_due(engine, trio.current_time())
        server._driver.flush_soon(server._route)
        assert await turns_in(1.0, server) < 1500


@pytest.mark.parametrize("room", [0, 39, 40, 43, 47, 48, 52, 60, 100])
def test_data_waits_where_a_path_has_no_room_for_it(room: int) -> None:
    """Otherwise a client that moves could make the server look for room all the time."""
    pair, client, server = established()
    engine = server.engine
    stream_id = engine.open_stream(unidirectional=True)
    assert stream_id is not None
    ping = seal_short(client.engine, b"\x01".ljust(300, b"\0"))
    engine.receive_run(ping, 0, len(ping), (CLIENT, 9000), pair.now)
    pair.flush(server)
    assert not is_path_validated(engine)
    engine.write(stream_id, bytes(100_000))
    leave_room_before_validation(engine, room)
    pair.wire.clear()
    pair.flush(server)  # It comes to an end.
    assert sum(len(data) for _, _, _, data, _ in pair.wire) <= room
    assert unsent_bytes(engine) > 0


def test_a_client_that_hops_does_not_keep_the_search_for_larger_packets_waiting() -> None:
    """The search has to wait for a validated path, and so must its timer: with a new port each
    second, a client would have a turn every millisecond.
    """
    pair = EnginePair()
    pair.drop = lambda destination, data: len(data) > 1250
    pair.connect()
    assert pair.server is not None
    engine = pair.server.engine
    pair.run(20)
    assert mtu_search_deadline(engine) < math.inf
    pair.now = mtu_search_deadline(engine) - 0.5
    for port in range(9000, 9003):
        ping = seal_short(pair.client.engine, b"\x01".ljust(300, b"\0"))
        engine.receive_run(ping, 0, len(ping), (CLIENT, port), pair.now)
        pair.flush(pair.server)
        pair.now += 0.4
        assert not is_path_validated(engine)
        turns = 0
        while (deadline := engine.next_deadline()) is not None and deadline <= pair.now:
            engine.on_timer(pair.now)
            pair.flush(pair.server)
            turns += 1
            assert turns < 10


async def test_a_timer_that_never_gets_done_does_not_keep_the_processor_busy(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (_, server):
        await trio.sleep(5)
        engine = engine_of(server)
        intercept(engine, "next_deadline", lambda: 1.0)
        server._driver.flush_soon(server._route)
        assert 10 < await turns_in(1.0, server) < 1500
