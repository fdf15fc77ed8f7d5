"""Certificates and private keys from files or PEM, checked to fit each other.

Floor 0.  For :mod:`~phoenix_trio.quic.handshake.tls`.  Errors name the argument and the file, never
the content.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

__all__ = [
    "PEMSource",
    "PrivateKey",
    "check_pair",
    "load_certificates",
    "load_private_key",
    "name_of",
    "password_bytes",
]

#: A path, or PEM itself: bytes, or text which holds "-----BEGIN".
PEMSource: TypeAlias = str | os.PathLike[str] | bytes

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

_PEM_MARK = "-----BEGIN"

#: A whole handshake flight is built in a buffer of 16 KiB, which must not overflow in the
#: middle of a handshake.
_LARGEST_CHAIN = 12 * 1024


def name_of(source: PEMSource) -> str:
    """How texts name where something came from; never its content."""
    if isinstance(source, bytes) or (isinstance(source, str) and _PEM_MARK in source):
        return "<PEM>"
    return repr(os.fspath(source))


def _read(field: str, source: PEMSource) -> bytes:
    """The bytes of a path or of PEM.

    Raises:
      OSError: the file cannot be read; its text names the field and the file.
      TypeError: it is neither path nor PEM.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str) and _PEM_MARK in source:
        return source.encode()
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"{field} must be a path or PEM, not {type(source).__name__}{_as_pem(source)}"
        )
    path = os.fspath(source)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        # OSError() picks the subclass by the number, as open() does.
        raise OSError(exc.errno, f"{field}: {exc.strerror}", path) from exc
    except ValueError as exc:  # a NUL in the path
        raise ValueError(f"{field}: {path!r} is not a path: {exc}") from exc


def _as_pem(source: object) -> str:
    """How to get PEM from the objects of other libraries, for a text."""
    kind = type(source).__name__
    if isinstance(source, x509.Certificate):
        return ": pass certificate.public_bytes(Encoding.PEM)"
    if hasattr(source, "private_bytes"):
        return ": pass key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())"
    if kind == "Blob":  # of trustme
        return ": pass blob.bytes()"
    if kind == "SSLContext":
        return ": an ssl.SSLContext cannot speak QUIC; pass the files it was made from"
    if isinstance(source, (list, tuple)):
        return ": a chain goes into one file, or one piece of PEM, the server's certificate first"
    return ""


def _what_it_is(field: str, data: bytes, source: PEMSource) -> str:
    """What was given in place of PEM, and what to do, for a text."""
    swapped = ": are the two arguments swapped?" if field in ("certificate", "private_key") else ""
    if b"PRIVATE KEY-----" in data:
        return f", but a private key{swapped}"
    if b"-----BEGIN CERTIFICATE-----" in data:
        return f", but a certificate{swapped}"
    if data.startswith(b"\x30"):
        return ": it seems to be DER, which `openssl x509 -inform DER` turns into PEM"
    if isinstance(source, bytes) and len(data) < 1024:
        return ": bytes are taken for PEM itself; pass a path as a string or pathlib.Path"
    return ""


def load_certificates(field: str, source: PEMSource) -> tuple[x509.Certificate, ...]:
    """The certificates of a file or PEM, one at least, in their order.

    Raises:
      OSError: the file cannot be read.
      TypeError: `source` is neither path nor PEM.
      ValueError: there is no certificate which can be read.
    """
    data = _read(field, source)
    if b"-----BEGIN" not in data:
        raise ValueError(
            f"{field}: {name_of(source)} holds no certificate in PEM form"
            f"{_what_it_is(field, data, source)}"
        )
    if b"-----BEGIN CERTIFICATE-----" not in data and b"PRIVATE KEY-----" in data:
        raise ValueError(
            f"{field}: {name_of(source)} holds no certificate{_what_it_is(field, data, source)}"
        )
    try:
        certificates = tuple(x509.load_pem_x509_certificates(data))
    except (ValueError, x509.InvalidVersion) as exc:
        raise ValueError(
            f"{field}: {name_of(source)} holds no certificate which can be read: {exc}"
        ) from exc
    if not certificates:
        raise ValueError(f"{field}: {name_of(source)} holds no certificate")
    return certificates


def load_private_key(field: str, source: PEMSource, password: bytes | None) -> PrivateKey:
    """The private key of a file or PEM.

    Raises:
      OSError: the file cannot be read.
      TypeError: `source` is neither path nor PEM.
      ValueError: there is no key which can be read with this password, or it is of a kind
        which cannot sign a handshake.
    """
    data = _read(field, source)
    where = f"{field}: {name_of(source)}"
    if b"PRIVATE KEY-----" not in data:
        raise ValueError(f"{where} holds no private key{_what_it_is(field, data, source)}")
    try:
        key = serialization.load_pem_private_key(data, password=password)
    except TypeError:
        # cryptography's way to tell the two cases apart.
        if password is None:
            raise ValueError(f"{where} is encrypted; give its password") from None
        raise ValueError(f"{where} is not encrypted, but a password was given") from None
    except (ValueError, UnsupportedAlgorithm) as exc:
        wrong = " with this password" if password is not None else ""
        raise ValueError(f"{where} holds no private key which can be read{wrong}: {exc}") from exc
    if isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        # The curves with which TLS can sign a handshake here.
        if key.curve.name in ("secp256r1", "secp384r1"):
            return key
        raise ValueError(
            f"{where} is on the curve {key.curve.name}; use P-256, P-384, Ed25519 or RSA"
        )
    raise ValueError(
        f"{where} is a key of an unsupported kind; use P-256, P-384, Ed25519, Ed448 or RSA"
    )


def _public_bytes(key: object) -> bytes:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined] # every kind of public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _certificate_public_bytes(certificate: x509.Certificate) -> bytes | None:
    try:
        return _public_bytes(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return None  # a key of a kind which we cannot own


def check_pair(
    certificates: tuple[x509.Certificate, ...],
    certificate_source: PEMSource,
    key: PrivateKey,
    key_source: PEMSource,
) -> None:
    """Raise ValueError unless the key belongs to the first certificate, and the chain is short."""
    ours = _public_bytes(key.public_key())
    matches = [_certificate_public_bytes(certificate) == ours for certificate in certificates]
    if not any(matches):
        raise ValueError(
            f"private_key: {name_of(key_source)} does not belong to certificate: "
            f"{name_of(certificate_source)}"
        )
    if not matches[0]:
        raise ValueError(
            f"certificate: {name_of(certificate_source)} must start with the certificate of "
            "private_key; the certificates of its authorities come after it"
        )
    size = sum(len(c.public_bytes(serialization.Encoding.DER)) for c in certificates)
    if size > _LARGEST_CHAIN:
        raise ValueError(
            f"certificate: {name_of(certificate_source)} has a chain of {size} bytes; at most "
            f"{_LARGEST_CHAIN} fit into a handshake. Leave out the root, it is not needed"
        )


def password_bytes(password: bytes | str | None) -> bytes | None:
    """A password as bytes.

    Raises:
      TypeError: it is neither text nor bytes.
    """
    if password is None or isinstance(password, bytes):
        return password
    if isinstance(password, str):
        return password.encode()
    raise TypeError(f"password must be text, bytes or None, not {type(password).__name__}")
