"""Makes a private authority and its certificates, for development, tests and closed systems.

Floor 0: no I/O, no Trio.  For the command line, tests and examples, and for
users with machines of their own.  A private authority and what it issues, in
the shape which TLS 1.3 peers accept (RFC 5280, RFC 8446 section 4.4.2).
Serving the public takes a certificate of a public authority instead.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Iterable

import attrs
import idna
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "CertificateAndKey",
    "ascii_dns_name",
    "create_development_ca",
    "fingerprint",
    "issue_certificate",
]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Ten years: an authority which machines have installed is a nuisance to replace.
AUTHORITY_LIFETIME = dt.timedelta(days=3650)

#: The longest that browsers and operating systems accept of a server's certificate.
LEAF_LIFETIME = dt.timedelta(days=398)

#: Machines' clocks disagree, so a certificate is valid a little before it was made.
CLOCK_SKEW = dt.timedelta(hours=1)

#: RFC 5280 appendix A: ub-common-name.
_LONGEST_COMMON_NAME = 64

#: RFC 1035 section 2.3.4, in the textual form.
_LONGEST_DNS_NAME = 253

_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@attrs.frozen
class CertificateAndKey:
    """A certificate and its private key, both as PEM.

    What :class:`~phoenix_trio.ServerTLS` and :class:`~phoenix_trio.ClientTLS`
    take as they are.
    """

    certificate: bytes
    """The certificate, as PEM."""

    private_key: bytes = attrs.field(repr=False)
    """Its private key, as unencrypted PKCS #8 PEM: keep it where only its owner can read it."""

    @property
    def fingerprint(self) -> str:
        """The certificate's SHA-256 fingerprint, see :func:`fingerprint`."""
        return fingerprint(self.certificate)


def _period(
    valid_from: dt.datetime | None, valid_for: dt.timedelta
) -> tuple[dt.datetime, dt.datetime]:
    if not isinstance(valid_for, dt.timedelta):
        raise TypeError(f"valid_for must be a datetime.timedelta, not {valid_for!r}")
    if valid_for < dt.timedelta(seconds=1):
        raise ValueError(f"valid_for must be at least a second, not {valid_for}")
    # Certificates carry calendar dates: the one place for the wall clock.
    now = dt.datetime.now(dt.UTC)
    if valid_from is None:
        start, end = now - CLOCK_SKEW, now + valid_for
    else:
        if valid_from.tzinfo is None:
            raise ValueError("valid_from must have a time zone, such as datetime.UTC")
        start = valid_from.astimezone(dt.UTC)
        end = start + valid_for
    return start.replace(microsecond=0), end.replace(microsecond=0)


def _subject(common_name: str) -> x509.Name:
    if not common_name or len(common_name) > _LONGEST_COMMON_NAME:
        raise ValueError(
            f"a common name must have 1 to {_LONGEST_COMMON_NAME} characters, not {common_name!r}"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,  # all that TLS 1.3 needs, RFC 8446 section 4.4.2.2
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def create_development_ca(
    name: str = "phoenix_trio development CA",
    *,
    valid_for: dt.timedelta = AUTHORITY_LIFETIME,
    valid_from: dt.datetime | None = None,
) -> CertificateAndKey:
    """Make a certification authority of your own.

    It may issue certificates for servers and clients, but no further
    authorities.  The holder of its private key can pose as any server to
    clients which trust it.

    Args:
      name: its common name, 1 to 64 characters.
      valid_for: how long from now (or from `valid_from`) it is valid; ten years.
      valid_from: when it becomes valid, with a time zone; an hour ago.

    Raises:
      TypeError, ValueError: an argument is out of its range; the text names it.
    """
    subject = _subject(name)
    start, end = _period(valid_from, valid_for)
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return CertificateAndKey(
        certificate.public_bytes(serialization.Encoding.PEM), _private_key_pem(key)
    )


def ascii_dns_name(name: str) -> str:
    """A DNS name as certificates and the Server Name Indication carry it.

    In lower case, without a final dot, international names in their ASCII form
    (RFC 5890), underscores allowed since host names in private networks have them.

    Raises:
      ValueError: it is not a DNS name.
    """
    name = name.removesuffix(".").lower()
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as exc:
            raise ValueError(f"{exc}") from exc
    if len(name) > _LONGEST_DNS_NAME:
        raise ValueError(f"a DNS name has at most {_LONGEST_DNS_NAME} characters")
    for label in name.split("."):
        if _DNS_LABEL.fullmatch(label) is None:
            raise ValueError(f"{label[:80]!r} cannot be a part of a DNS name")
    return name


def _general_name(name: object) -> x509.GeneralName:
    if isinstance(name, IPAddress):
        return x509.IPAddress(name)
    if not isinstance(name, str):
        raise TypeError(f"names must hold strings and IP addresses, not {name!r}")
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass  # then it has to be a DNS name
    if not name or name != name.strip():
        raise ValueError(f"names: {name!r} is empty, or has spaces around it")
    if "://" in name or "/" in name:
        raise ValueError(f"names: {name!r} is a URL or network; give the host name alone")
    if name.startswith("[") or ":" in name:
        raise ValueError(f"names: {name!r} has a port or brackets; give the name or address alone")
    prefix, rest = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    if "*" in rest or (prefix and "." not in rest):
        raise ValueError(
            f"names: {name!r} is no usable wildcard: it replaces the first label alone, "
            'and two more follow, as in "*.example.org"'
        )
    try:
        return x509.DNSName(prefix + ascii_dns_name(rest))
    except ValueError as exc:
        raise ValueError(f"names: {name!r} is neither a DNS name nor an IP address: {exc}") from exc


def _general_names(names: Iterable[str | IPAddress]) -> list[x509.GeneralName]:
    if isinstance(names, (str, bytes)):
        raise TypeError(f"names must be a list of names, such as [{names!r}]")
    general_names = list(dict.fromkeys(_general_name(name) for name in names))
    if not general_names:
        raise ValueError("names must hold at least one DNS name or IP address")
    return general_names


def _load_authority(
    ca: CertificateAndKey,
) -> tuple[
    x509.Certificate,
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey,
]:
    try:
        certificate = x509.load_pem_x509_certificate(ca.certificate)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        raise ValueError("ca: the certificate is not one of an authority") from None
    except ValueError as exc:
        raise ValueError(f"ca: the certificate cannot be read: {exc}") from exc
    if not constraints.value.ca:
        raise ValueError("ca: the certificate is not one of an authority")
    try:
        key = serialization.load_pem_private_key(ca.private_key, password=None)
    except (ValueError, TypeError) as exc:
        raise ValueError(f"ca: the private key cannot be read: {exc}") from exc
    if not isinstance(
        key,
        (
            ec.EllipticCurvePrivateKey,
            rsa.RSAPrivateKey,
            ed25519.Ed25519PrivateKey,
            ed448.Ed448PrivateKey,
        ),
    ):
        raise ValueError(f"ca: a key of type {type(key).__name__} cannot sign certificates")
    if key.public_key() != certificate.public_key():
        raise ValueError("ca: the private key does not belong to the certificate")
    return certificate, key


def issue_certificate(
    ca: CertificateAndKey,
    names: Iterable[str | IPAddress],
    *,
    valid_for: dt.timedelta = LEAF_LIFETIME,
    valid_from: dt.datetime | None = None,
) -> CertificateAndKey:
    """Issue a certificate for a server, a client, or both.

    Args:
      ca: the authority, from :func:`create_development_ca` or read from files.
      names: DNS names (``"example.org"``, ``"*.example.org"``,
        ``"bücher.example"``) and IP addresses (``"::1"``), at least one.  Clients compare
        them with the name they dialled.
      valid_for: how long from now (or from `valid_from`) it is valid; 398 days.
        It never outlives the authority.
      valid_from: when it becomes valid, with a time zone; an hour ago.

    Raises:
      TypeError: `names` is one string, or holds something else than names.
      ValueError: a name is malformed; `ca` is no authority, or its key and
        certificate do not match; or it has no validity left.
    """
    general_names = _general_names(names)
    authority, authority_key = _load_authority(ca)
    start, end = _period(valid_from, valid_for)
    end = min(end, authority.not_valid_after_utc)
    if end <= start:
        raise ValueError(f"ca: the authority expires on {authority.not_valid_after_utc}")
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        authority_identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    except x509.ExtensionNotFound:
        authority_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            authority_key.public_key()
        )
    # The subject is for humans; the extension has the names that are too long for it.
    common_name = str(general_names[0].value)
    is_short = len(common_name) <= _LONGEST_COMMON_NAME
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name) if is_short else x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        # RFC 5280 section 4.2.1.6: critical where the subject is empty.
        .add_extension(x509.SubjectAlternativeName(general_names), critical=not is_short)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_identifier, critical=False)
        .sign(
            authority_key,
            # Edwards-curve signatures come with their own hash (RFC 8410).
            None
            if isinstance(authority_key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
            else hashes.SHA256(),
        )
    )
    return CertificateAndKey(
        certificate.public_bytes(serialization.Encoding.PEM), _private_key_pem(key)
    )


def fingerprint(certificate: bytes | str | x509.Certificate) -> str:
    """The SHA-256 fingerprint of a certificate: ``"ab:cd:..."``, 32 bytes.

    What ``ClientTLS(pinned_sha256=...)`` takes, and what
    ``openssl x509 -fingerprint -sha256`` prints.

    Args:
      certificate: as PEM (the first one counts), or parsed.

    Raises:
      ValueError: it is not a certificate.
    """
    if isinstance(certificate, str):
        certificate = certificate.encode()
    if isinstance(certificate, bytes):
        try:
            certificate = x509.load_pem_x509_certificate(certificate)
        except ValueError as exc:
            raise ValueError(f"certificate: cannot be read as PEM: {exc}") from exc
    return certificate.fingerprint(hashes.SHA256()).hex(":")
