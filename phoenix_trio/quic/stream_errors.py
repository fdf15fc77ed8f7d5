"""What streams and connections do alike with errors: check codes, copy sticky exceptions.

Floor 0.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["check_error_code", "fresh"]

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
