"""Shared by the tests: certificates, a pair of engines, a pair of connections."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import attrs
import pytest
import trio
import trustme
from hypothesis import settings

import phoenix_trio
from phoenix_trio.quic import events
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.established.memory_budget import EndpointMemory
from phoenix_trio.quic.established.skipped_numbers import SkippedNumbers
from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.setup import make_client_engine, make_server_engine
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import set_skipped_numbers

ALPN = ("test/1",)
SERVER = "10.0.0.1"
CLIENT = "10.0.0.2"
PORT = 4433


def examples(count: int) -> settings:
    """So many hypothesis examples, and many more with ``--soak``."""
    soaking = settings.default is not None and settings.default.max_examples >= 5000
    return settings(max_examples=count * 25 if soaking else count)


@cache
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@cache
def server_pem() -> tuple[bytes, bytes]:
    issued = authority().issue_cert(
        "localhost", "127.0.0.1", "::1", SERVER, "example.org", key_type=trustme.KeyType.ECDSA
    )
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return chain, issued.private_key_pem.bytes()


@cache
def client_pem() -> tuple[bytes, bytes]:
    issued = authority().issue_cert("client@example.org", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return chain, issued.private_key_pem.bytes()


def authority_pem() -> bytes:
    return authority().cert_pem.bytes()


def server_tls(**arguments: Any) -> phoenix_trio.ServerTLS:
    certificate, key = server_pem()
    return phoenix_trio.ServerTLS(certificate, key, **arguments)


#: With these, a client's hello takes one datagram, as many tests of packets need it.
SMALL_GROUPS = ("x25519", "secp256r1")


def client_tls(**arguments: Any) -> phoenix_trio.ClientTLS:
    arguments.setdefault("ca", authority_pem())
    arguments.setdefault("groups", SMALL_GROUPS)
    return phoenix_trio.ClientTLS(**arguments)


# ------------------------------------------------------------------ sans-IO


@attrs.define
class Side:
    """One engine of a pair, with everything it has reported."""

    engine: Engine
    address: tuple[str, int]
    log: list[events.Event] = attrs.field(factory=list)
    received: dict[int, bytearray] = attrs.field(factory=dict)
    read_automatically: bool = True

    def gather(self, now: float) -> None:
        for event in self.engine.take_events():
            self.log.append(event)
            if isinstance(event, events.StreamDataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                if self.read_automatically:
                    self.engine.consume(event.stream_id, len(event.data))
                    self.engine.extend_credit(event.stream_id, now)

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.log if isinstance(event, kind)]


def take_apart(runs: Iterable[tuple[bytes | memoryview, Any, int, int]]) -> list[bytes]:
    """The single datagrams in the result of ``Engine.transmit``."""
    return [
        bytes(data[start : start + size])
        for data, _, size, _ in runs
        for start in range(0, len(data), size)
    ]


def skip_numbers(engine: Engine, choose: Callable[[int], int] | None) -> None:
    """Let a new engine skip the packet numbers that `choose` says; ``None``: no number.

    For tests that acknowledge packets by their number.
    """
    # (The first number to skip is then beyond all numbers that a test reaches.)
    set_skipped_numbers(engine, SkippedNumbers(choose or (lambda n: 1 << 60)))


class EnginePair:
    """Two engines and a perfect wire of 10 ms each way between them, in virtual time."""

    delay = 0.01

    def __init__(
        self,
        *,
        client_config: phoenix_trio.TransportConfig | None = None,
        server_config: phoenix_trio.TransportConfig | None = None,
        client: phoenix_trio.ClientTLS | None = None,
        server: phoenix_trio.ServerTLS | None = None,
        skips: Callable[[int], int] | None = secrets.randbelow,
        server_memory: EndpointMemory | None = None,
    ) -> None:
        self._server_memory = server_memory
        self.now = 0.0
        self._skips = skips
        self.wire: list[tuple[float, int, Side, bytes, tuple[str, int]]] = []
        self.drop: Callable[[Side, bytes], bool] = lambda destination, data: False
        self.jitter: Callable[[], float] = lambda: 0.0
        """Seconds by which each datagram takes longer than the others."""
        self.batching = 0.0
        """Datagrams arrive at multiples of so many seconds, as with `Conditions.batching`."""
        self.in_runs = True
        """Whether datagrams that arrive together are handed over together."""
        self._run: list[Any] = []
        self._sequence = 0
        config = phoenix_trio.TransportConfig()
        engine = make_client_engine(
            config=client_config or config,
            client_tls=client or client_tls(),
            host=SERVER,
            port=PORT,
            alpn=ALPN,
            reset_token=lambda cid: (cid * 2)[:16],
            key_log=None,
            trace_logger=None,
        )
        skip_numbers(engine, skips)
        self.client = Side(engine, (CLIENT, 5000))
        self._server_config = server_config or config
        self._server_tls = server or server_tls()
        self.server: Side | None = None
        engine.start((SERVER, PORT), self.now)
        self.flush(self.client)

    def admit(self, destination: bytes) -> Admit:
        """The verdict on the client's first packet, which was sent to this connection ID."""
        return Admit(destination, destination, None)

    def _make_server(self, data: bytes) -> Side:
        engine = make_server_engine(
            config=self._server_config,
            server_tls=self._server_tls,
            alpn=ALPN,
            admit=self.admit(data[6 : 6 + data[5]]),
            reset_token=lambda cid: (cid * 2)[:16],
            key_log=None,
            trace_logger=None,
            memory=self._server_memory,
        )
        skip_numbers(engine, self._skips)
        return Side(engine, (SERVER, PORT))

    def flush(self, side: Side) -> None:
        for _ in range(1000):
            side.engine.begin_pass()
            for data in take_apart(side.engine.transmit(self.now)):
                self._sequence += 1
                other = self.client if side is self.server else self.server
                arrival = self.now + self.delay + self.jitter()
                if self.batching:
                    arrival = math.ceil(arrival / self.batching) * self.batching
                self.wire.append((arrival, self._sequence, other, data, side.address))
            side.gather(self.now)
            if not side.engine.has_more_to_send(self.now):
                return
        raise AssertionError("transmit never comes to an end")

    @property
    def sides(self) -> list[Side]:
        return [self.client] if self.server is None else [self.client, self.server]

    def step(self) -> bool:
        """Advance to the next arrival or deadline; False when there is none."""
        for side in self.sides:
            self.flush(side)
        deadlines = [
            deadline for side in self.sides if (deadline := side.engine.next_deadline()) is not None
        ]
        arrivals = [item[0] for item in self.wire]
        upcoming = min([*deadlines, *arrivals], default=math.inf)
        if upcoming == math.inf:
            return False
        self.now = max(self.now, upcoming)
        due = sorted((i for i in self.wire if i[0] <= self.now), key=lambda i: i[1])
        self.wire = [i for i in self.wire if i[0] > self.now]
        for _, _, destination, data, source in due:
            if destination is None:
                if self.server is None:
                    self.server = self._make_server(data)
                destination = self.server
            if not self.drop(destination, data):
                self.arrive(destination, data, source)
        self.deliver()
        for side in self.sides:
            deadline = side.engine.next_deadline()
            if deadline is not None and deadline <= self.now:
                side.engine.on_timer(self.now)
            side.gather(self.now)
        return True

    def arrive(self, destination: Side, data: bytes, source: tuple[str, int]) -> None:
        """Collect datagrams of one size into runs, as a kernel with GRO does."""
        run = self._run
        if run and (
            run[0] is not destination
            or run[1] != source
            or len(data) > run[2]
            or len(run[3][-1]) < run[2]
            or not self.in_runs
        ):
            self.deliver()
        if not self._run:
            self._run = [destination, source, len(data), []]
        self._run[3].append(data)

    def deliver(self) -> None:
        """Hand over the collected datagrams."""
        if not self._run:
            return
        (destination, source, size, datagrams), self._run = self._run, []
        data, at = b"".join(datagrams), 0
        while at < len(data):
            at = destination.engine.receive_run(data, at, size, source, self.now)
        if destination.engine.only_acknowledgement_due() is not None:
            assert not destination.engine.transmit(self.now), "it could not wait"

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        for _ in range(200_000):
            for side in self.sides:
                self.flush(side)
            deadlines = [d for side in self.sides if (d := side.engine.next_deadline()) is not None]
            upcoming = min([*deadlines, *(item[0] for item in self.wire)], default=math.inf)
            if upcoming > until:
                self.now = max(self.now, until)  # (a step may have gone beyond it)
                return
            self.step()
        raise AssertionError("no progress")

    def connect(self) -> EnginePair:
        self.run(1.0)
        assert self.client.of(events.HandshakeCompleted), self.client.log
        assert self.server is not None
        assert self.server.of(events.HandshakeCompleted), self.server.log
        return self


#: A test runs twice: datagrams that arrive together are handed over in runs, or one at a time.
in_runs_or_singly = pytest.mark.parametrize("in_runs", [True, False], ids=["runs", "singly"])


def established(*, in_runs: bool = True, **config: Any) -> tuple[EnginePair, Side, Side]:
    """A pair whose handshake is confirmed, its client and its server; see `EnginePair.in_runs`."""
    settings = phoenix_trio.TransportConfig(**config)
    pair = EnginePair(client_config=settings, server_config=settings, skips=None).connect()
    pair.in_runs = in_runs
    pair.run(2.0)
    assert pair.server is not None
    return pair, pair.client, pair.server


def hand_over(pair: EnginePair, source: Side, target: Side, *datagrams: bytes) -> None:
    """Let these datagrams arrive now, together; those of one size in a run, if the pair says so."""
    for data in datagrams:
        pair.arrive(target, data, source.address)
    pair.deliver()
    target.gather(pair.now)


def ending(side: Side) -> str | None:
    """How the engine ended the connection, if it did."""
    ended = side.of(events.Terminated)
    if not ended:
        return None
    assert isinstance(ended[0].error, phoenix_trio.ProtocolError)
    return str(ended[0].error)


# ------------------------------------------------------------------ Trio


@asynccontextmanager
async def connected_pair(
    network: SimulatedNetwork | None = None,
    *,
    config: phoenix_trio.TransportConfig | None = None,
    server_config: phoenix_trio.TransportConfig | None = None,
    client_config: phoenix_trio.TransportConfig | None = None,
    client: phoenix_trio.ClientTLS | None = None,
    server: phoenix_trio.ServerTLS | None = None,
    real: bool = False,
) -> AsyncIterator[tuple[phoenix_trio.QuicConnection, phoenix_trio.QuicConnection]]:
    """A client's and a server's end of one connection, over a simulated network or loopback."""
    server_network = client_network = None
    host = "127.0.0.1"
    if not real:
        network = network or SimulatedNetwork(delay=0.01)
        server_network, client_network = network.host(SERVER), network.host(CLIENT)
        host = SERVER
    async with (
        phoenix_trio.Endpoint.open(
            host, 0 if real else PORT, config=server_config or config, network=server_network
        ) as server_endpoint,
        phoenix_trio.Endpoint.open(
            "127.0.0.1" if real else None, config=client_config or config, network=client_network
        ) as client_endpoint,
    ):
        listener = server_endpoint.listen(tls=server or server_tls(), alpn=ALPN)
        accepted: list[phoenix_trio.QuicConnection] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            dialled = await client_endpoint._dial(
                host, server_endpoint.port, tls=client or client_tls(), alpn=ALPN, config=None
            )
        try:
            yield dialled, accepted[0]
        finally:
            dialled.abort(0)
            accepted[0].abort(0)


async def stream_pair(
    client: phoenix_trio.QuicConnection, server: phoenix_trio.QuicConnection
) -> tuple[phoenix_trio.QuicStream, phoenix_trio.QuicStream]:
    """Two ends of one bidirectional stream; it carries nothing any more."""
    ours = await client.open_stream()
    await ours.send_all(b"x")
    theirs = await server.accept_stream()
    assert await theirs.receive_some(1) == b"x"
    return ours, theirs


class Steps(trio.abc.Instrument):
    """How often a task was run."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


async def steps_of(operation: Awaitable[object]) -> int:
    """How often the calling task goes on until `operation` is done."""
    steps = Steps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(steps)
    try:
        await operation
    finally:
        trio.lowlevel.remove_instrument(steps)
    return steps.count
