"""Why a handshake failed, for users: exceptions with texts, from alerts and close codes.

Floor 1, sans-IO.  The alert's own text goes to the peer and stays short; what the user is
told says what to do.
"""

from __future__ import annotations

from typing import Final

from aioquic import tls
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ...errors import (
    CertificateExpired,
    CertificateUntrusted,
    ClientCertificateRequired,
    ConnectionRefused,
    HandshakeFailed,
    NoCommonProtocol,
)
from ..wire.errors import CONNECTION_REFUSED, CRYPTO_ERROR

__all__ = [
    "AlertCertificateRequired",
    "AlertCertificateRevoked",
    "AlertCertificateUnknown",
    "AlertUnknownCA",
    "MALFORMED",
    "describe",
    "handshake_error",
    "names_of",
    "quote",
]

#: What cryptography raises for hostile certificates, most of it only when a field is read.
#: Some defects are warnings, which a program may have turned into errors (``python -W error``).
MALFORMED: Final[tuple[type[Exception], ...]] = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    Warning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class AlertUnknownCA(tls.Alert):
    """The peer's certificate leads to no authority which is trusted here."""

    description = tls.AlertDescription.unknown_ca


class AlertCertificateRequired(tls.Alert):
    """The client showed no certificate (RFC 8446 section 4.4.2.4)."""

    description = tls.AlertDescription.certificate_required


class AlertCertificateRevoked(tls.Alert):
    """The peer's certificate was revoked."""

    description = tls.AlertDescription.certificate_revoked


class AlertCertificateUnknown(tls.Alert):
    """The application did not accept the peer's certificate (RFC 8446 section 6.2)."""

    description = tls.AlertDescription.certificate_unknown


def quote(text: str, limit: int = 200) -> str:
    """Text from the peer: made harmless and short."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _distinguished(name: x509.Name) -> str:
    return quote(name.rfc4514_string()) if list(name) else "nobody"


def describe(certificate: x509.Certificate) -> str:
    """Subject and issuer."""
    subject = _distinguished(certificate.subject)
    return f"for {subject}, issued by {_distinguished(certificate.issuer)}"


def names_of(certificate: x509.Certificate) -> str:
    """The DNS names and IP addresses for which a certificate is."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return "no name at all"
    names = [
        str(value)
        for kind in (x509.DNSName, x509.IPAddress)
        for value in extension.value.get_values_for_type(kind)
    ]
    shown = ", ".join(quote(name, 80) for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return shown + more if names else "no DNS name or IP address"


def _alert_name(alert: int) -> str:
    try:
        return tls.AlertDescription(alert).name
    except ValueError:
        return f"alert {alert}"


#: What an alert from the peer means for us: the exception, and what to do about it.
_BY_ALERT: dict[int, tuple[type[HandshakeFailed], str]] = {
    tls.AlertDescription.bad_certificate: (
        HandshakeFailed,
        (
            "the peer rejected our certificate (bad_certificate): its name, signature or chain "
            "does not satisfy the peer"
        ),
    ),
    tls.AlertDescription.unsupported_certificate: (
        HandshakeFailed,
        (
            "the peer rejected our certificate (unsupported_certificate): its key or purpose is "
            "of a kind which the peer does not take"
        ),
    ),
    tls.AlertDescription.certificate_revoked: (
        HandshakeFailed,
        ("the peer rejected our certificate (certificate_revoked): it needs a new one"),
    ),
    tls.AlertDescription.certificate_expired: (
        CertificateExpired,
        ("the peer rejected our certificate (certificate_expired): renew it, or set the clocks"),
    ),
    tls.AlertDescription.certificate_unknown: (
        CertificateUntrusted,
        (
            "the peer rejected our certificate (certificate_unknown): it has reasons of its own, "
            "which it does not tell"
        ),
    ),
    tls.AlertDescription.unknown_ca: (
        CertificateUntrusted,
        (
            "the peer does not trust the authority of our certificate (unknown_ca): it has to "
            "be told about the authority, or our chain lacks an intermediate certificate"
        ),
    ),
    tls.AlertDescription.access_denied: (
        HandshakeFailed,
        ("the peer accepted our certificate, but does not want us (access_denied)"),
    ),
    tls.AlertDescription.unrecognized_name: (
        HandshakeFailed,
        ("the server does not serve the name which was dialled (unrecognized_name)"),
    ),
    tls.AlertDescription.certificate_required: (
        ClientCertificateRequired,
        (
            "the server requires a client certificate (certificate_required), or one of a kind "
            "we have not: give certificate and private_key"
        ),
    ),
    tls.AlertDescription.no_application_protocol: (
        NoCommonProtocol,
        (
            "the peer has no ALPN protocol in common with us (no_application_protocol): "
            "compare the alpn arguments of both sides"
        ),
    ),
}


def handshake_error(
    *, error_code: int, reason: str, by_peer: bool, failure: Exception | None
) -> HandshakeFailed:
    """The exception for a handshake which was ended by a CONNECTION_CLOSE.

    Args:
      error_code: the transport error code, sent or received: a CRYPTO_ERROR
        (0x100 plus the alert, RFC 9001 section 4.8), or CONNECTION_REFUSED.
      reason: the reason phrase; from the peer it is untrusted text.
      by_peer: whether the peer sent it.
      failure: that of the TLS context, which says more than any code if this side has
        ended the handshake.
    """
    if not by_peer and isinstance(failure, HandshakeFailed):
        return failure
    said = f"; it says {quote(reason)}" if reason and by_peer else f": {reason}" if reason else ""
    if error_code == CONNECTION_REFUSED:
        who = "the server refused the connection" if by_peer else "the connection was refused here"
        return ConnectionRefused(
            f"{who} (CONNECTION_REFUSED){said}; try again later",
            error_code=error_code,
            reason=reason,
            by_peer=by_peer,
        )
    if not CRYPTO_ERROR <= error_code <= CRYPTO_ERROR + 0xFF:
        who = "the peer" if by_peer else "this side"
        return HandshakeFailed(
            f"{who} ended the handshake with the error 0x{error_code:x}{said}",
            error_code=error_code,
            reason=reason,
            by_peer=by_peer,
        )
    alert = error_code - CRYPTO_ERROR
    kind, text = _BY_ALERT.get(
        alert, (HandshakeFailed, f"the peer ended the TLS handshake: {_alert_name(alert)}")
    )
    if not by_peer:
        # Certificates have their own failures, so only the protocol can be left.
        if kind is not NoCommonProtocol:
            kind = HandshakeFailed
        text = f"the TLS handshake failed on this side: {_alert_name(alert)}"
    error = kind(
        f"{text}{said}", alert=alert, error_code=error_code, reason=reason, by_peer=by_peer
    )
    if not by_peer:
        error.__cause__ = failure
    return error
