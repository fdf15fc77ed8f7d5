"""Network paths: validation, moves, the preferred address (RFC 9000 sections 8.2 and 9)."""

from __future__ import annotations

import math

import pytest

from phoenix_trio.quic.established.connection_ids import PeerIds
from phoenix_trio.quic.established.parameters import PreferredAddress
from phoenix_trio.quic.established.paths import Path, Paths

HOME = ("10.0.0.1", 1000)


def moved(number: int) -> tuple[str, int]:
    return ("10.0.1.1", number)


def server() -> tuple[Paths, PeerIds]:
    paths, ids = Paths(is_client=False), PeerIds(b"peer-000")
    for number in range(1, 8):
        ids.take(number, 0, b"peer-%03d" % number, bytes(16))
    paths.begin(HOME, is_validated=True)
    return paths, ids


def test_an_address_which_is_not_validated_gets_three_times_what_came_from_it() -> None:
    path = Path(HOME)
    assert not path.can_send(1)
    path.bytes_received += 100
    assert path.can_send(300)
    assert not path.can_send(301)
    path.bytes_sent += 200
    assert path.room() == 100
    path.is_validated = True
    assert path.room() == math.inf


def test_a_move_is_validated_by_the_answer_to_a_challenge() -> None:
    paths, ids = server()
    path = paths.find(moved(1))
    paths.add(path, ids)
    assert not paths.promote(path, ids)
    assert paths.all[0] is path
    assert paths.pending()
    assert path.needs_challenge()
    challenge = path.new_challenge()
    assert not path.needs_challenge()
    assert not paths.take_response(b"another!", ids)
    assert not path.is_validated
    assert paths.take_response(challenge, ids)
    assert path.is_validated
    assert not paths.pending()


def test_a_lost_challenge_is_sent_again_with_new_data() -> None:
    paths, ids = server()
    path = paths.find(moved(1))
    paths.add(path, ids)
    paths.promote(path, ids)
    first = path.new_challenge()
    paths.on_challenge_lost()
    assert path.needs_challenge()
    second = path.new_challenge()
    assert first != second
    assert paths.take_response(first, ids), "either answer will do"


def test_validation_which_fails_goes_back_to_the_old_path() -> None:
    paths, ids = server()
    path = paths.find(moved(1))
    paths.add(path, ids)
    paths.promote(path, ids)
    path.validation_deadline = 5.0
    assert paths.deadline() == 5.0
    assert paths.abandon()
    assert paths.all[0].addr == HOME
    assert path not in paths.all
    assert paths.deadline() == math.inf


def test_without_a_validated_path_nothing_is_left() -> None:
    paths = Paths(is_client=False)
    paths.begin(HOME, is_validated=False)
    assert not paths.abandon()


def test_a_path_with_an_id_of_its_own_uses_it_once_it_is_active() -> None:
    paths, ids = server()
    path = paths.find(moved(1))
    paths.add(path, ids)
    reserved = ids.reserve()
    assert reserved is not None
    path.reserved_id = reserved.number
    assert paths.promote(path, ids)
    assert ids.current is reserved
    assert path.reserved_id == -1


def test_paths_are_bounded_and_the_active_one_stays() -> None:
    paths, ids = server()
    for number in range(100):
        paths.add(paths.find(moved(number)), ids)
        assert len(paths.all) <= 8
        assert paths.all[0].addr == HOME


def test_an_evicted_path_gives_its_connection_id_back() -> None:
    paths, ids = server()
    first = paths.find(moved(0))
    paths.add(first, ids)
    reserved = ids.reserve()
    assert reserved is not None
    first.reserved_id = reserved.number
    for number in range(1, 8):
        paths.add(paths.find(moved(number)), ids)
    assert first not in paths.all
    assert ids.retiring == [reserved.number]


def test_only_the_newest_challenges_of_a_peer_are_kept() -> None:
    path = Path(HOME)
    for number in range(1000):
        path.take_challenge(number.to_bytes(8, "big"))
    assert [int.from_bytes(each, "big") for each in path.challenges] == [996, 997, 998, 999]


PREFERRED = PreferredAddress(("10.9.9.9", 443), ("2001:db8::9", 443), b"preferrd", bytes(16))


def client(address: tuple[object, ...]) -> tuple[Paths, PeerIds]:
    paths, ids = Paths(is_client=True), PeerIds(b"peer-000")
    paths.begin(address, is_validated=True)  # type: ignore[arg-type]
    ids.add_preferred(PREFERRED.connection_id, PREFERRED.reset_token)
    paths.preferred = PREFERRED
    return paths, ids


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        (("10.0.0.1", 4433), ("10.9.9.9", 443)),
        (("2001:db8::1", 4433, 0, 0), ("2001:db8::9", 443, 0, 0)),
        (("::ffff:10.0.0.1", 4433, 0, 0), ("::ffff:10.9.9.9", 443, 0, 0)),
    ],
)
def test_a_client_moves_to_the_preferred_address_once_it_answers(
    active: tuple[object, ...], expected: tuple[object, ...]
) -> None:
    paths, ids = client(active)
    paths.try_preferred(ids)
    assert paths.all[1].addr == expected
    assert paths.all[0].addr == active, "not before it has answered"
    challenge = paths.all[1].new_challenge()
    assert paths.take_response(challenge, ids)
    assert paths.all[0].addr == expected
    assert ids.current.cid == b"preferrd"
    assert ids.retiring == [0]


@pytest.mark.parametrize(
    "ipv4", [("10.9.9.9", 0), ("224.0.0.1", 443), ("127.0.0.1", 443), ("255.255.255.255", 443)]
)
def test_a_preferred_address_of_use_for_forgery_is_ignored(ipv4: tuple[str, int]) -> None:
    paths, ids = client(HOME)
    paths.preferred = PreferredAddress(ipv4, None, b"preferrd", bytes(16))
    paths.try_preferred(ids)
    assert len(paths.all) == 1
    assert paths.preferred is None


def client_with_ids() -> tuple[Paths, PeerIds]:
    paths, ids = Paths(is_client=True), PeerIds(b"peer-000")
    for number in range(1, 4):
        ids.take(number, 0, b"peer-%03d" % number, bytes(16))
    paths.begin(HOME, is_validated=True)
    return paths, ids


def test_a_candidate_is_reported_when_it_is_validated_and_used_when_told_so() -> None:
    paths, ids = client_with_ids()
    assert paths.begin_probe(moved(1), ids, 10.0, 0.2)
    assert not paths.move(moved(1), ids), "it is not validated yet"
    challenge = paths.all[1].new_challenge()
    assert not paths.take_response(b"another!", ids)
    assert not paths.probed
    assert not paths.take_response(challenge, ids)
    assert paths.probed == [(moved(1), True)]
    assert paths.all[0].addr == HOME
    paths.repeat_challenges(100.0, ids)
    assert paths.probed == [(moved(1), True)], "it is not given up any more"
    assert paths.move(moved(1), ids)
    assert [path.addr for path in paths.all] == [moved(1), HOME]
    assert ids.current.number == 1
    assert ids.retiring == [0]
    assert not paths.move(moved(2), ids)


def test_a_candidate_which_does_not_answer_is_given_up_with_its_connection_id() -> None:
    paths, ids = client_with_ids()
    assert paths.begin_probe(moved(1), ids, 10.0, 0.2)
    times = []
    now = 10.0
    while paths.all[1:]:
        if paths.all[1].needs_challenge():
            times.append(now)
            paths.all[1].new_challenge()
            paths.expect_response(paths.all[1], now, 0.2)
        now = paths.repeat_at
        paths.repeat_challenges(now, ids)
    assert times == pytest.approx([10.0, 10.2, 10.6, 11.4, 13.0])
    assert now == pytest.approx(16.2)
    assert paths.probed == [(moved(1), False)]
    assert ids.retiring == [1]
    assert not ids.reserved


def test_a_candidate_which_has_lost_its_connection_id_is_given_up_in_time() -> None:
    paths, ids = client_with_ids()
    assert paths.begin_probe(moved(1), ids, 10.0, 0.2)
    ids.retire_reserved(paths.all[1].reserved_id)
    paths.all[1].reserved_id = -1
    assert paths.repeat_at == pytest.approx(16.2)
    paths.repeat_challenges(16.3, ids)
    assert paths.probed == [(moved(1), False)]
    assert paths.repeat_at == math.inf


def test_without_a_connection_id_nothing_is_probed_and_nothing_moves() -> None:
    paths, ids = client_with_ids()
    for number in range(1, 4):
        assert paths.begin_probe(moved(number), ids, 10.0, 0.2)
    assert not paths.begin_probe(moved(4), ids, 10.0, 0.2)
    assert len(paths.all) == 4
    path = paths.all[1]
    paths.take_response(path.new_challenge(), ids)
    ids.retire_reserved(path.reserved_id)
    path.reserved_id = -1
    assert not paths.move(moved(1), ids)
    assert paths.all[0].addr == HOME


def test_a_path_which_is_forgotten_gives_its_connection_id_back() -> None:
    paths, ids = client_with_ids()
    assert paths.begin_probe(moved(1), ids, 10.0, 0.2)
    paths.forget(HOME, ids)
    assert paths.all[0].addr == HOME, "the active one stays"
    paths.forget(moved(1), ids)
    assert [path.addr for path in paths.all] == [HOME]
    assert ids.retiring == [1]
