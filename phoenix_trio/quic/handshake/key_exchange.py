"""Key exchange in one group (RFC 8446 section 4.2.8): X25519, X448, P-256, P-384.

Floor 1, sans-IO.
"""

from __future__ import annotations

from typing import Final, Protocol

from aioquic.tls import Group
from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["KeyExchange", "begin_exchange"]


class KeyExchange(Protocol):
    """This side's private key."""

    group: int
    public: bytes
    """What the peer is sent."""

    def finish(self, public: bytes) -> bytes:
        """The shared secret.

        Raises:
          ValueError: the peer's public key is no good.
        """


class _X25519:
    __slots__ = ("_key", "group", "public")

    def __init__(self, group: int) -> None:
        self.group = group
        self._key = x25519.X25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def finish(self, public: bytes) -> bytes:
        return self._key.exchange(x25519.X25519PublicKey.from_public_bytes(public))


class _X448:
    __slots__ = ("_key", "group", "public")

    def __init__(self, group: int) -> None:
        self.group = group
        self._key = x448.X448PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def finish(self, public: bytes) -> bytes:
        return self._key.exchange(x448.X448PublicKey.from_public_bytes(public))


_CURVES: Final[dict[int, ec.EllipticCurve]] = {
    Group.SECP256R1: ec.SECP256R1(),
    Group.SECP384R1: ec.SECP384R1(),
}


class _NistCurve:
    __slots__ = ("_key", "group", "public")

    def __init__(self, group: int) -> None:
        self.group = group
        self._key = ec.generate_private_key(_CURVES[group])
        self.public = self._key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )

    def finish(self, public: bytes) -> bytes:
        if public[:1] != b"\x04":
            raise ValueError("not an uncompressed point (RFC 8446 section 4.2.8.2)")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[self.group], public)
        return self._key.exchange(ec.ECDH(), peer)


def begin_exchange(group: int) -> KeyExchange:
    """A new key in this group."""
    if group == Group.X25519:
        return _X25519(group)
    if group == Group.X448:
        return _X448(group)
    return _NistCurve(group)
