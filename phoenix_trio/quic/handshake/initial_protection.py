"""Derives the keys of Initial packets, and tells an authentic one of a client from noise.

Floor 1, sans-IO.  For the endpoint's admission, which looks before anything is built,
and for the handshake, which takes over the keys that admission has derived.  The keys of
Initial packets follow from their destination connection ID (RFC 9001 section 5.2), so
any host can make an authentic one; but a packet that fails the check cannot begin a
connection.  The check derives the client's keys only, and costs some 20 microseconds;
an engine costs half a millisecond.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256

from ..wire.protection import (
    AES_128_GCM_SHA256,
    VERSION_1,
    VERSION_2,
    HeaderKey,
    NotAuthentic,
    PacketKey,
    header_key,
    hmac_digest,
    label_info,
    open_packet,
)

__all__ = [
    "VERSION_1",
    "VERSION_2",
    "InitialKeys",
    "authenticate_initial",
    "derive_initial_keys",
    "initial_secret",
]

#: RFC 9001 section 5.2, RFC 9369 section 3.3.1.
_SALTS = {
    VERSION_1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    VERSION_2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}

_HASH = SHA256()
_CLIENT = label_info(b"client in", _HASH.digest_size)
_SERVER = label_info(b"server in", _HASH.digest_size)


class InitialKeys(NamedTuple):
    """What protects the Initial packets of one side (RFC 9001 section 5.2)."""

    version: int
    destination_cid: bytes
    """From which they follow: that of the client's first packet, or of its first after Retry."""
    packet: PacketKey
    header: HeaderKey


def initial_secret(version: int, destination_cid: bytes) -> bytes:
    """What both sides' keys follow from."""
    return hmac_digest(_HASH, _SALTS[version], destination_cid)


def derive_initial_keys(
    common: bytes, version: int, destination_cid: bytes, *, of_client: bool
) -> InitialKeys:
    """The keys of what the client or the server sends, from their :func:`initial_secret`."""
    secret = hmac_digest(_HASH, common, _CLIENT if of_client else _SERVER)
    return InitialKeys(
        version,
        destination_cid,
        PacketKey(AES_128_GCM_SHA256, secret, version),
        header_key(AES_128_GCM_SHA256, secret, version),
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
    if end > len(data):
        return None
    common = initial_secret(version, destination_cid)
    keys = derive_initial_keys(common, version, destination_cid, of_client=True)
    try:
        # Nothing was received before, so the number is what was sent of it (RFC 9000 section A.3).
        open_packet(data, 0, number_at, end, keys.packet, keys.header, expected=0)
    except NotAuthentic:
        return None
    return keys
