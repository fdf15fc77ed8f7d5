"""Joins TLS and QUIC (RFC 9001 section 4): messages in, messages, keys and parameters out.

Floor 1, sans-IO.  Also settles on the QUIC version, since the peer's transport parameters
have a say in that (RFC 9368).
"""

from __future__ import annotations

from typing import Final

from aioquic import tls
from aioquic.buffer import Buffer

from ..wire import frames
from ..wire.errors import CRYPTO_ERROR, PROTOCOL_VIOLATION, TransportError
from ..wire.protection import VERSION_1, VERSION_2
from .host import APPLICATION, EARLY
from .keys import derive_keys
from .parameters import LocalParameters, check_parameters, parse_parameters
from .session_tickets import ticket_version, with_version
from .settings import MAX_EARLY_DATA
from .state import HANDSHAKE_LEVEL, HandshakeState
from .tls_context import PhoenixTLSContext

__all__ = ["TlsLink"]

#: Bytes of the longest flight of TLS messages.
_FLIGHT: Final = 16 * 1024

_PARAMETERS: Final = tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
_AFTER_HANDSHAKE: Final = (tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE)

#: Version 1 and version 2 can be exchanged for each other in a handshake (RFC 9369 section 4).
_COMPATIBLE: Final = frozenset((VERSION_1, VERSION_2))

#: Names in key logs and qlog, by epoch.
_LOG_LABELS: Final = {
    tls.Epoch.ZERO_RTT: ("{}_EARLY_TRAFFIC_SECRET", "{}_0rtt_secret"),
    tls.Epoch.HANDSHAKE: ("{}_HANDSHAKE_TRAFFIC_SECRET", "{}_handshake_secret"),
    tls.Epoch.ONE_RTT: ("{}_TRAFFIC_SECRET_0", "{}_1rtt_secret"),
}


class _Output(dict[tls.Epoch, Buffer]):
    """The output of TLS, in one buffer for each level, made on first use."""

    def __missing__(self, epoch: tls.Epoch) -> Buffer:
        buffer = self[epoch] = Buffer(capacity=_FLIGHT)
        return buffer


class TlsLink:
    """The TLS side of one handshake.

    Args:
      state: the handshake.
      parameters: what this side announces.
    """

    __slots__ = (
        "_early_datagram_limit",
        "_has_early_keys",
        "_is_version_settled",
        "_packet_version",
        "_parameters",
        "_state",
        "context",
    )

    def __init__(self, state: HandshakeState, parameters: LocalParameters) -> None:
        self._state = state
        self._parameters = parameters
        self._packet_version = 0
        self._is_version_settled = False
        self._early_datagram_limit = 0
        self._has_early_keys = False
        self.context: PhoenixTLSContext | None = None

    def begin(self) -> None:
        """Begin with a new TLS context; a client says hello."""
        state = self._state
        settings = state.settings
        context = settings.make_context()
        context.handshake_extensions = self._extensions()
        context.alpn_cb = self._on_alpn
        context.update_traffic_key_cb = self._on_key
        if settings.keep_ticket is not None:
            context.new_session_ticket_cb = self._on_ticket
        if settings.find_ticket is not None:
            context.get_session_ticket_cb = self._find_ticket
        ticket = settings.ticket
        if ticket is not None and ticket.is_valid and ticket.server_name == settings.server_name:
            context.session_ticket = ticket
            if ticket.max_early_data_size == MAX_EARLY_DATA:
                self._remember(ticket)
        self.context = settings.adopt(context)
        if settings.seal_ticket is not None:
            self.context.seal_ticket = self._seal_ticket
        if state.is_client:
            self._handle(b"")

    def _extensions(self) -> list[tls.Extension]:
        state = self._state
        settings = state.settings
        reset_token = settings.reset_token
        preferred: bytes | None = None
        if settings.preferred is not None and reset_token is not None:
            cid = settings.preferred_cid
            preferred = settings.preferred.build(cid, reset_token(cid))
        content = self._parameters.build(
            source_cid=state.host_cid,
            version=state.version,
            versions=settings.versions,
            original_destination_cid=None if state.is_client else state.original_destination_cid,
            retry_source_cid=None if state.is_client else state.retry_source_cid,
            reset_token=None if reset_token is None else reset_token(state.host_cid),
            preferred_address=preferred,
        )
        return [(_PARAMETERS, content)]

    def _remember(self, ticket: tls.SessionTicket) -> None:
        """Client: the parameters with which 0-RTT data is sent (RFC 9000 section 7.4.1)."""
        for kind, content in ticket.other_extensions:
            if kind == _PARAMETERS:
                peer = parse_parameters(content, of_server=True).peer
                self._early_datagram_limit = peer.max_datagram_frame_size
                self._state.host.on_parameters(peer, True)

    def take(self, message: bytes, packet_version: int) -> None:
        """Give TLS a whole message of the peer.

        Args:
          message: with its header.
          packet_version: the QUIC version of the packet in which it came; 0: of a short
            header, which says none.

        Raises:
          TransportError: TLS has failed (CRYPTO_ERROR), or the message breaks a rule of QUIC.
        """
        self._packet_version = packet_version
        self._handle(message)

    def _handle(self, message: bytes) -> None:
        context, output = self.context, _Output()
        assert context is not None
        try:
            context.handle_message(message, output)
        except tls.Alert as alert:
            raise TransportError(
                CRYPTO_ERROR + int(alert.description), frames.CRYPTO, str(alert)
            ) from None
        state = self._state
        if self._has_early_keys and state.is_client and context.was_retried:
            # RFC 8446 section 4.2.10: a HelloRetryRequest refuses early data.
            self._refuse_early_data()
        for epoch, buffer in output.items():
            data = buffer.data
            if not data:
                continue
            if epoch is tls.Epoch.ONE_RTT:
                state.host.on_crypto(data)
            else:
                space = state.initial if epoch is tls.Epoch.INITIAL else state.handshake
                space.crypto.write(data)

    def note_progress(self) -> None:
        """After messages were taken: go on if TLS has just completed the handshake."""
        state, context = self._state, self.context
        if state.is_complete or context is None or context.state not in _AFTER_HANDSHAKE:
            return
        state.is_complete = True
        accepted = context.early_data_accepted
        if state.is_client:
            if not accepted and self._has_early_keys:
                self._refuse_early_data()
        else:
            state.confirm()
        state.host.on_complete(state.alpn, accepted, context.session_resumed)

    def begin_anew(self) -> None:
        """Client: begin again with another version, for which there is no ticket."""
        self._state.settings.ticket = None
        if self._has_early_keys:
            self._refuse_early_data()
        self.begin()

    def _refuse_early_data(self) -> None:
        self._has_early_keys = self._state.can_send_early = False
        self._state.host.on_early_data_refused()

    @property
    def expects_server_hello(self) -> bool:
        """Client: whether nothing of the server was understood yet."""
        context = self.context
        return context is not None and context.state is tls.State.CLIENT_EXPECT_SERVER_HELLO

    # -- called by TLS

    def _on_alpn(self, protocol: str) -> None:
        """The peer's extensions are there."""
        state, context = self._state, self.context
        assert context is not None
        if not state.is_client and context.legacy_session_id:
            # QUIC has no use for TLS 1.3's middlebox compatibility (RFC 9001 section 8.4).
            raise TransportError(
                PROTOCOL_VIOLATION, frames.CRYPTO, "ClientHello has a non-empty legacy_session_id"
            )
        extensions = context.received_extensions or ()
        found = [content for kind, content in extensions if kind == _PARAMETERS]
        if not found:
            raise TransportError(
                CRYPTO_ERROR + tls.AlertDescription.missing_extension,
                frames.CRYPTO,
                "No QUIC transport parameters received",
            )
        available = self._take_parameters(found[0])
        if not state.is_client:
            self._choose_version(available)
        state.alpn = protocol

    def _take_parameters(self, content: bytes) -> tuple[int, ...]:
        state, context = self._state, self.context
        assert context is not None
        parameters = parse_parameters(content, of_server=state.is_client)
        check_parameters(
            parameters,
            is_client=state.is_client,
            peer_source_cid=state.peer_source_cid or b"",
            original_destination_cid=state.original_destination_cid,
            retry_source_cid=state.retry_source_cid,
            version=self._packet_version,
        )
        peer = parameters.peer
        if (
            state.is_client
            and context.early_data_accepted
            and peer.max_datagram_frame_size < self._early_datagram_limit
        ):
            # RFC 9221 section 3: it has taken datagrams in 0-RTT by a promise which it breaks.
            raise TransportError(
                PROTOCOL_VIOLATION,
                frames.CRYPTO,
                "max_datagram_frame_size is smaller than the one remembered",
            )
        state.ack_delay_exponent = peer.ack_delay_exponent
        state.recovery.max_ack_delay = peer.max_ack_delay
        state.log_parameters(peer)
        state.host.on_parameters(peer, False)
        return parameters.available_versions

    def _choose_version(self, available: tuple[int, ...]) -> None:
        """Server: the first known version of the client's (RFC 9368 section 2.3)."""
        state, context = self._state, self.context
        assert context is not None
        if self._is_version_settled:
            return
        self._is_version_settled = True
        for version in available:
            if version == state.version:
                return
            if version in state.settings.versions and version in _COMPATIBLE:
                state.set_version(version)
                context.handshake_extensions = self._extensions()
                return

    def _on_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        """TLS has a new secret (RFC 9001 section 4.1.4)."""
        state = self._state
        if state.is_client and self._packet_version and not self._is_version_settled:
            # The server has settled on a version in its first packet.
            state.set_version(self._packet_version)
            self._is_version_settled = True
        for_sending = direction is tls.Direction.ENCRYPT
        self._log_secret(for_sending == state.is_client, epoch, secret)
        suite, version = int(cipher_suite), state.version
        if epoch is tls.Epoch.ONE_RTT:
            state.cipher_suite = suite
        if epoch is tls.Epoch.HANDSHAKE:
            keys = derive_keys(suite, secret, version)
            if for_sending:
                state.handshake.send_keys = keys
            else:
                state.handshake.receive_keys = keys
        elif epoch is tls.Epoch.ONE_RTT:
            state.host.on_keys(APPLICATION, for_sending, suite, secret, version)
        else:
            if not state.is_client:
                # (The server may have settled on another one since the client sent it.)
                version = self._packet_version
            self._has_early_keys = True
            state.host.on_keys(EARLY, for_sending, suite, secret, version)
        if for_sending:
            # RFC 9001 section 4.9.3: 1-RTT keys take the place of 0-RTT keys.
            if epoch is not tls.Epoch.HANDSHAKE:
                state.can_send_early = epoch is tls.Epoch.ZERO_RTT
        else:
            self._begin_level(epoch)

    def _begin_level(self, epoch: tls.Epoch) -> None:
        """With keys to read a level, the one before is over, and early packets can be read."""
        state = self._state
        early = state.early
        if epoch is tls.Epoch.HANDSHAKE:
            state.initial.receiver.close()
            if early is not None:
                early.release(HANDSHAKE_LEVEL)
                if not state.is_client:
                    # 0-RTT keys would be there by now, and the client may send 1-RTT packets soon.
                    early.drop(EARLY)
                    early.expect(APPLICATION)
        elif epoch is tls.Epoch.ONE_RTT:
            state.can_open_application = True
            state.handshake.receiver.close()
            if early is not None:
                early.release(APPLICATION)
        else:
            state.can_open_early = True
            if early is not None:
                early.release(EARLY)

    def _on_ticket(self, ticket: tls.SessionTicket) -> None:
        """RFC 9001 section 4.6.1: a ticket for 0-RTT limits its data in no way."""
        if ticket.max_early_data_size not in (None, MAX_EARLY_DATA):
            raise TransportError(
                PROTOCOL_VIOLATION,
                frames.CRYPTO,
                f"Invalid max_early_data value {ticket.max_early_data_size}",
            )
        keep = self._state.settings.keep_ticket
        assert keep is not None
        keep(with_version(ticket, self._state.version))

    def _seal_ticket(self, ticket: tls.SessionTicket) -> bytes:
        seal = self._state.settings.seal_ticket
        assert seal is not None
        return seal(with_version(ticket, self._state.version))

    def _find_ticket(self, label: bytes) -> tls.SessionTicket | None:
        """Server: the ticket with this label, if it came by the version of the client's packets.

        RFC 9369 section 5.  Otherwise the handshake is a full one.
        """
        find = self._state.settings.find_ticket
        assert find is not None
        ticket = find(label)
        if ticket is None or ticket_version(ticket) != self._packet_version:
            return None
        return ticket

    def _log_secret(self, of_client: bool, epoch: tls.Epoch, secret: bytes) -> None:
        state, context = self._state, self.context
        key_log = state.settings.key_log
        if key_log is None and state.trace is None:
            return
        assert context is not None
        label, key_type = _LOG_LABELS[epoch]
        if key_log is not None and context.client_random is not None:
            side = "CLIENT" if of_client else "SERVER"
            key_log.write(f"{label.format(side)} {context.client_random.hex()} {secret.hex()}\n")
            key_log.flush()
        side = "client" if of_client else "server"
        state.log("security", "key_updated", key_type=key_type.format(side), trigger="tls")
