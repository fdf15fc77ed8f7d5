"""Limits the bytes in flight, by CUBIC or Reno over whole acknowledgements.

Floor 1, sans-IO: takes numbers, gives a window.  Both controllers

* grow the window only while the window, not the application, is the limit (RFC 9002 section 7.8);
* leave slow start when round trips grow (HyStart++, RFC 9406), and ignore noise from the
  scheduler of a busy machine;
* reduce the window at most once a round trip (RFC 9002 section 7.3.2).
"""

from __future__ import annotations

import math
from typing import Final

__all__ = [
    "NO_THRESHOLD",
    "Control",
    "CubicControl",
    "RenoControl",
    "SlowStartExit",
    "make_control",
]

#: The slow start threshold before the first congestion: above any window.
NO_THRESHOLD: Final = 1 << 61

_INITIAL_PACKETS: Final = 10  # RFC 9002 section 7.2
_MINIMUM_PACKETS: Final = 2

#: The window counts as used when less than this many packets were left of it.  So a run held
#: back by the pacer or the socket does not look like an idle application.
_NEARLY_FULL_PACKETS: Final = 3

_CUBIC_BETA: Final = 0.7  # RFC 9438 section 4.6
_CUBIC_C: Final = 0.4  # RFC 9438 section 5.1, in packets a second cubed
_RENO_BETA: Final = 0.5  # RFC 9002 section 7.3.2

# HyStart++ (RFC 9406 section 4.3).
_MIN_RTT_THRESHOLD: Final = 0.004
_MAX_RTT_THRESHOLD: Final = 0.016
_SAMPLES: Final = 8
_GROWTH_DIVISOR: Final = 4
_CAUTIOUS_ROUNDS: Final = 5


class SlowStartExit:
    """HyStart++ (RFC 9406): leave slow start when round trips grow, before packets are lost.

    Attributes:
      divisor: the growth of the window is divided by this at present.
    """

    __slots__ = (
        "_baseline",
        "_cautious_rounds",
        "_current",
        "_last",
        "_round_ends",
        "_samples",
        "divisor",
    )

    def __init__(self) -> None:
        self.divisor: int = 1
        self._last: float = math.inf
        self._current: float = math.inf
        self._samples: int = 0
        self._round_ends: float = 0.0
        self._cautious_rounds: int = 0
        self._baseline: float = math.inf

    def on_sample(self, rtt: float) -> None:
        """A round-trip sample, in seconds."""
        if rtt < self._current:
            self._current = rtt
        self._samples += 1
        if self._samples < _SAMPLES:
            return
        if self._cautious_rounds:
            if self._current < self._baseline:
                self._cautious_rounds = 0  # it was noise
                self.divisor = 1
        elif self._last < math.inf:
            threshold = min(max(self._last / 8, _MIN_RTT_THRESHOLD), _MAX_RTT_THRESHOLD)
            if self._current >= self._last + threshold:
                self._baseline = self._current
                self._cautious_rounds = 1
                self.divisor = _GROWTH_DIVISOR

    def on_acknowledged(self, sent_time: float, now: float) -> bool:
        """Take the send time of the newest acknowledged packet; whether slow start is over."""
        if sent_time < self._round_ends:
            return False
        # A round ends when a packet sent after its beginning is acknowledged.
        self._round_ends = now
        if self._samples:
            self._last = self._current
        self._current = math.inf
        self._samples = 0
        if not self._cautious_rounds:
            return False
        self._cautious_rounds += 1
        return self._cautious_rounds > _CAUTIOUS_ROUNDS


class Control:
    """The common part of both controllers: slow start, recovery, and limits to growth.

    Args:
      max_datagram_size: bytes of the largest UDP payload at present.

    Attributes:
      congestion_window: bytes that may be in flight.
      bytes_in_flight: bytes neither acknowledged nor lost.
      ssthresh: below it, the window doubles each round trip (RFC 9002 section 7.3.1);
        :data:`NO_THRESHOLD` before the first congestion.
      maximum_window: bytes above which the window does not grow; set by the owner.
    """

    __slots__ = (
        "_exit",
        "_full_at",
        "_max_datagram_size",
        "_recovery_start",
        "_rtt",
        "bytes_in_flight",
        "congestion_window",
        "maximum_window",
        "ssthresh",
    )

    def __init__(self, max_datagram_size: int) -> None:
        self.congestion_window: int = _INITIAL_PACKETS * max_datagram_size
        self.bytes_in_flight: int = 0
        self.ssthresh: int = NO_THRESHOLD
        self.maximum_window: int = 1 << 40
        self._max_datagram_size: int = max_datagram_size
        self._recovery_start: float = -1.0
        self._exit: SlowStartExit = SlowStartExit()
        self._full_at: float = -1.0  # when the window was last used
        self._rtt: float = 0.1

    def on_sent(self, size: int, now: float) -> None:
        """Count `size` bytes as sent, in one packet or in several."""
        in_flight = self.bytes_in_flight + size
        self.bytes_in_flight = in_flight
        window = self.congestion_window
        # (In slow start half the window is enough: a burst may not fill a window that has just
        # doubled.)
        if window - in_flight < _NEARLY_FULL_PACKETS * self._max_datagram_size or (
            window < self.ssthresh and in_flight * 2 > window
        ):
            self._full_at = now

    def on_acknowledged(self, size: int, sent_time: float, now: float) -> None:
        """Packets with `size` bytes in all have arrived; the newest was sent at `sent_time`."""
        self.bytes_in_flight -= size
        if sent_time <= self._recovery_start:
            return  # RFC 9002 section 7.3.2: no growth in recovery
        window = self.congestion_window
        # The window grows only if it was full while this packet was in flight.
        was_full = sent_time <= self._full_at
        if window >= self.ssthresh:
            self._avoid(size, now, was_full)
        elif self._exit.on_acknowledged(sent_time, now):
            self.ssthresh = window
            self._begin_avoidance()
        elif was_full:
            self._set_window(window + size // self._exit.divisor)

    def on_expired(self, size: int) -> None:
        """Count `size` bytes as no longer in flight, without any sign of congestion."""
        self.bytes_in_flight -= size

    def on_lost(self, size: int, latest_sent_time: float, now: float) -> None:
        """Packets with `size` bytes in all are lost; the newest was sent at `latest_sent_time`."""
        self.bytes_in_flight -= size
        self.on_congestion(now=now, sent_time=latest_sent_time)

    def on_persistent_congestion(self) -> None:
        """Restart at the minimum window (RFC 9002 section 7.6.2).

        Slow start lasts up to the threshold.
        """
        self._set_window(0)
        self._recovery_start = -1.0

    def on_rtt(self, rtt: float, now: float) -> None:
        """Take a round-trip sample, in seconds, including the peer's delay."""
        self._rtt = rtt
        if self.congestion_window < self.ssthresh:
            self._exit.on_sample(rtt)

    def on_congestion(self, *, now: float, sent_time: float) -> None:
        """A packet sent at `sent_time` was lost, or marked by a router (RFC 9002 section 7.1)."""
        if sent_time <= self._recovery_start:
            return  # this reduction was made already
        self._recovery_start = now
        self._reduce()
        self._set_window(self.ssthresh)
        self._begin_avoidance()

    def exclude(self, began: float, ended: float) -> None:
        """Do not count the time from `began` to `ended`, when this side stood still, as use."""

    def set_max_datagram_size(self, size: int) -> None:
        """Take the size of datagrams that the path carries now (RFC 9002 section 7.2)."""
        self._max_datagram_size = size
        window = self.congestion_window
        if self.ssthresh == NO_THRESHOLD:
            window = max(window, _INITIAL_PACKETS * size)
        self._set_window(window)

    def begin_path(self, now: float) -> None:
        """Start anew on another path, of which nothing is known (RFC 9000 section 9.4)."""
        self.ssthresh = NO_THRESHOLD
        self._exit = SlowStartExit()
        self._full_at = -1.0
        # Packets sent before neither widen nor narrow the new window.
        self._recovery_start = now
        self._set_window(_INITIAL_PACKETS * self._max_datagram_size)
        self._begin_avoidance()

    def _set_window(self, size: int) -> None:
        minimum = _MINIMUM_PACKETS * self._max_datagram_size
        self.congestion_window = max(minimum, min(size, self.maximum_window))

    def _reduced(self, share: float) -> int:
        """That share of the window, but at least two packets (RFC 9002 section 7.2)."""
        reduced = int(self.congestion_window * share)
        return max(reduced, _MINIMUM_PACKETS * self._max_datagram_size)

    def _reduce(self) -> None:
        """Set the threshold after a loss."""
        raise NotImplementedError

    def _begin_avoidance(self) -> None:
        """Begin congestion avoidance, or begin it anew after a reduction."""

    def _avoid(self, acknowledged: int, now: float, grow: bool) -> None:
        """Take an acknowledgement in congestion avoidance."""
        raise NotImplementedError


class RenoControl(Control):
    """NewReno (RFC 9002 section 7.3)."""

    __slots__ = ("_stash",)

    def __init__(self, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size)
        self._stash: int = 0  # bytes acknowledged since the window last grew

    def _reduce(self) -> None:
        self.ssthresh: int = self._reduced(_RENO_BETA)
        self._stash = 0

    def _avoid(self, acknowledged: int, now: float, grow: bool) -> None:
        if not grow:
            return
        self._stash += acknowledged
        while self._stash >= self.congestion_window:
            self._stash -= self.congestion_window
            before = self.congestion_window
            self._set_window(before + self._max_datagram_size)
            if self.congestion_window == before:
                self._stash = 0
                return


class CubicControl(Control):
    """CUBIC (RFC 9438), in bytes."""

    __slots__ = ("_epoch", "_idle_since", "_k", "_largest", "_reno")

    def __init__(self, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size)
        self._largest: float = 0.0  # W_max
        self._epoch: float = math.inf  # when avoidance began; infinite: it has not
        self._k: float = 0.0
        self._reno: float = 0.0  # W_est, what Reno would have
        self._idle_since: float = math.inf

    def _reduce(self) -> None:
        window = self.congestion_window
        # RFC 9438 section 4.7, fast convergence: give way to newcomers.
        share = (1 + _CUBIC_BETA) / 2 if window < self._largest else 1.0
        self._largest = window * share
        self.ssthresh: int = self._reduced(_CUBIC_BETA)

    def begin_path(self, now: float) -> None:
        super().begin_path(now)
        self._largest = 0.0

    def _begin_avoidance(self) -> None:
        self._epoch = math.inf

    def exclude(self, began: float, ended: float) -> None:
        # RFC 9438 section 5.8, as for time left unused by the application.
        epoch = self._epoch
        if ended > epoch:
            self._epoch = epoch + ended - max(began, epoch)

    def _start_epoch(self, now: float) -> None:
        window = self.congestion_window
        self._epoch = now
        self._idle_since = math.inf
        self._reno = float(window)
        if self._largest <= window:
            self._largest = float(window)  # RFC 9438 section 4.10: slow start ended without loss
        gap = (self._largest - window) / self._max_datagram_size
        self._k = (gap / _CUBIC_C) ** (1 / 3)

    def _avoid(self, acknowledged: int, now: float, grow: bool) -> None:
        if self._epoch == math.inf:
            self._start_epoch(now)
        if not grow:
            # RFC 9438 section 5.8: time left unused by the application does not count.
            if self._idle_since == math.inf:
                self._idle_since = now
            return
        if self._idle_since != math.inf:
            self._epoch += now - self._idle_since
            self._idle_since = math.inf
        window = self.congestion_window
        size = self._max_datagram_size
        elapsed = now - self._epoch + self._rtt
        cubic = self._largest + _CUBIC_C * (elapsed - self._k) ** 3 * size
        # Section 4.3: at least as aggressive as Reno; alpha makes the means equal until the old
        # maximum is reached.
        alpha = 3 * (1 - _CUBIC_BETA) / (1 + _CUBIC_BETA) if self._reno < self._largest else 1.0
        self._reno += alpha * size * acknowledged / window
        target = min(max(cubic, window), 1.5 * window)
        grown = window + (target - window) * acknowledged / window
        self._set_window(int(max(grown, self._reno)))


def make_control(name: str, max_datagram_size: int) -> Control:
    """The congestion controller of that name: ``"cubic"`` or ``"reno"``.

    Raises:
      ValueError: there is no such controller.
    """
    if name == "cubic":
        return CubicControl(max_datagram_size)
    if name == "reno":
        return RenoControl(max_datagram_size)
    raise ValueError(f"{name!r} is not a congestion controller")
