"""The congestion controllers: each rule, then a bottleneck in virtual time."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import pytest
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.congestion import CUBIC, RENO, CubicControl, RenoControl, SlowStartExit
from phoenix_trio.quic.pacer import Pacer
from tests.support import examples

SIZE = 1200
BOTH = pytest.mark.parametrize("kind", [CubicControl, RenoControl])


def packet(sent_time: float, sent_bytes: int = SIZE) -> QuicSentPacket:
    return QuicSentPacket(
        epoch=Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=0,
        packet_type=QuicPacketType.ONE_RTT,
        sent_time=sent_time,
        sent_bytes=sent_bytes,
    )


def fill(control: Any, now: float) -> list[QuicSentPacket]:
    sent = []
    while control.bytes_in_flight + SIZE <= control.congestion_window:
        sent.append(packet(now))
        control.on_packet_sent(packet=sent[-1])
    return sent


def test_aioquic_finds_them_by_name() -> None:
    cubic = create_congestion_control(CUBIC, max_datagram_size=SIZE)
    reno = create_congestion_control(RENO, max_datagram_size=SIZE)
    assert isinstance(cubic, CubicControl)
    assert isinstance(reno, RenoControl)
    assert cubic.congestion_window == reno.congestion_window == 10 * SIZE


@BOTH
def test_slow_start_doubles_each_round_trip(kind: Any) -> None:
    control = kind(max_datagram_size=SIZE)
    for round_trip in range(4):
        before = control.congestion_window
        for each in fill(control, round_trip * 0.1):
            control.on_packet_acked(now=round_trip * 0.1 + 0.1, packet=each)
        assert control.congestion_window == 2 * before
        assert control.bytes_in_flight == 0


@BOTH
def test_a_window_which_is_not_used_does_not_grow(kind: Any) -> None:
    """RFC 9002 section 7.8."""
    control = kind(max_datagram_size=SIZE)
    for number in range(1000):
        one = packet(number * 0.1)
        control.on_packet_sent(packet=one)
        control.on_packet_acked(now=number * 0.1 + 0.05, packet=one)
    assert control.congestion_window == 10 * SIZE
    control.on_packets_lost(now=200.0, packets=fill(control, 199.0)[:1])
    control.bytes_in_flight = 0
    before = control.congestion_window
    for number in range(1000):
        one = packet(300 + number * 0.1)
        control.on_packet_sent(packet=one)
        control.on_packet_acked(now=300 + number * 0.1 + 0.05, packet=one)
    assert control.congestion_window == before


@pytest.mark.parametrize(("kind", "share"), [(CubicControl, 0.7), (RenoControl, 0.5)])
def test_a_loss_reduces_once_a_round_trip(kind: Any, share: float) -> None:
    control = kind(max_datagram_size=SIZE)
    control.congestion_window = 100 * SIZE
    sent = fill(control, 1.0)
    control.on_packets_lost(now=1.1, packets=sent[:3])
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1)
    assert control.ssthresh == control.congestion_window
    control.on_packets_lost(now=1.2, packets=sent[3:5])
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1)
    for each in sent[5:]:
        control.on_packet_acked(now=1.3, packet=each)
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1), "in recovery"
    late = fill(control, 1.4)
    control.on_packets_lost(now=1.5, packets=late[:1])
    assert control.congestion_window == pytest.approx(100 * SIZE * share**2, abs=2)


@BOTH
def test_the_window_never_falls_below_two_packets(kind: Any) -> None:
    control = kind(max_datagram_size=SIZE)
    for number in range(20):
        sent = fill(control, float(number))
        control.on_packets_lost(now=number + 0.5, packets=sent)
    assert control.congestion_window == 2 * SIZE
    control.on_persistent_congestion()
    assert control.congestion_window == 2 * SIZE
    assert control.bytes_in_flight == 0


@BOTH
def test_the_window_never_exceeds_its_maximum(kind: Any) -> None:
    control = kind(max_datagram_size=SIZE)
    control.maximum_window = 50 * SIZE
    for number in range(10):
        for each in fill(control, float(number)):
            control.on_packet_acked(now=number + 0.1, packet=each)
    assert control.congestion_window == 50 * SIZE


@BOTH
def test_larger_packets_raise_the_initial_window(kind: Any) -> None:
    control = kind(max_datagram_size=SIZE)
    control.set_max_datagram_size(9000)
    assert control.congestion_window == 90_000
    control.on_packets_lost(now=1.0, packets=[packet(0.5)])
    control.set_max_datagram_size(65_000)
    assert control.congestion_window == 130_000, "two packets at least"


def test_cubic_grows_back_to_where_it_was_and_beyond() -> None:
    """RFC 9438 section 4: concave up to the old maximum, flat there, then convex."""
    control = CubicControl(max_datagram_size=SIZE)
    control.congestion_window = 1000 * SIZE
    control.on_rtt_measurement(now=0.0, rtt=0.1)
    control.on_packets_lost(now=0.0, packets=fill(control, -0.1)[:1])
    control.bytes_in_flight = 0
    history = []
    now = 0.1
    while now < 15:
        sent = fill(control, now)
        now += 0.1
        for each in sent:
            control.on_packet_acked(now=now, packet=each)
        history.append(control.congestion_window / SIZE)
    k = (1000 * 0.3 / 0.4) ** (1 / 3)
    at_k = history[int(k / 0.1)]
    assert 950 <= at_k <= 1050
    steps = [after - before for before, after in itertools.pairwise(history)]
    assert steps[5] > steps[int(k / 0.1) - 10], "slower and slower up to there"
    assert steps[-1] > steps[int(k / 0.1) + 5], "faster and faster from there"


def test_cubic_does_not_count_idle_time() -> None:
    """RFC 9438 section 5.8: no jump after a pause."""
    control = CubicControl(max_datagram_size=SIZE)
    control.congestion_window = 100 * SIZE
    control.on_packets_lost(now=0.0, packets=fill(control, -0.1)[:1])
    control.bytes_in_flight = 0
    now = 0.1
    for _ in range(10):
        sent = fill(control, now)
        now += 0.1
        for each in sent:
            control.on_packet_acked(now=now, packet=each)
    lonely = packet(now)
    control.on_packet_sent(packet=lonely)
    control.on_packet_acked(now=now + 0.1, packet=lonely)
    before = control.congestion_window
    now += 1000
    for each in fill(control, now):
        control.on_packet_acked(now=now + 0.1, packet=each)
    assert control.congestion_window < before * 1.2


def test_slow_start_ends_when_round_trips_grow_and_not_by_noise() -> None:
    steady = SlowStartExit()
    now = 0.0
    for _ in range(50):
        for sample in range(10):
            steady.on_sample(0.0005 + (sample % 3) * 0.001)
        assert not steady.on_acknowledged(now, now + 0.01)
        now += 0.02
    assert steady.divisor == 1
    growing = SlowStartExit()
    now, ended = 0.0, False
    for round_trip in range(30):
        rtt = 0.05 + max(0, round_trip - 5) * 0.02
        for _ in range(10):
            growing.on_sample(rtt)
        ended = growing.on_acknowledged(now, now + rtt)
        now += 2 * rtt
        if ended:
            break
    assert ended
    assert 6 <= round_trip <= 20


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["send", "ack", "lose", "wait"]), st.integers(1, 30)),
        max_size=60,
    ),
    cubic=st.booleans(),
)
@examples(150)
def test_the_books_balance_whatever_happens(steps: list[tuple[str, int]], cubic: bool) -> None:
    control: Any = (CubicControl if cubic else RenoControl)(max_datagram_size=SIZE)
    control.maximum_window = 200 * SIZE
    now = 0.0
    flying: list[QuicSentPacket] = []
    for action, amount in steps:
        now += 0.001
        if action == "send":
            for _ in range(amount):
                if control.bytes_in_flight + SIZE <= control.congestion_window:
                    flying.append(packet(now))
                    control.on_packet_sent(packet=flying[-1])
        elif action == "ack" and flying:
            acked, flying = flying[:amount], flying[amount:]
            control.on_packet_acked(
                now=now, packet=packet(acked[-1].sent_time or 0.0, len(acked) * SIZE)
            )
            control.on_rtt_measurement(now=now, rtt=now - (acked[-1].sent_time or 0.0))
        elif action == "lose" and flying:
            lost, flying = flying[:amount], flying[amount:]
            control.on_packets_lost(now=now, packets=lost)
        else:
            now += amount * 0.1
        assert control.bytes_in_flight == len(flying) * SIZE
        assert 2 * SIZE <= control.congestion_window <= 200 * SIZE


class Bottleneck:
    """One sender, one link with a drop-tail queue, packets as numbers, virtual time."""

    def __init__(self, kind: Any, *, rate: float, rtt: float, queue: float) -> None:
        self.control = kind(max_datagram_size=SIZE)
        self.pacer = Pacer(SIZE)
        self.rate, self.rtt, self.queue = rate / 8, rtt, queue
        self.free_at = 0.0
        self.acks: list[tuple[float, int, QuicSentPacket]] = []
        self.smoothed = rtt
        self.delivered = 0
        self.number = 0
        self.lost: list[tuple[float, int, QuicSentPacket]] = []

    def run(self, start: float, stop: float) -> float:
        """The share of the link which was used from `start` to `stop`."""
        now, before = start, self.delivered
        while now < stop:
            self.send(now)
            now += 0.001
            while self.acks and self.acks[0][0] <= now:
                at, _, acked = heapq.heappop(self.acks)
                self.delivered += SIZE
                sample = at - (acked.sent_time or 0.0)
                self.smoothed += (sample - self.smoothed) / 8
                self.control.on_packet_acked(now=at, packet=acked)
                self.control.on_rtt_measurement(now=at, rtt=sample)
                self.pacer.update_rate(self.control.congestion_window, self.smoothed)
            gone = []
            while self.lost and self.lost[0][0] <= now:
                gone.append(heapq.heappop(self.lost)[2])
            if gone:
                self.control.on_packets_lost(now=now, packets=gone)
        return (self.delivered - before) / (self.rate * (stop - start))

    def send(self, now: float) -> None:
        self.pacer.begin_call(10_000)
        while (
            self.control.bytes_in_flight + SIZE <= self.control.congestion_window
            and self.pacer.next_send_time(now) is None
        ):
            sent = packet(now)
            self.number += 1
            self.control.on_packet_sent(packet=sent)
            self.pacer.update_after_send(now)
            waiting = max(0.0, self.free_at - now) * self.rate
            if waiting > self.queue:
                heapq.heappush(self.lost, (now + self.rtt * 1.2, self.number, sent))
                continue
            self.free_at = max(now, self.free_at) + SIZE / self.rate
            heapq.heappush(self.acks, (self.free_at + self.rtt, self.number, sent))


@pytest.mark.parametrize("queue", [1_250_000, 400_000])
def test_cubic_fills_a_long_path_within_five_seconds(queue: int) -> None:
    """100 Mbit/s, 100 ms; the queue holds one, or a third of, bandwidth times round trip."""
    link = Bottleneck(CubicControl, rate=100e6, rtt=0.1, queue=queue)
    link.run(0.0, 4.0)
    assert link.run(4.0, 5.0) > 0.85
    assert link.run(5.0, 15.0) > 0.9
