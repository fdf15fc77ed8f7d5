"""TLS up to the end of the hellos: both sides agree on a cipher suite, a group and a session.

Floor 1, sans-IO.  Replaces aioquic's methods (``tls.py`` 1569-1756 and 1925-2157 of
version 1.7.2) it

* makes one key share only, or two where the first is X25519MLKEM768, which aioquic does
  not know: a server which wants another group asks for it (HelloRetryRequest, RFC 8446
  section 4.1.4), which aioquic neither answers nor sends;
* builds and parses messages in one piece, and builds those parts once which are the same
  for every connection: aioquic's calls for each field take half the time of a handshake;
* computes the key schedule for the cipher suite which is chosen alone.

The rest of the state machine, from EncryptedExtensions on, is aioquic's.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import Buffer
from cryptography.hazmat.primitives.serialization import Encoding

from .key_exchange import KeyExchange, answer_exchange, begin_exchange, begin_offer
from .key_schedule import KeySchedule, message_hash
from .tls_messages import (
    PSK_WITH_KEY_EXCHANGE,
    RETRY_RANDOM,
    ClientHello,
    ServerHello,
    binders_size,
    build_certificate,
    build_certificate_request,
    build_certificate_verify,
    build_client_hello,
    build_encrypted_extensions,
    build_finished,
    build_server_hello,
    fixed_extensions,
    key_share_of_server,
    parse_client_hello,
    parse_server_hello,
)

__all__ = ["HelloContext"]

_TLS_1_3: Final = 0x0304

_SERVER_CONTEXT: Final = b"TLS 1.3, server CertificateVerify"


class HelloContext(tls.Context):
    """A TLS context with hellos of its own; :meth:`prepare` comes first."""

    _exchanges: list[KeyExchange]
    """Client: the keys of its latest hello."""
    _supported_groups: list[int]  # type: ignore[assignment]
    """The preferred one first; aioquic's enumeration lacks some."""
    _key_group: int
    """The group in which keys were exchanged; 0: none yet."""
    _messages: bytes
    """Those of the transcript before its hash function is known."""
    _psk_schedule: KeySchedule | None
    _retry_suite: int
    """The cipher suite of a HelloRetryRequest; 0: there was none."""
    _retry_group: int
    """Server: the group which it has asked for."""
    _certificate_message: bytes
    """Server: what it shows, once it was built."""

    def prepare(self, certificate_message: bytes = b"") -> None:
        """Set what :class:`aioquic.tls.Context` does not know of.

        Args:
          certificate_message: server: what it shows, if it was built before.
        """
        self._exchanges = []
        self._key_group = 0
        self._messages = b""
        self._psk_schedule = None
        self._retry_suite = self._retry_group = 0
        self._certificate_message = certificate_message

    @property
    def was_retried(self) -> bool:
        """Client: whether the server has asked for another hello, which refuses 0-RTT data."""
        return self._retry_suite != 0

    @property
    def key_group(self) -> int:
        """The group in which keys were exchanged (RFC 8446 section 4.2.7); 0: none yet."""
        return self._key_group

    # ------------------------------------------------------------------ client

    def _client_send_hello(self, output_buf: Buffer) -> None:
        """Line 1569: with few shares, see :func:`~.key_exchange.begin_offer`."""
        self._exchanges = begin_offer(self._supported_groups)
        self._write_client_hello(output_buf, b"")
        self._set_state(tls.State.CLIENT_EXPECT_SERVER_HELLO)

    def _write_client_hello(self, output_buf: Buffer, cookie: bytes) -> None:
        ticket = self._usable_ticket()
        schedule: KeySchedule | None = None
        offer: tuple[bytes, int, int] | None = None
        binder_key = b""
        with_early_data = False
        if ticket is not None:
            schedule = KeySchedule(ticket.cipher_suite)
            schedule.extract(ticket.resumption_secret)
            binder_key = schedule.derive_secret(b"res binder")
            size = schedule.algorithm.digest_size
            offer = ticket.ticket, ticket.obfuscated_age, size
            # RFC 8446 section 4.2.10: not after a HelloRetryRequest.
            with_early_data = ticket.max_early_data_size is not None and not self._retry_suite
        hello = build_client_hello(
            random=self.client_random,
            session_id=self.legacy_session_id,
            cipher_suites=self._cipher_suites,
            fixed=fixed_extensions(
                server_name=self._server_name,
                alpn=None if self._alpn_protocols is None else tuple(self._alpn_protocols),
                groups=tuple(self._supported_groups),
                signature_algorithms=tuple(self._signature_algorithms),
                with_tickets=ticket is not None or self.new_session_ticket_cb is not None,
            ),
            key_shares=[(each.group, each.public) for each in self._exchanges],
            other=self.handshake_extensions,
            cookie=cookie,
            with_early_data=with_early_data,
            ticket=offer,
        )
        if schedule is not None and offer is not None:
            binders_at = len(hello) - binders_size(offer[2])
            schedule.update_hash(self._messages + hello[:binders_at])
            hello = hello[: -offer[2]] + schedule.finished_verify_data(binder_key)
            schedule.update_hash(hello[binders_at:])
        output_buf.push_bytes(hello)
        self._messages += hello
        self._psk_schedule = schedule
        if schedule is not None and with_early_data:
            self.update_traffic_key_cb(
                tls.Direction.ENCRYPT,
                tls.Epoch.ZERO_RTT,
                schedule.cipher_suite,
                schedule.derive_secret(b"c e traffic"),
            )

    def _usable_ticket(self) -> tls.SessionTicket | None:
        ticket = self.session_ticket
        if ticket is None or not ticket.is_valid:
            return None
        if self._retry_suite not in (0, ticket.cipher_suite):
            return None  # RFC 8446 section 4.1.4: it could not be taken any more
        return ticket

    def _client_handle_hello(self, input_buf: Buffer, output_buf: Buffer) -> None:
        """Line 1677."""
        data = _whole(input_buf)
        hello = parse_server_hello(data)
        cipher_suite = self._check_server_hello(hello)
        if hello.is_retry:
            self._answer_retry(hello, cipher_suite, data, output_buf)
            return
        if hello.key_share is None:
            # No other way of key exchange was offered (RFC 8446 section 9.2).
            raise tls.AlertMissingExtension("ServerHello has no key share")
        schedule = self._psk_schedule
        if hello.ticket >= 0:
            if schedule is None or hello.ticket or cipher_suite != schedule.cipher_suite:
                raise tls.AlertIllegalParameter("ServerHello has a PSK we did not offer")
            self._session_resumed = True
        else:
            schedule = KeySchedule(cipher_suite)
            schedule.extract(None)
            schedule.update_hash(self._messages)
        group, public_key = hello.key_share
        exchange = _find(self._exchanges, group)
        if exchange is None:
            raise tls.AlertIllegalParameter("ServerHello has a key share we did not advertise")
        try:
            shared_key = exchange.finish(public_key)
        except ValueError:
            raise tls.AlertIllegalParameter("ServerHello has an invalid key share") from None
        self.key_schedule: KeySchedule = schedule
        self._psk_schedule = None
        self._exchanges = []
        self._key_group = group
        self._messages = b""
        schedule.update_hash(data)
        schedule.extract(shared_key)
        # Both at once: Handshake packets may have to be acknowledged before the next message
        # comes (RFC 9001 section 4.1.4).
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")
        self._set_state(tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)

    def _check_server_hello(self, hello: ServerHello) -> tls.CipherSuite:
        if hello.version != _TLS_1_3:
            raise tls.AlertIllegalParameter("ServerHello has a version we did not advertise")
        if hello.session_id != self.legacy_session_id:
            raise tls.AlertIllegalParameter("ServerHello has another legacy_session_id")
        if hello.compression_method:
            raise tls.AlertIllegalParameter(
                "ServerHello has a compression method we did not advertise"
            )
        for cipher_suite in self._cipher_suites:
            if cipher_suite == hello.cipher_suite:
                break
        else:
            raise tls.AlertHandshakeFailure("Unsupported cipher suite")
        if self._retry_suite not in (0, cipher_suite):
            raise tls.AlertIllegalParameter("ServerHello has another cipher suite than before")
        return cipher_suite

    def _answer_retry(
        self, hello: ServerHello, cipher_suite: tls.CipherSuite, data: bytes, output_buf: Buffer
    ) -> None:
        """A HelloRetryRequest (RFC 8446 section 4.1.4)."""
        if self._retry_suite:
            raise tls.AlertUnexpectedMessage("A second HelloRetryRequest")
        if hello.key_share is not None:
            group = hello.key_share[0]
            is_offered = _find(self._exchanges, group) is not None
            if is_offered or group not in self._supported_groups:
                raise tls.AlertIllegalParameter("HelloRetryRequest has a group of no use")
            self._exchanges = [begin_exchange(group)]
        elif not hello.cookie:
            raise tls.AlertIllegalParameter("HelloRetryRequest asks for nothing")
        self._retry_suite = cipher_suite
        self._messages = message_hash(cipher_suite, self._messages) + data
        self._write_client_hello(output_buf, hello.cookie)

    # ------------------------------------------------------------------ server

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        """Line 1925."""
        data = _whole(input_buf)
        hello = parse_client_hello(data)
        cipher_suite = self._choose_cipher_suite(hello)
        signature_algorithm = _choose(
            self._signature_algorithms_for_private_key(), hello.signature_algorithms or ()
        )
        if signature_algorithm is None:
            raise tls.AlertHandshakeFailure("No supported signature algorithm")
        if hello.versions is None or _TLS_1_3 not in hello.versions:
            raise tls.AlertProtocolVersion("No supported protocol version")
        share = self._choose_share(hello)
        if share is None:
            self._ask_for_share(hello, cipher_suite, data, initial_buf)
            return
        if self._alpn_protocols is not None:
            alpn = [name for name in self._alpn_protocols if name in (hello.alpn or ())]
            if not alpn:
                raise tls.AlertNoApplicationProtocol("No common ALPN protocols")
            self.alpn_negotiated: str = alpn[0]
        self.client_random: bytes = hello.random
        self.server_random: bytes = os.urandom(32)
        self.legacy_session_id: bytes = hello.session_id
        self.received_extensions: list[tls.Extension] | None = hello.other
        if self.alpn_cb is not None and self.alpn_negotiated is not None:
            # (What the application says of itself may change from here on.)
            self.alpn_cb(self.alpn_negotiated)
        self._resume(hello, cipher_suite, data)
        if not self._session_resumed:
            self.key_schedule = KeySchedule(cipher_suite)
            self.key_schedule.extract(None)
            self.key_schedule.update_hash(self._messages + data)
        self._messages = b""
        self._answer_hello(share, initial_buf)
        self._write_flight(handshake_buf, signature_algorithm)
        if PSK_WITH_KEY_EXCHANGE in hello.psk_modes:
            self._psk_key_exchange_mode = PSK_WITH_KEY_EXCHANGE
        if self._request_client_certificate:
            self._set_state(tls.State.SERVER_EXPECT_CERTIFICATE)
        else:
            self._server_expect_finished()

    def _choose_cipher_suite(self, hello: ClientHello) -> tls.CipherSuite:
        if 0 not in hello.compression_methods:
            raise tls.AlertHandshakeFailure("No supported compression method")
        for cipher_suite in self._cipher_suites:
            if cipher_suite in hello.cipher_suites:
                break
        else:
            raise tls.AlertHandshakeFailure("No supported cipher suite")
        if self._retry_suite not in (0, cipher_suite):
            raise tls.AlertIllegalParameter("ClientHello has other cipher suites than before")
        return cipher_suite

    def _choose_share(self, hello: ClientHello) -> tuple[int, bytes] | None:
        """The client's share in the group which is preferred here; ``None``: it has none.

        A client which knows a better group, and has sent no share of it, prefers to save the
        round trip that asking for it takes.
        """
        if hello.key_shares is None:
            # No other way of key exchange is known here (RFC 8446 section 9.2).
            raise tls.AlertMissingExtension("ClientHello has no key share")
        if self._retry_group:
            if [group for group, _ in hello.key_shares] != [self._retry_group]:
                raise tls.AlertIllegalParameter("ClientHello has not the group it was asked for")
            return hello.key_shares[0]
        shares = dict(hello.key_shares)
        if len(shares) != len(hello.key_shares):
            raise tls.AlertIllegalParameter("ClientHello has two key shares of one group")
        for group in self._supported_groups:
            if group in shares:
                return group, shares[group]
        return None

    def _ask_for_share(
        self, hello: ClientHello, cipher_suite: tls.CipherSuite, data: bytes, initial_buf: Buffer
    ) -> None:
        """Send a HelloRetryRequest (RFC 8446 section 4.1.4)."""
        group = _choose(self._supported_groups, hello.groups)
        if group is None:
            raise tls.AlertHandshakeFailure("No supported key share")
        request = build_server_hello(
            random=RETRY_RANDOM,
            session_id=hello.session_id,
            cipher_suite=cipher_suite,
            key_share=group.to_bytes(2, "big"),
        )
        self._retry_suite, self._retry_group = cipher_suite, group
        self._messages = message_hash(cipher_suite, data) + request
        initial_buf.push_bytes(request)

    def _resume(self, hello: ClientHello, cipher_suite: tls.CipherSuite, data: bytes) -> None:
        """Take the client's session ticket, if that is possible (RFC 8446 section 4.2.11)."""
        if (
            self.get_session_ticket_cb is None
            or PSK_WITH_KEY_EXCHANGE not in hello.psk_modes
            or len(hello.identities) != 1
            or len(hello.binders) != 1
        ):
            return
        ticket = self.get_session_ticket_cb(hello.identities[0])
        if ticket is None or not ticket.is_valid or ticket.cipher_suite != cipher_suite:
            return
        schedule = KeySchedule(cipher_suite)
        schedule.extract(ticket.resumption_secret)
        binder_key = schedule.derive_secret(b"res binder")
        schedule.update_hash(self._messages + data[: hello.binders_at])
        binder = schedule.finished_verify_data(binder_key)
        if not hmac.compare_digest(binder, hello.binders[0]):
            raise tls.AlertDecryptError("PSK validation failed")
        schedule.update_hash(data[hello.binders_at :])
        self.key_schedule = schedule
        self._session_resumed = True
        if hello.has_early_data and not self._retry_suite:
            self.early_data_accepted = True
            self.update_traffic_key_cb(
                tls.Direction.DECRYPT,
                tls.Epoch.ZERO_RTT,
                cipher_suite,
                schedule.derive_secret(b"c e traffic"),
            )

    def _answer_hello(self, share: tuple[int, bytes], initial_buf: Buffer) -> None:
        """ServerHello, and the keys of Handshake packets."""
        schedule = self.key_schedule
        assert schedule is not None
        group, public_key = share
        try:
            public, shared_key = answer_exchange(group, public_key)
        except ValueError:
            raise tls.AlertIllegalParameter("ClientHello has an invalid key share") from None
        self._key_group = group
        message = build_server_hello(
            random=self.server_random,
            session_id=self.legacy_session_id,
            cipher_suite=schedule.cipher_suite,
            key_share=key_share_of_server(group, public),
            with_ticket=self._session_resumed,
        )
        initial_buf.push_bytes(message)
        schedule.update_hash(message)
        schedule.extract(shared_key)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")

    def _write_flight(self, handshake_buf: Buffer, signature_algorithm: int) -> None:
        """What the server says behind its hello, and the key of its 1-RTT packets."""
        schedule = self.key_schedule
        assert schedule is not None
        messages = [
            build_encrypted_extensions(
                alpn=self.alpn_negotiated,
                with_early_data=self.early_data_accepted,
                other=self.handshake_extensions,
            )
        ]
        if not self._session_resumed:
            if self._request_client_certificate:
                messages.append(build_certificate_request(self._signature_algorithms))
            messages.append(self._certificate_message or self._build_certificate())
            schedule.update_hash(b"".join(messages))
            private_key: Any = self.certificate_private_key
            signature: bytes = private_key.sign(
                schedule.certificate_verify_data(_SERVER_CONTEXT),
                *tls.signature_algorithm_params(signature_algorithm),
            )
            verify = build_certificate_verify(signature_algorithm, signature)
            schedule.update_hash(verify)
            messages.append(verify)
        else:
            schedule.update_hash(messages[0])
        assert self._enc_key is not None
        finished = build_finished(schedule.finished_verify_data(self._enc_key))
        schedule.update_hash(finished)
        messages.append(finished)
        handshake_buf.push_bytes(b"".join(messages))
        schedule.extract(None)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.ONE_RTT, b"s ap traffic")
        self._next_dec_key = schedule.derive_secret(b"c ap traffic")

    def _build_certificate(self) -> bytes:
        assert self.certificate is not None
        chain = [self.certificate, *self.certificate_chain]
        return build_certificate([each.public_bytes(Encoding.DER) for each in chain])


def _whole(buffer: Buffer) -> bytes:
    """The message in the buffer, which is read up to its end."""
    data: bytes = buffer.data_slice(0, buffer.capacity)
    buffer.seek(buffer.capacity)
    return data


def _find(exchanges: Sequence[KeyExchange], group: int) -> KeyExchange | None:
    """The one in this group."""
    for each in exchanges:
        if each.group == group:
            return each
    return None


def _choose(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first of ours which is among theirs."""
    for each in ours:
        if each in theirs:
            return each
    return None
