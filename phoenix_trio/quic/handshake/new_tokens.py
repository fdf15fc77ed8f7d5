"""Tokens of NEW_TOKEN frames: they prove an address in a later connection.

Floor 0, sans-IO.  For the endpoint's admission (RFC 9000 sections 8.1.3 and 8.1.4).  A client
which comes back shows such a token in its first packet, and need not prove its address by a
Retry then.

The content of a token is sealed, so that only this endpoint can make one (and others which share
its keys), and bound to the client's IP address.  It holds for a time, and once: a host which takes
over an address could make the server send to it as often as it likes otherwise.  For that, one bit
is kept for each of the newest tokens; older ones hold no more.

With shared keys, a token of another endpoint holds once at each one that has the keys,
since they do not tell each other.  So a host can use a token as often as there are endpoints.
Each remembers the newest tokens of others that were used; older ones hold no more.

========  =====  =============================================
offset    bytes  content
========  =====  =============================================
0         12     nonce, at random
12        32     sealed with AES-256-GCM: the time at which it was made, in whole seconds (4);
                 the IP address as IPv6 (16); the endpoint that has made it (8, at random);
                 the number of the token there (4)
44        16     authentication tag
========  =====  =============================================

The tokens of Retry packets hold a connection ID of 8 bytes at least, so they are longer, which
tells the two kinds apart.
"""

from __future__ import annotations

import heapq
import os
import struct
from typing import Any, Final, NamedTuple

from ..shared_keys import NONCE_LENGTH, SECRET_SIZE, TAG_LENGTH, SharedKeys
from .retry import CLOCK_TOLERANCE, InvalidToken, packed_address

__all__ = ["NEW_TOKEN_SIZE", "ReturnToken", "ReturnTokens"]

_CONTENT: Final = struct.Struct("!I16s8sI")
_ENDPOINT_SIZE: Final = 8
_NUMBERS: Final = 1 << 32

#: Bytes of a token.
NEW_TOKEN_SIZE: Final = NONCE_LENGTH + _CONTENT.size + TAG_LENGTH

#: Tokens of which is known whether they were used: 16 KiB of bits.
_WINDOW: Final = 1 << 17

#: Used tokens of other endpoints that are remembered: about 2 MiB.
_OTHERS: Final = 1 << 14

#: Separates these tokens from all else that is sealed with the same secret.
_PURPOSE: Final = b"phoenix_trio return token 2"


class ReturnToken(NamedTuple):
    """A token after its check."""

    sealed_at: int
    endpoint: bytes
    number: int


class ReturnTokens:
    """Makes and checks the tokens of one endpoint.

    Without shared keys, the key is random for each instance: tokens of another process, or from
    before a restart, are as good as none.

    Args:
      lifetime: seconds for which a token holds.
      window: how many of the newest tokens hold, a multiple of 8.
      keys: those which other endpoints have, too; tokens tell the time by their clock then.
      others: how many used tokens of other endpoints are remembered, at least 1.
    """

    def __init__(
        self,
        lifetime: float,
        window: int = _WINDOW,
        *,
        keys: SharedKeys | None = None,
        others: int = _OTHERS,
    ) -> None:
        self._lifetime = lifetime
        self._window = window
        self._is_shared = keys is not None
        self._keys = keys or SharedKeys([os.urandom(SECRET_SIZE)])
        self._tolerance = 0.0 if keys is None else CLOCK_TOLERANCE
        self._endpoint = os.urandom(_ENDPOINT_SIZE)
        self._others: set[ReturnToken] = set()
        self._oldest_others: list[ReturnToken] = []  # the same, as a heap
        self._most_others = others
        self._others_floor = -1
        """Tokens of others hold no more if they were sealed up to this time."""
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
        if self._is_shared:
            now = self._keys.clock()
        content = _CONTENT.pack(int(now) % _NUMBERS, ip, self._endpoint, number)
        return self._keys.seal(_PURPOSE, content)

    def open(self, token: bytes, address: tuple[Any, ...], now: float) -> ReturnToken:
        """Check the token of a first packet from `address`; returns it for :meth:`use`.

        Raises:
          InvalidToken: it was not sealed with these keys, or was changed; it is for another
            address, has expired, or was used; or too many were made or used since.
        """
        if len(token) != NEW_TOKEN_SIZE:
            raise InvalidToken(f"a token of {len(token)} bytes is not one of ours")
        content = self._keys.open(_PURPOSE, bytes(token))
        if content is None:
            raise InvalidToken("the token was not sealed here, or was changed")
        sealed_at: int
        number: int
        sealed_at, ip, endpoint, number = _CONTENT.unpack(content)
        if ip != packed_address(address)[0]:
            raise InvalidToken("the token was sealed for another address")
        if self._is_shared:
            now = self._keys.clock()
        if not -self._tolerance <= int(now) - sealed_at <= self._lifetime:
            raise InvalidToken("the token has expired")
        opened = ReturnToken(sealed_at, endpoint, number)
        if endpoint != self._endpoint:
            if sealed_at <= self._others_floor:
                raise InvalidToken("too many tokens of other endpoints were used since")
            if opened in self._others:
                raise InvalidToken("the token was used before")
            return opened
        if not 1 <= (self._next - number) % _NUMBERS <= self._window:
            raise InvalidToken("too many tokens were sealed since")
        if self._is_used(number):
            raise InvalidToken("the token was used before")
        return opened

    def use(self, token: ReturnToken) -> None:
        """This token has let a client in: it holds no more."""
        if token.endpoint == self._endpoint:
            self._mark(token.number, used=True)
            return
        self._others.add(token)
        heapq.heappush(self._oldest_others, token)
        if len(self._oldest_others) > self._most_others:
            forgotten = heapq.heappop(self._oldest_others)
            self._others.discard(forgotten)
            self._others_floor = max(self._others_floor, forgotten.sealed_at)

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
