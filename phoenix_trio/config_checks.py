"""Checks the fields of the settings: types, ranges, choices.

Floor 0.  Validators for attrs; each error names the field, and says what it may be.
"""

from __future__ import annotations

import math
import os
from typing import Any

import attrs

__all__ = ["integer", "one_of", "optional_bytes", "path_or_none", "seconds", "true_or_false"]


def one_of(*values: object) -> Any:
    """One of these values."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in values:
            choice = " or ".join(map(repr, values))
            raise ValueError(f"{attribute.name} must be {choice}, not {value!r}")

    return check


def true_or_false(instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


def optional_bytes(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Bytes, or ``None``."""
    if value is not None and not isinstance(value, bytes):
        raise TypeError(f"{attribute.name} must be bytes or None, not {type(value).__name__}")


def integer(minimum: int, maximum: int) -> Any:
    """An integer from `minimum` to `maximum`."""

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
    """A number of seconds; with `exclusive`, more than `minimum`."""

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


def path_or_none(value: object, field: attrs.Attribute[Any]) -> str | None:
    """A path as text, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{field.name} must be a path, not {value!r}")
    path = os.fspath(value)
    return os.fsdecode(path)
