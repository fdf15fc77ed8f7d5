"""Certificates, trust and tickets set up by users: accepted settings, and errors for mistakes."""

from __future__ import annotations

import datetime as dt
import errno
import os
import ssl
from pathlib import Path
from typing import Any

import certifi
import pytest
import trustme
from aioquic.tls import CipherSuite, SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, x25519
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from phoenix_trio.quic.handshake.certificates import (
    CertificateAndKey,
    create_development_ca,
    fingerprint,
    issue_certificate,
)
from phoenix_trio.quic.handshake.tls import (
    ClientTLS,
    ServerTicketStore,
    ServerTLS,
    SessionStore,
    normalize_server_name,
)

CA = create_development_ca()
LEAF = issue_certificate(CA, ["server.example"])
OTHER = issue_certificate(CA, ["other.example"])


def parse(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def key_pem(key: Any, password: bytes | None = None) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password),
    )
    return data


def encrypted(password: bytes) -> bytes:
    return key_pem(serialization.load_pem_private_key(LEAF.private_key, None), password)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "cert.pem").write_bytes(LEAF.certificate)
    (tmp_path / "key.pem").write_bytes(LEAF.private_key)
    (tmp_path / "ca.pem").write_bytes(CA.certificate)
    return tmp_path


# -------------------------------------------------------------------------- ServerTLS


def test_a_server_takes_paths_pem_bytes_and_pem_text(files: Path) -> None:
    expected = parse(LEAF.certificate)
    for certificate, key in (
        (files / "cert.pem", files / "key.pem"),
        (str(files / "cert.pem"), str(files / "key.pem")),
        (LEAF.certificate, LEAF.private_key),
        (LEAF.certificate.decode(), LEAF.private_key.decode()),
    ):
        identity = ServerTLS(certificate, key).identity
        assert identity.certificate == expected
        assert identity.chain == ()
        assert identity.client_store is None


def test_a_trustme_chain_is_kept_in_order() -> None:
    intermediate = trustme.CA().create_child_ca()
    issued = intermediate.issue_cert("server.example")
    blobs = [blob.bytes() for blob in issued.cert_chain_pems]
    identity = ServerTLS(b"".join(blobs), issued.private_key_pem.bytes()).identity
    assert [identity.certificate, *identity.chain] == [parse(blob) for blob in blobs]


@pytest.mark.parametrize("key_first", [True, False])
def test_certificate_and_key_may_be_in_one_file(files: Path, key_first: bool) -> None:
    parts = [LEAF.private_key, LEAF.certificate]
    (files / "both.pem").write_bytes(b"".join(parts if key_first else parts[::-1]))
    both = files / "both.pem"
    assert ServerTLS(both, both).identity.certificate == parse(LEAF.certificate)


@pytest.mark.parametrize("field", ["certificate", "private_key", "client_ca"])
def test_a_missing_file_is_named_with_its_argument(files: Path, field: str) -> None:
    arguments: dict[str, Any] = {
        "certificate": files / "cert.pem",
        "private_key": files / "key.pem",
        "client_ca": files / "ca.pem",
    }
    arguments[field] = files / "missing.pem"
    with pytest.raises(FileNotFoundError) as caught:
        ServerTLS(**arguments)
    assert f"{field}: No such file" in str(caught.value)
    assert str(files / "missing.pem") in str(caught.value)


def test_other_errors_of_files_keep_their_kind(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IsADirectoryError, match="certificate: "):
        ServerTLS(files, files / "key.pem")
    with pytest.raises(NotADirectoryError, match="private_key: "):
        ServerTLS(files / "cert.pem", files / "cert.pem" / "key.pem")
    with pytest.raises(ValueError, match=r"certificate: .* is not a path"):
        ServerTLS("a\0b", files / "key.pem")

    def refuse(path: str, mode: str) -> None:  # file modes do not stop root
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"certificate: Permission denied: '.*cert\.pem'"):
        ServerTLS(files / "cert.pem", files / "key.pem")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n",
        LEAF.private_key,
    ],
    ids=["empty", "junk", "not DER", "cut", "a key"],
)
@pytest.mark.parametrize("field", ["certificate", "client_ca"])
def test_what_holds_no_certificate_is_named(files: Path, field: str, content: bytes) -> None:
    bad = files / "bad.pem"
    bad.write_bytes(content)
    arguments: dict[str, Any] = {
        "certificate": LEAF.certificate,
        "private_key": LEAF.private_key,
        "client_ca": CA.certificate,
    }
    with pytest.raises(ValueError, match=field) as caught:
        ServerTLS(**{**arguments, field: bad})
    assert repr(str(bad)) in str(caught.value)
    with pytest.raises(ValueError, match=f"{field}: <PEM>"):
        ServerTLS(**{**arguments, field: content})


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        LEAF.certificate,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
    ids=["junk", "a certificate", "not DER"],
)
def test_what_holds_no_private_key_is_named_and_not_shown(files: Path, content: bytes) -> None:
    bad = files / "bad.key"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="private_key: ") as caught:
        ServerTLS(LEAF.certificate, bad)
    assert repr(str(bad)) in str(caught.value)
    with pytest.raises(ValueError, match="private_key: <PEM>"):
        ServerTLS(LEAF.certificate, content)


def test_a_key_which_does_not_belong_to_the_certificate_is_refused(files: Path) -> None:
    (files / "key.pem").write_bytes(OTHER.private_key)
    with pytest.raises(
        ValueError, match=r"private_key: '.*key\.pem' does not belong to certificate: '.*cert\.pem'"
    ):
        ServerTLS(files / "cert.pem", files / "key.pem")


def test_a_chain_in_the_wrong_order_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with the certificate of private_key"):
        ServerTLS(CA.certificate + LEAF.certificate, LEAF.private_key)


def test_a_chain_which_does_not_fit_into_a_handshake_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate: <PEM> has a chain of"):
        ServerTLS(LEAF.certificate + CA.certificate * 40, LEAF.private_key)


def test_an_encrypted_key_needs_its_password() -> None:
    key = encrypted(b"secret")
    for password in ("secret", b"secret"):
        assert ServerTLS(LEAF.certificate, key, password=password).identity is not None
    with pytest.raises(ValueError, match="private_key: <PEM> is encrypted"):
        ServerTLS(LEAF.certificate, key)
    with pytest.raises(ValueError, match=r"private_key: .* with this password") as caught:
        ServerTLS(LEAF.certificate, key, password="wrong-one")
    assert "wrong-one" not in str(caught.value)
    with pytest.raises(ValueError, match="is not encrypted"):
        ServerTLS(LEAF.certificate, LEAF.private_key, password="secret")
    with pytest.raises(TypeError, match="password"):
        ServerTLS(LEAF.certificate, key, password=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        x25519.X25519PrivateKey.generate(),
        dsa.generate_private_key(1024),
    ],
    ids=["P-521", "secp256k1", "X25519", "DSA"],
)
def test_a_key_which_cannot_sign_a_handshake_is_refused_at_once(key: Any) -> None:
    with pytest.raises(ValueError, match=r"private_key: .* use P-256, P-384, Ed25519"):
        ServerTLS(LEAF.certificate, key_pem(key))


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()]
)
def test_edwards_keys_are_accepted(key: Any) -> None:
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, None)
        .public_bytes(serialization.Encoding.PEM)
    )
    assert ServerTLS(certificate, key_pem(key)).identity.private_key is not None


def test_arguments_of_the_wrong_type_are_named() -> None:
    with pytest.raises(TypeError, match="certificate must be a path or PEM"):
        ServerTLS(7, LEAF.private_key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="early_data"):
        ServerTLS(LEAF.certificate, LEAF.private_key, early_data="yes")  # type: ignore[arg-type]


def test_an_identity_cannot_be_changed() -> None:
    identity = ServerTLS(LEAF.certificate, LEAF.private_key).identity
    with pytest.raises(AttributeError):
        identity.certificate = parse(OTHER.certificate)  # type: ignore[misc]


def test_no_representation_shows_a_secret(files: Path) -> None:
    secret = LEAF.private_key.splitlines()[1].decode()
    server = ServerTLS(LEAF.certificate, encrypted(b"pass-word"), password="pass-word")
    client = ClientTLS(
        ca=CA.certificate,
        certificate=LEAF.certificate,
        private_key=LEAF.private_key,
        session_store=SessionStore(),
        early_data=True,
        server_name="server.example",
    )
    for thing in (server, server.identity, server.tickets, client, client.identity):
        assert secret not in repr(thing)
        assert "PRIVATE" not in repr(thing)
        assert "pass-word" not in repr(thing)
    assert repr(client) == (
        "ClientTLS(ca=<PEM>, server_name='server.example', certificate=<CN=server.example>, "
        "session_store=<SessionStore with 0 of 256 tickets>, early_data=True)"
    )
    named = ServerTLS(files / "cert.pem", files / "key.pem", client_ca=files / "ca.pem")
    assert repr(named) == (
        f"ServerTLS('{files}/cert.pem', '{files}/key.pem', client_ca='{files}/ca.pem', "
        "early_data=False)"
    )


def test_reload_reads_the_same_files_again(files: Path) -> None:
    tls = ServerTLS(files / "cert.pem", files / "key.pem")
    old = tls.identity
    tls.reload()
    assert tls.identity is not old
    assert tls.identity.certificate == old.certificate
    (files / "cert.pem").write_bytes(OTHER.certificate)
    (files / "key.pem").write_bytes(OTHER.private_key)
    tls.reload()
    assert tls.identity.certificate == parse(OTHER.certificate)
    assert old.certificate == parse(LEAF.certificate)


@pytest.mark.parametrize("broken", ["cert.pem", "key.pem", "ca.pem"])
@pytest.mark.parametrize("content", [b"junk", None, "another pair"])
def test_a_failing_reload_changes_nothing(files: Path, broken: str, content: Any) -> None:
    tls = ServerTLS(files / "cert.pem", files / "key.pem", client_ca=files / "ca.pem")
    old = tls.identity
    if content is None:
        (files / broken).unlink()
    elif content == "another pair":
        if broken == "ca.pem":
            return
        (files / "cert.pem").write_bytes(OTHER.certificate)  # a renewal caught half way
    else:
        (files / broken).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"certificate|private_key|client_ca"):
        tls.reload()
    assert tls.identity is old
    # And once the files are right, it works.
    (files / "cert.pem").write_bytes(OTHER.certificate)
    (files / "key.pem").write_bytes(OTHER.private_key)
    (files / "ca.pem").write_bytes(CA.certificate)
    tls.reload()
    assert tls.identity.certificate == parse(OTHER.certificate)


def test_reload_takes_new_sources_and_remembers_them_only_if_they_work(files: Path) -> None:
    tls = ServerTLS(files / "cert.pem", files / "key.pem")
    with pytest.raises(ValueError, match="does not belong"):
        tls.reload(OTHER.certificate)
    tls.reload()
    assert tls.identity.certificate == parse(LEAF.certificate)
    tls.reload(OTHER.certificate, OTHER.private_key)
    (files / "cert.pem").unlink()
    tls.reload()
    assert tls.identity.certificate == parse(OTHER.certificate)
    tls.reload(client_ca=CA.certificate)
    assert tls.identity.client_store is not None


def test_the_reset_secret_depends_on_the_key_alone() -> None:
    one = ServerTLS(LEAF.certificate, LEAF.private_key).stateless_reset_secret()
    assert len(one) == 32
    again = ServerTLS(LEAF.certificate, encrypted(b"x"), password="x", early_data=True)
    assert again.stateless_reset_secret() == one
    assert ServerTLS(OTHER.certificate, OTHER.private_key).stateless_reset_secret() != one


# -------------------------------------------------------------------------- ClientTLS


def test_the_systems_authorities_are_parsed_once() -> None:
    assert ClientTLS().store is ClientTLS().store
    assert ClientTLS().store is not None


def test_certifis_authorities_stand_in_for_missing_system_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[Any] = []
    from phoenix_trio.quic.handshake import trust_stores as module

    def record(cafile: Any, version: int, capath: Any) -> Any:
        loaded.append((cafile, capath))
        return original(cafile, version, capath)

    original = module._system_store_at
    monkeypatch.setattr(module, "_system_store_at", record)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))  # exists, but is empty
    ClientTLS()
    assert loaded == [(certifi.where(), None)]
    loaded.clear()
    (tmp_path / "own.pem").write_bytes(CA.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    ClientTLS()
    assert loaded == [(str(tmp_path / "own.pem"), None)]
    loaded.clear()
    (tmp_path / "0a1b2c3d.0").write_bytes(CA.certificate)
    ClientTLS()
    assert loaded == [(str(tmp_path / "own.pem"), str(tmp_path))]
    loaded.clear()
    (tmp_path / "own.pem").write_bytes(b"damaged")
    (tmp_path / "0a1b2c3d.0").unlink()
    ClientTLS()
    assert loaded[-1] == (certifi.where(), None)


def test_updated_system_authorities_are_picked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "roots.pem"
    path.write_bytes(CA.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    first = ClientTLS().store
    assert ClientTLS().store is first
    os.utime(path, ns=(1, 1))
    assert ClientTLS().store is not first


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            {"pinned_sha256": bytes(32), "danger_accept_any_certificate": True},
            "pinned_sha256 and d",
        ),
        ({"ca": CA.certificate, "pinned_sha256": bytes(32)}, "ca and pinned_sha256"),
        ({"ca": CA.certificate, "danger_accept_any_certificate": True}, "ca and danger"),
        ({"early_data": True}, "early_data needs a session_store"),
        ({"certificate": LEAF.certificate}, "certificate is of no use without private_key"),
        ({"private_key": LEAF.private_key}, "private_key is of no use without certificate"),
        ({"password": "x"}, "password is of no use without private_key"),
        (
            {"certificate": LEAF.certificate, "private_key": OTHER.private_key},
            "private_key: <PEM> does not belong to certificate: <PEM>",
        ),
        ({"ca": b"junk"}, "ca: <PEM>"),
        ({"server_name": "a b"}, "server_name: 'a b'"),
        ({"server_name": ""}, "server_name"),
    ],
)
def test_contradictions_and_nonsense_are_refused_by_name(
    arguments: dict[str, Any], names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        ClientTLS(**arguments)


@pytest.mark.parametrize(
    "field",
    [
        "ca",
        "certificate",
        "server_name",
        "pinned_sha256",
        "session_store",
        "early_data",
        "danger_accept_any_certificate",
    ],
)
def test_a_wrong_type_is_refused_by_name(field: str) -> None:
    arguments: dict[str, Any] = {field: 7}
    if field == "certificate":
        arguments["private_key"] = LEAF.private_key
    with pytest.raises(TypeError, match=field):
        ClientTLS(**arguments)


def test_a_missing_authority_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ca: No such file"):
        ClientTLS(ca=tmp_path / "missing.pem")


def test_a_pin_is_taken_in_every_usual_form() -> None:
    colons = fingerprint(LEAF.certificate)
    expected = bytes.fromhex(colons.replace(":", ""))
    for pin in (colons, colons.upper(), colons.replace(":", ""), expected):
        assert ClientTLS(pinned_sha256=pin).pinned_sha256 == expected


@pytest.mark.parametrize(
    "pin", ["", "ab", "g" * 64, "a" * 63, "a" * 65, " " + "a" * 63, "a" * 62 + " a", b"", bytes(31)]
)
def test_a_malformed_pin_is_refused(pin: str | bytes) -> None:
    with pytest.raises(ValueError, match="pinned_sha256"):
        ClientTLS(pinned_sha256=pin)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_host", "my_host"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_server_names_have_one_form(name: str, normal: str) -> None:
    assert normalize_server_name(name) == normal
    assert ClientTLS(server_name=name).server_name == normal


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, "-a", "x y", "a\0", "[::1]", "a:1"])
def test_what_is_no_server_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="server_name"):
        normalize_server_name(name)


def test_pem_from_pythons_ssl_module_is_understood() -> None:
    der = ssl.PEM_cert_to_DER_cert(CA.certificate.decode())
    assert ClientTLS(ca=ssl.DER_cert_to_PEM_cert(der)).store is not None


def test_an_issued_pair_is_accepted_as_it_is() -> None:
    pair: CertificateAndKey = issue_certificate(CA, ["client.example"])
    client = ClientTLS(
        ca=CA.certificate, certificate=pair.certificate, private_key=pair.private_key
    )
    assert client.identity is not None
    assert client.identity.certificate == parse(pair.certificate)


# ---------------------------------------------------------------------------- tickets


def ticket(label: bytes, *, lifetime: float = 3600.0, age: float = 0.0) -> SessionTicket:
    start = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
    return SessionTicket(
        age_add=0,
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        not_valid_after=start + dt.timedelta(seconds=lifetime),
        not_valid_before=start,
        resumption_secret=b"secret",
        server_name="server.example",
        ticket=label,
    )


def test_a_server_ticket_is_good_for_one_use() -> None:
    store = ServerTicketStore()
    store.add(ticket(b"one"))
    assert len(store) == 1
    assert store.take(b"two") is None
    found = store.take(b"one")
    assert found is not None
    assert found.ticket == b"one"
    assert store.take(b"one") is None
    assert len(store) == 0


def test_an_expired_server_ticket_is_not_found() -> None:
    store = ServerTicketStore()
    store.add(ticket(b"one", lifetime=10, age=11))
    assert store.take(b"one") is None
    assert len(store) == 0


def test_the_oldest_server_ticket_goes_when_the_store_is_full() -> None:
    store = ServerTicketStore(max_tickets=3)
    for index in range(5):
        store.add(ticket(bytes([index])))
        assert len(store) <= 3
    assert [store.take(bytes([index])) is not None for index in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_client_ticket_is_found_by_its_server_only_and_used_once() -> None:
    store = SessionStore()
    store.put("a", 1, ("x", "y"), ticket(b"one"))
    assert len(store) == 1
    for key in (("b", 1, ("x", "y")), ("a", 2, ("x", "y")), ("a", 1, ("x",)), ("a", 1, ("y", "x"))):
        assert store.take(*key) is None
    assert store.take("a", 1, ("x", "y"), scope=b"other") is None
    found = store.take("a", 1, ["x", "y"])
    assert found is not None
    assert found.ticket == b"one"
    assert store.take("a", 1, ("x", "y")) is None
    assert len(store) == 0


def test_several_tickets_of_one_server_are_kept_and_the_newest_comes_first() -> None:
    store = SessionStore()
    for index in range(6):
        store.put("a", 1, (), ticket(bytes([index])))
    assert len(store) == SessionStore.TICKETS_PER_SERVER == 4
    taken = [store.take("a", 1, ()) for _ in range(5)]
    assert [t.ticket if t else None for t in taken] == [b"\5", b"\4", b"\3", b"\2", None]


def test_expired_oversized_and_overlong_client_tickets_are_dealt_with() -> None:
    store = SessionStore()
    store.put("a", 1, (), ticket(b"old", lifetime=10, age=11))
    store.put("a", 1, (), ticket(bytes(4097)))
    assert len(store) == 0
    # RFC 8446 section 4.6.1: seven days at most, whatever the server says.
    store.put("a", 1, (), ticket(b"long", lifetime=2**32 - 1))
    found = store.take("a", 1, ())
    assert found is not None
    assert found.not_valid_after - found.not_valid_before == dt.timedelta(days=7)
    # A ticket that expires while it is in the store.
    fine = ticket(b"fine")
    store.put("a", 1, (), ticket(b"first"))
    store.put("a", 1, (), fine)
    fine.not_valid_after = fine.not_valid_before - dt.timedelta(seconds=1)
    found = store.take("a", 1, ())
    assert found is not None
    assert found.ticket == b"first"
    assert len(store) == 0


def test_the_least_recently_used_server_loses_its_ticket_first() -> None:
    store = SessionStore(max_tickets=3)
    for name in "abc":
        store.put(name, 1, (), ticket(name.encode()))
    store.put("a", 1, (), ticket(b"a2"))
    assert len(store) == 3
    assert store.take("b", 1, ()) is None
    assert store.take("a", 1, ()) is not None
    assert store.take("c", 1, ()) is not None
    store.clear()
    assert len(store) == 0
    assert store.take("a", 1, ()) is None


def test_a_store_has_room_for_at_least_one_ticket() -> None:
    with pytest.raises(ValueError, match="max_tickets"):
        SessionStore(0)
    with pytest.raises(ValueError, match="max_tickets"):
        ServerTicketStore(0)


def test_clients_with_equal_trust_share_tickets_and_others_do_not() -> None:
    store = SessionStore()

    def sessions(**arguments: Any) -> Any:
        return ClientTLS(session_store=store, **arguments).session_store

    kinds: list[dict[str, Any]] = [
        {},
        {"ca": CA.certificate},
        {"ca": OTHER.certificate},
        {"pinned_sha256": bytes(32)},
        {"danger_accept_any_certificate": True},
        {"certificate": LEAF.certificate, "private_key": LEAF.private_key},
    ]
    for index, one in enumerate(kinds):
        for other_index, other in enumerate(kinds):
            store.clear()
            sessions(**one).put("a", 1, (), ticket(b"t"))
            assert (sessions(**other).take("a", 1, ()) is not None) == (index == other_index)


class SessionStoreMachine(RuleBasedStateMachine):
    """Against a model that keeps everything: bounds hold, no ticket is given twice or to others."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SessionStore(max_tickets=7)
        self.given: dict[bytes, tuple[str, int]] = {}
        self.counter = 0

    @rule(name=st.sampled_from("abcd"), port=st.integers(1, 2))
    def put(self, name: str, port: int) -> None:
        self.counter += 1
        label = str(self.counter).encode()
        self.given[label] = (name, port)
        self.store.put(name, port, ("x",), ticket(label))

    @rule(name=st.sampled_from("abcd"), port=st.integers(1, 2))
    def take(self, name: str, port: int) -> None:
        before = len(self.store)
        found = self.store.take(name, port, ("x",))
        if found is None:
            assert len(self.store) == before
            assert (b"", name, port, ("x",)) not in self.store._tickets._values
        else:
            assert len(self.store) == before - 1
            assert self.given.pop(found.ticket) == (name, port)

    @invariant()
    def the_count_is_right_and_bounded(self) -> None:
        lists = self.store._tickets._values.values()
        assert len(self.store) == sum(map(len, lists)) <= 7
        assert all(1 <= len(tickets) <= 4 for tickets in lists)


TestSessionStore = SessionStoreMachine.TestCase
