"""The content of probes in 1-RTT packets (RFC 9002 section 6.2.4)."""

from __future__ import annotations

from typing import Any

from phoenix_trio import TransportConfig

from .pair import Half, Pair
from .test_exchange import content, write


def quiet_pair() -> tuple[Pair, int]:
    """A pair with a stream, without unacknowledged data and without a search for the MTU."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200), trace=True)
    stream_id = pair.open()
    write(pair.client, stream_id, b"first", end=False)
    pair.run(1)
    return pair, stream_id


def packets_of(pair: Pair, half: Half, since: int) -> list[list[dict[str, Any]]]:
    """The frames of each packet of one side, from that number of packets on."""
    sent = pair.traces[half.is_client].named("transport:packet_sent")[since:]
    return [
        [frame for frame in data["frames"] if frame["frame_type"] != "padding"] for data in sent
    ]


def lost_and_probed(pair: Pair, half: Half) -> tuple[list[Any], list[Any]]:
    """The packets lost now, and the packets of the probe timeout after them."""
    since = len(pair.traces[half.is_client].named("transport:packet_sent"))
    pair.drop = lambda data: True
    pair.flush(half)
    lost = packets_of(pair, half, since)
    recovery = half.state.recovery
    while not recovery.pto_count:
        assert pair.step()
    pair.flush(half)
    return lost, packets_of(pair, half, since + len(lost))


def stream_ranges(packet: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [
        (frame["offset"], frame["length"]) for frame in packet if frame["frame_type"] == "stream"
    ]


def kinds(packets: list[list[dict[str, Any]]]) -> set[str]:
    return {frame["frame_type"] for packet in packets for frame in packet}


def test_a_packet_which_may_be_lost_is_repeated_in_two_datagrams_without_a_ping() -> None:
    pair, stream_id = quiet_pair()
    write(pair.client, stream_id, b"last")
    lost, probes = lost_and_probed(pair, pair.client)
    assert [stream_ranges(packet) for packet in lost] == [[(5, 4)]]
    assert [stream_ranges(packet) for packet in probes] == [[(5, 4)], [(5, 4)]]
    assert "ping" not in kinds(probes)


def test_the_two_oldest_packets_are_repeated_and_nothing_else_leaves() -> None:
    pair, stream_id = quiet_pair()
    write(pair.client, stream_id, content(20_000), end=False)
    lost, probes = lost_and_probed(pair, pair.client)
    assert len(lost) > 5
    assert len(probes) == 2
    # (How many bytes fit depends on how the offset is written.)
    ((start, size),), ((other_start, other_size),) = map(stream_ranges, probes)
    ((first, _),), ((second, last_size),) = map(stream_ranges, lost[:2])
    assert (start, start + size, other_start + other_size) == (
        first,
        other_start,
        second + last_size,
    )
    assert kinds(probes) == {"stream"}
    pair.drop = lambda data: False
    pair.run(5)
    assert len(pair.server.data(stream_id)) == 20_005


def test_new_data_is_a_probe_as_well_where_only_one_packet_is_to_be_repeated() -> None:
    pair, stream_id = quiet_pair()
    write(pair.client, stream_id, b"last", end=False)
    pair.drop = lambda data: True
    pair.flush(pair.client)
    assert pair.client.half.on_timer(pair.client.half.deadline())
    assert pair.client.state.probes_due == 2
    write(pair.client, stream_id, content(5000), end=False)
    since = len(pair.traces[True].named("transport:packet_sent"))
    pair.flush(pair.client)
    probes = packets_of(pair, pair.client, since)
    assert stream_ranges(probes[0])[0][0] == 5
    assert pair.client.state.probes_due == 0
    assert "ping" not in kinds(probes)


def test_other_frames_which_have_to_arrive_are_repeated_too() -> None:
    pair, _ = quiet_pair()
    pair.server.state.handshake_done_pending = True
    lost, probes = lost_and_probed(pair, pair.server)
    assert kinds(lost) == {"handshake_done"}
    assert [kinds([packet]) - {"ack"} for packet in probes] == [{"handshake_done"}] * 2


def test_a_probe_repeats_the_last_acknowledgement() -> None:
    """The acknowledgement of the peer's last packet was lost, and no other frame repeats it."""
    pair, stream_id = quiet_pair()
    write(pair.client, stream_id, b"last", end=False)
    pair.flush(pair.client)
    pair.drop = lambda data: True
    while not pair.server.data(stream_id).endswith(b"last"):
        assert pair.step()
    pair.now += 0.002
    assert pair.server.half.on_timer(pair.now)
    pair.flush(pair.server)
    write(pair.server, stream_id, b"answer", end=False)
    _, probes = lost_and_probed(pair, pair.server)
    assert ["ack" in kinds([packet]) for packet in probes] == [True, True]


def test_where_nothing_has_to_be_repeated_the_probe_is_one_ping() -> None:
    pair, _ = quiet_pair()
    pair.client.state.pings.append(7)
    lost, probes = lost_and_probed(pair, pair.client)
    assert kinds(lost) == kinds(probes) - {"ack"} == {"ping"}
    assert len(probes) == 1


def test_probes_leave_though_the_window_is_full() -> None:
    """RFC 9002 section 7.5."""
    pair, stream_id = quiet_pair()
    pair.client.state.control.congestion_window = 2400
    write(pair.client, stream_id, content(20_000), end=False)
    lost, probes = lost_and_probed(pair, pair.client)
    assert len(lost) == len(probes) == 2
    assert pair.client.state.control.bytes_in_flight <= 2400 + 1200


def test_probes_keep_the_anti_amplification_limit() -> None:
    """RFC 9000 section 8.1, on a path to which the client seems to have moved."""
    pair, stream_id = quiet_pair()
    write(pair.server, stream_id, b"answer", end=False)
    path = pair.server.state.paths.all[0]
    path.is_validated = False
    path.bytes_received, path.bytes_sent = 500, 0
    pair.drop = lambda data: True
    while pair.step(pair.now + 20):
        assert path.bytes_sent <= 1500
    assert pair.server.state.recovery.probe_timeouts
