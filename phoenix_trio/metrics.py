"""Statistics as frozen snapshots: plain numbers with units.

Floor 0: data only.  The engine and the endpoint do the counting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import attrs

if TYPE_CHECKING:
    from .quic.path_address import SocketAddress

__all__ = [
    "ConnectionMetrics",
    "ConnectionStatistics",
    "EndpointStatistics",
    "PathStatistics",
    "RateWindow",
    "TransportStatistics",
]


@attrs.frozen(kw_only=True)
class ConnectionStatistics:
    """One connection's counters and estimates at one moment.

    Bytes are UDP payload bytes if the name says ``datagram`` or nothing else, and
    stream bytes if it says ``stream``; times are in seconds.
    """

    bytes_sent: int
    """UDP payload bytes handed to the socket."""
    bytes_received: int
    """UDP payload bytes received, whether they could be decrypted or not."""
    udp_datagrams_sent: int
    udp_datagrams_received: int
    packets_sent: int
    """QUIC packets sent (a UDP datagram can carry several during the handshake)."""
    packets_acknowledged: int
    packets_lost: int
    """Packets declared lost by acknowledgement or time threshold (RFC 9002 section 6.1),
    and those given up by a probe timeout."""
    stream_bytes_sent: int
    """Bytes the application wrote to streams."""
    stream_bytes_acknowledged: int
    """Stream bytes whose receipt the peer has acknowledged."""
    stream_bytes_received: int
    """In-order stream bytes received."""
    stream_bytes_read: int
    """Stream bytes that the application has read or discarded; flow-control credit follows it."""
    zero_copy_operations: int
    """Writes to streams kept as they are, without a copy into the send buffer
    (``TransportConfig.enable_zero_copy``).  A write larger than the room in the buffer is
    taken in parts, and each part counts."""
    streams_opened: int
    """Streams opened by this side."""
    streams_accepted: int
    """Streams opened by the peer."""
    datagrams_sent: int
    """RFC 9221 datagrams put into packets."""
    datagrams_lost: int
    """Of these, those in packets that count in `packets_lost`; a few may arrive late.

    An acknowledged datagram has arrived at the peer's QUIC, not in its application (RFC 9221
    section 5.2)."""
    datagrams_lost_by_priority: Mapping[int, int] = attrs.field(hash=False)
    """The same for each priority of which any was lost (``send_datagram(priority=...)``): a
    sender of media may send less of what is worth least."""
    datagrams_expired: int
    """Outgoing datagrams dropped because their ``expires_after`` was over before they left."""
    datagrams_received: int
    datagrams_dropped_outgoing: int
    """Outgoing datagrams dropped because the queue was full, or because packets, or the peer's
    limit, became too small for them."""
    datagrams_dropped_incoming: int
    """Incoming datagrams dropped because the application did not read them in time."""
    rtt_latest: float | None
    """Latest round-trip sample; ``None`` before the first one."""
    rtt_min: float | None
    rtt_smoothed: float | None
    rtt_variance: float | None
    congestion_window: int
    """Bytes that may be in flight."""
    bytes_in_flight: int
    path_mtu: int
    """The largest UDP payload sent on this path, in bytes."""
    probe_timeouts: int
    """Probe timeouts that fired (RFC 9002 section 6.2)."""
    send_buffer_bytes: int
    """Stream bytes held for sending: unsent and unacknowledged."""
    receive_buffer_bytes: int
    """Stream bytes received that the application has not read."""
    receive_window: int
    """The connection's flow-control window at present, in bytes."""
    flow_control_stalls: int
    """Times a writer found the send buffer full and had to wait."""
    stream_credit_stalls: int
    """Times opening a stream had to wait for the peer's permission."""
    key_updates: int
    """Key updates begun by this side (RFC 9001 section 6)."""
    ecn_validated: bool
    """Whether packets are sent with ECN marks, the path and the peer having proved to report
    them (RFC 9000 section 13.4)."""
    ecn_congestion_signals: int
    """Acknowledgements that reported new marks of congestion."""


@attrs.frozen(kw_only=True)
class PathStatistics:
    """One network path of a connection at one moment (RFC 9000 section 9).

    Round-trip times, window and packet size are known of the active path alone: they are
    learnt anew when a connection moves.
    """

    local_address: SocketAddress
    """This side's end; of an outgoing connection that of the socket."""
    peer_address: SocketAddress
    is_active: bool
    """Whether packets are sent there; else the path is being probed, or was left."""
    is_validated: bool
    """Whether the peer is known to receive there (RFC 9000 section 8.2)."""
    rtt_min: float | None
    rtt_smoothed: float | None
    congestion_window: int | None
    """Bytes which may be in flight."""
    path_mtu: int | None
    """The largest UDP payload which is sent, in bytes."""


@attrs.frozen(kw_only=True)
class EndpointStatistics:
    """One UDP socket's counters at one moment."""

    bytes_sent: int
    bytes_received: int
    datagrams_sent: int
    datagrams_received: int
    send_blocked: int
    """Times the socket's send buffer was full."""
    send_calls: int
    """System calls that sent something; with GSO one call sends many datagrams."""
    receive_calls: int
    """The same for receiving, with GRO."""
    pooled_receives: int
    """Receiving calls that used memory again (``TransportConfig.enable_memory_pool``)."""
    soft_errors: int
    """Datagrams the kernel refused for a passing reason (unreachable, too large, no buffers)."""
    datagrams_unroutable: int
    """Datagrams for no connection of ours, malformed ones included."""
    receives_dropped: int
    """Datagrams, or runs of them, dropped because their connection cost others too
    much time (``TransportConfig.backlog_size``)."""
    connections: int
    """Connections open at present, handshakes included."""
    handshakes: int
    """Incoming handshakes under way at present; a failed one counts until its closing
    period is over (RFC 9000 section 10.2)."""
    connections_accepted: int
    """Incoming connections whose handshake was completed."""
    connections_refused: int
    """Incoming connections refused because a limit was reached."""
    handshakes_failed: int
    """Incoming handshakes that failed or timed out."""
    retries_sent: int
    version_negotiations_sent: int
    stateless_resets_sent: int
    stateless_resets_received: int
    datagrams_passed_on: int
    """Datagrams of other workers' connections, passed on to these (:func:`run_workers`)."""
    datagrams_not_passed_on: int
    """The same, dropped because too many waited for that worker."""
    receive_memory_used: int
    """Bytes that peers may send, or have sent, and the application has not read, above each
    connection's minimum."""
    receive_memory_limit: int
    """``TransportConfig.endpoint_receive_memory``."""
    send_memory_used: int
    """Bytes set aside for data not acknowledged by peers, above each connection's minimum."""
    send_memory_limit: int
    """``TransportConfig.endpoint_send_memory``."""


@attrs.frozen(kw_only=True)
class ConnectionMetrics:
    """The main figures of one connection at one moment, for applications.

    Bytes are stream bytes: sent bytes count when the peer has acknowledged them, received bytes
    when the application has read them.
    """

    bytes_sent: int
    bytes_received: int
    operations: int
    """Completed calls of the application layer (messages and sequences sent and received,
    streams opened and accepted)."""
    messages_sent: int
    messages_received: int
    messages_refused: int
    """Incoming messages that were too large, malformed or not supported."""
    send_rate: float
    """Bits a second, over the time between looks, ten seconds at most."""
    receive_rate: float
    latency: float | None
    """The smoothed round-trip time, in seconds; ``None`` before the first sample."""
    zero_copy_operations: int
    """As in :class:`ConnectionStatistics`."""
    is_draining: bool
    """Whether one side has said that it wants no further streams."""
    statistics: ConnectionStatistics
    """All other figures."""


@attrs.frozen(kw_only=True)
class TransportStatistics:
    """A whole transport at one moment: all its connections, ended ones included in totals.

    Bytes are counted as in :class:`ConnectionMetrics`.
    """

    name: str
    throughput_gbps: float
    """Gigabits a second, both directions together, over the window of the last looks."""
    send_rate: float
    """Bits a second."""
    receive_rate: float
    latency_ms: float | None
    """The mean of the open connections' smoothed round-trip times, in milliseconds;
    ``None``: no connection has a sample."""
    active_connections: int
    connections_opened: int
    """So far, dialled and accepted."""
    total_bytes_sent: int
    total_bytes_received: int
    operations: int
    zero_copy_operations: int
    """As in :class:`ConnectionStatistics`, of all connections so far."""
    packets_lost: int
    incoming_transfers: int
    """Striped transfers under way."""
    outgoing_transfers: int
    handlers_cancelled: int
    """Handlers of servers so far that had not finished at the end of a grace period."""


@final
class RateWindow:
    """The rate of a counter over a sliding window.

    There is no task and no timer behind it: the calls of :meth:`rate` are the samples.  The
    rate is taken since the latest call at least `seconds` ago, or since the oldest one if all are
    more recent; the first is taken since the beginning.

    Args:
      now: the time, in seconds.
      seconds: the length of the window.
    """

    __slots__ = ("_samples", "_seconds")

    def __init__(self, now: float, *, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def rate(self, now: float, count: int) -> float:
        """The rate a second until `now`, when the counter is at `count`."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - self._seconds:
            samples.popleft()
        since, before = samples[0]
        # Calls in quick succession would only fill the window.
        if now - samples[-1][0] >= self._seconds / 50:
            samples.append((now, count))
        return (count - before) / (now - since) if now > since else 0.0
