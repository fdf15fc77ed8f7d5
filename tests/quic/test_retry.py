"""Retry tokens: they accept valid packets, and no other input gets through or crashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.retry import AddressTokens, InvalidToken

connection_ids = st.binary(max_size=20)
ports = st.integers(0, 65_535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)
addresses = st.one_of(
    st.tuples(ipv4, ports), st.tuples(ipv6, ports, st.integers(0, 9), st.integers(0, 9))
)
times = st.floats(min_value=0, max_value=1e9)

CLIENT = ("192.0.2.7", 50_000)
ORIGINAL = b"original"
RETRY_SOURCE = b"retry-id"


def sealed(tokens: AddressTokens, now: float = 100.0) -> bytes:
    return tokens.seal(CLIENT, ORIGINAL, RETRY_SOURCE, now)


@given(addresses, connection_ids, connection_ids, times, st.floats(0, 1))
def test_a_token_gives_back_the_original_connection_id(
    address: tuple[str, int], original: bytes, retry_source: bytes, now: float, part: float
) -> None:
    tokens = AddressTokens(lifetime=10.0)
    token = tokens.seal(address, original, retry_source, now)
    later = min(now + part * 10.0, now + 10.0)
    assert tokens.open(token, address, retry_source, later) == original
    # A client repeats its Initial packets, and the token with them.
    assert tokens.open(token, address, retry_source, later) == original


@given(st.data())
def test_a_token_with_any_bit_flipped_is_invalid(data: st.DataObject) -> None:
    tokens = AddressTokens()
    token = bytearray(sealed(tokens))
    bit = data.draw(st.integers(0, 8 * len(token) - 1))
    token[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(InvalidToken, match="not sealed here, or was changed"):
        tokens.open(bytes(token), CLIENT, RETRY_SOURCE, 100.0)


@given(st.data())
def test_a_truncated_or_extended_token_is_invalid(data: st.DataObject) -> None:
    tokens = AddressTokens()
    token = sealed(tokens)
    cut = data.draw(st.integers(0, len(token) - 1))
    with pytest.raises(InvalidToken):
        tokens.open(token[:cut], CLIENT, RETRY_SOURCE, 100.0)
    extra = data.draw(st.binary(min_size=1, max_size=300))
    with pytest.raises(InvalidToken):
        tokens.open(token + extra, CLIENT, RETRY_SOURCE, 100.0)


@given(st.binary(max_size=2_000), addresses, connection_ids, times)
def test_arbitrary_bytes_raise_nothing_but_invalid_token(
    token: bytes, address: tuple[str, int], destination: bytes, now: float
) -> None:
    with pytest.raises(InvalidToken):
        AddressTokens().open(token, address, destination, now)


@given(addresses)
def test_a_token_is_bound_to_the_address(other: tuple[str, int]) -> None:
    tokens = AddressTokens()
    if other[:2] == CLIENT or other[:2] == ("::ffff:c000:207", CLIENT[1]):
        return
    with pytest.raises(InvalidToken, match="another address"):
        tokens.open(sealed(tokens), other, RETRY_SOURCE, 100.0)


def test_a_token_is_bound_to_the_port() -> None:
    tokens = AddressTokens()
    with pytest.raises(InvalidToken, match="another address"):
        tokens.open(sealed(tokens), (CLIENT[0], CLIENT[1] + 1), RETRY_SOURCE, 100.0)


@given(connection_ids)
def test_a_token_is_bound_to_the_retry_packets_connection_id(other: bytes) -> None:
    tokens = AddressTokens()
    if other == RETRY_SOURCE:
        return
    with pytest.raises(InvalidToken, match="another destination connection ID"):
        tokens.open(sealed(tokens), CLIENT, other, 100.0)


@pytest.mark.parametrize("now", [99.999, 110.001, 1e9, 0.0, float("nan")])
def test_a_token_expires(now: float) -> None:
    tokens = AddressTokens(lifetime=10.0)
    with pytest.raises(InvalidToken, match="expired"):
        tokens.open(sealed(tokens, 100.0), CLIENT, RETRY_SOURCE, now)


def test_the_lifetime_can_be_set() -> None:
    tokens = AddressTokens(lifetime=60.0)
    token = sealed(tokens, 100.0)
    assert tokens.open(token, CLIENT, RETRY_SOURCE, 160.0) == ORIGINAL
    with pytest.raises(InvalidToken):
        tokens.open(token, CLIENT, RETRY_SOURCE, 160.1)


def test_an_ipv4_mapped_address_equals_its_ipv4_form() -> None:
    tokens = AddressTokens()
    mapped = ("::ffff:192.0.2.7", CLIENT[1], 0, 0)
    assert tokens.open(sealed(tokens), mapped, RETRY_SOURCE, 100.0) == ORIGINAL
    token = tokens.seal(mapped, ORIGINAL, RETRY_SOURCE, 100.0)
    assert tokens.open(token, CLIENT, RETRY_SOURCE, 100.0) == ORIGINAL


def test_scope_and_flow_information_do_not_matter() -> None:
    tokens = AddressTokens()
    token = tokens.seal(("fe80::1%eth0", 4433, 7, 2), ORIGINAL, RETRY_SOURCE, 100.0)
    assert tokens.open(token, ("fe80::1", 4433, 0, 0), RETRY_SOURCE, 100.0) == ORIGINAL


def test_a_token_of_another_instance_is_invalid() -> None:
    with pytest.raises(InvalidToken, match="not sealed here"):
        AddressTokens().open(sealed(AddressTokens()), CLIENT, RETRY_SOURCE, 100.0)


def test_no_two_tokens_are_equal_and_none_shows_its_content() -> None:
    tokens = AddressTokens()
    many = [sealed(tokens) for _ in range(100)]
    assert len(set(many)) == 100
    assert len({token[:12] for token in many}) == 100
    assert not any(ORIGINAL in token or RETRY_SOURCE in token for token in many)


def test_nonces_wrap_around_rather_than_overflow() -> None:
    tokens = AddressTokens()
    tokens._next_nonce = (1 << 96) - 1
    for _ in range(2):
        assert tokens.open(sealed(tokens), CLIENT, RETRY_SOURCE, 100.0) == ORIGINAL


@pytest.mark.parametrize("lifetime", [0, -1.0, float("inf"), float("nan")])
def test_a_lifetime_must_be_positive_and_finite(lifetime: float) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        AddressTokens(lifetime=lifetime)


def test_connection_ids_above_20_bytes_are_refused() -> None:
    tokens = AddressTokens()
    with pytest.raises(ValueError, match="original_destination_cid"):
        tokens.seal(CLIENT, bytes(21), RETRY_SOURCE, 0.0)
    with pytest.raises(ValueError, match="retry_source_cid"):
        tokens.seal(CLIENT, ORIGINAL, bytes(21), 0.0)
