"""Reads datagrams of a handshake: opens its packets, and takes their frames.

Floor 1, sans-IO.  Any host can send authentic Initial packets (RFC 9001 section 5.2), so
nothing here trusts them.  Packets of application data are handed to
the owner, or wait for their keys.
"""

from __future__ import annotations

import logging
from typing import Final

from ...config import SMALLEST_UDP_PAYLOAD
from ..established.crypto_stream import CryptoStreamError
from ..established.paths import Path
from ..logs import bounded_logger
from ..path_address import Address
from ..wire import frames
from ..wire.describe import describe_frames
from ..wire.errors import INTERNAL_ERROR, PROTOCOL_VIOLATION, TransportError
from ..wire.protection import NotAuthentic, open_packet
from .early_packets import EarlyPacket
from .host import APPLICATION, EARLY
from .packets import (
    HANDSHAKE,
    INITIAL,
    NAMES,
    NEGOTIATION,
    RETRY,
    UNKNOWN,
    ZERO_RTT,
    LongHeader,
    has_reserved_bits,
    parse_long,
    parse_versions,
    retry_tag,
)
from .space import Keys, Space
from .state import HANDSHAKE_LEVEL, HandshakeState
from .tls_link import TlsLink

__all__ = ["HandshakeReceiver"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: How often a server sends its flight early because the client repeats its hello.
_ANSWERS_TO_REPEATED_HELLOS: Final = 8


class HandshakeReceiver:
    """The receiving half of one handshake.

    Args:
      state: the handshake.
      link: its TLS.
    """

    __slots__ = (
        "_answers_left",
        "_has_negotiated",
        "_has_repeated_hello",
        "_link",
        "_now",
        "_state",
    )

    def __init__(self, state: HandshakeState, link: TlsLink) -> None:
        self._state = state
        self._link = link
        self._now = 0.0
        self._answers_left = _ANSWERS_TO_REPEATED_HELLOS
        self._has_repeated_hello = False
        self._has_negotiated = False

    def receive(self, data: bytes, address: Address, now: float, mark: int) -> None:
        """Take one datagram, and the packets that were waiting for keys in it."""
        state = self._state
        paths = state.host.paths
        if state.is_client and not paths.knows(address):
            return  # RFC 9000 section 9: packets from an unknown server are discarded
        path = paths.find(address)
        paths.count_received(path, len(data))
        was_complete = state.is_complete
        proved = [each for each in paths.all if each.is_validated]
        early = state.early
        if early is not None:
            early.begin_datagram(address, now, mark)
        self._take_packets(data, path, now, mark)
        if not state.is_client and not was_complete and len(paths.all) > 1:
            self._doubt_addresses(proved)
        while early is not None and not state.is_over:
            packet = early.next_due()
            if packet is None:
                break
            self._take_early(packet)
        if state.is_complete:
            state.early = None

    def _doubt_addresses(self, proved: list[Path]) -> None:
        """RFC 9000 section 8.1: a Handshake packet proves that its sender received at an address.

        That is where the packet was sent before, perhaps not the one from which it comes.
        There, a PATH_CHALLENGE has to be answered, as after any other change of address.
        """
        self._state.came_from_one_address = False
        for path in self._state.host.paths.all:
            if path not in proved:
                path.is_validated = False

    def _take_early(self, packet: EarlyPacket) -> None:
        """A packet whose keys have come, as of the time when it arrived."""
        path = self._state.host.paths.find(packet.address)
        self._take_packets(packet.data, path, packet.time, packet.mark)

    # -- packets

    def _take_packets(self, data: bytes, path: Path, now: float, mark: int) -> None:
        """Take the packets coalesced in a datagram (RFC 9000 section 12.2)."""
        state = self._state
        self._now = now
        at, size = 0, len(data)
        while at < size and not state.is_over:
            first = data[at]
            if not first & 0x80:
                # A short header, whose packet reaches to the end of the datagram.
                if first & 0x40:
                    packet = data[at:] if at else data
                    self._take_application(APPLICATION, packet, path.addr, now, mark)
                return
            header = parse_long(data, at)
            if header is None:
                return
            kind = header.kind
            if kind == NEGOTIATION:
                self._take_negotiation(header, data)
                return
            if kind == UNKNOWN or header.version not in state.settings.versions:
                return
            if not self._is_for_us(header):
                return
            if kind == RETRY:
                self._take_retry(header, data, at)
                return
            if (
                state.is_client
                and state.peer_source_cid is not None
                and header.source_cid != state.peer_source_cid
            ):
                pass  # RFC 9000 section 7.2: of another connection
            elif kind == INITIAL and size < SMALLEST_UDP_PAYLOAD and not state.is_client:
                self._log_drop("initial_packet_datagram_too_small", header, at)  # section 14.1
            elif kind == ZERO_RTT:
                packet = data[at : header.end]
                self._take_application(EARLY, packet, path.addr, now, mark)
            else:
                self._take_handshake(header, data, at, path, now, mark)
            at = header.end

    def _is_for_us(self, header: LongHeader) -> bool:
        """Whether the packet has the connection ID of this side, or that of a client's choice."""
        state = self._state
        return header.destination_cid == state.host_cid or (
            not state.is_client
            and header.kind in (INITIAL, ZERO_RTT)
            and header.destination_cid == state.keyring.destination_cid
        )

    def _take_application(
        self, level: int, packet: bytes, address: Address, now: float, mark: int
    ) -> None:
        """Hand a packet of application data to the owner, or keep it until there are keys."""
        state = self._state
        if state.can_open_application if level == APPLICATION else state.can_open_early:
            state.host.on_packet(level, packet, address, now, mark)
            return
        if state.early is not None:
            state.early.offer(level, packet)
        if level == APPLICATION:
            self._suspect_loss()

    def _suspect_loss(self) -> None:
        """Client: the server has answered, and its answer to the hello is missing.

        RFC 9002 section 6.2.3; once, for any host can send such packets.
        """
        if (
            self._state.is_client
            and not self._has_repeated_hello
            and self._link.expects_server_hello
        ):
            self._has_repeated_hello = True
            self._state.repeat()

    def _take_handshake(
        self, header: LongHeader, data: bytes, start: int, path: Path, now: float, mark: int
    ) -> None:
        """An Initial or Handshake packet."""
        state = self._state
        kind = header.kind
        space = state.initial if kind == INITIAL else state.handshake
        keys = self._receive_keys(space, header.version)
        if keys is None:
            if kind == HANDSHAKE:
                if state.early is not None:
                    state.early.offer(HANDSHAKE_LEVEL, data[start : header.end])
                self._suspect_loss()
            self._log_drop("key_unavailable", header, start)
            return
        received = space.received
        try:
            first, number, payload = open_packet(
                data,
                start,
                header.number_at,
                header.end,
                keys.packet,
                keys.header,
                received.expected,
            )
        except NotAuthentic:
            self._log_drop("payload_decrypt_error", header, start)
            return
        if received.is_duplicate(number):
            self._log_drop("duplicate", header, start)
            return
        if state.trace is not None:
            self._log_packet(header, number, payload, header.end - start)
        if not state.is_client and kind == HANDSHAKE and not state.initial.is_discarded:
            state.recovery.discard(state.initial)  # RFC 9001 section 4.9.1
        is_newest = number > received.largest
        try:
            if not state.has_peer:
                self._meet_peer(header, path)
            if has_reserved_bits(first):
                raise TransportError(PROTOCOL_VIOLATION, 0, "Reserved bits must be zero")
            is_eliciting = self._take_frames(space, payload, header.version)
        except TransportError as error:
            self._fail(error)
            return
        if state.is_over:
            return
        state.host.on_received(now)
        self._follow(path, kind, is_newest)
        if not space.is_discarded:
            received.note(number, now, is_eliciting, mark, header.end - start)

    def _receive_keys(self, space: Space, version: int) -> Keys | None:
        if space.is_discarded:
            return None
        if space.kind == HANDSHAKE:
            return space.receive_keys
        return self._state.keyring.get(version, of_client=not self._state.is_client)

    def _meet_peer(self, header: LongHeader, path: Path) -> None:
        """The first authentic packet of the peer (RFC 9000 section 7.2)."""
        state = self._state
        state.has_peer = True
        state.peer_source_cid = state.peer_cid = header.source_cid
        if not state.is_client:
            state.set_version(header.version)
            state.host.paths.all[:] = [path]
            if state.settings.is_validated:
                path.is_validated = True  # by its token (RFC 9000 section 8.1)
        state.host.on_peer_cid(header.source_cid)
        if not state.is_client:
            self._link.begin()

    def _follow(self, path: Path, kind: int, is_newest: bool) -> None:
        """RFC 9000 section 9.3: a client may seem to move while it shakes hands."""
        state = self._state
        if state.is_client:
            return
        if kind == HANDSHAKE and not path.is_validated:
            path.is_validated = True  # RFC 9000 section 8.1
        paths = state.host.paths
        if path is paths.all[0]:
            return
        if path not in paths.all:
            paths.add(path, state.host.peer_ids)
        if is_newest:
            paths.promote(path, state.host.peer_ids)

    def _fail(self, error: TransportError) -> None:
        """The peer has broken the protocol, or TLS has failed."""
        state = self._state
        if state.is_over:
            return
        # At debug level: the peer decides how often this happens.
        logger.debug("[%s] %s", state.original_destination_cid.hex(), error)
        state.is_over = True
        state.host.on_fault(error.code, error.frame_type, error.reason)

    # -- frames

    def _take_frames(self, space: Space, payload: bytes, version: int) -> bool:
        """The frames of a packet; whether any has to be acknowledged.

        Raises:
          TransportError: they break the protocol.
        """
        if not payload:
            raise TransportError(PROTOCOL_VIOLATION, 0, "Packet contains no frames")
        state = self._state
        is_eliciting = False
        at, size = 0, len(payload)
        while at < size and not state.is_over:
            kind = payload[at]
            if kind == frames.PADDING:
                at = frames.parse_padding(payload, at)
            elif kind == frames.CRYPTO:
                is_eliciting = True
                offset, begin, at = frames.parse_crypto(payload, at)
                self._take_crypto(space, offset, payload[begin:at], version)
            elif kind in (frames.ACK, frames.ACK_ECN):
                at = self._take_ack(space, payload, at)
            elif kind == frames.PING:
                is_eliciting = True
                at = frames.parse_ping(payload, at)
            elif kind == frames.TRANSPORT_CLOSE:
                code, frame_type, reason, at = frames.parse_close(payload, at)
                state.is_over = True
                state.host.on_peer_close(code, frame_type, reason)
            elif kind < len(frames.IS_KNOWN) and frames.IS_KNOWN[kind]:
                # RFC 9000 section 12.4
                raise TransportError(PROTOCOL_VIOLATION, kind, "Unexpected frame type")
            else:
                raise frames.unknown_type(payload, at)
        return is_eliciting

    def _take_ack(self, space: Space, payload: bytes, at: int) -> int:
        state = self._state
        _, delay, ranges, _, at = frames.parse_ack(payload, at)
        if space.kind == HANDSHAKE:
            state.recovery.peer_knows_address = True
        if not space.is_discarded:
            seconds = (delay << state.ack_delay_exponent) / 1_000_000
            state.recovery.on_ack(space, ranges, seconds, self._now)
        return at

    def _take_crypto(self, space: Space, offset: int, data: bytes, version: int) -> None:
        if not data:
            return
        state, link, receiver = self._state, self._link, space.receiver
        try:
            if receiver.receive(offset, data):
                message = receiver.next_message()
                while message is not None:
                    link.take(message, version)
                    message = receiver.next_message()
                link.note_progress()
                return
        except CryptoStreamError as error:
            raise TransportError(error.error_code, frames.CRYPTO, str(error)) from None
        if not state.is_client and space.kind == INITIAL and receiver.is_closed:
            self._answer_repeated_hello()

    def _answer_repeated_hello(self) -> None:
        """RFC 9002 section 6.2.3: a client which repeats its hello did not get the answer.

        A few times, and not while an answer may still be on its way.
        """
        state = self._state
        if state.probe_pending or not self._answers_left:
            return
        recovery = state.recovery
        patience = state.host.rtt.probe_timeout(recovery.max_ack_delay)
        if (
            self._answers_left == _ANSWERS_TO_REPEATED_HELLOS
            or self._now >= recovery.last_eliciting_sent + patience
        ):
            self._answers_left -= state.repeat()

    # -- unprotected packets

    def _take_retry(self, header: LongHeader, data: bytes, start: int) -> None:
        """Client: a Retry packet (RFC 9000 section 17.2.5).

        At most one, before any other packet of the server.  The hello stays the same.
        """
        state = self._state
        if (
            not state.is_client
            or state.has_peer
            or state.retry_source_cid is not None
            or header.source_cid == state.peer_cid
            or not header.token
            or header.version != state.version
        ):
            return
        tag = retry_tag(data[start : header.number_at], state.peer_cid, header.version)
        if tag != data[header.number_at : header.end]:
            return
        if state.trace is not None:
            self._log_received("retry", header, [], None, header.end - start)
        state.peer_cid = state.retry_source_cid = header.source_cid
        state.token = header.token
        state.set_destination(header.source_cid)
        state.recovery.restart(state.initial)
        state.host.on_peer_cid(header.source_cid)
        state.host.on_retry()

    def _take_negotiation(self, header: LongHeader, data: bytes) -> None:
        """Client: a Version Negotiation packet (RFC 9000 section 6.2, RFC 9368 section 2.1).

        At most one, before any other packet of the server.
        """
        state = self._state
        offered = parse_versions(data, header.number_at)
        if (
            not state.is_client
            or state.has_peer
            or self._has_negotiated
            or header.destination_cid != state.host_cid
            or header.source_cid != state.peer_cid
            or not offered
            or state.version in offered
        ):
            return
        if state.trace is not None:
            self._log_received("version_negotiation", header, [], None, len(data))
        common = [version for version in state.settings.versions if version in offered]
        if not common:
            self._fail(
                TransportError(INTERNAL_ERROR, 0, "Could not find a common protocol version")
            )
            return
        self._has_negotiated = True
        state.recovery.discard(state.initial)
        state.initial = Space(INITIAL)
        state.set_version(common[0])
        state.recovery.spaces = (state.initial, state.handshake)
        state.host.on_retry()
        self._link.begin_anew()

    # -- qlog

    def _log_drop(self, trigger: str, header: LongHeader, start: int) -> None:
        state = self._state
        if state.trace is not None:
            state.log(
                "transport", "packet_dropped", trigger=trigger, raw={"length": header.end - start}
            )

    def _log_packet(self, header: LongHeader, number: int, payload: bytes, size: int) -> None:
        name = NAMES[header.kind]
        self._log_received(name, header, describe_frames(payload), number, size)

    def _log_received(
        self,
        name: str,
        header: LongHeader,
        described: list[dict[str, object]],
        number: int | None,
        size: int,
    ) -> None:
        told: dict[str, object] = {
            "packet_type": name,
            "scid": header.source_cid.hex(),
            "dcid": header.destination_cid.hex(),
        }
        if number is not None:
            told["packet_number"] = number
        self._state.log(
            "transport", "packet_received", frames=described, header=told, raw={"length": size}
        )
