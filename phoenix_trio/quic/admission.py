"""What to do with a datagram which belongs to no connection: drop, answer, or admit?

Floor 1, sans-IO.  For the driver.  Everything an unauthenticated stranger can
make an endpoint do is decided here, with bounded memory and bounded answers:

* an unknown version gets a Version Negotiation packet (RFC 9000 section 6);
* an Initial packet may have to prove its address by a Retry (section 8.1.2),
  may be refused when a limit is reached (section 5.2.2), or is admitted, if it is
  authentic;
* a short header for no connection of ours gets a stateless reset which is
  smaller than what triggered it (section 10.3);
* all else is dropped.  No answer is larger than the datagram it answers.  Each kind of
  answer has a rate limit of its own, so that a flood of one kind does not suppress another.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

from ..config import SMALLEST_UDP_PAYLOAD, TransportConfig
from .initial_protection import InitialKeys, authenticate_initial
from .packet_io import SocketAddress
from .places import Place, Places
from .rate_limit import RateLimit
from .retry import AddressTokens, InvalidToken

__all__ = [
    "CONNECTION_ID_LENGTH",
    "SUPPORTED_VERSIONS",
    "Admission",
    "Admit",
    "Answer",
    "Drop",
    "destination_connection_id",
]

#: Bytes of the connection IDs which we choose, so that short headers can be parsed.
CONNECTION_ID_LENGTH = 8

#: In the order of preference.
SUPPORTED_VERSIONS: tuple[int, ...] = (
    int(QuicProtocolVersion.VERSION_1),
    int(QuicProtocolVersion.VERSION_2),
)

#: RFC 9000 section 7.2: a client's first destination connection ID has at least 8 bytes.
_SMALLEST_INITIAL_CONNECTION_ID = 8

_RESET_TOKEN_LENGTH = 16
#: RFC 9000 section 10.3: header byte, 4 unpredictable bytes, token.
_SMALLEST_RESET = 21
_LARGEST_RESET = 42

_TRANSPORT_CLOSE_CAPACITY = 80


@attrs.frozen
class Drop:
    """Nothing happens."""

    reason: str


@attrs.frozen
class Answer:
    """Send `data` back, and keep no state."""

    kind: str
    data: bytes


@attrs.frozen
class Admit:
    """Make a server connection for this Initial packet."""

    destination_cid: bytes
    """The connection ID by which the client addresses us until it knows ours."""
    original_destination_cid: bytes
    retry_source_cid: bytes | None
    initial_keys: InitialKeys | None = attrs.field(default=None, repr=False)
    """The client's, which were derived to see that its packet is authentic."""


def destination_connection_id(data: bytes) -> bytes | None:
    """The destination connection ID of the first packet (RFC 8999); ``None``: malformed."""
    if not data:
        return None
    if data[0] & 0x80:
        if len(data) < 7:
            return None
        end = 6 + data[5]
        return data[6:end] if end <= len(data) else None
    end = 1 + CONNECTION_ID_LENGTH
    return data[1:end] if len(data) >= end else None


class Admission:
    """The gate of one endpoint.

    Args:
      config: limits and the Retry policy.
      reset_token: derives the stateless reset token of a connection ID.
    """

    def __init__(self, config: TransportConfig, reset_token: Callable[[bytes], bytes]) -> None:
        self._config = config
        self._reset_token = reset_token
        self._tokens = AddressTokens()
        self.places = Places(config)
        self._unvalidated = RateLimit(config.retry_admission_rate, config.retry_admission_rate)
        self._failures = RateLimit(config.retry_failure_rate, config.retry_failure_rate)
        # Enough for honest clients, useless as a reflector.  Retries are what lets honest
        # clients in during a flood; all others are answers to rare accidents.
        self._retries = RateLimit(rate=5000.0, burst=1000)
        self._negotiations = RateLimit(rate=200.0, burst=100)
        self._refusals = RateLimit(rate=200.0, burst=100)
        self._resets = RateLimit(rate=100.0, burst=50)

    def judge_short(self, data: bytes, now: float) -> Drop | Answer:
        """A short header packet for no connection of ours."""
        size = min(len(data) - 1, _LARGEST_RESET)
        if size < _SMALLEST_RESET:
            return Drop("too short to answer")
        connection_id = destination_connection_id(data)
        if connection_id is None or not self._resets.allows(now):
            return Drop("rate limit")
        head = bytearray(os.urandom(size - _RESET_TOKEN_LENGTH))
        head[0] = 0x40 | (head[0] & 0x3F)
        return Answer("stateless reset", bytes(head) + self._reset_token(connection_id))

    def judge_long(
        self,
        data: bytes,
        address: SocketAddress,
        now: float,
        *,
        listening: bool,
    ) -> Drop | Answer | Admit:
        """A long header packet for no connection of ours."""
        if not listening:
            return Drop("not listening")
        if len(data) < SMALLEST_UDP_PAYLOAD:
            # RFC 9000 sections 6.1 and 14.1: too small for an Initial packet of any version.
            return Drop("datagram too small")
        buf = Buffer(data=data)
        try:
            header = pull_quic_header(buf, host_cid_length=CONNECTION_ID_LENGTH)
        except ValueError:
            return self._unknown_version(data, now)
        if header.version not in SUPPORTED_VERSIONS:
            return self._unknown_version(data, now)
        if header.packet_type is not QuicPacketType.INITIAL:
            return Drop("not an Initial packet")
        if len(header.destination_cid) < _SMALLEST_INITIAL_CONNECTION_ID:
            return Drop("connection ID too short")
        return self._initial(data, buf.tell(), header, address, now)

    def enter(self, verdict: Admit, address: SocketAddress, now: float) -> Place:
        """Take a place for the client which was admitted by `verdict`."""
        is_validated = verdict.retry_source_cid is not None
        if not is_validated:
            self._unvalidated.count(now)
        return self.places.enter(address, is_validated=is_validated)

    def note_failure(self, place: Place, now: float) -> None:
        """The handshake in this place has failed."""
        if place.is_validated or self._config.retry == "never":
            place.count_failure(now)
        else:
            # The address may be forged.
            self._failures.count(now)

    def _unknown_version(self, data: bytes, now: float) -> Drop | Answer:
        """RFC 8999 section 5: only the version-independent fields can be trusted to be there."""
        version = int.from_bytes(data[1:5], "big")
        if version == 0 or version in SUPPORTED_VERSIONS:
            return Drop("malformed")
        destination_end = 6 + data[5]
        if destination_end + 1 > len(data):
            return Drop("malformed")
        source_end = destination_end + 1 + data[destination_end]
        if source_end > len(data) or not self._negotiations.allows(now):
            return Drop("malformed or rate limit")
        return Answer(
            "version negotiation",
            encode_quic_version_negotiation(
                source_cid=data[6:destination_end],
                destination_cid=data[destination_end + 1 : source_end],
                supported_versions=list(SUPPORTED_VERSIONS),
            ),
        )

    def _initial(
        self, data: bytes, number_at: int, header: QuicHeader, address: SocketAddress, now: float
    ) -> Drop | Answer | Admit:
        original: bytes | None = None
        if header.token:
            try:
                original = self._tokens.open(header.token, address, header.destination_cid, now)
            except InvalidToken:
                # RFC 9000 section 8.1.3: as if the client had sent none.
                original = None
        is_full = self.places.is_full
        if original is None and not is_full and self._demands_retry(address, now):
            return self._retry(header, address, now)
        assert header.version is not None
        assert header.packet_length is not None
        keys = authenticate_initial(
            data,
            number_at,
            header.packet_length,
            version=header.version,
            destination_cid=header.destination_cid,
        )
        if keys is None:
            return Drop("not authentic")
        if is_full:
            return self._refuse(header, now, b"The server takes no more connections")
        if not self._has_share(address, now, is_validated=original is not None):
            return self._refuse(
                header, now, b"The server takes no more connections from this address now"
            )
        if original is not None:
            return Admit(header.destination_cid, original, header.destination_cid, keys)
        return Admit(header.destination_cid, header.destination_cid, None, keys)

    def _demands_retry(self, address: SocketAddress, now: float) -> bool:
        """Whether a client at `address` has to prove it (RFC 9000 section 8.1.2)."""
        config, places = self._config, self.places
        if config.retry != "under-load":
            return config.retry == "always"
        return (
            places.handshakes >= config.retry_threshold
            or self._failures.is_reached(now)
            or self._unvalidated.is_reached(now)
            or not places.has_unvalidated_left(address, now)
        )

    def _has_share(self, address: SocketAddress, now: float, *, is_validated: bool) -> bool:
        if is_validated:
            return self.places.has_share_left(address, now)
        # Otherwise `_demands_retry` has asked.
        return self._config.retry != "never" or self.places.has_unverifiable_left(address, now)

    def _retry(self, header: QuicHeader, address: SocketAddress, now: float) -> Drop | Answer:
        assert header.version is not None
        if not self._retries.allows(now):
            return Drop("rate limit")
        source_cid = os.urandom(CONNECTION_ID_LENGTH)
        return Answer(
            "retry",
            encode_quic_retry(
                version=header.version,
                source_cid=source_cid,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=self._tokens.seal(address, header.destination_cid, source_cid, now),
            ),
        )

    def _refuse(self, header: QuicHeader, now: float, reason: bytes) -> Drop | Answer:
        """CONNECTION_REFUSED in an Initial packet, without making a connection."""
        assert header.version is not None
        if not self._refusals.allows(now):
            return Drop("rate limit")
        crypto = CryptoPair()
        crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
        builder = QuicPacketBuilder(
            host_cid=os.urandom(CONNECTION_ID_LENGTH),
            peer_cid=header.source_cid,
            version=header.version,
            is_client=False,
            max_datagram_size=SMALLEST_UDP_PAYLOAD,
        )
        builder.start_packet(QuicPacketType.INITIAL, crypto)
        buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=_TRANSPORT_CLOSE_CAPACITY)
        buf.push_uint_var(QuicErrorCode.CONNECTION_REFUSED)
        buf.push_uint_var(QuicFrameType.PADDING)
        buf.push_uint_var(len(reason))
        buf.push_bytes(reason)
        datagrams, _ = builder.flush()
        return Answer("refusal", datagrams[0])
