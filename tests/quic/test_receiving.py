"""Each datagram of a run goes to its connection, or counts as unroutable."""

from __future__ import annotations

from typing import Any

import pytest

from phoenix_trio import TransportConfig
from phoenix_trio.quic.handshake.admission import Admission
from phoenix_trio.quic.incoming import Incoming
from phoenix_trio.quic.packet_io import ReceivedRun
from phoenix_trio.quic.receiving import BATCHES_PER_TURN, RUNS_PER_TURN, Receiver
from phoenix_trio.quic.route import NO_SINK, Route
from phoenix_trio.quic.routing_table import RoutingTable
from phoenix_trio.quic.turn_budget import Account, TurnBudget

PEER = ("10.0.0.2", 1234)
FIRST, SECOND, STRANGE = b"1" * 8, b"2" * 8, b"3" * 8
TOKEN = b"0123456789abcdef"


class Socket:
    def __init__(self) -> None:
        self.waiting: list[ReceivedRun] = []
        self.sent: list[bytes] = []
        self.reads = 0

    def receive_runs(self, limit: int, pool: object) -> list[ReceivedRun]:
        self.reads += 1
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def send_run(self, data: bytes, address: Any, size: int = 0, mark: int = 0) -> int:
        self.sent.append(data)
        return len(data)


class Engine:
    """Takes datagrams from the start of a run while they have its connection ID."""

    def __init__(self, connection_id: bytes) -> None:
        self.connection_id = connection_id
        self.taken: list[bytes] = []
        self.was_reset = False

    def receive_run(
        self, data: bytes, start: int, size: int, address: Any, now: float, mark: int, stop: int
    ) -> int:
        while start < stop and data[start + 1 : start + 9] == self.connection_id:
            end = min(start + size, stop)
            self.taken.append(bytes(data[start:end]))
            start = end
        return start

    def receive(self, data: bytes, address: Any, now: float, mark: int) -> None:
        self.taken.append(data)

    def on_stateless_reset(self, now: float) -> None:
        self.was_reset = True


class World:
    def __init__(self) -> None:
        config = TransportConfig()
        self.socket: Any = Socket()
        self.table = RoutingTable()
        admission = Admission(config, lambda connection_id: TOKEN)
        self.incoming = Incoming(self.socket, config, admission, lambda route, engine: None)
        self.budget: TurnBudget[ReceivedRun] = TurnBudget(config.backlog_size)
        self.receiver = Receiver(self.socket, config, self.table, self.budget, self.incoming)

    def connect(self, connection_id: bytes) -> tuple[Route, Engine]:
        engine: Any = Engine(connection_id)
        route = Route(engine, NO_SINK)
        self.table.add(route, [connection_id])
        return route, engine

    def receive(self, *datagrams: bytes, address: Any = PEER) -> list[Route]:
        """Read one run of datagrams of one size."""
        data = b"".join(datagrams)
        touched: dict[Route, None] = {}
        self.socket.waiting.append((data, address, len(datagrams[0]), 0, len(data)))
        assert self.receiver.read(1.0, touched, was_idle=True) is None
        return list(touched)


@pytest.fixture
def world() -> World:
    return World()


def short(connection_id: bytes, content: bytes = b"content") -> bytes:
    return b"\x40" + connection_id + content


def test_a_run_for_two_connections_is_divided(world: World) -> None:
    (first, one), (second, two) = world.connect(FIRST), world.connect(SECOND)
    datagrams = [short(FIRST), short(FIRST), short(SECOND), short(FIRST)]
    assert set(world.receive(*datagrams)) == {first, second}
    assert one.taken == [short(FIRST)] * 3
    assert two.taken == [short(SECOND)]
    assert world.incoming.datagrams_unroutable == 0


def test_datagrams_of_no_connection_are_counted_one_by_one(world: World) -> None:
    first, one = world.connect(FIRST)
    strange = short(STRANGE)
    assert world.receive(strange, short(FIRST), strange, strange) == [first]
    assert one.taken == [short(FIRST)]
    assert world.incoming.datagrams_unroutable == 3
    assert world.receive(b"\x40") == []
    assert world.incoming.datagrams_unroutable == 4


def test_an_unknown_connection_id_is_answered_with_a_stateless_reset(world: World) -> None:
    world.receive(short(STRANGE, bytes(100)))
    assert len(world.socket.sent) == 1
    assert world.socket.sent[0].endswith(TOKEN)
    assert world.incoming.answers == {"stateless reset": 1}


def test_nothing_is_done_for_datagrams_from_port_0(world: World) -> None:
    _, one = world.connect(FIRST)
    assert world.receive(short(FIRST), short(FIRST), address=("10.0.0.2", 0)) == []
    assert not one.taken
    assert not world.socket.sent
    assert world.incoming.datagrams_unroutable == 2


def test_a_stateless_reset_ends_the_connection_whose_token_it_carries(world: World) -> None:
    route, engine = world.connect(FIRST)
    world.table.set_reset_tokens(route, [TOKEN])
    assert world.receive(short(STRANGE, b"x" * 8 + TOKEN)) == [route]
    assert engine.was_reset
    assert world.receiver.resets_received == 1
    assert world.incoming.datagrams_unroutable == 0


def test_a_full_read_tells_how_much_was_read_and_a_short_one_that_nothing_waits(
    world: World,
) -> None:
    world.connect(FIRST)
    data = short(FIRST)
    limit = RUNS_PER_TURN
    world.socket.waiting = [(data, PEER, len(data), 0, len(data))] * (limit + 1)
    assert world.receiver.read(1.0, {}, was_idle=True) == limit * len(data)
    assert world.socket.reads == 1
    assert world.receiver.read(1.0, {}, was_idle=False) is None


def test_behind_expensive_datagrams_the_socket_is_read_a_bounded_number_of_times(
    world: World,
) -> None:
    route, _ = world.connect(FIRST)
    account = route.account = Account()
    account.watched, account.is_expensive = 100, True
    data = short(FIRST)
    limit = RUNS_PER_TURN
    world.socket.waiting = [(data, PEER, len(data), 0, len(data))] * (limit * 100)
    assert world.receiver.read(1.0, {}, was_idle=True) is not None
    assert world.socket.reads == BATCHES_PER_TURN
