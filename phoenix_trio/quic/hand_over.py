"""Runs one job in the tasks that wait for its results, where no nursery can run it.

Floor 0.  A plain function cannot leave a task behind, yet its caller expects progress.  So the
first task that waits *leads*: it runs the job beside its own wait.  Other tasks only wait.  When
the leader stops waiting, because it was woken or cancelled, it cancels the job and wakes all
other tasks; the first of them that waits again leads next.  This is the leader/followers
pattern, without system tasks.

The module knows nothing about the job: it works with parking lots and a callable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .groups import unwrap_lone
from .waiter import Lot

__all__ = ["HandOver"]


class HandOver:
    """Runs a job in at most one task at a time, and hands it over between waiting tasks.

    Args:
      job: runs until it is cancelled.  If it returns, its leader is woken.  If it raises, the
        exception leaves :meth:`run`, or the leader's :meth:`wait`.
      on_stop: called after each run of the job, whatever ended it.
      on_unattended: called when a leader has stopped and no other task waits.
    """

    __slots__ = ("_is_closed", "_job", "_on_stop", "_on_unattended", "_waiting", "is_running")

    def __init__(
        self,
        job: Callable[[], Awaitable[None]],
        *,
        on_stop: Callable[[], None],
        on_unattended: Callable[[], None],
    ) -> None:
        self._job = job
        self._on_stop = on_stop
        self._on_unattended = on_unattended
        self._waiting: dict[Lot, int] = {}
        self._is_closed = False
        self.is_running: bool = False
        """Whether a task runs the job, or is about to."""

    async def run(self) -> None:
        """Run the job in this task, until it returns, raises or is cancelled.

        Raises:
          trio.BusyResourceError: another task runs it.
        """
        if self.is_running:
            raise trio.BusyResourceError("another task runs this job")
        self.is_running = True
        await self._run_job()

    async def wait(self, lot: Lot) -> None:
        """Park in `lot` until it is unparked; run the job meanwhile if no other task does.

        May return early, so check the condition in a loop.

        Raises:
          Exception: the job failed while this task ran it.
        """
        self._waiting[lot] = self._waiting.get(lot, 0) + 1
        try:
            if self.is_running or self._is_closed:
                await lot.park()
            else:
                await self._lead(lot)
        finally:
            count = self._waiting[lot] - 1
            if count:
                self._waiting[lot] = count
            else:
                del self._waiting[lot]

    def wake_all(self) -> None:
        """Wake every task that waits."""
        for lot in list(self._waiting):
            lot.unpark_all()

    def close(self) -> None:
        """Start the job no more, and wake every task that waits.  Idempotent.

        A job that runs now is not cancelled.  Later calls of :meth:`wait` only park.
        """
        self._is_closed = True
        self.wake_all()

    async def _lead(self, lot: Lot) -> None:
        # Set before the first checkpoint, so that no second task leads.
        self.is_running = True
        try:
            with unwrap_lone():
                async with trio.open_nursery() as nursery:
                    # The job begins after this task has parked, so no wake-up is lost.
                    nursery.start_soon(self._run_beside, nursery.cancel_scope)
                    try:
                        await lot.park()
                    finally:
                        nursery.cancel_scope.cancel()
        finally:
            # Their conditions may be unchanged: the first that waits again leads.
            self.wake_all()
            if not self._others_wait(lot):
                self._on_unattended()

    async def _run_beside(self, wait_scope: trio.CancelScope) -> None:
        await self._run_job()
        wait_scope.cancel()

    async def _run_job(self) -> None:
        try:
            await self._job()
        finally:
            self.is_running = False
            self._on_stop()

    def _others_wait(self, lot: Lot) -> bool:
        return any(other is not lot or count > 1 for other, count in self._waiting.items())
