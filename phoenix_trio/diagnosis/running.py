"""Runs checks, each with a limit of time; the failure of one leaves the others alone.

Floor 4.  A check is an async function without arguments; it returns its findings.  An error of
the system or of the network becomes a finding of its own, "could not check".  All other
exceptions are faults of the check and propagate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from ..quic.groups import unwrap_lone
from .results import Finding, Status

__all__ = ["Check", "in_parallel", "run_check"]

Check = tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]
"""The name of a check, and its function."""


async def run_check(check: Check, seconds: float) -> list[Finding]:
    """The findings of one check; never more than `seconds`.

    Cancellation: the check is cancelled.
    """
    name, function = check
    with trio.move_on_after(seconds) as scope:
        try:
            return list(await function())
        except (OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            reason = str(error) or type(error).__name__
            return [_unknown(name, reason)]
    assert scope.cancelled_caught
    return [_unknown(name, f"it did not end within {seconds:g} s")]


async def in_parallel(checks: Iterable[Check], seconds: float) -> list[Finding]:
    """The findings of checks that run at the same time, in the order of `checks`."""
    results: dict[int, list[Finding]] = {}

    async def run(index: int, check: Check) -> None:
        results[index] = await run_check(check, seconds)

    with unwrap_lone():
        async with trio.open_nursery() as nursery:
            for index, check in enumerate(checks):
                nursery.start_soon(run, index, check)
    return [finding for index in sorted(results) for finding in results[index]]


def _unknown(name: str, reason: str) -> Finding:
    return Finding(name=name, status=Status.UNKNOWN, found=f"could not check: {reason}")
