"""Connection IDs: rules for each side to issue, use and retire them (RFC 9000 section 5.1)."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic import events
from phoenix_trio.quic.established.connection_ids import ACTIVE_LIMIT, LocalIds, PeerIds
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.errors import (
    CONNECTION_ID_LIMIT_ERROR,
    PROTOCOL_VIOLATION,
    TransportError,
)
from tests.support import examples

FIRST = b"first-id"


def token(cid: bytes) -> bytes:
    return (cid * 2)[:16]


def local(limit: int = ACTIVE_LIMIT) -> tuple[LocalIds, list[events.Event]]:
    queue: list[events.Event] = []
    ids = LocalIds(FIRST, token, queue)
    ids.set_limit(limit)
    return ids, queue


def announce(ids: LocalIds, room: int = 1200) -> list[tuple[int, int, bytes, bytes]]:
    """The NEW_CONNECTION_ID frames sent now: number, retire prior to, ID, token."""
    parts: list[bytes] = []
    left = ids.fill(parts, room, [])
    assert left == room - sum(map(len, parts))
    found = [frames.parse_new_connection_id(part, 0) for part in parts]
    assert all(end == len(part) for (*_, end), part in zip(found, parts, strict=True))
    return [each[:4] for each in found]


@pytest.mark.parametrize("limit", [2, 5, 8, 100])
def test_as_many_are_issued_as_the_peer_keeps_and_no_more_than_eight(limit: int) -> None:
    ids, queue = local(limit)
    announced = announce(ids)
    assert [number for number, *_ in announced] == list(range(1, min(limit, 8)))
    assert all(reset == token(cid) for _, _, cid, reset in announced)
    assert queue == [events.ConnectionIdIssued(cid) for _, _, cid, _ in announced]
    assert not announce(ids)


def test_those_which_do_not_fit_wait_for_the_next_packet() -> None:
    ids, _ = local(4)
    assert len(announce(ids, room=60)) == 1
    assert ids.has_pending
    assert len(announce(ids)) == 2


def test_a_lost_announcement_is_repeated() -> None:
    ids, _ = local(3)
    before = announce(ids)
    ids.on_lost(2)
    assert announce(ids) == before[1:]


def test_a_retired_one_is_replaced() -> None:
    ids, queue = local(3)
    issued = announce(ids)
    ids.retire(1, FIRST, now=0.0)
    assert queue[-1] == events.ConnectionIdRetired(issued[0][2])
    assert [number for number, *_ in announce(ids)] == [3]
    ids.retire(1, FIRST, now=0.0)  # a repetition
    assert not announce(ids)


def test_retiring_what_was_never_issued_is_a_violation() -> None:
    ids, _ = local(3)
    with pytest.raises(TransportError, match="never issued") as caught:
        ids.retire(1, FIRST, now=0.0)  # not announced yet
    assert caught.value.code == PROTOCOL_VIOLATION
    announce(ids)
    with pytest.raises(TransportError, match="never issued"):
        ids.retire(3, FIRST, now=0.0)


def test_retiring_the_one_in_use_is_a_violation() -> None:
    ids, _ = local(3)
    with pytest.raises(TransportError, match="to which the packet was sent"):
        ids.retire(0, FIRST, now=0.0)


def test_replacements_are_limited_in_time() -> None:
    ids, _ = local(8)
    now, replaced = 0.0, 0
    for _ in range(1000):
        for number, *_ in announce(ids):
            ids.retire(number, FIRST, now)
            replaced += 1
    assert replaced < 100
    assert ids.replace_at < math.inf
    now = ids.replace_at
    ids.replace(now)
    assert announce(ids)


def peer_with(count: int) -> PeerIds:
    ids = PeerIds(b"peer-000")
    for number in range(1, count):
        ids.take(number, 0, b"peer-%03d" % number, bytes(15) + bytes([number]))
    return ids


def retirements(ids: PeerIds) -> list[int]:
    parts: list[bytes] = []
    ids.fill(parts, 1200, [])
    return [frames.parse_retire_connection_id(part, 0)[0] for part in parts]


def test_a_change_retires_the_present_one() -> None:
    ids = peer_with(3)
    assert ids.change()
    assert ids.current.cid == b"peer-001"
    assert retirements(ids) == [0]
    assert ids.change()
    assert not ids.change(), "none is left"
    assert ids.current.cid == b"peer-002"


def test_retire_prior_to_moves_to_a_newer_one() -> None:
    ids = peer_with(4)
    ids.take(4, 3, b"peer-004", bytes(16))
    assert ids.current.number == 3
    assert sorted(retirements(ids)) == [0, 1, 2]
    assert [each.number for each in ids.available] == [4]


def test_one_which_comes_below_retire_prior_to_is_retired_at_once() -> None:
    """RFC 9000 section 19.15."""
    ids = peer_with(1)
    ids.take(5, 5, b"peer-005", bytes(16))
    retirements(ids)
    ids.take(3, 0, b"peer-003", bytes(16))
    assert retirements(ids) == [3]
    assert ids.current.number == 5
    assert not ids.available


def test_repetitions_change_nothing() -> None:
    ids = peer_with(3)
    ids.take(2, 0, b"peer-002", bytes(15) + b"\2")
    assert [each.number for each in ids.available] == [1, 2]
    ids.change()
    ids.take(1, 0, b"peer-001", bytes(15) + b"\1")
    assert [each.number for each in ids.available] == [2]


def test_more_than_this_side_keeps_are_refused() -> None:
    ids = peer_with(ACTIVE_LIMIT)
    with pytest.raises(TransportError) as caught:
        ids.take(ACTIVE_LIMIT, 0, b"one-more", bytes(16))
    assert caught.value.code == CONNECTION_ID_LIMIT_ERROR


def test_those_reserved_for_paths_count_and_can_be_taken_back() -> None:
    ids = peer_with(ACTIVE_LIMIT)
    reserved = ids.reserve()
    assert reserved is not None
    with pytest.raises(TransportError):
        ids.take(ACTIVE_LIMIT, 0, b"one-more", bytes(16))
    ids.retire_reserved(reserved.number)
    assert retirements(ids) == [reserved.number]
    other = ids.reserve()
    assert other is not None
    ids.use_reserved(other.number)
    assert ids.current is other
    assert retirements(ids) == [0]


def test_a_peer_which_retires_without_end_is_refused() -> None:
    ids = PeerIds(b"peer-000")
    with pytest.raises(TransportError) as caught:
        for number in range(1, 1000):
            ids.take(number, number, b"peer-%03d" % number, bytes(16))
    assert caught.value.code == CONNECTION_ID_LIMIT_ERROR
    assert len(ids.retiring) < 100


def test_reset_tokens_are_those_of_all_in_use() -> None:
    ids = peer_with(3)
    ids.set_first_token(b"t" * 16)
    assert ids.tokens_changed
    assert ids.reset_tokens() == {b"t" * 16, bytes(15) + b"\1", bytes(15) + b"\2"}
    ids.change()
    assert ids.reset_tokens() == {bytes(15) + b"\1", bytes(15) + b"\2"}


@given(st.integers(0, 1 << 30), st.lists(st.sampled_from("cmlrw"), max_size=60))
@examples(60)
def test_both_sides_always_agree_on_usable_ones(seed: int, program: list[str]) -> None:
    """Frames are lost and reordered; the peer still knows each ID that a side uses."""
    chance = random.Random(seed)
    ids, _ = local()
    peer = PeerIds(FIRST)
    in_flight: list[tuple[str, Any]] = []
    now = 0.0
    for step in [*program, *"mwmwmw"]:
        now += 1.0
        if now >= ids.replace_at:
            ids.replace(now)
        if step == "c":
            peer.change()
        elif step in "mw":
            parts: list[bytes] = []
            ids.fill(parts, 1200, [])
            in_flight += [("new", frames.parse_new_connection_id(part, 0)[:4]) for part in parts]
            in_flight += [("retire", number) for number in retirements(peer)]
            chance.shuffle(in_flight)
        count = len(in_flight) if step == "w" else len(in_flight) // 2
        for _ in range(count):
            kind, what = in_flight.pop()
            is_lost = step == "l"
            if kind == "new":
                if is_lost:
                    ids.on_lost(what[0])
                else:
                    peer.take(*what)
            elif is_lost:
                peer.on_lost(what)
            else:
                ids.retire(what, peer.current.cid, now)
        known = {each.cid for each in ids.all}
        assert peer.current.cid in known
        assert all(each.cid in known for each in peer.available)
        assert len(ids.all) <= ACTIVE_LIMIT
    assert len(ids.all) == ACTIVE_LIMIT
