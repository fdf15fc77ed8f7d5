"""Tokens of NEW_TOKEN frames: they prove an address in a later connection.

Floor 0, sans-IO.  For the endpoint's admission (RFC 9000 sections 8.1.3 and 8.1.4).  A client
which comes back shows such a token in its first packet, and need not prove its address by a
Retry then.

The content of a token is sealed, so that only this endpoint can make one, and bound to the
client's IP address.  It holds for a time, and once: a host which takes over an address could
make the server send to it as often as it likes otherwise.  For that, one bit is kept for
each of the newest tokens; older ones hold no more.

========  =====  =============================================
offset    bytes  content
========  =====  =============================================
0         12     nonce, at random
12        24     sealed with AES-256-GCM: the time at which it was made, in whole seconds (4);
                 the IP address as IPv6 (16); the number of the token (4)
36        16     authentication tag
========  =====  =============================================

The tokens of Retry packets are longer, which tells the two kinds apart.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .retry import NONCE_LENGTH, InvalidToken, packed_address, unseal

__all__ = ["NEW_TOKEN_SIZE", "ReturnTokens"]

_TAG: Final = 16
_CONTENT: Final = struct.Struct("!I16sI")
_NUMBERS: Final = 1 << 32

#: Bytes of a token.
NEW_TOKEN_SIZE: Final = NONCE_LENGTH + _CONTENT.size + _TAG

#: Tokens of which is known whether they were used: 16 KiB of bits.
_WINDOW: Final = 1 << 17

#: Separates these tokens from anything else which may ever be sealed with such a key.
_ASSOCIATED_DATA: Final = b"phoenix_trio return token 1"


class ReturnTokens:
    """Makes and checks the tokens of one endpoint.

    The key is random for each instance: tokens of another process, or from before a restart,
    are as good as none.

    Args:
      lifetime: seconds for which a token holds.
      window: how many of the newest tokens hold, a multiple of 8.
    """

    def __init__(self, lifetime: float, window: int = _WINDOW) -> None:
        self._lifetime = lifetime
        self._window = window
        self._cipher = AESGCM(AESGCM.generate_key(bit_length=256))
        self._next = 0
        self._used: bytearray | None = None  # made with the first token

    def __repr__(self) -> str:
        return f"<ReturnTokens for {self._lifetime:g} s>"

    def seal(self, address: tuple[Any, ...], now: float) -> bytes:
        """A token for a client which is known to receive at `address`, on whichever port.

        Raises:
          ValueError: `address` has no numeric IP address.
        """
        ip, _ = packed_address(address)
        number = self._next
        self._next = (number + 1) % _NUMBERS
        self._mark(number, used=False)
        nonce = os.urandom(NONCE_LENGTH)
        content = _CONTENT.pack(int(now) % _NUMBERS, ip, number)
        return nonce + self._cipher.encrypt(nonce, content, _ASSOCIATED_DATA)

    def open(self, token: bytes, address: tuple[Any, ...], now: float) -> int:
        """Check the token of a first packet from `address`; returns its number for :meth:`use`.

        Raises:
          InvalidToken: it was not sealed by this instance, or was changed; it is for another
            address, has expired, or was used; or too many were made since.
        """
        if len(token) != NEW_TOKEN_SIZE:
            raise InvalidToken(f"a token of {len(token)} bytes is not one of ours")
        content = unseal(self._cipher, token, _ASSOCIATED_DATA)
        sealed_at: int
        number: int
        sealed_at, ip, number = _CONTENT.unpack(content)
        if ip != packed_address(address)[0]:
            raise InvalidToken("the token was sealed for another address")
        if not 0 <= int(now) - sealed_at <= self._lifetime:
            raise InvalidToken("the token has expired")
        if not 1 <= (self._next - number) % _NUMBERS <= self._window:
            raise InvalidToken("too many tokens were sealed since")
        if self._is_used(number):
            raise InvalidToken("the token was used before")
        return number

    def use(self, number: int) -> None:
        """The token of this number has let a client in: it holds no more."""
        self._mark(number, used=True)

    def _mark(self, number: int, *, used: bool) -> None:
        if self._used is None:
            self._used = bytearray(self._window // 8)
        at, bit = divmod(number % self._window, 8)
        if used:
            self._used[at] |= 1 << bit
        else:
            self._used[at] &= ~(1 << bit)

    def _is_used(self, number: int) -> bool:
        at, bit = divmod(number % self._window, 8)
        return self._used is not None and bool(self._used[at] >> bit & 1)
