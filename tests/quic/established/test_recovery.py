"""Loss recovery of the application packet number space: RFC 9002, rule by rule."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.congestion import CubicControl, make_control
from phoenix_trio.quic.established.pacer import Pacer
from phoenix_trio.quic.established.recovery import MAX_UNACKNOWLEDGED_PACKETS, Recovery
from phoenix_trio.quic.established.rtt import RoundTrip
from phoenix_trio.quic.established.sent_packet import SentPacket
from phoenix_trio.quic.established.skipped_numbers import FIRST_PERIOD, SkippedNumbers
from phoenix_trio.quic.established.stalls import Arrivals, StallFilter
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import PROTOCOL_VIOLATION, TransportError
from tests.support import examples

SIZE = 1200
CAPACITY = 1150
RTT = 0.1


class Stream:
    """Replaces a stream's sending part; keeps all reports."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, int, bool]] = []
        self.lost: list[tuple[int, int, bool]] = []
        self.repeated: list[tuple[int, int, bool]] = []

    def on_acknowledged(self, start: int, stop: int, fin: bool) -> None:
        self.acknowledged.append((start, stop, fin))

    def on_lost(self, start: int, stop: int, fin: bool) -> None:
        self.lost.append((start, stop, fin))

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        self.repeated.append((start, stop, fin))


class Owner:
    """Replaces a connection."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, int, int]] = []
        self.lost: list[tuple[int, int, int]] = []
        self.lost_tags: list[int] = []
        self.acks: list[int] = []
        self.sizes: list[int] = []
        self.lost_packets: list[tuple[list[int], int]] = []

    def on_frames_acknowledged(self, frames: list[tuple[int, int, int]]) -> None:
        self.acknowledged += frames

    def on_frames_lost(self, frames: list[tuple[int, int, int]]) -> None:
        self.lost += frames

    def on_datagrams_lost(self, tags: list[int]) -> None:
        self.lost_tags += tags

    def on_ack_acknowledged(self, largest: int) -> None:
        self.acks.append(largest)

    def on_size_acknowledged(self, size: int) -> None:
        self.sizes.append(size)

    def on_packets_lost(self, numbers: list[int], size: int) -> None:
        self.lost_packets.append((numbers, size))


class Sender:
    """A recovery that sends full packets of one stream."""

    def __init__(self, *, confirmed: bool = True, control: str = "cubic") -> None:
        self.owner = Owner()
        self.stream = Stream()
        self.recovery = Recovery(RoundTrip(0.1), make_control(control, SIZE), Pacer(SIZE))
        self.recovery.owner = self.owner
        self.recovery.skipped = SkippedNumbers(lambda n: n - 1)
        self.offset = 0
        if confirmed:
            self.recovery.confirm()

    def packet(self, now: float, size: int = SIZE) -> SentPacket:
        packet = SentPacket(self.recovery.take_number(), now)
        packet.size = size
        packet.eliciting = packet.in_flight = True
        return packet

    def send(self, now: float, count: int = 1) -> list[int]:
        """Single packets with stream data; returns their numbers."""
        numbers = []
        for _ in range(count):
            packet = self.packet(now)
            packet.sender = self.stream
            packet.start, packet.stop = self.offset, self.offset + CAPACITY
            self.offset += CAPACITY
            self.recovery.on_sent(packet)
            numbers.append(packet.number)
        return numbers

    def send_run(self, now: float, count: int) -> int:
        """A run; returns its first number."""
        packet = self.packet(now)
        packet.sender = self.stream
        packet.count, packet.capacity = count, CAPACITY
        packet.start, packet.stop = self.offset, self.offset + count * CAPACITY
        self.offset = packet.stop
        self.recovery.on_sent(packet)
        return packet.number

    def send_ack(self, now: float, acknowledges: int) -> int:
        packet = SentPacket(self.recovery.take_number(), now)
        packet.size = 40
        packet.acknowledges = acknowledges
        self.recovery.on_sent(packet)
        return packet.number

    def ack(self, now: float, *numbers: int, delay: float = 0.0) -> None:
        self.recovery.on_ack(to_ranges(numbers), delay, now)

    def sample(self, now: float = 0.0, rtt: float = RTT) -> float:
        """Send and acknowledge one packet; returns when the acknowledgement came."""
        (number,) = self.send(now)
        self.ack(now + rtt, number)
        return now + rtt


def to_ranges(numbers: tuple[int, ...] | list[int]) -> list[tuple[int, int]]:
    """Half-open ranges, the newest first."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found[::-1]


# ------------------------------------------------------------------ acknowledgements


def test_an_acknowledgement_settles_a_packet() -> None:
    sender = Sender()
    recovery = sender.recovery
    (number,) = sender.send(1.0)
    assert recovery.eliciting_in_flight == 1
    assert recovery.control.bytes_in_flight == SIZE
    sender.ack(1.1, number, delay=0.01)
    assert sender.stream.acknowledged == [(0, CAPACITY, False)]
    assert recovery.sent == {}
    assert recovery.eliciting_in_flight == recovery.control.bytes_in_flight == 0
    assert recovery.packets_acknowledged == 1
    assert recovery.largest_acknowledged == number
    assert recovery.newly_acknowledged == [number]
    assert recovery.newest_sent_time == 1.0
    assert recovery.ack_was_newest
    assert recovery.rtt.smoothed == pytest.approx(0.1)
    sender.ack(1.2, number)
    assert recovery.newly_acknowledged == []
    assert not recovery.ack_was_newest
    assert sender.stream.acknowledged == [(0, CAPACITY, False)], "once"
    assert recovery.packets_acknowledged == 1


def test_data_of_one_stream_which_follows_is_acknowledged_as_one_range() -> None:
    sender = Sender()
    single = sender.send(1.0, 3)
    first = sender.send_run(1.0, 10)
    more = sender.send(1.0, 2)
    sender.ack(1.1, *single, *range(first, first + 10), *more)
    assert sender.stream.acknowledged == [(0, 15 * CAPACITY, False)]
    assert sender.recovery.packets_acknowledged == 15
    assert sender.recovery.control.bytes_in_flight == 0


@pytest.mark.parametrize(
    ("acked", "expected"),
    [
        (range(10), [(0, 10)]),
        (range(4), [(0, 4)]),
        (range(6, 10), [(6, 10)]),
        ([5], [(5, 6)]),
        ([0, 1, 4, 5, 6, 9], [(0, 2), (4, 7), (9, 10)]),
        ([1, 3, 5, 7, 9], [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]),
    ],
)
def test_any_part_of_a_run_may_be_acknowledged(
    acked: list[int], expected: list[tuple[int, int]]
) -> None:
    sender = Sender()
    first = sender.send_run(1.0, 10)
    recovery = sender.recovery
    recovery.rtt.initial = 100.0  # (no loss by time)
    recovery.skipped = SkippedNumbers()
    recovery.on_ack(to_ranges([first + number for number in acked]), 0.0, 1.1)
    assert sender.stream.acknowledged == [
        (start * CAPACITY, stop * CAPACITY, False) for start, stop in expected
    ]
    left = [number for number in range(10) if number not in acked]
    lost = [number for number in left if number <= max(acked) - 3]
    assert list(recovery.sent) == [first + number for number in left if number not in lost]
    assert recovery.control.bytes_in_flight == len(recovery.sent) * SIZE
    assert recovery.eliciting_in_flight == len(recovery.sent)
    gone = [n for a, b, _ in sender.stream.lost for n in range(a // CAPACITY, b // CAPACITY)]
    assert gone == lost


def test_everything_in_a_packet_is_reported() -> None:
    sender = Sender()
    other = Stream()
    packet = sender.packet(1.0)
    packet.sender = sender.stream
    packet.start, packet.stop, packet.fin = 0, 10, True
    packet.streams = [(other, 5, 7, False), (other, 7, 7, True)]  # type: ignore[list-item]
    packet.control = [(frames.MAX_DATA, 1000, 0), (frames.PING, 3, 0)]
    packet.acknowledges = 17
    sender.recovery.on_sent(packet)
    sender.ack(1.1, packet.number)
    assert sender.stream.acknowledged == [(0, 10, True)]
    assert other.acknowledged == [(5, 7, False), (7, 7, True)]
    assert sender.owner.acknowledged == packet.control
    assert sender.owner.acks == [17]


def test_the_same_is_reported_lost() -> None:
    sender = Sender()
    other = Stream()
    packet = sender.packet(1.0)
    packet.sender = sender.stream
    packet.start, packet.stop, packet.fin = 0, 10, True
    packet.streams = [(other, 5, 7, False)]  # type: ignore[list-item]
    packet.control = [(frames.MAX_DATA, 1000, 0)]
    packet.acknowledges = 17
    sender.recovery.on_sent(packet)
    *_, last = sender.send(1.0, 3)
    sender.ack(1.1, last)
    assert sender.stream.lost == [(0, 10, True)]
    assert other.lost == [(5, 7, False)]
    assert sender.owner.lost == [(frames.MAX_DATA, 1000, 0)]
    assert sender.owner.acks == []
    assert sender.owner.lost_packets == [([packet.number], SIZE)]
    assert sender.recovery.packets_lost == 1


def test_an_end_which_follows_data_is_reported_with_it() -> None:
    sender = Sender()
    (number,) = sender.send(1.0)
    last = sender.packet(1.0)
    last.sender = sender.stream
    last.start = last.stop = CAPACITY
    last.fin = True
    sender.recovery.on_sent(last)
    sender.ack(1.1, number, last.number)
    assert sender.stream.acknowledged == [(0, CAPACITY, True)]


def test_two_streams_are_reported_apart() -> None:
    sender = Sender()
    sender.send(1.0)
    first, sender.stream, sender.offset = sender.stream, Stream(), CAPACITY
    sender.send(1.0)
    sender.ack(1.1, 0, 1)
    assert first.acknowledged == [(0, CAPACITY, False)]
    assert sender.stream.acknowledged == [(CAPACITY, 2 * CAPACITY, False)]


def test_of_several_acknowledgements_of_ours_the_largest_is_reported() -> None:
    sender = Sender()
    for acknowledges in (5, 9, 7):
        sender.send_ack(1.0, acknowledges)
    sender.ack(1.1, 0, 1, 2)
    assert sender.owner.acks == [9]
    assert not sender.recovery.rtt.has_sample, "the peer may have delayed that for long"


def test_a_packet_which_was_never_sent_is_not_acknowledged() -> None:
    """RFC 9000 section 13.1."""
    sender = Sender()
    (number,) = sender.send(1.0)
    with pytest.raises(TransportError) as caught:
        sender.ack(1.1, number, number + 1)
    assert caught.value.code == PROTOCOL_VIOLATION
    assert caught.value.frame_type == frames.ACK
    assert sender.stream.acknowledged == []


def test_a_number_left_out_is_not_acknowledged() -> None:
    """RFC 9000 section 21.4."""
    sender = Sender()
    numbers = sender.send(1.0, 3 * FIRST_PERIOD)
    skipped = 2 * FIRST_PERIOD
    assert skipped not in numbers
    sender.ack(1.1, *(number for number in numbers if number != 5))
    with pytest.raises(TransportError, match="never sent"):
        sender.ack(1.2, skipped)
    with pytest.raises(TransportError, match="never sent"):
        sender.recovery.on_ack([(numbers[-1], numbers[-1] + 1), (3, skipped + 1)], 0.0, 1.2)


def test_numbers_are_left_out_once_the_handshake_is_confirmed() -> None:
    sender = Sender(confirmed=False)
    assert sender.send(1.0, 3 * FIRST_PERIOD) == list(range(3 * FIRST_PERIOD))
    sender.recovery.confirm()
    assert sender.recovery.is_confirmed
    first = 3 * FIRST_PERIOD
    numbers = sender.send(1.0, 3 * FIRST_PERIOD)
    assert sorted({*range(first, numbers[-1] + 1)} - {*numbers}) == [first + 2 * FIRST_PERIOD]


# ------------------------------------------------------------------ samples


def test_only_the_newest_packet_gives_a_sample() -> None:
    """RFC 9002 section 5.1."""
    sender = Sender()
    sender.send(1.0, 2)
    sender.ack(1.1, 1)
    assert sender.recovery.rtt.latest == pytest.approx(0.1)
    sender.ack(1.2, 0, 1)
    assert sender.recovery.rtt.latest == pytest.approx(0.1)
    assert sender.recovery.packets_acknowledged == 2


def test_a_sample_reaches_congestion_control_and_the_pacer() -> None:
    sender = Sender()
    assert sender.recovery.pacer.congestion_window == 0
    sender.sample(1.0)
    assert sender.recovery.pacer.congestion_window == sender.recovery.control.congestion_window
    assert sender.recovery.pacer.smoothed_rtt == sender.recovery.rtt.smoothed
    assert sender.recovery.control._rtt == pytest.approx(RTT)


def test_what_was_sent_on_another_path_gives_no_sample() -> None:
    """RFC 9000 section 9.4."""
    sender = Sender()
    now = sender.sample(1.0)
    (before,) = sender.send(now)
    sender.recovery.pto_count = 3
    sender.recovery.begin_path(now + 0.01)
    assert not sender.recovery.rtt.has_sample
    assert sender.recovery.pto_count == 0
    sender.ack(now + 0.1, before)
    assert not sender.recovery.rtt.has_sample
    sender.sample(now + 1.0, 0.3)
    assert sender.recovery.rtt.smoothed == pytest.approx(0.3)


# ------------------------------------------------------------------ losses


def test_three_later_packets_prove_a_loss() -> None:
    """RFC 9002 section 6.1.1."""
    sender = Sender()
    now = sender.sample(1.0)
    lost, *others = sender.send(now, 4)
    sender.ack(now + 0.01, *others[:2])
    assert sender.stream.lost == []
    sender.ack(now + 0.02, others[2])
    assert sender.stream.lost == [((lost) * CAPACITY, (lost + 1) * CAPACITY, False)]
    assert lost not in sender.recovery.sent
    assert sender.recovery.control.bytes_in_flight == 0
    assert sender.recovery.loss_time == math.inf


def test_a_loss_is_known_by_time_after_nine_eighths_of_a_round_trip() -> None:
    """RFC 9002 section 6.1.2."""
    sender = Sender()
    now = sender.sample(1.0)
    _, second = sender.send(now, 2)
    sender.ack(now + 0.1, second)
    assert sender.stream.lost == []
    due = sender.recovery.deadline()
    assert due == sender.recovery.loss_time == pytest.approx(now + RTT * 9 / 8)
    assert not sender.recovery.on_timeout(due - 1e-6)
    assert sender.stream.lost == []
    before = sender.recovery.control.congestion_window
    assert not sender.recovery.on_timeout(due), "no probe"
    assert len(sender.stream.lost) == 1
    assert sender.recovery.deadline() == math.inf
    assert sender.recovery.control.congestion_window < before
    assert sender.recovery.pacer.congestion_window == sender.recovery.control.congestion_window


@examples(100)
@given(start=st.floats(0, 1e6), gap=st.floats(0, 1e-3), rtt=st.floats(1e-3, 10))
def test_the_timer_of_a_loss_does_not_fire_for_nothing(
    start: float, gap: float, rtt: float
) -> None:
    """For any rounding of times: a clock may stand still at the deadline."""
    sender = Sender()
    now = sender.sample(start, rtt)
    sender.send(now)
    (last,) = sender.send(now + gap)
    sender.ack(now + gap, last)
    if not sender.stream.lost:
        sender.recovery.on_timeout(sender.recovery.deadline())
    assert len(sender.stream.lost) == 1


def test_a_number_left_out_overtakes_no_packet() -> None:
    sender = Sender()
    sender.recovery.skipped = SkippedNumbers(lambda n: 0)
    sender.recovery.skipped.begin(0)
    numbers = sender.send(1.0, 4)
    assert numbers == [0, 2, 4, 6]
    sender.ack(1.01, *numbers[1:3])
    assert sender.stream.lost == []
    sender.ack(1.02, numbers[3])
    assert len(sender.stream.lost) == 1


def test_losses_of_a_run_are_reported_as_ranges() -> None:
    sender = Sender()
    first = sender.send_run(1.0, 20)
    sender.ack(1.1, first + 5, first + 19)
    assert sender.stream.lost == [
        (0, 5 * CAPACITY, False),
        (6 * CAPACITY, 17 * CAPACITY, False),
    ]
    assert list(sender.recovery.sent) == [first + 17, first + 18]
    assert sender.recovery.control.bytes_in_flight == 2 * SIZE
    assert sender.recovery.packets_lost == 16


def test_a_loss_reduces_the_window_once_a_round_trip() -> None:
    sender = Sender()
    first = sender.send_run(1.0, 20)
    before = sender.recovery.control.congestion_window
    sender.ack(1.1, first + 9)
    after = sender.recovery.control.congestion_window
    assert after == int((before + SIZE) * 0.7), "with the growth by the packet which arrived"
    sender.ack(1.11, first + 19)
    assert sender.recovery.control.congestion_window == after


def lose_all_between(sender: Sender, times: list[float]) -> None:
    """Send a packet at each time, then one more, acknowledged; the others are lost."""
    for time in times:
        sender.send(time)
    *_, last = sender.send(times[-1], 4)
    sender.ack(times[-1] + RTT, last)


@pytest.mark.parametrize(("seconds", "is_persistent"), [(0.82, False), (0.83, True)])
def test_losses_over_a_long_time_are_persistent_congestion(
    seconds: float, is_persistent: bool
) -> None:
    """RFC 9002 section 7.6: over three probe timeouts, of 0.275 s after the second sample."""
    sender = Sender()
    now = sender.sample(1.0) + 0.01
    lose_all_between(sender, [now, now + seconds / 2, now + seconds])
    assert sender.recovery.probe_timeout() == pytest.approx(0.275)
    assert (sender.recovery.control.congestion_window == 2 * SIZE) == is_persistent


@pytest.mark.parametrize("is_before", [False, True])
def test_packets_before_the_first_sample_begin_no_persistent_congestion(is_before: bool) -> None:
    """RFC 9002 section 7.6.2."""
    sender = Sender()
    (sampled,) = sender.send(0.0)
    now = RTT - 0.01 if is_before else RTT + 0.01
    if is_before:
        sender.send(now)
    sender.ack(RTT, sampled)
    if not is_before:
        sender.send(now)
    *_, last = sender.send(now + 0.85, 4)
    sender.ack(now + 0.85 + RTT, last)
    assert sender.recovery.packets_lost >= 2
    assert (sender.recovery.control.congestion_window == 2 * SIZE) != is_before


@pytest.mark.parametrize("what", ["skipped", "acknowledged"])
def test_persistent_congestion_needs_a_period_without_acknowledgement(what: str) -> None:
    sender = Sender()
    now = sender.sample(1.0)
    period = 3 * sender.recovery.probe_timeout()
    sender.send(now + 0.01)
    if what == "skipped":
        sender.recovery.skipped.begin(sender.recovery.next_number)
        sender.recovery.skipped.next = sender.recovery.next_number
    else:
        (between,) = sender.send(now + 0.02)
    *_, last = sender.send(now + period + 0.02, 4)
    if what == "skipped":
        sender.ack(now + period + 0.1, last)
    else:
        sender.ack(now + period + 0.1, between, last)
    assert sender.recovery.packets_lost >= 2
    is_persistent = sender.recovery.control.congestion_window == 2 * SIZE
    assert is_persistent == (what == "skipped"), "a number left out ends no period"


def test_an_mtu_probe_which_is_lost_is_no_congestion() -> None:
    """RFC 8899 section 3."""
    sender = Sender()
    probe = sender.packet(1.0, 1452)
    probe.in_flight = False
    probe.control = [(frames.PING, 1452, 0)]
    sender.recovery.on_sent(probe)
    assert sender.recovery.control.bytes_in_flight == 0
    assert sender.recovery.deadline() < math.inf, "it has to be acknowledged"
    before = sender.recovery.control.congestion_window
    *_, last = sender.send(1.0, 3)
    sender.ack(1.1, last)
    assert sender.owner.lost == [(frames.PING, 1452, 0)]
    assert sender.owner.lost_packets == [([probe.number], 0)]
    assert sender.recovery.control.congestion_window == before
    assert sender.owner.sizes == []


def test_sizes_are_reported_after_losses_until_one_as_large_arrives() -> None:
    sender = Sender()
    sender.sample(1.0)
    assert sender.owner.sizes == []
    _, *others = sender.send(2.0, 4)
    sender.ack(2.1, *others)
    assert sender.owner.lost_packets[0][1] == SIZE
    assert sender.owner.sizes == []
    small = sender.packet(2.2, 50)
    sender.recovery.on_sent(small)
    sender.recovery.declare_lost([small.number], False, 2.3)
    for size in (100, SIZE - 1, SIZE, SIZE):
        packet = sender.packet(4.0, size)
        sender.recovery.on_sent(packet)
        sender.ack(4.1, packet.number)
    assert sender.owner.sizes == [100, SIZE - 1, SIZE]


# ------------------------------------------------------------------ probes


def test_a_probe_is_due_after_a_probe_timeout_which_doubles() -> None:
    """RFC 9002 section 6.2.1."""
    sender = Sender()
    now = sender.sample(1.0)
    assert sender.recovery.deadline() == math.inf, "nothing is in flight"
    sender.send(now)
    period = sender.recovery.probe_timeout()
    assert period == pytest.approx(RTT + 4 * RTT / 2 + 0.025)
    for count in range(3):
        due = sender.recovery.deadline()
        assert due == pytest.approx(now + period * 2**count)
        assert not sender.recovery.on_timeout(due - 1e-6)
        assert sender.recovery.on_timeout(due)
        assert sender.recovery.probe_timeouts == sender.recovery.pto_count == count + 1
        now = due
        sender.send(now)
    sender.sample(now)
    assert sender.recovery.pto_count == 0


def test_the_backoff_has_an_end() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    sender.recovery.longest_backoff = 2.0
    sender.send(now)
    for _ in range(10):
        now = sender.recovery.deadline()
        assert sender.recovery.on_timeout(now)
        sender.send(now)
    period = sender.recovery.deadline() - now
    assert 1.0 < period <= 2.0
    assert sender.recovery.probe_timeouts == 10


def test_the_data_of_the_two_oldest_packets_is_sent_again_without_a_sign_of_congestion() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    sender.send_ack(now, 3)
    sender.send(now, 3)
    before = sender.recovery.control.congestion_window
    assert sender.recovery.on_timeout(sender.recovery.deadline())
    assert sender.stream.lost == [(CAPACITY, 3 * CAPACITY, False)]
    assert sender.recovery.control.congestion_window == before
    assert sender.recovery.control.bytes_in_flight == SIZE
    assert sender.owner.lost_packets[0][1] == SIZE, "large packets may vanish on this path"


def test_a_probe_repeats_data_sooner_than_what_is_worth_nothing() -> None:
    """Each probe waits twice as long as the one before it."""
    sender = Sender()
    now = sender.sample(1.0)
    for in_flight, control in (
        (False, [(-1, 1400, 0)]),
        (True, [(frames.PING, -1, 0)]),
        (True, None),
    ):
        packet = sender.packet(now)
        packet.in_flight, packet.control = in_flight, control
        sender.recovery.on_sent(packet)
    packet = sender.packet(now)
    packet.control = [(frames.PING, 5, 0), (frames.MAX_DATA, 1000, 0)]
    sender.recovery.on_sent(packet)
    sender.send(now)
    assert sender.recovery.on_timeout(sender.recovery.deadline())
    assert sender.owner.lost == [(frames.PING, 5, 0), (frames.MAX_DATA, 1000, 0)]
    assert sender.stream.lost == [(CAPACITY, 2 * CAPACITY, False)]
    # The others follow after that, since large packets may vanish on this path.
    assert len(sender.recovery.sent) == 3
    assert sender.recovery.on_timeout(sender.recovery.deadline())
    assert sender.owner.lost[2:] == [(-1, 1400, 0)]


def test_a_packet_which_is_forgotten_is_waited_for_no_more() -> None:
    """As a probe of another path, or of the path MTU: it is no packet in flight."""
    sender = Sender()
    packet = sender.packet(1.0)
    packet.in_flight = False
    sender.recovery.on_sent(packet)
    for number in range(3000):
        sender.send_ack(1.0, number)
    assert sender.recovery.deadline() < math.inf
    sender.recovery.wants_acknowledgement()
    assert packet.number not in sender.recovery.sent
    assert sender.recovery.eliciting_in_flight == 0
    assert sender.recovery.deadline() == math.inf


def test_no_probe_is_due_before_the_handshake_is_confirmed_or_without_room_for_it() -> None:
    """RFC 9002 sections 6.2.1 and 6.2.2.1."""
    sender = Sender(confirmed=False)
    sender.send(1.0)
    assert sender.recovery.deadline() == math.inf
    assert not sender.recovery.on_timeout(1000.0)
    sender.recovery.confirm()
    assert sender.recovery.deadline() == pytest.approx(1.2)
    assert sender.recovery.deadline(can_probe=False) == math.inf
    assert not sender.recovery.on_timeout(10.0, can_probe=False)
    assert sender.recovery.probe_timeouts == 0
    assert sender.recovery.on_timeout(10.0)


def test_a_loss_by_time_is_looked_for_even_without_room_for_a_probe() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    _, second = sender.send(now, 2)
    sender.ack(now + 0.1, second)
    assert sender.recovery.deadline(can_probe=False) == sender.recovery.loss_time < math.inf


def test_a_probe_of_the_handshake_repeats_the_oldest_data() -> None:
    sender = Sender(confirmed=False)
    assert not sender.recovery.repeat_oldest()
    sender.send_ack(1.0, 3)
    assert not sender.recovery.repeat_oldest()
    other = Stream()
    packet = sender.packet(1.0)
    packet.sender = sender.stream
    packet.start, packet.stop, packet.fin = 0, 10, True
    packet.streams = [(other, 5, 7, False)]  # type: ignore[list-item]
    sender.recovery.on_sent(packet)
    assert sender.recovery.repeat_oldest()
    assert sender.stream.repeated == [(0, 10, True)]
    assert other.repeated == [(5, 7, False)]
    sender.ack(1.1, packet.number)
    assert sender.stream.acknowledged == [(0, 10, True)], "the packet stays known"
    first = sender.send_run(1.2, 5)
    sender.ack(1.3, first)
    assert sender.recovery.repeat_oldest()
    assert sender.stream.repeated[1:] == [(CAPACITY, 2 * CAPACITY, False)]


# ------------------------------------------------------------------ 0-RTT


def test_early_data_which_was_refused_is_lost_at_once() -> None:
    """RFC 9001 section 4.6.2."""
    sender = Sender(confirmed=False)
    for is_early in (True, True, False):
        packet = sender.packet(1.0)
        packet.is_zero_rtt = is_early
        packet.control = [(frames.MAX_DATA, packet.number, 0)]
        sender.recovery.on_sent(packet)
    before = sender.recovery.control.congestion_window
    sender.recovery.declare_early_data_lost(1.1)
    assert sender.owner.lost == [(frames.MAX_DATA, 0, 0), (frames.MAX_DATA, 1, 0)]
    assert list(sender.recovery.sent) == [2]
    assert sender.recovery.control.bytes_in_flight == SIZE
    assert sender.recovery.control.congestion_window == before
    sender.recovery.declare_early_data_lost(1.2)
    assert sender.recovery.packets_lost == 2


def test_a_retry_loses_everything() -> None:
    sender = Sender(confirmed=False)
    sender.recovery.declare_all_lost(0.9)
    sender.send(1.0, 3)
    sender.recovery.declare_all_lost(1.1)
    assert sender.stream.lost == [(0, 3 * CAPACITY, False)]
    assert sender.recovery.sent == {}
    assert sender.recovery.control.bytes_in_flight == sender.recovery.eliciting_in_flight == 0
    assert sender.recovery.next_number == 3, "no number is used twice"


# ------------------------------------------------------------------ bounds


def test_no_more_packets_are_sent_than_two_bytes_of_number_can_tell_apart() -> None:
    """RFC 9000 section 17.1."""
    sender = Sender()
    recovery = sender.recovery
    recovery.control.congestion_window = 1 << 40
    assert recovery.room() == recovery.congestion_window == 1 << 40
    while len(recovery.sent) < MAX_UNACKNOWLEDGED_PACKETS:
        assert recovery.room() > 0
        sender.send_run(1.0, 64)
    assert recovery.room() == 0
    assert recovery.congestion_window == recovery.control.bytes_in_flight
    sender.ack(1.1, *list(recovery.sent)[:100])
    assert recovery.room() == recovery.control.congestion_window - len(recovery.sent) * SIZE > 0


def test_a_side_which_only_acknowledges_asks_for_an_acknowledgement_now_and_then() -> None:
    """RFC 9000 section 13.2.4."""
    sender = Sender()
    asked = 0
    for number in range(200):
        if sender.recovery.wants_acknowledgement():
            sender.send(1.0)
            asked += 1
            sender.ack(1.1, *sender.recovery.sent)
        sender.send_ack(1.0, number)
    assert asked == 6


def test_acknowledgements_without_end_are_forgotten() -> None:
    sender = Sender()
    sender.send(1.0)
    for number in range(10_000):
        assert not sender.recovery.wants_acknowledgement(), "one has been asked for"
        sender.send_ack(1.0, number)
    assert len(sender.recovery.sent) <= 2048
    assert 0 in sender.recovery.sent, "what is in flight is not forgotten"


# ------------------------------------------------------------------ a stalled process


def arrivals_until(time: float) -> Arrivals:
    arrivals = Arrivals(1000)
    arrivals.on_read(time, 10, drained=True)
    return arrivals


def test_a_stall_is_no_round_trip() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    (number,) = sender.send(now)
    sender.recovery.rtt.arrivals = arrivals_until(now + 0.01)
    sender.ack(now + 600.0, number)
    assert sender.recovery.rtt.smoothed == pytest.approx(RTT)
    assert sender.recovery.packets_acknowledged == 2


def test_a_path_which_became_slow_is_believed() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    (number,) = sender.send(now)
    sender.recovery.rtt.arrivals = arrivals_until(now + 0.95)
    sender.ack(now + 1.0, number, delay=0.02)
    assert sender.recovery.rtt.latest == pytest.approx(0.98)


def test_of_a_late_sample_only_what_was_seen_counts_and_no_delay_is_taken_off() -> None:
    sender = Sender()
    now = sender.sample(1.0)
    (number,) = sender.send(now)
    sender.recovery.pto_count = 5  # the timer has backed off, and proves nothing
    sender.recovery.rtt.arrivals = arrivals_until(now + 0.5)
    sender.ack(now + 2.0, number, delay=0.02)
    assert sender.recovery.rtt.latest == pytest.approx(0.5)


def test_what_waits_in_the_socket_behind_a_gap_is_no_loss() -> None:
    """The acknowledgement of the missing packet comes after the one that shows a gap."""
    sender = Sender()
    now = sender.sample(1.0)
    first, second = sender.send(now, 2)
    sender.recovery.rtt.arrivals = arrivals_until(now + 0.05)
    sender.ack(now + 600.0, second)
    assert sender.stream.lost == [], "at the time from which that may be, it was none"
    sender.ack(now + 600.0, first)
    assert sender.stream.lost == []
    assert sender.recovery.packets_lost == 0


def test_the_window_does_not_grow_for_time_in_which_this_side_stood_still() -> None:
    sender = Sender()
    control = sender.recovery.control
    assert isinstance(control, CubicControl)
    now = sender.sample(1.0)
    control._epoch = began = now  # since then, the window grows (RFC 9438 section 4.2)
    sender.send(now)
    due = sender.recovery.deadline()
    assert sender.recovery.on_timeout(due + 0.1)
    assert control._epoch == began, "that is not long"
    sender.send(now)
    due = sender.recovery.deadline()
    assert sender.recovery.on_timeout(due + 600.0)
    assert control._epoch == pytest.approx(began + 600.0)


# ------------------------------------------------------------------ life


def test_metrics_are_those_of_qlog() -> None:
    sender = Sender()
    sender.sample(1.0)
    metrics = sender.recovery.metrics(with_rtt=False)
    assert metrics == {
        "cwnd": sender.recovery.control.congestion_window,
        "bytes_in_flight": 0,
    }
    *_, last = sender.send(2.0, 4)
    sender.ack(2.1, last)
    metrics = sender.recovery.metrics(with_rtt=True)
    assert metrics["ssthresh"] == sender.recovery.control.ssthresh
    assert metrics["latest_rtt"] == pytest.approx(100)
    assert metrics["min_rtt"] == pytest.approx(100)
    assert metrics["smoothed_rtt"] == pytest.approx(100)
    assert 0 < metrics["rtt_variance"] < 100


def test_after_the_end_nothing_is_referred_to() -> None:
    sender = Sender()
    *_, last = sender.send(1.0, 5)
    sender.recovery.release()
    assert sender.recovery.sent == {}
    sender.ack(1.1, last)
    assert sender.stream.acknowledged == []


def test_what_is_sent_after_the_end_is_reported_to_nothing() -> None:
    sender = Sender()
    sender.recovery.release()
    numbers = []
    for _ in range(5):
        packet = sender.packet(1.0)
        packet.control = [(frames.MAX_DATA, 1000, 0)]
        packet.acknowledges = 3
        sender.recovery.on_sent(packet)
        numbers.append(packet.number)
    sender.ack(1.1, numbers[4])
    sender.ack(1.1, numbers[3])
    assert sender.recovery.packets_lost == 2
    assert vars(sender.owner) == vars(Owner())


# ------------------------------------------------------------------ against aioquic


class Reference:
    """The same packets in aioquic's recovery."""

    def __init__(self) -> None:
        self.recovery = QuicPacketRecovery(
            congestion_control_algorithm="reno",
            initial_rtt=0.1,
            max_datagram_size=SIZE,
            peer_completed_address_validation=True,
            send_probe=lambda: None,
        )
        self.recovery.handshake_confirmed = True
        self.space = QuicPacketSpace(is_application_data=True)
        self.recovery.spaces = [self.space]
        self.acknowledged: set[int] = set()
        self.lost: set[int] = set()

    def send(self, number: int, size: int, now: float) -> None:
        packet = QuicSentPacket(
            epoch=Epoch.ONE_RTT,
            in_flight=True,
            is_ack_eliciting=True,
            is_crypto_packet=False,
            packet_number=number,
            packet_type=QuicPacketType.ONE_RTT,
            sent_time=now,
            sent_bytes=size,
        )
        packet.delivery_handlers.append((self.on_delivery, (number,)))
        self.recovery.on_packet_sent(packet=packet, space=self.space)

    def on_delivery(self, delivery: Any, number: int) -> None:
        (self.acknowledged if delivery is QuicDeliveryState.ACKED else self.lost).add(number)

    def ack(self, numbers: list[int], now: float) -> None:
        ranges = RangeSet()
        for number in numbers:
            ranges.add(number)
        self.recovery.on_ack_received(ack_rangeset=ranges, ack_delay=0.0, now=now, space=self.space)


def packets_of(reported: list[tuple[int, int, bool]]) -> set[int]:
    return {n for start, stop, _ in reported for n in range(start // CAPACITY, stop // CAPACITY)}


@examples(100)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.4]),
    steps=st.integers(1, 60),
)
def test_packets_are_acknowledged_and_lost_as_by_aioquic(
    seed: int, loss: float, steps: int
) -> None:
    """In single packets and runs, under loss, reordering and repeated acknowledgements."""
    generator = random.Random(seed)
    ours, theirs = Sender(control="reno"), Reference()
    ours.recovery.skipped = SkippedNumbers()  # (aioquic skips none)
    now = 1.0
    unknown: list[int] = []  # numbers not acknowledged by the peer
    for _ in range(steps):
        now += generator.choice([0.0, 0.001, 0.004, 0.03])
        what = generator.random()
        if what < 0.5:
            count = generator.choice([1, 1, 2, 16])
            first = ours.recovery.next_number
            if count > 1:
                ours.send_run(now, count)
            else:
                ours.send(now)
            for number in range(first, first + count):
                theirs.send(number, SIZE, now)
                if generator.random() >= loss:
                    unknown.append(number)
        elif what < 0.9 and unknown:
            unknown.sort(key=lambda number: number + generator.random() * 4)
            numbers = unknown[: generator.randrange(1, 25)]
            if generator.random() < 0.8:
                del unknown[: len(numbers)]
            ours.ack(now, *numbers)
            theirs.ack(numbers, now)
        else:
            now = max(now, min(ours.recovery.loss_time, now + 1.0))
            if now >= ours.recovery.loss_time:
                ours.recovery.on_timeout(now)
                ours.recovery.rtt.stalls = StallFilter()  # (aioquic knows no stalls)
                theirs.recovery.on_loss_detection_timeout(now=now + 1e-6)
        assert packets_of(ours.stream.acknowledged) == theirs.acknowledged
        assert packets_of(ours.stream.lost) == theirs.lost
        assert list(ours.recovery.sent) == list(theirs.space.sent_packets)
        assert ours.recovery.control.bytes_in_flight == theirs.recovery.bytes_in_flight
        assert ours.recovery.eliciting_in_flight == theirs.space.ack_eliciting_in_flight
        assert ours.recovery.rtt.smoothed == pytest.approx(theirs.recovery._rtt_smoothed)
        assert ours.recovery.loss_time == pytest.approx(theirs.space.loss_time or math.inf)
