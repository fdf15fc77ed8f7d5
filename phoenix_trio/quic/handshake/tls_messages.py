"""TLS messages as bytes: both hellos, and what a server sends behind its own (RFC 8446 section 4).

Floor 1, pure functions.  Malformed messages end the handshake by a ``tls.Alert``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from aioquic import tls

__all__ = [
    "CLIENT_HELLO",
    "PSK_WITH_KEY_EXCHANGE",
    "RETRY_RANDOM",
    "SERVER_HELLO",
    "ClientHello",
    "ServerHello",
    "binders_size",
    "build_certificate",
    "build_certificate_request",
    "build_certificate_verify",
    "build_client_hello",
    "build_encrypted_extensions",
    "build_finished",
    "build_server_hello",
    "fixed_extensions",
    "key_share_of_server",
    "parse_client_hello",
    "parse_server_hello",
]

#: Message types.
CLIENT_HELLO: Final = 1
SERVER_HELLO: Final = 2
_ENCRYPTED_EXTENSIONS: Final = 8
_CERTIFICATE: Final = 11
_CERTIFICATE_REQUEST: Final = 13
_CERTIFICATE_VERIFY: Final = 15
_FINISHED: Final = 20

#: The random of a ServerHello that is a HelloRetryRequest: SHA-256 of that name (section 4.1.3).
RETRY_RANDOM: Final = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)

_LEGACY_VERSION: Final = b"\x03\x03"
_TLS_1_3: Final = 0x0304

#: Extension types (RFC 8446 section 4.2, RFC 6066, RFC 7301).
_SERVER_NAME: Final = 0
_SUPPORTED_GROUPS: Final = 10
_SIGNATURE_ALGORITHMS: Final = 13
_ALPN: Final = 16
_PRE_SHARED_KEY: Final = 41
_EARLY_DATA: Final = 42
_SUPPORTED_VERSIONS: Final = 43
_COOKIE: Final = 44
_PSK_KEY_EXCHANGE_MODES: Final = 45
_KEY_SHARE: Final = 51

_KNOWN: Final = frozenset(
    (
        _SERVER_NAME,
        _SUPPORTED_GROUPS,
        _SIGNATURE_ALGORITHMS,
        _ALPN,
        _PRE_SHARED_KEY,
        _EARLY_DATA,
        _SUPPORTED_VERSIONS,
        _COOKIE,
        _PSK_KEY_EXCHANGE_MODES,
        _KEY_SHARE,
    )
)

#: psk_dhe_ke, the only mode which has forward secrecy (RFC 8446 section 4.2.9).
PSK_WITH_KEY_EXCHANGE: Final = 1


def _block(size: int, data: bytes) -> bytes:
    """`data` behind its length, which takes `size` bytes."""
    return len(data).to_bytes(size, "big") + data


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def _message(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def _numbers(values: Sequence[int]) -> bytes:
    return b"".join([value.to_bytes(2, "big") for value in values])


# ------------------------------------------------------------------ building


@lru_cache(maxsize=256)
def fixed_extensions(
    *,
    server_name: str | None,
    alpn: tuple[str, ...] | None,
    groups: tuple[int, ...],
    signature_algorithms: tuple[int, ...],
    with_tickets: bool,
) -> bytes:
    """Those extensions of a ClientHello which are the same for every connection to a server.

    Args:
      server_name: a DNS name, or an IP address, which is not sent (RFC 6066 section 3).
      alpn: application protocols; ``None``: the extension is left out.
      groups: for key exchange.
      signature_algorithms: for certificates and the handshake.
      with_tickets: whether session tickets are of use.
    """
    parts = [
        _extension(_SUPPORTED_VERSIONS, _block(1, _numbers((_TLS_1_3,)))),
        _extension(_SIGNATURE_ALGORITHMS, _block(2, _numbers(signature_algorithms))),
        _extension(_SUPPORTED_GROUPS, _block(2, _numbers(groups))),
    ]
    if with_tickets:
        parts.append(_extension(_PSK_KEY_EXCHANGE_MODES, bytes((1, PSK_WITH_KEY_EXCHANGE))))
    if server_name is not None and not _is_address(server_name):
        name = b"\0" + _block(2, server_name.encode("ascii"))
        parts.append(_extension(_SERVER_NAME, _block(2, name)))
    if alpn is not None:
        names = b"".join([_block(1, name.encode("ascii")) for name in alpn])
        parts.append(_extension(_ALPN, _block(2, names)))
    return b"".join(parts)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def build_client_hello(
    *,
    random: bytes,
    session_id: bytes,
    cipher_suites: Sequence[int],
    fixed: bytes,
    key_shares: Sequence[tuple[int, bytes]],
    other: Sequence[tuple[int, bytes]],
    cookie: bytes = b"",
    with_early_data: bool = False,
    ticket: tuple[bytes, int, int] | None = None,
) -> bytes:
    """A ClientHello message.

    Args:
      random: 32 bytes.
      session_id: empty with QUIC.
      cipher_suites: the preferred one first.
      fixed: see :func:`fixed_extensions`.
      key_shares: groups, and this side's public key in each.
      other: further extensions.
      cookie: that of a HelloRetryRequest.
      with_early_data: whether 0-RTT data follows.
      ticket: label, obfuscated age and size of the binder.  The binder, which is the end of
        the message, is left at zero: see :func:`binders_size`.
    """
    parts = [fixed]
    parts += [_extension(kind, content) for kind, content in other]
    # Behind the server's name and the protocols, which load balancers look for in the first
    # datagram: keys with ML-KEM fill one.
    shares = [group.to_bytes(2, "big") + _block(2, public) for group, public in key_shares]
    parts.append(_extension(_KEY_SHARE, _block(2, b"".join(shares))))
    if cookie:
        parts.append(_extension(_COOKIE, _block(2, cookie)))
    if with_early_data:
        parts.append(_extension(_EARLY_DATA, b""))
    if ticket is not None:
        label, age, size = ticket
        identity = _block(2, label) + age.to_bytes(4, "big")
        content = _block(2, identity) + _block(2, _block(1, bytes(size)))
        parts.append(_extension(_PRE_SHARED_KEY, content))  # has to be the last one
    body = b"".join(
        (
            _LEGACY_VERSION,
            random,
            _block(1, session_id),
            _block(2, _numbers(cipher_suites)),
            b"\x01\0",  # no compression
            _block(2, b"".join(parts)),
        )
    )
    return _message(CLIENT_HELLO, body)


def binders_size(size: int) -> int:
    """Bytes of the list of binders at the end of a ClientHello, with one of `size` bytes.

    The binder vouches for everything before the list (RFC 8446 section 4.2.11.2).
    """
    return 2 + 1 + size


def build_server_hello(
    *,
    random: bytes,
    session_id: bytes,
    cipher_suite: int,
    key_share: bytes,
    with_ticket: bool = False,
) -> bytes:
    """A ServerHello message, or a HelloRetryRequest.

    Args:
      random: 32 bytes; :data:`RETRY_RANDOM` for a HelloRetryRequest.
      session_id: the client's.
      cipher_suite: the one chosen.
      key_share: content of the extension.
      with_ticket: whether the client's session ticket is taken.
    """
    extensions = [
        _extension(_SUPPORTED_VERSIONS, _TLS_1_3.to_bytes(2, "big")),
        _extension(_KEY_SHARE, key_share),
    ]
    if with_ticket:
        extensions.append(_extension(_PRE_SHARED_KEY, b"\0\0"))
    body = b"".join(
        (
            _LEGACY_VERSION,
            random,
            _block(1, session_id),
            cipher_suite.to_bytes(2, "big"),
            b"\0",
            _block(2, b"".join(extensions)),
        )
    )
    return _message(SERVER_HELLO, body)


def key_share_of_server(group: int, public_key: bytes) -> bytes:
    """The content of the extension in a ServerHello."""
    return group.to_bytes(2, "big") + _block(2, public_key)


def build_encrypted_extensions(
    *, alpn: str | None, with_early_data: bool, other: Sequence[tuple[int, bytes]]
) -> bytes:
    """An EncryptedExtensions message (RFC 8446 section 4.3.1)."""
    parts = []
    if alpn is not None:
        parts.append(_extension(_ALPN, _block(2, _block(1, alpn.encode("ascii")))))
    parts += [_extension(kind, content) for kind, content in other]
    if with_early_data:
        parts.append(_extension(_EARLY_DATA, b""))
    return _message(_ENCRYPTED_EXTENSIONS, _block(2, b"".join(parts)))


def build_certificate_request(signature_algorithms: Sequence[int]) -> bytes:
    """A CertificateRequest message without a context (RFC 8446 section 4.3.2)."""
    extension = _extension(_SIGNATURE_ALGORITHMS, _block(2, _numbers(signature_algorithms)))
    return _message(_CERTIFICATE_REQUEST, b"\0" + _block(2, extension))


def build_certificate(certificates: Sequence[bytes]) -> bytes:
    """A Certificate message without a context (RFC 8446 section 4.4.2).

    Args:
      certificates: in DER form, that of this side first.
    """
    entries = b"".join([_block(3, each) + b"\0\0" for each in certificates])
    return _message(_CERTIFICATE, b"\0" + _block(3, entries))


def build_certificate_verify(algorithm: int, signature: bytes) -> bytes:
    """A CertificateVerify message (RFC 8446 section 4.4.3)."""
    return _message(_CERTIFICATE_VERIFY, algorithm.to_bytes(2, "big") + _block(2, signature))


def build_finished(verify_data: bytes) -> bytes:
    """A Finished message (RFC 8446 section 4.4.4)."""
    return _message(_FINISHED, verify_data)


# ------------------------------------------------------------------ parsing


class _Reader:
    """Takes blocks from the front of some bytes."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    def take(self, size: int) -> bytes:
        """So many bytes."""
        at = self._at
        end = at + size
        if end > self._end:
            raise tls.AlertDecodeError("A TLS message is cut short")
        self._at = end
        return self._data[at:end]

    def number(self, size: int) -> int:
        """An integer of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """The bytes behind their length, which takes `size` bytes."""
        return self.take(self.number(size))

    @property
    def has_more(self) -> bool:
        """Whether anything is left."""
        return self._at < self._end

    def finish(self) -> None:
        """Nothing may be left."""
        if self.has_more:
            raise tls.AlertDecodeError("A TLS message has extra bytes")


def _open(content: bytes) -> _Reader:
    return _Reader(content, 0, len(content))


def _parse_numbers(content: bytes) -> list[int]:
    if len(content) % 2:
        raise tls.AlertDecodeError("A list of TLS numbers is cut short")
    return [int.from_bytes(content[at : at + 2], "big") for at in range(0, len(content), 2)]


def _whole_block(content: bytes, size: int) -> bytes:
    """The content of an extension of one block."""
    reader = _open(content)
    block = reader.block(size)
    reader.finish()
    return block


def _parse_extensions(data: bytes) -> dict[int, bytes]:
    """Extensions by their type, in their order."""
    reader = _open(data)
    found: dict[int, bytes] = {}
    while reader.has_more:
        kind = reader.number(2)
        if kind in found:
            raise tls.AlertIllegalParameter("A TLS extension comes twice")
        found[kind] = reader.block(2)
    return found


class ClientHello:
    """A ClientHello; what is absent is empty, or ``None`` where that says something else.

    Attributes:
      random: 32 bytes.
      session_id: empty with QUIC.
      cipher_suites: the client's, the preferred one first.
      compression_methods: one byte each.
      versions: TLS versions; ``None``: the extension is missing.
      groups: for key exchange.
      signature_algorithms: ``None``: the extension is missing.
      key_shares: groups and public keys; ``None``: the extension is missing.
      alpn: application protocols; ``None``: the extension is missing.
      psk_modes: one byte each.
      identities: labels of session tickets.
      binders: one for each of them.
      binders_at: where the list of binders begins.
      has_early_data: whether 0-RTT data follows.
      other: further extensions.
    """

    __slots__ = (
        "alpn",
        "binders",
        "binders_at",
        "cipher_suites",
        "compression_methods",
        "groups",
        "has_early_data",
        "identities",
        "key_shares",
        "other",
        "psk_modes",
        "random",
        "session_id",
        "signature_algorithms",
        "versions",
    )

    def __init__(self) -> None:
        self.random: bytes = b""
        self.session_id: bytes = b""
        self.cipher_suites: list[int] = []
        self.compression_methods: bytes = b""
        self.versions: list[int] | None = None
        self.groups: list[int] = []
        self.signature_algorithms: list[int] | None = None
        self.key_shares: list[tuple[int, bytes]] | None = None
        self.alpn: list[str] | None = None
        self.psk_modes: bytes = b""
        self.identities: list[bytes] = []
        self.binders: list[bytes] = []
        self.binders_at: int = 0
        self.has_early_data: bool = False
        self.other: list[tuple[int, bytes]] = []


def parse_client_hello(data: bytes) -> ClientHello:
    """A whole message, with its header.

    Raises:
      tls.Alert: it is malformed.
    """
    hello = ClientHello()
    reader = _Reader(data, 4, len(data))
    if reader.take(2) != _LEGACY_VERSION:
        raise tls.AlertDecodeError("ClientHello version is not 1.2")
    hello.random = reader.take(32)
    hello.session_id = reader.block(1)
    hello.cipher_suites = _parse_numbers(reader.block(2))
    hello.compression_methods = reader.block(1)
    extensions = _parse_extensions(reader.block(2))
    reader.finish()
    if _PRE_SHARED_KEY in extensions and next(reversed(extensions)) != _PRE_SHARED_KEY:
        # RFC 8446 section 4.2.11: in a ClientHello, not in a ServerHello.
        raise tls.AlertIllegalParameter("PreSharedKey is not the last extension")
    for kind, content in extensions.items():
        if kind not in _KNOWN:
            hello.other.append((kind, content))
        elif kind == _SUPPORTED_VERSIONS:
            hello.versions = _parse_numbers(_whole_block(content, 1))
        elif kind == _SUPPORTED_GROUPS:
            hello.groups = _parse_numbers(_whole_block(content, 2))
        elif kind == _SIGNATURE_ALGORITHMS:
            hello.signature_algorithms = _parse_numbers(_whole_block(content, 2))
        elif kind == _KEY_SHARE:
            hello.key_shares = _parse_key_shares(content)
        elif kind == _ALPN:
            hello.alpn = _parse_alpn(content)
        elif kind == _PSK_KEY_EXCHANGE_MODES:
            hello.psk_modes = _whole_block(content, 1)
        elif kind == _EARLY_DATA:
            hello.has_early_data = True
        elif kind == _PRE_SHARED_KEY:
            _parse_tickets(hello, content)
            hello.binders_at += len(data) - len(content)
    return hello


def _parse_key_shares(content: bytes) -> list[tuple[int, bytes]]:
    reader = _open(_whole_block(content, 2))
    shares = []
    while reader.has_more:
        group = reader.number(2)
        shares.append((group, reader.block(2)))
    return shares


def _parse_alpn(content: bytes) -> list[str]:
    reader = _open(_whole_block(content, 2))
    names = []
    while reader.has_more:
        name = reader.block(1)
        if name.isascii():  # (Others are reserved, RFC 8701, and never ours.)
            names.append(name.decode("ascii"))
    return names


def _parse_tickets(hello: ClientHello, content: bytes) -> None:
    reader = _open(content)
    identities = _open(reader.block(2))
    while identities.has_more:
        hello.identities.append(identities.block(2))
        identities.take(4)  # its obfuscated age
    binders = reader.block(2)
    reader.finish()
    hello.binders_at = len(content) - 2 - len(binders)
    each = _open(binders)
    while each.has_more:
        hello.binders.append(each.block(1))


class ServerHello:
    """A ServerHello or a HelloRetryRequest.

    Attributes:
      is_retry: whether it is a HelloRetryRequest.
      session_id: the client's.
      cipher_suite: the one chosen.
      compression_method: 0.
      version: the TLS version; 0: the extension is missing.
      key_share: the group, and the server's public key in it (empty in a HelloRetryRequest);
        ``None``: the extension is missing.
      ticket: which of the client's session tickets is taken; -1: none.
      cookie: of a HelloRetryRequest.
    """

    __slots__ = (
        "cipher_suite",
        "compression_method",
        "cookie",
        "is_retry",
        "key_share",
        "session_id",
        "ticket",
        "version",
    )

    def __init__(self) -> None:
        self.is_retry: bool = False
        self.session_id: bytes = b""
        self.cipher_suite: int = 0
        self.compression_method: int = 0
        self.version: int = 0
        self.key_share: tuple[int, bytes] | None = None
        self.ticket: int = -1
        self.cookie: bytes = b""


def parse_server_hello(data: bytes) -> ServerHello:
    """A whole message, with its header.

    Raises:
      tls.Alert: it is malformed.
    """
    hello = ServerHello()
    reader = _Reader(data, 4, len(data))
    if reader.take(2) != _LEGACY_VERSION:
        raise tls.AlertDecodeError("ServerHello version is not 1.2")
    hello.is_retry = reader.take(32) == RETRY_RANDOM
    hello.session_id = reader.block(1)
    hello.cipher_suite = reader.number(2)
    hello.compression_method = reader.number(1)
    extensions = _parse_extensions(reader.block(2))
    reader.finish()
    for kind, content in extensions.items():
        each = _open(content)
        if kind == _SUPPORTED_VERSIONS:
            hello.version = each.number(2)
        elif kind == _KEY_SHARE:
            group = each.number(2)
            hello.key_share = group, b"" if hello.is_retry else each.block(2)
        elif kind == _PRE_SHARED_KEY:
            hello.ticket = each.number(2)
        elif kind == _COOKIE and hello.is_retry:
            hello.cookie = each.block(2)
        else:
            continue
        each.finish()
    return hello
