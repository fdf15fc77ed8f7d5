"""Decides which partial files of a receiver have to go.

Floor 4, pure: no files, no clock.  A part is what a broken transfer has left; it waits
for its sender to go on.  Parts hold disk space which others need, so they have a
lifetime and quotas, and give way when the disk is short.  Parts of transfers under way
are not in question here: they never expire.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import attrs

__all__ = ["Part", "PartLimits", "next_expiry", "to_give_way", "to_remove"]

_DAY = 86_400.0


def _positive(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError(f"{attribute.name} must be more than zero, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError(f"{attribute.name} must not be negative, not {value!r}")


@attrs.frozen(kw_only=True)
class PartLimits:
    """How long and how many partial files wait for their senders.

    Raises:
      ValueError: a field is out of range.
    """

    lifetime: float = attrs.field(default=_DAY, validator=_positive)
    """Seconds after its last byte for which a part is kept (more than 0, up to ``math.inf``).

    A day: a sender who is away for longer begins anew."""

    max_count: int = attrs.field(default=256, validator=_not_negative)
    """Parts of all senders (0 or more).

    256: each costs a directory entry and a look at every clean-up."""

    max_count_per_peer: int = attrs.field(default=32, validator=_not_negative)
    """Parts of one sender's address (0 or more)."""

    max_bytes: int | None = attrs.field(default=None, validator=_not_negative)
    """Bytes of all parts (0 or more); ``None``: half of what would be free without them.

    Whatever it is, parts give way to transfers which need the space."""

    max_bytes_per_peer: int | None = attrs.field(default=None, validator=_not_negative)
    """Bytes of one sender's parts (0 or more); ``None``: as many as all may have, so that a
    file which fills half of the disk can be continued where there is no other sender."""

    keep_free: int | None = attrs.field(default=None, validator=_not_negative)
    """Bytes of the disk which transfers leave free (0 or more); ``None``: a hundredth of it,
    at most 1 GiB, so that the machine goes on working when the disk is full."""


@attrs.frozen
class Part:
    """A partial file which waits."""

    name: str
    peer: str
    """Whose it is."""
    size: int
    written_at: float
    """When it was written last, on the clock of `now` below."""


def to_remove(parts: Iterable[Part], limits: PartLimits, now: float, *, free: int) -> list[Part]:
    """The parts which have to go, in the order in which they go.

    First go those past their lifetime.  Then, of each sender above its quota, those
    written longest ago.  Then, while all together are above theirs, the one written
    longest ago of the sender which has most: so one sender cannot push out the parts
    of others.

    Args:
      parts: those which wait.
      limits: the limits.
      now: the time.
      free: bytes which are free on the disk.
    """
    gone: list[Part] = []
    fresh: list[Part] = []
    room = free
    for part in sorted(parts, key=_by_age):
        room += part.size  # what is free grows as parts go, so the sum stays
        (gone if now - part.written_at >= limits.lifetime else fresh).append(part)
    max_bytes = room // 2 if limits.max_bytes is None else limits.max_bytes
    per_peer = max_bytes if limits.max_bytes_per_peer is None else limits.max_bytes_per_peer
    holdings = _Holdings(fresh)
    for peer in list(holdings.parts):
        while (count := len(holdings.parts[peer])) and (
            count > limits.max_count_per_peer or holdings.sizes[peer] > per_peer
        ):
            gone.append(holdings.pop(peer))
    while holdings.count > limits.max_count:
        gone.append(holdings.pop(max(holdings.parts, key=lambda peer: len(holdings.parts[peer]))))
    while holdings.bytes > max_bytes:
        gone.append(holdings.pop(holdings.largest))
    return gone


def to_give_way(parts: Iterable[Part], needed: int) -> list[Part]:
    """The parts which give way to a transfer that needs so many bytes more than are free.

    The one written longest ago of the sender which has most goes first.  None goes where
    all together would not be enough.
    """
    holdings = _Holdings(sorted(parts, key=_by_age))
    if holdings.bytes < needed:
        return []
    gone: list[Part] = []
    while needed > 0:
        gone.append(holdings.pop(holdings.largest))
        needed -= gone[-1].size
    return gone


def _by_age(part: Part) -> tuple[float, str]:
    return part.written_at, part.name


class _Holdings:
    """Parts by sender, each one's in the order of their age."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts: dict[str, deque[Part]] = defaultdict(deque)
        self.sizes: dict[str, int] = defaultdict(int)
        self.count = 0
        self.bytes = 0
        for part in parts:
            self.parts[part.peer].append(part)
            self.sizes[part.peer] += part.size
            self.count += 1
            self.bytes += part.size

    @property
    def largest(self) -> str:
        """The sender with most bytes."""
        return max(self.sizes, key=self.sizes.__getitem__)

    def pop(self, peer: str) -> Part:
        """Take the oldest part of a sender away."""
        part = self.parts[peer].popleft()
        self.sizes[peer] -= part.size
        self.count -= 1
        self.bytes -= part.size
        return part


def next_expiry(parts: Iterable[Part], limits: PartLimits, now: float) -> float:
    """When the next of these will be past its lifetime; ``math.inf``: never.

    Those which are past it already, and could not be removed, are not waited for.
    """
    ends = (part.written_at + limits.lifetime for part in parts)
    return min((end for end in ends if end > now), default=math.inf)
