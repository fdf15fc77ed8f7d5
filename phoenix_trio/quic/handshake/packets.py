"""Packets with long headers: what their headers say before they are opened.

Floor 1, sans-IO, pure functions (RFC 9000 section 17.2, RFC 9369 section 3.2).  Headers
are not authenticated yet: a malformed or truncated one is no packet.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..wire.protection import (
    HANDSHAKE,
    INITIAL,
    NUMBER_SIZE,
    RETRY,
    TAG_SIZE,
    VERSION_1,
    VERSION_2,
    ZERO_RTT,
)
from ..wire.varint import decode_varint, varint_size

__all__ = [
    "HANDSHAKE",
    "INITIAL",
    "NAMES",
    "NEGOTIATION",
    "RETRY",
    "ZERO_RTT",
    "LongHeader",
    "long_overhead",
    "parse_long",
    "parse_versions",
    "retry_tag",
]

#: Besides the numbered packet types.
NEGOTIATION: Final = 4
#: A packet of an unknown version: nothing else of it can be read (RFC 8999).
UNKNOWN: Final = 5

#: Of the types which this side sends in the handshake, as qlog names them.
NAMES: Final = {INITIAL: "initial", HANDSHAKE: "handshake"}

_FIXED: Final = 0x40
_RESERVED: Final = 0x0C

#: RFC 9000 section 17.2: of connection IDs in the known versions.
_LONGEST_CID: Final = 20
_RETRY_TAG_SIZE: Final = 16

#: RFC 9369 section 3.2: version 2 numbers the types differently.
_FROM_VERSION_2: Final = (RETRY, INITIAL, ZERO_RTT, HANDSHAKE)

#: RFC 9001 section 5.8, RFC 9369 section 3.3.3: key and nonce of the Retry integrity tag.
_RETRY_SECRETS: Final = {
    VERSION_1: (
        AESGCM(bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")),
        bytes.fromhex("461599d35d632bf2239825bb"),
    ),
    VERSION_2: (
        AESGCM(bytes.fromhex("8fb4b01b56ac48e260fbcbcead7ccc92")),
        bytes.fromhex("d86969bc2d7c6d9990efb04a"),
    ),
}


class LongHeader:
    """The fields of a long header that can be read before its protection is removed.

    Attributes:
      kind: the packet's type.
      version: the QUIC version.
      destination_cid: the connection ID of the receiver.
      source_cid: the connection ID of the sender.
      token: of an Initial or a Retry packet, else empty.
      number_at: where the packet number begins; of a Retry packet, its integrity tag.
      end: where the packet ends.
    """

    __slots__ = ("destination_cid", "end", "kind", "number_at", "source_cid", "token", "version")

    def __init__(
        self,
        kind: int,
        version: int,
        destination_cid: bytes,
        source_cid: bytes,
        token: bytes,
        number_at: int,
        end: int,
    ) -> None:
        self.kind: int = kind
        self.version: int = version
        self.destination_cid: bytes = destination_cid
        self.source_cid: bytes = source_cid
        self.token: bytes = token
        self.number_at: int = number_at
        self.end: int = end


def parse_long(data: bytes, start: int) -> LongHeader | None:
    """The header of the packet which begins at `start`; ``None``: it is malformed."""
    size = len(data)
    at = start + 6
    if size < at + 1:
        return None
    version = int.from_bytes(data[start + 1 : start + 5], "big")
    first = data[start]
    destination_end = at + data[start + 5]
    source_at = destination_end + 1
    if source_at > size or destination_end - at > _LONGEST_CID:
        return None
    source_end = source_at + data[destination_end]
    if source_end > size or source_end - source_at > _LONGEST_CID:
        return None
    destination_cid = data[at:destination_end]
    source_cid = data[source_at:source_end]
    if version == 0:
        kind = NEGOTIATION
    elif not first & _FIXED:
        return None
    elif version == VERSION_1:
        kind = first >> 4 & 3
    elif version == VERSION_2:
        kind = _FROM_VERSION_2[first >> 4 & 3]
    else:
        kind = UNKNOWN
    token = b""
    at = source_end
    if kind >= NEGOTIATION:
        return LongHeader(kind, version, destination_cid, source_cid, token, at, size)
    if kind == RETRY:
        tag_at = size - _RETRY_TAG_SIZE
        if tag_at < at:
            return None
        return LongHeader(kind, version, destination_cid, source_cid, data[at:tag_at], tag_at, size)
    try:
        if kind == INITIAL:
            length, at = decode_varint(data, at)
            token = data[at : at + length]
            at += length
        length, at = decode_varint(data, at)
    except IndexError:
        return None
    end = at + length
    if end > size:
        return None
    return LongHeader(kind, version, destination_cid, source_cid, token, at, end)


def parse_versions(data: bytes, at: int) -> list[int]:
    """The versions of a Version Negotiation packet (RFC 9000 section 17.2.1); malformed: none."""
    if (len(data) - at) % 4:
        return []
    return [int.from_bytes(data[each : each + 4], "big") for each in range(at, len(data), 4)]


def retry_tag(packet: bytes, original_destination_cid: bytes, version: int) -> bytes:
    """The integrity tag of a Retry packet without it (RFC 9001 section 5.8).

    Args:
      packet: from its first byte up to the tag.
      original_destination_cid: to which the client has sent its first Initial packet.
      version: a known one.
    """
    cipher, nonce = _RETRY_SECRETS[version]
    pseudo = bytes((len(original_destination_cid),)) + original_destination_cid + packet
    return cipher.encrypt(nonce, b"", pseudo)


def has_reserved_bits(first: int) -> bool:
    """Whether the unprotected first byte sets bits which must be zero (RFC 9000 section 17.2)."""
    return first & _RESERVED != 0


def long_overhead(destination_cid: bytes, source_cid: bytes, token: bytes | None) -> int:
    """Bytes of a packet besides its payload.

    Args:
      destination_cid: the peer's connection ID.
      source_cid: this side's.
      token: of an Initial packet; ``None``: it is of another type.
    """
    size = 7 + len(destination_cid) + len(source_cid) + 2 + NUMBER_SIZE + TAG_SIZE
    if token is not None:
        size += varint_size(len(token)) + len(token)
    return size
