"""Handshakes between two aioquic connections in memory: accepted and refused peers, and errors.

Both ends are plain aioquic connections whose TLS contexts were adopted, so these tests hold for
any engine that calls `adopt`.
"""

from __future__ import annotations

import datetime as dt
import warnings
from functools import cache
from typing import Any

import aioquic
import attrs
import pytest
import trustme
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.errors import (
    CertificateExpired,
    CertificateNameMismatch,
    CertificatePinMismatch,
    CertificateUntrusted,
    ClientCertificateRequired,
    ConnectionRefused,
    HandshakeFailed,
    NoCommonProtocol,
)
from phoenix_trio.quic.handshake import tls_context
from phoenix_trio.quic.handshake.certificates import fingerprint
from phoenix_trio.quic.handshake.key_exchange import X25519MLKEM768
from phoenix_trio.quic.handshake.tls import ClientTLS, ServerTLS, SessionStore
from phoenix_trio.quic.handshake.tls_context import (
    RELIED_ON,
    ClientPolicy,
    PhoenixTLSContext,
    Policy,
    ServerPolicy,
    adopt,
    client_policy,
    handshake_error,
    missing_private_names,
    server_policy,
)

NAME = "server.example"
PORT = 4433
CLIENT_ADDRESS = ("192.0.2.1", 50_000)
SERVER_ADDRESS = ("192.0.2.2", PORT)
DAY = dt.timedelta(days=1)
CRYPTO_ERROR = 0x100


# -------------------------------------------------------------------------- harness


class Peer(QuicConnection):
    """An aioquic connection that does the engine's part of the work."""

    def __init__(self, policy: Policy, **arguments: Any) -> None:
        self.policy = policy
        self.seen: list[events.QuicEvent] = []
        super().__init__(**arguments)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        adopt(self.tls, self.policy)

    @property
    def context(self) -> PhoenixTLSContext:
        assert isinstance(self.tls, PhoenixTLSContext)
        return self.tls

    def first(self, kind: type[Any]) -> Any:
        return next((event for event in self.seen if isinstance(event, kind)), None)

    @property
    def closed(self) -> Any:
        return self.first(events.ConnectionTerminated)

    @property
    def completed(self) -> Any:
        return self.first(events.HandshakeCompleted)


@attrs.define
class Pair:
    client: Peer
    server: Peer
    now: float = 0.0

    def exchange(self) -> Pair:
        """Carry datagrams to and fro until there are no more."""
        for _ in range(30):
            busy = False
            for sender, receiver, address in (
                (self.client, self.server, CLIENT_ADDRESS),
                (self.server, self.client, SERVER_ADDRESS),
            ):
                for data, _to in sender.datagrams_to_send(self.now):
                    receiver.receive_datagram(data, address, self.now)
                    busy = True
                for peer in (sender, receiver):
                    while (event := peer.next_event()) is not None:
                        peer.seen.append(event)
            self.now += 0.01
            if not busy:
                break
        for peer in (self.client, self.server):  # so that closing connections end
            timer = peer.get_timer()
            if peer._close_event is not None and timer is not None:
                peer.handle_timer(timer + 1)
            while (event := peer.next_event()) is not None:
                peer.seen.append(event)
        return self

    @property
    def is_established(self) -> bool:
        return all(
            peer.completed is not None and peer.closed is None
            for peer in (self.client, self.server)
        )


def make_pair(
    client_tls: ClientTLS,
    server_tls: ServerTLS,
    *,
    name: str = NAME,
    client_alpn: tuple[str, ...] = ("test/1",),
    server_alpn: tuple[str, ...] = ("test/1",),
    max_data: int = 1_000_000,
) -> Pair:
    policy = client_policy(
        client_tls, name if client_tls.server_name is None else client_tls.server_name
    )
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=list(client_alpn), server_name=policy.server_name
    )
    sessions = client_tls.session_store
    if sessions is not None:
        configuration.session_ticket = sessions.take(policy.server_name, PORT, client_alpn)
        if configuration.session_ticket is not None and not client_tls.early_data:
            configuration.session_ticket.max_early_data_size = None
    client = Peer(
        policy,
        configuration=configuration,
        session_ticket_handler=None
        if sessions is None
        else lambda ticket: sessions.put(policy.server_name, PORT, client_alpn, ticket),
    )
    identity = server_tls.identity
    server = Peer(
        server_policy(identity, server_tls),
        configuration=QuicConfiguration(
            is_client=False,
            alpn_protocols=list(server_alpn),
            certificate=identity.certificate,
            certificate_chain=list(identity.chain),
            private_key=identity.private_key,
            max_data=max_data,
        ),
        original_destination_connection_id=client.original_destination_connection_id,
        session_ticket_fetcher=server_tls.tickets.take,
        session_ticket_handler=server_tls.tickets.add,
    )
    client.connect(SERVER_ADDRESS, now=0.0)
    return Pair(client, server)


def connect(client_tls: ClientTLS, server_tls: ServerTLS, **arguments: Any) -> Pair:
    return make_pair(client_tls, server_tls, **arguments).exchange()


def assert_refused(
    pair: Pair,
    by: str,
    alert: int,
    here: type[HandshakeFailed],
    there: type[HandshakeFailed] = HandshakeFailed,
    *texts: str,
) -> None:
    """Check that `by` failed with `here` and all of `texts`, and that the other end got `alert`."""
    refuser, refused = (pair.client, pair.server) if by == "client" else (pair.server, pair.client)
    assert refuser.closed is not None
    assert refuser.closed.error_code == CRYPTO_ERROR + alert
    failure = refuser.context.failure
    assert type(failure) is here
    assert failure.alert == alert
    assert failure.error_code == CRYPTO_ERROR + alert
    assert not failure.by_peer
    for text in texts:
        assert text in str(failure)
    # The reason phrase is for strangers: short, and without our configuration.
    assert len(refuser.closed.reason_phrase) < 60
    assert refuser.completed is None
    if by == "client":
        assert pair.server.completed is None
    assert refused.closed is not None
    assert refused.closed.error_code == CRYPTO_ERROR + alert
    assert refused.context.failure is None
    told = handshake_error(
        error_code=refused.closed.error_code,
        reason=refused.closed.reason_phrase,
        by_peer=True,
        failure=refused.context.failure,
    )
    assert type(told) is there
    assert told.alert == alert
    assert told.by_peer
    assert refuser.closed.reason_phrase in str(told)
    found = handshake_error(
        error_code=refuser.closed.error_code,
        reason=refuser.closed.reason_phrase,
        by_peer=False,
        failure=failure,
    )
    assert found is failure


# --------------------------------------------------------------------- certificates


@cache
def authority() -> trustme.CA:
    return trustme.CA(organization_unit_name="The authority")


@cache
def other_authority() -> trustme.CA:
    return trustme.CA(organization_unit_name="Another authority")


def pem(issued: trustme.LeafCert) -> tuple[bytes, bytes]:
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return chain, issued.private_key_pem.bytes()


@cache
def server_pem() -> tuple[bytes, bytes]:
    return pem(authority().issue_cert(NAME, "192.0.2.2", "2001:db8::2"))


@cache
def client_pem() -> tuple[bytes, bytes]:
    return pem(authority().issue_cert("client.example"))


def authority_pem() -> bytes:
    return authority().cert_pem.bytes()


def dated(ca: trustme.CA, start: int, end: int) -> tuple[bytes, bytes]:
    now = dt.datetime.now(dt.UTC)
    return pem(ca.issue_cert(NAME, not_before=now + start * DAY, not_after=now + end * DAY))


def server(**arguments: Any) -> ServerTLS:
    return ServerTLS(*server_pem(), **arguments)


def client(**arguments: Any) -> ClientTLS:
    if not arguments.keys() & {"ca", "pinned_sha256", "danger_accept_any_certificate"}:
        arguments["ca"] = authority_pem()
    return ClientTLS(**arguments)


def client_with_certificate(**arguments: Any) -> ClientTLS:
    certificate, key = client_pem()
    return client(certificate=certificate, private_key=key, **arguments)


def load_authority(ca: trustme.CA) -> tuple[x509.Certificate, Any]:
    return (
        x509.load_pem_x509_certificate(ca.cert_pem.bytes()),
        serialization.load_pem_private_key(ca.private_key_pem.bytes(), None),
    )


def build(
    *extensions: tuple[x509.ExtensionType, bool],
    key: Any,
    issuer: x509.Name,
    signing_key: Any,
    subject: str = "Built",
    days: tuple[int, int] = (-1, 1),
) -> x509.Certificate:
    """A certificate with just these extensions."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate: x509.Certificate = builder.sign(signing_key, hashes.SHA256())
    return certificate


def assemble(tbs: bytes, algorithm: str, signature: bytes) -> bytes:
    """A certificate in DER from its parts, for content that no library would sign."""

    def element(tag: int, content: bytes) -> bytes:
        return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content

    # Lengths are minimal in DER; these parts are all above 255 bytes except short signatures.
    bits = b"\x00" + signature
    short = len(bits) < 0x80
    string = bytes([0x03, len(bits)]) + bits if short else element(0x03, bits)
    return element(0x30, tbs + bytes.fromhex(algorithm) + string)


def as_server(key: Any, *certificates: x509.Certificate) -> ServerTLS:
    return ServerTLS(
        b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


SAN = (x509.SubjectAlternativeName([x509.DNSName(NAME)]), False)


# ------------------------------------------------------------------ assumptions


def test_aioquic_still_has_every_private_name_which_is_relied_on() -> None:
    assert missing_private_names() == []


def test_a_missing_private_name_is_reported_with_aioquics_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls_context, "RELIED_ON", (*RELIED_ON, "_went_away"))
    (report,) = missing_private_names()
    assert "_went_away" in report
    assert f"aioquic {aioquic.__version__}" in report


def test_only_a_fresh_context_is_adopted_and_only_for_its_role() -> None:
    anybody = ClientPolicy(server_name=NAME, accept_any=True)
    with pytest.raises(TypeError, match="other role"):
        adopt(tls.Context(is_client=True), ServerPolicy())
    with pytest.raises(TypeError, match="other role"):
        adopt(tls.Context(is_client=False), anybody)
    context = adopt(tls.Context(is_client=True), anybody)
    with pytest.raises(TypeError, match="fresh"):
        adopt(context, anybody)


def test_a_client_policy_without_any_trust_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="store is needed"):
        ClientPolicy(server_name=NAME)


def test_the_client_offers_the_hybrid_group_first_and_what_every_server_knows() -> None:
    adopted = adopt(tls.Context(is_client=True), ClientPolicy(server_name=NAME, accept_any=True))
    output = {tls.Epoch.INITIAL: Buffer(capacity=4096)}
    adopted.handle_message(b"", output)
    hello = tls.pull_client_hello(Buffer(data=output[tls.Epoch.INITIAL].data))
    groups = [X25519MLKEM768, tls.Group.X25519, tls.Group.SECP256R1]
    assert hello.supported_groups == groups
    assert hello.key_share is not None
    assert [group for group, _ in hello.key_share] == groups[:2]


@pytest.mark.parametrize("group", ["x25519", "secp256r1", "secp384r1", "x448"])
def test_the_client_offers_the_groups_it_is_told(group: str) -> None:
    pair = connect(client(groups=[group]), server())
    assert pair.is_established
    assert pair.client.context._supported_groups == [tls.Group[group.upper()]]


@pytest.mark.parametrize("groups", [[], ["x25519", "p256"], ["X25519"]])
def test_groups_which_are_not_known_are_named(groups: list[str]) -> None:
    with pytest.raises(ValueError, match="groups must be some of x25519"):
        ClientTLS(groups=groups)
    with pytest.raises(ValueError, match="groups must be some of x25519"):
        server(groups=groups)


def test_groups_are_names() -> None:
    with pytest.raises(TypeError, match="groups must be a sequence"):
        ClientTLS(groups="x25519")
    with pytest.raises(TypeError, match="groups must be a sequence"):
        server(groups="x25519")


# --------------------------------------------------------------- the server's identity


def test_a_trusted_certificate_for_the_dialled_name_is_accepted() -> None:
    pair = connect(client(), server())
    assert pair.is_established
    assert pair.client.context.failure is None
    assert pair.server.context.failure is None
    expected = x509.load_pem_x509_certificate(server_pem()[0])
    assert pair.client.context.peer_certificate == expected
    assert pair.server.context.peer_certificate is None
    assert not pair.client.context.client_certificate_requested


@pytest.mark.parametrize(
    "name", ["192.0.2.2", "2001:db8::2", "2001:DB8:0::2%eth0", "Server.Example."]
)
def test_names_and_addresses_are_verified_in_any_spelling(name: str) -> None:
    assert connect(client(), server(), name=name).is_established


def test_an_international_name_is_dialled_in_its_ascii_form() -> None:
    issued = ServerTLS(*pem(authority().issue_cert("bücher.example")))
    assert connect(client(), issued, name="Bücher.example").is_established


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_every_kind_of_key_can_serve(key_type: trustme.KeyType) -> None:
    issued = ServerTLS(*pem(authority().issue_cert(NAME, key_type=key_type)))
    assert connect(client(), issued).is_established


def test_an_intermediate_authority_comes_with_the_chain() -> None:
    intermediate = authority().create_child_ca()
    chain, key = pem(intermediate.issue_cert(NAME))
    pair = connect(client(), ServerTLS(chain, key))
    assert pair.is_established
    assert len(pair.client.context.peer_certificate_chain) == 2
    # The same without the intermediate certificate leads nowhere.
    leaf_only = chain[: chain.index(b"-----END") + len(b"-----END CERTIFICATE-----\n")]
    pair = connect(client(), ServerTLS(leaf_only, key))
    assert_refused(
        pair, "client", 48, CertificateUntrusted, CertificateUntrusted, "intermediate certificates"
    )


def test_an_authority_nobody_trusts_is_refused() -> None:
    pair = connect(client(ca=other_authority().cert_pem.bytes()), server())
    assert_refused(
        pair,
        "client",
        48,
        CertificateUntrusted,
        CertificateUntrusted,
        "the server's certificate",
        "The authority",
        "pass its authority as ca",
    )
    assert pair.client.context.peer_certificate is None
    assert pair.client.context.peer_certificate_chain == ()


def test_the_systems_authorities_do_not_trust_a_private_one() -> None:
    pair = connect(ClientTLS(), server())
    assert_refused(pair, "client", 48, CertificateUntrusted, CertificateUntrusted)


def test_a_self_signed_certificate_is_refused_with_advice_and_accepted_as_ca() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Built")])
    certificate = build(SAN, key=key, issuer=name, signing_key=key)
    pair = connect(client(), as_server(key, certificate))
    assert_refused(pair, "client", 48, CertificateUntrusted, CertificateUntrusted, "pinned_sha256")
    ca = certificate.public_bytes(serialization.Encoding.PEM)
    assert connect(client(ca=ca), as_server(key, certificate)).is_established


def test_a_leaf_or_intermediate_can_be_the_trusted_certificate() -> None:
    assert connect(client(ca=server_pem()[0]), server()).is_established


def test_another_name_is_refused_and_the_certificates_names_are_told() -> None:
    pair = connect(client(), server(), name="other.example")
    assert_refused(
        pair,
        "client",
        42,
        CertificateNameMismatch,
        HandshakeFailed,
        "'other.example'",
        f"'{NAME}', '192.0.2.2', '2001:db8::2'",
        "server_name",
    )
    assert "other.example" not in pair.client.closed.reason_phrase


def test_another_address_is_refused() -> None:
    pair = connect(client(), server(), name="192.0.2.3")
    assert_refused(pair, "client", 42, CertificateNameMismatch, HandshakeFailed, "'192.0.2.3'")


def test_server_name_is_verified_instead_of_the_host_which_was_dialled() -> None:
    assert connect(client(server_name=NAME), server(), name="198.51.100.1").is_established
    pair = connect(client(server_name="other.example"), server(), name=NAME)
    assert_refused(pair, "client", 42, CertificateNameMismatch)


def test_a_certificate_without_names_is_refused() -> None:
    certificate, signing_key = load_authority(authority())
    key = ec.generate_private_key(ec.SECP256R1())
    built = build(key=key, issuer=certificate.subject, signing_key=signing_key, subject=NAME)
    pair = connect(client(), as_server(key, built))
    assert_refused(
        pair, "client", 42, CertificateNameMismatch, HandshakeFailed, "but for no name at all"
    )


def test_an_expired_certificate_is_refused_with_its_date() -> None:
    pair = connect(client(), ServerTLS(*dated(authority(), -30, -2)))
    day = f"expired on {dt.datetime.now(dt.UTC) - 2 * DAY:%Y-%m-%d}"
    assert_refused(pair, "client", 45, CertificateExpired, CertificateExpired, day)


def test_a_certificate_which_is_not_valid_yet_is_refused_with_its_date() -> None:
    pair = connect(client(), ServerTLS(*dated(authority(), 2, 30)))
    day = f"is not valid before {dt.datetime.now(dt.UTC) + 2 * DAY:%Y-%m-%d}"
    assert_refused(pair, "client", 45, CertificateExpired, CertificateExpired, day)


@pytest.mark.parametrize(("days", "text"), [((-9, -2), "expired on"), ((2, 9), "not valid before")])
def test_the_dates_of_intermediate_authorities_count(days: tuple[int, int], text: str) -> None:
    root, root_key = load_authority(authority())
    middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    middle = build(
        (x509.BasicConstraints(ca=True, path_length=0), True),
        key=middle_key,
        issuer=root.subject,
        signing_key=root_key,
        subject="The middle",
        days=days,
    )
    leaf = build(SAN, key=key, issuer=middle.subject, signing_key=middle_key)
    pair = connect(client(), as_server(key, leaf, middle))
    assert_refused(pair, "client", 45, CertificateExpired, CertificateExpired, text, "The middle")


def test_a_certificate_issued_by_a_mere_leaf_is_refused() -> None:
    root, root_key = load_authority(authority())
    middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    middle = build(
        (x509.BasicConstraints(ca=False, path_length=None), True),
        key=middle_key,
        issuer=root.subject,
        signing_key=root_key,
        subject="A leaf",
    )
    leaf = build(SAN, key=key, issuer=middle.subject, signing_key=middle_key)
    pair = connect(client(), as_server(key, leaf, middle))
    assert pair.client.closed.error_code - CRYPTO_ERROR in (42, 48)
    assert isinstance(pair.client.context.failure, CertificateUntrusted)
    assert not pair.is_established


def test_a_certificate_for_clients_only_cannot_serve() -> None:
    root, root_key = load_authority(authority())
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    built = build((usage, False), SAN, key=key, issuer=root.subject, signing_key=root_key)
    pair = connect(client(), as_server(key, built))
    assert_refused(
        pair, "client", 43, CertificateUntrusted, HandshakeFailed, "not issued for servers"
    )


def test_a_certificate_signed_with_sha1_is_refused() -> None:
    ca = trustme.CA(key_type=trustme.KeyType.RSA)
    root, root_key = load_authority(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    built = build(SAN, key=key, issuer=root.subject, signing_key=root_key)
    # sha256WithRSAEncryption becomes sha1WithRSAEncryption.
    prefix = "300d06092a864886f70d0101"
    tbs = built.tbs_certificate_bytes
    assert tbs.count(bytes.fromhex(prefix + "0b")) == 1
    tbs = tbs.replace(bytes.fromhex(prefix + "0b"), bytes.fromhex(prefix + "05"))
    signature = root_key.sign(tbs, padding.PKCS1v15(), hashes.SHA1())
    forged = x509.load_der_x509_certificate(assemble(tbs, prefix + "050500", signature))
    pair = connect(client(ca=ca.cert_pem.bytes()), as_server(key, forged))
    assert_refused(pair, "client", 42, CertificateUntrusted, HandshakeFailed, "signed with sha1")


# ----------------------------------------------------------------------------- pins


def test_a_pinned_certificate_is_accepted_whoever_signed_it_and_whatever_it_names() -> None:
    pin = fingerprint(server_pem()[0])
    assert connect(client(pinned_sha256=pin), server(), name="other.example").is_established
    assert connect(client(pinned_sha256=pin.upper()), server()).is_established


def test_another_certificate_than_the_pinned_one_is_refused() -> None:
    pinned = fingerprint(client_pem()[0])
    pair = connect(client(pinned_sha256=pinned), server())
    assert_refused(
        pair,
        "client",
        42,
        CertificatePinMismatch,
        HandshakeFailed,
        pinned.replace(":", ""),
        fingerprint(server_pem()[0]).replace(":", ""),
    )


@pytest.mark.parametrize("days", [(-9, -2), (2, 9)])
def test_a_pinned_certificate_must_be_valid_now(days: tuple[int, int]) -> None:
    certificate, key = dated(other_authority(), *days)
    pair = connect(client(pinned_sha256=fingerprint(certificate)), ServerTLS(certificate, key))
    assert_refused(pair, "client", 45, CertificateExpired, CertificateExpired)


def test_the_pinned_certificate_with_somebody_elses_key_is_refused() -> None:
    thief = server()
    thief._identity = attrs.evolve(
        thief.identity, certificate=x509.load_pem_x509_certificate(client_pem()[0])
    )
    pair = connect(client(pinned_sha256=fingerprint(client_pem()[0])), thief)
    assert_refused(pair, "client", 51, HandshakeFailed, HandshakeFailed, "decrypt_error")


def test_danger_accepts_any_certificate_but_still_needs_its_key() -> None:
    anything = client(danger_accept_any_certificate=True)
    expired = ServerTLS(*dated(other_authority(), -9, -2))
    pair = connect(anything, expired, name="other.example")
    assert pair.is_established
    assert pair.client.context.peer_certificate == expired.identity.certificate
    thief = server()
    thief._identity = attrs.evolve(
        thief.identity, certificate=x509.load_pem_x509_certificate(client_pem()[0])
    )
    pair = connect(anything, thief)
    assert_refused(pair, "client", 51, HandshakeFailed, HandshakeFailed, "decrypt_error")


# --------------------------------------------------------------- client certificates


def test_mutual_tls_shows_each_side_the_others_certificate() -> None:
    pair = connect(client_with_certificate(), server(client_ca=authority_pem()))
    assert pair.is_established
    assert pair.client.context.client_certificate_requested
    assert pair.client.context.peer_certificate == x509.load_pem_x509_certificate(server_pem()[0])
    assert pair.server.context.peer_certificate == x509.load_pem_x509_certificate(client_pem()[0])


def test_a_client_certificate_comes_with_its_chain() -> None:
    chain, key = pem(authority().create_child_ca().issue_cert("client.example"))
    pair = connect(client(certificate=chain, private_key=key), server(client_ca=authority_pem()))
    assert pair.is_established
    assert len(pair.server.context.peer_certificate_chain) == 2


def test_a_client_certificate_is_not_shown_to_servers_which_do_not_ask() -> None:
    pair = connect(client_with_certificate(), server())
    assert pair.is_established
    assert pair.server.context.peer_certificate is None


def test_a_missing_client_certificate_is_refused() -> None:
    pair = connect(client(), server(client_ca=authority_pem()))
    assert_refused(
        pair,
        "server",
        116,
        ClientCertificateRequired,
        ClientCertificateRequired,
        "the client showed no certificate",
    )


def test_an_untrusted_client_certificate_is_refused() -> None:
    pair = connect(client_with_certificate(), server(client_ca=other_authority().cert_pem.bytes()))
    assert_refused(
        pair,
        "server",
        48,
        CertificateUntrusted,
        CertificateUntrusted,
        "the client's certificate",
        "client_ca",
    )


def test_an_expired_client_certificate_is_refused() -> None:
    certificate, key = dated(authority(), -9, -2)
    pair = connect(
        client(certificate=certificate, private_key=key), server(client_ca=authority_pem())
    )
    assert_refused(
        pair, "server", 45, CertificateExpired, CertificateExpired, "the client", "expired on"
    )


def test_a_client_certificate_for_servers_only_is_refused() -> None:
    root, root_key = load_authority(authority())
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    built = build((usage, False), SAN, key=key, issuer=root.subject, signing_key=root_key)
    identity = as_server(key, built)
    pair = connect(
        client(
            certificate=built.public_bytes(serialization.Encoding.PEM),
            private_key=identity._sources[1],
        ),
        server(client_ca=authority_pem()),
    )
    assert_refused(
        pair, "server", 43, CertificateUntrusted, HandshakeFailed, "not issued for clients"
    )


def test_a_client_without_the_key_of_its_certificate_is_refused() -> None:
    liar = client_with_certificate()
    assert liar.identity is not None
    pair = make_pair(liar, server(client_ca=authority_pem()))
    pair.client.tls.certificate_private_key = ec.generate_private_key(ec.SECP256R1())
    pair.exchange()
    assert_refused(pair, "server", 51, HandshakeFailed, HandshakeFailed, "decrypt_error")


def test_nothing_is_processed_after_the_first_alert() -> None:
    # A Finished behind the empty certificate message must not complete the handshake.
    pair = connect(client(), server(client_ca=authority_pem()))
    with pytest.raises(tls.AlertUnexpectedMessage):
        pair.server.tls.handle_message(b"", pair.server._crypto_buffers)
    assert type(pair.server.context.failure) is ClientCertificateRequired


def test_client_certificates_switch_resumption_off() -> None:
    tickets = SessionStore()
    mutual = server(client_ca=authority_pem())
    dialler = client_with_certificate(session_store=tickets)
    for _ in range(2):
        pair = connect(dialler, mutual)
        assert pair.is_established
        assert not pair.server.completed.session_resumed
        assert pair.server.context.peer_certificate is not None
    assert len(tickets) == len(mutual.tickets) == 0


def test_a_ticket_from_before_client_certificates_were_required_is_of_no_use() -> None:
    dialler = client(session_store=SessionStore())
    serving = server()
    assert connect(dialler, serving).is_established
    serving.reload(client_ca=authority_pem())
    pair = connect(dialler, serving)
    assert_refused(pair, "server", 116, ClientCertificateRequired, ClientCertificateRequired)


# ------------------------------------------------------------------------------ ALPN


def test_no_common_protocol_is_refused_and_both_sides_are_named() -> None:
    pair = connect(client(), server(), client_alpn=("a/1", "b"), server_alpn=("c", "d"))
    assert_refused(
        pair, "server", 120, NoCommonProtocol, NoCommonProtocol, "'a/1', 'b'", "'c', 'd'"
    )


def test_a_server_which_picks_a_protocol_nobody_offered_is_refused() -> None:
    pair = make_pair(client(), server(), client_alpn=("a",), server_alpn=("a",))
    hello_sent = pair.client.tls
    hello_sent._alpn_protocols = ["z"]
    pair.exchange()
    assert_refused(
        pair, "client", 120, NoCommonProtocol, NoCommonProtocol, "no_application_protocol"
    )


# ------------------------------------------------------------------ resumption, 0-RTT


def early(pair: Pair, data: bytes = b"early") -> Pair:
    """The client writes before it has heard from the server."""
    pair.client.send_stream_data(0, data, end_stream=True)
    # Data that the server can read from the client's first flight alone is 0-RTT data.
    for datagram, _ in pair.client.datagrams_to_send(0.0):
        pair.server.receive_datagram(datagram, CLIENT_ADDRESS, 0.0)
    while (event := pair.server.next_event()) is not None:
        pair.server.seen.append(event)
    return pair


def early_data(pair: Pair) -> bytes:
    assert pair.server.completed is None
    return b"".join(
        event.data for event in pair.server.seen if isinstance(event, events.StreamDataReceived)
    )


def test_a_session_is_resumed_without_certificates() -> None:
    dialler, serving = client(session_store=SessionStore()), server()
    first = connect(dialler, serving)
    assert not first.client.completed.session_resumed
    second = connect(dialler, serving)
    assert second.is_established
    assert second.client.completed.session_resumed
    assert second.server.completed.session_resumed
    assert second.client.context.peer_certificate is None
    assert not second.client.completed.early_data_accepted


def test_without_a_store_nothing_is_resumed() -> None:
    serving = server()
    for _ in range(2):
        assert not connect(client(), serving).client.completed.session_resumed


@pytest.mark.parametrize(
    "earned",
    [
        {"danger_accept_any_certificate": True},
        {"pinned_sha256": fingerprint(server_pem()[0])},
        {"ca": authority_pem() + other_authority().cert_pem.bytes()},
        {"certificate": client_pem()[0], "private_key": client_pem()[1]},
    ],
    ids=["danger", "pin", "more authorities", "other identity"],
)
def test_a_ticket_does_not_carry_trust_over_to_stricter_settings(earned: dict[str, Any]) -> None:
    tickets = SessionStore()
    serving = server()
    assert connect(client(session_store=tickets, **earned), serving).is_established
    assert len(tickets) == 1
    pair = connect(client(session_store=tickets), serving)
    assert not pair.client.completed.session_resumed
    # The same settings in another object do find it.
    pair = connect(client(session_store=tickets, **earned), serving)
    assert pair.client.completed.session_resumed


def test_early_data_is_accepted_from_and_by_those_who_opted_in() -> None:
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server(early_data=True)
    connect(dialler, serving)
    pair = early(make_pair(dialler, serving))
    assert early_data(pair) == b"early"
    pair.exchange()
    assert pair.is_established
    assert pair.client.completed.early_data_accepted
    assert pair.server.completed.early_data_accepted


def test_early_data_is_not_sent_by_clients_which_did_not_opt_in() -> None:
    dialler = client(session_store=SessionStore())
    serving = server(early_data=True)
    connect(dialler, serving)
    pair = early(make_pair(dialler, serving))
    assert early_data(pair) == b""
    pair.exchange()
    assert pair.client.completed.session_resumed
    assert not pair.client.completed.early_data_accepted


def test_early_data_is_refused_by_servers_which_did_not_opt_in() -> None:
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server()
    connect(dialler, serving)
    pair = early(make_pair(dialler, serving))
    assert early_data(pair) == b""
    pair.exchange()
    assert pair.is_established
    assert pair.client.completed.session_resumed
    assert not pair.client.completed.early_data_accepted


def test_tickets_say_whether_early_data_are_welcome() -> None:
    for allowed in (False, True):
        serving = server(early_data=allowed)
        tickets = SessionStore()
        sessions = client(session_store=tickets).session_store
        assert sessions is not None
        connect(client(session_store=tickets), serving)
        ticket = sessions.take(NAME, PORT, ("test/1",))
        assert ticket is not None
        assert (ticket.max_early_data_size is not None) is allowed


def test_early_data_are_refused_once_they_are_not_welcome_any_more() -> None:
    # The ticket promised it, but the listener that gets the ticket back does not want it.
    dialler = client(session_store=SessionStore(), early_data=True)
    first, second = server(early_data=True), server(early_data=False)
    connect(dialler, first)
    second.tickets._tickets.update(first.tickets._tickets)
    pair = early(make_pair(dialler, second))
    assert early_data(pair) == b""
    pair.exchange()
    assert pair.client.completed.session_resumed
    assert not pair.client.completed.early_data_accepted


def insist_on_early_data(dialler: ClientTLS) -> None:
    """Forge the client's tickets, as a hostile client could."""
    assert dialler.session_store is not None
    for tickets in dialler.session_store.store._tickets._values.values():
        for ticket in tickets:
            ticket.max_early_data_size = 0xFFFFFFFF


def test_early_data_is_refused_even_if_a_client_sends_them_unasked() -> None:
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server()
    connect(dialler, serving)
    insist_on_early_data(dialler)
    pair = early(make_pair(dialler, serving))
    assert early_data(pair) == b""
    assert not pair.server.context.early_data_accepted
    pair.exchange()
    assert pair.is_established
    assert pair.server.completed.session_resumed
    assert not pair.client.completed.early_data_accepted
    assert not pair.server.completed.early_data_accepted


def test_a_replayed_first_flight_is_not_accepted_again() -> None:
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server(early_data=True)
    connect(dialler, serving)
    pair = make_pair(dialler, serving)
    twin = make_pair(client(), serving)  # for its server, which will see the same bytes
    twin.server._original_destination_connection_id = pair.client.original_destination_connection_id
    pair.client.send_stream_data(0, b"pay", end_stream=True)
    flight = [datagram for datagram, _ in pair.client.datagrams_to_send(0.0)]
    got = []
    for receiver in (pair.server, twin.server):
        for datagram in flight:
            receiver.receive_datagram(datagram, CLIENT_ADDRESS, 0.0)
        data = b""
        while (event := receiver.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                data += event.data
        got.append(data)
    assert got == [b"pay", b""]


def test_a_ticket_is_of_no_use_for_another_protocol() -> None:
    # One ServerTLS behind two listeners: a ticket of one must not open the other.
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server(early_data=True)
    both = ("a", "b")
    connect(dialler, serving, client_alpn=both, server_alpn=("a",))
    pair = early(make_pair(dialler, serving, client_alpn=both, server_alpn=("b",)))
    assert early_data(pair) == b""
    pair.exchange()
    assert pair.is_established
    assert not pair.client.completed.session_resumed


def test_early_data_is_refused_where_limits_were_reduced_since() -> None:
    dialler = client(session_store=SessionStore(), early_data=True)
    serving = server(early_data=True)
    connect(dialler, serving, max_data=200_000)
    pair = early(make_pair(dialler, serving, max_data=100_000))
    assert early_data(pair) == b""
    pair.exchange()
    assert pair.is_established
    assert pair.client.completed.session_resumed
    assert not pair.client.completed.early_data_accepted
    # That handshake has left a ticket with today's limits, and raised ones are no obstacle.
    pair = early(make_pair(dialler, serving, max_data=300_000))
    assert early_data(pair) == b"early"


def test_an_unknown_ticket_leads_to_a_full_handshake() -> None:
    dialler, serving = client(session_store=SessionStore()), server()
    connect(dialler, serving)
    serving.tickets.clear()
    pair = connect(dialler, serving)
    assert pair.is_established
    assert not pair.client.completed.session_resumed


def test_a_server_cannot_accept_early_data_which_were_never_sent() -> None:
    context = adopt(tls.Context(is_client=True), ClientPolicy(server_name=NAME, accept_any=True))
    context.early_data_accepted = True
    assert not context.early_data_accepted


def test_a_reloaded_certificate_serves_new_connections() -> None:
    serving = server()
    pair = make_pair(client(), serving)
    serving.reload(*pem(authority().issue_cert("renewed.example")))
    pair.exchange()  # has taken the old identity
    assert pair.is_established
    assert_refused(connect(client(), serving), "client", 42, CertificateNameMismatch)
    assert connect(client(), serving, name="renewed.example").is_established


# ----------------------------------------------------------------------- hostile peers


@cache
def trust_store() -> ClientPolicy:
    return client_policy(client(), NAME)


def judge(certificates: list[bytes], key: Any, policy: Policy | None = None) -> PhoenixTLSContext:
    """Let a client judge these certificates, with a valid signature of the handshake."""
    context = adopt(tls.Context(is_client=True), trust_store() if policy is None else policy)
    context.key_schedule = tls.KeySchedule(tls.CipherSuite.AES_128_GCM_SHA256)
    context._set_peer_certificate(tls.Certificate(certificates=[(c, b"") for c in certificates]))
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256
    else:
        algorithm = tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256
    signature = key.sign(
        context.key_schedule.certificate_verify_data(tls.SERVER_CONTEXT_STRING),
        *tls.signature_algorithm_params(algorithm),
    )
    context._check_certificate_verify_signature(tls.CertificateVerify(algorithm, signature))
    return context


@cache
def server_der() -> tuple[bytes, Any]:
    identity = server().identity
    return identity.certificate.public_bytes(serialization.Encoding.DER), identity.private_key


def test_the_harness_for_hostile_certificates_accepts_a_good_one() -> None:
    der, key = server_der()
    assert judge([der], key).peer_certificate is not None


@given(st.data())
def test_a_certificate_with_any_byte_changed_leads_to_an_alert(data: st.DataObject) -> None:
    der, key = server_der()
    broken = bytearray(der)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(der) - 1))
        broken[index] = der[index] ^ data.draw(st.integers(1, 255))
    with pytest.raises(tls.Alert):
        judge([bytes(broken)], key)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_arbitrary_bytes_instead_of_certificates_lead_to_an_alert(one: bytes, two: bytes) -> None:
    der, key = server_der()
    with pytest.raises(tls.AlertBadCertificate):
        judge([one], key)
    with pytest.raises(tls.AlertBadCertificate):
        judge([der, two], key)


@cache
def hostile_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@given(
    st.sampled_from(
        [
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
            ExtensionOID.EXTENDED_KEY_USAGE,
            ExtensionOID.BASIC_CONSTRAINTS,
            ExtensionOID.KEY_USAGE,
            ExtensionOID.NAME_CONSTRAINTS,
            ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
            ExtensionOID.CERTIFICATE_POLICIES,
            x509.ObjectIdentifier("1.2.3.4"),
        ]
    ),
    st.one_of(
        st.binary(max_size=60),
        # A SubjectAlternativeName of one name of any kind, with any content.
        st.tuples(st.integers(0x80, 0xBF), st.binary(max_size=60)).map(
            lambda name: bytes([0x30, len(name[1]) + 2, name[0], len(name[1])]) + name[1]
        ),
    ),
    st.booleans(),
)
def test_a_trusted_certificate_with_malformed_extensions_leads_to_nothing_but_alerts(
    oid: x509.ObjectIdentifier, value: bytes, critical: bool
) -> None:
    root, root_key = load_authority(authority())
    built = build(
        (x509.UnrecognizedExtension(oid, value), critical),
        *(() if oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME else (SAN,)),
        key=hostile_key(),
        issuer=root.subject,
        signing_key=root_key,
    )
    try:
        context = judge([built.public_bytes(serialization.Encoding.DER)], hostile_key())
    except tls.Alert:
        pass
    else:
        assert context.peer_certificate is not None


def test_two_extensions_of_one_kind_lead_to_an_alert() -> None:
    root, root_key = load_authority(authority())
    one = x509.ObjectIdentifier("2.5.29.117")
    built = build(
        SAN,
        (x509.UnrecognizedExtension(one, b"\x30\x00"), False),
        key=hostile_key(),
        issuer=root.subject,
        signing_key=root_key,
    )
    der = built.public_bytes(serialization.Encoding.DER)
    assert der.count(b"\x06\x03\x55\x1d\x75") == 1
    # Turned into a second SubjectAlternativeName, in a certificate signed anew.
    doubled = der.replace(b"\x06\x03\x55\x1d\x75", b"\x06\x03\x55\x1d\x11")
    tbs = x509.load_der_x509_certificate(doubled).tbs_certificate_bytes
    signature = root_key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    resigned = assemble(tbs, "300a06082a8648ce3d040302", signature)
    with pytest.raises(tls.Alert):
        judge([resigned], hostile_key())


def test_a_bug_in_a_parser_ends_the_handshake_for_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(self: object, *arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(PhoenixTLSContext, "_check_name", crash)
    pair = connect(client(), server())
    assert_refused(pair, "client", 80, HandshakeFailed, HandshakeFailed, "a bug")
    assert isinstance(pair.client.context.failure, HandshakeFailed)
    assert isinstance(pair.client.context.failure.__cause__, ZeroDivisionError)


def test_a_certificate_of_an_unknown_version_leads_to_an_alert() -> None:
    der, key = server_der()
    version = bytes.fromhex("a003020102")
    assert der.count(version) == 1
    unknown = der.replace(version, bytes.fromhex("a003020107"))
    for certificates in ([unknown], [der, unknown]):
        with pytest.raises(tls.AlertBadCertificate):
            judge(certificates, key)


def test_a_defect_which_is_only_a_warning_leads_to_an_alert_where_warnings_are_errors() -> None:
    der, key = server_der()
    serial = x509.load_der_x509_certificate(der).serial_number
    length = serial.bit_length() // 8 + 1
    old = b"\x02" + bytes([length]) + serial.to_bytes(length, "big")
    assert der.count(old) == 1
    negative = der.replace(old, old[:2] + b"\xff" + bytes(length - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(tls.AlertBadCertificate):
            judge([negative], key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(tls.Alert):
            judge([negative], key)


def test_an_endless_chain_is_refused() -> None:
    der, key = server_der()
    with pytest.raises(tls.AlertBadCertificate, match="too long"):
        judge([der] * 17, key)


def test_a_weak_or_odd_key_leads_to_an_alert() -> None:
    root, root_key = load_authority(authority())
    for key in (ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP256K1())):
        built = build(SAN, key=key, issuer=root.subject, signing_key=root_key)
        with pytest.raises(tls.Alert):
            judge([built.public_bytes(serialization.Encoding.DER)], hostile_key())


def test_a_message_without_end_is_refused_before_it_is_complete() -> None:
    pair = make_pair(client(), server())
    context = adopt(tls.Context(is_client=False), ServerPolicy())
    context.handle_message(b"\x01\xff\xff\xff", pair.client._crypto_buffers)
    with pytest.raises(tls.AlertIllegalParameter, match="too large"):
        for _ in range(200):
            context.handle_message(bytes(1024), pair.client._crypto_buffers)
    assert len(context._receive_buffer) <= 128 * 1024
    assert isinstance(context.failure, HandshakeFailed)


@given(st.binary(min_size=1, max_size=400))
def test_arbitrary_client_hellos_lead_to_nothing_but_alerts(body: bytes) -> None:
    context = adopt(tls.Context(is_client=False), ServerPolicy())
    context.certificate_private_key = server_der()[1]
    buffers = {epoch: Buffer(capacity=16_384) for epoch in tls.Epoch}
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    with pytest.raises(tls.Alert):
        context.handle_message(message, buffers)
    assert isinstance(context.failure, HandshakeFailed)


def test_text_from_the_peer_is_quoted_and_cut() -> None:
    root, root_key = load_authority(authority())
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName(
        [x509.DNSName(f"{index}.{'x' * 60}.example") for index in range(50)]
    )
    built = build(
        (names, False),
        key=key,
        issuer=root.subject,
        signing_key=root_key,
        subject="\x1b[2Jevil\r\n",
    )
    pair = connect(client(), as_server(key, built))
    text = str(pair.client.context.failure)
    assert "\x1b" not in text
    assert "\n" not in text
    assert len(text) < 2_000
    assert "and 42 more" in text


# ------------------------------------------------------------------------ error tables


@pytest.mark.parametrize(
    ("alert", "kind", "text"),
    [
        (40, HandshakeFailed, "handshake_failure"),
        (42, HandshakeFailed, "rejected our certificate (bad_certificate)"),
        (43, HandshakeFailed, "unsupported_certificate"),
        (44, HandshakeFailed, "certificate_revoked"),
        (45, CertificateExpired, "certificate_expired"),
        (46, CertificateUntrusted, "certificate_unknown"),
        (48, CertificateUntrusted, "unknown_ca"),
        (80, HandshakeFailed, "internal_error"),
        (112, HandshakeFailed, "unrecognized_name"),
        (116, ClientCertificateRequired, "certificate_required"),
        (120, NoCommonProtocol, "no_application_protocol"),
        (199, HandshakeFailed, "alert 199"),
    ],
)
def test_an_alert_from_the_peer_becomes_an_exception_of_its_kind(
    alert: int, kind: type[HandshakeFailed], text: str
) -> None:
    error = handshake_error(
        error_code=CRYPTO_ERROR + alert, reason="why\n", by_peer=True, failure=None
    )
    assert type(error) is kind
    assert error.alert == alert
    assert error.error_code == CRYPTO_ERROR + alert
    assert error.by_peer
    assert error.reason == "why\n"
    assert text in str(error)
    assert r"'why\n'" in str(error)


def test_a_refused_connection_is_told_apart() -> None:
    error = handshake_error(error_code=0x2, reason="full", by_peer=True, failure=None)
    assert type(error) is ConnectionRefused
    assert error.error_code == 0x2
    assert "the server refused the connection" in str(error)
    assert "'full'" in str(error)


def test_our_own_failure_is_what_the_user_sees() -> None:
    failure = CertificateExpired("mine")
    arguments: dict[str, Any] = {"error_code": CRYPTO_ERROR + 45, "reason": "", "failure": failure}
    assert handshake_error(by_peer=False, **arguments) is failure
    assert handshake_error(by_peer=True, **arguments) is not failure


def test_an_alert_of_ours_without_a_failure_does_not_blame_the_peers_verdict() -> None:
    error = handshake_error(error_code=CRYPTO_ERROR + 48, reason="x", by_peer=False, failure=None)
    assert type(error) is HandshakeFailed
    assert "on this side: unknown_ca: x" in str(error)


def test_other_codes_are_plain_handshake_failures() -> None:
    error = handshake_error(error_code=0xA, reason="", by_peer=True, failure=None)
    assert type(error) is HandshakeFailed
    assert error.alert is None
    assert "0xa" in str(error)
