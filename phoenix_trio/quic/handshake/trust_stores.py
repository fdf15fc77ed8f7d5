"""Stores of trusted authorities, in the form in which OpenSSL verifies chains.

Floor 0.  For :mod:`~phoenix_trio.quic.handshake.tls`.
"""

from __future__ import annotations

import glob
import logging
import os
import ssl
from collections.abc import Sequence
from functools import lru_cache

import certifi
from cryptography import x509
from OpenSSL import crypto

__all__ = ["store_of", "system_store"]

logger: logging.Logger = logging.getLogger("phoenix_trio.quic")


def store_of(field: str, certificates: Sequence[x509.Certificate]) -> crypto.X509Store:
    """OpenSSL's parsed form of trusted certificates: made once, used by every handshake."""
    store = crypto.X509Store()
    # A certificate which the user names is trusted by itself, also an intermediate one or a leaf.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for certificate in certificates:
        try:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        except crypto.Error as exc:
            raise ValueError(f"{field}: OpenSSL cannot use a certificate: {exc}") from exc
    return store


@lru_cache(maxsize=4)
def _system_store_at(cafile: str | None, version: int, capath: str | None) -> crypto.X509Store:
    """`version` makes a changed file a different key, so that updated roots are picked up."""
    store = crypto.X509Store()
    store.load_locations(cafile, capath)
    return store


def system_store() -> crypto.X509Store:
    """The authorities which the system trusts; certifi's where it has none.

    As in :mod:`ssl`, the environment's SSL_CERT_FILE and SSL_CERT_DIR count.
    """
    paths = ssl.get_default_verify_paths()
    # None where the file or directory does not exist, which typeshed does not know.
    cafile: str | None = paths.cafile
    capath: str | None = paths.capath
    # Minimal containers have an empty directory, with which no server would be trusted.
    if capath is not None and not glob.glob(
        os.path.join(glob.escape(capath), "[0-9a-f]" * 8 + ".[0-9]*")
    ):
        capath = None
    if cafile is not None or capath is not None:
        try:
            return _system_store_at(cafile, _version(cafile), capath)
        except crypto.Error:
            # An empty or damaged file is as good as none.
            logger.warning("the system's certificates in %s cannot be read", cafile or capath)
    return _system_store_at(certifi.where(), _version(certifi.where()), None)


def _version(path: str | None) -> int:
    return 0 if path is None else os.stat(path).st_mtime_ns
