"""Receive windows: credit follows reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.flow_control import ReceiveWindow


def test_nothing_is_granted_while_nothing_is_read() -> None:
    window = ReceiveWindow(1000, 8000)
    for now in range(100):
        assert not window.update(float(now), rtt=0.1)
    assert window.limit == 1000


def test_credit_waits_until_it_is_worth_a_frame() -> None:
    window = ReceiveWindow(1000, 1000)
    window.release(249)
    assert not window.update(0.0, rtt=0.1)
    window.release(1)
    assert window.update(0.0, rtt=0.1)
    assert window.limit == 1250


def test_a_fast_reader_gets_a_window_up_to_the_maximum() -> None:
    window = ReceiveWindow(1000, 5000)
    now = 0.0
    for _ in range(100):
        window.release(window.limit - window.released)
        window.update(now, rtt=0.1)
        now += 0.1
    assert window.size == 5000


def test_a_slow_reader_keeps_its_small_window() -> None:
    window = ReceiveWindow(1000, 64_000)
    now = 0.0
    for _ in range(100):
        window.release(500)
        window.update(now, rtt=0.01)
        now += 1.0
    assert window.size == 1000


@given(
    initial=st.integers(1, 10_000),
    maximum=st.integers(1, 100_000),
    reads=st.lists(st.tuples(st.floats(0, 1), st.floats(0.0001, 1.0)), max_size=60),
)
def test_what_may_be_outstanding_never_exceeds_the_maximum(
    initial: int, maximum: int, reads: list[tuple[float, float]]
) -> None:
    window = ReceiveWindow(initial, maximum)
    now = 0.0
    last = window.limit
    for share, rtt in reads:
        window.release(int((window.limit - window.released) * share))
        window.update(now, rtt)
        assert window.limit >= last, "a limit must never shrink (RFC 9000 section 4.1)"
        assert 0 <= window.limit - window.released <= maximum
        last = window.limit
        now += rtt
