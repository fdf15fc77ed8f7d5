"""Secrets which several servers share, so that tickets and tokens of one hold at the others.

Floor 0.  For session tickets (RFC 8446 section 4.6.1) and address tokens (RFC 9000 section 8.1).
Each secret gives one AES-256-GCM key for each purpose, by HKDF-SHA256.  The first secret seals,
all of them open, so a secret can be replaced while what it has sealed is still in use.

:class:`SharedKeys` holds secrets which an application gives.  :class:`WorkerKeys` is for the
processes of one machine: it makes a new secret from the old one each 12 hours, in all processes
at the same time and without a word between them, and forgets the one before the last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "MOST_SECRETS",
    "NONCE_LENGTH",
    "ROTATION_PERIOD",
    "SECRET_SIZE",
    "TAG_LENGTH",
    "KeyChain",
    "SharedKeys",
    "WorkerKeys",
    "period_at",
]

#: Bytes of the nonce at the beginning of what is sealed, and of the tag at its end.
NONCE_LENGTH: Final = 12
TAG_LENGTH: Final = 16

#: Bytes of a secret at least.
SECRET_SIZE: Final = 32

#: Each costs a forged ticket or token one more attempt to open it.
MOST_SECRETS: Final = 4

#: Seconds for which workers seal with one secret; what it has sealed can be opened for as long
#: again.
ROTATION_PERIOD: Final = 12 * 3600.0


class _Secret:
    """One secret, and the ciphers that it gives."""

    __slots__ = ("_ciphers", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._ciphers: dict[bytes, AESGCM] = {}

    def cipher(self, purpose: bytes) -> AESGCM:
        cipher = self._ciphers.get(purpose)
        if cipher is None:
            key = HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(self._secret)
            cipher = self._ciphers[purpose] = AESGCM(key)
        return cipher


class SharedKeys:
    """Seals and opens with secrets which several servers have.

    Args:
      secrets: 1 to 4 of at least 32 bytes; the first one seals.
      clock: seconds by a clock which all these servers share.  By default that is the system's
        time: machines have no other one in common.

    Raises:
      TypeError: `secrets` is not a sequence of bytes.
      ValueError: there are too few or too many, or one is too short.
    """

    def __init__(self, secrets: Sequence[bytes], clock: Callable[[], float] = time.time) -> None:
        self._secrets = _check(secrets)
        self.clock: Final = clock
        """Tells the time for all that is sealed."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def replace(self, secrets: Sequence[bytes]) -> None:
        """Use these secrets from now on.

        Raises:
          TypeError, ValueError: as on construction; nothing has changed.
        """
        self._secrets = _check(secrets)

    def seal(self, purpose: bytes, content: bytes, nonce: bytes = b"") -> bytes:
        """The nonce, the encrypted content and its tag.

        Args:
          purpose: what it is for; separates the keys.
          content: what to encrypt.
          nonce: 12 bytes which no call has used; empty: they are random.
        """
        nonce = nonce or os.urandom(NONCE_LENGTH)
        cipher = self._in_use()[0].cipher(purpose)
        return nonce + cipher.encrypt(nonce, content, purpose)

    def open(self, purpose: bytes, sealed: bytes) -> bytes | None:
        """The content; ``None``: it was sealed with another secret, or was changed."""
        nonce, rest = sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:]
        if len(rest) < TAG_LENGTH:
            return None
        for secret in self._in_use():
            try:
                return secret.cipher(purpose).decrypt(nonce, rest, purpose)
            except InvalidTag:
                continue
        return None

    def _in_use(self) -> Sequence[_Secret]:
        return self._secrets


def _check(secrets: Sequence[bytes]) -> list[_Secret]:
    if isinstance(secrets, (str, bytes, bytearray, memoryview)):
        raise TypeError("ticket_keys must be a sequence of keys, such as [key]")
    given = list(secrets)
    if not all(isinstance(each, bytes) for each in given):
        raise TypeError("ticket_keys must hold bytes")
    if not 1 <= len(given) <= MOST_SECRETS:
        raise ValueError(f"ticket_keys must have 1 to {MOST_SECRETS} keys, not {len(given)}")
    if any(len(each) < SECRET_SIZE for each in given):
        raise ValueError(f"each of ticket_keys must have at least {SECRET_SIZE} bytes")
    return [_Secret(each) for each in given]


def period_at(now: float) -> int:
    """The number of the period in which a secret of workers is used."""
    return int(now // ROTATION_PERIOD)


@attrs.frozen
class KeyChain:
    """The secret of one period, from which those of all later periods follow, and none before."""

    secret: bytes = attrs.field(repr=False)
    period: int

    @classmethod
    def begin(cls, now: float) -> KeyChain:
        """A new chain, which begins with the period before the present one."""
        return cls(os.urandom(SECRET_SIZE), period_at(now) - 1)

    def at(self, period: int) -> KeyChain:
        """The chain from a later period on; this one, if that is not later."""
        if period <= self.period:
            return self
        secret = self.secret
        for _ in range(self.period, period):
            secret = HKDF(
                hashes.SHA256(), SECRET_SIZE, salt=None, info=b"phoenix_trio next secret"
            ).derive(secret)
        return attrs.evolve(self, secret=secret, period=period)


class WorkerKeys(SharedKeys):
    """The keys of the processes of one machine.

    Args:
      chain: begins with the period before the present one.
      clock: the same for all of them.
    """

    def __init__(self, chain: KeyChain, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__([chain.secret], clock)
        self._chain = chain
        self._set_out(period_at(clock()))

    def _set_out(self, period: int) -> None:
        """Hold the secrets of this period and of the one before."""
        self._chain = self._chain.at(period - 1)
        present = self._chain.at(self._chain.period + 1)
        self._secrets = [_Secret(present.secret), _Secret(self._chain.secret)]

    def _in_use(self) -> Sequence[_Secret]:
        period = period_at(self.clock())
        if period > self._chain.period + 1:
            self._set_out(period)
        return self._secrets
