"""Writes the bytes of a striped transfer to files of the application.

Floor 4.  The counterpart of ``transfer_source.py``; ``storing.py`` handles files that the
library itself names and keeps.
"""

from __future__ import annotations

import io
from typing import Any, Protocol, runtime_checkable

__all__ = ["AsyncFile", "WritableFile", "write_pieces"]


class WritableFile(Protocol):
    """The part of a binary file object that is needed; ``open(path, "wb")`` gives one."""

    def write(self, data: bytes, /) -> Any:
        """Write `data`; returns how many bytes were written, or ``None`` for all.

        (An :class:`io.RawIOBase` returns ``None`` when it would block; that is an error.)
        """
        ...


@runtime_checkable
class AsyncFile(Protocol):
    """A file of :func:`trio.open_file`."""

    @property
    def wrapped(self) -> Any:
        """The plain file below."""
        ...


def write_pieces(file: Any, pieces: list[bytes | bytearray], digest: Any) -> None:
    """Write `pieces` to a plain file and hash them (unless `digest` is ``None``).  Blocks."""
    # Joined: with many small calls, this thread would wait for the interpreter's lock in
    # each call.
    data = b"".join(pieces)
    if digest is not None:
        digest.update(data)
    view = memoryview(data)
    while view:
        count = file.write(view)
        if count is None and not isinstance(file, io.RawIOBase):
            return  # a file object that does not count takes everything
        if not count:
            raise BlockingIOError("the file takes nothing: it must be a blocking one")
        view = view[count:]
