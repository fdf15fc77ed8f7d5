"""Whole handshakes in memory: two of ours, with all that a network does to them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from aioquic import tls as aioquic_tls
from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.host import APPLICATION, EARLY
from phoenix_trio.quic.handshake.packets import HANDSHAKE, INITIAL, parse_long
from phoenix_trio.quic.handshake.settings import HandshakeSettings
from phoenix_trio.quic.handshake.tls import ClientTLS, SessionStore
from phoenix_trio.quic.handshake.tls_context import PhoenixTLSContext
from phoenix_trio.quic.handshake.tls_link import TlsLink
from phoenix_trio.quic.wire.protection import VERSION_1, VERSION_2
from tests.support import authority_pem, client_pem, client_tls, examples, server_tls

from .pair import (
    CLIENT,
    RETRY_CID,
    SERVER,
    Owner,
    Pair,
    local_parameters,
    long_server_tls,
    make_client,
    make_server,
    reset_token,
)


def assert_same_secrets(pair: Pair, level: int = APPLICATION) -> None:
    client, server = pair.client, pair.server
    assert server is not None
    assert client.keys[level, True] == server.keys[level, False]
    if level == APPLICATION:
        assert client.keys[level, False] == server.keys[level, True]


def packet_kinds(data: bytes) -> list[int]:
    """The types of the packets with long headers in a datagram; -1: a short one."""
    kinds, at = [], 0
    while at < len(data) and data[at]:
        header = parse_long(data, at) if data[at] & 0x80 else None
        kinds.append(-1 if header is None else header.kind)
        at = len(data) if header is None else header.end
    return kinds


# ------------------------------------------------------------------ plain handshakes


def test_both_sides_export_the_same_secrets() -> None:
    pair = Pair().connect()
    assert pair.server is not None
    assert_same_secrets(pair)
    assert pair.client.completed == pair.server.completed == ("test/1", False, False)
    assert pair.client.handshake.version == VERSION_1
    assert pair.client.handshake.peer_cid == pair.server.handshake.host_cid
    assert pair.server.handshake.peer_cid == pair.client.handshake.host_cid
    assert pair.server.handshake.came_from_one_address


def test_keys_and_parameters_come_before_completion() -> None:
    pair = Pair().connect()
    assert pair.server is not None
    assert [each for each in pair.client.log if each[0] in ("parameters", "keys", "complete")] == [
        ("parameters", False),
        ("keys", APPLICATION, False),
        ("keys", APPLICATION, True),
        ("complete",),
    ]
    assert [each for each in pair.server.log if each[0] in ("parameters", "keys", "complete")] == [
        ("parameters", False),
        ("keys", APPLICATION, True),
        ("keys", APPLICATION, False),
        ("complete",),
    ]


def test_each_side_learns_the_parameters_of_the_other() -> None:
    pair = Pair(
        client_parameters=local_parameters(max_data=1, max_streams_uni=2, idle_timeout=3.0),
        server_parameters=local_parameters(max_stream_data=4, max_udp_payload_size=1300),
    ).connect()
    assert pair.server is not None
    ((client, _),) = pair.server.parameters
    assert (client.max_data, client.max_streams_uni, client.max_idle_timeout) == (1, 2, 3.0)
    assert client.stateless_reset_token == b""
    ((server, _),) = pair.client.parameters
    assert server.max_stream_data_bidi_local == server.max_stream_data_uni == 4
    assert server.max_udp_payload_size == 1300
    assert server.max_ack_delay == 0.025
    assert server.stateless_reset_token == reset_token(pair.server.handshake.host_cid)


def test_a_handshake_takes_one_round_trip_and_few_datagrams() -> None:
    pair = Pair(delay=0.05).connect()
    assert pair.server is not None
    assert pair.now == pytest.approx(0.2)  # (a fourth one brings HANDSHAKE_DONE)
    assert len(pair.datagrams) <= 5
    assert pair.client.rtt.smoothed == pytest.approx(0.1, rel=0.1)
    assert pair.server.rtt.smoothed == pytest.approx(0.1, rel=0.1)
    for side in pair.sides:
        assert side.control.bytes_in_flight == 0
        assert side.handshake.packets_lost == side.handshake.probe_timeouts == 0


def test_datagrams_with_initial_packets_are_full() -> None:
    """RFC 9000 section 14.1."""
    pair = Pair().connect()
    for sender, data in pair.datagrams:
        if INITIAL in packet_kinds(data) and sender.is_client:
            assert len(data) == 1200


def test_the_idle_timer_hears_of_every_packet() -> None:
    pair = Pair().connect()
    assert pair.server is not None
    for side in pair.sides:
        assert side.receipts
        assert side.eliciting_sent


def test_client_certificates() -> None:
    certificate, key = client_pem()
    server = server_tls(client_ca=authority_pem())
    pair = Pair(
        client=make_client(client_tls(certificate=certificate, private_key=key)),
        server=partial(make_server, tls=server),
    ).connect()
    assert pair.server is not None
    assert pair.client.handshake.client_certificate_requested
    assert pair.server.handshake.peer_certificate is not None
    assert pair.client.handshake.peer_certificate is not None
    assert_same_secrets(pair)


def test_without_a_client_certificate_the_server_refuses() -> None:
    server = server_tls(client_ca=authority_pem())
    pair = Pair(server=partial(make_server, tls=server))
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    assert pair.server is not None
    code = 0x100 + aioquic_tls.AlertDescription.certificate_required
    assert pair.server.fault is not None
    assert pair.server.fault[0] == code
    assert pair.server.handshake.failure is not None


@pytest.mark.parametrize("versions", [(VERSION_1,), (VERSION_2,), (VERSION_2, VERSION_1)])
def test_versions(versions: tuple[int, ...]) -> None:
    client = make_client()
    client.versions = versions

    pair = Pair(client=client).connect()
    assert_same_secrets(pair)
    assert {side.handshake.version for side in pair.sides} == {versions[0]}
    assert pair.client.keys[APPLICATION, True][2] == versions[0]


def test_a_server_may_change_to_a_compatible_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9368 section 2.3; ours takes the client's order, others prefer version 2."""
    choose = TlsLink._choose_version

    def prefer_version_2(self: TlsLink, available: tuple[int, ...]) -> None:
        choose(self, tuple(reversed(available)))

    monkeypatch.setattr(TlsLink, "_choose_version", prefer_version_2)
    pair = Pair().connect()
    assert {side.handshake.version for side in pair.sides} == {VERSION_2}
    assert_same_secrets(pair)
    assert pair.client.keys[APPLICATION, True][2] == VERSION_2


def test_version_negotiation() -> None:
    """RFC 9000 section 6.2: the client begins again with a version which the server has."""
    client = make_client()
    client.versions = (VERSION_2, VERSION_1)

    def server(admit: Admit) -> HandshakeSettings:
        settings = make_server(admit)
        settings.versions = (VERSION_1,)
        return settings

    pair = Pair(client=client, server=server)
    pair.client.handshake.start(SERVER, 0.0)
    ((hello, _),) = pair.client.handshake.transmit(0.0)
    own, original = pair.client.handshake.host_cid, pair.client.handshake.peer_cid
    for source_cid, versions in (
        (original, [VERSION_1, VERSION_2]),  # with the version of the client
        (b"another", [VERSION_1]),  # of somebody who has not seen the hello
    ):
        pair.client.handshake.receive(
            encode_quic_version_negotiation(
                source_cid=source_cid, destination_cid=own, supported_versions=versions
            ),
            SERVER,
            0.0,
        )
        assert pair.client.handshake.version == VERSION_2
    answer = encode_quic_version_negotiation(
        source_cid=original, destination_cid=own, supported_versions=[0x1A2A3A4A, VERSION_1]
    )
    pair.client.handshake.receive(answer, SERVER, 0.0)
    pair.run(20.0)
    assert pair.client.handshake.is_confirmed
    assert ("retry",) in pair.client.log
    assert pair.client.handshake.version == VERSION_1
    assert parse_long(hello, 0).version == VERSION_2  # type: ignore[union-attr]
    assert_same_secrets(pair)


def test_no_common_version() -> None:
    pair = Pair()
    pair.client.handshake.start(SERVER, 0.0)
    handshake = pair.client.handshake
    handshake.receive(
        encode_quic_version_negotiation(
            source_cid=handshake.peer_cid,
            destination_cid=handshake.host_cid,
            supported_versions=[0x1A2A3A4A],
        ),
        SERVER,
        0.0,
    )
    assert pair.client.fault == (1, 0, "Could not find a common protocol version")


# ------------------------------------------------------------------ loss and reordering


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.booleans(), st.booleans())
@examples(40)
def test_handshakes_survive_loss(seed: int, loss: float, retries: bool, is_long: bool) -> None:
    generator = random.Random(seed)
    pair = Pair(
        retries=retries,
        drop=lambda sender, data: generator.random() < loss and pair.now < 30.0,
        delay=0.2 if is_long else 0.01,
    )
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(60.0)
    assert pair.server is not None
    assert pair.server.handshake.is_confirmed
    assert pair.client.handshake.is_complete
    assert_same_secrets(pair)
    assert pair.server.control.bytes_in_flight == 0


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("from_client", [True, False])
def test_one_lost_datagram_costs_one_probe_timeout(index: int, from_client: bool) -> None:
    count = -1

    def drop(sender: Owner, data: bytes) -> bool:
        nonlocal count
        if sender.is_client is not from_client or pair.lost or not data[0] & 0x80:
            return False
        count += 1
        return count == index

    pair = Pair(drop=drop)
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(1.0)
    assert pair.server is not None
    if not pair.lost:
        return
    assert pair.server.handshake.is_confirmed, "within a second"
    assert sum(side.handshake.probe_timeouts for side in pair.sides) <= 2


def test_a_probe_timeout_sends_two_datagrams_and_asks_the_owner_for_data_for_each() -> None:
    pair = Pair(drop=lambda sender, data: True)
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(0.15)
    assert len(pair.datagrams) == 1
    pair.run(0.1)
    assert len(pair.datagrams) == 3
    assert pair.client.log.count(("probe", False)) == 2, "for each, so that both repeat its data"
    assert pair.client.control.bytes_in_flight <= 2 * 1200


def test_probes_double_their_interval_up_to_two_seconds() -> None:
    pair = Pair(drop=lambda sender, data: True)
    pair.client.handshake.start(SERVER, 0.0)
    times = []
    for _ in range(8):
        before = len(pair.datagrams)
        while len(pair.datagrams) == before:
            pair.run(0.05)
        times.append(pair.now)
    intervals = [after - before for before, after in pairwise(times)]
    assert max(intervals) <= 2.1
    assert intervals[0] < intervals[1] < intervals[2]
    assert pair.client.handshake.probe_timeouts == 7


def test_packets_which_come_before_their_keys_wait_for_them() -> None:
    """RFC 9001 section 5.7: the server's flight in reversed order, and its first 1-RTT packet."""
    pair = Pair(server=partial(make_server, tls=long_server_tls()))
    client = pair.client
    server, flight = pair.first_flight()
    assert len(flight) == 2
    early = server.seals(b"\x01\0\0")
    client.handshake.receive(early, SERVER, 0.5, 1)
    for data in reversed(flight):
        client.handshake.receive(data, SERVER, 1.0)
    assert client.handshake.is_complete
    assert ("packet", APPLICATION, SERVER, 0.5, 1) in client.log
    assert client.opens(client.packets[0][1]) == b"\x01\0\0"


def test_a_server_keeps_application_data_which_overtakes_the_end_of_the_handshake() -> None:
    pair = Pair()
    client = pair.client
    server, finished = pair.last_flight()
    request = client.seals(b"\x01\0\0")
    path = server.paths.all[0]
    before = path.bytes_received
    server.handshake.receive(request, CLIENT, 0.2)
    assert not server.packets
    assert path.bytes_received == before + len(request)
    for data in finished:
        server.handshake.receive(data, CLIENT, 0.3)
    assert server.handshake.is_confirmed
    assert server.packets == [(APPLICATION, request)]
    assert path.bytes_received == before + len(request) + sum(map(len, finished))


def test_application_data_behind_a_handshake_packet_is_handed_on() -> None:
    """RFC 9000 section 12.2: coalesced packets."""
    pair = Pair()
    client = pair.client
    server, finished = pair.last_flight()
    datagram = finished[-1].rstrip(b"\0") + client.seals(b"\x01\0\0")
    server.handshake.receive(datagram, CLIENT, 0.2, 2)
    assert server.log[-2:] == [("complete",), ("packet", APPLICATION, CLIENT, 0.2, 2)]


def test_a_repeated_hello_is_answered_at_once_and_not_for_ever() -> None:
    """RFC 9002 section 6.2.3."""
    pair = Pair(server=partial(make_server, tls=long_server_tls()))
    client = pair.client
    server, flight = pair.first_flight()
    assert len(flight) == 2
    answers = 0
    now = 0.0
    for number in range(40):
        now = 0.01 + number * 5.0
        client.handshake._state.repeat()
        for data, _ in client.handshake.transmit(now):
            server.handshake.receive(data, CLIENT, now)
        answers += any(
            HANDSHAKE in packet_kinds(data) for data, _ in server.handshake.transmit(now)
        )
    assert answers == 8


def test_a_client_repeats_its_hello_once_when_the_answer_seems_to_be_lost() -> None:
    pair = Pair(server=partial(make_server, tls=long_server_tls()))
    client = pair.client
    _, flight = pair.first_flight()
    handshake_only = flight[1]
    assert packet_kinds(handshake_only) == [HANDSHAKE]
    client.handshake.receive(handshake_only, SERVER, 0.1)
    assert len(client.handshake.transmit(0.1)) == 1
    client.handshake.receive(handshake_only, SERVER, 0.1)
    assert client.handshake.transmit(0.1) == []


# ------------------------------------------------------------------ Retry


def test_retry_keeps_the_hello() -> None:
    """RFC 9000 section 17.2.5.3: the same cryptographic handshake message."""
    key_log = io.StringIO()
    pair = Pair(retries=True, client=make_client(key_log=key_log)).connect()
    assert pair.server is not None
    assert_same_secrets(pair)
    assert pair.client.log[:3] == [
        ("peer_cid", RETRY_CID),
        ("retry",),
        ("peer_cid", pair.server.handshake.host_cid),
    ]
    assert pair.now == pytest.approx(0.06)
    assert len({line.split()[1] for line in key_log.getvalue().splitlines()}) == 1


def test_only_one_retry_is_followed_and_only_with_a_valid_tag() -> None:
    pair = Pair()
    client = pair.client.handshake
    client.start(SERVER, 0.0)
    client.transmit(0.0)
    original = client.peer_cid

    def retry(source_cid: bytes, original_cid: bytes, token: bytes = b"token") -> bytes:
        return encode_quic_retry(
            version=VERSION_1,
            source_cid=source_cid,
            destination_cid=client.host_cid,
            original_destination_cid=original_cid,
            retry_token=token,
        )

    for forged in (
        retry(b"source 1", b"something else"),
        retry(b"source 1", original)[:-1] + b"x",
        retry(original, original),
        retry(b"source 1", original, b""),
    ):
        client.receive(forged, SERVER, 0.0)
        assert client.peer_cid == original
        assert client.transmit(0.0) == []
    client.receive(retry(b"source 1", original), SERVER, 0.0)
    assert client.peer_cid == b"source 1"
    ((data, _),) = client.transmit(0.0)
    header = parse_long(data, 0)
    assert header is not None
    assert (header.token, header.destination_cid) == (b"token", b"source 1")
    client.receive(retry(b"source 2", b"source 1"), SERVER, 0.0)
    assert client.peer_cid == b"source 1"


def test_a_client_checks_that_the_server_knows_of_the_retry() -> None:
    """RFC 9000 section 7.3."""

    def server(admit: Admit) -> HandshakeSettings:
        return make_server(Admit(admit.destination_cid, admit.original_destination_cid, None))

    pair = Pair(retries=True, server=server)
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    assert pair.client.fault is not None
    assert pair.client.fault[0] == 0x08


# ------------------------------------------------------------------ tickets and 0-RTT


def with_ticket(
    *, early_data: bool = True, **changes: Any
) -> tuple[ClientTLS, Callable[[Admit], HandshakeSettings]]:
    """The settings of a client with a session ticket, and of its server."""
    store = SessionStore()
    tls = client_tls(session_store=store, early_data=early_data, **changes)
    server = partial(make_server, tls=server_tls(early_data=early_data))
    pair = Pair(client=make_client(tls), server=server).connect()
    assert pair.server is not None
    assert pair.server.crypto
    pair.client.handshake.take_tls_message(pair.server.crypto)  # (as CRYPTO frames would)
    assert len(store) == 1
    return tls, server


@pytest.mark.parametrize("early_data", [True, False])
@pytest.mark.parametrize("retries", [True, False])
def test_resumption(early_data: bool, retries: bool) -> None:
    tls, server = with_ticket(early_data=early_data)
    pair = Pair(client=make_client(tls), server=server, retries=retries)
    client = pair.client
    client.handshake.start(SERVER, 0.0)
    assert client.handshake.can_send_early_data is early_data
    if early_data:
        assert client.log == [("parameters", True), ("keys", EARLY, True)]
    pair.run(20.0)
    assert client.completed == ("test/1", early_data, True)
    assert pair.server is not None
    assert pair.server.completed == ("test/1", early_data, True)
    assert not client.handshake.can_send_early_data
    assert_same_secrets(pair)
    if early_data:
        assert_same_secrets(pair, EARLY)
        assert pair.server.log.index(("keys", EARLY, False)) < pair.server.log.index(("complete",))
    assert ("early_data_refused",) not in client.log


@pytest.mark.parametrize("is_reordered", [False, True])
def test_early_data_is_handed_on(is_reordered: bool) -> None:
    tls, server = with_ticket()
    pair = Pair(client=make_client(tls, alpn=("test/1",)), server=server)
    client = pair.client
    client.handshake.start(SERVER, 0.0)
    ((hello, _),) = client.handshake.transmit(0.0)
    early = client.seals(b"\x01\0\0", EARLY)
    owner = pair.admit(hello)
    assert owner is not None
    for data in (early, hello) if is_reordered else (hello, early):
        owner.handshake.receive(data, CLIENT, 0.0)
    assert owner.packets == [(EARLY, early)]
    assert owner.handshake.alpn == "test/1"
    assert not owner.handshake.is_complete


def test_refused_early_data_is_reported_before_completion() -> None:
    tls, _ = with_ticket()
    pair = Pair(client=make_client(tls)).connect()  # a server that does not know the ticket
    assert pair.client.completed == ("test/1", False, False)
    log = [each[0] for each in pair.client.log]
    assert log.index("early_data_refused") < log.index("complete")
    assert pair.server is not None
    assert (EARLY, False) not in pair.server.keys


def test_a_server_must_not_take_back_its_limit_of_datagrams() -> None:
    """RFC 9221 section 3."""
    tls, server = with_ticket()
    pair = Pair(
        client=make_client(tls),
        server=server,
        server_parameters=local_parameters(max_datagram_frame_size=100),
    ).connect()
    # (Ours refuses the early data in that case.)
    assert pair.client.completed == ("test/1", False, True)


# ------------------------------------------------------------------ HelloRetryRequest


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("retries", [True, False])
def test_a_server_asks_for_a_group_which_it_knows(
    monkeypatch: pytest.MonkeyPatch, loss: float, retries: bool
) -> None:
    know_only(monkeypatch, aioquic_tls.Group.SECP256R1)
    generator = random.Random(1)
    pair = Pair(
        client=make_client(client_tls(groups=("x25519", "x448", "secp256r1"))),
        retries=retries,
        drop=lambda sender, data: generator.random() < loss and pair.now < 30.0,
    )
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(60.0)
    assert pair.server is not None
    assert pair.server.handshake.is_confirmed
    assert_same_secrets(pair)
    context = pair.client.handshake.tls_context
    assert context is not None
    assert context.was_retried


def test_a_server_without_a_common_group_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    know_only(monkeypatch, aioquic_tls.Group.X448)
    pair = Pair()
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    assert pair.server is not None
    assert pair.server.fault is not None
    assert pair.server.fault[0] == 0x100 + aioquic_tls.AlertDescription.handshake_failure
    assert pair.client.peer_close is not None


def test_asking_for_a_group_refuses_early_data_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tls, server = with_ticket(groups=("x25519", "secp256r1"))
    know_only(monkeypatch, aioquic_tls.Group.SECP256R1)
    pair = Pair(client=make_client(tls), server=server)
    client = pair.client
    client.handshake.start(SERVER, 0.0)
    assert client.handshake.can_send_early_data
    ((hello, _),) = client.handshake.transmit(0.0)
    owner = pair.admit(hello)
    assert owner is not None
    owner.handshake.receive(hello, CLIENT, 0.0)
    for data, _ in owner.handshake.transmit(0.0):
        client.handshake.receive(data, SERVER, 0.1)
    assert not client.handshake.can_send_early_data
    pair.run(5.0)
    assert client.handshake.is_confirmed
    assert client.completed == ("test/1", False, True), "resumed, but without early data"
    assert client.log.count(("early_data_refused",)) == 1
    assert (EARLY, False) not in owner.keys
    assert_same_secrets(pair)


def know_only(monkeypatch: pytest.MonkeyPatch, group: aioquic_tls.Group) -> None:
    """Make servers which know this group alone."""
    adopt = HandshakeSettings.adopt

    def adopt_with_one_group(
        self: HandshakeSettings, context: aioquic_tls.Context
    ) -> PhoenixTLSContext:
        adopted = adopt(self, context)
        if not self.is_client:
            adopted._supported_groups = [group]
        return adopted

    monkeypatch.setattr(HandshakeSettings, "adopt", adopt_with_one_group)


# ------------------------------------------------------------------ logs


def test_the_key_log_has_the_secrets_of_both_sides() -> None:
    logs = io.StringIO(), io.StringIO()
    pair = Pair(
        client=make_client(key_log=logs[0]),
        server=lambda admit: make_server(admit, key_log=logs[1]),
    ).connect()
    lines = [sorted(log.getvalue().splitlines()) for log in logs]
    assert lines[0] == lines[1]
    assert {line.split()[0] for line in lines[0]} == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    }
    secret = pair.client.keys[APPLICATION, True][1].hex()
    (line,) = [line for line in lines[0] if line.startswith("CLIENT_TRAFFIC_SECRET_0")]
    assert line.endswith(f" {secret}")
