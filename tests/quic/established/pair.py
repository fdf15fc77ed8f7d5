"""Two established halves with known keys, and a wire between them in virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.congestion import make_control
from phoenix_trio.quic.established.connection import Established
from phoenix_trio.quic.established.memory_budget import EndpointMemory
from phoenix_trio.quic.established.parameters import PeerParameters
from phoenix_trio.quic.established.paths import Paths
from phoenix_trio.quic.established.rtt import RoundTrip
from phoenix_trio.quic.established.state import State
from phoenix_trio.quic.established.streams import Streams
from phoenix_trio.quic.path_address import Address

SUITE = 0x1301
VERSION = 1
ADDRESSES: dict[bool, Address] = {True: ("10.0.0.2", 5000), False: ("10.0.0.1", 4433)}
CIDS = {True: b"client--", False: b"server--"}


def parameters(config: TransportConfig, streams: Streams) -> PeerParameters:
    """The transport parameters that an endpoint with this configuration announces."""
    found = PeerParameters()
    found.max_data = streams.receiving.initial_connection_window
    window = streams.receiving.initial_stream_window
    found.max_stream_data_bidi_local = found.max_stream_data_bidi_remote = window
    found.max_stream_data_uni = window
    found.max_streams_bidi = config.max_bidirectional_streams
    found.max_streams_uni = config.max_unidirectional_streams
    found.max_datagram_frame_size = 65_535 if config.enable_datagrams else 0
    found.active_connection_id_limit = 8
    found.max_idle_timeout = config.max_idle_timeout
    return found


class Recorder:
    """Keeps the events of a qlog trace."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        self.events.append((f"{category}:{event}", data))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The data of all events with this name."""
        return [data for each, data in self.events if each == name]

    def frames(self, name: str = "transport:packet_sent") -> list[dict[str, Any]]:
        """The frames of all packets sent, or received."""
        return [frame for data in self.named(name) for frame in data["frames"]]


class Half:
    """One side, with the events taken from it."""

    def __init__(
        self, is_client: bool, config: TransportConfig, trace: Recorder | None = None
    ) -> None:
        self.is_client = is_client
        self.config = config
        self.queue: list[events.Event] = []
        self.events: list[events.Event] = []
        self.is_reading = True
        self.tickets: list[bytes] = []
        self.streams = Streams(
            is_client=is_client, config=config, memory=EndpointMemory(config), events=self.queue
        )
        paths = Paths(is_client)
        paths.begin(ADDRESSES[not is_client], is_validated=True)
        self.state = State(
            is_client=is_client,
            config=config,
            streams=self.streams,
            local_cid=CIDS[is_client],
            peer_cid=CIDS[not is_client],
            reset_token=lambda cid: (cid * 2)[:16],
            rtt=RoundTrip(config.initial_rtt),
            control=make_control(config.congestion_control, 1200),
            paths=paths,
            queue=self.queue,
            trace=trace,
        )
        self.half = Established(self.state)
        self.state.on_ticket = self.tickets.append
        self.address = ADDRESSES[is_client]

    def gather(self, now: float) -> None:
        """Take the events; an application that reads at once reads the new data."""
        self.streams.collect()
        assert self.state.fault is None, self.state.fault
        while self.queue:
            batch, self.queue[:] = self.queue[:], []
            self.events += batch
            if self.is_reading:
                for event in batch:
                    if isinstance(event, events.StreamDataReceived):
                        self.read(event.stream_id, len(event.data), now)

    def read(self, stream_id: int, count: int, now: float) -> None:
        """Let the application read."""
        if self.streams.consume(stream_id, count):
            self.streams.extend_credit(stream_id, now, 0.02)

    def data(self, stream_id: int) -> bytes:
        """The data delivered on a stream."""
        return b"".join(
            bytes(each.data)
            for each in self.events
            if isinstance(each, events.StreamDataReceived) and each.stream_id == stream_id
        )

    def of_type(self, kind: type[Any]) -> list[Any]:
        """The events of this kind."""
        return [each for each in self.events if isinstance(each, kind)]


def never(data: bytes) -> bool:
    """Drop nothing."""
    return False


class Pair:
    """A client and a server with a confirmed handshake, unless `confirm` is false.

    A datagram reaches the peer if the peer still has its destination address on arrival.  Sides
    and the wire can be changed at any time.

    Args:
      config: the configuration of both sides.
      server_config: that of the server, if it differs.
      drop: whether a datagram is lost.
      limit: longer datagrams vanish.
      ceiling: the largest payload of the interfaces; ``None``: unknown.
      trace: whether qlog traces are kept.
      confirm: whether the handshake is over.
    """

    delay = 0.01

    def __init__(
        self,
        config: TransportConfig | None = None,
        *,
        server_config: TransportConfig | None = None,
        drop: Callable[[bytes], bool] = never,
        limit: int = 65_507,
        ceiling: int | None = None,
        trace: bool = False,
        confirm: bool = True,
    ) -> None:
        config = config or TransportConfig()
        self.traces = {True: Recorder(), False: Recorder()}
        self.client = Half(True, config, self.traces[True] if trace else None)
        self.server = Half(False, server_config or config, self.traces[False] if trace else None)
        self.now = 0.0
        self.drop = drop
        self.limit = limit
        self.wire: list[tuple[float, int, Half, bytes, Address, Address, int]] = []
        #: Changes ECN codepoints on the way; ``None``: they are lost.
        self.remark: Callable[[int], int] | None = None
        self.sequence = 0
        #: Every datagram sent, with its time and its sender; and its destination.
        self.sent: list[tuple[float, Half, bytes]] = []
        self.destinations: list[Address] = []
        for half in self.halves:
            half.state.path_ceiling = lambda address: ceiling
        if confirm:
            self.install_keys()
            self.confirm()

    @property
    def halves(self) -> tuple[Half, Half]:
        return self.client, self.server

    def other(self, half: Half) -> Half:
        """The peer."""
        return self.server if half is self.client else self.client

    def install_keys(self) -> None:
        """Give both sides their 1-RTT keys."""
        for half in self.halves:
            for sending in (True, False):
                secret = bytes([half.is_client is sending]) * 32
                half.half.install_key(sending, SUITE, secret, VERSION, is_early=False)

    def confirm(self) -> None:
        """Complete TLS and confirm the handshake, on both sides."""
        for half in self.halves:
            other = self.other(half)
            half.half.set_parameters(parameters(other.config, other.streams), remembered=False)
            half.half.on_complete()
            half.half.confirm()
            half.state.idle_since = self.now

    def open(self, half: Half | None = None, *, unidirectional: bool = False) -> int:
        """Open a stream, of the client unless `half` is given."""
        stream_id = (half or self.client).streams.open_stream(unidirectional=unidirectional)
        assert stream_id is not None
        return stream_id

    def send(self, half: Half, data: bytes, to: Address, mark: int) -> None:
        """Put one datagram on the wire."""
        self.sent.append((self.now, half, data))
        self.destinations.append(to)
        if self.drop(data) or len(data) > self.limit:
            return
        self.sequence += 1
        mark = 0 if self.remark is None else self.remark(mark)
        at, other = self.now + self.delay, self.other(half)
        heapq.heappush(self.wire, (at, self.sequence, other, data, half.address, to, mark))

    def flush(self, half: Half) -> None:
        """Send all packets that may leave now."""
        for _ in range(1000):
            half.half.begin_pass()
            for data, to, size, mark in half.half.transmit(self.now, None):
                for at in range(0, len(data), size):
                    self.send(half, bytes(data[at : at + size]), to, mark)
            half.gather(self.now)
            if not half.half.has_more_to_send(self.now):
                return
        raise AssertionError("transmit never comes to an end")

    def deliver(self, half: Half, datagrams: list[bytes], source: Address, mark: int = 0) -> None:
        """Deliver datagrams in one run: of one size, except for a shorter last one."""
        data, size = b"".join(datagrams), len(datagrams[0])
        if data[0] & 0x80:
            half.half.receive_packet(True, data, source, self.now, mark)
        else:
            at = 0
            while at < len(data):
                at = half.half.receive_run(data, at, size, source, self.now, mark, len(data))
                if half.state.peer_close is not None or half.state.fault is not None:
                    break
        half.gather(self.now)

    def arrivals(self) -> list[tuple[Half, list[bytes], Address, int]]:
        """The datagrams that arrive now, in runs as the kernel would make them."""
        runs: list[tuple[Half, list[bytes], Address, int]] = []
        while self.wire and self.wire[0][0] <= self.now:
            _, _, half, data, source, to, mark = heapq.heappop(self.wire)
            if to != half.address:
                continue
            if runs and not data[0] & 0x80:
                other, run, *last = runs[-1]
                if (
                    (other, *last) == (half, source, mark)
                    and len(run[-1]) == len(run[0]) >= len(data)
                    and len(run) < 64
                    and not run[0][0] & 0x80
                ):
                    run.append(data)
                    continue
            runs.append((half, [data], source, mark))
        return runs

    def step(self, until: float = math.inf) -> bool:
        """Go on to the next arrival or deadline up to `until`; whether there is one."""
        for half in self.halves:
            self.flush(half)
        deadlines = [half.half.deadline() for half in self.halves]
        arrival = self.wire[0][0] if self.wire else math.inf
        upcoming = min(*deadlines, arrival)
        if upcoming == math.inf or upcoming > until:
            return False
        self.now = max(self.now, upcoming)
        for half, datagrams, source, mark in self.arrivals():
            self.deliver(half, datagrams, source, mark)
        for half in self.halves:
            if half.half.deadline() <= self.now:
                assert half.half.on_timer(self.now)
                half.gather(self.now)
        return True

    def run(self, seconds: float = 60.0) -> None:
        """Go on for some seconds, or until nothing more happens before their end."""
        until = self.now + seconds
        for _ in range(200_000):
            if not self.step(until):
                self.now = until
                return
        raise AssertionError("no end")
