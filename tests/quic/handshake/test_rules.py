"""What peers and strangers may not do in a handshake, and what they cannot make it do."""

from __future__ import annotations

import gc
import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.host import APPLICATION, EARLY
from phoenix_trio.quic.handshake.keys import InitialKeyring
from phoenix_trio.quic.handshake.packets import HANDSHAKE, INITIAL, parse_long
from phoenix_trio.quic.path_address import Address
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    APPLICATION_ERROR,
    CRYPTO_BUFFER_EXCEEDED,
    CRYPTO_ERROR,
    FRAME_ENCODING_ERROR,
    INTERNAL_ERROR,
    PROTOCOL_VIOLATION,
    TransportError,
)
from phoenix_trio.quic.wire.protection import VERSION_1, seal_long
from phoenix_trio.quic.wire.ranges import Ranges
from tests.support import examples

from .pair import CLIENT, SERVER, Owner, Pair, long_server_tls, make_server

ORIGINAL = b"original"
SOURCE = b"stranger"


class Stranger:
    """Makes Initial packets as a client does, with any frames (RFC 9001 section 5.2)."""

    def __init__(self, **arguments: Any) -> None:
        self.keys = InitialKeyring(ORIGINAL).get(VERSION_1, of_client=True)
        self.server = Owner(make_server(Admit(ORIGINAL, ORIGINAL, None), **arguments), SERVER)
        self.number = 0
        self.now = 0.0

    def packet(self, payload: bytes, *, source: bytes = SOURCE, number: int | None = None) -> bytes:
        if number is None:
            number = self.number
            self.number += 1
        return seal_long(
            INITIAL,
            VERSION_1,
            ORIGINAL,
            source,
            b"",
            number,
            payload,
            self.keys.packet,
            self.keys.header,
        )

    def send(self, payload: bytes, address: Address = CLIENT, **arguments: Any) -> None:
        data = self.packet(payload, **arguments)
        self.server.handshake.receive(data.ljust(1200, b"\0"), address, self.now)

    def sends_fault(self, payload: bytes) -> int:
        """The code of the error which the frames are."""
        self.send(payload)
        assert self.server.fault is not None
        code, _, _ = self.server.fault
        ((answer, _),) = self.server.handshake.transmit(self.now)
        assert self.server.handshake.transmit(self.now) == []
        header = parse_long(answer, 0)
        assert header is not None
        return code


def hello() -> bytes:
    """A ClientHello message of ours."""
    pair = Pair()
    pair.client.handshake.start(SERVER, 0.0)
    crypto = pair.client.handshake._state.initial.crypto
    parts: list[bytes] = []
    crypto.fill(parts, 10_000, [])
    _, begin, end = frames.parse_crypto(parts[0], 0)
    return parts[0][begin:end]


def acknowledgement(*numbers: int) -> bytes:
    ranges = Ranges()
    for number in numbers:
        ranges.add(number, number + 1)
    return frames.build_ack(ranges, 0, 100, None)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x04\0\0\0", PROTOCOL_VIOLATION),  # RESET_STREAM
        (b"\x08\0data", PROTOCOL_VIOLATION),
        (b"\x1d\0\0", PROTOCOL_VIOLATION),  # a CONNECTION_CLOSE of the application
        (b"\x1e\0\0\0", PROTOCOL_VIOLATION),  # HANDSHAKE_DONE
        (b"\x30data", PROTOCOL_VIOLATION),
        (b"\x1f\0\0\0", FRAME_ENCODING_ERROR),  # not known
        (b"\x40\x06\0\0", PROTOCOL_VIOLATION),  # a type that is not minimally encoded
        (b"\x06\0\x05abc", FRAME_ENCODING_ERROR),  # CRYPTO, cut short
        (b"\x06" + (frames.LONG_VARINT | (1 << 62) - 1).to_bytes(8, "big") + b"\x01a",
         FRAME_ENCODING_ERROR),
        (b"\x02\0\0\x01\0", FRAME_ENCODING_ERROR),  # ACK, cut short
        (acknowledgement(0), PROTOCOL_VIOLATION),  # of a packet that was never sent
        (frames.build_crypto(20_000, b"far away"), CRYPTO_BUFFER_EXCEEDED),
        (frames.build_crypto(0, b"\x01\xff\xff\xff"), CRYPTO_BUFFER_EXCEEDED),
        (frames.build_crypto(0, b"\x02\0\0\0"), CRYPTO_ERROR + 10),  # unexpected_message
        (frames.build_crypto(0, b"\x01\0\0\x02\x03\x03"), CRYPTO_ERROR + 50),  # decode_error
    ],
)  # fmt: skip
def test_frames_which_end_the_connection(payload: bytes, code: int) -> None:
    assert Stranger().sends_fault(payload) == code


def test_reserved_bits() -> None:
    stranger = Stranger()
    sealed = stranger.packet(b"\x01\0\0")
    header = parse_long(sealed, 0)
    assert header is not None
    keys = stranger.keys
    clear = bytes((0xC1 | 0x04,)) + sealed[1 : header.number_at] + b"\0\0"
    body = keys.packet.encrypt(0, clear, b"\x01\0\0")
    mask = keys.header.mask(body[2:18])
    data = bytes((clear[0] ^ mask[0] & 0x0F,)) + clear[1 : header.number_at]
    data += bytes((mask[1], mask[2])) + body
    stranger.server.handshake.receive(data.ljust(1200, b"\0"), CLIENT, 0.0)
    assert stranger.server.fault == (PROTOCOL_VIOLATION, 0, "Reserved bits must be zero")
    assert len(stranger.server.handshake.transmit(0.0)) == 1, "it is told why"


def test_an_empty_packet() -> None:
    """(It is longer than that by its tag alone.)"""
    stranger = Stranger()
    keys = stranger.keys
    sealed = stranger.packet(b"\x01\0\0")
    header = parse_long(sealed, 0)
    assert header is not None
    # Four bytes of packet number leave room for a sample without any payload.
    clear = bytes((0xC3,)) + sealed[1 : header.number_at - 2] + b"\x40\x14" + bytes(4)
    body = keys.packet.encrypt(0, clear, b"")
    mask = keys.header.mask(body[:16])
    data = bytes((clear[0] ^ mask[0] & 0x0F,)) + clear[1:-4] + mask[1:5] + body
    stranger.server.handshake.receive(data.ljust(1200, b"\0"), CLIENT, 0.0)
    assert stranger.server.fault == (PROTOCOL_VIOLATION, 0, "Packet contains no frames")


def test_the_hello_may_come_in_pieces_and_out_of_order() -> None:
    stranger = Stranger()
    message = hello()
    half = len(message) // 2
    stranger.send(frames.build_crypto(half, message[half:]))
    assert stranger.server.fault is None
    assert not stranger.server.parameters
    stranger.send(frames.build_crypto(0, message[:half]))
    # (The stranger's connection ID is not the one which the hello names.)
    assert stranger.server.fault is not None
    assert "initial_source_connection_id" in stranger.server.fault[2]


def test_initial_packets_in_small_datagrams_are_dropped() -> None:
    stranger = Stranger()
    stranger.server.handshake.receive(stranger.packet(b"\x01\0\0").ljust(1199, b"\0"), CLIENT, 0.0)
    assert not stranger.server.handshake.has_peer
    assert not stranger.server.receipts


def test_duplicates_are_dropped() -> None:
    stranger = Stranger()
    for _ in range(3):
        stranger.send(b"\x01\0\0", number=7)
    assert len(stranger.server.receipts) == 1


def test_packets_which_are_not_authentic_change_nothing() -> None:
    stranger = Stranger()
    stranger.keys = InitialKeyring(b"another").get(VERSION_1, of_client=True)
    stranger.send(b"\x01\0\0")
    handshake = stranger.server.handshake
    assert not handshake.has_peer
    assert stranger.server.paths.all == []
    assert handshake.transmit(0.0) == []
    assert handshake.deadline() == math.inf


def test_a_close_before_anything_else() -> None:
    stranger = Stranger()
    stranger.send(b"\x1c\x0a\x06\x03why")
    assert stranger.server.peer_close == (PROTOCOL_VIOLATION, frames.CRYPTO, "why")
    stranger.send(b"\x01\0\0")
    assert len(stranger.server.receipts) == 0
    assert stranger.server.handshake.transmit(0.0) == []
    assert stranger.server.handshake.deadline() == math.inf


def test_frames_behind_a_close_are_not_looked_at() -> None:
    stranger = Stranger()
    stranger.send(b"\x1c\0\0\0" + b"\x1f")
    assert stranger.server.peer_close == (0, 0, "")
    assert stranger.server.fault is None


def test_nothing_is_taken_after_a_fault() -> None:
    stranger = Stranger()
    assert stranger.sends_fault(b"\x1f\0\0\0") == FRAME_ENCODING_ERROR
    stranger.send(b"\x1f\0\0\0")
    stranger.send(b"\x1c\0\0\0")
    assert stranger.server.peer_close is None
    assert stranger.server.handshake.transmit(0.0) == []


@given(st.lists(st.binary(max_size=60), max_size=8))
@examples(100)
def test_any_frames_are_taken_or_refused(payloads: list[bytes]) -> None:
    stranger = Stranger()
    for payload in payloads:
        stranger.send(payload or b"\0")
        for data, _ in stranger.server.handshake.transmit(stranger.now):
            assert len(data) <= 1200
        stranger.now += 0.1


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=8), st.booleans())
@examples(100)
def test_any_datagrams_are_taken_or_dropped(datagrams: list[bytes], is_long: bool) -> None:
    pair = Pair()
    pair.client.handshake.start(SERVER, 0.0)
    pair.client.handshake.transmit(0.0)
    stranger = Stranger()
    for data in datagrams:
        if is_long:
            data = b"\xc3" + VERSION_1.to_bytes(4, "big") + data
        pair.client.handshake.receive(data, SERVER, 0.0)
        stranger.server.handshake.receive(data.ljust(1200, b"\0"), CLIENT, 0.0)
    assert not pair.client.handshake.has_peer
    assert not stranger.server.handshake.has_peer


# ------------------------------------------------------------------ amplification, addresses


def test_a_server_sends_three_times_what_came_at_most() -> None:
    """RFC 9000 section 8.1: the client is silent, and the server's timers go on."""
    pair = Pair(server=partial(make_server, tls=long_server_tls()))
    server, flight = pair.first_flight()
    sent = sum(map(len, flight))
    now = 0.0
    while (deadline := server.handshake.deadline()) < 60.0:
        assert deadline >= now
        now = deadline
        server.handshake.on_timer(now)
        datagrams = server.handshake.transmit(now)
        assert datagrams, "a timer without effect"
        sent += sum(len(data) for data, _ in datagrams)
    assert sent <= 3600
    assert deadline == math.inf
    path = server.paths.all[0]
    assert (path.bytes_received, path.bytes_sent) == (1200, sent)
    # The client's probe gives the server room again.
    pair.client.handshake._state.repeat()
    for data, _ in pair.client.handshake.transmit(1.0):
        server.handshake.receive(data, CLIENT, now)
    assert server.handshake.deadline() < math.inf


def test_a_handshake_packet_validates_the_address() -> None:
    pair = Pair()
    server, finished = pair.last_flight()
    assert not server.paths.all[0].is_validated
    for data in finished:
        server.handshake.receive(data, CLIENT, 0.2)
    assert server.paths.all[0].is_validated
    assert server.handshake.came_from_one_address


def test_an_end_from_another_address_does_not_validate_it() -> None:
    pair = Pair()
    server, finished = pair.last_flight()
    elsewhere = ("203.0.113.9", 9)
    for data in finished:
        server.handshake.receive(data, elsewhere, 0.2)
    assert server.handshake.is_confirmed
    assert not server.handshake.came_from_one_address
    assert [path.addr for path in server.paths.all] == [elsewhere, CLIENT]
    assert not any(path.is_validated for path in server.paths.all)


def test_a_client_takes_packets_of_its_server_alone() -> None:
    pair = Pair()
    _, flight = pair.first_flight()
    for data in flight:
        pair.client.handshake.receive(data, ("203.0.113.9", 9), 0.1)
    assert not pair.client.handshake.has_peer


def test_a_client_takes_packets_of_one_connection_id_alone() -> None:
    """RFC 9000 section 7.2."""
    pair = Pair()
    _, flight = pair.first_flight()
    for data in flight:
        pair.client.handshake.receive(data, SERVER, 0.1)
    client = pair.client.handshake
    original = client.original_destination_cid
    keys = InitialKeyring(original).get(VERSION_1, of_client=False)
    close = b"\x1c\0\0\0"
    other = seal_long(
        INITIAL, VERSION_1, client.host_cid, b"another", b"", 9, close, keys.packet, keys.header
    )
    client.receive(other.ljust(1200, b"\0"), SERVER, 0.2)
    assert pair.client.peer_close is None


def test_no_timer_stays_in_the_past_where_there_is_no_room() -> None:
    """A tiny Handshake packet from a new address leaves room for nothing."""
    pair = Pair()
    server, flight = pair.first_flight()
    for data in flight:
        pair.client.handshake.receive(data, SERVER, 0.1)
    keys = pair.client.handshake._state.handshake.send_keys
    assert keys is not None
    tiny = seal_long(
        HANDSHAKE,
        VERSION_1,
        server.handshake.host_cid,
        pair.client.handshake.host_cid,
        b"",
        100,
        b"\x01\0",
        keys.packet,
        keys.header,
    )
    assert 3 * len(tiny) < 300
    now = 0.2
    server.handshake.receive(tiny, ("203.0.113.9", 9), now)
    server.handshake.transmit(now)
    for number in range(101, 104):
        now += 0.1
        sealed = seal_long(
            HANDSHAKE,
            VERSION_1,
            server.handshake.host_cid,
            pair.client.handshake.host_cid,
            b"",
            number,
            b"\x01\0",
            keys.packet,
            keys.header,
        )
        server.handshake.receive(sealed, ("203.0.113.9", 9), now)
        server.handshake.transmit(now)
        path = server.paths.all[0]
        assert path.bytes_sent <= 3 * path.bytes_received
        assert server.handshake.deadline() > now


# ------------------------------------------------------------------ closing, TLS after the end


def test_a_close_tells_strangers_nothing_of_the_application() -> None:
    """RFC 9000 section 10.2.3."""
    pair = Pair()
    server, flight = pair.first_flight()
    server.handshake.close(77, None, "secret")
    ((data, address),) = server.handshake.transmit(0.1)
    assert address == CLIENT
    pair.client.handshake.receive(flight[0], SERVER, 0.2)
    assert pair.client.handshake.is_complete
    pair.client.handshake.receive(data, SERVER, 0.2)
    assert pair.client.peer_close == (APPLICATION_ERROR, 0, "")


def test_a_close_leaves_at_each_level_which_has_keys() -> None:
    pair = Pair()
    server, flight = pair.first_flight()
    server.handshake.close(INTERNAL_ERROR, 0, "why")
    ((data, _),) = server.handshake.transmit(0.1)
    first = parse_long(data, 0)
    assert first is not None
    second = parse_long(data, first.end)
    assert second is not None
    assert (first.kind, second.kind) == (INITIAL, HANDSHAKE)
    # A client without Handshake keys reads the first one.
    pair.client.handshake.receive(data, SERVER, 0.2)
    assert pair.client.peer_close == (INTERNAL_ERROR, 0, "why")
    assert flight


def test_a_client_which_closes_sends_a_full_datagram() -> None:
    pair = Pair()
    pair.client.handshake.start(SERVER, 0.0)
    pair.client.handshake.close(INTERNAL_ERROR, 0, "x" * 2000)
    ((data, _),) = pair.client.handshake.transmit(0.0)
    assert len(data) == 1200


def test_nothing_is_closed_here_once_the_handshake_is_confirmed() -> None:
    pair = Pair().connect()
    assert pair.server is not None
    for side in pair.sides:
        side.handshake.close(0, None, "")
        assert side.handshake.transmit(pair.now) == []
        assert side.handshake.deadline() == math.inf


def test_tickets_alone_may_follow_the_handshake() -> None:
    pair = Pair().connect()
    with pytest.raises(TransportError) as info:
        pair.client.handshake.take_tls_message(b"\x18\0\0\x01\0")  # KeyUpdate, RFC 9001 section 6
    assert info.value.code == CRYPTO_ERROR + 10


def test_a_released_handshake_leaves_nothing_to_the_garbage_collector() -> None:
    pair = Pair().connect()
    for side in pair.sides:
        side.handshake.release()
    gc.collect()
    gc.disable()
    try:
        for side in pair.sides:
            del side.handshake
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_early_packets_are_bounded() -> None:
    stranger = Stranger()
    stranger.send(b"\x01\0\0")
    early = stranger.server.handshake._state.early
    assert early is not None
    head = b"\xd0" + VERSION_1.to_bytes(4, "big") + b"\x08" + ORIGINAL + b"\0\x44\0"
    for _ in range(50):
        stranger.server.handshake.receive(head + bytes(1024), CLIENT, 0.0)
    assert 5000 < early.held <= 15_000
    assert not [each for each in stranger.server.log if each[:2] == ("packet", EARLY)]
    assert (APPLICATION, False) not in stranger.server.keys
