"""Two ends with streams, and packets between them that tests deliver, lose or repeat."""

from __future__ import annotations

import random
from typing import Any

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.memory_budget import EndpointMemory
from phoenix_trio.quic.established.parameters import PeerParameters
from phoenix_trio.quic.established.sent_packet import SentPacket
from phoenix_trio.quic.established.streams import Streams
from phoenix_trio.quic.wire import frames

#: The content of streams: so long that all offsets in tests differ.
CONTENT = random.Random(1).randbytes(1 << 20)


def content(stream_id: int, start: int, stop: int) -> bytes:
    """The bytes of a stream from `start` to `stop`; they depend on ID and offset."""
    shift = stream_id * 997
    return CONTENT[shift + start : shift + stop]


def parameters_of(streams: Streams, config: TransportConfig) -> PeerParameters:
    """The transport parameters that a side announces."""
    parameters = PeerParameters()
    window = streams.receiving.initial_stream_window
    parameters.max_data = streams.receiving.initial_connection_window
    parameters.max_stream_data_bidi_local = window
    parameters.max_stream_data_bidi_remote = window
    parameters.max_stream_data_uni = window
    parameters.max_streams_bidi = config.max_bidirectional_streams
    parameters.max_streams_uni = config.max_unidirectional_streams
    return parameters


class Packet:
    """A payload on its way, and its sender's record of it."""

    def __init__(self, payload: bytes, record: SentPacket) -> None:
        self.payload = payload
        self.record = record
        self.is_forgotten = False  # by its sender: acknowledged, or lost


class Side:
    """One end: its streams, its application's knowledge, and its packets."""

    def __init__(
        self,
        is_client: bool,
        config: TransportConfig | None = None,
        memory: EndpointMemory | None = None,
    ) -> None:
        self.config = TransportConfig() if config is None else config
        self.events: list[events.Event] = []
        self.streams = Streams(
            is_client,
            self.config,
            EndpointMemory(self.config) if memory is None else memory,
            self.events,
        )
        self.numbers = 0
        self.flying: list[Packet] = []
        """Packets that have not arrived."""
        self.arrived: list[Packet] = []
        """Packets received by the peer, but not acknowledged."""
        self.log: list[events.Event] = []
        """All events so far."""
        self.received: dict[int, bytearray] = {}
        self.saw_end: set[int] = set()
        self.saw_reset: dict[int, int] = {}
        self.saw_stop: dict[int, int] = {}

    # -- sending

    def build(self, room: int = 1200, *, with_data: bool = True) -> Packet | None:
        """Build a packet with all frames that are due, and put it on its way."""
        record = SentPacket(self.numbers, self.streams.now)
        parts: list[bytes] = []
        left = self.streams.fill_control(parts, room, record)
        assert left == room - sum(map(len, parts)) >= 0
        if with_data:
            left = self.streams.sending.fill_data(parts, left, record)
        assert left == room - sum(map(len, parts)) >= 0
        return self._sent(b"".join(parts), record) if parts else None

    def build_run(self, room: int = 1200, most: int = 100) -> list[Packet]:
        """Full packets of one stream, if its turn is next."""
        turn = self.streams.sending.next_bulk(room)
        if turn is None:
            return []
        packets = []
        count = min(turn.packets, most)
        for start in range(turn.start, turn.start + count * turn.capacity, turn.capacity):
            stop = start + turn.capacity
            record = SentPacket(self.numbers, self.streams.now)
            record.sender, record.start, record.stop = turn.stream, start, stop
            data = turn.stream.buffer.read(start, stop)
            payload = turn.head + (start | frames.LONG_VARINT).to_bytes(8, "big") + data
            assert len(payload) == room
            packets.append(self._sent(payload, record))
        self.streams.sending.sent_bulk(turn, count)
        return packets

    def _sent(self, payload: bytes, record: SentPacket) -> Packet:
        self.numbers += 1
        packet = Packet(payload, record)
        self.flying.append(packet)
        return packet

    def flush(self) -> list[Packet]:
        """Send everything that may be sent now."""
        packets = []
        while (packet := self.build()) is not None:
            packets.append(packet)
        return packets

    # -- the fate of packets

    def acknowledge(self, packet: Packet) -> None:
        """Deliver the peer's acknowledgement."""
        record = packet.record
        if packet.is_forgotten:
            return
        packet.is_forgotten = True
        if record.sender is not None:
            record.sender.on_acknowledged(record.start, record.stop, record.fin)
        for sender, start, stop, fin in record.streams or ():
            sender.on_acknowledged(start, stop, fin)
        for frame in record.control or ():
            self.streams.on_control_acknowledged(*frame)

    def lose(self, packet: Packet) -> None:
        """Declare the packet lost."""
        record = packet.record
        if packet.is_forgotten:
            return
        packet.is_forgotten = True
        if record.sender is not None:
            record.sender.on_lost(record.start, record.stop, record.fin)
        for sender, start, stop, fin in record.streams or ():
            sender.on_lost(start, stop, fin)
        for frame in record.control or ():
            self.streams.on_control_lost(*frame)

    def repeat(self, packet: Packet) -> None:
        """Repeat its data in a probe."""
        record = packet.record
        if packet.is_forgotten:
            return
        if record.sender is not None:
            record.sender.repeat(record.start, record.stop, record.fin)
        for sender, start, stop, fin in record.streams or ():
            sender.repeat(start, stop, fin)

    # -- receiving

    def take(self, payload: bytes, *, by_short_cut: bool = False) -> None:
        """Take the frames of a received packet; data in order goes by its short cut if possible."""
        if by_short_cut and payload[0] & 0xF9 == frames.STREAM:
            stream_id, offset, begin, end, _ = frames.parse_stream(payload, 0)
            reached = offset + end - begin
            if begin < end == len(payload):
                limit = self.streams.bulk_limit(stream_id, offset)
                if reached <= limit:
                    self.streams.take_bulk(stream_id, payload[begin:], reached)
                    return
        take_frames(self.streams, payload)

    def note(self, event: events.Event) -> None:
        """Record the effect of an event on the application."""
        self.log.append(event)
        match event:
            case events.StreamOpened(stream_id):
                assert stream_id not in self.received
                if stream_id & 1 == self.streams._own_bit:
                    raise AssertionError("opened by the wrong side")
                self.received[stream_id] = bytearray()
            case events.StreamDataReceived(stream_id, data, end):
                assert data or end
                assert stream_id not in self.saw_end
                held = self.received.setdefault(stream_id, bytearray())
                held += data
                if end:
                    self.saw_end.add(stream_id)
            case events.StreamResetReceived(stream_id, code):
                assert stream_id not in self.saw_reset
                self.saw_reset[stream_id] = code
            case events.StreamStopReceived(stream_id, code):
                assert stream_id not in self.saw_stop
                self.saw_stop[stream_id] = code

    def collect(self) -> list[events.Event]:
        """The events since the last call."""
        self.streams.collect()
        found = list(self.events)
        self.events.clear()
        for event in found:
            self.note(event)
        return found


def take_frames(streams: Streams, payload: bytes) -> None:
    """Hand each frame of a payload to the streams."""
    at = 0
    while at < len(payload):
        kind = payload[at]
        if kind & 0xF8 == frames.STREAM:
            stream_id, offset, begin, at, fin = frames.parse_stream(payload, at)
            streams.take_stream(payload, stream_id, offset, begin, at, fin)
        elif kind == frames.MAX_DATA:
            limit, at = frames.parse_max_data(payload, at)
            streams.take_max_data(limit)
        elif kind == frames.MAX_STREAM_DATA:
            stream_id, limit, at = frames.parse_max_stream_data(payload, at)
            streams.take_max_stream_data(stream_id, limit)
        elif kind in (frames.MAX_STREAMS_BIDI, frames.MAX_STREAMS_UNI):
            limit, at = frames.parse_max_streams(payload, at)
            streams.take_max_streams(limit, kind == frames.MAX_STREAMS_UNI)
        elif kind == frames.RESET_STREAM:
            stream_id, code, final_size, at = frames.parse_reset_stream(payload, at)
            streams.take_reset(stream_id, code, final_size)
        elif kind == frames.STOP_SENDING:
            stream_id, code, at = frames.parse_stop_sending(payload, at)
            streams.take_stop_sending(stream_id, code)
        elif kind == frames.DATA_BLOCKED:
            _, at = frames.parse_data_blocked(payload, at)
        elif kind == frames.STREAM_DATA_BLOCKED:
            stream_id, _, at = frames.parse_stream_data_blocked(payload, at)
            streams.take_stream_data_blocked(stream_id)
        elif kind in (frames.STREAMS_BLOCKED_BIDI, frames.STREAMS_BLOCKED_UNI):
            _, at = frames.parse_streams_blocked(payload, at)
        else:
            raise AssertionError(f"frame type {kind:#x}")


def connected(**settings: Any) -> tuple[Side, Side]:
    """A client and a server that know each other's transport parameters."""
    config = TransportConfig(**settings)
    client, server = Side(True, config), Side(False, config)
    client.streams.set_peer_limits(parameters_of(server.streams, config))
    server.streams.set_peer_limits(parameters_of(client.streams, config))
    client.collect()
    server.collect()
    return client, server


def exchange(client: Side, server: Side) -> None:
    """Deliver and acknowledge packets, in order, until neither side has anything to send."""
    quiet = False
    while not quiet:
        quiet = True
        for side, other in ((client, server), (server, client)):
            side.flush()
            for packet in [*side.flying]:
                quiet = False
                other.take(packet.payload)
                side.acknowledge(packet)
            side.flying.clear()
            for packet in side.arrived:
                quiet = False
                side.acknowledge(packet)
            side.arrived.clear()
            side.collect()
            other.collect()
