"""Links of a simulated network: the conditions and the queue of one direction.

Floor 3.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, final

import attrs

from .conditions import Conditions

if TYPE_CHECKING:
    from .network import SimulatedNetwork

__all__ = ["SimulatedLink"]


@final
class SimulatedLink:
    """One direction between two hosts.  Obtained from :meth:`SimulatedNetwork.link`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._own: Conditions | None = None
        self._cut = False
        self._free_at = -math.inf
        # Datagrams in or before a slow link: when each is through, and its size.
        self._queue: deque[tuple[float, int]] = deque()
        self._queued_bytes = 0

    def __repr__(self) -> str:
        state = "cut" if self._cut else f"{self._queued_bytes} bytes queued"
        return f"<SimulatedLink ({state})>"

    @property
    def conditions(self) -> Conditions:
        """The present conditions of this direction."""
        return self._network.conditions if self._own is None else self._own

    def set_conditions(self, **changes: float | None) -> None:
        """Change some conditions of this direction only; it keeps its own from now on.

        Raises:
          TypeError: no such condition.
          ValueError: a value is out of range.
        """
        self._own = attrs.evolve(self.conditions, **changes)  # type: ignore[arg-type]

    def _departure(self, size: int, now: float) -> float | None:
        """When a datagram is through the bottleneck; ``None``: the queue is full.

        First in, first out, also where the bandwidth has changed meanwhile.
        """
        conditions = self.conditions
        queue = self._queue
        while queue and queue[0][0] <= now:
            self._queued_bytes -= queue.popleft()[1]
        if conditions.bandwidth is None:
            return max(now, self._free_at)
        if queue and self._queued_bytes + size > conditions.queue_bytes:
            return None
        self._free_at = max(now, self._free_at) + size * 8 / conditions.bandwidth
        queue.append((self._free_at, size))
        self._queued_bytes += size
        return self._free_at
