"""Tells an authentic Initial packet of a client from noise, before anything is built for it.

Floor 0, sans-IO.  For the endpoint's admission.  The keys of Initial packets follow
from their destination connection ID (RFC 9001 section 5.2), so anybody can make an
authentic one; but what is not authentic cannot be the start of a connection.  The
check derives the client's keys only, and costs some 20 microseconds; an engine costs
half a millisecond.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

__all__ = ["is_authentic_initial"]

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


def _expand_info(label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label's input for the first block (RFC 8446 section 7.1, RFC 5869)."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\x00" + b"\x01"


_CLIENT_SECRET = _expand_info(b"client in", 32)

#: Key, nonce and header protection key (RFC 9001 section 5.1, RFC 9369 section 3.3.2).
_LABELS = {
    version: (
        _expand_info(prefix + b" key", _KEY_LENGTH),
        _expand_info(prefix + b" iv", _NONCE_LENGTH),
        _expand_info(prefix + b" hp", _KEY_LENGTH),
    )
    for version, prefix in ((VERSION_1, b"quic"), (VERSION_2, b"quicv2"))
}


def is_authentic_initial(
    data: bytes, number_at: int, end: int, *, version: int, destination_cid: bytes
) -> bool:
    """Whether the Initial packet at the front of `data` was sealed by a client.

    It says nothing of the packet's frames: any authentic Initial packet passes.

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
        return False  # (RFC 9001 section 5.4.2: too short to be sampled)
    initial_secret = hmac.digest(_SALTS[version], destination_cid, "sha256")
    secret = hmac.digest(initial_secret, _CLIENT_SECRET, "sha256")
    key_label, nonce_label, header_label = _LABELS[version]
    header_key = hmac.digest(secret, header_label, "sha256")[:_KEY_LENGTH]
    # One block of AES by itself is what header protection is (RFC 9001 section 5.4.3).
    encryptor = Cipher(AES(header_key), ECB()).encryptor()  # noqa: S305
    mask = encryptor.update(data[sample_at : sample_at + _SAMPLE_LENGTH])
    first = data[0] ^ (mask[0] & 0x0F)
    length = (first & 0x03) + 1
    body_at = number_at + length
    number = bytes(a ^ b for a, b in zip(data[number_at:body_at], mask[1:], strict=False))
    # Nothing was received before, so the number is what was sent of it (RFC 9000 section A.3).
    iv = hmac.digest(secret, nonce_label, "sha256")[:_NONCE_LENGTH]
    nonce = int.from_bytes(iv, "big") ^ int.from_bytes(number, "big")
    header = bytes((first,)) + data[1:number_at] + number
    key = hmac.digest(secret, key_label, "sha256")[:_KEY_LENGTH]
    try:
        AESGCM(key).decrypt(nonce.to_bytes(_NONCE_LENGTH, "big"), data[body_at:end], header)
    except InvalidTag:
        return False
    return True
