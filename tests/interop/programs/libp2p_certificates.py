"""Prints for each kind of certificate whether examples/libp2p accepts it as a proof.

Runs in an environment with libp2p, as libp2p_host.py does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519
from libp2p.crypto.rsa import create_new_key_pair as rsa
from libp2p.crypto.secp256k1 import create_new_key_pair as secp256k1
from libp2p.peer.id import ID
from libp2p.transport.quic.security import CertificateGenerator, LibP2PExtensionHandler
from libp2p_identity import EXTENSION, UnknownPeer, check_peer, make_certificate, peer_of

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anything")])
ALICE, BOB = ed25519(), ed25519()


def own(pair: object) -> x509.Certificate:
    return x509.load_pem_x509_certificate(make_certificate(pair.private_key)[0])


def extension_of(certificate: x509.Certificate) -> bytes:
    value = certificate.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def proof_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Alice's proof that a certificate with this key is hers."""
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return LibP2PExtensionHandler.create_signed_key_extension(ALICE.private_key, info)


def made(
    extension: bytes | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    signed_by: ec.EllipticCurvePrivateKey | None = None,
    days: int = 1,
    critical: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, extension), False)
    if critical:
        other = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
        builder = builder.add_extension(other, critical=True)
    return builder.sign(signed_by or key, hashes.SHA256())


def show(kind: str, chain: Sequence[x509.Certificate], expected: ID | None = None) -> None:
    try:
        check_peer(list(chain), None, expected=expected)
    except UnknownPeer:
        print(f"{kind}: refused")
    else:
        print(f"{kind}: accepted")


def main() -> None:
    key, other_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    alice = ID.from_pubkey(ALICE.public_key)
    for kind, make in (("ed25519", ed25519), ("secp256k1", secp256k1), ("rsa", rsa)):
        pair = make()
        name = ID.from_pubkey(pair.public_key)
        show(f"ours of {kind}", [own(pair)], name)
        stock = CertificateGenerator().generate_certificate(pair.private_key, name).certificate
        show(f"stock of {kind}", [stock], name)
        assert peer_of([stock]) == name
    show("another peer", [own(BOB)], alice)
    show("none", [])
    show("two", [own(ALICE), own(BOB)], alice)
    show("without the extension", [made(None, key)])
    stolen = extension_of(own(ALICE))
    show("with the extension of another certificate", [made(stolen, key)], alice)
    proof = proof_for(key)
    assert peer_of([made(proof, key)]) == alice, "the cases below have one fault each"
    show("expired", [made(proof, key, days=-1)])
    show("not signed by itself", [made(proof, key, signed_by=other_key)])
    show("with a critical extension", [made(proof, key, critical=True)])
    for at in range(0, len(stolen), 7):
        show("extension cut off", [made(stolen[:at], key)])
    for count in (0x80, 0x82, 0xFF):
        show("extension with a wrong length", [made(bytes([0x30, count, 1]), key)])


if __name__ == "__main__":
    main()
