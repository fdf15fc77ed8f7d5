"""The pacer, in virtual time."""

from __future__ import annotations

import pytest

from phoenix_trio.quic.established.pacer import Pacer


def send_for(pacer: Pacer, seconds: float, *, wake_every: float) -> int:
    """Count the packets that leave in this time with a loop that wakes up that often."""
    now, packets = 100.0, 0
    while now < 100.0 + seconds:
        pacer.begin_call()
        while pacer.next_send_time(now) is None:
            pacer.update_after_send(now)
            packets += 1
            assert packets < 1_000_000
        now += wake_every
    return packets


@pytest.mark.parametrize("wake_every", [0.0001, 0.001, 0.002])
def test_the_rate_is_five_quarters_of_a_window_a_round_trip(wake_every: float) -> None:
    pacer = Pacer(1200)
    pacer.update_rate(congestion_window=1200 * 400, smoothed_rtt=0.1)
    packets = send_for(pacer, 2.0, wake_every=wake_every)
    assert packets == pytest.approx(1.25 * 400 / 0.1 * 2.0, rel=0.03)


def test_one_call_never_sends_more_than_a_bounded_run() -> None:
    pacer = Pacer(1200)
    for _ in range(2):
        pacer.begin_call()
        packets = 0
        while pacer.next_send_time(0.0) is None:
            pacer.update_after_send(0.0)
            packets += 1
        assert packets == 64
        assert pacer.next_send_time(0.0) == 0.0, "more may leave in the next call, at once"


def test_a_wait_is_as_long_as_one_packet_needs() -> None:
    pacer = Pacer(1000)
    pacer.update_rate(congestion_window=16_000, smoothed_rtt=0.2)  # 100,000 bytes a second
    pacer.begin_call()
    now = 50.0
    while (at := pacer.next_send_time(now)) is None:
        pacer.update_after_send(now)
    assert 0.0099 <= at - now <= 0.02
    assert pacer.next_send_time(at) is None


def burst(pacer: Pacer, now: float) -> int:
    pacer.begin_call(1000)
    packets = 0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        packets += 1
    return packets


def test_after_a_pause_one_bounded_burst_leaves() -> None:
    """RFC 9002 section 7.7; a slow path, so 2.5 ms of its rate are less than 16 packets."""
    pacer = Pacer(1200)
    pacer.update_rate(congestion_window=1200 * 100, smoothed_rtt=0.1)
    assert burst(pacer, 50.0) == 16
    assert burst(pacer, 50.0) == 0
    pacer.begin_call()
    assert pacer.next_send_time(60.0) is None
    pacer.update_after_send(60.0)
    assert burst(pacer, 60.0) == 15
    assert burst(pacer, 60.001) in (1, 2), "1.25 packets a millisecond"


def test_a_burst_on_a_path_of_high_rate_is_two_and_a_half_milliseconds_long() -> None:
    pacer = Pacer(1200)
    pacer.update_rate(congestion_window=1200 * 1000, smoothed_rtt=0.01)
    assert pacer.packets_available(50.0) == 313
    pacer.update_after_run(300)
    assert pacer.packets_available(50.0) == 13
    pacer.update_rate(congestion_window=1200 * 10, smoothed_rtt=0.01)
    assert pacer.packets_available(60.0) == 17, "a smaller window has a smaller burst"


def test_a_new_path_has_no_rate_until_its_first_sample() -> None:
    pacer = Pacer(1200)
    pacer.update_rate(congestion_window=1200 * 10, smoothed_rtt=1.0)
    assert burst(pacer, 50.0) == 16
    pacer.begin_path()
    assert pacer.packets_available(50.0) == 64
    assert burst(pacer, 50.0) == 1000, "as many as the call may take"
    pacer.update_rate(congestion_window=1200 * 10, smoothed_rtt=1.0)
    assert burst(pacer, 50.0) == 0
