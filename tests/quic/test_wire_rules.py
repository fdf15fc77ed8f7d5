"""What RFC 9000 and 9001 demand of whoever receives a packet, asked on both paths.

A forger who has the keys of an established connection says what no honest engine
would; the batched path and aioquic's own code have to give the same answer.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from aioquic import tls
from hypothesis import example, given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.fast_send import encode_varint
from tests.support import EnginePair, Side, examples, take_apart

ONE_RTT = tls.Epoch.ONE_RTT

both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "aioquic"])


def established(*, fast: bool = True, **config: Any) -> tuple[EnginePair, Side, Side]:
    settings = TransportConfig(enable_fast_path=fast, **config)
    pair = EnginePair(client_config=settings, server_config=settings, skips=None).connect()
    pair.run(2.0)
    assert pair.server is not None
    return pair, pair.client, pair.server


def forge(side: Side, *frames: bytes, number: int | None = None) -> bytes:
    """A 1-RTT packet of `side` with these frames; it takes the next packet number."""
    engine = side.engine
    if number is None:
        number = engine._packet_number
        engine._packet_number += 1
    crypto = engine._cryptos[ONE_RTT]
    header = (
        bytes((0x40 | crypto.key_phase << 2 | 1,))
        + engine._peer_cid.cid
        + (number & 0xFFFF).to_bytes(2, "big")
    )
    plain = b"".join(frames).ljust(4, b"\0")  # long enough for a sample
    packet: bytes = crypto.encrypt_packet(header, plain, number)
    return packet


def hand_over(pair: EnginePair, source: Side, target: Side, *datagrams: bytes) -> None:
    for data in datagrams:
        target.engine.receive_run(data, 0, len(data), source.address, pair.now)
    target.gather(pair.now)


def ending(side: Side) -> str | None:
    """How the engine ended the connection, if it did."""
    ended = side.of(events.Terminated)
    if not ended:
        return None
    assert isinstance(ended[0].error, phoenix_trio.ProtocolError)
    return str(ended[0].error)


def ack(largest: int, first_range: int = 0, *more: tuple[int, int]) -> bytes:
    """An ACK frame: the largest number, how many below it, then gaps and lengths."""
    fields = [largest, 0, len(more), first_range]
    for gap, length in more:
        fields += [gap, length]
    return b"\x02" + b"".join(map(encode_varint, fields))


# ------------------------------------------------------------------ acknowledgements


@both_paths
@pytest.mark.parametrize("more", [(), ((0, 0),)], ids=["one range", "two ranges"])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_connection(
    fast: bool, more: tuple[tuple[int, int], ...]
) -> None:
    """RFC 9000 section 13.1: else a receiver which acknowledges ahead speeds its sender up."""
    pair, client, server = established(fast=fast)
    following = server.engine._packet_number
    hand_over(pair, client, server, forge(client, ack(following - 1, 0, *more)))
    assert ending(server) is None
    hand_over(pair, client, server, forge(client, ack(following, 0, *more)))
    assert "PROTOCOL_VIOLATION" in str(ending(server))


# ------------------------------------------------------------------ packet numbers


@pytest.mark.parametrize("first_slow", [True, False])
@pytest.mark.parametrize("second_slow", [True, False])
@pytest.mark.parametrize("later", [0, 1, 5])
def test_a_packet_which_comes_twice_is_taken_once_whichever_path_it_takes(
    first_slow: bool, second_slow: bool, later: int
) -> None:
    """RFC 9000 section 12.3.  (aioquic expects the number which it has just received.)"""
    pair, client, server = established()
    hand_over(pair, client, server, forge(client, b"\x01"))  # taken on the fast path
    packet = forge(client, b"\x30once")
    others = [forge(client, b"\x01") for _ in range(later)]
    for slow, data in ((first_slow, packet), *((first_slow, each) for each in others)):
        if slow:
            server.engine.receive(data, client.address, pair.now)
        else:
            hand_over(pair, client, server, data)
    for _ in range(2):
        if second_slow:
            server.engine.receive(packet, client.address, pair.now)
        else:
            hand_over(pair, client, server, packet)
    server.gather(pair.now)
    assert len(server.of(events.DatagramReceived)) == 1


@both_paths
def test_packets_far_below_the_newest_are_taken_for_duplicates(fast: bool) -> None:
    """Their numbers are forgotten, so nothing else would be safe (RFC 9000 section 12.3)."""
    pair, client, server = established(fast=fast)
    packets = [forge(client, b"\x30" + bytes((number,)) * 4) for number in range(140)]
    hand_over(pair, client, server, *packets[1:130])
    count = len(server.of(events.DatagramReceived))
    hand_over(pair, client, server, packets[0])
    assert len(server.of(events.DatagramReceived)) == count
    hand_over(pair, client, server, *packets[130:])
    assert len(server.of(events.DatagramReceived)) == 139


@both_paths
@pytest.mark.parametrize("start", [0x7FF0, 0xFFF0, 0x1_7FF8, 0x2_FFF5])
def test_packet_numbers_are_told_apart_where_two_bytes_wrap_around(fast: bool, start: int) -> None:
    """RFC 9000 appendix A.3, with what is reordered across the boundary."""
    pair, client, server = established(fast=fast)
    at = client.engine._packet_number
    while at < start:  # in steps which two bytes can tell
        at = min(at + 30_000, start)
        hand_over(pair, client, server, forge(client, b"\x01", number=at))
    numbers = list(range(start + 1, start + 40))
    order = [*numbers[1::2], *numbers[0::2]]
    for number in order:
        packet = forge(client, b"\x30" + number.to_bytes(4, "big"), number=number)
        hand_over(pair, client, server, packet)
    received = [int.from_bytes(each.data, "big") for each in server.of(events.DatagramReceived)]
    assert received == order
    assert server.engine._spaces[ONE_RTT].largest_received_packet == numbers[-1]


# ------------------------------------------------------------------ who only receives


@both_paths
@pytest.mark.parametrize("lossy", [False, True])
def test_who_only_receives_remembers_little_and_can_always_answer(fast: bool, lossy: bool) -> None:
    """RFC 9000 section 13.2.4: acknowledgements are not acknowledged, but PINGs are."""
    pair, client, server = established(fast=fast)
    generator = random.Random(1)
    if lossy:
        pair.drop = lambda destination, data: generator.random() < 0.05
    sent = server.engine._spaces[ONE_RTT].sent_packets
    for _ in range(3000):
        client.engine.send_datagram(b"reading")
        pair.run(0.03)
        assert len(sent) <= 40
    pair.drop = lambda destination, data: False
    pinged = server.engine._packet_number
    pair.run(20.0)
    assert server.engine._packet_number - pinged < 10, "two sides never PING each other for ever"
    stream_id = server.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    server.engine.write(stream_id, b"answer", end_stream=True)
    pair.run(1.0)
    assert client.received[stream_id] == b"answer"


@both_paths
def test_a_peer_which_never_acknowledges_costs_bounded_memory(fast: bool) -> None:
    pair, client, server = established(fast=fast)
    sent = server.engine._spaces[ONE_RTT].sent_packets
    for _ in range(6000):
        hand_over(pair, client, server, forge(client, b"\x01"))
        pair.now += 0.03
        deadline = server.engine.next_deadline()
        if deadline is not None and deadline <= pair.now:
            server.engine.on_timer(pair.now)
        while server.engine.transmit(pair.now):
            pass
        assert len(sent) < 2100
    assert ending(server) is None


# ------------------------------------------------------------------ frames which break a rule


def stream_frame(
    stream_id: int, offset: int, data: bytes, *, fin: bool = False, length: bool = True
) -> bytes:
    kind = 0x08 | 4 | (2 if length else 0) | fin
    head = bytes((kind,)) + encode_varint(stream_id) + encode_varint(offset)
    return head + (encode_varint(len(data)) if length else b"") + data


def reset_frame(stream_id: int, final_size: int) -> bytes:
    return b"\x04" + b"".join(map(encode_varint, (stream_id, 7, final_size)))


def frame_of(kind: int, *fields: int) -> bytes:
    return bytes((kind,)) + b"".join(map(encode_varint, fields))


WINDOW = 20_000  # of a stream; of the connection: twice that

#: The client's stream 0 is open and has delivered 10 bytes, its stream 4 has ended after 5,
#: its stream 8 was reset at 6.  The server has opened the unidirectional stream 3.
RULES: list[tuple[str, list[bytes], str]] = [
    ("beyond the stream's window", [stream_frame(0, WINDOW - 1, b"xx")], "FLOW_CONTROL_ERROR"),
    (
        "beyond the stream's window, piece by piece",
        [stream_frame(0, at, bytes(1000)) for at in range(10, WINDOW + 10, 1000)],
        "FLOW_CONTROL_ERROR",
    ),
    (
        "beyond the stream's window, without a length",
        [stream_frame(0, at, bytes(1000), length=False) for at in range(10, WINDOW + 10, 1000)],
        "FLOW_CONTROL_ERROR",
    ),
    (
        "beyond the connection's window",
        [stream_frame(each, WINDOW - 1, b"x") for each in (0, 12, 16)],
        "FLOW_CONTROL_ERROR",
    ),
    (
        "beyond the connection's window, piece by piece",
        [
            stream_frame(each, at, bytes(1000))
            for at in range(0, WINDOW, 1000)
            for each in (12, 16, 20)
        ],
        "FLOW_CONTROL_ERROR",
    ),
    ("a reset beyond the window", [reset_frame(0, WINDOW + 1)], "FLOW_CONTROL_ERROR"),
    (
        "resets beyond the connection's window",
        [reset_frame(each, WINDOW) for each in (12, 16, 20)],
        "FLOW_CONTROL_ERROR",
    ),
    ("data of an ended stream", [stream_frame(4, 5, b"x")], "FINAL_SIZE_ERROR"),
    (
        "another end",
        [stream_frame(0, 10, b"", fin=True), stream_frame(0, 10, b"x", fin=True)],
        "FINAL_SIZE_ERROR",
    ),
    ("an end before what came", [stream_frame(0, 5, b"", fin=True)], "FINAL_SIZE_ERROR"),
    (
        "data behind the end",
        [stream_frame(0, 20, b"", fin=True), stream_frame(0, 10, bytes(11))],
        "FINAL_SIZE_ERROR",
    ),
    (
        "data behind the end, in order up to there",
        [stream_frame(0, 13, b"", fin=True), stream_frame(0, 10, b"abcd")],
        "FINAL_SIZE_ERROR",
    ),
    ("a reset before what came", [reset_frame(0, 9)], "FINAL_SIZE_ERROR"),
    (
        "a reset at another end",
        [stream_frame(0, 20, b"", fin=True), reset_frame(0, 21)],
        "FINAL_SIZE_ERROR",
    ),
    ("a reset at the end", [stream_frame(0, 20, b"", fin=True), reset_frame(0, 20)], ""),
    ("a stream too many", [stream_frame(4 * 10, 0, b"x")], "STREAM_LIMIT_ERROR"),
    ("a one-way stream too many", [stream_frame(4 * 10 + 2, 0, b"x")], "STREAM_LIMIT_ERROR"),
    ("a reset of a stream too many", [reset_frame(4 * 10, 0)], "STREAM_LIMIT_ERROR"),
    ("credit for a stream too many", [frame_of(0x11, 4 * 10, 99)], "STREAM_LIMIT_ERROR"),
    ("data on the server's one-way stream", [stream_frame(3, 0, b"x")], "STREAM_STATE_ERROR"),
    ("a reset of the server's one-way stream", [reset_frame(3, 0)], "STREAM_STATE_ERROR"),
    ("data on a stream only the server opens", [stream_frame(5, 0, b"x")], "STREAM_STATE_ERROR"),
    ("a reset of such a stream", [reset_frame(5, 0)], "STREAM_STATE_ERROR"),
    ("credit for such a stream", [frame_of(0x11, 5, 99)], "STREAM_STATE_ERROR"),
    ("credit for one which is not open", [frame_of(0x11, 7, 99)], "STREAM_STATE_ERROR"),
    ("credit for the client's one-way stream", [frame_of(0x11, 2, 9)], "STREAM_STATE_ERROR"),
    ("a stop of the client's one-way stream", [frame_of(0x05, 2, 9)], "STREAM_STATE_ERROR"),
    ("a stop of a stream not opened", [frame_of(0x05, 7, 9)], "STREAM_STATE_ERROR"),
    ("an offset too large", [stream_frame(0, (1 << 62) - 1, b"x")], "FRAME_ENCODING_ERROR"),
    ("ranges below 0", [ack(2, 3)], "FRAME_ENCODING_ERROR"),
    ("a gap below 0", [ack(2, 0, (1, 0))], "FRAME_ENCODING_ERROR"),
    ("ranges at 0", [ack(2, 0, (0, 0))], ""),
    ("streams without end", [frame_of(0x12, (1 << 60) + 1)], "FRAME_ENCODING_ERROR"),
    ("a client's HANDSHAKE_DONE", [b"\x1e"], "PROTOCOL_VIOLATION"),
    ("a client's NEW_TOKEN", [b"\x07\x02ab"], "PROTOCOL_VIOLATION"),
    ("an unknown frame", [b"\x21"], "FRAME_ENCODING_ERROR"),
    ("a frame cut short", [b"\x0e\x00\x0a\x05abc"], "FRAME_ENCODING_ERROR"),
    ("a datagram cut short", [b"\x31\x40\xffabc"], "FRAME_ENCODING_ERROR"),
    ("MAX_DATA cut short", [b"\x01\x01\x01\x10\xc0"], "FRAME_ENCODING_ERROR"),
    ("a retirement of what was never issued", [frame_of(0x19, 99)], "PROTOCOL_VIOLATION"),
    (
        "retirement beyond the number",
        [frame_of(0x18, 20, 21)[:3] + b"\x08" + bytes(24)],
        "PROTOCOL",
    ),
    ("an answer to no challenge", [b"\x1b" + bytes(8)], ""),
    ("reserved bits", [], "PROTOCOL_VIOLATION"),
    ("no frames", [b""], "PROTOCOL_VIOLATION"),
]


@both_paths
@pytest.mark.parametrize("together", [False, True], ids=["a packet each", "in one run"])
@pytest.mark.parametrize(
    ("frames", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_whoever_breaks_a_rule_hears_of_it_on_both_paths(
    frames: list[bytes], expected: str, together: bool, fast: bool
) -> None:
    pair, client, server = established(
        fast=fast,
        stream_receive_buffer_size=WINDOW,
        receive_buffer_size=2 * WINDOW,
        max_bidirectional_streams=10,
        max_unidirectional_streams=10,
    )
    server.read_automatically = False
    assert server.engine.open_stream(unidirectional=True) == 3
    hand_over(
        pair,
        client,
        server,
        forge(client, stream_frame(0, 0, bytes(10))),
        forge(client, stream_frame(4, 0, bytes(5), fin=True)),
        forge(client, stream_frame(8, 0, bytes(3)), reset_frame(8, 6)),
    )
    assert ending(server) is None
    used = server.engine._local_max_data.used
    assert used == 10 + 5 + 6
    if not frames:
        number = client.engine._packet_number
        header = b"\x59" + client.engine._peer_cid.cid + number.to_bytes(2, "big")
        packet = client.engine._cryptos[ONE_RTT].encrypt_packet(header, b"\x01" * 4, number)
        hand_over(pair, client, server, packet)
    elif frames == [b""]:
        number = client.engine._packet_number
        header = b"\x43" + client.engine._peer_cid.cid + number.to_bytes(4, "big")
        packet = client.engine._cryptos[ONE_RTT].encrypt_packet(header, b"", number)
        hand_over(pair, client, server, packet)
    else:
        packets = [forge(client, frame) for frame in frames]
        if together and len({len(each) for each in packets}) == 1:
            data, at = b"".join(packets), 0
            while at < len(data):
                at = server.engine.receive_run(data, at, len(packets[0]), client.address, pair.now)
            server.gather(pair.now)
        else:
            hand_over(pair, client, server, *packets)
    assert expected in str(ending(server))
    if not expected:
        assert ending(server) is None
    else:
        assert server.engine._local_max_data.used <= 2 * WINDOW
    assert all(len(each) <= WINDOW for each in server.received.values())


@both_paths
@pytest.mark.parametrize("order", ["aa", "aba", "abcb", "abab", "cbacba", "bcabca"])
def test_a_packet_which_comes_twice_in_one_run_is_taken_once(order: str, fast: bool) -> None:
    pair, client, server = established(fast=fast)
    packets = {name: forge(client, b"\x30" + name.encode() * 4) for name in "abc"}
    data, at = b"".join(packets[name] for name in order), 0
    while at < len(data):
        at = server.engine.receive_run(data, at, len(packets["a"]), client.address, pair.now)
    server.gather(pair.now)
    received = [event.data[:1].decode() for event in server.of(events.DatagramReceived)]
    assert received == list(dict.fromkeys(order))


# ------------------------------------------------------------------ what a peer makes grow


@both_paths
def test_numbers_with_many_gaps_are_acknowledged_in_a_bounded_number_of_ranges(fast: bool) -> None:
    """RFC 9000 section 13.2.3."""
    pair, client, server = established(fast=fast)
    queue = server.engine._spaces[ONE_RTT].ack_queue
    for _ in range(500):
        client.engine._packet_number += 1
        hand_over(pair, client, server, forge(client, b"\x01"))
        assert len(queue) <= 64
    newest = client.engine._packet_number - 1
    assert queue[-1].stop == newest + 1
    assert ending(server) is None


@both_paths
def test_a_thousand_gaps_are_taken_on_however_many_streams_they_are(fast: bool) -> None:
    pair, client, server = established(fast=fast)
    for number in range(0, 81, 9):
        frames = [
            stream_frame(4 * stream, 2 * (number + gap) + 1, b"x")
            for stream in range(12)
            for gap in range(9)
        ]
        hand_over(pair, client, server, forge(client, *frames))
    records = server.engine._records.values()
    assert all(len(record.receiver.pending_ranges) == 81 for record in records)
    assert ending(server) is None


# ------------------------------------------------------------------ the idle timer


@both_paths
@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "bulk"])
def test_the_idle_timer_begins_anew_with_what_arrives_and_with_the_first_answer(
    size: int, fast: bool
) -> None:
    """RFC 9000 section 10.1: the first ack-eliciting packet after one was received, no other."""
    pair, client, server = established(fast=fast)
    pair.drop = lambda destination, data: True
    engine = server.engine
    stream_id = engine.open_stream(unidirectional=True)
    assert stream_id is not None
    for _ in range(2):
        hand_over(pair, client, server, forge(client, b"\x01"))
        assert engine.end_deadline == pytest.approx(pair.now + 30)
        pair.now += 10
        engine.write(stream_id, bytes(size))
        pair.flush(server)
        assert engine.end_deadline == pytest.approx(pair.now + 30)
        newest = engine._packet_number - 1  # (at once, for a round trip must not take long)
        hand_over(pair, client, server, forge(client, ack(newest, newest)))
        pair.now += 5
        engine.write(stream_id, bytes(size))
        pair.flush(server)
        first = engine.end_deadline
        assert first == pytest.approx(pair.now + 30)
        newest = engine._packet_number - 1
        pair.now += 0.001
        engine.send_ping(1)
        pair.flush(server)
        assert engine.end_deadline == first
        hand_over(pair, client, server, forge(client, ack(newest, newest)))


# ------------------------------------------------------------------ what is said of a packet


@both_paths
def test_the_spin_bit_is_mirrored_by_the_server_and_inverted_by_the_client(fast: bool) -> None:
    """RFC 9000 section 17.4; a packet which is late does not count."""
    pair, client, server = established(fast=fast)
    for sender, receiver, inverted in ((client, server, False), (server, client, True)):
        late = forge(sender, b"\x01")
        for spin in (True, False, True):
            sender.engine._spin_bit = spin
            number = sender.engine._packet_number
            sender.engine._packet_number += 1
            crypto = sender.engine._cryptos[ONE_RTT]
            first = bytes((0x41 | spin << 5 | crypto.key_phase << 2,))
            header = first + sender.engine._peer_cid.cid + number.to_bytes(2, "big")
            packet = crypto.encrypt_packet(header, b"\x01\0\0\0", number)
            hand_over(pair, sender, receiver, packet)
            assert receiver.engine._spin_bit is (spin is not inverted)
        before = receiver.engine._spin_bit
        hand_over(pair, sender, receiver, late)
        assert receiver.engine._spin_bit is before
        stream_id = receiver.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        receiver.engine.write(stream_id, bytes(4000))
        sent = [*take_apart(receiver.engine.transmit(pair.now + 1))]
        sent += take_apart(receiver.engine.transmit(pair.now + 1))
        assert len(sent) >= 3
        for data in sent:
            assert bool(data[0] & 0x20) is before


@both_paths
def test_an_acknowledgement_says_how_long_it_waited(fast: bool) -> None:
    """RFC 9000 section 13.2.5: else the waiting would count as a part of the round trip."""
    pair, client, server = established(fast=fast)
    delays = []
    sample = client.engine._recovery._sample_rtt

    def noted(rtt: float, ack_delay: float, now: float) -> None:
        delays.append((rtt, ack_delay))
        sample(rtt, ack_delay, now)

    client.engine._recovery._sample_rtt = noted  # type: ignore[method-assign]
    client.engine.send_ping(1)
    pair.run(0.011)  # it has arrived, and waits for its acknowledgement
    server.engine._ack_delay = 0.015004
    server.engine._spaces[ONE_RTT].ack_at = None
    client.engine.send_ping(2)
    pair.run(0.1)
    rtt, delay = delays[-1]
    assert delay == pytest.approx(0.015, abs=0.001)
    assert rtt == pytest.approx(0.035, abs=0.001)
    assert client.engine._recovery._rtt_latest == pytest.approx(0.02, abs=0.001)


def test_half_a_megabyte_is_acknowledged_at_once() -> None:
    """A sender on a fast path must not run out of window (RFC 9000 section 13.2.2)."""
    pair, client, server = established(max_udp_payload_size=9000)
    space = server.engine._spaces[ONE_RTT]
    for number in range(57):
        data = stream_frame(0, 9000 * number, bytes(9000), length=False)
        hand_over(pair, client, server, forge(client, data))
        assert space.ack_at is not None
        assert space.ack_at > pair.now
    for number in range(57, 60):
        data = stream_frame(0, 9000 * number, bytes(9000), length=False)
        hand_over(pair, client, server, forge(client, data))
    assert space.ack_at == pair.now


# ------------------------------------------------------------------ a peer which says anything

stream_ids = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4, 5, 8, 36, 40])
offsets = st.sampled_from([0, 0, 1, 5, 10, 50, 100, 105, 1000, WINDOW - 3, WINDOW, (1 << 62) - 4])
lengths = st.sampled_from([0, 1, 5, 5, 10, 50, 95, 400])
numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 10, 100, 70_000])
frames = st.one_of(
    st.builds(
        lambda stream_id, offset, size, fin: stream_frame(
            stream_id, offset, bytes([size & 0xFF]) * size, fin=fin
        ),
        stream_ids,
        offsets,
        lengths,
        st.booleans(),
    ),
    st.builds(reset_frame, stream_ids, offsets),
    st.builds(lambda stream_id: frame_of(0x05, stream_id, 3), stream_ids),
    st.builds(lambda stream_id, limit: frame_of(0x11, stream_id, limit), stream_ids, offsets),
    st.builds(lambda limit: frame_of(0x10, limit), offsets),
    st.builds(frame_of, st.sampled_from([0x12, 0x13]), offsets),
    st.builds(ack, numbers, numbers),
    st.builds(lambda a, b, c, d: ack(a, b, (c, d)), numbers, numbers, numbers, numbers),
    st.builds(lambda size: b"\x31" + encode_varint(size) + bytes(size), lengths),
    st.sampled_from([b"\x01", bytes(30), b"\x1a" + bytes(8), b"\x19\x01", b"\x14\x05"]),
)


@given(
    packets=st.lists(
        st.tuples(st.lists(frames, min_size=1, max_size=4), st.booleans(), st.integers(0, 2)),
        min_size=1,
        max_size=8,
    )
)
@example(packets=[([stream_frame(0, (1 << 62) - 4, bytes(5))], False, 0)])
@examples(200)
def test_whatever_a_peer_says_both_paths_understand_the_same(
    packets: list[tuple[list[bytes], bool, int]],
) -> None:
    """Each packet's frames, whether it comes twice, and how many numbers are left out."""
    outcomes = []
    for fast in (True, False):
        pair, client, server = established(
            fast=fast,
            stream_receive_buffer_size=WINDOW,
            receive_buffer_size=2 * WINDOW,
            max_bidirectional_streams=10,
            max_unidirectional_streams=10,
        )
        stream_id = server.engine.open_stream(unidirectional=True)
        assert stream_id == 3
        server.engine.write(stream_id, b"data")
        pair.flush(server)
        for content, twice, gap in packets:
            client.engine._packet_number += gap
            packet = forge(client, *content)
            hand_over(pair, client, server, *([packet] * (1 + twice)))
        engine = server.engine
        space = engine._spaces[ONE_RTT]
        close = engine._close_event
        outcome: dict[str, Any] = {
            "close": close and (close.error_code, close.frame_type),
            "events": [type(event) for event in server.log if type(event) not in UNORDERED],
        }
        if close is None:
            outcome |= {
                "received": {key: bytes(value) for key, value in server.received.items()},
                "used": (engine._local_max_data.used, engine._window.released),
                "limits": (engine._remote_max_data, engine._remote_max_streams_bidi),
                "numbers": (list(space.ack_queue), space.largest_acked_packet),
                "sent": list(space.sent_packets),
                "in flight": (engine._loss.bytes_in_flight, space.ack_eliciting_in_flight),
                "streams": {
                    key: (
                        record.receiver.highest_offset,
                        record.receiver._final_size,
                        record.receiver.is_finished,
                        record.receiver.pending_ranges,
                        record.max_stream_data_remote,
                        record.sender.reset_pending,
                    )
                    for key, record in engine._records.items()
                },
            }
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]


#: These tell that something has changed; pieces of data may be put together.
UNORDERED = (events.SendProgress, events.StreamDataReceived, events.StreamsAvailable)


@both_paths
def test_only_the_newest_packet_of_an_acknowledgement_tells_the_round_trip_time(
    fast: bool,
) -> None:
    """RFC 9002 section 5.1: what had been acknowledged late is no sample."""
    pair, client, server = established(fast=fast)
    pair.drop = lambda destination, data: True
    for number in range(2):
        client.engine.send_ping(number)
        pair.flush(client)
    newest = client.engine._packet_number - 1
    pair.now += 0.02
    hand_over(pair, server, client, forge(server, ack(newest)))
    before = client.engine._recovery._rtt_latest
    pair.now += 0.002  # (not yet lost: that takes 9/8 of a round trip)
    hand_over(pair, server, client, forge(server, ack(newest, 1)))
    assert len(client.of(events.PingAcknowledged)) == 2
    assert client.engine._recovery._rtt_latest == before
