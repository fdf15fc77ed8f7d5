"""The search for the path MTU, and connections whose client changes its address."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.established import path_search
from phoenix_trio.quic.established.parameters import PreferredAddress
from phoenix_trio.quic.established.paths import Path
from phoenix_trio.quic.path_address import Address, PathAddress

from .pair import ADDRESSES, CIDS, Pair
from .test_exchange import assert_all_done, content, losing, write

ANOTHER_PORT: Address = ("10.0.0.2", 6000)
ANOTHER_HOST: Address = ("10.9.9.9", 5000)


# ------------------------------------------------------------------ path MTU


@pytest.mark.parametrize(
    ("ceiling", "limit", "found"),
    [
        (None, 65_507, 1452),
        (1472, 65_507, 1472),
        (65_507, 65_507, 65_507),
        (9000, 1500, 1472),
        (65_507, 1400, 1392),
        (1452, 1200, 1200),
        (5000, 4700, 4052),
        (1300, 1260, 1232),
    ],
)
def test_the_largest_packet_is_found(ceiling: int | None, limit: int, found: int) -> None:
    pair = Pair(TransportConfig(), ceiling=ceiling, limit=limit)
    write(pair.client, pair.open(), bytes(1000), end=False)
    pair.run(30)
    s = pair.client.state
    assert s.max_datagram_size == found
    assert s.max_datagram_size == s.recovery.pacer.max_datagram_size
    assert path_search.max_datagram_payload(s) == s.max_datagram_size - 44
    assert s.recovery.packets_lost < 30
    assert s.control.ssthresh > 1 << 40, "lost probes are no congestion"


def test_the_configuration_and_the_peer_bound_the_search() -> None:
    pair = Pair(TransportConfig(max_udp_payload_size=1300), ceiling=9000)
    pair.run(5)
    assert pair.client.state.max_datagram_size == 1300
    pair = Pair(ceiling=9000)
    pair.client.state.peer_max_udp_payload = 1250
    path_search.begin_search(pair.client.state)
    pair.run(5)
    assert pair.client.state.max_datagram_size == 1250
    assert pair.server.state.max_datagram_size == 9000


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_a_path_which_shrinks_in_mid_transfer(seed: int) -> None:
    pair = Pair(ceiling=9000)
    stream_id = pair.open()
    data = content(800_000, seed)
    write(pair.client, stream_id, data[:400_000], end=False)
    pair.run(3)
    assert pair.client.state.max_datagram_size == 9000
    pair.limit = random.Random(seed).randrange(1200, 5000)
    write(pair.client, stream_id, data[400_000:])
    pair.run(120)
    assert pair.server.data(stream_id) == data
    assert_all_done(pair)
    assert 1200 <= pair.client.state.max_datagram_size <= pair.limit


def test_a_path_which_grows_is_noticed_after_a_while() -> None:
    pair = Pair(TransportConfig(max_idle_timeout=10_000), ceiling=9000, limit=1500)
    pair.run(30)
    assert pair.client.state.max_datagram_size == 1472
    pair.limit = 9000
    pair.run(590)
    write(pair.client, pair.open(), b"x")
    pair.run(30)
    assert pair.client.state.max_datagram_size == 9000


def test_datagrams_which_do_not_fit_any_more_are_dropped() -> None:
    pair = Pair(ceiling=9000)
    pair.run(5)
    pair.drop = lambda data: True
    s = pair.client.state
    s.datagrams.add(bytes(5000))
    s.datagrams.add(b"small")
    path_search.set_datagram_size(s, 1200)
    pair.drop = lambda data: False
    pair.run(5)
    assert [each.data for each in pair.server.of_type(events.DatagramReceived)] == [b"small"]
    assert s.datagrams.dropped == 1


def test_there_is_no_largest_datagram_where_none_are_taken() -> None:
    pair = Pair(TransportConfig(enable_datagrams=False))
    assert path_search.max_datagram_payload(pair.client.state) is None
    pair = Pair(server_config=TransportConfig(enable_datagrams=False))
    assert path_search.max_datagram_payload(pair.client.state) is None
    assert path_search.max_datagram_payload(pair.server.state) is None


# ------------------------------------------------------------------ migration


@pytest.mark.parametrize("address", [ANOTHER_PORT, ANOTHER_HOST])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_client_moves_in_mid_transfer(address: Address, rate: float) -> None:
    pair = Pair(drop=losing(rate, 4))
    stream_id = pair.open()
    data = content(500_000)
    write(pair.client, stream_id, data)
    pair.run(0.1)
    pair.client.address = address
    pair.run(60)
    assert pair.server.data(stream_id) == data
    write(pair.server, stream_id, data)
    pair.run(60)
    assert pair.client.data(stream_id) == data
    assert_all_done(pair)
    path = pair.server.state.paths.all[0]
    assert path.addr == address
    assert path.is_validated


def test_the_server_moves_a_download_to_the_new_address() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"please")
    pair.run(1)
    data = content(900_000)
    write(pair.server, stream_id, data)
    pair.run(0.05)
    pair.client.address = ANOTHER_HOST
    write(pair.client, pair.open(), b"I have moved")
    pair.run(60)
    assert pair.client.data(stream_id) == data
    assert_all_done(pair)


def test_a_new_port_keeps_what_is_known_of_the_path_and_a_new_host_does_not() -> None:
    for address, is_known in ((ANOTHER_PORT, True), (ANOTHER_HOST, False)):
        pair = Pair(ceiling=9000)
        stream_id = pair.open()
        write(pair.client, stream_id, b"x")
        pair.run(2)
        for _ in range(5):
            write(pair.server, stream_id, bytes(400_000), end=False)
            pair.run(3)
        s = pair.server.state
        window = s.control.congestion_window
        assert window > 50_000
        assert s.max_datagram_size == 9000
        search = s.mtu
        pair.client.address = address
        write(pair.client, pair.open(), b"moved")
        pair.run(0.2)
        assert s.paths.all[0].addr == address
        assert (s.control.congestion_window >= window) is is_known
        assert (s.mtu is search) is is_known
        pair.run(5)
        assert s.max_datagram_size == 9000, "found again"


def test_no_more_than_three_times_as_much_goes_to_an_address_before_it_is_validated() -> None:
    """RFC 9000 section 9.3.1."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"please", end=False)
    pair.run(1)
    write(pair.server, stream_id, content(400_000), end=False)
    pair.run(0.05)
    (packet,) = _packets_of_client(pair, stream_id)
    pair.wire.clear()
    # A packet of the client comes from another address, where no host answers.
    forged: Address = ("66.6.6.6", 666)
    before = len(pair.sent)
    pair.deliver(pair.server, [packet], forged)
    pair.flush(pair.server)
    pair.run(0.5)
    sent = zip(pair.sent[before:], pair.destinations[before:], strict=True)
    to_forged = [len(data) for (_, _, data), to in sent if to == forged]
    assert 0 < sum(to_forged) <= 3 * len(packet)


def _packets_of_client(pair: Pair, stream_id: int) -> list[bytes]:
    """One packet of the client that has not arrived."""
    before = len(pair.sent)
    write(pair.client, stream_id, b"more", end=False)
    pair.flush(pair.client)
    return [data for _, half, data in pair.sent[before:] if half is pair.client][-1:]


def test_a_connection_comes_back_from_an_address_which_was_forged() -> None:
    """RFC 9000 section 9.3.2: an attacker has sent the client's packets from elsewhere."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    stream_id = pair.open()
    write(pair.client, stream_id, b"please", end=False)
    pair.run(1)
    data = content(300_000)
    write(pair.server, stream_id, data, end=False)
    pair.run(0.03)
    (packet,) = _packets_of_client(pair, stream_id)
    pair.wire.clear()
    pair.deliver(pair.server, [packet], ("66.6.6.6", 666))
    assert pair.server.state.paths.all[0].addr == ("66.6.6.6", 666)
    pair.run(60)
    assert pair.server.state.paths.all[0].addr == ADDRESSES[True]
    assert pair.client.data(stream_id) == data
    assert_all_done(pair)


def test_a_connection_without_any_validated_path_is_over() -> None:
    pair = Pair()
    s = pair.server.state
    stream_id = pair.open()
    (packet,) = _packets_of_client(pair, stream_id)
    s.paths.all[0].is_validated = False
    s.paths.all[0].challenge_sent = True
    pair.deliver(pair.server, [packet], ANOTHER_HOST)
    pair.client.address = ("192.0.2.1", 1)  # it receives nothing
    pair.flush(pair.server)
    deadline = s.paths.deadline()
    assert deadline < 10
    assert not pair.server.half.on_timer(deadline)


def test_packets_of_an_unknown_server_are_discarded() -> None:
    """RFC 9000 section 9: only clients migrate."""
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"x")
    pair.run(1)
    before = len(pair.sent)
    write(pair.server, stream_id, b"secret")
    pair.flush(pair.server)
    (packet,) = [data for _, half, data in pair.sent[before:] if half is pair.server]
    pair.deliver(pair.client, [packet], ("10.0.0.99", 4433))
    assert pair.client.data(stream_id) == b""
    pair.deliver(pair.client, [packet], ADDRESSES[False])
    assert pair.client.data(stream_id) == b"secret"


def test_a_client_which_uses_another_connection_id_gets_another_one() -> None:
    """RFC 9000 section 9.5."""
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(2)
    client, server = pair.client.state, pair.server.state
    assert server.peer_ids.current.cid == CIDS[True]
    assert client.peer_ids.change()
    assert client.peer_ids.current.cid != CIDS[False]
    pair.client.address = ANOTHER_HOST
    write(pair.client, stream_id, b"y", end=False)
    pair.run(2)
    assert pair.server.data(stream_id) == b"xy"
    assert server.peer_ids.current.cid != CIDS[True]
    assert server.local_ids.current == client.peer_ids.current.cid
    assert_all_done(pair)


def test_a_packet_to_a_retired_connection_id_is_not_read() -> None:
    pair = Pair()
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(2)
    before = len(pair.sent)
    write(pair.client, stream_id, b"old", end=False)
    pair.flush(pair.client)
    (old,) = [data for _, half, data in pair.sent[before:] if half is pair.client]
    pair.wire.clear()
    assert pair.client.state.peer_ids.change()
    pair.run(3)
    assert pair.server.state.local_ids.number_of(CIDS[False]) < 0
    assert pair.server.data(stream_id) == b"xold", "repeated with the new ID"
    received = pair.server.state.received.largest
    pair.deliver(pair.server, [old], ADDRESSES[True])
    assert pair.server.state.received.largest == received


def test_two_local_addresses_are_two_paths() -> None:
    """The server's host has several addresses, and the client changes to another one."""
    pair = Pair()
    remote = ADDRESSES[True]
    first, second = PathAddress((*remote, "10.0.0.1")), PathAddress((*remote, "10.0.0.7"))
    pair.server.state.paths.begin(first, is_validated=True)
    pair.server.half.state.known_path = pair.server.half.state.mtu_address = first
    pair.client.address = first
    stream_id = pair.open()
    write(pair.client, stream_id, b"x", end=False)
    pair.run(2)
    cid = pair.server.state.peer_ids.current.cid
    pair.client.address = second
    write(pair.client, stream_id, b"y", end=False)
    pair.run(2)
    server = pair.server.state
    assert server.paths.all[0].addr == second
    assert server.paths.all[0].is_validated
    assert server.peer_ids.current.cid != cid, "RFC 9000 section 9.5"


PREFERRED = ("10.0.0.1", 9999)


def pair_with_a_preferred_address() -> tuple[Pair, Path]:
    """An idle pair, and the path that the client is about to probe."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    write(pair.client, pair.open(), b"x")
    pair.run(2)
    client = pair.client.state
    client.paths.preferred = PreferredAddress(PREFERRED, None, b"unused--", bytes(16))
    client.paths.try_preferred(client.peer_ids)
    return pair, client.paths.find(PREFERRED)


def challenges(pair: Pair) -> list[float]:
    """When datagrams were sent to the preferred address."""
    return [
        at for (at, _, _), to in zip(pair.sent, pair.destinations, strict=True) if to == PREFERRED
    ]


def test_a_challenge_on_another_path_is_repeated_a_few_times_if_nothing_answers_it() -> None:
    """RFC 9000 section 8.2.1."""
    pair, path = pair_with_a_preferred_address()
    began = pair.now
    pair.run(60)
    times = [at - began for at in challenges(pair)]
    assert times == pytest.approx([0.0, 0.2, 0.6, 1.4, 3.0])
    assert len({bytes(each) for each in path.own_challenges}) == 5, "any may be answered"
    assert pair.client.state.paths.repeat_at == math.inf
    assert pair.client.state.paths.all[0].addr == ADDRESSES[False]


def test_a_repeated_challenge_which_is_answered_is_the_last_one() -> None:
    pair, path = pair_with_a_preferred_address()
    pair.run(0.1)
    pair.server.address = PREFERRED  # from now on, datagrams to this address arrive
    pair.run(10)
    assert len(challenges(pair)) >= 2
    assert path.is_validated
    assert pair.client.state.paths.all[0] is path
    before = len(pair.sent)
    pair.run(30)
    assert len(pair.sent) == before


def test_no_challenge_is_repeated_where_the_anti_amplification_limit_has_no_room() -> None:
    """RFC 9000 section 8.1: on a server's path named by a forged packet."""
    pair = Pair(TransportConfig(max_udp_payload_size=1200))
    pair.run(2)
    server = pair.server.state
    path = server.paths.find(ANOTHER_HOST)
    path.bytes_received = 400
    server.paths.add(path, server.peer_ids)
    pair.run(60)
    assert path.own_challenges
    assert path.bytes_sent <= 1200
    assert server.paths.repeat_at == math.inf


def test_the_preferred_address_of_a_server_is_probed_and_then_used() -> None:
    """RFC 9000 section 9.6.1; a probe moves nothing, and its answer goes to its source."""
    pair, path = pair_with_a_preferred_address()
    client, server = pair.client.state, pair.server.state
    before = len(pair.sent)
    pair.flush(pair.client)
    (probe,) = [data for _, half, data in pair.sent[before:] if half is pair.client]
    assert len(probe) == 1200
    pair.deliver(pair.server, [probe], ANOTHER_HOST)
    assert server.paths.all[0].addr == ADDRESSES[True]
    assert server.paths.knows(ANOTHER_HOST)
    before = len(pair.sent)
    pair.flush(pair.server)
    assert ANOTHER_HOST in pair.destinations[before:]
    answer = next(data for _, half, data in pair.sent[before:] if half is pair.server)
    pair.deliver(pair.client, [answer], PREFERRED)
    assert path.is_validated
    assert client.paths.all[0] is path
