"""Datagrams come to the process of their connection, whichever process has received them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from phoenix_trio import TransportConfig
from phoenix_trio.quic.connection_id_format import ConnectionIdFormat
from phoenix_trio.quic.handshake.admission import Admission
from phoenix_trio.quic.incoming import Incoming
from phoenix_trio.quic.path_address import Address, PathAddress
from phoenix_trio.quic.receiving import RUNS_PER_TURN, Receiver
from phoenix_trio.quic.relay import Relay, open_inbox
from phoenix_trio.quic.route import NO_SINK, Route
from phoenix_trio.quic.routing_table import RoutingTable
from phoenix_trio.quic.turn_budget import TurnBudget
from phoenix_trio.quic.wire.protection import HANDSHAKE, INITIAL, VERSION_1, VERSION_2
from phoenix_trio.quic.worker_socket import WorkerSocket

PEER = ("192.0.2.7", 1234)
SECRET = bytes(range(32))
TOKEN = b"0123456789abcdef"


class Socket:
    """Has received what a test puts there, and keeps what is answered."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.sent: list[bytes] = []

    def receive_runs(self, limit: int, pool: object) -> list[Any]:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def send_run(self, data: bytes, address: Any, size: int = 0, mark: int = 0) -> int:
        self.sent.append(data)
        return len(data)


class Engine:
    """Takes all datagrams of its connection."""

    def __init__(self, connection_id: bytes) -> None:
        self.connection_id = connection_id
        self.taken: list[tuple[bytes, Any, int]] = []
        self.was_reset = False

    def receive_run(
        self, data: bytes, start: int, size: int, address: Any, now: float, mark: int, stop: int
    ) -> int:
        while start < stop and data[start + 1 : start + 9] == self.connection_id:
            end = min(start + size, stop)
            self.taken.append((bytes(data[start:end]), address, mark))
            start = end
        return start

    def receive(self, data: bytes, address: Any, now: float, mark: int) -> None:
        self.taken.append((data, address, mark))

    def on_stateless_reset(self, now: float) -> None:
        self.was_reset = True


class Process:
    """One of several processes on a port, without its event loop."""

    def __init__(self, relay: Relay) -> None:
        config = TransportConfig()
        self.relay = relay
        self.socket: Any = Socket()
        self.table = RoutingTable()
        self.ids = ConnectionIdFormat(worker=relay.number, workers=relay.count, secret=relay.secret)
        admission = Admission(config, lambda connection_id: TOKEN)
        self.incoming = Incoming(self.socket, config, admission, lambda route, engine: None)
        self.receiver = Receiver(
            self.socket,
            config,
            self.table,
            TurnBudget(config.backlog_size),
            self.incoming,
            relay,
            self.ids,
        )

    def connect(self) -> Engine:
        engine: Any = Engine(self.ids.make())
        route = Route(engine, NO_SINK)
        route.place = object()  # type: ignore[assignment] # a client's, so paths have two ends
        self.table.add(route, [engine.connection_id])
        assert isinstance(engine, Engine)
        return engine

    def receive(self, *datagrams: bytes, address: Address = PEER, mark: int = 0) -> None:
        """One run of datagrams of one size arrives at this process's socket."""
        data = b"".join(datagrams)
        self.socket.waiting.append((data, address, len(datagrams[0]), mark, len(data)))
        self.turn()

    def turn(self) -> None:
        self.receiver.read(1.0, {}, was_idle=True)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    inboxes = [open_inbox() for _ in range(3)]
    senders = [send for _, send in inboxes]
    yield [
        Process(Relay(number, SECRET, inbox, senders)) for number, (inbox, _) in enumerate(inboxes)
    ]
    for pair in inboxes:
        for end in pair:
            end.close()


def short(connection_id: bytes, content: bytes = b"content") -> bytes:
    return b"\x40" + connection_id + content


def long(kind: int, destination: bytes, version: int = VERSION_1) -> bytes:
    """A packet with a long header, of a version which numbers the types in its own way."""
    number = (kind + 1) % 4 if version == VERSION_2 else kind
    head = bytes([0xC0 | number << 4]) + version.to_bytes(4, "big")
    ids = bytes([len(destination)]) + destination + bytes([4]) + b"peer"
    token = b"\x00" if kind == INITIAL else b""
    return head + ids + token + b"\x40\x80" + bytes(128)


@pytest.mark.parametrize(
    "address",
    [
        PEER,
        ("2001:db8::1", 65_535, 1_000_000, 4_000_000_000),
        ("::ffff:192.0.2.7", 1, 0, 0),
        PathAddress.join(PEER, "198.51.100.1"),
        PathAddress.join(("fe80::1", 7, 0, 3), "fe80::2%3"),
    ],
)
@pytest.mark.parametrize("mark", [0, 1, 3])
def test_a_datagram_is_passed_on_with_its_addresses_and_its_mark(
    processes: list[Process], address: Address, mark: int
) -> None:
    here, there, other = processes
    engine = there.connect()
    here.receive(short(engine.connection_id), address=address, mark=mark)
    there.turn()
    other.turn()
    assert engine.taken == [(short(engine.connection_id), address, mark)]
    assert type(engine.taken[0][1]) is type(address)
    assert here.relay.passed_on == 1
    assert not here.socket.sent
    assert not here.incoming.datagrams_unroutable


def test_a_run_of_datagrams_is_passed_on_in_one_piece(processes: list[Process]) -> None:
    here, there, _ = processes
    engine, own = there.connect(), here.connect()
    datagrams = [short(engine.connection_id, bytes([n]) * 1200) for n in range(40)]
    at = here.ids.make()  # of no connection
    strange, mine = short(at, bytes(1200)), short(own.connection_id, bytes(1200))
    here.receive(mine, *datagrams, strange, mine, datagrams[0][:50])
    taken = there.relay.take(10)
    assert [len(run[0]) for run in taken] == [40 * 1209, 50]
    assert [run[2] for run in taken] == [1209, 1209]
    assert len(own.taken) == 2
    assert here.incoming.datagrams_unroutable == 1
    assert here.relay.passed_on == 41


def test_the_owner_alone_resets_a_connection_which_it_does_not_know(
    processes: list[Process],
) -> None:
    here, there, _ = processes
    unknown = short(there.ids.make(), bytes(100))
    here.receive(unknown)
    assert not here.socket.sent
    there.turn()
    assert there.socket.sent[0].endswith(TOKEN)
    assert there.relay.passed_on == 0


def test_what_was_passed_on_is_never_passed_on_again(processes: list[Process]) -> None:
    here, there, other = processes
    of_other = short(other.ids.make(), bytes(100))
    here.relay.pass_on(there.relay.number, of_other, PEER, len(of_other), 0)
    there.turn()
    assert there.relay.passed_on == 0
    assert not other.relay.take(1)


def test_a_connection_id_of_no_worker_is_dealt_with_here(processes: list[Process]) -> None:
    here = processes[0]
    connection_id = next(
        each for each in (bytes([n] * 8) for n in range(256)) if here.ids.worker_of(each) == -1
    )
    here.receive(short(connection_id, bytes(100)))
    assert here.relay.passed_on == 0
    assert here.socket.sent


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
def test_of_the_handshake_only_packets_to_an_id_of_ours_are_passed_on(
    processes: list[Process], version: int
) -> None:
    """A client has chosen the connection ID of its first packets, and it may look like ours."""
    here, there, _ = processes
    engine = there.connect()
    packet = long(HANDSHAKE, engine.connection_id, version)
    here.receive(packet)
    there.turn()
    assert [each[0] for each in engine.taken] == [packet]
    here.receive(long(INITIAL, engine.connection_id, version))
    here.receive(long(HANDSHAKE, engine.connection_id + b"x", version))
    assert not there.relay.take(1)
    assert here.relay.passed_on == 1


def test_a_stateless_reset_is_looked_up_before_it_is_passed_on(processes: list[Process]) -> None:
    here, there, _ = processes
    engine = here.connect()
    (route,) = here.table.routes
    here.table.set_reset_tokens(route, [TOKEN])
    here.receive(short(there.ids.make(), bytes(20) + TOKEN))
    assert engine.was_reset
    assert here.relay.passed_on == 0


def test_a_full_inbox_drops_and_nothing_waits(processes: list[Process]) -> None:
    here, there, _ = processes
    engine = there.connect()
    datagram = short(engine.connection_id, bytes(60_000))
    for _ in range(200):
        here.receive(datagram)
    assert here.relay.dropped > 0
    assert here.relay.passed_on + here.relay.dropped == 200
    passed_on = 0
    while True:
        before = len(engine.taken)
        there.turn()
        if len(engine.taken) == before:
            break
        assert len(engine.taken) - before <= RUNS_PER_TURN
        passed_on = len(engine.taken)
    assert passed_on == here.relay.passed_on
    here.receive(datagram)
    there.turn()
    assert len(engine.taken) == passed_on + 1, "there is room again"


def test_without_a_reader_what_is_passed_on_is_dropped() -> None:
    (inbox, sender), (own_inbox, own_sender) = open_inbox(), open_inbox()
    with sender, own_inbox, own_sender:
        relay = Relay(1, SECRET, own_inbox, [sender, own_sender])
        inbox.close()
        relay.pass_on(0, b"datagram", PEER, 8, 0)
        assert (relay.passed_on, relay.dropped) == (0, 1)


async def test_waiting_for_an_inbox_ends_when_something_is_passed_on(
    processes: list[Process],
) -> None:
    here, there, _ = processes
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.relay.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            here.relay.pass_on(1, b"datagram", PEER, 8, 0)
    assert there.relay.take(5) == [(b"datagram", PEER, 8, 0, 8)]


def test_a_duplicate_of_a_workers_socket_knows_the_relay(processes: list[Process]) -> None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    address = bound.getsockname()
    with WorkerSocket(bound, processes[0].relay) as first:
        assert bound.fileno() == -1, "it was taken over"
        with first.dup() as second:
            assert isinstance(second, WorkerSocket)
            assert second.relay is first.relay
            assert second.getsockname() == first.getsockname() == address
            assert second.fileno() != first.fileno()
