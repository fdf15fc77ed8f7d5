"""Runs a command's work in Trio, so that signals end it in good order.

Floor 6.  Ctrl-C reaches the work at a checkpoint of its main task alone, never in the middle
of a step.  SIGTERM, which ``kill`` and service managers send, cancels it; the program ends
with the status 143 then, and no word.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import trio

__all__ = ["exit_on_terminate", "run"]

#: The exit status after SIGTERM: 128 and its number, as shells have it.
_TERMINATED = 128 + signal.SIGTERM


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` to its end, or until a signal.

    Raises:
      KeyboardInterrupt: by itself or in groups, after Ctrl-C.
      SystemExit: after SIGTERM.
      And what `main` raises.
    """
    if trio.run(_until_terminated, main, restrict_keyboard_interrupt_to_checkpoints=True):
        sys.exit(_TERMINATED)


async def _until_terminated(main: Callable[[], Awaitable[None]]) -> bool:
    """Whether SIGTERM has come before the end."""
    terminated = False

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal terminated
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                terminated = True
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        await main()
        nursery.cancel_scope.cancel()
    return terminated


@contextmanager
def exit_on_terminate() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, which need not run in Trio."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
