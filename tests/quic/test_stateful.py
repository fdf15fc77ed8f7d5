"""Two endpoints, arbitrary faults, arbitrary operations: the data received is the data sent.

Hypothesis draws a network and a program: a list of operations for each side.  The program runs
over the simulated network in virtual time.  In every case, the receiver of each stream has
exactly a prefix of the data sent, and all of it if it saw a clean end; errors are of the
documented kinds; nothing hangs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from hypothesis import given, note
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, SERVER, connected_pair, examples

#: The errors that the network may cause; it may cause no others, and no hang.
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

#: Virtual seconds until everything has to end.
STUCK = 3600

SMALL = TransportConfig(
    send_buffer_size=32 * 1024,
    stream_send_buffer_size=16 * 1024,
    receive_buffer_size=32 * 1024,
    stream_receive_buffer_size=16 * 1024,
    max_bidirectional_streams=3,
    max_unidirectional_streams=3,
    max_idle_timeout=20.0,
    keep_alive=5.0,
)


#: Buffers with room for runs of many packets.
LARGE = attrs.evolve(
    SMALL,
    send_buffer_size=4 * 1024 * 1024,
    stream_send_buffer_size=1024 * 1024,
    receive_buffer_size=4 * 1024 * 1024,
    stream_receive_buffer_size=1024 * 1024,
)


def content(side: str, stream_id: int, size: int) -> bytes:
    """Bytes that differ by side, stream and position."""
    seed = f"{side}{stream_id}:".encode()
    block = b"".join(seed + i.to_bytes(4, "big") for i in range(size // 6 + 1))
    return block[:size]


@attrs.frozen
class Network:
    seed: int
    loss: float
    delay: float
    jitter: float
    reorder: float
    duplicate: float
    corrupt: float
    bandwidth: float | None
    batching: float = 0.0

    def build(self) -> SimulatedNetwork:
        return SimulatedNetwork(delay=0.01, seed=self.seed)

    def worsen(self, network: SimulatedNetwork) -> None:
        conditions = attrs.asdict(self)
        del conditions["seed"]
        network.set_conditions(**conditions)


networks = st.builds(
    Network,
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.2]),
    delay=st.sampled_from([0.0, 0.01, 0.1]),
    jitter=st.sampled_from([0.0, 0.005, 0.05]),
    reorder=st.sampled_from([0.0, 0.1]),
    duplicate=st.sampled_from([0.0, 0.1]),
    corrupt=st.sampled_from([0.0, 0.05]),
    bandwidth=st.sampled_from([None, None, 2_000_000.0]),
    batching=st.sampled_from([0.0, 0.005]),
)

sizes = st.sampled_from([0, 1, 1000, 5000, 30_000, 80_000])
configs = st.sampled_from([SMALL, LARGE])
sides = st.sampled_from(["client", "server"])
operations = st.one_of(
    st.tuples(
        st.just("stream"),
        sides,
        st.sampled_from(["two-way", "one-way"]),
        st.lists(sizes, min_size=1, max_size=4),
        # The way in which the sender leaves, and the bytes that its peer reads (None: all).
        st.sampled_from(["close", "close", "end", "reset", "raise", "cancel"]),
        st.sampled_from([None, None, None, 0, 2000]),
    ),
    st.tuples(st.just("ping"), sides),
    st.tuples(st.just("keys"), sides),
    st.tuples(st.just("datagrams"), sides, st.integers(1, 20)),
    st.tuples(st.just("rebind")),
    st.tuples(st.just("partition"), st.sampled_from([0.1, 1.0, 30.0])),
    st.tuples(st.just("pause"), st.sampled_from([0.01, 0.5, 3.0])),
)
endings = st.sampled_from(["aclose", "aclose", "abort", "server abort", "idle"])


class Left(Exception):
    """Makes a sender leave its block."""


class Run:
    def __init__(
        self,
        network: Network,
        program: list[Any],
        ending: str,
        config: TransportConfig = SMALL,
    ) -> None:
        self.conditions = network
        self.program = program
        self.ending = ending
        self.config = config
        self.limits: dict[tuple[str, int], int | None] = {}
        self.sent: dict[tuple[str, int], bytes] = {}
        self.ended_cleanly: set[tuple[str, int]] = set()
        self.received: dict[tuple[str, int], bytearray] = {}
        self.saw_end: set[tuple[str, int]] = set()

    async def main(self) -> None:
        self.network = self.conditions.build()
        with trio.fail_after(STUCK):
            async with connected_pair(self.network, config=self.config) as (client, server):
                self.ends = {"client": client, "server": server}
                self.conditions.worsen(self.network)
                await self.drive()
        self.check()

    async def tolerant(self, operation: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        try:
            await operation(*arguments)
        except BROKEN as error:
            note(f"{operation.__name__}{arguments}: {error!r}")

    async def drive(self) -> None:
        async with trio.open_nursery() as receivers:
            for side in ("client", "server"):
                receivers.start_soon(self.accept, side, "two-way")
                receivers.start_soon(self.accept, side, "one-way")
                receivers.start_soon(self.tolerant, self.take_datagrams, side)
            async with trio.open_nursery() as senders:
                for step in self.program:
                    kind, *rest = step
                    if kind == "stream":
                        senders.start_soon(self.tolerant, self.send, *rest)
                    elif kind == "pause":
                        await trio.sleep(rest[0])
                    elif kind == "rebind":
                        self.network.host(CLIENT).rebind()
                    elif kind == "partition":
                        self.network.partition(CLIENT, SERVER)
                        await trio.sleep(rest[0])
                        self.network.heal(CLIENT, SERVER)
                    else:
                        senders.start_soon(self.tolerant, getattr(self, kind), *rest)
            # The end is not tested under loss: a lost CONNECTION_CLOSE means the idle timeout,
            # also a documented kind of end.
            client, server = self.ends["client"], self.ends["server"]
            if self.ending == "aclose":
                await client.aclose()
            elif self.ending == "abort":
                client.abort(7)
            elif self.ending == "server abort":
                server.abort(8)
            else:
                self.network.partition(CLIENT, SERVER)
            await client.wait_closed()
            await server.wait_closed()

    async def send(
        self, side: str, direction: str, parts: list[int], leave: str, limit: int | None
    ) -> None:
        connection = self.ends[side]
        opened: Any
        if direction == "two-way":
            opened = await connection.open_stream()
        else:
            opened = await connection.open_send_stream()
        key = (side, opened.id)
        whole = content(side, opened.id, sum(parts))
        self.sent[key] = whole
        self.limits[key] = limit
        with trio.CancelScope() as scope:
            try:
                async with opened:
                    position = 0
                    for size in parts:
                        if leave == "cancel" and size == parts[-1]:
                            scope.deadline = trio.current_time() + 0.02
                        end = leave == "end" and position + size == len(whole)
                        await opened.send_all(whole[position : position + size], end=end)
                        position += size
                        if end:
                            self.ended_cleanly.add(key)
                            break  # (The rest is empty.)
                    if leave == "reset":
                        opened.reset(99)
                    elif leave == "raise":
                        raise Left
                    if leave != "reset":
                        self.ended_cleanly.add(key)
            except Left:
                pass
            except phoenix_trio.StreamStopped:
                assert limit is not None

    async def accept(self, side: str, direction: str) -> None:
        connection = self.ends[side]
        other = "server" if side == "client" else "client"
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    stream: Any
                    if direction == "two-way":
                        stream = await connection.accept_stream()
                    else:
                        stream = await connection.accept_receive_stream()
                    nursery.start_soon(self.tolerant, self.receive, other, stream)
            except BROKEN as error:
                note(f"{side} stops accepting: {error!r}")

    async def receive(self, sender: str, stream: Any) -> None:
        key = (sender, stream.id)
        received = self.received.setdefault(key, bytearray())
        async with stream:
            limit = self.limits.get(key)
            if limit is None and stream.id & 4:
                while key not in self.saw_end:  # every other stream at once, with interruptions
                    with trio.move_on_after(0.3):
                        received += await stream.receive_all(10_000_000)
                        self.saw_end.add(key)
            while key not in self.saw_end and (limit is None or len(received) < limit):
                chunk = await stream.receive_some(3000)
                if not chunk:
                    self.saw_end.add(key)
                    break
                received += chunk

    async def ping(self, side: str) -> None:
        await self.ends[side].ping()

    async def keys(self, side: str) -> None:
        try:
            await self.ends[side].update_keys()
        except trio.BusyResourceError:
            pass  # another step of the program is using it

    async def datagrams(self, side: str, count: int) -> None:
        for number in range(count):
            await self.ends[side].send_datagram(b"%s%d" % (side.encode(), number))

    async def take_datagrams(self, side: str) -> None:
        other = b"server" if side == "client" else b"client"
        while True:
            assert (await self.ends[side].receive_datagram()).startswith(other)

    def check(self) -> None:
        for key, received in self.received.items():
            sent = self.sent.get(key)
            assert sent is not None, f"{key} was never opened"
            assert sent.startswith(received), f"{key}: not a prefix of what was sent"
            if key in self.saw_end:
                assert received == sent, f"{key}: a part was taken for the whole"
                assert key in self.ended_cleanly, f"{key}: an end which nobody sent"
        for side, connection in self.ends.items():
            self.check_end(side, connection.close_reason)

    def check_end(self, side: str, reason: BaseException | None) -> None:
        """Check that the network may have broken the connection, but no endpoint the protocol."""
        if reason is None:
            return  # It was closed here.
        if isinstance(reason, phoenix_trio.ConnectionClosedByPeer):
            expected = {
                ("aclose", "server"): 0,
                ("abort", "server"): 7,
                ("server abort", "client"): 8,
            }
            assert reason.error_code == expected.get((self.ending, side)), (side, reason)
        elif isinstance(reason, phoenix_trio.StatelessReset):
            # The other side was closed, and its CONNECTION_CLOSE was lost.
            (other,) = (end for name, end in self.ends.items() if name != side)
            assert other.close_reason is None
        else:
            assert isinstance(reason, phoenix_trio.ConnectionTimedOut), (side, reason)


@examples(60)
@given(
    network=networks,
    program=st.lists(operations, max_size=10),
    ending=endings,
    config=configs,
)
def test_whatever_happens_what_arrives_is_a_prefix_of_what_was_sent(
    network: Network, program: list[Any], ending: str, config: TransportConfig
) -> None:
    run = Run(network, program, ending, config)
    trio.run(run.main, clock=MockClock(autojump_threshold=0))


def streams(sizes: Any, limit: int) -> Any:
    """Programs of streams that are all closed in good order."""
    stream = st.tuples(
        st.just("stream"),
        sides,
        st.sampled_from(["two-way", "one-way"]),
        st.lists(sizes, min_size=1, max_size=3),
        st.just("close"),
        st.none(),
    )
    return st.lists(stream, min_size=1, max_size=limit)


def check_that_everything_arrives(
    network: Network, program: list[Any], config: TransportConfig
) -> None:
    run = Run(network, program, "aclose", config)
    trio.run(run.main, clock=MockClock(autojump_threshold=0))
    for key, sent in run.sent.items():
        if key in run.ended_cleanly and key[0] == "client":
            # The client closed in good order, so all the data it had sent was acknowledged.
            assert run.received.get(key, b"") == sent or not sent


@examples(40)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
    batching=st.sampled_from([0.0, 0.005]),
    config=configs,
    program=streams(sizes, 8),
)
def test_without_an_abort_everything_arrives(
    seed: int, loss: float, batching: float, config: TransportConfig, program: list[Any]
) -> None:
    network = Network(seed, loss, 0.01, 0.01, 0.05, 0.05, 0.02, None, batching)
    check_that_everything_arrives(network, program, config)


@examples(10)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.0, 0.001, 0.01]),
    jitter=st.sampled_from([0.0, 0.01]),
    duplicate=st.sampled_from([0.0, 0.02]),
    program=streams(st.sampled_from([1, 100_000, 1_000_000]), 4),
)
def test_everything_arrives_when_packets_come_in_long_runs(
    seed: int, loss: float, jitter: float, duplicate: float, program: list[Any]
) -> None:
    network = Network(seed, loss, 0.02, jitter, 0.0, duplicate, 0.0, None, batching=0.005)
    check_that_everything_arrives(network, program, LARGE)


# ------------------------------------------------------------------ requests


class Requests:
    """Both sides send requests and answers; some requests are given up, some answers too long."""

    def __init__(self, network: Network, program: list[Any], config: TransportConfig) -> None:
        self.conditions = network
        self.program = program
        self.config = config

    async def main(self) -> None:
        network = self.conditions.build()
        with trio.fail_after(STUCK):
            async with connected_pair(network, config=self.config) as (client, server):
                self.conditions.worsen(network)
                async with trio.open_nursery() as serving:
                    for connection in (client, server):
                        serving.start_soon(self.serve, connection)
                    async with trio.open_nursery() as asking:
                        for number, step in enumerate(self.program):
                            side, *rest = step
                            connection = client if side == "client" else server
                            asking.start_soon(self.ask, connection, number, *rest)
                    if client.is_closed or server.is_closed:
                        serving.cancel_scope.cancel()
                        return
                    network.set_conditions(loss=0.0, corrupt=0.0)
                    await self.nothing_is_left(client, server)
                    serving.cancel_scope.cancel()

    async def nothing_is_left(self, *connections: phoenix_trio.QuicConnection) -> None:
        """Check that each stream has ended on both sides, and its credit has come back."""
        for connection in connections:
            for _ in range(2 * self.config.max_bidirectional_streams):
                await self.ask(connection, 0, 1, 1, False, None)
        with trio.fail_after(60):
            while any(each._senders or each._receivers for each in connections):
                await trio.sleep(0.1)

    async def serve(self, connection: phoenix_trio.QuicConnection) -> None:
        async with trio.open_nursery() as nursery:
            try:
                async for stream in connection.incoming_streams():
                    nursery.start_soon(self.answer, stream)
            except BROKEN as error:
                note(f"{connection} stops accepting: {error!r}")

    async def answer(self, stream: phoenix_trio.QuicStream) -> None:
        try:
            async with stream:
                head = b""
                while len(head) < 16:
                    head += await stream.receive_some(16 - len(head))
                number, size, early = (int(part) for part in head.split())
                if not early:
                    await stream.receive_all(100_000)
                await stream.send_all(content("answer", number, size), end=True)
        except BROKEN as error:
            note(f"{stream.id}: {error!r}")

    async def ask(
        self,
        connection: phoenix_trio.QuicConnection,
        number: int,
        size: int,
        answer: int,
        early: bool,
        patience: float | None,
    ) -> None:
        data = b"%4d %8d %1d " % (number, answer, early) + content("request", number, size)
        with trio.move_on_after(STUCK if patience is None else patience):
            received = None
            too_large = broken = False
            try:
                received = await connection.request(data, max_answer=50_000)
            except phoenix_trio.StreamTooLarge:
                too_large = True
            except BROKEN as error:
                note(f"request {number}: {error!r}")
                broken = True
            assert connection.is_closed or not broken
            assert broken or too_large == (answer > 50_000)
            assert broken or too_large or received == content("answer", number, answer)


questions = st.tuples(
    sides,
    sizes,
    sizes,
    st.booleans(),  # whether the answer comes before the request was read
    st.sampled_from([None, None, None, 0.0, 0.05, 0.3, 2.0]),
)


@examples(40)
@given(network=networks, program=st.lists(questions, max_size=12), config=configs)
def test_whatever_happens_a_request_gets_its_own_answer_or_an_error(
    network: Network, program: list[Any], config: TransportConfig
) -> None:
    run = Requests(network, program, config)
    trio.run(run.main, clock=MockClock(autojump_threshold=0))
