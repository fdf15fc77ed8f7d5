"""TLS messages and the key schedule, with aioquic and OpenSSL as oracles."""

from __future__ import annotations

import os
import ssl
from typing import Any

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.handshake.key_exchange import X25519MLKEM768, begin_exchange
from phoenix_trio.quic.handshake.key_schedule import KeySchedule, message_hash
from phoenix_trio.quic.handshake.policies import ClientPolicy
from phoenix_trio.quic.handshake.tls_context import PhoenixTLSContext, adopt
from phoenix_trio.quic.handshake.tls_messages import (
    RETRY_RANDOM,
    build_certificate,
    build_certificate_request,
    build_certificate_verify,
    build_client_hello,
    build_encrypted_extensions,
    build_finished,
    build_server_hello,
    fixed_extensions,
    key_share_of_server,
    parse_client_hello,
    parse_server_hello,
)
from tests.support import examples, server_pem

SUITES = list(tls.CipherSuite)[:3]
GROUPS = (tls.Group.X25519, tls.Group.SECP256R1)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


def fixed(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "server_name": "example.org",
        "alpn": ("a", "bc"),
        "groups": GROUPS,
        "signature_algorithms": (0x0403, 0x0804),
        "with_tickets": True,
    }
    return fixed_extensions(**{**arguments, **changes})


def hello(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "random": bytes(range(32)),
        "session_id": b"",
        "cipher_suites": SUITES,
        "fixed": fixed(),
        "key_shares": [(tls.Group.X25519, b"k" * 32)],
        "other": [(57, b"parameters")],
    }
    return build_client_hello(**{**arguments, **changes})


# ------------------------------------------------------------------ hellos


@pytest.mark.parametrize("with_early_data", [True, False])
def test_aioquic_reads_our_client_hello(with_early_data: bool) -> None:
    data = hello(with_early_data=with_early_data, ticket=(b"label", 7, 32))
    buffer = Buffer(data=data)
    assert tls.pull_client_hello(buffer) == tls.ClientHello(
        random=bytes(range(32)),
        legacy_session_id=b"",
        cipher_suites=[int(each) for each in SUITES],
        legacy_compression_methods=[0],
        alpn_protocols=["a", "bc"],
        early_data=with_early_data,
        key_share=[(tls.Group.X25519, b"k" * 32)],
        pre_shared_key=tls.OfferedPsks(identities=[(b"label", 7)], binders=[bytes(32)]),
        psk_key_exchange_modes=[1],
        server_name="example.org",
        signature_algorithms=[0x0403, 0x0804],
        supported_groups=list(GROUPS),
        supported_versions=[0x0304],
        other_extensions=[(57, b"parameters")],
    )
    assert buffer.eof()


def test_what_is_not_given_is_not_said() -> None:
    data = hello(fixed=fixed(server_name=None, alpn=None, with_tickets=False))
    parsed = tls.pull_client_hello(Buffer(data=data))
    assert parsed.server_name is None
    assert parsed.alpn_protocols is None
    assert parsed.psk_key_exchange_modes is None


@pytest.mark.parametrize("name", ["192.0.2.1", "2001:db8::1"])
def test_an_ip_address_is_no_server_name(name: str) -> None:
    """RFC 6066 section 3."""
    assert (
        tls.pull_client_hello(Buffer(data=hello(fixed=fixed(server_name=name)))).server_name is None
    )


@given(
    session_id=st.binary(max_size=32),
    suites=st.lists(st.integers(0, 0xFFFF), max_size=10),
    shares=st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=100)), max_size=4),
    alpn=st.none() | st.lists(NAMES, max_size=4),
    groups=st.none() | st.lists(st.integers(0, 0xFFFF), max_size=5),
    psk=st.booleans(),
    early_data=st.booleans(),
    other=st.dictionaries(st.integers(200, 0xFFFF), st.binary(max_size=20), max_size=4),
)
@examples(50)
def test_we_read_the_client_hello_of_aioquic(
    session_id: bytes,
    suites: list[int],
    shares: list[tuple[int, bytes]],
    alpn: list[str] | None,
    groups: list[int] | None,
    psk: bool,
    early_data: bool,
    other: dict[int, bytes],
) -> None:
    theirs = tls.ClientHello(
        random=os.urandom(32),
        legacy_session_id=session_id,
        cipher_suites=suites,
        legacy_compression_methods=[0, 1],
        alpn_protocols=alpn,
        key_share=shares,
        supported_versions=[0x0304, 0x0303],
        signature_algorithms=[1, 2, 3],
        supported_groups=groups or [],
        psk_key_exchange_modes=[1] if psk else None,
        early_data=early_data,
        server_name="example.org",
        other_extensions=list(other.items()),
        pre_shared_key=tls.OfferedPsks([(b"label", 7)], [b"b" * 48]) if psk else None,
    )
    buffer = Buffer(capacity=4096)
    tls.push_client_hello(buffer, theirs)
    data = buffer.data
    ours = parse_client_hello(data)
    assert (ours.random, ours.session_id) == (theirs.random, session_id)
    assert ours.cipher_suites == suites
    assert ours.compression_methods == b"\0\1"
    assert ours.key_shares == shares
    assert ours.alpn == alpn
    assert ours.versions == [0x0304, 0x0303]
    assert ours.signature_algorithms == [1, 2, 3]
    assert ours.groups == (groups or [])
    assert ours.has_early_data is early_data
    assert ours.other == list(other.items())
    if psk:
        assert (ours.psk_modes, ours.identities, ours.binders) == (b"\1", [b"label"], [b"b" * 48])
        assert data[ours.binders_at :] == b"\0\x31\x30" + b"b" * 48


@given(st.data())
@examples(200)
def test_damaged_hellos_are_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(hello(ticket=(b"label", 7, 32), with_early_data=True))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(4, len(whole)))])
    for parse in (parse_client_hello, parse_server_hello):
        try:
            parse(cut)
        except tls.Alert as alert:
            assert isinstance(alert, (tls.AlertDecodeError, tls.AlertIllegalParameter))  # noqa: PT017


def test_an_extension_must_not_come_twice() -> None:
    with pytest.raises(tls.AlertIllegalParameter, match="twice"):
        parse_client_hello(hello(other=[(57, b""), (57, b"")]))


def test_the_ticket_has_to_be_the_last_extension() -> None:
    data = bytearray(hello(ticket=(b"label", 7, 32)))
    data += b"\0\x38\0\0"
    data[1:4] = (len(data) - 4).to_bytes(3, "big")
    at = 4 + 2 + 32 + 1 + 2 + 6 + 2
    data[at : at + 2] = (len(data) - at - 2).to_bytes(2, "big")
    with pytest.raises(tls.AlertIllegalParameter, match="last"):
        parse_client_hello(bytes(data))


@pytest.mark.parametrize("with_ticket", [True, False])
def test_server_hellos(with_ticket: bool) -> None:
    share = key_share_of_server(tls.Group.X25519, b"k" * 32)
    data = build_server_hello(
        random=b"r" * 32,
        session_id=b"id",
        cipher_suite=0x1302,
        key_share=share,
        with_ticket=with_ticket,
    )
    assert tls.pull_server_hello(Buffer(data=data)) == tls.ServerHello(
        random=b"r" * 32,
        legacy_session_id=b"id",
        cipher_suite=0x1302,
        compression_method=0,
        key_share=(tls.Group.X25519, b"k" * 32),
        pre_shared_key=0 if with_ticket else None,
        supported_version=0x0304,
    )
    parsed = parse_server_hello(data)
    assert not parsed.is_retry
    assert (parsed.version, parsed.cipher_suite, parsed.session_id) == (0x0304, 0x1302, b"id")
    assert parsed.key_share == (tls.Group.X25519, b"k" * 32)
    assert parsed.ticket == (0 if with_ticket else -1)


def test_a_server_puts_the_ticket_where_it_likes() -> None:
    """RFC 8446 section 4.2.11 wants it last in a ClientHello alone; BoringSSL begins with it."""
    extensions = b"\0\x29\0\2\0\0" + b"\0\x2b\0\2\3\4"
    body = b"\3\3" + b"r" * 32 + b"\0" + b"\x13\1" + b"\0" + b"\0\x0c" + extensions
    parsed = parse_server_hello(b"\2\0\0" + bytes((len(body),)) + body)
    assert (parsed.ticket, parsed.version) == (0, 0x0304)


def test_retry_requests() -> None:
    data = build_server_hello(
        random=RETRY_RANDOM, session_id=b"", cipher_suite=0x1301, key_share=b"\0\x17"
    )
    parsed = parse_server_hello(data)
    assert parsed.is_retry
    assert parsed.key_share == (tls.Group.SECP256R1, b"")


def test_the_other_messages_of_a_server() -> None:
    def pulled(pull: Any, data: bytes) -> Any:
        buffer = Buffer(data=data)
        result = pull(buffer)
        assert buffer.eof()
        return result

    extensions = build_encrypted_extensions(alpn="a", with_early_data=True, other=[(57, b"x")])
    assert pulled(tls.pull_encrypted_extensions, extensions) == tls.EncryptedExtensions(
        alpn_protocol="a", early_data=True, other_extensions=[(57, b"x")]
    )
    nothing = build_encrypted_extensions(alpn=None, with_early_data=False, other=[])
    assert pulled(tls.pull_encrypted_extensions, nothing) == tls.EncryptedExtensions()
    certificate = build_certificate([b"leaf", b"intermediate"])
    assert pulled(tls.pull_certificate, certificate) == tls.Certificate(
        request_context=b"", certificates=[(b"leaf", b""), (b"intermediate", b"")]
    )
    request = build_certificate_request([0x0403, 0x0804])
    assert pulled(tls.pull_certificate_request, request) == tls.CertificateRequest(
        request_context=b"", signature_algorithms=[0x0403, 0x0804]
    )
    verify = build_certificate_verify(0x0403, b"signature")
    assert pulled(tls.pull_certificate_verify, verify) == tls.CertificateVerify(
        0x0403, b"signature"
    )
    assert pulled(tls.pull_finished, build_finished(b"v" * 32)).verify_data == b"v" * 32


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("psk", [None, b"p" * 32])
def test_the_key_schedule_is_that_of_aioquic(suite: tls.CipherSuite, psk: bytes | None) -> None:
    ours, theirs = KeySchedule(suite), tls.KeySchedule(suite)
    for step in (psk, b"shared", None):
        ours.extract(step)
        theirs.extract(step)
        assert ours.secret == theirs.secret
        assert ours.derive_secret(b"label") == theirs.derive_secret(b"label")
        for schedule in (ours, theirs):
            schedule.update_hash(b"message")
        assert ours.derive_secret(b"label") == theirs.derive_secret(b"label")
        assert ours.finished_verify_data(b"s" * 32) == theirs.finished_verify_data(b"s" * 32)
        assert ours.certificate_verify_data(b"c") == theirs.certificate_verify_data(b"c")
    assert ours.generation == theirs.generation == 3
    assert ours.algorithm.name == theirs.algorithm.name


def test_the_hash_of_a_hello_which_was_refused() -> None:
    assert message_hash(SUITES[0], b"x")[:4] == b"\xfe\0\0" + bytes(
        (len(message_hash(SUITES[0], b"x")) - 4,)
    )


@pytest.mark.parametrize("group", [tls.Group.X25519, tls.Group.X448, *list(tls.GROUP_TO_CURVE)[:2]])
def test_key_exchange(group: int) -> None:
    one, other = begin_exchange(group), begin_exchange(group)
    assert one.group == group
    assert one.finish(other.public) == other.finish(one.public)
    theirs = tls.decode_public_key((group, one.public))
    assert theirs is not None
    assert tls.encode_public_key(theirs) == (group, one.public)
    for public in (b"", b"\4", bytes(32), bytes(56), b"\2" + other.public, other.public[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011 - the libraries' texts differ
            one.finish(public)


# ------------------------------------------------------------------ HelloRetryRequest, by OpenSSL


class OpenSSLServer:
    """A TLS server of OpenSSL's which knows one group; records in, records out."""

    def __init__(self, curve: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        chain, key = server_pem()
        path = _write(chain + key)
        context.load_cert_chain(path)
        os.unlink(path)
        context.set_ecdh_curve(curve)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def answer(self, message: bytes) -> list[tuple[int, bytes]]:
        """The records, by their type, with which it answers a handshake message."""
        self._incoming.write(b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message)
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        data, records = self._outgoing.read(), []
        while data:
            end = 5 + int.from_bytes(data[3:5], "big")
            records.append((data[0], data[5:end]))
            data = data[end:]
        return [record for record in records if record[0] != 20]  # (change_cipher_spec)


def _write(pem: bytes) -> str:
    import tempfile

    handle, path = tempfile.mkstemp()
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    return path


def hello_of(context: PhoenixTLSContext, message: bytes) -> bytes:
    output = {tls.Epoch.INITIAL: Buffer(capacity=4096), tls.Epoch.HANDSHAKE: Buffer(capacity=4096)}
    context.handle_message(message, output)
    return output[tls.Epoch.INITIAL].data


def test_a_client_gives_a_server_of_openssl_the_group_it_asks_for() -> None:
    context = tls.Context(is_client=True, alpn_protocols=["a"])
    context.handshake_extensions = [(57, b"parameters")]
    secrets: dict[tuple[tls.Direction, tls.Epoch], tuple[tls.CipherSuite, bytes]] = {}
    context.update_traffic_key_cb = lambda direction, epoch, suite, secret: secrets.update(
        {(direction, epoch): (suite, secret)}
    )
    client = adopt(
        context,
        ClientPolicy(server_name="localhost", accept_any=True, groups=("x25519", "secp384r1")),
    )
    server = OpenSSLServer("secp384r1")
    ((kind, retry),) = server.answer(hello_of(client, b""))
    assert kind == 22
    assert parse_server_hello(retry).is_retry
    second = hello_of(client, retry)
    assert client.was_retried
    parsed = parse_client_hello(second)
    assert parsed.key_shares is not None
    assert [group for group, _ in parsed.key_shares] == [tls.Group.SECP384R1]
    (_, answer), (_, encrypted), *_ = server.answer(second)
    assert hello_of(client, answer) == b""
    # Its first encrypted record is opened with the secret which follows from all messages.
    suite, secret = secrets[tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE]
    algorithm = SHA384() if suite == tls.CipherSuite.AES_256_GCM_SHA384 else SHA256()
    size = 32 if suite == tls.CipherSuite.AES_256_GCM_SHA384 else 16
    key = tls.hkdf_expand_label(algorithm, secret, b"key", b"", size)
    iv = tls.hkdf_expand_label(algorithm, secret, b"iv", b"", 12)
    head = b"\x17\x03\x03" + len(encrypted).to_bytes(2, "big")
    plain = AESGCM(key).decrypt(iv, encrypted, head)
    assert plain[0] == 8, "EncryptedExtensions"


def retry_request(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "random": RETRY_RANDOM,
        "session_id": b"",
        "cipher_suite": tls.CipherSuite.AES_128_GCM_SHA256,
        "key_share": tls.Group.SECP256R1.to_bytes(2, "big"),
    }
    return build_server_hello(**{**arguments, **changes})


def new_client() -> PhoenixTLSContext:
    context = tls.Context(is_client=True, alpn_protocols=["a"])
    client = adopt(context, ClientPolicy(server_name="localhost", accept_any=True))
    hello_of(client, b"")
    return client


@pytest.mark.parametrize(
    "message",
    [
        retry_request(key_share=tls.Group.X25519.to_bytes(2, "big")),  # was offered
        retry_request(key_share=X25519MLKEM768.to_bytes(2, "big")),  # was offered, too
        retry_request(key_share=tls.Group.X448.to_bytes(2, "big")),  # is not known
        retry_request(session_id=b"x"),
    ],
)
def test_retry_requests_of_no_use(message: bytes) -> None:
    with pytest.raises(tls.AlertIllegalParameter):
        hello_of(new_client(), message)


def test_a_second_retry_request() -> None:
    client = new_client()
    hello_of(client, retry_request())
    with pytest.raises(tls.AlertUnexpectedMessage):
        hello_of(client, retry_request())


def test_the_cipher_suite_stays_the_same_after_a_retry_request() -> None:
    client = new_client()
    second = parse_client_hello(hello_of(client, retry_request()))
    assert second.key_shares is not None
    share = key_share_of_server(tls.Group.SECP256R1, begin_exchange(tls.Group.SECP256R1).public)
    answer = retry_request(
        random=bytes(32), key_share=share, cipher_suite=tls.CipherSuite.AES_256_GCM_SHA384
    )
    with pytest.raises(tls.AlertIllegalParameter, match="cipher suite"):
        hello_of(client, answer)


def test_a_retry_request_with_a_cookie() -> None:
    """RFC 8446 section 4.2.2: it is sent back, and the key share stays."""
    message = bytearray(retry_request())
    # Replace the key share, which is last, by a cookie.
    cookie = b"\0\x2c\0\x05\0\x03abc"
    body = bytes(message[4:-6]) + cookie
    at = 2 + 32 + 1 + 2 + 1
    body = body[:at] + (len(body) - at - 2).to_bytes(2, "big") + body[at + 2 :]
    client = new_client()
    second = hello_of(client, b"\x02" + len(body).to_bytes(3, "big") + body)
    parsed = parse_client_hello(second)
    assert parsed.key_shares is not None
    assert [group for group, _ in parsed.key_shares] == [X25519MLKEM768, tls.Group.X25519]
    assert cookie in second
