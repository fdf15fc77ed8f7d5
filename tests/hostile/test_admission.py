"""Floods of Initial packets: their cost is bounded, and other clients still get in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.handshake.initial_protection import (
    VERSION_1,
    VERSION_2,
    authenticate_initial,
)
from phoenix_trio.quic.handshake.places import Place, Places, peer_of
from phoenix_trio.quic.logs import RECORDS_AT_ONCE, BoundedRecords
from phoenix_trio.quic.setup import make_client_engine
from tests.engine_access import crypto_to_send, own_connection_id
from tests.hostile.conftest import Figure
from tests.hostile.world import STRANGER, World
from tests.packets import Level, crypto_frame, sealed_initial
from tests.support import ALPN, PORT, SERVER, client_tls, examples

VERSIONS = pytest.mark.parametrize("version", [VERSION_1, VERSION_2])


def client_hello(alpn: tuple[str, ...] = ALPN) -> tuple[bytes, bytes]:
    """The CRYPTO frame of a real client's first packet, and the client's connection ID."""
    engine = make_client_engine(
        config=TransportConfig(),
        client_tls=client_tls(),
        host=SERVER,
        port=PORT,
        alpn=alpn,
        reset_token=lambda cid: bytes(16),
        key_log=None,
        trace_logger=None,
    )
    engine.start((SERVER, PORT), 0.0)
    hello = crypto_to_send(engine, Level.INITIAL)
    assert len(hello) < 1000
    return crypto_frame(0, hello), own_connection_id(engine)


class Attacker:
    """Sends ClientHellos that differ only in their connection IDs, and answers Retries."""

    def __init__(self, alpn: tuple[str, ...] = ALPN) -> None:
        self.frame, self.source_cid = client_hello(alpn)
        self._ids = (number.to_bytes(8, "big") for number in range(1, 1 << 60))

    def initial(self, token: bytes = b"", destination_cid: bytes | None = None) -> bytes:
        return sealed_initial(
            self.frame,
            destination_cid=destination_cid or next(self._ids),
            source_cid=self.source_cid,
            token=token,
        )

    def answers_to(self, datagrams: list[bytes]) -> Iterator[bytes]:
        """The second Initial packets after Retry packets."""
        for data in datagrams:
            if kind_of(data) is QuicPacketType.RETRY:
                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                yield self.initial(header.token, header.source_cid)


def kind_of(data: bytes) -> QuicPacketType:
    return pull_quic_header(Buffer(data=data), host_cid_length=8).packet_type


def corrupted(data: bytes) -> bytes:
    """The packet with a wrong tag, which directly follows the frame of a short packet."""
    return data[:40] + bytes((data[40] ^ 1,)) + data[41:]


def count_engines(world: World) -> list[Any]:
    """A list that grows with each engine built by the server."""
    built: list[Any] = []
    driver = world.listener._driver
    accept = driver.accept
    assert accept is not None

    def counting(*arguments: Any) -> Any:
        built.append(arguments)
        return accept(*arguments)

    driver.accept = counting
    return built


# ------------------------------------------------------------------ authentication


@VERSIONS
def test_any_authentic_initial_is_known_and_every_changed_byte_is_noticed(version: int) -> None:
    for frames, size in ((b"\x01", 1200), (client_hello()[0], 1200), (b"\x01" * 9, 1452)):
        packet = sealed_initial(frames, destination_cid=b"some id!", version=version, size=size)
        buf = Buffer(data=packet)
        header = pull_quic_header(buf, host_cid_length=8)
        check = partial(
            authenticate_initial,
            number_at=buf.tell(),
            end=header.packet_length,
            version=version,
            destination_cid=header.destination_cid,
        )
        assert check(packet)
        assert not check(packet, destination_cid=b"another!")
        assert not check(packet, end=buf.tell() + 19), "too short for a sample"
        assert not check(packet, end=len(packet) + 1)
        for at in range(header.packet_length):
            changed = packet[:at] + bytes((packet[at] ^ 0x02,)) + packet[at + 1 :]
            assert not check(changed), at


async def test_noise_builds_no_engine_and_a_first_initial_without_crypto_is_let_in(
    autojump_clock: MockClock, figure: Figure
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        built = count_engines(world)
        ping = sealed_initial(b"\x01", destination_cid=b"12345678")
        noise = corrupted(ping)
        for _ in range(20):
            assert not await world.say(noise)
        assert not built
        assert world.listener.statistics().datagrams_unroutable == 20
        driver, address = world.listener._driver, (STRANGER, 1)
        started = time.perf_counter()
        for _ in range(500):
            driver._receiver.dispatch(noise, address, trio.current_time(), 0)
        figure("noise with a wrong tag", (time.perf_counter() - started) / 500 * 1e6, "us each")
        await world.say(ping)
        assert len(built) == 1
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ load


async def test_failing_handshakes_make_the_server_demand_retry(
    autojump_clock: MockClock, figure: Figure
) -> None:
    """None of them stays, so the number of unfinished handshakes does not show the load."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry_failure_rate=10, retry_threshold=1000).start()
        attacker = Attacker(alpn=("unknown",))
        built = count_engines(world)
        kinds = []
        for _ in range(300):
            kinds += [kind_of(answer) for answer in await world.say(attacker.initial())]
        statistics = world.listener.statistics()
        assert kinds.count(QuicPacketType.RETRY) == statistics.retries_sent
        # 3 s at 100 a second: 10 at once, and 10 a second.
        assert len(built) == pytest.approx(10 + 3 * 10, abs=3)
        assert statistics.retries_sent == 300 - len(built)
        figure("engines built for 300 failing Initials in 3 s", len(built), "")
        await world.check_alive()
        await trio.sleep(10)
        before = world.listener.statistics().retries_sent
        await world.check_alive()
        assert world.listener.statistics().retries_sent == before, "calm again"
        nursery.cancel_scope.cancel()


async def test_more_than_so_many_new_clients_a_second_have_to_prove_their_address(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry_admission_rate=20).start()
        attacker = Attacker()
        built = count_engines(world)
        for _ in range(50):
            await world.say(attacker.initial())
        assert len(built) == pytest.approx(20 + 0.5 * 20, abs=2)
        assert world.listener.statistics().retries_sent == 50 - len(built)
        nursery.cancel_scope.cancel()


async def test_a_client_which_proves_its_address_may_not_fail_more_often_than_that(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry="always", max_failure_rate_per_address=10).start()
        attacker = Attacker(alpn=("unknown",))
        built = count_engines(world)
        for _ in range(200):
            for second in attacker.answers_to(await world.say(attacker.initial())):
                await world.say(second)
        # 4 s at 50 a second.
        assert len(built) == pytest.approx(10 + 4 * 10, abs=5)
        await honest_clients(world, 2)
        await trio.sleep(5)
        (retry,) = await world.say(attacker.initial())
        (second,) = attacker.answers_to([retry])
        count = len(built)
        await world.say(second)
        assert len(built) == count + 1
        nursery.cancel_scope.cancel()


async def test_a_failed_handshake_counts_as_load_until_its_closing_period_is_over(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        attacker = Attacker(alpn=("unknown",))
        for _ in range(3):
            await world.say(attacker.initial())
        assert world.listener.statistics().handshakes == 3
        assert world.listener.statistics().handshakes_failed == 3
        await trio.sleep(2)
        assert world.listener.statistics().handshakes == 0
        assert world.listener.statistics().connections == 0
        nursery.cancel_scope.cancel()


async def test_one_kind_of_answer_does_not_use_up_the_rate_of_another(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry="always").start()
        unknown = b"\xc0\x1a\x2a\x3a\x4a\x08abcdefgh\x04wxyz".ljust(1200, b"\0")
        for _ in range(3000):
            world.stranger.send(unknown, (SERVER, PORT))
        assert len(await world.say(b"\x41" + bytes(99))) < 500
        assert [kind_of(a) for a in await world.say(Attacker().initial())] == [QuicPacketType.RETRY]
        await world.check_alive()
        nursery.cancel_scope.cancel()


async def test_faults_of_strangers_are_not_logged_above_debug_level(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        no_protocol = Attacker(alpn=("unknown",))
        for number in range(10):
            await world.say(no_protocol.initial())
            await world.say(
                sealed_initial(b"\x06\x00\x04abcd", destination_cid=b"nohello%d" % number)
            )
            await world.say(sealed_initial(b"\xff\xff", destination_cid=b"noframe%d" % number))
        await trio.sleep(3)
        assert world.listener.statistics().handshakes_failed >= 20
        assert not [r for r in caplog.records if r.levelno > logging.DEBUG]
        nursery.cancel_scope.cancel()


def test_a_flood_of_errors_of_one_place_is_logged_in_part() -> None:
    records = BoundedRecords()

    def log(line: int, at: float, level: int = logging.ERROR) -> logging.LogRecord | None:
        record = logging.LogRecord("x", level, "file.py", line, "text", (), None)
        record.created = at
        return record if records.filter(record) else None

    passed = [log(1, 5.0) for _ in range(RECORDS_AT_ONCE + 50)]
    assert len([r for r in passed if r]) == RECORDS_AT_ONCE
    assert log(2, 5.0), "another place"
    assert log(1, 5.0, logging.DEBUG)
    later = log(1, 7.0)
    assert later is not None
    assert "50 more" in later.getMessage()


# ------------------------------------------------------------------ shares


async def flood(
    world: World,
    attacker: Attacker,
    *,
    rate: int,
    seconds: float,
    answering: bool,
    sources: Callable[[int], str] | None = None,
) -> None:
    """ClientHellos at a rate; `sources` gives the (forged) address of each."""

    def forge(datagram: Any) -> Any:
        if datagram.source[0] == STRANGER and sources is not None:
            sent[0] += 1
            return attrs.evolve(datagram, source=(sources(sent[0]), 1000 + sent[0] % 60_000))
        return datagram

    sent = [0]
    world.network.tap = forge
    for _ in range(int(seconds * 20)):
        for _ in range(rate // 20):
            world.stranger.send(attacker.initial(), (SERVER, PORT))
        await trio.sleep(0.05)
        answers = [answer for answer, _ in world.stranger.receive(10_000)]
        if answering:
            for second in attacker.answers_to(answers):
                world.stranger.send(second, (SERVER, PORT))


async def honest_clients(world: World, count: int) -> None:
    """Clients from addresses of their own, one after another; each gets its echo."""
    for number in range(count):
        async with phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=client_tls(),
            alpn=ALPN,
            network=world.network.host(f"10.3.0.{number + 1}"),
        ) as connection:
            async with await connection.open_stream() as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize(
    ("answering", "sources"),
    [
        pytest.param(True, None, id="one-address"),
        pytest.param(False, None, id="one-silent-address"),
        pytest.param(False, lambda number: f"10.8.{number % 200}.{number % 199}", id="forged"),
        pytest.param(False, lambda number: f"10.3.0.{number % 8 + 1}", id="forged-as-the-victims"),
    ],
)
@pytest.mark.parametrize(
    "scale", [pytest.param(8, id="small"), pytest.param(1, id="whole", marks=pytest.mark.soak)]
)
async def test_a_flood_of_client_hellos_locks_no_other_client_out(
    autojump_clock: MockClock,
    answering: bool,
    sources: Callable[[int], str] | None,
    scale: int,
    figure: Figure,
) -> None:
    """440 valid ClientHellos a second for 10 s, or an eighth of all numbers."""
    async with trio.open_nursery() as nursery:
        limit = TransportConfig().max_handshakes // scale
        world = await World(nursery, max_handshakes=limit, retry_threshold=64 // scale).start()
        attack = partial(
            flood,
            world,
            Attacker(),
            rate=440 // scale,
            seconds=10.0,
            answering=answering,
            sources=sources,
        )
        most = 0
        async with trio.open_nursery() as flooding:
            flooding.start_soon(attack)
            for _ in range(8):
                await honest_clients(world, 8)
                await trio.sleep(1.0)
                most = max(most, world.listener.statistics().handshakes)
        assert most <= limit // 2
        figure("handshake places which the flood took", most, f"of {limit}")
        nursery.cancel_scope.cancel()


async def test_a_full_share_is_refused_and_is_free_again_when_connections_end(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, max_connections_per_address=2).start()
        async with phoenix_trio.Endpoint.open(network=world.network.host("10.4.0.1")) as endpoint:
            dial = partial(endpoint.connect, SERVER, PORT, tls=client_tls(), alpn=ALPN)
            async with dial(), dial():
                with pytest.raises(phoenix_trio.ConnectionRefused):
                    async with dial():
                        pass
                await honest_clients(world, 2)
            await trio.sleep(3)
            async with dial(), dial():
                assert world.listener.statistics().connections == 2
        nursery.cancel_scope.cancel()


async def test_an_address_may_take_every_place_where_its_share_is_switched_off(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(
            nursery,
            max_handshakes=40,
            retry_threshold=10,
            max_handshakes_per_address=40,
        ).start()
        await flood(world, Attacker(), rate=100, seconds=2, answering=True)
        assert world.listener.statistics().handshakes == 40
        nursery.cancel_scope.cancel()


def test_one_peer_is_one_address_or_one_ipv6_network() -> None:
    near, far = "fd00:0:0:1::7", "fd00:0:0:2::7"
    assert peer_of((near, 1)) == peer_of(("fd00::1:ffff:0:0:1", 2, 0, 0)) != peer_of((far, 1))
    assert peer_of(("10.0.0.7", 1)) == peer_of(("::ffff:10.0.0.7", 9)) != peer_of(("10.0.0.8", 1))
    assert peer_of(("fe80::1%eth0", 1)) == peer_of(("fe80::1", 1))


def test_with_default_shares_it_takes_many_addresses_to_fill_the_places() -> None:
    config = TransportConfig()
    places = Places(config)
    taken = []
    for number in range(30):
        address = (f"10.0.0.{number}", 1)
        taken.append(0)
        while not places.is_full and places.has_share_left(address, 0.0):
            places.enter(address, is_validated=True)
            taken[-1] += 1
    assert taken == [512] + [16] * 29
    assert places.has_share_left(("10.1.1.1", 1), 0.0)


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=120))
def test_the_counts_of_places_are_those_of_the_places_taken(
    steps: list[tuple[int, int, bool]],
) -> None:
    config = TransportConfig(max_handshakes=16, max_connections=24, retry_threshold=4)
    places = Places(config)
    taken: list[tuple[Place, str]] = []
    completed: set[Place] = set()
    for action, which, is_validated in steps:
        address = (f"10.0.0.{which}", 7)
        if action < 3:
            has_left = (
                places.has_share_left(address, 0.0)
                if is_validated
                else places.has_unvalidated_left(address, 0.0)
            )
            if has_left and not places.is_full:
                taken.append((places.enter(address, is_validated=is_validated), address[0]))
        elif taken and action == 3:
            place, _ = taken[which % len(taken)]
            place.on_handshake_completed()
            completed.add(place)
            assert place.is_validated
        elif taken:
            place, _ = taken.pop(which % len(taken))
            place.leave()
            place.leave()
            place.on_handshake_completed()
        assert places.connections == len(taken) <= config.max_connections
        assert places.handshakes == sum(p not in completed for p, _ in taken)
        assert places.unvalidated == sum(not p.is_validated for p, _ in taken) <= 8
        assert len(places) == len({name for _, name in taken})
    for place, _ in taken:
        place.leave()
    assert len(places) == places.connections == places.handshakes == places.unvalidated == 0
