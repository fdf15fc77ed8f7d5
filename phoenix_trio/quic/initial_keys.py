"""Holds the keys of a connection's Initial packets, for the versions that are in use.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  aioquic 1.7.2
(``connection.py`` 1865-1871) derives the keys of both sides for all versions that it
supports; nearly every connection uses one of them.  Here the keys of a version are
derived when they are asked for, and those which admission has derived are taken over.
"""

from __future__ import annotations

from collections.abc import Container

from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.crypto import INITIAL_CIPHER_SUITE, CryptoContext, CryptoPair

from .initial_protection import InitialKeys, derive_initial_keys, initial_secret

__all__ = ["InitialPairs"]


class InitialPairs(dict[int, CryptoPair]):
    """The keys by version, in the place of aioquic's ``_cryptos_initial``.

    Args:
      versions: for which there are keys.
      destination_cid: that of the client's first packet, or of its first after Retry.
      is_client: whether this side is the client.
      known: the client's keys, if they were derived already.
    """

    def __init__(
        self,
        versions: Container[int],
        destination_cid: bytes,
        *,
        is_client: bool,
        known: InitialKeys | None = None,
    ) -> None:
        super().__init__()
        self._versions = versions
        self._destination_cid = destination_cid
        self._is_client = is_client
        self._known = known

    def __missing__(self, version: int) -> CryptoPair:
        if version not in self._versions:
            raise KeyError(version)
        pair = CryptoPair()
        # Initial keys are discarded together (RFC 9001 section 4.9.1): then there are none
        # for other versions, either.
        if all(other.send.is_valid() for other in self.values()):
            common = initial_secret(version, self._destination_cid)
            for context, of_client in (
                (pair.recv, not self._is_client),
                (pair.send, self._is_client),
            ):
                _install(context, self._keys(common, version, of_client))
        self[version] = pair
        return pair

    def _keys(self, common: bytes, version: int, of_client: bool) -> InitialKeys:
        cid, known = self._destination_cid, self._known
        if (
            of_client
            and known is not None
            and known.version == version
            and known.destination_cid == cid
        ):
            return known
        return derive_initial_keys(common, version, cid, of_client=of_client)


def _install(context: CryptoContext, keys: InitialKeys) -> None:
    """What ``CryptoContext.setup`` does (crypto.py 126-144)."""
    context.aead = AEAD(b"aes-128-gcm", keys.key, keys.iv)
    context.hp = HeaderProtection(b"aes-128-ecb", keys.header_key)
    context.cipher_suite = INITIAL_CIPHER_SUITE
    context.secret = keys.secret
    context.version = keys.version
