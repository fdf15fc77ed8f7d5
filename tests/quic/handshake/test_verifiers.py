"""A function of the application decides which peers are accepted."""

from __future__ import annotations

import asyncio
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.quic.handshake.certificates import create_development_ca, issue_certificate
from phoenix_trio.testing import SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    authority_pem,
    client_pem,
    client_tls,
    server_pem,
    server_tls,
)
from tests.support import SERVER as HOST

from .pair import SERVER, Pair, make_client, make_server

CRYPTO_ERROR = 0x100
CERTIFICATE_UNKNOWN = 46
CERTIFICATE_REQUIRED = 116


class Asked:
    """A verifier which remembers what it was asked, and rejects by `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[list[x509.Certificate], str | None]] = []

    def __call__(self, chain: list[x509.Certificate], server_name: str | None) -> None:
        self.calls.append((chain, server_name))
        if self.error is not None:
            raise self.error


def certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def trusting(verify: Callable[..., Any], **arguments: Any) -> phoenix_trio.ClientTLS:
    return phoenix_trio.ClientTLS(verify=verify, **arguments)


def with_certificate(**arguments: Any) -> phoenix_trio.ClientTLS:
    certificate, key = client_pem()
    return client_tls(certificate=certificate, private_key=key, **arguments)


def pair_of(client: phoenix_trio.ClientTLS, server: phoenix_trio.ServerTLS, **more: Any) -> Pair:
    return Pair(client=make_client(client, **more), server=partial(make_server, tls=server))


def run(pair: Pair) -> Pair:
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    return pair


# ------------------------------------------------------------------ clients


def test_a_client_asks_once_with_the_chain_and_the_name_which_was_dialled() -> None:
    asked = Asked()
    pair = pair_of(trusting(asked), server_tls(), host="elsewhere.example").connect()
    assert asked.calls == [(certificates(server_pem()[0]), "elsewhere.example")]
    assert list(pair.client.handshake.peer_certificate_chain) == asked.calls[0][0]


def test_server_name_is_what_a_client_asks_with() -> None:
    asked = Asked()
    pair_of(trusting(asked, server_name="Given.Example"), server_tls()).connect()
    assert asked.calls[0][1] == "given.example"


def test_the_chain_has_the_peers_own_certificate_first() -> None:
    asked = Asked()
    leaf, key = server_pem()
    server = phoenix_trio.ServerTLS(leaf + authority_pem(), key)
    pair = pair_of(trusting(asked), server).connect()
    assert asked.calls[0][0] == certificates(leaf + authority_pem())
    assert len(pair.client.handshake.peer_certificate_chain) == 2


def test_a_client_asks_for_each_connection() -> None:
    asked = Asked()
    tls = trusting(asked)
    for _ in range(2):
        pair_of(tls, server_tls()).connect()
    assert len(asked.calls) == 2, "no verdict is remembered"


def test_a_rejected_server_ends_the_handshake_and_the_cause_is_kept() -> None:
    error = LookupError("not one of ours")
    pair = run(pair_of(trusting(Asked(error)), server_tls()))
    assert pair.client.fault is not None
    assert pair.client.fault[0] == CRYPTO_ERROR + CERTIFICATE_UNKNOWN
    failure = pair.client.handshake.failure
    assert isinstance(failure, phoenix_trio.CertificateUntrusted)
    assert failure.alert == CERTIFICATE_UNKNOWN
    assert failure.__cause__ is error
    assert "LookupError: 'not one of ours'" in str(failure)
    assert pair.client.handshake.peer_certificate is None
    assert pair.client.handshake.peer_certificate_chain == ()
    assert pair.server is not None
    assert pair.server.peer_close is not None
    assert pair.server.peer_close[0] == CRYPTO_ERROR + CERTIFICATE_UNKNOWN
    assert "ours" not in pair.server.peer_close[2], "strangers are not told why"


def test_the_traceback_shows_where_a_verifier_failed_and_nothing_of_the_handshake() -> None:
    def broken(chain: list[x509.Certificate], server_name: str | None) -> None:
        raise KeyError(len(chain) - 1)

    pair = run(pair_of(trusting(broken), server_tls()))
    failure = pair.client.handshake.failure
    assert failure is not None
    assert failure.__cause__ is not None
    frames = traceback.extract_tb(failure.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["broken"]


def test_a_server_without_the_key_of_its_certificate_is_not_even_asked_about() -> None:
    asked = Asked()
    server = server_tls()
    settings = partial(make_server, tls=server)
    pair = Pair(client=make_client(trusting(asked)), server=settings)
    object.__setattr__(server.identity, "private_key", ec.generate_private_key(ec.SECP256R1()))
    run(pair)
    assert pair.client.fault is not None
    assert pair.client.fault[0] == CRYPTO_ERROR + 51
    assert asked.calls == []


@pytest.mark.parametrize("result", [False, True, 0, "no"])
def test_a_result_other_than_none_rejects(result: object) -> None:
    pair = run(pair_of(trusting(lambda chain, name: result), server_tls()))
    failure = pair.client.handshake.failure
    assert isinstance(failure, phoenix_trio.CertificateUntrusted)
    assert isinstance(failure.__cause__, TypeError)
    assert "verify must return None" in str(failure)


def test_a_coroutine_rejects_and_leaves_no_warning() -> None:
    async def decide() -> None:
        await asyncio.sleep(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = run(pair_of(trusting(lambda chain, name: decide()), server_tls()))
    failure = pair.client.handshake.failure
    assert failure is not None
    assert isinstance(failure.__cause__, TypeError)


# ------------------------------------------------------------------ servers


def test_a_server_asks_with_the_clients_chain_and_without_a_name() -> None:
    asked = Asked()
    pair = pair_of(with_certificate(), server_tls(verify=asked)).connect()
    assert asked.calls == [(certificates(client_pem()[0]), None)]
    assert pair.server is not None
    assert list(pair.server.handshake.peer_certificate_chain) == asked.calls[0][0]
    assert pair.client.handshake.client_certificate_requested


def test_a_client_without_a_certificate_is_up_to_the_verifier() -> None:
    asked = Asked()
    pair = pair_of(client_tls(), server_tls(verify=asked)).connect()
    assert asked.calls == [([], None)]
    assert pair.server is not None
    assert pair.server.handshake.peer_certificate is None
    assert pair.server.handshake.peer_certificate_chain == ()


def test_a_client_which_is_rejected_without_a_certificate_is_told_that_one_is_required() -> None:
    error = ValueError("show one")
    pair = run(pair_of(client_tls(), server_tls(verify=Asked(error))))
    assert pair.server is not None
    assert not pair.server.handshake.is_complete
    failure = pair.server.handshake.failure
    assert isinstance(failure, phoenix_trio.ClientCertificateRequired)
    assert failure.__cause__ is error
    assert pair.client.peer_close is not None
    assert pair.client.peer_close[0] == CRYPTO_ERROR + CERTIFICATE_REQUIRED


def test_a_rejected_client_ends_the_handshake_and_the_cause_is_kept() -> None:
    error = ValueError("unknown")
    pair = run(pair_of(with_certificate(), server_tls(verify=Asked(error))))
    assert pair.server is not None
    assert not pair.server.handshake.is_complete
    failure = pair.server.handshake.failure
    assert isinstance(failure, phoenix_trio.CertificateUntrusted)
    assert failure.__cause__ is error
    assert pair.client.peer_close is not None
    assert pair.client.peer_close[0] == CRYPTO_ERROR + CERTIFICATE_UNKNOWN


def test_neither_side_needs_an_authority() -> None:
    ours, theirs = (issue_certificate(create_development_ca(), ["peer.invalid"]) for _ in range(2))
    pair = pair_of(
        trusting(Asked(), certificate=ours.certificate, private_key=ours.private_key),
        phoenix_trio.ServerTLS(theirs.certificate, theirs.private_key, verify=Asked()),
    ).connect()
    assert pair.server is not None
    assert pair.server.handshake.peer_certificate == certificates(ours.certificate)[0]
    assert pair.client.handshake.peer_certificate == certificates(theirs.certificate)[0]


def test_a_server_with_a_verifier_issues_and_takes_no_tickets() -> None:
    sessions = phoenix_trio.SessionStore()
    asked = Asked()
    server = server_tls(verify=asked)
    for tls in (with_certificate(session_store=sessions), client_tls(session_store=sessions)):
        for _ in range(2):
            pair = pair_of(tls, server).connect()
            assert pair.server is not None
            assert pair.server.completed == ("test/1", False, False)
            assert pair.server.crypto == b""
    assert len(asked.calls) == 4
    assert len(server.tickets) == len(sessions) == 0


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"ca": authority_pem()}, "ca and verify"),
        ({"pinned_sha256": bytes(32)}, "pinned_sha256 and verify"),
        ({"danger_accept_any_certificate": True}, "verify and danger_accept_any_certificate"),
        ({"session_store": phoenix_trio.SessionStore()}, "verify and session_store"),
    ],
)
def test_a_client_has_one_kind_of_trust(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        phoenix_trio.ClientTLS(verify=Asked(), **arguments)


def test_a_server_has_one_kind_of_trust() -> None:
    with pytest.raises(ValueError, match="client_ca and verify"):
        server_tls(verify=Asked(), client_ca=authority_pem())
    server = server_tls(verify=Asked())
    with pytest.raises(ValueError, match="client_ca and verify"):
        server.reload(client_ca=authority_pem())
    server.reload()


async def asynchronous(chain: list[x509.Certificate], server_name: str | None) -> None:
    await trio.lowlevel.checkpoint()


class AsynchronousObject:
    async def __call__(self, chain: list[x509.Certificate], server_name: str | None) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("verify", [True, "yes", asynchronous, AsynchronousObject()])
def test_a_verifier_is_a_synchronous_function(verify: Any) -> None:
    for make in (
        partial(phoenix_trio.ClientTLS, verify=verify),
        partial(server_tls, verify=verify),
    ):
        with pytest.raises(TypeError, match="verify must"):
            make()


def test_the_representations_name_the_verifier() -> None:
    asked = Asked()
    assert f"verify={asked!r}" in repr(phoenix_trio.ClientTLS(verify=asked))
    assert f"verify={asked!r}" in repr(server_tls(verify=asked))
    assert "verify" not in repr(server_tls())


# ------------------------------------------------------------------ whole connections


async def test_programs_see_the_chain_and_why_a_server_was_rejected(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    error = LookupError("not one of ours")
    seen: list[tuple[x509.Certificate, ...]] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        seen.append(connection.peer_certificate_chain)
        await connection.wait_closed()

    def connect(tls: phoenix_trio.ClientTLS) -> Any:
        return phoenix_trio.open_connection(
            HOST, PORT, tls=tls, alpn=ALPN, network=network.host(CLIENT)
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                PORT,
                tls=server_tls(verify=Asked()),
                alpn=ALPN,
                network=network.host(HOST),
            )
        )
        with pytest.raises(phoenix_trio.HandshakeFailed) as caught:
            async with connect(trusting(Asked(error))):
                raise AssertionError("connected")
        assert caught.value.__cause__ is error
        certificate, key = client_pem()
        asked = Asked()
        tls = trusting(asked, certificate=certificate, private_key=key)
        async with connect(tls) as connection:
            assert list(connection.peer_certificate_chain) == certificates(server_pem()[0])
        assert list(connection.peer_certificate_chain) == certificates(server_pem()[0])
        assert asked.calls[0][1] == HOST
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert seen[-1] == tuple(certificates(client_pem()[0]))


async def test_a_client_which_is_rejected_hears_of_it_before_its_block_begins(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                lambda connection: connection.wait_closed(),
                PORT,
                tls=server_tls(verify=Asked(ValueError("no"))),
                alpn=ALPN,
                network=network.host(HOST),
            )
        )
        with pytest.raises(phoenix_trio.CertificateUntrusted, match="certificate_unknown"):
            async with phoenix_trio.open_connection(
                HOST, PORT, tls=with_certificate(), alpn=ALPN, network=network.host(CLIENT)
            ):
                raise AssertionError("connected")
        nursery.cancel_scope.cancel()
