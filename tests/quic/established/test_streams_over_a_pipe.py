"""Two ends over a pipe that loses, reorders and repeats packets, driven by hypothesis.

Whatever the pipe and both applications do, the data read is a prefix of the data written.  At
the end all data has arrived, as have the ends, the resets and the credit.
"""

from __future__ import annotations

from typing import Any, TypeVar

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from tests.quic.established.pipe import Packet, Side, content, parameters_of
from tests.support import examples

KIB = 1024

#: Little credit of every kind, so that all of it runs out.
CONFIGS = [
    TransportConfig(
        send_buffer_size=24 * KIB,
        stream_send_buffer_size=16 * KIB,
        receive_buffer_size=receive,
        stream_receive_buffer_size=stream_receive,
        max_bidirectional_streams=2,
        max_unidirectional_streams=3,
    )
    for receive, stream_receive in ((16 * KIB, 64 * KIB), (32 * KIB, 8 * KIB))
]

sides = st.sampled_from([0, 1])
numbers = st.integers(0, 1000)
Chosen = TypeVar("Chosen")

rooms = st.sampled_from([30, 60, 200, 1200, 1200, 1200, 20_000])
sizes = st.sampled_from([1, 10, 500, 1200, 5000, 16_000])


class Application:
    """The actions of one side's application so far."""

    def __init__(self) -> None:
        self.written: dict[int, int] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        self.unread: dict[int, int] = {}
        self.stopped: dict[int, int] = {}
        self.let_go_sending: set[int] = set()
        self.let_go_receiving: set[int] = set()
        self.opened: list[int] = []
        self.forgotten: set[int] = set()


def pick(choices: list[tuple[int, Chosen]], number: int) -> tuple[int, Chosen]:
    """One of the choices, by any number."""
    return choices[number % len(choices)]


class Pipe(RuleBasedStateMachine):
    """Both sides, and everything that can happen to them."""

    @initialize(client=sides, server=sides)
    def connect(self, client: int, server: int) -> None:
        self.sides = [Side(True, CONFIGS[client]), Side(False, CONFIGS[server])]
        self.applications = [Application(), Application()]
        self.now = 0.0
        for side, other in zip(self.sides, reversed(self.sides), strict=True):
            side.streams.set_peer_limits(parameters_of(other.streams, other.config))

    # -- streams on which something can happen: pairs of a side's index and a stream ID

    def writable(self) -> list[tuple[int, int]]:
        return [
            (index, stream_id)
            for index, application in enumerate(self.applications)
            for stream_id in application.written
            if stream_id not in application.ended
            and stream_id not in application.reset
            and stream_id not in self.sides[index].saw_stop
        ]

    def open_for_sending(self) -> list[tuple[int, int]]:
        """Not reset, and not all acknowledged."""
        return [
            (index, stream_id)
            for index, (side, application) in enumerate(
                zip(self.sides, self.applications, strict=True)
            )
            for stream_id, written in application.written.items()
            if stream_id not in application.reset
            and stream_id not in side.saw_stop
            and not side.streams.is_acknowledged(stream_id, written, with_fin=True)
        ]

    def ended(self) -> list[tuple[int, int]]:
        """Streams that the application has ended, and may let go."""
        return [
            (index, stream_id)
            for index, application in enumerate(self.applications)
            for stream_id in application.written
            if (index, stream_id) not in self.writable()
            and stream_id not in application.let_go_sending
        ]

    def readable(self, index: int) -> list[int]:
        """The streams of a side that the application has not let go."""
        application = self.applications[index]
        return [each for each in application.unread if each not in application.let_go_receiving]

    def all_readable(self) -> list[tuple[int, int]]:
        return [(index, each) for index in (0, 1) for each in self.readable(index)]

    def unread(self) -> list[tuple[int, int]]:
        return [
            (index, each)
            for index, each in self.all_readable()
            if self.applications[index].unread[each]
        ]

    def wanted(self) -> list[tuple[int, int]]:
        return [
            (index, each)
            for index, each in self.all_readable()
            if each not in self.applications[index].stopped
        ]

    def flying(self) -> list[tuple[int, Packet]]:
        return [(index, each) for index in (0, 1) for each in self.sides[index].flying]

    def arrived(self) -> list[tuple[int, Packet]]:
        return [(index, each) for index in (0, 1) for each in self.sides[index].arrived]

    def attend(self, index: int) -> None:
        """Let the application take the events."""
        application, side = self.applications[index], self.sides[index]
        for event in side.collect():
            match event:
                case events.StreamOpened(stream_id):
                    application.unread[stream_id] = 0
                    if not stream_id & 2:
                        application.written[stream_id] = 0
                case events.StreamDataReceived(stream_id, data, _):
                    assert stream_id not in application.stopped
                    assert stream_id not in application.let_go_receiving
                    start = application.taken.get(stream_id, 0)
                    assert data == content(stream_id, start, start + len(data))
                    application.taken[stream_id] = start + len(data)
                    application.unread[stream_id] += len(data)
                case events.StreamForgotten(stream_id):
                    self.forget(application, stream_id)

    def forget(self, application: Application, stream_id: int) -> None:
        assert stream_id not in application.forgotten
        application.forgotten.add(stream_id)

    # -- the applications

    @rule(index=sides, unidirectional=st.booleans())
    def open_stream(self, index: int, unidirectional: bool) -> None:
        stream_id = self.sides[index].streams.open_stream(unidirectional=unidirectional)
        if stream_id is None:
            return
        application = self.applications[index]
        assert stream_id not in application.written
        application.written[stream_id] = 0
        application.opened.append(stream_id)
        if not unidirectional:
            application.unread[stream_id] = 0
            self.sides[index].received[stream_id] = bytearray()

    @precondition(lambda self: self.writable())
    @rule(number=numbers, size=sizes, end=st.sampled_from([False, False, False, True]))
    def write(self, number: int, size: int, end: bool) -> None:
        index, stream_id = pick(self.writable(), number)
        application, streams = self.applications[index], self.sides[index].streams
        start = application.written[stream_id]
        stop = start + min(size, streams.send_room(stream_id, size))
        streams.write(stream_id, content(stream_id, start, stop), end_stream=end)
        assert streams.written(stream_id) == stop
        application.written[stream_id] = stop
        if end:
            application.ended.add(stream_id)

    @precondition(lambda self: self.open_for_sending())
    @rule(number=numbers, code=st.integers(0, 5))
    def reset(self, number: int, code: int) -> None:
        index, stream_id = pick(self.open_for_sending(), number)
        self.sides[index].streams.reset_sending(stream_id, code)
        self.applications[index].reset[stream_id] = code

    @precondition(lambda self: self.wanted())
    @rule(number=numbers, code=st.integers(0, 5))
    def stop(self, number: int, code: int) -> None:
        index, stream_id = pick(self.wanted(), number)
        self.sides[index].streams.stop_receiving(stream_id, code)
        self.applications[index].stopped[stream_id] = code

    @precondition(lambda self: self.unread())
    @rule(number=numbers, size=sizes)
    def read(self, number: int, size: int) -> None:
        self.read_stream(*pick(self.unread(), number), size)

    def read_stream(self, index: int, stream_id: int, size: int) -> None:
        application, streams = self.applications[index], self.sides[index].streams
        count = min(size, application.unread[stream_id])
        application.unread[stream_id] -= count
        if streams.consume(stream_id, count):
            streams.extend_credit(stream_id, self.now, 0.05)

    @precondition(lambda self: self.ended())
    @rule(number=numbers)
    def let_go_of_sending(self, number: int) -> None:
        index, stream_id = pick(self.ended(), number)
        self.applications[index].let_go_sending.add(stream_id)
        if self.sides[index].streams.let_go(stream_id, sending=True):
            self.forget(self.applications[index], stream_id)

    @precondition(lambda self: self.all_readable())
    @rule(number=numbers)
    def let_go_of_receiving(self, number: int) -> None:
        index, stream_id = pick(self.all_readable(), number)
        self.applications[index].let_go_receiving.add(stream_id)
        if self.sides[index].streams.let_go(stream_id, receiving=True):
            self.forget(self.applications[index], stream_id)

    # -- the network

    @rule(index=sides, room=rooms, count=st.integers(1, 10), with_data=st.booleans())
    def build(self, index: int, room: int, count: int, with_data: bool) -> None:
        for _ in range(count):
            if self.sides[index].build(room, with_data=with_data) is None:
                break

    @rule(index=sides, room=st.sampled_from([100, 1200, 1400]), most=st.integers(1, 20))
    def build_run(self, index: int, room: int, most: int) -> None:
        self.sides[index].build_run(room, most)

    @precondition(lambda self: self.flying())
    @rule(number=numbers, count=st.integers(1, 5), step=numbers, again=st.booleans())
    def deliver(self, number: int, count: int, step: int, again: bool) -> None:
        """Packets come in some order, and may come twice."""
        for _ in range(count):
            if not self.flying():
                break
            index, packet = pick(self.flying(), number)
            if not again:
                self.sides[index].flying.remove(packet)
                self.sides[index].arrived.append(packet)
            self.sides[1 - index].take(packet.payload)
            self.attend(1 - index)
            number += step

    @precondition(lambda self: self.flying())
    @rule(index=sides, by_short_cut=st.booleans())
    def deliver_all(self, index: int, by_short_cut: bool) -> None:
        side = self.sides[index]
        for packet in side.flying:
            self.sides[1 - index].take(packet.payload, by_short_cut=by_short_cut)
        side.arrived += side.flying
        side.flying = []
        self.attend(1 - index)

    @precondition(lambda self: self.writable())
    @rule(number=numbers, size=st.sampled_from([5000, 16_000]), with_run=st.booleans())
    def converse(self, number: int, size: int, with_run: bool) -> None:
        """Much is written, sent and read, so that credit is used and given."""
        index, _ = pick(self.writable(), number)
        self.write(number, size, False)
        if with_run:
            self.build_run(index, 1200, 20)
        self.sides[index].flush()
        self.deliver_all(index, with_run)
        for reader, stream_id in self.unread():
            self.read_stream(reader, stream_id, size)

    @precondition(lambda self: self.arrived())
    @rule(number=numbers, count=st.integers(1, 30), step=numbers)
    def acknowledge(self, number: int, count: int, step: int) -> None:
        for _ in range(count):
            if not self.arrived():
                break
            index, packet = pick(self.arrived(), number)
            self.sides[index].arrived.remove(packet)
            self.sides[index].acknowledge(packet)
            self.attend(index)
            number += step

    @precondition(lambda self: self.flying() or self.arrived())
    @rule(number=numbers, count=st.integers(1, 3), is_true=st.booleans())
    def lose(self, number: int, count: int, is_true: bool) -> None:
        """Packets are lost, or only believed to be."""
        for _ in range(count):
            packets = self.flying() + ([] if is_true else self.arrived())
            if not packets:
                break
            index, packet = pick(packets, number)
            if is_true:
                self.sides[index].flying.remove(packet)
            self.sides[index].lose(packet)
            self.attend(index)

    @precondition(lambda self: self.flying() or self.arrived())
    @rule(number=numbers)
    def probe(self, number: int) -> None:
        index, packet = pick(self.flying() + self.arrived(), number)
        self.sides[index].repeat(packet)

    @rule(index=sides)
    def say_what_blocks(self, index: int) -> None:
        self.sides[index].streams.blocked_pending = True

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.streams.now = self.now

    # -- invariants

    @invariant()
    @precondition(lambda self: hasattr(self, "sides"))
    def accounts_are_right(self) -> None:
        for index, side in enumerate(self.sides):
            sending, receiving = side.streams.sending, side.streams.receiving
            peer = self.sides[1 - index].streams
            senders = side.streams.senders.values()
            assert sending.buffered == sum(len(sender.buffer) for sender in senders)
            assert sending.unsent == sum(
                sender.buffer.stop - sender.sent for sender in senders if sender.reset_code < 0
            )
            assert sending.peer_max_data_used <= sending.peer_max_data <= peer.receiving.max_data
            assert receiving.received <= receiving.max_data <= receiving.window.limit
            assert receiving.received <= peer.sending.peer_max_data_used
            assert receiving.window.released <= receiving.received
            assert sending.buffered <= side.config.send_buffer_size
            waiting = receiving.received - receiving.window.released
            assert waiting <= side.config.receive_buffer_size
            has_credit = sending.peer_max_data_used < sending.peer_max_data
            for stream_id, sender in side.streams.senders.items():
                assert sender.sent <= sender.limit
                assert sender.reset_code >= 0 or sender.buffer.start <= sender.sent
                if sender.lost is not None:
                    assert sender.buffer.start <= sender.lost.starts[0]
                    assert sender.lost.stops[-1] <= sender.sent
                if sender.has_work():
                    queue = dict(sending.active)
                    if not has_credit:
                        queue |= sending.starved
                    assert stream_id in queue or sending.starved.get(stream_id) is not None
                other = peer.receivers.get(stream_id)
                if other is not None:
                    assert other.received <= sender.sent
            assert not has_credit or not sending.starved
            for stream_id, receiver in side.streams.receivers.items():
                assert receiver.delivered <= receiver.received <= receiver.limit
                assert receiver.window.released <= receiver.received
                if receiver.pending is not None:
                    assert receiver.pending_ranges()[0].start > receiver.delivered
                if not receiver.is_discarding and receiver.final_size < 0:
                    held = len(side.received[stream_id])
                    assert receiver.delivered == held

    # -- the end

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        client, server = self.sides
        for side, other in ((client, server), (server, client)):
            for number, packet in enumerate([*side.flying]):
                if number % 3:
                    other.take(packet.payload)
                side.lose(packet)
            side.flying.clear()
        self.finish()
        self.check_what_arrived()
        self.close_everything()

    def settle(self) -> None:
        self.now += 0.1
        for index in (0, 1):
            self.sides[index].streams.now = self.now
            self.attend(index)
        exchange_with(self)

    def finish(self) -> None:
        """Let both sides read everything, until nothing comes any more."""
        for _ in range(200):
            self.settle()
            anything = False
            for index in (0, 1):
                for stream_id in self.readable(index):
                    if self.applications[index].unread[stream_id]:
                        anything = True
                        self.read_stream(index, stream_id, 1 << 20)
            if not anything:
                return
        raise AssertionError("reads for ever")

    def check_what_arrived(self) -> None:
        for index, (side, application) in enumerate(
            zip(self.sides, self.applications, strict=True)
        ):
            other, reader = self.sides[1 - index], self.applications[1 - index]
            streams = side.streams
            assert not streams.sending.unsent or any(
                # (Only a stream whose reader keeps its credit back, since it wants no more.)
                stream_id in reader.stopped or stream_id in reader.let_go_receiving
                for stream_id, sender in streams.senders.items()
                if sender.is_blocked()
            )
            assert not streams.sending.active
            assert not streams.sending.resets
            for stream_id, written in application.written.items():
                code = application.reset.get(stream_id, side.saw_stop.get(stream_id))
                wanted = not (stream_id in reader.stopped or stream_id in reader.let_go_receiving)
                if stream_id in reader.stopped and code is None:
                    # STOP_SENDING came too late, or its stream had ended.
                    assert stream_id in application.ended
                    assert streams.is_acknowledged(stream_id, written, with_fin=True)
                if not wanted:
                    continue
                if code is None:
                    note(f"stream {stream_id} of side {index}")
                    assert other.received.get(stream_id, b"") == content(stream_id, 0, written)
                    assert (stream_id in other.saw_end) == (stream_id in application.ended)
                    assert streams.is_acknowledged(
                        stream_id, written, with_fin=stream_id in application.ended
                    )
                elif stream_id not in other.saw_end:
                    assert other.saw_reset[stream_id] == code
                    assert streams.is_acknowledged(stream_id, written, with_fin=True)
            for stream_id, code in side.saw_stop.items():
                assert reader.stopped[stream_id] == code

    def close_all(self) -> None:
        """Both applications end, stop and let go of all streams known to them."""
        for index, (side, application) in enumerate(
            zip(self.sides, self.applications, strict=True)
        ):
            for stream_id in application.written:
                # (An ended stream may wait for the credit of a reader that is gone.)
                side.streams.reset_sending(stream_id, 9)
                if stream_id not in application.let_go_sending:
                    application.let_go_sending.add(stream_id)
                    if side.streams.let_go(stream_id, sending=True):
                        self.forget(application, stream_id)
            for stream_id in self.readable(index):
                side.streams.stop_receiving(stream_id, 9)
                application.stopped[stream_id] = 9
                application.let_go_receiving.add(stream_id)
                if side.streams.let_go(stream_id, receiving=True):
                    self.forget(application, stream_id)

    def close_everything(self) -> None:
        self.close_all()
        self.settle()
        self.close_all()  # streams opened at the other side by a reset
        self.settle()
        for index, (side, application) in enumerate(
            zip(self.sides, self.applications, strict=True)
        ):
            streams = side.streams
            assert not streams.senders
            assert not streams.receivers
            assert application.forgotten == set(application.written) | set(application.unread)
            sending, receiving = streams.sending, streams.receiving
            assert sending.buffered == sending.unsent == 0
            assert not sending.active
            assert not sending.starved
            assert receiving.pieces.held == receiving.pieces.pieces == 0
            assert receiving.received == receiving.window.released
            peer = self.sides[1 - index].streams
            assert peer.sending.peer_max_data_used == receiving.received
            assert receiving.received + receiving.window.size // 4 <= receiving.window.limit
            assert peer.sending.peer_max_data == receiving.window.limit == receiving.max_data
            assert streams.accepted == peer.opened
            for theirs, ours in zip(streams._peer, peer._local, strict=True):
                assert ours.permitted == theirs.announced
                assert not theirs.is_due()
                assert ours.opened == theirs.opened
                assert theirs.maximum - theirs.opened == (
                    side.config.max_bidirectional_streams
                    if theirs is streams._peer[0]
                    else side.config.max_unidirectional_streams
                )


def exchange_with(pipe: Pipe) -> None:
    """Packets go to and fro in order; both applications attend."""
    quiet = False
    while not quiet:
        quiet = True
        for index in (0, 1):
            side = pipe.sides[index]
            side.flush()
            arrived: list[Packet] = [*side.arrived, *side.flying]
            for packet in side.flying:
                pipe.sides[1 - index].take(packet.payload)
            side.arrived, side.flying = [], []
            for packet in arrived:
                quiet = False
                side.acknowledge(packet)
            pipe.attend(index)
            pipe.attend(1 - index)


TestPipe: Any = Pipe.TestCase
TestPipe.settings = settings(
    examples(60), stateful_step_count=80, suppress_health_check=[HealthCheck.too_slow]
)
