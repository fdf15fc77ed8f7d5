"""Connection IDs which say the server and the process that have made them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio.quic.connection_id_format import (
    CONNECTION_ID_LENGTH,
    ConnectionIdFormat,
    random_connection_id,
)
from phoenix_trio.testing import SimulatedNetwork
from tests.connection_id_decryption import decrypt
from tests.engine_access import engine_of, own_connection_ids, peer_reset_tokens
from tests.support import connected_pair, examples

SECRET = bytes(range(32))
KEY = bytes.fromhex("8f95f09245765f80256934e50c66207f")


@given(
    workers=st.integers(2, 256),
    number=st.integers(0, 255),
    server_id=st.binary(max_size=1),
    secret=st.binary(min_size=16, max_size=64),
)
@examples(50)
def test_every_worker_reads_the_number_of_the_one_that_made_it(
    workers: int, number: int, server_id: bytes, secret: bytes
) -> None:
    number %= workers
    made = ConnectionIdFormat(server_id, worker=number, workers=workers, secret=secret).make()
    assert len(made) == CONNECTION_ID_LENGTH
    for reader in (0, workers - 1):
        ids = ConnectionIdFormat(server_id, worker=reader, workers=workers, secret=secret)
        assert ids.worker_of(made) == number


def test_the_layout_is_rotation_server_id_and_nonce() -> None:
    ids = ConnectionIdFormat(b"\xab\xcd", 5)
    made = [ids.make() for _ in range(100)]
    assert all(each[0] >> 5 == 5 and each[1:3] == b"\xab\xcd" for each in made)
    assert len({each[0] for each in made}) > 10, "five of its bits are random"
    for at in range(3, 8):
        assert len({each[at] for each in made}) > 50, "the nonce is random"


def test_a_load_balancer_and_workers_use_the_same_connection_id() -> None:
    ids = ConnectionIdFormat(b"\x07", 2, worker=1, workers=3, secret=SECRET)
    made = [ids.make() for _ in range(100)]
    assert all(each[0] >> 5 == 2 and each[1] == 7 for each in made)
    assert all(ids.worker_of(each) == 1 for each in made)
    for at in range(2, 8):
        assert len({each[at] for each in made}) > 50, "the nonce and the masked number"


def test_without_the_secret_the_number_cannot_be_read() -> None:
    ids = ConnectionIdFormat(worker=1, workers=2, secret=SECRET)
    other = ConnectionIdFormat(worker=0, workers=2, secret=bytes(32))
    assert len({ids.make()[-1] for _ in range(2000)}) > 200, "all bytes look alike"
    found = Counter(other.worker_of(ids.make()) for _ in range(2000))
    assert found[-1] > 1800


@pytest.mark.parametrize("connection_id", [b"", bytes(7), bytes(9), bytes(20)])
def test_a_connection_id_of_another_length_is_of_no_worker(connection_id: bytes) -> None:
    assert ConnectionIdFormat(workers=2, secret=SECRET).worker_of(connection_id) == -1


def test_connection_ids_of_others_are_often_of_no_worker_and_never_of_one_too_many() -> None:
    ids = ConnectionIdFormat(workers=4, secret=SECRET)
    found = Counter(ids.worker_of(random_connection_id()) for _ in range(5000))
    assert set(found) <= {-1, 0, 1, 2, 3}
    assert found[-1] > 4500


def test_without_server_and_workers_all_bytes_are_random() -> None:
    made = [ConnectionIdFormat().make() for _ in range(200)]
    for at in range(CONNECTION_ID_LENGTH):
        assert len({each[at] for each in made}) > 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"server_id": b"abc"}, "at most 2 bytes, not 3"),
        ({"server_id": b"ab", "workers": 2, "secret": SECRET}, "at most 1 bytes where workers"),
        ({"workers": 2, "secret": b"short"}, "at least 16 bytes"),
        ({"key": KEY}, "of no use without"),
        ({"server_id": b"a", "key": b"short"}, "must have 16 bytes"),
    ],
)
def test_what_has_no_room_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ConnectionIdFormat(**arguments)


@pytest.mark.parametrize(("workers", "server_id"), [(1, b"\x07"), (1, b"\xab\xcd"), (3, b"\x07")])
def test_a_load_balancer_with_the_key_reads_the_server_id_and_others_see_random_bytes(
    workers: int, server_id: bytes
) -> None:
    ids = ConnectionIdFormat(server_id, 2, key=KEY, worker=1, workers=workers, secret=SECRET)
    made = [ids.make() for _ in range(200)]
    size = 7 if workers == 1 else 6
    for each in made:
        assert each[0] >> 5 == 2
        assert decrypt(KEY, each[1 : 1 + size])[: len(server_id)] == server_id
    assert all(ids.worker_of(each) == 1 for each in made)
    for at in range(1, 8):
        assert len({each[at] for each in made}) > 80
    assert len({decrypt(KEY, each[1 : 1 + size]) for each in made}) == 200, "the nonces differ"


async def test_clients_see_encrypted_connection_ids_of_a_server_with_a_key(
    autojump_clock: object,
) -> None:
    config = phoenix_trio.TransportConfig(
        connection_id_server_id=b"\x2a", connection_id_rotation=3, connection_id_key=KEY
    )
    assert KEY.hex() not in repr(config)
    assert repr(KEY) not in repr(config)
    async with connected_pair(SimulatedNetwork(delay=0.01), server_config=config) as (
        client,
        server,
    ):
        assert await client.ping() > 0
        own = own_connection_ids(engine_of(server))
        assert len(own) == 8
        assert all(each[0] >> 5 == 3 for each in own)
        assert {decrypt(KEY, each[1:])[0] for each in own} == {0x2A}
        assert len({each[1] for each in own}) > 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"connection_id_key": KEY}, "of no use without connection_id_server_id"),
        ({"connection_id_key": KEY[1:], "connection_id_server_id": b"a"}, "must have 16 bytes"),
    ],
)
def test_the_configuration_refuses_an_unfit_key(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        phoenix_trio.TransportConfig(**arguments)


@pytest.mark.parametrize("server_id", [b"", b"abc"])
def test_the_configuration_takes_a_server_id_of_one_or_two_bytes(server_id: bytes) -> None:
    with pytest.raises(ValueError, match="1 or 2 bytes"):
        phoenix_trio.TransportConfig(connection_id_server_id=server_id)
    with pytest.raises(ValueError, match="between 0 and 6"):
        phoenix_trio.TransportConfig(connection_id_rotation=7)


async def test_all_connection_ids_of_a_server_say_its_id(autojump_clock: object) -> None:
    config = phoenix_trio.TransportConfig(connection_id_server_id=b"\x2a", connection_id_rotation=3)
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network, server_config=config) as (client, server):
        assert await client.ping() > 0
        own = own_connection_ids(engine_of(server))
        assert len(own) == 8
        assert all(each[0] >> 5 == 3 and each[1] == 0x2A for each in own)
        theirs = own_connection_ids(engine_of(client))
        assert not all(each[1] == 0x2A for each in theirs), "a client's say nothing"
        assert len(peer_reset_tokens(engine_of(client))) == 8
