"""Tests reach into engines only through one layer, and it can read the engines' packets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic import events
from phoenix_trio.quic.engine import Engine
from tests.engine_access import next_packet_number
from tests.engine_packets import can_seal, open_sent, seal, seal_short
from tests.packets import (
    Level,
    ack_frame,
    crypto_frame,
    frame,
    frames_of,
    headers_of,
    reset_frame,
    sealed_initial,
    stream_frame,
)
from tests.support import EnginePair, Side

TESTS = Path(__file__).parents[1]

#: The layer itself.
LAYER = {"engine_access.py", "engine_packets.py"}

#: Tests of the parts of an engine.
TESTS_OF_PARTS = {"quic/wire", "quic/established", "quic/handshake"}

#: Attributes of an engine that hold its parts.
PARTS = {"control", "established", "handshake", "paths", "peer_ids", "rtt", "state", "streams"}

#: Names of engines in tests.
ENGINE = re.compile(r"(engine|engine_of\(.*\))\Z")


def ways_round(tree: ast.AST, private: set[str]) -> Iterator[str]:
    """Uses of an engine's private names, or of its parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if (node.attr in private and owner != "self") or (
                node.attr in PARTS and ENGINE.search(owner)
            ):
                yield f"{owner}.{node.attr}"


def test_no_test_reaches_into_an_engine_besides_the_layer() -> None:
    private = {name for name in dir(Engine) if re.match("_[a-z]", name)}
    assert "_closing" in private, "or another name which tests would like to use"
    assert set(dir(Engine)) >= PARTS
    found = [
        f"{path.relative_to(TESTS)}: {use}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in LAYER
        and path.parent.relative_to(TESTS).as_posix() not in TESTS_OF_PARTS
        for use in ways_round(ast.parse(path.read_text(encoding="utf-8")), private)
    ]
    assert not found, "tests/engine_access.py is the place for it"
    for way in (
        "side.engine._closing = None",
        "pair.client.engine.state.recovery",
        "engine_of(connection).paths.all",
    ):
        assert list(ways_round(ast.parse(way), private))


# ------------------------------------------------------------------ packets


def test_frames_come_apart_as_they_were_built() -> None:
    built = [
        frame(0x01),
        ack_frame(70_000, 3, (1, 2), (0, 0)),
        stream_frame(4, 1 << 40, b"data", fin=True),
        reset_frame(8, 100),
        crypto_frame(5, b"hello"),
        frame(0x18, 3, 2) + b"\x08" + bytes(range(8)) + bytes(16),
        bytes(10),
        frame(0x10, 99),
        stream_frame(2, 0, b"up to the end", length=False),
    ]
    found = list(frames_of(b"".join(built)))
    assert [each.size for each in found] == list(map(len, built))
    assert [each.kind for each in found] == [1, 2, 0x0F, 4, 6, 0x18, 0, 0x10, 0x0C]
    assert found[1].fields == (70_000, 0, (3, 1, 2, 0, 0))
    assert found[2].fields == (4, 1 << 40, b"data")
    assert found[5].fields == (3, 2, bytes(range(8)), bytes(16))
    assert found[8].data == b"up to the end"


@given(size=st.integers(0, 30))
def test_a_frame_which_is_cut_short_is_no_frame(size: int) -> None:
    whole = frame(0x18, 1000, 1000) + b"\x08" + bytes(24)
    if 0 < size < len(whole):
        with pytest.raises(IndexError):
            list(frames_of(whole[:size]))


def test_what_an_engine_sends_can_be_opened_at_each_level() -> None:
    pair = EnginePair(skips=None)
    opened: dict[Level, bytes] = {}

    def open_all(destination: Side, data: bytes) -> bool:
        sender = pair.client if destination is pair.server else pair.server
        assert sender is not None
        for header in headers_of(data):
            if not can_seal(sender.engine, header.level):
                continue  # the level was over before this arrived
            (packet,) = open_sent(sender.engine, header.data)
            assert packet.level is header.level
            assert packet.number < next_packet_number(sender.engine, header.level)
            for each in packet.of(0x06, *range(0x08, 0x10)):
                opened[header.level] = opened.get(header.level, b"") + each.data
        return False

    pair.drop = open_all
    pair.connect()
    assert opened[Level.INITIAL]
    assert opened[Level.HANDSHAKE]
    stream_id = pair.client.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    pair.client.engine.write(stream_id, b"something to be read")
    pair.run(1.0)
    assert opened[Level.ONE_RTT].endswith(b"something to be read")


def test_a_sealed_packet_is_taken_for_the_engines_own() -> None:
    pair = EnginePair(skips=None).connect()
    assert pair.server is not None
    number = next_packet_number(pair.client.engine)
    packet = seal_short(pair.client.engine, b"\x30forged")
    assert next_packet_number(pair.client.engine) == number + 1
    (opened,) = open_sent(pair.client.engine, packet)
    assert (opened.number, [each.data for each in opened.frames]) == (number, [b"forged"])
    pair.server.engine.receive_run(packet, 0, len(packet), pair.client.address, pair.now)
    pair.server.gather(pair.now)
    assert [each.data for each in pair.server.of(events.DatagramReceived)] == [b"forged"]
    pair.client.engine.send_ping(1)
    pair.run(0.5)
    assert pair.client.of(events.PingAcknowledged), "the engine goes on after it"


def test_an_initial_packet_of_an_engine_is_sealed_with_its_keys() -> None:
    pair = EnginePair()
    ping = seal(pair.client.engine, Level.INITIAL, b"\x01", number=7)
    (opened,) = open_sent(pair.client.engine, ping)
    assert (opened.level, opened.number) == (Level.INITIAL, 7)
    first = pair.wire[0][3]
    (header, *_) = headers_of(first)
    by_anybody = sealed_initial(
        b"\x01",
        destination_cid=header.destination,
        source_cid=header.source,
        packet_number=7,
        size=1200,
    )
    (opened,) = open_sent(pair.client.engine, by_anybody)
    assert (opened.number, len(by_anybody)) == (7, 1200)
