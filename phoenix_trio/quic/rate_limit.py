"""Limits the rate of events.

Floor 0, sans-IO.  For admission and for logs.
"""

from __future__ import annotations

__all__ = ["RateLimit"]


class RateLimit:
    """A token bucket: at most `rate` events a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    def allows(self, now: float) -> bool:
        """Whether one more event may happen now; counts it if so."""
        if self.is_reached(now):
            return False
        self._tokens -= 1
        return True

    def count(self, now: float) -> None:
        """Count an event that has happened anyway; too many delay later ones."""
        if self.is_reached(now):
            self._tokens = max(float(-self._burst), self._tokens - 1)
        else:
            self._tokens -= 1

    def is_reached(self, now: float) -> bool:
        """Whether no event may happen now."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._tokens < 1
