"""The engine without any I/O: flow control, limits, timers, the end, and its assumptions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.connection_end import clamp_reason
from tests.engine_access import (
    announced_udp_payload_size,
    believe_max_data,
    credit_used,
    fill_pacer,
    is_handshake_confirmed,
    next_packet_number,
    remembered_packets,
    set_congestion_window,
    statistics,
    stream_ids,
)
from tests.support import EnginePair, examples, take_apart

KIBIBYTE = 1024


def test_a_reader_which_never_reads_stops_the_sender_at_the_window() -> None:
    config = TransportConfig(
        receive_buffer_size=100 * KIBIBYTE, stream_receive_buffer_size=60 * KIBIBYTE
    )
    pair = EnginePair(server_config=config).connect()
    assert pair.server is not None
    pair.server.read_automatically = False
    ids = []
    for _ in range(3):
        stream_id = pair.client.engine.open_stream(unidirectional=False)
        assert stream_id is not None
        ids.append(stream_id)
        pair.client.engine.write(stream_id, bytes(1_000_000))
    pair.run(20.0)
    amounts = [len(pair.server.received.get(i, b"")) for i in ids]
    assert max(amounts) <= 60 * KIBIBYTE
    assert sum(amounts) == 100 * KIBIBYTE
    for stream_id, amount in zip(ids, amounts, strict=True):
        pair.server.engine.consume(stream_id, amount)
        pair.server.engine.extend_credit(stream_id, pair.now)
    pair.run(5.0)
    again = sum(len(pair.server.received.get(i, b"")) for i in ids)
    assert again > sum(amounts), "credit follows reading"


def test_aborted_streams_give_their_credit_back() -> None:
    """A thousand streams left half-read must not shrink the connection's window for good."""
    config = TransportConfig(receive_buffer_size=64 * KIBIBYTE)
    pair = EnginePair(server_config=config).connect()
    assert pair.server is not None
    pair.server.read_automatically = False
    for number in range(300):
        stream_id = pair.client.engine.open_stream(unidirectional=True)
        assert stream_id is not None, number
        pair.client.engine.write(stream_id, bytes(20_000))
        pair.run(0.05)
        if number % 2:
            pair.client.engine.reset_sending(stream_id, 1)
        else:
            pair.server.engine.stop_receiving(stream_id, 1)
        pair.client.engine.let_go(stream_id, sending=True)
        pair.run(0.2)
        pair.server.engine.let_go(stream_id, receiving=True)
        pair.run(0.2)
    assert not pair.server.of(events.Terminated)
    assert not stream_ids(pair.server.engine)
    assert not stream_ids(pair.client.engine)
    assert statistics(pair.server.engine).stream_bytes_read == credit_used(pair.server.engine)
    assert statistics(pair.client.engine).send_buffer_bytes == 0


def test_credit_is_given_back_once_when_a_reset_arrives_together_with_data() -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    client = pair.client.engine
    stream_id = client.open_stream(unidirectional=True)
    assert stream_id is not None
    client.write(stream_id, bytes(50))
    packets = take_apart(client.transmit(pair.now))
    client.reset_sending(stream_id, 1)
    packets += take_apart(client.transmit(pair.now))
    assert len(packets) == 2
    # Both before the application sees any event.
    for packet in packets:
        pair.server.engine.receive(packet, pair.client.address, pair.now)
    pair.server.gather(pair.now)
    assert statistics(pair.server.engine).stream_bytes_read == 50
    assert credit_used(pair.server.engine) == 50


@pytest.mark.parametrize("limit", [0, 1, 1000])
def test_stream_limits_are_those_of_the_configuration(limit: int) -> None:
    config = TransportConfig(max_bidirectional_streams=limit, max_unidirectional_streams=limit)
    pair = EnginePair(server_config=config).connect()
    for unidirectional in (False, True):
        opened = 0
        while pair.client.engine.open_stream(unidirectional=unidirectional) is not None:
            opened += 1
        assert opened == limit


def test_lost_credit_is_announced_again() -> None:
    """MAX_DATA, MAX_STREAM_DATA and MAX_STREAMS in packets that get lost."""
    config = TransportConfig(
        receive_buffer_size=32 * KIBIBYTE,
        stream_receive_buffer_size=16 * KIBIBYTE,
        max_unidirectional_streams=2,
    )
    pair = EnginePair(server_config=config).connect()
    count = 0

    def drop(destination: object, data: bytes) -> bool:
        nonlocal count
        if destination is not pair.client:
            return False
        count += 1
        return count % 2 == 0

    pair.drop = drop
    assert pair.server is not None
    total = 0
    for _ in range(6):
        for _ in range(200):
            stream_id = pair.client.engine.open_stream(unidirectional=True)
            if stream_id is not None:
                break
            pair.run(0.1)
        assert stream_id is not None, "MAX_STREAMS was lost for good"
        pair.client.engine.write(stream_id, bytes(100_000), end_stream=True)
        pair.client.engine.let_go(stream_id, sending=True)
        pair.run(10.0)
        total += len(pair.server.received[stream_id])
        pair.server.engine.let_go(stream_id, receiving=True)
    assert total == 600_000


@pytest.mark.parametrize("size", [1200, 1452, 9000, 16_383, 16_384, 16_420, 30_000, 65_507])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_packets_of_every_size_carry_every_byte(size: int, loss: float) -> None:
    """Also when the length of a STREAM frame takes two bytes, or four (from 16,384 on)."""
    config = TransportConfig(max_udp_payload_size=size)
    pair = EnginePair(client_config=config, server_config=config)
    generator = random.Random(size)
    largest = {False: 0, True: 0}

    def drop(destination: object, data: bytes) -> bool:
        sender = pair.server if destination is pair.client else pair.client
        assert sender is not None
        confirmed = is_handshake_confirmed(sender.engine)
        largest[confirmed] = max(largest[confirmed], len(data))
        return is_handshake_confirmed(pair.client.engine) and generator.random() < loss

    pair.drop = drop
    pair.connect()
    pair.run(2.0)  # the search for larger packets
    assert pair.server is not None
    engine = pair.client.engine
    content = {}
    for _ in range(3):
        stream_id = engine.open_stream(unidirectional=False)
        assert stream_id is not None
        content[stream_id] = generator.randbytes(300_000)
        engine.write(stream_id, content[stream_id], end_stream=True)
    maximum = engine.max_datagram_payload
    assert maximum is not None
    engine.send_datagram(bytes(maximum))
    pair.run(20.0)
    for stream_id, expected in content.items():
        assert pair.server.received[stream_id] == expected
    assert loss or [len(d.data) for d in pair.server.of(events.DatagramReceived)] == [maximum]
    assert largest[False] <= 1200, "the path is not known to carry more before the handshake"
    assert size - 30 <= largest[True] <= size


def test_packets_are_never_larger_than_the_peer_takes() -> None:
    config = TransportConfig(max_udp_payload_size=9000)
    with announced_udp_payload_size(1300):
        pair = EnginePair(client_config=config, server_config=config).connect()
    pair.run(1.0)
    assert statistics(pair.client.engine).path_mtu == 1300


def test_packet_numbers_stay_unambiguous_however_much_may_be_buffered() -> None:
    """Two bytes of packet number are sent, so at most 32,767 packets may be in flight."""
    config = TransportConfig(
        send_buffer_size=64 * 1024 * KIBIBYTE,
        stream_send_buffer_size=64 * 1024 * KIBIBYTE,
        receive_buffer_size=64 * 1024 * KIBIBYTE,
        stream_receive_buffer_size=64 * 1024 * KIBIBYTE,
    )
    pair = EnginePair(client_config=config, server_config=config).connect()
    assert pair.server is not None
    engine = pair.client.engine
    set_congestion_window(engine, 10**9)
    stream_id = engine.open_stream(unidirectional=False)
    assert stream_id is not None
    believe_max_data(engine, 10**9, stream_id)
    engine.write(stream_id, bytes(30_000_000))
    for _ in range(400):
        fill_pacer(engine)
        engine.transmit(pair.now)
    in_flight = len(remembered_packets(engine))
    assert 16_000 <= in_flight < 16_200


def test_a_closing_connection_answers_fewer_and_fewer_packets() -> None:
    pair = EnginePair().connect()
    assert pair.server is not None
    late: list[bytes] = []
    for uid in range(20):
        pair.client.engine.send_ping(uid)
        late += take_apart(pair.client.engine.transmit(pair.now))
    server = pair.server.engine
    server.close_application(3, "bye")
    (close,) = take_apart(server.transmit(pair.now))
    answered = []
    for number, data in enumerate(late, start=1):
        server.receive(data, pair.client.address, pair.now)
        if take_apart(server.transmit(pair.now)) == [close]:
            answered.append(number)
    assert answered == [1, 2, 4, 8, 16]


def test_the_end_is_reported_once_and_with_its_cause() -> None:
    pair = EnginePair(server_config=TransportConfig(max_idle_timeout=3.0)).connect()
    assert pair.server is not None
    pair.run(60.0)
    (ending,) = pair.server.of(events.Terminated)
    assert isinstance(ending.error, phoenix_trio.ConnectionTimedOut)
    (ending,) = pair.client.of(events.Terminated)
    assert isinstance(ending.error, phoenix_trio.ConnectionTimedOut)
    assert pair.client.engine.next_deadline() is None


def test_keep_alive_sends_a_ping_now_and_then_only() -> None:
    pair = EnginePair(client_config=TransportConfig(keep_alive=10.0)).connect()
    before = next_packet_number(pair.client.engine)
    pair.run(1000.0)
    assert not pair.client.of(events.Terminated)
    assert 90 <= next_packet_number(pair.client.engine) - before <= 220


def test_reasons_are_cut_on_a_character_boundary() -> None:
    assert clamp_reason("ä" * 1000) == "ä" * 128
    assert clamp_reason("x\udcff") == "x?"


@examples(40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40_000)), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.3]),
)
def test_over_a_lossy_wire_every_stream_arrives_whole(
    writes: list[tuple[int, int]], seed: int, loss: float
) -> None:
    generator = random.Random(seed)
    # Probe timeouts double with every loss in a row: give them time.
    patient = TransportConfig(max_idle_timeout=float("inf"))
    pair = EnginePair(client_config=patient, server_config=patient).connect()
    assert pair.server is not None
    pair.drop = lambda destination, data: generator.random() < loss
    engine = pair.client.engine
    ids = [engine.open_stream(unidirectional=False) for _ in range(3)]
    sent = {i: bytearray() for i in ids if i is not None}
    for index, size in writes:
        stream_id = ids[index]
        assert stream_id is not None
        data = generator.randbytes(size)
        engine.write(stream_id, data)
        sent[stream_id] += data
        pair.run(generator.random() / 10)
    for stream_id in sent:
        engine.write(stream_id, b"", end_stream=True)
    pair.run(2000.0)
    for stream_id, data in sent.items():
        assert pair.server.received.get(stream_id, b"") == data
    assert not engine.has_unacknowledged_streams
    assert statistics(engine).send_buffer_bytes == 0


@pytest.mark.parametrize("early", [0.0, 5e-7])
def test_the_idle_timeout_is_itself_even_if_its_timer_comes_a_moment_early(early: float) -> None:
    """Timers may run up to a microsecond early."""
    pair = EnginePair().connect()
    engine = pair.client.engine
    deadline = engine.end_deadline
    assert deadline is not None
    engine.on_timer(deadline - early)
    pair.client.gather(deadline)
    (ending,) = pair.client.of(events.Terminated)
    assert isinstance(ending.error, phoenix_trio.ConnectionTimedOut)
