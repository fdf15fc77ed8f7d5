"""Keeps the state of an established connection: its parts, and the few values they share.

Floor 1, data only.  :mod:`~phoenix_trio.quic.established.receive` and
:mod:`~phoenix_trio.quic.established.transmit` work on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ...config import LARGEST_UDP_PAYLOAD, SMALLEST_UDP_PAYLOAD, TransportConfig
from .. import events
from ..connection_id_format import random_connection_id
from ..path_address import Address
from ..rate_limit import RateLimit
from ..wire.errors import TransportError
from ..wire.protection import HeaderKey, PacketKey
from ..wire.qlog import Trace
from .congestion import Control
from .connection_ids import LocalIds, PeerIds
from .crypto import CryptoSender
from .crypto_stream import CryptoReceiver
from .datagrams import DatagramSender
from .ecn import EcnMarking
from .idle import keep_alive_interval, longest_backoff
from .keys import OneRttKeys
from .pacer import Pacer
from .path_mtu import MtuSearch
from .paths import Path, Paths
from .received import ReceivedPackets
from .recovery import Recovery
from .rtt import RoundTrip
from .streams import Streams

__all__ = ["HANDSHAKE_PING", "KEEP_ALIVE_PING", "NEVER", "PeerClose", "State"]

#: "Never", for deadlines that need a finite number: 31 years, in seconds.
NEVER = 1e9

#: The uid of PINGs sent by the keep-alive timer.
KEEP_ALIVE_PING = -1

#: The uid of PINGs that show a server the client's address while the client does not know
#: whether the handshake is confirmed.
HANDSHAKE_PING = -2

#: Session tickets that a client takes: at once, and in each second.  Each costs several key
#: derivations, and a packet has room for sixty; a server sends a few (RFC 8446 section 4.6.1).
_TICKETS_AT_ONCE = 8
_TICKETS_PER_SECOND = 1.0


class PeerClose:
    """The peer's CONNECTION_CLOSE (RFC 9000 section 19.19).

    Args:
      code: the error code.
      frame_type: the frame at fault; -1: the application has closed.
      reason: the reason phrase.
    """

    __slots__ = ("code", "frame_type", "reason")

    def __init__(self, code: int, frame_type: int, reason: str) -> None:
        self.code: int = code
        self.frame_type: int = frame_type
        self.reason: str = reason


class State:
    """The parts of one connection's application packet number space.

    Args:
      is_client: which side this is.
      config: limits, buffers and timers.
      streams: its streams.
      local_cid: this side's first connection ID.
      peer_cid: the peer's first connection ID, as far as it is known.
      reset_token: derives the stateless reset token of a connection ID.
      make_connection_id: makes further connection IDs of this side, as long as the first one.
      rtt: the round-trip estimator, shared with the handshake.
      control: congestion control, shared with the handshake.
      paths: the network paths, shared with the handshake.
      queue: takes the events.
      trace: takes qlog events; ``None``: there is no trace.
    """

    __slots__ = (
        "__weakref__",
        "ack_delay_exponent",
        "arrival_cid",
        "arrival_path",
        "can_send_early",
        "config",
        "control",
        "crypto_receive",
        "crypto_send",
        "datagrams",
        "datagrams_received",
        "ecn",
        "ecn_path",
        "eliciting_sent_since_receipt",
        "events",
        "fault",
        "first_one_rtt",
        "handshake_done_pending",
        "idle_since",
        "is_client",
        "is_complete",
        "is_confirmed",
        "keep_alive_at",
        "keys",
        "known_path",
        "local_cid",
        "local_ids",
        "longest_silence",
        "max_datagram_size",
        "more",
        "mtu",
        "mtu_address",
        "now",
        "on_handshake_done",
        "on_ticket",
        "on_token",
        "own_idle_timeout",
        "pacing_at",
        "path_ceiling",
        "paths",
        "peer_close",
        "peer_forbids_moves",
        "peer_idle_timeout",
        "peer_ids",
        "peer_max_udp_payload",
        "pings",
        "probes_due",
        "received",
        "recovery",
        "rtt",
        "spin",
        "spin_number",
        "streams",
        "tail_held",
        "ticket_limit",
        "token",
        "token_pending",
        "trace",
        "used_peer_changes",
        "version",
        "wrote_before",
        "zero_rtt_header",
        "zero_rtt_key",
    )

    def __init__(
        self,
        *,
        is_client: bool,
        config: TransportConfig,
        streams: Streams,
        local_cid: bytes,
        peer_cid: bytes,
        reset_token: Callable[[bytes], bytes],
        rtt: RoundTrip,
        control: Control,
        paths: Paths,
        queue: list[events.Event],
        trace: Trace | None,
        make_connection_id: Callable[[], bytes] = random_connection_id,
    ) -> None:
        self.is_client: bool = is_client
        self.config: TransportConfig = config
        self.events: list[events.Event] = queue
        self.trace: Trace | None = trace
        self.local_cid: bytes = local_cid
        """This side's first connection ID, the source of 0-RTT packets."""
        self.version: int = 0

        # Keys.
        self.keys: OneRttKeys = OneRttKeys()
        self.zero_rtt_key: PacketKey | None = None
        """Seals a client's 0-RTT packets, or opens them at the server, while they are permitted."""
        self.zero_rtt_header: HeaderKey | None = None
        self.can_send_early: bool = False
        """Client: whether 0-RTT packets may be sent."""

        # Parts.
        self.paths: Paths = paths
        self.local_ids: LocalIds = LocalIds(local_cid, reset_token, queue, make_connection_id)
        self.peer_ids: PeerIds = PeerIds(peer_cid)
        self.rtt: RoundTrip = rtt
        self.control: Control = control
        self.recovery: Recovery = Recovery(rtt, control, Pacer(SMALLEST_UDP_PAYLOAD))
        self.received: ReceivedPackets = ReceivedPackets()
        self.streams: Streams = streams
        self.datagrams: DatagramSender = DatagramSender(config.datagram_queue_length)
        self.crypto_send: CryptoSender = CryptoSender()
        self.crypto_receive: CryptoReceiver = CryptoReceiver()
        self.ecn: EcnMarking = EcnMarking(enabled=config.enable_ecn)
        self.mtu: MtuSearch | None = None
        self.ticket_limit: RateLimit = RateLimit(_TICKETS_PER_SECOND, _TICKETS_AT_ONCE)

        # The handshake.
        self.first_one_rtt: int = 0
        """The number of the first 1-RTT packet; 0-RTT packets have smaller ones."""
        self.is_complete: bool = False
        self.is_confirmed: bool = False
        self.handshake_done_pending: bool = False
        self.on_handshake_done: Callable[[], None] | None = None
        self.on_ticket: Callable[[bytes], None] | None = None
        """Client: takes TLS messages of 1-RTT packets."""
        self.on_token: Callable[[bytes], None] | None = None
        """Client: keeps a token for a later connection."""
        self.token: bytes = b""
        """Server: what proves the client's address in a later connection."""
        self.token_pending: bool = False
        """Whether the client is to be told of it."""

        # The end.
        self.fault: TransportError | None = None
        """The rule broken by the peer; the connection has to be closed."""
        self.peer_close: PeerClose | None = None

        # Things to send besides those of the parts.
        self.pings: list[int] = []
        self.probes_due: int = 0
        """Datagrams of a probe timeout still to be sent."""

        # Paths.
        self.peer_forbids_moves: bool = False
        """Whether the peer has sent disable_active_migration (RFC 9000 section 18.2)."""
        self.mtu_address: Address | None = None
        """The address whose path MTU is searched."""
        self.known_path: Address | None = None
        """The address of the path that congestion control and round-trip times describe."""
        self.ecn_path: Path | None = None
        self.used_peer_changes: int = 0
        """The count of changes of the peer's connection ID when a packet was last sent."""
        self.path_ceiling: Callable[[Address], int | None] = _unknown_path
        """The largest payload that the interface towards an address takes."""
        self.max_datagram_size: int = SMALLEST_UDP_PAYLOAD
        self.peer_max_udp_payload: int = LARGEST_UDP_PAYLOAD
        self.spin: int = 0
        """The spin bit of packets to send (RFC 9000 section 17.4)."""
        self.spin_number: int = -1

        # Times.
        self.now: float = 0.0
        self.arrival_path: Path | None = None
        """The path of the packets being received."""
        self.arrival_cid: bytes = local_cid
        """The destination connection ID of these packets."""
        self.datagrams_received: int = 0
        self.ack_delay_exponent: int = 3
        """The exponent of the peer's ACK delays."""
        self.own_idle_timeout: float = max(min(config.max_idle_timeout, NEVER), 0.001)
        self.peer_idle_timeout: float = math.inf
        self.idle_since: float = math.inf
        """When the idle timer was restarted; infinite: it does not run yet."""
        self.eliciting_sent_since_receipt: bool = False
        self.keep_alive_at: float = math.inf
        self.longest_silence: float = keep_alive_interval(math.inf, self.own_idle_timeout)
        self.pacing_at: float = math.inf
        self.recovery.longest_backoff = longest_backoff(self.own_idle_timeout)

        # One pass of sending.
        self.more: bool = False
        """Whether more may be sent at once than the last call returned."""
        self.wrote_before: bool = False
        self.tail_held: bool = False
        """Whether a partial packet waits for more data."""

    def idle_timeout(self) -> float:
        """Seconds of silence until the connection ends (RFC 9000 section 10.1)."""
        seconds = self.own_idle_timeout
        if self.peer_idle_timeout < seconds:
            seconds = self.peer_idle_timeout
        return max(seconds, 3 * self.recovery.probe_timeout())

    def touch_keep_alive(self, now: float) -> None:
        """Postpone the keep-alive PING, since something was received."""
        interval = self.config.keep_alive
        if interval is not None:
            if interval > self.longest_silence:
                # (Or longer: the idle timeout lasts at least three probe timeouts.)
                interval = keep_alive_interval(interval, self.idle_timeout())
            self.keep_alive_at = now + interval

    def note_received(self, now: float) -> None:
        """Restart the idle timer after an authentic packet (RFC 9000 section 10.1)."""
        self.idle_since = now
        self.eliciting_sent_since_receipt = False
        if self.config.keep_alive is not None:
            self.touch_keep_alive(now)

    def note_eliciting_sent(self, now: float) -> None:
        """Restart the idle timer for the first ack-eliciting packet since the last receipt."""
        if not self.eliciting_sent_since_receipt:
            self.idle_since = now
            self.eliciting_sent_since_receipt = True

    def has_rare_frames(self) -> bool:
        """Whether frames other than acknowledgements, data and limits are to be sent."""
        return bool(
            self.pings
            or self.handshake_done_pending
            or self.token_pending
            or self.local_ids.has_pending
            or self.peer_ids.retiring
            or self.crypto_send.has_pending
            or self.paths.has_frames
        )


def _unknown_path(address: Address) -> int | None:
    return None
