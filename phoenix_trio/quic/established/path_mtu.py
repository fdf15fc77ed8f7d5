"""Searches the largest UDP payload that a path carries, and notices when it shrinks.

Floor 0, sans-IO: Datagram Packetization Layer PMTU Discovery (RFC 8899, RFC 9000 section 14.3).
The engine sends a padded PING of the requested size, and reports the fate of the probe and of
ordinary packets.  :class:`MtuSearch` tells which size to try next and which size to use.  ICMP
messages are neither needed nor believed.
"""

from __future__ import annotations

import math

from ...config import SMALLEST_UDP_PAYLOAD

__all__ = ["MtuSearch"]

#: Common sizes of paths, less the headers of IPv4 or IPv6 and UDP: jumbo frames, a common cloud
#: network, Ethernet, PPPoE, tunnels, and IPv6's minimum.
_COMMON = (8972, 8952, 4052, 1472, 1452, 1444, 1424, 1392, 1352, 1232)

#: A size is given up after so many lost probes (MAX_PROBES of RFC 8899 section 5.1.2 is 3; a
#: second one is spent only if congestion may have caused the first loss).
_MAX_PROBES = 2

#: The search ends when the gap between sizes that pass and sizes that do not is this small.
_PRECISION = 16

#: Losses of larger packets, with none arriving in between, that mean a black hole: if small
#: packets arrived meanwhile, and if none did.
_SUSPICIONS = 3
_SUSPICIONS_ALONE = 6

#: Seconds until a finished search checks whether the path has grown (RFC 8899's PMTU_RAISE_TIMER).
_RAISE_SECONDS = 600.0


class MtuSearch:
    """The state of one path.

    Args:
      ceiling: the largest payload worth trying, in bytes: the smallest limit of the interface,
        the peer and the configuration.
    """

    __slots__ = (
        "_best_failed",
        "_lost_probes",
        "_next_search_at",
        "_probe",
        "_small_arrived",
        "_suspected",
        "_suspicions",
        "ceiling",
        "size",
    )

    def __init__(self, ceiling: int) -> None:
        self.ceiling: int = max(ceiling, SMALLEST_UDP_PAYLOAD)
        self.size: int = SMALLEST_UDP_PAYLOAD
        """The largest payload known to pass, in bytes."""
        self._best_failed = self.ceiling + 1
        self._probe: int | None = None
        self._lost_probes = 0
        self._suspicions = 0
        self._suspected = 0  # the smallest size lost since then
        self._small_arrived = False
        self._next_search_at = math.inf

    def next_probe(self, now: float) -> int | None:
        """The size of the probe to send now; ``None``: none is due, or one is under way."""
        if self._probe is not None:
            return None
        if now >= self._next_search_at:
            self._next_search_at = math.inf
            self._best_failed = self.ceiling + 1
        size = self._candidate()
        if size is None:
            if self._next_search_at == math.inf and self.size < self.ceiling:
                self._next_search_at = now + _RAISE_SECONDS
            return None
        self._probe = size
        return size

    def _candidate(self) -> int | None:
        largest = self._best_failed - 1
        if largest <= self.size:
            return None
        if self._best_failed > self.ceiling:
            return self.ceiling
        if self._best_failed - self.size <= _PRECISION:
            return None
        for common in _COMMON:
            if self.size < common < self._best_failed:
                return common
        if self.size in _COMMON:
            return None  # nearly always right; searching the rest of the gap would cost lost probes
        return (self.size + self._best_failed) // 2

    @property
    def is_probing(self) -> bool:
        """Whether :meth:`next_probe` may have a probe at once, before its :attr:`deadline`."""
        return self._probe is None and self.size < self.ceiling and self._next_search_at == math.inf

    @property
    def deadline(self) -> float:
        """The time of the next probe without other events; ``math.inf``: never."""
        return self._next_search_at

    def on_probe_acknowledged(self, size: int) -> bool:
        """A probe has arrived; returns whether :attr:`size` has grown."""
        if size != self._probe:
            return False  # of an earlier search
        self._probe = None
        self._lost_probes = 0
        self._suspicions = 0
        self.size = size
        return True

    def on_probe_lost(self, size: int) -> None:
        """Take note of a lost probe: congestion may have caused one loss, but hardly two."""
        if size != self._probe:
            return
        self._probe = None
        self._lost_probes += 1
        if self._lost_probes >= _MAX_PROBES:
            self._lost_probes = 0
            self._best_failed = size

    def on_acknowledged(self, size: int) -> None:
        """Take note that an ordinary packet of `size` bytes has arrived."""
        if not self._suspicions:
            return
        if size >= self._suspected:
            self._suspicions = 0
            self._small_arrived = False
        else:
            self._small_arrived = True

    def on_lost(self, size: int) -> bool:
        """Note the loss of packets of up to `size` bytes; returns whether it is a black hole.

        In a black hole, :attr:`size` is the smallest again, and the search goes on below its
        former value (RFC 8899 section 4.3).
        """
        if size <= SMALLEST_UDP_PAYLOAD or self.size <= SMALLEST_UDP_PAYLOAD:
            return False
        self._suspected = min(self._suspected, size) if self._suspicions else size
        self._suspicions += 1
        enough = _SUSPICIONS if self._small_arrived else _SUSPICIONS_ALONE
        if self._suspicions < enough:
            return False
        self._small_arrived = False
        self._best_failed = self.size
        self.size = SMALLEST_UDP_PAYLOAD
        self._suspicions = 0
        self._lost_probes = 0
        self._probe = None
        return True
