"""A development authority and its certificates: OpenSSL accepts them, and errors are clear."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import crypto

from phoenix_trio.quic.handshake.certificates import (
    CertificateAndKey,
    create_development_ca,
    fingerprint,
    issue_certificate,
)

UTC = dt.UTC
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> CertificateAndKey:
    return create_development_ca()


def parse(issued: CertificateAndKey) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate)


def names_of(certificate: x509.Certificate) -> list[object]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in extension.value]


def test_openssl_verifies_the_chain_strictly(ca: CertificateAndKey) -> None:
    leaf = issue_certificate(ca, ["example.org", "127.0.0.1"])
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    store.add_cert(crypto.X509.from_cryptography(parse(ca)))
    crypto.X509StoreContext(store, crypto.X509.from_cryptography(parse(leaf))).verify_certificate()
    other = crypto.X509Store()
    other.add_cert(crypto.X509.from_cryptography(parse(create_development_ca())))
    with pytest.raises(crypto.X509StoreContextError):
        crypto.X509StoreContext(
            other, crypto.X509.from_cryptography(parse(leaf))
        ).verify_certificate()


def test_pythons_own_tls_accepts_both_sides(ca: CertificateAndKey, tmp_path: object) -> None:
    leaf = issue_certificate(ca, ["example.org"])
    path = f"{tmp_path}/both.pem"
    with open(path, "wb") as file:
        file.write(leaf.certificate + leaf.private_key)
    client = ssl.create_default_context(cadata=ca.certificate.decode())
    client.load_cert_chain(path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=ca.certificate.decode())
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="example.org"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert not ends


def test_the_extensions_are_those_of_a_leaf_and_an_authority(ca: CertificateAndKey) -> None:
    authority, leaf = parse(ca), parse(issue_certificate(ca, ["example.org"]))
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not basic.value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {
        x509.oid.ExtendedKeyUsageOID.SERVER_AUTH,
        x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert issuer.key_identifier == identifier.digest
    public_key = leaf.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert public_key.curve.name == "secp256r1"


def test_the_private_key_belongs_to_the_certificate(ca: CertificateAndKey) -> None:
    leaf = issue_certificate(ca, ["example.org"])
    for issued in (ca, leaf):
        key = load_pem_private_key(issued.private_key, None)
        assert key.public_key() == parse(issued).public_key()


def test_dns_names_wildcards_international_names_and_addresses_become_alternative_names(
    ca: CertificateAndKey,
) -> None:
    leaf = issue_certificate(
        ca,
        [
            "example.org",
            "*.example.org",
            "Bücher.example",
            "localhost",
            "my_host.example",
            "example.net.",
            "127.0.0.1",
            "::1",
            ipaddress.ip_address("192.0.2.1"),
            "example.org",
        ],
    )
    assert names_of(parse(leaf)) == [
        "example.org",
        "*.example.org",
        "xn--bcher-kva.example",
        "localhost",
        "my_host.example",
        "example.net",
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
        ipaddress.ip_address("192.0.2.1"),
    ]


def test_a_name_too_long_for_the_subject_is_in_the_critical_extension(
    ca: CertificateAndKey,
) -> None:
    name = ".".join(["a" * 60, "b" * 60, "example"])
    certificate = parse(issue_certificate(ca, [name]))
    assert not list(certificate.subject)
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.critical
    assert names_of(certificate) == [name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "empty"),
        (" example.org", "spaces"),
        ("https://example.org/", "URL"),
        ("10.0.0.0/8", "network"),
        ("example.org:443", "port"),
        ("[::1]", "brackets"),
        ("*.org", "wildcard"),
        ("a.*.org", "wildcard"),
        ("*", "wildcard"),
        ("a..b", "neither a DNS name"),
        ("a b", "neither a DNS name"),
        ("a" * 64 + ".org", "neither a DNS name"),
        ("x\x00y", "neither a DNS name"),
        (".", "neither a DNS name"),
        ("me@example.org", "neither a DNS name"),
    ],
)
def test_a_bad_name_is_refused_by_name(ca: CertificateAndKey, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        issue_certificate(ca, ["example.org", name])
    assert repr(name) in str(caught.value)


def test_names_must_be_a_list_of_names(ca: CertificateAndKey) -> None:
    with pytest.raises(TypeError, match="must be a list"):
        issue_certificate(ca, "example.org")
    with pytest.raises(TypeError, match="not 7"):
        issue_certificate(ca, [7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        issue_certificate(ca, [])


def test_validity_can_be_set_and_starts_before_now(ca: CertificateAndKey) -> None:
    now = dt.datetime.now(UTC)
    leaf = parse(issue_certificate(ca, ["a.example"], valid_for=7 * DAY))
    assert leaf.not_valid_before_utc < now - dt.timedelta(minutes=30)
    assert abs(leaf.not_valid_after_utc - now - 7 * DAY) < dt.timedelta(minutes=1)
    past = parse(
        issue_certificate(ca, ["a.example"], valid_from=now - 30 * DAY, valid_for=10 * DAY)
    )
    assert past.not_valid_after_utc < now
    authority = parse(ca)
    assert authority.not_valid_after_utc > now + 3649 * DAY
    assert parse(issue_certificate(ca, ["a.example"])).not_valid_after_utc < now + 399 * DAY


def test_a_certificate_never_outlives_its_authority() -> None:
    short = create_development_ca(valid_for=DAY)
    leaf = parse(issue_certificate(short, ["a.example"]))
    assert leaf.not_valid_after_utc == parse(short).not_valid_after_utc
    long_ago = dt.datetime(2001, 1, 1, tzinfo=UTC)
    expired = create_development_ca(valid_from=long_ago, valid_for=DAY)
    with pytest.raises(ValueError, match="the authority expires on 2001"):
        issue_certificate(expired, ["a.example"])


def test_a_validity_without_sense_is_refused(ca: CertificateAndKey) -> None:
    with pytest.raises(ValueError, match="valid_for"):
        create_development_ca(valid_for=-DAY)
    with pytest.raises(TypeError, match="valid_for"):
        issue_certificate(ca, ["a.example"], valid_for=398)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time zone"):
        issue_certificate(ca, ["a.example"], valid_from=dt.datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="common name"):
        create_development_ca("n" * 65)


def test_only_an_authority_with_its_own_key_can_issue(ca: CertificateAndKey) -> None:
    leaf = issue_certificate(ca, ["a.example"])
    with pytest.raises(ValueError, match="not one of an authority"):
        issue_certificate(leaf, ["b.example"])
    with pytest.raises(ValueError, match="does not belong"):
        issue_certificate(CertificateAndKey(ca.certificate, leaf.private_key), ["b.example"])
    with pytest.raises(ValueError, match="certificate cannot be read"):
        issue_certificate(CertificateAndKey(b"junk", ca.private_key), ["b.example"])
    with pytest.raises(ValueError, match="private key cannot be read"):
        issue_certificate(CertificateAndKey(ca.certificate, b"junk"), ["b.example"])


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_an_authority_from_elsewhere_can_issue(key_type: trustme.KeyType) -> None:
    other = trustme.CA(key_type=key_type)
    authority = CertificateAndKey(other.cert_pem.bytes(), other.private_key_pem.bytes())
    leaf = issue_certificate(authority, ["a.example"])
    parse(leaf).verify_directly_issued_by(parse(authority))


def test_a_fingerprint_is_what_openssl_prints(ca: CertificateAndKey) -> None:
    expected = crypto.X509.from_cryptography(parse(ca)).digest("sha256").decode().lower()
    assert fingerprint(ca.certificate) == expected
    assert fingerprint(ca.certificate.decode()) == expected
    assert fingerprint(parse(ca)) == ca.fingerprint == expected
    assert len(expected) == 95
    with pytest.raises(ValueError, match="cannot be read"):
        fingerprint(b"junk")


def test_the_private_key_is_not_shown(ca: CertificateAndKey) -> None:
    assert "PRIVATE" not in repr(ca)
