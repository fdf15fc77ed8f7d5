"""How many bytes may be in flight?  CUBIC and Reno, told of whole batches.

Floor 1, sans-IO: numbers in, a window out.  Registered with aioquic under names
of our own, beside its "cubic" and "reno" (``quic/congestion/`` in 1.7.2), which

* grow the window while the application, not the window, is the limit
  (RFC 9002 section 7.8 forbids it; values above 10^9 bytes were seen);
* CUBIC: cut the window to 0.7 of what is left in flight *after* the lost packets
  were taken out, fall back to the initial window after two idle seconds, and
  grow before what was lost has been repaired;
* leave slow start on round-trip noise which a busy machine's scheduler makes.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.packet_builder import QuicSentPacket

__all__ = ["CUBIC", "RENO", "CubicControl", "RenoControl", "SlowStartExit"]

#: Names under which aioquic finds the controllers.
CUBIC = "phoenix-cubic"
RENO = "phoenix-reno"

_INITIAL_PACKETS = 10  # RFC 9002 section 7.2
_MINIMUM_PACKETS = 2

#: The window counts as used when less than this many packets were left of it; a run which
#: the pacer or the socket held back must not look like an idle application.
_NEARLY_FULL_PACKETS = 3

_CUBIC_BETA = 0.7  # RFC 9438 section 4.6
_CUBIC_C = 0.4  # RFC 9438 section 5.1, in packets a second cubed
_RENO_BETA = 0.5  # RFC 9002 section 7.3.2


class SlowStartExit:
    """HyStart++ (RFC 9406): leave slow start when round trips grow, before packets are lost."""

    _MIN_THRESHOLD = 0.004
    _MAX_THRESHOLD = 0.016
    _SAMPLES = 8
    _GROWTH_DIVISOR = 4
    _CAUTIOUS_ROUNDS = 5

    __slots__ = ("_baseline", "_cautious_rounds", "_current", "_last", "_round_ends", "_samples")

    def __init__(self) -> None:
        self._last = float("inf")
        self._current = float("inf")
        self._samples = 0
        self._round_ends = 0.0
        self._cautious_rounds = 0
        self._baseline = float("inf")

    @property
    def divisor(self) -> int:
        """By what the growth of the window is divided at present."""
        return self._GROWTH_DIVISOR if self._cautious_rounds else 1

    def on_sample(self, rtt: float) -> None:
        """A round-trip sample, in seconds."""
        self._current = min(self._current, rtt)
        self._samples += 1
        if self._samples < self._SAMPLES:
            return
        if self._cautious_rounds:
            if self._current < self._baseline:
                self._cautious_rounds = 0  # it was noise
        elif self._last < float("inf"):
            threshold = min(max(self._last / 8, self._MIN_THRESHOLD), self._MAX_THRESHOLD)
            if self._current >= self._last + threshold:
                self._baseline = self._current
                self._cautious_rounds = 1

    def on_acknowledged(self, sent_time: float, now: float) -> bool:
        """The newest packet acknowledged was sent at `sent_time`; whether slow start is over."""
        if sent_time < self._round_ends:
            return False
        # A round ends when something that was sent after its beginning is acknowledged.
        self._round_ends = now
        if self._samples:
            self._last = self._current
        self._current = float("inf")
        self._samples = 0
        if self._cautious_rounds:
            self._cautious_rounds += 1
        return self._cautious_rounds > self._CAUTIOUS_ROUNDS


class _Control(QuicCongestionControl):
    """What both have in common: slow start, recovery, and when growing is permitted."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._max_datagram_size = max_datagram_size
        self.maximum_window = 1 << 40
        """Bytes above which the window does not grow; set by the owner."""
        self._recovery_start = -1.0
        self._exit = SlowStartExit()
        self._full_at = -1.0  # when the window was last used
        self._rtt = 0.1

    # -- aioquic's interface

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes
        # (In slow start half the window is enough: a burst may not fill a window which has
        # just doubled.)
        if self._is_full() or (
            self.is_in_slow_start and self.bytes_in_flight * 2 > self.congestion_window
        ):
            self._full_at = packet.sent_time or 0.0

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """One packet, or several as one with the sum of their bytes and the latest send time."""
        acknowledged = packet.sent_bytes
        sent_time = packet.sent_time
        assert sent_time is not None
        self.bytes_in_flight -= acknowledged
        if sent_time <= self._recovery_start:
            return  # RFC 9002 section 7.3.2: no growth in recovery
        # Was it in flight when the window was full?
        was_full = sent_time <= self._full_at
        if self.is_in_slow_start:
            if self._exit.on_acknowledged(sent_time, now):
                self.ssthresh = self.congestion_window
                self._begin_avoidance(now)
            elif was_full:
                self._set_window(self.congestion_window + acknowledged // self._exit.divisor)
        else:
            self._avoid(acknowledged, now, grow=was_full)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        self.bytes_in_flight -= sum([packet.sent_bytes for packet in packets])

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        latest = -1.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            latest = max(latest, packet.sent_time or 0.0)
        self.on_congestion(now=now, sent_time=latest)

    def on_persistent_congestion(self) -> None:
        """RFC 9002 section 7.6.2: from the bottom again, in slow start up to the threshold."""
        self._set_window(0)
        self._recovery_start = -1.0

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        self._rtt = rtt
        if self.is_in_slow_start:
            self._exit.on_sample(rtt)

    # -- ours

    def on_congestion(self, *, now: float, sent_time: float) -> None:
        """A packet sent at `sent_time` was lost, or marked by a router (RFC 9002 section 7.1)."""
        if sent_time <= self._recovery_start:
            return  # this reduction was made already
        self._recovery_start = now
        self._reduce()
        self._set_window(self.ssthresh or self.congestion_window)
        self._begin_avoidance(now)

    def exclude(self, began: float, ended: float) -> None:
        """Nobody was awake to send from `began` to `ended`: the window has not been in use."""

    @property
    def is_in_slow_start(self) -> bool:
        """Whether the window doubles each round trip."""
        return self.ssthresh is None or self.congestion_window < self.ssthresh

    def set_max_datagram_size(self, size: int) -> None:
        """The path carries datagrams of another size (RFC 9002 section 7.2)."""
        self._max_datagram_size = size
        if self.ssthresh is None:
            self._set_window(max(self.congestion_window, _INITIAL_PACKETS * size))
        else:
            self._set_window(self.congestion_window)

    def begin_path(self, now: float) -> None:
        """Another path: nothing is known of it (RFC 9000 section 9.4)."""
        self.ssthresh = None
        self._exit = SlowStartExit()
        self._full_at = -1.0
        # What was sent before neither widens nor narrows the new window.
        self._recovery_start = now
        self._set_window(_INITIAL_PACKETS * self._max_datagram_size)
        self._begin_avoidance(now)

    def _is_full(self) -> bool:
        room = self.congestion_window - self.bytes_in_flight
        return room < _NEARLY_FULL_PACKETS * self._max_datagram_size

    def _set_window(self, size: int) -> None:
        minimum = _MINIMUM_PACKETS * self._max_datagram_size
        self.congestion_window = max(minimum, min(size, max(self.maximum_window, minimum)))

    def _reduce(self) -> None:
        """Set the threshold after a loss."""
        raise NotImplementedError

    def _begin_avoidance(self, now: float) -> None:
        """Congestion avoidance begins, or begins anew after a reduction."""

    def _avoid(self, acknowledged: int, now: float, *, grow: bool) -> None:
        """An acknowledgement in congestion avoidance."""
        raise NotImplementedError


class RenoControl(_Control):
    """NewReno (RFC 9002 section 7.3)."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._stash = 0

    def _reduce(self) -> None:
        minimum = _MINIMUM_PACKETS * self._max_datagram_size
        self.ssthresh = max(int(self.congestion_window * _RENO_BETA), minimum)
        self._stash = 0

    def _avoid(self, acknowledged: int, now: float, *, grow: bool) -> None:
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


class CubicControl(_Control):
    """CUBIC (RFC 9438), in bytes."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._largest = 0.0  # W_max
        self._epoch: float | None = None
        self._k = 0.0
        self._reno = 0.0  # W_est, what Reno would have
        self._idle_since: float | None = None

    def _reduce(self) -> None:
        window = self.congestion_window
        # RFC 9438 section 4.7, fast convergence: give way to newcomers.
        share = (1 + _CUBIC_BETA) / 2 if window < self._largest else 1.0
        self._largest = window * share
        minimum = _MINIMUM_PACKETS * self._max_datagram_size
        self.ssthresh = max(int(window * _CUBIC_BETA), minimum)

    def begin_path(self, now: float) -> None:
        super().begin_path(now)
        self._largest = 0.0

    def _begin_avoidance(self, now: float) -> None:
        self._epoch = None

    def exclude(self, began: float, ended: float) -> None:
        # RFC 9438 section 5.8, as for time which the application left unused.
        if self._epoch is not None and ended > self._epoch:
            self._epoch += ended - max(began, self._epoch)

    def _start_epoch(self, now: float) -> None:
        window = self.congestion_window
        self._epoch = now
        self._idle_since = None
        self._reno = float(window)
        if self._largest <= window:
            self._largest = float(window)  # RFC 9438 section 4.10: slow start ended without loss
        gap = (self._largest - window) / self._max_datagram_size
        self._k = (gap / _CUBIC_C) ** (1 / 3)

    def _avoid(self, acknowledged: int, now: float, *, grow: bool) -> None:
        if self._epoch is None:
            self._start_epoch(now)
        assert self._epoch is not None
        if not grow:
            # RFC 9438 section 5.8: time which the application left unused does not count.
            if self._idle_since is None:
                self._idle_since = now
            return
        if self._idle_since is not None:
            self._epoch += now - self._idle_since
            self._idle_since = None
        window = self.congestion_window
        size = self._max_datagram_size
        elapsed = now - self._epoch + self._rtt
        cubic = self._largest + _CUBIC_C * (elapsed - self._k) ** 3 * size
        # Section 4.3: as aggressive as Reno at least; alpha makes the means equal until the
        # old maximum is reached.
        alpha = 3 * (1 - _CUBIC_BETA) / (1 + _CUBIC_BETA) if self._reno < self._largest else 1.0
        self._reno += alpha * size * acknowledged / window
        target = min(max(cubic, window), 1.5 * window)
        grown = window + (target - window) * acknowledged / window
        self._set_window(int(max(grown, self._reno)))


register_congestion_control(CUBIC, CubicControl)
register_congestion_control(RENO, RenoControl)
