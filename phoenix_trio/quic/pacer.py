"""When may the next packet leave, so that a window is spread over its round trip?

Floor 0, sans-IO.  Takes the place of aioquic's pacer inside the engine
(RFC 9002 section 7.7).  aioquic's bucket shrinks with the rate until about two
packets leave a call, and no event loop wakes up often enough to make up for
that; this one is a plain token bucket in bytes which holds at least a burst of
16 packets or 2.5 ms worth of the rate, and which also ends a call after a
bounded run of packets, so that no connection keeps the others waiting.
"""

from __future__ import annotations

__all__ = ["Pacer"]

_GAIN = 1.25  # RFC 9002 section 7.7 recommends N = 1.25
_BURST_PACKETS = 16
_BURST_SECONDS = 0.0025
_PACKETS_PER_CALL = 64


class Pacer:
    """A token bucket, refilled at 1.25 congestion windows a smoothed round trip."""

    def __init__(self, max_datagram_size: int) -> None:
        self.max_datagram_size = max_datagram_size
        self._rate: float | None = None  # bytes a second
        self._capacity = float(_BURST_PACKETS * max_datagram_size)
        self._tokens = self._capacity
        self._updated_at = 0.0
        self._left_in_call = _PACKETS_PER_CALL

    def begin_path(self) -> None:
        """Another path: its rate is not known."""
        self._rate = None

    def begin_call(self, packets: int = _PACKETS_PER_CALL) -> None:
        """A new call for packets begins: it may take so many, and not more."""
        self._left_in_call = packets

    def packets_available(self, now: float) -> int:
        """How many packets of the full size may leave now in one burst."""
        if self._rate is None:
            return _PACKETS_PER_CALL
        self._refill(now)
        if self._tokens <= 0:
            return 0
        return int(self._tokens // self.max_datagram_size) + 1

    def update_after_run(self, packets: int) -> None:
        """So many packets of the full size have left at once."""
        if self._rate is not None:
            self._tokens -= packets * self.max_datagram_size

    def _refill(self, now: float) -> None:
        if self._rate is not None and now > self._updated_at:
            grown = self._tokens + (now - self._updated_at) * self._rate
            self._tokens = min(self._capacity, grown)
            self._updated_at = now

    def next_send_time(self, now: float) -> float | None:
        """``None``: a packet may leave now; else when to ask again."""
        if self._left_in_call <= 0:
            return now
        rate = self._rate
        if rate is None:
            return None
        self._refill(now)
        if self._tokens > 0:
            return None
        # Wait for one packet's worth, not for the first byte: fewer wake-ups, same rate.
        return now + (self.max_datagram_size - self._tokens) / rate

    def update_after_send(self, now: float) -> None:
        """One packet of the full size has left."""
        self._left_in_call -= 1
        if self._rate is not None:
            self._tokens -= self.max_datagram_size

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """The congestion window or the round-trip estimate has changed."""
        self._rate = _GAIN * congestion_window / max(smoothed_rtt, 1e-6)
        self._capacity = max(
            _BURST_PACKETS * self.max_datagram_size,
            min(congestion_window, _BURST_SECONDS * self._rate),
        )
        self._tokens = min(self._tokens, self._capacity)
