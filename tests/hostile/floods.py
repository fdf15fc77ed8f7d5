"""Packets that are cheap to send and expensive to receive, each as the frames of one packet.

A flood is a function of the attacker: it returns the payload of the next packet.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from phoenix_trio.quic.engine import Engine
from tests.engine_access import (
    change_connection_id,
    connection_id_in_use,
    forget_spare_connection_ids,
    spare_connection_ids,
)
from tests.packets import frame, stream_frame

#: Bytes of frames in a packet.
ROOM = 1150

#: Streams used by an attacker; peers permit 100 by default.
STREAMS = 95


@attrs.define
class Attacker:
    """The state that a flood may read and change."""

    engine: Engine
    """The attacker's own engine; its connection is established."""
    packets: int = 0
    """Packets sent so far."""
    next_connection_id: int = 8
    generator: random.Random = attrs.field(factory=lambda: random.Random(1))


Flood = Callable[[Attacker], bytes]


def filled(*frames: bytes) -> bytes:
    """A packet filled with the frames, over and over."""
    once = b"".join(frames)
    return once * max(1, ROOM // len(once))


def stream_byte(stream_id: int, offset: int) -> bytes:
    return stream_frame(stream_id, offset, b"x")


def open_streams(attacker: Attacker) -> None:
    """Open streams at the attacker's own engine, since the server will send frames about them."""
    if not attacker.packets:
        for _ in range(STREAMS):
            attacker.engine.open_stream(unidirectional=False)


def harmless(attacker: Attacker) -> bytes:
    return b"\x01".ljust(ROOM, b"\0")


def pings(attacker: Attacker) -> bytes:
    return bytes([1]) * ROOM


def retired_again(attacker: Attacker) -> bytes:
    """RETIRE_CONNECTION_ID of a number already retired."""
    used, _ = connection_id_in_use(attacker.engine)
    if not attacker.packets:
        change_connection_id(attacker.engine)
        return frame(0x19, used)
    return filled(frame(0x19, 0))


def retired_all(attacker: Attacker) -> bytes:
    """RETIRE_CONNECTION_ID of every number at once, and of all IDs issued instead."""
    numbers = spare_connection_ids(attacker.engine)
    forget_spare_connection_ids(attacker.engine)
    return b"".join(frame(0x19, number) for number in numbers) or harmless(attacker)


def empty_datagrams(attacker: Attacker) -> bytes:
    return filled(b"\x31\x00")


def bytes_on_many_streams(attacker: Attacker) -> bytes:
    return b"".join(stream_byte(4 * number, attacker.packets) for number in range(STREAMS))


def gaps(attacker: Attacker) -> bytes:
    """Bytes behind 990 gaps; then the same bytes again."""
    if attacker.packets < 9:
        first = attacker.packets * 110
        return b"".join(stream_byte(0, 2 * number + 1) for number in range(first, first + 110))
    return b"".join(stream_byte(0, 2 * number + 1) for number in range(800, 990))


def finished_stream(attacker: Attacker) -> bytes:
    """The end of an ended stream."""
    return filled(b"\x0b\x00\x00")


def empty_stream_frames(attacker: Attacker) -> bytes:
    return filled(b"\x0a\x00\x00")


def challenges(attacker: Attacker) -> bytes:
    return filled(b"\x1a" + attacker.generator.randbytes(8))


def responses(attacker: Attacker) -> bytes:
    return filled(b"\x1b" + bytes(8))


def new_connection_ids(attacker: Attacker) -> bytes:
    """NEW_CONNECTION_ID frames that retire all earlier IDs."""
    frames = b""
    for _ in range(20):
        number = attacker.next_connection_id
        attacker.next_connection_id += 1
        frames += frame(0x18, number, number) + b"\x08" + attacker.generator.randbytes(24)
    return frames


def stream_limits(attacker: Attacker) -> bytes:
    """MAX_STREAM_DATA of many streams, larger each time."""
    limit = 10_000_000 + attacker.packets * 1000
    return b"".join(frame(0x11, 4 * (k % STREAMS), limit + k) for k in range(ROOM // 8))


def stream_counts(attacker: Attacker) -> bytes:
    first = 1000 + attacker.packets * 200
    return b"".join(frame(0x12, first + k) for k in range(200))


def resets(attacker: Attacker) -> bytes:
    """RESET_STREAM and STOP_SENDING of many streams, again and again."""
    open_streams(attacker)
    if attacker.packets:
        return filled(frame(0x04, 0, 0, 0), frame(0x05, 0, 0))
    return b"".join(frame(0x04, 4 * k, 0, 0) + frame(0x05, 4 * k, 0) for k in range(STREAMS))


def stops(attacker: Attacker) -> bytes:
    open_streams(attacker)
    return filled(frame(0x05, 0, 0))


def old_acknowledgements(attacker: Attacker) -> bytes:
    return filled(frame(0x02, 1, 0, 0, 0))


def acknowledged_ranges(attacker: Attacker) -> bytes:
    """ACK frames with many ranges that were acknowledged before."""
    return filled(frame(0x02, 2, 0, 1, 0, 0, 0))


def blocked_streams(attacker: Attacker) -> bytes:
    return b"".join(frame(0x15, 4 * (k % STREAMS), 5) for k in range(ROOM // 4))


FLOODS: tuple[Flood, ...] = (
    pings,
    retired_again,
    retired_all,
    empty_datagrams,
    bytes_on_many_streams,
    gaps,
    finished_stream,
    empty_stream_frames,
    challenges,
    responses,
    new_connection_ids,
    stream_limits,
    stream_counts,
    resets,
    stops,
    old_acknowledgements,
    acknowledged_ranges,
    blocked_streams,
)
