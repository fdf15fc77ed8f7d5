"""Packets and frames of QUIC version 1 as bytes: builds, seals, opens and parses them.

For tests that send packets which no engine would send, and that read the packets of an engine.
Nothing of phoenix_trio is used here; :mod:`tests.engine_packets` has the keys of an engine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

import attrs
from aioquic.quic.crypto import CryptoPair

#: Seals a packet: its header with the packet number, its frames, the whole packet number.
Seal = Callable[[bytes, bytes, int], bytes]

#: Opens a packet: the packet, the offset of its number, the number expected next.
#: Returns the header, the frames and the packet number.
Open = Callable[[bytes, int, int], tuple[bytes, bytes, int]]

#: Bytes of the authentication tag, of all ciphers of QUIC (RFC 9001 section 5.3).
TAG = 16

#: Bytes of the connection IDs that engines choose for themselves.
CONNECTION_ID = 8

#: The least number of bytes of a packet number and the frames behind it, so that there is a
#: sample for header protection (RFC 9001 section 5.4.2).
_SMALLEST_PLAIN = 4


class Level(enum.IntEnum):
    """The encryption levels (RFC 9001 section 2.1); of the first three, a long header's type."""

    INITIAL = 0
    ZERO_RTT = 1
    HANDSHAKE = 2
    ONE_RTT = 3


# ------------------------------------------------------------------ frames

#: Fields of each frame (RFC 9000 section 19, RFC 9221): n is a number, d is data behind its
#: length, r is data up to the end of the packet, c, t and p are a connection ID behind its
#: length, a stateless reset token, and the data of a path challenge; a is the ranges of an
#: ACK: how many there are behind the first one, the first one, and each gap and length.
LAYOUTS: dict[int, str] = {
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


def varint(value: int) -> bytes:
    """A variable-length integer in its shortest form (RFC 9000 section 16)."""
    for power, size in enumerate((1, 2, 4, 8)):
        if value < 1 << 8 * size - 2:
            return (value | power << 8 * size - 2).to_bytes(size, "big")
    raise ValueError(f"{value} is too large")


def frame(kind: int, *fields: int) -> bytes:
    """A frame of numbers only."""
    return b"".join(map(varint, (kind, *fields)))


def ack_frame(largest: int, first_range: int = 0, *more: tuple[int, int]) -> bytes:
    """An ACK frame: the largest number, how many below it, then gaps and lengths."""
    return frame(
        0x02, largest, 0, len(more), first_range, *(each for pair in more for each in pair)
    )


def stream_frame(
    stream_id: int, offset: int, data: bytes, *, fin: bool = False, length: bool = True
) -> bytes:
    """A STREAM frame with an offset; without a length, it ends its packet."""
    head = frame(0x0C | (2 if length else 0) | fin, stream_id, offset)
    return head + (varint(len(data)) if length else b"") + data


def reset_frame(stream_id: int, final_size: int, error_code: int = 7) -> bytes:
    """A RESET_STREAM frame."""
    return frame(0x04, stream_id, error_code, final_size)


def crypto_frame(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return frame(0x06, offset, len(data)) + data


@attrs.frozen
class Frame:
    """A frame as it was in a packet; PADDING up to the next frame is one."""

    kind: int
    fields: tuple[int | bytes | tuple[int, ...], ...]
    """In the order of :data:`LAYOUTS`."""
    size: int
    """Bytes in the packet."""

    @property
    def data(self) -> bytes:
        """The data of a STREAM, CRYPTO or DATAGRAM frame."""
        data = self.fields[-1]
        assert isinstance(data, bytes)
        return data


def frames_of(plain: bytes) -> Iterator[Frame]:
    """The frames of an opened packet, in order.

    Raises:
      IndexError: a frame is cut short.
      KeyError: there is no frame of this kind.
    """
    at = 0
    while at < len(plain):
        start = at
        kind, at = _varint(plain, at)
        fields: list[int | bytes | tuple[int, ...]] = []
        if not kind:
            at = len(plain) - len(plain[at:].lstrip(b"\0"))
        for letter in LAYOUTS[kind]:
            field, at = _FIELDS[letter](plain, at)
            fields.append(field)
        yield Frame(kind, tuple(fields), at - start)


def _varint(plain: bytes, at: int) -> tuple[int, int]:
    width = 1 << (plain[at] >> 6)
    data, at = _piece(plain, at, width)
    return int.from_bytes(data, "big") & (1 << 8 * width - 2) - 1, at


def _piece(plain: bytes, at: int, size: int) -> tuple[bytes, int]:
    if at + size > len(plain):
        raise IndexError("a frame is cut short")
    return plain[at : at + size], at + size


def _data(plain: bytes, at: int) -> tuple[bytes, int]:
    size, at = _varint(plain, at)
    return _piece(plain, at, size)


def _ranges(plain: bytes, at: int) -> tuple[tuple[int, ...], int]:
    count, at = _varint(plain, at)
    numbers = []
    for _ in range(1 + 2 * count):
        number, at = _varint(plain, at)
        numbers.append(number)
    return tuple(numbers), at


_Field = tuple[int | bytes | tuple[int, ...], int]

_FIELDS: dict[str, Callable[[bytes, int], _Field]] = {
    "n": _varint,
    "d": _data,
    "r": lambda plain, at: (plain[at:], len(plain)),
    "c": lambda plain, at: _piece(plain, at + 1, plain[at]),
    "t": lambda plain, at: _piece(plain, at, 16),
    "p": lambda plain, at: _piece(plain, at, 8),
    "a": _ranges,
}


# ------------------------------------------------------------------ sealing


def short_packet(
    seal: Seal,
    frames: bytes,
    number: int,
    *,
    destination: bytes,
    key_phase: int = 0,
    number_size: int = 2,
    spin: bool = False,
    reserved_bits: int = 0,
    fixed_bit: bool = True,
) -> bytes:
    """A 1-RTT packet (RFC 9000 section 17.3.1)."""
    first = fixed_bit << 6 | spin << 5 | reserved_bits << 3 | key_phase << 2 | number_size - 1
    header = bytes((first,)) + destination + _number(number, number_size)
    return seal(header, frames, number)


def long_packet(
    seal: Seal,
    level: Level,
    frames: bytes,
    number: int,
    *,
    destination: bytes,
    source: bytes,
    version: int = 1,
    token: bytes = b"",
    number_size: int = 2,
) -> bytes:
    """An Initial, 0-RTT or Handshake packet (RFC 9000 section 17.2, RFC 9369 section 3.2)."""
    kind = level if version == 1 else (level + 1) % 4
    header = bytes((0xC0 | kind << 4 | number_size - 1,)) + version.to_bytes(4, "big")
    header += bytes((len(destination),)) + destination + bytes((len(source),)) + source
    if level is Level.INITIAL:
        header += varint(len(token)) + token
    length = number_size + len(frames) + TAG
    header += (0x4000 | length).to_bytes(2, "big") + _number(number, number_size)
    return seal(header, frames, number)


def _number(number: int, size: int) -> bytes:
    return (number & (1 << 8 * size) - 1).to_bytes(size, "big")


def padded(frames: bytes) -> bytes:
    """The frames, long enough for a sample of header protection (RFC 9001 section 5.4.2)."""
    return frames.ljust(_SMALLEST_PLAIN, b"\0")


def initial_keys(
    first_destination: bytes, *, version: int = 1, by_server: bool = False
) -> CryptoPair:
    """The Initial keys of one side, which are no secret (RFC 9001 section 5.2).

    `first_destination` is the destination connection ID of the client's first packet.
    """
    keys = CryptoPair()
    keys.setup_initial(cid=first_destination, is_client=not by_server, version=version)
    return keys


def sealed_initial(
    frames: bytes,
    *,
    destination_cid: bytes,
    source_cid: bytes = b"attacker",
    packet_number: int = 0,
    version: int = 1,
    token: bytes = b"",
    key_cid: bytes | None = None,
    size: int = 1200,
    by_server: bool = False,
) -> bytes:
    """An Initial packet with any frames, which authenticates, padded to `size`.

    `key_cid` is the connection ID from which the keys come: the first destination
    connection ID of the connection, by default `destination_cid`.
    """
    first = destination_cid if key_cid is None else key_cid
    keys = initial_keys(first, version=version, by_server=by_server)

    def packet(plain: bytes) -> bytes:
        return long_packet(
            keys.encrypt_packet,
            Level.INITIAL,
            plain,
            packet_number,
            destination=destination_cid,
            source=source_cid,
            version=version,
            token=token,
        )

    sealed = packet(frames.ljust(size - len(packet(bytes(4))) + 4, b"\0"))
    assert len(sealed) == size
    return sealed


# ------------------------------------------------------------------ opening


@attrs.frozen
class Header:
    """The parts of a packet in the clear (RFC 8999), and where its parts are."""

    level: Level
    destination: bytes
    source: bytes
    token: bytes
    number_offset: int
    data: bytes
    """The whole packet, from its first byte to its end."""


def headers_of(datagram: bytes) -> Iterator[Header]:
    """The packets of a datagram; bytes after the last one with a long header are padding.

    Raises:
      ValueError: a packet of another version, or a Retry or Version Negotiation packet.
    """
    at = 0
    while at < len(datagram) and datagram[at] & 0x40:
        start, first = at, datagram[at]
        if not first & 0x80:
            offset = start + 1 + CONNECTION_ID
            yield Header(
                Level.ONE_RTT,
                datagram[start + 1 : offset],
                b"",
                b"",
                offset - start,
                datagram[start:],
            )
            return
        version, kind = int.from_bytes(datagram[at + 1 : at + 5], "big"), first >> 4 & 3
        if version != 1 or kind == 3:
            raise ValueError(f"version {version:#x}, type {kind}")
        level = Level(kind)
        destination, at = _piece(datagram, at + 6, datagram[at + 5])
        source, at = _piece(datagram, at + 1, datagram[at])
        token = b""
        if level is Level.INITIAL:
            token, at = _data(datagram, at)
        length, at = _varint(datagram, at)
        end = at + length
        yield Header(level, destination, source, token, at - start, datagram[start:end])
        at = end


@attrs.frozen
class Packet:
    """An opened packet."""

    level: Level
    number: int
    first_byte: int
    """Without its protection: spin bit, key phase, length of the packet number."""
    destination: bytes
    frames: list[Frame]

    def of(self, *kinds: int) -> list[Frame]:
        """The frames of these kinds."""
        return [each for each in self.frames if each.kind in kinds]


def open_packet(opener: Open, header: Header, expected: int) -> Packet:
    """Open a packet with the keys of its level; `expected` is the number expected next."""
    plain_header, plain, number = opener(header.data, header.number_offset, expected)
    return Packet(header.level, number, plain_header[0], header.destination, list(frames_of(plain)))
