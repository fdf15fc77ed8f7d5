"""Limits how many transfers are under way, of each sender and in all.

Floor 6.  Knows no storage and no protocol.  A transfer takes a place when its stream begins,
and gives it back when it ends, for any reason.  A continuation takes over from the earlier
attempt of the transfer: the sender has left that one, even if this side has not noticed yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio

from ..storage.names import Refused

__all__ = ["Places", "TakenOver"]


class TakenOver(Exception):
    """A later attempt of the same transfer has begun."""


@attrs.define(eq=False)
class _Attempt:
    scope: trio.CancelScope
    over: trio.Event


class Places:
    """The places of one receiver.

    Args:
      total: transfers at once (1 or more).
      per_peer: the most of these that one sender may have (1 or more).

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(self, total: int, per_peer: int) -> None:
        if total < 1 or per_peer < 1:
            raise ValueError(f"there must be at least 1 place, not {total} and {per_peer}")
        self._total = total
        self._per_peer = per_peer
        self._taken: Counter[str] = Counter()
        self._attempts: dict[str, _Attempt] = {}

    @property
    def taken(self) -> int:
        """How many transfers are under way."""
        return self._taken.total()

    @contextmanager
    def place(self, peer: str) -> Iterator[None]:
        """Take a place for the length of the block.

        Raises:
          Refused: with code ``"busy"``: all places of this sender, or all in total, are taken.
        """
        if self._taken[peer] >= self._per_peer:
            raise Refused("busy", f"{self._per_peer} transfers of your address are under way")
        if self.taken >= self._total:
            raise Refused("busy", f"{self._total} transfers are under way here")
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Be the only attempt of the transfer `key` for the length of the block.

        An earlier attempt is cancelled, and waited for, first.

        Cancellation: the earlier attempt may be cancelled all the same.

        Raises:
          TakenOver: a later attempt has come, and the block was cancelled.
        """
        await trio.lowlevel.checkpoint()
        while (earlier := self._attempts.get(key)) is not None:
            earlier.scope.cancel()
            await earlier.over.wait()
        attempt = _Attempt(trio.CancelScope(), trio.Event())
        self._attempts[key] = attempt
        try:
            with attempt.scope:
                yield
        finally:
            del self._attempts[key]
            attempt.over.set()
        if attempt.scope.cancelled_caught:
            raise TakenOver("another attempt of this transfer has begun")
