"""Tokens which prove a client's address when it comes back (RFC 9000 section 8.1.3)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import SessionStore, TransportConfig
from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.new_tokens import NEW_TOKEN_SIZE, ReturnTokens
from phoenix_trio.quic.handshake.retry import AddressTokens, InvalidToken
from phoenix_trio.testing import SimulatedNetwork
from tests.aioquic_pair import AioquicPair
from tests.engine_access import is_path_validated
from tests.support import ALPN, CLIENT, PORT, SERVER, EnginePair, client_tls, server_tls

HERE = ("192.0.2.7", 50_000)

# ------------------------------------------------------------------ the token


def sealed(tokens: ReturnTokens, now: float = 100.0) -> bytes:
    return tokens.seal(HERE, now)


@given(st.integers(0, 65_535), st.floats(0, 1e6), st.floats(0, 0.99))
def test_a_token_holds_for_a_time_and_for_every_port(port: int, now: float, part: float) -> None:
    tokens = ReturnTokens(3600.0)
    token = tokens.seal(HERE, now)
    assert tokens.open(token, (HERE[0], port), now + part * 3600.0).number == 0


@pytest.mark.parametrize("now", [99.0, 3701.1, 1e9])
def test_a_token_expires(now: float) -> None:
    tokens = ReturnTokens(3600.0)
    with pytest.raises(InvalidToken, match="expired"):
        tokens.open(sealed(tokens), HERE, now)


@pytest.mark.parametrize("host", ["192.0.2.8", "2001:db8::7", "::ffff:192.0.2.8"])
def test_a_token_is_bound_to_the_ip_address(host: str) -> None:
    tokens = ReturnTokens(3600.0)
    with pytest.raises(InvalidToken, match="another address"):
        tokens.open(sealed(tokens), (host, 50_000), 100.0)
    assert tokens.open(sealed(tokens), ("::ffff:192.0.2.7", 1, 0, 0), 100.0).number == 1


@given(st.integers(0, 8 * NEW_TOKEN_SIZE - 1))
def test_a_token_with_any_bit_flipped_is_invalid(bit: int) -> None:
    tokens = ReturnTokens(3600.0)
    token = bytearray(sealed(tokens))
    token[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(InvalidToken, match="not sealed here, or was changed"):
        tokens.open(bytes(token), HERE, 100.0)


@given(st.binary(max_size=200) | st.binary(min_size=NEW_TOKEN_SIZE, max_size=NEW_TOKEN_SIZE))
def test_arbitrary_bytes_are_no_token(token: bytes) -> None:
    with pytest.raises(InvalidToken):
        ReturnTokens(3600.0).open(token, HERE, 100.0)


def test_a_token_of_another_instance_is_invalid() -> None:
    with pytest.raises(InvalidToken, match="not sealed here"):
        ReturnTokens(3600.0).open(sealed(ReturnTokens(3600.0)), HERE, 100.0)


def test_a_token_is_used_once() -> None:
    tokens = ReturnTokens(3600.0)
    first, second = sealed(tokens), sealed(tokens)
    tokens.use(tokens.open(first, HERE, 100.0))
    with pytest.raises(InvalidToken, match="used before"):
        tokens.open(first, HERE, 100.0)
    assert tokens.open(second, HERE, 100.0).number == 1


def test_only_the_newest_tokens_hold() -> None:
    tokens = ReturnTokens(3600.0, window=16)
    made = [sealed(tokens) for _ in range(20)]
    for old in made[:4]:
        with pytest.raises(InvalidToken, match="too many"):
            tokens.open(old, HERE, 100.0)
    for number, token in enumerate(made[4:], 4):
        opened = tokens.open(token, HERE, 100.0)
        assert opened.number == number
        tokens.use(opened)
    # A new token takes the place of an old, used one.
    assert tokens.open(sealed(tokens), HERE, 100.0).number == 20


def test_numbers_wrap_around() -> None:
    tokens = ReturnTokens(3600.0, window=16)
    tokens._next = (1 << 32) - 1
    for token in (sealed(tokens), sealed(tokens)):
        tokens.use(tokens.open(token, HERE, 100.0))
        with pytest.raises(InvalidToken, match="used before"):
            tokens.open(token, HERE, 100.0)


@given(st.binary(min_size=8, max_size=20), st.binary(max_size=20))
def test_a_retry_token_is_no_return_token_and_the_other_way_round(
    original: bytes, source: bytes
) -> None:
    """RFC 9000 section 8.1.1."""
    retry = AddressTokens().seal(HERE, original, source, 100.0)
    assert len(retry) != NEW_TOKEN_SIZE
    with pytest.raises(InvalidToken):
        AddressTokens().open(sealed(ReturnTokens(3600.0)), HERE, source, 100.0)


def test_no_two_tokens_are_alike_and_none_shows_its_content() -> None:
    tokens = ReturnTokens(3600.0)
    made = {sealed(tokens) for _ in range(50)}
    assert len({token[:4] for token in made}) > 45, "an observer must not know their order"
    assert not any(bytes((192, 0, 2, 7)) in token[:40] for token in made)


# ------------------------------------------------------------------ the client's store


def test_a_store_keeps_the_newest_few_tokens_of_a_server() -> None:
    store = SessionStore()
    for number in range(1, 8):
        store.put_token("a.example", PORT, b"%d" % number)
    assert [store.take_token("a.example", PORT) for _ in range(5)] == [b"7", b"6", b"5", b"4", b""]
    assert not store.take_token("b.example", PORT)


def test_a_store_is_bounded_whatever_servers_give() -> None:
    store = SessionStore(max_tickets=10)
    for number in range(100):
        store.put_token(f"host{number}.example", PORT, b"token")
    kept = [number for number in range(100) if store.take_token(f"host{number}.example", PORT)]
    assert kept == list(range(90, 100))
    store.put_token("a.example", PORT, bytes(513))
    store.put_token("a.example", PORT, b"")
    assert not store.take_token("a.example", PORT)
    store.put_token("a.example", PORT, bytes(512))
    store.clear()
    assert not store.take_token("a.example", PORT)


def test_tokens_are_found_with_the_same_trust_and_port_alone() -> None:
    store = SessionStore()
    store.put_token("a.example", PORT, b"token", scope=b"one")
    assert not store.take_token("a.example", PORT, scope=b"two")
    assert not store.take_token("a.example", PORT + 1, scope=b"one")
    assert store.take_token("a.example", PORT, scope=b"one") == b"token"


# ------------------------------------------------------------------ both together


class World:
    """A server which demands a Retry of all clients that have no token, and a client's store."""

    def __init__(self, network: SimulatedNetwork, endpoint: phoenix_trio.Endpoint) -> None:
        self.network = network
        self.endpoint = endpoint
        self.store = SessionStore()
        self.tls = client_tls(session_store=self.store)

    async def dial(self, host: str = CLIENT) -> bool:
        """Connect from `host`; whether the server has demanded a Retry."""
        before = self.endpoint.statistics()
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=self.tls, alpn=ALPN, network=self.network.host(host)
        ) as connection:
            await connection.wait_confirmed()
            await connection.ping()
            await trio.sleep(3)  # (what was lost is sent again)
        after = self.endpoint.statistics()
        assert after.connections_accepted == before.connections_accepted + 1
        return after.retries_sent > before.retries_sent

    def take(self) -> bytes:
        session = self.tls.session_store
        assert session is not None
        return session.take_token(SERVER, PORT)

    def put(self, token: bytes) -> None:
        session = self.tls.session_store
        assert session is not None
        session.put_token(SERVER, PORT, token)


@asynccontextmanager
async def world(network: SimulatedNetwork | None = None, **config: Any) -> AsyncIterator[World]:
    network = network or SimulatedNetwork(delay=0.01)
    config.setdefault("retry", "always")
    async with phoenix_trio.Endpoint.open(
        SERVER, PORT, config=TransportConfig(**config), network=network.host(SERVER)
    ) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)
        yield World(network, endpoint)


async def test_a_client_which_comes_back_is_not_asked_to_prove_its_address(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        assert await w.dial()
        for _ in range(3):
            assert not await w.dial()
        w.store.clear()
        assert await w.dial()


async def test_without_a_store_nothing_is_kept(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.tls = client_tls()
        assert await w.dial()
        assert await w.dial()


async def test_a_token_from_another_address_counts_as_none(autojump_clock: MockClock) -> None:
    async with world() as w:
        assert await w.dial()
        assert await w.dial("10.0.0.66")
        assert not await w.dial("10.0.0.66")


async def test_a_replayed_token_counts_as_none(autojump_clock: MockClock) -> None:
    async with world() as w:
        assert await w.dial()
        token = w.take()
        assert len(token) == NEW_TOKEN_SIZE
        w.put(token)
        assert not await w.dial()
        w.store.clear()
        w.put(token)
        assert await w.dial()


@pytest.mark.parametrize("size", [1, 20, NEW_TOKEN_SIZE, 70, 500])
async def test_a_forged_token_counts_as_none(size: int, autojump_clock: MockClock) -> None:
    async with world() as w:
        w.put(os.urandom(size))
        assert await w.dial()


async def test_a_token_expires_at_the_server(autojump_clock: MockClock) -> None:
    async with world(address_token_lifetime=60.0) as w:
        assert await w.dial()
        await trio.sleep(70)
        assert await w.dial()
        await trio.sleep(50)
        assert not await w.dial()


async def test_a_server_can_do_without_tokens(autojump_clock: MockClock) -> None:
    async with world(address_token_lifetime=0.0) as w:
        assert await w.dial()
        assert not w.take()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_token_which_was_lost_is_sent_again(seed: int, autojump_clock: MockClock) -> None:
    async with world(SimulatedNetwork(seed, delay=0.01, loss=0.3), retry="never") as w:
        for _ in range(3):
            await w.dial()
            assert w.take()


async def test_a_restarted_server_takes_old_tokens_for_none(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with world(network) as w:
        assert await w.dial()
        token = w.take()
    async with world(network) as w:
        w.put(token)
        assert await w.dial()


async def test_a_client_with_a_token_gets_in_while_strangers_fill_their_places(
    autojump_clock: MockClock,
) -> None:
    async with world(retry="under-load", retry_threshold=0) as w:
        assert await w.dial(), "it is under load with no handshake at all"
        assert not await w.dial()


@pytest.mark.parametrize("has_returned", [False, True])
def test_a_token_lifts_the_limit_of_three_times_what_came(has_returned: bool) -> None:
    class Returning(EnginePair):
        def admit(self, destination: bytes) -> Admit:
            return Admit(destination, destination, None, has_returned=has_returned)

    pair = Returning()
    pair.step()
    assert pair.server is not None
    assert is_path_validated(pair.server.engine) is has_returned


def test_an_aioquic_client_is_given_a_token_and_shows_it_again() -> None:
    tokens = ReturnTokens(3600.0)
    pair = AioquicPair(we_are_client=False, make_token=lambda address, now: tokens.seal(HERE, now))
    pair.connect()
    assert tokens.open(pair.stock_tokens[0], HERE, pair.now).number == 0
    again = AioquicPair(we_are_client=False, stock={"token": pair.stock_tokens[0]})
    again.connect()
    assert again.first_token == pair.stock_tokens[0]
