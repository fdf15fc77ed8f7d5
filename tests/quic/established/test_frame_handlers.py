"""Every frame of a packet has its effect, and frames that break a rule end the connection."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.frame_handlers import ELICITING, NON_PROBING, take_frames
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    CRYPTO_ERROR,
    FINAL_SIZE_ERROR,
    FLOW_CONTROL_ERROR,
    FRAME_ENCODING_ERROR,
    PROTOCOL_VIOLATION,
    STREAM_LIMIT_ERROR,
    STREAM_STATE_ERROR,
    TransportError,
)

from .pair import ADDRESSES, CIDS, Half, Pair
from .test_exchange import write

BOTH = ELICITING | NON_PROBING


def take(half: Half, payload: bytes) -> int:
    """Handle the frames of a packet received on the active path."""
    s = half.state
    s.arrival_path, s.arrival_cid = s.paths.all[0], s.local_cid
    return take_frames(s, payload, 0.0)


# ------------------------------------------------------------------ kinds of packets


@pytest.mark.parametrize(
    ("payload", "flags"),
    [
        (frames.PING_FRAME, BOTH),
        (bytes(20), 0),  # PADDING alone
        (frames.build_path_challenge(b"12345678"), ELICITING),
        (frames.build_path_response(b"12345678"), ELICITING),
        (frames.build_new_connection_id(1, 0, b"another-", bytes(16)), ELICITING),
        (frames.build_path_challenge(b"12345678") + bytes(1000), ELICITING),
        (frames.build_path_challenge(b"12345678") + frames.PING_FRAME, BOTH),
        (frames.build_max_data(1 << 40), BOTH),
        (frames.build_max_streams(200, True), BOTH),
        (frames.build_max_streams(200, False), BOTH),
        (frames.build_data_blocked(5), BOTH),
        (frames.build_streams_blocked(5, False), BOTH),
        (frames.build_streams_blocked(5, True), BOTH),
        (frames.build_stream_head(0, 0, 1, False) + b"x", BOTH),
        (frames.build_reset_stream(0, 1, 0), BOTH),
        (frames.build_stream_data_blocked(0, 0), BOTH),
        (frames.build_application_close(1, "", 100), NON_PROBING),
        (frames.build_transport_close(1, 2, "", 100), NON_PROBING),
        (b"\x30datagram", BOTH),
    ],
)
def test_what_a_packet_is(payload: bytes, flags: int) -> None:
    """RFC 9000 sections 9.1 and 13.2.1: probing packets, and packets to acknowledge."""
    assert take(Pair().server, payload) == flags


def test_an_acknowledgement_is_not_acknowledged() -> None:
    pair = Pair()
    write(pair.client, pair.open(), b"x")
    pair.flush(pair.client)
    number = pair.client.state.recovery.next_number - 1
    payload = bytes((frames.ACK, number, 0, 0, 0))
    assert take(pair.client, payload) == NON_PROBING
    assert pair.client.state.recovery.largest_acknowledged == number


def test_frames_have_their_effect() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"x")
    pair.run(1)
    client = pair.client
    take(client, frames.build_max_data(1 << 40))
    assert client.streams.sending.peer_max_data == 1 << 40
    take(client, frames.build_max_stream_data(stream_id, 1 << 41))
    assert client.streams.senders[stream_id].limit == 1 << 41
    before = client.streams.available_streams(unidirectional=True)
    take(client, frames.build_max_streams(1000, True))
    assert client.streams.available_streams(unidirectional=True) == before + 900
    take(client, frames.build_path_challenge(b"12345678"))
    assert client.state.paths.all[0].challenges == [b"12345678"]
    take(client, frames.build_stop_sending(pair.open(), 7))
    assert client.queue.pop() == events.StreamStopReceived(4, 7)
    take(client, b"\x30rest of the packet")
    assert client.queue.pop() == events.DatagramReceived(b"rest of the packet")
    take(client, b"\x31\x04part" + frames.PING_FRAME)
    assert client.queue.pop() == events.DatagramReceived(b"part")
    done: list[bool] = []
    client.state.on_handshake_done = lambda: done.append(True)
    take(client, frames.HANDSHAKE_DONE_FRAME)
    assert done == [True]
    take(client, frames.build_new_token(b"token"))  # is of no use here


def test_a_path_challenge_is_answered() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True)
    pair.run(1)
    take(pair.server, frames.build_path_challenge(b"12345678"))
    pair.server.state.paths.has_frames = True
    before = len(pair.sent)
    pair.flush(pair.server)
    ((_, _, data),) = pair.sent[before:]
    assert len(data) == 1200, "RFC 9000 section 8.2.2"
    answer = pair.traces[False].frames()[-2:]
    assert answer[0] == {"frame_type": "path_response", "data": b"12345678".hex()}


def test_connection_ids_are_exchanged() -> None:
    pair = Pair()
    pair.run(1)
    server = pair.server
    issued = server.of_type(events.ConnectionIdIssued)
    assert len(issued) == 7
    take(server, frames.build_retire_connection_id(1))
    server.gather(0.0)
    assert server.of_type(events.ConnectionIdRetired) == [
        events.ConnectionIdRetired(issued[0].connection_id)
    ]


# ------------------------------------------------------------------ broken rules


@pytest.mark.parametrize(
    ("payload", "code", "frame_type"),
    [
        (b"", PROTOCOL_VIOLATION, 0),
        (frames.HANDSHAKE_DONE_FRAME, PROTOCOL_VIOLATION, 0x1E),
        (frames.build_new_token(b"token"), PROTOCOL_VIOLATION, 0x07),
        (b"\x06\x00\x01\x04", CRYPTO_ERROR + 10, 0x06),
        (b"\x02\x05\x00\x00\x00", PROTOCOL_VIOLATION, 0x02),  # acknowledges a packet never sent
        (frames.build_max_stream_data(1, 10), STREAM_STATE_ERROR, 0x11),  # not opened yet
        (frames.build_max_stream_data(2, 10), STREAM_STATE_ERROR, 0x11),  # only received on
        (frames.build_stop_sending(2, 0), STREAM_STATE_ERROR, 0x05),
        (frames.build_stream_head(3, 0, 1, False) + b"x", STREAM_STATE_ERROR, 0x0A),
        (frames.build_stream_head(1, 0, 1, False) + b"x", STREAM_STATE_ERROR, 0x0A),
        (frames.build_reset_stream(3, 0, 0), STREAM_STATE_ERROR, 0x04),
        (frames.build_stream_data_blocked(3, 0), STREAM_STATE_ERROR, 0x15),
        (frames.build_stream_head(400, 0, 1, False) + b"x", STREAM_LIMIT_ERROR, 0x0A),
        (frames.build_stream_head(0, 1 << 40, 1, False) + b"x", FLOW_CONTROL_ERROR, 0x0E),
        (frames.build_reset_stream(0, 0, 1 << 40), FLOW_CONTROL_ERROR, 0x04),
        (frames.build_retire_connection_id(60), PROTOCOL_VIOLATION, 0x19),
        (frames.build_retire_connection_id(0), PROTOCOL_VIOLATION, 0x19),  # the ID of the packet
        (b"\x3f", FRAME_ENCODING_ERROR, 0x3F),
        (b"\x7f\xff", FRAME_ENCODING_ERROR, 0x3FFF),
        (b"\x40\x01", PROTOCOL_VIOLATION, 0x01),  # not in the shortest form (section 12.4)
        (b"\x1a1234", FRAME_ENCODING_ERROR, 0x1A),
        (b"\x10", FRAME_ENCODING_ERROR, 0x10),
    ],
)
def test_rules(payload: bytes, code: int, frame_type: int) -> None:
    server = Pair().server
    with pytest.raises(TransportError) as caught:
        take(server, payload)
    assert (caught.value.code, caught.value.frame_type) == (code, frame_type)


def test_the_final_size_does_not_change() -> None:
    server = Pair().server
    take(server, frames.build_stream_head(0, 0, 2, True) + b"ab")
    with pytest.raises(TransportError) as caught:
        take(server, frames.build_stream_head(0, 0, 3, True) + b"abc")
    assert caught.value.code == FINAL_SIZE_ERROR
    assert caught.value.frame_type == 0x0B, "which of the eight types it was"


@pytest.mark.parametrize("kind", [0x30, 0x31])
def test_datagrams_must_have_been_announced(kind: int) -> None:
    """RFC 9221 section 3."""
    server = Pair(TransportConfig(enable_datagrams=False)).server
    with pytest.raises(TransportError) as caught:
        take(server, bytes((kind, 1)) + b"x")
    assert caught.value.code == PROTOCOL_VIOLATION


def test_frames_before_the_one_which_breaks_a_rule_count_and_those_behind_do_not() -> None:
    server = Pair().server
    good = frames.build_stream_head(0, 0, 1, False) + b"a"
    late = frames.build_stream_head(0, 1, 1, False) + b"b"
    with pytest.raises(TransportError):
        take(server, good + b"\x3f" + late)
    server.gather(0.0)
    assert server.data(0) == b"a"


def test_nothing_behind_a_close_is_read() -> None:
    server = Pair().server
    close = frames.build_application_close(9, "", 100)
    take(server, close + frames.build_stream_head(0, 0, 1, False) + b"a")
    server.gather(0.0)
    assert server.state.peer_close is not None
    assert server.data(0) == b""


def test_a_fault_in_a_packet_is_kept_for_the_engine() -> None:
    pair = Pair()
    from phoenix_trio.quic.established import transmit

    bad = transmit.build_close(pair.client.state, 0.0, frames.HANDSHAKE_DONE_FRAME)
    assert bad is not None
    taken = pair.server.half.receive_run(bad, 0, len(bad), ADDRESSES[True], 0.0, 0, len(bad))
    assert taken == len(bad)
    fault = pair.server.state.fault
    assert fault is not None
    assert fault.code == PROTOCOL_VIOLATION
    assert fault.frame_type == frames.HANDSHAKE_DONE


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_raise_anything_else(payload: bytes, is_client: bool) -> None:
    pair = Pair()
    half = pair.client if is_client else pair.server
    with contextlib.suppress(TransportError):
        take(half, payload)
    half.streams.collect()


# ------------------------------------------------------------------ invalid packets


@pytest.mark.parametrize("length", [1, 8, 9, 20, 28])
def test_packets_which_are_too_short_are_ignored(length: int) -> None:
    """RFC 9001 section 5.4.2."""
    pair = Pair()
    data = (b"\x40" + CIDS[False] + bytes(40))[:length]
    s = pair.server.state
    taken = pair.server.half.receive_run(data, 0, length, ADDRESSES[True], 0.0, 0, length)
    assert taken == length
    assert s.received.largest == -1
    assert s.fault is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_packets_are_ignored_and_their_neighbours_are_read(data: st.DataObject) -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    pair.run(1)
    write(pair.client, stream_id, bytes(8000))
    pair.flush(pair.client)
    size = 1200
    run = [packet for _, _, packet in pair.sent if len(packet) == size]
    assert len(run) == 6
    before = pair.server.state.received.largest
    damaged = data.draw(st.sets(st.integers(0, len(run) - 1), max_size=3))
    for index in damaged:
        at = data.draw(st.integers(9, size - 1))
        flipped = bytes((run[index][at] ^ 1 << data.draw(st.integers(0, 7)),))
        run[index] = run[index][:at] + flipped + run[index][at + 1 :]
    pair.wire.clear()
    pair.deliver(pair.server, run, ADDRESSES[True])
    received = pair.server.state.received
    new = [number for each in received.to_acknowledge for number in each if number > before]
    assert len(new) == len(run) - len(damaged)
    pair.run(5)
    assert pair.server.data(stream_id) == bytes(8000)


def test_a_run_ends_before_a_datagram_of_another_connection() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    pair.run(1)
    before = len(pair.sent)
    write(pair.client, pair.open(), bytes(5000))
    pair.flush(pair.client)
    packets = [packet for _, _, packet in pair.sent[before:]]
    other = b"\x40" + b"stranger" + bytes(len(packets[0]) - 9)
    data = b"".join((packets[0], other, packets[1]))
    size = len(packets[0])
    assert len(packets[1]) == size
    half = pair.server.half
    assert half.receive_run(data, 0, size, ADDRESSES[True], 0.0, 0, len(data)) == size
    largest = pair.server.state.received.largest
    assert half.receive_run(data, size, size, ADDRESSES[True], 0.0, 0, len(data)) == 2 * size
    assert pair.server.state.received.largest == largest
    assert half.receive_run(data, 2 * size, size, ADDRESSES[True], 0.0, 0, len(data)) == 3 * size
    assert pair.server.state.received.largest > largest
