"""Address-validation tokens for Retry: they prove that a client receives at its address.

Floor 0, sans-IO.  For the endpoint's admission (RFC 9000 sections 8.1.2 to
8.1.4).  A token holds all that the server would otherwise have to remember, sealed so
that only this server can make one, and those which share its keys.  The module knows nothing of
packets.
"""

from __future__ import annotations

import ipaddress
import math
import os
import struct
from typing import Any

from ..shared_keys import NONCE_LENGTH, SECRET_SIZE, TAG_LENGTH, SharedKeys

__all__ = ["CLOCK_TOLERANCE", "AddressTokens", "InvalidToken", "packed_address"]

#: RFC 9000 section 17.2: connection IDs have at most 20 bytes in QUIC versions 1 and 2.
_LONGEST_CONNECTION_ID = 20

#: Seconds by which the clocks of servers that share keys may differ.
CLOCK_TOLERANCE = 30.0

#: When it was sealed; IP address as IPv6; port; length of the original destination
#: connection ID.  That ID and the Retry packet's source connection ID follow.
_HEAD = struct.Struct("!d16sHB")

_SHORTEST_TOKEN = NONCE_LENGTH + _HEAD.size + TAG_LENGTH
_LONGEST_TOKEN = _SHORTEST_TOKEN + 2 * _LONGEST_CONNECTION_ID

#: Separates these tokens from all else that is sealed with the same secret.
_PURPOSE = b"phoenix_trio retry token 1"


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


class AddressTokens:
    """Seals and opens the tokens of Retry packets.

    Without shared keys, the key is random for each instance, so tokens of another
    process, or from before a restart, are invalid: their clients are asked once more.

    Args:
      lifetime: seconds for which a token is valid, more than 0; default 10.  RFC
        9000 section 8.1.3 wants it short: a client answers a Retry at once.
      keys: those which other servers have, too; tokens tell the time by their clock then,
        and hold for 30 seconds longer.

    Raises:
      ValueError: `lifetime` is not a positive finite number.
    """

    def __init__(self, lifetime: float = 10.0, keys: SharedKeys | None = None) -> None:
        if not 0 < lifetime < math.inf:
            raise ValueError(f"lifetime must be a positive number of seconds, not {lifetime!r}")
        self._lifetime = lifetime
        self._is_shared = keys is not None
        self._keys = keys or SharedKeys([os.urandom(SECRET_SIZE)])
        self._tolerance = 0.0 if keys is None else CLOCK_TOLERANCE
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
          now: monotonic time in seconds, the same clock as for :meth:`open`; with shared
            keys it means nothing.

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
        if self._is_shared:
            now = self._keys.clock()
        head = _HEAD.pack(now, ip, port, len(original_destination_cid))
        return self._keys.seal(_PURPOSE, head + original_destination_cid + retry_source_cid, nonce)

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
          InvalidToken: it was not sealed with these keys, or was changed; it
            is for another address or connection ID; or it has expired.
        """
        if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN:
            raise InvalidToken(f"a token of {len(token)} bytes is not one of ours")
        plaintext = self._keys.open(_PURPOSE, bytes(token))
        if plaintext is None:
            raise InvalidToken("the token was not sealed here, or was changed")
        # Authentic from here on, so it has the shape which `seal` gave it.
        sealed_at, ip, port, length = _HEAD.unpack_from(plaintext)
        original_destination_cid = plaintext[_HEAD.size : _HEAD.size + length]
        retry_source_cid = plaintext[_HEAD.size + length :]
        if (ip, port) != packed_address(address):
            raise InvalidToken("the token was sealed for another address")
        if retry_source_cid != destination_cid:
            raise InvalidToken("the token belongs to another destination connection ID")
        if self._is_shared:
            now = self._keys.clock()
        if not -self._tolerance <= now - sealed_at <= self._lifetime + self._tolerance:
            raise InvalidToken(
                f"the token has expired: it was sealed {now - sealed_at:.1f} s ago, "
                f"and lives for {self._lifetime:g} s"
            )
        return original_destination_cid
