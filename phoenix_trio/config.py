"""The settings of a transport: frozen data, checked on construction.

Floor 0: no I/O.  Every field states its unit, range and default, and the reason for the
default.  ``attrs.evolve(config, field=value)`` derives a changed copy.
"""

from __future__ import annotations

from typing import Literal

import attrs

from .validators import integer, one_of, optional, optional_bytes, path, seconds, true_or_false

__all__ = ["RetryPolicy", "TransportConfig"]

RetryPolicy = Literal["always", "under-load", "never"]

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE

#: RFC 9000 section 14.1: every path must carry datagrams of this many bytes.
SMALLEST_UDP_PAYLOAD = 1200

#: The largest UDP payload over IPv4 (RFC 9000 section 18.2 has 65527 for IPv6).
LARGEST_UDP_PAYLOAD = 65507

#: Limits of a run of datagrams in one system call (Linux: ``UDP_MAX_SEGMENTS``; an IP packet
#: less its headers).
MAX_RUN_SEGMENTS = 64
MAX_RUN_BYTES = 65_487


@attrs.frozen(kw_only=True)
class TransportConfig:
    """How connections behave: limits, buffers, timers, congestion control, logs.

    All sizes are in bytes, all times in seconds.  Each entry ends its first paragraph with the
    default and the range of values; a reason for the default follows.
    ``attrs.evolve(config, field=value)`` makes a changed copy.

    Args:
      max_bidirectional_streams: The most bidirectional streams that the peer may have open at
        once.  Default: 100 (0 to 100,000).

        100: enough for any ordinary protocol, with little memory for each.  A stream counts
        until both of its directions have ended and the application has let go of it.  So the
        streams that nothing has accepted are bounded as well.
      max_unidirectional_streams: The same for unidirectional streams.
        Default: 100 (0 to 100,000).

        100: as for bidirectional ones.
      send_buffer_size: The most bytes that one connection holds for sending, unsent and
        unacknowledged; above it, ``send_all`` waits.  Default: 8 MiB (16 KiB to 1 GiB).

        8 MiB: it has to cover bandwidth times round trip, here 1.3 Gbit/s over 50 ms.
      stream_send_buffer_size: The same for one stream; never more than `send_buffer_size` in
        effect.  Default: 4 MiB (4 KiB to 1 GiB).

        4 MiB: half of a connection's, so that one stream does not stop the others.
      receive_buffer_size: The most bytes that one connection holds before the application reads
        them.  Default: 16 MiB (16 KiB to 1 GiB).

        It is the ceiling of the connection's flow-control window (RFC 9000 section 4.1).  The
        window starts lower, and grows only while the application reads fast.  16 MiB: 2.7
        Gbit/s over 50 ms of round trip.
      stream_receive_buffer_size: The same for one stream; never more than `receive_buffer_size`
        in effect.  Default: 8 MiB (4 KiB to 1 GiB).

        8 MiB: half of a connection's, so that one unread stream does not stop the others.
      endpoint_receive_memory: The most bytes that peers may send to all connections of an
        endpoint (one UDP socket) together before the application reads them, besides each
        connection's `minimum_connection_memory`.  Default: 256 MiB (1 MiB to 1 TiB).

        Credit announced to peers counts, since it cannot be taken back (RFC 9000 section 4.1).
        While memory is scarce, windows stay small, or shrink as data is read, and the shares of
        connections are fair.  256 MiB: a quarter of a machine with 1 GiB, and room for sixteen
        connections at full speed with the largest default windows.
      endpoint_send_memory: The most bytes that all connections of an endpoint together hold for
        sending, unsent and unacknowledged, besides each connection's
        `minimum_connection_memory`.  Default: 256 MiB (1 MiB to 1 TiB).

        Above a connection's fair share, ``send_all`` waits.  Without the limit, each client that
        downloads and does not read would hold `send_buffer_size`.  256 MiB: as for receiving.
      minimum_connection_memory: Bytes, each way, that a connection may hold even when the
        endpoint's memory is scarce, so that each makes progress.
        Default: 64 KiB (16 KiB to 16 MiB).

        All connections of an endpoint hold at most `endpoint_receive_memory` plus
        `max_connections` times this, and the same for sending.  64 KiB: 1.3 MB/s over 50 ms of
        round trip, and about the cost of an idle connection.  Set `max_connections` to the
        number for which the machine has memory.
      max_message_size: The largest message, or item of a sequence, that is received, in bytes.
        Default: 16 MiB (1 to 1 GiB).

        Peers learn the limit, and do not send larger ones; a larger one is refused by its
        header all the same.  A receiving call may set a lower limit.  16 MiB: larger data is
        better sent as a striped transfer, which needs no memory of its size.
      batch_bytes: The size in bytes at which a batch of small messages is sent, unless the call
        says otherwise.  Default: 64 KiB (1 to 64 MiB).

        64 KiB: more saves hardly anything, since it is a full packet at most.
      batch_delay: The most seconds for which the first message of a batch waits for further
        ones, unless the call says otherwise.  Default: 0.002 s (0 to 3600 s).

        2 ms: of the order of a network's own delay.
      multiplexed_connections: The number of connections over which a transfer is striped, unless
        the call says otherwise.  Default: 4 (1 to 1000).

        4: without loss one is as fast; with some, each more adds its own congestion window.
      max_incoming_transfers: The most striped transfers received at once, interrupted ones
        included.  Senders of further ones get ``TransferCode.TOO_MANY_TRANSFERS``.
        Default: 16 (1 to 100,000).

        16: each may hold twice `receive_buffer_size`, 64 MiB at most, until it is read.  So all
        together hold 512 MiB with the default buffers.
      max_incoming_transfers_per_peer: The most of these that one peer may have, over any number
        of connections.  All connections from one IPv4 address, or one IPv6 /64 network, count
        as one peer.  Default: None (1 to 100,000, or None).

        ``None``: half of `max_incoming_transfers`, rounded up, so that one peer always leaves
        room for others.  Set more if many clients share one address, as behind a NAT.
      transfer_idle_timeout: Seconds in which the sender of a striped transfer that has credit
        must send at least 16 KiB.  Otherwise the transfer ends with ``TransferCode.STALLED``,
        and its place is free for others.
        Default: 120 s (more than 0, up to 86,400 s, or math.inf).

        120 s: longer than any pause of a working path.  Set more for sources that pause longer
        themselves; time in which this side does not read is not counted.
      max_udp_payload_size: The largest UDP payload to send, in bytes.
        Default: None (1200 to 65,507, or None).

        Connections begin with 1200, the size that every path carries.  Once the handshake is
        confirmed they look for more (path-MTU discovery, RFC 9000 section 14.3), up to this.
        ``None``: up to the limits of the interface and the peer, 1472 on Ethernet over IPv4,
        1452 over IPv6, and about 65,000 on loopback.
      max_idle_timeout: Seconds without a packet from the peer after which a connection ends with
        :class:`~phoenix_trio.ConnectionTimedOut`; ``math.inf``: never.
        Default: 30 s (more than 0, up to 86,400 s, or math.inf).

        The smaller of both sides' values counts (RFC 9000 section 10.1).  30 s: many firewalls
        forget a silent UDP flow after this time.
      max_blocked_time: Seconds for which a peer that grants no credit may keep a connection on
        which data, or a call to open a stream, waits for credit; ``math.inf``: for ever.
        Default: 3600 s (0 to 86,400 s, or math.inf).

        Meanwhile this side tells the peer that it is blocked (RFC 9000 section 4.1), and the
        peer's acknowledgements keep the connection alive.  So a reader may pause for longer
        than `max_idle_timeout`.  Afterwards the idle timeout applies again.  3600 s: longer
        than people pause, but a peer that never reads does not hold the send buffers for ever.
      close_linger: The most seconds for which the end of an endpoint's block, and so of
        ``open_connection``, waits for peers to answer the goodbye; 0: not at all.
        Default: 1 s (0 to 60 s).

        Nothing acknowledges a CONNECTION_CLOSE, and a peer that misses it waits for its idle
        timeout.  So it is sent up to four times, about a round trip apart, until the peer
        closes, too (RFC 9000 section 10.2).  1 s: all copies have left by then.  Peers that do
        not answer cost three round trips.  A server that shuts down also waits at most this
        long for a peer to close a connection whose handler has finished.
      handshake_timeout: The most seconds for a handshake, on either side.
        Default: 10 s (more than 0, up to 3600 s).

        Then a server forgets the client, and a client's attempt ends with
        :class:`~phoenix_trio.HandshakeTimedOut`, unless its caller's cancel scope or
        `max_idle_timeout` has ended it before.  10 s: a first flight lost four times in a row
        still arrives, and a dead address is known soon.  Set more for paths with round trips of
        many seconds.
      keep_alive: Seconds of silence after which a PING is sent (RFC 9000 section 10.1.2);
        ``None``: never.  It must be below `max_idle_timeout`.
        Default: None (more than 0, up to 86,400 s, or None).

        In effect it is at most half of the effective idle timeout, which is the smaller of both
        sides' values: 20 s becomes 7.5 s with a peer whose idle timeout is 15 s.  ``None``: a
        connection without use should end, and each PING costs energy on small devices.
      congestion_control: The algorithm: ``"cubic"`` (RFC 9438) or ``"reno"`` (RFC 9002
        section 7).  Default: "cubic".

        CUBIC fills long fast paths sooner; Reno is simpler to compare with other measurements.
      initial_rtt: The round-trip time assumed before the first sample, in seconds.
        Default: 0.1 s (0.001 to 10 s).

        RFC 9002 section 6.2.2 recommends 0.333 s.  With 0.1 s a lost first flight is sent again
        within 0.2 s, at the price of one spurious copy on slower paths.
      retry: When a server makes clients prove their address with a Retry packet (RFC 9000
        section 8.1.2), at the cost of a round trip: ``"always"``, ``"under-load"`` or
        ``"never"``.  Default: "under-load".

        ``"under-load"``: while `retry_threshold`, `retry_admission_rate` or
        `retry_failure_rate` is reached.  Clients that have not proved their address never take
        more than half of the places for handshakes and connections.  ``"never"`` leaves a
        server open to floods from forged addresses.
      retry_threshold: The number of unfinished handshakes from which on an endpoint is under
        load; at most `max_handshakes`.  Default: 64 (0 to 1,000,000).

        A failed handshake counts until its closing period is over (RFC 9000 section 10.2), about
        a second.  64: an eighth of a second of work for one processor
        core.
      retry_admission_rate: Handshakes a second that an endpoint begins, on average, with clients
        that have not proved their address; further ones put it under load.
        Default: 500 (1 to 1,000,000).

        500: about the number that one processor core completes.
      retry_failure_rate: Handshakes a second that may fail, on average, of clients that have not
        proved their address; more put an endpoint under load.  Default: 20 (1 to 1,000,000).

        20: a failed handshake is rare among honest clients, and costs as much as a good one.
      address_token_lifetime: Seconds for which a client that comes back from the same IP address
        need not prove it again (RFC 9000 section 8.1.3); 0: servers give no tokens.
        Default: 86,400 s (0 to 604,800 s, a week).

        A server gives each client one token when its handshake is complete.  It is valid once,
        at the same endpoint (and at each with its `ticket_keys`), while it is among the newest
        131,072.  A day: clients that come back daily save the round trip.
      max_handshakes: The most unfinished handshakes of an endpoint; further ones are refused.
        Default: 1024 (1 to 1,000,000).

        1024: two seconds of work for one processor core.
      max_handshakes_per_address: The most of these that clients at one address may have.  An
        address is an IPv4 address, or an IPv6 /64 network.
        Default: None (1 to 1,000,000, or None).

        ``None``: any number while less than half of `max_handshakes` are taken, and a 64th of it
        (1 at least) beyond that.  So one address never takes more than half, and many clients
        behind one NAT notice nothing in quiet times.  Set `max_handshakes`, for no limit, on a
        server behind a proxy or load balancer, where all clients have one address.  Handshakes
        with forged addresses do not count.
      max_failure_rate_per_address: Handshakes a second that may fail, on average, of clients at
        one address, while they follow each other closely; more are refused.
        Default: 50 (1 to 1,000,000).

        50: it costs a server less than a tenth of a processor core.  Raise it together with
        `max_handshakes_per_address` if many clients have one address.
      max_connections: The most connections that an endpoint accepts at once; further ones are
        refused.  Default: 65,536 (1 to 10,000,000).

        65,536: with `minimum_connection_memory` for each, 4 GiB each way.
      max_connections_per_address: The most of these that clients at one address may have.
        Default: None (1 to 10,000,000, or None).

        ``None``: any number while less than half of `max_connections` are taken, and a 64th of it
        beyond that, as for `max_handshakes_per_address`.  A connection counts for the address
        from which it was opened, even after its client has migrated.
      accept_backlog: The most established connections that wait for ``accept()``; further ones
        are refused.  Default: 512 (1 to 1,000,000).

        512: a second of handshakes on one processor core.
      enable_datagrams: Whether this side offers unreliable datagrams (RFC 9221) to the peer.
        Default: True.

        True: the offer costs nothing while they are not used.
      datagram_queue_length: The most datagrams that a connection queues, each way.
        Default: 256 (1 to 1,000,000).

        Outgoing: when the queue is full, ``send_datagram`` waits, and ``send_datagram_nowait``
        drops the oldest one of the lowest priority.  Incoming: the oldest is dropped, also if
        `endpoint_receive_memory` has no room for as many bytes.  Drops are counted.  256: some
        300 KiB, a few milliseconds at a gigabit.
      socket_buffer_size: Bytes requested from the kernel for the receive buffer and for the send
        buffer of the UDP socket.  Default: 4 MiB (4 KiB to 1 GiB).

        The kernel may grant less (on Linux ``net.core.rmem_max`` and ``wmem_max``).  4 MiB: 30 ms
        at a gigabit, longer than the task that reads the socket usually waits for its turn.
      backlog_size: The most bytes of received datagrams that an endpoint holds back, a quarter of
        them for one connection.  Default: 4 MiB (64 KiB to 1 GiB).

        Datagrams whose frames cost unusually much time wait here while other connections have
        work.  Beyond the limit they are dropped, as by a socket whose buffer is full.  Ordinary
        traffic never waits.  4 MiB: as much as `socket_buffer_size`.
      enable_memory_pool: Whether datagrams are received into buffers that are used again, rather
        than into new memory each time.  Default: True.

        It helps with large runs of packets where the C library gives the memory of such runs
        back to the system each time: 5 us a run of 64 KiB instead of 21.  Otherwise it makes no
        difference (``docs/performance.md``).  ``EndpointStatistics.pooled_receives`` counts.
      memory_pool_size: The most bytes of these buffers that an endpoint uses, in units of 64 KiB.
        Default: 1 MiB (64 KiB to 16 MiB).

        They are made at their first use, and shared by all endpoints of a thread.  1 MiB: an
        endpoint reads up to 16 runs of packets at once, and needs 64 KiB for each, so it never
        uses more.  With less, further runs are received into new memory.
      enable_zero_copy: Whether data given to ``send_all`` is kept without a copy until the peer
        has acknowledged it.  Default: True.

        It applies to ``bytes``, and memoryviews of ``bytes``, from 16 KiB on; these are copied
        only into packets.  That saves a third of the sender's processor time with large packets
        and a tenth with small ones (``docs/performance.md``).  Mutable data (a ``bytearray``, a
        ``memoryview`` of one) is always copied, as the caller may change it at once; smaller
        data is joined, because that is cheaper.  ``ConnectionStatistics.zero_copy_operations``
        counts.  ``False`` copies everything, so that sending a part of a large object does not
        keep the whole object in memory.
      preferred_version: The QUIC version that a client uses if the server knows it: 1 (RFC 9000)
        or 2 (RFC 9369).  Default: 1 (1 to 2).

        The first packets are of version 1, unless a session of version 2 is resumed.  A server
        that knows version 2 changes to it in its answer (RFC 9368 section 2.3), so the request
        costs no round trip with any server.  Servers take both, and follow the client's
        preference.  1: version 2 has the same properties, and some networks pass only the
        version they know.
      leave_lost_address: Whether a client's connection goes on from another address when its
        socket is bound to one address, and the host has lost that.  Default: False.

        The client opens one socket, bound to all addresses, when the first packet cannot leave;
        so the system has to report it.  For IPv6, Linux reports nothing while it still has a
        route.  False: a program that binds to one address may rely on it, as in a VPN, where
        packets must not leave beside the tunnel.  Sockets bound to all addresses need no such
        setting: the system chooses for each packet.
      enable_ecn: Whether packets are marked as ECN-capable (RFC 9000 section 13.4), so that
        routers can signal congestion without dropping them.  Default: True.

        A path or peer that does not report marks truly is detected, and packets to it are no
        longer marked.  Marks received are always reported.  True: a signal costs less than a
        loss.
      stateless_reset_key: Secret for deriving stateless reset tokens (RFC 9000 section 10.3.2).
        Default: None (at least 16 bytes, or None).

        ``None``: derived from the server's private key, so that a restarted server still resets
        its old connections; random for clients.
      connection_id_server_id: A server's ID in connection IDs (1 in the processes of
        :func:`~phoenix_trio.run_workers`), by which load balancers find it although clients move
        (draft-ietf-quic-load-balancers; connection IDs have 8 bytes).
        Default: None (1 or 2 bytes, or None).

        ``None``: connection IDs are random.  Without `connection_id_key`, observers can read
        the ID, too, and see which connections go to the same server.
      connection_id_key: Encrypts `connection_id_server_id`, so that observers see random bytes
        (draft-ietf-quic-load-balancers section 5.4).  All servers and load balancers of one
        rotation have the same key.  Default: None (16 random bytes, or None).

        ``None``: the server ID is in plaintext.
      connection_id_rotation: The configuration of the load balancers to which
        `connection_id_server_id` belongs: the first three bits of connection IDs.
        Default: 0 (0 to 6).

        Without a server ID it means nothing.  0: the first configuration.
      keylog_file: A file to which TLS secrets are appended (NSS key log format, for Wireshark).
        With this file one can decrypt the traffic.  Default: None (a path, or None).

        ``None``: the file of the environment's ``SSLKEYLOGFILE``, if set.
      qlog_dir: A directory for one qlog trace per connection (JSON text sequences).
        Default: None (a path, or None).

        ``None``: no traces, because they are slow.  They are for diagnosis only.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range, or two fields contradict each other.
    """

    max_bidirectional_streams: int = attrs.field(default=100, validator=integer(0, 100_000))
    max_unidirectional_streams: int = attrs.field(default=100, validator=integer(0, 100_000))
    send_buffer_size: int = attrs.field(
        default=8 * MEBIBYTE, validator=integer(16 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    stream_send_buffer_size: int = attrs.field(
        default=4 * MEBIBYTE, validator=integer(4 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    receive_buffer_size: int = attrs.field(
        default=16 * MEBIBYTE, validator=integer(16 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    stream_receive_buffer_size: int = attrs.field(
        default=8 * MEBIBYTE, validator=integer(4 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    endpoint_receive_memory: int = attrs.field(
        default=256 * MEBIBYTE, validator=integer(1 * MEBIBYTE, 1024 * 1024 * MEBIBYTE)
    )
    endpoint_send_memory: int = attrs.field(
        default=256 * MEBIBYTE, validator=integer(1 * MEBIBYTE, 1024 * 1024 * MEBIBYTE)
    )
    minimum_connection_memory: int = attrs.field(
        default=64 * KIBIBYTE, validator=integer(16 * KIBIBYTE, 16 * MEBIBYTE)
    )
    max_message_size: int = attrs.field(
        default=16 * MEBIBYTE, validator=integer(1, 1024 * MEBIBYTE)
    )
    batch_bytes: int = attrs.field(default=64 * KIBIBYTE, validator=integer(1, 64 * MEBIBYTE))
    batch_delay: float = attrs.field(default=0.002, validator=seconds(0.0, 3600.0))
    multiplexed_connections: int = attrs.field(default=4, validator=integer(1, 1000))
    max_incoming_transfers: int = attrs.field(default=16, validator=integer(1, 100_000))
    max_incoming_transfers_per_peer: int | None = attrs.field(
        default=None, validator=optional(integer(1, 100_000))
    )
    transfer_idle_timeout: float = attrs.field(
        default=120.0, validator=seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    max_udp_payload_size: int | None = attrs.field(
        default=None,
        validator=optional(integer(SMALLEST_UDP_PAYLOAD, LARGEST_UDP_PAYLOAD)),
    )
    max_idle_timeout: float = attrs.field(
        default=30.0, validator=seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    max_blocked_time: float = attrs.field(
        default=3600.0, validator=seconds(0.0, 86_400.0, infinite=True)
    )
    close_linger: float = attrs.field(default=1.0, validator=seconds(0.0, 60.0))
    handshake_timeout: float = attrs.field(
        default=10.0, validator=seconds(0.0, 3600.0, exclusive=True)
    )
    keep_alive: float | None = attrs.field(
        default=None,
        validator=optional(seconds(0.0, 86_400.0, exclusive=True)),
    )
    congestion_control: Literal["cubic", "reno"] = attrs.field(
        default="cubic", validator=one_of("cubic", "reno")
    )
    initial_rtt: float = attrs.field(default=0.1, validator=seconds(0.001, 10.0))
    retry: RetryPolicy = attrs.field(
        default="under-load", validator=one_of("always", "under-load", "never")
    )
    retry_threshold: int = attrs.field(default=64, validator=integer(0, 1_000_000))
    retry_admission_rate: int = attrs.field(default=500, validator=integer(1, 1_000_000))
    retry_failure_rate: int = attrs.field(default=20, validator=integer(1, 1_000_000))
    address_token_lifetime: float = attrs.field(default=86_400.0, validator=seconds(0.0, 604_800.0))
    max_handshakes: int = attrs.field(default=1024, validator=integer(1, 1_000_000))
    max_handshakes_per_address: int | None = attrs.field(
        default=None, validator=optional(integer(1, 1_000_000))
    )
    max_failure_rate_per_address: int = attrs.field(default=50, validator=integer(1, 1_000_000))
    max_connections: int = attrs.field(default=65_536, validator=integer(1, 10_000_000))
    max_connections_per_address: int | None = attrs.field(
        default=None, validator=optional(integer(1, 10_000_000))
    )
    accept_backlog: int = attrs.field(default=512, validator=integer(1, 1_000_000))
    enable_datagrams: bool = attrs.field(default=True, validator=true_or_false)
    datagram_queue_length: int = attrs.field(default=256, validator=integer(1, 1_000_000))
    socket_buffer_size: int = attrs.field(
        default=4 * MEBIBYTE, validator=integer(4 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    backlog_size: int = attrs.field(
        default=4 * MEBIBYTE, validator=integer(64 * KIBIBYTE, 1024 * MEBIBYTE)
    )
    enable_memory_pool: bool = attrs.field(default=True, validator=true_or_false)
    memory_pool_size: int = attrs.field(
        default=1 * MEBIBYTE, validator=integer(64 * KIBIBYTE, 16 * MEBIBYTE)
    )
    enable_zero_copy: bool = attrs.field(default=True, validator=true_or_false)
    preferred_version: Literal[1, 2] = attrs.field(default=1, validator=integer(1, 2))
    leave_lost_address: bool = attrs.field(default=False, validator=true_or_false)
    enable_ecn: bool = attrs.field(default=True, validator=true_or_false)
    stateless_reset_key: bytes | None = attrs.field(
        default=None, repr=False, validator=optional_bytes
    )
    connection_id_server_id: bytes | None = attrs.field(
        default=None, repr=False, validator=optional_bytes
    )
    connection_id_key: bytes | None = attrs.field(
        default=None, repr=False, validator=optional_bytes
    )
    connection_id_rotation: int = attrs.field(default=0, validator=integer(0, 6))
    keylog_file: str | None = attrs.field(
        default=None,
        converter=attrs.Converter(path, takes_field=True),  # type: ignore[misc]
    )
    qlog_dir: str | None = attrs.field(
        default=None,
        converter=attrs.Converter(path, takes_field=True),  # type: ignore[misc]
    )

    @classmethod
    def realtime(cls) -> TransportConfig:
        """Voice, games, control: little data, worthless when late.

        - `send_buffer_size` 256 KiB, `stream_send_buffer_size` 64 KiB: data that waits here is
          late already; ``send_all`` should say so early.
        - `datagram_queue_length` 64: the oldest of more would be late as well.
        - `batch_delay` 0, `batch_bytes` 1200: no message waits for others longer than a
          turn, and a batch fits into one packet of any path.
        - `keep_alive` 5 s, `max_idle_timeout` 15 s: a lost peer is noticed soon, and
          firewalls do not forget the flow.
        - `initial_rtt` 0.05 s: a lost first flight is repeated after a tenth of a second.
        - `multiplexed_connections` 1: one path, one queue.
        """
        return cls(
            send_buffer_size=256 * KIBIBYTE,
            stream_send_buffer_size=64 * KIBIBYTE,
            receive_buffer_size=2 * MEBIBYTE,
            stream_receive_buffer_size=1 * MEBIBYTE,
            datagram_queue_length=64,
            batch_delay=0.0,
            batch_bytes=1200,
            keep_alive=5.0,
            max_idle_timeout=15.0,
            initial_rtt=0.05,
            multiplexed_connections=1,
        )

    @classmethod
    def high_throughput(cls) -> TransportConfig:
        """Files, backups, replication: as much as the path carries.

        - `send_buffer_size` and `receive_buffer_size` 64 MiB, 32 MiB a stream: a gigabit
          over half a second of round trip, or ten over 50 ms.
        - `endpoint_receive_memory` and `endpoint_send_memory` 1 GiB: a few such connections
          at once.
        - `socket_buffer_size` 16 MiB: a burst of a whole window finds room in the kernel,
          if the kernel grants so much (``net.core.rmem_max``).
        - `batch_bytes` 256 KiB, `batch_delay` 10 ms: full batches rather than early ones.
        - `multiplexed_connections` 8: on lossy paths each has its own congestion window.
        """
        return cls(
            send_buffer_size=64 * MEBIBYTE,
            stream_send_buffer_size=32 * MEBIBYTE,
            receive_buffer_size=64 * MEBIBYTE,
            stream_receive_buffer_size=32 * MEBIBYTE,
            endpoint_receive_memory=1024 * MEBIBYTE,
            endpoint_send_memory=1024 * MEBIBYTE,
            socket_buffer_size=16 * MEBIBYTE,
            batch_bytes=256 * KIBIBYTE,
            batch_delay=0.01,
            multiplexed_connections=8,
        )

    @classmethod
    def sensors(cls) -> TransportConfig:
        """Fleets of small devices: thousands of connections, each with little to say.

        - all four buffers 64 to 256 KiB: a thousand connections cannot take more than
          some hundred megabytes, whatever they send.
        - `minimum_connection_memory` 16 KiB: ten thousand of them can hold 160 MiB each way
          besides the endpoint's memory.
        - `max_bidirectional_streams` and `max_unidirectional_streams` 16: readings share
          a stream in batches.
        - `batch_delay` 0.1 s: hundreds of readings a packet, and readers look less often.
        - `keep_alive` 25 s, `max_idle_timeout` 90 s: one small packet within the 30 s
          after which many firewalls forget; three may be lost.
        - `max_message_size` 64 KiB: a reading is never larger.
        - `multiplexed_connections` 1: there is nothing to stripe.
        """
        return cls(
            max_bidirectional_streams=16,
            max_unidirectional_streams=16,
            send_buffer_size=256 * KIBIBYTE,
            stream_send_buffer_size=128 * KIBIBYTE,
            receive_buffer_size=128 * KIBIBYTE,
            stream_receive_buffer_size=64 * KIBIBYTE,
            minimum_connection_memory=16 * KIBIBYTE,
            max_message_size=64 * KIBIBYTE,
            batch_delay=0.1,
            keep_alive=25.0,
            max_idle_timeout=90.0,
            multiplexed_connections=1,
        )

    @classmethod
    def video(cls) -> TransportConfig:
        """Live pictures: a steady rate of megabits, where a late frame is worse than a lost one.

        - `send_buffer_size` 2 MiB: half a second at 32 Mbit/s; a source that finds it full
          lowers its rate instead of falling behind.
        - `receive_buffer_size` 8 MiB: a key frame, and the frames after it while it is decoded.
        - `datagram_queue_length` 512: a key frame in datagrams is some hundred of them.
        - `batch_delay` 5 ms: less than a frame's time at 120 a second.
        - `keep_alive` 5 s, `max_idle_timeout` 15 s: as for speech.
        - `max_message_size` 8 MiB: a frame as a message.
        - `multiplexed_connections` 2: one for a second rendition, or a recording.
        """
        return cls(
            send_buffer_size=2 * MEBIBYTE,
            stream_send_buffer_size=1 * MEBIBYTE,
            receive_buffer_size=8 * MEBIBYTE,
            stream_receive_buffer_size=4 * MEBIBYTE,
            datagram_queue_length=512,
            max_message_size=8 * MEBIBYTE,
            batch_delay=0.005,
            keep_alive=5.0,
            max_idle_timeout=15.0,
            multiplexed_connections=2,
        )

    def __attrs_post_init__(self) -> None:
        if self.stateless_reset_key is not None and len(self.stateless_reset_key) < 16:
            raise ValueError("stateless_reset_key must have at least 16 bytes")
        server_id = self.connection_id_server_id
        if server_id is not None and not 1 <= len(server_id) <= 2:
            raise ValueError("connection_id_server_id must have 1 or 2 bytes")
        if self.connection_id_key is not None:
            if len(self.connection_id_key) != 16:
                raise ValueError("connection_id_key must have 16 bytes")
            if server_id is None:
                raise ValueError("connection_id_key is of no use without connection_id_server_id")
        if self.keep_alive is not None and self.keep_alive >= self.max_idle_timeout:
            raise ValueError(
                f"keep_alive ({self.keep_alive:g} s) must be below "
                f"max_idle_timeout ({self.max_idle_timeout:g} s), else it keeps nothing alive"
            )
        if self.retry_threshold > self.max_handshakes:
            raise ValueError(
                f"retry_threshold ({self.retry_threshold}) must not exceed "
                f"max_handshakes ({self.max_handshakes}), else Retry is never used"
            )
