"""Keeps the application's datagrams until they are sent (RFC 9221).

Floor 1, sans-IO.  Datagrams are not repeated and have no flow control, so the queue is bounded:
when it is full, the caller waits, or the oldest datagram of the lowest priority is dropped.
Datagrams of the highest priority leave first, in the order in which they were queued.  Expired
datagrams do not leave at all.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from ..wire.varint import encode_varint
from .sent_packet import SentPacket

__all__ = ["MOST_LOSSES", "DatagramSender"]

#: Tags of lost datagrams that are kept until they are reported, or taken by the application:
#: more than can be under way at any usual rate, and below a megabyte.
MOST_LOSSES: Final = 16_384

#: DATAGRAM with its length (RFC 9221 section 4).
_TYPE = b"\x31"


class DatagramSender:
    """A bounded queue of datagrams to send.

    Args:
      length: the most datagrams held.
    """

    __slots__ = ("_earliest", "_length", "_levels", "dropped", "expired", "limit", "losses",
                 "queued", "waiting", "wants_room")  # fmt: skip

    def __init__(self, length: int) -> None:
        self._length = length
        # By priority, the highest first: data, expiry time and tag of each waiting datagram.  Few
        # programs use more than one priority, so empty levels stay.
        self._levels: list[tuple[int, deque[tuple[bytes, float, int]]]] = []
        self._earliest: float = math.inf  # no waiting datagram expires before
        self.limit: int = -1
        """The largest payload that the peer takes, in bytes; -1: it takes no datagrams."""
        self.waiting: int = 0
        """Datagrams in the queue."""
        self.queued: int = 0
        """Datagrams queued so far."""
        self.dropped: int = 0
        """Datagrams dropped so far, because there was no room, or because they were too large."""
        self.expired: int = 0
        """Datagrams dropped so far because their time was over."""
        self.wants_room: bool = False
        """Whether a caller waits for room in the queue."""
        self.losses: deque[int] = deque(maxlen=MOST_LOSSES)
        """Tags of datagrams that were lost, dropped or have expired, until they are reported."""

    def has_room(self, now: float) -> bool:
        """Whether the queue takes one more without dropping a datagram that may still leave."""
        if self.waiting >= self._length:
            self.drop_expired(now)
        return self.waiting < self._length

    def add(
        self,
        data: bytes,
        priority: int = 0,
        expires_at: float = math.inf,
        now: float = 0.0,
        tag: int = -1,
    ) -> None:
        """Queue a datagram; if the queue is full, one is dropped and counted.

        The oldest one of the lowest priority is dropped, or this one if its priority is lower
        still.

        Args:
          data: a payload that is not too large to leave.
          priority: higher ones leave first.
          expires_at: from this time on, the datagram does not leave any more.
          now: the time.
          tag: stands for the datagram in `losses`, 0 or more; -1: its loss is not reported.
        """
        self.queued += 1
        if self.waiting >= self._length and not self.has_room(now):
            self.dropped += 1
            lowest = self._lowest()
            if lowest is None or lowest[0] > priority:
                self.note_loss(tag)
                return
            self.note_loss(lowest[1].popleft()[2])
            self.waiting -= 1
        self._level(priority).append((data, expires_at, tag))
        self.waiting += 1
        if expires_at < self._earliest:
            self._earliest = expires_at

    def expire_unqueued(self, tag: int = -1) -> None:
        """Count a datagram for which there was no room before its time was over."""
        self.queued += 1
        self.expired += 1
        self.note_loss(tag)

    def note_loss(self, tag: int) -> None:
        """A datagram with this tag will not arrive; -1: it has none."""
        if tag >= 0:
            self.losses.append(tag)

    def _level(self, priority: int) -> deque[tuple[bytes, float, int]]:
        index = 0
        for known, queue in self._levels:
            if known == priority:
                return queue
            if known < priority:
                break
            index += 1
        added: deque[tuple[bytes, float, int]] = deque()
        self._levels.insert(index, (priority, added))
        return added

    def _lowest(self) -> tuple[int, deque[tuple[bytes, float, int]]] | None:
        """The lowest priority with a waiting datagram."""
        for level in reversed(self._levels):
            if level[1]:
                return level
        return None

    def fill(self, parts: list[bytes], room: int, packet: SentPacket, now: float) -> int:
        """Add DATAGRAM frames that fit into `room` bytes of a packet; returns the room left."""
        if now >= self._earliest:
            self.drop_expired(now)
        for priority, queue in self._levels:
            while queue:
                data = queue[0][0]
                size = len(data)
                # (With the shortest length: the peer's limit counts it, RFC 9221 section 3.)
                head = _TYPE + encode_varint(size)
                used = len(head) + size
                if used > room:
                    return room
                tag = queue.popleft()[2]
                self.waiting -= 1
                if tag >= 0:
                    if packet.tags is None:
                        packet.tags = [tag]
                    else:
                        packet.tags.append(tag)
                if packet.datagrams is None:
                    packet.datagrams = [priority]
                else:
                    packet.datagrams.append(priority)
                parts.append(head)
                parts.append(data)
                room -= used
        return room

    def drop_expired(self, now: float) -> None:
        """Drop the datagrams that have expired by now."""
        if now < self._earliest:
            return
        before = self.waiting
        self._keep(math.inf, now)
        self.expired += before - self.waiting

    def drop_larger(self, maximum: int) -> None:
        """Drop datagrams that became too large, because packets or the peer's limit shrank."""
        if self.waiting:
            before = self.waiting
            self._keep(maximum, -math.inf)
            self.dropped += before - self.waiting

    def _keep(self, maximum: float, now: float) -> None:
        """Keep only datagrams of at most `maximum` bytes that expire later than `now`."""
        earliest = math.inf
        waiting = 0
        for _, queue in self._levels:
            kept = [each for each in queue if each[1] > now and len(each[0]) <= maximum]
            if len(kept) < len(queue):
                for data, expires_at, tag in queue:
                    if expires_at <= now or len(data) > maximum:
                        self.note_loss(tag)
                queue.clear()
                queue.extend(kept)
            waiting += len(kept)
            for _, expires_at, _ in kept:
                if expires_at < earliest:
                    earliest = expires_at
        self.waiting = waiting
        self._earliest = earliest

    def take_room(self) -> bool:
        """Whether a caller waited for room and there is some now; true only once."""
        if self.wants_room and self.waiting < self._length:
            self.wants_room = False
            return True
        return False

    def queue(self) -> list[bytes]:
        """The waiting datagrams, in the order in which they leave."""
        return [data for _, queue in self._levels for data, _, _ in queue]
