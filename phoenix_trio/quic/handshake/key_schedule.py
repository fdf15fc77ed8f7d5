"""The key schedule of TLS 1.3 (RFC 8446 section 7.1): which secret follows from which.

Floor 1, sans-IO.  It takes the place of ``aioquic.tls.KeySchedule`` and offers what
aioquic's state machine uses of that.  What is the same in every handshake without a
pre-shared key is computed once, and so is the hash of the messages for secrets which
follow from the same ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

from aioquic import tls
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm

from ..wire.protection import hmac_digest

__all__ = ["KeySchedule", "message_hash"]

#: RFC 8446 section 4.4.3.
_SIGNATURE_PADDING: Final = b" " * 64

#: The type of the message which stands for a ClientHello that was answered by a
#: HelloRetryRequest (RFC 8446 section 4.4.1).
_MESSAGE_HASH: Final = 254


class _Suite:
    """What differs between hash functions."""

    __slots__ = ("algorithm", "early", "early_derived", "empty", "labels", "name", "size")

    def __init__(self, name: str, algorithm: HashAlgorithm) -> None:
        self.name = name
        self.algorithm = algorithm
        self.size = algorithm.digest_size
        self.labels: dict[bytes, bytes] = {}
        self.empty = hashlib.new(name).digest()
        """The hash of no message."""
        zeros = bytes(self.size)
        self.early = hmac_digest(algorithm, zeros, zeros)
        """The early secret without a pre-shared key, and what is derived from it."""
        self.early_derived = self.expand(self.early, b"derived", self.empty)

    def expand(self, secret: bytes, label: bytes, context: bytes) -> bytes:
        """HKDF-Expand-Label (RFC 8446 section 7.1) for as many bytes as a hash has."""
        head = self.labels.get(label)
        if head is None:
            full = b"tls13 " + label
            head = self.labels[label] = self.size.to_bytes(2, "big") + bytes((len(full),)) + full
        return hmac_digest(self.algorithm, secret, b"%b%c%b\x01" % (head, len(context), context))


_SHA256: Final = _Suite("sha256", SHA256())
_SHA384: Final = _Suite("sha384", SHA384())
_SUITES: Final = {
    tls.CipherSuite.AES_128_GCM_SHA256: _SHA256,
    tls.CipherSuite.AES_256_GCM_SHA384: _SHA384,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256: _SHA256,
}


def message_hash(cipher_suite: tls.CipherSuite, hello: bytes) -> bytes:
    """The message which stands for `hello` after a HelloRetryRequest (RFC 8446 section 4.4.1)."""
    digest = hashlib.new(_SUITES[cipher_suite].name, hello).digest()
    return bytes((_MESSAGE_HASH, 0, 0, len(digest))) + digest


class KeySchedule(tls.KeySchedule):
    """The secrets of one handshake.

    Args:
      cipher_suite: the negotiated one, or that of a session ticket.
    """

    # (Nothing of the base class is used, except as the type of an attribute of aioquic's.)
    def __init__(self, cipher_suite: tls.CipherSuite) -> None:
        self._suite = suite = _SUITES[cipher_suite]
        self._messages = hashlib.new(suite.name)
        self._digest = suite.empty
        self.algorithm: HashAlgorithm = suite.algorithm
        self.cipher_suite = cipher_suite
        self.generation: int = 0
        self.secret: bytes = bytes(suite.size)

    def _transcript(self) -> bytes:
        digest = self._digest
        if not digest:
            digest = self._digest = self._messages.digest()
        return digest

    def update_hash(self, data: bytes) -> None:
        """A message was sent or received."""
        self._messages.update(data)
        self._digest = b""

    def extract(self, key_material: bytes | None = None) -> None:
        """Go on to the next of the early, the handshake and the main secret."""
        suite = self._suite
        if self.generation == 0:
            salt = bytes(suite.size)
            if key_material is None:
                self.generation, self.secret = 1, suite.early
                return
        elif self.secret is suite.early:
            salt = suite.early_derived
        else:
            salt = suite.expand(self.secret, b"derived", suite.empty)
        self.generation += 1
        self.secret = hmac_digest(suite.algorithm, salt, key_material or bytes(suite.size))

    def derive_secret(self, label: bytes) -> bytes:
        """The secret with this name, which follows from the messages so far."""
        return self._suite.expand(self.secret, label, self._transcript())

    def finished_verify_data(self, secret: bytes) -> bytes:
        """The contents of a Finished message (RFC 8446 section 4.4.4)."""
        suite = self._suite
        key = suite.expand(secret, b"finished", b"")
        return hmac_digest(suite.algorithm, key, self._transcript())

    def certificate_verify_data(self, context_string: bytes) -> bytes:
        """The bytes that a CertificateVerify message signs (RFC 8446 section 4.4.3)."""
        return _SIGNATURE_PADDING + context_string + b"\0" + self._transcript()
