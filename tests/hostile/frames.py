"""Random frames, well-formed or nearly so, and the packets that carry them."""

from __future__ import annotations

import random

from aioquic import tls

from phoenix_trio.quic.engine import Engine
from phoenix_trio.streams import encode_varint

#: Values at which encodings, limits and signs change.
_BOUNDARIES = (
    *(0, 1, 2, 3, 4, 7, 63, 64, 255, 1199, 1200, 16_383, 16_384, 65_535, 1 << 20, 1 << 24),
    *((1 << 30) - 1, 1 << 30, (1 << 60) - 1, 1 << 60, (1 << 60) + 1, (1 << 62) - 1),
)

#: Type and fields of each frame (RFC 9000 section 19, RFC 9221): n is a number, d is
#: data behind its length, r is data without a length, c, t and p are a connection ID behind
#: its length, a stateless reset token, and the data of a path challenge; a is the ranges
#: of an ACK.
_LAYOUTS: dict[int, str] = {
    0x00: "",
    0x01: "",
    0x02: "nna",
    0x03: "nnannn",
    0x04: "nnn",
    0x05: "nn",
    0x06: "nd",
    0x07: "d",
    0x08: "nr",
    0x09: "nr",
    0x0A: "nd",
    0x0B: "nd",
    0x0C: "nnr",
    0x0D: "nnr",
    0x0E: "nnd",
    0x0F: "nnd",
    0x10: "n",
    0x11: "nn",
    0x12: "n",
    0x13: "n",
    0x14: "n",
    0x15: "nn",
    0x16: "n",
    0x17: "n",
    0x18: "nnct",
    0x19: "n",
    0x1A: "p",
    0x1B: "p",
    0x1C: "nnd",
    0x1D: "nd",
    0x1E: "",
    0x30: "r",
    0x31: "d",
}

_CLOSES = (0x1C, 0x1D)


def random_frame(generator: random.Random, *, closes: bool = False) -> bytes:
    """One frame; with `closes`, a CONNECTION_CLOSE is possible."""
    choices = [kind for kind in _LAYOUTS if closes or kind not in _CLOSES]
    kind = generator.choice(choices)
    frame = bytearray(encode_varint(kind))
    for field in _LAYOUTS[kind]:
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


#: RFC 9000 section 17.2: the type bits of long headers in version 1.
_LONG_TYPES = {tls.Epoch.INITIAL: 0, tls.Epoch.ZERO_RTT: 1, tls.Epoch.HANDSHAKE: 2}


def seal(
    engine: Engine, epoch: tls.Epoch, payload: bytes, *, packet_number: int | None = None
) -> bytes:
    """A packet from `engine`, with its keys, which it does not know of."""
    if packet_number is None:
        packet_number = engine._packet_number
        engine._packet_number += 1
    crypto = engine._cryptos[epoch]
    number = (packet_number & 0xFFFF).to_bytes(2, "big")
    if epoch is tls.Epoch.ONE_RTT:
        header = bytes((0x41 | crypto.key_phase << 2,)) + engine._peer_cid.cid + number
    else:
        destination, source = engine._peer_cid.cid, engine.host_cid
        header = bytes((0xC1 | _LONG_TYPES[epoch] << 4,)) + engine._version.to_bytes(4, "big")
        header += bytes((len(destination),)) + destination + bytes((len(source),)) + source
        if epoch is tls.Epoch.INITIAL:
            header += b"\0"
        header += (0x4000 | 2 + len(payload) + 16).to_bytes(2, "big") + number
    sealed: bytes = crypto.encrypt_packet(header, payload, packet_number)
    return sealed
