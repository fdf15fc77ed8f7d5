"""One QUIC connection as a state machine: bytes and times in, bytes, events and deadlines out.

Floor 1, sans-IO: knows no Trio and reads no clock.  :class:`Engine` joins the two halves
of a connection, which are cut by packet number space: the handshake (Initial and
Handshake packets) and the established connection (0-RTT and 1-RTT packets).  It routes
packets by the form of their header, merges the deadlines, and ends the connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from ..config import SMALLEST_UDP_PAYLOAD, TransportConfig
from . import events
from .connection_end import ConnectionEnd
from .established.congestion import Control, make_control
from .established.connection import Established
from .established.connection_ids import PeerIds
from .established.ecn import NOT_ECT
from .established.memory_budget import EndpointMemory, MemoryBudget
from .established.parameters import PeerParameters
from .established.paths import Paths
from .established.rtt import RoundTrip
from .established.runs import Run, group
from .established.stalls import Arrivals
from .established.state import NEVER, State
from .established.streams import Streams
from .handshake.connection import Handshake
from .handshake.host import EARLY
from .handshake.parameters import LocalParameters
from .handshake.settings import HandshakeSettings
from .path_address import Address
from .termination import Cause
from .wire.errors import NO_ERROR, NO_VIABLE_PATH

__all__ = ["Engine"]

#: Seconds added to the time of a timer: the sum in a deadline may be rounded up, and a clock
#: with coarse steps may not have reached it.
_TIMER_SLACK: Final = 1e-6


class Engine(ConnectionEnd):
    """The state machine of one connection.

    Args:
      config: limits, buffers and timers.
      settings: roles, certificates, versions and tickets of the handshake.
      reset_token: derives the stateless reset token of a connection ID.
      memory: shared with the endpoint's other connections; ``None``: with no other.
    """

    __slots__ = (
        "__weakref__",
        "_early_pending",
        "_make_token",
        "peer_ids",
    )

    def __init__(
        self,
        *,
        config: TransportConfig,
        settings: HandshakeSettings,
        reset_token: Callable[[bytes], bytes],
        memory: EndpointMemory | None = None,
    ) -> None:
        super().__init__(settings.is_client)
        memory = EndpointMemory(config) if memory is None else memory
        self.config = config
        self.receive_memory: MemoryBudget = memory.receive
        self.paths: Paths = Paths(settings.is_client)
        self.rtt: RoundTrip = RoundTrip(config.initial_rtt)
        self.control: Control = make_control(config.congestion_control, SMALLEST_UDP_PAYLOAD)
        # The send buffer bounds the bytes in flight; packet overhead comes on top.
        self.control.maximum_window = 2 * config.send_buffer_size
        self.streams: Streams = Streams(
            is_client=settings.is_client, config=config, memory=memory, events=self._events
        )
        self.handshake: Handshake = Handshake(
            self,
            settings,
            LocalParameters(
                # (In whole milliseconds, of which 0 would mean "none", RFC 9000 section 18.2.)
                idle_timeout=max(min(config.max_idle_timeout, NEVER), 0.001),
                max_data=self.streams.receiving.initial_connection_window,
                max_stream_data=self.streams.receiving.initial_stream_window,
                max_streams_bidi=config.max_bidirectional_streams,
                max_streams_uni=config.max_unidirectional_streams,
                max_datagram_frame_size=65_535 if config.enable_datagrams else 0,
            ),
        )
        self.state: State = State(
            is_client=settings.is_client,
            config=config,
            streams=self.streams,
            local_cid=self.handshake.host_cid,
            peer_cid=self.handshake.peer_cid,
            reset_token=reset_token,
            make_connection_id=settings.make_connection_id,
            rtt=self.rtt,
            control=self.control,
            paths=self.paths,
            queue=self._events,
            trace=self.handshake.trace,
        )
        if settings.preferred is not None:
            self.state.local_ids.add_preferred(settings.preferred_cid)
            self.paths.announced = settings.preferred
        self.established: Established = Established(self.state)
        self.peer_ids: PeerIds = self.state.peer_ids
        self.state.on_handshake_done = self._on_handshake_done
        self.state.on_ticket = self.handshake.take_tls_message
        self.state.on_token = settings.keep_token
        self._make_token = settings.make_token
        self._early_pending = False  # whether early data was accepted, and not reported yet

        self._bytes_sent = 0
        self._bytes_received = 0
        self._udp_datagrams_sent = 0
        self._udp_datagrams_received = 0

    # ------------------------------------------------------------------ driving

    def start(self, address: Address, now: float) -> None:
        """Client: begin the handshake with the server at `address`."""
        s = self.state
        s.now = now
        s.idle_since = now
        self.handshake.start(address, now)
        s.touch_keep_alive(now)

    def receive(self, data: bytes, address: Address, now: float, mark: int = NOT_ECT) -> None:
        """Process one UDP payload of this connection, with its ECN codepoint."""
        self.receive_run(data, 0, len(data), address, now, mark)

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
        """Process datagrams of `size` bytes (the last may be shorter) of `data`.

        They begin at `start`, end at `stop` (``None``: with `data`), and all have the ECN
        codepoint `mark`.  The engine keeps no reference to `data`.

        Returns the position of the first datagram not processed, because it may be for
        another connection; at least one is processed.
        """
        if stop is None:
            stop = len(data)
        end = stop
        s = self.state
        try:
            # (After a fault, datagrams are ignored; CONNECTION_CLOSE may still have to leave.)
            if self._is_over or (self._end is not None and self._end.cause is not Cause.LOCAL):
                end = min(start + size, stop)
                if self._closing is not None:
                    self._closing.receive(bytes(data[start:end]), address, now, mark)
            elif s.keys.receive is not None and not data[start] & 0x80:
                end = self.established.receive_run(data, start, size, address, now, mark, stop)
            else:
                end = min(start + size, stop)
                s.now = now
                if s.idle_since == math.inf:
                    s.idle_since = now  # a server's idle timer begins with the first datagram
                self.handshake.receive(bytes(data[start:end]), address, now, mark)
                if self._make_token is not None and s.is_confirmed:
                    self._give_token(self._make_token)
            if not s.is_confirmed:
                self._go_on_with_handshake()
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection pays
            self._on_internal_error("receiving", error)
        self._bytes_received += end - start
        self._udp_datagrams_received += -(-(end - start) // size) if size else 1
        self._collect()
        return end

    def _give_token(self, make_token: Callable[[Address, float], bytes]) -> None:
        """Server: give the client a token if its address is proved (RFC 9000 section 8.1.3)."""
        self._make_token = None
        path = self.paths.all[0]
        if path.is_validated:
            self.established.give_token(make_token(path.addr, self.state.now))

    def _go_on_with_handshake(self) -> None:
        """Act on a packet before the handshake is confirmed: keys, tokens, completion."""
        s = self.state
        if self._is_client and s.is_complete and s.recovery.largest_acknowledged >= s.first_one_rtt:
            # RFC 9001 section 4.1.2: the server reads 1-RTT packets once it is complete.
            self._on_handshake_done()
        if self._early_pending and not s.is_complete:
            self._early_pending = False
            self._events.append(events.EarlyDataReady(self.handshake.alpn))

    def _collect(self) -> None:
        """Collect faults and events of the two halves, and report those that are due."""
        s = self.state
        if s.fault is not None:
            fault, s.fault = s.fault, None
            self.on_fault(fault.code, fault.frame_type, fault.reason)
        if s.peer_close is not None and not self._is_over:
            close = s.peer_close
            self._owes_goodbye = True
            self.on_peer_close(close.code, close.frame_type, close.reason)
        if s.paths.probed:
            probed, s.paths.probed = s.paths.probed, []
            self._events += [events.PathProbed(address, ok) for address, ok in probed]
        if s.datagrams.wants_room and s.datagrams.take_room():
            s.streams.sending.progress = True
        if s.datagrams.losses:
            self._events.append(events.DatagramsLost(list(s.datagrams.losses)))
            s.datagrams.losses.clear()
        self.streams.collect()

    def set_arrivals(self, arrivals: Arrivals) -> None:
        """Set the driver's record of arrival times of packets."""
        self.rtt.arrivals = arrivals

    @property
    def path_ceiling(self) -> Callable[[Address], int | None]:
        """The largest payload of the interface towards an address."""
        return self.state.path_ceiling

    @path_ceiling.setter
    def path_ceiling(self, ceiling: Callable[[Address], int | None]) -> None:
        self.state.path_ceiling = ceiling

    def begin_pass(self) -> None:
        """Begin a new round of sending: decide again which data waits for more."""
        self.established.begin_pass()

    def transmit(self, now: float, slab: bytearray | None = None) -> list[Run]:
        """One paced run of UDP payloads, or a few; empty: nothing to send now.

        Each comes with its destination and the size of its datagrams (the last may
        be shorter).  If more may leave at once, :meth:`has_more_to_send` returns true.

        Args:
          now: the time.
          slab: room for a run.  The result may be a view of it, valid until the slab is
            used again.
        """
        if self._closing is not None:
            return self._count_sent(self._closing.transmit(now))
        if self._is_over or not self.paths.all:
            return self._count_sent(self._answer_goodbye(now)) if self._owes_goodbye else []
        try:
            if self._close_pending:
                runs = self._send_close(now)
            elif self.state.is_confirmed:
                runs = self.established.transmit(now, slab)
            else:
                runs = group(self.handshake.transmit(now))
                runs += self.established.transmit(now, slab)
            self._collect()
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection pays
            runs = self._close_after(error, now)
        return self._count_sent(runs)

    def _count_sent(self, runs: list[Run]) -> list[Run]:
        for data, _, size, _ in runs:
            self._bytes_sent += len(data)
            self._udp_datagrams_sent += -(-len(data) // size)
        return runs

    def on_timer(self, now: float) -> None:
        """Act on a deadline of :meth:`next_deadline` that has expired."""
        if self._is_terminated:
            return
        s = self.state
        s.now = now
        later = now + _TIMER_SLACK
        if self._is_over:
            if self._until is not None and later >= self._until:
                self._terminate()
            return
        if later >= s.idle_since + s.idle_timeout():
            self._end_silently(Cause.IDLE_TIMEOUT, NO_ERROR, "Idle timeout")
            return
        try:
            if not s.is_confirmed:
                self.handshake.on_timer(later)
            if self.paths.all and not self.established.on_timer(later):
                self._end_silently(
                    Cause.LOCAL_PROTOCOL_ERROR, NO_VIABLE_PATH, "No validated network path"
                )
        except Exception as error:  # noqa: BLE001 - as above
            self._on_internal_error("handling a timer", error)
        self._collect()

    def next_deadline(self) -> float | None:
        """When to call :meth:`on_timer` and :meth:`transmit` next; ``None``: never again."""
        if self._is_over:
            return self._until
        s = self.state
        deadline = s.idle_since + s.idle_timeout()
        if deadline == math.inf:
            return None
        at = self.established.deadline()
        if at < deadline:
            deadline = at
        if not s.is_confirmed:
            at = self.handshake.deadline()
            if at < deadline:
                deadline = at
        return deadline

    def only_acknowledgement_due(self) -> float | None:
        """When to send a delayed acknowledgement, if nothing else is pending.

        ``None``: something else may be pending, so call :meth:`transmit` and
        :meth:`next_deadline`.
        """
        if self._end is not None:
            return None
        return self.established.only_acknowledgement_due()

    @property
    def end_deadline(self) -> float | None:
        """When the connection ends if nothing happens any more (idle timeout, closing period)."""
        if self._is_over:
            return self._until
        at = self.state.idle_since + self.state.idle_timeout()
        return None if at == math.inf else at

    def has_more_to_send(self, now: float) -> bool:
        """Whether :meth:`transmit` stopped only because its run was full."""
        return not self._is_over and self.established.has_more_to_send(now)

    @property
    def has_events(self) -> bool:
        """Whether :meth:`take_events` has any."""
        return bool(self._events)

    def take_events(self) -> list[events.Event]:
        """The events since the last call."""
        if not self._events:
            return []
        result = self._events[:]
        self._events.clear()
        return result

    # ------------------------------------------------------------------ called by the handshake

    def coalesce(self, now: float, room: int, must_fill: bool) -> bytes:
        """A packet of application data for the rest of a datagram; empty: there is none."""
        if self.peer_ids.current.cid != self.handshake.peer_cid:
            return b""  # RFC 9000 section 12.2: one connection ID for all packets of a datagram
        return self.established.coalesce(now, room, must_fill)

    def on_peer_cid(self, cid: bytes) -> None:
        """Use this connection ID for the peer from now on."""
        self.established.set_peer_cid(cid)

    def on_keys(
        self, level: int, for_sending: bool, suite: int, secret: bytes, version: int
    ) -> None:
        """The secret of a level's packets in one direction."""
        is_early = level == EARLY
        self.established.install_key(for_sending, suite, secret, version, is_early=is_early)
        if is_early and not self._is_client:
            self._early_pending = True

    def on_packet(self, level: int, packet: bytes, address: Address, now: float, mark: int) -> None:
        """Process a packet of application data that followed handshake packets in a datagram."""
        s = self.state
        if s.fault is not None or s.peer_close is not None or self._end is not None:
            return
        self.established.receive_packet(level == EARLY, packet, address, now, mark)

    def on_parameters(self, parameters: PeerParameters, remembered: bool) -> None:
        """Apply the peer's transport parameters; they are checked."""
        self.established.set_parameters(parameters, remembered=remembered)

    def on_crypto(self, data: bytes) -> None:
        """Queue TLS data for 1-RTT packets."""
        self.state.crypto_send.write(data)

    def on_complete(self, alpn: str | None, early_data_accepted: bool, resumed: bool) -> None:
        """TLS is complete."""
        self.established.on_complete()
        self._events.append(events.HandshakeCompleted(alpn, resumed, early_data_accepted))
        if not self._is_client:
            # RFC 9001 section 4.1.2.
            self.state.handshake_done_pending = True
            self._confirm()

    def _on_handshake_done(self) -> None:
        """Client: HANDSHAKE_DONE has arrived."""
        if not self.state.is_confirmed and self.state.is_complete:
            self.handshake.confirm()
            self._confirm()

    def _confirm(self) -> None:
        self.established.confirm()
        self._events.append(events.HandshakeConfirmed())

    def on_early_data_refused(self) -> None:
        """Send the data of all 0-RTT packets again."""
        self.established.on_early_data_refused(self.state.now)

    def on_retry(self) -> None:
        """The client starts again."""
        self.established.on_retry(self.state.now)

    def on_probe(self, needs_ping: bool) -> None:
        """A probe of the handshake leaves."""
        self.established.on_handshake_probe(needs_ping=needs_ping)

    def on_received(self, now: float) -> None:
        """A packet of the peer was processed: the idle timer starts again."""
        self.state.note_received(now)

    def on_eliciting_sent(self, now: float) -> None:
        """An ack-eliciting packet was sent (RFC 9000 section 10.1)."""
        self.state.note_eliciting_sent(now)
