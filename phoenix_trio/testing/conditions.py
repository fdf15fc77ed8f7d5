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
    """One datagram as a tap sees it, before any fault.

    Args:
      source: The sender's address.
      destination: The receiver's address.
      data: The UDP payload.
      ecn: The ECN codepoint in the IP header (RFC 3168 section 5): 2 is ECT(0), 3 is CE.
        Default: 0 (0 to 3).
    """

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes
    ecn: int = 0


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

    Every fault is off by default, so that each test names those it is about.

    Args:
      loss: The share of datagrams that get lost.  Default: 0 (0 to 1).
      delay: Seconds on the way, in this direction.  Default: 0 s (0 or more).
      jitter: Up to so many seconds more, evenly distributed; later datagrams may overtake.
        Default: 0 s (0 or more).
      batching: Datagrams arrive at multiples of so many seconds, as from a network card that
        collects them for one interrupt: receivers see long runs.  0: no collecting.
        Default: 0 s (0 or more).
      reorder: The share of datagrams held back for one more `delay` (at least 1 ms).
        Default: 0 (0 to 1).
      duplicate: The share of datagrams that arrive twice.  Default: 0 (0 to 1).
      corrupt: The share of datagrams in which one bit is flipped.  Default: 0 (0 to 1).
      mark: The share of ECN-capable datagrams marked as "congestion experienced".
        Default: 0 (0 to 1).
      bandwidth: Bits a second; ``None``: no limit.  Default: None (more than 0, or None).
      queue_bytes: The most bytes that wait for a link with limited bandwidth; further ones are
        dropped.  Default: 256 KiB (more than 0).

        256 KiB: a router's buffer of some hundred packets.  A datagram that finds the
        queue empty always passes.
      mtu: The largest UDP payload in bytes; larger ones are lost silently; ``None``: any.
        Default: 1500 (more than 0, or None).

        1500: so that connections find a larger payload than the 1200 bytes they begin with.

    Raises:
      ValueError: a value is out of range; the text names the field.
    """

    loss: float = attrs.field(default=0.0, validator=_probability)
    delay: float = attrs.field(default=0.0, validator=_not_negative)
    jitter: float = attrs.field(default=0.0, validator=_not_negative)
    batching: float = attrs.field(default=0.0, validator=_not_negative)
    reorder: float = attrs.field(default=0.0, validator=_probability)
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    mark: float = attrs.field(default=0.0, validator=_probability)
    bandwidth: float | None = attrs.field(default=None, validator=_positive)
    queue_bytes: int = attrs.field(default=256 * 1024, validator=_positive)
    mtu: int | None = attrs.field(default=1500, validator=_positive)


@attrs.frozen(kw_only=True)
class NetworkStatistics:
    """Counts of all datagrams so far, by what happened to them.

    ``sent + duplicated`` is the sum of all the others but ``corrupted``.

    Attributes:
      sent: Handed to the network.
      duplicated: Delivered twice, on purpose.
      corrupted: Changed in one bit, on purpose.
      delivered: Read by a socket.
      under_way: On a link, or waiting in a socket to be read.
      lost: Lost, on purpose.
      queue_full: Dropped before a slow link.
      too_large: Larger than the link's MTU.
      partitioned: Between two hosts without a link at the time.
      no_listener: To a port without a socket.
      receive_buffer_full: Dropped by a socket whose receive buffer was full.
    """

    sent: int
    duplicated: int
    corrupted: int
    delivered: int
    under_way: int
    lost: int
    queue_full: int
    too_large: int
    partitioned: int
    no_listener: int
    receive_buffer_full: int
