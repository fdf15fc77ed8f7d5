"""Statistics of a pool: plain numbers, frozen when they were taken.

Floor 4: data only.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["PoolStatistics", "TargetStatistics"]


@attrs.frozen(kw_only=True)
class TargetStatistics:
    """One target at one moment.

    Attributes:
      connections: Open connections, draining ones not included.
      idle: Those of them without a lease.
      dialling: Connections being established: 0 or 1.
      closing: Connections being closed, or draining.
      leases: Leases held at present.
      waiting: Waiting leases.
      leases_granted: Leases since the target was last forgotten; a target with nothing open is
        forgotten.
      dials: Attempts to connect, since the same moment.
      dial_failures: Those of them that failed.
    """

    connections: int
    idle: int
    dialling: int
    closing: int
    leases: int
    waiting: int
    leases_granted: int
    dials: int
    dial_failures: int


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """A pool at one moment; sums over `targets` are properties.

    Attributes:
      targets: By target, as ``"host:port"``.
      evicted_idle: Connections closed because they had no lease for the idle timeout.
      evicted_for_others: Idle connections closed because another target needed the slot.
      drained: Connections closed because their peer, or the application, asked for draining.
      lost: Connections that ended although the pool did not close them.
      health_failures: Connections given up because a health check was not answered.
    """

    targets: Mapping[str, TargetStatistics]
    evicted_idle: int
    evicted_for_others: int
    drained: int
    lost: int
    health_failures: int

    @property
    def connections(self) -> int:
        """Open connections."""
        return sum(each.connections for each in self.targets.values())

    @property
    def idle(self) -> int:
        """Open connections without a lease."""
        return sum(each.idle for each in self.targets.values())

    @property
    def dialling(self) -> int:
        """Connections being established."""
        return sum(each.dialling for each in self.targets.values())

    @property
    def closing(self) -> int:
        """Connections being closed, or draining."""
        return sum(each.closing for each in self.targets.values())

    @property
    def leases(self) -> int:
        """Leases held at present."""
        return sum(each.leases for each in self.targets.values())

    @property
    def waiting(self) -> int:
        """Waiting leases."""
        return sum(each.waiting for each in self.targets.values())
