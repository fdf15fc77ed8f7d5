"""The handshake of one connection as a state machine.

Floor 1, sans-IO.  Its owner gives it datagrams and times, sends what it builds, and hears of
keys, parameters and the end through :class:`~phoenix_trio.quic.handshake.host.HandshakeHost`.
The handshake sends and reads Initial and Handshake packets alone.
"""

from __future__ import annotations

import math
from typing import Final

from aioquic.tls import CipherSuite
from cryptography.x509 import Certificate

from ..established.ecn import NOT_ECT
from ..path_address import Address
from ..wire.qlog import Trace
from .host import HandshakeHost
from .key_exchange import group_name
from .parameters import LocalParameters
from .receive import HandshakeReceiver
from .settings import HandshakeSettings
from .state import HandshakeState
from .tls_context import PhoenixTLSContext
from .tls_link import TlsLink
from .transmit import (
    begin_probes,
    build_close,
    build_flight,
    build_probes,
    can_acknowledge,
    can_probe,
    early_close,
)

__all__ = ["Handshake"]

#: Seconds by which a timer is taken to be later than it is.
_TIMER_SLACK: Final = 1e-6


class Handshake:
    """The handshake of one connection.

    Args:
      host: its owner.
      settings: see :mod:`~phoenix_trio.quic.handshake.settings`.
      parameters: what this side announces (RFC 9000 section 18.2).
    """

    __slots__ = ("_link", "_receiver", "_state")

    def __init__(
        self, host: HandshakeHost, settings: HandshakeSettings, parameters: LocalParameters
    ) -> None:
        self._state = HandshakeState(host, settings)
        self._link = TlsLink(self._state, parameters)
        self._receiver = HandshakeReceiver(self._state, self._link)

    # -- driving

    def start(self, address: Address, now: float) -> None:
        """Client: begin the handshake with the server at `address`.

        Remembered parameters and 0-RTT keys may be reported at once.
        """
        state = self._state
        state.host.paths.begin(address, is_validated=True)
        state.set_version(state.version)
        self._link.begin()

    def receive(self, datagram: bytes, address: Address, now: float, mark: int = NOT_ECT) -> None:
        """Take one datagram which was routed to this connection.

        Args:
          datagram: it begins with a long header; or it is any, as long as the owner has no
            keys for 1-RTT packets: those which come before their keys are kept here.
          address: where it came from.
          now: the time.
          mark: its ECN codepoint.
        """
        if not self._state.is_over:
            self._receiver.receive(datagram, address, now, mark)

    def transmit(self, now: float) -> list[tuple[bytes, Address]]:
        """All datagrams which may leave now; the established half transmits after it."""
        state = self._state
        if state.closing is not None:
            return build_close(state, now)
        if state.is_over or state.is_confirmed or not state.host.paths.all:
            return []
        if state.probes_due:
            return build_probes(state, now)
        return build_flight(state, now)

    def deadline(self) -> float:
        """When :meth:`on_timer` and :meth:`transmit` are due; infinite: never."""
        state = self._state
        if state.is_over or state.is_confirmed:
            return math.inf
        # A timer for what may not be sent would stay in the past (RFC 9002 section 6.2.2.1).
        deadline = state.recovery.deadline(can_probe(state))
        if can_acknowledge(state):
            for space in (state.initial, state.handshake):
                deadline = min(deadline, space.received.ack_at)
        return deadline

    def on_timer(self, now: float) -> None:
        """The time of :meth:`deadline` has come, or passed."""
        state = self._state
        if state.is_over or state.is_confirmed:
            return
        # Rounding must not make the timer fire for nothing at exactly its time, for ever if
        # the clock stands still.
        now += _TIMER_SLACK
        recovery = state.recovery
        if now >= recovery.deadline(can_probe(state)) and recovery.on_timeout(now):
            begin_probes(state)

    def confirm(self) -> None:
        """Client: HANDSHAKE_DONE has come (RFC 9001 section 4.1.2)."""
        if not self._state.is_confirmed:
            self._state.confirm()

    def close(self, code: int, frame_type: int | None, reason: str) -> None:
        """Say goodbye: :meth:`transmit` gives one datagram with CONNECTION_CLOSE.

        It has one at each level which still has keys; with none, there is no datagram.  The
        owner sees to the anti-amplification limit.  Nothing else is sent or received.

        Args:
          code: the error code.
          frame_type: the frame at fault; ``None``: the application closes, whose code and
            reason are not told before the handshake is complete (RFC 9000 section 10.2.3).
          reason: the reason phrase.
        """
        state = self._state
        state.is_over = True
        state.closing = early_close(code, frame_type, reason)

    def take_tls_message(self, message: bytes) -> None:
        """Client: a whole TLS message from the CRYPTO frames of 1-RTT packets: a session ticket.

        Raises:
          TransportError: TLS does not take it.
        """
        self._link.take(message, 0)

    def release(self) -> None:
        """Cut what refers back, so that nothing waits for the garbage collector."""
        context = self._link.context
        if context is not None:
            context.release()
        state = self._state
        trace, logger = state.trace, state.settings.trace_logger
        if trace is not None and logger is not None:
            logger.end_trace(trace)
        state.trace = None
        state.is_over = True
        del state.host

    # -- facts

    @property
    def version(self) -> int:
        """The QUIC version in use."""
        return self._state.version

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite (RFC 8446 appendix B.4); ``None``: not agreed yet."""
        suite = self._state.cipher_suite
        return f"TLS_{CipherSuite(suite).name}" if suite else None

    @property
    def key_exchange(self) -> str | None:
        """The name of the group in which keys were exchanged; ``None``: they were not yet."""
        context = self._link.context
        return None if context is None else group_name(context.key_group)

    @property
    def host_cid(self) -> bytes:
        """The connection ID by which the peer addresses this side."""
        return self._state.host_cid

    @property
    def peer_cid(self) -> bytes:
        """The connection ID by which this side addresses the peer at present."""
        return self._state.peer_cid

    @property
    def original_destination_cid(self) -> bytes:
        """The destination connection ID of the client's first packet."""
        return self._state.original_destination_cid

    @property
    def has_peer(self) -> bool:
        """Whether a packet of the peer was ever authentic."""
        return self._state.has_peer

    @property
    def was_answered(self) -> bool:
        """Client: whether a server has answered: with a Retry, or an authentic packet."""
        return self._state.has_peer or self._state.retry_source_cid is not None

    @property
    def is_complete(self) -> bool:
        """Whether TLS is complete (RFC 9001 section 4.1.1)."""
        return self._state.is_complete

    @property
    def is_confirmed(self) -> bool:
        """Whether both sides know that it is (RFC 9001 section 4.1.2)."""
        return self._state.is_confirmed

    @property
    def can_send_early_data(self) -> bool:
        """Client: whether 0-RTT packets can be sent: there are no 1-RTT keys yet."""
        return self._state.can_send_early

    @property
    def came_from_one_address(self) -> bool:
        """Server: whether the whole handshake came from the address of its first packet."""
        return self._state.came_from_one_address

    @property
    def alpn(self) -> str | None:
        """The application protocol, once it is chosen; a server may need it for early data."""
        return self._state.alpn

    @property
    def trace(self) -> Trace | None:
        """The qlog trace of the connection, which :meth:`release` ends."""
        return self._state.trace

    @property
    def packets_sent(self) -> int:
        """Initial and Handshake packets sent."""
        return self._state.packets_sent

    @property
    def packets_acknowledged(self) -> int:
        """Initial and Handshake packets which the peer has acknowledged."""
        return self._state.recovery.packets_acknowledged

    @property
    def packets_lost(self) -> int:
        """Initial and Handshake packets which were lost."""
        return self._state.recovery.packets_lost

    @property
    def probe_timeouts(self) -> int:
        """Probe timeouts before the handshake was confirmed."""
        return self._state.recovery.probe_timeouts

    @property
    def tls_context(self) -> PhoenixTLSContext | None:
        """The state of TLS; ``None``: it has not begun."""
        return self._link.context

    @property
    def failure(self) -> Exception | None:
        """Why TLS has failed on this side; ``None``: it has not."""
        context = self._link.context
        return None if context is None else context.failure

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, if it was accepted."""
        context = self._link.context
        return None if context is None else context.peer_certificate

    @property
    def peer_certificate_chain(self) -> tuple[Certificate, ...]:
        """The certificates which the peer sent, its own first, if they were accepted."""
        context = self._link.context
        return () if context is None else context.peer_certificate_chain

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""
        context = self._link.context
        return context is not None and context.client_certificate_requested
