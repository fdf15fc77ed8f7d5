"""What a pool says of itself: plain numbers, nothing that changes under the reader.

Floor 4: data only.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["PoolStatistics", "TargetStatistics"]


@attrs.frozen(kw_only=True)
class TargetStatistics:
    """One target at one moment."""

    connections: int
    """Connections which are open, draining ones not included."""
    idle: int
    """Those of them which nobody leases."""
    dialling: int
    """Connections being established: 0 or 1."""
    closing: int
    """Connections which are being closed, or drain."""
    leases: int
    """Leases which are held."""
    waiting: int
    """Leases which wait."""
    leases_granted: int
    """Leases so far, since the target was last forgotten: it is when it has nothing open."""
    dials: int
    """The same: attempts to connect."""
    dial_failures: int


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """A pool at one moment; sums over :attr:`targets` are properties."""

    targets: Mapping[str, TargetStatistics]
    """By target, as ``"host:port"``."""
    evicted_idle: int
    """Connections closed because nobody leased them for the idle timeout."""
    evicted_for_others: int
    """Idle connections closed because another target needed the slot."""
    drained: int
    """Connections closed because their peer, or the application, had them drained."""
    lost: int
    """Connections which ended although the pool did not close them."""
    health_failures: int
    """Connections given up because a health check was not answered."""

    @property
    def connections(self) -> int:
        """Open connections."""
        return sum(each.connections for each in self.targets.values())

    @property
    def idle(self) -> int:
        """Open connections which nobody leases."""
        return sum(each.idle for each in self.targets.values())

    @property
    def dialling(self) -> int:
        """Connections being established."""
        return sum(each.dialling for each in self.targets.values())

    @property
    def closing(self) -> int:
        """Connections which are being closed, or drain."""
        return sum(each.closing for each in self.targets.values())

    @property
    def leases(self) -> int:
        """Leases which are held."""
        return sum(each.leases for each in self.targets.values())

    @property
    def waiting(self) -> int:
        """Leases which wait."""
        return sum(each.waiting for each in self.targets.values())
