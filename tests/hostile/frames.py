"""Random frames, well-formed or nearly so."""

from __future__ import annotations

import random

from phoenix_trio.streams import encode_varint
from tests.packets import LAYOUTS

#: Values at which encodings, limits and signs change.
_BOUNDARIES = (
    *(0, 1, 2, 3, 4, 7, 63, 64, 255, 1199, 1200, 16_383, 16_384, 65_535, 1 << 20, 1 << 24),
    *((1 << 30) - 1, 1 << 30, (1 << 60) - 1, 1 << 60, (1 << 60) + 1, (1 << 62) - 1),
)

_CLOSES = (0x1C, 0x1D)


def random_frame(generator: random.Random, *, closes: bool = False) -> bytes:
    """One frame; with `closes`, a CONNECTION_CLOSE is possible."""
    choices = [kind for kind in LAYOUTS if closes or kind not in _CLOSES]
    kind = generator.choice(choices)
    frame = bytearray(encode_varint(kind))
    for field in LAYOUTS[kind]:
        frame += _field(generator, field)
    return bytes(frame)


def _number(generator: random.Random) -> int:
    if generator.random() < 0.7:
        return generator.choice((0, 0, 1, 2, 3, 4, 5, 8, 12, 40))
    return max(0, generator.choice(_BOUNDARIES) + generator.choice((-1, 0, 0, 1)) & (1 << 62) - 1)


def _field(generator: random.Random, field: str) -> bytes:
    data = generator.randbytes(generator.choice((0, 1, 3, 20, 100)))
    if field == "n":
        return encode_varint(_number(generator))
    if field == "d":
        length = len(data) if generator.random() < 0.9 else _number(generator)
        return encode_varint(length) + data
    if field == "c":
        length = generator.choice((0, 1, 4, 8, 8, 8, 20, 21, 255))
        return bytes((length,)) + generator.randbytes(length)
    if field == "t":
        return generator.randbytes(16)
    if field == "p":
        return generator.randbytes(8)
    if field == "a":
        count = generator.choice((0, 0, 1, 2, 30))
        numbers = [_number(generator) for _ in range(1 + 2 * count)]
        announced = count if generator.random() < 0.9 else _number(generator)
        return encode_varint(announced) + b"".join(map(encode_varint, numbers))
    return data


def random_payload(generator: random.Random, *, closes: bool = False) -> bytes:
    """Some frames, now and then cut off or with a byte changed; long enough to be sealed."""
    frames = [random_frame(generator, closes=closes) for _ in range(generator.choice((1, 1, 2, 8)))]
    payload = bytearray(b"".join(frames))[:1100]
    if payload and generator.random() < 0.1:
        del payload[generator.randrange(len(payload)) :]
    if payload and generator.random() < 0.1:
        payload[generator.randrange(len(payload))] = generator.randrange(256)
    return bytes(payload).ljust(4, b"\0")
