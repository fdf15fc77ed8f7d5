"""Defines the two interfaces of a connection: to the driver, and to the application's calls.

Floor 1, types only.  :class:`~phoenix_trio.quic.engine.Engine` has both.  The engine is freed
when its connection is over.  Towards the driver,
:class:`~phoenix_trio.quic.established.closing.ClosingConnection` takes its place, and towards
the application :class:`~phoenix_trio.quic.remains.ConnectionRemains`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..config import TransportConfig
from ..metrics import ConnectionStatistics
from . import events
from .established.ecn import NOT_ECT
from .established.runs import Run
from .path_address import Address

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["ApplicationFace", "DriverFace"]


class DriverFace(Protocol):
    """The interface for the driver: datagrams, timers, events, and the end."""

    # ------------------------------------------------------------------ receiving

    def receive(self, data: bytes, address: Address, now: float, mark: int = NOT_ECT) -> None:
        """Take one UDP payload routed to this connection, with its ECN codepoint."""

    def receive_run(
        self,
        data: bytes | bytearray,
        start: int,
        size: int,
        address: Address,
        now: float,
        mark: int = NOT_ECT,
        stop: int | None = None,
    ) -> int:
        """Take datagrams of `size` bytes (the last may be shorter) from `start` on.

        They end at `stop` (``None``: with `data`).  Returns the position of the first one not
        taken; at least one is taken.
        """

    # ------------------------------------------------------------------ sending

    def begin_pass(self) -> None:
        """Begin a new round of sending."""

    def transmit(self, now: float, slab: bytearray | None = None) -> list[Run]:
        """A few runs of UDP payloads that may leave now; they may be views of `slab`."""

    def has_more_to_send(self, now: float) -> bool:
        """Whether :meth:`transmit` stopped only because its run was full."""

    @property
    def has_full_packet(self) -> bool:
        """Whether there is enough unsent stream data to fill a packet."""

    # ------------------------------------------------------------------ timers

    def next_deadline(self) -> float | None:
        """When :meth:`on_timer` and :meth:`transmit` are due; ``None``: never."""

    def on_timer(self, now: float) -> None:
        """Do the work due at :meth:`next_deadline`."""

    def only_acknowledgement_due(self) -> float | None:
        """When an acknowledgement is due, if that is the only work; else ``None``."""

    # ------------------------------------------------------------------ events

    @property
    def has_events(self) -> bool:
        """Whether :meth:`take_events` has any."""

    def take_events(self) -> list[events.Event]:
        """The events since the last call."""

    @property
    def reset_tokens_changed(self) -> bool:
        """Whether :meth:`take_reset_tokens` would return other tokens than the last time."""

    def take_reset_tokens(self) -> set[bytes]:
        """The stateless reset tokens of the peer's connection IDs at present."""

    # ------------------------------------------------------------------ the end

    @property
    def came_from_one_address(self) -> bool:
        """Server: whether the whole handshake came from the address of its first packet."""

    @property
    def is_ending(self) -> bool:
        """Whether the connection has ended, or a CONNECTION_CLOSE waits to be sent."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is sent or taken any more, except for answers to late packets."""

    @property
    def is_terminated(self) -> bool:
        """Whether the closing period is over, too, so that the connection can be forgotten."""

    @property
    def end_deadline(self) -> float | None:
        """When the connection ends if nothing happens until then; ``None``: never."""

    @property
    def has_close_to_send(self) -> bool:
        """Whether CONNECTION_CLOSE is still to be sent to the peer, or sent again."""

    def close_application(self, error_code: int, reason: str) -> None:
        """Close with an application code; buffered stream data is dropped."""

    def repeat_close(self) -> None:
        """Send one more CONNECTION_CLOSE now, unless the peer is known to have it."""

    def on_stateless_reset(self, now: float) -> None:
        """End after a datagram with a reset token of the peer (RFC 9000 section 10.3.1)."""

    def on_handshake_timeout(self) -> None:
        """End without a packet, since the handshake has taken too long."""

    def on_unreachable(self, address: Address, destination_cid: bytes, number: int) -> bool:
        """Client: take the network's report that a packet with this destination did not arrive.

        `number` is one of :mod:`errno`.  Returns whether this ends the connection.
        """

    def release(self) -> tuple[DriverFace, ApplicationFace] | None:
        """Free the memory of a connection that is over.

        Returns the objects that take its place towards the driver and the application; ``None``:
        its memory was freed before.
        """


class ApplicationFace(Protocol):
    """The interface for :class:`~phoenix_trio.QuicConnection`.  No call waits."""

    @property
    def config(self) -> TransportConfig:
        """Limits, buffers and timers of this connection."""

    # ------------------------------------------------------------------ facts

    def get_peer_address(self) -> Address | None:
        """The present destination of packets; ``None``: there is none."""

    @property
    def quic_version(self) -> int:
        """The QUIC version in use: 1 or 2."""

    @property
    def cipher(self) -> str | None:
        """The name of the TLS cipher suite; ``None``: not agreed yet."""

    @property
    def key_exchange(self) -> str | None:
        """The name of the group in which keys were exchanged; ``None``: not agreed yet."""

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, if it was accepted."""

    @property
    def peer_certificate_chain(self) -> tuple[Certificate, ...]:
        """The peer's certificates, its own first, if they were accepted."""

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""

    @property
    def can_send_early_data(self) -> bool:
        """Client: whether 0-RTT keys are available now."""

    @property
    def idle_timeout(self) -> float:
        """The smaller of both sides' idle timeouts, in seconds; ``math.inf``: there is none."""

    @property
    def keep_alive(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never."""

    def statistics(
        self,
        *,
        datagrams_dropped_incoming: int,
        flow_control_stalls: int,
        stream_credit_stalls: int,
        receive_buffer_bytes: int,
    ) -> ConnectionStatistics:
        """A snapshot; the arguments are the counts of the Trio half."""

    # ------------------------------------------------------------------ streams

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """Open a stream; ``None`` while the peer does not permit another one."""

    def want_stream(self, change: int, *, unidirectional: bool) -> None:
        """Count a call that begins (1) or ends (-1) to wait for :meth:`open_stream`."""

    @property
    def available_streams(self) -> int:
        """The number of bidirectional streams that the peer permits to open now."""

    def streams_left(self, *, unidirectional: bool) -> int:
        """The number of streams of this kind that the peer permits to open now."""

    @property
    def streams_opened(self) -> int:
        """Streams opened by this side."""

    def let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> bool:
        """Note that the application is done with these directions of the stream.

        Returns whether no direction is left, so that the stream is forgotten.
        """

    # ------------------------------------------------------------------ sending on streams

    def send_room(self, stream_id: int, wanted: int = 1) -> int:
        """Bytes that may be written to the stream now within the limits of the send buffers."""

    def has_send_room(self, stream_id: int) -> bool:
        """Whether a blocked writer should go on."""

    def write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        """Append to a stream's send buffer; there is room for it."""

    def written(self, stream_id: int) -> int:
        """Bytes written to the stream so far."""

    def is_acknowledged(self, stream_id: int, offset: int, *, with_fin: bool) -> bool:
        """Whether the peer has acknowledged everything below `offset` (and the end)."""

    @property
    def has_unacknowledged_streams(self) -> bool:
        """Whether any stream holds data, or an end, not acknowledged by the peer."""

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight."""

    @property
    def rtt_smoothed(self) -> float | None:
        """The smoothed round-trip time in seconds; ``None`` before the first sample."""

    @property
    def path_mtu(self) -> int:
        """The largest UDP payload sent at present, in bytes."""

    @property
    def is_congested(self) -> bool:
        """Whether more data waits than the congestion window lets through at a time."""

    def reset_sending(self, stream_id: int, error_code: int) -> None:
        """Send RESET_STREAM, and drop unacknowledged data."""

    # ------------------------------------------------------------------ receiving on streams

    def consume(self, stream_id: int, count: int) -> bool:
        """Note that the application has read `count` more bytes.

        Returns whether :meth:`extend_credit` is to be called.
        """

    def extend_credit(self, stream_id: int, now: float) -> None:
        """Announce credit to the peer for the bytes read."""

    @property
    def has_limits_to_send(self) -> bool:
        """Whether credit waits to be announced to the peer."""

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Send STOP_SENDING, and discard later data."""

    # ------------------------------------------------------------------ datagrams, pings, keys

    @property
    def max_datagram_payload(self) -> int | None:
        """The largest payload of a datagram at present; ``None``: the peer takes none."""

    def has_datagram_room(self, now: float) -> bool:
        """Whether the queue of datagrams to send has room."""

    @property
    def has_queued_datagrams(self) -> bool:
        """Whether any datagram waits to be sent."""

    def want_datagram_room(self) -> None:
        """Report :class:`~phoenix_trio.quic.events.SendProgress` when the queue has room again."""

    def send_datagram(
        self, data: bytes, priority: int, expires_at: float, now: float, tag: int
    ) -> None:
        """Queue a datagram to leave before `expires_at`, and before those of lower priorities.

        If the queue is full, the oldest one of the lowest priority is dropped and counted.  Its
        loss is reported with `tag` if that is 0 or more.
        """

    def expire_datagram(self, tag: int) -> None:
        """Count a datagram for which there was no room before its time was over."""

    def send_ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is reported with the same `uid`, 0 or more."""

    @property
    def can_update_keys(self) -> bool:
        """Whether the peer has acknowledged a packet with the present keys."""

    def update_keys(self) -> None:
        """Begin a key update (RFC 9001 section 6.1) if :attr:`can_update_keys`."""

    # ------------------------------------------------------------------ paths

    @property
    def peer_forbids_moves(self) -> bool:
        """Whether the peer permits no move to another path."""

    def path_facts(self) -> list[tuple[Address, bool]]:
        """The address of each path, the active one first, and whether it is validated."""

    @property
    def rtt_min(self) -> float | None:
        """The smallest round-trip time in seconds; ``None`` before the first sample."""

    def probe_path(self, address: Address, now: float) -> bool:
        """Challenge the server on another path; whether there is a connection ID for it."""

    def move_to_path(self, address: Address) -> bool:
        """Use a validated path from now on; whether that is possible."""

    def forget_path(self, address: Address) -> None:
        """Use this path no more, unless it is the active one."""

    # ------------------------------------------------------------------ the end

    def close_application(self, error_code: int, reason: str) -> None:
        """Close with an application code; buffered stream data is dropped."""
