"""Connection IDs which only load balancers with the key can read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.connection_id_cipher import ConnectionIdCipher
from tests.connection_id_decryption import decrypt
from tests.support import examples

#: draft-ietf-quic-load-balancers-21 appendix B.2: key, server ID, nonce, and the connection ID
#: behind its first byte.  The last one is the example of section 5.4.2.4.
KEY = "8f95f09245765f80256934e50c66207f"
VECTORS = [
    (KEY, "ed793a", "ee080dbf", "20b1d07b359d3c"),
    (KEY, "ed793a51d49b8f5fab65", "ee080dbf48", "cc381bc74cb4fbad2823a3d1f8fed2"),
    (KEY, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "4dd2d05a7b0de9b2b9907afb5ecf8cc3"),
    (KEY, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "5779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
    ("fdf726a9893ec05c0632d3956680baf0", "31441a", "9c69c275", "67947d29be054a"),
]


@pytest.mark.parametrize(("key", "server_id", "nonce", "connection_id"), VECTORS)
def test_the_examples_of_the_draft(
    key: str, server_id: str, nonce: str, connection_id: str
) -> None:
    plaintext = bytes.fromhex(server_id + nonce)
    cipher = ConnectionIdCipher(bytes.fromhex(key), len(plaintext))
    assert cipher.encrypt(plaintext).hex() == connection_id
    assert decrypt(bytes.fromhex(key), bytes.fromhex(connection_id)) == plaintext


@given(key=st.binary(min_size=16, max_size=16), plaintext=st.binary(min_size=5, max_size=19))
@examples(100)
def test_a_load_balancer_reads_what_was_encrypted(key: bytes, plaintext: bytes) -> None:
    cipher = ConnectionIdCipher(key, len(plaintext))
    encrypted = cipher.encrypt(plaintext)
    assert len(encrypted) == len(plaintext)
    assert decrypt(key, encrypted) == plaintext
    assert cipher.encrypt(plaintext) == encrypted, "it keeps no state"


def test_a_change_of_the_server_id_changes_all_bytes_of_the_connection_id() -> None:
    cipher = ConnectionIdCipher(bytes(16), 7)
    made = [cipher.encrypt(bytes((server_id, *bytes(6)))) for server_id in range(200)]
    for at in range(7):
        assert len({each[at] for each in made}) > 80


def test_sizes_and_keys_out_of_range_are_refused() -> None:
    for key, size, text in [
        (bytes(15), 7, "must have 16 bytes"),
        (bytes(16), 4, "between 5 and 19, not 4"),
        (bytes(16), 20, "between 5 and 19, not 20"),
    ]:
        with pytest.raises(ValueError, match=text):
            ConnectionIdCipher(key, size)
    with pytest.raises(ValueError, match="7 bytes can be encrypted, not 8"):
        ConnectionIdCipher(bytes(16), 7).encrypt(bytes(8))
