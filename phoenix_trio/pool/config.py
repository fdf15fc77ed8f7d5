"""The settings of a pool, as frozen data which is checked when it is made.

Floor 4: no I/O.  Every field says its unit, range and default, and why the
default is what it is.  ``attrs.evolve(config, field=value)`` derives a changed copy.
"""

from __future__ import annotations

import math
import random
from typing import Any

import attrs

from ..config import _integer, _seconds

__all__ = ["IDLE_SHARE", "Backoff", "PoolConfig"]

#: The part of the transport's idle timeout after which the pool acts on a silent connection.
IDLE_SHARE = 2 / 3


def _fraction(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be a number, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value!r}")


def _optional(validator: Any) -> Any:
    return attrs.validators.optional(validator)


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait after a failure: longer each time, and never for everybody alike.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range, or `initial` is above `maximum`.
    """

    initial: float = attrs.field(default=0.2, validator=_seconds(0.0, 3600.0, exclusive=True))
    """Seconds to wait after the first failure (more than 0, up to 3600).

    0.2 s is a few round trips: a server which is being restarted is found soon."""

    maximum: float = attrs.field(default=30.0, validator=_seconds(0.0, 86_400.0, exclusive=True))
    """Seconds to wait at most (more than 0, up to 86,400).

    30 s: what comes back is noticed within half a minute, and two attempts a
    minute burden nobody."""

    jitter: float = attrs.field(default=0.5, validator=_fraction)
    """The part of the delay which is drawn at random (0 to 1).

    0.5: the delay is between half of its full length and all of it, so that
    clients which lost their server together do not come back together."""

    def __attrs_post_init__(self) -> None:
        if self.initial > self.maximum:
            raise ValueError(
                f"initial ({self.initial:g} s) must not be above maximum ({self.maximum:g} s)"
            )

    def delay(self, failures: int, source: random.Random) -> float:
        """Seconds to wait after so many failures in a row (at least 1); each doubles the last."""
        # Beyond the exponents of a float there is only the maximum anyway.
        full = min(self.maximum, self.initial * 2.0 ** min(max(failures, 1) - 1, 64))
        return full * (1 - self.jitter * source.random())


@attrs.frozen(kw_only=True)
class PoolConfig:
    """How a pool shares, opens and closes connections.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range.
    """

    max_connections: int = attrs.field(default=100, validator=_integer(1, 10_000_000))
    """Connections the pool has at most, those being dialled and being closed
    included (1 to 10,000,000).

    100: a connection can hold some tens of megabytes of buffers, so this is
    what an ordinary machine bears when all are busy."""

    max_connections_per_target: int = attrs.field(default=16, validator=_integer(1, 10_000_000))
    """The same for one target (1 to 10,000,000); never more than `max_connections` in effect.

    16: streams share a connection well, so a few suffice; striped transfers over
    long lossy paths gain up to about ten."""

    max_leases_per_connection: int | None = attrs.field(
        default=None, validator=_optional(_integer(1, 10_000_000))
    )
    """Leases which share one connection at most (1 to 10,000,000).

    ``None``: as many as the peer's stream credit lets work at once, which the
    peer has chosen for itself.  1 gives every lease a connection of its own."""

    idle_timeout: float = attrs.field(
        default=20.0, validator=_seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    """Seconds without a lease after which a connection is closed in good order
    (more than 0, up to 86,400, or ``math.inf``: never).

    20 s: below ``TransportConfig.max_idle_timeout`` (30 s), at which an idle
    connection would be dropped without a word to the peer.  With a peer whose own is
    shorter, two thirds of that, unless something keeps the connection alive."""

    patience: float = attrs.field(default=1.0, validator=_seconds(0.0, 3600.0))
    """Seconds for which a lease waits for the best way to serve it, before the next
    best is taken (0 to 3600): while a further connection is still being dialled, one
    without stream credit is shared; where other targets keep all connections busy,
    one of them takes no further leases and is closed when its last one ends.

    1 s: longer than a handshake, so that connections do not change hands for the
    sake of a waiter which is served in a moment."""

    failure_memory: float = attrs.field(default=0.1, validator=_seconds(0.0, 3600.0))
    """Seconds for which a failed dial answers those who come after it, where
    `reconnect_backoff` is not set (0 to 3600).

    0.1 s: callers who retry in a tight loop cause ten dials a second rather than
    thousands, and nobody notices a tenth of a second when the peer is back."""

    reconnect_backoff: Backoff | None = attrs.field(
        default=None, validator=_optional(attrs.validators.instance_of(Backoff))
    )
    """Where set, leases asked for after a failed dial wait for the next one, which
    comes after this back-off.

    ``None``: they fail at once (see `failure_memory`), because a caller often has
    something better to do than to wait.  Connections which are kept warm, and
    further ones to a target which has some, are always dialled with a back-off:
    this one, or ``Backoff()``."""

    health_check_interval: float | None = attrs.field(
        default=None, validator=_optional(_seconds(0.0, 86_400.0, exclusive=True))
    )
    """Seconds without a lease, or since the last check, after which an idle connection
    is pinged (more than 0, up to 86,400); ``None``: never.

    ``None``: it costs packets, and ``TransportConfig.keep_alive`` with its idle
    timeout finds dead peers as well, only later."""

    health_check_timeout: float = attrs.field(
        default=5.0, validator=_seconds(0.0, 3600.0, exclusive=True)
    )
    """Seconds for which the answer to such a ping is waited for (more than 0, up to 3600);
    then the connection is given up.

    5 s: several probe timeouts of a path with half a second of round trip."""

    close_timeout: float = attrs.field(
        default=30.0, validator=_seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    """Seconds which a connection closed by the pool is given to deliver what was sent on
    it (more than 0, up to 86,400, or ``math.inf``); then it is aborted.  It does not
    apply when the pool's block is left: there the caller's cancel scope decides.

    30 s: a connection whose peer is gone has timed out by then anyway."""

    def idle_for(self, idle_limit: float) -> float:
        """Seconds without a lease after which a connection is closed.

        Args:
          idle_limit: seconds of silence after which it would be lost; ``math.inf``: never.
        """
        if self.health_check_interval is not None:
            return self.idle_timeout  # its pings keep it alive
        return min(self.idle_timeout, idle_limit * IDLE_SHARE)

    @property
    def per_target(self) -> int:
        """The limit for one target which is in effect."""
        return min(self.max_connections, self.max_connections_per_target)

    @property
    def seats(self) -> float:
        """Leases on one connection at most; ``math.inf`` where only stream credit counts."""
        return (
            math.inf if self.max_leases_per_connection is None else self.max_leases_per_connection
        )
