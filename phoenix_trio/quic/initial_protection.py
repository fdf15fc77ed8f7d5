"""Derives the keys of Initial packets, and tells an authentic one of a client from noise.

Floor 0, sans-IO.  For the endpoint's admission, which looks before anything is built,
and for the engine, which takes over the keys that admission has derived.  The keys of
Initial packets follow from their destination connection ID (RFC 9001 section 5.2), so
anybody can make an authentic one; but what is not authentic cannot be the start of a
connection.  The check derives the client's keys only, and costs some 20 microseconds;
an engine costs half a millisecond.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

__all__ = ["InitialKeys", "authenticate_initial", "derive_initial_keys", "initial_secret"]

VERSION_1 = 0x00000001
VERSION_2 = 0x6B3343CF

#: RFC 9001 section 5.2, RFC 9369 section 3.3.1.
_SALTS = {
    VERSION_1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    VERSION_2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}

_KEY_LENGTH = 16
_NONCE_LENGTH = 12
_SAMPLE_LENGTH = 16
_LONGEST_PACKET_NUMBER = 4

_HASH = SHA256()


def _expand_info(label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label's input for the first block (RFC 8446 section 7.1, RFC 5869)."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\x00" + b"\x01"


_CLIENT_SECRET = _expand_info(b"client in", 32)
_SERVER_SECRET = _expand_info(b"server in", 32)

#: Key, nonce and header protection key (RFC 9001 section 5.1, RFC 9369 section 3.3.2).
_LABELS = {
    version: (
        _expand_info(prefix + b" key", _KEY_LENGTH),
        _expand_info(prefix + b" iv", _NONCE_LENGTH),
        _expand_info(prefix + b" hp", _KEY_LENGTH),
    )
    for version, prefix in ((VERSION_1, b"quic"), (VERSION_2, b"quicv2"))
}


def _hmac(key: bytes, data: bytes) -> bytes:
    # (The quickest HMAC-SHA256 at hand, also where its code is not in the processor's cache.)
    digest = HMAC(key, _HASH)
    digest.update(data)
    return digest.finalize()


class InitialKeys(NamedTuple):
    """What protects the Initial packets of one side (RFC 9001 section 5.2)."""

    version: int
    destination_cid: bytes
    """From which they follow: that of the client's first packet, or of its first after Retry."""
    secret: bytes
    key: bytes
    iv: bytes
    header_key: bytes


def initial_secret(version: int, destination_cid: bytes) -> bytes:
    """What both sides' keys follow from."""
    return _hmac(_SALTS[version], destination_cid)


def derive_initial_keys(
    common: bytes, version: int, destination_cid: bytes, *, of_client: bool
) -> InitialKeys:
    """The keys of what the client or the server sends, from their :func:`initial_secret`."""
    secret = _hmac(common, _CLIENT_SECRET if of_client else _SERVER_SECRET)
    key, iv, header_key = _LABELS[version]
    return InitialKeys(
        version,
        destination_cid,
        secret,
        _hmac(secret, key)[:_KEY_LENGTH],
        _hmac(secret, iv)[:_NONCE_LENGTH],
        _hmac(secret, header_key)[:_KEY_LENGTH],
    )


def authenticate_initial(
    data: bytes, number_at: int, end: int, *, version: int, destination_cid: bytes
) -> InitialKeys | None:
    """The keys of the Initial packet at the front of `data`, if a client has sealed it.

    ``None``: it is not authentic.  The keys say nothing of the packet's frames: any
    authentic Initial packet passes.

    Args:
      data: a datagram.
      number_at: where the protected packet number begins.
      end: where the packet ends.
      version: one of :data:`VERSION_1` and :data:`VERSION_2`.
      destination_cid: the packet's destination connection ID; that of a client's first
        packet, or the one which a Retry packet gave it.
    """
    sample_at = number_at + _LONGEST_PACKET_NUMBER
    if sample_at + _SAMPLE_LENGTH > end or end > len(data):
        return None  # (RFC 9001 section 5.4.2: too short to be sampled)
    common = initial_secret(version, destination_cid)
    keys = derive_initial_keys(common, version, destination_cid, of_client=True)
    # One block of AES by itself is what header protection is (RFC 9001 section 5.4.3).
    encryptor = Cipher(AES(keys.header_key), ECB()).encryptor()  # noqa: S305
    mask = encryptor.update(data[sample_at : sample_at + _SAMPLE_LENGTH])
    first = data[0] ^ (mask[0] & 0x0F)
    length = (first & 0x03) + 1
    body_at = number_at + length
    number = int.from_bytes(data[number_at:body_at], "big") ^ int.from_bytes(
        mask[1 : length + 1], "big"
    )
    # Nothing was received before, so the number is what was sent of it (RFC 9000 section A.3).
    nonce = int.from_bytes(keys.iv, "big") ^ number
    header = bytes((first,)) + data[1:number_at] + number.to_bytes(length, "big")
    try:
        AESGCM(keys.key).decrypt(nonce.to_bytes(_NONCE_LENGTH, "big"), data[body_at:end], header)
    except InvalidTag:
        return None
    return keys
