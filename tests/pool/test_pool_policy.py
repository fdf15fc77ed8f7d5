"""The pool's decisions without any I/O: each rule by example, then all of them in any order."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from phoenix_trio.pool.config import PoolConfig
from phoenix_trio.pool.policy import (
    ConnectionState,
    Decision,
    PoolState,
    Reason,
    TargetState,
    Waiter,
    Wish,
    decide,
)
from tests.support import examples

# ------------------------------------------------------------------ by example


def connection(number: int, **facts: Any) -> ConnectionState:
    facts.setdefault("available_streams", 10)
    facts.setdefault("most_streams", 10)
    facts.setdefault("idle_since", 99.0)
    return ConnectionState(number, **facts)


def waiters(*tickets: int, since: float = 100.0) -> tuple[Waiter, ...]:
    return tuple(Waiter(ticket, since) for ticket in tickets)


def ask(*targets: TargetState, now: float = 100.0, **settings: Any) -> Decision:
    return decide(PoolState(now, targets), PoolConfig(**settings))


def test_nothing_to_do_is_nothing_decided() -> None:
    assert ask() == Decision((), (), (), (), frozenset(), (), math.inf)


def test_a_target_without_a_connection_is_dialled_once_for_all_its_waiters() -> None:
    assert ask(TargetState("a", waiters=waiters(1, 2, 3))).dials == ("a",)
    decision = ask(TargetState("a", waiters=waiters(1, 2, 3), is_dialling=True))
    assert decision.dials == ()
    assert decision.grants == ()


def test_leases_share_a_connection_while_it_has_streams_to_spare() -> None:
    decision = ask(TargetState("a", [connection(1)], waiters(1, 2, 3)))
    assert decision.grants == (("a", 1),) * 3
    assert decision.dials == ()


def test_a_lease_which_has_not_opened_its_stream_yet_counts() -> None:
    target = TargetState("a", [connection(1, leases=3, reserved=9)], waiters(1, 2, 3))
    decision = ask(target)
    assert decision.grants == (("a", 1),)
    assert decision.dials == ("a",)


def test_the_connection_with_the_fewest_leases_takes_the_next_one() -> None:
    target = TargetState("a", [connection(1, leases=2), connection(2)], waiters(1, 2, 3, 4))
    assert [number for _, number in ask(target).grants] == [2, 2, 1, 2]


def test_an_uncongested_connection_is_preferred_even_with_more_leases() -> None:
    target = TargetState(
        "a", [connection(1, is_congested=True), connection(2, leases=5)], waiters(1)
    )
    decision = ask(target)
    assert decision.grants == (("a", 2),)
    assert decision.dials == ()


def test_congestion_makes_nobody_wait_but_opens_a_connection_for_those_who_come_later() -> None:
    target = TargetState("a", [connection(1, is_congested=True)], waiters(1))
    decision = ask(target)
    assert decision.grants == (("a", 1),)
    assert decision.dials == ("a",)
    others = TargetState("b", [connection(2)])
    decision = ask(target, others, max_connections=2)
    assert decision.grants == (("a", 1),)
    assert decision.dials == decision.closures == (), "nobody waits for it"


def test_a_peer_which_never_permitted_streams_is_not_judged_by_stream_credit() -> None:
    target = TargetState(
        "a", [connection(1, available_streams=0, most_streams=0, leases=50)], waiters(1, 2)
    )
    decision = ask(target)
    assert decision.grants == (("a", 1),) * 2
    assert decision.dials == ()


def test_no_connection_has_more_leases_than_its_limit() -> None:
    target = TargetState("a", [connection(1, leases=2)], waiters(1, 2))
    decision = ask(target, max_leases_per_connection=3, max_connections_per_target=1)
    assert decision.grants == (("a", 1),)
    assert decision.dials == ()


def test_where_no_further_connection_may_be_dialled_a_lease_takes_the_place_of_one_that_ended() -> (
    None
):
    target = TargetState("a", [connection(1, leases=9, available_streams=0)], waiters(1, 2))
    assert ask(target).dials == ("a",)
    assert ask(target).grants == ()
    decision = ask(target, max_connections_per_target=1)
    assert decision.grants == (("a", 1),)
    assert decision.dials == ()


def test_a_dial_which_takes_long_is_not_waited_for_beyond_the_callers_patience() -> None:
    saturated = connection(1, leases=8, available_streams=0)
    target = TargetState("a", [saturated], waiters(1, since=99.5), is_dialling=True)
    decision = ask(target, patience=1.0)
    assert decision.grants == ()
    assert decision.wake_at == 100.5
    assert ask(target, patience=1.0, now=100.5).grants == (("a", 1),)


def test_a_draining_connection_takes_no_lease_and_goes_after_its_last_one() -> None:
    target = TargetState("a", [connection(1, is_draining=True, leases=1)], waiters(1))
    decision = ask(target)
    assert decision.grants == decision.closures == ()
    assert decision.dials == ("a",)
    target = TargetState("a", [connection(1, is_draining=True)])
    assert ask(target).closures == ((1, Reason.DRAINED),)


def test_an_idle_connection_is_closed_at_its_time_and_not_before() -> None:
    target = TargetState("a", [connection(1, idle_since=95.0), connection(2, leases=1)])
    decision = ask(target, idle_timeout=10.0)
    assert decision.closures == ()
    assert decision.wake_at == 105.0
    decision = ask(target, idle_timeout=10.0, now=105.0)
    assert decision.closures == ((1, Reason.IDLE),)
    assert decision.wake_at == math.inf


def test_an_idle_connection_is_closed_before_the_transport_would_lose_it() -> None:
    target = TargetState("a", [connection(1, idle_since=95.0, idle_limit=9.0)])
    decision = ask(target, idle_timeout=20.0)
    assert decision.closures == ()
    assert decision.wake_at == 101.0
    assert ask(target, idle_timeout=20.0, now=101.0).closures == ((1, Reason.IDLE),)
    decision = ask(target, idle_timeout=50.0, health_check_interval=20.0, now=101.0)
    assert (decision.closures, decision.checks) == ((), (1,)), "a check keeps it alive"


def test_connections_which_are_kept_warm_do_not_go_for_being_idle() -> None:
    connections = [connection(number, idle_since=number) for number in range(1, 5)]
    target = TargetState("a", connections, warm=3)
    assert ask(target, idle_timeout=10.0).closures == ((1, Reason.IDLE),)
    other = TargetState("b", waiters=waiters(1))
    assert ask(attrs.evolve(target, warm=4), other, max_connections=4).closures == ()


def test_a_missing_warm_connection_is_dialled_after_its_back_off() -> None:
    target = TargetState("a", [connection(1)], warm=2, may_grow_at=103.0)
    decision = ask(target)
    assert decision.dials == ()
    assert decision.wake_at == 103.0
    assert ask(target, now=103.0).dials == ("a",)


def test_a_target_is_not_dialled_before_its_back_off_is_over() -> None:
    target = TargetState("a", waiters=waiters(1), may_dial_at=101.0)
    assert ask(target).dials == ()
    assert ask(target).wake_at == 101.0
    assert ask(target, now=101.0).dials == ("a",)


def test_at_the_limit_the_longest_idle_connection_of_another_target_goes() -> None:
    idle = TargetState("a", [connection(1, idle_since=98.0), connection(2, idle_since=97.0)])
    busy = TargetState("b", [connection(3, leases=1)])
    wants = TargetState("c", waiters=waiters(1))
    decision = ask(idle, busy, wants, max_connections=3)
    assert decision.closures == ((2, Reason.EVICTED),)
    assert decision.dials == (), "there is no slot before the connection has gone"


def test_no_second_connection_goes_while_the_first_one_is_being_closed() -> None:
    closing = connection(1, is_closing=True, closing_since=99.9)
    idle = TargetState("a", [closing, connection(2)])
    wants = TargetState("c", waiters=waiters(1))
    decision = ask(idle, wants, max_connections=2, patience=1.0)
    assert decision.closures == ()
    assert decision.wake_at == pytest.approx(100.9)
    late = ask(idle, wants, max_connections=2, patience=1.0, now=decision.wake_at)
    assert late.closures == ((2, Reason.EVICTED),), "closing the first one takes too long"


def test_slots_go_to_whoever_has_waited_longest() -> None:
    first, second = TargetState("a", waiters=waiters(7)), TargetState("b", waiters=waiters(3, 9))
    assert ask(first, second, max_connections=1).dials == ("b",)


def test_a_dial_which_nobody_waits_for_any_more_gives_way() -> None:
    unwanted = TargetState("a", is_dialling=True)
    wants = TargetState("b", waiters=waiters(1))
    assert ask(unwanted, wants, max_connections=1).abandoned == ("a",)
    assert ask(unwanted, wants, max_connections=2).abandoned == ()
    going = attrs.evolve(unwanted, is_abandoned=True)
    assert ask(going, wants, max_connections=1).abandoned == ()
    warm = attrs.evolve(unwanted, warm=1)
    assert ask(warm, wants, max_connections=1).abandoned == ()


def test_after_its_patience_a_target_without_a_connection_gets_a_busy_one_of_another() -> None:
    busy = TargetState("a", [connection(1, leases=3), connection(2, leases=1)])
    wants = TargetState("b", waiters=waiters(1, since=99.5))
    decision = ask(busy, wants, max_connections=2, patience=1.0)
    assert decision.yielding == frozenset()
    assert decision.wake_at == 100.5
    decision = ask(busy, wants, max_connections=2, patience=1.0, now=100.5)
    assert decision.yielding == {(2, 1)}


def test_a_connection_which_yields_takes_no_lease_and_stays_the_chosen_one() -> None:
    one, two = connection(1), connection(2, leases=4, yields_to=1)
    busy = TargetState("a", [attrs.evolve(one, leases=1), two], waiters(5))
    wants = TargetState("b", waiters=waiters(1, since=90.0))
    decision = ask(busy, wants, max_connections=2)
    assert decision.yielding == {(2, 1)}
    assert decision.grants == (("a", 1),)
    done = TargetState("a", [attrs.evolve(one, leases=1), attrs.evolve(two, leases=0)])
    assert ask(done, wants, max_connections=2).closures == ((2, Reason.EVICTED),)


def test_when_nobody_needs_it_any_more_a_yielding_connection_serves_its_own_waiters_at_once() -> (
    None
):
    busy = TargetState("a", [connection(1, leases=1, yields_to=3)], waiters(5))
    decision = ask(busy, max_connections=1)
    assert decision.yielding == frozenset()
    assert decision.grants == (("a", 1),)


def test_idle_connections_are_checked_at_their_interval() -> None:
    target = TargetState(
        "a",
        [
            connection(1, idle_since=90.0),
            connection(2, idle_since=90.0, checked_at=97.0),
            connection(3, idle_since=90.0, is_checking=True),
            connection(4, idle_since=90.0, leases=1),
        ],
    )
    decision = ask(target, health_check_interval=5.0, idle_timeout=50.0)
    assert decision.checks == (1,)
    assert decision.wake_at == 102.0


# ------------------------------------------------------------------ in any order


@attrs.define
class Line:
    """The test's own model of a connection."""

    id: int
    target: str
    capacity: int
    leases: int = 0
    used: int = 0
    """Open streams."""
    is_congested: bool = False
    phase: str = "open"
    idle_since: float = 0.0
    closing_since: float = 0.0
    yields_to: int | None = None

    @property
    def is_usable(self) -> bool:
        return self.phase == "open"

    @property
    def available(self) -> int:
        return max(0, self.capacity - self.used)

    @property
    def reserved(self) -> int:
        return max(0, self.leases - self.used)

    def picture(self) -> ConnectionState:
        return ConnectionState(
            self.id,
            leases=self.leases,
            reserved=self.reserved,
            available_streams=self.available,
            most_streams=self.capacity,
            is_congested=self.is_congested,
            is_closing=self.phase == "closing",
            closing_since=self.closing_since,
            is_draining=self.phase == "draining",
            yields_to=self.yields_to,
            idle_since=self.idle_since,
        )


@attrs.define(eq=False)
class Party:
    """The test's own model of a call that needs several connections at once."""

    wanted: int
    waiter: Waiter | None
    """``None``: served."""
    count: int = 0
    """How many connections the target must have for that."""
    held: list[Line] = attrs.field(factory=list)


@attrs.define
class Place:
    """The test's own model of a target."""

    name: str
    waiters: list[Waiter] = attrs.field(factory=list)
    parties: list[Party] = attrs.field(factory=list)
    is_dialling: bool = False
    is_abandoned: bool = False
    may_dial_at: float = -math.inf
    may_grow_at: float = -math.inf
    warm: int = 0

    @property
    def wishes(self) -> list[Wish]:
        return [Wish(each.waiter, each.count) for each in self.parties if each.waiter is not None]


class PolicyMachine(RuleBasedStateMachine):
    """A pool that carries out the decisions, in a world with random events."""

    TARGETS = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.config = PoolConfig()
        self.places = {name: Place(name) for name in self.TARGETS}
        self.lines: dict[int, Line] = {}
        self.next_id = 0
        self.next_ticket = 0
        self.capacity = 2
        self.served: dict[str, list[int]] = {name: [] for name in self.TARGETS}
        self.wake_at = math.inf

    @initialize(
        total=st.integers(1, 4),
        per_target=st.integers(1, 3),
        leases=st.sampled_from([None, 1, 2]),
        capacity=st.integers(0, 3),
        patience=st.sampled_from([0.0, 1.0]),
    )
    def configure(
        self, total: int, per_target: int, leases: int | None, capacity: int, patience: float
    ) -> None:
        self.config = PoolConfig(
            max_connections=total,
            max_connections_per_target=per_target,
            max_leases_per_connection=leases,
            patience=patience,
            idle_timeout=20.0,
        )
        self.capacity = capacity

    # -- the pool's half

    def picture(self, *, wants_more: str | None = None) -> PoolState:
        return PoolState(
            self.now,
            [
                TargetState(
                    place.name,
                    [line.picture() for line in self.lines.values() if line.target == place.name],
                    tuple(place.waiters),
                    is_dialling=place.is_dialling,
                    is_abandoned=place.is_abandoned,
                    may_dial_at=place.may_dial_at,
                    may_grow_at=place.may_grow_at,
                    warm=place.warm,
                    wishes=place.wishes,
                    wants_more=place.name == wants_more,
                )
                for place in self.places.values()
            ],
        )

    def settle(self, *, wants_more: str | None = None) -> None:
        picture = self.picture(wants_more=wants_more)
        decision = decide(picture, self.config)
        assert decision == decide(picture, self.config)
        self.apply(decision)
        self.wake_at = decision.wake_at
        assert decision.wake_at > self.now, "a time in the past would make the pool spin"
        again = decide(self.picture(), self.config)
        assert again == attrs.evolve(
            decision, grants=(), dials=(), closures=(), abandoned=(), wake_at=again.wake_at
        ), f"a second look finds more to do: {picture}"
        if any(
            self.gather(place, party) for place in self.places.values() for party in place.parties
        ):
            self.settle()

    def gather(self, place: Place, party: Party) -> bool:
        """Serve a call that needs several connections, or note how many that takes; whether
        there was a change.
        """
        if party.waiter is None:
            return False
        usable = [x for x in self.lines.values() if x.is_usable and x.target == place.name]
        found = [
            line
            for line in usable
            if line.leases < self.config.seats
            and (line.yields_to is None or party.waiter.ticket < line.yields_to)
        ]
        if len(found) < party.wanted:
            before = party.count
            party.count = min(party.wanted + len(usable) - len(found), self.config.per_target)
            return party.count != before
        party.held = sorted(found, key=lambda x: (x.yields_to is not None, x.leases, x.id))
        del party.held[party.wanted :]
        for line in party.held:
            line.leases += 1
        party.waiter = None
        return True

    def is_held(self, line: Line) -> int:
        """How many of its leases belong to calls that wanted several."""
        return sum(line in party.held for place in self.places.values() for party in place.parties)

    def end_lease(self, line: Line) -> None:
        line.leases -= 1
        if not line.leases:
            line.idle_since = self.now

    def apply(self, decision: Decision) -> None:
        for target, number in decision.grants:
            line, place = self.lines[number], self.places[str(target)]
            assert line.target == target
            assert line.is_usable
            ticket = place.waiters.pop(0).ticket
            later = dict(decision.yielding).get(number, math.inf)
            assert ticket < later or line.yields_to is None, "it yields to somebody who came before"
            self.served[place.name].append(ticket)
            line.leases += 1
            assert line.leases <= self.config.seats
        for line in self.lines.values():
            line.yields_to = dict(decision.yielding).get(line.id)
        for number, reason in decision.closures:
            line = self.lines[number]
            assert line.leases == 0, "a connection in use is never closed"
            assert line.phase == ("draining" if reason is Reason.DRAINED else "open")
            line.phase = "closing"
            line.closing_since = self.now
        for target in decision.abandoned:
            assert self.places[str(target)].is_dialling
            assert not self.places[str(target)].waiters
            self.places[str(target)].is_abandoned = True
        assert len(set(decision.dials)) == len(decision.dials)
        for target in decision.dials:
            place = self.places[str(target)]
            assert not place.is_dialling, "one dial at a time for a target"
            place.is_dialling = True

    # -- the world's half

    def draw_line(self, data: st.DataObject, *phases: str) -> Line:
        lines = [line for line in self.lines.values() if line.phase in phases]
        return data.draw(st.sampled_from(lines))

    dialling = precondition(lambda self: any(place.is_dialling for place in self.places.values()))

    def draw_dial(self, data: st.DataObject) -> Place:
        places = [place for place in self.places.values() if place.is_dialling]
        return data.draw(st.sampled_from(places))

    @rule(name=st.sampled_from(TARGETS), count=st.integers(1, 4))
    def ask(self, name: str, count: int) -> None:
        for _ in range(count):
            self.next_ticket += 1
            self.places[name].waiters.append(Waiter(self.next_ticket, self.now))
            self.settle()

    @rule(data=st.data())
    @precondition(lambda self: any(place.waiters for place in self.places.values()))
    def cancel(self, data: st.DataObject) -> None:
        places = [place for place in self.places.values() if place.waiters]
        place = data.draw(st.sampled_from(places))
        place.waiters.remove(data.draw(st.sampled_from(place.waiters)))
        self.settle()

    @rule(name=st.sampled_from(TARGETS), count=st.integers(1, 3))
    def ask_for_several(self, name: str, count: int) -> None:
        self.next_ticket += 1
        count = min(count, self.config.per_target)
        waiter = Waiter(self.next_ticket, self.now)
        self.places[name].parties.append(Party(count, waiter, count))
        self.settle()

    @rule(data=st.data())
    @precondition(lambda self: any(place.parties for place in self.places.values()))
    def leave_several(self, data: st.DataObject) -> None:
        """Whether they were served, or wait no longer."""
        places = [place for place in self.places.values() if place.parties]
        place = data.draw(st.sampled_from(places))
        self.end_party(place, place.parties[data.draw(st.integers(0, len(place.parties) - 1))])
        self.settle()

    def end_party(self, place: Place, party: Party) -> None:
        place.parties.remove(party)
        for line in party.held:
            self.end_lease(line)

    @rule(data=st.data(), capacity=st.sampled_from([None, 0, 5]))
    @dialling
    def connect(self, data: st.DataObject, capacity: int | None) -> None:
        self.connected(self.draw_dial(data), self.capacity if capacity is None else capacity)
        self.settle()

    def connected(self, place: Place, capacity: int) -> None:
        place.is_dialling = place.is_abandoned = False
        place.may_dial_at = place.may_grow_at = -math.inf
        self.next_id += 1
        self.lines[self.next_id] = Line(self.next_id, place.name, capacity, idle_since=self.now)

    @rule(data=st.data(), delay=st.sampled_from([0.0, 0.1, 5.0]))
    @dialling
    def refuse(self, data: st.DataObject, delay: float) -> None:
        place = self.draw_dial(data)
        place.is_dialling = False
        if not place.is_abandoned:
            place.may_dial_at = place.may_grow_at = self.now + delay
            if not any(
                line.is_usable and line.target == place.name for line in self.lines.values()
            ):
                place.waiters.clear()
            place.parties = [party for party in place.parties if party.waiter is None]
        place.is_abandoned = False
        self.settle()

    @rule(data=st.data())
    @precondition(lambda self: any(x.leases > self.is_held(x) for x in self.lines.values()))
    def release(self, data: st.DataObject) -> None:
        lines = [x for x in self.lines.values() if x.leases > self.is_held(x)]
        self.end_lease(data.draw(st.sampled_from(lines)))
        self.settle()

    @rule(data=st.data(), used=st.integers(0, 4), is_congested=st.booleans())
    @precondition(lambda self: any(line.is_usable for line in self.lines.values()))
    def change(self, data: st.DataObject, used: int, is_congested: bool) -> None:
        """Change open streams and congestion without telling the pool."""
        line = self.draw_line(data, "open")
        line.used, line.is_congested = used, is_congested
        self.settle(wants_more=line.target if is_congested else None)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.lines))
    def die(self, data: st.DataObject) -> None:
        del self.lines[self.draw_line(data, "open", "draining", "closing").id]
        self.settle()

    @rule(data=st.data())
    @precondition(lambda self: any(line.is_usable for line in self.lines.values()))
    def drain(self, data: st.DataObject) -> None:
        self.draw_line(data, "open").phase = "draining"
        self.settle()

    @rule(name=st.sampled_from(TARGETS), count=st.integers(0, 2))
    def keep_warm(self, name: str, count: int) -> None:
        others = sum(place.warm for place in self.places.values() if place.name != name)
        room = max(0, min(self.config.per_target, self.config.max_connections - others))
        self.places[name].warm = min(count, room)
        self.settle()

    @rule(seconds=st.sampled_from([0.05, 1.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.wake_at <= until:
            self.now = self.wake_at
            self.settle()
        self.now = until
        self.settle()

    # -- invariants

    @invariant()
    def limits_are_never_exceeded(self) -> None:
        dials = sum(place.is_dialling for place in self.places.values())
        assert len(self.lines) + dials <= self.config.max_connections
        for place in self.places.values():
            own = sum(line.target == place.name for line in self.lines.values())
            assert own + place.is_dialling <= self.config.max_connections_per_target

    @invariant()
    def leases_of_a_target_are_served_in_their_order(self) -> None:
        for name, tickets in self.served.items():
            assert tickets == sorted(tickets), name
            waiting = [waiter.ticket for waiter in self.places[name].waiters]
            assert waiting == sorted(waiting)
            assert not tickets or not waiting or tickets[-1] < waiting[0]

    @invariant()
    def whoever_has_several_connections_has_different_ones(self) -> None:
        for place in self.places.values():
            for party in place.parties:
                if party.waiter is None:
                    assert len({line.id for line in party.held}) == party.wanted

    @invariant()
    def nobody_waits_for_several_while_one_more_could_be_dialled(self) -> None:
        used = len(self.lines) + sum(place.is_dialling for place in self.places.values())
        for place in self.places.values():
            own = [line for line in self.lines.values() if line.target == place.name]
            if (
                any(wish.count > sum(x.is_usable for x in own) for wish in place.wishes)
                and not place.is_dialling
                and len(own) < self.config.per_target
                and used < self.config.max_connections
            ):
                assert place.may_grow_at > self.now, "a free slot, and nobody dials"
                assert self.wake_at <= place.may_grow_at

    @invariant()
    def nobody_waits_while_a_connection_could_serve_him(self) -> None:
        for place in self.places.values():
            if not place.waiters:
                continue
            own = [line for line in self.lines.values() if line.target == place.name]
            usable = [
                line
                for line in own
                if line.is_usable
                and (line.yields_to is None or place.waiters[0].ticket < line.yields_to)
            ]
            for line in usable:
                assert line.leases >= self.config.seats or (
                    line.available <= line.reserved and line.capacity > 0
                ), (place, line)
            if place.is_dialling:
                continue
            gate = place.may_grow_at if any(x.is_usable for x in own) else place.may_dial_at
            used = len(self.lines) + sum(place.is_dialling for place in self.places.values())
            if used < self.config.max_connections and len(own) < self.config.per_target:
                assert gate > self.now, "a free slot, and nobody dials"
                assert self.wake_at <= gate
            for line in usable:  # rule 4
                assert line.leases >= min(self.config.seats, max(1, line.capacity))

    @invariant()
    def what_is_idle_gives_way_to_who_has_waited_longest(self) -> None:
        if any(line.phase == "closing" for line in self.lines.values()) or any(
            place.is_abandoned for place in self.places.values()
        ):
            return
        for place in self.places.values():
            own = [line for line in self.lines.values() if line.target == place.name]
            usable_here = sum(line.is_usable for line in own)
            claims = [waiter.ticket for waiter in place.waiters[:1]] + [
                wish.waiter.ticket for wish in place.wishes if wish.count > usable_here
            ]
            if (
                not claims
                or place.is_dialling
                or len(own) >= self.config.per_target
                or (place.may_grow_at if any(x.is_usable for x in own) else place.may_dial_at)
                > self.now
            ):
                continue
            for other in self.places.values():
                usable = [x for x in self.lines.values() if x.target == other.name and x.is_usable]
                keeps = [x.count for x in other.wishes if x.waiter.ticket < min(claims)]
                if (
                    other is not place
                    and not other.waiters
                    and len(usable) > max(other.warm, *keeps, 0)
                ):
                    assert all(line.leases for line in usable), (place, other)

    def teardown(self) -> None:
        """Stop all random events: every waiter must be served in the end."""
        for place in self.places.values():
            place.warm = 0
        for line in self.lines.values():
            line.is_congested = False
        self.settle()
        for _ in range(10 * (self.next_ticket + 10)):
            if not any(place.waiters or place.wishes for place in self.places.values()):
                break
            for place in self.places.values():
                for party in list(place.parties):
                    if party.waiter is None:
                        self.end_party(place, party)
            for line in list(self.lines.values()):
                if line.phase == "closing":
                    del self.lines[line.id]
                line.used = 0
                if line.leases > self.is_held(line):
                    self.end_lease(line)
                self.settle()
            for place in self.places.values():
                if place.is_abandoned:
                    place.is_dialling = place.is_abandoned = False
                elif place.is_dialling:
                    self.connected(place, 2)
                self.settle()
            if self.wake_at < math.inf:
                self.now = self.wake_at
                self.settle()
        left = {
            place.name: [*place.waiters, *place.wishes]
            for place in self.places.values()
            if place.waiters or place.wishes
        }
        note(f"at the end: {self.lines}")
        assert not left, f"never served: {left}"


def test_in_any_order_limits_hold_and_no_waiter_is_lost() -> None:
    run_state_machine_as_test(PolicyMachine, settings=examples(300))
