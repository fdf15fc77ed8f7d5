"""Our engine with an unmodified aioquic connection as its peer, in both roles, in memory.

Two ends of ours could share a misreading of the RFCs; aioquic's end reads them independently.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from aioquic.quic import events as stock_events
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from tests.aioquic_pair import AioquicPair, Tickets
from tests.engine_access import (
    change_connection_id,
    fill_pacer,
    intercept,
    set_congestion_window,
    statistics,
    stream_ids,
)
from tests.engine_packets import key_phase, open_sent
from tests.support import CLIENT, client_tls, examples, server_tls

both_roles = pytest.mark.parametrize("we_are_client", [True, False], ids=["client", "server"])

MEBIBYTE = 1024 * 1024

#: RFC 9369.
VERSION_2 = 0x6B3343CF


# ------------------------------------------------------------------ streams


@both_roles
@pytest.mark.parametrize("reset_by_us", [True, False])
def test_a_reset_and_a_stop_arrive_with_their_codes(we_are_client: bool, reset_by_us: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    ours, stock = pair.ours, pair.stock.connection
    stream_id = pair.open_ours(unidirectional=False)
    ours.engine.write(stream_id, b"question")
    pair.run(0.1)
    stock.send_stream_data(stream_id, b"answer")
    pair.run(0.1)
    assert ours.received[stream_id] == b"answer"
    if reset_by_us:
        ours.engine.reset_sending(stream_id, 77)
        ours.engine.stop_receiving(stream_id, 78)
        pair.run(0.2)
        (reset,) = pair.stock.of(stock_events.StreamReset)
        (stop,) = pair.stock.of(stock_events.StopSendingReceived)
    else:
        stock.reset_stream(stream_id, 77)
        stock.stop_stream(stream_id, 78)
        pair.run(0.2)
        (reset,) = ours.of(events.StreamResetReceived)
        (stop,) = ours.of(events.StreamStopReceived)
    assert (reset.stream_id, reset.error_code) == (stream_id, 77)
    assert (stop.stream_id, stop.error_code) == (stream_id, 78)
    ours.engine.let_go(stream_id, sending=True, receiving=True)
    pair.run(0.5)
    assert not stream_ids(ours.engine), "both parts have ended on the wire"


@both_roles
@pytest.mark.parametrize("size", [1200, 1452, 9000, 65_507])
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_bulk_data_goes_both_ways_at_once(we_are_client: bool, size: int, loss: float) -> None:
    """In packets of each size, many of them arriving together."""
    pair = AioquicPair(
        we_are_client=we_are_client,
        config=TransportConfig(max_udp_payload_size=size),
        stock={"max_datagram_size": min(size, 9000)},
    ).connect()
    pair.run(1.0)  # the search for larger packets
    assert statistics(pair.ours.engine).path_mtu == size
    generator = random.Random(size)
    pair.lost = lambda data: generator.random() < loss
    pair.batching = 0.01
    contents = [generator.randbytes(2_000_000) for _ in range(2)]
    upwards, downwards = pair.open_ours(), pair.open_stock()
    runs: list[int] = []
    receive_run = pair.ours.engine.receive_run

    def note_length(data: Any, start: int, size: int, *rest: Any) -> int:
        end = receive_run(data, start, size, *rest)
        runs.append(-(-(end - start) // size))
        return end

    intercept(pair.ours.engine, "receive_run", note_length)
    pair.ours.engine.write(upwards, contents[0], end_stream=True)
    pair.stock.connection.send_stream_data(downwards, contents[1], True)
    pair.run(20.0)
    assert pair.stock.received[upwards] == contents[0]
    assert pair.ours.received[downwards] == contents[1]
    assert max(runs) >= (3 if loss else 20)


# ------------------------------------------------------------------ flow control


@both_roles
@pytest.mark.parametrize("limits", [(MEBIBYTE, MEBIBYTE), (50_000, 20_000), (60_000, 10_000)])
def test_what_aioquic_grants_is_used_up_and_no_byte_more(
    we_are_client: bool, limits: tuple[int, int]
) -> None:
    """The first limits are aioquic's defaults; it closes the connection at a violation."""
    connection_limit, stream_limit = limits
    pair = AioquicPair(
        we_are_client=we_are_client,
        stock={"max_data": connection_limit, "max_stream_data": stream_limit},
    ).connect()
    engine = pair.ours.engine
    sent = 0

    def count(data: bytes) -> None:
        nonlocal sent
        for packet in open_sent(engine, data):
            sent += sum(len(frame.data) for frame in packet.of(*range(0x08, 0x10)))

    pair.sent = count
    written = {}
    for number in range(3):
        stream_id = pair.open_ours(unidirectional=number == 0)
        written[stream_id] = random.Random(number).randbytes(1_300_000)
        engine.write(stream_id, written[stream_id], end_stream=True)
    set_congestion_window(engine, 10 * MEBIBYTE)
    for _ in range(100):
        fill_pacer(engine)
        pair.flush()
    assert sent == min(connection_limit, 3 * stream_limit)
    pair.run(20.0)
    assert not pair.stock.of(stock_events.ConnectionTerminated)
    assert {key: bytes(value) for key, value in pair.stock.received.items()} == written
    assert pair.stock.ended == set(written)


@both_roles
def test_aioquic_stops_at_our_limits_until_we_have_read(we_are_client: bool) -> None:
    config = TransportConfig(receive_buffer_size=100_000, stream_receive_buffer_size=60_000)
    pair = AioquicPair(we_are_client=we_are_client, config=config).connect()
    ours = pair.ours
    ours.read_automatically = False
    written = {}
    for number in range(3):
        stream_id = pair.open_stock(unidirectional=number == 0)
        written[stream_id] = random.Random(number).randbytes(400_000)
        pair.stock.connection.send_stream_data(stream_id, written[stream_id], True)
    pair.run(10.0)
    amounts = [len(data) for data in ours.received.values()]
    assert max(amounts) <= 60_000
    assert sum(amounts) == 100_000
    for stream_id, data in ours.received.items():
        ours.engine.consume(stream_id, len(data))
        ours.engine.extend_credit(stream_id, pair.now)
    ours.read_automatically = True
    pair.run(20.0)
    assert {key: bytes(value) for key, value in ours.received.items()} == written
    assert not ours.of(events.Terminated)


@both_roles
@pytest.mark.parametrize("unidirectional", [True, False], ids=["one-way", "two-way"])
def test_aioquic_grants_128_streams_and_more_when_they_have_ended(
    we_are_client: bool, unidirectional: bool
) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    engine, stock = pair.ours.engine, pair.stock

    def open_all() -> list[int]:
        opened = []
        while (stream_id := engine.open_stream(unidirectional=unidirectional)) is not None:
            engine.write(stream_id, b"x", end_stream=True)
            opened.append(stream_id)
        return opened

    first = open_all()
    assert len(first) == 128
    pair.run(1.0)
    for stream_id in first:
        if not unidirectional:
            stock.connection.send_stream_data(stream_id, b"y", True)
        engine.let_go(stream_id, sending=True, receiving=not unidirectional)
    pair.run(1.0)
    assert pair.ours.of(events.StreamsAvailable)
    more = open_all()
    assert more
    pair.run(1.0)
    assert stock.ended == {*first, *more}


@both_roles
@pytest.mark.parametrize("unidirectional", [True, False], ids=["one-way", "two-way"])
def test_aioquic_opens_as_many_streams_as_we_grant_and_more_when_we_let_go(
    we_are_client: bool, unidirectional: bool
) -> None:
    config = TransportConfig(max_bidirectional_streams=5, max_unidirectional_streams=5)
    pair = AioquicPair(we_are_client=we_are_client, config=config).connect()
    opened = []
    for _ in range(20):
        opened.append(pair.open_stock(unidirectional=unidirectional))
        pair.stock.connection.send_stream_data(opened[-1], b"x", True)
    pair.run(1.0)
    assert sorted(pair.ours.received) == opened[:5]
    for count in (10, 15, 20):
        for stream_id in opened[count - 10 : count - 5]:
            if not unidirectional:
                pair.ours.engine.write(stream_id, b"y", end_stream=True)
            pair.ours.engine.let_go(stream_id, sending=True, receiving=True)
        pair.run(1.0)
        assert sorted(pair.ours.received) == opened[:count]
    assert not pair.ours.of(events.Terminated)


# ------------------------------------------------------------------ datagrams, keys, connection IDs


@both_roles
def test_datagrams_of_every_size_arrive_both_ways(we_are_client: bool) -> None:
    config = TransportConfig(max_udp_payload_size=1200)
    pair = AioquicPair(
        we_are_client=we_are_client, config=config, stock={"max_datagram_frame_size": 65536}
    ).connect()
    maximum = pair.ours.engine.max_datagram_payload
    assert maximum is not None
    sent = [bytes((size & 0xFF,)) * size for size in (0, 1, 63, 64, 1000, maximum - 1, maximum)]
    for data in sent:
        pair.ours.engine.send_datagram(data)
        pair.stock.connection.send_datagram_frame(data)
    pair.run(1.0)
    assert pair.stock.datagrams == sent
    assert [each.data for each in pair.ours.of(events.DatagramReceived)] == sent


@both_roles
def test_a_peer_which_announces_no_datagrams_gets_none(we_are_client: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    assert pair.ours.engine.max_datagram_payload is None


@both_roles
@pytest.mark.parametrize("by_us", [True, False], ids=["by us", "by aioquic"])
def test_key_updates_in_the_middle_of_transfers_both_ways(we_are_client: bool, by_us: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    ours, stock = pair.ours.engine, pair.stock.connection
    contents = [random.Random(number).randbytes(600_000) for number in range(2)]
    upwards, downwards = pair.open_ours(), pair.open_stock()
    ours.write(upwards, contents[0], end_stream=True)
    stock.send_stream_data(downwards, contents[1], True)
    phases = []
    for _ in range(4):
        if by_us:
            assert ours.can_update_keys
            ours.update_keys()
            ours.send_ping(1)
        else:
            stock.request_key_update()
            stock.send_ping(1)
        pair.run(0.1)
        phases.append(key_phase(ours))
    pair.run(5.0)
    assert phases == [1, 0, 1, 0]
    assert pair.stock.received[upwards] == contents[0]
    assert pair.ours.received[downwards] == contents[1]


@both_roles
def test_each_side_follows_the_other_to_another_connection_id(we_are_client: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    destinations: set[bytes] = set()
    pair.sent = lambda data: destinations.add(data[1:9])
    for number in range(6):
        if number % 2:
            change_connection_id(pair.ours.engine)
        else:
            pair.stock.connection.change_connection_id()
        pair.ours.engine.send_ping(number)
        pair.stock.connection.send_ping(number)
        pair.run(0.2)
    assert len(pair.ours.of(events.PingAcknowledged)) == 6
    assert len(pair.stock.of(stock_events.PingAcknowledged)) == 6
    assert len(destinations) > 3
    assert pair.ours.of(events.ConnectionIdRetired)
    assert pair.stock.of(stock_events.ConnectionIdRetired)


@both_roles
def test_a_client_at_a_new_port_is_followed(we_are_client: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    upwards, downwards = pair.open_ours(), pair.open_stock()
    data = random.Random(1).randbytes(300_000)
    for number in range(3):
        pair.ours.engine.write(upwards, data)
        pair.stock.connection.send_stream_data(downwards, data)
        pair.client_address = (CLIENT, 6000 + number)
        pair.run(1.0)
    assert pair.stock.received[upwards] == 3 * data
    assert pair.ours.received[downwards] == 3 * data


# ------------------------------------------------------------------ handshakes and the end


def test_a_client_which_knows_only_version_2_is_served() -> None:
    """RFC 9369."""
    pair = AioquicPair(
        we_are_client=False,
        stock={"supported_versions": [VERSION_2], "original_version": VERSION_2},
    )
    versions: set[bytes] = set()
    pair.sent = lambda data: versions.add(data[1:5]) if data[0] & 0x80 else None
    exchange(pair.connect())
    assert versions == {VERSION_2.to_bytes(4, "big")}


def exchange(pair: AioquicPair) -> None:
    """Send some data on a stream each way."""
    upwards, downwards = pair.open_ours(), pair.open_stock()
    pair.ours.engine.write(upwards, b"up", end_stream=True)
    pair.stock.connection.send_stream_data(downwards, b"down", True)
    pair.run(0.5)
    assert pair.stock.received[upwards] == b"up"
    assert pair.ours.received[downwards] == b"down"


@both_roles
@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.05, 0.2]), duplicates=st.booleans())
@examples(30)
def test_handshakes_come_through_loss_reordering_and_duplication(
    seed: int, loss: float, duplicates: bool, we_are_client: bool
) -> None:
    generator = random.Random(seed)
    pair = AioquicPair(we_are_client=we_are_client, config=TransportConfig(max_idle_timeout=120.0))
    pair.lost = lambda data: generator.random() < loss
    pair.jitter = lambda: generator.random() * 0.03
    pair.copies = lambda: 2 if duplicates and generator.random() < 0.3 else 1
    pair.run(55.0)
    pair.lost = lambda data: False
    assert pair.ours.of(events.HandshakeConfirmed)
    exchange(pair)


@both_roles
@pytest.mark.parametrize("early_data", [False, True], ids=["1-RTT", "0-RTT"])
def test_sessions_are_resumed(we_are_client: bool, early_data: bool) -> None:
    tickets = Tickets()
    tls: Any = server_tls(early_data=early_data)
    if we_are_client:
        tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=early_data)

    def make() -> AioquicPair:
        return AioquicPair(we_are_client=we_are_client, tls=tls, tickets=tickets)

    exchange(make().connect())
    pair = make()
    if early_data and we_are_client:
        assert pair.ours.engine.can_send_early_data
        stream_id = pair.open_ours()
        pair.ours.engine.write(stream_id, b"early", end_stream=True)
    elif early_data:
        stream_id = pair.open_stock()
        pair.stock.connection.send_stream_data(stream_id, b"early", True)
    else:
        stream_id = None
    pair.connect()
    (ours,) = pair.ours.of(events.HandshakeCompleted)
    (stock,) = pair.stock.of(stock_events.HandshakeCompleted)
    assert ours.session_resumed
    assert stock.session_resumed
    assert ours.early_data_accepted is early_data
    assert stock.early_data_accepted is early_data
    if stream_id is not None:
        received = pair.stock.received if we_are_client else pair.ours.received
        assert received[stream_id] == b"early"
    exchange(pair)


@both_roles
@pytest.mark.parametrize("by_us", [True, False], ids=["by us", "by aioquic"])
def test_the_code_and_the_reason_of_the_end_arrive(we_are_client: bool, by_us: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client).connect()
    if by_us:
        pair.ours.engine.close_application(42, "as told")
    else:
        pair.stock.connection.close(error_code=42, reason_phrase="as told")
    pair.run(5.0)
    (ours,) = pair.ours.of(events.Terminated)
    (stock,) = pair.stock.of(stock_events.ConnectionTerminated)
    assert (stock.error_code, stock.frame_type, stock.reason_phrase) == (42, None, "as told")
    if by_us:
        assert ours.error is None
    else:
        assert isinstance(ours.error, phoenix_trio.ConnectionClosedByPeer)
        assert (ours.error.error_code, ours.error.reason) == (42, "as told")


@both_roles
def test_a_silent_peer_is_given_up_after_the_smaller_idle_timeout(we_are_client: bool) -> None:
    pair = AioquicPair(we_are_client=we_are_client, stock={"idle_timeout": 7.0}).connect()
    assert pair.ours.engine.idle_timeout == 7.0
    pair.lost = lambda data: True
    pair.run(9.0)
    (ours,) = pair.ours.of(events.Terminated)
    assert isinstance(ours.error, phoenix_trio.ConnectionTimedOut)
    assert pair.stock.of(stock_events.ConnectionTerminated)
