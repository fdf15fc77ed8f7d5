"""Decides which partial files of a receiver to delete.

Floor 4, pure: no files, no clock.  A part is the file left by a broken transfer; it waits
for its sender to go on.  Parts hold disk space that others need, so they have a
lifetime and quotas, and give way when the disk is short.  Parts of transfers under way
never expire, and do not come here.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import attrs

__all__ = ["Part", "PartLimits", "next_expiry", "choose_removed_parts", "to_remove"]

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

    Args:
      lifetime: Seconds after its last byte for which a part is kept.
        Default: 86,400 s (more than 0, up to math.inf).

        A day: a sender that is away for longer begins anew.
      max_count: The most parts of all senders.  Default: 256 (0 or more).

        256: each costs a directory entry and a look at every clean-up.
      max_count_per_peer: The most parts of one sender's address.  Default: 32 (0 or more).

        32: an eighth of all, so that one sender does not take all places.
      max_bytes: The most bytes of all parts.  Default: None (0 or more, or None).

        ``None``: half of the space that would be free without them.  In any case, parts are
        deleted for transfers that need the space.
      max_bytes_per_peer: The most bytes of one sender's parts.
        Default: None (0 or more, or None).

        ``None``: as many as all may have, so that a file that fills half of the disk
        can be continued if there is no other sender.
      keep_free: Bytes of the disk that transfers leave free.  Default: None (0 or more, or None).

        ``None``: a hundredth of it, at most 1 GiB, so that the machine goes on working when the
        disk is full.

    Raises:
      ValueError: a field is out of range.
    """

    lifetime: float = attrs.field(default=_DAY, validator=_positive)
    max_count: int = attrs.field(default=256, validator=_not_negative)
    max_count_per_peer: int = attrs.field(default=32, validator=_not_negative)
    max_bytes: int | None = attrs.field(default=None, validator=_not_negative)
    max_bytes_per_peer: int | None = attrs.field(default=None, validator=_not_negative)
    keep_free: int | None = attrs.field(default=None, validator=_not_negative)


@attrs.frozen
class Part:
    """A waiting partial file."""

    name: str
    peer: str
    """The sender to which it belongs."""
    size: int
    written_at: float
    """When it was last written, on the clock of `now` below."""


def to_remove(parts: Iterable[Part], limits: PartLimits, now: float, *, free: int) -> list[Part]:
    """The parts that have to go, in the order in which they go.

    First go the parts past their lifetime.  Then, for each sender above its quota, those
    written longest ago.  Then, while all together are above theirs, the part written longest
    ago of the sender with most: so one sender cannot push out the parts of others.

    Args:
      parts: the waiting parts.
      limits: the limits.
      now: the time.
      free: free bytes on the disk.
    """
    gone: list[Part] = []
    fresh: list[Part] = []
    room = free
    for part in sorted(parts, key=_by_age):
        room += part.size  # removing a part frees its bytes, so the sum stays
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


def choose_removed_parts(parts: Iterable[Part], needed: int) -> list[Part]:
    """The parts that give way to a transfer needing so many bytes more than are free.

    Of the sender with most, the part written longest ago goes first.  None goes if all
    together would not be enough.
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
    """Parts by sender, each sender's in the order of their age."""

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

    Parts past it already, which could not be removed, are not waited for.
    """
    ends = (part.written_at + limits.lifetime for part in parts)
    return min((end for end in ends if end > now), default=math.inf)
