"""Computes the timers of an idle connection from the idle timeout agreed on by both sides.

Floor 0, sans-IO: takes and gives seconds.  The effective idle timeout is the smaller of both
sides' values, and at least three probe timeouts (RFC 9000 section 10.1).  The configuration has
only one of the two, so nothing is computed before the peer's transport parameters are known.
"""

from __future__ import annotations

__all__ = ["keep_alive_interval", "longest_backoff"]

#: A PING leaves after this share of the idle timeout, so that there is time to repeat it.
_KEEP_ALIVE_SHARE = 0.5

#: The interval between probes grows up to this share of the idle timeout, so that a path that
#: recovers in time is found; and up to so many seconds if there is no idle timeout.
_BACKOFF_SHARE = 0.25
_LONGEST_BACKOFF = 60.0


def keep_alive_interval(wanted: float, idle_timeout: float) -> float:
    """Seconds of silence after which a PING keeps the connection alive (RFC 9000 section 10.1.2).

    Args:
      wanted: the interval in the configuration.
      idle_timeout: the effective idle timeout.
    """
    return min(wanted, idle_timeout * _KEEP_ALIVE_SHARE)


def longest_backoff(idle_timeout: float) -> float:
    """Seconds up to which the interval between probes doubles (RFC 9002 section 6.2.1).

    Args:
      idle_timeout: the smaller of both sides' values.
    """
    return min(idle_timeout * _BACKOFF_SHARE, _LONGEST_BACKOFF)
