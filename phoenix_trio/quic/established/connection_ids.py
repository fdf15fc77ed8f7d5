"""The connection IDs of both sides: issued, used, retired (RFC 9000 section 5.1).

Floor 1, sans-IO.  :class:`LocalIds` are those by which the peer addresses this side,
:class:`PeerIds` those by which this side addresses the peer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import events
from ..connection_id_format import random_connection_id
from ..rate_limit import RateLimit
from ..wire import frames
from ..wire.errors import CONNECTION_ID_LIMIT_ERROR, PROTOCOL_VIOLATION, TransportError

__all__ = ["LocalId", "LocalIds", "PeerId", "PeerIds"]

#: Connection IDs which this side keeps for the peer at a time, and issues at most.
ACTIVE_LIMIT = 8

#: How often a second, and how often at once, retired connection IDs are replaced by new
#: ones: each that was issued is recognised for some seconds more.  (A peer is not closed for
#: retiring many: another on its path can make it seem to move all the time.)
_REPLACEMENTS_A_SECOND = 2.0
_REPLACEMENTS_AT_ONCE = 64

#: RETIRE_CONNECTION_ID frames which may wait to be acknowledged (RFC 9000 section 5.1.2).
_PENDING_RETIREMENTS = 32

_RESET_TOKEN_LENGTH = 16

#: Bytes of a NEW_CONNECTION_ID frame at most, and of a RETIRE_CONNECTION_ID frame.
_NEW_FRAME = 1 + 8 + 1 + 1 + 20 + _RESET_TOKEN_LENGTH
_RETIRE_FRAME = 1 + 8


class LocalId:
    """A connection ID by which the peer may address this side."""

    __slots__ = ("cid", "is_sent", "number")

    def __init__(self, number: int, cid: bytes) -> None:
        self.number: int = number
        self.cid: bytes = cid
        self.is_sent: bool = False
        """Whether the peer was told of it."""


class LocalIds:
    """The connection IDs of this side.

    Args:
      first: that of the handshake, with sequence number 0.
      reset_token: derives the stateless reset token of a connection ID.
      queue: takes the events.
      make: makes further ones, as long as the first one.
    """

    __slots__ = (
        "_limit",
        "_make",
        "_next_number",
        "_queue",
        "_replacements",
        "_reset_token",
        "all",
        "current",
        "has_pending",
        "largest_issued",
        "replace_at",
    )

    def __init__(
        self,
        first: bytes,
        reset_token: Callable[[bytes], bytes],
        queue: list[events.Event],
        make: Callable[[], bytes] = random_connection_id,
    ) -> None:
        known = LocalId(0, first)
        known.is_sent = True
        self.all: list[LocalId] = [known]
        self.current: bytes = first
        """The one to which the peer sends at present."""
        self.has_pending: bool = False
        """Whether the peer is to be told of some."""
        self.largest_issued: int = 0
        """The largest sequence number of which the peer was told."""
        self.replace_at: float = math.inf
        """When to replace retired ones, if the peer has retired many at once; else infinite."""
        self._limit = 0
        self._make = make
        self._next_number = 1
        self._queue = queue
        self._replacements = RateLimit(_REPLACEMENTS_A_SECOND, _REPLACEMENTS_AT_ONCE)
        self._reset_token = reset_token

    def add_preferred(self, cid: bytes) -> None:
        """Server: that of its preferred address, which the handshake tells (section 5.1.1)."""
        told = LocalId(1, cid)
        told.is_sent = True
        self.all.append(told)
        self.largest_issued = 1
        self._next_number = 2

    def set_limit(self, limit: int) -> None:
        """The peer keeps so many (RFC 9000 section 18.2); issue them now."""
        self._limit = min(ACTIVE_LIMIT, limit)
        self.replenish()

    def replenish(self) -> None:
        """Issue as many as the peer keeps."""
        while len(self.all) < self._limit:
            self.all.append(LocalId(self._next_number, self._make()))
            self._next_number += 1
            self.has_pending = True

    def number_of(self, cid: bytes) -> int:
        """The sequence number of a connection ID; -1: it is none of these."""
        for each in self.all:
            if each.cid == cid:
                return each.number
        return -1

    def retire(self, number: int, used: bytes, now: float) -> None:
        """RETIRE_CONNECTION_ID (RFC 9000 section 19.16), in a packet sent to the ID `used`.

        Raises:
          TransportError: the peer may not retire that.
        """
        if number > self.largest_issued:
            raise TransportError(
                PROTOCOL_VIOLATION,
                frames.RETIRE_CONNECTION_ID,
                "Retired a connection ID which was never issued",
            )
        if number < self.all[0].number:
            return  # retired before, for they are in order
        for index, each in enumerate(self.all):
            if each.number != number:
                continue
            if each.cid == used:
                raise TransportError(
                    PROTOCOL_VIOLATION,
                    frames.RETIRE_CONNECTION_ID,
                    "Retired the connection ID to which the packet was sent",
                )
            del self.all[index]
            self._queue.append(events.ConnectionIdRetired(each.cid))
            self.replace(now)
            return

    def replace(self, now: float) -> None:
        """Issue new ones for those retired, now or when it is not too often."""
        if self._replacements.allows(now):
            self.replace_at = math.inf
            self.replenish()
        elif self.replace_at == math.inf or now >= self.replace_at:
            self.replace_at = now + 1 / _REPLACEMENTS_A_SECOND

    def fill(self, parts: list[bytes], room: int, control: list[tuple[int, int, int]]) -> int:
        """NEW_CONNECTION_ID frames (RFC 9000 section 19.15) which fit; returns the room left."""
        if not self.has_pending:
            return room
        for each in self.all:
            if each.is_sent:
                continue
            if room < _NEW_FRAME:
                return room
            frame = frames.build_new_connection_id(
                each.number, 0, each.cid, self._reset_token(each.cid)
            )
            parts.append(frame)
            room -= len(frame)
            control.append((frames.NEW_CONNECTION_ID, each.number, 0))
            each.is_sent = True
            self.largest_issued = max(self.largest_issued, each.number)
            self._queue.append(events.ConnectionIdIssued(each.cid))
        self.has_pending = False
        return room

    def on_lost(self, number: int) -> None:
        """The frame which tells of this one was lost: it is sent again."""
        for each in self.all:
            if each.number == number:
                each.is_sent = False
                self.has_pending = True


class PeerId:
    """A connection ID by which this side may address the peer."""

    __slots__ = ("cid", "number", "reset_token")

    def __init__(self, number: int, cid: bytes, reset_token: bytes = b"") -> None:
        self.number: int = number
        self.cid: bytes = cid
        self.reset_token: bytes = reset_token


class PeerIds:
    """The connection IDs of the peer.

    Args:
      first: that of the handshake.
    """

    __slots__ = (
        "_numbers",
        "_retire_prior_to",
        "available",
        "changes",
        "current",
        "reserved",
        "retiring",
        "tokens_changed",
    )

    def __init__(self, first: bytes) -> None:
        self.current: PeerId = PeerId(0, first)
        """The one to which this side sends on the active path."""
        self.available: list[PeerId] = []
        self.reserved: dict[int, PeerId] = {}
        """Connection IDs for paths in validation, by sequence number."""
        self.retiring: list[int] = []
        """Sequence numbers for which RETIRE_CONNECTION_ID is to be sent."""
        self.tokens_changed: bool = False
        """Whether :meth:`reset_tokens` has changed since this was last set to false."""
        self.changes: int = 0
        """How often the current one was changed."""
        self._numbers = {0}
        self._retire_prior_to = 0

    def add_preferred(self, cid: bytes, reset_token: bytes) -> None:
        """That of the server's preferred address, with sequence number 1 (section 5.1.1)."""
        self.available.append(PeerId(1, cid, reset_token))
        self._numbers.add(1)
        self.tokens_changed = True

    def set_first_token(self, token: bytes) -> None:
        """The stateless reset token of the first one, from the transport parameters."""
        if self.current.number == 0:
            self.current.reset_token = token
            self.tokens_changed = True

    def reset_tokens(self) -> set[bytes]:
        """The stateless reset tokens of those in use, or to be used (section 10.3)."""
        known = [self.current, *self.available, *self.reserved.values()]
        return {each.reset_token for each in known if each.reset_token}

    def take(self, number: int, retire_prior_to: int, cid: bytes, token: bytes) -> list[int]:
        """A NEW_CONNECTION_ID frame (RFC 9000 section 19.15).

        Returns the sequence numbers of reserved ones which it retires.

        Raises:
          TransportError: the peer has issued more than it may.
        """
        self._retire_prior_to = max(self._retire_prior_to, retire_prior_to)
        border = self._retire_prior_to
        must_change = self.current.number < border
        if must_change:
            self._retire(self.current.number)
        for each in self.available:
            if each.number < border:
                self._retire(each.number)
        lost = [each for each in self.reserved if each < border]
        for each_number in lost:
            del self.reserved[each_number]
            self._retire(each_number)
        if retire_prior_to:
            self.available = [each for each in self.available if each.number >= border]
            self._numbers = {each for each in self._numbers if each >= border}
        if number < border:
            # Section 19.15: it came late, and is retired at once.  (A repetition of one that
            # was retired before gets another frame, which does no harm.)
            if number not in self.retiring:
                self._retire(number)
        elif number not in self._numbers:
            self.available.append(PeerId(number, cid, token))
            self._numbers.add(number)
        if must_change:
            if not self.available:
                raise TransportError(
                    PROTOCOL_VIOLATION,
                    frames.NEW_CONNECTION_ID,
                    "No connection ID is left",
                )
            self._use_next()
        self.tokens_changed = True
        if 1 + len(self.available) + len(self.reserved) > ACTIVE_LIMIT:
            raise TransportError(
                CONNECTION_ID_LIMIT_ERROR,
                frames.NEW_CONNECTION_ID,
                "Too many active connection IDs",
            )
        if len(self.retiring) > _PENDING_RETIREMENTS:
            raise TransportError(
                CONNECTION_ID_LIMIT_ERROR,
                frames.NEW_CONNECTION_ID,
                "Too many pending retired connection IDs",
            )
        return lost

    def change(self) -> bool:
        """Use another one, and retire the present one; whether there was another."""
        if not self.available:
            return False
        self._retire(self.current.number)
        self._use_next()
        return True

    def reserve(self) -> PeerId | None:
        """Keep one for another path (RFC 9000 section 9.5); ``None``: there is none."""
        if not self.available:
            return None
        found = self.available.pop(0)
        self.reserved[found.number] = found
        return found

    def use_reserved(self, number: int) -> None:
        """The path for which it was reserved becomes the active one."""
        self._retire(self.current.number)
        self.current = self.reserved.pop(number)
        self.changes += 1

    def retire_reserved(self, number: int) -> None:
        """The path for which it was reserved is given up."""
        if self.reserved.pop(number, None) is not None:
            self._retire(number)

    def _use_next(self) -> None:
        self.current = self.available.pop(0)
        self.changes += 1

    def _retire(self, number: int) -> None:
        self.retiring.append(number)
        self.tokens_changed = True

    def fill(self, parts: list[bytes], room: int, control: list[tuple[int, int, int]]) -> int:
        """RETIRE_CONNECTION_ID frames (RFC 9000 section 19.16) which fit; the room left."""
        while self.retiring and room >= _RETIRE_FRAME:
            number = self.retiring.pop(0)
            frame = frames.build_retire_connection_id(number)
            parts.append(frame)
            room -= len(frame)
            control.append((frames.RETIRE_CONNECTION_ID, number, 0))
        return room

    def on_lost(self, number: int) -> None:
        """A RETIRE_CONNECTION_ID frame was lost: it is sent again."""
        self.retiring.append(number)
