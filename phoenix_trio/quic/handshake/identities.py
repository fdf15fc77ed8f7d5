"""The identity which one side of a handshake shows: certificate, chain and private key.

Floor 0.  For :mod:`~phoenix_trio.quic.handshake.tls`, which makes them, and for handshakes.
"""

from __future__ import annotations

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import crypto

from .pem import PrivateKey
from .tls_messages import build_certificate
from .verdicts import Verdicts

__all__ = ["Identity", "ServerIdentity"]


@attrs.frozen(eq=False)
class Identity:
    """A certificate, what chains it to an authority, and its private key; checked to fit."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """The authorities' certificates sent along, without the certificate itself."""
    private_key: PrivateKey = attrs.field(repr=False)
    certificate_message: bytes = attrs.field(init=False, repr=False)
    """The TLS message which shows the certificates, for a server."""

    @certificate_message.default
    def _build_certificate_message(self) -> bytes:
        chain = [self.certificate, *self.chain]
        return build_certificate([each.public_bytes(serialization.Encoding.DER) for each in chain])


@attrs.frozen(eq=False)
class ServerIdentity(Identity):
    """The facts that a new connection takes from a :class:`ServerTLS`; they never change."""

    client_store: crypto.X509Store | None = attrs.field(default=None, repr=False)
    """The authorities of client certificates; ``None``: no certificates are asked for."""
    verdicts: Verdicts = attrs.field(init=False, factory=Verdicts, repr=False)
    """About chains which `client_store` has verified."""
