"""The events of a handshake in a qlog trace."""

from __future__ import annotations

from typing import Any

from aioquic.quic.logger import QuicLogger

from .pair import Pair, make_client, make_server


def events(logger: QuicLogger) -> list[tuple[str, dict[str, Any]]]:
    (trace,) = logger.to_dict()["traces"]
    return [(event["name"], event["data"]) for event in trace["events"]]


def test_the_packets_of_a_handshake() -> None:
    loggers = QuicLogger(), QuicLogger()
    pair = Pair(
        client=make_client(trace_logger=loggers[0]),
        server=lambda admit: make_server(admit, trace_logger=loggers[1]),
    ).connect()
    assert pair.client.handshake.trace is not None
    for side in pair.sides:
        side.handshake.release()
        assert side.handshake.trace is None
    client, server = events(loggers[0]), events(loggers[1])
    for sent, received in ((client, server), (server, client)):
        packets = [data for name, data in sent if name == "transport:packet_sent"]
        arrived = [data for name, data in received if name == "transport:packet_received"]
        assert packets == arrived
        assert {data["header"]["packet_type"] for data in packets} == {"initial", "handshake"}
    kinds = [frame["frame_type"] for _, data in client for frame in data.get("frames", [])]
    assert {"crypto", "ack"} <= set(kinds)
    keys = [data["key_type"] for name, data in client if name == "security:key_updated"]
    assert keys == [
        "server_handshake_secret",
        "client_handshake_secret",
        "server_1rtt_secret",
        "client_1rtt_secret",
    ]
    (parameters,) = [data for name, data in client if name == "transport:parameters_set"]
    assert parameters["initial_max_data"] == 1_000_000


def test_dropped_packets() -> None:
    logger = QuicLogger()
    pair = Pair(client=make_client(trace_logger=logger))
    pair.client.handshake.start(("10.0.0.1", 4433), 0.0)
    handshake = pair.client.handshake
    head = bytes((8,)) + handshake.host_cid + b"\0"
    for first in (0xC1, 0xE1):  # an Initial and a Handshake packet
        data = bytes((first,)) + b"\0\0\0\1" + head + (b"\0" if first == 0xC1 else b"") + b"\x20"
        handshake.receive(data + bytes(32), ("10.0.0.1", 4433), 0.0)
    drops = [data["trigger"] for name, data in events(logger) if name == "transport:packet_dropped"]
    assert drops == ["payload_decrypt_error", "key_unavailable"]
