"""What streams and connections do alike: check codes and limits, copy sticky exceptions.

Floor 0.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["check_error_code", "check_limit", "fresh"]

#: RFC 9000 section 16: the largest value a variable-length integer holds.
_ERROR_CODE_MAX = 2**62 - 1

E = TypeVar("E", bound=BaseException)


def fresh(error: E) -> E:
    """A copy of a sticky error, so that tracebacks do not pile up on the original."""
    copy: E = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


def check_error_code(code: int) -> int:
    """An application error code as RFC 9000 section 20.2 allows it."""
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"an application error code must be an integer, not {code!r}")
    if not 0 <= code <= _ERROR_CODE_MAX:
        raise ValueError(f"an application error code must be between 0 and 2**62 - 1, not {code}")
    return int(code)


def check_limit(max_bytes: int) -> None:
    """A number of bytes which are taken at most: 0 or more."""
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
        raise TypeError(f"the most that is taken must be an integer, not {max_bytes!r}")
    if max_bytes < 0:
        raise ValueError(f"the most that is taken must be 0 or more bytes, not {max_bytes}")
