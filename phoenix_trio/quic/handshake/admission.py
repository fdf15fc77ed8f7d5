"""Decides what happens to a datagram of no connection: drop, answer, or admit.

Floor 1, sans-IO.  For the driver.  All that an endpoint does for unauthenticated
peers is decided here, with bounded memory and bounded answers:

* an unknown version gets a Version Negotiation packet (RFC 9000 section 6);
* an Initial packet may have to prove its address by a Retry (section 8.1.2), unless it has
  a token of an earlier connection (section 8.1.3); it may be refused when a limit is
  reached (section 5.2.2), or is admitted, if it is authentic;
* a short header for no connection of ours gets a stateless reset which is
  smaller than what triggered it (section 10.3);
* all else is dropped.  No answer is larger than the datagram it answers.  Each kind of
  answer has a rate limit of its own, so that a flood of one kind does not suppress another.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from ...config import SMALLEST_UDP_PAYLOAD, TransportConfig
from ..connection_id_format import CONNECTION_ID_LENGTH, random_connection_id
from ..path_address import Address, SocketAddress, remote_of
from ..rate_limit import RateLimit
from ..shared_keys import SharedKeys
from ..wire.errors import CONNECTION_REFUSED
from ..wire.frames import PADDING, TOKEN_SIZE, build_transport_close
from ..wire.protection import VERSION_1, VERSION_2, seal_long
from .initial_protection import (
    InitialKeys,
    authenticate_initial,
    derive_initial_keys,
    initial_secret,
)
from .new_tokens import NEW_TOKEN_SIZE, ReturnToken, ReturnTokens
from .packets import INITIAL, LongHeader, parse_long, retry_tag
from .places import Place, Places
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

#: In the order of preference.
SUPPORTED_VERSIONS: tuple[int, ...] = (VERSION_1, VERSION_2)

#: RFC 9000 section 7.2: a client's first destination connection ID has at least 8 bytes.
_SMALLEST_INITIAL_CONNECTION_ID = 8

#: RFC 9000 section 10.3: header byte, 4 unpredictable bytes, token.
_SMALLEST_RESET = 21
_LARGEST_RESET = 42

_FULL = "The server takes no more connections"

#: Of a CONNECTION_CLOSE frame.
_CLOSE_ROOM = 80

#: The first byte of a Retry packet (RFC 9000 section 17.2.5, RFC 9369 section 3.2).
_RETRY_FIRST_BYTES = {VERSION_1: 0xF0, VERSION_2: 0xC0}


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
    has_returned: bool = False
    """Whether a token of an earlier connection has proved the client's address."""
    make_token: Callable[[Address, float], bytes] | None = attrs.field(default=None, repr=False)
    """Makes a token for a later connection from a proved address, at a time."""

    @property
    def is_validated(self) -> bool:
        """Whether the client has proved that it receives at its address (RFC 9000 section 8.1)."""
        return self.has_returned or self.retry_source_cid is not None


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
      make_connection_id: makes those by which clients address this endpoint.
    """

    def __init__(
        self,
        config: TransportConfig,
        reset_token: Callable[[bytes], bytes],
        make_connection_id: Callable[[], bytes] = random_connection_id,
    ) -> None:
        self._config = config
        self._reset_token = reset_token
        self._make_connection_id = make_connection_id
        self._keys: SharedKeys | None = None
        self._tokens = AddressTokens()
        self._return_tokens = ReturnTokens(config.address_token_lifetime)
        self.places: Places = Places(config)
        self._unvalidated = RateLimit(config.retry_admission_rate, config.retry_admission_rate)
        self._failures = RateLimit(config.retry_failure_rate, config.retry_failure_rate)
        # Enough for honest clients, useless as a reflector.  Retries are what lets honest
        # clients in during a flood; all others are answers to rare accidents.
        self._retries = RateLimit(rate=5000.0, burst=1000)
        self._negotiations = RateLimit(rate=200.0, burst=100)
        self._refusals = RateLimit(rate=200.0, burst=100)
        self._resets = RateLimit(rate=100.0, burst=50)

    def share(self, keys: SharedKeys | None) -> None:
        """From now on, take the tokens of others that have these keys; ``None``: of none."""
        if keys is not self._keys:
            self._keys = keys
            self._tokens = AddressTokens(keys=keys)
            self._return_tokens = ReturnTokens(self._config.address_token_lifetime, keys=keys)

    def judge_short(self, data: bytes, now: float) -> Drop | Answer:
        """A short header packet for no connection of ours."""
        size = min(len(data) - 1, _LARGEST_RESET)
        if size < _SMALLEST_RESET:
            return Drop("too short to answer")
        connection_id = destination_connection_id(data)
        if connection_id is None or not self._resets.allows(now):
            return Drop("rate limit")
        head = bytearray(os.urandom(size - TOKEN_SIZE))
        head[0] = 0x40 | (head[0] & 0x3F)
        return Answer("stateless reset", bytes(head) + self._reset_token(connection_id))

    def judge_long(
        self,
        data: bytes,
        address: SocketAddress,
        now: float,
        *,
        listening: bool,
        leaving: bool = False,
    ) -> Drop | Answer | Admit:
        """A long header packet for no connection of ours.

        Args:
          listening: whether clients are admitted.
          leaving: whether clients are refused, since the endpoint listened and will end soon.
        """
        if not listening and not leaving:
            return Drop("not listening")
        if len(data) < SMALLEST_UDP_PAYLOAD:
            # RFC 9000 sections 6.1 and 14.1: too small for an Initial packet of any version.
            return Drop("datagram too small")
        header = parse_long(data, 0)
        if header is None or header.version not in SUPPORTED_VERSIONS:
            return self._unknown_version(data, now)
        if header.kind != INITIAL:
            return Drop("not an Initial packet")
        if len(header.destination_cid) < _SMALLEST_INITIAL_CONNECTION_ID:
            return Drop("connection ID too short")
        return self._initial(data, header, address, now, leaving=leaving)

    def enter(self, verdict: Admit, address: SocketAddress, now: float) -> Place:
        """Take a place for the client that `verdict` has admitted."""
        if not verdict.is_validated:
            self._unvalidated.count(now)
        return self.places.enter(address, is_validated=verdict.is_validated)

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
            _version_negotiation(data[6:destination_end], data[destination_end + 1 : source_end]),
        )

    def _initial(
        self, data: bytes, header: LongHeader, address: SocketAddress, now: float, *, leaving: bool
    ) -> Drop | Answer | Admit:
        original: bytes | None = None
        returning: ReturnToken | None = None
        if header.token:
            try:
                if len(header.token) == NEW_TOKEN_SIZE:
                    returning = self._return_tokens.open(header.token, address, now)
                else:
                    original = self._tokens.open(header.token, address, header.destination_cid, now)
            except InvalidToken:
                pass  # RFC 9000 section 8.1.3: as if the client had sent none.
        is_full = leaving or self.places.is_full
        is_validated = original is not None or returning is not None
        if not is_validated and not is_full and self._demands_retry(address, now):
            return self._retry(header, address, now)
        keys = authenticate_initial(
            data,
            header.number_at,
            header.end,
            version=header.version,
            destination_cid=header.destination_cid,
        )
        if keys is None:
            return Drop("not authentic")
        if is_full:
            reason = "The server is shutting down" if leaving else _FULL
            return self._refuse(header, now, reason)
        if not self._has_share(address, now, is_validated=is_validated):
            return self._refuse(
                header, now, "The server takes no more connections from this address now"
            )
        if returning is not None:
            self._return_tokens.use(returning)
        cid = header.destination_cid
        return Admit(
            cid,
            cid if original is None else original,
            None if original is None else cid,
            keys,
            returning is not None,
            self._make_token if self._config.address_token_lifetime else None,
        )

    def _make_token(self, address: Address, now: float) -> bytes:
        """A token for a NEW_TOKEN frame to a client at `address`."""
        return self._return_tokens.seal(remote_of(address), now)

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

    def _retry(self, header: LongHeader, address: SocketAddress, now: float) -> Drop | Answer:
        if not self._retries.allows(now):
            return Drop("rate limit")
        source_cid = self._make_connection_id()
        token = self._tokens.seal(address, header.destination_cid, source_cid, now)
        return Answer("retry", _retry_packet(header, source_cid, token))

    def _refuse(self, header: LongHeader, now: float, reason: str) -> Drop | Answer:
        """CONNECTION_REFUSED in an Initial packet, without making a connection."""
        if not self._refusals.allows(now):
            return Drop("rate limit")
        version, cid = header.version, header.destination_cid
        common = initial_secret(version, cid)
        keys = derive_initial_keys(common, version, cid, of_client=False)
        packet = seal_long(
            INITIAL,
            version,
            header.source_cid,
            self._make_connection_id(),
            b"",
            0,
            build_transport_close(CONNECTION_REFUSED, PADDING, reason, _CLOSE_ROOM),
            keys.packet,
            keys.header,
        )
        return Answer("refusal", packet)


def _long_header(first_byte: int, version: int, destination: bytes, source: bytes) -> bytes:
    """What all long headers have in common (RFC 8999 section 5.1)."""
    return b"".join(
        (
            bytes((first_byte,)),
            version.to_bytes(4, "big"),
            bytes((len(destination),)),
            destination,
            bytes((len(source),)),
            source,
        )
    )


def _version_negotiation(source: bytes, destination: bytes) -> bytes:
    """RFC 9000 section 17.2.1, with the unused bits at random."""
    head = _long_header(os.urandom(1)[0] | 0x80, 0, destination, source)
    return head + b"".join(version.to_bytes(4, "big") for version in SUPPORTED_VERSIONS)


def _retry_packet(header: LongHeader, source: bytes, token: bytes) -> bytes:
    """RFC 9000 section 17.2.5, in answer to the Initial packet with that header."""
    version = header.version
    packet = _long_header(_RETRY_FIRST_BYTES[version], version, header.source_cid, source) + token
    return packet + retry_tag(packet, header.destination_cid, version)
