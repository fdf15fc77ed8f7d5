"""The batched path against aioquic's own code: the same inputs, the same outcome."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events, fast_path, fast_receive, fast_send, small_packet
from tests.engine_access import (
    ack_eliciting_in_flight,
    change_connection_id,
    close_code,
    credit_granted,
    credit_used,
    data_sent,
    has_streams_to_send,
    intercept,
    max_data,
    packets_in_flight,
    remembered_packets,
    spare_connection_ids,
    statistics,
    stream_facts,
    stream_ids,
    unsent_bytes,
)
from tests.engine_packets import key_phase, seal_short
from tests.fast_path_access import (
    begin_ending,
    bulk_packets,
    doubt_handshake,
    doubt_path,
    fallbacks,
    has_bulk_turn,
    have_early_keys,
    take_frames,
    use_chacha20,
    write_a_trace,
)
from tests.support import CLIENT, EnginePair, Side, examples, take_apart

#: What a warm connection has carried each way before its program begins: enough for a
#: congestion window of some hundred packets.
WARM_UP_ROUNDS = 3
WARM_UP_BYTES = 200_000


# ------------------------------------------------------------------ arbitrary programs


@attrs.frozen
class Step:
    """One thing which one side does, and how long to wait then."""

    action: str
    by_client: bool
    amount: int
    pause: float


@attrs.frozen
class Wire:
    """What happens to datagrams."""

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
    """Runs the steps on a pair of engines, and remembers what came of it."""

    def __init__(self, size: int, wire: Wire, *, fast: bool, in_runs: bool) -> None:
        config = TransportConfig(max_udp_payload_size=size, enable_fast_path=fast)
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
        """When all has come to rest, whatever happened: the books balance on both sides."""
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
        """All that the application sees, and the counters which do not depend on packets."""
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
def test_both_paths_deliver_the_same(program: list[Step], wire: Wire, size: int) -> None:
    outcomes = []
    for fast, in_runs in ((True, True), (True, False), (False, False)):
        one = Program(size, wire, fast=fast, in_runs=in_runs)
        one.run(program)
        for side in one.sides.values():
            note(f"fast={fast} in_runs={in_runs} {dict(fallbacks(side.engine))}")
        for (by_client, stream_id), state in one.ended.items():
            if state == "finished" and (by_client, stream_id) not in one.stopped:
                reader = one.sides[not by_client]
                assert reader.received.get(stream_id, b"") == one.written[by_client, stream_id]
        one.check_accounts()
        outcomes.append(one.outcome())
    # Where a reset or a stop catches its stream depends on the packets, and so do losses: what
    # comes late for a connection ID which was retired meanwhile is one.
    unlike = {"stop", "reset", *(["change connection ID"] if wire.jitter else [])}
    if wire.loss == 0.0 and not {step.action for step in program} & unlike:
        assert outcomes[0] == outcomes[1] == outcomes[2]


def test_on_a_warm_connection_packets_arrive_in_long_runs() -> None:
    """Without this, the test above would compare runs of one or two packets."""
    program = Program(1200, Wire(1, 0.0, 0.0, warm=True), fast=True, in_runs=True)
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
def test_bulk_data_takes_the_fast_path_both_ways(size: int, loss: float) -> None:
    program = Program(size, Wire(seed=1, loss=loss, jitter=0.0), fast=True, in_runs=True)
    pair = program.pair
    assert pair.server is not None
    content = {}
    for by_client, side in program.sides.items():
        stream_id = side.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        content[by_client] = random.Random(size).randbytes(1_000_000)
        side.engine.write(stream_id, content[by_client], end_stream=True)
    pair.run(30.0)
    for by_client, side in program.sides.items():
        (received,) = program.sides[not by_client].received.values()
        assert received == content[by_client]
        assert bulk_packets(side.engine) >= 1_000_000 // size * 0.8


# ------------------------------------------------------------------ every reason once


def established(**arguments: Any) -> tuple[EnginePair, Side, Side]:
    pair = EnginePair(**arguments).connect()
    pair.run(1.0)
    assert pair.server is not None
    return pair, pair.client, pair.server


def send_bulk(pair: EnginePair, side: Side, size: int = 200_000) -> tuple[int, bytes]:
    stream_id = side.engine.open_stream(unidirectional=True)
    assert stream_id is not None
    data = random.Random(size).randbytes(size)
    side.engine.write(stream_id, data, end_stream=True)
    return stream_id, data


@pytest.mark.parametrize(
    ("reason", "provoke"),
    [
        ("send: ending", begin_ending),
        ("send: path", doubt_path),
        ("send: handshake", doubt_handshake),
        ("send: key update", lambda engine: engine.update_keys()),
    ],
)
def test_why_a_run_is_not_built(reason: str, provoke: Callable[[Any], Any]) -> None:
    pair, client, server = established()
    undo = provoke(client.engine)
    stream_id, data = send_bulk(pair, client)
    assert not has_bulk_turn(client.engine, stream_id)
    assert fallbacks(client.engine)[reason] == 1
    if undo is not None:
        undo()
    pair.run(5.0)
    assert server.received[stream_id] == data
    assert bulk_packets(client.engine) > 50, "and then it goes on fast"


def test_why_a_run_is_not_built_with_another_cipher() -> None:
    pair, client, server = established()
    for engine in (client.engine, server.engine):
        use_chacha20(engine)
    stream_id, data = send_bulk(pair, client)
    pair.run(5.0)
    assert server.received[stream_id] == data
    assert bulk_packets(client.engine) == 0
    assert fallbacks(client.engine)["send: cipher"]
    assert fallbacks(server.engine)["receive: cipher"]


def test_the_setting_switches_it_off() -> None:
    config = TransportConfig(enable_fast_path=False)
    pair, client, server = established(client_config=config, server_config=config)
    stream_id, data = send_bulk(pair, client)
    pair.run(5.0)
    assert server.received[stream_id] == data
    assert bulk_packets(client.engine) == 0
    assert fallbacks(server.engine)["receive: disabled"]


class Wiretap:
    """Collects what one side sends instead of delivering it."""

    def __init__(self, pair: EnginePair, side: Side) -> None:
        self.pair = pair
        self.side = side

    def datagrams(self) -> list[bytes]:
        result = []
        for _ in range(50):
            self.side.engine.begin_pass()
            runs = self.side.engine.transmit(self.pair.now)
            result += take_apart(runs)
            if not runs:
                break
        return result


def run_of(datagrams: list[bytes]) -> tuple[bytes, int]:
    """The longest run of equal size at the front."""
    size = len(datagrams[0])
    same = [datagram for datagram in datagrams if len(datagram) == size]
    return b"".join(same), size


def deliver(pair: EnginePair, side: Side, data: bytes, size: int, source: Any) -> None:
    at = 0
    while at < len(data):
        at = side.engine.receive_run(data, at, size, source, pair.now)
    side.gather(pair.now)


@pytest.mark.parametrize(
    ("reason", "provoke"),
    [
        ("receive: handshake", doubt_handshake),
        ("receive: path", doubt_path),
        ("receive: ending", begin_ending),
    ],
)
def test_why_a_run_is_not_read_at_once(reason: str, provoke: Callable[[Any], Any]) -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(pair, client, 10_000)
    data, size = run_of(Wiretap(pair, client).datagrams())
    undo = provoke(server.engine)
    deliver(pair, server, data, size, client.address)
    assert fallbacks(server.engine)[reason] >= 1
    undo()
    pair.run(5.0)
    assert server.received[stream_id] == content


def test_a_run_with_early_data_keys_still_about_is_read_the_long_way() -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(pair, client, 10_000)
    data, size = run_of(Wiretap(pair, client).datagrams())
    are_there = have_early_keys(server.engine)
    deliver(pair, server, data, size, client.address)
    assert fallbacks(server.engine)["receive: early data"] == 1
    assert not are_there(), "and these keys are gone with the first 1-RTT packet"
    pair.run(5.0)
    assert server.received[stream_id] == content


def test_qlog_sees_every_packet_by_itself() -> None:
    pair, client, server = established()
    for engine in (client.engine, server.engine):
        write_a_trace(engine)
    stream_id, content = send_bulk(pair, client, 50_000)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert fallbacks(client.engine)["send: qlog"]
    assert fallbacks(server.engine)["receive: qlog"]


def test_datagrams_for_another_connection_id_go_back_to_the_driver() -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(pair, client, 10_000)
    data, size = run_of(Wiretap(pair, client).datagrams())
    count = fallbacks(server.engine)["receive: connection ID"]
    foreign = bytearray(data)
    foreign[3 * size + 1 : 3 * size + 9] = b"\xee" * 8
    reached = server.engine.receive_run(bytes(foreign), 0, size, client.address, pair.now)
    assert reached == 3 * size
    assert fallbacks(server.engine)["receive: connection ID"] == count + 1
    # Another of our own IDs: aioquic notices that the peer has switched.
    change_connection_id(client.engine)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert fallbacks(server.engine)["receive: connection ID"] >= count + 2


def test_short_stunted_and_forged_datagrams_in_a_run() -> None:
    pair, client, server = established()
    stream_id, content = send_bulk(pair, client, 10_000)
    data, size = run_of(Wiretap(pair, client).datagrams())
    reasons = fallbacks(server.engine)
    deliver(pair, server, data[:20], 20, client.address)
    deliver(pair, server, data[:60], 20, client.address)
    assert reasons["receive: short"] >= 2
    forged = bytearray(data)
    forged[size + 200] ^= 1
    deliver(pair, server, bytes(forged) + data[:15], size, client.address)
    assert reasons["receive: not authentic"] == 1
    other_length = bytearray(data[:size])
    other_length[0] ^= 0x02  # the length of the packet number, as far as one can tell
    deliver(pair, server, bytes(other_length), size, client.address)
    assert reasons["receive: header"] == 1
    deliver(pair, server, data, size, client.address)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert not server.of(events.Terminated)


def test_a_long_header_in_front_of_a_run_is_taken_like_any_other_datagram() -> None:
    """At least one datagram of a run is taken, or whoever hands it over would go on for ever."""
    pair, client, server = established()
    stream_id, content = send_bulk(pair, client, 10_000)
    data, size = run_of(Wiretap(pair, client).datagrams())
    assert len(data) > size
    long = bytearray(data)
    long[0] |= 0x80  # and our connection ID where a short header has it
    taken = server.engine.receive_run(bytes(long), 0, size, client.address, pair.now)
    assert taken == size
    deliver(pair, server, data, size, client.address)
    pair.run(5.0)
    assert server.received[stream_id] == content
    assert not server.of(events.Terminated)


def test_a_key_update_in_the_middle_of_a_run() -> None:
    pair, client, server = established()
    first, before = send_bulk(pair, client, 5_000)
    old = Wiretap(pair, client).datagrams()
    client.engine.update_keys()
    second, after = send_bulk(pair, client, 5_000)
    new = Wiretap(pair, client).datagrams()
    data, size = run_of(old + new)
    deliver(pair, server, data, size, client.address)
    assert fallbacks(server.engine)["receive: header"] == 1
    pair.run(5.0)
    assert server.received[first] == before
    assert server.received[second] == after


def test_frames_which_are_rare_are_left_to_aioquic_and_what_stands_before_them_is_not() -> None:
    pair, client, server = established()
    count = fallbacks(server.engine)["receive: frames"]
    client.engine.send_datagram(b"first")
    change_connection_id(client.engine)  # says RETIRE_CONNECTION_ID
    pair.run(1.0)
    assert fallbacks(server.engine)["receive: frames"] > count
    assert [event.data for event in server.of(events.DatagramReceived)] == [b"first"]
    assert server.of(events.ConnectionIdRetired)


def test_pings_and_padding_are_no_reason_to_fall_back() -> None:
    pair, client, server = established()
    count = fallbacks(server.engine)["receive: frames"]
    client.engine.send_ping(1)
    pair.run(1.0)
    for plain, is_eliciting in ((b"\x00", False), (b"\x00\x00\x01\x00", True), (bytes(900), False)):
        assert take_frames(server.engine, plain, pair.now) is is_eliciting
    assert fallbacks(server.engine)["receive: frames"] == count
    assert [event.uid for event in client.of(events.PingAcknowledged)] == [1]


def test_no_reason_is_left_out_here() -> None:
    """Whoever adds a reason to fall back adds a test which provokes it."""
    source = "".join(map(inspect.getsource, (fast_path, fast_receive, fast_send, small_packet)))
    reasons = set(re.findall(r'return "([a-zA-Z ]+)"|"receive: ([a-zA-Z ]+)"', source))
    reasons |= set(re.findall(r'reason: str \| None = "(\w+)"()', source))
    reasons |= set(re.findall(r'reason = "([a-zA-Z ]+)"()', source))
    found = {first or second for first, second in reasons}
    assert found >= {"handshake", "ending", "path", "cipher", "connection ID", "disabled"}
    tested = Path(__file__).read_text()
    for reason in found:
        assert re.search(rf'"(send|receive): {reason}"', tested), reason


# ------------------------------------------------------------------ hostile input


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
    stream_id, content = send_bulk(pair, client, generator.choice([3_000, 11_000, 13_000]))
    true = Wiretap(pair, client).datagrams()
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
    reply, answer = send_bulk(pair, server, 30_000)
    pair.run(10.0)
    assert client.received[reply] == answer


@given(payload=st.binary(min_size=0, max_size=200), streams=st.booleans())
@examples(300)
def test_any_authentic_payload_ends_in_the_same_way_on_both_paths(
    payload: bytes, streams: bool
) -> None:
    """A peer which has the keys can send anything: the same error, or the same data."""
    results = []
    for fast in (True, False):
        config = TransportConfig(enable_fast_path=fast)
        pair, client, server = established(client_config=config, server_config=config)
        plain = (b"\x0a\x00" + bytes([len(payload) & 0x3F]) if streams else b"") + payload
        if not plain:
            return
        packet = seal_short(client.engine, plain)
        deliver(pair, server, packet, len(packet), client.address)
        results.append(
            (
                close_code(server.engine),
                {k: bytes(v) for k, v in server.received.items()},
                sorted(stream_ids(server.engine)),
                credit_used(server.engine),
                max_data(server.engine),
                len(remembered_packets(server.engine)),
                [type(event) for event in server.log if not isinstance(event, events.SendProgress)],
            )
        )
    assert results[0] == results[1]
