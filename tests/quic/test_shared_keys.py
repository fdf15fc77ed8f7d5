"""Servers which share keys: tickets and tokens of one hold at the others."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from aioquic.tls import CipherSuite, ExtensionType, SessionTicket
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import SessionStore, TransportConfig
from phoenix_trio.quic.handshake.new_tokens import ReturnTokens
from phoenix_trio.quic.handshake.retry import AddressTokens, InvalidToken
from phoenix_trio.quic.handshake.sealed_tickets import open_ticket, seal_ticket
from phoenix_trio.quic.handshake.session_tickets import ticket_version, with_version
from phoenix_trio.quic.shared_keys import (
    ROTATION_PERIOD,
    KeyChain,
    SharedKeys,
    WorkerKeys,
    period_at,
)
from phoenix_trio.testing import SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    authority_pem,
    client_tls,
    examples,
    server_tls,
)

OLD, NEW, NEWER = (bytes([each]) * 32 for each in range(3))
HERE = ("192.0.2.7", 50_000)


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------ the keys


@given(st.binary(max_size=100))
@examples(20)
def test_the_first_key_seals_and_all_open(content: bytes) -> None:
    before, during, after = SharedKeys([OLD]), SharedKeys([NEW, OLD]), SharedKeys([NEW])
    assert during.open(b"x", before.seal(b"x", content)) == content
    assert after.open(b"x", during.seal(b"x", content)) == content
    assert after.open(b"x", before.seal(b"x", content)) is None


def test_each_purpose_has_a_key_of_its_own() -> None:
    keys = SharedKeys([OLD])
    assert keys.open(b"tickets", keys.seal(b"tokens", b"content")) is None


def test_replaced_keys_are_in_use_at_once() -> None:
    keys = SharedKeys([OLD])
    sealed = keys.seal(b"x", b"content")
    keys.replace([NEW, OLD])
    assert keys.open(b"x", sealed) == b"content"
    keys.replace([NEW])
    assert keys.open(b"x", sealed) is None


@pytest.mark.parametrize(
    ("given_keys", "error", "text"),
    [
        (OLD, TypeError, "must be a sequence of keys"),
        ("secret", TypeError, "must be a sequence of keys"),
        (["secret"], TypeError, "must hold bytes"),
        ([], ValueError, "1 to 4 keys, not 0"),
        ([OLD] * 5, ValueError, "1 to 4 keys, not 5"),
        ([OLD, bytes(31)], ValueError, "at least 32 bytes"),
    ],
)
def test_unfit_keys_are_refused(given_keys: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        server_tls(ticket_keys=given_keys)
    tls = server_tls(ticket_keys=[OLD])
    with pytest.raises(error, match=text):
        tls.reload(ticket_keys=given_keys)
    assert tls.shared_keys is not None
    assert tls.shared_keys.open(b"x", SharedKeys([OLD]).seal(b"x", b"")) == b"", "as it was"


def test_keys_cannot_be_put_into_a_server_which_began_without() -> None:
    with pytest.raises(ValueError, match="only where they were given before"):
        server_tls().reload(ticket_keys=[OLD])


def test_no_repr_shows_a_key() -> None:
    key = b"sixteen bytes, and sixteen bytes"
    tls = server_tls(ticket_keys=[key])
    assert "sixteen" not in f"{tls!r} {tls.shared_keys!r} {KeyChain(key, 3)!r}"


def test_workers_change_their_key_at_the_same_time_without_a_word() -> None:
    clock = Clock()
    chain = KeyChain.begin(clock.now)
    early = WorkerKeys(chain, clock)
    clock.now += ROTATION_PERIOD
    sealed = early.seal(b"x", b"content")
    late = WorkerKeys(chain.at(period_at(clock.now) - 1), clock)
    assert late.open(b"x", sealed) == b"content"
    clock.now += ROTATION_PERIOD
    assert late.open(b"x", sealed) == early.open(b"x", sealed) == b"content", "the one before"
    assert early.open(b"x", late.seal(b"x", b"new")) == b"new"
    clock.now += ROTATION_PERIOD
    assert late.open(b"x", sealed) is early.open(b"x", sealed) is None


def test_nothing_that_a_worker_holds_opens_what_was_sealed_long_ago() -> None:
    clock = Clock()
    first = KeyChain.begin(clock.now)
    later = first.at(first.period + 2)
    assert later.at(first.period) is later, "there is no way back"
    assert len({first.secret, first.at(first.period + 1).secret, later.secret}) == 3
    assert first.at(first.period + 1).at(first.period + 2) == later


# ------------------------------------------------------------------ tickets


def session(*, age: float = 0.0, secret: bytes = bytes(32), alpn: bytes = b"x") -> SessionTicket:
    issued = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
    ticket = SessionTicket(
        age_add=7,
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        not_valid_before=issued,
        not_valid_after=issued + dt.timedelta(seconds=3600),
        resumption_secret=secret,
        server_name="",
        ticket=b"",
        max_early_data_size=0xFFFF_FFFF,
        other_extensions=[(0x39, bytes(50)), (int(ExtensionType.ALPN), alpn)],
    )
    return with_version(ticket, 0x6B33_43CF)


@given(st.binary(min_size=32, max_size=48), st.binary(max_size=255))
@examples(30)
def test_a_sealed_ticket_holds_its_session_and_no_early_data(secret: bytes, alpn: bytes) -> None:
    keys = SharedKeys([NEW])
    label = seal_ticket(keys, session(secret=secret, alpn=alpn))
    found = open_ticket(SharedKeys([NEWER, NEW]), label)
    assert found is not None
    assert found.is_valid
    assert (found.resumption_secret, found.cipher_suite) == (secret, 0x1301)
    assert dict(found.other_extensions)[ExtensionType.ALPN] == alpn
    assert ticket_version(found) == 0x6B33_43CF
    assert found.max_early_data_size is None


@given(st.data())
@examples(50)
def test_a_ticket_with_any_bit_flipped_is_none(data: st.DataObject) -> None:
    keys = SharedKeys([OLD])
    label = bytearray(seal_ticket(keys, session()))
    bit = data.draw(st.integers(0, 8 * len(label) - 1))
    label[bit // 8] ^= 1 << (bit % 8)
    assert open_ticket(keys, bytes(label)) is None
    cut = data.draw(st.integers(0, len(label) - 1))
    assert open_ticket(keys, seal_ticket(keys, session())[:cut]) is None


@given(st.binary(max_size=700))
@examples(50)
def test_arbitrary_bytes_are_no_ticket(label: bytes) -> None:
    assert open_ticket(SharedKeys([OLD, NEW]), label) is None


def test_a_ticket_of_other_keys_or_of_another_time_is_none() -> None:
    keys = SharedKeys([OLD])
    assert open_ticket(SharedKeys([NEW]), seal_ticket(keys, session())) is None
    assert open_ticket(keys, seal_ticket(keys, session(age=3500))) is not None
    assert open_ticket(keys, seal_ticket(keys, session(age=3700))) is None
    assert open_ticket(keys, seal_ticket(keys, session(age=-30))) is not None, "clocks differ"
    assert open_ticket(keys, seal_ticket(keys, session(age=-300))) is None


# ------------------------------------------------------------------ tokens


def test_a_retry_token_holds_at_all_servers_with_the_keys() -> None:
    clock = Clock()
    keys = SharedKeys([OLD], clock)
    token = AddressTokens(keys=SharedKeys([OLD], clock)).seal(HERE, b"original", b"source", 5.0)
    assert AddressTokens(keys=keys).open(token, HERE, b"source", 1e6) == b"original"
    clock.now += 45.0
    with pytest.raises(InvalidToken, match="expired"):
        AddressTokens(keys=keys).open(token, HERE, b"source", 5.0)
    clock.now -= 100.0
    with pytest.raises(InvalidToken, match="expired"):
        AddressTokens(keys=keys).open(token, HERE, b"source", 5.0)
    with pytest.raises(InvalidToken, match="not sealed here"):
        AddressTokens(keys=SharedKeys([NEW], clock)).open(token, HERE, b"source", 5.0)


def test_a_return_token_holds_once_at_each_server() -> None:
    clock = Clock()
    keys = SharedKeys([OLD], clock)
    one, two = ReturnTokens(3600.0, keys=keys), ReturnTokens(3600.0, keys=keys)
    token = one.seal(HERE, 0.0)
    for server in (one, two):
        server.use(server.open(token, HERE, 0.0))
        with pytest.raises(InvalidToken, match="used before"):
            server.open(token, HERE, 0.0)
    clock.now += 3601.0
    with pytest.raises(InvalidToken, match="expired"):
        ReturnTokens(3600.0, keys=keys).open(token, HERE, 0.0)
    clock.now -= 3601.0 + 40.0
    with pytest.raises(InvalidToken, match="expired"):
        ReturnTokens(3600.0, keys=keys).open(token, HERE, 0.0)


def test_used_tokens_of_others_are_remembered_in_bounded_memory_and_never_hold_twice() -> None:
    clock = Clock()
    keys = SharedKeys([OLD], clock)
    issuer, server = ReturnTokens(3600.0, keys=keys), ReturnTokens(3600.0, keys=keys, others=4)
    unused = issuer.seal(HERE, 0.0)
    used = []
    for _ in range(10):
        clock.now += 1.0
        used.append(issuer.seal(HERE, 0.0))
        server.use(server.open(used[-1], HERE, 0.0))
    assert len(server._others) == len(server._oldest_others) == 4
    for token in used:
        with pytest.raises(InvalidToken, match=r"used before|too many tokens of other"):
            server.open(token, HERE, 0.0)
    with pytest.raises(InvalidToken, match="too many tokens of other"):
        server.open(unused, HERE, 0.0)
    assert server.open(issuer.seal(HERE, 0.0), HERE, 0.0).number == 11, "the newest hold"
    server.use(server.open(server.seal(HERE, 0.0), HERE, 0.0))


# ------------------------------------------------------------------ servers

NAMES = ("10.0.0.1", "10.0.0.3")


class World:
    """Two servers of one name, and a client which goes to one or the other."""

    def __init__(self, network: SimulatedNetwork, servers: list[phoenix_trio.Endpoint]) -> None:
        self.network = network
        self.servers = servers
        self.store = SessionStore()
        self.tls = client_tls(session_store=self.store, early_data=True, server_name=NAMES[0])

    async def dial(self, server: int) -> tuple[bool, bool]:
        """Ask a server something; whether the session was resumed, and early data accepted."""
        async with phoenix_trio.open_connection(
            NAMES[server], PORT, tls=self.tls, alpn=ALPN, network=self.network.host(CLIENT)
        ) as connection:
            assert await connection.request(b"question") == b"question"
            await connection.wait_confirmed()
            await connection.ping()
            return bool(connection.session_resumed), bool(connection.early_data_accepted)

    def take_ticket(self) -> SessionTicket:
        sessions = self.tls.session_store
        assert sessions is not None
        ticket = sessions.take(NAMES[0], PORT, ALPN)
        assert ticket is not None
        self.store.clear()
        return ticket

    def put_ticket(self, ticket: SessionTicket) -> None:
        assert self.tls.session_store is not None
        self.store.clear()
        self.tls.session_store.put(NAMES[0], PORT, ALPN, ticket)


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            await stream.send_all(await stream.receive_all(1000), end=True)


@asynccontextmanager
async def world(*tls: phoenix_trio.ServerTLS, **config: Any) -> AsyncIterator[World]:
    network = SimulatedNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:
        servers = []
        for name, each in zip(NAMES, tls, strict=True):
            endpoint = await _open(nursery, network, name, TransportConfig(**config))
            listener = endpoint.listen(tls=each, alpn=ALPN)
            nursery.start_soon(_accept, listener)
            servers.append(endpoint)
        yield World(network, servers)
        nursery.cancel_scope.cancel()


async def _accept(listener: phoenix_trio.QuicListener) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(answer, await listener.accept())


async def _open(
    nursery: trio.Nursery, network: SimulatedNetwork, name: str, config: TransportConfig
) -> phoenix_trio.Endpoint:
    async def hold(
        *, task_status: trio.TaskStatus[phoenix_trio.Endpoint] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with phoenix_trio.Endpoint.open(
            name, PORT, config=config, network=network.host(name)
        ) as endpoint:
            task_status.started(endpoint)
            await trio.sleep_forever()

    opened: phoenix_trio.Endpoint = await nursery.start(hold)
    return opened


def both(*keys: bytes, **arguments: Any) -> list[phoenix_trio.ServerTLS]:
    return [server_tls(ticket_keys=keys, **arguments) for _ in range(2)]


async def test_a_session_of_one_server_is_resumed_at_another(autojump_clock: MockClock) -> None:
    async with world(*both(OLD)) as w:
        assert await w.dial(0) == (False, False)
        for server in (1, 1, 0, 1, 0):
            assert await w.dial(server) == (True, False)


async def test_early_data_is_accepted_once_and_by_the_server_that_issued_the_ticket_alone(
    autojump_clock: MockClock,
) -> None:
    async with world(*both(OLD, early_data=True)) as w:
        await w.dial(0)
        ticket = w.take_ticket()
        for server, accepts in [(1, False), (0, True), (0, False), (1, False), (0, False)]:
            w.put_ticket(ticket)
            assert await w.dial(server) == (True, accepts), "refused early data is sent again"


async def test_with_other_keys_there_is_a_full_handshake(autojump_clock: MockClock) -> None:
    tls = [server_tls(ticket_keys=[OLD]), server_tls(ticket_keys=[NEW])]
    async with world(*tls) as w:
        for server in (0, 1, 0):
            assert await w.dial(server) == (False, False)
        assert await w.dial(0) == (True, False)


async def test_keys_are_replaced_under_way_and_old_tickets_hold_until_theirs_is_gone(
    autojump_clock: MockClock,
) -> None:
    one, two = both(OLD)
    async with world(one, two) as w:
        await w.dial(0)
        ticket = w.take_ticket()
        for keys, resumes in [([OLD, NEW], True), ([NEW, OLD], True), ([NEW], False)]:
            two.reload(ticket_keys=keys)
            w.put_ticket(ticket)
            assert (await w.dial(1))[0] is resumes
        assert (await w.dial(1))[0]


async def test_a_forged_ticket_leads_to_a_full_handshake(autojump_clock: MockClock) -> None:
    async with world(*both(OLD)) as w:
        await w.dial(0)
        ticket = w.take_ticket()
        for label in (os.urandom(len(ticket.ticket)), b"x", os.urandom(4000), ticket.ticket[:-1]):
            w.put_ticket(replace(ticket, ticket=label))
            assert await w.dial(1) == (False, False)


async def test_a_thief_of_a_ticket_without_its_secret_is_refused(autojump_clock: MockClock) -> None:
    async with world(*both(OLD)) as w:
        await w.dial(0)
        w.put_ticket(replace(w.take_ticket(), resumption_secret=bytes(32)))
        with pytest.raises(phoenix_trio.HandshakeFailed):
            await w.dial(1)


async def test_servers_which_ask_for_client_certificates_resume_no_session(
    autojump_clock: MockClock,
) -> None:
    tls = [server_tls(ticket_keys=[OLD]), server_tls(ticket_keys=[OLD], client_ca=authority_pem())]
    async with world(*tls) as w:
        await w.dial(0)
        with pytest.raises(phoenix_trio.HandshakeFailed, match="certificate"):
            await w.dial(1)


async def test_a_token_of_one_server_spares_a_retry_at_another_and_once(
    autojump_clock: MockClock,
) -> None:
    async with world(*both(OLD), retry="always") as w:
        await w.dial(0)
        assert w.tls.session_store is not None
        token = w.tls.session_store.take_token(NAMES[0], PORT)
        for retries in (0, 1):
            w.store.clear()
            w.tls.session_store.put_token(NAMES[0], PORT, token)
            await w.dial(1)
            assert w.servers[1].statistics().retries_sent == retries
