"""Expensive datagrams take a part of the time; ordinary ones and lone peers never wait."""

from __future__ import annotations

import math
import random

import pytest

from phoenix_trio.quic.turn_budget import (
    ACTIVE_SECONDS,
    DEAR_EXCESS,
    HELD_PART,
    LEAST_PART,
    MOST_PART,
    OVERHEAD,
    TURN_SECONDS,
    WATCHED,
    Account,
    TurnBudget,
)


class Loop:
    """A server with one processor; its clocks advance only with the work done."""

    def __init__(self, capacity: int = 1 << 20, slow: float = 1) -> None:
        self.now = 0.0
        self.stolen = 0.0
        """Seconds taken by other processes; the cheap clock counts them, too."""
        self.budget: TurnBudget[tuple[Account, float]] = TurnBudget(
            capacity,
            clock=lambda: self.now,
            processor_time=lambda: self.now - self.stolen,
        )
        # It has seen a cheap datagram before, long ago.
        self.budget.begin_turn(self.now, rested=True)
        self.now += slow * 12e-6
        self.budget.note(Account(), 1, 40)
        self.now += 10.0
        self.stolen += 10.0
        self.began = self.now
        self.took: dict[Account, float] = {}
        self.taken: dict[Account, int] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the test began."""
        return self.now - self.began

    def arrive(self, account: Account, cost: float, size: int = 1200) -> None:
        """Take, hold or drop a datagram that costs so many seconds, as the driver does."""
        budget = self.budget
        if account.watched and budget.must_wait(account):
            budget.hold(account, (account, cost), size)
        else:
            self._take(account, cost, size)

    def _take(self, account: Account, cost: float, size: int) -> None:
        budget = self.budget
        watched = account.watched
        if watched:
            budget.begin()
        self.now += cost
        self.took[account] = self.took.get(account, 0.0) + cost
        self.taken[account] = self.taken.get(account, 0) + 1
        (budget.charge if watched else budget.note)(account, 1, size)

    def turn(self, *arrivals: tuple[Account, float], rested: bool = False) -> None:
        self.budget.begin_turn(self.now, rested=rested)
        for account, cost in arrivals:
            self.arrive(account, cost)
        while (held := self.budget.take_held()) is not None:
            self._take(*held, 1200)
        self.now += 20e-6  # the system calls of a turn


ORDINARY = 20e-6
DEAR = 500e-6


def test_a_dear_connection_leaves_ordinary_ones_most_of_the_time() -> None:
    loop = Loop()
    honest, attacker = Account(), Account()
    while loop.seconds < 2.0:
        loop.turn(*[(attacker, DEAR)] * 14, *[(honest, ORDINARY)] * 10)
    assert attacker.is_expensive
    assert not honest.is_expensive
    assert loop.took[attacker] < 1.2 * LEAST_PART * loop.seconds
    assert loop.took[honest] > 0.5 * loop.seconds


def test_the_processor_is_not_idle_while_dear_work_waits_beside_little_ordinary_work() -> None:
    loop = Loop()
    light, dear = Account(), Account()
    while loop.seconds < 2.0:
        loop.turn((dear, DEAR), (light, ORDINARY))
        for _ in range(20):
            loop.turn()
    assert loop.took[dear] > 0.8 * MOST_PART * loop.seconds


def test_two_dear_connections_have_the_same_part() -> None:
    loop = Loop()
    one, two, honest = Account(), Account(), Account()
    while loop.seconds < 2.0:
        loop.turn(*[(one, DEAR)] * 20, (two, DEAR / 2), (two, DEAR / 2), (honest, ORDINARY))
    assert loop.took[one] == pytest.approx(loop.took[two], rel=0.2)


def test_a_connection_which_is_alone_never_waits_however_dear_it_is() -> None:
    loop = Loop()
    alone = Account()
    sent = 0
    while loop.seconds < 1.0:
        loop.turn(*[(alone, DEAR)] * 8)
        sent += 8
    assert loop.budget.dropped == 0
    assert loop.taken[alone] >= sent - 8


def test_it_is_alone_again_when_the_others_have_been_silent_for_a_while() -> None:
    loop = Loop()
    one, other = Account(), Account()
    for _ in range(20):
        loop.turn((one, DEAR), (other, ORDINARY))
    for _ in range(50):
        loop.turn((one, DEAR))
    assert loop.budget.next_work_at() > loop.now - 1e-3
    loop.now += ACTIVE_SECONDS
    loop.turn(rested=True)
    while loop.budget.next_work_at() < math.inf:
        loop.turn()
    assert loop.taken[one] == 70


def test_one_turn_of_a_lone_dear_connection_ends_in_time_for_others() -> None:
    loop = Loop()
    alone = Account()
    for _ in range(10):
        loop.turn((alone, DEAR))
    began = loop.now
    loop.turn(*[(alone, DEAR)] * 100)
    assert loop.now - began < TURN_SECONDS + 2 * DEAR
    assert loop.budget.next_work_at() <= loop.now, "the rest follows at once"


def test_time_which_other_processes_had_makes_no_connection_dear() -> None:
    loop = Loop()
    generator = random.Random(1)
    one, other = Account(), Account()
    for _ in range(5000):
        loop.budget.begin_turn(loop.now, rested=False)
        for account in (one, other):
            watched = account.watched
            if watched:
                loop.budget.begin()
            pause = 10e-3 if generator.random() < 0.2 else 0.0
            loop.now += ORDINARY + pause
            loop.stolen += pause
            (loop.budget.charge if watched else loop.budget.note)(account, 1, 1200)
        assert not one.is_expensive
        assert not other.is_expensive


def test_the_first_datagrams_after_a_pause_may_be_slow() -> None:
    loop = Loop()
    account, other = Account(), Account()
    for _ in range(200):
        loop.turn((account, 5 * ORDINARY), (other, ORDINARY))
        for _ in range(4):
            loop.turn((account, ORDINARY), (other, ORDINARY))
        assert not account.watched


def test_on_a_slow_machine_what_is_ordinary_costs_more() -> None:
    slow = 4
    loop = Loop(slow=slow)
    honest, other, attacker = Account(), Account(), Account()
    for _ in range(200):
        loop.turn((honest, slow * ORDINARY), (other, slow * ORDINARY), (attacker, slow * DEAR))
        assert not honest.watched
    assert attacker.is_expensive


def test_dear_packets_among_cheap_ones_count_with_their_average() -> None:
    loop = Loop()
    attacker, honest = Account(), Account()
    for _ in range(200):
        loop.turn((attacker, DEAR), (attacker, ORDINARY), (attacker, ORDINARY), (honest, ORDINARY))
    assert attacker.is_expensive


def test_a_connection_which_has_become_ordinary_is_served_in_order_and_at_once() -> None:
    loop = Loop(4 << 20)
    account, other = Account(), Account()
    while not account.is_expensive:
        loop.turn((account, DEAR), (other, ORDINARY))
    for _ in range(2000):
        loop.turn(*[(account, ORDINARY)] * 3, (other, ORDINARY))
    assert not account.is_expensive
    assert account.watched == 0
    assert loop.budget.next_work_at() == math.inf
    assert loop.budget.dropped == 0


def test_large_packets_of_much_data_are_ordinary() -> None:
    loop = Loop()
    account = Account()
    for _ in range(100):
        loop.budget.begin_turn(loop.now, rested=False)
        loop.now += 150e-6
        loop.budget.note(account, 1, 65_507)
        assert not account.watched


def test_what_waits_is_bounded_for_one_connection_and_for_all() -> None:
    capacity = 64 * 1024
    loop = Loop(capacity)
    accounts = [Account() for _ in range(20)]
    budget = loop.budget
    for account in accounts:
        kept = 0
        while budget.hold(account, (account, DEAR), 1200):
            kept += 1
        assert kept <= capacity // HELD_PART // (1200 + OVERHEAD)
    assert budget._held_bytes <= capacity
    assert budget.dropped == len(accounts)
    for account in accounts:
        budget.forget(account)
    assert budget._held_bytes == 0
    assert budget.next_work_at() == math.inf


def test_dear_work_is_taken_in_small_portions() -> None:
    loop = Loop()
    account = Account()
    assert loop.budget.portion(account) > 1000
    loop.budget.begin_turn(loop.now, rested=False)
    loop.now += 64 * 100e-6
    loop.budget.note(account, 64, 64 * 1200)
    assert account.watched == WATCHED
    assert loop.budget.portion(account) == 2
    assert DEAR_EXCESS < TURN_SECONDS
