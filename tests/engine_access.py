"""Reads and changes the state of an engine, for tests.

Tests use an engine's public methods and its statistics; for anything else they use this
module, and :mod:`tests.engine_packets` for packets with its keys.  Each function is named in
terms of QUIC, not of the engine's data structures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import attrs
import pytest
from aioquic import tls

import phoenix_trio
from phoenix_trio.metrics import ConnectionStatistics
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.established import keys as keys_module
from phoenix_trio.quic.established import path_search
from phoenix_trio.quic.established.paths import Path
from phoenix_trio.quic.established.receive_stream import ReceiveStream
from phoenix_trio.quic.established.received import ReceivedPackets
from phoenix_trio.quic.established.send_stream import SendStream
from phoenix_trio.quic.established.skipped_numbers import SkippedNumbers
from phoenix_trio.quic.established.state import State
from phoenix_trio.quic.handshake.connection import Handshake
from phoenix_trio.quic.handshake.parameters import LocalParameters
from phoenix_trio.quic.handshake.space import Space
from phoenix_trio.quic.handshake.state import HandshakeState
from phoenix_trio.quic.handshake.transmit import begin_probes
from phoenix_trio.quic.wire.frames import CRYPTO
from tests.packets import Level

Address = tuple[Any, ...]

#: Numbers of cipher suites (RFC 8446 appendix B.4).
AES_128, AES_256, CHACHA20 = 0x1301, 0x1302, 0x1303

#: The classes of a connection's objects, below its Trio half.
ENGINE_CLASSES = (Engine, State, Handshake, tls.Context, SendStream, ReceiveStream)


def has_engine(connection: phoenix_trio.QuicConnection) -> bool:
    """Whether the connection still has an engine: it is freed when the connection has ended."""
    return isinstance(connection._engine, Engine)


def engine_of(connection: phoenix_trio.QuicConnection) -> Engine:
    """The engine of a connection that is still alive."""
    engine = connection._engine
    assert isinstance(engine, Engine), "the connection has ended"
    return engine


def statistics(engine: Engine) -> ConnectionStatistics:
    """The engine's part of a connection's statistics: counts of the Trio half are 0."""
    return engine.statistics(
        datagrams_dropped_incoming=0,
        flow_control_stalls=0,
        stream_credit_stalls=0,
        receive_buffer_bytes=0,
    )


# ------------------------------------------------------------------ packet numbers


def next_packet_number(engine: Engine, level: Level = Level.ONE_RTT) -> int:
    """The number of the packet that the engine sends next, if it does not skip it."""
    if level in (Level.ZERO_RTT, Level.ONE_RTT):
        return engine.state.recovery.next_number
    return _space(engine, level).next_number


def set_next_packet_number(engine: Engine, number: int, level: Level = Level.ONE_RTT) -> None:
    """Let the engine's next packet of this level have this number."""
    if level is Level.ONE_RTT:
        engine.state.recovery.next_number = number
    else:
        _space(engine, level).next_number = number


def leave_out_numbers(engine: Engine, count: int) -> None:
    """Let the engine leave out its next packet numbers, so many."""
    engine.state.recovery.next_number += count


def skipped_numbers(engine: Engine) -> SkippedNumbers:
    """The packet numbers that the engine leaves out (RFC 9000 section 21.4)."""
    return engine.state.recovery.skipped


def set_skipped_numbers(engine: Engine, skipped: SkippedNumbers) -> None:
    """Let the engine leave out the packet numbers that `skipped` chooses."""
    engine.state.recovery.skipped = skipped


# ------------------------------------------------------------------ packets received


def largest_received(engine: Engine) -> int:
    """The largest number of a 1-RTT packet received."""
    return engine.state.received.largest


def received_ranges(engine: Engine, level: Level = Level.ONE_RTT) -> list[range]:
    """The packet numbers that the engine would acknowledge, ascending."""
    return list(_received(engine, level).to_acknowledge)


def acknowledgement_due(engine: Engine) -> float | None:
    """When 1-RTT packets received are acknowledged at the latest; ``None``: none waits."""
    at = engine.state.received.ack_at
    return None if at == math.inf else at


def make_acknowledgement_due(engine: Engine, at: float | None) -> None:
    """Let an acknowledgement of 1-RTT packets be due at this time; ``None``: none is due."""
    engine.state.received.ack_at = math.inf if at is None else at


def set_ack_delay(engine: Engine, seconds: float) -> None:
    """Let the engine delay acknowledgements by so many seconds (RFC 9000 section 13.2.1)."""
    engine.state.received.ack_delay = seconds


def _handshake(engine: Engine) -> HandshakeState:
    return engine.handshake._state


def _space(engine: Engine, level: Level) -> Space:
    state = _handshake(engine)
    return state.initial if level is Level.INITIAL else state.handshake


def _received(engine: Engine, level: Level) -> ReceivedPackets:
    if level is Level.ONE_RTT:
        return engine.state.received
    return _space(engine, level).received


# ------------------------------------------------------------------ packets sent, recovery


def remembered_packets(engine: Engine, level: Level = Level.ONE_RTT) -> list[int]:
    """The numbers of packets sent and neither acknowledged, lost nor forgotten."""
    if level is Level.ONE_RTT:
        return list(engine.state.recovery.sent)
    return list(_space(engine, level).sent)


def packets_in_flight(engine: Engine) -> int:
    """How many 1-RTT packets sent count towards the bytes in flight (RFC 9002 section 2)."""
    return sum(packet.in_flight for packet in engine.state.recovery.sent.values())


def ack_eliciting_in_flight(engine: Engine, level: Level = Level.ONE_RTT) -> int:
    """How many ack-eliciting packets sent are neither acknowledged nor lost."""
    if level is Level.ONE_RTT:
        return engine.state.recovery.eliciting_in_flight
    return _space(engine, level).eliciting_in_flight


def crypto_packets_in_flight(engine: Engine, level: Level) -> int:
    """How many packets sent with CRYPTO frames are neither acknowledged nor lost."""
    return sum(
        any(kind == CRYPTO for kind, _, _ in packet.frames)
        for packet in _space(engine, level).sent.values()
    )


def largest_acknowledged(engine: Engine) -> int:
    """The largest number of a 1-RTT packet sent that the peer has acknowledged."""
    return engine.state.recovery.largest_acknowledged


def set_congestion_window(engine: Engine, size: int) -> None:
    """Let the congestion window have so many bytes."""
    engine.control.congestion_window = size


def fill_pacer(engine: Engine) -> None:
    """Let the pacer hold back nothing of the next burst, however large."""
    engine.state.recovery.pacer.begin_path()  # (no rate, no limit)


def sample_rtt(engine: Engine, seconds: float) -> None:
    """Let the engine have measured this round-trip time (RFC 9002 section 5.3)."""
    engine.rtt.sample(seconds, 0.0, 0.0, 0.025, True)
    engine.control.on_rtt(seconds, 0.0)


def forget_rtt(engine: Engine, now: float) -> None:
    """Let the round-trip time be that of a path that begins now (RFC 9000 section 9.4)."""
    engine.state.recovery.begin_path(now)


def probe_timeout(engine: Engine) -> float:
    """The probe timeout's period in seconds, before it backs off (RFC 9002 section 6.2.1)."""
    return engine.state.recovery.probe_timeout()


def probe_timeouts_in_a_row(engine: Engine) -> int:
    """The PTO count (RFC 9002 section 6.2.1)."""
    if engine.state.is_confirmed:
        return engine.state.recovery.pto_count
    return _handshake(engine).recovery.pto_count


def time_out_handshake_probe(engine: Engine) -> None:
    """Let a probe timeout of the handshake have passed."""
    state = _handshake(engine)
    if state.recovery.on_timeout(math.inf):
        begin_probes(state)


def marked_packets(engine: Engine) -> int:
    """How many packets were sent with an ECN mark on the present path."""
    return engine.state.ecn._sent


# ------------------------------------------------------------------ flow control


def credit_used(engine: Engine) -> int:
    """The part of this side's MAX_DATA used by the peer: the largest offsets of all streams."""
    return engine.streams.receiving.received


def credit_granted(engine: Engine) -> int:
    """The MAX_DATA that this side grants the peer at present."""
    return engine.streams.receiving.window.limit


def data_sent(engine: Engine) -> int:
    """The part of the peer's MAX_DATA used by this side."""
    return engine.streams.sending.peer_max_data_used


def max_data(engine: Engine) -> int:
    """The MAX_DATA that the peer has granted."""
    return engine.streams.sending.peer_max_data


def max_streams(engine: Engine) -> int:
    """The MAX_STREAMS that the peer has granted, of bidirectional streams."""
    return engine.streams._local[0].permitted


def initial_max_stream_data(engine: Engine) -> int:
    """The initial limit that the peer grants each bidirectional stream opened by this side."""
    return engine.streams._first_limit(0 if engine._is_client else 1)


def believe_max_data(engine: Engine, maximum: int, *stream_ids: int) -> None:
    """Set this MAX_DATA, and this MAX_STREAM_DATA of the streams, as if granted by the peer."""
    engine.streams.take_max_data(maximum)
    for stream_id in stream_ids:
        engine.streams.senders[stream_id].raise_limit(maximum)


def believe_max_streams(engine: Engine, maximum: int) -> None:
    """Set this MAX_STREAMS of bidirectional streams, as if the peer had granted it."""
    engine.streams.permit_streams(maximum, False)


def accept_data(engine: Engine, connection: int, stream: int) -> None:
    """Let the engine take data up to these offsets, and tell the peer nothing of it."""
    engine.streams.receiving.max_data = connection
    for receiver in engine.streams.receivers.values():
        receiver.limit = stream


# ------------------------------------------------------------------ streams and datagrams


@attrs.frozen
class StreamFacts:
    """A stream, as its engine sees it."""

    sent: int
    """The end of the data sent."""
    received: int
    """The largest offset received."""
    final_size: int | None
    """Of the data received; ``None``: not known yet (RFC 9000 section 4.5)."""
    is_received: bool
    """Whether all was received, or a reset."""
    behind_gaps: list[range]
    """The ranges received behind a gap."""
    max_stream_data: int
    """The peer's MAX_STREAM_DATA."""
    resets: bool
    """Whether a RESET_STREAM frame is still to be sent."""
    was_reset: bool
    """Whether this side has reset it, by itself or because the peer stopped it."""
    is_over: bool
    """Whether both directions have ended on the wire."""


def stream_ids(engine: Engine) -> list[int]:
    """The streams of which the engine still has any state."""
    return sorted({*engine.streams.senders, *engine.streams.receivers})


def stream_facts(engine: Engine, stream_id: int) -> StreamFacts:
    """The facts that the engine has about one of its streams."""
    sender = engine.streams.senders.get(stream_id)
    receiver = engine.streams.receivers.get(stream_id)
    return StreamFacts(
        sent=sender.sent if sender else 0,
        received=receiver.received if receiver else 0,
        final_size=receiver.final_size if receiver and receiver.final_size >= 0 else None,
        is_received=receiver is None or receiver.is_finished,
        behind_gaps=receiver.pending.ranges() if receiver and receiver.pending else [],
        max_stream_data=sender.limit if sender else 0,
        resets=stream_id in engine.streams.sending.resets,
        was_reset=sender is not None and sender.reset_code >= 0,
        is_over=(sender is None or sender.is_finished)
        and (receiver is None or receiver.is_finished),
    )


def streams_with_new_limit(engine: Engine) -> list[int]:
    """The streams for which a MAX_STREAM_DATA frame is to be sent."""
    return list(engine.streams.receiving.limits_to_send)


def held_behind_gaps(engine: Engine) -> tuple[int, int]:
    """How many pieces of streams, and how many bytes, wait behind gaps."""
    pieces = engine.streams.receiving.pieces
    return pieces.pieces, pieces.held


def unsent_bytes(engine: Engine) -> int:
    """Bytes written to streams and never sent."""
    return engine.streams.sending.unsent


def has_streams_to_send(engine: Engine) -> bool:
    """Whether any stream has data, an end, a reset or a stop to send."""
    return bool(engine.streams.sending.active) or engine.streams.has_control()


def queued_datagrams(engine: Engine) -> int:
    """How many datagrams (RFC 9221) wait to be sent."""
    return engine.state.datagrams.waiting


def has_tagged_packets(engine: Engine) -> bool:
    """Whether any unacknowledged packet has datagrams with tags."""
    return any(packet.tags for packet in engine.state.recovery.sent.values())


def announce_datagram_frame_size(engine: Engine, size: int) -> None:
    """Server: let the engine announce this max_datagram_frame_size; before its first packet."""
    engine.handshake._link._parameters.max_datagram_frame_size = size


# ------------------------------------------------------------------ connection IDs


def connection_id_in_use(engine: Engine) -> tuple[int, bytes]:
    """The peer's connection ID to which the engine sends, and its sequence number."""
    return engine.peer_ids.current.number, engine.peer_ids.current.cid


def spare_connection_ids(engine: Engine) -> list[int]:
    """The sequence numbers of the peer's unused connection IDs."""
    return [each.number for each in engine.peer_ids.available]


def forget_spare_connection_ids(engine: Engine) -> None:
    """Let the peer have issued no connection ID besides the one in use."""
    engine.peer_ids.available.clear()


def own_connection_id(engine: Engine) -> bytes:
    """The connection ID that the engine writes into its long headers."""
    return engine.state.local_ids.current if engine.state.is_complete else engine.handshake.host_cid


def own_connection_id_numbers(engine: Engine) -> list[int]:
    """The sequence numbers of the engine's own connection IDs, without retired ones."""
    return [each.number for each in engine.state.local_ids.all]


def own_connection_ids(engine: Engine) -> list[bytes]:
    """The engine's own connection IDs that are not retired."""
    return [each.cid for each in engine.state.local_ids.all]


def peer_reset_tokens(engine: Engine) -> set[bytes]:
    """The stateless reset tokens of the peer's connection IDs."""
    return engine.peer_ids.reset_tokens()


def next_connection_id_number(engine: Engine) -> int:
    """The sequence number of the connection ID that the engine issues next."""
    return engine.state.local_ids._next_number


def lose_announcement(engine: Engine, number: int) -> None:
    """Let the NEW_CONNECTION_ID frame of this sequence number seem lost."""
    engine.state.local_ids.on_lost(number)


def change_connection_id(engine: Engine) -> None:
    """Send to another of the peer's connection IDs from now on, and retire the present one."""
    engine.peer_ids.change()
    engine.state.spin = 0


# ------------------------------------------------------------------ paths


def bytes_sent_on_path(engine: Engine) -> int:
    """Bytes that the engine has sent to the address in use, as it counts them."""
    return engine.paths.all[0].bytes_sent


def use_connection_id(engine: Engine, connection_id: bytes) -> None:
    """Let the engine send to another of the peer's connection IDs, and retire nothing."""
    engine.peer_ids.current.cid = connection_id


def path_in_use(engine: Engine) -> Address:
    """The peer's address to which the engine sends."""
    return engine.paths.all[0].addr


def has_path(engine: Engine) -> bool:
    """Whether the engine knows any address of the peer."""
    return bool(engine.paths.all)


def validated_addresses(engine: Engine) -> set[Address]:
    """The peer's validated addresses, of those remembered (RFC 9000 section 8)."""
    return {path.addr for path in engine.paths.all if path.is_validated}


def is_path_validated(engine: Engine) -> bool:
    """Whether the address to which the engine sends is validated."""
    return engine.paths.all[0].is_validated


def challenges_to_answer(engine: Engine) -> int:
    """How many PATH_CHALLENGE frames of the path in use wait for their answers."""
    return len(engine.paths.all[0].challenges)


def leave_room_before_validation(engine: Engine, size: int) -> None:
    """Let the limit of RFC 9000 section 8.1 leave so many bytes to the path in use."""
    path = engine.paths.all[0]
    path.bytes_sent = 3 * path.bytes_received - size


def probe_path(engine: Engine, address: Address) -> None:
    """Client: challenge another address of the server, with a connection ID of its own."""
    path = Path(address)
    reserved = engine.peer_ids.reserve()
    assert reserved is not None
    path.reserved_id = reserved.number
    engine.paths.add(path, engine.peer_ids)


def answer_challenges(engine: Engine, *data: bytes) -> None:
    """Let the peer have sent PATH_CHALLENGE frames with this data on the path in use."""
    engine.paths.all[0].challenges += data
    engine.paths.has_frames = True


def take_back_connection_id_of_probe(engine: Engine) -> None:
    """Client: let the server have retired the connection ID of the probed path."""
    candidate = engine.paths.all[1]
    engine.peer_ids.retire_reserved(candidate.reserved_id)
    candidate.reserved_id = -1


def forbid_moves(engine: Engine) -> None:
    """Client: let the server have sent disable_active_migration."""
    engine.state.peer_forbids_moves = True


def spin_bit(engine: Engine) -> bool:
    """The spin bit of the engine's next packets (RFC 9000 section 17.4)."""
    return engine.state.spin != 0


def begin_mtu_search(engine: Engine) -> None:
    """Let the search for larger packets begin anew (RFC 8899)."""
    path_search.begin_search(engine.state)


def mtu_search_deadline(engine: Engine) -> float:
    """When the search for larger packets begins anew by itself; ``math.inf``: it is under way."""
    assert engine.state.mtu is not None
    return engine.state.mtu.deadline


def is_mtu_probe_under_way(engine: Engine) -> bool:
    """Whether a probe of the search for larger packets waits for its acknowledgement."""
    return engine.state.mtu is not None and engine.state.mtu._probe is not None


def set_datagram_size(engine: Engine, size: int) -> None:
    """Let the path carry UDP payloads of this size."""
    path_search.set_datagram_size(engine.state, size)


# ------------------------------------------------------------------ handshake


def is_handshake_complete(engine: Engine) -> bool:
    """Whether TLS has completed the handshake (RFC 9001 section 4.1.1)."""
    return engine.state.is_complete


def is_handshake_confirmed(engine: Engine) -> bool:
    """Whether the handshake is confirmed (RFC 9001 section 4.1.2)."""
    return engine.state.is_confirmed


def early_bytes(engine: Engine) -> int | None:
    """Bytes of packets that wait for their keys; ``None``: all keys are there."""
    early = _handshake(engine).early
    return None if early is None else early.held


def crypto_to_send(engine: Engine, level: Level) -> bytes:
    """The handshake messages of this level not acknowledged yet."""
    return bytes(_space(engine, level).crypto._data)


def crypto_held(engine: Engine, *levels: Level) -> int:
    """Bytes of CRYPTO frames that wait for missing bytes before them; by default, of all."""
    receivers = {
        Level.INITIAL: _space(engine, Level.INITIAL).receiver,
        Level.HANDSHAKE: _space(engine, Level.HANDSHAKE).receiver,
        Level.ONE_RTT: engine.state.crypto_receive,
    }
    return sum(receivers[level].held for level in levels or receivers)


def crypto_received(engine: Engine, level: Level) -> int:
    """Bytes of the CRYPTO stream of this level which TLS has got."""
    if level is Level.ONE_RTT:
        return engine.state.crypto_receive._base
    return _space(engine, level).receiver._base


def write_key_log(engine: Engine, file: TextIO) -> None:
    """Write all TLS secrets from now on to a file."""
    _handshake(engine).settings.key_log = file


def use_cipher(engine: Engine, suite: int) -> None:
    """Change the cipher of 1-RTT packets; both sides derive the same keys from their secrets."""
    keys, version = engine.state.keys, engine.state.version
    assert keys.send is not None
    assert keys.receive is not None
    size = 48 if suite == AES_256 else 32
    sent, received = (key.secret.ljust(size, b"x")[:size] for key in (keys.send, keys.receive))
    keys.install(True, suite, sent, version)
    keys.install(False, suite, received, version)


def write_trace_into(engine: Engine, events: list[dict[str, Any]]) -> None:
    """Let the engine append its trace of established connections to a list."""
    engine.state.trace = _ListedTrace(events)


class _ListedTrace:
    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        self._events.append({"name": f"{category}:{event}", **data})


def keep_alive_due(engine: Engine) -> float:
    """When the engine sends a PING if nothing comes until then."""
    return engine.state.keep_alive_at


@contextmanager
def announced_udp_payload_size(size: int) -> Iterator[None]:
    """Let engines made meanwhile announce this max_udp_payload_size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LocalParameters.__init__.__kwdefaults__, "max_udp_payload_size", size)
        yield


@contextmanager
def keys_worn_out_after(packets: int, *, retry_after: int) -> Iterator[None]:
    """Meanwhile, engines update their keys by themselves after so many packets.

    If the peer has not acknowledged the last update, they try it again `retry_after` packets.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "KEY_UPDATE_PACKETS", packets)
        patch.setattr(keys_module, "_KEY_UPDATE_RETRY", retry_after)
        yield


# ------------------------------------------------------------------ the end, and faults


def close_code(engine: Engine) -> tuple[int, int | None] | None:
    """Error code and frame type of the CONNECTION_CLOSE; ``None``: there was none."""
    end = engine._end
    return None if end is None else (end.code, end.frame_type)


def intercept(engine: Engine, method: str, function: Callable[..., Any]) -> None:
    """Let calls of a public method of the engine go to `function`."""
    assert callable(getattr(engine, method))
    assert not method.startswith("_")
    kind = type(engine)
    intercepted = {"__slots__": (), method: staticmethod(function)}
    engine.__class__ = type(kind.__name__, (kind,), intercepted)


def fail_when_reading(engine: Engine) -> None:
    """Let the engine have a bug: reading 1-RTT packets raises ZeroDivisionError."""
    engine.established = _Faulty(engine.established, "receive_run")


def fail_when_building(engine: Engine, *, even_the_goodbye: bool = False) -> None:
    """Let the engine have a bug: building packets raises ZeroDivisionError.

    The packet that closes the connection can be built, unless `even_the_goodbye`.
    """
    engine.established = _Faulty(engine.established, "transmit")
    if even_the_goodbye:
        recovery = engine.state.recovery
        recovery.skipped = SkippedNumbers(_fail)
        recovery.skipped.next = recovery.next_number


class _Faulty:
    """Stands for an object whose class may be compiled: one of its methods fails."""

    def __init__(self, whole: Any, method: str) -> None:
        assert callable(getattr(whole, method))
        self._whole = whole
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return _fail if name == self._method else getattr(self._whole, name)


def _fail(*arguments: Any) -> Any:
    raise ZeroDivisionError("a bug")


@contextmanager
def counted_stream_visits(engine: Engine) -> Iterator[Callable[[], int]]:
    """Counts how often the engine looks whether a stream has data for a packet."""
    if phoenix_trio.is_compiled:
        pytest.skip("calls inside the compiled core cannot be counted")
    count = 0

    def counting(visit: Callable[[SendStream], Any]) -> Callable[[SendStream], Any]:
        def counted(stream: SendStream) -> Any:
            nonlocal count
            count += 1
            return visit(stream)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for method in ("has_work", "next_range"):
            patch.setattr(SendStream, method, counting(getattr(SendStream, method)))
        yield lambda: count
