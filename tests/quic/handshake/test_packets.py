"""Packets with long headers, with aioquic as the oracle."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoError, CryptoPair
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    get_retry_integrity_tag,
    pull_quic_header,
)
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.keys import InitialKeyring
from phoenix_trio.quic.handshake.packets import (
    HANDSHAKE,
    INITIAL,
    NEGOTIATION,
    RETRY,
    UNKNOWN,
    ZERO_RTT,
    has_reserved_bits,
    long_overhead,
    parse_long,
    parse_versions,
    retry_tag,
)
from phoenix_trio.quic.wire.protection import (
    VERSION_1,
    VERSION_2,
    NotAuthentic,
    open_packet,
    seal_long,
)
from tests.support import examples

VERSIONS = st.sampled_from([VERSION_1, VERSION_2])
CIDS = st.binary(max_size=20)

KINDS = {
    QuicPacketType.INITIAL: INITIAL,
    QuicPacketType.ZERO_RTT: ZERO_RTT,
    QuicPacketType.HANDSHAKE: HANDSHAKE,
    QuicPacketType.RETRY: RETRY,
    QuicPacketType.VERSION_NEGOTIATION: NEGOTIATION,
}


@given(
    kind=st.sampled_from([INITIAL, HANDSHAKE]),
    version=VERSIONS,
    destination_cid=CIDS,
    source_cid=CIDS,
    token=st.binary(max_size=100),
    number=st.integers(0, 30_000),
    payload=st.binary(min_size=1, max_size=1000),
    of_client=st.booleans(),
)
@examples(100)
def test_what_is_sealed_is_opened_by_both(
    kind: int,
    version: int,
    destination_cid: bytes,
    source_cid: bytes,
    token: bytes,
    number: int,
    payload: bytes,
    of_client: bool,
) -> None:
    keys = InitialKeyring(b"original").get(version, of_client=of_client)
    data = seal_long(
        kind,
        version,
        destination_cid,
        source_cid,
        token,
        number,
        payload,
        keys.packet,
        keys.header,
    )
    padded = payload.ljust(2, b"\0")
    overhead = long_overhead(destination_cid, source_cid, token if kind == INITIAL else None)
    assert len(data) == overhead + len(padded)
    front = b"front"
    header = parse_long(front + data + b"behind", len(front))
    assert header is not None
    assert (header.kind, header.version, header.end) == (kind, version, len(front) + len(data))
    assert (header.destination_cid, header.source_cid) == (destination_cid, source_cid)
    assert header.token == (token if kind == INITIAL else b"")
    first, found, plain = open_packet(
        front + data,
        len(front),
        header.number_at,
        header.end,
        keys.packet,
        keys.header,
        number,
    )
    assert (found, plain) == (number, padded)
    assert not has_reserved_bits(first)

    pair = CryptoPair()
    pair.setup_initial(cid=b"original", is_client=not of_client, version=version)
    buffer = Buffer(data=data)
    theirs = pull_quic_header(buffer)
    assert KINDS[theirs.packet_type] == kind
    _, plain, found = pair.decrypt_packet(data, buffer.tell(), number)
    assert (found, plain) == (number, padded)


@given(st.data(), st.integers(0, 255))
@examples(50)
def test_a_packet_which_was_changed_is_not_opened(data: st.DataObject, mask: int) -> None:
    keys = InitialKeyring(b"original").get(VERSION_1, of_client=True)
    sealed = bytearray(
        seal_long(INITIAL, VERSION_1, b"to", b"from", b"", 5, bytes(50), keys.packet, keys.header)
    )
    header = parse_long(bytes(sealed), 0)
    assert header is not None
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= mask

    def opened() -> tuple[int, int, bytes]:
        return open_packet(
            bytes(sealed), 0, header.number_at, header.end, keys.packet, keys.header, 5
        )

    if mask:
        with pytest.raises(NotAuthentic):
            opened()
    else:
        assert opened()[1:] == (5, bytes(50))


def test_a_packet_too_short_to_be_sampled() -> None:
    keys = InitialKeyring(b"original").get(VERSION_1, of_client=True)
    with pytest.raises(NotAuthentic):
        open_packet(bytes(30), 0, 11, 30, keys.packet, keys.header, 0)
    with pytest.raises(NotAuthentic):
        open_packet(bytes(31), 0, 11, 31, keys.packet, keys.header, 0)


@given(st.binary(min_size=1, max_size=60), st.sampled_from([VERSION_1, VERSION_2, 0, 0x1A2A3A4A]))
@examples(300)
def test_headers_mean_the_same_to_aioquic(rest: bytes, version: int) -> None:
    data = bytes((0x80 | rest[0],)) + version.to_bytes(4, "big") + rest[1:]
    header = parse_long(data, 0)
    try:
        theirs = pull_quic_header(Buffer(data=data), host_cid_length=8)
    except ValueError:  # (BufferReadError is one)
        assert header is None or header.kind in (UNKNOWN, NEGOTIATION)
        return
    assert header is not None
    if version == 0x1A2A3A4A:
        assert header.kind == UNKNOWN
        return
    assert header.kind == KINDS[theirs.packet_type]
    assert header.destination_cid == theirs.destination_cid
    assert header.source_cid == theirs.source_cid
    assert header.token == theirs.token
    if header.kind == NEGOTIATION:
        assert parse_versions(data, header.number_at) == theirs.supported_versions
    elif header.kind != RETRY:
        assert header.end == theirs.packet_length


@given(CIDS, CIDS, st.lists(st.integers(0, 0xFFFFFFFF), max_size=10))
@examples(30)
def test_version_negotiation(
    destination_cid: bytes, source_cid: bytes, versions: list[int]
) -> None:
    data = encode_quic_version_negotiation(
        source_cid=source_cid, destination_cid=destination_cid, supported_versions=versions
    )
    header = parse_long(data, 0)
    assert header is not None
    assert (header.kind, header.version) == (NEGOTIATION, 0)
    assert (header.destination_cid, header.source_cid) == (destination_cid, source_cid)
    assert parse_versions(data, header.number_at) == versions
    assert parse_versions(data + b"x", header.number_at) == []


@given(VERSIONS, CIDS, CIDS, CIDS, st.binary(max_size=100))
@examples(50)
def test_retry(
    version: int, source_cid: bytes, destination_cid: bytes, original: bytes, token: bytes
) -> None:
    data = encode_quic_retry(
        version=version,
        source_cid=source_cid,
        destination_cid=destination_cid,
        original_destination_cid=original,
        retry_token=token,
    )
    header = parse_long(data, 0)
    assert header is not None
    assert (header.kind, header.token, header.end) == (RETRY, token, len(data))
    tag = retry_tag(data[: header.number_at], original, version)
    assert tag == data[header.number_at :]
    assert tag == get_retry_integrity_tag(data[: header.number_at], original, version)


@pytest.mark.parametrize("of_client", [True, False])
@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
def test_the_keys_of_one_side_do_not_open_the_packets_of_the_other(
    of_client: bool, version: int
) -> None:
    pair = CryptoPair()
    pair.setup_initial(cid=b"original", is_client=of_client, version=version)
    keys = InitialKeyring(b"original").get(version, of_client=of_client)
    data = seal_long(INITIAL, version, b"", b"", b"", 0, bytes(20), keys.packet, keys.header)
    with pytest.raises(CryptoError):
        pair.decrypt_packet(data, 10, 0)
