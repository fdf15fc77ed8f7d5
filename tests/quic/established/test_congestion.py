"""The congestion controllers: each rule, then a bottleneck in virtual time."""

from __future__ import annotations

import heapq
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.congestion import (
    NO_THRESHOLD,
    Control,
    CubicControl,
    RenoControl,
    SlowStartExit,
    make_control,
)
from phoenix_trio.quic.established.pacer import Pacer
from tests.support import examples

SIZE = 1200
BOTH = pytest.mark.parametrize("kind", [CubicControl, RenoControl])


Kind = type[CubicControl] | type[RenoControl]


def fill(control: Control, now: float) -> int:
    """Send full packets while the window permits; returns their number."""
    count = 0
    while control.bytes_in_flight + SIZE <= control.congestion_window:
        control.on_sent(SIZE, now)
        count += 1
    return count


def test_controllers_are_made_by_name() -> None:
    cubic, reno = make_control("cubic", SIZE), make_control("reno", SIZE)
    assert type(cubic) is CubicControl
    assert type(reno) is RenoControl
    assert cubic.congestion_window == reno.congestion_window == 10 * SIZE
    assert cubic.ssthresh == reno.ssthresh == NO_THRESHOLD
    with pytest.raises(ValueError, match="vegas"):
        make_control("vegas", SIZE)


@BOTH
def test_slow_start_doubles_each_round_trip(kind: Kind) -> None:
    control = kind(SIZE)
    for round_trip in range(4):
        before = control.congestion_window
        for _ in range(fill(control, round_trip * 0.1)):
            control.on_acknowledged(SIZE, round_trip * 0.1, round_trip * 0.1 + 0.1)
        assert control.congestion_window == 2 * before
        assert control.bytes_in_flight == 0


@BOTH
def test_a_window_which_is_not_used_does_not_grow(kind: Kind) -> None:
    """RFC 9002 section 7.8."""
    control = kind(SIZE)
    for number in range(1000):
        control.on_sent(SIZE, number * 0.1)
        control.on_acknowledged(SIZE, number * 0.1, number * 0.1 + 0.05)
    assert control.congestion_window == 10 * SIZE
    fill(control, 199.0)
    control.on_lost(SIZE, 199.0, 200.0)
    control.bytes_in_flight = 0
    before = control.congestion_window
    for number in range(1000):
        control.on_sent(SIZE, 300 + number * 0.1)
        control.on_acknowledged(SIZE, 300 + number * 0.1, 300 + number * 0.1 + 0.05)
    assert control.congestion_window == before


@pytest.mark.parametrize(("kind", "share"), [(CubicControl, 0.7), (RenoControl, 0.5)])
def test_a_loss_reduces_once_a_round_trip(kind: Kind, share: float) -> None:
    control = kind(SIZE)
    control.congestion_window = 100 * SIZE
    count = fill(control, 1.0)
    control.on_lost(3 * SIZE, 1.0, 1.1)
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1)
    assert control.ssthresh == control.congestion_window
    control.on_lost(2 * SIZE, 1.0, 1.2)
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1)
    for _ in range(count - 5):
        control.on_acknowledged(SIZE, 1.0, 1.3)
    assert control.congestion_window == pytest.approx(100 * SIZE * share, abs=1), "in recovery"
    fill(control, 1.4)
    control.on_lost(SIZE, 1.4, 1.5)
    assert control.congestion_window == pytest.approx(100 * SIZE * share**2, abs=2)


@BOTH
def test_the_window_never_falls_below_two_packets(kind: Kind) -> None:
    control = kind(SIZE)
    for number in range(20):
        count = fill(control, float(number))
        control.on_lost(count * SIZE, float(number), number + 0.5)
    assert control.congestion_window == 2 * SIZE
    control.on_persistent_congestion()
    assert control.congestion_window == 2 * SIZE
    assert control.bytes_in_flight == 0


@BOTH
def test_the_window_never_exceeds_its_maximum(kind: Kind) -> None:
    control = kind(SIZE)
    control.maximum_window = 50 * SIZE
    for number in range(10):
        for _ in range(fill(control, float(number))):
            control.on_acknowledged(SIZE, float(number), number + 0.1)
    assert control.congestion_window == 50 * SIZE


@BOTH
def test_larger_packets_raise_the_initial_window(kind: Kind) -> None:
    control = kind(SIZE)
    control.set_max_datagram_size(9000)
    assert control.congestion_window == 90_000
    control.on_sent(SIZE, 0.5)
    control.on_lost(SIZE, 0.5, 1.0)
    control.set_max_datagram_size(65_000)
    assert control.congestion_window == 130_000, "two packets at least"


def test_cubic_grows_back_to_where_it_was_and_beyond() -> None:
    """RFC 9438 section 4: concave up to the old maximum, flat there, then convex."""
    control = CubicControl(SIZE)
    control.congestion_window = 1000 * SIZE
    control.on_rtt(0.1, 0.0)
    fill(control, -0.1)
    control.on_lost(SIZE, -0.1, 0.0)
    control.bytes_in_flight = 0
    history = []
    now = 0.1
    while now < 15:
        count = fill(control, now)
        now += 0.1
        for _ in range(count):
            control.on_acknowledged(SIZE, now - 0.1, now)
        history.append(control.congestion_window / SIZE)
    k = (1000 * 0.3 / 0.4) ** (1 / 3)
    at_k = history[int(k / 0.1)]
    assert 950 <= at_k <= 1050
    steps = [after - before for before, after in itertools.pairwise(history)]
    assert steps[5] > steps[int(k / 0.1) - 10], "slower and slower up to there"
    assert steps[-1] > steps[int(k / 0.1) + 5], "faster and faster from there"


def test_cubic_does_not_count_idle_time() -> None:
    """RFC 9438 section 5.8: no jump after a pause."""
    control = CubicControl(SIZE)
    control.congestion_window = 100 * SIZE
    fill(control, -0.1)
    control.on_lost(SIZE, -0.1, 0.0)
    control.bytes_in_flight = 0
    now = 0.1
    for _ in range(10):
        count = fill(control, now)
        now += 0.1
        for _ in range(count):
            control.on_acknowledged(SIZE, now - 0.1, now)
    control.on_sent(SIZE, now)
    control.on_acknowledged(SIZE, now, now + 0.1)
    before = control.congestion_window
    now += 1000
    for _ in range(fill(control, now)):
        control.on_acknowledged(SIZE, now, now + 0.1)
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


@BOTH
def test_half_a_window_in_use_is_enough_to_grow_in_slow_start(kind: Kind) -> None:
    control = kind(SIZE)
    control.congestion_window = 40 * SIZE
    for used, grown in ((20, 0), (21, 21)):
        control.on_sent(used * SIZE, used)
        control.on_acknowledged(used * SIZE, used, used + 0.1)
        assert control.congestion_window == (40 + grown) * SIZE


@BOTH
def test_after_persistent_congestion_slow_start_begins_anew(kind: Kind) -> None:
    """RFC 9002 section 7.6.2: packets sent before count again."""
    control = kind(SIZE)
    control.congestion_window = 100 * SIZE
    fill(control, 1.0)
    control.on_lost(90 * SIZE, 1.0, 2.0)
    control.on_persistent_congestion()
    assert control.congestion_window == 2 * SIZE
    control.on_acknowledged(5 * SIZE, 1.0, 2.1)
    assert control.congestion_window == 7 * SIZE


@BOTH
def test_round_trips_which_grow_end_slow_start_slowly_and_without_a_loss(kind: Kind) -> None:
    """RFC 9406: the growth is a quarter for five rounds, then congestion avoidance begins."""
    control = kind(SIZE)
    now = 1.0
    growths = []
    for turn in range(12):
        rtt = 0.05 if turn < 3 else 0.1
        before = control.congestion_window
        count = fill(control, now)
        for _ in range(count):
            control.on_acknowledged(SIZE, now, now + rtt)
            control.on_rtt(rtt, now + rtt)
        growths.append(control.congestion_window / before)
        now += rtt
    assert growths[:3] == [2.0, 2.0, 2.0]
    assert all(1.24 <= growth <= 1.26 for growth in growths[5:8])
    assert control.congestion_window >= control.ssthresh, "in congestion avoidance"
    assert all(1 < growth < 1.1 for growth in growths[10:])


def test_round_trips_which_shrink_again_were_noise() -> None:
    """RFC 9406 section 4.2."""
    exit_ = SlowStartExit()
    for now, rtt in enumerate((0.05, 0.1, 0.05)):
        exit_.on_acknowledged(float(now), float(now) + 0.5)
        for _ in range(8):
            exit_.on_sample(rtt)
        assert exit_.divisor == (4 if rtt == 0.1 else 1)
    for now in range(3, 20):
        assert not exit_.on_acknowledged(float(now), float(now) + 0.5)


def test_cubic_gives_way_when_it_loses_before_it_is_back_at_its_maximum() -> None:
    """RFC 9438 section 4.7."""
    control = CubicControl(SIZE)
    control.congestion_window = 1000 * SIZE
    control.on_congestion(now=1.0, sent_time=0.5)
    assert control._largest == 1000 * SIZE
    assert control.congestion_window == pytest.approx(700 * SIZE, abs=1)
    control.on_congestion(now=2.0, sent_time=1.5)
    assert control._largest == pytest.approx(0.85 * 700 * SIZE, abs=1)
    control.begin_path(3.0)
    control.on_congestion(now=4.0, sent_time=3.5)
    assert control._largest == 10 * SIZE, "nothing is known of another path"


def test_cubic_grows_at_least_as_fast_as_reno_on_short_paths() -> None:
    """RFC 9438 section 4.3."""
    control = CubicControl(SIZE)
    control.congestion_window = 20 * SIZE
    control.on_rtt(0.01, 0.5)
    control.on_congestion(now=1.0, sent_time=0.5)
    now = 1.1
    for _ in range(40):
        count = fill(control, now)
        now += 0.01
        for _ in range(count):
            control.on_acknowledged(SIZE, now - 0.01, now)
    # Half a packet a round trip up to the old maximum, then one: about 14 + 12 / 2 + 28.
    assert 36 * SIZE <= control.congestion_window <= 52 * SIZE


def test_reno_grows_by_one_packet_for_each_window_acknowledged_since_the_loss() -> None:
    control = RenoControl(SIZE)
    control.congestion_window = 20 * SIZE
    control.on_congestion(now=1.0, sent_time=0.5)
    now = 1.1
    for acknowledged, window in ((9, 10), (1, 11), (10, 11)):
        control.on_sent(control.congestion_window, now)
        control.on_acknowledged(acknowledged * SIZE, now, now + 0.05)
        assert control.congestion_window == window * SIZE
        control.on_expired(control.bytes_in_flight)
        now += 0.1
    control.on_congestion(now=now, sent_time=now)
    assert control.congestion_window == pytest.approx(5.5 * SIZE)
    control.on_sent(control.congestion_window, now + 0.1)
    control.on_acknowledged(2 * SIZE, now + 0.1, now + 0.2)
    assert control.congestion_window == pytest.approx(5.5 * SIZE), "what came before is forgotten"


@BOTH
def test_marks_of_routers_reduce_the_window_as_losses_do(kind: Kind) -> None:
    """RFC 9002 section 7.1."""
    by_loss, by_mark = kind(SIZE), kind(SIZE)
    by_loss.on_sent(SIZE, 1.0)
    by_loss.on_lost(SIZE, 1.0, 1.1)
    by_mark.on_congestion(now=1.1, sent_time=1.0)
    assert by_mark.congestion_window == by_loss.congestion_window < 10 * SIZE
    by_mark.on_congestion(now=1.2, sent_time=1.05)
    assert by_mark.congestion_window == by_loss.congestion_window, "once a round trip"


@BOTH
def test_another_path_begins_with_the_initial_window(kind: Kind) -> None:
    """RFC 9000 section 9.4."""
    control = kind(SIZE)
    for number in range(4):
        for _ in range(fill(control, float(number))):
            control.on_acknowledged(SIZE, float(number), number + 0.1)
    fill(control, 5.0)
    control.on_lost(SIZE, 5.0, 5.1)
    fill(control, 5.5)
    control.begin_path(6.0)
    assert control.congestion_window == 10 * SIZE
    assert control.ssthresh == NO_THRESHOLD
    control.on_lost(SIZE, 5.5, 6.1)
    assert control.congestion_window == 10 * SIZE, "of the old path"
    left = control.bytes_in_flight
    control.on_acknowledged(left, 5.5, 6.2)
    assert control.congestion_window == 10 * SIZE, "likewise"
    for _ in range(fill(control, 6.3)):
        control.on_acknowledged(SIZE, 6.3, 6.4)
    assert control.congestion_window == 20 * SIZE


def test_a_stall_is_no_time_in_which_cubic_grows() -> None:
    """RFC 9438 section 5.8: the same growth as without the stall."""
    windows = []
    for stall in (0.0, 600.0):
        control = CubicControl(SIZE)
        control.congestion_window = 100 * SIZE
        fill(control, 0.5)
        control.on_lost(control.bytes_in_flight, 0.5, 1.0)
        now = 1.1
        for turn in range(20):
            if turn == 10 and stall:
                control.exclude(now, now + stall)
                control.exclude(now - 500, now - 400)  # long before
                now += stall
            count = fill(control, now)
            now += 0.1
            for _ in range(count):
                control.on_acknowledged(SIZE, now - 0.1, now)
        windows.append(control.congestion_window)
    assert windows[1] == pytest.approx(windows[0], abs=2)
    never = CubicControl(SIZE)
    never.exclude(0.0, math.inf)
    assert never.congestion_window == 10 * SIZE


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "ack", "lose", "expire", "mark", "wait"]), st.integers(1, 30)
        ),
        max_size=60,
    ),
    cubic=st.booleans(),
)
@examples(150)
def test_the_books_balance_whatever_happens(steps: list[tuple[str, int]], cubic: bool) -> None:
    control: Control = (CubicControl if cubic else RenoControl)(SIZE)
    control.maximum_window = 200 * SIZE
    now = 0.0
    flying: list[float] = []
    for action, amount in steps:
        now += 0.001
        if action == "send":
            for _ in range(amount):
                if control.bytes_in_flight + SIZE <= control.congestion_window:
                    flying.append(now)
                    control.on_sent(SIZE, now)
        elif action == "ack" and flying:
            acked, flying = flying[:amount], flying[amount:]
            control.on_acknowledged(len(acked) * SIZE, acked[-1], now)
            control.on_rtt(now - acked[-1], now)
        elif action == "lose" and flying:
            lost, flying = flying[:amount], flying[amount:]
            control.on_lost(len(lost) * SIZE, lost[-1], now)
        elif action == "expire" and flying:
            expired, flying = flying[:amount], flying[amount:]
            before = control.congestion_window, control.ssthresh
            control.on_expired(len(expired) * SIZE)
            assert (control.congestion_window, control.ssthresh) == before
        elif action == "mark":
            control.on_congestion(now=now, sent_time=now - 0.001)
        else:
            now += amount * 0.1
        assert control.bytes_in_flight == len(flying) * SIZE
        assert 2 * SIZE <= control.congestion_window <= 200 * SIZE


class Bottleneck:
    """One sender, one link with a drop-tail queue, packets as numbers, virtual time."""

    def __init__(self, kind: Kind, *, rate: float, rtt: float, queue: float) -> None:
        self.control = kind(SIZE)
        self.pacer = Pacer(SIZE)
        self.rate, self.rtt, self.queue = rate / 8, rtt, queue
        self.free_at = 0.0
        self.acks: list[tuple[float, int, float]] = []
        self.smoothed = rtt
        self.delivered = 0
        self.number = 0
        self.lost: list[tuple[float, int, float]] = []

    def run(self, start: float, stop: float) -> float:
        """The used share of the link from `start` to `stop`."""
        now, before = start, self.delivered
        while now < stop:
            self.send(now)
            now += 0.001
            while self.acks and self.acks[0][0] <= now:
                at, _, sent_time = heapq.heappop(self.acks)
                self.delivered += SIZE
                sample = at - sent_time
                self.smoothed += (sample - self.smoothed) / 8
                self.control.on_acknowledged(SIZE, sent_time, at)
                self.control.on_rtt(sample, at)
                self.pacer.update_rate(self.control.congestion_window, self.smoothed)
            gone = []
            while self.lost and self.lost[0][0] <= now:
                gone.append(heapq.heappop(self.lost)[2])
            if gone:
                self.control.on_lost(len(gone) * SIZE, max(gone), now)
        return (self.delivered - before) / (self.rate * (stop - start))

    def send(self, now: float) -> None:
        self.pacer.begin_call(10_000)
        while (
            self.control.bytes_in_flight + SIZE <= self.control.congestion_window
            and self.pacer.next_send_time(now) is None
        ):
            self.number += 1
            self.control.on_sent(SIZE, now)
            self.pacer.update_after_send(now)
            waiting = max(0.0, self.free_at - now) * self.rate
            if waiting > self.queue:
                heapq.heappush(self.lost, (now + self.rtt * 1.2, self.number, now))
                continue
            self.free_at = max(now, self.free_at) + SIZE / self.rate
            heapq.heappush(self.acks, (self.free_at + self.rtt, self.number, now))


@pytest.mark.parametrize("queue", [1_250_000, 400_000])
def test_cubic_fills_a_long_path_within_five_seconds(queue: int) -> None:
    """100 Mbit/s, 100 ms; the queue holds one, or a third of, bandwidth times round trip."""
    link = Bottleneck(CubicControl, rate=100e6, rtt=0.1, queue=queue)
    link.run(0.0, 4.0)
    assert link.run(4.0, 5.0) > 0.85
    assert link.run(5.0, 15.0) > 0.9
