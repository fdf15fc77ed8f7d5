"""Statistics as frozen snapshots: plain numbers with units, nothing that changes under the reader.

Floor 0: data only.  The engine and the endpoint count; these classes carry.
"""

from __future__ import annotations

import attrs

__all__ = ["ConnectionStatistics", "EndpointStatistics"]


@attrs.frozen(kw_only=True)
class ConnectionStatistics:
    """One connection's counters and estimates at one moment.

    Bytes are UDP payload bytes where the name says ``datagram`` or nothing
    else, stream bytes where it says ``stream``; times are in seconds.
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
    and those which a probe timeout gave up."""
    stream_bytes_sent: int
    """Bytes the application wrote to streams."""
    stream_bytes_acknowledged: int
    """Stream bytes whose receipt the peer has acknowledged."""
    stream_bytes_received: int
    """In-order stream bytes received."""
    stream_bytes_read: int
    """Stream bytes which the application has read or discarded; flow-control credit follows it."""
    zero_copy_operations: int
    """Writes to streams which were kept as they are, without a copy before encryption
    (``TransportConfig.enable_zero_copy``)."""
    streams_opened: int
    """Streams opened by this side."""
    streams_accepted: int
    """Streams opened by the peer."""
    datagrams_sent: int
    """RFC 9221 datagrams put into packets."""
    datagrams_received: int
    datagrams_dropped_outgoing: int
    """Outgoing datagrams dropped because the queue was full."""
    datagrams_dropped_incoming: int
    """Incoming datagrams dropped because the application did not read them in time."""
    rtt_latest: float | None
    """Latest round-trip sample; ``None`` before the first one."""
    rtt_min: float | None
    rtt_smoothed: float | None
    rtt_variance: float | None
    congestion_window: int
    """Bytes which may be in flight."""
    bytes_in_flight: int
    path_mtu: int
    """The largest UDP payload sent on this path, in bytes."""
    probe_timeouts: int
    """Probe timeouts which fired (RFC 9002 section 6.2)."""
    send_buffer_bytes: int
    """Stream bytes held for sending: unsent and unacknowledged."""
    receive_buffer_bytes: int
    """Stream bytes received which the application has not read."""
    receive_window: int
    """The connection's flow-control window at present, in bytes."""
    flow_control_stalls: int
    """Times a writer found the send buffer full and had to wait."""
    stream_credit_stalls: int
    """Times opening a stream had to wait for the peer's permission."""
    key_updates: int
    """Key updates which this side began (RFC 9001 section 6)."""
    ecn_validated: bool
    """Whether what is sent carries ECN marks, the path and the peer having proved to report
    them (RFC 9000 section 13.4)."""
    ecn_congestion_signals: int
    """Acknowledgements which reported new marks of congestion."""


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
    """System calls which sent something; with GSO one call sends many datagrams."""
    receive_calls: int
    """The same for receiving, with GRO."""
    pooled_receives: int
    """Receiving calls which used memory again (``TransportConfig.enable_memory_pool``)."""
    soft_errors: int
    """Datagrams the kernel refused for a passing reason (unreachable, too large, no buffers)."""
    datagrams_unroutable: int
    """Datagrams for no connection of ours, malformed ones included."""
    connections: int
    """Connections which are open at present, handshakes included."""
    handshakes: int
    """Incoming handshakes under way at present."""
    connections_accepted: int
    """Incoming connections whose handshake was completed."""
    connections_refused: int
    """Incoming connections refused because a limit was reached."""
    handshakes_failed: int
    """Incoming handshakes which failed or timed out."""
    retries_sent: int
    version_negotiations_sent: int
    stateless_resets_sent: int
    stateless_resets_received: int
