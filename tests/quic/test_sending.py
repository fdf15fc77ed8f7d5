"""Packets leave in order and in turn, whatever the socket takes; writers share packets."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from phoenix_trio.quic.route import NO_SINK, Route
from phoenix_trio.quic.sending import BUILDS_PER_CONNECTION, PASSES_TO_COALESCE, Sender

ADDRESS = ("10.0.0.1", 1)


class Socket:
    """Takes `room` bytes, then nothing."""

    def __init__(self) -> None:
        self.room = 1_000_000
        self.sent: list[bytes] = []
        self._writable = trio.lowlevel.ParkingLot()

    def send_run(self, data: Any, address: Any, size: int, mark: int = 0) -> int:
        taken = min(self.room, len(data)) // size * size
        self.room -= taken
        if taken:
            self.sent.append(bytes(data[:taken]))
        return taken

    async def wait_writable(self) -> None:
        await self._writable.park()

    def make_room(self) -> None:
        self.room = 1_000_000
        self._writable.unpark_all()


class Engine:
    """Has `runs` to send, one in each build."""

    has_full_packet = False

    def __init__(self, *runs: bytes) -> None:
        self.runs = list(runs)
        self.passes = 0

    def begin_pass(self) -> None:
        self.passes += 1

    def transmit(self, now: float, slab: bytearray) -> list[Any]:
        return [(self.runs.pop(0), ADDRESS, 1, 0)] if self.runs else []

    def has_more_to_send(self, now: float) -> bool:
        return bool(self.runs)


class Told:
    """A sender, and its calls of the driver."""

    def __init__(self) -> None:
        self.socket: Any = Socket()
        self.transmitted: list[Route] = []
        self.blocked: list[Route] = []
        self.sender = Sender(
            self.socket,
            on_transmitted=lambda route, now: self.transmitted.append(route),
            on_blocked=lambda route, now: self.blocked.append(route),
        )


def make_route(*runs: bytes) -> Route:
    engine: Any = Engine(*runs)
    return Route(engine, NO_SINK)


@pytest.fixture
def told() -> Told:
    return Told()


async def test_a_connection_sends_a_bounded_run_and_the_rest_in_its_next_turn(told: Told) -> None:
    many = make_route(*(b"%d" % number for number in range(BUILDS_PER_CONNECTION + 1)))
    other = make_route(b"other")
    told.sender.flush(0.0, [many, other])
    assert told.socket.sent == [b"0", b"1", b"2", b"3", b"other"]
    assert list(told.sender.dirty) == [many]
    assert told.transmitted == [many, other]
    told.sender.flush_dirty(0.0, passes=5)
    assert told.socket.sent[-1] == b"4"
    assert not told.sender.dirty


async def test_what_the_socket_does_not_take_is_kept_and_nothing_overtakes_it(told: Told) -> None:
    told.socket.room = 2
    first, second = make_route(b"abcd", b"efgh"), make_route(b"ijkl")
    told.sender.flush(0.0, [first, second])
    assert told.socket.sent == [b"ab"]
    assert [bytes(run[0]) for run in told.sender.unsent] == [b"cd"]
    assert told.blocked == [second]
    assert second.engine.passes == 0, "nothing is built that cannot leave"
    assert set(told.sender.dirty) == {first, second}
    told.socket.room = 1
    told.sender.flush_dirty(0.0, passes=5)
    assert b"".join(told.socket.sent) == b"abc"
    told.socket.room = 1000
    told.sender.flush_dirty(0.0, passes=5)
    assert b"".join(told.socket.sent) == b"abcdefghijkl"
    assert not told.sender.dirty
    assert not told.sender.unsent


async def test_what_is_kept_is_a_copy(told: Told) -> None:
    told.socket.room = 0
    built = bytearray(b"abc")
    told.sender.flush(0.0, [make_route(memoryview(built))])  # type: ignore[arg-type]
    built[:] = b"xyz"
    told.socket.room = 10
    told.sender.flush(0.0, [])
    assert told.socket.sent == [b"abc"]


async def test_the_task_flushes_what_is_marked_and_waits_for_a_full_socket(
    autojump_clock: MockClock, told: Told
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.sender.run)
        await wait_all_tasks_blocked()
        told.socket.room = 1
        told.sender.dirty[make_route(b"abc")] = None
        told.sender.wake()
        await wait_all_tasks_blocked()
        assert told.socket.sent == [b"a"]
        told.socket.make_room()
        await wait_all_tasks_blocked()
        assert told.socket.sent == [b"a", b"bc"]
        nursery.cancel_scope.cancel()


async def longest_wait(*, writes_on: bool, has_full_packet: bool = False) -> int:
    """Passes of the scheduler until a packet leaves, the most of 30 trials.

    (The order of tasks in a pass is random, so a write can be missed by the task that waits.)
    """
    longest = 0
    for _ in range(30):
        told, route = Told(), make_route(b"a")
        engine: Any = route.engine
        engine.has_full_packet = has_full_packet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.sender.run)
            await wait_all_tasks_blocked()
            told.sender.dirty[route] = None
            told.sender.wake()
            passes = 0
            while not told.socket.sent:
                if writes_on:
                    told.sender.is_quiet = False
                await trio.lowlevel.checkpoint()
                passes += 1
            nursery.cancel_scope.cancel()
        longest = max(longest, passes)
    return longest


async def test_a_packet_waits_while_tasks_write_but_not_for_long() -> None:
    at_rest = await longest_wait(writes_on=False)
    assert at_rest < await longest_wait(writes_on=True) <= PASSES_TO_COALESCE + 4


async def test_a_full_packet_does_not_wait_for_writers() -> None:
    full = await longest_wait(writes_on=True, has_full_packet=True)
    assert full <= await longest_wait(writes_on=False)


async def test_a_failure_in_another_task_is_raised_by_the_senders_own(told: Told) -> None:
    async def expect_failure() -> None:
        with pytest.raises(OSError, match="gone"):
            await told.sender.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_failure)
        await wait_all_tasks_blocked()
        told.sender.error = OSError("gone")
        told.sender.wake()
