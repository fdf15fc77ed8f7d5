"""The qlog traces of both sides list the same packets."""

from __future__ import annotations

from typing import Any

import pytest

from phoenix_trio import TransportConfig
from phoenix_trio.quic.established import transmit
from phoenix_trio.quic.wire import frames

from .pair import ADDRESSES, Pair
from .test_exchange import content, losing, write


def sent_and_received(pair: Pair, of_client: bool) -> tuple[list[Any], list[Any]]:
    return (
        pair.traces[of_client].named("transport:packet_sent"),
        pair.traces[not of_client].named("transport:packet_received"),
    )


@pytest.mark.parametrize("size", [1200, 1452, 9000, 65_507])
def test_each_packet_is_told_by_both_sides(size: int) -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=size), ceiling=size, trace=True)
    stream_id = pair.open()
    write(pair.client, stream_id, content(400_000))
    pair.run(3)
    pair.client.state.datagrams.add(b"datagram")
    pair.client.state.pings.append(3)
    write(pair.server, stream_id, content(300_000, 1))
    pair.run(3)
    pair.client.half.update_keys()
    write(pair.client, pair.open(), b"x")
    pair.run(3)
    assert pair.server.data(stream_id) == content(400_000)
    for of_client in (True, False):
        sent, received = sent_and_received(pair, of_client)
        assert len(sent) > 10
        assert sent == received
        numbers = [data["header"]["packet_number"] for data in sent]
        assert numbers == sorted(set(numbers))
    streams = [each for each in pair.traces[True].frames() if each["frame_type"] == "stream"]
    assert sum(each["length"] for each in streams if each["stream_id"] == stream_id) == 400_000
    kinds = {each["frame_type"] for half in (True, False) for each in pair.traces[half].frames()}
    assert {
        "stream",
        "ack",
        "ping",
        "datagram",
        "new_connection_id",
        "max_data",
    } <= kinds


def test_lost_packets_and_the_window_are_told() -> None:
    pair = Pair(trace=True, drop=losing(0.1, 1))
    write(pair.client, pair.open(), content(200_000))
    pair.run(20)
    trace = pair.traces[True]
    sent, received = sent_and_received(pair, True)
    assert [data for data in sent if data in received] == received
    lost = [data["packet_number"] for data in trace.named("recovery:packet_lost")]
    assert len(lost) > 5
    arrived = {data["header"]["packet_number"] for data in received}
    assert len(set(lost) - arrived) >= len(sent) - len(received) - 3
    metrics = trace.named("recovery:metrics_updated")
    assert all(data["cwnd"] > 0 for data in metrics)
    assert metrics[-1]["min_rtt"] == pytest.approx(20, abs=0.1)
    assert "ssthresh" in metrics[-1]


def test_key_updates_are_told_by_both_sides() -> None:
    pair = Pair(trace=True)
    for _ in range(2):
        pair.client.half.update_keys()
        write(pair.client, pair.open(), b"x")
        pair.run(3)
    for of_client, trigger in ((True, "local_update"), (False, "remote_update")):
        told = pair.traces[of_client].named("security:key_updated")
        assert told == [{"key_type": "1rtt", "trigger": trigger}] * 2


def test_larger_packets_are_told_once_they_are_sent() -> None:
    pair = Pair(ceiling=9000, trace=True)
    write(pair.client, pair.open(), content(100_000))
    pair.run(10)
    told = pair.traces[True].named("connectivity:mtu_updated")
    assert told
    assert [each["old"] for each in told] == [1200, *(each["new"] for each in told[:-1])]
    assert told[-1]["new"] == pair.client.state.max_datagram_size > 1200


def test_packets_which_break_the_protocol_are_told() -> None:
    """They show the reason for the close."""
    pair = Pair(trace=True)
    pair.run(1)
    s = pair.client.state
    bad = transmit.build_close(s, pair.now, b"\x1e")  # HANDSHAKE_DONE of a client
    assert bad is not None
    pair.server.half.receive_run(bad, 0, len(bad), ADDRESSES[True], pair.now, 0, len(bad))
    assert pair.server.state.fault is not None
    last = pair.traces[False].named("transport:packet_received")[-1]
    assert last["frames"][0] == {"frame_type": "handshake_done"}


def test_the_closing_packet_is_told() -> None:
    pair = Pair(trace=True)
    frame = frames.build_application_close(5, "bye", 300)
    data = transmit.build_close(pair.client.state, pair.now, frame)
    assert data is not None
    pair.deliver(pair.server, [data], ADDRESSES[True])
    sent, received = sent_and_received(pair, True)
    assert sent == received
    (described,) = sent[0]["frames"]
    assert described["frame_type"] == "connection_close"
    assert described["error_code"] == 5
