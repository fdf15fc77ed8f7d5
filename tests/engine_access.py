"""Reads and changes the state of an engine, for tests.

Tests use an engine's public methods and its statistics; for anything else they use this
module, and :mod:`tests.engine_packets` for packets with its keys.  Each function speaks of
QUIC, not of how the engine keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import attrs
import pytest
from aioquic import tls
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.recovery import QuicPacketSpace

import phoenix_trio
from phoenix_trio.metrics import ConnectionStatistics
from phoenix_trio.quic import engine as engine_module
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.skipped_numbers import SkippedNumbers
from phoenix_trio.quic.stream_state import StreamRecord
from tests.engine_packets import EPOCHS
from tests.packets import Level

Address = tuple[Any, ...]

#: What a connection is made of, below its Trio half.
ENGINE_CLASSES = (Engine, tls.Context, StreamRecord)


def has_engine(connection: phoenix_trio.QuicConnection) -> bool:
    """Whether the connection still has an engine: it is freed when the connection has ended."""
    return isinstance(connection._engine, Engine)


def engine_of(connection: phoenix_trio.QuicConnection) -> Engine:
    """The engine of a connection which has not ended."""
    engine = connection._engine
    assert isinstance(engine, Engine), "the connection has ended"
    return engine


def statistics(engine: Engine) -> ConnectionStatistics:
    """The engine's part of a connection's statistics: what the Trio half counts is 0."""
    return engine.statistics(
        datagrams_dropped_incoming=0,
        flow_control_stalls=0,
        stream_credit_stalls=0,
        receive_buffer_bytes=0,
    )


# ------------------------------------------------------------------ packet numbers


def next_packet_number(engine: Engine) -> int:
    """The number of the packet which the engine sends next, if it does not skip it."""
    return engine._packet_number


def set_next_packet_number(engine: Engine, number: int) -> None:
    """Let the engine's next packet have this number."""
    engine._packet_number = number


def leave_out_numbers(engine: Engine, count: int) -> None:
    """Let the engine leave out its next packet numbers, so many."""
    engine._packet_number += count


def skipped_numbers(engine: Engine) -> SkippedNumbers:
    """The packet numbers which the engine leaves out (RFC 9000 section 21.4)."""
    return engine.skipped


def set_skipped_numbers(engine: Engine, skipped: SkippedNumbers) -> None:
    """Let the engine leave out the packet numbers which `skipped` chooses."""
    engine.skipped = engine._recovery.skipped = skipped


# ------------------------------------------------------------------ packets received


def largest_received(engine: Engine) -> int:
    """The largest number of a 1-RTT packet which was received."""
    return _space(engine).largest_received_packet


def received_ranges(engine: Engine, level: Level = Level.ONE_RTT) -> list[range]:
    """The packet numbers which the engine would acknowledge, ascending."""
    return list(_space(engine, level).ack_queue)


def acknowledgement_due(engine: Engine) -> float | None:
    """When 1-RTT packets received are acknowledged at the latest; ``None``: none waits."""
    return _space(engine).ack_at


def make_acknowledgement_due(engine: Engine, at: float | None) -> None:
    """Let an acknowledgement of 1-RTT packets be due at this time; ``None``: none is due."""
    _space(engine).ack_at = at


def set_ack_delay(engine: Engine, seconds: float) -> None:
    """Let the engine's acknowledgements wait so long for company (RFC 9000 section 13.2.1)."""
    engine._ack_delay = seconds


def _space(engine: Engine, level: Level = Level.ONE_RTT) -> QuicPacketSpace:
    return engine._spaces[EPOCHS[level]]


# ------------------------------------------------------------------ packets sent, recovery


def remembered_packets(engine: Engine, level: Level = Level.ONE_RTT) -> list[int]:
    """The numbers of the packets sent which are neither acknowledged, lost nor forgotten."""
    return list(_space(engine, level).sent_packets)


def packets_in_flight(engine: Engine) -> int:
    """How many 1-RTT packets sent count towards the bytes in flight (RFC 9002 section 2)."""
    return sum(packet.in_flight for packet in _space(engine).sent_packets.values())


def ack_eliciting_in_flight(engine: Engine, level: Level = Level.ONE_RTT) -> int:
    """How many ack-eliciting packets sent are neither acknowledged nor lost."""
    return _space(engine, level).ack_eliciting_in_flight


def crypto_packets_in_flight(engine: Engine, level: Level) -> int:
    """How many packets sent with CRYPTO frames are neither acknowledged nor lost."""
    return sum(packet.is_crypto_packet for packet in _space(engine, level).sent_packets.values())


def largest_acknowledged(engine: Engine) -> int:
    """The largest number of a 1-RTT packet sent which the peer has acknowledged."""
    return _space(engine).largest_acked_packet


def set_congestion_window(engine: Engine, size: int) -> None:
    """Let the congestion window have so many bytes."""
    engine._control.congestion_window = size


def fill_pacer(engine: Engine) -> None:
    """Let the pacer hold nothing back of the next burst, however large."""
    engine._pacer._tokens = 1e9


def sample_rtt(engine: Engine, seconds: float) -> None:
    """Let the engine have measured this round-trip time (RFC 9002 section 5.3)."""
    engine._recovery._sample_rtt(seconds, 0.0, 0.0)


def forget_rtt(engine: Engine, now: float) -> None:
    """Let the round-trip time be that of a path which begins now (RFC 9000 section 9.4)."""
    engine._recovery.begin_path(now)


def probe_timeout(engine: Engine) -> float:
    """The probe timeout's period in seconds, before it backs off (RFC 9002 section 6.2.1)."""
    return engine._loss.get_probe_timeout()


def probe_timeouts_in_a_row(engine: Engine) -> int:
    """The PTO count (RFC 9002 section 6.2.1)."""
    return engine._loss._pto_count


def time_out_handshake_probe(engine: Engine) -> None:
    """Let a probe timeout of the handshake have passed."""
    engine.note_handshake_timeout()


def marked_packets(engine: Engine) -> int:
    """How many packets were sent with an ECN mark on the present path."""
    return engine._ecn._sent


# ------------------------------------------------------------------ flow control


def credit_used(engine: Engine) -> int:
    """What the peer has used of this side's MAX_DATA: the largest offsets of all streams."""
    return engine._local_max_data.used


def credit_granted(engine: Engine) -> int:
    """The MAX_DATA which this side grants the peer at present."""
    return engine._window.limit


def data_sent(engine: Engine) -> int:
    """What this side has used of the peer's MAX_DATA."""
    return engine._remote_max_data_used


def max_data(engine: Engine) -> int:
    """The MAX_DATA which the peer has granted."""
    return engine._remote_max_data


def max_streams(engine: Engine) -> int:
    """The MAX_STREAMS which the peer has granted, of bidirectional streams."""
    return engine._remote_max_streams_bidi


def initial_max_stream_data(engine: Engine) -> int:
    """What the peer grants each bidirectional stream which this side opens, at first."""
    return engine._remote_max_stream_data_bidi_remote


def believe_max_data(engine: Engine, maximum: int, *stream_ids: int) -> None:
    """Let the engine believe in this MAX_DATA, and in this MAX_STREAM_DATA of the streams."""
    engine._remote_max_data = maximum
    for stream_id in stream_ids:
        engine._records[stream_id].max_stream_data_remote = maximum


def believe_max_streams(engine: Engine, maximum: int) -> None:
    """Let the engine believe in this MAX_STREAMS, of bidirectional streams."""
    engine._remote_max_streams_bidi = maximum


def accept_data(engine: Engine, connection: int, stream: int) -> None:
    """Let the engine take data up to these offsets, and tell the peer nothing of it."""
    engine._local_max_data.value = connection
    for record in engine._records.values():
        record.max_stream_data_local = stream


# ------------------------------------------------------------------ streams and datagrams


@attrs.frozen
class StreamFacts:
    """A stream, as its engine sees it."""

    sent: int
    """The end of what was sent."""
    received: int
    """The largest offset received."""
    final_size: int | None
    """Of what is received; ``None``: not known yet (RFC 9000 section 4.5)."""
    is_received: bool
    """Whether all was received, or a reset."""
    behind_gaps: list[range]
    """The ranges received behind a gap."""
    max_stream_data: int
    """What the peer has granted."""
    resets: bool
    """Whether a RESET_STREAM frame is still to be sent."""
    was_reset: bool
    """Whether this side has reset it, by itself or because the peer stopped it."""
    is_over: bool
    """Whether both directions have ended on the wire."""


def stream_ids(engine: Engine) -> list[int]:
    """The streams of which the engine knows anything still."""
    return list(engine._records)


def stream_facts(engine: Engine, stream_id: int) -> StreamFacts:
    """What the engine knows of one of its streams."""
    record: StreamRecord = engine._records[stream_id]
    receiver, sender = record.receiver, record.sender
    return StreamFacts(
        sent=sender.highest_offset,
        received=receiver.highest_offset,
        final_size=receiver._final_size,
        is_received=receiver.is_finished,
        behind_gaps=receiver.pending_ranges,
        max_stream_data=record.max_stream_data_remote,
        resets=sender.reset_pending,
        was_reset=sender.was_reset,
        is_over=record.wire_done,
    )


def streams_with_new_limit(engine: Engine) -> list[int]:
    """The streams for which a MAX_STREAM_DATA frame is to be sent."""
    return [record.stream_id for record in engine.take_streams_with_new_limit()]


def held_behind_gaps(engine: Engine) -> tuple[int, int]:
    """How many pieces of streams, and how many bytes, wait behind gaps."""
    return engine.piece_limit.pieces, engine.piece_limit.held


def unsent_bytes(engine: Engine) -> int:
    """Bytes written to streams which were never sent."""
    return engine._unsent


def has_streams_to_send(engine: Engine) -> bool:
    """Whether any stream has data, an end, a reset or a stop to send."""
    return bool(engine._active)


def queued_datagrams(engine: Engine) -> int:
    """How many datagrams (RFC 9221) wait to be sent."""
    return len(engine._datagrams_pending)


def announce_datagram_frame_size(engine: Engine, size: int) -> None:
    """Server: let the engine announce this max_datagram_frame_size; before its first packet."""
    engine._configuration.max_datagram_frame_size = size


# ------------------------------------------------------------------ connection IDs


def connection_id_in_use(engine: Engine) -> tuple[int, bytes]:
    """The peer's connection ID to which the engine sends, and its sequence number."""
    return engine._peer_cid.sequence_number, engine._peer_cid.cid


def spare_connection_ids(engine: Engine) -> list[int]:
    """The sequence numbers of the peer's connection IDs which are not used yet."""
    return [each.sequence_number for each in engine._peer_cid_available]


def forget_spare_connection_ids(engine: Engine) -> None:
    """Let the peer have issued no connection ID besides the one in use."""
    engine._peer_cid_available.clear()


def own_connection_id(engine: Engine) -> bytes:
    """The connection ID which the engine writes into its long headers."""
    return engine.host_cid


def own_connection_id_numbers(engine: Engine) -> list[int]:
    """The sequence numbers of the engine's own connection IDs which are not retired."""
    return [each.sequence_number for each in engine._host_cids]


def next_connection_id_number(engine: Engine) -> int:
    """The sequence number of the connection ID which the engine issues next."""
    return engine._host_cid_seq


def lose_announcement(engine: Engine, number: int) -> None:
    """Let the NEW_CONNECTION_ID frame of this sequence number seem lost."""
    (connection_id,) = [each for each in engine._host_cids if each.sequence_number == number]
    connection_id.was_sent = False


def change_connection_id(engine: Engine) -> None:
    """Send to another of the peer's connection IDs from now on, and retire the present one."""
    engine.change_connection_id()


# ------------------------------------------------------------------ paths


def path_in_use(engine: Engine) -> Address:
    """The peer's address to which the engine sends."""
    address: Address = engine._network_paths[0].addr
    return address


def has_path(engine: Engine) -> bool:
    """Whether the engine knows any address of the peer."""
    return bool(engine._network_paths)


def validated_addresses(engine: Engine) -> set[Address]:
    """The peer's addresses which are validated, of those remembered (RFC 9000 section 8)."""
    return {path.addr for path in engine._network_paths if path.is_validated}


def is_path_validated(engine: Engine) -> bool:
    """Whether the address to which the engine sends is validated."""
    return engine._network_paths[0].is_validated


def challenges_to_answer(engine: Engine) -> int:
    """How many PATH_CHALLENGE frames of the path in use wait for their answers."""
    return len(engine._network_paths[0].remote_challenges)


def leave_room_before_validation(engine: Engine, size: int) -> None:
    """Let the limit of RFC 9000 section 8.1 leave so many bytes to the path in use."""
    path = engine._network_paths[0]
    path.bytes_sent = 3 * path.bytes_received - size


def probe_path(engine: Engine, address: Address) -> None:
    """Client: challenge another address of the server, with a connection ID of its own."""
    path = QuicNetworkPath(address)
    path.peer_cid = engine._peer_cid_available.pop(0)
    engine._add_network_path(path)


def spin_bit(engine: Engine) -> bool:
    """The spin bit of the engine's next packets (RFC 9000 section 17.4)."""
    return engine._spin_bit


def begin_mtu_search(engine: Engine) -> None:
    """Let the search for larger packets begin anew (RFC 8899)."""
    engine._begin_mtu_search()


def mtu_search_deadline(engine: Engine) -> float:
    """When the search for larger packets begins anew by itself; ``math.inf``: it is under way."""
    assert engine._mtu is not None
    return engine._mtu.deadline


def is_mtu_probe_under_way(engine: Engine) -> bool:
    """Whether a probe of the search for larger packets waits for its acknowledgement."""
    return engine._mtu is not None and engine._mtu._probe is not None


def set_datagram_size(engine: Engine, size: int) -> None:
    """Let the path carry UDP payloads of this size."""
    engine._set_datagram_size(size)


# ------------------------------------------------------------------ handshake


def is_handshake_complete(engine: Engine) -> bool:
    """Whether TLS has completed the handshake (RFC 9001 section 4.1.1)."""
    return engine._handshake_complete


def is_handshake_confirmed(engine: Engine) -> bool:
    """Whether the handshake is confirmed (RFC 9001 section 4.1.2)."""
    return engine._handshake_confirmed


def early_bytes(engine: Engine) -> int | None:
    """Bytes of packets which wait for their keys; ``None``: all keys are there."""
    return None if engine._early is None else engine._early.held


def crypto_to_send(engine: Engine, level: Level) -> bytes:
    """The handshake messages of this level which are not acknowledged."""
    return bytes(engine._crypto_streams[EPOCHS[level]].sender._buffer)


def crypto_held(engine: Engine, *levels: Level) -> int:
    """Bytes of CRYPTO frames which wait for what is missing before them; by default, of all."""
    receivers = engine._crypto_receivers
    wanted = [EPOCHS[level] for level in levels] if levels else list(receivers)
    return sum(receivers[epoch].held for epoch in wanted)


def crypto_received(engine: Engine, level: Level) -> int:
    """Bytes of the CRYPTO stream of this level which TLS has got."""
    return engine._crypto_receivers[EPOCHS[level]]._base


def write_key_log(engine: Engine, file: TextIO) -> None:
    """Write the TLS secrets which come from now on to a file."""
    engine._configuration.secrets_log_file = file


def keep_alive_due(engine: Engine) -> float:
    """When the engine sends a PING if nothing comes until then."""
    return engine._keep_alive_at


def traced_events_in_memory(engine: Engine) -> int:
    """Events of the engine's qlog trace which are not written to its file."""
    trace = engine._quic_logger
    assert trace is not None
    return len(trace._events)


@contextmanager
def announced_udp_payload_size(size: int) -> Iterator[None]:
    """Engines which are made meanwhile announce this max_udp_payload_size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "_OWN_UDP_PAYLOAD_LIMIT", size)
        yield


@contextmanager
def keys_worn_out_after(packets: int, *, retry_after: int) -> Iterator[None]:
    """Meanwhile, engines update their keys by themselves after so many packets.

    If the peer has not acknowledged the last update, they try it again `retry_after` packets.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "KEY_UPDATE_PACKETS", packets)
        patch.setattr(engine_module, "_KEY_UPDATE_RETRY", retry_after)
        yield


# ------------------------------------------------------------------ the end, and faults


def close_code(engine: Engine) -> tuple[int, int | None] | None:
    """Error code and frame type of the CONNECTION_CLOSE; ``None``: there was none."""
    event = engine._close_event
    return None if event is None else (event.error_code, event.frame_type)


def intercept(engine: Engine, method: str, function: Callable[..., Any]) -> None:
    """Let calls of a public method of the engine go to `function`."""
    assert callable(getattr(engine, method))
    assert not method.startswith("_")
    setattr(engine, method, function)


def fail_when_reading(engine: Engine) -> None:
    """Let the engine have a bug: reading NEW_CONNECTION_ID frames raises ZeroDivisionError."""
    engine.take_other_frames = _explode  # type: ignore[method-assign,assignment]


def fail_when_building(engine: Engine, *, even_the_goodbye: bool = False) -> None:
    """Let the engine have a bug: building packets raises ZeroDivisionError.

    The packet which closes the connection can be built, unless `even_the_goodbye`.
    """
    engine._transmit = _explode  # type: ignore[method-assign,assignment]
    if even_the_goodbye:
        engine.datagrams_to_send = _explode  # type: ignore[method-assign,assignment]


def _explode(*arguments: Any) -> Any:
    raise ZeroDivisionError("a bug")


@contextmanager
def counted_stream_visits(engine: Engine) -> Iterator[Callable[[], int]]:
    """Counts how often the engine looks whether a stream has data for a packet."""
    count = 0
    write = engine._write_stream_frame

    def counting(*arguments: Any, **named: Any) -> int:
        nonlocal count
        count += 1
        return write(*arguments, **named)

    engine._write_stream_frame = counting  # type: ignore[method-assign]
    try:
        yield lambda: count
    finally:
        engine._write_stream_frame = write  # type: ignore[method-assign]
