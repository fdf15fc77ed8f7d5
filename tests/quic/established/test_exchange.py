"""Two established halves exchange data over a wire that loses, delays and reorders packets."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established import transmit
from phoenix_trio.quic.wire import frames

from .pair import ADDRESSES, Half, Pair


def losing(rate: float, seed: int) -> Callable[[bytes], bool]:
    """Lose packets at random."""
    chance = random.Random(seed).random
    return lambda data: chance() < rate


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def write(half: Half, stream_id: int, data: bytes, *, end: bool = True) -> None:
    """Write all of `data`; it has to fit into the send buffer."""
    assert half.streams.send_room(stream_id, len(data)) >= len(data)
    half.streams.write(stream_id, data, end_stream=end)


def assert_all_done(pair: Pair) -> None:
    for half in pair.halves:
        s = half.state
        assert not half.streams.has_unacknowledged_streams()
        assert s.recovery.eliciting_in_flight == 0
        assert s.control.bytes_in_flight == 0
        # (Packets with acknowledgements only stay known for a while.)
        assert not any(packet.eliciting for packet in s.recovery.sent.values())


# ------------------------------------------------------------------ streams


def test_an_echo() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"question")
    pair.run(1)
    assert pair.server.data(stream_id) == b"question"
    assert pair.server.of_type(events.StreamOpened) == [events.StreamOpened(stream_id)]
    write(pair.server, stream_id, b"answer")
    pair.run(1)
    assert pair.client.data(stream_id) == b"answer"
    assert pair.client.of_type(events.StreamDataReceived)[-1].end_stream
    assert_all_done(pair)
    for half in pair.halves:
        assert half.streams.let_go(stream_id, sending=True, receiving=True)
        assert not half.streams.senders
        assert not half.streams.receivers


def test_one_write_takes_one_packet_and_one_acknowledgement() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    pair.run(1)
    before = len(pair.sent)
    write(pair.client, stream_id, b"x" * 100)
    pair.run(5)
    (sent, _, _), (answered, half, data) = pair.sent[before:]
    assert half is pair.server
    assert len(data) < 40
    assert answered - sent == pytest.approx(pair.delay + 0.001, abs=1e-4)


@pytest.mark.parametrize("size", [1200, 1452, 9000, 65_507])
def test_bulk_data_in_packets_of_any_size(size: int) -> None:
    pair = Pair(TransportConfig(), limit=size, ceiling=size)
    stream_id = pair.open()
    data = content(3_000_000)
    for at in range(0, len(data), 500_000):
        write(pair.client, stream_id, data[at : at + 500_000], end=at + 500_000 == len(data))
        pair.run(2)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)
    assert max(len(each) for _, _, each in pair.sent) == size


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0, 0.2),
    st.integers(0, 300_000),
    st.integers(0, 300_000),
    st.sampled_from(["cubic", "reno"]),
)
def test_bulk_both_ways_with_losses(
    seed: int, rate: float, up: int, down: int, control: Literal["cubic", "reno"]
) -> None:
    pair = Pair(TransportConfig(congestion_control=control), drop=losing(rate, seed))
    there, back = content(up, seed), content(down, seed + 1)
    stream_id = pair.open()
    write(pair.client, stream_id, there)
    write(pair.client, pair.open(unidirectional=True), there)
    answered = False
    for _ in range(60):
        pair.run(1)
        if not answered and stream_id in pair.server.streams.senders:
            write(pair.server, stream_id, back)
            answered = True
    pair.drop = lambda data: False
    pair.run(30)
    assert pair.server.data(stream_id) == pair.server.data(2) == there
    assert pair.client.data(stream_id) == back
    assert_all_done(pair)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_packets_arrive_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair()
    stream_id = pair.open()
    data = content(200_000, seed)
    write(pair.client, stream_id, data)
    for _ in range(2000):
        pair.delay = chance.choice([0.001, 0.01, 0.03])
        if not pair.step(60):
            break
    pair.run(10)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_packets_arrive_twice(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair()
    stream_id = pair.open()
    data = content(100_000, seed)
    write(pair.client, stream_id, data)
    kept: list[bytes] = []
    for _ in range(500):
        if not pair.step(60):
            break
        kept += [each for _, half, each in pair.sent[-20:] if half is pair.client]
        if kept and chance.random() < 0.3:
            again = chance.choice(kept)
            pair.deliver(pair.server, [again], ADDRESSES[True])
    pair.run(10)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)


def test_many_streams_at_once() -> None:
    pair = Pair(drop=losing(0.05, 7))
    contents = {pair.open(): content(2000 + at, at) for at in range(90)}
    for stream_id, data in contents.items():
        write(pair.client, stream_id, data)
    pair.run(20)
    for stream_id, data in contents.items():
        assert pair.server.data(stream_id) == data
    assert_all_done(pair)


def test_resets_and_stops_get_through_losses() -> None:
    for seed in range(10):
        pair = Pair(drop=losing(0.3, seed))
        one, two = pair.open(), pair.open()
        write(pair.client, one, bytes(50_000), end=False)
        write(pair.client, two, bytes(50_000), end=False)
        while two not in pair.server.streams.receivers:
            assert pair.step(20)
        pair.client.streams.reset_sending(one, 7)
        pair.server.streams.stop_receiving(two, 8)
        pair.run(20)
        resets = pair.server.of_type(events.StreamResetReceived)
        assert {(each.stream_id, each.error_code) for each in resets} == {(one, 7), (two, 8)}
        assert len(resets) == 2
        assert pair.client.of_type(events.StreamStopReceived) == [events.StreamStopReceived(two, 8)]


# ------------------------------------------------------------------ acknowledgements


def test_silence_follows_the_last_acknowledgement() -> None:
    """Acknowledgements are never acknowledged: there is no loop."""
    pair = Pair(TransportConfig(max_idle_timeout=600))
    stream_id = pair.open()
    write(pair.client, stream_id, content(400_000))
    pair.run(5)
    write(pair.server, stream_id, content(400_000))
    pair.run(5)
    assert_all_done(pair)
    before = len(pair.sent)
    pair.run(300)
    assert len(pair.sent) == before


def test_a_receiver_asks_now_and_then_for_an_acknowledgement_of_its_own() -> None:
    """RFC 9000 section 13.2.4: otherwise it would repeat old ranges for ever."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True, drop=losing(0.02, 5))
    stream_id = pair.open()
    for _ in range(20):
        write(pair.client, stream_id, bytes(200_000), end=False)
        pair.run(3)
    asked = [frame for frame in pair.traces[False].frames() if frame["frame_type"] == "ping"]
    acks = len(pair.traces[False].named("transport:packet_sent"))
    assert 0 < len(asked) < acks / 5
    assert len(pair.server.state.received.to_acknowledge) < 16
    assert len(pair.server.state.recovery.sent) < 100


def test_two_packets_at_most_wait_for_their_acknowledgement() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, bytes(400_000))
    pair.run(10)
    sent = [half for _, half, _ in pair.sent]
    assert sent.count(pair.server) >= 10


# ------------------------------------------------------------------ keys


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), max_size=6))
def test_keys_are_updated_in_mid_transfer(seed: int, when: list[int]) -> None:
    pair = Pair(drop=losing(0.05, seed))
    chance = random.Random(seed)
    stream_id = pair.open()
    data = content(400_000, seed)
    write(pair.client, stream_id, data)
    begun = 0
    for at in range(200):
        if at in when:
            half = chance.choice(pair.halves)
            if half.half.can_update_keys():
                half.half.update_keys()
                begun += 1
        if not pair.step(60):
            break
    pair.drop = lambda data: False
    pair.run(30)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)
    client, server = pair.client.state.keys, pair.server.state.keys
    assert client.updates_begun + server.updates_begun == begun
    assert client.phase == client.updates % 2
    # (The other side notices an update with the next packet.)
    write(pair.client, pair.open(), b"1")
    pair.run(5)
    write(pair.server, pair.open(pair.server), b"2")
    pair.run(5)
    assert client.updates == server.updates
    assert client.phase == server.phase


def test_keys_cannot_be_updated_twice_before_an_acknowledgement() -> None:
    pair = Pair()
    stream_id = pair.open()
    assert not pair.client.half.can_update_keys()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(1)
    assert pair.client.half.can_update_keys()
    pair.client.half.update_keys()
    assert not pair.client.half.can_update_keys()
    write(pair.client, stream_id, b"y", end=False)
    pair.step()
    assert not pair.client.half.can_update_keys()
    pair.run(1)
    assert pair.client.half.can_update_keys()
    assert pair.client.state.keys.updates == pair.server.state.keys.updates == 1


def test_keys_are_updated_after_very_many_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9001 section 6.6."""
    from phoenix_trio.quic.established import keys

    monkeypatch.setattr(keys, "KEY_UPDATE_PACKETS", 50)
    monkeypatch.setattr(keys, "_KEY_UPDATE_RETRY", 5)
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    for _ in range(4):
        write(pair.client, stream_id, content(100_000), end=False)
        pair.run(3)
    assert len(pair.server.data(stream_id)) == 400_000
    updates = pair.client.state.keys.updates
    assert updates >= 3
    # (The last one may have begun when nothing was left to send.)
    assert updates - pair.server.state.keys.updates in (0, 1)


# ------------------------------------------------------------------ credit of streams


def test_a_client_at_its_limit_of_streams_always_gets_on() -> None:
    """One stream of eight ends from time to time, the others stay open."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200, max_bidirectional_streams=8), trace=True)
    ids = [pair.open() for _ in range(8)]
    for stream_id in ids:
        write(pair.client, stream_id, b"x", end=False)
    pair.run(1)
    for _ in range(5):
        stream_id = ids.pop()
        write(pair.client, stream_id, b"y")
        pair.run(0.1)
        write(pair.server, stream_id, b"z")
        pair.run(0.1)
        for half in pair.halves:
            half.streams.let_go(stream_id, sending=True, receiving=True)
        assert pair.client.streams.open_stream(unidirectional=False) is None
        pair.run(0.06)  # (The server waits for more streams to end, for a round trip.)
        ids.append(pair.open())
        write(pair.client, ids[-1], b"x", end=False)
        pair.run(0.1)


def test_streams_which_end_soon_after_each_other_are_granted_together() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True)
    ids = [pair.open() for _ in range(100)]
    for stream_id in ids:
        write(pair.client, stream_id, b"x")
    pair.run(1)
    for stream_id in ids:
        write(pair.server, stream_id, b"z")
        assert not pair.server.streams.let_go(stream_id, sending=True, receiving=True)
        pair.run(0.001)
        while pair.client.streams.available_streams(unidirectional=False):
            write(pair.client, pair.open(), b"x", end=False)
    pair.run(1)
    assert pair.client.streams.opened > 140
    kinds = [frame["frame_type"] for frame in pair.traces[False].frames()]
    assert 1 < kinds.count("max_streams") <= 4, "for 100 streams"


# ------------------------------------------------------------------ total loss


def test_probes_after_total_loss() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200, max_idle_timeout=600))
    stream_id = pair.open()
    data = content(100_000)
    write(pair.client, stream_id, data[:50_000], end=False)
    pair.run(2)
    pair.drop = lambda data: True
    write(pair.client, stream_id, data[50_000:])
    pair.run(0.1)
    before = len(pair.sent)
    pair.run(20)
    probes = sorted({at for at, half, _ in pair.sent[before:] if half is pair.client})
    assert 4 <= len(probes) <= 10
    assert len(pair.sent) - before <= 2 * len(probes), "RFC 9002 section 6.2.4"
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert all(later >= earlier * 1.9 for earlier, later in pairwise(gaps[:4]))
    assert pair.client.state.recovery.pto_count > 3
    pair.drop = lambda data: False
    pair.run(60)
    assert pair.server.data(stream_id) == data
    assert pair.client.state.recovery.pto_count == 0
    assert_all_done(pair)


def test_a_lost_last_packet_is_repeated_by_the_probe() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"first", end=False)
    pair.run(1)
    pair.drop = lambda data: True
    write(pair.client, stream_id, b"last")
    pair.flush(pair.client)
    pair.drop = lambda data: False
    pair.run(1)
    assert pair.server.data(stream_id) == b"firstlast"
    assert pair.client.state.recovery.probe_timeouts == 1


# ------------------------------------------------------------------ pings and keep-alive


def test_pings_are_acknowledged_with_their_number() -> None:
    pair = Pair(drop=losing(0.3, 3))
    for uid in (5, 6, 7):
        pair.client.state.pings.append(uid)
        pair.run(1)
    pair.run(10)
    assert {each.uid for each in pair.client.of_type(events.PingAcknowledged)} == {5, 6, 7}


def test_keep_alive() -> None:
    pair = Pair(TransportConfig(keep_alive=2.0, max_udp_payload_size=1200))
    pair.client.state.touch_keep_alive(pair.now)
    before = len(pair.sent)
    pair.run(60)
    pings = len(pair.sent) - before
    assert 40 <= pings <= 130, "both sides send one each two seconds, or hear the other's"
    for half in pair.halves:
        assert pair.now - half.state.idle_since <= 2.1


# ------------------------------------------------------------------ datagrams


def test_datagrams() -> None:
    pair = Pair()
    sent = [bytes([at]) * at for at in range(100)]
    for data in sent:
        pair.client.state.datagrams.add(data)
        pair.flush(pair.client)
    pair.run(1)
    assert [each.data for each in pair.server.of_type(events.DatagramReceived)] == sent
    assert pair.server.state.datagrams_received == 100


def test_lost_datagrams_are_not_repeated() -> None:
    pair = Pair()
    pair.run(1)
    pair.drop = lambda data: True
    pair.client.state.datagrams.add(b"lost")
    pair.flush(pair.client)
    pair.drop = lambda data: False
    pair.client.state.datagrams.add(b"arrives")
    pair.run(5)
    assert [each.data for each in pair.server.of_type(events.DatagramReceived)] == [b"arrives"]
    assert_all_done(pair)


def test_datagrams_and_streams_share_packets() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True)
    pair.run(1)
    before = len(pair.sent)
    pair.client.state.datagrams.add(b"datagram")
    write(pair.client, pair.open(), b"stream")
    pair.flush(pair.client)
    assert len(pair.sent) == before + 1
    kinds = [frame["frame_type"] for frame in pair.traces[True].frames()]
    assert kinds[-2:] == ["datagram", "stream"]


def test_the_oldest_datagram_is_dropped_when_the_queue_is_full() -> None:
    config = TransportConfig(datagram_queue_length=3)
    pair = Pair(config)
    for at in range(5):
        pair.client.state.datagrams.add(b"%d" % at)
    assert pair.client.state.datagrams.dropped == 2
    pair.run(1)
    assert [each.data for each in pair.server.of_type(events.DatagramReceived)] == [
        b"2",
        b"3",
        b"4",
    ]


# ------------------------------------------------------------------ blocked senders


def test_a_blocked_sender_says_so_now_and_then() -> None:
    config = TransportConfig(receive_buffer_size=64 * 1024, max_idle_timeout=30)
    pair = Pair(config, trace=True)
    pair.server.is_reading = False
    stream_id = pair.open()
    write(pair.client, stream_id, content(200_000))
    pair.run(120)
    held = len(pair.server.data(stream_id))
    assert 0 < held < 200_000
    blocked = [
        frame["frame_type"]
        for frame in pair.traces[True].frames()
        if "blocked" in frame["frame_type"]
    ]
    assert 8 <= len(blocked) <= 40, "each third of the idle timeout"
    for half in pair.halves:
        assert pair.now - half.state.idle_since < 30, "both stay alive"
    pair.server.is_reading = True
    pair.server.read(stream_id, held, pair.now)
    pair.run(10)
    assert len(pair.server.data(stream_id)) == 200_000
    assert_all_done(pair)


def test_waiting_for_a_stream_is_told_as_well() -> None:
    config = TransportConfig(max_bidirectional_streams=1, max_udp_payload_size=1200)
    pair = Pair(config, trace=True)
    pair.open()
    assert pair.client.streams.open_stream(unidirectional=False) is None
    pair.client.streams.want_stream(1, unidirectional=False)
    pair.run(25)
    kinds = {frame["frame_type"] for frame in pair.traces[True].frames()}
    assert "streams_blocked" in kinds


def test_credit_arrives_in_spite_of_losses() -> None:
    config = TransportConfig(receive_buffer_size=64 * 1024)
    pair = Pair(config, drop=losing(0.2, 11))
    stream_id = pair.open()
    data = content(600_000)
    write(pair.client, stream_id, data)
    pair.run(60)
    assert pair.server.data(stream_id) == data


# ------------------------------------------------------------------ CRYPTO


def ticket(size: int, fill: int) -> bytes:
    """A NewSessionTicket message, by its head."""
    return b"\x04" + size.to_bytes(3, "big") + bytes([fill]) * size


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_session_tickets_arrive_whole_and_in_order(rate: float) -> None:
    pair = Pair(drop=losing(rate, 2))
    messages = [ticket(100 + 900 * at, at) for at in range(5)]
    for message in messages:
        pair.server.state.crypto_send.write(message)
    pair.run(30)
    assert pair.client.tickets == messages
    assert not pair.server.state.crypto_send.has_pending
    assert_all_done(pair)


def test_a_client_takes_a_few_tickets_only() -> None:
    pair = Pair()
    for at in range(50):
        pair.server.state.crypto_send.write(ticket(20, at))
    pair.run(0.5)
    assert len(pair.client.tickets) == 8


# ------------------------------------------------------------------ closing


def test_closing_frames() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"x")
    pair.run(1)
    frame = frames.build_application_close(77, "enough", 300)
    data = transmit.build_close(pair.client.state, pair.now, frame)
    assert data is not None
    pair.deliver(pair.server, [data], ADDRESSES[True])
    close = pair.server.state.peer_close
    assert close is not None
    assert (close.code, close.frame_type, close.reason) == (77, -1, "enough")
    frame = frames.build_transport_close(10, 6, "", 300)
    data = transmit.build_close(pair.server.state, pair.now, frame)
    assert data is not None
    pair.deliver(pair.client, [data], ADDRESSES[False])
    close = pair.client.state.peer_close
    assert close is not None
    assert (close.code, close.frame_type, close.reason) == (10, 6, "")


def test_the_closing_packet_acknowledges_what_came() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"last words")
    pair.flush(pair.client)
    ((_, _, data),) = pair.sent
    pair.deliver(pair.server, [data], ADDRESSES[True])
    frame = frames.build_application_close(0, "", 300)
    closing = transmit.build_close(pair.server.state, pair.now, frame)
    assert closing is not None
    pair.deliver(pair.client, [closing], ADDRESSES[False])
    assert pair.client.state.peer_close is not None
    assert not pair.client.streams.has_unacknowledged_streams()


def test_nothing_can_be_closed_without_keys() -> None:
    pair = Pair(confirm=False)
    frame = frames.build_application_close(0, "", 300)
    assert transmit.build_close(pair.client.state, pair.now, frame) is None


def test_packets_after_a_close_in_the_same_run_are_not_read() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    pair.run(1)
    frame = frames.build_application_close(3, "", 300)
    closing = transmit.build_close(pair.client.state, pair.now, frame)
    assert closing is not None
    before = len(pair.sent)
    write(pair.client, stream_id, b"late")
    pair.flush(pair.client)
    late = pair.sent[before][2]
    pair.deliver(pair.server, [closing.ljust(0), late], ADDRESSES[True])
    assert pair.server.state.peer_close is not None
    assert pair.server.data(stream_id) == b""


# ------------------------------------------------------------------ the end


def test_a_released_half_keeps_nothing() -> None:
    pair = Pair()
    write(pair.client, pair.open(), content(100_000))
    pair.flush(pair.client)
    pair.client.half.release()
    s = pair.client.state
    assert not s.recovery.sent
    assert s.keys.send is None
    assert not pair.client.streams.senders
    assert pair.client.half.transmit(pair.now, None) == []
