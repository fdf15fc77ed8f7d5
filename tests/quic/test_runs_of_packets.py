"""Packets of established connections are built, protected and read in runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from tests.engine_access import (
    AES_128,
    AES_256,
    CHACHA20,
    ack_eliciting_in_flight,
    change_connection_id,
    close_code,
    credit_granted,
    credit_used,
    data_sent,
    has_streams_to_send,
    intercept,
    max_data,
    next_packet_number,
    packets_in_flight,
    received_ranges,
    remembered_packets,
    spare_connection_ids,
    statistics,
    stream_facts,
    stream_ids,
    unsent_bytes,
    use_cipher,
    write_trace_into,
)
from tests.engine_packets import key_phase, seal_short
from tests.packets import frame, reset_frame, stream_frame
from tests.support import (
    CLIENT,
    EnginePair,
    Side,
    ending,
    established,
    examples,
    hand_over,
    in_runs_or_singly,
    take_apart,
)

#: The rounds of data each way on a warm connection before its program begins: enough for a
#: congestion window of some hundred packets.
WARM_UP_ROUNDS = 3
WARM_UP_BYTES = 200_000

#: RFC 9000 section 20.1.
INTERNAL_ERROR = 0x01

#: These report that something has changed; pieces of data may be put together.
UNORDERED = (events.SendProgress, events.StreamDataReceived, events.StreamsAvailable)


# ------------------------------------------------------------------ arbitrary programs


@attrs.frozen
class Step:
    """One action of one side, and the wait after it."""

    action: str
    by_client: bool
    amount: int
    pause: float


@attrs.frozen
class Wire:
    """The faults of the wire."""

    seed: int
    loss: float
    jitter: float
    warm: bool = False
    """Whether the congestion windows have grown before the program begins, so that packets
    are built and arrive in long runs."""


steps = st.lists(
    st.builds(
        Step,
        action=st.sampled_from(
            [
                *["open", "write", "write", "write", "finish", "reset", "stop", "datagram"],
                *["ping", "update keys", "change connection ID", "rebind"],
            ]
        ),
        by_client=st.booleans(),
        amount=st.sampled_from([1, 50, 1000, 1170, 5000, 60_000, 300_000]),
        pause=st.sampled_from([0.0, 0.0, 0.001, 0.015, 0.1]),
    ),
    min_size=1,
    max_size=25,
)
wires = st.builds(
    Wire,
    seed=st.integers(0, 2**16),
    loss=st.sampled_from([0.0, 0.0, 0.02, 0.1]),
    jitter=st.sampled_from([0.0, 0.0, 0.004]),
    warm=st.booleans(),
)
sizes = st.sampled_from([1200, 1452, 9000])


class Program:
    """Runs the steps on a pair of engines, and remembers the results."""

    def __init__(self, size: int, wire: Wire, *, in_runs: bool = True) -> None:
        config = TransportConfig(max_udp_payload_size=size)
        self.pair = EnginePair(client_config=config, server_config=config).connect()
        self.pair.in_runs = in_runs
        self.pair.run(1.0)
        assert self.pair.server is not None
        self.sides = {True: self.pair.client, False: self.pair.server}
        if wire.warm:
            self.pair.batching = 0.01
            for side in self.sides.values():
                self.warm_up(side)
        self.written: dict[tuple[bool, int], bytes] = {}
        self.ended: dict[tuple[bool, int], str] = {}
        self.stopped: set[tuple[bool, int]] = set()
        generator = random.Random(wire.seed)
        self.pair.drop = lambda destination, data: generator.random() < wire.loss
        self.pair.jitter = lambda: generator.random() * wire.jitter
        self.port = 6000

    def warm_up(self, side: Side) -> None:
        stream_id = side.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        for _ in range(WARM_UP_ROUNDS):
            side.engine.write(stream_id, bytes(WARM_UP_BYTES))
            self.pair.run(0.1)
        side.engine.write(stream_id, b"", end_stream=True)
        self.pair.run(0.2)

    def run(self, program: list[Step]) -> None:
        for step in program:
            self.do(step)
            if step.pause:
                self.pair.run(step.pause)
        self.pair.drop = lambda destination, data: False
        for side in self.sides.values():
            side.engine.send_ping(99)  # with the newest keys
        # Less than the idle timeout, after which all counters are 0 anyway.
        self.pair.run(25.0)

    def do(self, step: Step) -> None:
        side = self.sides[step.by_client]
        engine = side.engine
        own = [
            stream_id
            for (by_client, stream_id) in self.written
            if by_client is step.by_client
            and (by_client, stream_id) not in self.ended
            and stream_id in stream_ids(engine)
            and not stream_facts(engine, stream_id).was_reset  # by the peer's STOP_SENDING
        ]
        key = (step.by_client, own[step.amount % len(own)]) if own else None
        if step.action == "open" or (step.action == "write" and key is None):
            stream_id = engine.open_stream(unidirectional=step.amount % 2 == 0)
            if stream_id is not None:
                self.written[step.by_client, stream_id] = b""
                engine.write(stream_id, b"")
                key = step.by_client, stream_id
        if step.action == "write" and key is not None:
            size = min(step.amount, engine.send_room(key[1], step.amount))
            data = random.Random(len(self.written[key])).randbytes(size)
            self.written[key] += data
            engine.write(key[1], data)
        elif step.action == "finish" and key is not None:
            engine.write(key[1], b"", end_stream=True)
            self.ended[key] = "finished"
        elif step.action == "reset" and key is not None:
            engine.reset_sending(key[1], step.amount)
            self.ended[key] = "reset"
        elif step.action == "stop":
            received = sorted(side.received)
            if received:
                stream_id = received[step.amount % len(received)]
                engine.stop_receiving(stream_id, 9)
                self.stopped.add((not step.by_client, stream_id))
        elif step.action == "datagram":
            engine.send_datagram(bytes(min(step.amount, 1000)))
        elif step.action == "ping":
            engine.send_ping(step.amount)
        elif step.action == "update keys":
            if engine.can_update_keys:
                engine.update_keys()
        elif step.action == "change connection ID":
            if spare_connection_ids(engine):
                change_connection_id(engine)
        elif step.action == "rebind":
            self.port += 1
            self.pair.client.address = (CLIENT, self.port)

    def check_accounts(self) -> None:
        """Check that the counters of both sides agree when all has come to rest."""
        for by_client, side in self.sides.items():
            engine, other = side.engine, self.sides[not by_client].engine
            assert not side.of(events.Terminated)
            facts = statistics(engine)
            assert facts.bytes_in_flight == 0
            assert ack_eliciting_in_flight(engine) == packets_in_flight(engine) == 0
            assert facts.send_buffer_bytes == unsent_bytes(engine) == 0
            assert not has_streams_to_send(engine)
            assert not engine.has_unacknowledged_streams
            assert data_sent(engine) == credit_used(other)
            assert facts.stream_bytes_read == credit_used(engine)
            assert max_data(engine) == credit_granted(other)
            assert key_phase(engine) == key_phase(other)
            for stream_id in set(stream_ids(engine)) & set(stream_ids(other)):
                stream = stream_facts(engine, stream_id)
                if not stream.is_over:
                    assert stream.sent == stream_facts(other, stream_id).received

    def outcome(self) -> dict[str, Any]:
        """The application's view, and the counters that do not depend on packets."""
        result: dict[str, Any] = {}
        for by_client, side in self.sides.items():
            facts = statistics(side.engine)
            result[f"{by_client} counters"] = (
                facts.stream_bytes_sent,
                facts.stream_bytes_received,
                facts.stream_bytes_read,
                facts.stream_bytes_acknowledged,
                facts.datagrams_received,
                credit_used(side.engine),
                facts.streams_opened,
                facts.streams_accepted,
                facts.send_buffer_bytes,
                facts.bytes_in_flight,
            )
            result[f"{by_client} ended"] = [
                type(event.error) for event in side.of(events.Terminated)
            ]
        for (by_client, stream_id), state in self.ended.items():
            if state == "finished":
                reader = self.sides[not by_client]
                result[f"{by_client} {stream_id}"] = bytes(reader.received.get(stream_id, b""))
        return result


@given(program=steps, wire=wires, size=sizes)
@examples(60)
def test_any_program_has_the_same_outcome_in_runs_and_singly(
    program: list[Step], wire: Wire, size: int
) -> None:
    outcomes = []
    for in_runs in (True, False):
        one = Program(size, wire, in_runs=in_runs)
        one.run(program)
        note(f"in_runs={in_runs} {one.outcome()}")
        for (by_client, stream_id), state in one.ended.items():
            if state == "finished" and (by_client, stream_id) not in one.stopped:
                reader = one.sides[not by_client]
                assert reader.received.get(stream_id, b"") == one.written[by_client, stream_id]
        one.check_accounts()
        outcomes.append(one.outcome())
    # The place where a reset or a stop catches its stream depends on the packets, and so do
    # losses: a late packet for a retired connection ID is one.
    unlike = {"stop", "reset", *(["change connection ID"] if wire.jitter else [])}
    if wire.loss == 0.0 and not {step.action for step in program} & unlike:
        assert outcomes[0] == outcomes[1]


def test_on_a_warm_connection_packets_arrive_in_long_runs() -> None:
    """Without this, the test above would compare runs of one or two packets."""
    program = Program(1200, Wire(1, 0.0, 0.0, warm=True))
    server, lengths = program.sides[False].engine, []
    receive_run = server.receive_run

    def note_length(data: Any, start: int, size: int, *rest: Any) -> int:
        end = receive_run(data, start, size, *rest)
        lengths.append((end - start) // size)
        return end

    intercept(server, "receive_run", note_length)
    program.run([Step("write", by_client=True, amount=300_000, pause=0.1)])
    assert sum(length for length in lengths if length >= 32) > 150


@pytest.mark.parametrize("size", [1200, 1452, 9000, 65_507])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_bulk_data_goes_both_ways_in_runs(size: int, loss: float) -> None:
    program = Program(size, Wire(seed=1, loss=loss, jitter=0.0, warm=True))
    sent = {}
    runs = {}
    for by_client, side in program.sides.items():
        runs[by_client] = note_runs(side)
        sent[by_client] = send_bulk(side, 1_000_000)
    program.pair.run(30.0)
    for by_client, (stream_id, content) in sent.items():
        assert program.sides[not by_client].received[stream_id] == content
        # (After the first burst, the pacer of a clock that is never late gives few at a time.)
        assert loss or max(runs[by_client]) >= min(32, 65_507 // size)
    if not loss:
        program.check_accounts()


def note_runs(side: Side) -> list[int]:
    """Record the number of datagrams in each run of the engine from now on."""
    lengths: list[int] = []
    transmit = side.engine.transmit

    def watched(now: float, slab: bytearray | None = None) -> Any:
        runs = transmit(now, slab)
        lengths.extend(len(data) // size for data, _, size, _ in runs)
        return runs

    intercept(side.engine, "transmit", watched)
    return lengths


@pytest.mark.parametrize("suite", [AES_128, AES_256, CHACHA20])
@in_runs_or_singly
def test_bulk_data_comes_through_with_each_cipher(suite: int, in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs, max_udp_payload_size=1452)
    for side in (client, server):
        use_cipher(side.engine, suite)
    sides = (client, server), (server, client)
    sent = [(reader, *send_bulk(side, 200_000)) for side, reader in sides]
    pair.run(2.0)
    client.engine.update_keys()
    sent += [(reader, *send_bulk(side, 100_001)) for side, reader in sides]
    pair.run(5.0)
    for reader, stream_id, data in sent:
        assert reader.received[stream_id] == data
    assert key_phase(server.engine) == 1
    assert statistics(client.engine).packets_lost == 0


# ------------------------------------------------------------------ content of a run


def send_bulk(side: Side, size: int = 200_000) -> tuple[int, bytes]:
    """Write this much to a new stream, with its end; returns its ID and the data."""
    stream_id = side.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(size).randbytes(size)
    side.engine.write(stream_id, data, end_stream=True)
    return stream_id, data


def sent_now(pair: EnginePair, side: Side) -> list[bytes]:
    """Take the datagrams that a side has to send now, instead of delivering them."""
    result: list[bytes] = []
    for _ in range(50):
        side.engine.begin_pass()
        runs = side.engine.transmit(pair.now)
        result += take_apart(runs)
        if not runs:
            break
    return result


def run_of(datagrams: list[bytes]) -> tuple[bytes, int]:
    """The datagrams of the size of the first one, as a run, and that size."""
    size = len(datagrams[0])
    return b"".join(datagram for datagram in datagrams if len(datagram) == size), size


def deliver(pair: EnginePair, side: Side, data: bytes, size: int, source: Any) -> None:
    """Hand a run over, as the driver does."""
    at = 0
    while at < len(data):
        at = side.engine.receive_run(data, at, size, source, pair.now)
    side.gather(pair.now)


def test_datagrams_for_another_connection_id_go_back_to_the_driver() -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(client, 10_000)
    data, size = run_of(sent_now(pair, client))
    foreign = bytearray(data)
    foreign[3 * size + 1 : 3 * size + 9] = b"\xee" * 8
    reached = server.engine.receive_run(bytes(foreign), 0, size, client.address, pair.now)
    assert reached == 3 * size
    server.gather(pair.now)
    assert 0 < len(server.received[stream_id]) < 3 * size
    # A datagram for no ID of ours is taken, so that the driver goes on, and dropped.
    assert (
        server.engine.receive_run(bytes(foreign), reached, size, client.address, pair.now)
        == reached + size
    )
    pair.run(5.0)
    assert server.received[stream_id] == content


def test_a_peer_may_change_the_connection_id_within_a_run() -> None:
    """RFC 9000 section 9.5: it is answered with another one of its own IDs."""
    pair, client, server = established()
    stream_id, content = send_bulk(client, 5_000)
    before = sent_now(pair, client)
    change_connection_id(client.engine)
    other, more = send_bulk(client, 5_000)
    after = sent_now(pair, client)
    assert before[0][1:9] != after[-2][1:9]
    retired = len(client.of(events.ConnectionIdRetired))
    hand_over(pair, client, server, *before, *after)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert server.received[other] == more
    assert len(client.of(events.ConnectionIdRetired)) == retired + 1


def test_short_and_forged_datagrams_in_a_run_are_dropped() -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(client, 10_000)
    data, size = run_of(sent_now(pair, client))
    deliver(pair, server, data[:20], 20, client.address)
    deliver(pair, server, data[:60], 20, client.address)
    assert stream_id not in server.received
    forged = bytearray(data)
    forged[size + 200] ^= 1
    deliver(pair, server, bytes(forged) + data[:15], size, client.address)
    assert len(server.received[stream_id]) < 1500
    for bit in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20):
        other = bytearray(data)
        other[0] ^= bit
        deliver(pair, server, bytes(other[:size]), size, client.address)
    assert len(server.received[stream_id]) < 1500
    deliver(pair, server, data, size, client.address)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert not server.of(events.Terminated)


@pytest.mark.parametrize("place", [0, 2])
def test_a_long_header_in_a_run_ends_it(place: int) -> None:
    """At least one datagram of a run is taken, otherwise the driver would go on for ever."""
    pair, client, server = established()
    stream_id, content = send_bulk(client, 10_000)
    data, size = run_of(sent_now(pair, client))
    assert len(data) > 3 * size
    long = bytearray(data)
    long[place * size] |= 0x80  # and our connection ID where a short header has it
    taken = server.engine.receive_run(bytes(long), 0, size, client.address, pair.now)
    assert taken == max(1, place) * size
    deliver(pair, server, bytes(long), size, client.address)
    deliver(pair, server, data, size, client.address)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert not server.of(events.Terminated)


def test_a_packet_without_the_fixed_bit_is_dropped() -> None:
    """RFC 9000 section 17.3.1."""
    pair, client, server = established()
    packets = [
        seal_short(client.engine, b"\x30%d234" % number, fixed_bit=number != 1)
        for number in range(3)
    ]
    hand_over(pair, client, server, *packets)
    assert [event.data[:1] for event in server.of(events.DatagramReceived)] == [b"0", b"2"]


@in_runs_or_singly
@pytest.mark.parametrize("order", ["old first", "new first", "mixed"])
@pytest.mark.parametrize("size", [1000, 9000])
def test_a_key_update_in_the_middle_of_a_run(in_runs: bool, order: str, size: int) -> None:
    pair, client, server = established(in_runs=in_runs, max_udp_payload_size=9500)
    frames = full_frames(2, 10, size)
    packets = [seal_short(client.engine, each) for each in frames[:5]]
    client.engine.update_keys()
    packets += [seal_short(client.engine, each) for each in frames[5:]]
    if order == "new first":
        packets = [*packets[5:], *packets[:5]]
    elif order == "mixed":
        packets = [*packets[:2], *packets[5:8], *packets[2:5], *packets[8:]]
    hand_over(pair, client, server, *packets)
    assert key_phase(server.engine) == 1
    assert ending(server) is None
    assert server.received[2] == b"".join(bytes((number,)) * size for number in range(10))


def frames_in(trace: list[dict[str, Any]], name: str) -> dict[int, Any]:
    """The frames of each packet, by its number."""
    return {
        each["header"]["packet_number"]: each["frames"]
        for each in trace
        if each["name"] == f"transport:{name}"
    }


@pytest.mark.parametrize("size", [1200, 9000])
def test_a_trace_has_each_packet_of_a_run_with_its_frames(size: int) -> None:
    pair, client, server = established(max_udp_payload_size=size)
    sent: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = []
    stream_id, content = send_bulk(client, 200_000)
    write_trace_into(client.engine, sent)
    write_trace_into(server.engine, received)
    pair.run(5.0)
    assert server.received[stream_id] == content
    told = [
        {each["header"]["packet_number"]: each["frames"] for each in trace if each["name"] == name}
        for trace, name in (
            (sent, "transport:packet_sent"),
            (received, "transport:packet_received"),
        )
    ]
    assert len(told[0]) >= 200_000 // size
    assert told[0] == told[1]
    offsets = [
        (each["offset"], each["length"])
        for frames in told[0].values()
        for each in frames
        if each["frame_type"] == "stream"
    ]
    assert sum(length for _, length in offsets) == len(content)


def full_frames(stream_id: int, count: int, size: int = 1000, start: int = 0) -> list[bytes]:
    """Consecutive STREAM frames of one size that fill their packets."""
    return [
        frame(0x0C, stream_id) + (at | 3 << 62).to_bytes(8, "big") + bytes((at // size,)) * size
        for at in range(start, start + count * size, size)
    ]


def seal_all(side: Side, frames: list[bytes]) -> Iterator[bytes]:
    """Seal packets of one size each; shorter payloads have PADDING in front."""
    size = max(map(len, frames))
    for each in frames:
        yield seal_short(side.engine, each.rjust(size, b"\0"))


@in_runs_or_singly
def test_other_frames_between_those_of_a_stream_are_taken_in_their_order(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    frames = full_frames(2, 6)
    frames[3:3] = [b"\x30datagram", stream_frame(6, 0, b"other"), b"\x01"]
    frames += [
        b"",
        reset_frame(2, 6000, 3),
        *full_frames(10, 3),
        stream_frame(10, 3000, b"", fin=True),
    ]
    hand_over(pair, client, server, *seal_all(client, frames))
    assert server.received[2] == b"".join(bytes((number,)) * 1000 for number in range(6))
    assert server.received[6] == b"other"
    assert len(server.received[10]) == 3000
    order = [
        (type(event), getattr(event, "stream_id", -1))
        for event in server.log
        if isinstance(
            event, events.StreamDataReceived | events.DatagramReceived | events.StreamResetReceived
        )
    ]
    assert list(dict.fromkeys(order)) == [
        (events.StreamDataReceived, 2),
        (events.DatagramReceived, -1),
        (events.StreamDataReceived, 6),
        (events.StreamResetReceived, 2),
        (events.StreamDataReceived, 10),
    ]
    assert order[-1] == (events.StreamDataReceived, 10)
    assert server.of(events.StreamDataReceived)[-1].end_stream
    assert ending(server) is None


@in_runs_or_singly
@pytest.mark.parametrize("between", [b"\x30datagram", reset_frame(2, 20_000)])
@pytest.mark.parametrize("size", [1000, 9000])
def test_an_unknown_frame_is_never_taken_for_stream_data(
    in_runs: bool, between: bytes, size: int
) -> None:
    pair, client, server = established(in_runs=in_runs, max_udp_payload_size=9500)
    unknown = b"\xff" * (size + 10)
    frames = [*full_frames(2, 2, size), between, unknown]
    hand_over(pair, client, server, *seal_all(client, frames))
    assert "FRAME_ENCODING_ERROR" in str(ending(server))
    assert len(server.received[2]) == 2 * size


@in_runs_or_singly
@pytest.mark.parametrize("at", range(4))
def test_reserved_bits_are_found_wherever_they_are_in_a_run(in_runs: bool, at: int) -> None:
    """RFC 9000 section 17.3.1: also in a packet with the expected content."""
    pair, client, server = established(in_runs=in_runs)
    packets = [
        seal_short(client.engine, each, reserved_bits=3 if number == at else 0)
        for number, each in enumerate(full_frames(2, 4))
    ]
    hand_over(pair, client, server, *packets)
    assert "PROTOCOL_VIOLATION" in str(ending(server))


@in_runs_or_singly
def test_packet_numbers_of_every_length_may_stand_in_a_run(in_runs: bool) -> None:
    pair, client, server = established(in_runs=in_runs)
    packets = []
    content = b""
    for number in range(40):
        width = 1 + number % 4
        data = bytes((number,)) * (1000 - width)
        head = frame(0x0C, 2) + (len(content) | 3 << 62).to_bytes(8, "big")
        packets.append(seal_short(client.engine, head, data, number_size=width))
        content += data
    assert len({len(each) for each in packets}) == 1
    hand_over(pair, client, server, *packets)
    assert server.received[2] == content
    assert received_ranges(server.engine)[-1].stop == next_packet_number(client.engine)


# ------------------------------------------------------------------ arbitrary content


def mutate(generator: random.Random, data: bytes, size: int) -> tuple[bytes, int]:
    """Bits flipped, pieces cut out, doubled, swapped; other segment sizes."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        kind = generator.randrange(5)
        at = generator.randrange(len(changed)) if changed else 0
        if kind == 0 and changed:
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[at : at + generator.randint(1, 50)]
        elif kind == 2:
            changed = changed[:at]
        elif kind == 3:
            start = generator.randrange(max(1, len(data) // size)) * size
            changed += data[start : start + size]
        else:
            changed[at:at] = generator.randbytes(generator.randint(1, 30))
    if generator.random() < 0.3:
        size = generator.randint(1, size + 20)
    return bytes(changed) or b"\0", size


@given(seed=st.integers(0, 2**32))
@examples(60)
def test_mutated_runs_change_nothing(seed: int) -> None:
    """No exception, no lost state, nothing believed: then the true datagrams go through."""
    generator = random.Random(seed)
    pair, client, server = established()
    stream_id, content = send_bulk(client, generator.choice([3_000, 11_000, 13_000]))
    true = sent_now(pair, client)
    data, size = run_of(true)
    for _ in range(30):
        wrong, wrong_size = mutate(generator, data, size)
        deliver(pair, server, wrong, wrong_size, client.address)
        received = bytes(server.received.get(stream_id, b""))
        assert content.startswith(received)
        assert not server.of(events.Terminated)
        assert not server.engine.is_ending
    for datagram in true:
        deliver(pair, server, datagram, len(datagram), client.address)
    pair.run(10.0)
    assert server.received[stream_id] == content
    reply, answer = send_bulk(server, 30_000)
    pair.run(10.0)
    assert client.received[reply] == answer


@given(
    payload=st.binary(min_size=0, max_size=200),
    is_stream=st.booleans(),
    before=st.integers(0, 2),
    size=st.sampled_from([250, 8300]),
)
@examples(300)
def test_any_authentic_payload_has_the_same_outcome_in_runs_and_singly(
    payload: bytes, is_stream: bool, before: int, size: int
) -> None:
    """A peer with the keys can send anything, also between other packets of a run."""
    if is_stream:
        payload = b"\x0a\x00" + bytes((len(payload) & 0x3F,)) + payload
    results = []
    for in_runs in (True, False):
        pair, client, server = established(in_runs=in_runs, max_udp_payload_size=9000)
        frames = full_frames(0, 4, size)
        frames[before:before] = [payload]
        hand_over(pair, client, server, *seal_all(client, frames))
        code = close_code(server.engine)
        result = {
            "close": code,
            "received": {key: bytes(value) for key, value in server.received.items()},
            "used": credit_used(server.engine),
            "limit": max_data(server.engine),
            "sent": len(remembered_packets(server.engine)),
            "numbers": received_ranges(server.engine) if code is None else [],
            "streams": sorted(stream_ids(server.engine)),
            "events": [type(event) for event in server.log if not isinstance(event, UNORDERED)],
        }
        assert code is None or code[0] != INTERNAL_ERROR
        results.append(result)
    assert results[0] == results[1]
