"""Protects packets (RFC 9001 section 5): keys, header protection, and sealed packets.

Floor 0, sans-IO.  One :class:`PacketKey` protects the payloads of one direction in one key
phase; one :class:`HeaderKey` protects the headers of one direction.  Functions seal whole
packets, one at a time (:func:`seal_one`, :func:`seal_long`) or many behind one another
(:func:`seal_run`).  :func:`open_packet` opens one packet; for a run of packets, the caller takes
the masks of all of them at once.

Sealed packets carry two bytes of their packet number.  Two bytes identify a number as long as
fewer than 32,768 packets are in flight (RFC 9000 section 17.1).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.hmac import HMAC

from .varint import VARINT_MAX, encode_varint

__all__ = [
    "VERSION_1",
    "VERSION_2",
    "AES_128_GCM_SHA256",
    "AES_256_GCM_SHA384",
    "CHACHA20_POLY1305_SHA256",
    "TAG_SIZE",
    "SAMPLE_SIZE",
    "NUMBER_SIZE",
    "FIRST_BYTE",
    "HANDSHAKE",
    "INITIAL",
    "RETRY",
    "ZERO_RTT",
    "Buffer",
    "HeaderKey",
    "NotAuthentic",
    "PacketKey",
    "decode_packet_number",
    "header_key",
    "hmac_digest",
    "label_info",
    "open_header",
    "open_packet",
    "packet_keys",
    "seal_long",
    "seal_one",
    "seal_run",
]

VERSION_1: Final = 0x00000001
VERSION_2: Final = 0x6B3343CF  # RFC 9369 section 3.1

#: Types of packets with long headers, as QUIC version 1 numbers them (RFC 9000 section 17.2).
INITIAL: Final = 0
ZERO_RTT: Final = 1
HANDSHAKE: Final = 2
RETRY: Final = 3

#: RFC 9369 section 3.2: version 2 numbers them differently.
_KINDS_OF_VERSION_2: Final = (1, 2, 3, 0)

#: TLS cipher suites (RFC 8446 appendix B.4).
AES_128_GCM_SHA256: Final = 0x1301
AES_256_GCM_SHA384: Final = 0x1302
CHACHA20_POLY1305_SHA256: Final = 0x1303

TAG_SIZE: Final = 16
"""Bytes that the AEAD adds to a payload."""

SAMPLE_SIZE: Final = 16
"""Bytes of ciphertext from which a mask is made (RFC 9001 section 5.4.2)."""

NUMBER_SIZE: Final = 2
"""Bytes of packet number in packets sealed by this module."""

FIRST_BYTE: Final = 0x40 | NUMBER_SIZE - 1
"""The first byte of a short header, without spin bit (0x20) and key phase (0x04)."""

Buffer = bytes | bytearray | memoryview

_NONCE_SIZE: Final = 12

#: The sample begins four bytes behind the beginning of the packet number (RFC 9001 section
#: 5.4.2).  This is its offset in the body of a packet with two bytes of packet number.
_SAMPLE_AT: Final = 4 - NUMBER_SIZE
_SAMPLE_STOP: Final = _SAMPLE_AT + SAMPLE_SIZE

#: The least bytes of payload for a whole sample.
_MIN_PAYLOAD: Final = _SAMPLE_STOP - TAG_SIZE

#: The short header by the size of the connection ID: first byte, ID, packet number.
_SHORT_HEADERS: Final = tuple(Struct(f">B{size}sH") for size in range(21))
_PACK_SHORT: Final = tuple(header.pack for header in _SHORT_HEADERS)
_PACK_SHORT_INTO: Final = tuple(header.pack_into for header in _SHORT_HEADERS)

#: The parts of a mask for the first byte, and for two bytes of packet number; the rest is unused.
_iterate_masks: Final = Struct(f">BH{SAMPLE_SIZE - 3}x").iter_unpack
_SHORT_BITS: Final = 0x1F
_LONG_BITS: Final = 0x0F

_ZEROS: Final = bytes(5)


class NotAuthentic(Exception):
    """The key does not open the packet: it is forged, damaged, or of other keys."""


def hmac_digest(algorithm: HashAlgorithm, key: bytes, data: bytes) -> bytes:
    """HMAC (RFC 2104).  It is also HKDF-Extract (RFC 5869), with the salt as the key."""
    # (The quickest HMAC available, even when its code is not in the processor's cache.)
    digest = HMAC(key, algorithm)
    digest.update(data)
    return digest.finalize()


def label_info(label: bytes, size: int) -> bytes:
    """The input of :func:`hmac_digest` for HKDF-Expand-Label (RFC 8446 section 7.1).

    The context is empty, and the result at most one digest long: the first `size` bytes of the
    digest are the result.

    Args:
      label: without the prefix "tls13 ".
      size: bytes of the result.
    """
    full = b"tls13 " + label
    # The information of HKDF-Expand, with an empty context, and the number of the only block.
    return size.to_bytes(2, "big") + bytes((len(full),)) + full + b"\x00\x01"


class _Suite:
    """The properties of a cipher suite (RFC 9001 section 5.3) in each version."""

    __slots__ = ("hash", "hp_info", "is_aes", "iv_info", "key_info", "key_size", "update_info")

    def __init__(
        self, algorithm: HashAlgorithm, key_size: int, is_aes: bool, prefix: bytes
    ) -> None:
        self.hash: HashAlgorithm = algorithm
        self.key_size: int = key_size
        self.is_aes: bool = is_aes
        self.key_info: bytes = label_info(prefix + b"key", key_size)
        self.iv_info: bytes = label_info(prefix + b"iv", _NONCE_SIZE)
        self.hp_info: bytes = label_info(prefix + b"hp", key_size)
        self.update_info: bytes = label_info(prefix + b"ku", algorithm.digest_size)

    def key(self, secret: bytes) -> bytes:
        return hmac_digest(self.hash, secret, self.key_info)[: self.key_size]

    def iv(self, secret: bytes) -> bytes:
        return hmac_digest(self.hash, secret, self.iv_info)[:_NONCE_SIZE]

    def header_key(self, secret: bytes) -> bytes:
        return hmac_digest(self.hash, secret, self.hp_info)[: self.key_size]


#: The labels: RFC 9001 section 5.1, RFC 9369 section 3.3.2.
_SUITES: Final = {
    (suite, version): _Suite(algorithm, key_size, suite != CHACHA20_POLY1305_SHA256, prefix)
    for version, prefix in ((VERSION_1, b"quic "), (VERSION_2, b"quicv2 "))
    for suite, algorithm, key_size in (
        (AES_128_GCM_SHA256, SHA256(), 16),
        (AES_256_GCM_SHA384, SHA384(), 32),
        (CHACHA20_POLY1305_SHA256, SHA256(), 32),
    )
}


class _ChaCha20Mask:
    """Header protection by ChaCha20 (RFC 9001 section 5.4.4); counter and nonce are the sample."""

    __slots__ = ("_context",)

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(ChaCha20(key, bytes(SAMPLE_SIZE)), mode=None)
        self._context: CipherContext = cipher.encryptor()

    def mask(self, sample: Buffer) -> bytes:
        context = self._context
        context.reset_nonce(bytes(sample))
        return context.update(_ZEROS)

    def masks(self, samples: Buffer) -> bytes:
        context = self._context
        found = []
        for at in range(0, len(samples), SAMPLE_SIZE):
            context.reset_nonce(bytes(samples[at : at + SAMPLE_SIZE]))
            found.append(context.update(bytes(SAMPLE_SIZE)))
        return b"".join(found)


class HeaderKey:
    """The header protection of one direction (RFC 9001 section 5.4); key updates keep it.

    Args:
      suite: the cipher suite.
      key: 16 or 32 bytes, depending on the suite.

    Attributes:
      mask: gives at least 5 bytes of mask for a sample of 16 bytes.  (An attribute, so that a
        call with AES is the cipher's own and costs no more.)
      masks: the same for joined samples: the mask of sample ``i`` begins at ``16 * i``.  With
        AES, one call of the cipher covers all samples.
    """

    __slots__ = ("mask", "masks", "suite")

    def __init__(self, suite: int, key: bytes) -> None:
        self.suite: int = suite
        self.mask: Callable[[Buffer], bytes]
        self.masks: Callable[[Buffer], bytes]
        if suite != CHACHA20_POLY1305_SHA256:
            # The mask is the sample, encrypted by AES as a single block (RFC 9001 section 5.4.3).
            self.mask = self.masks = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305
        else:
            masks = _ChaCha20Mask(key)
            self.mask = masks.mask
            self.masks = masks.masks


class PacketKey:
    """The payload protection of one direction in one key phase (RFC 9001 section 5.3).

    The attributes :attr:`seal` and its like are the cipher's own functions, for loops where each
    further call matters.  Their nonce is ``(key.iv ^ number).to_bytes(12, "big")``, and
    :attr:`open` raises :exc:`cryptography.exceptions.InvalidTag`.

    Args:
      suite: the cipher suite.
      secret: the traffic secret of TLS.
      version: the QUIC version.

    Raises:
      KeyError: the suite or the version is unknown.
    """

    __slots__ = ("iv", "open", "open_into", "seal", "seal_into", "secret", "suite", "version")

    def __init__(self, suite: int, secret: bytes, version: int) -> None:
        self.suite: int = suite
        self.secret: bytes = secret
        self.version: int = version
        properties = _SUITES[suite, version]
        key = properties.key(secret)
        self.iv: int = int.from_bytes(properties.iv(secret), "big")
        cipher = AESGCM(key) if properties.is_aes else ChaCha20Poly1305(key)
        self.seal: Callable[[bytes, Buffer, bytes], bytes] = cipher.encrypt
        self.open: Callable[[bytes, Buffer, bytes], bytes] = cipher.decrypt
        self.seal_into: Callable[[bytes, Buffer, bytes, Buffer], int] = cipher.encrypt_into
        self.open_into: Callable[[bytes, Buffer, bytes, Buffer], int] = cipher.decrypt_into

    def encrypt(self, number: int, header: bytes, payload: Buffer) -> bytes:
        """The sealed payload of packet `number`; it is 16 bytes longer."""
        return self.seal((self.iv ^ number).to_bytes(12, "big"), payload, header)

    def encrypt_into(self, number: int, header: bytes, payload: Buffer, out: memoryview) -> None:
        """Like :meth:`encrypt`, into `out`, which must be 16 bytes longer than `payload`."""
        self.seal_into((self.iv ^ number).to_bytes(12, "big"), payload, header, out)

    def decrypt(self, number: int, header: bytes, body: Buffer) -> bytes:
        """The payload of packet `number`, whose unprotected header is `header`.

        Opening bytes is faster than opening a memoryview, in spite of the copy, up to about 8 KiB.

        Raises:
          NotAuthentic: the key does not open it.
        """
        try:
            return self.open((self.iv ^ number).to_bytes(12, "big"), body, header)
        except InvalidTag:
            raise NotAuthentic from None

    def decrypt_into(self, number: int, header: bytes, body: Buffer, out: bytearray) -> None:
        """Like :meth:`decrypt`, into `out`, which must be 16 bytes shorter than `body`.

        The front of a bytearray can be cut off without a copy.  For large packets this is faster.

        Raises:
          NotAuthentic: the key does not open it.
          ValueError: `body` is shorter than a tag, or `out` has another length.
        """
        try:
            self.open_into((self.iv ^ number).to_bytes(12, "big"), body, header, out)
        except InvalidTag:
            raise NotAuthentic from None

    def next(self) -> PacketKey:
        """The key of the next key phase (RFC 9001 section 6.1)."""
        properties = _SUITES[self.suite, self.version]
        secret = hmac_digest(properties.hash, self.secret, properties.update_info)
        return PacketKey(self.suite, secret, self.version)


def packet_keys(suite: int, secret: bytes, version: int) -> tuple[bytes, bytes, bytes]:
    """The bytes of key, nonce base and header protection key (RFC 9001 section 5.1).

    Raises:
      KeyError: the suite or the version is unknown.
    """
    properties = _SUITES[suite, version]
    return properties.key(secret), properties.iv(secret), properties.header_key(secret)


def header_key(suite: int, secret: bytes, version: int) -> HeaderKey:
    """The header protection of a traffic secret (RFC 9001 section 5.1).

    Raises:
      KeyError: the suite or the version is unknown.
    """
    return HeaderKey(suite, _SUITES[suite, version].header_key(secret))


def decode_packet_number(truncated: int, bits: int, expected: int) -> int:
    """The whole packet number, from its last `bits` bits (RFC 9000 appendix A.3).

    Args:
      truncated: the last bits of the number, as the packet carries them.
      bits: 8, 16, 24 or 32.
      expected: the largest number received so far, plus one.
    """
    window = 1 << bits
    half = window >> 1
    candidate = expected & -window | truncated
    if candidate <= expected - half and candidate <= VARINT_MAX - window:
        return candidate + window
    if candidate > expected + half and candidate >= window:
        return candidate - window
    return candidate


def seal_one(
    first_byte: int, cid: bytes, number: int, payload: bytes, key: PacketKey, header: HeaderKey
) -> bytes:
    """One packet with a short header (RFC 9000 section 17.3.1).

    Args:
      first_byte: :data:`FIRST_BYTE`, with spin bit and key phase.
      cid: the destination connection ID, up to 20 bytes.
      number: the packet number.
      payload: its frames; PADDING is added to a single byte, which is too short for a whole sample.
      key: the payload protection.
      header: the header protection.
    """
    if len(payload) < _MIN_PAYLOAD:
        payload = payload.ljust(_MIN_PAYLOAD, b"\0")
    pack = _PACK_SHORT[len(cid)]
    low = number & 0xFFFF
    body = key.seal((key.iv ^ number).to_bytes(12, "big"), payload, pack(first_byte, cid, low))
    mask = header.mask(body[_SAMPLE_AT:_SAMPLE_STOP])
    return pack(first_byte ^ mask[0] & _SHORT_BITS, cid, low ^ (mask[1] << 8 | mask[2])) + body


def seal_run(
    first_byte: int,
    cid: bytes,
    number: int,
    payloads: list[bytes],
    key: PacketKey,
    header: HeaderKey,
    slab: bytearray,
    at: int,
) -> int:
    """Seal packets with short headers, one directly behind the other; returns where they end.

    Args:
      first_byte: of each packet; see :func:`seal_one`.
      cid: the destination connection ID, up to 20 bytes.
      number: the packet number of the first; the others follow.
      payloads: one for each packet; see :func:`seal_one`.
      key: the payload protection.
      header: the header protection; it is called once for the whole run.
      slab: the buffer for the packets; it must be large enough.
      at: the position of the first packet.
    """
    pack = _PACK_SHORT[len(cid)]
    pack_into = _PACK_SHORT_INTO[len(cid)]
    head_size = 1 + len(cid) + NUMBER_SIZE
    seal_into = key.seal_into
    iv = key.iv
    first = number
    starts: list[int] = []
    samples: list[memoryview] = []
    view = memoryview(slab)
    for payload in payloads:
        if len(payload) < _MIN_PAYLOAD:
            payload = payload.ljust(_MIN_PAYLOAD, b"\0")
        starts.append(at)
        body = at + head_size
        at = body + len(payload) + TAG_SIZE
        out = view[body:at]
        seal_into(
            (iv ^ number).to_bytes(12, "big"),
            payload,
            pack(first_byte, cid, number & 0xFFFF),
            out,
        )
        samples.append(out[_SAMPLE_AT:_SAMPLE_STOP])
        number += 1
    masks = _iterate_masks(header.masks(b"".join(samples)))
    for start, (bits, pair) in zip(starts, masks, strict=True):
        pack_into(slab, start, first_byte ^ bits & _SHORT_BITS, cid, first & 0xFFFF ^ pair)
        first += 1
    return at


def seal_long(
    kind: int,
    version: int,
    dcid: bytes,
    scid: bytes,
    token: bytes,
    number: int,
    payload: bytes,
    key: PacketKey,
    header: HeaderKey,
) -> bytes:
    """An Initial, 0-RTT or Handshake packet of at most 16,383 bytes (RFC 9000 section 17.2).

    Args:
      kind: :data:`INITIAL`, :data:`ZERO_RTT` or :data:`HANDSHAKE`.
      version: the QUIC version.
      dcid: the destination connection ID, up to 20 bytes.
      scid: the source connection ID, up to 20 bytes.
      token: of an Initial packet.
      number: the packet number.
      payload: its frames; see :func:`seal_one`.
      key: the payload protection.
      header: the header protection.
    """
    if len(payload) < _MIN_PAYLOAD:
        payload = payload.ljust(_MIN_PAYLOAD, b"\0")
    bits = _KINDS_OF_VERSION_2[kind] if version == VERSION_2 else kind
    first = 0xC0 | bits << 4 | NUMBER_SIZE - 1
    length = NUMBER_SIZE + len(payload) + TAG_SIZE
    middle = b"".join(
        (
            version.to_bytes(4, "big"),
            bytes((len(dcid),)),
            dcid,
            bytes((len(scid),)),
            scid,
            encode_varint(len(token)) + token if kind == INITIAL else b"",
            # (Always two bytes, so that the overhead is known before the payload.)
            (length | 0x4000).to_bytes(2, "big"),
        )
    )
    truncated = number & 0xFFFF
    clear = bytes((first,)) + middle + truncated.to_bytes(NUMBER_SIZE, "big")
    body = key.encrypt(number, clear, payload)
    mask = header.mask(body[_SAMPLE_AT:_SAMPLE_STOP])
    first ^= mask[0] & _LONG_BITS
    truncated ^= mask[1] << 8 | mask[2]
    return bytes((first,)) + middle + truncated.to_bytes(NUMBER_SIZE, "big") + body


def open_header(
    data: bytes, start: int, number_at: int, end: int, header: HeaderKey, expected: int
) -> tuple[int, int, bytes, int]:
    """Remove the header protection of one packet (RFC 9001 section 5.4).

    Args:
      data: a datagram.
      start: where the packet begins.
      number_at: where its packet number begins.
      end: where it ends.
      header: the header protection.
      expected: the number that follows the largest one received.

    Returns the first byte, the packet number, the header, and where the payload begins.

    Raises:
      NotAuthentic: the packet is too short to have a sample.
    """
    sample_at = number_at + 4
    if sample_at + SAMPLE_SIZE > end:
        raise NotAuthentic  # RFC 9001 section 5.4.2
    mask = header.mask(data[sample_at : sample_at + SAMPLE_SIZE])
    first = data[start]
    first ^= mask[0] & (_LONG_BITS if first & 0x80 else _SHORT_BITS)
    length = (first & 3) + 1
    body_at = number_at + length
    truncated = int.from_bytes(data[number_at:body_at], "big") ^ int.from_bytes(
        mask[1 : length + 1], "big"
    )
    number = decode_packet_number(truncated, 8 * length, expected)
    clear = b"%c%b%b" % (first, data[start + 1 : number_at], truncated.to_bytes(length, "big"))
    return first, number, clear, body_at


def open_packet(
    data: bytes,
    start: int,
    number_at: int,
    end: int,
    key: PacketKey,
    header: HeaderKey,
    expected: int,
) -> tuple[int, int, bytes]:
    """The first byte, the packet number and the payload of one packet.

    Args: `key` opens the payload; for the others see :func:`open_header`.

    Raises:
      NotAuthentic: the keys do not open it, or it is too short.
    """
    first, number, clear, body_at = open_header(data, start, number_at, end, header, expected)
    return first, number, key.decrypt(number, clear, data[body_at:end])
