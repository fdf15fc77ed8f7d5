"""Spreads the packets of a congestion window over its round trip (RFC 9002 section 7.7).

Floor 1, sans-IO.  A plain token bucket in bytes.  An event loop wakes up too seldom to send one
packet at a time, so the bucket holds at least a burst of 16 packets, or 2.5 ms worth of the
rate.  A call ends after a bounded run of packets, so that no connection keeps the others
waiting.
"""

from __future__ import annotations

__all__ = ["Pacer"]

_GAIN = 1.25  # RFC 9002 section 7.7 recommends N = 1.25
_BURST_PACKETS = 16
_BURST_SECONDS = 0.0025
_PACKETS_PER_CALL = 64
_SHORTEST = 1e-6  # seconds of round trip at least, so that there is a rate


class Pacer:
    """A token bucket, refilled at 1.25 congestion windows a smoothed round trip.

    The rate is computed when the bucket is refilled, since acknowledgements may change it more
    often than that.

    Args:
      max_datagram_size: bytes of the largest UDP payload at present.

    Attributes:
      max_datagram_size: as above.
      congestion_window: bytes that may be in flight; 0: the rate is unknown, and packets leave
        as fast as possible.
      smoothed_rtt: the smoothed round trip, in seconds.
    """

    __slots__ = (
        "_left_in_call",
        "_tokens",
        "_updated_at",
        "congestion_window",
        "max_datagram_size",
        "smoothed_rtt",
    )

    def __init__(self, max_datagram_size: int) -> None:
        self.max_datagram_size: int = max_datagram_size
        self.congestion_window: int = 0
        self.smoothed_rtt: float = 0.0
        self._tokens: float = float(_BURST_PACKETS * max_datagram_size)
        self._updated_at: float = 0.0
        self._left_in_call: int = _PACKETS_PER_CALL

    def begin_path(self) -> None:
        """Start on another path, whose rate is unknown."""
        self.congestion_window = 0

    def begin_call(self, packets: int = _PACKETS_PER_CALL) -> None:
        """Begin a new call for packets; it may take at most `packets`."""
        self._left_in_call = packets

    def packets_available(self, now: float) -> int:
        """Packets of the full size that may leave now in one burst."""
        if not self.congestion_window:
            return _PACKETS_PER_CALL
        self._refill(now)
        if self._tokens <= 0:
            return 0
        return int(self._tokens // self.max_datagram_size) + 1

    def update_after_run(self, packets: int) -> None:
        """Note that `packets` packets of the full size have left at once."""
        if self.congestion_window:
            self._tokens -= packets * self.max_datagram_size

    def _refill(self, now: float) -> float:
        """Add the tokens since the last call; returns the rate, in bytes a second."""
        window = self.congestion_window
        rtt = self.smoothed_rtt
        rate = _GAIN * window / rtt if rtt > _SHORTEST else _GAIN * window / _SHORTEST
        tokens = self._tokens
        if now > self._updated_at:
            tokens += (now - self._updated_at) * rate
            self._updated_at = now
        capacity = _BURST_SECONDS * rate
        if capacity > window:
            capacity = float(window)
        least = _BURST_PACKETS * self.max_datagram_size
        if capacity < least:
            capacity = float(least)
        if tokens > capacity:
            tokens = capacity
        self._tokens = tokens
        return rate

    def next_send_time(self, now: float) -> float | None:
        """The time to ask again; ``None``: a packet may leave now."""
        if self._left_in_call <= 0:
            return now
        if not self.congestion_window:
            return None
        rate = self._refill(now)
        if self._tokens > 0:
            return None
        # Waiting for a packet's worth, not for the first byte, saves wake-ups at the same rate.
        return now + (self.max_datagram_size - self._tokens) / rate

    def update_after_send(self, now: float) -> None:
        """Note that one packet of the full size has left."""
        self._left_in_call -= 1
        if self.congestion_window:
            self._tokens -= self.max_datagram_size

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Take a new congestion window or round-trip estimate."""
        self.congestion_window = congestion_window
        self.smoothed_rtt = smoothed_rtt
