"""Rules of RFC 9000 and 9001 for the receiver of a packet.

The tests seal packets with the keys of an established connection that no honest engine would
send.  They hand them over in runs and one at a time; the answer has to be the same.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phoenix_trio.quic import events
from phoenix_trio.streams import encode_varint
from tests.engine_access import (
    ack_eliciting_in_flight,
    acknowledgement_due,
    close_code,
    credit_used,
    largest_acknowledged,
    largest_received,
    leave_out_numbers,
    make_acknowledgement_due,
    max_data,
    max_streams,
    next_packet_number,
    received_ranges,
    remembered_packets,
    set_ack_delay,
    spin_bit,
    statistics,
    stream_facts,
    stream_ids,
)
from tests.engine_packets import open_sent, seal_short
from tests.packets import ack_frame, frame, reset_frame, stream_frame
from tests.support import (
    Side,
    ending,
    established,
    examples,
    hand_over,
    in_runs_or_singly,
    take_apart,
)


def of_one_size(payloads: list[bytes]) -> list[bytes]:
    """The same payloads, with PADDING in front of the shorter ones."""
    size = max(map(len, payloads))
    return [payload.rjust(size, b"\0") for payload in payloads]


# ------------------------------------------------------------------ acknowledgements


@pytest.mark.parametrize("more", [(), ((0, 0),)], ids=["one range", "two ranges"])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_connection(
    more: tuple[tuple[int, int], ...],
) -> None:
    """RFC 9000 section 13.1: otherwise a receiver could speed its sender up."""
    pair, client, server = established()
    following = next_packet_number(server.engine)
    hand_over(pair, client, server, seal_short(client.engine, ack_frame(following - 1, 0, *more)))
    assert ending(server) is None
    hand_over(pair, client, server, seal_short(client.engine, ack_frame(following, 0, *more)))
    assert "PROTOCOL_VIOLATION" in str(ending(server))


# ------------------------------------------------------------------ packet numbers


@in_runs_or_singly
@pytest.mark.parametrize("later", [0, 1, 5])
def test_a_packet_which_comes_again_is_taken_once(in_runs: bool, later: int) -> None:
    """RFC 9000 section 12.3."""
    pair, client, server = established(in_runs=in_runs)
    packet = seal_short(client.engine, b"\x30once")
    others = [seal_short(client.engine, b"\x31\x03any") for _ in range(later)]
    hand_over(pair, client, server, packet, *others)
    hand_over(pair, client, server, packet, packet)
    assert len(server.of(events.DatagramReceived)) == 1 + later


@in_runs_or_singly
def test_packets_far_below_the_newest_are_taken_once(in_runs: bool) -> None:
    """RFC 9000 section 12.3."""
    pair, client, server = established(in_runs=in_runs)
    packets = [seal_short(client.engine, b"\x30" + bytes((number,)) * 4) for number in range(140)]
    hand_over(pair, client, server, *packets[1:130])
    count = len(server.of(events.DatagramReceived))
    hand_over(pair, client, server, packets[0], packets[0])
    assert len(server.of(events.DatagramReceived)) == count + 1
    hand_over(pair, client, server, *packets[130:], *packets)
    assert len(server.of(events.DatagramReceived)) == 140


@in_runs_or_singly
@pytest.mark.parametrize("start", [0x7FF0, 0xFFF0, 0x1_7FF8, 0x2_FFF5])
def test_packet_numbers_are_told_apart_where_two_bytes_wrap_around(
    in_runs: bool, start: int
) -> None:
    """RFC 9000 appendix A.3, with packets reordered across the boundary."""
    pair, client, server = established(in_runs=in_runs)
    at = next_packet_number(client.engine)
    while at < start:  # in steps that two bytes can tell apart
        at = min(at + 30_000, start)
        hand_over(pair, client, server, seal_short(client.engine, b"\x01", number=at))
    numbers = list(range(start + 1, start + 40))
    order = [*numbers[1::2], *numbers[0::2]]
    packets = [
        seal_short(client.engine, b"\x30" + number.to_bytes(4, "big"), number=number)
        for number in order
    ]
    hand_over(pair, client, server, *packets)
    received = [int.from_bytes(each.data, "big") for each in server.of(events.DatagramReceived)]
    assert received == order
    assert largest_received(server.engine) == numbers[-1]


# ------------------------------------------------------------------ sides that only receive


@pytest.mark.parametrize("lossy", [False, True])
def test_who_only_receives_remembers_little_and_can_always_answer(lossy: bool) -> None:
    """RFC 9000 section 13.2.4: acknowledgements are not acknowledged, but PINGs are."""
    pair, client, server = established()
    generator = random.Random(1)
    if lossy:
        pair.drop = lambda destination, data: generator.random() < 0.05
    for _ in range(3000):
        client.engine.send_datagram(b"reading")
        pair.run(0.03)
        assert len(remembered_packets(server.engine)) <= 40
    pair.drop = lambda destination, data: False
    pinged = next_packet_number(server.engine)
    pair.run(20.0)
    pings = next_packet_number(server.engine) - pinged
    assert pings < 10, "two sides never PING each other for ever"
    stream_id = server.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    server.engine.write(stream_id, b"answer", end_stream=True)
    pair.run(1.0)
    assert client.received[stream_id] == b"answer"


def test_a_peer_which_never_acknowledges_costs_bounded_memory() -> None:
    pair, client, server = established()
    for _ in range(6000):
        hand_over(pair, client, server, seal_short(client.engine, b"\x01"))
        pair.now += 0.03
        deadline = server.engine.next_deadline()
        if deadline is not None and deadline <= pair.now:
            server.engine.on_timer(pair.now)
        while server.engine.transmit(pair.now):
            pass
        assert len(remembered_packets(server.engine)) < 2100
    assert ending(server) is None


# ------------------------------------------------------------------ frames that break a rule


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
    ("credit for a stream too many", [frame(0x11, 4 * 10, 99)], "STREAM_LIMIT_ERROR"),
    ("data on the server's one-way stream", [stream_frame(3, 0, b"x")], "STREAM_STATE_ERROR"),
    ("a reset of the server's one-way stream", [reset_frame(3, 0)], "STREAM_STATE_ERROR"),
    ("data on a stream only the server opens", [stream_frame(5, 0, b"x")], "STREAM_STATE_ERROR"),
    ("a reset of such a stream", [reset_frame(5, 0)], "STREAM_STATE_ERROR"),
    ("credit for such a stream", [frame(0x11, 5, 99)], "STREAM_STATE_ERROR"),
    ("credit for one which is not open", [frame(0x11, 7, 99)], "STREAM_STATE_ERROR"),
    ("credit for the client's one-way stream", [frame(0x11, 2, 9)], "STREAM_STATE_ERROR"),
    ("a stop of the client's one-way stream", [frame(0x05, 2, 9)], "STREAM_STATE_ERROR"),
    ("a stop of a stream not opened", [frame(0x05, 7, 9)], "STREAM_STATE_ERROR"),
    ("an offset too large", [stream_frame(0, (1 << 62) - 1, b"x")], "FRAME_ENCODING_ERROR"),
    ("ranges below 0", [ack_frame(2, 3)], "FRAME_ENCODING_ERROR"),
    ("a gap below 0", [ack_frame(2, 0, (1, 0))], "FRAME_ENCODING_ERROR"),
    ("ranges at 0", [ack_frame(2, 0, (0, 0))], ""),
    ("streams without end", [frame(0x12, (1 << 60) + 1)], "FRAME_ENCODING_ERROR"),
    ("a client's HANDSHAKE_DONE", [b"\x1e"], "PROTOCOL_VIOLATION"),
    ("a client's NEW_TOKEN", [b"\x07\x02ab"], "PROTOCOL_VIOLATION"),
    ("an unknown frame", [b"\x21"], "FRAME_ENCODING_ERROR"),
    ("a frame cut short", [b"\x0e\x00\x0a\x05abc"], "FRAME_ENCODING_ERROR"),
    ("a datagram cut short", [b"\x31\x40\xffabc"], "FRAME_ENCODING_ERROR"),
    ("MAX_DATA cut short", [b"\x01\x01\x01\x10\xc0"], "FRAME_ENCODING_ERROR"),
    ("a retirement of what was never issued", [frame(0x19, 99)], "PROTOCOL_VIOLATION"),
    (
        "retirement beyond the number",
        [frame(0x18, 20, 21)[:3] + b"\x08" + bytes(24)],
        "FRAME_ENCODING_ERROR",
    ),
    ("an answer to no challenge", [b"\x1b" + bytes(8)], ""),
    ("reserved bits", [], "PROTOCOL_VIOLATION"),
    ("no frames", [b""], "PROTOCOL_VIOLATION"),
]


@in_runs_or_singly
@pytest.mark.parametrize(
    ("frames", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_breaking_a_rule_ends_the_connection(
    frames: list[bytes], expected: str, in_runs: bool
) -> None:
    pair, client, server = established(
        in_runs=in_runs,
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
        seal_short(client.engine, stream_frame(0, 0, bytes(10))),
        seal_short(client.engine, stream_frame(4, 0, bytes(5), fin=True)),
        seal_short(client.engine, stream_frame(8, 0, bytes(3)), reset_frame(8, 6)),
    )
    assert ending(server) is None
    assert credit_used(server.engine) == 10 + 5 + 6
    if not frames:
        packet = seal_short(client.engine, b"\x01" * 4, reserved_bits=3)
        hand_over(pair, client, server, packet)
    elif frames == [b""]:
        packet = seal_short(client.engine, number_size=4, pad=False)
        hand_over(pair, client, server, packet)
    else:
        hand_over(
            pair, client, server, *(seal_short(client.engine, each) for each in of_one_size(frames))
        )
    assert expected in str(ending(server))
    if not expected:
        assert ending(server) is None
    else:
        assert credit_used(server.engine) <= 2 * WINDOW
    assert all(len(each) <= WINDOW for each in server.received.values())


@in_runs_or_singly
@pytest.mark.parametrize("order", ["aa", "aba", "abcb", "abab", "cbacba", "bcabca"])
def test_a_packet_which_comes_twice_in_one_run_is_taken_once(order: str, in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    packets = {name: seal_short(client.engine, b"\x30" + name.encode() * 4) for name in "abc"}
    hand_over(pair, client, server, *(packets[name] for name in order))
    received = [event.data[:1].decode() for event in server.of(events.DatagramReceived)]
    assert received == list(dict.fromkeys(order))


# ------------------------------------------------------------------ growth caused by a peer


@in_runs_or_singly
def test_numbers_with_many_gaps_are_acknowledged_in_a_bounded_number_of_ranges(
    in_runs: bool,
) -> None:
    """RFC 9000 section 13.2.3."""
    pair, client, server = established(in_runs=in_runs)
    for _ in range(50):
        packets = []
        for _ in range(10):
            leave_out_numbers(client.engine, 1)
            packets.append(seal_short(client.engine, b"\x01"))
        hand_over(pair, client, server, *packets)
        assert len(received_ranges(server.engine)) <= 64
    assert received_ranges(server.engine)[-1].stop == next_packet_number(client.engine)
    assert ending(server) is None


@in_runs_or_singly
def test_a_thousand_gaps_are_taken_on_however_many_streams_they_are(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    packets = []
    for number in range(0, 81, 9):
        frames = [
            stream_frame(4 * stream, 2 * (number + gap) + 1, b"x")
            for stream in range(12)
            for gap in range(9)
        ]
        packets.append(seal_short(client.engine, *frames, bytes(10)))
    hand_over(pair, client, server, *packets)
    streams = [stream_facts(server.engine, each) for each in stream_ids(server.engine)]
    assert all(len(stream.behind_gaps) == 81 for stream in streams)
    assert ending(server) is None


# ------------------------------------------------------------------ the idle timer


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "bulk"])
def test_the_idle_timer_begins_anew_with_what_arrives_and_with_the_first_answer(size: int) -> None:
    """RFC 9000 section 10.1: only the first ack-eliciting packet after one was received."""
    pair, client, server = established()
    pair.drop = lambda destination, data: True
    engine = server.engine
    stream_id = engine.open_stream(unidirectional=True)
    assert stream_id is not None
    for _ in range(2):
        hand_over(pair, client, server, seal_short(client.engine, b"\x01"))
        assert engine.end_deadline == pytest.approx(pair.now + 30)
        pair.now += 10
        engine.write(stream_id, bytes(size))
        pair.flush(server)
        assert engine.end_deadline == pytest.approx(pair.now + 30)
        newest = next_packet_number(engine) - 1  # (at once, since a round trip must not take long)
        hand_over(pair, client, server, seal_short(client.engine, ack_frame(newest, newest)))
        pair.now += 5
        engine.write(stream_id, bytes(size))
        pair.flush(server)
        first = engine.end_deadline
        assert first == pytest.approx(pair.now + 30)
        newest = next_packet_number(engine) - 1
        pair.now += 0.001
        engine.send_ping(1)
        pair.flush(server)
        assert engine.end_deadline == first
        hand_over(pair, client, server, seal_short(client.engine, ack_frame(newest, newest)))


# ------------------------------------------------------------------ headers and delays


def test_the_spin_bit_is_mirrored_by_the_server_and_inverted_by_the_client() -> None:
    """RFC 9000 section 17.4; a late packet does not count."""
    pair, client, server = established()
    for sender, receiver, inverted in ((client, server, False), (server, client, True)):
        late = seal_short(sender.engine, b"\x01")
        for spin in (True, False, True):
            hand_over(pair, sender, receiver, seal_short(sender.engine, b"\x01", spin=spin))
            assert spin_bit(receiver.engine) is (spin is not inverted)
        before = spin_bit(receiver.engine)
        hand_over(pair, sender, receiver, late)
        assert spin_bit(receiver.engine) is before
        stream_id = receiver.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        receiver.engine.write(stream_id, bytes(4000))
        sent = [*take_apart(receiver.engine.transmit(pair.now + 1))]
        sent += take_apart(receiver.engine.transmit(pair.now + 1))
        assert len(sent) >= 3
        for data in sent:
            assert bool(data[0] & 0x20) is before


def test_an_acknowledgement_says_how_long_it_waited() -> None:
    """RFC 9000 section 13.2.5: otherwise the delay would count as a part of the round trip."""
    pair, client, server = established()
    answers = []

    def note(destination: Side, data: bytes) -> bool:
        if destination is client:
            answers.append((pair.now, data))
        return False

    pair.drop = note
    client.engine.send_ping(1)
    pair.run(0.011)
    set_ack_delay(server.engine, 0.015004)
    make_acknowledgement_due(server.engine, None)
    sent = pair.now
    client.engine.send_ping(2)
    pair.run(0.1)
    arrival, data = answers[-1]
    assert arrival - sent == pytest.approx(0.035, abs=0.001)
    (packet,) = open_sent(server.engine, data)
    (acknowledgement,) = packet.of(0x02, 0x03)
    _, delay, *_ = acknowledgement.fields
    assert isinstance(delay, int)
    assert delay * 8e-6 == pytest.approx(0.015, abs=0.001)  # (the exponent is 3)
    assert statistics(client.engine).rtt_latest == pytest.approx(0.02, abs=0.001)


def test_half_a_megabyte_is_acknowledged_at_once() -> None:
    """The sender of much data must not run out of window (RFC 9000 section 13.2.2)."""
    pair, client, server = established(max_udp_payload_size=9000)
    for number in range(57):
        data = stream_frame(0, 9000 * number, bytes(9000), length=False)
        hand_over(pair, client, server, seal_short(client.engine, data))
        due = acknowledgement_due(server.engine)
        assert due is not None
        assert due > pair.now
    for number in range(57, 60):
        data = stream_frame(0, 9000 * number, bytes(9000), length=False)
        hand_over(pair, client, server, seal_short(client.engine, data))
    assert acknowledgement_due(server.engine) == pair.now


# ------------------------------------------------------------------ a peer that sends anything

ids = st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4, 5, 8, 36, 40])
offsets = st.sampled_from([0, 0, 1, 5, 10, 50, 100, 105, 1000, WINDOW - 3, WINDOW, (1 << 62) - 4])
lengths = st.sampled_from([0, 1, 5, 5, 10, 50, 95, 400])
numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 10, 100, 70_000])
frames = st.one_of(
    st.builds(
        lambda stream_id, offset, size, fin: stream_frame(
            stream_id, offset, bytes([size & 0xFF]) * size, fin=fin
        ),
        ids,
        offsets,
        lengths,
        st.booleans(),
    ),
    st.builds(reset_frame, ids, offsets),
    st.builds(lambda stream_id: frame(0x05, stream_id, 3), ids),
    st.builds(lambda stream_id, limit: frame(0x11, stream_id, limit), ids, offsets),
    st.builds(lambda limit: frame(0x10, limit), offsets),
    st.builds(frame, st.sampled_from([0x12, 0x13]), offsets),
    st.builds(ack_frame, numbers, numbers),
    st.builds(lambda a, b, c, d: ack_frame(a, b, (c, d)), numbers, numbers, numbers, numbers),
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
def test_whatever_a_peer_says_is_understood_the_same_in_runs_and_singly(
    packets: list[tuple[list[bytes], bool, int]],
) -> None:
    """Each packet's frames, whether it comes twice, and how many numbers are left out."""
    payloads = of_one_size([b"".join(content) for content, _, _ in packets])
    outcomes = []
    for in_runs in (True, False):
        pair, client, server = established(
            in_runs=in_runs,
            stream_receive_buffer_size=WINDOW,
            receive_buffer_size=2 * WINDOW,
            max_bidirectional_streams=10,
            max_unidirectional_streams=10,
        )
        stream_id = server.engine.open_stream(unidirectional=True)
        assert stream_id == 3
        server.engine.write(stream_id, b"data")
        pair.flush(server)
        sealed = []
        for payload, (_, twice, gap) in zip(payloads, packets, strict=True):
            leave_out_numbers(client.engine, gap)
            sealed += [seal_short(client.engine, payload)] * (1 + twice)
        hand_over(pair, client, server, *sealed)
        engine = server.engine
        outcome: dict[str, Any] = {
            "close": close_code(engine),
            "events": [type(event) for event in server.log if type(event) not in UNORDERED],
        }
        if close_code(engine) is None:
            outcome |= {
                "received": {key: bytes(value) for key, value in server.received.items()},
                "used": (credit_used(engine), statistics(engine).stream_bytes_read),
                "limits": (max_data(engine), max_streams(engine)),
                "numbers": (received_ranges(engine), largest_acknowledged(engine)),
                "sent": remembered_packets(engine),
                "in flight": statistics(engine).bytes_in_flight,
                "to be acknowledged": ack_eliciting_in_flight(engine),
                "streams": {key: stream_facts(engine, key) for key in stream_ids(engine)},
            }
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]


#: These report that something has changed; pieces of data may be put together.
UNORDERED = (events.SendProgress, events.StreamDataReceived, events.StreamsAvailable)


def test_only_the_newest_packet_of_an_acknowledgement_tells_the_round_trip_time() -> None:
    """RFC 9002 section 5.1: an older packet acknowledged late gives no sample."""
    pair, client, server = established()
    pair.drop = lambda destination, data: True
    for number in range(2):
        client.engine.send_ping(number)
        pair.flush(client)
    newest = next_packet_number(client.engine) - 1
    pair.now += 0.02
    hand_over(pair, server, client, seal_short(server.engine, ack_frame(newest)))
    before = statistics(client.engine).rtt_latest
    pair.now += 0.002  # (not yet lost: that takes 9/8 of a round trip)
    hand_over(pair, server, client, seal_short(server.engine, ack_frame(newest, 1)))
    assert len(client.of(events.PingAcknowledged)) == 2
    assert statistics(client.engine).rtt_latest == before
