"""Holds the bytes of one stream from the application's write to the peer's acknowledgement.

Floor 0, sans-IO.  The bytes are a list of chunks with their offsets: the cost of appending, of
reading a range and of releasing the front depends on the bytes concerned, never on the bytes
held.  (One long ``bytearray``, as in aioquic, is copied whole whenever it grows after its front
was cut off.)
"""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["SendBuffer"]

#: Smaller pieces are joined, so that tiny writes do not cost an object each.
_SMALL = 16 * 1024

#: Joined chunks grow to this size, so that acknowledged bytes are freed soon.
_JOINED_MAX = 64 * 1024


class SendBuffer:
    """Bytes from :attr:`start`, the first one not released, to :attr:`stop`."""

    __slots__ = ("_chunks", "_starts", "start", "stop")

    def __init__(self) -> None:
        self._chunks: list[bytes | bytearray | memoryview] = []
        self._starts: list[int] = []
        self.start: int = 0
        self.stop: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __bool__(self) -> bool:
        return self.stop > self.start

    def append(self, data: bytes | bytearray | memoryview, *, keep: bool = True) -> bool:
        """Add `data` at the end.

        Immutable data of some size is kept as it is, unless `keep` is false; any other data is
        copied.  Returns whether it was kept.
        """
        size = len(data)
        if size < _SMALL:
            if size:
                chunks = self._chunks
                last = chunks[-1] if chunks else None
                if last is None:
                    # (The first piece of many streams is their only one.)
                    self._add(bytes(data))
                elif type(last) is bytearray and len(last) + size <= _JOINED_MAX:
                    last += data
                elif len(last) < _SMALL:
                    chunks[-1] = bytearray().join((last, data))
                else:
                    self._add(bytearray(data))
                self.stop += size
            return False
        kept = keep and (
            type(data) is bytes or (type(data) is memoryview and type(data.obj) is bytes)
        )
        self._add(data if kept else bytes(memoryview(data)))
        self.stop += size
        return kept

    def _add(self, chunk: bytes | bytearray | memoryview) -> None:
        self._chunks.append(chunk)
        self._starts.append(self.stop)

    def pieces(self, start: int, stop: int) -> list[memoryview]:
        """Views of the bytes from `start` to `stop`, which must be held; release them soon."""
        index = bisect_right(self._starts, start) - 1
        found = []
        while start < stop:
            first = self._starts[index]
            view = memoryview(self._chunks[index])[start - first : stop - first]
            found.append(view)
            start += len(view)
            index += 1
        return found

    def read(self, start: int, stop: int) -> bytes:
        """A copy of the bytes from `start` to `stop`, which must be held."""
        if len(self._chunks) == 1 and start == self._starts[0] and stop == self.stop:
            return bytes(self._chunks[0])
        return b"".join(self.pieces(start, stop))

    def release(self, offset: int) -> None:
        """Free the bytes below `offset`."""
        if offset <= self.start:
            return
        self.start = offset
        if offset >= self.stop:
            self._chunks.clear()
            self._starts.clear()
            return
        count = bisect_right(self._starts, offset) - 1
        if count > 0:
            del self._chunks[:count]
            del self._starts[:count]

    def clear(self) -> None:
        """Free all bytes."""
        self.release(self.stop)

    def discard(self) -> None:
        """Free the bytes, but count them as held: they were not acknowledged, and never will be.

        Nothing can be read any more.
        """
        self._chunks.clear()
        self._starts.clear()
