"""Runs the established half of a connection: its packets, its timers, the fate of its frames.

Floor 1, sans-IO.  :class:`Established` owns the parts of
:class:`~phoenix_trio.quic.established.state.State`.  The engine gives it the results of the
handshake: keys, the peer's transport parameters, completion.
"""

from __future__ import annotations

import math
from typing import Final

from .. import events
from ..path_address import Address
from ..wire import frames
from ..wire.protection import PacketKey, header_key
from . import path_search, receive
from .datagram_frame import largest_payload
from .idle import keep_alive_interval, longest_backoff
from .parameters import PeerParameters
from .recovery import PROBES
from .runs import Run
from .state import HANDSHAKE_PING, KEEP_ALIVE_PING, State
from .transmit import MTU_PROBE, coalesce, transmit, validation_period

__all__ = ["Established"]

#: The largest packet sent by timers of a 1-RTT path: header, an ACK frame of few ranges with ECN
#: counts, a PATH_CHALLENGE frame (RFC 9000 section 19.17), authentication tag.
_LARGEST_ACK_PACKET: Final = 1 + 20 + 2 + 64 + 3 * 8 + 9 + 16


class Established:
    """The application data of one connection; it works on its `state`."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state: State = state
        state.recovery.owner = self

    # ------------------------------------------------------------------ from the handshake

    def set_peer_cid(self, cid: bytes) -> None:
        """Take another connection ID in place of the peer's first one (RFC 9000 section 7.2)."""
        self.state.peer_ids.current.cid = cid

    def set_parameters(self, parameters: PeerParameters, *, remembered: bool) -> None:
        """Take the peer's transport parameters, or those remembered for 0-RTT."""
        s = self.state
        s.streams.set_peer_limits(parameters, remembered=remembered)
        maximum = largest_payload(parameters.max_datagram_frame_size)
        s.datagrams.limit = -1 if maximum is None else maximum
        path_search.drop_too_large_datagrams(s)  # queued by a limit of an earlier connection
        s.peer_idle_timeout = parameters.max_idle_timeout
        s.peer_max_udp_payload = parameters.max_udp_payload_size
        idle_timeout = min(s.own_idle_timeout, s.peer_idle_timeout)
        s.recovery.longest_backoff = longest_backoff(idle_timeout)
        s.longest_silence = keep_alive_interval(math.inf, idle_timeout)
        if remembered:
            return
        s.ack_delay_exponent = parameters.ack_delay_exponent
        s.recovery.peer_max_ack_delay = parameters.max_ack_delay
        s.local_ids.set_limit(parameters.active_connection_id_limit)
        if parameters.stateless_reset_token:
            s.peer_ids.set_first_token(parameters.stateless_reset_token)
        preferred = parameters.preferred_address
        if s.is_client and preferred is not None:
            s.peer_ids.add_preferred(preferred.connection_id, preferred.reset_token)
            s.paths.preferred = preferred
        s.peer_ids.tokens_changed = True
        s.peer_forbids_moves = parameters.disable_active_migration

    def install_key(
        self, for_sending: bool, suite: int, secret: bytes, version: int, *, is_early: bool
    ) -> None:
        """Take the secret of 1-RTT packets, or (`is_early`) of 0-RTT packets, in one direction."""
        s = self.state
        s.version = version
        if is_early:
            s.zero_rtt_key = PacketKey(suite, secret, version)
            s.zero_rtt_header = header_key(suite, secret, version)
            s.can_send_early = s.is_client
        else:
            s.keys.install(for_sending, suite, secret, version)
            if for_sending and s.is_client:
                s.first_one_rtt = s.recovery.next_number
                # RFC 9001 section 4.9.3.
                s.can_send_early = False
                s.zero_rtt_key = s.zero_rtt_header = None

    def on_complete(self) -> None:
        """TLS is complete."""
        s = self.state
        s.is_complete = True
        if s.rtt.has_sample:
            # (The window of the handshake, which has no pacer.)
            s.recovery.pacer.update_rate(s.control.congestion_window, s.rtt.smoothed)

    def confirm(self) -> None:
        """The handshake is confirmed (RFC 9001 section 4.1.2)."""
        s = self.state
        if s.is_confirmed:
            return
        s.is_confirmed = True
        s.recovery.confirm()
        path_search.begin_search(s)
        s.known_path = s.mtu_address
        if s.is_client and s.paths.preferred is not None:
            s.paths.try_preferred(s.peer_ids)

    def give_token(self, token: bytes) -> None:
        """Server: tell the client what proves its address in a later connection."""
        self.state.token = token
        self.state.token_pending = True

    def on_retry(self, now: float) -> None:
        """Take note of a Retry: the server has dropped all 0-RTT packets."""
        self.state.recovery.declare_all_lost(now)

    def on_early_data_refused(self, now: float) -> None:
        """Send refused 0-RTT data again at once, not on a timeout (RFC 9001 section 4.6.2)."""
        s = self.state
        s.can_send_early = False
        s.recovery.declare_early_data_lost(now)
        s.streams.on_early_data_refused()

    def on_handshake_probe(self, *, needs_ping: bool) -> None:
        """Send a probe before the handshake is confirmed (RFC 9002 section 6.2.4)."""
        s = self.state
        if not s.recovery.repeat_oldest() and needs_ping:
            s.pings.append(HANDSHAKE_PING)

    # ------------------------------------------------------------------ packets

    def receive_run(
        self,
        data: bytes | bytearray,
        start: int,
        size: int,
        address: Address,
        now: float,
        mark: int,
        stop: int,
    ) -> int:
        """See :func:`~phoenix_trio.quic.established.receive.receive_run`."""
        s = self.state
        end = receive.receive_run(s, data, start, size, address, now, mark, stop)
        active = s.paths.all[0]
        if active.addr != address or not active.is_validated:
            s.paths.count_received(s.paths.find(address), end - start)
        return end

    def receive_packet(
        self, is_early: bool, packet: bytes, address: Address, now: float, mark: int
    ) -> None:
        """Take a 1-RTT packet, or (`is_early`) a server's 0-RTT packet, already counted."""
        if is_early:
            receive.receive_zero_rtt(self.state, packet, address, now, mark)
        else:
            size = len(packet)
            receive.receive_run(self.state, packet, 0, size, address, now, mark, size)

    def begin_pass(self) -> None:
        """Begin a new round of sending, and decide anew whether a partial packet should wait.

        While the application keeps writing, round after round, a packet that is not full is held
        back, so that bulk data leaves in full packets.  A single write leaves at once.
        """
        s = self.state
        sending = s.streams.sending
        wrote, sending.wrote = sending.wrote, False
        s.tail_held = wrote and s.wrote_before
        s.wrote_before = wrote

    def transmit(self, now: float, slab: bytearray | None) -> list[Run]:
        """See :func:`~phoenix_trio.quic.established.transmit.transmit`."""
        return transmit(self.state, now, slab)

    def coalesce(self, now: float, room: int, must_fill: bool) -> bytes:
        """See :func:`~phoenix_trio.quic.established.transmit.coalesce`."""
        return coalesce(self.state, now, room, must_fill)

    # ------------------------------------------------------------------ timers

    def deadline(self) -> float:
        """The time at which :meth:`on_timer` or :meth:`transmit` is due, idle timeout aside."""
        s = self.state
        deadline = s.pacing_at
        paths = s.paths
        can_send = True
        if paths.all and not paths.all[0].is_validated:
            can_send = self._can_send()
            deadline = min(deadline, paths.deadline())
        if can_send and s.received.ack_at < deadline:
            deadline = s.received.ack_at
        at = s.recovery.deadline(can_send)
        if at < deadline:
            deadline = at
        if not s.is_complete:
            return deadline
        if s.keep_alive_at < deadline:
            deadline = s.keep_alive_at
        if s.local_ids.replace_at < deadline:
            deadline = s.local_ids.replace_at
        if paths.repeat_at < deadline:
            deadline = paths.repeat_at
        if s.streams.grant_at < deadline:
            deadline = s.streams.grant_at
        mtu = s.mtu
        if mtu is not None and paths.all[0].is_validated:
            deadline = min(deadline, mtu.deadline)
        if s.streams.has_blocked():
            deadline = min(deadline, self._blocked_deadline())
        return deadline

    def _can_send(self) -> bool:
        """Whether the anti-amplification limit has room for the packets that timers send.

        Without room, the timer would stay in the past (RFC 9002 section 6.2.2.1).
        """
        return self.state.paths.all[0].can_send(_LARGEST_ACK_PACKET)

    def _blocked_deadline(self) -> float:
        s = self.state
        if not s.is_confirmed or s.recovery.eliciting_in_flight:
            # (Packets in flight are repeated until acknowledged, and keep the connection alive.)
            return math.inf
        return s.streams.blocked_deadline(
            s.idle_since, s.recovery.probe_timeout(), s.idle_timeout()
        )

    def on_timer(self, now: float) -> bool:
        """Act on a deadline that has come or passed; whether a path to the peer is left.

        A connection without a validated path is over (RFC 9000 section 9.3.2).
        """
        s = self.state
        s.now = now
        s.streams.now, s.streams.rtt = now, s.rtt.smoothed or s.rtt.initial
        if now >= s.keep_alive_at:
            if s.is_complete and KEEP_ALIVE_PING not in s.pings:
                s.pings.append(KEEP_ALIVE_PING)
            s.touch_keep_alive(now)
        if s.streams.has_blocked() and now >= self._blocked_deadline():
            s.streams.blocked_pending = True
        if now >= s.local_ids.replace_at:
            s.local_ids.replace(now)
        if now >= s.paths.repeat_at:
            s.paths.repeat_challenges(now, s.peer_ids)
        if now >= s.streams.grant_at:
            s.streams.grant_streams()
        if s.recovery.on_timeout(now, self._can_send()):
            s.probes_due = PROBES
        return now < s.paths.deadline() or s.paths.abandon()

    def keep_alive_interval(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never."""
        s = self.state
        wanted = s.config.keep_alive
        return None if wanted is None else keep_alive_interval(wanted, s.idle_timeout())

    def only_acknowledgement_due(self) -> float | None:
        """The time to acknowledge what was received, if that is the only work.

        ``None``: there may be other work, so ask :meth:`transmit` and :meth:`deadline`.
        """
        s = self.state
        at = s.received.ack_at
        mtu = s.mtu
        if (
            at == math.inf
            or at <= s.now
            or not s.is_confirmed
            or s.streams.sending.active
            or s.datagrams.waiting
            or s.more
            or s.pacing_at != math.inf
            or s.recovery.loss_time != math.inf
            or s.streams.has_control()
            or s.has_rare_frames()
            or s.probes_due
            or (mtu is not None and (mtu.is_probing or mtu.deadline <= at))
        ):
            return None
        return at

    def has_more_to_send(self, now: float) -> bool:
        """Whether :meth:`transmit` stopped only because its run was full."""
        s = self.state
        return s.more or s.pacing_at <= now

    # ------------------------------------------------------------------ keys and pings

    def can_update_keys(self) -> bool:
        """Whether the peer has acknowledged a packet with the present keys."""
        s = self.state
        return s.is_confirmed and s.keys.can_update(
            s.recovery.next_number, s.recovery.largest_acknowledged
        )

    def update_keys(self) -> None:
        """Begin a key update (RFC 9001 section 6.1) if :meth:`can_update_keys`."""
        self.state.keys.request_update(self.state.recovery.next_number)

    # ------------------------------------------------------------------ paths

    def probe_path(self, address: Address, now: float) -> bool:
        """Client: challenge the server on another path; see :meth:`.paths.Paths.begin_probe`."""
        s = self.state
        return s.paths.begin_probe(address, s.peer_ids, now, validation_period(s))

    def rebind(self, address: Address) -> bool:
        """Client: use another path at once, without a challenge (RFC 9000 section 9.2)."""
        s = self.state
        return s.paths.add_known(address, s.peer_ids) and self.move_to_path(address)

    def move_to_path(self, address: Address) -> bool:
        """Client: use a validated path; see :meth:`.paths.Paths.move`."""
        s = self.state
        if not s.paths.move(address, s.peer_ids):
            return False
        # (RETIRE_CONNECTION_ID, which is due now, shows the server where we are.)
        s.spin = 0
        return True

    # ------------------------------------------------------------------ the fate of frames

    def on_frames_acknowledged(self, control: list[tuple[int, int, int]]) -> None:
        """Note that a packet with these frames was acknowledged."""
        s = self.state
        for kind, a, b in control:
            if kind == frames.PING:
                if a >= 0:  # (not a PING of our own)
                    s.events.append(events.PingAcknowledged(a))
            elif kind == MTU_PROBE:
                path_search.on_probe_acknowledged(s, a)
            elif kind == frames.CRYPTO:
                s.crypto_send.on_acknowledged(a, b)
            elif kind in _CONNECTION_FRAMES:
                pass  # no part needs to know
            else:
                s.streams.on_control_acknowledged(kind, a, b)

    def on_frames_lost(self, control: list[tuple[int, int, int]]) -> None:
        """Send the frames of a lost packet again if they still matter (RFC 9000 section 13.3)."""
        s = self.state
        for kind, a, b in control:
            if kind == frames.PING:
                s.pings.append(a)
            elif kind == MTU_PROBE:
                path_search.on_probe_lost(s, a)
            elif kind == frames.CRYPTO:
                s.crypto_send.on_lost(a, b)
            elif kind == frames.NEW_CONNECTION_ID:
                s.local_ids.on_lost(a)
            elif kind == frames.RETIRE_CONNECTION_ID:
                s.peer_ids.on_lost(a)
            elif kind == frames.PATH_CHALLENGE:
                s.paths.on_challenge_lost()
            elif kind == frames.HANDSHAKE_DONE:
                s.handshake_done_pending = True
            elif kind == frames.NEW_TOKEN:
                s.token_pending = True
            else:
                s.streams.on_control_lost(kind, a, b)

    def on_datagrams_lost(self, tags: list[int]) -> None:
        """Note the losses for the application; datagrams are not sent again."""
        for tag in tags:
            self.state.datagrams.note_loss(tag)

    def on_ack_acknowledged(self, largest: int) -> None:
        """Note that an ACK frame of ours with this largest packet number was acknowledged."""
        self.state.received.on_ack_acknowledged(largest)

    def on_size_acknowledged(self, size: int) -> None:
        """Note that packets in flight of up to `size` bytes were acknowledged."""
        path_search.on_packets_arrived(self.state, size)

    def on_packets_lost(self, numbers: list[int], size: int) -> None:
        """Note that these packets are lost; those in flight had up to `size` bytes."""
        s = self.state
        path_search.on_packets_lost(s, size)
        if s.trace is not None:
            for number in numbers:
                s.trace.log_event(
                    category="recovery",
                    event="packet_lost",
                    data={"type": "1RTT", "packet_number": number},
                )

    # ------------------------------------------------------------------ the end

    def release(self) -> None:
        """Cut the references between the parts, so that they are freed at once."""
        s = self.state
        s.streams.release()
        s.recovery.release()
        s.keys.discard()
        s.zero_rtt_key = s.zero_rtt_header = None
        s.on_handshake_done = s.on_ticket = s.on_token = None
        s.trace = None


_CONNECTION_FRAMES: Final = frozenset(
    {
        frames.NEW_CONNECTION_ID,
        frames.RETIRE_CONNECTION_ID,
        frames.PATH_CHALLENGE,
        frames.HANDSHAKE_DONE,
        frames.NEW_TOKEN,
    }
)
