"""Transport parameters, with aioquic's as the oracle."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPreferredAddress,
    QuicTransportParameters,
    QuicVersionInformation,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.parameters import check_parameters, parse_parameters
from phoenix_trio.quic.wire.errors import (
    TRANSPORT_PARAMETER_ERROR,
    VERSION_NEGOTIATION_ERROR,
    TransportError,
)
from phoenix_trio.quic.wire.varint import encode_varint
from tests.support import examples

from .pair import local_parameters

NUMBERS = st.integers(0, (1 << 62) - 1)


def built(**arguments: Any) -> bytes:
    buffer = Buffer(capacity=4096)
    push_quic_transport_parameters(buffer, QuicTransportParameters(**arguments))
    return buffer.data


def test_what_we_announce_means_the_same_to_aioquic() -> None:
    data = local_parameters(idle_timeout=12.5).build(
        source_cid=b"source",
        version=1,
        versions=(1, 2),
        original_destination_cid=b"original",
        retry_source_cid=b"retry",
        reset_token=bytes(range(16)),
    )
    assert pull_quic_transport_parameters(Buffer(data=data)) == QuicTransportParameters(
        original_destination_connection_id=b"original",
        max_idle_timeout=12_500,
        stateless_reset_token=bytes(range(16)),
        max_udp_payload_size=65_527,
        initial_max_data=1_000_000,
        initial_max_stream_data_bidi_local=100_000,
        initial_max_stream_data_bidi_remote=100_000,
        initial_max_stream_data_uni=100_000,
        initial_max_streams_bidi=100,
        initial_max_streams_uni=50,
        ack_delay_exponent=3,
        max_ack_delay=25,
        active_connection_id_limit=8,
        initial_source_connection_id=b"source",
        retry_source_connection_id=b"retry",
        version_information=QuicVersionInformation(1, [1, 2]),
        max_datagram_frame_size=65_535,
    )


@pytest.mark.parametrize(
    ("seconds", "announced"), [(math.inf, 0), (1e9, 0), (0.0001, 1), (0.5, 500)]
)
def test_idle_timeouts(seconds: float, announced: int) -> None:
    data = local_parameters(idle_timeout=seconds).build(source_cid=b"", version=1, versions=(1,))
    assert pull_quic_transport_parameters(Buffer(data=data)).max_idle_timeout == announced


@given(
    numbers=st.tuples(*[NUMBERS] * 4),
    streams=st.tuples(*[st.integers(0, 1 << 60)] * 2),
    exponent=st.integers(0, 20),
    max_ack_delay=st.integers(0, (1 << 14) - 1),
    idle_timeout=NUMBERS,
    payload=st.integers(1200, 1 << 40),
    limit=st.integers(2, 1 << 40),
    frame_size=NUMBERS,
)
@examples(50)
def test_what_aioquic_announces_means_the_same_to_us(
    numbers: tuple[int, ...],
    streams: tuple[int, ...],
    exponent: int,
    max_ack_delay: int,
    idle_timeout: int,
    payload: int,
    limit: int,
    frame_size: int,
) -> None:
    peer = parse_parameters(
        built(
            initial_max_data=numbers[0],
            initial_max_stream_data_bidi_local=numbers[1],
            initial_max_stream_data_bidi_remote=numbers[2],
            initial_max_stream_data_uni=numbers[3],
            initial_max_streams_bidi=streams[0],
            initial_max_streams_uni=streams[1],
            ack_delay_exponent=exponent,
            max_ack_delay=max_ack_delay,
            max_idle_timeout=idle_timeout,
            max_udp_payload_size=payload,
            active_connection_id_limit=limit,
            max_datagram_frame_size=frame_size,
            disable_active_migration=True,
            quantum_readiness=b"Q" * 100,
        ),
        of_server=False,
    ).peer
    assert numbers == (
        peer.max_data,
        peer.max_stream_data_bidi_local,
        peer.max_stream_data_bidi_remote,
        peer.max_stream_data_uni,
    )
    assert streams == (peer.max_streams_bidi, peer.max_streams_uni)
    assert peer.disable_active_migration
    assert peer.ack_delay_exponent == exponent
    assert peer.max_ack_delay == max_ack_delay / 1000
    assert peer.max_idle_timeout == (idle_timeout / 1000 if idle_timeout else math.inf)
    assert peer.max_udp_payload_size == payload
    assert peer.active_connection_id_limit == limit
    assert peer.max_datagram_frame_size == frame_size


def test_absent_parameters_have_their_defaults() -> None:
    peer = parse_parameters(b"", of_server=True).peer
    assert (peer.ack_delay_exponent, peer.max_ack_delay) == (3, 0.025)
    assert (peer.max_udp_payload_size, peer.active_connection_id_limit) == (65_527, 2)
    assert (peer.max_data, peer.max_streams_uni, peer.max_idle_timeout) == (0, 0, math.inf)
    assert peer.stateless_reset_token == b""


def test_preferred_addresses() -> None:
    preferred = QuicPreferredAddress(("192.0.2.1", 443), ("2001:db8::1", 444), b"cid", bytes(16))
    peer = parse_parameters(built(preferred_address=preferred), of_server=True).peer
    found = peer.preferred_address
    assert found is not None
    assert (found.ipv4, found.ipv6) == (("192.0.2.1", 443), ("2001:db8::1", 444))
    assert (found.connection_id, found.reset_token) == (b"cid", bytes(16))
    none = QuicPreferredAddress(None, None, b"cid", bytes(16))
    found = parse_parameters(built(preferred_address=none), of_server=True).peer.preferred_address
    assert found is not None
    assert (found.ipv4, found.ipv6) == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        built(active_connection_id_limit=1),
        built(ack_delay_exponent=21),
        built(max_ack_delay=1 << 14),
        built(initial_max_streams_bidi=(1 << 60) + 1),
        built(initial_max_streams_uni=(1 << 60) + 1),
        built(max_udp_payload_size=1199),
        built(stateless_reset_token=bytes(15)),
        built(initial_max_data=1) + built(initial_max_data=2),
        built(version_information=QuicVersionInformation(1, [0])),
        built(version_information=QuicVersionInformation(0, [1])),
        built(preferred_address=QuicPreferredAddress(None, None, b"", bytes(16))),
        b"\x0d\x03abc",
        b"\x11\x03abc",
        b"\x11\x00",
        b"\x0c\x01\x00",  # disable_active_migration with a value
        b"\x04\x02\x01\x01",  # a number with something behind it
        b"\x04\x01\x40",  # a number that is cut short
        b"\x04\x05\x01",  # a length beyond the end
        b"\x40",
        b"\x04",
    ],
)
def test_what_no_server_may_announce(data: bytes) -> None:
    with pytest.raises(TransportError) as info:
        parse_parameters(data, of_server=True)
    assert info.value.code == TRANSPORT_PARAMETER_ERROR


@pytest.mark.parametrize(
    "data",
    [
        built(original_destination_connection_id=b"x"),
        built(retry_source_connection_id=b"x"),
        built(stateless_reset_token=bytes(16)),
        built(preferred_address=QuicPreferredAddress(None, None, b"x", bytes(16))),
        built(version_information=QuicVersionInformation(1, [2])),
    ],
)
def test_what_no_client_may_announce(data: bytes) -> None:
    with pytest.raises(TransportError) as info:
        parse_parameters(data, of_server=False)
    assert info.value.code == TRANSPORT_PARAMETER_ERROR
    if not data.startswith(b"\x11"):
        parse_parameters(data, of_server=True)


@given(st.binary(max_size=200))
@examples(200)
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(TransportError):
        parse_parameters(data, of_server=True)


@given(st.integers(0x21, 1 << 40), st.binary(max_size=50))
@examples(30)
def test_unknown_parameters_are_skipped(kind: int, content: bytes) -> None:
    data = encode_varint(kind) + encode_varint(len(content)) + content
    assert parse_parameters(data + built(initial_max_data=7), of_server=True).peer.max_data == 7


FACTS: dict[str, Any] = {
    "is_client": True,
    "peer_source_cid": b"peer",
    "original_destination_cid": b"original",
    "retry_source_cid": None,
    "version": 1,
}
SAID: dict[str, Any] = {
    "initial_source_connection_id": b"peer",
    "original_destination_connection_id": b"original",
    "version_information": QuicVersionInformation(1, [1]),
}


def check(said: dict[str, Any], **facts: Any) -> None:
    check_parameters(parse_parameters(built(**said), of_server=True), **{**FACTS, **facts})


def test_parameters_which_match_the_packets() -> None:
    check(SAID)
    check({**SAID, "retry_source_connection_id": b"retry"}, retry_source_cid=b"retry")
    check({**SAID, "version_information": None})


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"initial_source_connection_id": b"another"}, TRANSPORT_PARAMETER_ERROR),
        ({"initial_source_connection_id": None}, TRANSPORT_PARAMETER_ERROR),
        ({"original_destination_connection_id": b"another"}, TRANSPORT_PARAMETER_ERROR),
        ({"original_destination_connection_id": None}, TRANSPORT_PARAMETER_ERROR),
        ({"retry_source_connection_id": b"retry"}, TRANSPORT_PARAMETER_ERROR),
        ({"version_information": QuicVersionInformation(2, [2])}, VERSION_NEGOTIATION_ERROR),
    ],
)
def test_parameters_which_do_not(said: dict[str, Any], code: int) -> None:
    with pytest.raises(TransportError) as info:
        check({**SAID, **said})
    assert info.value.code == code


def test_a_retry_of_which_the_server_does_not_know() -> None:
    with pytest.raises(TransportError):
        check(SAID, retry_source_cid=b"retry")


def test_no_preferred_address_without_a_connection_id() -> None:
    preferred = QuicPreferredAddress(None, None, b"x", bytes(16))
    said = {**SAID, "initial_source_connection_id": b"", "preferred_address": preferred}
    with pytest.raises(TransportError):
        check(said, peer_source_cid=b"")
