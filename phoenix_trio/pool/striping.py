"""Cuts a striped transfer into stripes, and tracks where each is and what to send again.

Floor 4, sans-IO: knows no Trio, no clock and no connection; members of a stripe set
are any hashable names.  :class:`SendingPlan` is the sender's half,
:class:`ReassemblyWindow` the receiver's.

A transfer is cut into stripes of one size, the last one shorter; stripe *n* begins at
*n* times that size.  So two stripes are the same or apart, never overlapping, and
everything is known by its offset.  Both halves hold at most a window of bytes:

* The sender keeps a stripe from reading it until the receiver has acknowledged it.
  Stripes go to any member that asks, lowest offset first; when a member is lost, its
  stripes are given to others.
* The receiver holds stripes between the consumed bytes and its credit limit, and moves
  the limit on as the application consumes.  A stripe that arrives twice counts once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from heapq import heappop, heappush

import attrs

from ..quic.receive_buffer import ReceiveBuffer
from .transfer_errors import TransferCode

__all__ = [
    "Arrival",
    "Ranges",
    "ReassemblyWindow",
    "SendingPlan",
    "Stripe",
    "StripeRefused",
    "choose_stripe_size",
]

KIBIBYTE = 1024

#: The most disjoint ranges kept; only a hostile peer needs more.
_MAX_RANGES = 65_536


class StripeRefused(ValueError):
    """The peer has broken the rules of the transfer.

    Attributes:
      code: the :class:`TransferCode` to answer with.
    """

    def __init__(self, code: TransferCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def choose_stripe_size(size: int | None, members: int) -> int:
    """A stripe size that suits the transfer: a power of two from 64 KiB to 1 MiB.

    Large stripes cost less; small ones spread better, and less is sent again when a
    connection is lost.  So there should be at least 16 for each of the `members`.
    """
    if size is None:
        return 256 * KIBIBYTE
    stripe = 64 * KIBIBYTE
    while stripe < 1024 * KIBIBYTE and stripe * 2 * 16 * members <= size:
        stripe *= 2
    return stripe


class Ranges:
    """A set of offsets, as disjoint ranges in order."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total: int = 0
        """How many offsets are in the set."""

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._stops[index]

    def add(self, start: int, stop: int) -> int:
        """Add the offsets from `start` up to `stop`; return how many were new."""
        if start >= stop:
            return 0
        # Ranges that touch or overlap: from the first that ends at `start` or later, to
        # the last that begins at `stop` or earlier.
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        covered = 0
        for index in range(first, last):
            covered += self._stops[index] - self._starts[index]
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        added = stop - start - covered
        self.total += added
        return added

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._stops.clear()
        self.total = 0


# ---------------------------------------------------------------------- sending


@attrs.define(eq=False)
class Stripe:
    """One stripe in the sender's memory."""

    offset: int
    data: bytes | bytearray | memoryview
    member: Hashable | None = None
    """The member that sends it; ``None``: no member does at present."""
    sends: int = 0
    """How often it was given out."""


class SendingPlan:
    """The sender's half: stripes read, given out, acknowledged, lost.

    Args:
      stripe_size: bytes of each stripe but the last.
      window: the most bytes kept, and the most given out; in effect at least one stripe.
      size: bytes in all, if that is known.
    """

    def __init__(self, *, stripe_size: int, window: int, size: int | None = None) -> None:
        self.stripe_size = stripe_size
        self.window: int = max(window, stripe_size)
        self.announced = size
        self.credit: int = 0
        """The offset up to which the receiver takes stripes."""
        self.read: int = 0
        """How many bytes were added."""
        self.end: int | None = None
        """Bytes in all, once everything was added."""
        self.skipped_to: int = 0
        """Where the last stripe ends that the receiver had when it was added."""
        self.kept: int = 0
        """Bytes kept at present."""
        self.stripes_sent: int = 0
        self.stripes_sent_again: int = 0
        self.bytes_sent_again: int = 0
        self.bytes_sent_once: int = 0
        """Bytes of all stripes given out, each counted once."""
        self._stripes: dict[int, Stripe] = {}
        self._waiting: list[int] = []
        self._outstanding: dict[Hashable, int] = {}
        self._received = Ranges()

    @property
    def acknowledged(self) -> int:
        """How many bytes the receiver has acknowledged."""
        return self._received.total

    @property
    def is_complete(self) -> bool:
        """Whether the receiver has acknowledged all bytes."""
        return self.end is not None and self._received.total >= self.end

    @property
    def all_sent(self) -> bool:
        """Whether each byte was given out or acknowledged."""
        return self.end is not None and all(stripe.sends for stripe in self._stripes.values())

    @property
    def room(self) -> int:
        """How many bytes may be added now: a stripe at least, or 0."""
        room = self.window - self.kept
        return room if room >= self.stripe_size else 0

    def outstanding(self, member: Hashable) -> int:
        """Bytes given to `member` and not acknowledged."""
        return self._outstanding.get(member, 0)

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next stripe of the source.

        Raises:
          ValueError: it is longer than a stripe, or follows a shorter one or the end.
        """
        length = len(data)
        if not 0 < length <= self.stripe_size or self.end is not None:
            raise ValueError(f"{length} bytes are no stripe, or the source has ended")
        if self.read % self.stripe_size:
            raise ValueError("only the last stripe may be short")
        offset = self.read
        self.read += length
        if offset in self._received:
            self.skipped_to = self.read
            return
        self._stripes[offset] = Stripe(offset, data)
        self.kept += length
        heappush(self._waiting, offset)

    def finish(self) -> None:
        """The source has ended."""
        self.end = self.read

    def take(self, member: Hashable, allowance: int) -> Stripe | None:
        """The next stripe for `member` to send; ``None``: nothing for it at present.

        Args:
          allowance: the most bytes that the member may have outstanding, this stripe included;
            a first stripe is always given.
        """
        waiting = self._waiting
        while waiting and (
            waiting[0] not in self._stripes or self._stripes[waiting[0]].member is not None
        ):
            heappop(waiting)  # acknowledged meanwhile
        if not waiting:
            return None
        stripe = self._stripes[waiting[0]]
        length = len(stripe.data)
        outstanding = self._outstanding.get(member, 0)
        if stripe.offset + length > self.credit or (
            outstanding and outstanding + length > allowance
        ):
            return None
        heappop(waiting)
        stripe.member = member
        stripe.sends += 1
        self.stripes_sent += 1
        if stripe.sends > 1:
            self.stripes_sent_again += 1
            self.bytes_sent_again += length
        else:
            self.bytes_sent_once += length
        self._outstanding[member] = outstanding + length
        return stripe

    def lose(self, member: Hashable) -> int:
        """A member is gone: its stripes go to others.  Returns how many bytes they have."""
        lost = self._outstanding.pop(member, 0)
        if lost:
            for stripe in self._stripes.values():
                if stripe.member == member:
                    stripe.member = None
                    heappush(self._waiting, stripe.offset)
        return lost

    def extend_credit(self, limit: int) -> None:
        """The receiver takes stripes up to `limit`; a lower limit than before changes nothing."""
        self.credit = max(self.credit, limit)

    def receive(self, start: int, stop: int) -> int:
        """The receiver has these bytes; returns how many of them are new.

        Raises:
          StripeRefused: they are not stripes of this transfer.
        """
        size = self.end if self.end is not None else self.announced
        if start >= stop or start % self.stripe_size or (size is not None and stop > size):
            raise StripeRefused(
                TransferCode.MALFORMED, f"bytes {start} to {stop} are no stripes of this transfer"
            )
        if stop % self.stripe_size and stop != size:
            if stop <= self.read:
                raise StripeRefused(
                    TransferCode.MALFORMED, f"no stripe of this transfer ends at {stop}"
                )
            # Left by an earlier attempt, and the end is not read again yet: the receiver
            # acknowledges it again after it was sent again.
            stop -= stop % self.stripe_size
            if start >= stop:
                return 0
        for offset in self._offsets_between(start, stop):
            stripe = self._stripes.pop(offset, None)
            if stripe is not None:
                self.kept -= len(stripe.data)
                if stripe.member is not None:
                    self._outstanding[stripe.member] -= len(stripe.data)
        news = self._received.add(start, stop)
        if len(self._received) > _MAX_RANGES:
            raise StripeRefused(TransferCode.MALFORMED, "there are too many holes between stripes")
        return news

    def _offsets_between(self, start: int, stop: int) -> list[int]:
        # Take the smaller: a resumed transfer begins with one long range.
        if (stop - start) // self.stripe_size > len(self._stripes):
            return [offset for offset in self._stripes if start <= offset < stop]
        return list(range(start, stop, self.stripe_size))


# ---------------------------------------------------------------------- receiving


class Arrival:
    """A stripe arriving on one stream.  Made by :meth:`ReassemblyWindow.begin`."""

    __slots__ = ("buffer", "length", "offset", "wanted")

    def __init__(self, offset: int, length: int, *, wanted: bool) -> None:
        self.offset: int = offset
        self.length: int = length
        self.wanted: bool = wanted
        """Whether its bytes are kept; there may be a finished copy, or a copy begun later."""
        self.buffer: ReceiveBuffer = ReceiveBuffer()

    def append(self, data: bytes | bytearray) -> None:
        """Some more of its bytes."""
        if self.wanted:
            self.buffer.append(data)

    def discard(self) -> None:
        """Its bytes are not needed."""
        self.wanted = False
        self.buffer.clear()


class ReassemblyWindow:
    """The receiver's half: stripes in any order in, stripes in order out.

    Args:
      stripe_size: bytes of each stripe but the last.
      window: the most bytes held, counted from the first byte not consumed; rounded down to
        whole stripes, and at least one.
      size: bytes in all, if that is known.
      max_size: the most bytes in all; ``None``: any.

    At most one copy of a stripe is held, arriving copies included.  The copy begun last
    counts, because a sender begins another copy only when the first is lost.
    """

    def __init__(
        self,
        *,
        stripe_size: int,
        window: int,
        size: int | None = None,
        max_size: int | None = None,
    ) -> None:
        self.stripe_size = stripe_size
        self._max_size = max_size
        self.window: int = max(stripe_size, window - window % stripe_size)
        self.size = size
        self.consumed: int = 0
        """The number of bytes consumed: all bytes below this offset."""
        self._taken = 0
        self._held: dict[int, Arrival] = {}
        self._held_bytes = 0
        self._arriving: dict[int, Arrival] = {}
        self._news = Ranges()
        self._highest = 0

    @property
    def limit(self) -> int:
        """The credit: the offset up to which stripes are taken."""
        return self.consumed - self.consumed % self.stripe_size + self.window

    @property
    def received(self) -> int:
        """How many bytes are here or were consumed."""
        return self._taken + self._held_bytes

    @property
    def memory(self) -> int:
        """Bytes held: not consumed yet, or arriving."""
        arriving = sum(len(arrival.buffer) for arrival in self._arriving.values())
        return self.received - self.consumed + arriving

    @property
    def is_complete(self) -> bool:
        """Whether everything was taken."""
        return self.size is not None and self._taken >= self.size

    @property
    def has_next(self) -> bool:
        """Whether :meth:`take` has something to give."""
        return self._taken in self._held

    def finish(self, size: int) -> None:
        """The transfer has `size` bytes in all.

        Raises:
          StripeRefused: that contradicts an earlier size or stripe, or is too much.
        """
        self._check_size(size)
        if size < self._highest or (self.size is not None and size != self.size):
            raise StripeRefused(
                TransferCode.MALFORMED,
                f"the transfer ends at {size} bytes, but it was said to end at {self.size}"
                f" and has stripes up to {self._highest}",
            )
        self.size = size

    def _check_size(self, size: int) -> None:
        if self._max_size is not None and size > self._max_size:
            raise StripeRefused(
                TransferCode.TOO_LARGE, f"more than {self._max_size} bytes are not taken"
            )

    def restore(self, prefix: int) -> None:
        """An earlier attempt has left the first `prefix` bytes: they count as consumed.

        Call it before anything was taken.  Stripes of these bytes that have arrived meanwhile
        are dropped.

        Raises:
          ValueError: something was taken, or `prefix` is neither whole stripes nor everything.
        """
        if self._taken or (prefix % self.stripe_size and prefix != self.size):
            raise ValueError(f"{prefix} bytes cannot be restored after {self._taken} were taken")
        for offset in [offset for offset in self._held if offset < prefix]:
            self._held_bytes -= self._held.pop(offset).length
        for offset in [offset for offset in self._arriving if offset < prefix]:
            self._arriving.pop(offset).discard()
        self._taken = self.consumed = prefix
        self._highest = max(self._highest, prefix)
        self._news.add(0, prefix)

    def begin(self, offset: int, length: int) -> Arrival:
        """A stripe begins to arrive.

        Raises:
          StripeRefused: it is not a stripe of this transfer, or is beyond the credit.
        """
        stop = offset + length
        if offset % self.stripe_size or not 0 < length <= self.stripe_size:
            raise StripeRefused(
                TransferCode.MALFORMED,
                f"bytes {offset} to {stop} are no stripe: stripes have {self.stripe_size} bytes",
            )
        if stop > self.limit:
            raise StripeRefused(
                TransferCode.BEYOND_CREDIT,
                f"a stripe goes up to {stop}, but credit only up to {self.limit}",
            )
        self._check_size(stop)
        if self.size is not None:
            if stop > self.size or length != min(self.stripe_size, self.size - offset):
                raise StripeRefused(
                    TransferCode.MALFORMED,
                    f"bytes {offset} to {stop} are no stripe of {self.size} bytes in all",
                )
        elif length < self.stripe_size:
            self.finish(stop)  # only the last one is short
        self._highest = max(self._highest, stop)
        if offset < self._taken or offset in self._held:
            return Arrival(offset, length, wanted=False)
        earlier = self._arriving.get(offset)
        if earlier is not None:
            earlier.discard()
        arrival = self._arriving[offset] = Arrival(offset, length, wanted=True)
        return arrival

    def complete(self, arrival: Arrival) -> bool:
        """All bytes of a stripe have arrived.  Returns whether it counts.

        A stripe that was here already is acknowledged again, since the sender seems to have
        missed the first acknowledgement.
        """
        if arrival.wanted:
            if len(arrival.buffer) != arrival.length:
                raise ValueError("the stripe is not whole")
            del self._arriving[arrival.offset]
            self._held[arrival.offset] = arrival
            self._held_bytes += arrival.length
        elif arrival.offset >= self._taken and arrival.offset not in self._held:
            return False  # superseded by a copy still arriving
        self._news.add(arrival.offset, arrival.offset + arrival.length)
        return arrival.wanted

    def drop(self, arrival: Arrival) -> None:
        """The stream of a stripe has ended before it was whole."""
        if self._arriving.get(arrival.offset) is arrival:
            del self._arriving[arrival.offset]
        arrival.discard()

    def take(self) -> Arrival | None:
        """The next stripe in order, or ``None`` until it is there.

        Its bytes count as held until :meth:`consume`.
        """
        arrival = self._held.pop(self._taken, None)
        if arrival is not None:
            self._taken += arrival.length
            self._held_bytes -= arrival.length
        return arrival

    def consume(self, count: int) -> None:
        """So many of the bytes taken have left this side's memory."""
        if not 0 <= count <= self._taken - self.consumed:
            raise ValueError(f"{count} bytes were consumed, more than were taken")
        self.consumed += count

    @property
    def has_new_ranges(self) -> bool:
        """Whether :meth:`take_new_ranges` has something to tell."""
        return len(self._news) > 0

    def take_new_ranges(self) -> list[tuple[int, int]]:
        """The ranges received since the last call, to be acknowledged."""
        news = list(self._news)
        self._news.clear()
        return news

    def repeat_all_ranges(self) -> None:
        """Acknowledge everything once more: the sender has opened a new line."""
        self._news.clear()
        self._news.add(0, self._taken)
        for arrival in self._held.values():
            self._news.add(arrival.offset, arrival.offset + arrival.length)

    def clear(self) -> None:
        """Give all memory back; no stripes are taken any more."""
        for arrival in self._arriving.values():
            arrival.discard()
        self._arriving.clear()
        self._held.clear()
        self._held_bytes = 0
        self._news.clear()
