"""Checks the expiry, the priority and the tag that an application gives a datagram.

Floor 3, beside :mod:`~phoenix_trio.quic.connection`.
"""

from __future__ import annotations

import math

import trio

__all__ = ["expiry", "tag_number"]

#: Bounded, so that the queue has a bounded number of levels.
_LOWEST_PRIORITY, _HIGHEST_PRIORITY = -128, 127

#: So that a tag takes little memory.
_LARGEST_TAG = (1 << 62) - 1


def expiry(expires_after: float, priority: int) -> float:
    """The time at which a datagram expires, on Trio's clock; the priority is checked as well.

    Raises:
      TypeError: one of them is not a number.
      ValueError: one of them is out of range.
    """
    if type(priority) is not int or priority != 0:
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise TypeError(f"priority must be an integer, not {priority!r}")
        if not _LOWEST_PRIORITY <= priority <= _HIGHEST_PRIORITY:
            raise ValueError(
                f"priority must be between {_LOWEST_PRIORITY} and {_HIGHEST_PRIORITY},"
                f" not {priority}"
            )
    if expires_after == math.inf:
        return math.inf
    if not isinstance(expires_after, (int, float)) or isinstance(expires_after, bool):
        raise TypeError(f"expires_after must be a number of seconds, not {expires_after!r}")
    if not expires_after > 0:
        raise ValueError(f"expires_after must be more than 0 seconds, not {expires_after!r}")
    return trio.current_time() + expires_after


def tag_number(tag: int | None) -> int:
    """The tag of a datagram; -1: it has none.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is out of range.
    """
    if tag is None:
        return -1
    if not isinstance(tag, int) or isinstance(tag, bool):
        raise TypeError(f"tag must be an integer, not {tag!r}")
    if not 0 <= tag <= _LARGEST_TAG:
        raise ValueError(f"tag must be between 0 and {_LARGEST_TAG}, not {tag}")
    return tag
