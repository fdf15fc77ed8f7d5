"""One QUIC connection as a state machine: bytes and times in, bytes, events and deadlines out.

Floor 1, sans-IO: knows no Trio and reads no clock.  :class:`Engine` is
aioquic's ``QuicConnection`` with the promises which aioquic leaves to others:

* receive credit follows what the application has read, so memory is bounded
  (RFC 9000 section 4.1); stream credit follows the streams it has let go;
* send buffers are bounded, and say when there is room again;
* stream limits can be set; idle streams cost nothing per packet;
* the end of a connection is reported once, at once, with its cause;
* stateless resets are derived and recognised (RFC 9000 section 10.3), a closing
  connection answers (section 10.2.1), an idle one can be kept alive (10.1.2).

Private attributes of aioquic are touched in this module, in
:mod:`~phoenix_trio.quic.stream_state`, :mod:`~phoenix_trio.quic.key_update`,
:mod:`~phoenix_trio.quic.handshake_probe` and :mod:`~phoenix_trio.quic.tls_context`
alone.  The lines named in comments are those of aioquic 1.7.2;
``tests/quic/test_aioquic_names.py`` fails when one of the names has gone.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.buffer import UINT_VAR_MAX, Buffer, size_uint_var
from aioquic.quic import events as aioquic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    ACK_FRAME_CAPACITY,
    END_STATES,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
    stream_is_client_initiated,
    stream_is_unidirectional,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicStreamFrame,
    pull_ack_frame,
    pull_quic_transport_parameters,
    push_ack_frame,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream, StreamFinishedError

from ..config import LARGEST_UDP_PAYLOAD, SMALLEST_UDP_PAYLOAD, TransportConfig
from ..metrics import ConnectionStatistics
from . import events
from .blocked import BlockedSignals
from .closing import ClosingConnection, repeat_times
from .congestion import CUBIC, RENO, CubicControl, RenoControl
from .crypto_stream import INITIAL_WINDOW, CryptoReceiver, CryptoStreamError
from .datagram_frame import largest_payload
from .early_packets import EarlyPacket, EarlyPackets
from .ecn import NOT_ECT, EcnMarking, ReceivedMarks
from .fast_path import FastPath, kernel_run
from .fast_send import BulkTurn, encode_varint
from .flow_control import ReceiveWindow
from .goodbye import GoodbyeReader
from .handshake_probe import (
    HANDSHAKE_PROBES,
    forget_acknowledgements,
    next_backoff,
    repeat_application_data,
    repeat_crypto,
)
from .idle import keep_alive_interval, longest_backoff
from .initial_keys import InitialPairs
from .initial_protection import InitialKeys
from .key_update import EarlyKeys, OneRttKeys
from .logs import PeerFaults
from .memory_budget import EndpointMemory
from .pacer import Pacer
from .path_address import Address, ends_of, local_of
from .path_mtu import MtuSearch
from .rate_limit import RateLimit
from .reassembly import PieceLimit
from .remains import ConnectionRemains, UnreadData
from .skipped_numbers import SkippedNumbers
from .stalls import Arrivals, StallFilter
from .stream_state import (
    CountingRecovery,
    CryptoSender,
    SentPackets,
    StreamCountLimit,
    StreamRecord,
    StreamTable,
)
from .termination import Cause, error_for
from .tls_context import ClientPolicy, PhoenixTLSContext, ServerPolicy, adopt

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["Engine"]

logger = logging.getLogger("phoenix_trio.quic")

#: Flow-control windows to begin with, in bytes; they grow to the configuration's ceilings.
INITIAL_STREAM_WINDOW = 1024 * 1024
INITIAL_CONNECTION_WINDOW = 3 * 512 * 1024

#: Streams looked at for one run of packets, so that many busy ones cost each packet no more.
STREAMS_PER_RUN = 32

#: A CONNECTION_CLOSE has to fit into one packet with its reason (aioquic does not check).
MAX_REASON_BYTES = 256

#: Bytes of a packet which a DATAGRAM frame cannot use: header, connection ID (at most 20),
#: packet number, authentication tag, frame type and length.
DATAGRAM_OVERHEAD = 1 + 20 + 2 + 16 + 1 + 4

#: For "never" where aioquic computes with a number: 31 years.
_NEVER = 1e9

#: The largest value of a variable-length integer of two bytes (RFC 9000 section 16).
_TWO_BYTE_MAX = 16383

#: Seconds by which a timer is taken to be later than it is.
_TIMER_SLACK = 1e-6

#: Three variable-length integers at the end of an ACK frame (RFC 9000 section 19.3.2).
ECN_COUNTS_CAPACITY = 3 * 8

#: The largest packet that timers of a 1-RTT path send: header, an ACK frame of few ranges with
#: ECN counts, a PATH_CHALLENGE frame (RFC 9000 section 19.17), authentication tag.
_LARGEST_ACK_PACKET = 1 + 20 + 2 + ACK_FRAME_CAPACITY + ECN_COUNTS_CAPACITY + 9 + 16

_CONTROLLERS = {"cubic": CUBIC, "reno": RENO}

#: The largest payload which is tried where nobody knows the interface: Ethernet, IPv6.
UNKNOWN_PATH_CEILING = 1452

#: What we take, which is anything (RFC 9000 section 18.2).
_OWN_UDP_PAYLOAD_LIMIT = 65_527
_MAX_UDP_PAYLOAD_SIZE_PARAMETER = 0x03

#: Packets of everyday frames which are built at a time.
_SMALL_PACKETS = 16

#: Packets in one run at most.
_RUN_PACKETS = 64

#: UDP payloads of one size in one piece of memory (the last may be shorter), their
#: destination (with the local address from which they leave, if there is a choice of it),
#: that size, and their ECN codepoint.
Run = tuple[bytes | memoryview, Address, int, int]

#: Packets after which the keys are updated: half of what AES-GCM stands (RFC 9001 section 6.6).
KEY_UPDATE_PACKETS = 1 << 22

#: Packets after which it is tried again, while the last update is not acknowledged.
_KEY_UPDATE_RETRY = 1000

#: Packets which nobody has to acknowledge, after which one asks for it, and after which the
#: older ones are forgotten.
_UNACKNOWLEDGED_ACKS = 32
_FORGOTTEN_ACKS = 2048

#: Packets sent in an Initial or Handshake packet number space, above which those which only
#: acknowledge are forgotten: a stranger makes us send one for each packet.
_HANDSHAKE_ACKS = 64

#: How often a second, and how often at once, retired connection IDs are replaced by new
#: ones: each that was issued is recognised for some seconds more.  (A peer is not closed for
#: retiring many: another on its path can make it seem to move all the time.)
_REPLACEMENTS_A_SECOND = 2.0
_REPLACEMENTS_AT_ONCE = 64

#: Challenges of a path which wait for their answer; a peer needs the answer to one.
_PATH_CHALLENGES = 4

#: The uid of PINGs which the keep-alive timer sends.
KEEP_ALIVE_PING = -1


#: The uid of PINGs which show a server the client's address while the client does not know
#: whether the handshake is confirmed.
_HANDSHAKE_PING = -2

#: Session tickets which a client takes, at once and a second.  Each costs several key
#: derivations, and a packet has room for sixty; a server sends a few (RFC 8446 section 4.6.1).
_TICKETS_AT_ONCE = 8
_TICKETS_PER_SECOND = 1.0

#: How often a server sends its flight early because the client repeats its hello.
_ANSWERS_TO_REPEATED_HELLOS = 8

#: TLS (RFC 8446): the type of a NewSessionTicket, and the alert for a message out of place.
_NEW_SESSION_TICKET = 4

_AFTER_HANDSHAKE = (tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE)

#: Encryption levels as plain numbers (an enum's value is computed in Python).
_ZERO_RTT: int = tls.Epoch.ZERO_RTT.value
_HANDSHAKE: int = tls.Epoch.HANDSHAKE.value
_ONE_RTT: int = tls.Epoch.ONE_RTT.value

#: No call waits for a stream of either kind.
_NONE_WANTED = [0, 0]

#: Frames which say that a stream is blocked, at a time: enough to keep a connection alive.
_BLOCKED_STREAMS = 16

#: In which epochs each kind of frame may come (RFC 9000 section 12.4), as aioquic says.
_FRAME_EPOCHS: dict[int, frozenset[tls.Epoch]] = {}


def clamp_reason(reason: str) -> str:
    """Shorten a reason phrase to what fits into a CONNECTION_CLOSE, on a character boundary."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")


class Engine(QuicConnection):
    """The state machine of one connection.

    Args:
      config: limits, buffers and timers.
      configuration: aioquic's configuration, made by :mod:`phoenix_trio.quic.setup`.
      policy: how the peer's certificate is judged.
      reset_token: derives the stateless reset token of a connection ID.
      memory: shared with the endpoint's other connections; ``None``: with no other.
      initial_keys: those of the client's Initial packets, where they are known already.
      arguments: passed on to aioquic (original connection IDs, ticket callbacks).
    """

    def __init__(
        self,
        *,
        config: TransportConfig,
        configuration: QuicConfiguration,
        policy: ServerPolicy | ClientPolicy,
        reset_token: Callable[[bytes], bytes],
        memory: EndpointMemory | None = None,
        initial_keys: InitialKeys | None = None,
        **arguments: Any,
    ) -> None:
        stream_window = min(
            INITIAL_STREAM_WINDOW, config.stream_receive_buffer_size, config.receive_buffer_size
        )
        memory = EndpointMemory(config) if memory is None else memory
        self.receive_memory = memory.receive
        """The endpoint's memory for what the application has not read."""
        self._receive_account = account = memory.receive.open()
        wanted = min(INITIAL_CONNECTION_WINDOW, config.receive_buffer_size)
        connection_window = account.begin(wanted)
        if connection_window < wanted:
            stream_window = min(stream_window, _stream_share(connection_window))
        configuration.max_stream_data = stream_window
        configuration.max_data = connection_window
        # (In whole milliseconds, of which 0 would mean "none", RFC 9000 section 18.2.)
        configuration.idle_timeout = max(min(config.max_idle_timeout, _NEVER), 0.001)
        configuration.congestion_control_algorithm = _CONTROLLERS[config.congestion_control]
        configuration.initial_rtt = config.initial_rtt
        # During the handshake; see _begin_mtu_search.
        configuration.max_datagram_size = SMALLEST_UDP_PAYLOAD
        configuration.max_datagram_frame_size = 65535 if config.enable_datagrams else None
        self._versions = list(configuration.supported_versions)
        self._initial_cid: bytes | None = None
        self._known_initial_keys = initial_keys
        super().__init__(configuration=configuration, **arguments)
        # Line 379: a log which peers cannot fill.
        faults = PeerFaults(self._logger.logger, self._logger.extra)
        self._logger = self._loss._logger = faults  # type: ignore[assignment]
        self._share_epochs()
        self.config = config
        """Limits, buffers and timers of this connection."""
        self._policy = policy
        self._reset_token = reset_token
        self._now = 0.0
        self._out: list[events.Event] = []

        # Lines 331-340: settable stream limits, credit when the application lets go.
        self._local_max_streams_bidi = StreamCountLimit(
            QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", config.max_bidirectional_streams
        )
        self._local_max_streams_uni = StreamCountLimit(
            QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", config.max_unidirectional_streams
        )
        # Line 371: streams which report by themselves.
        self._streams = StreamTable(self)
        self._records: dict[int, StreamRecord] = {}
        self._active: dict[int, StreamRecord] = {}
        self._finished: list[int] = []
        self._limits_to_send: dict[int, StreamRecord] = {}
        self.piece_limit = PieceLimit()
        """Bounds the pieces which streams hold behind gaps."""
        self._initial_stream_window = stream_window
        self._window = ReceiveWindow(connection_window, config.receive_buffer_size, account)
        self._full_window = wanted
        self._limits_pending = False
        self._blocked = BlockedSignals(config.max_blocked_time)
        self._blocked_pending = False
        self._streams_wanted = [0, 0]  # calls which wait for a stream: bidirectional, one-way

        self._fast = FastPath(self, enabled=config.enable_fast_path)
        self._more = False
        self._hold_tail = False
        self._wrote = self._wrote_before = False

        # Line 399: counters, and a pacer which keeps up with fast paths.
        self._loss.__class__ = CountingRecovery
        self._recovery: CountingRecovery = self._loss  # type: ignore[assignment]
        self._recovery.stalls = StallFilter()
        self._recovery.longest_backoff = longest_backoff(configuration.idle_timeout)
        control = self._loss._cc
        assert isinstance(control, CubicControl | RenoControl)
        self._control = control
        # More than can be buffered cannot be in flight; packets' own overhead is on top.
        control.maximum_window = 2 * config.send_buffer_size
        self._recovery.on_acknowledged = self.note_largest_acknowledged
        self._recovery.on_lost = self.note_largest_lost
        self._recovery.on_handshake_timeout = self.note_handshake_timeout
        self._recovery.on_handshake_hint = self.repeat_handshake
        self.skipped = self._recovery.skipped = SkippedNumbers()
        """Packet numbers which are not used, of 1-RTT packets (RFC 9000 section 21.4)."""
        self._pacer = Pacer(self._max_datagram_size)
        self._loss._pacer = self._pacer  # type: ignore[assignment]

        if not self._is_client:
            # Line 321: random tokens would be forgotten by a restart.
            self._host_cids[0].stateless_reset_token = reset_token(self.host_cid)
        self._largest_issued = 0  # number of the connection IDs which the peer was told
        self._replacements = RateLimit(_REPLACEMENTS_A_SECOND, _REPLACEMENTS_AT_ONCE)
        self._replace_at = math.inf  # when to replace those for which it was too early
        self._streams_available = False  # to be reported
        self.reset_tokens_changed = False
        """Whether :meth:`peer_reset_tokens` has changed since this was last set to false."""

        self._cause: Cause | None = None
        self._terminated = False
        self._early_data_reported = False
        self._peer_max_udp_payload = LARGEST_UDP_PAYLOAD
        self._mtu: MtuSearch | None = None
        self._mtu_address: Any = None
        self._known_path: Any = None
        """The address of the path of which congestion control and round-trip times tell."""
        self.path_ceiling: Callable[[Any], int | None] = _unknown_path
        """Set by the driver: the largest payload which the interface towards an address takes."""
        self._closing: ClosingConnection | None = None
        self._owes_goodbye = False
        """From our CONNECTION_CLOSE on."""
        self._keep_alive_at = math.inf
        self._longest_silence = keep_alive_interval(math.inf, configuration.idle_timeout)
        """The longest interval of keep-alives which is no matter of the path's round trip."""

        self._ecn = EcnMarking(enabled=config.enable_ecn)
        self._ecn_path: Any = None
        self._used_peer_cid: Any = None
        """The peer's connection ID with which was sent last."""
        self.marks_received: dict[QuicPacketSpace, ReceivedMarks] = {}
        """ECN marks of the packets received, where there were any."""
        self.arriving_mark = NOT_ECT
        """The ECN codepoint of what is being received."""
        self.unacknowledged_bytes = 0
        """Bytes of packets received since the last acknowledgement was sent."""
        self._buffered = 0
        self._send_memory = memory.send.open()
        self._send_minimum = min(memory.send.minimum, config.send_buffer_size)
        self._send_allowance = self._send_minimum
        self._send_reviewed = 0  # bytes acknowledged when the allowance was last looked at
        self._unsent = 0
        self._progress = False
        self._datagrams_were_full = False
        self._datagram_limit: int | None = None
        """The largest payload of a datagram which the peer takes; ``None``: it takes none."""
        self._bytes_sent = 0
        self._bytes_received = 0
        self._udp_datagrams_sent = 0
        self._udp_datagrams_received = 0
        self._stream_bytes_sent = 0
        self._zero_copy_operations = 0
        self._stream_bytes_acknowledged = 0
        self._stream_bytes_received = 0
        self._streams_opened = 0
        self._streams_accepted = 0
        self._datagrams_queued = 0
        self._datagrams_received = 0
        self._datagrams_dropped = 0
        self._key_updates = 0
        self._next_key_update = KEY_UPDATE_PACKETS
        self._keys: OneRttKeys | None = None  # from _initialize on
        self.application_space = QuicPacketSpace(is_application_data=True)
        """aioquic's 1-RTT packet number space, from ``_initialize`` on (its table is keyed by
        an enum, whose hash is computed in Python)."""
        self._keys_since = 0  # the first packet number with the present keys, or a later one
        self._updates_noticed = 0  # of the keys, by either side
        # From _initialize on:
        self._crypto_receivers: dict[tls.Epoch, CryptoReceiver] = {}
        self._arriving: tuple[Any, float, int] = (None, 0.0, NOT_ECT)
        self._early: EarlyPackets | None = None
        """Packets which wait for keys; ``None`` once all keys are there."""
        self.came_from_one_address = True
        """Server: whether the whole handshake came from the address of its first packet."""
        self._probes_due = 0
        """Datagrams which a probe timeout of the handshake has still to send."""
        self._answers_left = _ANSWERS_TO_REPEATED_HELLOS
        self._ticket_limit = RateLimit(_TICKETS_PER_SECOND, _TICKETS_AT_ONCE)

    def _share_epochs(self) -> None:
        """Lines 418-456 make a set of epochs for each kind of frame: 8 KiB a connection."""
        handlers: dict[int, Any] = vars(self)["_QuicConnection__frame_handlers"]
        if not _FRAME_EPOCHS:
            _FRAME_EPOCHS.update((kind, epochs) for kind, (_, epochs) in handlers.items())
        for kind, (handler, _) in handlers.items():
            handlers[kind] = handler, _FRAME_EPOCHS[kind]

    # ------------------------------------------------------------------ driving

    def start(self, address: Any, now: float) -> None:
        """Client: begin the handshake with the server at `address`."""
        self._now = now
        self.connect(address, now)
        self._touch_keep_alive(now)

    def receive(self, data: bytes, address: Any, now: float, mark: int = NOT_ECT) -> None:
        """Take one UDP payload, with its ECN codepoint, which was routed to this connection."""
        self._now = now
        self.arriving_mark = mark
        self._bytes_received += len(data)
        self._udp_datagrams_received += 1
        if self._state in END_STATES:
            if self._closing is not None:
                self._closing.receive(data, address, now, mark)
            return
        try:
            self.receive_datagram(data, address, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection pays
            self._on_internal_error("receiving", error)
        self._touch_keep_alive(now)
        self._collect()

    def on_timer(self, now: float) -> None:
        """A deadline given by :meth:`next_deadline` has come, or passed."""
        self._now = now
        if self._state is QuicConnectionState.TERMINATED or self._close_at is None:
            return
        if now + _TIMER_SLACK >= self._close_at and self._close_event is None:
            self._cause = Cause.IDLE_TIMEOUT
        if now >= self._keep_alive_at:
            if self._handshake_complete and KEEP_ALIVE_PING not in self._ping_pending:
                self.send_ping(KEEP_ALIVE_PING)
            self._touch_keep_alive(now)
        if now >= self._blocked_deadline():
            self._blocked_pending = True
        if now >= self._replace_at:
            self._replace_connection_ids()
        try:
            # recovery.py 441 compares "now - delay" where the deadline was "sent + delay":
            # rounding can make the timer fire for nothing at exactly its time, for ever if
            # the clock stands still.
            self.handle_timer(now + _TIMER_SLACK)
        except Exception as error:  # noqa: BLE001 - as above
            self._on_internal_error("handling a timer", error)
        self._collect()

    def receive_run(
        self,
        data: bytes | bytearray,
        start: int,
        size: int,
        address: Any,
        now: float,
        mark: int = NOT_ECT,
        stop: int | None = None,
    ) -> int:
        """Take datagrams of `size` bytes (the last may be shorter) from `data`, from `start` on.

        They end at `stop` (``None``: with `data`, nothing of which is kept), and all have
        the ECN codepoint `mark`.

        Returns the position of the first one which was not taken, because it may be
        for another connection; at least one is taken.
        """
        self._now = now
        self.arriving_mark = mark
        if stop is None:
            stop = len(data)
        if self._state is not QuicConnectionState.CONNECTED and self._state in END_STATES:
            end = min(start + size, stop)
            self.receive(bytes(data[start:end]), address, now, mark)
            return end
        try:
            stop = self._fast.receive(data, start, stop, size, address, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection pays
            self._on_internal_error("receiving", error)
        self._bytes_received += stop - start
        self._udp_datagrams_received += -(-(stop - start) // size)
        self._touch_keep_alive(now)
        self._collect()
        return stop

    def set_arrivals(self, arrivals: Arrivals) -> None:
        """Learn from the driver what it knows of when packets have arrived."""
        self._recovery.arrivals = arrivals

    def begin_pass(self) -> None:
        """The driver begins a new round of sending: judge anew what should wait for more.

        A packet which is not full is held back while the application keeps writing,
        round after round, so that bulk data leaves in full packets; a single write
        leaves at once.
        """
        self._hold_tail = self._wrote and self._wrote_before
        self._wrote_before = self._wrote
        self._wrote = False

    def transmit(self, now: float, slab: bytearray | None = None) -> list[Run]:
        """One paced run of UDP payloads, or a few; empty when all is said for now.

        Each comes with its destination and the size of its datagrams (the last may
        be shorter).  When more may leave at once, :meth:`has_more_to_send`.

        Args:
          now: the time.
          slab: room for a run, which the result may be a view of; it is valid until
            the slab is used again.
        """
        self._now = now
        self._more = False
        mark = self._mark_to_send()
        if self._packet_number >= self.skipped.next:
            self._packet_number = self.skipped.skip(self._packet_number)
        first = self._packet_number
        try:
            if self._packet_number >= self._next_key_update:
                self._consider_key_update()
            if self._keys is not None and self._keys.previous is not None:
                # RFC 9001 section 6.5.
                self._keys.age(now, 3 * self._loss.get_probe_timeout())
            runs = self._transmit(now, slab, mark)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection pays
            return self._close_after(error, now)
        if mark and self._packet_number > first:
            self._ecn.on_sent(first, self._packet_number)
        return runs

    def _mark_to_send(self) -> int:
        """The ECN codepoint of what is sent now; packets of the handshake are not marked."""
        if not self._handshake_confirmed or self._close_event is not None:
            return NOT_ECT
        path = self._network_paths[0]
        if path is not self._ecn_path:
            self._take_connection_id_for(path)
            self._ecn_path = path
            self._ecn.begin_path()
        self._used_peer_cid = self._peer_cid
        # (Probes of another path in the same run would count as if they were of this one.)
        return self._ecn.codepoint if len(self._network_paths) == 1 else NOT_ECT

    def _take_connection_id_for(self, path: QuicNetworkPath) -> None:
        """RFC 9000 section 9.5: one connection ID must not be used from two local addresses.

        aioquic takes another one when the peer has done so; but something between can
        send the peer's packets to another address of ours without its doing.
        """
        last = self._ecn_path
        if (
            last is not None
            and local_of(path.addr) != local_of(last.addr)
            and self._peer_cid is self._used_peer_cid
        ):
            self.change_connection_id()

    def _transmit(self, now: float, slab: bytearray | None, mark: int) -> list[Run]:
        if self._closing is not None:
            return self._closing.transmit(now)
        if not self._network_paths or (
            self._state is not QuicConnectionState.CONNECTED and self._state in END_STATES
        ):
            return self._answer_goodbye(now) if self._owes_goodbye else []
        probe = self._mtu_probe(now) if self._mtu is not None else None
        if probe:
            self._more = True
            return self._count_sent(probe, mark)
        closing = self._close_pending
        limit = _RUN_PACKETS
        if closing or not self._handshake_confirmed or self._has_rare_control():
            if not closing and self._next_bulk() is not None:
                limit = 1  # just what else there is to say; then goes the run
        else:
            result = self._transmit_fast(now, slab, mark)
            if result is not None:
                return result
        if not closing and self._handshake_confirmed and self._has_path_frames():
            datagrams = self._build_path_frames(now)
        elif self._probes_due and not closing:
            datagrams = self._build_handshake_probes(now, limit)
        else:
            datagrams = self._build(now, limit)
        self._note_datagram_room()
        self._collect()
        runs = self._count_sent(datagrams, mark)
        if closing:
            return self._begin_closing(runs)
        return runs

    def _begin_closing(self, runs: list[Run]) -> list[Run]:
        """RFC 9000 section 10.2.1: the closing packet is what late packets are answered with.

        Returns what may leave now: nothing if the peer's address has been sent all that it
        may be sent (section 8.1; line 540 does not ask).
        """
        keys = self._keys
        room = self._room_before(runs)
        if self._cause is not Cause.LOCAL or not self._handshake_complete or keys is None:
            self._closing = ClosingConnection(runs, self._close_at, room=room)
            return self._closing.first_answer()
        loss, space = self._loss, self.application_space
        rtt = loss._rtt_smoothed or self.config.initial_rtt
        expected = max(space.expected_packet_number, space.largest_received_packet + 1)
        self._closing = ClosingConnection(
            runs,
            self._close_at,
            repeat_times(self._now, rtt, loss._rtt_variance),
            GoodbyeReader(keys.recv, expected, len(self.host_cid)),
            room,
        )
        return self._closing.first_answer()

    def _room_before(self, runs: list[Run]) -> float:
        """Bytes which the anti-amplification limit left before `runs` were built."""
        path = self._network_paths[0]
        if path.is_validated:
            return math.inf
        return 3 * path.bytes_received - path.bytes_sent + sum(len(run[0]) for run in runs)

    def _answer_goodbye(self, now: float) -> list[Run]:
        """RFC 9000 section 10.2.2: one packet before we drain, so that the peer knows we know.

        Built as if this side closed (connection.py 540); then the state is as before.
        """
        self._owes_goodbye = False
        event, close_at, state = self._close_event, self._close_at, self._state
        self._close_event = aioquic_events.ConnectionTerminated(
            error_code=QuicErrorCode.NO_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="",
        )
        self._close_pending = True
        self._state = QuicConnectionState.CONNECTED
        try:
            runs = self._count_sent(self.datagrams_to_send(now))
            return runs if sum(len(run[0]) for run in runs) <= self._room_before(runs) else []
        finally:
            self._close_pending = False
            self._close_event, self._close_at, self._state = event, close_at, state

    def _close_after(self, error: Exception, now: float) -> list[Run]:
        """Building packets has failed: say goodbye if that is possible."""
        if self._close_event is None:
            self._on_internal_error("building packets", error)
            try:
                datagrams = self.datagrams_to_send(now)
            except Exception as another:  # noqa: BLE001 - as above
                error = another
            else:
                self._collect()
                return self._begin_closing(self._count_sent(datagrams))
        logger.error("internal error while closing; the connection is forgotten", exc_info=error)
        self._end_silently(self._cause or Cause.LOCAL_PROTOCOL_ERROR, "Internal error")
        return []

    def _note_datagram_room(self) -> None:
        if self._datagrams_were_full and not self.datagram_queue_is_full:
            self._datagrams_were_full = False
            self._progress = True

    def _transmit_fast(self, now: float, slab: bytearray | None, mark: int) -> list[Run] | None:
        """Transmit on an established path with nothing unusual to say; ``None``: the long way."""
        space = self.application_space
        has_control = (
            self._limits_pending
            or bool(self._limits_to_send)
            or (space.ack_at is not None and space.ack_at <= now)
        )
        turn = self._next_bulk()
        self._pacing_at = None
        if not has_control and not self._active and not self._datagrams_pending:
            return []
        size: int = self._max_datagram_size
        in_flight = self._loss.bytes_in_flight
        packets = (self._loss.congestion_window - in_flight) // size
        is_blocked = packets <= 0 and in_flight > 0
        paced_until = self._pacer.next_send_time(now)
        if paced_until is not None and paced_until > now:
            if (self._active or self._datagrams_pending) and not is_blocked:
                self._pacing_at = paced_until
            is_blocked = True
        if is_blocked and not has_control:
            return []
        if turn is not None and not has_control and not self._datagrams_pending:
            runs = self._transmit_bulk(turn, packets, now, slab, mark)
            if runs:
                return runs
        if (
            self._hold_tail
            and not has_control
            and turn is None
            and not self._datagrams_pending
            and self._unsent < size
            and in_flight
        ):
            self._more = True
            return []
        # What else there is to say leaves alone if a run of full packets follows.
        with_data = not is_blocked
        self._pacer.begin_call(_RUN_PACKETS)
        datagrams: list[tuple[bytes, Any]] = []
        address = self._network_paths[0].addr
        while len(datagrams) < _SMALL_PACKETS:
            data = self._fast.small_packet(
                now, with_streams=with_data and turn is None, with_datagrams=with_data
            )
            if data is None:
                break
            datagrams.append((data, address))
            with_data = (
                with_data
                and bool((self._active and turn is None) or self._datagrams_pending)
                and self._loss.congestion_window >= self._loss.bytes_in_flight + size
                and self._pacer.next_send_time(now) is None
            )
            if not with_data or self._packet_number >= self.skipped.next:
                break
        if not datagrams:
            return None
        self._more = bool(self._active or self._datagrams_pending) and not is_blocked
        self._note_datagram_room()
        self._collect()
        return self._count_sent(datagrams, mark)

    def _has_rare_control(self) -> bool:
        """Whether there is anything to send besides stream data, limits and acknowledgements.

        Everything else which aioquic's ``_write_application`` (line 3613) and the end of
        its ``datagrams_to_send`` (line 622) look at.
        """
        if (
            self._probe_pending
            or self._ping_pending
            or self._retire_connection_ids
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._blocked_pending
            or not self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
            or (self._is_client and self._remote_preferred_address is not None)
        ):
            return True
        for path in self._network_paths:
            if path.remote_challenges or not (path.is_validated or path.local_challenge_sent):
                return True
        for connection_id in self._host_cids:  # noqa: SIM110 - called for every run
            if not connection_id.was_sent:
                return True
        return False

    def _has_path_frames(self) -> bool:
        """Whether a PATH_CHALLENGE or a PATH_RESPONSE is to be sent."""
        return any(
            path.remote_challenges or not (path.is_validated or path.local_challenge_sent)
            for path in self._network_paths
        )

    def _build_path_frames(self, now: float) -> list[tuple[bytes, Any]]:
        """A packet of 1200 bytes: aioquic fills it up (packet_builder.py 313).

        As long as our largest ones, it may be too long for a path of which nothing is
        known yet, and no answer to a challenge is repeated (RFC 9000 section 8.2).

        Our challenge of the path in use is a probe, which the congestion window does not
        hold back: it may be full of what was lost at the peer's old address, and without
        the challenge nothing more than three small packets may leave for the new one.
        """
        size, is_probe = self._max_datagram_size, self._probe_pending
        path = self._network_paths[0]
        self._max_datagram_size = SMALLEST_UDP_PAYLOAD
        if not (path.is_validated or path.local_challenge_sent):
            self._probe_pending = True
        try:
            return self._build(now, 1)
        finally:
            self._max_datagram_size = size
            self._probe_pending = self._probe_pending and is_probe

    def _next_bulk(self) -> BulkTurn | None:
        """The stream whose turn it is, if it has a full packet's worth to send, or more."""
        for record in self._active.values():
            return self._fast.next_turn(record)
        return None

    def _transmit_bulk(
        self, turn: BulkTurn, packets: int, now: float, slab: bytearray | None, mark: int
    ) -> list[Run]:
        size: int = self._max_datagram_size
        count = min(
            packets,
            turn.packets,
            self._fast.largest_build(),
            self._pacer.packets_available(now),
            self.skipped.next - self._packet_number,
        )
        if count <= 0:
            return []
        view = self._fast.send(turn, count, now, slab)
        self._pacer.update_after_run(count)
        # To the end of the line.
        record = turn.record
        del self._active[record.stream_id]
        if record.sender.has_work:
            self._active[record.stream_id] = record
        self._more = bool(self._active)
        self._bytes_sent += count * size
        self._udp_datagrams_sent += count
        address = self._network_paths[0].addr
        step = kernel_run(size) * size
        if len(view) <= step:
            return [(view, address, size, mark)]
        return [(view[at : at + step], address, size, mark) for at in range(0, len(view), step)]

    def deliver_data(
        self, record: StreamRecord, data: bytes | bytearray, *, end_stream: bool = False
    ) -> None:
        """In-order stream data, from the fast path; aioquic's queued events come first."""
        if self._events:
            self._collect()
        self._stream_bytes_received += len(data)
        if record.discarding:
            self._release_up_to(record, record.receiver.highest_offset)
        else:
            self._out.append(events.StreamDataReceived(record.stream_id, data, end_stream))

    def deliver_datagram(self, data: bytes) -> None:
        """A datagram (RFC 9221), from the fast path; aioquic's queued events come first."""
        if self._events:
            self._collect()
        self._datagrams_received += 1
        self._out.append(events.DatagramReceived(data))

    def next_deadline(self) -> float | None:
        """When to call :meth:`on_timer` and :meth:`transmit` next; ``None``: never again."""
        if self._state is QuicConnectionState.TERMINATED or self._close_at is None:
            return None
        deadline = self.get_timer()
        if deadline is None:
            return None
        if self._state is QuicConnectionState.CONNECTED or self._state not in END_STATES:
            deadline = min(deadline, self._keep_alive_at, self._replace_at)
            search = self._mtu
            if (
                search is not None
                and search.deadline < deadline
                and self._network_paths[0].is_validated  # (else it waits)
            ):
                deadline = search.deadline
            if self._unsent or self._streams_wanted != _NONE_WANTED:
                deadline = min(deadline, self._blocked_deadline())
        return deadline

    def only_acknowledgement_due(self) -> float | None:
        """When to send what was received its acknowledgement, if that is all there is to do.

        ``None``: there may be more, so :meth:`transmit` and :meth:`next_deadline` are due.
        """
        space = self.application_space
        deadline = space.ack_at
        if (
            deadline is None
            or deadline <= self._now
            or not self._handshake_confirmed
            or self._state is not QuicConnectionState.CONNECTED
            or self._active
            or self._datagrams_pending
            or self._limits_pending
            or self._limits_to_send
            or self._close_pending
            or self._more
            or self._pacing_at is not None
            or space.loss_time is not None
            or (self._mtu is not None and (self._mtu.is_probing or self._mtu.deadline <= deadline))
            or self._has_rare_control()
        ):
            return None
        return deadline

    @property
    def end_deadline(self) -> float | None:
        """When the connection ends if nothing happens any more (idle timeout, closing period)."""
        return self._close_at

    def has_more_to_send(self, now: float) -> bool:
        """Whether :meth:`transmit` stopped only because its run was full."""
        if not self._more and (self._pacing_at is None or self._pacing_at > now):
            return False
        return self._state not in END_STATES

    @property
    def has_events(self) -> bool:
        """Whether :meth:`take_events` has any."""
        return bool(self._out)

    def take_events(self) -> list[events.Event]:
        """What has happened since the last call."""
        if not self._out:
            return []
        result, self._out = self._out, []
        return result

    # ------------------------------------------------------------------ ending

    def close_application(self, error_code: int, reason: str) -> None:
        """Close with an application code; stream data which is still buffered is dropped."""
        if self._close_event is None:
            self._cause = Cause.LOCAL
            self.close(error_code=error_code, reason_phrase=clamp_reason(reason))
            self._collect()
            if not self._network_paths or not self._cryptos:
                self._close_end()

    def on_stateless_reset(self, now: float) -> None:
        """A datagram ended in one of :meth:`peer_reset_tokens` (RFC 9000 section 10.3.1)."""
        self._end_silently(Cause.STATELESS_RESET, "Stateless reset")

    def on_handshake_timeout(self) -> None:
        """Server: the handshake has taken too long; forget the client."""
        self._end_silently(Cause.HANDSHAKE_TIMEOUT, "Handshake timeout")

    def _end_silently(self, cause: Cause, reason: str) -> None:
        if self._state is QuicConnectionState.TERMINATED:
            return
        if self._close_event is None:
            self._cause = cause
            self._close_event = aioquic_events.ConnectionTerminated(
                error_code=QuicErrorCode.NO_ERROR,
                frame_type=QuicFrameType.PADDING,
                reason_phrase=reason,
            )
        self._close_end()
        self._collect()

    @property
    def is_terminated(self) -> bool:
        """Whether the closing period is over too, so that the connection can be forgotten."""
        return self._state is QuicConnectionState.TERMINATED

    @property
    def is_over(self) -> bool:
        """Whether nothing is sent or taken any more, except for answers to late packets."""
        return self._state is not QuicConnectionState.CONNECTED and self._state in END_STATES

    def release(self) -> tuple[ClosingConnection, ConnectionRemains]:
        """Free all that the connection holds; the engine is of no use after it.

        Engine, TLS context, streams and packets in flight refer to each other.  Their
        memory would wait for the cyclic garbage collector, and a server under attack would
        grow until it comes; so what refers back is cut here.

        Returns what is left for the driver, and for the application.
        """
        self.free_buffers()
        remains = ConnectionRemains(
            config=self.config,
            statistics=self.statistics(
                datagrams_dropped_incoming=0,
                flow_control_stalls=0,
                stream_credit_stalls=0,
                receive_buffer_bytes=0,
            ),
            peer_certificate=self.peer_certificate,
            max_datagram_payload=self.max_datagram_payload,
            unacknowledged={
                stream_id: (record.sender.written, record.sender.acknowledged)
                for stream_id, record in self._records.items()
                if not record.sender.is_finished
            },
            unread=UnreadData(
                self._receive_account,
                {
                    stream_id: record.receiver.delivered - record.window.released
                    for stream_id, record in self._records.items()
                    if record.window is not None
                },
            ),
        )
        closing = self._closing or ClosingConnection([], self._close_at)
        if self._state is not QuicConnectionState.TERMINATED:
            self._close_end()  # (discards the keys, and ends the trace)
        for record in self._records.values():
            record.detach()
        context = getattr(self, "tls", None)
        if isinstance(context, PhoenixTLSContext):
            context.release()
        everything = vars(self)
        everything.clear()
        # A caller in the middle of taking events finds no more.
        self._out = []
        return closing, remains

    @property
    def is_ending(self) -> bool:
        """Whether the connection has ended, or a CONNECTION_CLOSE waits to be sent."""
        return self._close_event is not None

    @property
    def has_peer(self) -> bool:
        """Whether a packet of the peer was ever authenticated."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def can_send_early_data(self) -> bool:
        """Client: whether 0-RTT keys are available now."""
        pair = self._cryptos.get(tls.Epoch.ZERO_RTT)
        return pair is not None and bool(pair.send.is_valid())

    @property
    def tls_context(self) -> PhoenixTLSContext:
        """The TLS state, for certificates and failures."""
        context = self.tls
        assert isinstance(context, PhoenixTLSContext)
        return context

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, if it was accepted."""
        context = getattr(self, "tls", None)
        return context.peer_certificate if isinstance(context, PhoenixTLSContext) else None

    @property
    def client_certificate_requested(self) -> bool:
        """Client: whether the server has asked for a certificate."""
        return self.tls_context.client_certificate_requested

    @property
    def connection_ids(self) -> list[bytes]:
        """The connection IDs by which the peer may address us at present."""
        return [connection_id.cid for connection_id in self._host_cids]

    def peer_reset_tokens(self) -> set[bytes]:
        """The stateless reset tokens which the peer's connection IDs carry at present."""
        candidates = [self._peer_cid, *self._peer_cid_available]
        candidates += [p.peer_cid for p in self._network_paths if p.peer_cid is not None]
        return {c.stateless_reset_token for c in candidates if c.stateless_reset_token}

    # ------------------------------------------------------------------ streams

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """Open a stream; ``None`` while the peer does not permit another one."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        permitted = (
            self._remote_max_streams_uni if unidirectional else self._remote_max_streams_bidi
        )
        if stream_id // 4 >= permitted:
            return None
        self._get_or_create_stream_for_send(stream_id)
        self._streams_opened += 1
        return stream_id

    @property
    def available_streams(self) -> int:
        """How many bidirectional streams the peer permits to open now."""
        return self.streams_left(unidirectional=False)

    def streams_left(self, *, unidirectional: bool) -> int:
        """How many streams of this kind the peer permits to open now."""
        permitted = (
            self._remote_max_streams_uni if unidirectional else self._remote_max_streams_bidi
        )
        following = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        return max(0, permitted - following // 4)

    @property
    def idle_timeout(self) -> float:
        """The smaller of both sides' idle timeouts, in seconds; ``math.inf``: there is none."""
        own, remote = self._configuration.idle_timeout, self._remote_max_idle_timeout
        seconds = own if remote is None else min(own, remote)
        return math.inf if seconds >= _NEVER else seconds

    @property
    def keep_alive(self) -> float | None:
        """Seconds of silence after which a PING is sent; ``None``: never."""
        wanted = self.config.keep_alive
        return None if wanted is None else keep_alive_interval(wanted, self._idle_timeout())

    def want_stream(self, change: int, *, unidirectional: bool) -> None:
        """A call begins (1) or ends (-1) to wait until :meth:`open_stream` has one."""
        self._streams_wanted[unidirectional] += change

    def send_room(self, stream_id: int, wanted: int = 1) -> int:
        """Bytes which may be written to the stream now without exceeding the send buffers.

        Args:
          stream_id: the stream.
          wanted: bytes which there are to write; the endpoint's memory is asked for so many.
        """
        record = self._records.get(stream_id)
        if record is None:
            return 0
        config, buffered = self.config, self._buffered
        # (Comparisons, for each write asks.)
        room = config.stream_send_buffer_size - record.sender.buffered
        if config.send_buffer_size - buffered < room:
            room = config.send_buffer_size - buffered
        needed = buffered + room
        if wanted < room:
            needed = buffered + wanted
        if needed > self._send_allowance:
            # Half as much again, so that many small writes do not ask each time.
            self._send_allowance = self._send_memory.adjust(
                buffered, min(needed + needed // 2, config.send_buffer_size)
            )
        if self._send_allowance - buffered < room:
            room = self._send_allowance - buffered
        if room < 0:
            return 0
        return room

    def has_send_room(self, stream_id: int) -> bool:
        """Whether a writer that had to wait should go on: the buffers are half empty."""
        record = self._records.get(stream_id)
        return record is None or (
            record.sender.buffered * 2 <= self.config.stream_send_buffer_size
            and self._buffered * 2 <= self._send_ceiling()
        )

    def _send_ceiling(self) -> int:
        """Bytes which the connection could hold for sending now."""
        ceiling = self.config.send_buffer_size
        if self._send_allowance < ceiling:
            return self._send_memory.permitted(ceiling)
        return ceiling

    def _review_send_memory(self) -> None:
        """Something was acknowledged: give back what is not needed, or is due to others."""
        allowance, buffered = self._send_allowance, self._buffered
        if 4 * buffered < allowance:
            wanted = max(2 * buffered, self._send_minimum)
        elif 4 * (self._stream_bytes_acknowledged - self._send_reviewed) >= allowance:
            wanted = allowance
        else:
            return  # A quarter has to move first: asking costs as much as a packet.
        self._send_reviewed = self._stream_bytes_acknowledged
        self._send_allowance = self._send_memory.adjust(buffered, wanted)

    def write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        """Append to a stream's send buffer (the caller has asked :meth:`send_room`).

        Data which is immutable and of some size is kept, not copied.
        """
        record = self._records[stream_id]
        sender = record.sender
        if not sender.is_writable:
            raise RuntimeError("cannot send data after the end of the stream, or its reset")
        self._wrote = True
        size = len(data)
        if size:
            if sender.data.append(data, keep=self.config.enable_zero_copy):
                self._zero_copy_operations += 1
            self._buffered += size
            self._unsent += size
            self._stream_bytes_sent += size
        elif not end_stream:
            return
        sender.note_written(end_stream)
        if stream_id not in self._active and sender.has_work:
            self._active[stream_id] = record

    def written(self, stream_id: int) -> int:
        """Bytes written to the stream so far."""
        record = self._records.get(stream_id)
        return record.sender.written if record is not None else 0

    def is_acknowledged(self, stream_id: int, offset: int, *, with_fin: bool) -> bool:
        """Whether the peer has acknowledged everything below `offset` (and the end)."""
        record = self._records.get(stream_id)
        if record is None:
            return True
        sender = record.sender
        return sender.is_finished or (sender.acknowledged >= offset and not with_fin)

    @property
    def has_unacknowledged_streams(self) -> bool:
        """Whether any stream holds data, or an end, which the peer has not acknowledged."""
        return self._buffered > 0 or any(
            not record.sender.is_finished and (record.sender.has_fin or record.sender.was_reset)
            for record in self._records.values()
            if not record.wire_done
        )

    def reset_sending(self, stream_id: int, error_code: int) -> None:
        """Send RESET_STREAM, and drop what was not acknowledged."""
        record = self._records.get(stream_id)
        if record is not None:
            record.sender.reset(error_code)

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Send STOP_SENDING, and discard what still arrives; its credit is given back."""
        record = self._records.get(stream_id)
        if record is None or record.discarding:
            return
        record.discarding = True
        if not record.receiver.is_finished:
            record.receiver.stop(error_code)
        record.receiver.discard()
        self._release_up_to(record, record.receiver.highest_offset)

    def consume(self, stream_id: int, count: int) -> bool:
        """The application has read `count` more bytes: credit them to the peer.

        Returns whether :meth:`extend_credit` has something to do.
        """
        record = self._records.get(stream_id)
        if record is None or record.window is None:
            return False
        window, shared = record.window, self._window
        # A reset or the end of reading gives back all credit at once (RFC 9000 section 4.5);
        # bytes that are read afterwards, from the same batch of events, are not new.
        unread = record.receiver.highest_offset - window.released
        if count > unread:
            count = unread
        window.released += count
        shared.released += count
        return shared.is_due or (window.is_due and not record.receiver.is_complete)

    def extend_credit(self, stream_id: int, now: float) -> None:
        """Announce what was read since; see :meth:`consume`."""
        self._now = now
        record = self._records.get(stream_id)
        if record is not None:
            self._update_windows(record)

    @property
    def has_limits_to_send(self) -> bool:
        """Whether credit waits to be announced to the peer."""
        return self._limits_pending or bool(self._limits_to_send)

    def let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> bool:
        """The application is done with these directions of the stream.

        Returns whether that was the last of the stream, so that it is forgotten.
        """
        record = self._records.get(stream_id)
        if record is None:
            return False
        if receiving:
            record.receive_released = True
            record.discarding = True
            if not record.receiver.is_finished:
                record.receiver.discard()
            self._release_up_to(record, record.receiver.highest_offset)
        if sending:
            record.send_released = True
        return self._forget_if_done(record)

    def _release_up_to(self, record: StreamRecord, offset: int) -> None:
        window = record.window
        if window is None or offset <= window.released:
            return
        self._window.released += offset - window.released
        window.released = offset
        self._update_windows(record)

    def _update_windows(self, record: StreamRecord) -> None:
        rtt = self._loss._rtt_smoothed or self.config.initial_rtt
        if self._window.is_due and self._window.update(self._now, rtt):
            self._limits_pending = True
        window = record.window
        if (
            window is not None
            and window.is_due
            and not record.receiver.is_complete
            and not record.discarding
            and window.update(self._now, rtt, ceiling=self._stream_ceiling())
        ):
            self._limits_to_send[record.stream_id] = record

    def _stream_ceiling(self) -> int | None:
        """While memory is scarce, one stream that is not read leaves credit to the others."""
        size = self._window.size
        return _stream_share(size) if size < self._full_window else None

    def _forget_if_done(self, record: StreamRecord) -> bool:
        if not (record.wire_done and record.send_released and record.receive_released):
            return False
        if self._records.pop(record.stream_id, None) is None:
            return False
        record.detach()
        if not record.is_local:
            limit = self._stream_limit(record.stream_id)
            assert isinstance(limit, StreamCountLimit)
            limit.release()
            self._note_stream_credit(limit)
        return True

    def _note_stream_credit(self, limit: Limit) -> None:
        # Line 3940 waits until the peer has fewer streams left than the frame would grant.
        if limit.sent - limit.used < limit.value - limit.sent:
            self._limits_pending = True

    # -- called by stream_state

    def on_stream_discarded(self, stream_id: int) -> None:
        """aioquic has dropped a stream which ended on the wire."""
        self._active.pop(stream_id, None)
        self._limits_to_send.pop(stream_id, None)
        record = self._records.get(stream_id)
        if record is not None:
            record.wire_done = True
            if self._forget_if_done(record):
                self._out.append(events.StreamForgotten(stream_id))

    def activate(self, stream: StreamRecord) -> None:
        """The stream has something to send, or has ended on the wire."""
        if stream.wire_done:
            return
        sender, receiver = stream.sender, stream.receiver
        if sender.is_finished and receiver.is_finished:
            self._finished.append(stream.stream_id)
        elif receiver.stop_pending or sender.has_work:
            self._active[stream.stream_id] = stream

    def _discard_finished(self) -> None:
        """In place of aioquic's line 3747, which notices only when it builds a packet."""
        finished, self._finished = self._finished, []
        for stream_id in finished:
            if stream_id in self._streams:
                self._streams.pop(stream_id)

    def take_streams_with_new_limit(self) -> list[StreamRecord]:
        """The streams for which MAX_STREAM_DATA has to be sent."""
        pending = self._limits_to_send
        for record in list(pending.values()):
            if record.receiver.is_complete:
                del pending[record.stream_id]
        return list(pending.values())

    @property
    def is_congested(self) -> bool:
        """Whether more waits to be sent than the congestion window lets through at a time."""
        loss = self._loss
        waiting = self._buffered - loss.bytes_in_flight
        window = loss.congestion_window
        return bool(waiting >= window and 2 * loss.bytes_in_flight > window)

    @property
    def has_full_packet(self) -> bool:
        """Whether so much stream data was never sent as fills a packet."""
        size: int = self._max_datagram_size
        return self._unsent >= size

    @property
    def streams_opened(self) -> int:
        """Streams opened by this side."""
        return self._streams_opened

    def note_dropped(self, count: int, unsent: int) -> None:
        """`count` bytes were dropped from the send buffers, `unsent` of them never sent."""
        self._buffered -= count
        self._unsent -= unsent
        self._progress = True

    def note_first_sent(self, count: int) -> None:
        """So many bytes which were never sent before were sent."""
        self._unsent -= count

    def note_acknowledged(self, count: int, fin: bool) -> None:
        """`count` more bytes at the front of a send buffer were acknowledged."""
        if count:
            self._stream_bytes_acknowledged += count
            self._buffered -= count
        if count or fin:
            self._progress = True

    # ------------------------------------------------------------------ datagrams, pings, keys

    @property
    def max_datagram_payload(self) -> int | None:
        """The largest payload of a datagram at present; ``None``: the peer takes none.

        The smaller of our packets' room and the peer's announced limit: aioquic
        would queue a larger one for ever, and all later ones behind it.
        """
        limit = self._datagram_limit
        if limit is None or not self.config.enable_datagrams:
            return None
        return min(self._max_datagram_size - DATAGRAM_OVERHEAD, limit)

    @property
    def datagram_queue_is_full(self) -> bool:
        """Whether `datagram_queue_length` datagrams wait to be sent."""
        return len(self._datagrams_pending) >= self.config.datagram_queue_length

    @property
    def has_queued_datagrams(self) -> bool:
        """Whether any datagram waits to be sent."""
        return bool(self._datagrams_pending)

    def want_datagram_room(self) -> None:
        """Report :class:`~phoenix_trio.quic.events.SendProgress` when the queue has room again."""
        self._datagrams_were_full = True

    def send_datagram(self, data: bytes) -> None:
        """Queue a datagram; if the queue is full, the oldest one is dropped and counted."""
        if self.datagram_queue_is_full:
            self._datagrams_pending.popleft()
            self._datagrams_dropped += 1
        self._datagrams_queued += 1
        self.send_datagram_frame(data)

    def update_keys(self) -> None:
        """Begin a key update (RFC 9001 section 6.1) if :attr:`can_update_keys`."""
        self._key_updates += 1
        self._keys_since = self._packet_number
        self._next_key_update = self._packet_number + KEY_UPDATE_PACKETS
        if self._keys is not None:
            self._updates_noticed = self._keys.updates + 1
        self.request_key_update()

    @property
    def can_update_keys(self) -> bool:
        """Whether the peer has acknowledged a packet with the present keys."""
        keys = self._keys
        if not self._handshake_confirmed or keys is None or keys._update_key_requested:
            return False
        if keys.updates != self._updates_noticed:
            # The peer has updated them, perhaps more than once; it does so only once it can
            # read with both.
            self._updates_noticed = keys.updates
            self._keys_since = self._packet_number
        return bool(self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet >= self._keys_since)

    def _consider_key_update(self) -> None:
        """RFC 9001 section 6.6: no more packets with one key than its cipher stands."""
        if self.can_update_keys:
            self.update_keys()
        else:
            self._next_key_update = self._packet_number + _KEY_UPDATE_RETRY

    @property
    def one_rtt_keys(self) -> OneRttKeys:
        """The keys of 1-RTT packets; there once the handshake has begun."""
        assert self._keys is not None
        return self._keys

    def note_keys_used(self, number: int) -> None:
        """From the fast path: a packet with this number has come with the present keys."""
        if self._keys is not None:
            self._keys.note_received(number)

    def _on_key_update_violation(self) -> None:
        """RFC 9001 section 6.4: old keys in a packet which is newer than the new keys."""
        self.close(
            error_code=QuicErrorCode.KEY_UPDATE_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="Old keys were used again",
        )

    # ------------------------------------------------------------------ ECN

    def note_marks(self, space: QuicPacketSpace, packets: int) -> None:
        """So many new packets have arrived with :attr:`arriving_mark`."""
        marks = self.marks_received.get(space)
        if marks is None:
            marks = self.marks_received[space] = ReceivedMarks()
        marks.count(self.arriving_mark, packets)

    def on_ecn_feedback(self, counts: tuple[int, int, int] | None, *, is_newest: bool) -> None:
        """After an acknowledgement of 1-RTT packets, with what it said of marks."""
        recovery = self._recovery
        if self._ecn.on_acknowledged(recovery.newly_acknowledged, counts, is_newest=is_newest):
            # RFC 9002 section 7.1: as a loss of the newest packet which it acknowledges.
            self._control.on_congestion(now=self._now, sent_time=recovery.newest_sent_time)

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        # Line 2852: called once for each packet which is authentic and new.
        if self.arriving_mark:
            epoch = context.epoch
            space = self._spaces[tls.Epoch.ONE_RTT if epoch is tls.Epoch.ZERO_RTT else epoch]
            self.note_marks(space, 1)
        # (Never `crypto_frame_required`: a ClientHello may come later than the first packet.)
        result: tuple[bool, bool] = super()._payload_received(context, plain)
        return result

    def take_other_frames(self, plain: bytes) -> bool:
        """From the fast path, which counts marks itself; whether they were ack-eliciting."""
        context = QuicReceiveContext(
            epoch=tls.Epoch.ONE_RTT,
            host_cid=self.host_cid,
            network_path=self._network_paths[0],
            quic_logger_frames=None,
            time=self._now,
            version=None,
        )
        is_ack_eliciting, _ = super()._payload_received(context, plain)
        return bool(is_ack_eliciting)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        # Line 1900 skips the counts of marks, and believes in packets which were never sent
        # (RFC 9000 section 13.1).
        space = self._spaces[context.epoch]
        before = space.largest_acked_packet
        self._recovery.newly_acknowledged = ()
        start = buf.tell()
        never_sent = buf.pull_uint_var() >= self._packet_number
        buf.seek(start)
        if not never_sent and context.epoch is tls.Epoch.ONE_RTT:
            never_sent = self._acknowledges_skipped(buf)
            buf.seek(start)
        if never_sent:
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=frame_type,
                reason_phrase="Acknowledged a packet which was never sent",
            )
        super()._handle_ack_frame(context, frame_type, buf)
        if context.epoch is not tls.Epoch.ONE_RTT:
            return
        counts: tuple[int, int, int] | None = None
        if frame_type == QuicFrameType.ACK_ECN:
            buf.seek(start)
            pull_ack_frame(buf)
            counts = (buf.pull_uint_var(), buf.pull_uint_var(), buf.pull_uint_var())
        self.on_ecn_feedback(counts, is_newest=space.largest_acked_packet > before)

    def _acknowledges_skipped(self, buf: Buffer) -> bool:
        """Whether an ACK frame covers a number which was left out (RFC 9000 section 21.4)."""
        try:
            ranges, _ = pull_ack_frame(buf)
        except ValueError:
            return False  # malformed: aioquic says how
        return any(self.skipped.includes(each.start, each.stop) for each in ranges)

    def _write_ack_frame_with_marks(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, marks: ReceivedMarks, now: float
    ) -> None:
        # Line 3848 knows no marks (RFC 9000 section 13.4.1).
        assert space.largest_received_time is not None
        delay = now - space.largest_received_time
        buf = builder.start_frame(
            QuicFrameType.ACK_ECN,
            capacity=ACK_FRAME_CAPACITY + ECN_COUNTS_CAPACITY,
            handler=self._on_ack_delivery,
            handler_args=(space, space.largest_received_packet),
        )
        ranges = push_ack_frame(
            buf,
            space.ack_queue,
            int(delay * 1_000_000) >> self._local_ack_delay_exponent,
            builder.remaining_buffer_space - ECN_COUNTS_CAPACITY,
        )
        for count in marks.as_fields():
            buf.push_uint_var(count)
        space.ack_at = None
        if self._quic_logger is not None:
            logged = self._quic_logger.encode_ack_frame(
                ranges=list(space.ack_queue)[-ranges:], delay=delay
            )
            assert builder.quic_logger_frames is not None
            builder.quic_logger_frames.append(logged)
        if ranges > 1 and builder.packet_number % 8 == 0:
            self._write_ping_frame(builder, comment="ACK-of-ACK trigger")

    # ------------------------------------------------------------------ statistics

    @property
    def congestion_window(self) -> int:
        """Bytes which may be in flight (RFC 9002 section 7)."""
        window: int = self._loss.congestion_window
        return window

    @property
    def rtt_smoothed(self) -> float | None:
        """The smoothed round-trip time in seconds; ``None`` before the first sample."""
        loss = self._recovery
        return loss._rtt_smoothed if loss._rtt_initialized else None

    @property
    def path_mtu(self) -> int:
        """The largest UDP payload which is sent, in bytes."""
        size: int = self._max_datagram_size
        return size

    def statistics(
        self,
        *,
        datagrams_dropped_incoming: int,
        flow_control_stalls: int,
        stream_credit_stalls: int,
        receive_buffer_bytes: int,
    ) -> ConnectionStatistics:
        """A snapshot; the arguments are what the Trio half counts."""
        loss = self._recovery
        sampled = loss._rtt_initialized
        return ConnectionStatistics(
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            udp_datagrams_sent=self._udp_datagrams_sent,
            udp_datagrams_received=self._udp_datagrams_received,
            packets_sent=self._packet_number - self.skipped.count,
            packets_acknowledged=loss.packets_acknowledged,
            packets_lost=loss.packets_lost,
            stream_bytes_sent=self._stream_bytes_sent,
            stream_bytes_acknowledged=self._stream_bytes_acknowledged,
            stream_bytes_received=self._stream_bytes_received,
            stream_bytes_read=self._window.released,
            zero_copy_operations=self._zero_copy_operations,
            streams_opened=self._streams_opened,
            streams_accepted=self._streams_accepted,
            datagrams_sent=self._datagrams_queued
            - self._datagrams_dropped
            - len(self._datagrams_pending),
            datagrams_received=self._datagrams_received,
            datagrams_dropped_outgoing=self._datagrams_dropped,
            datagrams_dropped_incoming=datagrams_dropped_incoming,
            rtt_latest=loss._rtt_latest if sampled else None,
            rtt_min=loss._rtt_min if sampled else None,
            rtt_smoothed=loss._rtt_smoothed if sampled else None,
            rtt_variance=loss._rtt_variance if sampled else None,
            congestion_window=loss.congestion_window,
            bytes_in_flight=loss.bytes_in_flight,
            path_mtu=self._max_datagram_size,
            probe_timeouts=loss.probe_timeouts,
            send_buffer_bytes=self._buffered,
            receive_buffer_bytes=receive_buffer_bytes,
            receive_window=self._window.size,
            flow_control_stalls=flow_control_stalls,
            stream_credit_stalls=stream_credit_stalls,
            key_updates=self._key_updates,
            ecn_validated=self._ecn.is_validated,
            ecn_congestion_signals=self._ecn.signals,
        )

    # ------------------------------------------------------------------ inside

    def _build(self, now: float, limit: int) -> list[tuple[bytes, Any]]:
        """aioquic's packets, at most `limit`, for a bounded number of streams at a time.

        aioquic walks its whole ``_streams_queue`` for each packet (line 3745), so
        it is given only streams with something to do, and few of them at once.
        """
        self._pacer.begin_call(min(limit, self.skipped.next - self._packet_number))
        space = self._spaces.get(tls.Epoch.ONE_RTT)
        # Line 3632 lets a due ACK pass the pacer only once its time is strictly past; until
        # then, a clock which stands still (or is coarse) would spin.  And an ACK which is
        # not due yet rides along with data (RFC 9000 section 13.2.1).
        if (
            space is not None
            and space.ack_at is not None
            and (space.ack_at == now or self._pacer.next_send_time(now) is None)
        ):
            space.ack_at = min(space.ack_at, math.nextafter(now, -math.inf))
        active = self._active
        in_flight = self._loss.bytes_in_flight
        if (
            self._handshake_confirmed
            and in_flight
            and not self._probe_pending
            and self._loss.congestion_window - in_flight < self._max_datagram_size
        ):
            active = {}  # no packet which is small only because the window is nearly full
        result: list[tuple[bytes, Any]] = []
        turns = len(active) // STREAMS_PER_RUN + 1
        while True:
            batch = dict(islice(active.items(), STREAMS_PER_RUN))
            self._streams_queue = list(batch.values())
            result += self.datagrams_to_send(now)
            # aioquic has put those which sent at the end: keep that order, so that
            # turns are fair, and drop those which have nothing more to say.
            for stream_id in batch:
                active.pop(stream_id, None)
            for record in batch.values():
                if not record.wire_done and (
                    record.receiver.stop_pending or record.sender.has_work
                ):
                    active[record.stream_id] = record
            turns -= 1
            if not active or turns <= 0 or self._state in END_STATES:
                break
            if self._pacer.next_send_time(now) is not None or (
                self._loss.bytes_in_flight >= self._loss.congestion_window
            ):
                break
        self._streams_queue = []
        return result

    def _collect(self) -> None:
        """Translate aioquic's events into ours."""
        out = self._out
        queue = self._events
        while queue:
            event = queue.popleft()
            kind = type(event)
            if kind is aioquic_events.StreamDataReceived:
                self._collect_data(event)  # type: ignore[arg-type]
            elif kind is _PeerOpenedStream:
                stream_id: int = event.stream_id  # type: ignore[attr-defined]
                out.append(events.StreamOpened(stream_id))
                # (Only now has line 1731 counted it.)
                self._note_stream_credit(self._stream_limit(stream_id))
            elif isinstance(event, aioquic_events.StreamReset):
                record = self._records.get(event.stream_id)
                if record is not None:
                    self._release_up_to(record, record.receiver.highest_offset)
                    out.append(events.StreamResetReceived(event.stream_id, event.error_code))
            elif isinstance(event, aioquic_events.StopSendingReceived):
                out.append(events.StreamStopReceived(event.stream_id, event.error_code))
            elif isinstance(event, aioquic_events.DatagramFrameReceived):
                self._datagrams_received += 1
                out.append(events.DatagramReceived(event.data))
            elif isinstance(event, aioquic_events.PingAcknowledged):
                if event.uid >= 0:  # (not one of our own)
                    out.append(events.PingAcknowledged(event.uid))
            elif isinstance(event, aioquic_events.ConnectionIdIssued):
                out.append(events.ConnectionIdIssued(event.connection_id))
            elif isinstance(event, aioquic_events.ConnectionIdRetired):
                out.append(events.ConnectionIdRetired(event.connection_id))
            elif isinstance(event, aioquic_events.HandshakeCompleted):
                self._on_handshake_completed(event)
            elif isinstance(event, _Plain):
                out.append(event.event)
            # ProtocolNegotiated and aioquic's late ConnectionTerminated are covered
            # by HandshakeCompleted and by the check below.
        if self._finished:
            self._discard_finished()
        if self._streams_available:
            self._streams_available = False
            out.append(events.StreamsAvailable())
        if self._progress:
            self._progress = False
            if self._send_allowance > self._send_minimum:
                self._review_send_memory()
            out.append(events.SendProgress())
        if (
            not self._is_client
            and not self._early_data_reported
            and not self._handshake_complete
            and self.has_peer
            and self.tls.early_data_accepted
        ):
            self._early_data_reported = True
            out.append(events.EarlyDataReady(self.tls.alpn_negotiated))
        if self._close_event is not None and not self._terminated:
            self._terminated = True
            self.free_buffers()
            out.append(events.Terminated(self._termination_error()))

    def free_buffers(self) -> None:
        """The connection has ended: nothing is sent or put in order any more.

        What was delivered stays with the application, and is counted until it is read.
        """
        for record in self._records.values():
            record.receiver.drop_pending()
            record.sender.data.discard()
        self._send_memory.close()
        self._window.end(self._local_max_data.used)

    def _collect_data(self, event: aioquic_events.StreamDataReceived) -> None:
        self._stream_bytes_received += len(event.data)
        record = self._records.get(event.stream_id)
        if record is None:
            return
        if record.discarding:
            self._release_up_to(record, record.receiver.highest_offset)
        else:
            self._out.append(
                events.StreamDataReceived(event.stream_id, event.data, event.end_stream)
            )

    def _on_handshake_completed(self, event: aioquic_events.HandshakeCompleted) -> None:
        if self._is_client and not event.early_data_accepted:
            self._on_early_data_refused()
        for record in self._records.values():
            # Streams opened in 0-RTT know the remembered limits only (RFC 9000 section 7.4.1).
            if record.is_local:
                record.max_stream_data_remote = max(
                    record.max_stream_data_remote if event.early_data_accepted else 0,
                    self._remote_max_stream_data_uni
                    if stream_is_unidirectional(record.stream_id)
                    else self._remote_max_stream_data_bidi_remote,
                )
                self.activate(record)
        self._out.append(
            events.HandshakeCompleted(
                event.alpn_protocol, event.session_resumed, event.early_data_accepted
            )
        )

    def _on_early_data_refused(self) -> None:
        """Send refused 0-RTT data again at once, not on a timeout (RFC 9001 section 4.6.2)."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        refused = [
            packet
            for packet in space.sent_packets.values()
            if packet.packet_type is QuicPacketType.ZERO_RTT
        ]
        if refused:
            self._recovery._on_packets_lost(
                congestion_event=False, now=self._now, packets=refused, space=space
            )

    def _termination_error(self) -> Exception | None:
        event = self._close_event
        assert event is not None
        context = getattr(self, "tls", None)
        return error_for(
            self._cause or Cause.LOCAL_PROTOCOL_ERROR,
            error_code=event.error_code,
            frame_type=event.frame_type,
            reason=event.reason_phrase,
            handshake_complete=self._handshake_complete,
            is_client=self._is_client,
            failure=context.failure if isinstance(context, PhoenixTLSContext) else None,
        )

    def _on_internal_error(self, doing: str, error: Exception) -> None:
        """Whatever escapes aioquic ends this connection only, and is never silent."""
        logger.error("internal error while %s; the connection is closed", doing, exc_info=error)
        self._cause = Cause.LOCAL_PROTOCOL_ERROR
        self.close(
            error_code=QuicErrorCode.INTERNAL_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="Internal error",
        )

    def _count_sent(self, datagrams: list[tuple[bytes, Any]], mark: int = NOT_ECT) -> list[Run]:
        """Count, and put what is of one size and for one address together."""
        self._udp_datagrams_sent += len(datagrams)
        runs: list[Run] = []
        index = 0
        while index < len(datagrams):
            data, address = datagrams[index]
            size = len(data)
            last = index + 1
            longest = index + kernel_run(size)
            while last < min(len(datagrams), longest) and datagrams[last][1] == address:
                following = len(datagrams[last][0])
                if following > size:
                    break
                last += 1
                if following < size:
                    break
            if last - index > 1:
                data = b"".join([each for each, _ in datagrams[index:last]])
            self._bytes_sent += len(data)
            runs.append((data, address, size, mark))
            index = last
        return runs

    def _touch_keep_alive(self, now: float) -> None:
        interval = self.config.keep_alive
        if interval is not None:
            if interval > self._longest_silence:
                # (Or longer: the idle timeout lasts three probe timeouts at least.)
                interval = keep_alive_interval(interval, self._idle_timeout())
            self._keep_alive_at = now + interval

    # ------------------------------------------------------------------ blocked by flow control

    def _blocked_deadline(self) -> float:
        """When to say that this side is blocked, if it still is then; ``math.inf``: never."""
        close_at = self._close_at
        if (
            close_at is None
            or not (self._unsent or self._streams_wanted != _NONE_WANTED)
            or self._blocked_pending
            or self.application_space.ack_eliciting_in_flight
            or not self._handshake_confirmed
            or self._close_pending
        ):
            # (What is in flight is repeated until it is acknowledged, and keeps alive as well.)
            return math.inf
        idle_timeout = self._idle_timeout()
        return self._blocked.deadline(
            self._credit_progress(),
            close_at - idle_timeout,
            self._loss.get_probe_timeout(),
            idle_timeout,
        )

    def _credit_progress(self) -> object:
        return (
            self._stream_bytes_sent - self._unsent,
            self._remote_max_data,
            self._remote_max_streams_bidi,
            self._remote_max_streams_uni,
        )

    def _blocked_frames(self) -> Iterator[tuple[int, ...]]:
        """The BLOCKED frames which are true now: type and fields of each."""
        if self._unsent and self._remote_max_data_used >= self._remote_max_data:
            yield QuicFrameType.DATA_BLOCKED, self._remote_max_data
        for unidirectional, opened, permitted, frame_type in (
            (
                False,
                self._local_next_stream_id_bidi // 4,
                self._remote_max_streams_bidi,
                QuicFrameType.STREAMS_BLOCKED_BIDI,
            ),
            (
                True,
                self._local_next_stream_id_uni // 4,
                self._remote_max_streams_uni,
                QuicFrameType.STREAMS_BLOCKED_UNI,
            ),
        ):
            if self._streams_wanted[unidirectional] and opened >= permitted:
                yield frame_type, permitted
        if self._unsent:
            blocked = (
                record
                for record in self._records.values()
                if not record.wire_done and record.sender.is_blocked
            )
            for record in islice(blocked, _BLOCKED_STREAMS):
                limit = record.max_stream_data_remote
                yield QuicFrameType.STREAM_DATA_BLOCKED, record.stream_id, limit

    def _write_blocked_frames(self, builder: QuicPacketBuilder) -> None:
        """RFC 9000 sections 19.12 to 19.14, each with the limit which blocks at present."""
        for frame_type, *fields in self._blocked_frames():
            buf = builder.start_frame(
                frame_type, capacity=1 + 8 * len(fields), handler=self._on_blocked_delivery
            )
            for value in fields:
                buf.push_uint_var(value)
        # (Where there was no room, an exception has come, and it is tried again.)
        self._blocked_pending = False
        self._blocked.on_said(self._credit_progress(), self._now)

    def _on_blocked_delivery(self, delivery: QuicDeliveryState) -> None:
        """RFC 9000 section 13.3: a lost one is sent again, while this side is still blocked."""
        if delivery is not QuicDeliveryState.ACKED and any(self._blocked_frames()):
            self._blocked_pending = True

    # ------------------------------------------------------------------ path MTU

    def _begin_mtu_search(self) -> None:
        """Look for larger packets, now that the handshake is confirmed.

        Not before: paths are only known to carry 1200 bytes (RFC 9000 section 14.1),
        and aioquic writes the lengths of long header packets and CRYPTO frames in two
        bytes (``packet_builder.py`` 356, ``connection.py`` 3977).
        """
        address = self._network_paths[0].addr
        ceiling = self.path_ceiling(address)
        wanted = self.config.max_udp_payload_size
        if wanted is not None:
            ceiling = min(ceiling or wanted, wanted)
        ceiling = min(ceiling or UNKNOWN_PATH_CEILING, self._peer_max_udp_payload)
        self._mtu = MtuSearch(ceiling)
        self._mtu_address = address
        self._set_datagram_size(self._mtu.size)

    def _set_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size
        self._pacer.max_datagram_size = size
        self._control.set_max_datagram_size(size)
        self._drop_too_large_datagrams()

    def _drop_too_large_datagrams(self) -> None:
        """What does not fit any more would block all that is behind it."""
        if not self._datagrams_pending:
            return
        maximum = self.max_datagram_payload
        room = -1 if maximum is None else maximum
        kept = [data for data in self._datagrams_pending if len(data) <= room]
        self._datagrams_dropped += len(self._datagrams_pending) - len(kept)
        self._datagrams_pending = deque(kept)

    def _mtu_probe(self, now: float) -> list[tuple[bytes, Any]]:
        """A padded PING of the size which the search wants to try, if any (RFC 9000 section 14.4).

        It is not counted in flight, so its loss is no congestion (RFC 8899 section 3).
        """
        search = self._mtu
        path = self._network_paths[0]
        if search is None or self._close_pending:
            return []
        assert self._version is not None
        if path.addr != self._mtu_address:
            # RFC 9000 section 9.4; a new port alone is a NAT's doing, not another path.
            # (At once, for the challenge has to arrive, too.)
            if ends_of(path.addr) != ends_of(self._mtu_address):
                self._begin_mtu_search()
            self._mtu_address = path.addr
        if not path.is_validated:
            return []
        if path.addr is not self._known_path:
            # Not before: a forged address must not slow the connection down.
            is_other = ends_of(path.addr) != ends_of(self._known_path)
            self._known_path = path.addr
            if is_other:
                self._control.begin_path(now)
                self._recovery.begin_path(now)
                self._pacer.begin_path()
        size = self._mtu.next_probe(now) if self._mtu is not None else None
        if size is None:
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            quic_logger=self._quic_logger,
            spin_bit=self._spin_bit,
            version=self._version,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        buf = builder.start_frame(
            QuicFrameType.PING, handler=self._on_mtu_probe_delivery, handler_args=(size,)
        )
        buf.push_bytes(bytes(builder.remaining_flight_space))
        assert builder._packet is not None
        builder._packet.in_flight = False
        datagrams = self._flush_builder(
            builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now
        )
        # Ack-eliciting, so a probe timeout is due after it (RFC 9002 section 6.2.1).
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        return datagrams

    def _on_mtu_probe_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        search = self._mtu
        if search is None:
            return
        if delivery is not QuicDeliveryState.ACKED:
            search.on_probe_lost(size)
        elif search.on_probe_acknowledged(size):
            self._set_datagram_size(search.size)

    def note_largest_acknowledged(self, size: int) -> None:
        """Packets of up to `size` bytes have arrived."""
        if self._mtu is not None:
            self._mtu.on_acknowledged(size)

    def note_largest_lost(self, size: int) -> None:
        """Packets of up to `size` bytes were lost."""
        if self._mtu is not None and self._mtu.on_lost(size):
            logger.debug("packets of %d bytes vanish; back to 1200", self._max_datagram_size)
            self._set_datagram_size(self._mtu.size)

    # ------------------------------------------------------------------ overrides of aioquic

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> StreamRecord:
        """Line 1682: the stream of a received frame, which may open it and all before it.

        Raises:
          StreamFinishedError: it was here, and is gone.
          QuicConnectionError: the peer may not open it.
        """
        known = self._records.get(stream_id)
        if known is not None and not known.wire_done:
            return known
        if self._stream_is_discarded(stream_id):
            raise StreamFinishedError
        is_one_way = stream_is_unidirectional(stream_id)
        limit = self._local_max_streams_uni if is_one_way else self._local_max_streams_bidi
        error: tuple[QuicErrorCode, str] | None = None
        if stream_is_client_initiated(stream_id) == self._is_client:
            error = QuicErrorCode.STREAM_STATE_ERROR, "Wrong stream initiator"
        elif stream_id // 4 >= limit.value:
            error = QuicErrorCode.STREAM_LIMIT_ERROR, "Too many streams open"
        if error is not None:
            code, reason = error
            raise QuicConnectionError(error_code=code, frame_type=frame_type, reason_phrase=reason)
        # RFC 9000 section 2.1: a stream opens all lower-numbered ones of its type.
        for each in range(limit.used * 4 + stream_id % 4, stream_id + 4, 4):
            known = self._adopt_stream(
                each,
                max_stream_data_local=self._local_max_stream_data_uni
                if is_one_way
                else self._local_max_stream_data_bidi_remote,
                max_stream_data_remote=0 if is_one_way else self._remote_max_stream_data_bidi_local,
                writable=not is_one_way,
                is_local=False,
            )
            self._streams_accepted += 1
            # Through aioquic's queue, so that it comes before the stream's data.
            self._events.append(_PeerOpenedStream(each))
        limit.used = stream_id // 4 + 1
        assert known is not None
        return known

    def _get_or_create_stream_for_send(self, stream_id: int) -> StreamRecord:
        """Line 1734, for the next stream of its type, which :meth:`open_stream` has asked for."""
        is_one_way = stream_is_unidirectional(stream_id)
        if is_one_way:
            self._local_next_stream_id_uni = stream_id + 4
        else:
            self._local_next_stream_id_bidi = stream_id + 4
        return self._adopt_stream(
            stream_id,
            max_stream_data_local=0 if is_one_way else self._local_max_stream_data_bidi_local,
            max_stream_data_remote=self._remote_max_stream_data_uni
            if is_one_way
            else self._remote_max_stream_data_bidi_remote,
            readable=not is_one_way,
            is_local=True,
        )

    def _adopt_stream(
        self,
        stream_id: int,
        *,
        max_stream_data_local: int,
        max_stream_data_remote: int,
        is_local: bool,
        readable: bool = True,
        writable: bool = True,
    ) -> StreamRecord:
        """A new stream, made once: aioquic would make one whose halves are to be replaced."""
        config = self.config
        window: ReceiveWindow | None = None
        if readable:
            window = ReceiveWindow(
                self._initial_stream_window,
                min(config.stream_receive_buffer_size, config.receive_buffer_size),
            )
        record = StreamRecord(
            self,
            stream_id,
            max_stream_data_local=max_stream_data_local,
            max_stream_data_remote=max_stream_data_remote,
            readable=readable,
            writable=writable,
            window=window,
            is_local=is_local,
        )
        self._records[stream_id] = record
        self._streams[stream_id] = record
        return record

    def _initialize(self, peer_cid: bytes) -> None:
        """Line 1812: aioquic makes its TLS context here, again after Retry.

        It also replaces the packet number spaces, and forgets what was in flight in
        them: 0-RTT data would be lost for good.
        """
        space = self._spaces.get(tls.Epoch.ONE_RTT)
        if space is not None and space.sent_packets:
            self._recovery._on_packets_lost(
                congestion_event=False,
                now=self._now,
                packets=list(space.sent_packets.values()),
                space=space,
            )
        for old in self._spaces.values():
            self._loss.discard_space(old)  # a Retry: what was sent counts no more as in flight
        self._initial_cid = peer_cid
        configuration = self._configuration
        # Aioquic would derive the Initial keys of each version; see InitialPairs.
        configuration.supported_versions = []
        try:
            super()._initialize(peer_cid)
        finally:
            configuration.supported_versions = self._versions
        adopt(self.tls, self._policy)
        waiting = tls.Epoch.HANDSHAKE if self._is_client else tls.Epoch.ZERO_RTT
        self._early = early = EarlyPackets(
            (_HANDSHAKE, _ONE_RTT) if self._is_client else (_ZERO_RTT,)
        )
        early.begin_datagram(*self._arriving)
        EarlyKeys.adopt(self._cryptos[waiting], early, _HANDSHAKE if self._is_client else _ZERO_RTT)
        self._keys = OneRttKeys.adopt(
            self._cryptos[tls.Epoch.ONE_RTT],
            self._on_key_update_violation,
            early,
            _ONE_RTT,
        )
        self._crypto_receivers = {
            tls.Epoch.INITIAL: CryptoReceiver(INITIAL_WINDOW),
            tls.Epoch.HANDSHAKE: CryptoReceiver(),
            tls.Epoch.ONE_RTT: CryptoReceiver(),
        }
        for stream in self._crypto_streams.values():
            CryptoSender.adopt(stream.sender)
        self.application_space = self._spaces[tls.Epoch.ONE_RTT]
        self.application_space.sent_packets = SentPackets()

    @property
    def _cryptos_initial(self) -> dict[int, CryptoPair]:
        """Lines 297 and 1867: the keys of Initial packets, by version."""
        return self._initial_pairs

    @_cryptos_initial.setter
    def _cryptos_initial(self, pairs: dict[int, CryptoPair]) -> None:
        if self._initial_cid is not None:
            pairs = InitialPairs(
                self._versions,
                self._initial_cid,
                is_client=self._is_client,
                known=self._known_initial_keys,
            )
        self._initial_pairs = pairs

    def _confirm_handshake(self) -> None:
        """Line 1461: report it, and free 32 KiB of handshake buffers which are of no use now."""
        super()._confirm_handshake()
        self._begin_mtu_search()
        self._known_path = self._mtu_address
        self.skipped.begin(self._packet_number)
        for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
            self._crypto_buffers.pop(epoch, None)
            self._crypto_receivers.pop(epoch, None)
        self._events.append(_Plain(events.HandshakeConfirmed()))

    # -- CRYPTO frames, packets before their keys, probes of the handshake

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 1982: bounded, and TLS gets whole messages, each at its own level."""
        offset = buf.pull_uint_var()
        length = buf.pull_uint_var()
        if offset + length > UINT_VAR_MAX:
            raise QuicConnectionError(
                error_code=QuicErrorCode.FRAME_ENCODING_ERROR,
                frame_type=frame_type,
                reason_phrase="offset + length cannot exceed 2^62 - 1",
            )
        data = buf.pull_bytes(length)
        if self._quic_logger is not None:
            frame = QuicStreamFrame(offset=offset, data=data)
            assert context.quic_logger_frames is not None
            context.quic_logger_frames.append(self._quic_logger.encode_crypto_frame(frame))
        if not length:
            return
        epoch = context.epoch
        if epoch is tls.Epoch.ONE_RTT and not self._is_client:
            # No message of a client comes after its handshake (RFC 9001 sections 4.4 and 6).
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.unexpected_message,
                frame_type=frame_type,
                reason_phrase="CRYPTO data from a client after the handshake",
            )
        receiver = self._crypto_receivers.get(epoch)
        if receiver is None:
            # Behind the frame which has ended the handshake, in one packet with it: a repetition.
            return
        try:
            if receiver.receive(offset, data):
                message = receiver.next_message()
                while message is not None:
                    self._take_tls_message(context, frame_type, message)
                    message = receiver.next_message()
                self._push_crypto_data()
                self._note_handshake_complete()
                return
        except CryptoStreamError as error:
            raise QuicConnectionError(
                error_code=error.error_code, frame_type=frame_type, reason_phrase=str(error)
            ) from None
        if not self._is_client and epoch is tls.Epoch.INITIAL and receiver.is_closed:
            self._answer_repeated_hello(context.time)

    def _answer_repeated_hello(self, now: float) -> None:
        """RFC 9002 section 6.2.3: a client which repeats its hello did not get the answer.

        A few times, and not while an answer may still be on its way.
        """
        loss = self._loss
        if self._probe_pending or not self._answers_left:
            return
        if (
            self._answers_left == _ANSWERS_TO_REPEATED_HELLOS
            or now >= loss._time_of_last_sent_ack_eliciting_packet + loss.get_probe_timeout()
        ):
            self._answers_left -= self.repeat_handshake()

    def _take_tls_message(
        self, context: QuicReceiveContext, frame_type: int, message: bytes
    ) -> None:
        """Lines 2010-2022: give TLS a message."""
        if (
            context.epoch is tls.Epoch.ONE_RTT
            and message[0] == _NEW_SESSION_TICKET
            and not self._ticket_limit.allows(self._now)
        ):
            return  # a client need not use tickets (RFC 8446 section 4.6.1)
        self._crypto_frame_type = frame_type
        self._crypto_packet_version = context.version
        try:
            self.tls.handle_message(message, self._crypto_buffers)
        except tls.Alert as alert:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_ERROR + int(alert.description),
                frame_type=frame_type,
                reason_phrase=str(alert),
            ) from alert

    def _push_crypto_data(self) -> None:
        """Line 3140: what TLS has to say, of those levels only where there is something."""
        for epoch, buf in self._crypto_buffers.items():
            if buf.tell():
                self._crypto_streams[epoch].sender.write(buf.data)
                buf.seek(0)

    def _note_handshake_complete(self) -> None:
        """Lines 2024-2052: go on if TLS has just completed the handshake."""
        if self._handshake_complete or self.tls.state not in _AFTER_HANDSHAKE:
            return
        self._handshake_complete = True
        if not self._is_client:
            self._confirm_handshake()
            self._handshake_done_pending = True
        self._replenish_connection_ids()
        self._events.append(
            aioquic_events.HandshakeCompleted(
                alpn_protocol=self.tls.alpn_negotiated,
                early_data_accepted=self.tls.early_data_accepted,
                session_resumed=self.tls.session_resumed,
            )
        )
        self._unblock_streams(is_unidirectional=False)
        self._unblock_streams(is_unidirectional=True)

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        """Line 3536: with new keys the level before is over, and early packets can be read."""
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)
        if direction is not tls.Direction.DECRYPT:
            return
        early = self._early
        if epoch is tls.Epoch.HANDSHAKE:
            self._crypto_receivers[tls.Epoch.INITIAL].close()
            if early is not None:
                early.release(_HANDSHAKE)
                if not self._is_client:
                    # 0-RTT keys would be there by now, and the client may send 1-RTT packets soon.
                    early.drop(_ZERO_RTT)
                    early.expect(_ONE_RTT)
        elif epoch is tls.Epoch.ONE_RTT:
            self._crypto_receivers[tls.Epoch.HANDSHAKE].close()
            if early is not None:
                early.release(_ONE_RTT)
        elif early is not None:
            early.release(_ZERO_RTT)

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Line 753: afterwards, those packets which waited for keys that this one brought."""
        if self._handshake_complete:
            super().receive_datagram(data, addr, now)
            return
        self._arriving = addr, now, self.arriving_mark
        if self._early is not None:
            self._early.begin_datagram(*self._arriving)
        proved = [path for path in self._network_paths if path.is_validated]
        super().receive_datagram(data, addr, now)
        if not self._is_client and len(self._network_paths) > 1:
            self._doubt_addresses(proved)
        early = self._early
        while early is not None and (packet := early.next_due()) is not None:
            self._receive_early(packet)
        if self._handshake_complete:
            self._early = None

    def _doubt_addresses(self, proved: list[QuicNetworkPath]) -> None:
        """Line 1147 takes a Handshake packet as proof of the address from which it came.

        It proves only that its sender received what was sent before (RFC 9000 section 8.1),
        perhaps at another address: then a PATH_CHALLENGE has to be answered, as after
        any other change of address.
        """
        self.came_from_one_address = False
        for path in self._network_paths:
            if path not in proved:
                path.is_validated = False

    def _receive_early(self, packet: EarlyPacket) -> None:
        """A packet whose keys have come, as of the time when it arrived."""
        for path in self._network_paths:
            if path.addr == packet.address and not path.is_validated:
                # It was counted when it came (RFC 9000 section 8.1).
                path.bytes_received -= len(packet.data)
        close_at, mark = self._close_at, self.arriving_mark
        self.arriving_mark = packet.mark
        super().receive_datagram(packet.data, packet.address, packet.time)
        self.arriving_mark = mark
        if self._close_at is not None and close_at is not None and self._state not in END_STATES:
            self._close_at = max(self._close_at, close_at)

    def repeat_handshake(self) -> bool:
        """Send what is not acknowledged of the handshake again; whether there is any."""
        if not repeat_crypto(self._loss.spaces, self._control):
            return False
        self._probe_pending = True
        return True

    def note_handshake_timeout(self) -> None:
        """A probe timeout before the handshake is confirmed."""
        loss = self._loss
        period = loss.get_probe_timeout(include_max_ack_delay=False)
        loss._pto_count = next_backoff(loss._pto_count, period)
        self._probes_due = HANDSHAKE_PROBES

    def _build_handshake_probes(self, now: float, limit: int) -> list[tuple[bytes, Any]]:
        """Two datagrams with what is in flight, or a PING each (RFC 9002 section 6.2.4).

        A flight of several datagrams leaves once, as a whole: that is no fewer.
        """
        count, self._probes_due = self._probes_due, 0
        path = self._network_paths[0]
        datagrams: list[tuple[bytes, Any]] = []
        while count and (path.is_validated or path.can_send(SMALLEST_UDP_PAYLOAD)):
            count -= 1
            if repeat_crypto(self._loss.spaces, self._control) > SMALLEST_UDP_PAYLOAD:
                count = 0
            self._probe_pending = True
            if not count:
                repeat_application_data(self.application_space)
            if self._is_client and self._handshake_complete:
                # The server may know this side's new address from 1-RTT packets alone,
                # for it has no Handshake keys any more.
                self._ping_pending.append(_HANDSHAKE_PING)
            datagrams += self._build(now, limit)
        return datagrams

    def _handle_connection_close_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 1953: remember that it was the peer who closed."""
        was_closed = self._close_event is not None
        super()._handle_connection_close_frame(context, frame_type, buf)
        if not was_closed:
            self._cause = Cause.PEER
            self._owes_goodbye = context.epoch == tls.Epoch.ONE_RTT

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2161: a stream which was blocked has work again."""
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        record = self._records.get(stream_id)
        if record is not None:
            self.activate(record)

    def _handle_padding_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2396, which looks at each byte by itself: two milliseconds for a probe of 64 KB."""
        rest = buf.data_slice(buf.tell(), buf.capacity)
        buf.seek(buf.capacity - len(rest.lstrip(b"\0")))
        if self._quic_logger is not None and context.quic_logger_frames is not None:
            context.quic_logger_frames.append(self._quic_logger.encode_padding_frame())

    def raise_stream_limit(self, maximum: int, *, is_unidirectional: bool) -> None:
        """MAX_STREAMS from the peer, from the fast path; the same as line 2191."""
        if is_unidirectional:
            if maximum > self._remote_max_streams_uni:
                self._remote_max_streams_uni = maximum
                self._unblock_streams(True)
        elif maximum > self._remote_max_streams_bidi:
            self._remote_max_streams_bidi = maximum
            self._unblock_streams(False)

    def _unblock_streams(self, is_unidirectional: bool) -> None:
        """Line 3518: called whenever the peer permits more streams."""
        super()._unblock_streams(is_unidirectional)
        self._streams_available = True

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        """Line 3148: two corrections and two notes, and what RFC 9221 demands.

        An idle timeout of 0 means none (RFC 9000 section 18.2), but aioquic takes
        the minimum; the peer's ``ack_delay_exponent`` is not stored (line 3302), nor
        is the largest UDP payload it takes.
        """
        remembered = self._remote_max_datagram_frame_size or 0
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        frame_limit = parameters.max_datagram_frame_size or 0
        if (
            self._is_client
            and not from_session_ticket
            and self.tls.early_data_accepted
            and frame_limit < remembered
        ):
            # RFC 9221 section 3: it has taken datagrams in 0-RTT by a promise which it breaks.
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase="max_datagram_frame_size is smaller than the one remembered",
            )
        self._datagram_limit = largest_payload(frame_limit)
        self._drop_too_large_datagrams()  # queued with a limit of an earlier connection
        if not parameters.max_idle_timeout:
            self._remote_max_idle_timeout = None
        if parameters.ack_delay_exponent is not None and not from_session_ticket:
            self._remote_ack_delay_exponent = parameters.ack_delay_exponent
        if parameters.max_udp_payload_size is not None:
            self._peer_max_udp_payload = parameters.max_udp_payload_size
        self.reset_tokens_changed = True
        idle_timeout = self.idle_timeout
        self._recovery.longest_backoff = longest_backoff(idle_timeout)
        self._longest_silence = keep_alive_interval(math.inf, idle_timeout)

    def _serialize_transport_parameters(self) -> bytes:
        """Line 3436: say which UDP payloads we take; aioquic leaves that out."""
        value = encode_varint(_OWN_UDP_PAYLOAD_LIMIT)
        parameter = encode_varint(_MAX_UDP_PAYLOAD_SIZE_PARAMETER) + encode_varint(len(value))
        configuration = self._configuration
        versions = configuration.supported_versions
        configuration.supported_versions = self._versions  # (see _initialize)
        try:
            return super()._serialize_transport_parameters() + parameter + value
        finally:
            configuration.supported_versions = versions

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2254: a new connection ID brings a new stateless reset token."""
        super()._handle_new_connection_id_frame(context, frame_type, buf)
        self.reset_tokens_changed = True

    def _retire_peer_cid(self, connection_id: Any) -> None:
        """Line 3126: a retired connection ID takes its stateless reset token with it."""
        super()._retire_peer_cid(connection_id)
        self.reset_tokens_changed = True

    def _handle_retire_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2556; see :meth:`retire_connection_id`."""
        number = buf.pull_uint_var()
        if self._quic_logger is not None:
            assert context.quic_logger_frames is not None
            context.quic_logger_frames.append(
                self._quic_logger.encode_retire_connection_id_frame(number)
            )
        self.retire_connection_id(number, context.host_cid)

    def retire_connection_id(self, number: int, used: bytes) -> None:
        """RETIRE_CONNECTION_ID (RFC 9000 section 19.16), in a packet for the ID `used`.

        Raises:
          QuicConnectionError: the peer may not retire that.
        """
        reason = ""
        if number > self._largest_issued:
            reason = "Retired a connection ID which was never issued"
        else:
            for index, connection_id in enumerate(self._host_cids):
                if connection_id.sequence_number != number:
                    continue
                if connection_id.cid == used:
                    reason = "Retired the connection ID to which the packet was sent"
                else:
                    del self._host_cids[index]
                    self._events.append(
                        aioquic_events.ConnectionIdRetired(connection_id=connection_id.cid)
                    )
                    self._replace_connection_ids()
                break
        if reason:
            raise QuicConnectionError(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=QuicFrameType.RETIRE_CONNECTION_ID,
                reason_phrase=reason,
            )

    def _replace_connection_ids(self) -> None:
        """Issue new connection IDs for those retired, now or when it is not too often."""
        if self._replacements.allows(self._now):
            self._replace_at = math.inf
            self._replenish_connection_ids()
        elif self._replace_at == math.inf or self._now >= self._replace_at:
            self._replace_at = self._now + 1 / _REPLACEMENTS_A_SECOND

    def _write_new_connection_id_frame(
        self, builder: QuicPacketBuilder, connection_id: QuicConnectionId
    ) -> None:
        """Line 4026: remember what the peer may retire, even if the frame seems to be lost."""
        super()._write_new_connection_id_frame(builder, connection_id)
        self._largest_issued = max(self._largest_issued, connection_id.sequence_number)

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2601: only the first of a stream is news."""
        start = buf.tell()
        record = self._records.get(buf.pull_uint_var())
        if record is not None and not record.wire_done and record.sender.was_reset:
            buf.pull_uint_var()
            return
        buf.seek(start)
        super()._handle_stop_sending_frame(context, frame_type, buf)

    def _handle_path_challenge_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """Line 2415; see :func:`_keep_newest`."""
        super()._handle_path_challenge_frame(context, frame_type, buf)
        _keep_newest(context.network_path.remote_challenges)

    def take_path_challenge(self, data: bytes) -> None:
        """The same, from the fast path, which reads from the active path only."""
        challenges = self._network_paths[0].remote_challenges
        challenges.append(data)
        _keep_newest(challenges)

    @property
    def awaits_path_response(self) -> bool:
        """Whether a challenge of ours may still be answered."""
        return any(path.local_challenges for path in self._network_paths)

    def _replenish_connection_ids(self) -> None:
        """Line 3112: tokens which a restarted server can derive again (RFC 9000 section 10.3.2)."""
        super()._replenish_connection_ids()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                connection_id.stateless_reset_token = self._reset_token(connection_id.cid)

    def _write_connection_close_frame(
        self,
        builder: QuicPacketBuilder,
        epoch: tls.Epoch,
        error_code: int,
        frame_type: int | None,
        reason_phrase: str,
    ) -> None:
        """Connection.py 3878, with what is still to be acknowledged before the goodbye.

        Nothing is acknowledged after it (RFC 9000 section 10.2), and a peer whose data was
        read would otherwise have to believe that it was lost.
        """
        if epoch == tls.Epoch.ONE_RTT and self._spaces[epoch].ack_at is not None:
            self._write_ack_frame(builder, self._spaces[epoch], self._now)
        super()._write_connection_close_frame(
            builder=builder,
            epoch=epoch,
            error_code=error_code,
            frame_type=frame_type,
            reason_phrase=reason_phrase,
        )

    def _write_ack_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float
    ) -> None:
        """Line 3856: what was received is acknowledged."""
        marks = self.marks_received.get(space)
        if marks is None:
            super()._write_ack_frame(builder, space, now)
        else:
            self._write_ack_frame_with_marks(builder, space, marks, now)
        self.unacknowledged_bytes = 0
        if not space.is_application_data and len(space.sent_packets) >= _HANDSHAKE_ACKS:
            forget_acknowledgements(space, _HANDSHAKE_ACKS // 2)
        if space.is_application_data and self.wants_acknowledgement(space):
            self._write_ping_frame(builder, comment="too many unacknowledged")

    def _amplification_blocked_timers(self) -> tuple[bool, bool]:
        """Line 1383: an acknowledgement of ours may carry ECN counts.

        Without room for it on a path that is not validated, its timer would stay in the past.
        """
        if not self._network_paths[0].can_send(_LARGEST_ACK_PACKET):
            return True, True
        return super()._amplification_blocked_timers()

    def wants_acknowledgement(self, space: QuicPacketSpace) -> bool:
        """Whether a packet with nothing but an acknowledgement should carry a PING as well.

        Nobody acknowledges acknowledgements, so whoever only receives would remember all
        that it ever sent, and at :data:`~.stream_state.MAX_UNACKNOWLEDGED_PACKETS` could
        not send anything else any more (RFC 9000 section 13.2.4).
        """
        sent = space.sent_packets
        if len(sent) >= _FORGOTTEN_ACKS:
            # The peer does not acknowledge PINGs either.  What is not in flight needs no
            # repair if it is lost.
            for number in list(sent)[: _FORGOTTEN_ACKS // 2]:
                if not sent[number].in_flight:
                    del sent[number]
        return len(sent) >= _UNACKNOWLEDGED_ACKS and not space.ack_eliciting_in_flight

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Line 3923: MAX_DATA from our window; aioquic doubles its own as data *arrives*."""
        limit = self._local_max_data
        limit.value = self._window.limit
        used, limit.used = limit.used, 0  # at zero, aioquic sees no reason to double
        try:
            super()._write_connection_limits(builder, space)
            self._limits_pending = False
        finally:
            limit.used = used
        if self._blocked_pending:
            self._write_blocked_frames(builder)

    def limit_frames(self) -> Iterator[tuple[bytes, Callable[..., None], tuple[Any, ...]]]:
        """MAX_DATA, MAX_STREAMS and MAX_STREAM_DATA frames which are due, with their handlers.

        Each counts as sent when it is taken.  The same as :meth:`_write_connection_limits`
        and :meth:`_write_stream_limits`, for packets which are built here.
        """
        if self._limits_pending:
            self._limits_pending = False
            data = self._local_max_data
            data.value = self._window.limit
            for limit in (data, self._local_max_streams_bidi, self._local_max_streams_uni):
                # (MAX_STREAMS is batched, as in line 3940.)
                if limit.value != limit.sent and (
                    limit is data or limit.sent - limit.used < limit.value - limit.sent
                ):
                    limit.sent = limit.value
                    frame = encode_varint(limit.frame_type) + encode_varint(limit.value)
                    yield frame, self._on_connection_limit_delivery, (limit,)
        for record in list(self._limits_to_send.values()):
            maximum = self._take_stream_limit(record)
            if maximum is not None:
                frame = (
                    encode_varint(QuicFrameType.MAX_STREAM_DATA)
                    + encode_varint(record.stream_id)
                    + encode_varint(maximum)
                )
                yield frame, self._on_max_stream_data_delivery, (record,)

    def _take_stream_limit(self, record: StreamRecord) -> int | None:
        """The limit to announce for a stream, which counts as announced; ``None``: none."""
        self._limits_to_send.pop(record.stream_id, None)
        if record.window is None or record.receiver.is_complete:
            return None  # (No credit is of use to whom has sent all.)
        maximum = record.window.limit
        record.max_stream_data_local = maximum
        record.max_stream_data_local_sent = maximum
        return maximum

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        """Line 4229: MAX_STREAM_DATA from our window; called only where it has moved."""
        assert isinstance(stream, StreamRecord)
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        limit = self._take_stream_limit(stream)
        assert limit is not None
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(limit)
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames.append(
                self._quic_logger.encode_max_stream_data_frame(
                    maximum=limit, stream_id=stream.stream_id
                )
            )

    def _write_stream_frame(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,
        stream: QuicStream,
        max_offset: int,
    ) -> int:
        """Line 4176: a frame of more than 16,383 bytes needs four bytes for its length.

        aioquic always takes two, and its peer then finds garbage in the packet.
        """
        room = builder.remaining_flight_space
        if room <= _TWO_BYTE_MAX:
            return super()._write_stream_frame(builder, space, stream, max_offset)
        sender = stream.sender
        stream_id = stream.stream_id
        assert stream_id is not None
        overhead = 1 + size_uint_var(stream_id) + size_uint_var(sender.next_offset) + 4
        sent_before = sender.highest_offset
        frame = sender.get_frame(room - overhead, max_offset)
        if frame is None:
            return 0
        size = len(frame.data)
        buf = builder.start_frame(
            QuicFrameType.STREAM_BASE | 4 | 2 | frame.fin,  # with offset and length
            capacity=overhead,
            handler=sender.on_data_delivery,
            handler_args=(frame.offset, frame.offset + size, frame.fin),
        )
        buf.push_uint_var(stream_id)
        buf.push_uint_var(frame.offset)
        buf.push_uint32(size | 0x8000_0000)
        buf.push_bytes(frame.data)
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames.append(
                self._quic_logger.encode_stream_frame(frame, stream_id=stream_id)
            )
        return sender.highest_offset - sent_before

    def _on_connection_limit_delivery(self, delivery: QuicDeliveryState, limit: Any) -> None:
        """Line 2760: a lost MAX_DATA or MAX_STREAMS is sent again."""
        super()._on_connection_limit_delivery(delivery, limit)
        if delivery is not QuicDeliveryState.ACKED:
            self._limits_pending = True

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        """Line 2805: a lost MAX_STREAM_DATA is sent again, with the limit of that time."""
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not QuicDeliveryState.ACKED and stream.stream_id in self._streams:
            assert isinstance(stream, StreamRecord)
            self._limits_to_send[stream.stream_id] = stream


def _keep_newest(challenges: deque[bytes]) -> None:
    """The newest few challenges of a path are answered; one more has just been added."""
    if len(challenges) > _PATH_CHALLENGES:
        challenges.popleft()


def _stream_share(window: int) -> int:
    """How much of a small connection window one stream may use."""
    return window * 2 // 3


def _unknown_path(address: Any) -> int | None:
    return None


class _PeerOpenedStream(aioquic_events.QuicEvent):
    """In aioquic's queue: the peer opened a stream."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class _Plain(aioquic_events.QuicEvent):
    """In aioquic's queue: one of our events, in its place."""

    __slots__ = ("event",)

    def __init__(self, event: events.Event) -> None:
        self.event = event
