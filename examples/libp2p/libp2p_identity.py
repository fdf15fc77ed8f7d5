"""How libp2p's peers prove who they are: a self-signed certificate with a second signature.

The certificate has a key of its own.  An extension carries the peer's libp2p key, and that
key's signature of the certificate's key (https://github.com/libp2p/specs, tls/tls.md).  No
authority is involved: :func:`peer_of` is all there is to verify.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from libp2p.crypto.keys import PrivateKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.peer.id import ID

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_PREFIX = b"libp2p-tls-handshake:"
_LIFE = dt.timedelta(days=365)
_SEQUENCE, _OCTET_STRING = 0x30, 0x04  # of DER (X.690)


class UnknownPeer(ValueError):
    """A certificate which proves no libp2p identity, or not the one that was dialled."""


def make_certificate(private_key: PrivateKey) -> tuple[bytes, bytes]:
    """A certificate of this peer's and the certificate's key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = private_key.sign(_PREFIX + _key_info(key.public_key()))
    proof = _field(_OCTET_STRING, private_key.get_public_key().serialize())
    proof += _field(_OCTET_STRING, signature)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "libp2p")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, _field(_SEQUENCE, proof)), False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def peer_of(chain: Sequence[x509.Certificate]) -> ID:
    """The identity which these certificates prove.

    Raises:
      UnknownPeer: they prove none.
    """
    if len(chain) != 1:
        raise UnknownPeer(f"a libp2p peer shows one certificate, not {len(chain)}")
    certificate = chain[0]
    now = dt.datetime.now(dt.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise UnknownPeer("the certificate is expired, or not valid yet")
    try:
        certificate.verify_directly_issued_by(certificate)
        for each in certificate.extensions:
            is_unknown = isinstance(each.value, x509.UnrecognizedExtension)
            if each.critical and is_unknown and each.oid != EXTENSION:
                raise ValueError(f"{each.oid} is critical, and not understood here")
        proof = certificate.extensions.get_extension_for_oid(EXTENSION).value
        assert isinstance(proof, x509.UnrecognizedExtension)
        (content,) = _fields(_SEQUENCE, proof.value)
        encoded_key, signature = _fields(_OCTET_STRING, content)
        public_key = deserialize_public_key(encoded_key)
        # (False, or an exception: that depends on the kind of the key.)
        is_proved = public_key.verify(_PREFIX + _key_info(certificate.public_key()), signature)
    except Exception as error:
        raise UnknownPeer(f"the certificate proves no libp2p identity: {error!r}") from error
    if not is_proved:
        raise UnknownPeer("the certificate's key is not signed by the peer's libp2p key")
    return ID.from_pubkey(public_key)


def check_peer(
    chain: list[x509.Certificate], server_name: str | None, *, expected: ID | None = None
) -> None:
    """For ``verify`` of ``ClientTLS`` and ``ServerTLS``: any peer, or the expected one."""
    peer = peer_of(chain)
    if expected is not None and peer != expected:
        raise UnknownPeer(f"the peer is {peer}, and {expected} was dialled")


def _key_info(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    info: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return info


def _field(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _fields(tag: int, data: bytes) -> list[bytes]:
    """The contents of the DER fields that make up `data`, which all have this tag."""
    found = []
    while data:
        head, size = 2, data[1]
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[2:head], "big")
        if data[0] != tag or len(data) < head + size:
            raise ValueError("malformed DER")
        found.append(data[head : head + size])
        data = data[head + size :]
    return found
