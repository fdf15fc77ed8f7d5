"""Parks at most one task, at a third of the cost of a parking lot.

Floor 0.  Every stream needs a place where its reader waits, and at most one task may
read.  :class:`trio.lowlevel.ParkingLot` keeps an ordered table for any number of tasks.
"""

from __future__ import annotations

from typing import Protocol

import trio

__all__ = ["Lot", "Waiter"]


class Lot(Protocol):
    """Parks tasks: a :class:`trio.lowlevel.ParkingLot` or a :class:`Waiter`."""

    async def park(self) -> None:
        """Wait to be woken.  Cancellation: the task has left the lot."""

    def unpark_all(self) -> object:
        """Wake all tasks that wait here."""


class Waiter:
    """Parks one task at a time; the caller makes sure that no second one comes."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def park(self) -> None:
        """Wait until :meth:`unpark_all`."""
        assert self._task is None, "another task waits here already"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def unpark_all(self) -> None:
        """Wake the task that waits, if there is one."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
