"""The state of a handshake: its parts, and the few values which they share.

Floor 1, data mostly.  :mod:`~phoenix_trio.quic.handshake.receive`,
:mod:`~phoenix_trio.quic.handshake.transmit` and
:mod:`~phoenix_trio.quic.handshake.tls_link` work on it.
"""

from __future__ import annotations

import math
import os
from typing import Final

from ..established.parameters import PeerParameters
from ..wire.qlog import Trace
from .early_packets import EarlyPackets
from .host import APPLICATION, EARLY, HandshakeHost
from .keys import InitialKeyring
from .packets import HANDSHAKE, INITIAL
from .recovery import HandshakeRecovery
from .settings import HandshakeSettings
from .space import Space

__all__ = ["HANDSHAKE_LEVEL", "HandshakeState"]

#: The level of Handshake packets, beside :data:`~.host.EARLY` and :data:`~.host.APPLICATION`.
HANDSHAKE_LEVEL: Final = 2


class HandshakeState:
    """The state of one handshake.

    Args:
      host: the owner.
      settings: roles, certificates and limits, known before it begins.
    """

    __slots__ = (
        "ack_delay_exponent",
        "alpn",
        "came_from_one_address",
        "can_open_application",
        "can_open_early",
        "can_send_early",
        "cipher_suite",
        "closing",
        "early",
        "handshake",
        "has_peer",
        "host",
        "host_cid",
        "initial",
        "is_client",
        "is_complete",
        "is_confirmed",
        "is_over",
        "keyring",
        "original_destination_cid",
        "packets_sent",
        "peer_cid",
        "peer_source_cid",
        "probe_pending",
        "probes_due",
        "recovery",
        "retry_source_cid",
        "settings",
        "token",
        "trace",
        "version",
    )

    def __init__(self, host: HandshakeHost, settings: HandshakeSettings) -> None:
        self.host: HandshakeHost = host
        self.settings: HandshakeSettings = settings
        self.is_client: bool = settings.is_client
        self.host_cid: bytes = settings.make_connection_id()
        """By which the peer addresses this side."""
        self.version: int = settings.first_version or settings.versions[0]
        """The QUIC version in use; a server's is that of the client's first packet at first."""
        if settings.is_client:
            original = os.urandom(settings.cid_length)
            self.keyring: InitialKeyring = InitialKeyring(original)
            self.peer_cid: bytes = original
        else:
            original = settings.original_destination_cid
            self.keyring = InitialKeyring(settings.destination_cid, settings.initial_keys)
            self.peer_cid = b""
        self.original_destination_cid: bytes = original
        """The destination connection ID of the client's first packet."""
        self.retry_source_cid: bytes | None = settings.retry_source_cid
        """That of the Retry packet; ``None``: there was none."""
        self.peer_source_cid: bytes | None = None
        """The source connection ID of the peer's first packet."""
        self.token: bytes = settings.token
        """Client: what proves its address, from an earlier connection or a Retry packet."""
        self.initial: Space = Space(INITIAL)
        self.handshake: Space = Space(HANDSHAKE)
        self.recovery: HandshakeRecovery = HandshakeRecovery(
            settings.is_client, host.rtt, host.control
        )
        self.recovery.spaces = (self.initial, self.handshake)
        self.packets_sent: int = 0

        self.early: EarlyPackets | None = EarlyPackets(
            (HANDSHAKE_LEVEL, APPLICATION) if settings.is_client else (EARLY,)
        )
        """Packets which wait for keys; ``None`` once all keys are there."""
        self.can_open_early: bool = False
        self.can_open_application: bool = False
        self.can_send_early: bool = False
        self.cipher_suite: int = 0
        """Of 1-RTT packets (RFC 8446 appendix B.4); 0: not agreed yet."""
        self.alpn: str | None = None
        """The application protocol, once it is chosen."""
        self.ack_delay_exponent: int = 3
        """The peer's."""

        self.has_peer: bool = False
        """Whether a packet of the peer was ever authentic."""
        self.came_from_one_address: bool = True
        """Server: whether the whole handshake came from the address of its first packet."""
        self.is_complete: bool = False
        self.is_confirmed: bool = False
        self.is_over: bool = False
        """Whether the connection has ended, or is about to: nothing more is received."""
        self.closing: tuple[int, int, str] | None = None
        """Code, frame type and reason of a CONNECTION_CLOSE to send."""
        self.probe_pending: bool = False
        """Whether an ack-eliciting packet is to be sent in any case."""
        self.probes_due: int = 0
        """Datagrams which a probe timeout has still to send."""

        logger = settings.trace_logger
        self.trace: Trace | None = None
        if logger is not None:
            self.trace = logger.start_trace(is_client=settings.is_client, odcid=original)

    def set_version(self, version: int) -> None:
        """Use this QUIC version from now on, and its keys for Initial packets."""
        self.version = version
        if not self.initial.is_discarded:
            self.initial.send_keys = self.keyring.get(version, of_client=self.is_client)

    def set_destination(self, cid: bytes) -> None:
        """Client: the keys of Initial packets follow from this connection ID from now on."""
        self.keyring = InitialKeyring(cid)
        self.set_version(self.version)

    def repeat(self) -> bool:
        """Send what is not acknowledged again; whether there is any."""
        if not self.recovery.repeat():
            return False
        self.probe_pending = True
        return True

    def confirm(self) -> None:
        """The handshake is confirmed: its keys are of no use any more (RFC 9001 section 4.9.2)."""
        recovery = self.recovery
        for space in (self.initial, self.handshake):
            if not space.is_discarded:
                recovery.discard(space)
        self.keyring.discard()
        recovery.is_confirmed = self.is_confirmed = True
        recovery.peer_knows_address = True
        self.probes_due = 0

    def log_parameters(self, peer: PeerParameters) -> None:
        """Write the peer's transport parameters to the trace."""
        if self.trace is None:
            return
        self.log(
            "transport",
            "parameters_set",
            owner="remote",
            ack_delay_exponent=peer.ack_delay_exponent,
            active_connection_id_limit=peer.active_connection_id_limit,
            initial_max_data=peer.max_data,
            initial_max_stream_data_bidi_local=peer.max_stream_data_bidi_local,
            initial_max_stream_data_bidi_remote=peer.max_stream_data_bidi_remote,
            initial_max_stream_data_uni=peer.max_stream_data_uni,
            initial_max_streams_bidi=peer.max_streams_bidi,
            initial_max_streams_uni=peer.max_streams_uni,
            max_ack_delay=peer.max_ack_delay * 1000,
            max_datagram_frame_size=peer.max_datagram_frame_size,
            max_idle_timeout=0
            if peer.max_idle_timeout == math.inf
            else peer.max_idle_timeout * 1000,
            max_udp_payload_size=peer.max_udp_payload_size,
        )

    def log(self, category: str, event: str, **data: object) -> None:
        """Write a qlog event; the caller has seen that there is a trace."""
        if self.trace is not None:
            self.trace.log_event(category=category, event=event, data=data)
