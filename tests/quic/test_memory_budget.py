"""The endpoint's memory: the sum is bounded, shares are fair, and all of it comes back."""

from __future__ import annotations

import gc

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established.flow_control import ReceiveWindow
from phoenix_trio.quic.established.memory_budget import EndpointMemory, MemoryAccount, MemoryBudget
from tests.engine_access import credit_granted, initial_max_stream_data, max_data, statistics
from tests.support import EnginePair, client_tls, examples, server_tls

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
LIMIT = 16 * MEBIBYTE
MINIMUM = 64 * KIBIBYTE


class Peer:
    """A connection's window, and a peer that sends up to its limit."""

    def __init__(self, budget: MemoryBudget, maximum: int) -> None:
        self.account = budget.open()
        initial = self.account.begin(min(1536 * KIBIBYTE, maximum))
        self.window = ReceiveWindow(initial, maximum, self.account)
        self.received = 0
        self.has_ended = False

    @property
    def outstanding(self) -> int:
        return self.window.limit - self.window.released


class BudgetMachine(RuleBasedStateMachine):
    """Connections come, send, read, end and are forgotten in any order."""

    peers = Bundle("peers")

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryBudget(LIMIT, MINIMUM)
        self.all: list[Peer] = []
        self.now = 0.0

    @rule(target=peers, maximum=st.sampled_from([16 * KIBIBYTE, MEBIBYTE, LIMIT]))
    def open(self, maximum: int) -> Peer:
        peer = Peer(self.budget, maximum)
        self.all.append(peer)
        return peer

    @rule(peer=peers, share=st.floats(0, 1), seconds=st.floats(0, 0.5))
    def read(self, peer: Peer, share: float, seconds: float) -> None:
        """Let the peer send up to its limit, and the application read a part of it."""
        self.now += seconds
        window = peer.window
        if not peer.has_ended:
            peer.received = window.limit
        before = window.limit
        window.release(int((peer.received - window.released) * share))
        window.update(self.now, 0.1)
        assert window.limit >= before or peer.has_ended

    @rule(peer=peers)
    def read_all(self, peer: Peer) -> None:
        window = peer.window
        window.release(max(0, peer.received - window.released))
        window.update(self.now, 0.1)
        if not peer.has_ended:
            assert peer.outstanding * 4 >= min(MINIMUM, window.maximum) * 3, "it is nearly blocked"

    @rule(peer=peers)
    def end(self, peer: Peer) -> None:
        if not peer.has_ended:
            peer.has_ended = True
            peer.window.end(peer.received)

    @rule(peer=consumes(peers))
    def forget(self, peer: Peer) -> None:
        self.all.remove(peer)
        peer.account.close()
        peer.account.close()

    @invariant()
    def the_sum_is_bounded(self) -> None:
        budget = self.budget
        alive = [peer for peer in self.all if not peer.has_ended]
        assert budget.connections == len(alive)
        assert budget.used == sum(peer.account.held for peer in self.all)
        assert all(peer.account.held >= 0 for peer in self.all)
        outstanding = sum(peer.outstanding for peer in self.all)
        assert outstanding <= LIMIT + len(self.all) * MINIMUM
        for peer in alive:
            assert peer.outstanding <= peer.account.held + MINIMUM

    def teardown(self) -> None:
        for peer in self.all:
            peer.account.close()
        assert self.budget.used == 0
        assert self.budget.connections == 0


TestBudget = BudgetMachine.TestCase
TestBudget.settings = examples(60)


def grow(account: MemoryAccount, wanted: int = 16 * MEBIBYTE) -> int:
    """A connection that asks for ever more, as a window does, and gives nothing back."""
    granted = MINIMUM
    while (more := account.adjust(granted, min(wanted, 2 * granted))) > granted:
        granted = more
    return granted


def test_a_few_connections_get_all_they_ask_for() -> None:
    budget = EndpointMemory(TransportConfig()).receive
    accounts = [budget.open() for _ in range(5)]
    assert [grow(account) for account in accounts] == [16 * MEBIBYTE] * 5


def test_one_connection_among_a_thousand_idle_ones_gets_a_large_window() -> None:
    budget = EndpointMemory(TransportConfig()).receive
    idle = [budget.open() for _ in range(1000)]
    for account in idle:
        account.begin(1536 * KIBIBYTE)
    fast = budget.open()
    fast.begin(1536 * KIBIBYTE)
    assert grow(fast) >= 7 * MEBIBYTE
    assert budget.used <= budget.limit


def test_idle_connections_take_a_quarter_of_the_memory_at_most() -> None:
    budget = EndpointMemory(TransportConfig()).receive
    idle = [budget.open() for _ in range(5000)]
    first = [account.begin(1536 * KIBIBYTE) for account in idle]
    assert first[:10] == [1536 * KIBIBYTE] * 10
    assert first[-1] >= MINIMUM
    assert budget.used <= budget.limit // 4


def test_greedy_connections_which_never_give_back_do_not_cost_others_their_fair_share() -> None:
    budget = EndpointMemory(TransportConfig()).send
    accounts = [budget.open() for _ in range(200)]
    early = [grow(account) for account in accounts]
    late = [grow(budget.open()) for _ in range(50)]
    assert early[0] == 16 * MEBIBYTE, "as long as there is plenty"
    assert min(early) >= budget.limit // 3 // 200
    assert min(late) >= budget.limit // 3 // 250
    assert budget.used <= budget.limit


def test_connections_which_grow_one_after_the_other_leave_something_to_a_hundred() -> None:
    budget = EndpointMemory(TransportConfig()).send
    granted = [grow(budget.open(), 4 * MEBIBYTE) for _ in range(150)]
    assert granted[:20] == [4 * MEBIBYTE] * 20
    assert granted[100] >= budget.limit // 3 // 101
    assert budget.used <= budget.limit


def test_busy_connections_come_to_equal_shares() -> None:
    budget = EndpointMemory(TransportConfig()).receive
    accounts = [budget.open() for _ in range(100)]
    grants = [0] * len(accounts)
    for _ in range(30):
        for index, account in enumerate(accounts):
            # Everything is read between two updates.
            grants[index] = account.adjust(0, 16 * MEBIBYTE)
    assert max(grants) - min(grants) < max(grants) // 10
    assert sum(grants) > budget.limit // 3


def test_an_account_which_is_forgotten_gives_its_memory_back() -> None:
    budget = MemoryBudget(LIMIT, MINIMUM)
    account = budget.open()
    grow(account)
    assert budget.used > 0
    del account
    assert (budget.used, budget.connections) == (0, 0)


@pytest.mark.parametrize("how", ["closed", "reset", "idle", "closed by the peer"])
def test_a_connection_gives_its_memory_back_once_however_it_ends(how: str) -> None:
    config = attrs.evolve(TransportConfig(), max_idle_timeout=5.0)
    memory = EndpointMemory(config)
    pair = EnginePair(client_config=config, server_config=config, server_memory=memory).connect()
    assert pair.server is not None
    pair.server.read_automatically = False
    engine = pair.server.engine
    budget, send_budget = memory.receive, memory.send
    stream_id = pair.client.engine.open_stream(unidirectional=False)
    assert stream_id is not None
    pair.client.engine.write(stream_id, bytes(500_000))
    pair.run(2.0)
    answer = 300_000
    assert engine.send_room(stream_id, answer) >= answer
    engine.write(stream_id, bytes(answer))
    assert (budget.connections, send_budget.connections) == (1, 1)
    assert budget.used > 0
    assert send_budget.used > 0
    if how == "closed":
        engine.close_application(0, "")
    elif how == "reset":
        engine.on_stateless_reset(pair.now)
    elif how == "idle":
        pair.drop = lambda destination, data: True
        pair.run(20.0)
    else:
        pair.client.engine.close_application(0, "")
        pair.run(1.0)
    pair.server.gather(pair.now)
    assert (send_budget.used, send_budget.connections) == (0, 0)
    # Delivered data is counted until the application has read it.
    assert (budget.used, budget.connections) == (500_000, 0)
    engine.consume(stream_id, 400_000)
    engine.extend_credit(stream_id, pair.now)
    assert budget.used == 100_000
    engine.let_go(stream_id, receiving=True)
    assert budget.used == 0
    del pair, engine
    gc.collect()
    assert (budget.used, budget.connections) == (0, 0)


def test_a_connection_under_pressure_begins_with_less_and_goes_on() -> None:
    memory = EndpointMemory(attrs.evolve(TransportConfig(), endpoint_receive_memory=MEBIBYTE))
    hogs = [memory.receive.open() for _ in range(5)]
    for hog in hogs:
        hog.adjust(MEBIBYTE, MEBIBYTE)
    pair = EnginePair(server_memory=memory).connect()
    assert pair.server is not None
    engine = pair.server.engine
    stream_id = pair.client.engine.open_stream(unidirectional=False)
    assert stream_id is not None
    assert max_data(pair.client.engine) == MINIMUM
    assert initial_max_stream_data(pair.client.engine) == MINIMUM * 2 // 3
    pair.client.engine.write(stream_id, bytes(1_000_000))
    largest = 0
    while len(pair.server.received.get(stream_id, b"")) < 1_000_000:
        pair.run(0.02)
        granted = credit_granted(engine) - statistics(engine).stream_bytes_read
        largest = max(largest, granted)
    assert largest == MINIMUM
    for hog in hogs:
        hog.close()
    pair.client.engine.write(stream_id, bytes(4_000_000))
    pair.run(3.0)
    assert len(pair.server.received[stream_id]) == 5_000_000
    assert statistics(engine).receive_window > 2 * MINIMUM, "it grows again when there is room"


def test_early_data_is_refused_where_less_can_be_granted_than_the_client_remembers() -> None:
    """RFC 9000 section 7.4.1: limits remembered by a client must not be reduced."""
    tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=True)
    server = server_tls(early_data=True)
    memory = EndpointMemory(TransportConfig())
    outcomes = []
    for squeezed in (False, False, True):
        hogs = [memory.receive.open() for _ in range(60)]
        if squeezed:
            for hog in hogs:
                hog.adjust(16 * MEBIBYTE, 16 * MEBIBYTE)
        pair = EnginePair(client=tls, server=server, server_memory=memory)
        engine = pair.client.engine
        early = engine.can_send_early_data
        stream_id = 0
        if early:
            assert engine.open_stream(unidirectional=False) == stream_id
            engine.write(stream_id, b"early")
        pair.run(2.0)
        (done,) = pair.client.of(events.HandshakeCompleted)
        outcomes.append((early, done.early_data_accepted))
        assert pair.server is not None
        if early:
            assert pair.server.received[stream_id] == b"early"
        engine.close_application(0, "")
        pair.run(1.0)
        for hog in hogs:
            hog.close()
    assert outcomes == [(False, False), (True, True), (True, False)]
