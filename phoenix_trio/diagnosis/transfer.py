"""Sends data to a ``phoenix-trio serve-bench``, and samples the connection meanwhile.

Floor 4.  The data goes in one stream: the byte 1, eight bytes of size, the data, and the end.
The server answers the byte 6 when its program has read everything, then the SHA-256 of what it
has read, and the nanoseconds of processor time it took.  Pings go beside the data.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from ..errors import ApplicationErrorCode
from ..metrics import ConnectionStatistics
from ..quic.connection import QuicConnection, QuicStream
from ..quic.groups import unwrap_lone

__all__ = ["ANSWER_SIZE", "TRANSFER", "Measures", "Sample", "measure_transfer", "summarise"]

TRANSFER = b"\x01"
_ACKNOWLEDGED = b"\x06"
_DIGEST_SIZE = 32
ANSWER_SIZE = len(_ACKNOWLEDGED) + _DIGEST_SIZE + 8

_CHUNK = 256 * 1024

#: Seconds between two samples: often enough to see what holds the data back.
_SAMPLE_SECONDS = 0.005
_PING_PAUSE = 0.02
_MOST_SAMPLES = 4000


@attrs.frozen
class Sample:
    """A connection at one moment, in bytes."""

    in_flight: int
    congestion_window: int
    waiting: int
    """Written by the application and not sent yet."""

    @property
    def held_back_by(self) -> str:
        """``"application"``, ``"congestion"``, or ``"credit"`` of the peer."""
        if not self.waiting:
            return "application"
        # (The pacer spreads a window, and acknowledgements come in lots.)
        return "congestion" if self.in_flight >= self.congestion_window / 2 else "credit"


@attrs.frozen(kw_only=True)
class Measures:
    """A transfer in numbers; times are in seconds, sizes in bytes."""

    size: int
    seconds: float
    processor_seconds: float
    peer_processor_seconds: float | None
    """``None``: unknown."""
    processor_wait_seconds: float = 0.0
    """How long this process wanted a processor and got none, as others had it."""
    congestion_share: float
    """Of the samples in which the congestion window held data back."""
    credit_share: float
    application_share: float
    congestion_window: int
    """The median."""
    rtt_min: float
    rtt_loaded: float
    """The median of the pings during the transfer."""
    packets_sent: int
    packets_lost: int
    path_mtu: int

    @property
    def rate(self) -> float:
        """Bits a second."""
        return 8 * self.size / self.seconds

    @property
    def loss(self) -> float:
        """The share of lost packets."""
        return self.packets_lost / max(1, self.packets_sent)


def summarise(
    *,
    size: int,
    seconds: float,
    processor_seconds: float,
    peer_processor_seconds: float | None,
    processor_wait_seconds: float = 0.0,
    samples: list[Sample],
    pings: list[float],
    before: ConnectionStatistics,
    after: ConnectionStatistics,
) -> Measures:
    """The measures of a transfer from what was sampled."""
    count = max(1, len(samples))

    def share(cause: str) -> float:
        return sum(sample.held_back_by == cause for sample in samples) / count

    rtt_min = after.rtt_min if after.rtt_min is not None else min(pings, default=0.0)
    return Measures(
        size=size,
        seconds=seconds,
        processor_seconds=processor_seconds,
        peer_processor_seconds=peer_processor_seconds,
        processor_wait_seconds=processor_wait_seconds,
        congestion_share=share("congestion"),
        credit_share=share("credit"),
        application_share=share("application"),
        congestion_window=round(
            statistics.median([each.congestion_window for each in samples])
            if samples
            else after.congestion_window
        ),
        rtt_min=rtt_min,
        rtt_loaded=statistics.median(pings) if pings else after.rtt_smoothed or rtt_min,
        packets_sent=after.packets_sent - before.packets_sent,
        packets_lost=after.packets_lost - before.packets_lost,
        path_mtu=after.path_mtu,
    )


def _processor_wait() -> float:
    """Seconds so far in which this process waited for a processor; 0 where no system tells."""
    try:
        words = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
        return int(words[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


async def measure_transfer(
    connection: QuicConnection, size: int = 64 * 1024 * 1024, seconds: float = 4.0
) -> Measures:
    """Send `size` bytes and wait until they have been read, or as many as `seconds` allow.

    Raises:
      ValueError: the server did not read what was sent.
      ConnectionBroken, StreamBroken: the connection, or the stream, ended first.
    """
    run = _Run(connection, size, os.urandom(_CHUNK))
    before = connection.statistics()
    start, processor, waited = trio.current_time(), time.process_time(), _processor_wait()
    with unwrap_lone():
        async with await connection.open_stream() as stream:
            with trio.move_on_after(seconds) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run.sample)
                    nursery.start_soon(run.ping)
                    answer = await run.send(stream)
                    nursery.cancel_scope.cancel()
            took = trio.current_time() - start
            processor, waited = time.process_time() - processor, _processor_wait() - waited
            after = connection.statistics()
            peer: float | None = None
            if scope.cancelled_caught:
                # Slow links: what has arrived until now counts.
                size = after.stream_bytes_acknowledged - before.stream_bytes_acknowledged
                stream.reset(ApplicationErrorCode.CANCELLED)
                stream.stop_receiving(ApplicationErrorCode.CANCELLED)
            else:
                answer += await stream.receive_all(ANSWER_SIZE)
                peer = run.check(answer)
    return summarise(
        size=max(1, size),
        seconds=max(took, 1e-6),
        processor_seconds=processor,
        processor_wait_seconds=waited,
        peer_processor_seconds=peer,
        samples=run.samples,
        pings=run.pings,
        before=before,
        after=after,
    )


class _Run:
    """One transfer: the writer, and what is sampled beside it."""

    def __init__(self, connection: QuicConnection, size: int, chunk: bytes) -> None:
        self._connection = connection
        self._size = size
        self._chunk = chunk
        self._has_written = False
        self.samples: list[Sample] = []
        self.pings: list[float] = []

    async def send(self, stream: QuicStream) -> bytes:
        """Write everything; returns the beginning of the answer."""
        await stream.send_all(TRANSFER + self._size.to_bytes(8, "big"))
        for chunk in self._chunks():
            await stream.send_all(chunk)
        await stream.send_eof()
        self._has_written = True
        return bytes(await stream.receive_some(ANSWER_SIZE))

    def _chunks(self) -> Iterator[bytes]:
        whole, rest = divmod(self._size, len(self._chunk))
        for _ in range(whole):
            yield self._chunk
        yield self._chunk[:rest]

    def check(self, answer: bytes) -> float:
        """The seconds of processor time that the server says it took.

        Raises:
          ValueError: the server has read other bytes than were sent.
        """
        if answer[:1] != _ACKNOWLEDGED or len(answer) != ANSWER_SIZE:
            raise ValueError(f"the server answered {len(answer)} bytes that are no receipt")
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
        if answer[1 : 1 + _DIGEST_SIZE] != digest.digest():
            raise ValueError("the server has read other bytes than were sent")
        return int.from_bytes(answer[1 + _DIGEST_SIZE :], "big") / 1e9

    async def sample(self) -> None:
        """Look at the connection until the last byte was sent."""
        while len(self.samples) < _MOST_SAMPLES:
            await trio.sleep(_SAMPLE_SECONDS)
            now = self._connection.statistics()
            waiting = max(0, now.send_buffer_bytes - now.bytes_in_flight)
            if self._has_written and not waiting:
                return
            self.samples.append(Sample(now.bytes_in_flight, now.congestion_window, waiting))

    async def ping(self) -> None:
        """Ping beside the data."""
        while True:
            self.pings.append(await self._connection.ping())
            await trio.sleep(_PING_PAUSE)
