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

    Attributes:
      bytes_sent: UDP payload bytes handed to the socket.
      bytes_received: UDP payload bytes received, whether they could be decrypted or not.
      udp_datagrams_sent: UDP datagrams handed to the socket.
      udp_datagrams_received: UDP datagrams received.
      packets_sent: QUIC packets sent (a UDP datagram can carry several during the handshake).
      packets_acknowledged: QUIC packets whose receipt the peer has acknowledged.
      packets_lost: Packets declared lost by acknowledgement or time threshold (RFC 9002 section
        6.1), and those given up by a probe timeout.
      stream_bytes_sent: Bytes the application wrote to streams.
      stream_bytes_acknowledged: Stream bytes whose receipt the peer has acknowledged.
      stream_bytes_received: In-order stream bytes received.
      stream_bytes_read: Stream bytes that the application has read or discarded; flow-control
        credit follows it.
      zero_copy_operations: Writes to streams kept as they are, without a copy into the send
        buffer (``TransportConfig.enable_zero_copy``).  A write larger than the room in the
        buffer is taken in parts, and each part counts.
      streams_opened: Streams opened by this side.
      streams_accepted: Streams opened by the peer.
      datagrams_sent: RFC 9221 datagrams put into packets.
      datagrams_lost: Of these, those in packets that count in `packets_lost`; a few may arrive
        late.

        An acknowledged datagram has arrived at the peer's QUIC, not in its application (RFC 9221
        section 5.2).
      datagrams_lost_by_priority: The same for each priority of which any was lost
        (``send_datagram(priority=...)``): a sender of media may send less of what is worth
        least.
      datagrams_expired: Outgoing datagrams dropped because their ``expires_after`` was over
        before they left.
      datagrams_received: RFC 9221 datagrams received.
      datagrams_dropped_outgoing: Outgoing datagrams dropped because the queue was full, or
        because packets, or the peer's limit, became too small for them.
      datagrams_dropped_incoming: Incoming datagrams dropped because the application did not read
        them in time.
      rtt_latest: Latest round-trip sample; ``None`` before the first one.
      rtt_min: The shortest round-trip time so far, in seconds; ``None``: as above.
      rtt_smoothed: The smoothed round-trip time, in seconds (RFC 9002 section 5.3); ``None``: as
        above.
      rtt_variance: The variation of round-trip times, in seconds (RFC 9002 section 5.3);
        ``None``: as above.
      congestion_window: Bytes that may be in flight.
      bytes_in_flight: Bytes in flight: sent, and neither acknowledged nor declared lost.
      path_mtu: The largest UDP payload sent on this path, in bytes.
      probe_timeouts: Probe timeouts that fired (RFC 9002 section 6.2).
      send_buffer_bytes: Stream bytes held for sending: unsent and unacknowledged.
      receive_buffer_bytes: Stream bytes received that the application has not read.
      receive_window: The connection's flow-control window at present, in bytes.
      flow_control_stalls: Times a writer found the send buffer full and had to wait.
      stream_credit_stalls: Times opening a stream had to wait for the peer's permission.
      key_updates: Key updates begun by this side (RFC 9001 section 6).
      ecn_validated: Whether packets are sent with ECN marks, the path and the peer having proved
        to report them (RFC 9000 section 13.4).
      ecn_congestion_signals: Acknowledgements that reported new marks of congestion.
    """

    bytes_sent: int
    bytes_received: int
    udp_datagrams_sent: int
    udp_datagrams_received: int
    packets_sent: int
    packets_acknowledged: int
    packets_lost: int
    stream_bytes_sent: int
    stream_bytes_acknowledged: int
    stream_bytes_received: int
    stream_bytes_read: int
    zero_copy_operations: int
    streams_opened: int
    streams_accepted: int
    datagrams_sent: int
    datagrams_lost: int
    datagrams_lost_by_priority: Mapping[int, int] = attrs.field(hash=False)
    datagrams_expired: int
    datagrams_received: int
    datagrams_dropped_outgoing: int
    datagrams_dropped_incoming: int
    rtt_latest: float | None
    rtt_min: float | None
    rtt_smoothed: float | None
    rtt_variance: float | None
    congestion_window: int
    bytes_in_flight: int
    path_mtu: int
    probe_timeouts: int
    send_buffer_bytes: int
    receive_buffer_bytes: int
    receive_window: int
    flow_control_stalls: int
    stream_credit_stalls: int
    key_updates: int
    ecn_validated: bool
    ecn_congestion_signals: int


@attrs.frozen(kw_only=True)
class PathStatistics:
    """One network path of a connection at one moment (RFC 9000 section 9).

    Round-trip times, window and packet size are known of the active path alone: they are
    learnt anew when a connection moves.

    Attributes:
      local_address: This side's end; of an outgoing connection that of the socket.
      peer_address: The peer's end.
      is_active: Whether packets are sent there; else the path is being probed, or was left.
      is_validated: Whether the peer is known to receive there (RFC 9000 section 8.2).
      rtt_min: The shortest round-trip time so far, in seconds; ``None`` before the first sample.
      rtt_smoothed: The smoothed round-trip time, in seconds; ``None``: as above.
      congestion_window: Bytes that may be in flight.
      path_mtu: The largest UDP payload sent, in bytes.
    """

    local_address: SocketAddress
    peer_address: SocketAddress
    is_active: bool
    is_validated: bool
    rtt_min: float | None
    rtt_smoothed: float | None
    congestion_window: int | None
    path_mtu: int | None


@attrs.frozen(kw_only=True)
class EndpointStatistics:
    """One UDP socket's counters at one moment.

    Attributes:
      bytes_sent: UDP payload bytes sent.
      bytes_received: UDP payload bytes received.
      datagrams_sent: UDP datagrams sent.
      datagrams_received: UDP datagrams received.
      send_blocked: Times the socket's send buffer was full.
      send_calls: System calls that sent something; with GSO one call sends many datagrams.
      receive_calls: The same for receiving, with GRO.
      pooled_receives: Receiving calls that used memory again
        (``TransportConfig.enable_memory_pool``).
      soft_errors: Datagrams the kernel refused for a passing reason (unreachable, too large, no
        buffers).
      datagrams_unroutable: Datagrams for no connection of ours, malformed ones included.
      receives_dropped: Datagrams, or runs of them, dropped because their connection cost others
        too much time (``TransportConfig.backlog_size``).
      connections: Connections open at present, handshakes included.
      handshakes: Incoming handshakes under way at present; a failed one counts until its closing
        period is over (RFC 9000 section 10.2).
      connections_accepted: Incoming connections whose handshake was completed.
      connections_refused: Incoming connections refused because a limit was reached.
      handshakes_failed: Incoming handshakes that failed or timed out.
      retries_sent: Retry packets sent (RFC 9000 section 8.1.2).
      version_negotiations_sent: Version Negotiation packets sent (RFC 9000 section 6.1).
      stateless_resets_sent: Stateless resets sent (RFC 9000 section 10.3).
      stateless_resets_received: Stateless resets received for connections of this endpoint.
      datagrams_passed_on: Datagrams of other workers' connections, passed on to these
        (:func:`run_workers`).
      datagrams_not_passed_on: The same, dropped because too many waited for that worker.
      receive_memory_used: Bytes that peers may send, or have sent, and the application has not
        read, above each connection's minimum.
      receive_memory_limit: ``TransportConfig.endpoint_receive_memory``.
      send_memory_used: Bytes set aside for data not acknowledged by peers, above each
        connection's minimum.
      send_memory_limit: ``TransportConfig.endpoint_send_memory``.
    """

    bytes_sent: int
    bytes_received: int
    datagrams_sent: int
    datagrams_received: int
    send_blocked: int
    send_calls: int
    receive_calls: int
    pooled_receives: int
    soft_errors: int
    datagrams_unroutable: int
    receives_dropped: int
    connections: int
    handshakes: int
    connections_accepted: int
    connections_refused: int
    handshakes_failed: int
    retries_sent: int
    version_negotiations_sent: int
    stateless_resets_sent: int
    stateless_resets_received: int
    datagrams_passed_on: int
    datagrams_not_passed_on: int
    receive_memory_used: int
    receive_memory_limit: int
    send_memory_used: int
    send_memory_limit: int


@attrs.frozen(kw_only=True)
class ConnectionMetrics:
    """The main figures of one connection at one moment, for applications.

    Bytes are stream bytes: sent bytes count when the peer has acknowledged them, received bytes
    when the application has read them.

    Attributes:
      bytes_sent: Stream bytes acknowledged by the peer.
      bytes_received: Stream bytes read by the application.
      operations: Completed calls of the application layer (messages and sequences sent and
        received, streams opened and accepted).
      messages_sent: Messages sent.
      messages_received: Messages received.
      messages_refused: Incoming messages that were too large, malformed or not supported.
      send_rate: Bits a second, over the time between looks, ten seconds at most.
      receive_rate: The same for receiving.
      latency: The smoothed round-trip time, in seconds; ``None`` before the first sample.
      zero_copy_operations: As in :class:`ConnectionStatistics`.
      is_draining: Whether one side has asked for draining: no further streams are opened.
      statistics: All other figures.
    """

    bytes_sent: int
    bytes_received: int
    operations: int
    messages_sent: int
    messages_received: int
    messages_refused: int
    send_rate: float
    receive_rate: float
    latency: float | None
    zero_copy_operations: int
    is_draining: bool
    statistics: ConnectionStatistics


@attrs.frozen(kw_only=True)
class TransportStatistics:
    """A whole transport at one moment: all its connections, ended ones included in totals.

    Bytes are counted as in :class:`ConnectionMetrics`.

    Attributes:
      name: The transport's name.
      throughput_gbps: Gigabits a second, both directions together, over the window of the last
        looks.
      send_rate: Bits a second.
      receive_rate: The same for receiving.
      latency_ms: The mean of the open connections' smoothed round-trip times, in milliseconds;
        ``None``: no connection has a sample.
      active_connections: Connections open at present.
      connections_opened: So far, dialled and accepted.
      total_bytes_sent: Stream bytes acknowledged by peers, of all connections so far.
      total_bytes_received: Stream bytes read by the application, of all connections so far.
      operations: As in :class:`ConnectionMetrics`, of all connections so far.
      zero_copy_operations: As in :class:`ConnectionStatistics`, of all connections so far.
      packets_lost: As in :class:`ConnectionStatistics`, of all connections so far.
      incoming_transfers: Striped transfers under way.
      outgoing_transfers: The same for sending.
      handlers_cancelled: Handlers of servers so far that had not finished at the end of a grace
        period.
    """

    name: str
    throughput_gbps: float
    send_rate: float
    receive_rate: float
    latency_ms: float | None
    active_connections: int
    connections_opened: int
    total_bytes_sent: int
    total_bytes_received: int
    operations: int
    zero_copy_operations: int
    packets_lost: int
    incoming_transfers: int
    outgoing_transfers: int
    handlers_cancelled: int


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
