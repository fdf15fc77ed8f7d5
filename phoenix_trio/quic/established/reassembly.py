"""Puts stream data that arrives out of order back into order.

Floor 0, sans-IO.  A receiver keeps data behind a gap here until the gap is filled.  Memory grows
with the bytes received, never with their offsets:

* only received bytes are stored, once each; gaps cost nothing;
* touching pieces are joined while they are small, so one byte a packet costs about a byte, not
  an object;
* a piece is a copy, so it never keeps a larger buffer alive;
* all streams of a connection share one :class:`PieceLimit`, so many tiny pieces with gaps
  between them are refused, on any number of streams.
"""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["PieceLimit", "ReassemblyBuffer"]

#: Pieces that a connection may hold whatever their size.  At about 150 bytes of overhead each,
#: they take 150 KiB.
FREE_PIECES = 1000

#: Above that, one piece for so many bytes held.  A lost packet leaves a gap, and the pieces
#: between lost packets have 1200 bytes or so: an honest peer stays far below the limit.
BYTES_PER_PIECE = 512

#: A piece below this size is joined with its neighbour.
_SMALL = 2048

#: Joined pieces grow to this size.  It bounds the copy for a byte in front of a piece.
_JOINED_MAX = 16 * 1024


class PieceLimit:
    """Counts the pieces and bytes behind gaps on all streams of one connection."""

    __slots__ = ("held", "pieces")

    def __init__(self) -> None:
        self.pieces: int = 0
        """Pieces held."""
        self.held: int = 0
        """Bytes held."""

    @property
    def is_exceeded(self) -> bool:
        """Whether there are more pieces than the bytes in them justify."""
        return self.pieces > FREE_PIECES + self.held // BYTES_PER_PIECE


class ReassemblyBuffer:
    """The bytes of one stream behind a gap.

    Args:
      limit: shared by all streams of the connection; kept up to date.
    """

    __slots__ = ("_limit", "_pieces", "_starts")

    def __init__(self, limit: PieceLimit) -> None:
        self._limit = limit
        self._starts: list[int] = []  # ascending; pieces do not overlap
        self._pieces: list[bytes | bytearray] = []

    def __len__(self) -> int:
        """Pieces held."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return len(self._starts) > 0

    def add(self, offset: int, data: bytes) -> None:
        """Keep the new bytes of `data`, which begins at `offset`.

        Where two copies of a byte differ, either may be kept (RFC 9000 section 2.2).
        """
        starts, pieces, limit = self._starts, self._pieces, self._limit
        stop = offset + len(data)
        before = bisect_right(starts, offset) - 1
        touches = False
        if before >= 0:
            covered = starts[before] + len(pieces[before])
            if covered >= stop:
                return
            touches = covered >= offset
            if covered > offset:
                data = data[covered - offset :]
                offset = covered
        # Pieces inside the new one are replaced by it, so nothing held is ever cut.
        first = last = before + 1
        while last < len(starts) and starts[last] + len(pieces[last]) <= stop:
            limit.held -= len(pieces[last])
            last += 1
        if last < len(starts) and starts[last] < stop:
            stop = starts[last]
            data = data[: stop - offset]
        if last > first:
            limit.pieces -= last - first
            del starts[first:last]
            del pieces[first:last]
        if not data:
            return
        limit.held += len(data)
        if touches and self._join(before, data):
            at = before
        else:
            at = first
            starts.insert(at, offset)
            pieces.insert(at, data)
            limit.pieces += 1
        following = at + 1
        if (
            following < len(starts)
            and starts[following] == stop
            and self._join(at, pieces[following])
        ):
            del starts[following]
            del pieces[following]
            limit.pieces -= 1

    def _join(self, index: int, data: bytes | bytearray) -> bool:
        """Append `data` to a piece that it touches, if that is worth a copy."""
        piece = self._pieces[index]
        if len(piece) + len(data) > _JOINED_MAX or min(len(piece), len(data)) >= _SMALL:
            return False
        if type(piece) is bytearray:
            piece += data
        else:
            self._pieces[index] = bytearray().join((piece, data))
        return True

    def take(self, offset: int) -> bytes | bytearray:
        """Remove and return the bytes from `offset` up to the next gap; empty if there are none.

        No bytes below `offset` may be held; the caller takes the data when it fills a gap.
        """
        starts, pieces = self._starts, self._pieces
        count = 0
        while count < len(starts) and starts[count] == offset:
            offset += len(pieces[count])
            count += 1
        if not count:
            return b""
        data = pieces[0] if count == 1 else b"".join(pieces[:count])
        del starts[:count]
        del pieces[:count]
        self._limit.pieces -= count
        self._limit.held -= len(data)
        return data

    def clear(self) -> None:
        """Drop everything."""
        self._limit.pieces -= len(self._pieces)
        self._limit.held -= sum(map(len, self._pieces))
        self._starts.clear()
        self._pieces.clear()

    def ranges(self) -> list[range]:
        """The offsets held, ascending, as the longest possible ranges."""
        found: list[range] = []
        for start, piece in zip(self._starts, self._pieces, strict=True):
            stop = start + len(piece)
            if found and found[-1].stop == start:
                start = found.pop().start
            found.append(range(start, stop))
        return found
