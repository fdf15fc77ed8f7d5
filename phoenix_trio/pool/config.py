"""The settings of a pool: frozen data, checked on construction.

Floor 4: no I/O.  Every field states its unit, range and default, and the reason for the
default.  ``attrs.evolve(config, field=value)`` derives a changed copy.
"""

from __future__ import annotations

import math
import random
from typing import Any

import attrs

from ..config_checks import integer, seconds

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
    """How long to wait after a failure: longer each time, and different for each client.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range, or `initial` is above `maximum`.
    """

    initial: float = attrs.field(default=0.2, validator=seconds(0.0, 3600.0, exclusive=True))
    """Seconds to wait after the first failure (more than 0, up to 3600).

    0.2 s is a few round trips, so a restarting server is found soon."""

    maximum: float = attrs.field(default=30.0, validator=seconds(0.0, 86_400.0, exclusive=True))
    """Seconds to wait at most (more than 0, up to 86,400).

    30 s: a returning server is noticed within half a minute, and two attempts a
    minute are a small load."""

    jitter: float = attrs.field(default=0.5, validator=_fraction)
    """The random part of the delay (0 to 1).

    0.5: the delay is between half of its full length and all of it, so that
    clients that lost their server together do not return together."""

    def __attrs_post_init__(self) -> None:
        if self.initial > self.maximum:
            raise ValueError(
                f"initial ({self.initial:g} s) must not be above maximum ({self.maximum:g} s)"
            )

    def delay(self, failures: int, source: random.Random) -> float:
        """Seconds to wait after so many failures in a row (at least 1); each doubles the last."""
        # Larger exponents overflow a float, and the maximum applies long before.
        full = min(self.maximum, self.initial * 2.0 ** min(max(failures, 1) - 1, 64))
        return full * (1 - self.jitter * source.random())


@attrs.frozen(kw_only=True)
class PoolConfig:
    """How a pool shares, opens and closes connections.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range.
    """

    max_connections: int = attrs.field(default=100, validator=integer(1, 10_000_000))
    """Connections the pool has at most, those being dialled and being closed
    included (1 to 10,000,000).

    100: a connection can hold some tens of megabytes of buffers, so an ordinary
    machine can hold this many when all are busy."""

    max_connections_per_target: int = attrs.field(default=16, validator=integer(1, 10_000_000))
    """The same for one target (1 to 10,000,000); never more than `max_connections` in effect.

    16: streams share a connection well, so a few suffice; striped transfers over
    long lossy paths gain up to about ten."""

    max_leases_per_connection: int | None = attrs.field(
        default=None, validator=_optional(integer(1, 10_000_000))
    )
    """The most leases that share one connection (1 to 10,000,000).

    ``None``: as many as the peer's stream credit lets work at once, so the peer decides.
    1 gives every lease a connection of its own."""

    idle_timeout: float = attrs.field(
        default=20.0, validator=seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    """Seconds without a lease after which a connection is closed in good order
    (more than 0, up to 86,400, or ``math.inf``: never).

    20 s: below ``TransportConfig.max_idle_timeout`` (30 s), after which the transport drops
    an idle connection without telling the peer.  If the peer's idle timeout is shorter, two
    thirds of that apply, unless something keeps the connection alive."""

    patience: float = attrs.field(default=1.0, validator=seconds(0.0, 3600.0))
    """Seconds for which a lease waits for the best way to serve it, before the next
    best is taken (0 to 3600): while a further connection is still being dialled, one
    without stream credit is shared; where other targets keep all connections busy,
    one of them takes no further leases and is closed when its last one ends.

    1 s: longer than a handshake, so that no connection changes hands for a waiter that
    would be served in a moment anyway."""

    failure_memory: float = attrs.field(default=0.1, validator=seconds(0.0, 3600.0))
    """Seconds for which a failed dial answers later callers as well, if
    `reconnect_backoff` is not set (0 to 3600).

    0.1 s: callers that retry in a tight loop cause ten dials a second rather than
    thousands, and a delay of a tenth of a second is not noticeable when the peer is back."""

    reconnect_backoff: Backoff | None = attrs.field(
        default=None, validator=_optional(attrs.validators.instance_of(Backoff))
    )
    """If set, leases asked for after a failed dial wait for the next dial, which
    comes after this back-off.

    ``None``: they fail at once (see `failure_memory`), because a caller often has
    something better to do than to wait.  Connections kept warm, and further ones
    to a target that has some, are always dialled with a back-off: this one, or
    ``Backoff()``."""

    health_check_interval: float | None = attrs.field(
        default=None, validator=_optional(seconds(0.0, 86_400.0, exclusive=True))
    )
    """Seconds without a lease, or since the last check, after which an idle connection
    is pinged (more than 0, up to 86,400); ``None``: never.

    ``None``: it costs packets, and ``TransportConfig.keep_alive`` with its idle
    timeout finds dead peers as well, only later."""

    health_check_timeout: float = attrs.field(
        default=5.0, validator=seconds(0.0, 3600.0, exclusive=True)
    )
    """Seconds to wait for the answer to such a ping (more than 0, up to 3600); after that
    the connection is given up.

    5 s: several probe timeouts of a path with half a second of round trip."""

    close_timeout: float = attrs.field(
        default=30.0, validator=seconds(0.0, 86_400.0, exclusive=True, infinite=True)
    )
    """Seconds that a connection closed by the pool has to deliver the data sent on it
    (more than 0, up to 86,400, or ``math.inf``); after that it is aborted.  The limit does
    not apply when the pool's block is left: there the caller's cancel scope decides.

    30 s: a connection whose peer is gone has timed out by then anyway."""

    def idle_for(self, idle_limit: float) -> float:
        """Seconds without a lease after which a connection is closed.

        Args:
          idle_limit: seconds of silence after which the connection is lost; ``math.inf``: never.
        """
        if self.health_check_interval is not None:
            return self.idle_timeout  # its pings keep it alive
        return min(self.idle_timeout, idle_limit * IDLE_SHARE)

    @property
    def per_target(self) -> int:
        """The effective limit for one target."""
        return min(self.max_connections, self.max_connections_per_target)

    @property
    def seats(self) -> float:
        """The most leases on one connection; ``math.inf``: only stream credit limits them."""
        return (
            math.inf if self.max_leases_per_connection is None else self.max_leases_per_connection
        )
