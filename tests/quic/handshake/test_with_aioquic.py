"""Handshakes with an unmodified aioquic connection as the peer."""

from __future__ import annotations

import random
import ssl
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted

from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.host import APPLICATION, EARLY
from phoenix_trio.quic.handshake.packets import parse_long
from phoenix_trio.quic.handshake.tls import SessionStore
from phoenix_trio.quic.wire.protection import VERSION_1, VERSION_2
from tests.support import ALPN, authority_pem, client_tls, server_tls

from .pair import CLIENT, SERVER, Owner, make_client, make_server


def server_configuration(**changes: Any) -> QuicConfiguration:
    identity = server_tls().identity
    configuration = QuicConfiguration(is_client=False, alpn_protocols=list(ALPN), **changes)
    configuration.certificate = identity.certificate
    configuration.certificate_chain = list(identity.chain)
    configuration.private_key = identity.private_key
    return configuration


def client_configuration(**changes: Any) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=list(ALPN),
        **{"cadata": authority_pem(), "server_name": "localhost", **changes},
    )


def secrets(peer: QuicConnection) -> tuple[bytes | None, bytes | None]:
    """Those which aioquic sends and receives 1-RTT packets with."""
    pair = peer._cryptos[tls.Epoch.ONE_RTT]
    return pair.send.secret, pair.recv.secret


def assert_same_secrets(owner: Owner, peer: QuicConnection) -> None:
    assert secrets(peer) == (owner.keys[APPLICATION, False][1], owner.keys[APPLICATION, True][1])


def completed(peer: QuicConnection) -> HandshakeCompleted:
    while (event := peer.next_event()) is not None:
        if isinstance(event, HandshakeCompleted):
            return event
    raise AssertionError("the handshake is not complete")


class Network:
    """Datagrams between one of ours and one of theirs, some of which get lost."""

    def __init__(self, loss: float = 0.0, seed: int = 0) -> None:
        self.now = 0.0
        self.loss = loss
        self._generator = random.Random(seed)

    def arrives(self) -> bool:
        return self._generator.random() >= self.loss

    def run(self, owner: Owner, peer: QuicConnection, rounds: int = 400) -> None:
        ours, theirs = (CLIENT, SERVER) if owner.is_client else (SERVER, CLIENT)
        for _ in range(rounds):
            if owner.handshake.is_complete and peer._handshake_complete:
                break
            self.now += 0.05
            if owner.handshake.deadline() <= self.now:
                owner.handshake.on_timer(self.now)
            timer = peer.get_timer() if peer._close_at is not None else None
            if timer is not None and timer <= self.now:
                peer.handle_timer(self.now)
            for data, _ in owner.handshake.transmit(self.now):
                if self.arrives():
                    peer.receive_datagram(data, ours, self.now)
            if peer._network_paths:
                for data, _ in peer.datagrams_to_send(self.now):
                    if self.arrives() and data[0] & 0x80:
                        owner.handshake.receive(data, theirs, self.now)


def dial(
    owner: Owner, network: Network, configuration: QuicConfiguration, **arguments: Any
) -> QuicConnection:
    """Our client, their server."""
    owner.handshake.start(SERVER, network.now)
    peer = QuicConnection(
        configuration=configuration,
        original_destination_connection_id=owner.handshake.original_destination_cid,
        **arguments,
    )
    network.run(owner, peer)
    return peer


def accept(
    configuration: QuicConfiguration,
    network: Network,
    *,
    early_data: bool = False,
    **arguments: Any,
) -> tuple[Owner, QuicConnection]:
    """Our server, their client."""
    peer = QuicConnection(configuration=configuration, **arguments)
    peer.connect(SERVER, network.now)
    cid = peer.original_destination_connection_id
    owner = Owner(make_server(Admit(cid, cid, None), SERVERS[early_data]), SERVER)
    network.run(owner, peer)
    return owner, peer


SERVERS = {False: server_tls(), True: server_tls(early_data=True)}


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_our_client(version: int, loss: float) -> None:
    settings = make_client()
    settings.versions = (version,)
    owner = Owner(settings, CLIENT)
    peer = dial(owner, Network(loss), server_configuration(supported_versions=[version]))
    assert owner.handshake.is_complete
    assert_same_secrets(owner, peer)
    assert owner.completed == ("test/1", False, False)
    assert owner.handshake.peer_certificate is not None


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_our_server(version: int, loss: float) -> None:
    owner, peer = accept(client_configuration(supported_versions=[version]), Network(loss))
    assert owner.handshake.is_confirmed
    assert_same_secrets(owner, peer)
    ((parameters, _),) = owner.parameters
    assert parameters.max_data == 1_048_576
    assert parameters.available_versions == (version,)


@pytest.mark.parametrize(
    "suite",
    [
        tls.CipherSuite.AES_128_GCM_SHA256,
        tls.CipherSuite.AES_256_GCM_SHA384,
        tls.CipherSuite.CHACHA20_POLY1305_SHA256,
    ],
)
def test_every_cipher_suite(suite: tls.CipherSuite) -> None:
    owner = Owner(make_client(), CLIENT)
    peer = dial(owner, Network(), server_configuration(cipher_suites=[suite]))
    assert_same_secrets(owner, peer)
    assert owner.keys[APPLICATION, True][0] == suite
    owner, peer = accept(client_configuration(cipher_suites=[suite]), Network())
    assert_same_secrets(owner, peer)


def test_a_compatible_version() -> None:
    """RFC 9368 section 2.3: the client begins with version 1 and prefers version 2."""
    configuration = client_configuration(
        supported_versions=[VERSION_2, VERSION_1], original_version=VERSION_1
    )
    owner, peer = accept(configuration, Network())
    assert owner.handshake.version == peer._version == VERSION_2
    assert_same_secrets(owner, peer)
    assert owner.keys[APPLICATION, True][2] == VERSION_2


def test_tickets_and_early_data_of_our_client() -> None:
    tickets: dict[bytes, tls.SessionTicket] = {}

    def keep(ticket: tls.SessionTicket) -> None:
        tickets[ticket.ticket] = ticket

    store = SessionStore()
    ours = client_tls(session_store=store, early_data=True)
    arguments = {"session_ticket_handler": keep, "session_ticket_fetcher": tickets.get}
    configuration = server_configuration(max_datagram_frame_size=65_535)
    owner = Owner(make_client(ours), CLIENT)
    peer = dial(owner, Network(), configuration, **arguments)
    crypto = peer._crypto_streams[tls.Epoch.ONE_RTT].sender
    sent = bytes(crypto._buffer)
    owner.handshake.take_tls_message(sent)
    assert len(store) == 1
    owner = Owner(make_client(ours), CLIENT)
    peer = dial(owner, Network(), configuration, **arguments)
    assert owner.completed == ("test/1", True, True)
    assert_same_secrets(owner, peer)
    assert (EARLY, True) in owner.keys
    assert completed(peer).early_data_accepted


def test_tickets_and_early_data_of_our_server() -> None:
    tickets: list[tls.SessionTicket] = []
    owner, peer = accept(
        client_configuration(), Network(), early_data=True, session_ticket_handler=tickets.append
    )
    peer.tls.handle_message(owner.crypto, {})
    assert len(tickets) == 1
    configuration = client_configuration(session_ticket=tickets[0])
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, 0.0)
    client.send_stream_data(0, b"early")
    cid = client.original_destination_connection_id
    owner = Owner(make_server(Admit(cid, cid, None), SERVERS[True]), SERVER)
    Network().run(owner, client)
    assert owner.completed == ("test/1", True, True)
    assert_same_secrets(owner, client)
    early = [packet for level, packet in owner.packets if level == EARLY]
    assert len(early) == 1
    assert parse_long(early[0], 0) is not None
    assert completed(client).early_data_accepted


def test_a_server_which_does_not_verify_is_told_why() -> None:
    """A fault of ours reaches aioquic as a CONNECTION_CLOSE."""
    owner = Owner(make_client(host="another.example"), CLIENT)
    peer = dial(owner, Network(), server_configuration())
    assert owner.fault is not None
    assert owner.fault[0] == 0x100 + tls.AlertDescription.bad_certificate
    assert peer._close_event is not None
    assert peer._close_event.error_code == owner.fault[0]
    assert owner.handshake.failure is not None


def test_a_close_of_aioquic_is_reported() -> None:
    owner, _ = accept(
        client_configuration(verify_mode=ssl.CERT_REQUIRED, server_name="another.example"),
        Network(),
    )
    assert owner.peer_close is not None
    assert owner.peer_close[0] == 0x100 + tls.AlertDescription.bad_certificate
    assert not owner.handshake.is_complete
