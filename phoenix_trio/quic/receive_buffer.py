"""Holds the bytes of one stream from the network until the application reads them.

Floor 0, sans-IO.  Flow control bounds the *bytes*; this class bounds the overhead.  Tiny pieces
are joined, so a peer that sends one byte a packet costs a byte each, not an object each.  The
part of a large piece that was read is freed before the rest is read.
"""

from __future__ import annotations

from collections import deque

__all__ = ["ReceiveBuffer"]

_SMALL = 2048
_JOINED_MAX = 64 * 1024


class ReceiveBuffer:
    """A queue of bytes with cheap appends and cheap reads of any size."""

    __slots__ = ("_head_offset", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._head_offset = 0
        self.size: int = 0
        """Bytes held."""

    def __len__(self) -> int:
        return self.size

    def append(self, data: bytes | bytearray) -> None:
        """Add `data` at the end; it is kept, not copied, unless it is small."""
        size = len(data)
        if not size:
            return
        self.size += size
        if size >= _SMALL:
            self._pieces.append(data)
            return
        if not self._pieces:
            self._pieces.append(data)  # often the only piece
            return
        last = self._pieces[-1]
        if type(last) is bytearray and len(last) + size <= _JOINED_MAX:
            last += data
        elif len(last) < _SMALL:
            self._pieces[-1] = bytearray().join((last, data))
        else:
            self._pieces.append(bytearray(data))

    def put_back(self, data: bytes | bytearray) -> None:
        """Add `data`, taken before, at the front."""
        if not data:
            return
        pieces = self._pieces
        if self._head_offset:
            pieces[0] = bytes(memoryview(pieces[0])[self._head_offset :])
            self._head_offset = 0
        pieces.appendleft(data)
        self.size += len(data)

    def take(self, max_bytes: int) -> bytes | bytearray:
        """Remove and return at least one and at most `max_bytes` bytes; empty if there are none."""
        pieces = self._pieces
        if not pieces:
            return b""
        head = pieces[0]
        start = self._head_offset
        available = len(head) - start
        if available > max_bytes:
            stop = start + max_bytes
            result: bytes | bytearray = bytes(memoryview(head)[start:stop])
            self.size -= max_bytes
            if stop >= _SMALL and 2 * stop >= len(head):
                # The rest must not keep a large piece alive.  (Each such copy is at most as long
                # as the bytes read since the last one.)
                pieces[0] = bytes(memoryview(head)[stop:])
                stop = 0
            self._head_offset = stop
            return result
        pieces.popleft()
        self._head_offset = 0
        self.size -= available
        result = bytes(memoryview(head)[start:]) if start else head
        if not pieces or available >= max_bytes // 2:
            return result
        parts = [result]
        available = len(result)
        while pieces and available + len(pieces[0]) <= max_bytes:
            parts.append(pieces.popleft())
            available += len(parts[-1])
            self.size -= len(parts[-1])
        return b"".join(parts)

    def join(self) -> bytes:
        """Return everything, as one piece, and keep it."""
        pieces = self._pieces
        if self._head_offset:
            pieces[0] = bytes(memoryview(pieces[0])[self._head_offset :])
            self._head_offset = 0
        data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if data:
            pieces.append(data)
        return data

    def take_all(self) -> bytes:
        """Remove and return everything, as one piece."""
        data = self.join()
        self.clear()
        return data

    def clear(self) -> int:
        """Drop everything; returns the number of bytes dropped."""
        size = self.size
        self._pieces.clear()
        self._head_offset = 0
        self.size = 0
        return size
