"""Floods of CRYPTO frames, by strangers and by peers: each packet costs little, and the same."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from aioquic import tls

import phoenix_trio
from phoenix_trio.quic import events
from phoenix_trio.quic.established.crypto_stream import HANDSHAKE_WINDOW, INITIAL_WINDOW, MAX_GAPS
from tests.engine_access import (
    crypto_held,
    crypto_received,
    crypto_to_send,
    path_in_use,
    set_next_packet_number,
)
from tests.engine_packets import seal_short
from tests.packets import Level, crypto_frame, sealed_initial
from tests.support import EnginePair, Side, client_tls, established, take_apart

from .conftest import Figure
from .world import first_initial

ROOM = 1130
"""Bytes of frames in a packet of 1200 bytes."""

STRANGER = ("10.9.9.9", 999)


def packets_of(frames: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Full packets' payloads of these frames."""
    waiting = next(frames)
    for _ in range(count):
        payload = b""
        while len(payload) + len(waiting) <= ROOM:
            payload += waiting
            waiting = next(frames, b"\0")
        yield payload


def holes() -> Iterator[bytes]:
    """A byte at every other offset."""
    offset = 1
    while True:
        yield crypto_frame(offset, b"x")
        offset += 2


def gaps_within_the_limit() -> Iterator[bytes]:
    """As many gaps as are accepted, and then their pieces again, for ever."""
    generator = random.Random(1)
    while True:
        yield crypto_frame(100 + 3 * generator.randrange(MAX_GAPS - 1), b"x")


def byte_by_byte() -> Iterator[bytes]:
    """A long message in order, a byte a frame; its last byte never comes."""
    size = INITIAL_WINDOW - 4
    message = b"\x01" + size.to_bytes(3, "big") + bytes(size)
    while True:
        for offset in range(len(message) - 1):
            yield crypto_frame(offset, message[offset : offset + 1])


def backwards() -> Iterator[bytes]:
    """One piece that grows at its front, a byte a frame."""
    while True:
        for offset in range(INITIAL_WINDOW - 1, 5, -1):
            yield crypto_frame(offset, b"x")


def empty() -> Iterator[bytes]:
    """Frames without data."""
    while True:
        yield crypto_frame(7, b"")


FLOODS = [holes, gaps_within_the_limit, byte_by_byte, backwards, empty]


def new_server() -> tuple[Side, bytes]:
    """A server's engine that waits for a client's first packet, and its connection ID."""
    hello = first_initial()
    return EnginePair()._make_server(hello), hello[6 : 6 + hello[5]]


def measure(side: Side, packets: list[bytes], address: tuple[str, int], now: float) -> list[float]:
    """Seconds of processor time that each packet costs."""
    costs = []
    for packet in packets:
        begin = time.perf_counter()
        side.engine.receive(packet, address, now)
        side.gather(now)
        side.engine.transmit(now)
        costs.append(time.perf_counter() - begin)
    return costs


def check(costs: list[float], figure: Figure) -> None:
    average = sum(costs) / len(costs)
    figure("processor time of a packet", 1000 * average, "ms")
    early, late = costs[1:11], costs[-10:]
    growth = statistics.median(late) / statistics.median(early)
    figure("late packets against early ones", growth, "times")
    assert average < 0.03, "ten times what a packet may cost"
    assert growth < 10


@pytest.mark.parametrize("flood", FLOODS)
def test_no_flood_of_crypto_frames_in_initials_grows_dear(
    flood: Callable[[], Iterator[bytes]], figure: Figure
) -> None:
    server, destination = new_server()
    packets = [
        sealed_initial(payload, destination_cid=destination, packet_number=number)
        for number, payload in enumerate(packets_of(flood(), 150))
    ]
    check(measure(server, packets, STRANGER, 0.0), figure)
    assert crypto_held(server.engine, Level.INITIAL) <= INITIAL_WINDOW
    if flood is holes:
        assert "CRYPTO_BUFFER_EXCEEDED" in str(error_of(server))
    else:
        assert not server.of(events.Terminated)


def error_of(side: Side) -> Exception:
    (ended,) = side.of(events.Terminated)
    assert isinstance(ended.error, Exception)
    return ended.error


@pytest.mark.parametrize("flood", FLOODS)
def test_no_flood_of_crypto_frames_from_a_server_grows_dear(
    flood: Callable[[], Iterator[bytes]], figure: Figure
) -> None:
    """In Initial packets, which any host that has seen the client's first one can forge."""
    pair = EnginePair()
    hello = pair.wire[0][3]
    size = hello[5]
    original, own = hello[6 : 6 + size], hello[7 + size : 7 + size + hello[6 + size]]
    packets = [
        sealed_initial(
            payload, destination_cid=own, key_cid=original, packet_number=number, by_server=True
        )
        for number, payload in enumerate(packets_of(flood(), 150))
    ]
    address = path_in_use(pair.client.engine)
    check(measure(pair.client, packets, address, 0.0), figure)
    assert bool(pair.client.of(events.Terminated)) == (flood is holes)


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("target", ["server", "client"])
def test_no_flood_of_crypto_frames_after_the_handshake_grows_dear(
    target: str, flood: Callable[[], Iterator[bytes]], figure: Figure
) -> None:
    pair, client, server = established()
    source, victim = (client, server) if target == "server" else (server, client)
    packets = [seal_short(source.engine, payload) for payload in packets_of(flood(), 150)]
    check(measure(victim, packets, source.address, pair.now), figure)
    if target == "server":
        assert flood is empty or "unexpected_message" in str(error_of(victim))
    elif flood is holes:
        assert "CRYPTO_BUFFER_EXCEEDED" in str(error_of(victim))
    else:
        assert crypto_held(victim.engine, Level.ONE_RTT) <= HANDSHAKE_WINDOW


def test_session_tickets_are_taken_a_few_at_once(figure: Figure) -> None:
    """A ticket costs its receiver key derivations, and its sender twenty bytes."""
    store = phoenix_trio.SessionStore()
    pair = EnginePair(client=client_tls(session_store=store)).connect()
    assert pair.server is not None
    taken = 0
    context = pair.client.engine.tls_context
    handle = context.new_session_ticket_cb

    def count(ticket: tls.SessionTicket) -> None:
        nonlocal taken
        taken += 1
        handle(ticket)

    context.new_session_ticket_cb = count
    offset = crypto_received(pair.client.engine, Level.ONE_RTT)
    ticket = b"\x04\x00\x00\x0f" + bytes(4) + bytes(4) + b"\x01n" + b"\x00\x01t" + b"\x00\x00"

    def tickets() -> Iterator[bytes]:
        at = offset
        while True:
            yield crypto_frame(at, ticket * 50)
            at += 50 * len(ticket)

    packets = [seal_short(pair.server.engine, payload) for payload in packets_of(tickets(), 150)]
    check(measure(pair.client, packets, pair.server.address, pair.now), figure)
    assert not pair.client.of(events.Terminated)
    assert 4 <= taken <= 8
    figure("tickets taken of 7,500", taken, "")


@pytest.mark.parametrize("size", [INITIAL_WINDOW, 2**24 - 1])
def test_a_hello_which_announces_megabytes_is_refused_at_once(size: int) -> None:
    server, destination = new_server()
    payload = crypto_frame(0, b"\x01" + size.to_bytes(3, "big"))
    packet = sealed_initial(payload, destination_cid=destination)
    server.engine.receive(packet, STRANGER, 0.0)
    server.gather(0.0)
    assert "CRYPTO_BUFFER_EXCEEDED" in str(error_of(server))


def test_initial_data_after_the_hello_ends_the_handshake() -> None:
    """RFC 9001 section 4.1.3: the keys of the next level are there, so this one is over."""
    hello = first_initial()
    destination = hello[6 : 6 + hello[5]]
    server = EnginePair()._make_server(hello)
    server.engine.receive(hello, STRANGER, 0.0)
    late = crypto_frame(10_000, b"\x14\x00\x00\x04late")
    server.engine.receive(
        sealed_initial(late, destination_cid=destination, packet_number=9), STRANGER, 0.0
    )
    server.gather(0.0)
    assert "PROTOCOL_VIOLATION" in str(error_of(server))


def hello_of(pair: EnginePair) -> tuple[bytes, bytes, bytes]:
    """A client's hello, and both connection IDs of its first packet."""
    engine = pair.client.engine
    data = pair.wire[0][3]
    size = data[5]
    return (
        crypto_to_send(engine, Level.INITIAL),
        data[6 : 6 + size],
        data[7 + size : 7 + size + data[6 + size]],
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("packet_count", [1, 2, 3])
def test_a_hello_in_many_shuffled_frames_and_several_datagrams_is_read(
    packet_count: int, seed: int
) -> None:
    """As sent by Chromium: small frames in any order, PINGs and PADDING between them."""
    generator = random.Random(seed)
    pair = EnginePair()
    hello, destination, source = hello_of(pair)
    pair.wire.clear()
    cuts = sorted({0, len(hello), *generator.sample(range(1, len(hello)), 40)})
    frames = [crypto_frame(a, hello[a:b]) for a, b in pairwise(cuts)]
    frames += [b"\x01"] * 10 + [b"\0"] * 10
    generator.shuffle(frames)
    server = pair.server = pair._make_server(
        sealed_initial(b"\x01", destination_cid=destination, source_cid=source)
    )
    payloads = [b"".join(frames[number::packet_count]) for number in range(packet_count)]
    numbers = list(range(packet_count)) * 2  # and every packet twice
    generator.shuffle(numbers)
    for number in numbers:
        packet = sealed_initial(
            payloads[number],
            destination_cid=destination,
            source_cid=source,
            packet_number=number,
        )
        server.engine.receive(packet, pair.client.address, pair.now)
    server.gather(pair.now)
    # The forged packets have used these numbers.
    set_next_packet_number(pair.client.engine, packet_count, Level.INITIAL)
    answers = take_apart(server.engine.transmit(pair.now))
    assert len(answers) >= 1
    assert server.engine.tls_context.state is tls.State.SERVER_EXPECT_FINISHED
    for answer in answers:
        pair.client.engine.receive(answer, server.address, pair.now)
    pair.connect()
