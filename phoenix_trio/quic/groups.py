"""Unwraps lone exceptions from the groups that nurseries make of them.

Floor 0.  A nursery raises an :class:`ExceptionGroup` even for one exception.  Nurseries inside
this library are an implementation detail, so a caller must not see them: a lone exception leaves
as itself, several stay a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["unwrap_lone"]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exception in group.exceptions:
        if isinstance(exception, BaseExceptionGroup):
            yield from _leaves(exception)
        else:
            yield exception


@contextmanager
def unwrap_lone() -> Iterator[None]:
    """Raise the only exception of a group by itself.

    ``Cancelled`` beside one other exception does not count: the nursery has cancelled its tasks
    because of that exception.  A group of nothing but ``Cancelled`` leaves as a single
    ``Cancelled``.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        others = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
        if len(others) > 1:
            raise
        lone = others[0] if others else leaves[0]
        context = lone.__context__
        try:
            raise lone
        finally:
            # Raising inside "except" would hang the group below it as its context.
            lone.__context__ = context
            del lone, context, leaves, others
