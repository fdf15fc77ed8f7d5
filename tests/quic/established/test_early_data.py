"""0-RTT packets: sent, read, accepted, refused, repeated after a Retry."""

from __future__ import annotations

import pytest

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import FRAME_ENCODING_ERROR, PROTOCOL_VIOLATION
from phoenix_trio.quic.wire.protection import ZERO_RTT, PacketKey, header_key, seal_long

from .pair import ADDRESSES, CIDS, SUITE, VERSION, Pair, parameters
from .test_exchange import assert_all_done, content, write

SECRET = b"e" * 32


def early_pair(*, server_reads: bool = True, trace: bool = False) -> Pair:
    """A pair before its handshake, whose client remembers the server and may send 0-RTT data.

    The server can already send 1-RTT packets, but the client cannot read them yet.
    """
    pair = Pair(TransportConfig(), trace=trace, confirm=False)
    remembered = parameters(pair.server.config, pair.server.streams)
    pair.client.half.set_parameters(remembered, remembered=True)
    pair.client.half.install_key(True, SUITE, SECRET, VERSION, is_early=True)
    if server_reads:
        pair.server.half.install_key(False, SUITE, SECRET, VERSION, is_early=True)
    pair.server.half.install_key(True, SUITE, bytes(32), VERSION, is_early=False)
    return pair


def finish(pair: Pair) -> None:
    pair.install_keys()
    pair.confirm()


def test_early_data_arrives_before_the_handshake_is_over() -> None:
    pair = early_pair(trace=True)
    stream_id = pair.open()
    data = content(5000)
    write(pair.client, stream_id, data)
    pair.client.state.datagrams.add(b"early datagram")
    pair.run(0.1)
    assert pair.server.data(stream_id) == data
    assert pair.server.of_type(events.DatagramReceived) == [
        events.DatagramReceived(b"early datagram")
    ]
    assert all(each[0] & 0xB0 == 0x90 for _, half, each in pair.sent if half is pair.client)
    sent = pair.traces[True].named("transport:packet_sent")
    assert sent == pair.traces[False].named("transport:packet_received")
    assert {each["header"]["packet_type"] for each in sent} == {"0RTT"}
    in_flight = pair.client.state.recovery.eliciting_in_flight
    assert in_flight == len(sent)
    finish(pair)
    pair.run(5)
    assert_all_done(pair)


def test_early_data_stops_at_the_congestion_window() -> None:
    pair = early_pair()
    write(pair.client, pair.open(), content(500_000))
    pair.run(0.5)
    assert sum(len(data) for _, half, data in pair.sent if half is pair.client) == 12_000
    finish(pair)
    pair.run(20)
    assert len(pair.server.data(0)) == 500_000
    assert_all_done(pair)


def test_the_client_stops_with_its_one_rtt_keys() -> None:
    """RFC 9001 section 4.9.3."""
    pair = early_pair()
    write(pair.client, pair.open(), b"early", end=False)
    pair.run(0.1)
    s = pair.client.state
    first = s.recovery.next_number
    pair.install_keys()
    assert not s.can_send_early
    assert s.zero_rtt_key is None
    assert s.first_one_rtt == first
    assert pair.server.state.zero_rtt_key is not None, "the server may get some later"
    pair.confirm()
    before = len(pair.sent)
    write(pair.client, 0, b"later", end=False)
    pair.run(1)
    assert pair.server.data(0) == b"earlylater"
    assert all(not each[0] & 0x80 for _, _, each in pair.sent[before:])
    assert pair.server.state.zero_rtt_key is None


def test_refused_early_data_is_sent_again_at_once() -> None:
    """RFC 9001 section 4.6.2."""
    pair = early_pair(server_reads=False)
    stream_id = pair.open()
    data = content(8000)
    write(pair.client, stream_id, data)
    pair.run(0.1)
    assert pair.server.data(stream_id) == b""
    pair.client.half.on_early_data_refused(pair.now)
    assert not pair.client.state.can_send_early
    assert pair.client.state.control.bytes_in_flight == 0
    finish(pair)
    pair.run(0.1)
    assert pair.server.data(stream_id) == data
    pair.run(3)
    assert_all_done(pair)
    assert pair.client.state.recovery.probe_timeouts == 0
    assert pair.client.state.control.ssthresh > 1 << 40, "no congestion"


def test_early_data_is_sent_again_after_a_retry() -> None:
    """RFC 9000 section 17.2.5.3: in 0-RTT packets with other numbers."""
    pair = early_pair()
    stream_id = pair.open()
    data = content(3000)
    write(pair.client, stream_id, data)
    pair.flush(pair.client)
    pair.wire.clear()
    pair.client.half.on_retry(pair.now)
    pair.client.half.set_peer_cid(b"afterretry")
    before = len(pair.sent)
    pair.run(0.1)
    assert pair.server.data(stream_id) == data
    again = [each for _, half, each in pair.sent[before:] if half is pair.client]
    assert again
    assert all(each[6:16] == b"afterretry" for each in again)


def test_late_early_packets_are_read_until_the_first_one_rtt_packet() -> None:
    pair = early_pair()
    write(pair.client, pair.open(), b"early", end=False)
    pair.flush(pair.client)
    ((_, _, early),) = pair.sent
    pair.wire.clear()
    finish(pair)
    pair.deliver(pair.server, [early], ADDRESSES[True])
    assert pair.server.data(0) == b"early"
    pair.deliver(pair.server, [early], ADDRESSES[True])
    assert pair.server.data(0) == b"early", "once"
    write(pair.client, 0, b"more", end=False)
    pair.run(2)
    assert pair.server.data(0) == b"earlymore"
    assert pair.server.state.zero_rtt_key is None
    pair.deliver(pair.server, [early], ADDRESSES[True])


def test_the_handshakes_probes_repeat_the_oldest_early_data() -> None:
    pair = early_pair()
    write(pair.client, pair.open(), b"early", end=False)
    pair.flush(pair.client)
    pair.wire.clear()
    pair.client.half.on_handshake_probe(needs_ping=False)
    pair.run(0.1)
    assert pair.server.data(0) == b"early"
    finish(pair)
    pair.run(3)
    assert_all_done(pair)


def early_packet(payload: bytes, number: int = 0) -> bytes:
    key, header = PacketKey(SUITE, SECRET, VERSION), header_key(SUITE, SECRET, VERSION)
    return seal_long(ZERO_RTT, VERSION, CIDS[False], CIDS[True], b"", number, payload, key, header)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x02\x00\x00\x00\x00", PROTOCOL_VIOLATION),  # ACK
        (b"\x06\x00\x01x", PROTOCOL_VIOLATION),  # CRYPTO
        (b"\x1e", PROTOCOL_VIOLATION),  # HANDSHAKE_DONE
        (b"\x07\x01t", PROTOCOL_VIOLATION),  # NEW_TOKEN
        (b"\x1b" + bytes(8), PROTOCOL_VIOLATION),  # PATH_RESPONSE
        (b"\x19\x00", PROTOCOL_VIOLATION),  # RETIRE_CONNECTION_ID
        (b"\x3f\x00\x00", FRAME_ENCODING_ERROR),
        (b"\x7f\xff\x00", FRAME_ENCODING_ERROR),
    ],
)
def test_frames_which_may_not_come_early(payload: bytes, code: int) -> None:
    """RFC 9000 section 12.5."""
    pair = early_pair()
    s = pair.server.state
    pair.server.half.receive_packet(True, early_packet(payload), ADDRESSES[True], 0.0, 0)
    assert s.fault is not None
    assert s.fault.code == code
    assert s.fault.frame_type == payload[0] or code == FRAME_ENCODING_ERROR


def test_frames_which_may_come_early() -> None:
    pair = early_pair()
    payload = b"".join(
        (
            frames.build_stream_head(0, 0, 2, False) + b"ab",
            frames.build_max_data(1 << 30),
            frames.build_stop_sending(0, 7),
            b"\x01\x00",
        )
    )
    pair.deliver(pair.server, [early_packet(payload)], ADDRESSES[True])
    assert pair.server.data(0) == b"ab"
    assert pair.server.of_type(events.StreamStopReceived) == [events.StreamStopReceived(0, 7)]


@pytest.mark.parametrize("length", [0, 10, 22, 25, 40])
def test_damaged_early_packets_are_ignored(length: int) -> None:
    pair = early_pair()
    packet = early_packet(frames.build_stream_head(0, 0, 2, False) + b"ab" + bytes(20))
    assert len(packet) > 60
    cut = packet[: -length or None]
    if length:
        pair.deliver(pair.server, [cut], ADDRESSES[True])
        pair.deliver(pair.server, [packet[:-1] + b"!"], ADDRESSES[True])
        assert pair.server.data(0) == b""
    pair.deliver(pair.server, [packet], ADDRESSES[True])
    assert pair.server.data(0) == b"ab"


def test_a_client_reads_no_early_packets() -> None:
    pair = early_pair()
    pair.client.half.receive_packet(True, early_packet(b"\x01\x00"), ADDRESSES[False], 0.0, 0)
    assert pair.client.state.received.largest == -1


def test_reserved_bits_of_early_packets_must_be_zero() -> None:
    pair = early_pair()
    key, header = PacketKey(SUITE, SECRET, VERSION), header_key(SUITE, SECRET, VERSION)
    ids = b"".join(bytes((len(cid),)) + cid for cid in (CIDS[False], CIDS[True]))
    clear = b"\xd9" + VERSION.to_bytes(4, "big") + ids + b"\x40\x16\0\0"
    body = key.encrypt(0, clear, b"\x01\0\0\0")
    mask = header.mask(body[2:18])
    packet = bytes((clear[0] ^ mask[0] & 0x0F,)) + clear[1:-2] + mask[1:3] + body
    pair.server.half.receive_packet(True, packet, ADDRESSES[True], 0.0, 0)
    assert pair.server.state.fault is not None
    assert pair.server.state.fault.code == PROTOCOL_VIOLATION
