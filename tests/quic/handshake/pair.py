"""Two handshakes, each with a small owner, and a network between them that a test controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import trustme
from aioquic.quic.packet import encode_quic_retry

import phoenix_trio
from phoenix_trio.quic.established.congestion import make_control
from phoenix_trio.quic.established.connection_ids import PeerIds
from phoenix_trio.quic.established.parameters import PeerParameters
from phoenix_trio.quic.established.paths import Paths
from phoenix_trio.quic.established.rtt import RoundTrip
from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.connection import Handshake
from phoenix_trio.quic.handshake.host import APPLICATION, EARLY
from phoenix_trio.quic.handshake.packets import INITIAL, parse_long
from phoenix_trio.quic.handshake.parameters import LocalParameters
from phoenix_trio.quic.handshake.settings import (
    HandshakeSettings,
    client_settings,
    server_settings,
)
from phoenix_trio.quic.path_address import Address
from phoenix_trio.quic.wire import frames
from phoenix_trio.quic.wire.protection import (
    FIRST_BYTE,
    ZERO_RTT,
    PacketKey,
    header_key,
    seal_long,
    seal_one,
)
from tests.support import ALPN, authority, client_tls, server_tls

SERVER = ("10.0.0.1", 4433)
CLIENT = ("10.0.0.2", 50000)
RETRY_CID = b"retrycid"


def local_parameters(**changes: Any) -> LocalParameters:
    values: dict[str, Any] = {
        "idle_timeout": 30.0,
        "max_data": 1_000_000,
        "max_stream_data": 100_000,
        "max_streams_bidi": 100,
        "max_streams_uni": 50,
        "max_datagram_frame_size": 65_535,
    }
    return LocalParameters(**{**values, **changes})


class Owner:
    """One side: the least that a handshake needs, which remembers what it was told."""

    def __init__(
        self,
        settings: HandshakeSettings,
        address: Address,
        parameters: LocalParameters | None = None,
    ) -> None:
        self.is_client = settings.is_client
        self.address = address
        self.paths = Paths(settings.is_client)
        self.peer_ids = PeerIds(b"")
        self.rtt = RoundTrip(0.1)
        self.control = make_control("cubic", 1200)
        self.handshake = Handshake(self, settings, parameters or local_parameters())
        self.log: list[tuple[Any, ...]] = []
        self.keys: dict[tuple[int, bool], tuple[int, bytes, int]] = {}
        self.parameters: list[tuple[PeerParameters, bool]] = []
        self.packets: list[tuple[int, bytes]] = []
        self.crypto = b""
        self.completed: tuple[str | None, bool, bool] | None = None
        self.fault: tuple[int, int, str] | None = None
        self.peer_close: tuple[int, int, str] | None = None
        self.receipts: list[float] = []
        self.eliciting_sent: list[float] = []

    # -- HandshakeHost

    def coalesce(self, now: float, room: int, must_fill: bool) -> bytes:
        return b""

    def on_peer_cid(self, cid: bytes) -> None:
        self.peer_ids.current.cid = cid
        self.log.append(("peer_cid", cid))

    def on_keys(
        self, level: int, for_sending: bool, suite: int, secret: bytes, version: int
    ) -> None:
        self.keys[level, for_sending] = suite, secret, version
        self.log.append(("keys", level, for_sending))

    def on_packet(self, level: int, packet: bytes, address: Address, now: float, mark: int) -> None:
        self.packets.append((level, packet))
        self.log.append(("packet", level, address, now, mark))
        if level == APPLICATION and self.is_client and self.opens(packet) == b"\x1e\0":
            self.handshake.confirm()

    def on_parameters(self, parameters: PeerParameters, remembered: bool) -> None:
        self.parameters.append((parameters, remembered))
        self.log.append(("parameters", remembered))

    def on_crypto(self, data: bytes) -> None:
        self.crypto += data

    def on_complete(self, alpn: str | None, early_data_accepted: bool, resumed: bool) -> None:
        assert self.completed is None
        self.completed = alpn, early_data_accepted, resumed
        self.log.append(("complete",))

    def on_early_data_refused(self) -> None:
        self.log.append(("early_data_refused",))

    def on_retry(self) -> None:
        self.log.append(("retry",))

    def on_probe(self, needs_ping: bool) -> None:
        self.log.append(("probe", needs_ping))

    def on_received(self, now: float) -> None:
        self.receipts.append(now)

    def on_eliciting_sent(self, now: float) -> None:
        self.eliciting_sent.append(now)

    def on_fault(self, code: int, frame_type: int, reason: str) -> None:
        assert self.fault is None
        self.fault = code, frame_type, reason
        self.handshake.close(code, frame_type, reason)

    def on_peer_close(self, code: int, frame_type: int, reason: str) -> None:
        assert self.peer_close is None
        self.peer_close = code, frame_type, reason

    # -- packets of application data

    def seals(self, payload: bytes, level: int = APPLICATION, number: int = 0) -> bytes:
        suite, secret, version = self.keys[level, True]
        key, header = PacketKey(suite, secret, version), header_key(suite, secret, version)
        handshake = self.handshake
        if level == EARLY:
            ids = handshake.peer_cid, handshake.host_cid
            return seal_long(ZERO_RTT, version, *ids, b"", number, payload, key, header)
        return seal_one(FIRST_BYTE, handshake.peer_cid, number, payload, key, header)

    def opens(self, packet: bytes) -> bytes:
        """The payload of a 1-RTT packet with a number below 256."""
        suite, secret, version = self.keys[APPLICATION, False]
        key, header = PacketKey(suite, secret, version), header_key(suite, secret, version)
        at = 1 + len(self.handshake.host_cid)
        mask = header.mask(packet[at + 4 : at + 20])
        first = packet[0] ^ mask[0] & 0x1F
        number = bytes((packet[at] ^ mask[1], packet[at + 1] ^ mask[2]))
        clear = bytes((first,)) + packet[1:at] + number
        return key.decrypt(int.from_bytes(number, "big"), clear, packet[at + 2 :])


#: Whether to lose a datagram, by its sender.
Drop = Callable[[Owner, bytes], bool]


class Pair:
    """A client and a server, which is made for the first datagram, with a network between."""

    def __init__(
        self,
        *,
        client: HandshakeSettings | None = None,
        server: Callable[[Admit], HandshakeSettings] | None = None,
        client_parameters: LocalParameters | None = None,
        server_parameters: LocalParameters | None = None,
        delay: float = 0.01,
        retries: bool = False,
        drop: Drop = lambda sender, data: False,
    ) -> None:
        self.now = 0.0
        self.delay = delay
        self.retries = retries
        self.drop = drop
        self.client = Owner(client or make_client(), CLIENT, client_parameters)
        self.server: Owner | None = None
        self.client_address: Address = CLIENT
        self._make_server = server or make_server
        self._server_parameters = server_parameters
        self._in_flight: list[tuple[float, Owner | None, bytes, Address]] = []
        self.datagrams: list[tuple[Owner, bytes]] = []
        self.lost = 0

    def connect(self, limit: float = 20.0) -> Pair:
        """Run until both sides are confirmed."""
        self.client.handshake.start(SERVER, self.now)
        self.run(limit)
        assert self.server is not None
        assert self.client.handshake.is_confirmed, self.client.log
        assert self.server.handshake.is_confirmed, self.server.log
        return self

    def first_flight(self) -> tuple[Owner, list[bytes]]:
        """The server, which has the client's hello, and what it answers: nothing is under way."""
        self.client.handshake.start(SERVER, 0.0)
        hello = [data for data, _ in self.client.handshake.transmit(0.0)]
        server = self.admit(hello[0])
        assert server is not None
        for data in hello:
            server.handshake.receive(data, CLIENT, 0.0)
        return server, [data for data, _ in server.handshake.transmit(0.0)]

    def last_flight(self) -> tuple[Owner, list[bytes]]:
        """The server, and what the client answers to its first flight."""
        server, flight = self.first_flight()
        for data in flight:
            self.client.handshake.receive(data, SERVER, 0.1)
        return server, [data for data, _ in self.client.handshake.transmit(0.1)]

    @property
    def sides(self) -> list[Owner]:
        return [self.client] if self.server is None else [self.client, self.server]

    def run(self, duration: float) -> None:
        """Let everything happen that does within `duration` seconds, or until both are done."""
        end = self.now + duration
        said_done = False
        while True:
            for side in self.sides:
                self.send(side)
            if (
                self.server is not None
                and self.server.handshake.is_confirmed
                and not self.client.handshake.is_confirmed
                and not said_done
            ):
                said_done = True  # what the established half would repeat until it arrives
                self.post(self.server, self.server.seals(frames.HANDSHAKE_DONE_FRAME + b"\0"))
            due = min([at for at, *_ in self._in_flight], default=math.inf)
            timer = min(side.handshake.deadline() for side in self.sides)
            following = max(self.now, min(due, timer))
            if following == math.inf and all(side.handshake.is_confirmed for side in self.sides):
                return
            if following > end:
                self.now = end
                return
            self.now = following
            arrived = [each for each in self._in_flight if each[0] <= self.now]
            self._in_flight = [each for each in self._in_flight if each[0] > self.now]
            for _, receiver, data, address in arrived:
                self.deliver(receiver, data, address)
            for side in self.sides:
                if side.handshake.deadline() <= self.now:
                    side.handshake.on_timer(self.now)

    def send(self, side: Owner) -> list[bytes]:
        sent = side.handshake.transmit(self.now)
        for data, address in sent:
            assert len(data) <= 1200
            assert address == (SERVER if side.is_client else self.client_address)
            self.post(side, data)
        return [data for data, _ in sent]

    def post(self, side: Owner, data: bytes) -> None:
        self.datagrams.append((side, data))
        if self.drop(side, data):
            self.lost += 1
            return
        receiver = self.server if side.is_client else self.client
        origin = self.client_address if side.is_client else SERVER
        self._in_flight.append((self.now + self.delay, receiver, data, origin))

    def deliver(self, receiver: Owner | None, data: bytes, address: Address) -> None:
        if receiver is None:
            receiver = self.server
        if receiver is None:
            receiver = self.admit(data)
        if receiver is not None:
            receiver.handshake.receive(data, address, self.now)

    def admit(self, data: bytes) -> Owner | None:
        """Make the server for the client's first packet, or answer with a Retry packet."""
        header = parse_long(data, 0)
        assert header is not None
        if header.kind != INITIAL:
            return None
        verdict = Admit(header.destination_cid, header.destination_cid, None)
        if self.retries:
            if not header.token:
                self.post_to_client(
                    encode_quic_retry(
                        version=header.version,
                        source_cid=RETRY_CID,
                        destination_cid=header.source_cid,
                        original_destination_cid=header.destination_cid,
                        retry_token=b"token " + header.destination_cid,
                    )
                )
                return None
            verdict = Admit(header.destination_cid, header.token[6:], header.destination_cid)
        self.server = Owner(self._make_server(verdict), SERVER, self._server_parameters)
        return self.server

    def post_to_client(self, data: bytes) -> None:
        """A packet of the server which no connection has made."""
        self._in_flight.append((self.now + self.delay, self.client, data, SERVER))


@cache
def long_server_tls(names: int = 60) -> phoenix_trio.ServerTLS:
    """With a certificate that does not fit into one datagram: a name takes about 20 bytes."""
    others = [f"host{number}.example.org" for number in range(names)]
    issued = authority().issue_cert("localhost", *others, key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return phoenix_trio.ServerTLS(chain, issued.private_key_pem.bytes())


def make_client(tls: phoenix_trio.ClientTLS | None = None, **changes: Any) -> HandshakeSettings:
    arguments: dict[str, Any] = {"host": "localhost", "port": 4433, "alpn": ALPN, **changes}
    return client_settings(client_tls=tls or client_tls(), **arguments)


def make_server(
    admit: Admit, tls: phoenix_trio.ServerTLS | None = None, **changes: Any
) -> HandshakeSettings:
    arguments: dict[str, Any] = {"alpn": ALPN, "reset_token": reset_token, **changes}
    return server_settings(server_tls=tls or server_tls(), admit=admit, **arguments)


def reset_token(cid: bytes) -> bytes:
    return cid.ljust(16, b"\0")[:16]
