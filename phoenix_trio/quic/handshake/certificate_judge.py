"""Whether to trust a peer's certificate: dates, chain, purpose, name, or a pinned
fingerprint; or a function of the application decides.

Floor 1, sans-IO.  Replaces aioquic's own verification (``tls.py`` 1525 and 2244 of
version 1.7.2).  Every fault of a peer leads to a ``tls.Alert`` and nothing else, and leaves
an exception with a text for the user.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable
from typing import NoReturn

import service_identity
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from ...errors import (
    CertificateExpired,
    CertificateNameMismatch,
    CertificatePinMismatch,
    CertificateUntrusted,
    ClientCertificateRequired,
    HandshakeFailed,
)
from ..wire.errors import CRYPTO_ERROR
from .hello_context import HelloContext
from .policies import Policy, ServerPolicy
from .tls_failures import (
    MALFORMED,
    AlertCertificateRequired,
    AlertCertificateRevoked,
    AlertCertificateUnknown,
    AlertUnknownCA,
    describe,
    names_of,
    quote,
)
from .verdicts import Verdict
from .verifiers import Verifier, ask_verifier

__all__ = ["JudgingContext"]

#: More than any real chain has; each costs parsing and memory.
_LONGEST_CHAIN = 16

#: Broken by collisions (RFC 8446 section 4.4.2.4 for MD5; SHA-1 since 2017).
_BROKEN_HASHES = frozenset({"md5", "sha1"})

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_REVOKED = 23
_SELF_SIGNED = 18
#: No issuer found (2, 20, 21), self-signed (18, 19), marked as not trusted (27).
_NO_TRUSTED_ISSUER = frozenset({2, _SELF_SIGNED, 19, 20, 21, 27})


class JudgingContext(HelloContext):
    """A TLS context which judges its peer by a policy."""

    policy: Policy
    failure: HandshakeFailed | None
    _accepted_peer: bool
    _peer_certificates: tuple[bytes, ...]
    """What the peer has sent, in DER form."""
    _verdict: Verdict | None
    """The verdict about it, from an earlier handshake."""
    _rejection: Exception | None
    """That by which a function of the application has rejected the peer."""

    # ------------------------------------------------------------ overrides of aioquic

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        """Line 2244: parsing may fail in more ways than aioquic expects."""
        count = len(certificate.certificates)
        if count > _LONGEST_CHAIN:
            self._refuse(
                tls.AlertBadCertificate("Certificate chain too long"),
                CertificateUntrusted,
                f"{self._their} sent a chain of {count} certificates; {_LONGEST_CHAIN} are "
                "the most that is accepted",
            )
        self._peer_certificates = tuple([each for each, _ in certificate.certificates])
        verdicts = self.policy.verdicts
        if verdicts is not None:
            known = verdicts.find(self._expected_name, self._peer_certificates)
            if known is not None:
                self._verdict = known
                self._peer_certificate = known.certificate
                self._peer_certificate_chain = known.chain
                return
        try:
            super()._set_peer_certificate(certificate)
        except MALFORMED as exc:
            self._refuse_malformed(exc)

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        """Line 1525: first the signature, as ever; then whether its key is trusted.

        Both roles come through here, before anything else is done with the
        certificate.  aioquic's own verification (line 1811) is switched off by
        :func:`adopt`.
        """
        try:
            super()._check_certificate_verify_signature(verify)
            self._judge_peer()
        except tls.Alert:
            raise
        except MALFORMED as exc:
            self._refuse_malformed(exc)
        except Exception as exc:  # noqa: BLE001
            # Third-party parsers on hostile input: not even their bugs may pass as success
            # or as a crash of the endpoint.
            self._refuse(
                tls.AlertInternalError("Certificate verification failed"),
                HandshakeFailed,
                f"verifying the certificate of {self._their} failed unexpectedly: {exc!r}",
                exc,
            )
        self._accepted_peer = True

    # ----------------------------------------------------------------------- verdicts

    @property
    def _expected_name(self) -> str:
        """What the peer's certificate has to name; empty: anything."""
        policy = self.policy
        return "" if isinstance(policy, ServerPolicy) else policy.server_name

    @property
    def _their(self) -> str:
        return "the server" if self._is_client else "the client"

    def _record(
        self, alert: tls.Alert, kind: type[HandshakeFailed], text: str, cause: Exception | None
    ) -> None:
        number = int(alert.description)
        self.failure = kind(text, alert=number, error_code=CRYPTO_ERROR + number, reason=str(alert))
        self.failure.__cause__ = cause

    def _refuse(
        self,
        alert: tls.Alert,
        kind: type[HandshakeFailed],
        text: str,
        cause: Exception | None = None,
    ) -> NoReturn:
        """Tell the user by `kind` and `text`, and the peer by `alert`."""
        self._record(alert, kind, text, cause)
        raise alert from cause

    def _refuse_malformed(self, cause: Exception) -> NoReturn:
        self._refuse(
            tls.AlertBadCertificate("Certificate could not be parsed"),
            CertificateUntrusted,
            f"{self._their} sent a malformed certificate: {quote(str(cause))}",
            cause,
        )

    def _judge_peer(self) -> None:
        certificate = self._peer_certificate
        assert certificate is not None
        policy = self.policy
        if policy.verify is not None:
            self._ask_verifier(policy.verify)
            return
        if self._verdict is not None and self._verdict.is_valid(dt.datetime.now(dt.UTC)):
            return
        if isinstance(policy, ServerPolicy):
            self._check_dates(certificate)
            verified = self._check_chain(certificate, policy.client_store)
            self._check_purpose(
                certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "clients (clientAuth)"
            )
        elif policy.accept_any:
            return
        elif policy.pinned_sha256 is not None:
            self._check_pin(certificate, policy.pinned_sha256)
            self._check_dates(certificate)
            return
        else:
            self._check_dates(certificate)
            verified = self._check_chain(certificate, policy.store)
            self._check_purpose(
                certificate, ExtendedKeyUsageOID.SERVER_AUTH, "servers (serverAuth)"
            )
            self._check_name(certificate, policy.server_name)
        if policy.verdicts is not None:
            verdict = Verdict(certificate, self._peer_certificate_chain, verified)
            policy.verdicts.add(self._expected_name, self._peer_certificates, verdict)

    def _ask_verifier(self, verify: Verifier) -> None:
        """The application decides; its chain is empty where a client has shown none."""
        own = self._peer_certificate
        chain = [] if own is None else [own, *self._peer_certificate_chain]
        policy = self.policy
        name = None if isinstance(policy, ServerPolicy) else policy.server_name
        rejection = self._rejection = ask_verifier(verify, chain, name)
        if rejection is None:
            return
        why = f"{type(rejection).__name__}: {quote(str(rejection))}"
        if own is None:
            self._refuse(
                AlertCertificateRequired("A client certificate is required"),
                ClientCertificateRequired,
                f"the client showed no certificate, and verify rejected it for that: {why}",
                rejection,
            )
        self._refuse(
            AlertCertificateUnknown("Certificate was not accepted"),
            CertificateUntrusted,
            # (Its names may be malformed; the fingerprint is always there.)
            f"verify rejected {self._their}'s certificate, whose SHA-256 fingerprint is "
            f"{own.fingerprint(hashes.SHA256()).hex()}: {why}",
            rejection,
        )

    def _check_pin(self, certificate: x509.Certificate, pinned: bytes) -> None:
        actual = certificate.fingerprint(hashes.SHA256())
        if actual != pinned:
            self._refuse(
                tls.AlertBadCertificate("Certificate is not the expected one"),
                CertificatePinMismatch,
                f"{self._their}'s certificate has the SHA-256 fingerprint {actual.hex()}, but "
                f"{pinned.hex()} is pinned; it was renewed, or somebody poses as "
                f"{self._their} (certificate {describe(certificate)})",
            )

    def _check_dates(self, certificate: x509.Certificate) -> None:
        # Certificates carry calendar dates, so this takes the wall clock.
        now = dt.datetime.now(dt.UTC)
        if now < certificate.not_valid_before_utc or now > certificate.not_valid_after_utc:
            self._refuse_dates(certificate, now)

    def _refuse_dates(
        self, certificate: x509.Certificate, now: dt.datetime, cause: Exception | None = None
    ) -> NoReturn:
        if now < certificate.not_valid_before_utc:
            short = "Certificate is not valid yet"
            when = f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        else:
            short = "Certificate has expired"
            when = f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
        self._refuse(
            tls.AlertCertificateExpired(short),
            CertificateExpired,
            f"a certificate of {self._their} ({describe(certificate)}) {when}; it has to be "
            f"renewed, or a clock is wrong (it is {now:%Y-%m-%d %H:%M:%S} UTC here)",
            cause,
        )

    def _check_chain(
        self, certificate: x509.Certificate, store: crypto.X509Store | None
    ) -> list[x509.Certificate]:
        """The certificates by which it leads to an authority of the store, which comes last."""
        assert store is not None
        try:
            verified = crypto.X509StoreContext(
                store,
                crypto.X509.from_cryptography(certificate),
                [crypto.X509.from_cryptography(link) for link in self._peer_certificate_chain],
            ).get_verified_chain()
        except crypto.X509StoreContextError as exc:
            self._refuse_chain(certificate, exc)
        except crypto.Error as exc:
            self._refuse_malformed(exc)
        # The last one is trusted by itself; its signature does not matter.
        links = [link.to_cryptography() for link in verified]
        for link in links[:-1]:
            algorithm = link.signature_hash_algorithm
            if algorithm is not None and algorithm.name in _BROKEN_HASHES:
                self._refuse(
                    tls.AlertBadCertificate("Certificate has a broken signature algorithm"),
                    CertificateUntrusted,
                    f"a certificate in the chain of {self._their} ({describe(certificate)}) is "
                    f"signed with {algorithm.name}, which can be forged; it has to be reissued",
                )
        return links

    def _refuse_chain(
        self, certificate: x509.Certificate, cause: crypto.X509StoreContextError
    ) -> NoReturn:
        code, _, message = cause.errors
        if code in (_NOT_YET_VALID, _EXPIRED):
            self._refuse_dates(cause.certificate.to_cryptography(), dt.datetime.now(dt.UTC), cause)
        described = describe(certificate)
        if code == _REVOKED:
            self._refuse(
                AlertCertificateRevoked("Certificate was revoked"),
                CertificateUntrusted,
                f"{self._their}'s certificate ({described}) was revoked by its authority",
                cause,
            )
        if code not in _NO_TRUSTED_ISSUER:
            self._refuse(
                tls.AlertBadCertificate("Certificate chain is not valid"),
                CertificateUntrusted,
                f"{self._their}'s certificate ({described}) has no valid chain: {message}",
                cause,
            )
        if not self._is_client:
            advice = "add its authority to client_ca"
        elif code == _SELF_SIGNED:
            advice = "it is self-signed: pass it as ca, or its fingerprint as pinned_sha256"
        else:
            advice = (
                "pass its authority as ca, or make the server send its intermediate certificates"
            )
        self._refuse(
            AlertUnknownCA("Certificate authority is not trusted"),
            CertificateUntrusted,
            f"{self._their}'s certificate ({described}) leads to no trusted authority "
            f"({message}); {advice}",
            cause,
        )

    def _check_purpose(
        self, certificate: x509.Certificate, purpose: x509.ObjectIdentifier, role: str
    ) -> None:
        """RFC 5280 section 4.2.1.12: a certificate is good for what it says, if it says so."""
        try:
            extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return
        if {purpose, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}.isdisjoint(extension.value):
            self._refuse(
                tls.AlertUnsupportedCertificate("Certificate was issued for another purpose"),
                CertificateUntrusted,
                f"{self._their}'s certificate ({describe(certificate)}) was not issued for "
                f"{role}: its extended key usage says otherwise",
            )

    def _check_name(self, certificate: x509.Certificate, name: str) -> None:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            verify: Callable[[x509.Certificate, str], None] = (
                service_identity.cryptography.verify_certificate_hostname
            )
        else:
            verify = service_identity.cryptography.verify_certificate_ip_address
        try:
            verify(certificate, name)
        except (service_identity.VerificationError, service_identity.CertificateError) as exc:
            self._refuse(
                tls.AlertBadCertificate("Certificate is for another name"),
                CertificateNameMismatch,
                f"the server's certificate is not for {name!r}, but for {names_of(certificate)}; "
                f"dial one of these, or set server_name (certificate {describe(certificate)})",
                exc,
            )
