"""Key exchange in one group (RFC 8446 section 4.2.8): X25519MLKEM768, X25519, X448, P-256, P-384.

Floor 1, sans-IO.  X25519MLKEM768 (RFC 10024) joins X25519 with ML-KEM-768
(FIPS 203): recorded connections stay secret unless both are broken, also from quantum computers.
It takes a ``cryptography`` package whose OpenSSL has ML-KEM; others do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from aioquic.tls import Group
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = [
    "GROUPS",
    "X25519MLKEM768",
    "KeyExchange",
    "answer_exchange",
    "begin_exchange",
    "begin_offer",
    "group_name",
]

#: The number of the group (RFC 10024).
X25519MLKEM768: Final = 0x11EC

#: Sizes of ML-KEM-768 (FIPS 203 section 8).
_ENCAPSULATION_KEY: Final = 1184
_CIPHERTEXT: Final = 1088

_X25519_KEY: Final = 32


class KeyExchange(Protocol):
    """This side's private key."""

    group: int
    public: bytes
    """The key share which the peer is sent."""

    def finish(self, public: bytes) -> bytes:
        """The shared secret.

        Raises:
          ValueError: the peer's public key is no good.
        """


class _X25519:
    __slots__ = ("_key", "group", "public")

    def __init__(self) -> None:
        self.group: int = Group.X25519
        self._key = x25519.X25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def finish(self, public: bytes) -> bytes:
        return self._key.exchange(x25519.X25519PublicKey.from_public_bytes(public))


class _X25519MLKEM768:
    """A client's; the server's is in :func:`answer_exchange`, since the roles differ.

    Args:
      curve: the X25519 half, which a share of X25519 alone may have, too.
    """

    __slots__ = ("_curve", "_kem", "group", "public")

    def __init__(self, curve: _X25519) -> None:
        self.group: int = X25519MLKEM768
        self._curve = curve
        self._kem = mlkem.MLKEM768PrivateKey.generate()
        self.public = self._kem.public_key().public_bytes_raw() + curve.public

    def finish(self, public: bytes) -> bytes:
        _check_size(public, _CIPHERTEXT + _X25519_KEY)
        secret = self._kem.decapsulate(public[:_CIPHERTEXT])
        return secret + self._curve.finish(public[_CIPHERTEXT:])


def _check_size(public: bytes, size: int) -> None:
    if len(public) != size:
        raise ValueError(f"a key share of {len(public)} bytes, which must have {size}")


class _X448:
    __slots__ = ("_key", "group", "public")

    def __init__(self) -> None:
        self.group: int = Group.X448
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
    """A client's new key in this group.

    Raises:
      UnsupportedAlgorithm: it is not among :data:`GROUPS`.
    """
    if group == X25519MLKEM768:
        return _X25519MLKEM768(_X25519())
    if group == Group.X25519:
        return _X25519()
    if group == Group.X448:
        return _X448()
    return _NistCurve(group)


def begin_offer(groups: Sequence[int]) -> list[KeyExchange]:
    """The keys of a client's first message, in the order of its groups.

    One in the preferred group.  Many servers do not know X25519MLKEM768 yet, so where
    that is preferred, there is a second one in the next group: asking for it would
    cost a round trip.  X25519 has the same key in both (draft-ietf-tls-hybrid-design
    section 3.2).
    """
    if groups[0] != X25519MLKEM768:
        return [begin_exchange(groups[0])]
    curve = _X25519()
    offer: list[KeyExchange] = [_X25519MLKEM768(curve)]
    if len(groups) > 1:
        offer.append(curve if groups[1] == Group.X25519 else begin_exchange(groups[1]))
    return offer


def answer_exchange(group: int, public: bytes) -> tuple[bytes, bytes]:
    """A server's part: its public key, and the shared secret.

    Args:
      group: the one chosen.
      public: the client's public key in it.

    Raises:
      ValueError: the client's public key is no good.
    """
    if group != X25519MLKEM768:
        exchange = begin_exchange(group)
        return exchange.public, exchange.finish(public)
    _check_size(public, _ENCAPSULATION_KEY + _X25519_KEY)
    kem = mlkem.MLKEM768PublicKey.from_public_bytes(public[:_ENCAPSULATION_KEY])
    secret, ciphertext = kem.encapsulate()
    curve = _X25519()
    return ciphertext + curve.public, secret + curve.finish(public[_ENCAPSULATION_KEY:])


def _works(group: int) -> bool:
    """Whether the installed ``cryptography`` package, and its OpenSSL, have it."""
    try:
        begin_exchange(group)
    except UnsupportedAlgorithm:
        return False
    return True


#: The groups known on this machine, by their names, the preferred one first.
GROUPS: Final[dict[str, int]] = {
    name: group
    for name, group in (
        ("x25519mlkem768", X25519MLKEM768),
        ("x25519", Group.X25519),
        ("secp256r1", Group.SECP256R1),
        ("secp384r1", Group.SECP384R1),
        ("x448", Group.X448),
    )
    if _works(group)
}

_NAMES: Final = {group: name for name, group in GROUPS.items()}


def group_name(group: int) -> str | None:
    """The name of one of :data:`GROUPS`; ``None``: it is none of them."""
    return _NAMES.get(group)
