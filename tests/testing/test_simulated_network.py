"""The simulated network: each fault alone, determinism, conservation."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from phoenix_trio.quic.path_address import PathAddress
from phoenix_trio.testing import Conditions, Datagram, SimulatedNetwork

A, B = "10.0.0.1", "10.0.0.2"


async def two_sockets(network: SimulatedNetwork, buffer_size: int = 10**9) -> tuple[Any, Any]:
    return (
        await network.host(A).open_socket(None, 1000, buffer_size=buffer_size),
        await network.host(B).open_socket(None, 2000, buffer_size=buffer_size),
    )


async def shoot(network: SimulatedNetwork, count: int, size: int = 100) -> list[tuple[float, int]]:
    """Send numbered datagrams at once; return when each of them arrived."""
    here, there = await two_sockets(network)
    for number in range(count):
        here.send(number.to_bytes(4, "big").ljust(size, b"\0"), (B, 2000))
    arrivals: list[tuple[float, int]] = []
    with trio.move_on_after(1000):
        while True:
            await there.wait_readable()
            for data, source in there.receive(count):
                assert source == (A, 1000)
                arrivals.append((trio.current_time(), int.from_bytes(data[:4], "big")))
    here.close()
    there.close()
    return arrivals


async def test_a_perfect_network_keeps_order_and_time(autojump_clock: MockClock) -> None:
    arrivals = await shoot(SimulatedNetwork(delay=0.25), 100)
    assert [number for _, number in arrivals] == list(range(100))
    assert all(at == pytest.approx(0.25) for at, _ in arrivals)


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("loss", lambda arrivals: 600 < len(arrivals) < 800),
        ("duplicate", lambda arrivals: 1200 < len(arrivals) < 1400),
        ("reorder", lambda arrivals: arrivals != sorted(arrivals, key=lambda a: a[1])),
    ],
)
async def test_each_fault_does_what_it_says(
    name: str, judge: Callable[[Any], bool], autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(seed=5, delay=0.01, **{name: 0.3})  # type: ignore[arg-type]
    assert judge(await shoot(network, 1000))


async def test_corruption_flips_one_bit(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=5, corrupt=0.5)
    here, there = await two_sockets(network)
    for _ in range(200):
        here.send(bytes(50), (B, 2000))
    received = [data for data, _ in there.receive(1000)]
    flipped = [sum(byte.bit_count() for byte in data) for data in received]
    assert set(flipped) == {0, 1}
    assert sum(flipped) == network.statistics().corrupted
    assert 60 < sum(flipped) < 140


async def test_jitter_lets_later_ones_overtake(autojump_clock: MockClock) -> None:
    arrivals = await shoot(SimulatedNetwork(delay=0.1, jitter=0.1), 200)
    assert [n for _, n in arrivals] != list(range(200))
    assert all(0.1 <= at <= 0.2 for at, _ in arrivals)


async def test_batching_lets_datagrams_arrive_together_in_one_run(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.001, batching=0.005, bandwidth=1_000_000.0)
    here, there = await two_sockets(network)
    for _ in range(100):
        here.send(bytes(100), (B, 2000))  # each takes 0.8 ms on this link
    lengths = []
    with trio.move_on_after(1):
        while True:
            await there.wait_readable()
            assert trio.current_time() / 0.005 == pytest.approx(round(trio.current_time() / 0.005))
            lengths += [stop // size for _, _, size, _, stop in there.receive_runs(16)]
    assert sum(lengths) == 100
    assert max(lengths) >= 6


async def test_bandwidth_serialises_and_its_queue_is_bounded(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(bandwidth=8000, queue_bytes=5000)  # 1000 bytes a second
    arrivals = await shoot(network, 20, size=1000)
    assert [at for at, _ in arrivals] == [pytest.approx(t) for t in (1, 2, 3, 4, 5)]
    assert network.statistics().queue_full == 15


async def test_datagrams_above_the_mtu_vanish(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(mtu=1200)
    assert not await shoot(network, 3, size=1201)
    assert network.statistics().too_large == 3
    network.set_conditions(mtu=None)
    assert len(await shoot(network, 3, size=60_000)) == 3


async def test_partitions_conditions_of_one_direction_and_taps(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)
    network.partition(A, B)
    here.send(b"x", (B, 2000))
    assert not there.receive(9)
    network.heal(A, B)
    network.link(A, B).set_conditions(loss=1.0)
    here.send(b"x", (B, 2000))
    there.send(b"y", (A, 1000))
    assert not there.receive(9)
    assert here.receive(9) == [(b"y", (B, 2000))]
    network.link(A, B).set_conditions(loss=0.0)
    network.tap = lambda datagram: None if datagram.data == b"swallow" else [datagram, datagram]
    here.send(b"swallow", (B, 2000))
    here.send(b"double", (B, 2000))
    assert there.receive(9) == [(b"double", (A, 1000))] * 2


async def test_a_host_with_several_addresses_is_reached_at_each(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork()
    second, six = "10.0.0.9", "2001:db8::9"
    host = network.host(A, second, six)
    assert host is network.host(second) is network.host("2001:DB8::9", A)
    assert (host.address, host.addresses) == (A, (A, second, six))
    everywhere = await host.open_socket("::", 1000, buffer_size=10_000)
    peer = await network.host(B).open_socket(None, 2000, buffer_size=10_000)
    peer_six = await network.host("2001:db8::2").open_socket(None, 0, buffer_size=10_000)
    # By default: from the first address, or the first of the receiver's family.
    everywhere.send(b"x", (B, 2000))
    everywhere.send(b"x", peer_six.address)
    assert peer.receive(9) == [(b"x", (A, 1000))]
    assert peer_six.receive(9) == [(b"x", (six, 1000))]
    # A socket that asks is told the address of arrival, and runs end when the address changes.
    for address in (second, second, A):
        peer.send(b"y", (address, 1000))
    ((_, source, *_),) = everywhere.receive_runs(9)
    assert source == (B, 2000)
    everywhere.report_local_addresses()
    for address in (second, second, A):
        peer.send(b"y", (address, 1000))
    runs = everywhere.receive_runs(9)
    assert [(data, source) for data, source, *_ in runs] == [
        (b"yy", PathAddress.join((B, 2000), second)),
        (b"y", PathAddress.join((B, 2000), A)),
    ]
    for _, source, *_ in runs:
        everywhere.send_run(b"back", source)
    everywhere.send_run(b"gone", PathAddress.join((B, 2000), "10.0.0.77"))
    assert peer.receive(9) == [
        (b"back", (second, 1000)),
        (b"back", (A, 1000)),
        (b"gone", (A, 1000)),
    ]
    host.prefer(second)
    everywhere.send(b"x", (B, 2000))
    assert peer.receive(9) == [(b"x", (second, 1000))]
    # A rebinding moves each address by itself.
    host.rebind()
    everywhere.send_run(b"a", PathAddress.join((B, 2000), A))
    everywhere.send_run(b"b", PathAddress.join((B, 2000), second))
    (_, outside_a), (_, outside_b) = peer.receive(9)
    assert (outside_a[0], outside_b[0]) == (A, second)
    peer.send(b"to a", outside_a)
    peer.send(b"to b", outside_b)
    assert [source[-1] for _, source, *_ in everywhere.receive_runs(9)] == [A, second]
    everywhere.close()
    assert not network._aliases
    assert not any(socket is everywhere for socket in network._sockets.values())


async def test_a_socket_on_one_of_several_addresses_knows_no_other(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork()
    second = "10.0.0.9"
    host = network.host(A, second)
    bound = await host.open_socket(second, 1000, buffer_size=10_000)
    bound.report_local_addresses()
    assert bound.address == (second, 1000)
    with pytest.raises(OSError, match="in use"):
        await host.open_socket(None, 1000, buffer_size=10_000)
    first = await host.open_socket(A, 1000, buffer_size=10_000)
    first.send(b"x", (second, 1000))
    ((_, source, *_),) = bound.receive_runs(9)
    assert source == (A, 1000)
    bound.send_run(b"y", PathAddress.join((A, 1000), A))
    assert first.receive(9) == [(b"y", (second, 1000))]
    with pytest.raises(OSError, match="not an address"):
        await host.open_socket(B, 0, buffer_size=10_000)


def test_addresses_of_hosts_are_their_own() -> None:
    network = SimulatedNetwork()
    host = network.host(A, "10.0.0.9")
    with pytest.raises(ValueError, match="belongs to"):
        network.host(B, "10.0.0.9")
    with pytest.raises(ValueError, match="not all addresses of"):
        network.host(A, B)
    with pytest.raises(ValueError, match="not an address of"):
        host.prefer(B)
    with pytest.raises(ValueError, match="numeric"):
        network.host("10.0.0.8", "name")


async def test_rebinding_moves_the_outside_address(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)
    network.host(A).rebind()
    here.send(b"x", (B, 2000))
    ((_, source),) = there.receive(9)
    assert source[0] == A
    assert source[1] != 1000
    there.send(b"old", (A, 1000))
    there.send(b"new", source)
    assert here.receive(9) == [(b"new", (B, 2000))]
    network.host(A).rebind("192.0.2.7")
    here.send(b"x", (B, 2000))
    assert there.receive(9)[0][1][0] == "192.0.2.7"
    assert here.address == (A, 1000)


async def test_a_full_receive_buffer_drops_what_comes_on_top(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network, buffer_size=1000)
    for number in range(20):
        here.send(bytes([number]) * 100, (B, 2000))
    received = there.receive(100)
    assert [data[0] for data, _ in received] == list(range(10))
    assert network.statistics().receive_buffer_full == 10


async def test_names_and_errors(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    network.add_name("example.org", A, "2001:db8::1")
    host = network.host(B)
    assert await host.resolve("example.org", 5) == [(A, 5), ("2001:db8::1", 5)]
    assert await host.resolve("::1", 5) == [("::1", 5)]
    with pytest.raises(OSError, match=r"nobody\.example"):
        await host.resolve("nobody.example", 5)
    opened = await host.open_socket(None, 7, buffer_size=10)
    with pytest.raises(OSError, match="in use") as caught:
        await host.open_socket(None, 7, buffer_size=10)
    assert caught.value.errno == errno.EADDRINUSE
    opened.close()
    opened.close()
    await host.open_socket(None, 7, buffer_size=10)
    with pytest.raises(OSError, match="not an address"):
        await host.open_socket(A, 7, buffer_size=10)
    with pytest.raises(ValueError, match="numeric"):
        network.host("example.org")
    assert network.host(A) is network.host(A)


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", 1.5), ("loss", -1), ("delay", -1), ("jitter", float("inf")), ("bandwidth", 0)]
    + [("mtu", 0), ("queue_bytes", 0), ("corrupt", 2), ("reorder", -0.1), ("duplicate", 3)],
)
def test_impossible_conditions_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Conditions(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=field):
        SimulatedNetwork(**{field: value})  # type: ignore[arg-type]


async def test_closing_wakes_whoever_waits(autojump_clock: MockClock) -> None:
    _here, there = await two_sockets(SimulatedNetwork())
    there.block_sending = True
    async with trio.open_nursery() as nursery:
        for wait in (there.wait_readable, there.wait_writable):

            async def expect(wait: Any = wait) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wait()

            nursery.start_soon(expect)
        await trio.testing.wait_all_tasks_blocked()
        there.close()


async def test_sockets_which_are_closed_say_so_at_once(autojump_clock: MockClock) -> None:
    here, there = await two_sockets(SimulatedNetwork())
    there.send(b"unread", (A, 1000))
    here.close()
    here.close()
    for wait in (here.wait_readable, here.wait_writable):
        with pytest.raises(trio.ClosedResourceError):
            await wait()
    assert here.receive(5) == []
    assert here.send(b"x", (B, 2000))
    assert not there.receive(5)


async def test_a_cancelled_wait_loses_nothing(autojump_clock: MockClock) -> None:
    here, there = await two_sockets(SimulatedNetwork(delay=1.0))
    here.send(b"first", (B, 2000))
    here.send(b"second", (B, 2000))
    for seconds in (0.0, 0.5):
        with trio.move_on_after(seconds) as scope:
            await there.wait_readable()
        assert scope.cancelled_caught
        assert there.receive(5) == []
    await there.wait_readable()
    assert trio.current_time() == pytest.approx(1.0)
    assert [data for data, _ in there.receive(1)] == [b"first"]
    with trio.move_on_after(0):
        await there.wait_readable()
    assert [data for data, _ in there.receive(1)] == [b"second"]


async def test_a_full_send_buffer_is_waited_for(autojump_clock: MockClock) -> None:
    here, there = await two_sockets(SimulatedNetwork())
    here.block_sending = True
    assert here.send(b"x", (B, 2000)) is False
    assert here.statistics.send_blocked == 1
    assert here.statistics.datagrams_sent == 0
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.wait_writable)
        await trio.sleep(2)
        here.unblock_sending()
    assert trio.current_time() - started == pytest.approx(2)
    assert here.send(b"x", (B, 2000))
    assert there.receive(5) == [(b"x", (A, 1000))]


async def test_a_queue_keeps_its_order_when_the_bandwidth_changes(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(bandwidth=8000, queue_bytes=10_000)
    here, there = await two_sockets(network)
    numbers = iter(range(100))

    def send(count: int) -> None:
        for _ in range(count):
            here.send(bytes([next(numbers)]) * 1000, (B, 2000))

    send(10)  # ten seconds' worth
    network.set_conditions(bandwidth=8_000_000.0, queue_bytes=20_000)
    send(5)
    network.set_conditions(bandwidth=None)
    send(5)
    assert network.statistics().queue_full == 0, "bytes wait, not seconds"
    await trio.sleep(11)
    assert [data[0] for data, _ in there.receive(100)] == list(range(20))
    send(1)
    assert len(there.receive(1)) == 1, "no backlog is left"


async def test_a_queue_has_room_again_for_what_has_left_it(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(bandwidth=8000, queue_bytes=3500)
    here, there = await two_sockets(network)
    here.send(bytes(1000), (B, 2000))
    for _ in range(50):  # never idle, never more than two in it
        here.send(bytes(1000), (B, 2000))
        await trio.sleep(1)
    assert network.statistics().queue_full == 0
    assert len(there.receive(100)) == 50


async def test_a_receive_buffer_has_room_again_for_what_was_read(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network, buffer_size=1000)
    for number in range(50):
        here.send(bytes([number]) * 400, (B, 2000))
        here.send(bytes(400), (B, 2000))
        assert len(there.receive(1 + number % 2)) == 1 + number % 2
        there.receive(10)
    assert network.statistics().receive_buffer_full == 0


async def test_a_datagram_larger_than_the_queue_passes_an_idle_link(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(bandwidth=8000, queue_bytes=500)
    assert len(await shoot(network, 2, size=1000)) == 1
    assert network.statistics().queue_full == 1


@pytest.mark.parametrize(
    "conditions", [{"loss": 0.3}, {"duplicate": 0.3}, {"bandwidth": 1e6}, {"corrupt": 0.0}]
)
async def test_nothing_overtakes_without_jitter_or_reordering(
    conditions: dict[str, float], autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(seed=3, delay=0.05, **conditions)  # type: ignore[arg-type]
    first_copies = list(dict.fromkeys(number for _, number in await shoot(network, 500)))
    assert first_copies == sorted(first_copies)


async def test_jitter_is_spread_evenly(autojump_clock: MockClock) -> None:
    delays = [at for at, _ in await shoot(SimulatedNetwork(seed=4, jitter=1.0), 2000)]
    assert sum(delays) / len(delays) == pytest.approx(0.5, abs=0.05)
    assert sum(delay < 0.25 for delay in delays) / len(delays) == pytest.approx(0.25, abs=0.05)


async def test_a_seed_repeats_itself_and_another_differs() -> None:
    def outcome(seed: int | None) -> tuple[int, list[tuple[float, int]]]:
        async def main() -> tuple[int, list[tuple[float, int]]]:
            network = SimulatedNetwork(seed, loss=0.5, jitter=1.0)
            return network.seed, await shoot(network, 50)

        return trio.run(main, clock=MockClock(autojump_threshold=0))

    def in_threads() -> list[tuple[int, list[tuple[float, int]]]]:
        drawn = outcome(None)
        return [outcome(1), outcome(1), outcome(2), drawn, outcome(drawn[0])]

    one, again, other, drawn, repeated = await trio.to_thread.run_sync(in_threads)
    assert one == again
    assert one[1] != other[1]
    assert drawn == repeated
    assert str(drawn[0]) in repr(SimulatedNetwork(drawn[0]))


async def test_one_more_fault_leaves_the_others_as_they_were(autojump_clock: MockClock) -> None:
    alone = await shoot(SimulatedNetwork(seed=9, jitter=1.0), 200)
    start = trio.current_time()
    with_loss = await shoot(SimulatedNetwork(seed=9, jitter=1.0, loss=0.3), 200)
    assert 0 < len(with_loss) < 200
    fate = {number: at for at, number in alone}
    for at, number in with_loss:
        assert at - start == pytest.approx(fate[number])


async def test_a_tap_changes_redirects_and_counts(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)
    third = await network.host("10.0.0.3").open_socket(None, 3000, buffer_size=10**6)
    seen: list[Datagram] = []

    def tap(datagram: Datagram) -> list[Datagram]:
        seen.append(datagram)
        if datagram.data == b"nothing":
            return []
        return [datagram, Datagram(("192.0.2.1", 7), ("10.0.0.3", 3000), datagram.data.upper())]

    network.tap = tap
    here.send(b"nothing", (B, 2000))
    here.send(b"copy", (B, 2000))
    assert seen[1] == Datagram((A, 1000), (B, 2000), b"copy")
    assert there.receive(5) == [(b"copy", (A, 1000))]
    assert third.receive(5) == [(b"COPY", ("192.0.2.1", 7))]
    counted = network.statistics()
    assert (counted.sent, counted.lost, counted.duplicated, counted.delivered) == (2, 1, 1, 2)


async def test_an_address_means_the_same_host_however_it_is_written(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork()
    host = network.host("2001:DB8:0::1")
    assert host is network.host("2001:db8::1")
    assert host.address == "2001:db8::1"
    assert await host.resolve("2001:0db8::0001", 9) == [("2001:db8::1", 9)]
    opened = await host.open_socket("2001:db8:0:0::1", 9, buffer_size=1000)
    assert opened.address == ("2001:db8::1", 9)
    network.partition("2001:DB8::1", A)
    opened.send(b"x", (A, 1))
    assert network.statistics().partitioned == 1
    network.add_name("six.example", "2001:DB8::1")
    again = await host.open_socket("six.example", 10, buffer_size=1000)
    assert again.address == ("2001:db8::1", 10)


async def test_a_wrong_address_or_port_is_never_silent(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    for act in (network.link, network.partition, network.heal):
        with pytest.raises(ValueError, match="server"):
            act("server", A)
    with pytest.raises(ValueError, match="elsewhere"):
        network.host(A).rebind("elsewhere")
    with pytest.raises(ValueError, match="at least one"):
        network.add_name("example.org")
    with pytest.raises(ValueError, match="numeric"):
        network.add_name("example.org", "example.com")
    for port in (-1, 65536):
        with pytest.raises(ValueError, match=str(port)):
            await network.host(A).open_socket(None, port, buffer_size=1000)
    with pytest.raises(OSError, match="nobody"):
        await network.host(A).open_socket("nobody.example", 1, buffer_size=1000)
    with pytest.raises(TypeError, match="lag"):
        network.set_conditions(lag=1)
    with pytest.raises(ValueError, match="loss"):
        network.link(A, B).set_conditions(loss=2)


async def test_a_second_rebinding_stays_where_the_first_has_moved_it(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)

    def source() -> tuple[str, int]:
        here.send(b"x", (B, 2000))
        return there.receive(9)[0][1]  # type: ignore[no-any-return]

    network.host(A).rebind("192.0.2.7")
    first = source()
    network.host(A).rebind()
    second = source()
    assert first[0] == second[0] == "192.0.2.7"
    assert first != second
    network.host(A).rebind(A)
    assert source()[0] == A
    there.send(b"late", second)
    assert here.receive(9) == []
    here.close()
    assert not network._aliases
    assert not network._sockets.keys() - {(B, 2000)}
    await network.host(A).open_socket(None, 1000, buffer_size=1000)


async def test_what_nobody_reads_does_not_pile_up(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    here, there = await two_sockets(network, buffer_size=1000)
    for _ in range(200):
        here.send(bytes(100), (B, 2000))
        await trio.sleep(0.01)
    assert len(there._coming) + len(there._arrived) <= 11
    assert len(there.receive(1000)) == 10


async def test_a_datagram_above_the_whole_receive_buffer_wakes_nobody(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    here, there = await two_sockets(network, buffer_size=1000)
    here.send(bytes(1400), (B, 2000))
    with trio.move_on_after(10) as scope:
        await there.wait_readable()
    assert scope.cancelled_caught
    assert network.statistics().receive_buffer_full == 1


def test_hours_pass_in_a_moment() -> None:
    async def main() -> None:
        network = SimulatedNetwork(delay=1.0)
        here, there = await two_sockets(network)
        for _ in range(5000):
            here.send(b"x", (B, 2000))
            await there.wait_readable()
            assert there.receive(1)
        assert trio.current_time() == pytest.approx(5000)

    started = time.monotonic()
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - started < 30, "not a timing: hours would have been hours"


@given(
    st.integers(0, 2**32),
    st.builds(
        dict,
        loss=st.floats(0, 1),
        duplicate=st.floats(0, 1),
        reorder=st.floats(0, 1),
        jitter=st.floats(0, 1),
        batching=st.sampled_from([0.0, 0.1]),
        mtu=st.sampled_from([None, 100]),
        bandwidth=st.sampled_from([None, 100_000.0]),
        queue_bytes=st.sampled_from([500, 100_000]),
    ),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([2000, 2001])), max_size=60),
)
def test_no_datagram_is_unaccounted_for_and_a_seed_gives_one_outcome(
    seed: int, conditions: dict[str, Any], datagrams: list[tuple[int, int]]
) -> None:
    async def main() -> tuple[Any, Any]:
        network = SimulatedNetwork(seed, **conditions)
        here, there = await two_sockets(network, buffer_size=2000)
        for size, port in datagrams:
            here.send(bytes(size), (B, port))
        await trio.sleep(0.5)
        received = [len(data) for data, _ in there.receive(20)]
        s = network.statistics()
        gone = s.lost + s.queue_full + s.too_large + s.partitioned + s.no_listener
        gone += s.receive_buffer_full
        assert s.sent + s.duplicated == s.delivered + s.under_way + gone
        assert s.sent == len(datagrams)
        there.close()
        assert network.statistics().under_way == 0
        return received, s

    first = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert first == trio.run(main, clock=MockClock(autojump_threshold=0))


def documented_tests() -> list[Any]:
    """The tests of docs/testing.md, which are one program in several blocks."""
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "test_echo"}
    exec(compile("\n\n".join(blocks), "docs/testing.md", "exec"), namespace)
    return [test for name, test in namespace.items() if name.startswith("test_")]


@pytest.mark.parametrize("test", documented_tests(), ids=lambda test: test.__name__)
async def test_what_the_documentation_shows_works(test: Any, autojump_clock: MockClock) -> None:
    await test(autojump_clock)


def test_all_documented_tests_are_found() -> None:
    assert len(documented_tests()) == 7
