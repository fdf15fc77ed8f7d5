"""May this handshake succeed? aioquic's TLS state machine with our verdicts in it.

Floor 1, sans-IO.  For the engine.  aioquic does the cryptography; what it
lacks is decided here: whom to trust, when, under which name, and what the user
is told otherwise.  It is the one module which touches private names of
``aioquic.tls`` (version 1.7.2, listed in :data:`RELIED_ON`; a test fails
loudly when one is missing).

Whatever a peer sends may lead to a ``tls.Alert`` and nothing else: aioquic turns
alerts into a CONNECTION_CLOSE with a CRYPTO_ERROR (RFC 9001 section 4.8), while
any other exception would escape into the endpoint.  Each alert leaves an
exception of ours in :attr:`PhoenixTLSContext.failure`, with the text for users;
the alert's own text goes to the peer and stays short.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable
from typing import NoReturn, TypeAlias, final

import aioquic
import attrs
import service_identity
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicTransportParameters,
    pull_quic_transport_parameters,
)
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from ..errors import (
    CertificateExpired,
    CertificateNameMismatch,
    CertificatePinMismatch,
    CertificateUntrusted,
    ClientCertificateRequired,
    ConnectionRefused,
    HandshakeFailed,
    NoCommonProtocol,
)
from .tls import (
    DEFAULT_GROUPS,
    ClientTLS,
    Identity,
    ServerIdentity,
    ServerTLS,
    normalize_server_name,
)

__all__ = [
    "RELIED_ON",
    "AlertCertificateRequired",
    "AlertCertificateRevoked",
    "AlertUnknownCA",
    "ClientPolicy",
    "PhoenixTLSContext",
    "Policy",
    "ServerPolicy",
    "adopt",
    "client_policy",
    "handshake_error",
    "missing_private_names",
    "server_policy",
]

#: Names of ``aioquic.tls.Context`` which this module overrides, reads or sets,
#: and which aioquic does not promise to keep (tls.py of version 1.7.2, lines 1288 to 2260).
RELIED_ON: tuple[str, ...] = (
    "_alpn_protocols",
    "_certificate_request",
    "_check_certificate_verify_signature",
    "_is_client",
    "_max_early_data",
    "_peer_certificate",
    "_peer_certificate_chain",
    "_receive_buffer",
    "_request_client_certificate",
    "_server_handle_certificate",
    "_server_handle_hello",
    "_server_name",
    "_session_resumed",
    "_set_peer_certificate",
    "_supported_groups",
    "_verify_mode",
    "alpn_negotiated",
    "certificate",
    "certificate_chain",
    "certificate_private_key",
    "early_data_accepted",
    "get_session_ticket_cb",
    "handle_message",
    "handshake_extensions",
    "new_session_ticket_cb",
    "session_ticket",
    "update_traffic_key_cb",
)

#: RFC 9001 section 4.8: the alert's number plus this.
_CRYPTO_ERROR = 0x100

#: Twice what our own handshakes can send; OpenSSL's limits are of this order too.  aioquic would
#: collect up to 16 MiB from a peer which nobody has authenticated.
_LARGEST_MESSAGE = 128 * 1024

#: More than any real chain has; each costs parsing and memory.
_LONGEST_CHAIN = 16

#: What cryptography raises for hostile certificates, most of it only when a field is read.
#: Some defects are warnings, which a program may have turned into errors (``python -W error``).
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    Warning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

#: Broken by collisions (RFC 8446 section 4.4.2.4 for MD5; SHA-1 since 2017).
_BROKEN_HASHES = frozenset({"md5", "sha1"})

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_REVOKED = 23
_SELF_SIGNED = 18
#: No issuer found (2, 20, 21), self-signed (18, 19), marked as not trusted (27).
_NO_TRUSTED_ISSUER = frozenset({2, _SELF_SIGNED, 19, 20, 21, 27})

#: RFC 9000 section 7.4.1, RFC 9221 section 3: a server which accepts 0-RTT must not have
#: reduced these since it issued the ticket.
_REMEMBERED_LIMITS = (
    "active_connection_id_limit",
    "initial_max_data",
    "initial_max_stream_data_bidi_local",
    "initial_max_stream_data_bidi_remote",
    "initial_max_stream_data_uni",
    "initial_max_streams_bidi",
    "initial_max_streams_uni",
    "max_datagram_frame_size",
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


# ------------------------------------------------------------------------- policies


@attrs.frozen(kw_only=True, eq=False)
class ServerPolicy:
    """What a server demands of its clients."""

    client_store: crypto.X509Store | None = None
    """The authorities of client certificates; ``None``: certificates are not asked for."""
    early_data: bool = False


@attrs.frozen(kw_only=True, eq=False)
class ClientPolicy:
    """What a client demands of its server, and what it shows."""

    server_name: str
    store: crypto.X509Store | None = None
    """``None`` only with a pin or `accept_any`."""
    pinned_sha256: bytes | None = None
    accept_any: bool = False
    identity: Identity | None = None
    groups: tuple[str, ...] = DEFAULT_GROUPS
    """For key exchange, the preferred one first."""

    def __attrs_post_init__(self) -> None:
        if self.store is None and self.pinned_sha256 is None and not self.accept_any:
            raise ValueError("store is needed, as there is neither a pin nor accept_any")


Policy: TypeAlias = ClientPolicy | ServerPolicy


def server_policy(identity: ServerIdentity, server_tls: ServerTLS) -> ServerPolicy:
    """The policy for one connection of a server, with its identity at this moment."""
    return ServerPolicy(client_store=identity.client_store, early_data=server_tls.early_data)


def client_policy(client_tls: ClientTLS, server_name: str) -> ClientPolicy:
    """The policy for dialling `server_name`.

    Raises:
      ValueError: `server_name` is neither a DNS name nor an IP address.
    """
    return ClientPolicy(
        server_name=normalize_server_name(server_name),
        store=client_tls.store,
        pinned_sha256=client_tls.pinned_sha256,
        accept_any=client_tls.accepts_any_certificate,
        identity=client_tls.identity,
        groups=client_tls.groups,
    )


# ---------------------------------------------------------------------------- texts


def _quote(text: str, limit: int = 200) -> str:
    """Text from the peer: made harmless and short."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _distinguished(name: x509.Name) -> str:
    return _quote(name.rfc4514_string()) if list(name) else "nobody"


def _describe(certificate: x509.Certificate) -> str:
    subject = _distinguished(certificate.subject)
    return f"for {subject}, issued by {_distinguished(certificate.issuer)}"


def _names_of(certificate: x509.Certificate) -> str:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return "no name at all"
    names = [
        str(value)
        for kind in (x509.DNSName, x509.IPAddress)
        for value in extension.value.get_values_for_type(kind)
    ]
    shown = ", ".join(_quote(name, 80) for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return shown + more if names else "no DNS name or IP address"


def _alert_name(alert: int) -> str:
    try:
        return tls.AlertDescription(alert).name
    except ValueError:
        return f"alert {alert}"


# -------------------------------------------------------------------------- context


@final
class PhoenixTLSContext(tls.Context):
    """A TLS context which obeys a policy; made by :func:`adopt` alone.

    Attributes:
      policy: what it obeys.
      failure: why the handshake failed on this side, for the user; ``None``: it did not.
    """

    policy: Policy
    failure: HandshakeFailed | None
    _dead: bool
    _accepted_peer: bool
    _early_data_accepted: bool
    _early_data_allowed: bool

    # ------------------------------------------------------------ what others may ask

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, once it was accepted.

        ``None`` before, where the peer showed none, and in a resumed session,
        which shows none.
        """
        return self._peer_certificate if self._accepted_peer else None

    @property
    def peer_certificate_chain(self) -> tuple[x509.Certificate, ...]:
        """The further certificates which the peer sent with its own, as it sent them."""
        return tuple(self._peer_certificate_chain) if self._accepted_peer else ()

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""
        return self._certificate_request is not None

    def release(self) -> None:
        """Free what the context holds: its callbacks refer to it and to the connection."""
        vars(self).clear()

    # ------------------------------------------------------------ overrides of aioquic

    # aioquic sets this attribute where it is about to accept 0-RTT data (lines 1771 and
    # 2024), without asking whether anybody wants them.  As a property it can be vetoed.
    @property
    def early_data_accepted(self) -> bool:
        """Whether 0-RTT data were accepted."""
        return self._early_data_accepted

    @early_data_accepted.setter
    def early_data_accepted(self, value: bool) -> None:
        if self._is_client:
            # RFC 8446 section 4.2.10: not to be accepted without the ticket.
            ticket = self.session_ticket
            allowed = (
                self._session_resumed
                and ticket is not None
                and ticket.max_early_data_size is not None
            )
        else:
            allowed = self._early_data_allowed
        self._early_data_accepted = value and allowed

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        """Line 1391: leave an explanation for each alert, and stop at the first (section 6.2).

        Bounded: a message which has grown too large is refused before it is complete.
        """
        if self._dead:
            raise tls.AlertUnexpectedMessage("The handshake has failed")
        try:
            if len(self._receive_buffer) + len(input_data) > _LARGEST_MESSAGE:
                raise tls.AlertIllegalParameter("TLS message too large")
            super().handle_message(input_data, output_buf)
        except tls.Alert as alert:
            self._dead = True
            if self.failure is None:
                self.failure = handshake_error(
                    error_code=_CRYPTO_ERROR + int(alert.description),
                    reason=str(alert),
                    by_peer=False,
                    failure=None,
                )
                self.failure.__cause__ = alert
            # Tracebacks refer to all that took part, some of it in circles (line 1197), and
            # the failure may be kept for long.
            _forget_tracebacks(alert)
            _forget_tracebacks(self.failure)
            raise type(alert)(*alert.args) from None

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        """Line 1925: name both sides' protocols where they have none in common."""
        try:
            super()._server_handle_hello(input_buf, initial_buf, handshake_buf)
        except tls.AlertNoApplicationProtocol as alert:
            offered = tls.pull_client_hello(Buffer(data=input_buf.data)).alpn_protocols or []
            theirs = ", ".join(_quote(name, 80) for name in offered[:8]) or "none"
            ours = ", ".join(repr(name) for name in self._alpn_protocols or ())
            self._refuse(
                alert,
                NoCommonProtocol,
                f"the client offers no ALPN protocol which is served here: it offers {theirs}, "
                f"we serve {ours}",
            )

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        """Line 2166: an empty certificate message is not enough where one is required."""
        super()._server_handle_certificate(input_buf)
        if self._peer_certificate is None:
            self._refuse(
                AlertCertificateRequired("A client certificate is required"),
                ClientCertificateRequired,
                "the client showed no certificate, and client_ca makes one required; "
                "give the client a certificate and private_key",
            )

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
        try:
            super()._set_peer_certificate(certificate)
        except _MALFORMED as exc:
            self._refuse_malformed(exc)

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        """Line 1525: first the signature, as ever; then whether we trust who has signed.

        Both roles come through here, before anything else is done with the
        certificate.  aioquic's own verification (line 1811) is switched off by
        :func:`adopt`.
        """
        try:
            super()._check_certificate_verify_signature(verify)
            self._judge_peer()
        except tls.Alert:
            raise
        except _MALFORMED as exc:
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

    # ------------------------------------------------------------------------ tickets

    def _find_ticket(
        self, fetch: Callable[[bytes], tls.SessionTicket | None], label: bytes
    ) -> tls.SessionTicket | None:
        """Server: the ticket for this label, if it was earned with the same protocol.

        RFC 8446 section 4.2.10 ties early data to the ALPN protocol; we tie all of
        a resumption to it, so that it cannot cross from one application to another.
        """
        ticket = fetch(label)
        if ticket is None:
            return None
        remembered = dict(ticket.other_extensions)
        if remembered.get(tls.ExtensionType.ALPN) != (self.alpn_negotiated or "").encode():
            return None
        assert isinstance(self.policy, ServerPolicy)
        self._early_data_allowed = (
            self.policy.early_data
            and ticket.max_early_data_size is not None
            and not self._has_reduced_limits(remembered)
        )
        return ticket

    def _has_reduced_limits(self, remembered: dict[int, bytes]) -> bool:
        """Whether 0-RTT data within the remembered limits could break today's."""
        kind = tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
        then = _transport_parameters(remembered.get(kind))
        now = _transport_parameters(dict(self.handshake_extensions).get(kind))
        if then is None or now is None:
            return True
        return any(
            (getattr(now, name) or 0) < (getattr(then, name) or 0) for name in _REMEMBERED_LIMITS
        )

    def _keep_ticket(
        self, keep: Callable[[tls.SessionTicket], None], ticket: tls.SessionTicket
    ) -> None:
        """Server: remember the protocol with the ticket."""
        protocol = (int(tls.ExtensionType.ALPN), (self.alpn_negotiated or "").encode())
        keep(
            dataclasses.replace(ticket, other_extensions=[*ticket.other_extensions, protocol]),
        )

    # ----------------------------------------------------------------------- verdicts

    @property
    def _their(self) -> str:
        return "the server" if self._is_client else "the client"

    def _record(
        self, alert: tls.Alert, kind: type[HandshakeFailed], text: str, cause: Exception | None
    ) -> None:
        number = int(alert.description)
        self.failure = kind(
            text, alert=number, error_code=_CRYPTO_ERROR + number, reason=str(alert)
        )
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
            f"{self._their} sent a malformed certificate: {_quote(str(cause))}",
            cause,
        )

    def _judge_peer(self) -> None:
        certificate = self._peer_certificate
        assert certificate is not None
        policy = self.policy
        if isinstance(policy, ServerPolicy):
            self._check_dates(certificate)
            self._check_chain(certificate, policy.client_store)
            self._check_purpose(
                certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "clients (clientAuth)"
            )
        elif policy.accept_any:
            return
        elif policy.pinned_sha256 is not None:
            self._check_pin(certificate, policy.pinned_sha256)
            self._check_dates(certificate)
        else:
            self._check_dates(certificate)
            self._check_chain(certificate, policy.store)
            self._check_purpose(
                certificate, ExtendedKeyUsageOID.SERVER_AUTH, "servers (serverAuth)"
            )
            self._check_name(certificate, policy.server_name)

    def _check_pin(self, certificate: x509.Certificate, pinned: bytes) -> None:
        actual = certificate.fingerprint(hashes.SHA256())
        if actual != pinned:
            self._refuse(
                tls.AlertBadCertificate("Certificate is not the expected one"),
                CertificatePinMismatch,
                f"{self._their}'s certificate has the SHA-256 fingerprint {actual.hex()}, but "
                f"{pinned.hex()} is pinned; it was renewed, or somebody poses as "
                f"{self._their} (certificate {_describe(certificate)})",
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
            f"a certificate of {self._their} ({_describe(certificate)}) {when}; it has to be "
            f"renewed, or a clock is wrong (it is {now:%Y-%m-%d %H:%M:%S} UTC here)",
            cause,
        )

    def _check_chain(self, certificate: x509.Certificate, store: crypto.X509Store | None) -> None:
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
        # The last one is trusted by itself; nobody looks at its signature.
        for link in verified[:-1]:
            algorithm = link.to_cryptography().signature_hash_algorithm
            if algorithm is not None and algorithm.name in _BROKEN_HASHES:
                self._refuse(
                    tls.AlertBadCertificate("Certificate has a broken signature algorithm"),
                    CertificateUntrusted,
                    f"a certificate in the chain of {self._their} ({_describe(certificate)}) is "
                    f"signed with {algorithm.name}, which can be forged; it has to be reissued",
                )

    def _refuse_chain(
        self, certificate: x509.Certificate, cause: crypto.X509StoreContextError
    ) -> NoReturn:
        code, _, message = cause.errors
        if code in (_NOT_YET_VALID, _EXPIRED):
            self._refuse_dates(cause.certificate.to_cryptography(), dt.datetime.now(dt.UTC), cause)
        described = _describe(certificate)
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
                f"{self._their}'s certificate ({_describe(certificate)}) was not issued for "
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
                f"the server's certificate is not for {name!r}, but for {_names_of(certificate)}; "
                f"dial one of these, or set server_name (certificate {_describe(certificate)})",
                exc,
            )


def _forget_tracebacks(error: BaseException | None) -> None:
    """Of an exception and of those which led to it."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _transport_parameters(data: bytes | None) -> QuicTransportParameters | None:
    return None if data is None else pull_quic_transport_parameters(Buffer(data=data))


def adopt(context: tls.Context, policy: Policy) -> PhoenixTLSContext:
    """Put a context which aioquic has just made under a policy; returns the same object.

    To be called at the end of ``QuicConnection._initialize``, each time.

    Raises:
      TypeError: the context is not fresh, or the policy is for the other role.
    """
    if type(context) is not tls.Context:
        raise TypeError(f"only a fresh aioquic context can be adopted, not {context!r}")
    if context._is_client != isinstance(policy, ClientPolicy):
        raise TypeError(f"{type(policy).__name__} is for the other role")
    # aioquic constructs tls.Context itself, in the middle of _initialize, and takes no factory.
    # Copying that method would tie us to all of it; changing the class of the new object ties
    # us to RELIED_ON only.  Both are plain Python classes with the same layout.
    early_data_accepted = context.__dict__.pop("early_data_accepted")
    context.__class__ = PhoenixTLSContext
    assert isinstance(context, PhoenixTLSContext)
    context.policy = policy
    context.failure = None
    context._dead = False
    context._accepted_peer = False
    context._early_data_accepted = early_data_accepted
    context._early_data_allowed = False
    if isinstance(policy, ClientPolicy):
        _adopt_client(context, policy)
    else:
        _adopt_server(context, policy)
    return context


def _adopt_client(context: PhoenixTLSContext, policy: ClientPolicy) -> None:
    context._verify_mode = ssl.CERT_NONE  # ours instead, in _check_certificate_verify_signature
    context._server_name = policy.server_name
    if policy.identity is not None:
        context.certificate = policy.identity.certificate
        context.certificate_chain = list(policy.identity.chain)
        context.certificate_private_key = policy.identity.private_key
    # aioquic answers no HelloRetryRequest, and so makes a share for each group it lists.
    known = context._supported_groups
    context._supported_groups = [
        group for name in policy.groups if (group := tls.Group[name.upper()]) in known
    ]


def _adopt_server(context: PhoenixTLSContext, policy: ServerPolicy) -> None:
    if not policy.early_data:
        context._max_early_data = None
    if policy.client_store is not None:
        context._request_client_certificate = True
        # After a resumption aioquic would wait for a client certificate (line 2161), which TLS
        # does not send then (RFC 8446 section 4.3.2): so every handshake is a full one.
        context.get_session_ticket_cb = None
        context.new_session_ticket_cb = None
    fetch, keep = context.get_session_ticket_cb, context.new_session_ticket_cb
    if fetch is not None:
        context.get_session_ticket_cb = lambda label: context._find_ticket(fetch, label)
    if keep is not None:
        context.new_session_ticket_cb = lambda ticket: context._keep_ticket(keep, ticket)
    update = context.update_traffic_key_cb

    def update_unless_refused(
        direction: tls.Direction, epoch: tls.Epoch, suite: tls.CipherSuite, secret: bytes
    ) -> None:
        # Line 2025: refused 0-RTT data must stay unreadable, also when a client sends them unasked.
        if epoch is not tls.Epoch.ZERO_RTT or context.early_data_accepted:
            update(direction, epoch, suite, secret)

    context.update_traffic_key_cb = update_unless_refused


def missing_private_names() -> list[str]:
    """Those of :data:`RELIED_ON` which the installed aioquic does not have; empty: all is well."""
    context = tls.Context(is_client=True)
    return [
        f"tls.Context.{name} (aioquic {aioquic.__version__})"
        for name in RELIED_ON
        if not hasattr(context, name)
    ]


# --------------------------------------------------------------------------- errors


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
        ("the peer rejected our certificate (certificate_unknown)"),
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
      failure: :attr:`PhoenixTLSContext.failure`, which says more than any code if
        this side has ended the handshake.
    """
    if not by_peer and isinstance(failure, HandshakeFailed):
        return failure
    said = f"; it says {_quote(reason)}" if reason and by_peer else f": {reason}" if reason else ""
    if error_code == QuicErrorCode.CONNECTION_REFUSED:
        who = "the server refused the connection" if by_peer else "the connection was refused here"
        return ConnectionRefused(
            f"{who} (CONNECTION_REFUSED){said}; try again later",
            error_code=error_code,
            reason=reason,
            by_peer=by_peer,
        )
    if not _CRYPTO_ERROR <= error_code <= _CRYPTO_ERROR + 0xFF:
        who = "the peer" if by_peer else "this side"
        return HandshakeFailed(
            f"{who} ended the handshake with the error 0x{error_code:x}{said}",
            error_code=error_code,
            reason=reason,
            by_peer=by_peer,
        )
    alert = error_code - _CRYPTO_ERROR
    kind, text = _BY_ALERT.get(
        alert, (HandshakeFailed, f"the peer ended the TLS handshake: {_alert_name(alert)}")
    )
    if not by_peer:
        # Certificates have their own failures (above), so only the protocol can be left.
        if kind is not NoCommonProtocol:
            kind = HandshakeFailed
        text = f"the TLS handshake failed on this side: {_alert_name(alert)}"
    error = kind(
        f"{text}{said}", alert=alert, error_code=error_code, reason=reason, by_peer=by_peer
    )
    if not by_peer:
        error.__cause__ = failure
    return error
