"""Address-validation tokens for Retry: they prove that a client receives at its address.

Floor 0, sans-IO.  For the endpoint's admission (RFC 9000 sections 8.1.2 to
8.1.4).  A token holds all that the server would otherwise have to remember, sealed so
that only this server can make one.  The module knows nothing of packets.
"""

from __future__ import annotations

import ipaddress
import math
import os
import struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["NONCE_LENGTH", "AddressTokens", "InvalidToken", "packed_address", "unseal"]

#: RFC 9000 section 17.2: connection IDs have at most 20 bytes in QUIC versions 1 and 2.
_LONGEST_CONNECTION_ID = 20

#: Bytes of the nonce at the beginning of a token.
NONCE_LENGTH = 12
_TAG_LENGTH = 16

#: When it was sealed; IP address as IPv6; port; length of the original destination
#: connection ID.  That ID and the Retry packet's source connection ID follow.
_HEAD = struct.Struct("!d16sHB")

_SHORTEST_TOKEN = NONCE_LENGTH + _HEAD.size + _TAG_LENGTH
_LONGEST_TOKEN = _SHORTEST_TOKEN + 2 * _LONGEST_CONNECTION_ID

#: Separates these tokens from anything else which may ever be sealed with such a key.
_ASSOCIATED_DATA = b"phoenix_trio retry token 1"


class InvalidToken(ValueError):
    """A token which proves nothing; the text says why.

    RFC 9000 section 8.1.3: the server goes on as if there had been none.
    """


def packed_address(address: tuple[Any, ...]) -> tuple[bytes, int]:
    """IP address as 16 bytes, and port; IPv4 and IPv4-mapped IPv6 addresses come out equal."""
    host, port = address[0], address[1]
    # A scope ("%eth0") names an interface of ours, not the client.
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return b"\x00" * 10 + b"\xff\xff" + ip.packed, port
    return ip.packed, port


def unseal(cipher: AESGCM, token: bytes, associated_data: bytes) -> bytes:
    """The content of a token, which begins with its nonce.

    Raises:
      InvalidToken: it was not sealed with this key and `associated_data`, or was changed.
    """
    nonce, sealed = bytes(token[:NONCE_LENGTH]), bytes(token[NONCE_LENGTH:])
    try:
        return cipher.decrypt(nonce, sealed, associated_data)
    except InvalidTag:
        raise InvalidToken("the token was not sealed here, or was changed") from None


class AddressTokens:
    """Seals and opens the tokens of Retry packets.

    The key is random for each instance, so tokens of another process, or from
    before a restart, are invalid: their clients are asked once more.

    Args:
      lifetime: seconds for which a token is valid, more than 0; default 10.  RFC
        9000 section 8.1.3 wants it short: a client answers a Retry at once.

    Raises:
      ValueError: `lifetime` is not a positive finite number.
    """

    def __init__(self, lifetime: float = 10.0) -> None:
        if not 0 < lifetime < math.inf:
            raise ValueError(f"lifetime must be a positive number of seconds, not {lifetime!r}")
        self._lifetime = lifetime
        self._cipher = AESGCM(AESGCM.generate_key(bit_length=256))
        # A counter cannot repeat, unlike random nonces under a long-lived key; its
        # random start hides how many tokens were sealed.
        self._next_nonce = int.from_bytes(os.urandom(NONCE_LENGTH), "big")

    def __repr__(self) -> str:
        return f"AddressTokens(lifetime={self._lifetime:g})"

    def seal(
        self,
        address: tuple[Any, ...],
        original_destination_cid: bytes,
        retry_source_cid: bytes,
        now: float,
    ) -> bytes:
        """A token for a client at `address`.

        Args:
          address: IP address and port, as the socket module gives them; what
            follows them (flow information, scope) is ignored.
          original_destination_cid: the destination connection ID of the
            client's first Initial packet, up to 20 bytes.
          retry_source_cid: the source connection ID of the Retry packet, up to
            20 bytes; the client has to address its next packets to it.
          now: monotonic time in seconds, the same clock as for :meth:`open`.

        Raises:
          ValueError: `address` has no numeric IP address, or an ID is too long.
        """
        for name, connection_id in (
            ("original_destination_cid", original_destination_cid),
            ("retry_source_cid", retry_source_cid),
        ):
            if len(connection_id) > _LONGEST_CONNECTION_ID:
                raise ValueError(
                    f"{name} must have at most {_LONGEST_CONNECTION_ID} bytes, "
                    f"not {len(connection_id)}"
                )
        ip, port = packed_address(address)
        nonce = self._next_nonce.to_bytes(NONCE_LENGTH, "big")
        self._next_nonce = (self._next_nonce + 1) % (1 << (8 * NONCE_LENGTH))
        head = _HEAD.pack(now, ip, port, len(original_destination_cid))
        plaintext = head + original_destination_cid + retry_source_cid
        return nonce + self._cipher.encrypt(nonce, plaintext, _ASSOCIATED_DATA)

    def open(
        self, token: bytes, address: tuple[Any, ...], destination_cid: bytes, now: float
    ) -> bytes:
        """Check the token of an Initial packet; returns the original destination connection ID.

        The same token can be opened again while it lives, since a client's
        Initial packets repeat it (RFC 9000 section 17.2.5.2).

        Args:
          token: what the client sent; any bytes at all.
          address: where the packet came from, see :meth:`seal`.
          destination_cid: the packet's destination connection ID.
          now: monotonic time in seconds.

        Raises:
          InvalidToken: it was not sealed by this instance, or was changed; it
            is for another address or connection ID; or it has expired.
        """
        if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN:
            raise InvalidToken(f"a token of {len(token)} bytes is not one of ours")
        plaintext = unseal(self._cipher, token, _ASSOCIATED_DATA)
        # Authentic from here on, so it has the shape which `seal` gave it.
        sealed_at, ip, port, length = _HEAD.unpack_from(plaintext)
        original_destination_cid = plaintext[_HEAD.size : _HEAD.size + length]
        retry_source_cid = plaintext[_HEAD.size + length :]
        if (ip, port) != packed_address(address):
            raise InvalidToken("the token was sealed for another address")
        if retry_source_cid != destination_cid:
            raise InvalidToken("the token belongs to another destination connection ID")
        if not sealed_at <= now <= sealed_at + self._lifetime:
            raise InvalidToken(
                f"the token has expired: it was sealed {now - sealed_at:.1f} s ago, "
                f"and lives for {self._lifetime:g} s"
            )
        return original_destination_cid
