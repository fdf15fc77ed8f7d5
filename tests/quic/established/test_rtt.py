"""The round-trip estimate of RFC 9002 section 5, and the effect of a stalled process on it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.rtt import GRANULARITY, RoundTrip
from phoenix_trio.quic.established.stalls import LONGEST_ROUND_TRIP, Arrivals
from tests.support import examples

MAX_ACK_DELAY = 0.025


def sampled(*samples: float) -> RoundTrip:
    rtt = RoundTrip(0.1)
    for number, sample in enumerate(samples):
        rtt.sample(sample, 0.0, float(number), MAX_ACK_DELAY, True)
    return rtt


def test_before_the_first_sample_the_initial_round_trip_counts() -> None:
    rtt = RoundTrip(0.1)
    assert not rtt.has_sample
    assert rtt.probe_timeout(MAX_ACK_DELAY) == 0.2, "twice, without the peer's delay"
    assert rtt.loss_delay() == pytest.approx(0.1125)


def test_the_first_sample_sets_everything() -> None:
    rtt = RoundTrip(0.1)
    rtt.sample(0.08, 0.0, 7.0, MAX_ACK_DELAY, True)
    assert (rtt.latest, rtt.minimum, rtt.smoothed, rtt.variance) == (0.08, 0.08, 0.08, 0.04)
    assert rtt.has_sample
    assert rtt.first_sample_at == 7.0
    assert rtt.probe_timeout(0.0) == pytest.approx(0.24)
    assert rtt.probe_timeout(MAX_ACK_DELAY) == pytest.approx(0.265)


def test_later_samples_move_the_estimate_by_an_eighth_and_the_variance_by_a_quarter() -> None:
    rtt = sampled(0.08, 0.16)
    assert rtt.smoothed == pytest.approx(0.09)
    assert rtt.variance == pytest.approx(0.04 + (0.08 - 0.04) / 4)
    assert rtt.first_sample_at == 0.0
    assert rtt.loss_delay() == pytest.approx(0.18), "nine eighths of the larger one"


@pytest.mark.parametrize(
    ("ack_delay", "confirmed", "latest"),
    [
        (0.01, True, 0.09),
        (0.5, True, 0.075),  # the peer has promised less
        (0.03, False, 0.07),  # not yet
        (0.5, False, 0.1),  # more than the sample can contain
    ],
)
def test_the_peers_delay_is_taken_off_within_its_promise(
    ack_delay: float, confirmed: bool, latest: float
) -> None:
    rtt = sampled(0.05)
    rtt.sample(0.1, ack_delay, 1.0, MAX_ACK_DELAY, confirmed)
    assert rtt.latest == pytest.approx(latest)
    assert rtt.minimum == 0.05


def test_a_sample_below_a_millisecond_counts_as_one() -> None:
    rtt = sampled(0.0001)
    assert rtt.latest == rtt.minimum == GRANULARITY
    assert rtt.loss_delay() == pytest.approx(9 / 8 * GRANULARITY)
    assert rtt.probe_timeout(0.0) == pytest.approx(0.0001 + GRANULARITY)


def test_a_negative_sample_is_none() -> None:
    rtt = sampled(-0.001)
    assert not rtt.has_sample


def test_another_path_begins_anew() -> None:
    rtt = sampled(0.08, 0.16)
    rtt.begin_path()
    assert not rtt.has_sample
    assert (rtt.latest, rtt.smoothed, rtt.variance, rtt.minimum) == (0, 0, 0, math.inf)
    assert rtt.probe_timeout(MAX_ACK_DELAY) == 0.2


@examples(100)
@given(samples=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30))
def test_the_estimate_stays_within_the_samples(samples: list[float]) -> None:
    rtt = sampled(*samples)
    assert min(samples) - 1e-9 <= rtt.smoothed <= max([*samples, GRANULARITY]) + 1e-9
    assert rtt.minimum == max(min(samples), GRANULARITY)
    assert rtt.variance >= 0


# ------------------------------------------------------------------ a stalled process


def test_what_comes_within_the_probe_timeout_is_believed() -> None:
    assert sampled(0.1).believed(1.0, 1.25, 1.3, 0.3) == 0.25


def test_an_acknowledgement_which_may_have_waited_in_the_socket_proves_nothing() -> None:
    rtt = sampled(0.1)
    rtt.arrivals = Arrivals(1000)
    rtt.arrivals.on_read(0.01, 100, drained=True)
    assert rtt.believed(0.0, 600.0, 0.1, 0.3) == -1.0


def test_a_long_round_trip_is_believed_if_the_socket_was_looked_at() -> None:
    rtt = sampled(0.1)
    rtt.arrivals = Arrivals(1000)
    rtt.arrivals.on_read(0.9, 100, drained=True)
    assert rtt.believed(0.0, 1.0, 1.2, 0.3) == 1.0
    rtt.arrivals.on_read(899.9, 100, drained=True)
    assert rtt.believed(0.0, 900.0, 950.0, 0.3) == LONGEST_ROUND_TRIP


def test_losses_are_judged_as_of_the_time_from_which_the_acknowledgement_may_be() -> None:
    rtt = sampled(0.1)
    assert rtt.horizon(0.0, 600.0, 0.3) == 600.0, "without a driver, all is read at once"
    rtt.arrivals = Arrivals(1000)
    rtt.arrivals.on_read(0.2, 100, drained=True)
    assert rtt.horizon(0.1, 600.0, 0.3) == 0.2
    assert rtt.horizon(0.25, 600.0, 0.3) == 0.25, "not before the packet was sent"
    assert rtt.horizon(0.1, 0.45, 0.3) == 0.45, "that is not long"
