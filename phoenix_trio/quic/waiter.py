"""Where one task waits: a parking lot for one, at a third of its cost.

Floor 0.  Every stream has a place where its reader waits, and at most one task
may read; :class:`trio.lowlevel.ParkingLot` keeps an ordered table for any number.
"""

from __future__ import annotations

from typing import Protocol

import trio

__all__ = ["Lot", "Waiter"]


class Lot(Protocol):
    """What a :class:`trio.lowlevel.ParkingLot` and a :class:`Waiter` have in common."""

    async def park(self) -> None:
        """Wait to be woken; when cancelled, nobody waits any more."""

    def unpark_all(self) -> object:
        """Wake whoever waits."""


class Waiter:
    """At most one task at a time may :meth:`park` here; the caller sees to that."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def park(self) -> None:
        """Wait until :meth:`unpark_all`."""
        assert self._task is None, "a second task in the place of one"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def unpark_all(self) -> None:
        """Wake the task which waits, if any."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
