"""The pacer, in virtual time."""

from __future__ import annotations

import pytest

from phoenix_trio.quic.pacer import Pacer


def send_for(pacer: Pacer, seconds: float, *, wake_every: float) -> int:
    """Packets which leave in this time with a loop that wakes up that often."""
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
