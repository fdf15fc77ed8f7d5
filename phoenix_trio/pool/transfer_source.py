"""Reads the bytes of a striped transfer from buffers, files or iterables, in one shape.

Floor 4.  A source gives stripes in order, each once, and hashes them.  Knows nothing of
connections.  Files are read in threads, and large pieces are hashed in threads, so that
other tasks go on meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import trio

from ..streams.framing import VARINT_MAX

__all__ = ["ReadableFile", "Source", "SourceData", "open_source", "update_digest"]

Buffer: TypeAlias = bytes | bytearray | memoryview


@runtime_checkable
class ReadableFile(Protocol):
    """The part of a binary file object that is needed; ``open(path, "rb")`` gives one."""

    def read(self, size: int, /) -> Any:
        """At most `size` bytes; none at the end."""
        ...


#: Sources from which a transfer can take its bytes.
SourceData: TypeAlias = "Buffer | ReadableFile | Iterable[Buffer] | AsyncIterable[Buffer]"

#: From this many bytes on, hashing in a thread costs less than the delay of other tasks.
_HASH_IN_THREAD = 256 * 1024


async def update_digest(digest: Any, pieces: list[Buffer], size: int) -> None:
    """Hash `pieces`, `size` bytes together.

    Cancellation: either nothing or everything was hashed.
    """
    if size < _HASH_IN_THREAD:
        await trio.lowlevel.checkpoint()
        _update(digest, pieces)
    else:
        await trio.to_thread.run_sync(_update, digest, pieces)


def _update(digest: Any, pieces: list[Buffer]) -> None:
    for piece in pieces:
        digest.update(piece)


class Source(ABC):
    """Stripes in order.

    After :attr:`at_end`, :attr:`digest` is the checksum of everything that was given.
    """

    size: int | None
    """Bytes in all, if that is known before reading."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.at_end = False
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the bytes read so far."""
        return self._hash.digest()

    @abstractmethod
    async def read(self, stripe_size: int, count: int) -> list[Buffer]:
        """The next stripes, at most `count`; only the last of all is short.

        An iterable may give fewer than `count`.  Sets :attr:`at_end` with the last of them.

        Raises:
          EOFError: a file has become shorter than it was.
          TypeError: an item is not bytes-like.
        """

    async def aclose(self) -> None:
        """Close a generator that was opened here; the caller's file stays open."""
        await trio.lowlevel.checkpoint()


class _BufferSource(Source):
    def __init__(self, view: memoryview) -> None:
        super().__init__(len(view))
        self._view = view
        self._at = 0

    async def read(self, stripe_size: int, count: int) -> list[Buffer]:
        stop = min(self._at + stripe_size * count, len(self._view))
        batch = self._view[self._at : stop]
        await update_digest(self._hash, [batch], len(batch))
        stripes: list[Buffer] = [
            self._view[at : min(at + stripe_size, stop)]
            for at in range(self._at, stop, stripe_size)
        ]
        self._at = stop
        self.at_end = stop == len(self._view)
        return stripes


class _FileSource(Source):
    def __init__(self, file: ReadableFile, size: int | None) -> None:
        super().__init__(size)
        self._file = file
        self._at = 0

    async def read(self, stripe_size: int, count: int) -> list[Buffer]:
        return await trio.to_thread.run_sync(self._read, stripe_size, count)

    def _read(self, stripe_size: int, count: int) -> list[Buffer]:
        wanted = stripe_size * count
        if self.size is not None:
            wanted = min(wanted, self.size - self._at)
        parts: list[bytes] = []
        missing = wanted
        while missing:
            part = self._file.read(missing)
            if part is None:
                raise BlockingIOError("the file does not wait for data: it must be a blocking one")
            if not isinstance(part, (bytes, bytearray, memoryview)):
                raise TypeError(
                    f"the file gives {type(part).__name__}: it must be open in binary mode"
                )
            if not part:
                break
            parts.append(bytes(part))
            missing -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._hash.update(data)
        self._at += len(data)
        if self.size is None:
            self.at_end = missing > 0
        elif missing:
            raise EOFError(f"the file ended after {self._at} bytes, of {self.size} which it had")
        else:
            self.at_end = self._at == self.size
        view = memoryview(data)
        return [view[at : at + stripe_size] for at in range(0, len(data), stripe_size)]


class _IterableSource(Source):
    """Cuts items of any size into stripes."""

    def __init__(self, items: Iterable[Buffer] | AsyncIterable[Buffer]) -> None:
        super().__init__(None)
        self._items: Any
        self._is_async = isinstance(items, AsyncIterable)
        self._items = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        self._rest = bytearray()
        self._item: memoryview | None = None
        self._exhausted = False

    async def _next_item(self) -> memoryview | None:
        try:
            if self._is_async:
                item = await anext(self._items)
            else:
                await trio.lowlevel.checkpoint()
                item = next(self._items)
        except (StopAsyncIteration, StopIteration):
            return None
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise TypeError(f"the source gives {type(item).__name__} where it must give bytes")
        return memoryview(item).cast("B")

    async def read(self, stripe_size: int, count: int) -> list[Buffer]:
        # A whole stripe is given at once: a slow source must not hold it back.
        rest = self._rest
        while True:
            if self._item is not None:
                # Never all of it: an item may be larger than the memory we may use.
                part = self._item[: stripe_size * count - len(rest)]
                rest += part
                self._item = self._item[len(part) :] if len(part) < len(self._item) else None
            if len(rest) >= stripe_size or self._exhausted:
                break
            self._item = await self._next_item()
            self._exhausted = self._item is None
        size = len(rest)
        if not self._exhausted:
            size -= size % stripe_size
        data = bytes(memoryview(rest)[:size])
        del rest[:size]
        self.at_end = self._exhausted and not rest
        await update_digest(self._hash, [data], len(data))
        view = memoryview(data)
        return [view[at : at + stripe_size] for at in range(0, len(data), stripe_size)]

    async def aclose(self) -> None:
        close = getattr(self._items, "aclose", None) or getattr(self._items, "close", None)
        if close is None:
            await trio.lowlevel.checkpoint()
        elif self._is_async:
            await close()
        else:
            close()
            await trio.lowlevel.checkpoint()


def check_source(data: object) -> None:
    """Check whether bytes could be taken from `data`, as far as possible without taking any.

    Raises:
      TypeError: they cannot.
    """
    if isinstance(data, str):
        raise TypeError("a transfer sends bytes, not str: pass text.encode()")
    if isinstance(data, Mapping):
        raise TypeError(
            f"a transfer sends bytes, not {type(data).__name__}: make bytes of it first, for"
            " instance json.dumps(...).encode()"
        )
    file = getattr(data, "wrapped", data)  # of trio.open_file()
    if not isinstance(file, ReadableFile) and not isinstance(data, AsyncIterable | Iterable):
        raise TypeError(
            "a transfer takes bytes, a binary file, an iterable or an async iterable of bytes,"
            f" not {type(data).__name__}"
        )


async def open_source(data: SourceData) -> Source:
    """The source for the type of `data`.

    A seekable file is read from its current position to its end.

    Raises:
      TypeError: a transfer cannot take bytes from `data`.
    """
    await trio.lowlevel.checkpoint()
    check_source(data)
    if isinstance(data, bytes | bytearray | memoryview):
        view = memoryview(data)
        return _BufferSource(view if view.c_contiguous and view.format == "B" else _flat(view))
    file = getattr(data, "wrapped", data)
    if isinstance(file, ReadableFile):
        return _FileSource(file, await trio.to_thread.run_sync(_remaining, file))
    if isinstance(data, AsyncIterable):
        return _IterableSource(data)
    assert isinstance(data, Iterable)
    return _IterableSource(data)


def _flat(view: memoryview) -> memoryview:
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _remaining(file: Any) -> int | None:
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        return None
    here = int(file.tell())
    end = int(file.seek(0, os.SEEK_END))
    file.seek(here)
    return min(max(end - here, 0), VARINT_MAX)
