"""A remembered verdict saves the second verification of the same chain, and of no other."""

from __future__ import annotations

import datetime as dt
from functools import partial

import pytest
import trustme
from cryptography import x509

import phoenix_trio
from phoenix_trio.quic.handshake import certificate_judge
from phoenix_trio.quic.handshake.certificate_judge import JudgingContext
from phoenix_trio.quic.handshake.verdicts import Verdict, Verdicts
from tests.support import authority, authority_pem, client_pem, client_tls, server_tls

from .pair import SERVER, Pair, make_client, make_server


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verified chains."""
    done: list[str] = []
    check = JudgingContext._check_chain

    def counted(self: JudgingContext, *arguments: object) -> list[x509.Certificate]:
        done.append("client" if self._is_client else "server")
        return check(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JudgingContext, "_check_chain", counted)
    return done


def test_a_chain_is_verified_once(checks: list[str]) -> None:
    tls = client_tls()
    for _ in range(3):
        pair = Pair(client=make_client(tls)).connect()
        assert pair.client.handshake.peer_certificate is not None
    assert checks == ["client"]
    assert len(tls.verdicts) == 1


def test_other_settings_verify_it_themselves(checks: list[str]) -> None:
    for _ in range(2):
        Pair(client=make_client(client_tls())).connect()
    assert checks == ["client", "client"]


def test_a_verdict_is_about_one_name(checks: list[str]) -> None:
    tls = client_tls()
    Pair(client=make_client(tls)).connect()
    Pair(client=make_client(tls, host="example.org")).connect()
    pair = Pair(client=make_client(tls, host="elsewhere.example"))
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    assert pair.client.fault is not None
    assert len(checks) == 3
    assert len(tls.verdicts) == 2


def test_what_was_refused_is_not_remembered(checks: list[str]) -> None:
    tls = client_tls()
    for _ in range(2):
        pair = Pair(client=make_client(tls, host="elsewhere.example"))
        pair.client.handshake.start(SERVER, 0.0)
        pair.run(5.0)
        assert pair.client.fault is not None
    assert len(checks) == 2
    assert len(tls.verdicts) == 0


def test_client_certificates_are_verified_once(checks: list[str]) -> None:
    certificate, key = client_pem()
    server = server_tls(client_ca=authority_pem())
    tls = client_tls(certificate=certificate, private_key=key)
    for _ in range(3):
        Pair(client=make_client(tls), server=partial(make_server, tls=server)).connect()
    assert sorted(checks) == ["client", "server"]
    server.reload()
    Pair(client=make_client(tls), server=partial(make_server, tls=server)).connect()
    assert sorted(checks) == ["client", "server", "server"]


def test_a_chain_which_has_expired_since_is_verified_again(
    checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime.now(dt.UTC)
    issued = authority().issue_cert(
        "localhost", key_type=trustme.KeyType.ECDSA, not_after=now + dt.timedelta(days=1)
    )
    certificate = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    server = phoenix_trio.ServerTLS(certificate, issued.private_key_pem.bytes())
    tls = client_tls()

    def pair() -> Pair:
        return Pair(client=make_client(tls), server=partial(make_server, tls=server))

    pair().connect()

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Later:
            return cls.fromtimestamp((now + dt.timedelta(days=2)).timestamp(), tz)

    monkeypatch.setattr(certificate_judge.dt, "datetime", Later)
    refused = pair()
    refused.client.handshake.start(SERVER, 0.0)
    refused.run(5.0)
    assert refused.client.fault is not None
    assert "expired" in refused.client.fault[2]
    assert len(checks) == 1, "its dates were looked at first"


def test_the_verdict_used_least_recently_goes_first() -> None:
    (certificate,) = x509.load_pem_x509_certificates(authority_pem())
    verdict = Verdict(certificate, [], [certificate])
    verdicts = Verdicts(limit=2)
    verdicts.add("a", (b"1",), verdict)
    verdicts.add("b", (b"1",), verdict)
    assert verdicts.find("a", (b"1",)) is verdict
    verdicts.add("c", (b"1",), verdict)
    assert verdicts.find("b", (b"1",)) is None
    assert verdicts.find("a", (b"1",)) is verdict
    assert verdicts.find("a", (b"1", b"2")) is None
    assert len(verdicts) == 2
