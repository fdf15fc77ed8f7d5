"""Checks of the fields of a configuration, whose errors name the field.

Floor 0.  For :mod:`~phoenix_trio.config`, as validators and converters of attrs.
"""

from __future__ import annotations

import math
import os
from typing import Any

import attrs

__all__ = ["OPTIONAL_BYTES", "integer", "path", "seconds"]

#: Bytes, or ``None``.
OPTIONAL_BYTES = attrs.validators.optional(attrs.validators.instance_of(bytes))


def integer(minimum: int, maximum: int) -> Any:
    """An integer in this range."""

    def check(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{attribute.name} must be an integer, not {value!r}")
        if not minimum <= value <= maximum:
            raise ValueError(
                f"{attribute.name} must be between {minimum} and {maximum}, not {value}"
            )

    return check


def seconds(
    minimum: float, maximum: float, *, exclusive: bool = False, infinite: bool = False
) -> Any:
    """A number of seconds in this range.

    Args:
      minimum: the least.
      maximum: the most.
      exclusive: whether it must be more than the least.
      infinite: whether it may be ``math.inf``.
    """

    def check(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
        if infinite and value == math.inf:
            return
        if math.isnan(value) or not minimum <= value <= maximum or (exclusive and value == minimum):
            lower = "more than" if exclusive else "at least"
            raise ValueError(
                f"{attribute.name} must be {lower} {minimum:g} and at most {maximum:g} seconds"
                f"{' or math.inf' if infinite else ''}, not {value!r}"
            )

    return check


def path(value: object, field: attrs.Attribute[Any]) -> str | None:
    """The path as text.

    Raises:
      TypeError: it is not a path.
    """
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{field.name} must be a path, not {value!r}")
    return os.fsdecode(os.fspath(value))
