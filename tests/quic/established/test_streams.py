"""The streams of a connection: the effect of each frame and each call."""

from __future__ import annotations

import gc
import math
import sys
import weakref

import attrs
import pytest

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.memory_budget import EndpointMemory
from phoenix_trio.quic.established.parameters import PeerParameters
from phoenix_trio.quic.established.sent_packet import SentPacket
from phoenix_trio.quic.established.streams import Streams
from phoenix_trio.quic.wire import errors, frames
from phoenix_trio.quic.wire.errors import TransportError
from phoenix_trio.quic.wire.frames import (
    build_max_stream_data,
    build_reset_stream,
    build_stop_sending,
    build_stream_data_blocked,
    build_stream_head,
)
from tests.quic.established.pipe import (
    Side,
    connected,
    content,
    exchange,
    parameters_of,
    take_frames,
)

KIB = 1024
WINDOW = 20_000  # of a stream; of the connection: twice that


def data_frame(stream_id: int, offset: int, data: bytes, *, fin: bool = False) -> bytes:
    return build_stream_head(stream_id, offset, len(data), fin) + data


def opened(side: Side, *, unidirectional: bool = False) -> int:
    stream_id = side.streams.open_stream(unidirectional=unidirectional)
    assert stream_id is not None
    return stream_id


def read(side: Side, stream_id: int, count: int, now: float = 0.0) -> None:
    if side.streams.consume(stream_id, count):
        side.streams.extend_credit(stream_id, now, 0.1)


# ------------------------------------------------------------------ frames that break a rule

#: The client's stream 0 is open and has delivered 10 bytes, its stream 4 has ended after 5,
#: its stream 8 was reset at 6.  The server has opened the one-way stream 3.
RULES: dict[str, tuple[list[bytes], int]] = {
    "beyond the stream's window": (
        [data_frame(0, WINDOW - 1, b"xx")],
        errors.FLOW_CONTROL_ERROR,
    ),
    "beyond the stream's window, in order": (
        [data_frame(0, at, bytes(1000)) for at in range(10, WINDOW + 10, 1000)],
        errors.FLOW_CONTROL_ERROR,
    ),
    "beyond the connection's window": (
        [data_frame(each, WINDOW - 1, b"x") for each in (0, 12, 16)],
        errors.FLOW_CONTROL_ERROR,
    ),
    "beyond the connection's window, in order": (
        [data_frame(each, 0, bytes(WINDOW)) for each in (12, 16)],
        errors.FLOW_CONTROL_ERROR,
    ),
    "a reset beyond the window": (
        [build_reset_stream(0, 1, WINDOW + 1)],
        errors.FLOW_CONTROL_ERROR,
    ),
    "resets beyond the connection's window": (
        [build_reset_stream(each, 1, WINDOW) for each in (12, 16)],
        errors.FLOW_CONTROL_ERROR,
    ),
    "data of an ended stream": ([data_frame(4, 5, b"x")], errors.FINAL_SIZE_ERROR),
    "data of a reset stream": ([data_frame(8, 6, b"x")], errors.FINAL_SIZE_ERROR),
    "another end": (
        [data_frame(0, 10, b"", fin=True), data_frame(0, 10, b"x", fin=True)],
        errors.FINAL_SIZE_ERROR,
    ),
    "an end before what came": ([data_frame(0, 5, b"", fin=True)], errors.FINAL_SIZE_ERROR),
    "data behind the end": (
        [data_frame(0, 20, b"", fin=True), data_frame(0, 10, bytes(11))],
        errors.FINAL_SIZE_ERROR,
    ),
    "a reset before what came": ([build_reset_stream(0, 1, 9)], errors.FINAL_SIZE_ERROR),
    "a reset at another end": (
        [data_frame(0, 20, b"", fin=True), build_reset_stream(0, 1, 21)],
        errors.FINAL_SIZE_ERROR,
    ),
    "a stream too many": ([data_frame(40, 0, b"x")], errors.STREAM_LIMIT_ERROR),
    "a one-way stream too many": ([data_frame(42, 0, b"x")], errors.STREAM_LIMIT_ERROR),
    "a reset of a stream too many": (
        [build_reset_stream(40, 1, 0)],
        errors.STREAM_LIMIT_ERROR,
    ),
    "credit for a stream too many": (
        [build_max_stream_data(40, 99)],
        errors.STREAM_LIMIT_ERROR,
    ),
    "a stop of a stream too many": ([build_stop_sending(40, 1)], errors.STREAM_LIMIT_ERROR),
    "a blocked stream too many": (
        [build_stream_data_blocked(40, 1)],
        errors.STREAM_LIMIT_ERROR,
    ),
    "data on the server's one-way stream": (
        [data_frame(3, 0, b"x")],
        errors.STREAM_STATE_ERROR,
    ),
    "a reset of the server's one-way stream": (
        [build_reset_stream(3, 1, 0)],
        errors.STREAM_STATE_ERROR,
    ),
    "the server's one-way stream is blocked": (
        [build_stream_data_blocked(3, 0)],
        errors.STREAM_STATE_ERROR,
    ),
    "data on a stream only the server opens": (
        [data_frame(5, 0, b"x")],
        errors.STREAM_STATE_ERROR,
    ),
    "a reset of such a stream": ([build_reset_stream(5, 1, 0)], errors.STREAM_STATE_ERROR),
    "credit for such a stream": ([build_max_stream_data(5, 9)], errors.STREAM_STATE_ERROR),
    "credit for one not opened": ([build_max_stream_data(7, 9)], errors.STREAM_STATE_ERROR),
    "a stop of one not opened": ([build_stop_sending(7, 9)], errors.STREAM_STATE_ERROR),
    "credit for the client's one-way stream": (
        [build_max_stream_data(2, 9)],
        errors.STREAM_STATE_ERROR,
    ),
    "a stop of the client's one-way stream": (
        [build_stop_sending(2, 9)],
        errors.STREAM_STATE_ERROR,
    ),
    "more gaps than data": (
        [data_frame(0, at, b"x") for at in range(11, 11 + 2 * 1100, 2)],
        errors.INTERNAL_ERROR,
    ),
}

#: Repetitions and similar frames that break no rule.
HARMLESS: dict[str, list[bytes]] = {
    "a reset at the end": [data_frame(0, 20, b"", fin=True), build_reset_stream(0, 1, 20)],
    "a repetition": [data_frame(0, 0, bytes(10))],
    "a repetition of an ended stream": [data_frame(4, 0, bytes(5), fin=True)],
    "a repetition of a part of it": [data_frame(4, 1, bytes(3))],
    "late data of a reset stream": [data_frame(8, 2, bytes(4))],
    "the same reset": [build_reset_stream(8, 1, 6)],
    "a reset of an ended stream": [build_reset_stream(4, 1, 5)],
    "less credit": [build_max_stream_data(0, 0)],
    "credit for the server's stream": [build_max_stream_data(3, 1 << 61)],
    "all that the window permits": [data_frame(0, 10, bytes(WINDOW - 10))],
    "the last byte": [data_frame(0, WINDOW - 1, b"x")],
    "the highest stream": [data_frame(36, 0, b"x")],
    "a blocked stream": [build_stream_data_blocked(12, 5)],
}


@pytest.fixture
def server() -> Side:
    config = TransportConfig(
        stream_receive_buffer_size=WINDOW,
        receive_buffer_size=2 * WINDOW,
        max_bidirectional_streams=10,
        max_unidirectional_streams=10,
    )
    side = Side(False, config)
    side.streams.set_peer_limits(parameters_of(Side(True, config).streams, config))
    assert opened(side, unidirectional=True) == 3
    side.take(data_frame(0, 0, bytes(10)))
    side.take(data_frame(4, 0, bytes(5), fin=True))
    side.take(data_frame(8, 0, bytes(3)) + build_reset_stream(8, 1, 6))
    side.collect()
    assert side.streams.receiving.received == 10 + 5 + 6
    return side


@pytest.mark.parametrize(("payloads", "code"), RULES.values(), ids=RULES)
def test_a_peer_which_breaks_a_rule_is_told_so(
    payloads: list[bytes], code: int, server: Side
) -> None:
    with pytest.raises(TransportError) as caught:
        for payload in payloads:
            server.take(payload)
    assert caught.value.code == code
    kind = payloads[-1][0]
    assert caught.value.frame_type == (frames.STREAM if kind & 0xF8 == frames.STREAM else kind)
    assert server.streams.receiving.received <= 2 * WINDOW
    server.collect()
    assert all(len(data) <= WINDOW for data in server.received.values())


@pytest.mark.parametrize("payloads", HARMLESS.values(), ids=HARMLESS)
def test_repetitions_and_limits_are_fine(payloads: list[bytes], server: Side) -> None:
    for payload in payloads:
        server.take(payload)
    server.collect()
    before = server.streams.receiving.received
    for payload in payloads:  # and once more
        server.take(payload)
    assert server.collect() == []
    assert server.streams.receiving.received == before


# ------------------------------------------------------------------ events


def test_a_frame_opens_all_streams_before_it_and_they_come_before_its_data() -> None:
    _, server = connected()
    server.take(data_frame(8, 0, b"data", fin=True))
    assert server.collect() == [
        events.StreamOpened(0),
        events.StreamOpened(4),
        events.StreamOpened(8),
        events.StreamDataReceived(8, b"data", True),
    ]
    server.take(data_frame(4, 0, b""))
    assert server.collect() == [], "nothing new"
    server.take(data_frame(4, 3, b"def") + data_frame(4, 0, b"abc"))
    server.take(data_frame(4, 6, b"", fin=True))
    assert server.collect() == [
        events.StreamDataReceived(4, b"abcdef", False),
        events.StreamDataReceived(4, b"", True),
    ]
    assert server.streams.accepted == 3
    assert server.streams.bytes_received == 10


def test_credit_of_the_peer_opens_a_stream() -> None:
    _, server = connected()
    server.take(build_max_stream_data(4, 1 << 40))
    assert server.collect() == [events.StreamOpened(0), events.StreamOpened(4)]
    assert server.streams.senders[4].limit == 1 << 40


def test_a_stop_of_the_peer_resets_the_stream_once() -> None:
    client, server = connected()
    stream_id = opened(client)
    client.streams.write(stream_id, b"data")
    exchange(client, server)
    client.streams.write(stream_id, b"more")
    client.take(build_stop_sending(stream_id, 7) * 2)
    assert client.collect() == [
        events.StreamStopReceived(stream_id, 7),
        events.SendProgress(),
    ]
    exchange(client, server)
    assert server.saw_reset == {stream_id: 7}
    assert client.streams.is_acknowledged(stream_id, 8, with_fin=True)


def test_the_end_of_a_stream_is_told_to_the_application_which_is_done_with_it() -> None:
    client, server = connected()
    stream_id = opened(client)
    client.streams.write(stream_id, b"data", end_stream=True)
    exchange(client, server)
    server.streams.write(stream_id, b"answer", end_stream=True)
    assert not server.streams.let_go(stream_id, sending=True, receiving=True)
    exchange(client, server)
    assert server.log[-2:] == [events.StreamForgotten(stream_id), events.SendProgress()]
    assert not server.streams.senders
    assert not server.streams.receivers
    assert not client.streams.let_go(stream_id, sending=True)
    assert client.streams.let_go(stream_id, receiving=True), "nothing is left"
    assert not client.streams.let_go(stream_id, receiving=True)
    assert events.StreamForgotten(stream_id) not in client.log
    server.take(data_frame(stream_id, 0, b"data", fin=True))
    server.take(build_stop_sending(stream_id, 1))
    assert server.collect() == []


def test_a_stream_of_which_both_parts_end_at_once_is_forgotten_once() -> None:
    client, server = connected(max_bidirectional_streams=1)
    stream_id = opened(client)
    client.streams.write(stream_id, b"")
    exchange(client, server)
    client.take(build_max_stream_data(stream_id, 1))
    client.streams.write(stream_id, b"x", end_stream=True)
    (packet,) = client.flush()
    server.take(packet.payload)
    server.collect()
    server.streams.write(stream_id, b"y", end_stream=True)
    (answer,) = server.flush()
    assert not client.streams.let_go(stream_id, sending=True, receiving=True)
    client.acknowledge(packet)
    client.take(answer.payload)
    assert client.collect().count(events.StreamForgotten(stream_id)) == 1
    assert not server.streams.let_go(stream_id, sending=True)
    server.acknowledge(answer)
    assert server.streams.let_go(stream_id, receiving=True), "before the end is collected"
    assert events.StreamForgotten(stream_id) not in server.collect()
    packet = server.build()
    assert packet is not None
    assert packet.record.control == [(frames.MAX_STREAMS_BIDI, 2, 0)]


def test_more_streams_are_permitted_once_few_are_left() -> None:
    client, server = connected(max_unidirectional_streams=5)

    def use() -> int:
        stream_id = opened(client, unidirectional=True)
        client.streams.write(stream_id, b"x", end_stream=True)
        for packet in client.flush():
            server.take(packet.payload)
        server.collect()
        return stream_id

    for _ in range(2):
        server.streams.let_go(use(), receiving=True)
        assert not server.streams.has_control(), "three or four are left"
    use()
    assert not server.streams.has_control()
    use()
    packet = server.build()
    assert packet is not None
    assert packet.record.control == [(frames.MAX_STREAMS_UNI, 7, 0)]


def at_its_limit() -> tuple[Side, Side, list[int]]:
    """A client that has opened all of its eight one-way streams, and ended them."""
    client, server = connected(max_unidirectional_streams=8)
    ids = [opened(client, unidirectional=True) for _ in range(8)]
    for stream_id in ids:
        client.streams.write(stream_id, b"", end_stream=True)
    exchange(client, server)
    server.streams.now = 10.0
    return client, server, ids


def granted(server: Side) -> list[tuple[int, int, int]] | None:
    """The limit in the next packet."""
    packet = server.build()
    return None if packet is None else packet.record.control


def test_streams_are_granted_in_quarters_of_the_window() -> None:
    _, server, ids = at_its_limit()
    for count in range(0, 8, 2):
        server.streams.let_go(ids[count], receiving=True)
        assert granted(server) is None, "one is an eighth"
        server.streams.let_go(ids[count + 1], receiving=True)
        if count < 6:
            # (The peer has not opened the streams announced to it.)
            server.streams._peer[1].opened = server.streams._peer[1].maximum
        assert granted(server) == [(frames.MAX_STREAMS_UNI, 10 + count, 0)]


def test_a_peer_at_its_limit_gets_a_smaller_grant_after_a_round_trip() -> None:
    _, server, ids = at_its_limit()
    server.streams.rtt = 0.01
    server.streams.let_go(ids[3], receiving=True)
    assert granted(server) is None
    assert server.streams.grant_at == pytest.approx(10.01)
    assert server.streams.has_limits_to_send(), "so that the timer is set"
    server.streams.now = 10.01
    server.streams.grant_streams()
    assert granted(server) == [(frames.MAX_STREAMS_UNI, 9, 0)]
    assert server.streams.grant_at == math.inf
    server.streams.let_go(ids[4], receiving=True)
    assert granted(server) is None, "it has a stream left"
    assert server.streams.grant_at == math.inf


def test_a_peer_which_says_that_it_is_blocked_gets_each_stream_at_once() -> None:
    _, server, ids = at_its_limit()
    server.streams.take_streams_blocked(8, True)
    assert granted(server) is None, "none has ended"
    server.streams.let_go(ids[0], receiving=True)
    assert granted(server) == [(frames.MAX_STREAMS_UNI, 9, 0)]
    server.streams._peer[1].opened = 9
    server.streams.let_go(ids[1], receiving=True)
    assert granted(server) is None
    server.streams.take_streams_blocked(8, True)
    assert granted(server) is None, "an old frame, from before the last grant"
    server.streams.take_streams_blocked(9, True)
    assert granted(server) == [(frames.MAX_STREAMS_UNI, 10, 0)]


def test_more_streams_are_told_of_once() -> None:
    client, server = connected(max_bidirectional_streams=1, max_unidirectional_streams=0)
    assert client.streams.available_streams(unidirectional=False) == 1
    stream_id = opened(client)
    assert client.streams.open_stream(unidirectional=False) is None
    assert client.streams.open_stream(unidirectional=True) is None
    assert client.streams.available_streams(unidirectional=False) == 0
    client.streams.write(stream_id, b"x", end_stream=True)
    exchange(client, server)
    server.streams.write(stream_id, b"y", end_stream=True)
    exchange(client, server)
    assert client.streams.open_stream(unidirectional=False) is None, "still with the application"
    assert server.streams.let_go(stream_id, sending=True, receiving=True)
    assert server.streams.has_limits_to_send()
    client.log.clear()
    exchange(client, server)
    assert client.log == [events.StreamsAvailable()]
    assert opened(client) == stream_id + 4
    client.streams.take_max_streams(1, False)
    assert client.collect() == []


# ------------------------------------------------------------------ reading


def test_a_reader_which_never_reads_stops_the_sender_at_the_window() -> None:
    client, server = connected(stream_receive_buffer_size=WINDOW)
    stream_id = opened(client)
    client.streams.write(stream_id, content(stream_id, 0, 3 * WINDOW))
    exchange(client, server)
    assert server.received[stream_id] == content(stream_id, 0, WINDOW)
    assert client.streams.sending.unsent == 2 * WINDOW
    assert not client.streams.sending.active, "only credit makes it go on"
    read(server, stream_id, WINDOW // 4 - 1)
    assert not server.streams.has_limits_to_send(), "not worth a frame"
    read(server, stream_id, 1)
    assert server.streams.has_limits_to_send()
    exchange(client, server)
    assert len(server.received[stream_id]) == WINDOW + WINDOW // 4
    for _ in range(8):
        read(server, stream_id, WINDOW)
        exchange(client, server)
    assert server.received[stream_id] == content(stream_id, 0, 3 * WINDOW)


def test_streams_which_the_connection_holds_back_go_on_in_their_order() -> None:
    client, server = connected(receive_buffer_size=16 * KIB, stream_receive_buffer_size=64 * KIB)
    first, second, third = (opened(client) for _ in range(3))
    for stream_id in (first, second, third):
        client.streams.write(stream_id, content(stream_id, 0, 16 * KIB))
    exchange(client, server)
    sending = client.streams.sending
    assert sending.peer_max_data_used == sending.peer_max_data == 16 * KIB
    assert not sending.active
    assert len(sending.starved) == 3, "none looks as if it could send"
    waiting = list(sending.starved)
    for stream_id, data in server.received.items():
        read(server, stream_id, len(data))
    server.flush()
    for packet in server.flying:
        client.take(packet.payload)
    assert list(sending.active) == waiting
    assert not sending.starved
    while any(len(data) < 16 * KIB for data in server.received.values()):
        before = sending.peer_max_data_used
        exchange(client, server)
        assert sending.peer_max_data_used > before
        for stream_id, receiver in server.streams.receivers.items():
            read(server, stream_id, receiver.delivered - receiver.window.released)
    for stream_id in (first, second, third):
        assert server.received[stream_id] == content(stream_id, 0, 16 * KIB)


def test_what_is_not_wanted_is_discarded_and_its_credit_given_back() -> None:
    client, server = connected(stream_receive_buffer_size=WINDOW, receive_buffer_size=WINDOW)
    stream_id = opened(client)
    client.streams.write(stream_id, bytes(WINDOW - 1000))
    exchange(client, server)
    server.streams.stop_receiving(stream_id, 5)
    server.streams.stop_receiving(stream_id, 6)
    window = server.streams.receiving.window
    assert window.released == WINDOW - 1000
    client.streams.write(stream_id, bytes(1000))
    client.flush()
    for packet in client.flying:
        server.take(packet.payload)
    assert events.StreamDataReceived not in map(type, server.collect())
    assert window.released == WINDOW
    exchange(client, server)
    assert client.saw_stop == {stream_id: 5}
    assert server.saw_reset == {stream_id: 5}
    assert window.released == server.streams.receiving.received == WINDOW
    assert client.streams.sending.peer_max_data == window.limit > WINDOW


def test_a_stop_of_a_stream_which_has_ended_is_not_sent() -> None:
    client, server = connected()
    stream_id = opened(client)
    client.streams.write(stream_id, b"data", end_stream=True)
    client.flush()
    for packet in client.flying:
        server.take(packet.payload)
    server.streams.stop_receiving(stream_id, 1)
    assert not server.streams.receiving.stops
    # Nor if the stream ends before the frame leaves.
    stream_id = opened(client)
    client.streams.write(stream_id, b"data")
    exchange(client, server)
    server.streams.stop_receiving(stream_id, 1)
    client.streams.write(stream_id, b"", end_stream=True)
    client.flush()
    for packet in client.flying:
        server.take(packet.payload)
    assert server.build() is None
    assert not server.streams.has_control()


def test_credit_is_given_back_once_when_a_reset_comes_with_data() -> None:
    _, server = connected()
    server.take(data_frame(0, 0, bytes(1000)) + build_reset_stream(0, 1, 5000))
    server.collect()
    assert server.streams.receiving.window.released == 5000
    read(server, 0, 1000)  # (the application still reads what came before)
    assert server.streams.receiving.window.released == 5000
    assert server.streams.receivers[0].window.released == 5000


def test_a_stream_which_nothing_reads_ends_as_soon_as_its_size_is_known() -> None:
    _, server = connected()
    server.take(data_frame(2, 500, bytes(100), fin=True))
    server.collect()
    assert server.streams.let_go(2, receiving=True)
    assert not server.streams.receivers
    assert server.streams.receiving.window.released == 600
    assert server.streams.receiving.pieces.held == 0


def test_while_memory_is_scarce_one_stream_leaves_credit_to_the_others() -> None:
    config = TransportConfig(endpoint_receive_memory=1024 * KIB, minimum_connection_memory=64 * KIB)
    memory = EndpointMemory(config)
    sides = [Side(False, config, memory) for _ in range(100)]
    last = sides[-1].streams.receiving
    assert last.initial_connection_window < 128 * KIB
    assert last.initial_stream_window <= last.initial_connection_window * 2 // 3
    assert sum(side.streams.receiving.account.held for side in sides) <= 1024 * KIB


# ------------------------------------------------------------------ writing


def test_room_is_bounded_by_the_stream_the_connection_and_the_endpoint() -> None:
    config = TransportConfig(
        send_buffer_size=100 * KIB,
        stream_send_buffer_size=60 * KIB,
        endpoint_send_memory=1024 * KIB,
        minimum_connection_memory=16 * KIB,
    )
    side = Side(True, config)
    streams = side.streams
    parameters = PeerParameters()
    parameters.max_streams_bidi = 3
    streams.set_peer_limits(parameters)
    first, second = opened(side), opened(side)
    assert streams.send_room(first, 1 << 30) == 60 * KIB
    streams.write(first, bytes(60 * KIB))
    assert streams.send_room(first) == 0
    assert not streams.has_send_room(first)
    assert streams.send_room(second, 1 << 30) == 40 * KIB
    streams.reset_sending(first, 0)
    assert streams.has_send_room(first)
    assert streams.has_send_room(99)
    assert streams.send_room(99) == 0
    # Other connections hold the endpoint's memory.
    other = EndpointMemory(config)
    hog = other.send.open()
    hog.adjust(2048 * KIB, 0)
    side = Side(True, config, other)
    side.streams.set_peer_limits(parameters)
    assert side.streams.send_room(opened(side), 1 << 30) == 16 * KIB


def test_memory_which_is_not_needed_is_given_back() -> None:
    config = TransportConfig(minimum_connection_memory=16 * KIB)
    memory = EndpointMemory(config)
    client, server = Side(True, config, memory), Side(False, config)
    client.streams.set_peer_limits(parameters_of(server.streams, config))
    stream_id = opened(client)
    assert client.streams.send_room(stream_id, 400 * KIB) >= 400 * KIB
    client.streams.write(stream_id, bytes(400 * KIB))
    assert memory.send.used >= 384 * KIB
    exchange(client, server)
    assert memory.send.used == 0
    client.streams.send_room(stream_id, 400 * KIB)
    client.streams.free_buffers()
    assert memory.send.used == 0
    client.streams.send_room(stream_id, 400 * KIB)
    client.streams.sending.progress = True
    client.streams.collect()
    assert memory.send.used == 0, "an ended connection asks for nothing"


def test_nothing_is_written_after_the_end_or_a_reset() -> None:
    client, _ = connected()
    first, second = opened(client), opened(client)
    client.streams.write(first, b"", end_stream=True)
    client.streams.reset_sending(second, 0)
    for stream_id in (first, second):
        with pytest.raises(RuntimeError, match="after the end"):
            client.streams.write(stream_id, b"x")


def test_large_immutable_data_is_kept_and_counted() -> None:
    client, server = connected()
    stream_id = opened(client)
    data = content(stream_id, 0, 100_000)
    before = sys.getrefcount(data)
    client.streams.write(stream_id, data)
    assert sys.getrefcount(data) > before
    assert client.streams.sending.zero_copy_operations == 1
    assert client.streams.sending.bytes_written == 100_000
    exchange(client, server)
    assert client.streams.sending.bytes_acknowledged == 100_000
    assert client.streams.is_acknowledged(stream_id, 100_000, with_fin=False)
    assert not client.streams.is_acknowledged(stream_id, 100_000, with_fin=True)
    assert not client.streams.has_unacknowledged_streams()
    client.streams.write(stream_id, b"", end_stream=True)
    assert client.streams.has_unacknowledged_streams()
    assert client.streams.written(99) == 0
    assert client.streams.is_acknowledged(99, 5, with_fin=True)


@pytest.mark.parametrize("room", [22, 23, 40, 1200, 16_384 + 24, 30_000, 65_000])
def test_frames_fill_a_packet_to_the_last_byte(room: int) -> None:
    client, server = connected()
    stream_id = opened(client)
    client.streams.write(stream_id, content(stream_id, 0, 200_000))
    size = 0
    while size < 100_000:
        packet = client.build(room)
        assert packet is not None
        assert len(packet.payload) >= room - 3
        server.take(packet.payload)
        size += packet.record.stop - packet.record.start
        if room < 100:
            break
    server.collect()
    assert server.received[stream_id] == content(stream_id, 0, size)


def test_streams_take_turns_and_share_a_packet() -> None:
    client, _ = connected()
    ids = [opened(client) for _ in range(40)]
    for stream_id in ids:
        client.streams.write(stream_id, content(stream_id, 0, 3000))
    first = client.build(1200)
    assert first is not None
    assert first.record.sender is client.streams.senders[ids[0]]
    assert list(client.streams.sending.active) == [*ids[1:], ids[0]]
    for stream_id in ids[1:]:
        packet = client.build(1200)
        assert packet is not None
        assert packet.record.sender is client.streams.senders[stream_id]
    small = Side(True)
    parameters = parameters_of(small.streams, small.config)
    small.streams.set_peer_limits(parameters)
    ids = [opened(small) for _ in range(40)]
    for stream_id in ids:
        small.streams.write(stream_id, b"abc", end_stream=True)
    packet = small.build(1200)
    assert packet is not None
    assert packet.record.streams is not None
    assert len(packet.record.streams) == 31, "the work for one packet is bounded"
    assert all(fin for *_, fin in packet.record.streams)
    assert packet.record.fin


def test_a_run_of_full_packets_leaves_the_end_to_another() -> None:
    client, server = connected()
    stream_id = opened(client)
    room = 1200
    capacity = room - 1 - 1 - 8
    client.streams.write(stream_id, content(stream_id, 0, 3 * capacity), end_stream=True)
    assert len(client.build_run(room)) == 2
    assert client.build_run(room) == []
    packet = client.build(room)
    assert packet is not None
    assert packet.record.fin
    for each in client.flying:
        server.take(each.payload)
    server.collect()
    assert server.received[stream_id] == content(stream_id, 0, 3 * capacity)
    assert server.saw_end == {stream_id}
    assert client.streams.sending.peer_max_data_used == 3 * capacity


def test_a_run_keeps_to_the_credit_and_repeats_what_was_lost() -> None:
    client, server = connected(receive_buffer_size=16 * KIB, stream_receive_buffer_size=64 * KIB)
    stream_id = opened(client)
    client.streams.write(stream_id, content(stream_id, 0, 20 * KIB))
    packets = client.build_run(1010)
    assert len(packets) == 16
    assert client.streams.sending.peer_max_data_used == 16_000
    client.flying.clear()
    for packet in packets[2:6]:
        client.lose(packet)
    again = client.build_run(1010)
    assert [(each.record.start, each.record.stop) for each in again] == [
        (each.record.start, each.record.stop) for each in packets[2:6]
    ]
    assert client.streams.sending.peer_max_data_used == 16_000, "no credit is used twice"
    for packet in [*packets[:2], *again, *packets[6:]]:
        server.take(packet.payload)
    server.collect()
    assert server.received[stream_id] == content(stream_id, 0, 16_000)


def test_data_in_order_goes_by_a_short_cut_within_its_limit(server: Side) -> None:
    streams = server.streams
    assert streams.bulk_limit(0, 10) == WINDOW
    assert streams.bulk_limit(0, 9) == -1
    assert streams.bulk_limit(0, 11) == -1
    assert streams.bulk_limit(4, 5) == -1, "it has ended"
    assert streams.bulk_limit(8, 6) == -1, "it was reset"
    assert streams.bulk_limit(12, 0) == -1, "it is not open"
    streams.take_bulk(0, bytes(5000), 5010)
    assert server.collect() == [events.StreamDataReceived(0, bytes(5000), False)]
    assert streams.receiving.received == 5000 + 10 + 5 + 6
    server.take(data_frame(12, 0, bytes(WINDOW)))
    assert streams.bulk_limit(0, 5010) == 2 * WINDOW - WINDOW - 5 - 6 < WINDOW
    server.take(data_frame(0, 6000, b"x"))
    assert streams.bulk_limit(0, 5010) == -1, "there is a gap"
    streams.stop_receiving(12, 1)
    assert streams.bulk_limit(12, WINDOW) == -1


# ------------------------------------------------------------------ lost frames


def test_only_the_newest_limit_is_repeated() -> None:
    client, server = connected(stream_receive_buffer_size=WINDOW, receive_buffer_size=2 * WINDOW)
    stream_id = opened(client)
    told = []
    for _ in range(2):
        client.streams.write(stream_id, bytes(WINDOW))
        client.flush()
        for packet in client.flying:
            server.take(packet.payload)
            client.acknowledge(packet)
        client.flying.clear()
        read(server, stream_id, WINDOW)
        packet = server.build()
        assert packet is not None
        told.append(packet)
        client.take(packet.payload)
    server.lose(told[0])
    assert not server.streams.has_control()
    server.lose(told[1])
    again = server.build()
    assert again is not None
    assert again.payload == told[1].payload
    server.acknowledge(again)
    assert not server.streams.has_control()
    # A stream with a known end needs no more credit.
    client.streams.write(stream_id, b"x", end_stream=True)
    for packet in client.flush():
        server.take(packet.payload)
    server.streams.on_control_lost(
        frames.MAX_STREAM_DATA, stream_id, server.streams.receivers[stream_id].limit
    )
    assert not server.streams.has_control()


def test_a_lost_limit_of_streams_is_repeated() -> None:
    client, server = connected(max_unidirectional_streams=1)
    stream_id = opened(client, unidirectional=True)
    client.streams.write(stream_id, b"", end_stream=True)
    exchange(client, server)
    server.streams.let_go(stream_id, receiving=True)
    packet = server.build()
    assert packet is not None
    assert packet.record.control == [(frames.MAX_STREAMS_UNI, 2, 0)]
    server.streams.on_control_lost(frames.MAX_STREAMS_UNI, 1, 0)
    assert not server.streams.has_control()
    server.lose(packet)
    again = server.build()
    assert again is not None
    assert again.payload == packet.payload
    assert server.build() is None


@pytest.mark.parametrize("kind", ["reset", "stop"])
def test_a_lost_reset_or_stop_is_repeated_until_the_stream_is_over(kind: str) -> None:
    client, server = connected()
    stream_id = opened(client)
    client.streams.write(stream_id, b"data")
    exchange(client, server)
    side = client if kind == "reset" else server
    if kind == "reset":
        client.streams.reset_sending(stream_id, 3)
    else:
        server.streams.stop_receiving(stream_id, 3)
    for _ in range(3):
        packet = side.build()
        assert packet is not None
        assert packet.record.control is not None
        assert packet.record.control[0][1] == stream_id
        assert not side.streams.has_control()
        side.lose(packet)
    exchange(client, server)
    assert server.saw_reset == {stream_id: 3}
    assert not side.streams.has_control()
    side.streams.on_control_lost(
        frames.RESET_STREAM if kind == "reset" else frames.STOP_SENDING, stream_id, 0
    )
    assert not side.streams.has_control()


def test_what_does_not_fit_into_a_packet_waits_for_the_next() -> None:
    client, server = connected(receive_buffer_size=2 * WINDOW, stream_receive_buffer_size=WINDOW)
    ids = [opened(client) for _ in range(8)]
    for stream_id in ids:
        client.streams.write(stream_id, bytes(5000))
    exchange(client, server)
    for stream_id in ids:
        read(server, stream_id, 5000)
        server.streams.stop_receiving(stream_id, 1)
        server.streams.write(stream_id, b"x")
        server.streams.reset_sending(stream_id, 1)
    assert server.build(8, with_data=False) is None
    server.streams.blocked_pending = True
    kinds: list[int] = []
    while (packet := server.build(40)) is not None:
        assert len(packet.payload) <= 40
        kinds += [kind for kind, *_ in packet.record.control or ()]
    assert kinds.count(frames.MAX_DATA) == 1
    assert kinds.count(frames.STOP_SENDING) == kinds.count(frames.RESET_STREAM) == 8
    assert server.streams.has_control(), "what is blocked is told in a large packet"
    server.build(1200)
    assert not server.streams.has_control()


def test_idle_streams_cost_a_packet_nothing() -> None:
    client, server = connected(max_bidirectional_streams=2000)
    ids = [opened(client) for _ in range(1000)]
    for stream_id in ids:
        client.streams.write(stream_id, b"x")
    exchange(client, server)

    class Forbidden(dict[int, object]):
        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError("looks at all streams")

        values = items = keys = __iter__  # type: ignore[assignment]

    for side in (client, server):
        side.streams.senders = Forbidden(side.streams.senders)  # type: ignore[assignment]
        side.streams.receivers = Forbidden(side.streams.receivers)  # type: ignore[assignment]
    client.streams.write(ids[500], b"request")
    exchange(client, server)
    server.streams.write(ids[500], b"answer")
    exchange(client, server)
    assert client.received[ids[500]] == b"answer"


# ------------------------------------------------------------------ blocked


def test_what_is_blocked_is_told_with_its_limit() -> None:
    client, server = connected(
        receive_buffer_size=40 * KIB,
        stream_receive_buffer_size=16 * KIB,
        max_bidirectional_streams=3,
        max_unidirectional_streams=1,
    )
    streams = client.streams
    assert not streams.has_blocked()
    assert streams.blocked_deadline(0.0, 0.1, 30.0) == math.inf
    ids = [opened(client) for _ in range(3)]
    for stream_id in ids:
        streams.write(stream_id, bytes(20 * KIB))
        assert streams.has_blocked()
        exchange(client, server)
    streams.want_stream(1, unidirectional=False)
    streams.want_stream(1, unidirectional=True)
    assert streams.blocked_deadline(0.0, 0.1, 30.0) == 0.1
    streams.now = 0.1
    streams.blocked_pending = True
    assert streams.blocked_deadline(0.0, 0.1, 30.0) == math.inf
    packet = client.build()
    assert packet is not None
    assert packet.record.control is not None
    kinds = [kind for kind, *_ in packet.record.control]
    assert kinds[0] == frames.DATA_BLOCKED
    assert kinds.count(frames.STREAM_DATA_BLOCKED) == 2, "the third waits for the connection"
    assert frames.STREAMS_BLOCKED_BIDI in kinds
    assert frames.STREAMS_BLOCKED_UNI not in kinds, "one is left"
    server.take(packet.payload)
    limit, _ = frames.parse_data_blocked(packet.payload, 0)
    assert limit == 40 * KIB
    assert streams.blocked_deadline(0.1, 0.1, 30.0) == pytest.approx(10.1)
    client.lose(packet)
    assert streams.blocked_pending
    assert client.build() is not None
    streams.want_stream(-1, unidirectional=False)
    streams.want_stream(-1, unidirectional=True)
    for stream_id in ids:
        streams.reset_sending(stream_id, 0)
    client.lose(client.flying[-1])
    assert not streams.blocked_pending, "nothing is blocked any more"
    assert not streams.has_blocked()


def test_progress_makes_blocked_frames_due_sooner() -> None:
    client, server = connected(stream_receive_buffer_size=16 * KIB)
    stream_id = opened(client)
    client.streams.write(stream_id, bytes(40 * KIB))
    exchange(client, server)
    client.streams.now = 5.0
    client.streams.blocked_pending = True
    client.build()
    assert client.streams.blocked_deadline(5.0, 0.1, 30.0) == 15.0
    client.take(build_max_stream_data(stream_id, 17 * KIB))
    client.flush()
    assert client.streams.blocked_deadline(5.0, 0.1, 30.0) == pytest.approx(5.1)


# ------------------------------------------------------------------ early data


def early_client() -> tuple[Side, PeerParameters]:
    """A client with the limits of an earlier connection."""
    client = Side(True)
    parameters = PeerParameters()
    parameters.max_data = 50_000
    parameters.max_stream_data_bidi_remote = parameters.max_stream_data_uni = 30_000
    parameters.max_streams_bidi, parameters.max_streams_uni = 3, 1
    client.streams.set_peer_limits(parameters, remembered=True)
    return client, parameters


def copy(parameters: PeerParameters, **changes: int) -> PeerParameters:
    result = PeerParameters()
    for name in dir(parameters):
        if not name.startswith("_"):
            setattr(result, name, changes.get(name, getattr(parameters, name)))
    return result


def test_accepted_early_data_counts_against_the_new_limits() -> None:
    client, parameters = early_client()
    stream_id = opened(client)
    client.streams.write(stream_id, bytes(40_000))
    client.flush()
    assert client.streams.senders[stream_id].sent == 30_000
    client.streams.set_peer_limits(
        copy(parameters, max_data=60_000, max_stream_data_bidi_remote=35_000, max_streams_bidi=4)
    )
    client.flush()
    assert client.streams.senders[stream_id].sent == 35_000
    assert client.streams.sending.peer_max_data == 60_000
    assert client.streams.available_streams(unidirectional=False) == 3


@pytest.mark.parametrize("parameters_first", [False, True])
@pytest.mark.parametrize("lost_first", [False, True])
def test_refused_early_data_is_sent_again_within_smaller_limits(
    parameters_first: bool, lost_first: bool
) -> None:
    client, _ = early_client()
    first, second, third = (opened(client) for _ in range(3))
    one_way = opened(client, unidirectional=True)
    early = []
    for stream_id in (first, second, third, one_way):
        client.streams.write(stream_id, content(stream_id, 0, 10_000), end_stream=True)
    early = client.flush()
    client.streams.stop_receiving(third, 1)
    client.streams.reset_sending(third, 2)
    early += client.flush()
    client.flying.clear()
    assert client.streams.sending.peer_max_data_used == 40_000
    server = Side(
        False,
        TransportConfig(
            receive_buffer_size=16 * KIB,
            stream_receive_buffer_size=8 * KIB,
            max_bidirectional_streams=1,
            max_unidirectional_streams=1,
        ),
    )
    server.streams.set_peer_limits(parameters_of(client.streams, client.config))
    smaller = parameters_of(server.streams, server.config)
    if lost_first:
        for packet in early:
            client.lose(packet)
    if parameters_first:
        client.streams.set_peer_limits(smaller)
        client.streams.on_early_data_refused()
    else:
        client.streams.on_early_data_refused()
        assert client.flush() == []
        assert client.streams.open_stream(unidirectional=False) is None
        client.streams.set_peer_limits(smaller)
    if not lost_first:
        for packet in early:
            client.lose(packet)
    client.collect()
    assert client.streams.sending.peer_max_data_used == 0
    for _ in range(10):
        exchange(client, server)
        for stream_id, receiver in list(server.streams.receivers.items()):
            read(server, stream_id, receiver.delivered - receiver.window.released)
    assert set(server.received) == {first, one_way}, "no more streams than are permitted"
    assert client.streams.open_stream(unidirectional=False) is None
    for stream_id in (first, one_way):
        assert server.received[stream_id] == content(stream_id, 0, 10_000)
        assert client.streams.is_acknowledged(stream_id, 10_000, with_fin=True)
    # The others follow when the peer permits more streams.
    for stream_id in (first, second):
        server.streams.write(stream_id, b"", end_stream=True)
        exchange(client, server)
        server.streams.let_go(stream_id, sending=True, receiving=True)
        for _ in range(10):
            exchange(client, server)
            for each, receiver in list(server.streams.receivers.items()):
                read(server, each, receiver.delivered - receiver.window.released)
    assert server.received[second] == content(second, 0, 10_000)
    assert server.saw_reset == {third: 2}
    assert server.saw_stop == {third: 1}


def test_a_frame_of_refused_early_data_which_is_lost_later_waits_as_well() -> None:
    client, _ = early_client()
    stream_id = opened(client)
    client.streams.write(stream_id, b"x")
    client.streams.stop_receiving(stream_id, 1)
    packet = client.build()
    assert packet is not None
    client.streams.on_early_data_refused()
    client.lose(packet)
    assert client.build() is None
    assert not client.streams.has_control()


def test_without_early_data_the_limits_hold_at_once() -> None:
    client = Side(True)
    assert client.streams.open_stream(unidirectional=False) is None
    parameters = PeerParameters()
    parameters.max_streams_bidi = 1
    client.streams.set_peer_limits(parameters)
    assert client.collect() == [events.StreamsAvailable()]
    assert opened(client) == 0
    assert client.collect() == []


# ------------------------------------------------------------------ the end


def test_an_ended_connection_holds_only_what_can_still_be_read() -> None:
    config = TransportConfig()
    memory = EndpointMemory(config)
    client, server = Side(True, config), Side(False, config, memory)
    client.streams.set_peer_limits(parameters_of(server.streams, config))
    server.streams.set_peer_limits(parameters_of(client.streams, config))
    stream_id = opened(client)
    client.streams.write(stream_id, bytes(100_000))
    client.flush()
    for packet in client.flying[1:]:  # (a gap at the beginning: nothing is delivered)
        server.take(packet.payload)
    assert server.streams.receiving.pieces.held > 90_000
    server.take(client.flying[0].payload)
    server.take(data_frame(stream_id, 200_000, bytes(10)))
    server.collect()
    read(server, stream_id, 30_000)
    assert server.streams.send_room(stream_id, 400_000) >= 400_000
    server.streams.write(stream_id, bytes(400_000))
    server.streams.free_buffers()
    assert server.streams.receiving.pieces.held == 0
    assert memory.send.used == 0
    assert server.streams.unacknowledged() == {stream_id: (400_000, 0)}
    assert server.streams.unread() == {stream_id: 70_000}
    assert server.build() is None
    assert not server.streams.has_control()


def test_released_streams_are_freed_at_once() -> None:
    """Packets in flight keep their own stream alive, not all streams."""

    class Events(list[events.Event]):
        """A list referred to by the streams alone."""

    config = TransportConfig()
    queue = Events()
    streams = Streams(True, config, EndpointMemory(config), queue)
    streams.set_peer_limits(parameters_of(Side(False, config).streams, config))
    stream_id = streams.open_stream(unidirectional=False)
    assert stream_id is not None
    streams.write(stream_id, bytes(100_000))
    streams.stop_receiving(stream_id, 1)
    record = SentPacket(0, 0.0)
    streams.sending.fill_data([], 1200, record)
    reference = weakref.ref(queue)
    del queue
    gc.collect()
    gc.disable()
    try:
        streams.release()
        del streams
        assert reference() is None
        sender = record.sender
        assert sender is not None
        assert sys.getrefcount(sender) == 3, "the record, this name, and the call"
    finally:
        gc.enable()


def test_a_side_takes_frames_of_every_kind_after_its_streams_are_forgotten() -> None:
    client, server = connected()
    ids = [opened(client), opened(client, unidirectional=True)]
    for stream_id in ids:
        client.streams.write(stream_id, b"data", end_stream=True)
    exchange(client, server)
    server.streams.write(ids[0], b"", end_stream=True)
    exchange(client, server)
    for stream_id in ids:
        assert server.streams.let_go(stream_id, sending=True, receiving=True)
        assert client.streams.let_go(stream_id, sending=True, receiving=True)
    exchange(client, server)
    payload = (
        data_frame(ids[0], 0, b"data", fin=True)
        + build_reset_stream(ids[0], 1, 4)
        + build_stop_sending(ids[0], 1)
        + build_max_stream_data(ids[0], 1 << 30)
        + build_stream_data_blocked(ids[0], 1)
    )
    for side in (client, server):
        take_frames(side.streams, payload)
        assert side.collect() == []
        assert not side.streams.has_control()
        for kind in (frames.RESET_STREAM, frames.STOP_SENDING, frames.MAX_STREAM_DATA):
            side.streams.on_control_lost(kind, ids[0], 0)
            side.streams.on_control_acknowledged(kind, ids[0], 0)
        side.streams.stop_receiving(ids[0], 1)
        side.streams.reset_sending(ids[0], 1)
        assert not side.streams.consume(ids[0], 5)
        side.streams.extend_credit(ids[0], 1.0, 0.1)
        assert not side.streams.has_control()


def test_windows_grow_for_a_fast_reader_only() -> None:
    config = attrs.evolve(TransportConfig(), stream_receive_buffer_size=8 * 1024 * KIB)
    for rtt, grows in ((1.0, True), (0.0001, False)):
        client, server = Side(True, config), Side(False, config)
        client.streams.set_peer_limits(parameters_of(server.streams, config))
        stream_id = opened(client)
        before = server.streams.receiving.window.size
        now = 0.0
        for _ in range(20):
            client.streams.write(stream_id, bytes(client.streams.send_room(stream_id, 1 << 20)))
            exchange(client, server)
            receiver = server.streams.receivers[stream_id]
            now += 0.1
            if server.streams.consume(stream_id, receiver.received):
                server.streams.extend_credit(stream_id, now, rtt)
            exchange(client, server)
        assert (server.streams.receiving.window.size > before) == grows
