"""The TLS state of a handshake: aioquic's state machine under a policy of ours.

Floor 1, sans-IO.  aioquic's ``tls.Context`` is extended in three steps, one for each job:
:mod:`~phoenix_trio.quic.handshake.hello_context` (the hellos),
:mod:`~phoenix_trio.quic.handshake.certificate_judge` (which peers to trust), and this module
(tickets, early data, alerts).  These three touch private names of ``aioquic.tls``
(version 1.7.2, listed in :data:`RELIED_ON`; a test fails loudly when one is missing).

Whatever a peer sends may lead to a ``tls.Alert`` and nothing else: aioquic turns
alerts into a CONNECTION_CLOSE with a CRYPTO_ERROR (RFC 9001 section 4.8), while
any other exception would escape into the endpoint.  Each alert leaves an
exception of ours in :attr:`PhoenixTLSContext.failure`, with the text for users;
the alert's own text goes to the peer and stays short.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Callable
from typing import final

import aioquic
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicTransportParameters, pull_quic_transport_parameters
from cryptography import x509

from ...errors import ClientCertificateRequired, HandshakeFailed, NoCommonProtocol
from ..wire.errors import CRYPTO_ERROR
from .certificate_judge import JudgingContext
from .key_exchange import GROUPS
from .policies import ClientPolicy, Policy, ServerPolicy, client_policy, server_policy
from .tls_failures import (
    AlertCertificateRequired,
    AlertCertificateRevoked,
    AlertUnknownCA,
    handshake_error,
    quote,
)
from .tls_messages import parse_client_hello

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

#: Names of ``aioquic.tls.Context`` which are overridden, read or set here, and which aioquic
#: does not promise to keep (tls.py of version 1.7.2, lines 1288 to 2260).
RELIED_ON: tuple[str, ...] = (
    "_alpn_protocols",
    "_build_session_ticket",
    "_certificate_request",
    "_check_certificate_verify_signature",
    "_cipher_suites",
    "_client_handle_hello",
    "_client_send_hello",
    "_enc_key",
    "_is_client",
    "_max_early_data",
    "_peer_certificate",
    "_peer_certificate_chain",
    "_psk_key_exchange_mode",
    "_receive_buffer",
    "_request_client_certificate",
    "_server_expect_finished",
    "_server_handle_certificate",
    "_server_handle_finished",
    "_server_handle_hello",
    "_server_name",
    "_session_resumed",
    "_set_peer_certificate",
    "_set_state",
    "_setup_traffic_protection",
    "_signature_algorithms",
    "_signature_algorithms_for_private_key",
    "_supported_groups",
    "_verify_mode",
    "alpn_cb",
    "alpn_negotiated",
    "certificate",
    "certificate_chain",
    "certificate_private_key",
    "client_random",
    "early_data_accepted",
    "get_session_ticket_cb",
    "handle_message",
    "handshake_extensions",
    "key_schedule",
    "legacy_session_id",
    "new_session_ticket_cb",
    "received_extensions",
    "session_ticket",
    "state",
    "update_traffic_key_cb",
)

#: Twice what our own handshakes can send; OpenSSL's limits are of this order too.  aioquic would
#: collect up to 16 MiB from a peer before it is authenticated.
_LARGEST_MESSAGE = 128 * 1024

#: Seconds for which a ticket of ours holds, as aioquic's.
_TICKET_LIFETIME = 86_400

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


# -------------------------------------------------------------------------- context


@final
class PhoenixTLSContext(JudgingContext):
    """A TLS context which obeys a policy; made by :func:`adopt` alone.

    Attributes:
      policy: what it obeys.
      failure: why the handshake failed on this side, for the user; ``None``: it did not.
      seal_ticket: server: makes what the client is given of a session; ``None``: a random label.
    """

    seal_ticket: Callable[[tls.SessionTicket], bytes] | None

    _dead: bool
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
        """What the peer sent: its own certificate, then the others in their order.

        Empty where :attr:`peer_certificate` is ``None``.
        """
        own = self.peer_certificate
        return () if own is None else (own, *self._peer_certificate_chain)

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""
        return self._certificate_request is not None

    def release(self) -> None:
        """Free what the context holds: its callbacks refer to it and to the connection."""
        vars(self).clear()

    # ------------------------------------------------------------ overrides of aioquic

    # aioquic sets this attribute where it is about to accept 0-RTT data (lines 1771 and
    # 2024), without asking whether the application wants them.  As a property it can be vetoed.
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
                self.failure: HandshakeFailed | None = handshake_error(
                    error_code=CRYPTO_ERROR + int(alert.description),
                    reason=str(alert),
                    by_peer=False,
                    failure=None,
                )
                self.failure.__cause__ = alert
            # Tracebacks refer to all that took part, some of it in circles (line 1197), and
            # the failure may be kept for long.
            _forget_tracebacks(alert, self._rejection)
            _forget_tracebacks(self.failure, self._rejection)
            raise type(alert)(*alert.args) from None

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        """Line 1925: name both sides' protocols where they have none in common."""
        try:
            super()._server_handle_hello(input_buf, initial_buf, handshake_buf)
        except tls.AlertNoApplicationProtocol as alert:
            offered = parse_client_hello(input_buf.data).alpn or []
            theirs = ", ".join(quote(name, 80) for name in offered[:8]) or "none"
            ours = ", ".join(repr(name) for name in self._alpn_protocols or ())
            self._refuse(
                alert,
                NoCommonProtocol,
                f"the client offers no ALPN protocol which is served here: it offers {theirs}, "
                f"we serve {ours}",
            )

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        """Line 2166: an empty certificate message is not enough where one is required.

        Where the application decides, it may accept that.
        """
        super()._server_handle_certificate(input_buf)
        if self._peer_certificate is None:
            if self.policy.verify is not None:
                self._ask_verifier(self.policy.verify)
                return
            self._refuse(
                AlertCertificateRequired("A client certificate is required"),
                ClientCertificateRequired,
                "the client showed no certificate, and client_ca makes one required; "
                "give the client a certificate and private_key",
            )

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

    def _with_protocol(self, ticket: tls.SessionTicket) -> tls.SessionTicket:
        """Server: the ticket of a session with its protocol."""
        protocol = (int(tls.ExtensionType.ALPN), (self.alpn_negotiated or "").encode())
        return dataclasses.replace(ticket, other_extensions=[*ticket.other_extensions, protocol])

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        """Line 2188: send a ticket which holds the session, if one is to be sealed."""
        keep, seal = self.new_session_ticket_cb, self.seal_ticket
        if keep is None or seal is None:
            super()._server_handle_finished(input_buf, output_buf)
            return
        self.new_session_ticket_cb = None
        super()._server_handle_finished(input_buf, output_buf)
        self.new_session_ticket_cb = keep
        if self._psk_key_exchange_mode is None:
            return
        message = tls.NewSessionTicket(
            ticket_lifetime=_TICKET_LIFETIME,
            ticket_age_add=int.from_bytes(os.urandom(4), "big"),
            max_early_data_size=self._max_early_data,
        )
        session = self._build_session_ticket(message, self.handshake_extensions)
        message.ticket = seal(self._with_protocol(session))
        tls.push_new_session_ticket(output_buf, message)
        keep(dataclasses.replace(session, ticket=message.ticket))


def _forget_tracebacks(error: BaseException | None, rejection: Exception | None) -> None:
    """Of an exception and of those which led to it.

    The application's own is kept as it is: its traceback shows mistakes in the application.
    """
    while error is not None and error is not rejection:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _transport_parameters(data: bytes | None) -> QuicTransportParameters | None:
    return None if data is None else pull_quic_transport_parameters(Buffer(data=data))


def adopt(
    context: tls.Context, policy: Policy, certificate_message: bytes = b""
) -> PhoenixTLSContext:
    """Put a context which aioquic has just made under a policy; returns the same object.

    Its callbacks have to be set.

    Args:
      context: a new one.
      policy: what it has to obey.
      certificate_message: server: the message with its certificates; empty: it is built.

    Raises:
      TypeError: the context is not fresh, or the policy is for the other role.
    """
    if type(context) is not tls.Context:
        raise TypeError(f"only a fresh aioquic context can be adopted, not {context!r}")
    if context._is_client != isinstance(policy, ClientPolicy):
        raise TypeError(f"{type(policy).__name__} is for the other role")
    # (A connection of aioquic's constructs its context itself, and takes no factory.)
    early_data_accepted = context.__dict__.pop("early_data_accepted")
    context.__class__ = PhoenixTLSContext
    assert isinstance(context, PhoenixTLSContext)
    context.policy = policy
    context.failure = None
    context.seal_ticket = None
    context._dead = False
    context._accepted_peer = False
    context._peer_certificates = ()
    context._verdict = None
    context._rejection = None
    context.prepare(certificate_message)
    context._supported_groups = [GROUPS[name] for name in policy.groups]
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


def _adopt_server(context: PhoenixTLSContext, policy: ServerPolicy) -> None:
    if not policy.early_data:
        context._max_early_data = None
    if policy.client_store is not None or policy.verify is not None:
        context._request_client_certificate = True
        # After a resumption aioquic would wait for a client certificate (line 2161), which TLS
        # does not send then (RFC 8446 section 4.3.2): so every handshake is a full one.
        context.get_session_ticket_cb = None
        context.new_session_ticket_cb = None
    fetch, keep = context.get_session_ticket_cb, context.new_session_ticket_cb
    if fetch is not None:
        context.get_session_ticket_cb = lambda label: context._find_ticket(fetch, label)
    if keep is not None:
        context.new_session_ticket_cb = lambda ticket: keep(context._with_protocol(ticket))
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
