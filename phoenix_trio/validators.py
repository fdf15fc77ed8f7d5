"""Validators and converters for the fields of settings.

Floor 0: no I/O.  Each error is a TypeError or a ValueError; its text names the field, the
range and the value.
"""

from __future__ import annotations

import math
import os
from typing import Any

import attrs

__all__ = [
    "fraction",
    "integer",
    "one_of",
    "optional",
    "optional_bytes",
    "path",
    "seconds",
    "true_or_false",
]


def optional(validator: Any) -> Any:
    """The same validator, but ``None`` is allowed as well."""
    return attrs.validators.optional(validator)


def one_of(*values: object) -> Any:
    """A validator for a choice: one of these values."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in values:
            choice = " or ".join(map(repr, values))
            raise ValueError(f"{attribute.name} must be {choice}, not {value!r}")

    return check


def true_or_false(instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    """A validator for bools."""
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


def optional_bytes(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A validator for bytes, or ``None``; its error does not show the value, which is secret."""
    if value is not None and not isinstance(value, bytes):
        raise TypeError(f"{attribute.name} must be bytes or None, not {type(value).__name__}")


def integer(minimum: int, maximum: int) -> Any:
    """A validator for whole numbers from `minimum` to `maximum`; ``True`` is not a number."""

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
    """A validator for times in seconds, from `minimum` to `maximum`.

    Args:
      exclusive: whether `minimum` itself is refused.
      infinite: whether ``math.inf`` is allowed as well.
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


def fraction(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    """A validator for numbers from 0 to 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be a number, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value!r}")


def path(value: str | os.PathLike[str] | None, field: attrs.Attribute[Any]) -> str | None:
    """A converter for paths: text, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{field.name} must be a path, not {value!r}")
    return os.fsdecode(os.fspath(value))
