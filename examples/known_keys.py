"""Two peers which know each other by their public keys alone, without any authority.

Make an identity for each; the program prints its key.  Then each names the key of the other:

    python examples/known_keys.py identity alice.pem
    python examples/known_keys.py identity bob.pem
    python examples/known_keys.py listen alice.pem --known BOBS-KEY --port 4433
    python examples/known_keys.py ask bob.pem --known ALICES-KEY localhost 4433 hello
"""

import argparse
import datetime as dt
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

import phoenix_trio


def make_identity() -> bytes:
    """A private key and a certificate which it has signed itself, as PEM."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "known by its key")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=3650))
        .sign(key, None)
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def key_of(certificate: x509.Certificate) -> str:
    """The SHA-256 hash of the public key, which stays when the certificate is renewed."""
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def only(known: set[str]) -> Callable[[list[x509.Certificate], str | None], None]:
    """A function which accepts peers with these keys and rejects all others."""

    def verify(chain: list[x509.Certificate], server_name: str | None) -> None:
        # phoenix_trio has seen that the peer has the private key of the first certificate.
        if not chain:
            raise LookupError("the peer shows no certificate")
        if key_of(chain[0]) not in known:
            raise LookupError(f"nobody here knows the key {key_of(chain[0])}")

    return verify


async def greet(connection: phoenix_trio.QuicConnection) -> None:
    assert connection.peer_certificate is not None  # else `verify` has rejected it
    name = key_of(connection.peer_certificate)[:8]
    async for stream in connection.incoming_streams():
        async with stream:
            question = b"".join([bytes(chunk) async for chunk in stream])
            await stream.send_all(f"{question.decode()}, {name}".encode())


async def listen(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(
        options.identity, options.identity, verify=only(set(options.known))
    )
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(phoenix_trio.serve, greet, options.port, tls=tls, alpn=("greet/1",))
        )
        print(f"listening on port {listeners[0].port}", flush=True)


async def ask(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(
        certificate=options.identity,
        private_key=options.identity,
        verify=only(set(options.known)),
    )
    try:
        async with phoenix_trio.open_connection(
            options.host, options.port, tls=tls, alpn=("greet/1",)
        ) as connection:
            answer = await connection.request(options.text.encode(), max_answer=10_000)
            print(answer.decode())
    except phoenix_trio.HandshakeFailed as error:
        print(f"no connection: {error.__cause__ or error}")


def identity(options: argparse.Namespace) -> None:
    if not options.identity.exists():
        options.identity.touch(mode=0o600)
        options.identity.write_bytes(make_identity())
    print(key_of(x509.load_pem_x509_certificate(options.identity.read_bytes())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Peers which know each other's keys")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("identity", "listen", "ask"):
        command = commands.add_parser(name)
        command.add_argument("identity", type=Path, help="file with key and certificate")
        if name != "identity":
            command.add_argument("--known", action="append", default=[], help="a peer's key")
        if name == "listen":
            command.add_argument("--port", type=int, default=4433)
        if name == "ask":
            command.add_argument("host")
            command.add_argument("port", type=int)
            command.add_argument("text")
    chosen = parser.parse_args()
    if chosen.command == "identity":
        identity(chosen)
    else:
        trio.run(listen if chosen.command == "listen" else ask, chosen)
