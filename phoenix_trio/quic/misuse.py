"""Makes the errors for values of a wrong type, with what to write instead.

Floor 0.  For calls on the way of data: nothing here runs unless the call has failed.
"""

from __future__ import annotations

import inspect

__all__ = ["bytes_needed", "check_stream"]


def bytes_needed(data: object, what: str = "data") -> TypeError:
    """The error for something that is not bytes-like."""
    if isinstance(data, str):
        return TypeError(f"{what} must be bytes, not str: pass text.encode()")
    if isinstance(data, memoryview):
        return TypeError(f"{what} must be contiguous in memory: pass bytes(...) of it")
    return TypeError(
        f"{what} must be bytes, bytearray or memoryview, not {type(data).__name__}: make bytes"
        " of it first; send_data() of a PhoenixConnection takes encode=, a function for that"
    )


def check_stream(stream: object, method: str) -> None:
    """Check that `stream` has the method of Trio's streams that is needed of it.

    Raises:
      TypeError: it is something else.
    """
    if callable(getattr(stream, method, None)):
        return
    if inspect.iscoroutine(stream):
        name = stream.__name__
        stream.close()  # or Python warns, beside the error, that it was never awaited
        raise TypeError(f"stream must be a stream, not a coroutine: write await {name}(...)")
    kind = type(stream).__name__
    hint = ": open one with await connection.open_stream()" if "Connection" in kind else ""
    raise TypeError(f"stream must be a stream with {method}(), not {kind}{hint}")
