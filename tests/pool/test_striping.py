"""Striping without any I/O: any split, any loss of connections; the bytes arrive once, in order."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from hypothesis import given, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from phoenix_trio.pool.striping import (
    Arrival,
    Ranges,
    ReassemblyWindow,
    SendingPlan,
    Stripe,
    StripeRefused,
    choose_stripe_size,
)
from phoenix_trio.pool.transfer_errors import TransferCode
from phoenix_trio.pool.transfer_records import (
    Accepted,
    Credit,
    End,
    Manifest,
    Received,
    Record,
    Skipped,
    Verdict,
    decode_record,
    encode_record,
    split_ranges,
)
from phoenix_trio.pool.transfer_source import open_source
from phoenix_trio.streams.framing import FramingError
from tests.support import examples

STRIPE = 1024

# ------------------------------------------------------------------ sets of offsets


@examples(200)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)), max_size=30))
def test_ranges_are_a_set(pairs: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for start, length in pairs:
        new = set(range(start, start + length)) - model
        assert ranges.add(start, start + length) == len(new)
        model |= new
        assert ranges.total == len(model)
        assert {n for a, b in ranges for n in range(a, b)} == model
        assert all(a < b for a, b in ranges)
        assert all((n in ranges) == (n in model) for n in range(80))


@pytest.mark.parametrize("size", [None, 0, 1, 10**6, 10**8, 10**12])
@pytest.mark.parametrize("members", [1, 10, 100])
def test_a_chosen_stripe_size_is_a_power_of_two_within_bounds(
    size: int | None, members: int
) -> None:
    stripe = choose_stripe_size(size, members)
    assert 64 * 1024 <= stripe <= 1024 * 1024
    assert stripe & (stripe - 1) == 0


# ------------------------------------------------------------------ earlier attempts


def arrive(window: ReassemblyWindow, offset: int, data: bytes) -> None:
    arrival = window.begin(offset, len(data))
    arrival.append(data)
    window.complete(arrival)


def test_what_an_earlier_attempt_has_left_counts_as_consumed() -> None:
    window = ReassemblyWindow(stripe_size=STRIPE, window=8 * STRIPE, size=9 * STRIPE + 5)
    arrive(window, STRIPE, bytes(STRIPE))
    arrive(window, 5 * STRIPE, b"5" * STRIPE)
    late = window.begin(2 * STRIPE, STRIPE)
    window.take_new_ranges()
    window.restore(4 * STRIPE)
    assert window.received == 5 * STRIPE
    assert window.memory == STRIPE
    assert window.limit == 12 * STRIPE
    assert window.take_new_ranges() == [(0, 4 * STRIPE)]
    late.append(bytes(STRIPE))
    assert not window.complete(late)
    assert window.memory == STRIPE
    assert window.take() is None
    arrive(window, 4 * STRIPE, b"4" * STRIPE)
    taken = [arrival.offset for arrival in iter(window.take, None)]
    assert taken == [4 * STRIPE, 5 * STRIPE]
    with pytest.raises(ValueError, match="cannot be restored"):
        window.restore(0)


def test_a_whole_transfer_may_be_left_of_an_earlier_attempt() -> None:
    window = ReassemblyWindow(stripe_size=STRIPE, window=8 * STRIPE, size=STRIPE + 5)
    for wrong in (5, STRIPE + 4):
        with pytest.raises(ValueError, match="cannot be restored"):
            window.restore(wrong)
    window.restore(STRIPE + 5)
    assert window.is_complete


def test_a_transfer_which_ends_before_what_is_left_of_it_is_wrong() -> None:
    window = ReassemblyWindow(stripe_size=STRIPE, window=8 * STRIPE)
    window.restore(3 * STRIPE)
    with pytest.raises(StripeRefused, match="has stripes up to"):
        window.finish(2 * STRIPE)


def test_a_plan_knows_whether_everything_was_sent() -> None:
    plan = SendingPlan(stripe_size=STRIPE, window=8 * STRIPE)
    plan.extend_credit(8 * STRIPE)
    plan.receive(0, STRIPE)
    for _ in range(3):
        plan.add(bytes(STRIPE))
    plan.take("m", STRIPE)
    plan.finish()
    assert not plan.all_sent
    plan.take("n", STRIPE)
    assert plan.all_sent
    plan.lose("n")
    plan.take("m", 9 * STRIPE)
    assert plan.all_sent
    assert plan.bytes_sent_once == 2 * STRIPE
    assert plan.bytes_sent_again == STRIPE


# ------------------------------------------------------------------ both halves together


class Striping(RuleBasedStateMachine):
    """A sender, a receiver, and streams between them that deliver in any order."""

    @initialize(
        size=st.integers(0, 40 * STRIPE),
        send_window=st.integers(1, 12),
        receive_window=st.integers(1, 12),
        known=st.booleans(),
    )
    def begin(self, size: int, send_window: int, receive_window: int, known: bool) -> None:
        self.data = os.urandom(size)
        self.read = 0
        announced = size if known else None
        self.plan = SendingPlan(stripe_size=STRIPE, window=send_window * STRIPE, size=announced)
        self.window = ReassemblyWindow(
            stripe_size=STRIPE, window=receive_window * STRIPE, size=announced
        )
        self.members = ["m0", "m1", "m2"]
        self.number = 3
        # The stripes on each member's stream, and how far the other end has read them.
        self.streams: dict[str, list[tuple[Stripe, Arrival | None, int]]] = {
            member: [] for member in self.members
        }
        self.acknowledgements: list[tuple[int, int]] = []
        self.output = bytearray()
        self.plan.extend_credit(self.window.limit)

    @rule(count=st.integers(1, 5))
    def read_source(self, count: int) -> None:
        for _ in range(count):
            if self.plan.end is None and self.plan.room:
                piece = self.data[self.read : self.read + STRIPE]
                self.read += len(piece)
                if piece:
                    self.plan.add(piece)
                if self.read == len(self.data):
                    self.plan.finish()
                    self.window.finish(len(self.data))

    @rule(which=st.integers(0, 20), allowance=st.integers(1, 5))
    def give_out(self, which: int, allowance: int) -> None:
        member = self.members[which % len(self.members)]
        stripe = self.plan.take(member, allowance * STRIPE)
        if stripe is not None:
            self.streams[member].append((stripe, None, 0))

    @rule(which=st.integers(0, 20), size=st.integers(1, 2 * STRIPE))
    def deliver(self, which: int, size: int) -> None:
        stream = self.streams[self.members[which % len(self.members)]]
        if not stream:
            return
        stripe, arrival, done = stream[0]
        if arrival is None:
            arrival = self.window.begin(stripe.offset, len(stripe.data))
        piece = bytes(stripe.data[done : done + size])
        arrival.append(piece)
        done += len(piece)
        if done < len(stripe.data):
            stream[0] = stripe, arrival, done
            return
        stream.pop(0)
        self.window.complete(arrival)

    @rule(which=st.integers(0, 20), heard=st.booleans())
    def lose(self, which: int, heard: bool) -> None:
        member = self.members[which % len(self.members)]
        note(f"lose {member}")
        for _, arrival, _ in self.streams.pop(member):
            if arrival is not None:
                self.window.drop(arrival)
        self.plan.lose(member)
        self.members.remove(member)
        self.members.append(f"m{self.number}")
        self.streams[self.members[-1]] = []
        self.number += 1
        if not heard:
            # The line was on it: acknowledgements on their way are sent again.
            self.acknowledgements.clear()
            self.window.repeat_all_ranges()

    @rule()
    def acknowledge(self) -> None:
        self.acknowledgements += self.window.take_new_ranges()

    @rule()
    def hear(self) -> None:
        for start, stop in self.acknowledgements:
            self.plan.receive(start, stop)
        self.acknowledgements.clear()
        self.plan.extend_credit(self.window.limit)

    @rule(count=st.integers(1, 4))
    def consume(self, count: int) -> None:
        for _ in range(count):
            arrival = self.window.take()
            if arrival is None:
                return
            while piece := arrival.buffer.take(500):
                self.output += piece
                self.window.consume(len(piece))

    @invariant()
    def memory_is_bounded(self) -> None:
        if not hasattr(self, "plan"):
            return
        assert self.plan.kept <= self.plan.window
        assert self.window.memory <= self.window.window + STRIPE
        assert bytes(self.output) == self.data[: len(self.output)]
        assert self.plan.acknowledged <= self.window.received

    def teardown(self) -> None:
        if not hasattr(self, "plan"):
            return
        for _ in range(200):
            self.read_source(20)
            for index in range(len(self.members)):
                self.give_out(index, 3)
                self.deliver(index, 2 * STRIPE)
            self.acknowledge()
            self.hear()
            self.consume(10)
            if self.plan.is_complete and self.window.is_complete:
                break
        assert bytes(self.output) == self.data
        assert self.plan.is_complete
        assert self.plan.kept == 0
        assert self.window.memory == 0


def test_the_bytes_arrive_once_and_in_order_whatever_happens() -> None:
    run_state_machine_as_test(Striping, settings=examples(150))


# ------------------------------------------------------------------ hostile halves


@pytest.mark.parametrize(
    ("offset", "length", "code"),
    [
        (1, STRIPE, TransferCode.MALFORMED),
        (0, STRIPE + 1, TransferCode.MALFORMED),
        (0, 0, TransferCode.MALFORMED),
        (4 * STRIPE, STRIPE, TransferCode.BEYOND_CREDIT),
        (2**61, STRIPE, TransferCode.BEYOND_CREDIT),
    ],
)
def test_a_receiver_refuses_what_is_no_stripe(offset: int, length: int, code: TransferCode) -> None:
    window = ReassemblyWindow(stripe_size=STRIPE, window=4 * STRIPE)
    with pytest.raises(StripeRefused) as caught:
        window.begin(offset, length)
    assert caught.value.code == code
    assert window.memory == 0


def test_a_receiver_refuses_two_ends_and_more_than_it_takes() -> None:
    window = ReassemblyWindow(stripe_size=STRIPE, window=4 * STRIPE, max_size=3 * STRIPE)
    window.begin(STRIPE, 10)  # short: the last one
    with pytest.raises(StripeRefused):
        window.begin(2 * STRIPE, STRIPE)
    with pytest.raises(StripeRefused):
        window.finish(STRIPE)
    window = ReassemblyWindow(stripe_size=STRIPE, window=9 * STRIPE, max_size=3 * STRIPE)
    with pytest.raises(StripeRefused) as caught:
        window.begin(3 * STRIPE, STRIPE)
    assert caught.value.code == TransferCode.TOO_LARGE


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (5, STRIPE), (0, 50 * STRIPE), (3 * STRIPE, STRIPE)]
)
def test_a_sender_refuses_acknowledgements_of_what_it_did_not_send(start: int, stop: int) -> None:
    plan = SendingPlan(stripe_size=STRIPE, window=8 * STRIPE, size=4 * STRIPE)
    for _ in range(4):
        plan.add(bytes(STRIPE))
    plan.finish()
    with pytest.raises(StripeRefused):
        plan.receive(start, stop)
    assert plan.acknowledged == 0


def test_a_source_must_come_in_whole_stripes() -> None:
    plan = SendingPlan(stripe_size=STRIPE, window=8 * STRIPE)
    plan.add(bytes(10))
    with pytest.raises(ValueError, match="short"):
        plan.add(bytes(STRIPE))
    with pytest.raises(ValueError, match="no stripe"):
        plan.add(b"")


# ------------------------------------------------------------------ records

numbers = st.integers(0, 2**62 - 1)
sizes = st.integers(1024, 2**40)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Manifest,
        stripe_size=sizes,
        window=sizes,
        size=st.none() | numbers,
        continues=st.booleans(),
        may_resume=st.booleans(),
        metadata=st.binary(max_size=100),
    ),
    st.builds(End, numbers, st.binary(min_size=32, max_size=32)),
    st.builds(Accepted, sizes),
    st.builds(Credit, numbers),
    st.builds(Verdict, numbers, numbers, st.just(b"") | st.binary(min_size=32, max_size=32)),
    st.builds(Skipped, numbers),
)


def decode(data: bytes) -> Record | None:
    """A record as a reader of streams takes it apart: type, length, payload."""
    assert data[0] < 64
    prefix = 1 << (data[1] >> 6)
    return decode_record(data[0], data[1 + prefix :])


@examples(200)
@given(records)
def test_a_record_survives_the_wire(record: Record) -> None:
    assert decode(encode_record(record)) == record


@examples(100)
@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=3000, unique=True))
def test_ranges_survive_the_wire_in_records_of_bounded_size(points: list[int]) -> None:
    points.sort()
    pairs = [(a, b) for a, b in zip(points[::2], points[1::2], strict=False)]
    got: list[tuple[int, int]] = []
    for record in split_ranges(pairs):
        assert isinstance(record, Received)
        data = encode_record(record)
        assert len(data) <= 20 * 1024
        again = decode(data)
        assert isinstance(again, Received)
        got += again.ranges
    assert got == pairs


@examples(300)
@given(kind=st.integers(0, 10), payload=st.binary(max_size=80))
def test_no_payload_does_anything_but_give_a_record_or_be_refused(
    kind: int, payload: bytes
) -> None:
    try:
        record = decode_record(kind, payload)
    except FramingError:
        return
    if kind > 7 or kind == 0:
        assert record is None


# ------------------------------------------------------------------ sources


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[at : at + size]


@pytest.mark.parametrize("size", [0, 1, STRIPE - 1, STRIPE, STRIPE + 1, 10 * STRIPE, 300_000])
@pytest.mark.parametrize(
    "kind",
    ["bytes", "bytearray", "memoryview", "file", "trio file", "list", "async", "large items"],
)
async def test_every_source_gives_the_same_stripes(kind: str, size: int, tmp_path: Any) -> None:
    data = os.urandom(size)
    path = tmp_path / "data"
    path.write_bytes(b"before" + data)
    file: Any = None
    if kind == "file":
        file = path.open("rb")
        file.seek(6)
    elif kind == "trio file":
        file = await trio.open_file(path, "rb")
        await file.seek(6)
    source: Any = {
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file": file,
        "trio file": file,
        "list": [data[at : at + 700] for at in range(0, size, 700)],
        "async": pieces(data, 333),
        "large items": [data[: size // 3], b"", data[size // 3 :]],
    }[kind]
    opened = await open_source(source)
    got: list[bytes] = []
    while not opened.at_end:
        got += [bytes(stripe) for stripe in await opened.read(STRIPE, 7)]
    await opened.aclose()
    assert b"".join(got) == data
    assert all(len(stripe) == STRIPE for stripe in got[:-1])
    assert opened.size in (None, size)
    import hashlib

    assert opened.digest == hashlib.sha256(data).digest()
    if kind == "file":
        file.close()
    elif kind == "trio file":
        await file.aclose()


@pytest.mark.parametrize("wrong", ["text", 5, None, io.StringIO("text"), ["text"]])
async def test_what_gives_no_bytes_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError):
        opened = await open_source(wrong)
        while not opened.at_end:
            await opened.read(STRIPE, 4)


async def test_a_file_which_shrinks_is_noticed() -> None:
    file = io.BytesIO(bytes(10 * STRIPE))
    opened = await open_source(file)
    await opened.read(STRIPE, 2)
    file.truncate(3 * STRIPE)
    with pytest.raises(EOFError):
        while not opened.at_end:
            await opened.read(STRIPE, 2)
