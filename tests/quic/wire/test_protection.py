"""Packet protection, against the vectors of RFC 9001 and against aioquic."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoContext, next_key_phase
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet import decode_packet_number as aioquic_decode
from aioquic.tls import CipherSuite
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.wire.protection import (
    AES_128_GCM_SHA256,
    AES_256_GCM_SHA384,
    CHACHA20_POLY1305_SHA256,
    FIRST_BYTE,
    VERSION_1,
    VERSION_2,
    ZERO_RTT,
    NotAuthentic,
    PacketKey,
    decode_packet_number,
    header_key,
    packet_keys,
    seal_long,
    seal_one,
    seal_run,
)
from tests.support import examples

SUITES = (AES_128_GCM_SHA256, AES_256_GCM_SHA384, CHACHA20_POLY1305_SHA256)
VERSIONS = (VERSION_1, VERSION_2)

all_suites = pytest.mark.parametrize("suite", SUITES)
all_versions = pytest.mark.parametrize("version", VERSIONS)


def secret_of(suite: int) -> bytes:
    return bytes(range(48 if suite == AES_256_GCM_SHA384 else 32))


def peer_of(suite: int, version: int) -> CryptoContext:
    """aioquic's keys from the same secret."""
    context = CryptoContext()
    context.setup(cipher_suite=CipherSuite(suite), secret=secret_of(suite), version=version)
    return context


def test_the_chacha20_example_of_rfc_9001() -> None:
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    key, iv, hp = packet_keys(CHACHA20_POLY1305_SHA256, secret, VERSION_1)
    assert key.hex() == "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"
    assert iv.hex() == "e0459b3474bdd0e44a41c144"
    assert hp.hex() == "25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"
    packet_key = PacketKey(CHACHA20_POLY1305_SHA256, secret, VERSION_1)
    following = packet_key.next().secret.hex()
    assert following == "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"
    number = 654_360_564
    header = bytes.fromhex("4200bff4")
    body = packet_key.encrypt(number, header, b"\x01")
    assert body.hex() == "655e5cd55c41f69080575d7999c25a5bfb"
    sample = body[1:17]
    mask = header_key(CHACHA20_POLY1305_SHA256, secret, VERSION_1).mask(sample)
    assert mask[:5].hex() == "aefefe7d03"
    assert packet_key.decrypt(number, header, body) == b"\x01"
    assert decode_packet_number(0x00BFF4, 24, number) == number


def test_the_keys_of_the_first_flight_in_rfc_9001_and_rfc_9369() -> None:
    client = bytes.fromhex("c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea")
    assert [part.hex() for part in packet_keys(AES_128_GCM_SHA256, client, VERSION_1)] == [
        "1f369613dd76d5467730efcbe3b1a22d",
        "fa044b2f42a3fd3b46fb255c",
        "9f50449e04a0e810283a1e9933adedd2",
    ]
    client = bytes.fromhex("14ec9d6eb9fd7af83bf5a668bc17a7e283766aade7ecd0891f70f9ff7f4bf47b")
    assert [part.hex() for part in packet_keys(AES_128_GCM_SHA256, client, VERSION_2)] == [
        "8b1a0bc121284290a29e0971b5cd045d",
        "91f73e2351d8fa91660e909f",
        "45b95e15235d6f45a6b19cbcb0294ba9",
    ]


@all_versions
@all_suites
def test_packets_are_those_of_aioquic(suite: int, version: int) -> None:
    key = PacketKey(suite, secret_of(suite), version)
    header = header_key(suite, secret_of(suite), version)
    peer = peer_of(suite, version)
    for size in (0, 1, 4, 8, 20):
        cid = bytes(range(size))
        for number in (0, 1, 65_535, 65_536, 70_000, 1 << 40):
            for payload in (b"\x01\x02", b"some frames", bytes(1200)):
                packet = seal_one(FIRST_BYTE | 0x20, cid, number, payload, key, header)
                clear = bytes((0x61,)) + cid + (number & 0xFFFF).to_bytes(2, "big")
                assert packet == peer.encrypt_packet(clear, payload, number)
                opened = peer.decrypt_packet(packet, 1 + size, number)
                assert opened == (clear, payload, number, False)


@all_suites
def test_payloads_are_opened_again(suite: int) -> None:
    key = PacketKey(suite, secret_of(suite), VERSION_1)
    assert (key.suite, key.secret, key.version) == (suite, secret_of(suite), VERSION_1)
    out = bytearray(5 + 16)
    key.encrypt_into(7, b"header", b"plain", memoryview(out))
    body = key.encrypt(7, b"header", b"plain")
    assert body == out
    room = bytearray(5)
    for form in (bytes(out), out, memoryview(out)):
        assert key.decrypt(7, b"header", form) == b"plain"
        key.decrypt_into(7, b"header", form, room)
        assert room == b"plain"


@all_suites
def test_what_was_changed_is_not_authentic(suite: int) -> None:
    key = PacketKey(suite, secret_of(suite), VERSION_1)
    body = key.encrypt(7, b"header", b"plain")
    damaged = bytes((body[0] ^ 1,)) + body[1:]
    for number, header, data in (
        (8, b"header", body),
        (7, b"Header", body),
        (7, b"header", damaged),
        (7, b"header", body[:-1]),
        (7, b"header", body[:15]),
        (7, b"header", b""),
    ):
        with pytest.raises(NotAuthentic):
            key.decrypt(number, header, data)
        if len(data) >= 16:
            with pytest.raises(NotAuthentic):
                key.decrypt_into(number, header, data, bytearray(len(data) - 16))
    with pytest.raises(NotAuthentic):
        key.next().decrypt(7, b"header", body)


@all_versions
@all_suites
def test_key_updates_are_those_of_aioquic(suite: int, version: int) -> None:
    key, peer = PacketKey(suite, secret_of(suite), version), peer_of(suite, version)
    for number in range(3):
        key, peer = key.next(), next_key_phase(peer)
        assert key.secret == peer.secret
        assert peer.aead is not None
        assert key.encrypt(number, b"h", b"frames") == peer.aead.encrypt(b"frames", b"h", number)


@all_suites
def test_masks_of_many_samples_are_those_of_each(suite: int) -> None:
    header = header_key(suite, secret_of(suite), VERSION_1)
    samples = [bytes((number,)) * 16 for number in range(40)]
    joined = header.masks(b"".join(samples))
    for index, sample in enumerate(samples):
        assert header.mask(sample)[:5] == joined[16 * index : 16 * index + 5]
        assert header.mask(memoryview(sample))[:5] == joined[16 * index : 16 * index + 5]


@all_suites
@pytest.mark.parametrize("cid", [b"", b"12345678", bytes(20)])
@pytest.mark.parametrize("sizes", [[1200] * 10, [40, 1, 0, 9000, 1200], [0], []])
def test_a_run_is_its_packets_one_behind_the_other(
    suite: int, cid: bytes, sizes: list[int]
) -> None:
    key = PacketKey(suite, secret_of(suite), VERSION_1)
    header = header_key(suite, secret_of(suite), VERSION_1)
    contents = [bytes((index + 1,)) * size for index, size in enumerate(sizes)]
    first = 65_533  # the numbers overflow their two bytes on the way
    packets = [
        seal_one(0x45, cid, first + index, payload, key, header)
        for index, payload in enumerate(contents)
    ]
    slab = bytearray(b"\xee" * 20_000)
    end = seal_run(0x45, cid, first, contents, key, header, slab, 7)
    joined = b"".join(packets)
    assert end == 7 + len(joined)
    assert bytes(slab[7:end]) == joined
    assert slab[:7] == b"\xee" * 7
    assert set(slab[end:]) == {0xEE}
    slab += b"no view of it is left, so it can grow"


@all_suites
@pytest.mark.parametrize("payload", [b"", b"\x01"])
def test_short_payloads_are_padded_for_the_sample(suite: int, payload: bytes) -> None:
    key = PacketKey(suite, secret_of(suite), VERSION_1)
    header = header_key(suite, secret_of(suite), VERSION_1)
    peer = peer_of(suite, VERSION_1)
    packet = seal_one(FIRST_BYTE, b"", 5, payload, key, header)
    assert peer.decrypt_packet(packet, 1, 5)[1] == payload.ljust(2, b"\0")
    slab = bytearray(len(packet))
    assert seal_run(FIRST_BYTE, b"", 5, [payload], key, header, slab, 0) == len(packet)
    assert slab == packet
    packet = seal_long(ZERO_RTT, VERSION_1, b"12345678", b"", b"", 5, payload, key, header)
    offset = len(packet) - 2 - 2 - 16
    assert peer.decrypt_packet(packet, offset, 5)[1] == payload.ljust(2, b"\0")


@all_versions
@all_suites
@pytest.mark.parametrize("size", [2, 40, 1170, 16_000])
def test_0_rtt_packets_are_read_by_aioquic(suite: int, version: int, size: int) -> None:
    key = PacketKey(suite, secret_of(suite), version)
    header = header_key(suite, secret_of(suite), version)
    payload = bytes(index % 251 for index in range(size))
    packet = seal_long(
        ZERO_RTT, version, b"destination", b"source", b"", 70_000, payload, key, header
    )
    buffer = Buffer(data=packet + b"next packet")
    found = pull_quic_header(buffer)
    assert found.packet_type is QuicPacketType.ZERO_RTT
    assert found.version == version
    assert (found.destination_cid, found.source_cid) == (b"destination", b"source")
    assert found.packet_length == len(packet)
    _, plain, number, _ = peer_of(suite, version).decrypt_packet(packet, buffer.tell(), 70_000)
    assert (plain, number) == (payload, 70_000)


def test_what_is_unknown_is_refused() -> None:
    for suite, version in ((0x1304, VERSION_1), (AES_128_GCM_SHA256, 0xFF00001D)):
        with pytest.raises(KeyError):
            PacketKey(suite, bytes(32), version)
        with pytest.raises(KeyError):
            header_key(suite, bytes(32), version)
        with pytest.raises(KeyError):
            packet_keys(suite, bytes(32), version)


def test_the_packet_number_of_rfc_9000_is_decoded() -> None:
    # Appendix A.3.
    assert decode_packet_number(0x9B32, 16, 0xA82F30EB) == 0xA82F9B32


@given(
    st.sampled_from((8, 16, 24, 32)),
    st.one_of(st.integers(0, 1 << 34), st.integers((1 << 62) - (1 << 34), (1 << 62) - 1)),
    st.integers(-(1 << 33), 1 << 33),
)
@examples(500)
def test_packet_numbers_near_the_expected_one_are_decoded(
    bits: int, expected: int, distance: int
) -> None:
    half = 1 << bits - 1
    number = expected + distance
    if 0 <= number < 1 << 62:
        truncated = number & (1 << bits) - 1
        found = decode_packet_number(truncated, bits, expected)
        assert found == aioquic_decode(truncated, bits, expected)
        if -half < distance < half:
            assert found == number
