"""Measures a transfer over a link with a given round trip, loss and bandwidth.

Floor 6.  The same transfer runs over two kinds of link.  One is in memory and in virtual time:
the processor costs nothing there, and a run takes only as long as it needs.  The other has real
sockets with a relay process between them (:mod:`.relay`), and needs no help from the kernel.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import attrs
import trio
import trio.testing

import phoenix_trio
from phoenix_trio.quic.datagram_socket import Network
from phoenix_trio.testing import SimulatedNetwork

from . import protocol
from .over_time import Moment, Recorder
from .processes import Process, python_module
from .server import development_tls

__all__ = ["Link", "Outcome", "simulate", "simulate_relayed"]

_RECEIVE = 256 * 1024
_SERVER = "10.0.0.1"
_CLIENT = "10.0.0.2"
_PORT = 4433
_START_SECONDS = 30.0
_VIRTUAL_SECONDS = 3600.0
_REAL_SECONDS = 600.0


@attrs.frozen(kw_only=True)
class Link:
    """The link between the two ends, the same both ways."""

    rtt: float = 0.05
    """Seconds there and back."""
    loss: float = 0.0
    """The share of packets that get lost, 0 to 1."""
    bandwidth: float | None = None
    """Bits a second; ``None``: no limit."""
    queue_bytes: int = 256 * 1024
    """The most bytes that wait before the bottleneck."""
    seed: int = 0

    def describe(self) -> str:
        """The link in a few words."""
        words = [f"round trip {self.rtt * 1e3:g} ms"]
        if self.bandwidth is not None:
            words.append(f"{self.bandwidth / 1e6:g} Mbit/s")
            words.append(f"queue {self.queue_bytes / 1024:.0f} KiB")
        if self.loss:
            words.append(f"loss {self.loss * 100:g} %")
        return ", ".join(words)


@attrs.frozen(kw_only=True)
class Outcome:
    """One transfer that the receiver has checked."""

    seconds: float
    """From the first write to the receivers' acknowledgement, on the link's clock."""
    size: int
    by_second: list[int]
    """Bytes that the receiving application read in each second."""
    packets_sent: int
    packets_lost: int
    real_seconds: float
    """Seconds that it took by the wall clock."""
    moments: list[Moment] = attrs.field(factory=list)
    """The transfer over time, if it was recorded."""

    @property
    def rate(self) -> float:
        """Bits a second of payload."""
        return self.size * 8 / self.seconds

    def share_in_second(self, second: int, bandwidth: float) -> float | None:
        """The part of the link that payload has used in a second, counted from 1.

        ``None``: the transfer was over by then.
        """
        # The last second is not a whole one.
        if not 1 <= second < len(self.by_second):
            return None
        return self.by_second[second - 1] * 8 / bandwidth


class _Receiver:
    """Reads one stream of each connection, and counts by the second."""

    def __init__(self) -> None:
        self.started = math.nan
        self.by_second: list[int] = []

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        digest = hashlib.sha256()
        async with await connection.accept_stream() as stream:
            while data := await stream.receive_some(_RECEIVE):
                digest.update(data)
                second = int(trio.current_time() - self.started)
                self.by_second += [0] * (second + 1 - len(self.by_second))
                self.by_second[second] += len(data)
            await stream.send_all(digest.digest())


async def _send(connection: phoenix_trio.QuicConnection, size: int) -> None:
    data, digest = protocol.payload(size)
    view = memoryview(data)
    async with await connection.open_stream() as stream:
        for at in range(0, size, _RECEIVE):
            await stream.send_all(view[at : at + _RECEIVE])
        await stream.send_eof()
        answer = bytearray()
        async for chunk in stream:
            answer += chunk
    if answer != digest:
        raise ValueError("what arrived is not what was sent")


def _count_packets(connections: list[phoenix_trio.QuicConnection]) -> tuple[int, int]:
    """Sent, and lost, on all of them."""
    counters = [connection.statistics() for connection in connections]
    return sum(each.packets_sent for each in counters), sum(each.packets_lost for each in counters)


async def _transfer(
    size: int,
    connections: int,
    config: phoenix_trio.TransportConfig,
    *,
    bind: tuple[str, int],
    networks: tuple[Network | None, Network | None],
    way_to: Callable[[int], Awaitable[tuple[str, int]]],
    record: bool,
) -> Outcome:
    """Send `size` bytes over so many connections, equal shares; `way_to` the server's port."""
    tls, pin = development_tls()
    client_tls = phoenix_trio.ClientTLS(pinned_sha256=pin)
    receiver = _Receiver()
    shares = [(size + number) // connections for number in range(connections)]
    for share in shares:
        protocol.payload(share)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        host, port = bind
        serve = partial(
            phoenix_trio.serve,
            receiver.handle,
            port,
            host=host,
            tls=tls,
            alpn=(protocol.ALPN,),
            config=config,
            network=networks[0],
        )
        (listener,) = await nursery.start(serve)
        host, port = await way_to(listener.port)
        endpoint = await stack.enter_async_context(
            phoenix_trio.Endpoint.open(config=config, network=networks[1])
        )
        dialled: list[phoenix_trio.QuicConnection] = []
        for _ in range(connections):
            opening = endpoint.connect(host, port, tls=client_tls, alpn=(protocol.ALPN,))
            dialled.append(await stack.enter_async_context(opening))
            await dialled[-1].wait_confirmed()
        before = _count_packets(dialled)
        receiver.started = trio.current_time()
        started = time.perf_counter()
        recorder = Recorder(dialled)
        async with trio.open_nursery() as recording:
            if record:
                recording.start_soon(recorder.run)
            async with trio.open_nursery() as senders:
                for connection, share in zip(dialled, shares, strict=True):
                    senders.start_soon(_send, connection, share)
            if record:
                recorder.take()
            recording.cancel_scope.cancel()
        seconds = trio.current_time() - receiver.started
        real_seconds = time.perf_counter() - started
        after = _count_packets(dialled)
        await stack.aclose()
        nursery.cancel_scope.cancel()
    return Outcome(
        seconds=seconds,
        size=size,
        by_second=receiver.by_second,
        packets_sent=after[0] - before[0],
        packets_lost=after[1] - before[1],
        real_seconds=real_seconds,
        moments=recorder.moments(),
    )


def simulate(
    link: Link,
    size: int,
    *,
    connections: int = 1,
    config: phoenix_trio.TransportConfig | None = None,
    record: bool = False,
) -> Outcome:
    """Run one transfer over a link in memory, in virtual time.

    The processor costs nothing there, so the outcome depends on the protocol and the link
    alone.  The same seed gives nearly the same outcome; not quite, because Trio runs
    tasks in random order.

    Args:
      link: the link between both ends.
      size: bytes in all.
      connections: they send equal shares side by side.
      config: of both ends; ``None``: the defaults.
      record: fill ``Outcome.moments``.

    Raises:
      ValueError: an argument is out of range.
      trio.TooSlowError: it takes more than an hour of virtual time.
    """
    if connections < 1 or size < 1:
        raise ValueError("a transfer needs at least one byte and one connection")
    network = SimulatedNetwork(
        seed=link.seed,
        loss=link.loss,
        delay=link.rtt / 2,
        bandwidth=link.bandwidth,
        queue_bytes=link.queue_bytes,
    )

    async def way_to(port: int) -> tuple[str, int]:
        await trio.lowlevel.checkpoint()
        return _SERVER, port

    async def main() -> Outcome:
        with trio.fail_after(_VIRTUAL_SECONDS):
            return await _transfer(
                size,
                connections,
                config or phoenix_trio.TransportConfig(),
                bind=(_SERVER, _PORT),
                networks=(network.host(_SERVER), network.host(_CLIENT)),
                way_to=way_to,
                record=record,
            )

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def simulate_relayed(
    link: Link,
    size: int,
    *,
    connections: int = 1,
    config: phoenix_trio.TransportConfig | None = None,
    record: bool = False,
) -> Outcome:
    """The same over real sockets on loopback, with a relay process between both ends.

    With `record`, the sender's statistics are read beside the transfer, at most 500 times a
    second.

    Raises:
      ValueError: an argument is out of range.
      WorkerFailed: the relay does not start.
      trio.TooSlowError: it takes more than ten minutes.
    """
    if connections < 1 or size < 1:
        raise ValueError("a transfer needs at least one byte and one connection")
    # Packets as on Ethernet, the usual medium for links of such bandwidths.
    config = attrs.evolve(config or phoenix_trio.TransportConfig(), max_udp_payload_size=1452)
    relays: list[Process] = []

    async def way_to(port: int) -> tuple[str, int]:
        relay = Process(
            [
                *python_module("phoenix_trio_bench.relay"),
                *("--server-port", str(port)),
                *("--delay", str(link.rtt / 2)),
                *("--loss", str(link.loss)),
                *("--queue-bytes", str(link.queue_bytes)),
                *("--seed", str(link.seed)),
                *(() if link.bandwidth is None else ("--bandwidth", str(link.bandwidth))),
            ]
        )
        relays.append(relay)
        answer = await trio.to_thread.run_sync(relay.read, _START_SECONDS)
        return "127.0.0.1", answer["port"]

    async def main() -> Outcome:
        with trio.fail_after(_REAL_SECONDS):
            return await _transfer(
                size,
                connections,
                config,
                bind=("127.0.0.1", 0),
                networks=(None, None),
                way_to=way_to,
                record=record,
            )

    try:
        return trio.run(main)
    finally:
        for relay in relays:
            relay.end(patience=1.0)
