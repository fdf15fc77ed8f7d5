"""Explicit congestion notification: the verdicts, then whole connections."""

from __future__ import annotations

import itertools

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.quic.established.ecn import CE, ECT_0, ECT_1, NOT_ECT, EcnMarking, ReceivedMarks
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import engine_of, keys_worn_out_after
from tests.support import CLIENT, SERVER, connected_pair, examples, stream_pair

# ------------------------------------------------------------------ verdicts


def tried() -> EcnMarking:
    ecn = EcnMarking(enabled=True)
    assert ecn.codepoint == ECT_0
    ecn.on_sent(100, 110)
    return ecn


def test_marks_are_counted_by_kind() -> None:
    marks = ReceivedMarks()
    for mark, count in ((ECT_0, 5), (ECT_1, 2), (CE, 3), (NOT_ECT, 7)):
        marks.count(mark, count)
    assert marks.as_fields() == (5, 2, 3)


def test_a_few_packets_are_marked_before_the_first_verdict() -> None:
    ecn = EcnMarking(enabled=True)
    ecn.on_sent(5, 9)
    assert ecn.codepoint == ECT_0
    ecn.on_sent(9, 20)
    assert ecn.codepoint == NOT_ECT
    assert not ecn.is_validated


def test_a_path_which_reports_what_was_sent_is_believed() -> None:
    ecn = tried()
    ecn.on_sent(110, 120)  # not marked any more: the verdict is pending
    assert not ecn.on_acknowledged(range(100, 115), (10, 0, 0), is_newest=True)
    assert ecn.is_validated
    assert ecn.codepoint == ECT_0
    ecn.on_sent(120, 130)
    assert not ecn.on_acknowledged(range(115, 130), (20, 0, 0), is_newest=True)
    assert ecn.is_validated


def test_new_marks_of_congestion_are_a_signal_once() -> None:
    ecn = tried()
    assert ecn.on_acknowledged(range(100, 105), (3, 0, 2), is_newest=True)
    assert not ecn.on_acknowledged(range(105, 107), (5, 0, 2), is_newest=True)
    assert ecn.on_acknowledged(range(107, 110), (7, 0, 3), is_newest=True)
    assert ecn.signals == 2


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [
        (range(100, 110), None),  # no counts at all
        (range(100, 110), (0, 0, 0)),  # marks were wiped out on the way
        (range(100, 110), (9, 0, 0)),
        (range(100, 110), (5, 5, 0)),  # another mark than ours
        (range(100, 110), (11, 0, 0)),  # more than were sent
        (range(100, 105), (0, 0, 1000)),
    ],
)
def test_what_does_not_add_up_ends_the_marking(
    numbers: range, counts: tuple[int, int, int] | None
) -> None:
    ecn = tried()
    assert not ecn.on_acknowledged(numbers, counts, is_newest=True)
    assert ecn.codepoint == NOT_ECT
    assert not ecn.is_validated
    assert not ecn.on_acknowledged(range(110, 120), (0, 0, 50), is_newest=True)
    assert ecn.signals == 0


def test_counts_which_fall_end_the_marking() -> None:
    ecn = tried()
    ecn.on_acknowledged(range(100, 105), (8, 0, 0), is_newest=True)
    ecn.on_acknowledged(range(105, 107), (7, 0, 0), is_newest=True)
    assert ecn.codepoint == NOT_ECT


def test_an_old_acknowledgement_proves_nothing() -> None:
    ecn = tried()
    ecn.on_acknowledged(range(105, 110), (5, 0, 0), is_newest=True)
    ecn.on_acknowledged(range(100, 105), None, is_newest=False)
    assert ecn.is_validated


def test_packets_which_were_not_marked_need_no_counts() -> None:
    ecn = tried()
    ecn.on_acknowledged(range(90, 100), None, is_newest=True)
    ecn.on_acknowledged(range(110, 150), None, is_newest=True)
    assert not ecn.is_validated
    ecn.on_acknowledged(range(100, 110), (10, 0, 0), is_newest=True)
    assert ecn.is_validated


def test_where_the_marked_packets_vanish_nothing_is_marked_any_more() -> None:
    ecn = tried()
    for _ in range(100):
        assert ecn.codepoint == NOT_ECT
        ecn.on_sent(110, 120)
        ecn.on_acknowledged(range(110, 120), None, is_newest=True)


def test_another_path_is_judged_by_itself() -> None:
    ecn = tried()
    ecn.on_acknowledged(range(100, 110), (6, 0, 4), is_newest=True)
    ecn.begin_path()
    assert ecn.codepoint == ECT_0
    assert not ecn.is_validated
    ecn.on_sent(200, 210)
    assert not ecn.on_acknowledged(range(200, 210), (16, 0, 4), is_newest=True)
    assert ecn.is_validated
    ecn.begin_path()
    ecn.on_sent(300, 310)
    ecn.on_acknowledged(range(300, 310), (16, 0, 4), is_newest=True)
    assert ecn.codepoint == NOT_ECT, "the old path's marks do not count for the new one"


def test_switched_off_it_stays_off() -> None:
    ecn = EcnMarking(enabled=False)
    assert ecn.codepoint == NOT_ECT
    ecn.begin_path()
    assert ecn.codepoint == NOT_ECT


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.booleans()), max_size=30))
@examples(100)
def test_a_true_report_is_always_believed(rounds: list[tuple[int, int, bool]]) -> None:
    ecn = EcnMarking(enabled=True)
    number = 0
    pending: list[tuple[int, bool]] = []
    ect = congestion = signals = 0
    for sent, acknowledged, congested in rounds:
        marked = ecn.codepoint == ECT_0
        ecn.on_sent(number, number + sent)
        pending += [(n, marked) for n in range(number, number + sent)]
        number += sent
        now, pending = pending[:acknowledged], pending[acknowledged:]
        if not now:
            continue
        arrived = sum(was_marked for _, was_marked in now)
        if congested and arrived:
            congestion += 1
            arrived -= 1
            signals += 1
        ect += arrived
        counts = (ect, 0, congestion) if ect or congestion else None
        ecn.on_acknowledged([n for n, _ in now], counts, is_newest=True)
    assert ecn.signals == signals
    assert ecn.codepoint == ECT_0 or not ecn.is_validated


# ------------------------------------------------------------------ connections


async def transfer(
    client: phoenix_trio.QuicConnection, server: phoenix_trio.QuicConnection, size: int
) -> None:
    ours, theirs = await stream_pair(client, server)
    received = 0

    async def receive() -> None:
        nonlocal received
        while data := await theirs.receive_some():
            received += len(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await ours.send_all(bytes(size))
        await ours.send_eof()
    assert received == size
    await ours.wait_acked()


async def test_a_clean_path_is_validated_and_congestion_is_heard_without_loss(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    config = phoenix_trio.TransportConfig()
    async with connected_pair(network, config=config) as (client, server):
        await transfer(client, server, 300_000)
        assert client.statistics().ecn_validated
        assert client.statistics().ecn_congestion_signals == 0
        window = client.statistics().congestion_window
        network.set_conditions(mark=1.0)
        await transfer(client, server, 10_000)
        after = client.statistics()
        assert after.ecn_congestion_signals > 0
        assert after.congestion_window < window
        assert after.packets_lost == 0


async def test_a_path_which_wipes_marks_out_is_not_marked_any_more(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    seen: list[int] = []

    def wipe(datagram: Datagram) -> Datagram:
        if datagram.source[0] == CLIENT:
            seen.append(datagram.ecn)
        return attrs.evolve(datagram, ecn=0)

    network.tap = wipe
    config = phoenix_trio.TransportConfig()
    async with connected_pair(network, config=config) as (client, server):
        await transfer(client, server, 300_000)
        assert ECT_0 in seen
        assert seen[-1] == NOT_ECT
        assert not client.statistics().ecn_validated


async def test_a_path_which_swallows_marked_packets_costs_only_the_first_few(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    network.tap = lambda datagram: None if datagram.ecn else datagram
    async with connected_pair(network) as (client, server):
        await transfer(client, server, 300_000)
        assert not client.statistics().ecn_validated


async def test_a_peer_which_reports_no_marks_is_not_marked(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02)
    network.tap = lambda d: attrs.evolve(d, ecn=0) if d.destination[0] == SERVER else d
    async with connected_pair(network) as (client, server):
        await transfer(client, server, 100_000)
        await transfer(server, client, 100_000)
        assert not client.statistics().ecn_validated
        assert server.statistics().ecn_validated, "the other direction is another matter"


async def test_without_ecn_nothing_is_marked(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02)
    marks: set[int] = set()

    def watch(datagram: Datagram) -> Datagram:
        marks.add(datagram.ecn)
        return datagram

    network.tap = watch
    config = phoenix_trio.TransportConfig(enable_ecn=False)
    async with connected_pair(network, config=config) as (client, server):
        await transfer(client, server, 100_000)
    assert marks == {NOT_ECT}


async def test_marks_survive_loss_reordering_and_a_new_address(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(seed=3, delay=0.01)
    async with connected_pair(network) as (client, server):
        network.set_conditions(loss=0.02, reorder=0.05, duplicate=0.05, jitter=0.005)
        await transfer(client, server, 400_000)
        network.host(CLIENT).rebind()
        await transfer(client, server, 400_000)
        # Loss and disorder are no lies: the marks still add up.
        assert client.statistics().ecn_validated


async def test_marks_cross_loopback() -> None:
    async with connected_pair(real=True) as (client, server):
        with trio.fail_after(20):
            await transfer(client, server, 500_000)
        if client._driver.socket.statistics.ecn:
            assert client.statistics().ecn_validated


# ------------------------------------------------------------------ key updates by themselves


async def test_keys_are_updated_before_their_cipher_is_worn_out(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(seed=1, delay=0.01)
    config = phoenix_trio.TransportConfig()
    with keys_worn_out_after(200, retry_after=20):
        async with connected_pair(network, config=config) as (client, server):
            network.set_conditions(loss=0.01)
            for sender, receiver in itertools.islice(
                itertools.cycle([(client, server), (server, client)]), 6
            ):
                await transfer(sender, receiver, 300_000)
            assert client.statistics().key_updates >= 2
            assert server.statistics().key_updates >= 1
            await client.update_keys()
            await transfer(client, server, 10_000)


async def test_an_update_by_hand_waits_for_one_under_way(autojump_clock: MockClock) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.05)) as (client, server):
        await client.wait_confirmed()
        await client.ping()
        engine_of(client).update_keys()
        assert not engine_of(client).can_update_keys
        client._touch()
        await client.update_keys()
        await server.update_keys()
        await transfer(client, server, 10_000)
        assert client.statistics().key_updates == 2
