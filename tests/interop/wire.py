"""Reads a relay's records of the wire, with our side's TLS secrets if necessary.

Independent of both programs under test: long headers are in the clear (RFC 8999, RFC 9000
section 17.2), Initial packets open with keys that can be computed from the packet (RFC 9001
section 5.2), and short headers show their key phase with the secrets of a key log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import attrs
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.crypto import CryptoError, derive_key_iv_hp
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.packets import frames_of, initial_keys

from .relay import Record

VERSION_1, VERSION_2 = 0x00000001, 0x6B3343CF
_KINDS = {
    VERSION_1: ("initial", "0-rtt", "handshake", "retry"),
    VERSION_2: ("retry", "initial", "0-rtt", "handshake"),
}


@attrs.frozen
class LongPacket:
    """One packet with a long header."""

    record: Record
    kind: str
    version: int
    destination: bytes
    source: bytes
    token: bytes
    data: bytes
    """From its first byte to its end."""
    number_offset: int


@attrs.frozen
class ServerHello:
    client: int
    cipher_suite: int
    resumed: bool


def long_packets(records: Iterable[Record]) -> Iterator[LongPacket]:
    """The packets with long headers, also those behind others in one datagram."""
    for record in records:
        data = record.head
        while len(data) > 6 and data[0] & 0x80:
            try:
                packet, size = _parse(record, data)
            except (BufferReadError, KeyError):
                break
            yield packet
            data = data[size:]


def _parse(record: Record, data: bytes) -> tuple[LongPacket, int]:
    buffer = Buffer(data=data)
    first = buffer.pull_uint8()
    version = buffer.pull_uint32()
    destination = buffer.pull_bytes(buffer.pull_uint8())
    source = buffer.pull_bytes(buffer.pull_uint8())
    kind = "version negotiation" if not version else _KINDS[version][first >> 4 & 3]
    token = b""
    if kind == "initial":
        token = buffer.pull_bytes(buffer.pull_uint_var())
    if kind in ("retry", "version negotiation"):
        size, offset = len(data), 0
    else:
        length = buffer.pull_uint_var()
        offset = buffer.tell()
        size = offset + length
        if size > len(data):
            raise BufferReadError
    return LongPacket(record, kind, version, destination, source, token, data[:size], offset), size


class Wire:
    """The records of one cell."""

    def __init__(self, records: list[Record], key_log: Path | None = None) -> None:
        self.records = records
        self._key_log = key_log

    @cached_property
    def long(self) -> list[LongPacket]:
        return list(long_packets(self.records))

    def of(self, kind: str, *, to_server: bool) -> list[LongPacket]:
        return [p for p in self.long if p.kind == kind and p.record.to_server is to_server]

    @cached_property
    def server_hellos(self) -> list[ServerHello]:
        """The server's choices, once for each connection, in order."""
        found: list[ServerHello] = []
        for client in sorted({r.client for r in self.records}):
            keys = {
                (p.destination, p.version)
                for p in self.of("initial", to_server=True)
                if p.record.client == client
            }
            crypto: dict[int, bytes] = {}
            for packet in self.of("initial", to_server=False):
                if packet.record.client == client:
                    for destination, version in keys:
                        crypto.update(_open_initial(packet, destination, version))
            stream = b""
            for offset in sorted(crypto):
                if offset <= len(stream):
                    stream = stream[:offset] + crypto[offset]
            hello = _parse_server_hello(client, stream)
            if hello is not None:
                found.append(hello)
        return found

    @property
    def connections(self) -> int:
        """To how many of the clients' sockets a server sent Handshake packets."""
        return len({p.record.client for p in self.of("handshake", to_server=False)})

    def key_phases(self) -> tuple[set[int], set[int]]:
        """The key phases seen to the server, and to the client (RFC 9001 section 6)."""
        assert self._key_log is not None
        hello = self.server_hellos[0]
        suite = CipherSuite(hello.cipher_suite)
        secrets = {}
        for line in self._key_log.read_text().splitlines():
            label, _, secret = line.split()
            secrets.setdefault(label, bytes.fromhex(secret))
        lengths = {
            True: len(self.of("handshake", to_server=False)[-1].source),
            False: len(self.of("handshake", to_server=True)[-1].source),
        }
        version = self.of("handshake", to_server=True)[-1].version
        phases: tuple[set[int], set[int]] = (set(), set())
        for to_server, label in ((True, "CLIENT"), (False, "SERVER")):
            _, _, key = derive_key_iv_hp(
                cipher_suite=suite,
                secret=secrets[f"{label}_TRAFFIC_SECRET_0"],
                version=version,
            )
            for record in self.records:
                if record.to_server is to_server and record.head and not record.head[0] & 0x80:
                    at = 1 + lengths[to_server] + 4
                    sample = record.head[at : at + 16]
                    if len(sample) == 16:
                        first = record.head[0] ^ (_mask(suite, key, sample) & 0x1F)
                        # Datagrams not meant for us (a stateless reset) show reserved bits.
                        if not first & 0x18:
                            phases[not to_server].add(first >> 2 & 1)
        return phases

    @cached_property
    def most_amplified(self) -> float:
        """The largest ratio of bytes sent by a server to bytes that had reached it from a client,
        before the client's first Handshake packet reached it (RFC 9000 section 8.1)."""
        worst = 0.0
        for client in {r.client for r in self.records}:
            received = sent = 0
            for record in self.records:
                if record.client != client:
                    continue
                if not record.to_server:
                    sent += record.size
                    worst = max(worst, sent / received if received else math.inf)
                elif record.passed:
                    if any(p.kind == "handshake" for p in long_packets([record])):
                        break
                    received += record.size
        return worst

    @cached_property
    def server_flight(self) -> float:
        """The size of a server's handshake flight, in units of a client's first datagrams."""
        first = next(r.size for r in self.records if r.to_server)
        sizes = {
            id(packet.record): packet.record.size
            for packet in self.long
            if not packet.record.to_server and packet.kind in ("initial", "handshake")
        }
        return sum(sizes.values()) / first

    def marks(self, *, to_server: bool) -> float:
        """The share of datagrams with ECT(0) or ECT(1)."""
        some = [r.ecn for r in self.records if r.to_server is to_server]
        return sum(mark in (1, 2, 3) for mark in some) / len(some) if some else 0.0


def _mask(suite: CipherSuite, key: bytes, sample: bytes) -> int:
    if suite == CipherSuite.CHACHA20_POLY1305_SHA256:
        encryptor = Cipher(algorithms.ChaCha20(key, sample), mode=None).encryptor()
        return encryptor.update(bytes(5))[0]
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(sample)[0]


def _open_initial(packet: LongPacket, destination: bytes, version: int) -> dict[int, bytes]:
    """The CRYPTO frames of a server's Initial packet, by offset."""
    keys = initial_keys(destination, version=version)
    found: dict[int, bytes] = {}
    # (A peer may send malformed packets; then the frames before the error count.)
    with suppress(CryptoError, IndexError, KeyError):
        _, payload, _ = keys.decrypt_packet(packet.data, packet.number_offset, 0)
        for frame in frames_of(payload):
            if frame.kind == 0x06:
                offset, _ = frame.fields
                assert isinstance(offset, int)
                found[offset] = frame.data
    return found


def _parse_server_hello(client: int, stream: bytes) -> ServerHello | None:
    """RFC 8446 section 4.1.3; a HelloRetryRequest in front is passed over."""
    retry = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    buffer = Buffer(data=stream)
    try:
        while True:
            buffer.pull_uint8()
            size = int.from_bytes(buffer.pull_bytes(3), "big")
            body = Buffer(data=buffer.pull_bytes(size))
            body.pull_uint16()
            if body.pull_bytes(32) == retry:
                continue
            body.pull_bytes(body.pull_uint8())
            suite = body.pull_uint16()
            body.pull_uint8()
            end = body.pull_uint16() + body.tell()
            resumed = False
            while body.tell() < end:
                resumed |= body.pull_uint16() == 0x0029
                body.pull_bytes(body.pull_uint16())
            return ServerHello(client, suite, resumed)
    except BufferReadError:
        return None
