"""The calls of an application on a connection, and its facts; none of them waits.

Floor 1, sans-IO: the part of :class:`~phoenix_trio.quic.engine.Engine` that the
application's calls use.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config import TransportConfig
from ..metrics import ConnectionStatistics
from .established import path_search
from .established.congestion import Control
from .established.connection import Established
from .established.paths import Paths
from .established.rtt import RoundTrip
from .established.state import NEVER, State
from .established.streams import Streams
from .handshake.connection import Handshake
from .handshake.tls_context import PhoenixTLSContext
from .path_address import Address
from .wire.protection import VERSION_2

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["ApplicationCalls"]


class ApplicationCalls:
    """The parts of a connection, and the calls on them."""

    __slots__ = (
        "_bytes_received",
        "_bytes_sent",
        "_udp_datagrams_received",
        "_udp_datagrams_sent",
        "config",
        "control",
        "established",
        "handshake",
        "paths",
        "rtt",
        "state",
        "streams",
    )

    config: TransportConfig
    """Limits, buffers and timers of this connection."""
    control: Control
    established: Established
    handshake: Handshake
    paths: Paths
    rtt: RoundTrip
    state: State
    streams: Streams
    _bytes_received: int
    _bytes_sent: int
    _udp_datagrams_received: int
    _udp_datagrams_sent: int

    # ------------------------------------------------------------------ facts

    @property
    def has_peer(self) -> bool:
        """Whether a packet of the peer was ever authenticated."""
        return self.handshake.has_peer

    @property
    def quic_version(self) -> int:
        """The QUIC version in use: 1 or 2."""
        return 2 if self.handshake.version == VERSION_2 else 1

    @property
    def cipher(self) -> str | None:
        """The name of the TLS cipher suite; ``None``: not agreed yet."""
        return self.handshake.cipher

    @property
    def key_exchange(self) -> str | None:
        """The name of the group in which keys were exchanged; ``None``: not agreed yet."""
        return self.handshake.key_exchange

    @property
    def came_from_one_address(self) -> bool:
        """Server: whether the whole handshake came from the address of its first packet."""
        return self.handshake.came_from_one_address

    @property
    def can_send_early_data(self) -> bool:
        """Client: whether 0-RTT keys are available now."""
        return self.state.can_send_early

    @property
    def tls_context(self) -> PhoenixTLSContext | None:
        """The TLS state, for certificates and failures; ``None``: TLS has not begun."""
        return self.handshake.tls_context

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, if it was accepted."""
        return self.handshake.peer_certificate

    @property
    def peer_certificate_chain(self) -> tuple[Certificate, ...]:
        """The peer's certificates, its own first, if they were accepted."""
        return self.handshake.peer_certificate_chain

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""
        return self.handshake.client_certificate_requested

    @property
    def connection_ids(self) -> list[bytes]:
        """Our connection IDs that the peer may use at present."""
        return [each.cid for each in self.state.local_ids.all]

    def take_reset_tokens(self) -> set[bytes]:
        """The stateless reset tokens of the peer's connection IDs at present.

        :attr:`reset_tokens_changed` is false until they change again.
        """
        self.state.peer_ids.tokens_changed = False
        return self.state.peer_ids.reset_tokens()

    @property
    def reset_tokens_changed(self) -> bool:
        """Whether the result of :meth:`take_reset_tokens` has changed since its last call."""
        return self.state.peer_ids.tokens_changed

    def get_peer_address(self) -> Address | None:
        """The address to which packets are sent at present; ``None``: there is none yet."""
        return self.paths.all[0].addr if self.paths.all else None

    @property
    def idle_timeout(self) -> float:
        """The smaller of both sides' idle timeouts, in seconds; ``math.inf``: there is none."""
        seconds = min(self.state.own_idle_timeout, self.state.peer_idle_timeout)
        return math.inf if seconds >= NEVER else seconds

    @property
    def keep_alive(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never."""
        return self.established.keep_alive_interval()

    # ------------------------------------------------------------------ streams

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """Open a stream; ``None`` while the peer does not permit another one."""
        return self.streams.open_stream(unidirectional=unidirectional)

    @property
    def available_streams(self) -> int:
        """The number of bidirectional streams that the peer permits now."""
        return self.streams.available_streams(unidirectional=False)

    def streams_left(self, *, unidirectional: bool) -> int:
        """The number of streams of this kind that the peer permits now."""
        return self.streams.available_streams(unidirectional=unidirectional)

    @property
    def streams_opened(self) -> int:
        """Streams opened by this side."""
        return self.streams.opened

    def want_stream(self, change: int, *, unidirectional: bool) -> None:
        """A call begins (1) or ends (-1) to wait until :meth:`open_stream` has one."""
        self.streams.want_stream(change, unidirectional=unidirectional)

    def send_room(self, stream_id: int, wanted: int = 1) -> int:
        """Bytes which may be written to the stream now without exceeding the send buffers."""
        return self.streams.send_room(stream_id, wanted)

    def has_send_room(self, stream_id: int) -> bool:
        """Whether a writer that had to wait should go on: the buffers are half empty."""
        return self.streams.has_send_room(stream_id)

    def write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        """Append to a stream's send buffer (the caller has asked :meth:`send_room`)."""
        self.streams.write(stream_id, data, end_stream=end_stream)

    def written(self, stream_id: int) -> int:
        """Bytes written to the stream so far."""
        return self.streams.written(stream_id)

    def is_acknowledged(self, stream_id: int, offset: int, *, with_fin: bool) -> bool:
        """Whether the peer has acknowledged everything below `offset` (and the end)."""
        return self.streams.is_acknowledged(stream_id, offset, with_fin=with_fin)

    @property
    def has_unacknowledged_streams(self) -> bool:
        """Whether any stream holds data, or an end, which the peer has not acknowledged."""
        return self.streams.has_unacknowledged_streams()

    def reset_sending(self, stream_id: int, error_code: int) -> None:
        """Send RESET_STREAM, and drop what was not acknowledged."""
        self.streams.reset_sending(stream_id, error_code)

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Send STOP_SENDING, and discard what still arrives; its credit is given back."""
        self.streams.stop_receiving(stream_id, error_code)

    def consume(self, stream_id: int, count: int) -> bool:
        """The application has read `count` more bytes: credit them to the peer.

        Returns whether :meth:`extend_credit` has something to do.
        """
        return self.streams.consume(stream_id, count)

    def extend_credit(self, stream_id: int, now: float) -> None:
        """Announce what was read since; see :meth:`consume`."""
        self.streams.extend_credit(stream_id, now, self.rtt.smoothed or self.rtt.initial)

    @property
    def has_limits_to_send(self) -> bool:
        """Whether credit waits to be announced to the peer."""
        return self.streams.has_limits_to_send()

    def let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> bool:
        """The application is done with these directions of the stream.

        Returns whether that was the last of the stream, so that it is forgotten.
        """
        return self.streams.let_go(stream_id, sending=sending, receiving=receiving)

    @property
    def is_congested(self) -> bool:
        """Whether more data waits than the congestion window permits to be in flight."""
        in_flight = self.control.bytes_in_flight
        window = self.state.recovery.congestion_window
        return self.streams.sending.buffered - in_flight >= window and 2 * in_flight > window

    @property
    def has_full_packet(self) -> bool:
        """Whether the stream data not sent before would fill a packet."""
        return self.streams.sending.unsent >= self.state.max_datagram_size

    # ------------------------------------------------------------------ datagrams, pings, keys

    @property
    def max_datagram_payload(self) -> int | None:
        """The largest payload of a datagram at present; ``None``: the peer takes none."""
        return path_search.max_datagram_payload(self.state)

    def has_datagram_room(self, now: float) -> bool:
        """Whether fewer than `datagram_queue_length` datagrams wait to be sent."""
        return self.state.datagrams.has_room(now)

    @property
    def has_queued_datagrams(self) -> bool:
        """Whether any datagram waits to be sent."""
        return self.state.datagrams.waiting > 0

    def want_datagram_room(self) -> None:
        """Report :class:`~phoenix_trio.quic.events.SendProgress` when the queue has room again."""
        self.state.datagrams.wants_room = True

    def send_datagram(
        self,
        data: bytes,
        priority: int = 0,
        expires_at: float = math.inf,
        now: float = 0.0,
        tag: int = -1,
    ) -> None:
        """Queue a datagram; see :meth:`~.established.datagrams.DatagramSender.add`."""
        self.state.datagrams.add(data, priority, expires_at, now, tag)

    def expire_datagram(self, tag: int = -1) -> None:
        """Count a datagram that expired while it waited for room in the queue."""
        self.state.datagrams.expire_unqueued(tag)

    def send_ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is reported with the same `uid`, 0 or more."""
        self.state.pings.append(uid)

    @property
    def can_update_keys(self) -> bool:
        """Whether the peer has acknowledged a packet with the present keys."""
        return self.established.can_update_keys()

    def update_keys(self) -> None:
        """Begin a key update (RFC 9001 section 6.1) if :attr:`can_update_keys`."""
        self.established.update_keys()

    # ------------------------------------------------------------------ paths

    @property
    def peer_forbids_moves(self) -> bool:
        """Whether the peer has sent disable_active_migration (RFC 9000 section 18.2).

        A client may move all the same once it has followed its server to a preferred address.
        """
        return self.state.peer_forbids_moves and self.paths.is_at_first_address

    def path_facts(self) -> list[tuple[Address, bool]]:
        """The address of each path, the active one first, and whether it is validated."""
        return [(path.addr, path.is_validated) for path in self.paths.all]

    @property
    def rtt_min(self) -> float | None:
        """The smallest round-trip time in seconds; ``None`` before the first sample."""
        return self.rtt.minimum if self.rtt.has_sample else None

    def probe_path(self, address: Address, now: float) -> bool:
        """Client: challenge the server on another path, and report
        :class:`~phoenix_trio.quic.events.PathProbed`; whether there is a connection ID for it.
        """
        return self.established.probe_path(address, now)

    def move_to_path(self, address: Address) -> bool:
        """Client: use a validated path from now on.

        Returns whether the connection has moved; without a connection ID for it, it does not.
        """
        return self.established.move_to_path(address)

    def rebind(self, address: Address) -> bool:
        """Client: go on from another local address at once, since the old one is gone.

        Returns whether that is possible: the handshake is confirmed, and the server permits
        moves and has given a connection ID.
        """
        s = self.state
        return s.is_confirmed and not self.peer_forbids_moves and self.established.rebind(address)

    def forget_path(self, address: Address) -> None:
        """Send and receive nothing on this path any more, unless it is the one in use."""
        self.paths.forget(address, self.state.peer_ids)

    # ------------------------------------------------------------------ statistics

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight (RFC 9002 section 7)."""
        return self.state.recovery.congestion_window

    @property
    def rtt_smoothed(self) -> float | None:
        """The smoothed round-trip time in seconds; ``None`` before the first sample."""
        return self.rtt.smoothed if self.rtt.has_sample else None

    @property
    def path_mtu(self) -> int:
        """The largest UDP payload to send, in bytes."""
        return self.state.max_datagram_size

    def statistics(
        self,
        *,
        datagrams_dropped_incoming: int,
        flow_control_stalls: int,
        stream_credit_stalls: int,
        receive_buffer_bytes: int,
    ) -> ConnectionStatistics:
        """A snapshot; the arguments are the counters of the Trio half."""
        s, streams, handshake, rtt = self.state, self.streams, self.handshake, self.rtt
        recovery, sending, datagrams = s.recovery, streams.sending, s.datagrams
        sampled = rtt.has_sample
        return ConnectionStatistics(
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            udp_datagrams_sent=self._udp_datagrams_sent,
            udp_datagrams_received=self._udp_datagrams_received,
            packets_sent=handshake.packets_sent + recovery.next_number - recovery.skipped.count,
            packets_acknowledged=handshake.packets_acknowledged + recovery.packets_acknowledged,
            packets_lost=handshake.packets_lost + recovery.packets_lost,
            stream_bytes_sent=sending.bytes_written,
            stream_bytes_acknowledged=sending.bytes_acknowledged,
            stream_bytes_received=streams.bytes_received,
            stream_bytes_read=streams.receiving.window.released,
            zero_copy_operations=sending.zero_copy_operations,
            streams_opened=streams.opened,
            streams_accepted=streams.accepted,
            datagrams_sent=(
                datagrams.queued - datagrams.dropped - datagrams.expired - datagrams.waiting
            ),
            datagrams_lost=sum(recovery.datagrams_lost.values()),
            datagrams_lost_by_priority=dict(recovery.datagrams_lost),
            datagrams_expired=datagrams.expired,
            datagrams_received=s.datagrams_received,
            datagrams_dropped_outgoing=datagrams.dropped,
            datagrams_dropped_incoming=datagrams_dropped_incoming,
            rtt_latest=rtt.latest if sampled else None,
            rtt_min=rtt.minimum if sampled else None,
            rtt_smoothed=rtt.smoothed if sampled else None,
            rtt_variance=rtt.variance if sampled else None,
            congestion_window=recovery.congestion_window,
            bytes_in_flight=self.control.bytes_in_flight,
            path_mtu=s.max_datagram_size,
            probe_timeouts=handshake.probe_timeouts + recovery.probe_timeouts,
            send_buffer_bytes=sending.buffered,
            receive_buffer_bytes=receive_buffer_bytes,
            receive_window=streams.receiving.window.size,
            flow_control_stalls=flow_control_stalls,
            stream_credit_stalls=stream_credit_stalls,
            key_updates=s.keys.updates_begun,
            ecn_validated=s.ecn.is_validated,
            ecn_congestion_signals=s.ecn.signals,
        )
