"""The conditions of a simulated link, and statistics of what happened to datagrams.

Floor 3, plain data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

__all__ = ["Conditions", "Datagram", "NetworkStatistics", "Tap"]

#: A tap may let a datagram pass, change it, multiply it, or swallow it.
Tap = Callable[["Datagram"], "Datagram | list[Datagram] | None"]


@attrs.frozen
class Datagram:
    """One datagram as a tap sees it, before any fault."""

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes
    ecn: int = 0
    """The ECN codepoint in the IP header (RFC 3168 section 5): 2 is ECT(0), 3 is CE."""


def _probability(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be a probability from 0 to 1, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be zero or more seconds, not {value!r}")


def _positive(instance: object, attribute: attrs.Attribute[int], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{attribute.name} must be more than zero, or None, not {value!r}")


@attrs.frozen(kw_only=True)
class Conditions:
    """The treatment of datagrams that cross a link in one direction.

    Raises:
      ValueError: a value is out of range; the text names the field.
    """

    loss: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams that get lost, 0 to 1."""
    delay: float = attrs.field(default=0.0, validator=_not_negative)
    """Seconds on the way, in this direction."""
    jitter: float = attrs.field(default=0.0, validator=_not_negative)
    """Up to so many seconds more, evenly distributed; later datagrams may overtake."""
    batching: float = attrs.field(default=0.0, validator=_not_negative)
    """Datagrams arrive at multiples of so many seconds, as from a network card that
    collects them for one interrupt: receivers see long runs.  0: no collecting."""
    reorder: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams held back for one more `delay` (at least 1 ms)."""
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams that arrive twice."""
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams in which one bit is flipped."""
    mark: float = attrs.field(default=0.0, validator=_probability)
    """The share of ECN-capable datagrams marked as "congestion experienced"."""
    bandwidth: float | None = attrs.field(default=None, validator=_positive)
    """Bits a second; ``None``: no limit."""
    queue_bytes: int = attrs.field(default=256 * 1024, validator=_positive)
    """The most bytes that wait for a link with limited bandwidth; further ones are dropped.

    A datagram that finds the queue empty always passes."""
    mtu: int | None = attrs.field(default=1500, validator=_positive)
    """The largest UDP payload in bytes; larger ones are lost silently; ``None``: any."""


@attrs.frozen(kw_only=True)
class NetworkStatistics:
    """Counts of all datagrams so far, by what happened to them.

    ``sent + duplicated`` is the sum of all the others but ``corrupted``.
    """

    sent: int
    duplicated: int
    corrupted: int
    delivered: int
    """Read by a socket."""
    under_way: int
    """On a link, or waiting in a socket to be read."""
    lost: int
    queue_full: int
    """Dropped before a slow link."""
    too_large: int
    partitioned: int
    no_listener: int
    receive_buffer_full: int
