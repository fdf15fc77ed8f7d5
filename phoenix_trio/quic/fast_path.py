"""The batched 1-RTT path: when it may be taken, and how often it was not.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  aioquic builds and
parses one packet at a time, with a few dozen Python calls each.  When a stream
has much to send, or a run of datagrams brings little but one stream's data, the
same packets are made (:mod:`~phoenix_trio.quic.fast_send`) and read
(:mod:`~phoenix_trio.quic.fast_receive`) in one loop.

Nothing here is a protocol of its own.  Whatever is not plain stream data on an
established path is left to aioquic's code, with the reason counted in
:attr:`FastPath.fallbacks`; ``tests/quic/test_fast_path.py`` holds the two
against each other and provokes every reason.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..config import MAX_RUN_BYTES, MAX_RUN_SEGMENTS
from . import fast_receive, fast_send, small_packet
from .fast_send import BulkTurn
from .stream_state import StreamRecord

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["BUILD_BYTES", "FastPath", "kernel_run"]

#: Bytes which are built before the first of them is sent: enough to share the cost of a
#: turn among a few of the largest packets, few enough to keep both ends busy.
BUILD_BYTES = 4 * 65_536

#: The same in packets, where they are small.
BUILD_PACKETS = 128


def kernel_run(size: int) -> int:
    """How many datagrams of `size` bytes the kernel takes in one run."""
    return max(1, min(MAX_RUN_SEGMENTS, MAX_RUN_BYTES // size))


class FastPath:
    """The batched path of one connection."""

    __slots__ = ("_engine", "enabled", "fallbacks", "packets_sent")

    def __init__(self, engine: Engine, *, enabled: bool) -> None:
        self._engine = engine
        self.enabled = enabled
        self.fallbacks: Counter[str] = Counter()
        """How often, and why, packets went through aioquic's own code."""
        self.packets_sent = 0

    def next_turn(self, record: StreamRecord) -> BulkTurn | None:
        """The stream's turn to send in full packets; ``None``: aioquic sends what there is."""
        turn = fast_send.next_turn(self._engine, record) if self.enabled else None
        if turn is None:
            return None
        reason = fast_send.why_not(self._engine)
        if reason is not None:
            self.fallbacks["send: " + reason] += 1
            return None
        return turn

    def send(self, turn: BulkTurn, count: int, now: float, slab: bytearray | None) -> memoryview:
        """`count` full packets; see :func:`~phoenix_trio.quic.fast_send.send_bulk`."""
        size = count * self._engine._max_datagram_size
        if slab is None or len(slab) < size:
            slab = bytearray(size)
        self.packets_sent += count
        return fast_send.send_bulk(self._engine, turn, count, now, slab)

    def small_packet(self, now: float, *, with_streams: bool, with_datagrams: bool) -> bytes | None:
        """One packet of everyday frames; ``None``: aioquic's turn."""
        if not self.enabled or fast_send.why_not(self._engine) is not None:
            return None
        return small_packet.build(
            self._engine, now, with_streams=with_streams, with_datagrams=with_datagrams
        )

    def largest_build(self) -> int:
        """How many packets of the present size are built at a time: full runs of the kernel."""
        size = self._engine._max_datagram_size
        run = kernel_run(size)
        return max(1, min(BUILD_PACKETS, BUILD_BYTES // size) // run * run)

    def receive(
        self, data: bytes | bytearray, start: int, stop: int, size: int, address: Any, now: float
    ) -> int:
        """Read datagrams from a run; see :func:`~phoenix_trio.quic.fast_receive.receive_batch`.

        Returns where it stopped; at least one datagram was read.
        """
        engine = self._engine
        if not self.enabled:
            reason: str | None = "disabled"
        elif not data.startswith(engine.host_cid, start + 1):
            reason = "connection ID"
        else:
            reason = fast_receive.why_not(engine, address)
        if reason is None:
            return fast_receive.receive_batch(
                engine, data, start, stop, size, address, now, self.fallbacks
            )
        return fast_receive.receive_slowly(
            engine, data, start, stop, size, address, reason, self.fallbacks
        )
