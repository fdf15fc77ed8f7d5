"""Strangers and hostile peers: an endpoint survives them, with bounded state and answers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPacketType,
    pull_quic_header,
)
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from phoenix_trio.quic import events
from phoenix_trio.quic.handshake.admission import destination_connection_id
from phoenix_trio.quic.rate_limit import RateLimit
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import (
    believe_max_data,
    believe_max_streams,
    change_connection_id,
    fail_when_reading,
)
from tests.engine_packets import seal_short
from tests.hostile.world import World, ended_with, first_initial, rogue_pair
from tests.packets import stream_frame
from tests.support import (
    PORT,
    SERVER,
    EnginePair,
    connected_pair,
    examples,
    stream_pair,
)


def test_malformed_datagrams_never_raise_and_the_server_goes_on() -> None:
    generator = random.Random(4)
    samples = [b"", b"\x00", b"\x40", b"\xc0", b"\xff" * 5, bytes(1200), b"\xff" * 1500]
    samples += [generator.randbytes(generator.randint(1, 1500)) for _ in range(300)]
    initial = first_initial()
    for _ in range(300):
        mutated = bytearray(initial)
        for _ in range(generator.randint(1, 4)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        samples.append(bytes(mutated[: generator.choice([len(mutated), 1200, 60, 7])]))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = await World(nursery).start()
            for sample in samples:
                answers = await world.say(sample)
                assert sum(map(len, answers)) <= 3 * max(len(sample), 1)
            await trio.sleep(60)
            assert world.listener.statistics().connections == 0
            assert world.listener.statistics().datagrams_unroutable > 100
            await world.check_alive()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@examples(50)
@given(st.binary(max_size=60))
def test_a_connection_id_is_found_in_any_bytes_or_none(data: bytes) -> None:
    found = destination_connection_id(data)
    assert found is None or found in data


async def test_an_established_connection_survives_forged_packets(
    autojump_clock: MockClock,
) -> None:
    """Bit flips, truncation, replays and invented data with the right connection ID."""
    network = SimulatedNetwork(delay=0.005)
    generator = random.Random(11)

    def mangle(datagram: Any) -> list[Any]:
        forged = bytearray(datagram.data)
        kind = generator.randrange(5)
        if kind == 0:
            forged[generator.randrange(len(forged))] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del forged[generator.randrange(1, len(forged)) :]
        elif kind == 2:
            forged = forged[:9] + generator.randbytes(generator.randint(0, 100))
        elif kind == 3:
            forged += generator.randbytes(30)
        # kind 4: a replay
        copy = type(datagram)(datagram.source, datagram.destination, bytes(forged))
        return [copy, datagram, copy]

    async with connected_pair(network) as (client, server):
        network.tap = mangle
        ours, theirs = await stream_pair(client, server)
        data = generator.randbytes(300_000)

        async def send() -> None:
            await ours.send_all(data)
            await ours.send_eof()

        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in theirs:
                received += chunk
        assert received == data
        assert not client.is_closed
        assert not server.is_closed


async def test_unknown_versions_are_answered_with_ours_and_negotiation_never_is(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        unknown = b"\xc0\x1a\x2a\x3a\x4a\x08abcdefgh\x04wxyz"
        (answer,) = await world.say(unknown.ljust(1200, b"\0"))
        header = pull_quic_header(Buffer(data=answer), host_cid_length=8)
        assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
        assert header.destination_cid == b"wxyz"
        assert header.source_cid == b"abcdefgh"
        assert 1 in header.supported_versions
        assert not await world.say(unknown), "too small to be answered"
        assert not await world.say(answer.ljust(1200, b"\0")), "that would go on for ever"
        assert world.listener.statistics().version_negotiations_sent == 1
        nursery.cancel_scope.cancel()


async def test_a_flood_of_handshakes_is_bounded_and_amplifies_little(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry_threshold=5, max_handshakes=10).start()
        sent = received = 0
        for _ in range(60):
            initial = first_initial()
            answers = await world.say(initial)
            sent += len(initial)
            received += sum(map(len, answers))
            assert world.listener.statistics().handshakes <= 10
        await trio.sleep(5)
        received += sum(len(a) for a, _ in world.stranger.receive(10_000))
        assert received <= 3 * sent
        statistics = world.listener.statistics()
        assert statistics.handshakes == 5
        assert statistics.retries_sent == 55
        await trio.sleep(10)
        assert world.listener.statistics().connections == 0, "handshake_timeout ends them"
        assert world.listener.statistics().handshakes_failed == 5
        await world.check_alive()
        nursery.cancel_scope.cancel()


async def test_retry_tokens_are_bound_to_the_address(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery, retry="always").start()
        stolen: list[bytes] = []

        def steal(datagram: Any) -> Any:
            data = datagram.data
            if datagram.destination == (SERVER, PORT) and data[0] & 0x80:
                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                if header.packet_type is QuicPacketType.INITIAL and header.token:
                    stolen.append(data)
            return datagram

        world.network.tap = steal
        await world.check_alive()
        world.network.tap = None
        assert stolen
        await trio.sleep(5)  # the connection's IDs are forgotten; the token is still valid
        before = world.listener.statistics().connections
        answers = await world.say(stolen[0])
        assert world.listener.statistics().connections == before
        header = pull_quic_header(Buffer(data=answers[0]), host_cid_length=8)
        assert header.packet_type is QuicPacketType.RETRY
        nursery.cancel_scope.cancel()


async def test_stateless_resets_are_smaller_than_their_cause_and_rare(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        for size in (20, 21, 22, 43, 100, 1200):
            answers = await world.say(b"\x41" + bytes(size - 1))
            assert [len(a) for a in answers] in ([], [min(size - 1, 42)]), size
            assert all(21 <= len(a) < size and a[0] & 0xC0 == 0x40 for a in answers)
        for _ in range(500):
            world.stranger.send(b"\x41" + bytes(99), (SERVER, PORT))
        await trio.sleep(0.01)
        assert len(world.stranger.receive(1000)) <= 60
        nursery.cancel_scope.cancel()


def test_a_rate_limit_allows_a_burst_and_then_a_rate() -> None:
    limit = RateLimit(rate=10.0, burst=5)
    assert [limit.allows(100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert sum(limit.allows(100.0 + i / 100) for i in range(200)) == pytest.approx(19, abs=1)


def test_events_which_a_rate_limit_could_not_prevent_delay_those_after_them() -> None:
    limit = RateLimit(rate=10.0, burst=5)
    for _ in range(8):
        limit.count(100.0)
    assert limit.is_reached(100.35)
    assert not limit.is_reached(100.45)
    for _ in range(1000):
        limit.count(101.0)
    assert limit.is_reached(101.55)
    assert not limit.is_reached(101.65), "for as long as a burst takes at most"


# ------------------------------------------------------------------ rogue peers


def test_a_peer_which_opens_too_many_streams_is_refused() -> None:
    pair = rogue_pair(max_bidirectional_streams=2)
    believe_max_streams(pair.client.engine, 100)
    for _ in range(3):
        stream_id = pair.client.engine.open_stream(unidirectional=False)
        assert stream_id is not None
        pair.client.engine.write(stream_id, b"x")
    pair.run(1.0)
    assert "STREAM_LIMIT_ERROR" in str(ended_with(pair))


@pytest.mark.parametrize("level", ["stream", "connection"])
def test_a_peer_which_violates_flow_control_is_refused(level: str) -> None:
    pair = rogue_pair(
        receive_buffer_size=64 * 1024,
        stream_receive_buffer_size=64 * 1024 if level == "connection" else 16 * 1024,
    )
    assert pair.server is not None
    pair.server.read_automatically = False
    engine = pair.client.engine
    for _ in range(2):
        stream_id = engine.open_stream(unidirectional=False)
        assert stream_id is not None
        believe_max_data(engine, 10**9, *([stream_id] if level == "stream" else []))
        engine.write(stream_id, bytes(60_000))
    pair.run(2.0)
    assert "FLOW_CONTROL_ERROR" in str(ended_with(pair))


def test_a_peer_which_sends_a_stream_full_of_holes_is_refused() -> None:
    pair = rogue_pair()
    assert pair.server is not None
    for first in range(1, 2200, 400):
        frames = [stream_frame(0, at, b"x") for at in range(first, first + 400, 2)]
        packet = seal_short(pair.client.engine, *frames)
        pair.server.engine.receive(packet, pair.client.address, pair.now)
    pair.run(3.0)
    assert "gaps" in str(ended_with(pair))


def test_what_escapes_aioquic_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    fail_when_reading(pair.server.engine)
    change_connection_id(pair.client.engine)
    pair.run(1.0)
    assert "INTERNAL_ERROR" in str(ended_with(pair))
    assert any(isinstance(r.exc_info and r.exc_info[1], ZeroDivisionError) for r in caplog.records)


def test_a_peer_which_sends_a_byte_a_packet_costs_little_memory() -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    pair.server.read_automatically = False
    engine = pair.client.engine
    stream_id = engine.open_stream(unidirectional=False)
    assert stream_id is not None
    for _ in range(300):
        engine.write(stream_id, b"x")
        pair.flush(pair.client)
    pair.run(1.0)
    assert len(pair.server.received[stream_id]) == 300
    assert not pair.server.of(events.Terminated)
