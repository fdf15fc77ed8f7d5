"""Checks, names and reads error codes, and copies sticky exceptions, for streams and connections.

Floor 0.  A code of the library may carry a limit: ``MESSAGE_TOO_LARGE`` carries the largest
accepted size, so that the sender can name it (``docs/specification.md``).
"""

from __future__ import annotations

from typing import TypeVar

from ..errors import ApplicationErrorCode

__all__ = [
    "check_error_code",
    "check_limit",
    "describe_code",
    "fresh",
    "split_code",
    "too_large_code",
]

#: The protocol names of the library's own application layers begin with these.
_OUR_PROTOCOLS = ("phoenix/", "phoenix-files/")

#: Codes from here on, as many as the largest limit, are ``MESSAGE_TOO_LARGE`` with a limit.
_TOO_LARGE = 1 << 61
_LARGEST_LIMIT = (1 << 40) - 1

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
        hint = "; text goes into reason=" if isinstance(code, str) else ""
        raise TypeError(f"an application error code must be an integer, not {code!r}{hint}")
    if not 0 <= code <= _ERROR_CODE_MAX:
        raise ValueError(f"an application error code must be between 0 and 2**62 - 1, not {code}")
    return int(code)


def too_large_code(limit: int) -> int:
    """``MESSAGE_TOO_LARGE`` with the largest accepted size, in bytes, if it fits."""
    if 0 <= limit <= _LARGEST_LIMIT:
        return _TOO_LARGE + limit
    return ApplicationErrorCode.MESSAGE_TOO_LARGE


def split_code(code: int) -> tuple[int, int | None]:
    """The plain code, and its limit; ``None``: it carries none."""
    limit = code - _TOO_LARGE
    if 0 <= limit <= _LARGEST_LIMIT:
        return ApplicationErrorCode.MESSAGE_TOO_LARGE, limit
    return code, None


def describe_code(code: int, alpn: str | None) -> str:
    """A stream's or connection's code as text, by its name if it is one of the library's.

    Args:
      code: as the peer sent it.
      alpn: the connection's protocol.  Another protocol than the library's may use the same
        small numbers for something else, so they are not named then.
    """
    plain, limit = split_code(code)
    if limit is not None:
        return f"MESSAGE_TOO_LARGE (0x{plain:x}), the limit is {limit} bytes"
    if alpn is not None and alpn.startswith(_OUR_PROTOCOLS):
        try:
            return f"{ApplicationErrorCode(code).name} (0x{code:x})"
        except ValueError:
            pass  # the application defines it
    return f"0x{code:x}"


def check_limit(max_bytes: int) -> None:
    """Check a limit in bytes: 0 or more."""
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
        raise TypeError(f"the most that is taken must be an integer, not {max_bytes!r}")
    if max_bytes < 0:
        raise ValueError(f"the most that is taken must be 0 or more bytes, not {max_bytes}")
