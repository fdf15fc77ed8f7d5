"""Keeps packets which arrive before the keys that open them, a few only.

Floor 0, sans-IO: knows no engine and no clock.  Reordering and loss bring
Handshake and 1-RTT packets in front of the packet which carries their keys.
RFC 9001 sections 4.1.4 and 5.7 permit to keep them; without that, each waits for
a probe timeout of the peer.  Nothing is known of such a packet, it may be forged:
so what is kept is bounded in packets and bytes for each encryption level, and
when it is full, later packets are dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

__all__ = ["MAX_BYTES", "MAX_PACKETS", "EarlyPacket", "EarlyPackets"]

#: Packets kept for each level: an initial congestion window (RFC 9002 section 7.2).
MAX_PACKETS = 10

#: Bytes kept for each level: so many packets of an Ethernet's size.
MAX_BYTES = 15_000


class EarlyPacket(NamedTuple):
    """One packet as it was received."""

    data: bytes
    address: Any
    """Where it came from."""
    time: float
    """When it arrived: round-trip times must not count the wait (RFC 9002 section 5.3)."""
    mark: int
    """The ECN codepoint of its datagram."""


class EarlyPackets:
    """The packets of one connection which wait for keys.

    Args:
      levels: encryption levels, by any numbers, whose keys are still to come.
    """

    __slots__ = ("_address", "_bytes", "_due", "_mark", "_time", "_waiting")

    def __init__(self, levels: tuple[int, ...]) -> None:
        self._waiting: dict[int, list[EarlyPacket]] = {level: [] for level in levels}
        self._bytes = dict.fromkeys(levels, 0)
        self._due: deque[EarlyPacket] = deque()
        self._address: Any = None
        self._time = 0.0
        self._mark = 0

    @property
    def held(self) -> int:
        """Bytes held: at most :data:`MAX_BYTES` for each level."""
        return sum(self._bytes.values()) + sum(len(packet.data) for packet in self._due)

    def begin_datagram(self, address: Any, time: float, mark: int) -> None:
        """The packets offered next are of a datagram from `address`."""
        self._address = address
        self._time = time
        self._mark = mark

    def offer(self, level: int, data: bytes) -> bool:
        """Keep a packet if its keys are still to come and there is room; whether it is kept."""
        waiting = self._waiting.get(level)
        if (
            waiting is None
            or len(waiting) >= MAX_PACKETS
            or self._bytes[level] + len(data) > MAX_BYTES
        ):
            return False
        waiting.append(EarlyPacket(data, self._address, self._time, self._mark))
        self._bytes[level] += len(data)
        return True

    def expect(self, level: int) -> None:
        """From now on, packets of this level may come before their keys."""
        self._waiting[level] = []
        self._bytes[level] = 0

    def release(self, level: int) -> None:
        """The keys of the level are there: its packets are due, and no more are kept."""
        self._due.extend(self._waiting.pop(level, ()))
        self._bytes.pop(level, None)

    def drop(self, level: int) -> None:
        """The keys of the level will never come."""
        self._waiting.pop(level, None)
        self._bytes.pop(level, None)

    def next_due(self) -> EarlyPacket | None:
        """Take out the next packet whose keys are there, in the order of arrival."""
        return self._due.popleft() if self._due else None
