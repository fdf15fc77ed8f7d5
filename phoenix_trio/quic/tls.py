"""Who are we, and whom do we trust? Certificates, keys, authorities and session tickets.

Floor 0.  For users, who make :class:`ServerTLS` and :class:`ClientTLS`, and for
:mod:`~phoenix_trio.quic.tls_context`, which applies them to handshakes.
Everything is read, parsed and checked when it is made, so that a mistake shows
where it was made, and no handshake ever touches a file.  Reading files blocks
for a moment: make these objects before the nursery gets busy.
"""

from __future__ import annotations

import datetime as dt
import glob
import hashlib
import ipaddress
import logging
import os
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final, TypeAlias, final

import attrs
import certifi
from aioquic.tls import SessionTicket
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from OpenSSL import crypto

from .certificates import ascii_dns_name

__all__ = [
    "DEFAULT_GROUPS",
    "KNOWN_GROUPS",
    "ClientTLS",
    "Identity",
    "PEMSource",
    "PrivateKey",
    "ServerIdentity",
    "ServerTLS",
    "ServerTicketStore",
    "SessionStore",
    "TrustScopedSessions",
    "normalize_server_name",
]

logger = logging.getLogger(__name__)

#: A path, or PEM itself: bytes, or text which holds "-----BEGIN".
PEMSource: TypeAlias = str | os.PathLike[str] | bytes

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

#: The names of groups for key exchange (RFC 8446 section 4.2.7) which are known here.
KNOWN_GROUPS = ("x25519", "secp256r1", "secp384r1", "x448")

DEFAULT_GROUPS = ("x25519", "secp256r1")

_PEM_MARK = "-----BEGIN"

#: aioquic 1.7.2 builds a whole handshake flight in a buffer of 16 KiB
#: (CRYPTO_BUFFER_SIZE), which must not overflow in the middle of a handshake.
_LARGEST_CHAIN = 12 * 1024

#: RFC 8446 section 4.6.1: no ticket may be kept for longer, whatever the server says.
_LONGEST_TICKET_LIFETIME = dt.timedelta(days=7)

#: A ticket travels in the ClientHello, which has to fit the same buffer.
_LARGEST_TICKET = 4096

_RESET_SECRET_LABEL = b"phoenix_trio stateless reset secret"


# ------------------------------------------------------------------------------ PEM


def _name_of(source: PEMSource) -> str:
    """How texts name where something came from; never its content."""
    if isinstance(source, bytes) or (isinstance(source, str) and _PEM_MARK in source):
        return "<PEM>"
    return repr(os.fspath(source))


def _read(field: str, source: PEMSource) -> bytes:
    """The bytes of a path or of PEM.

    Raises:
      OSError: the file cannot be read; its text names the field and the file.
      TypeError: it is neither path nor PEM.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str) and _PEM_MARK in source:
        return source.encode()
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{field} must be a path or PEM, not {type(source).__name__}")
    path = os.fspath(source)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        # OSError() picks the subclass by the number, as open() does.
        raise OSError(exc.errno, f"{field}: {exc.strerror}", path) from exc
    except ValueError as exc:  # a NUL in the path
        raise ValueError(f"{field}: {path!r} is not a path: {exc}") from exc


def _load_certificates(field: str, source: PEMSource) -> tuple[x509.Certificate, ...]:
    data = _read(field, source)
    if b"-----BEGIN" not in data:
        raise ValueError(f"{field}: {_name_of(source)} holds no certificate in PEM form")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(data))
    except (ValueError, x509.InvalidVersion) as exc:
        raise ValueError(
            f"{field}: {_name_of(source)} holds no certificate which can be read: {exc}"
        ) from exc
    if not certificates:
        raise ValueError(f"{field}: {_name_of(source)} holds no certificate")
    return certificates


def _load_private_key(field: str, source: PEMSource, password: bytes | None) -> PrivateKey:
    data = _read(field, source)
    where = f"{field}: {_name_of(source)}"
    try:
        key = serialization.load_pem_private_key(data, password=password)
    except TypeError:
        # cryptography's way to tell the two cases apart.
        if password is None:
            raise ValueError(f"{where} is encrypted; give its password") from None
        raise ValueError(f"{where} is not encrypted, but a password was given") from None
    except (ValueError, UnsupportedAlgorithm) as exc:
        wrong = " with this password" if password is not None else ""
        raise ValueError(f"{where} holds no private key which can be read{wrong}: {exc}") from exc
    if isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        # What aioquic can sign a handshake with.
        if key.curve.name in ("secp256r1", "secp384r1"):
            return key
        raise ValueError(
            f"{where} is on the curve {key.curve.name}; use P-256, P-384, Ed25519 or RSA"
        )
    raise ValueError(
        f"{where} is a key of an unsupported kind; use P-256, P-384, Ed25519, Ed448 or RSA"
    )


def _public_bytes(key: object) -> bytes:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined] # every kind of public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _certificate_public_bytes(certificate: x509.Certificate) -> bytes | None:
    try:
        return _public_bytes(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return None  # a key of a kind which we cannot own


def _check_pair(
    certificates: tuple[x509.Certificate, ...],
    certificate_source: PEMSource,
    key: PrivateKey,
    key_source: PEMSource,
) -> None:
    ours = _public_bytes(key.public_key())
    matches = [_certificate_public_bytes(certificate) == ours for certificate in certificates]
    if not any(matches):
        raise ValueError(
            f"private_key: {_name_of(key_source)} does not belong to certificate: "
            f"{_name_of(certificate_source)}"
        )
    if not matches[0]:
        raise ValueError(
            f"certificate: {_name_of(certificate_source)} must start with the certificate of "
            "private_key; the certificates of its authorities come after it"
        )
    size = sum(len(c.public_bytes(serialization.Encoding.DER)) for c in certificates)
    if size > _LARGEST_CHAIN:
        raise ValueError(
            f"certificate: {_name_of(certificate_source)} has a chain of {size} bytes; at most "
            f"{_LARGEST_CHAIN} fit into a handshake. Leave out the root, it is not needed"
        )


def _password(password: bytes | str | None) -> bytes | None:
    if password is None or isinstance(password, bytes):
        return password
    if isinstance(password, str):
        return password.encode()
    raise TypeError(f"password must be text, bytes or None, not {type(password).__name__}")


def _store_of(field: str, certificates: Sequence[x509.Certificate]) -> crypto.X509Store:
    """OpenSSL's parsed form of trusted certificates: made once, used by every handshake."""
    store = crypto.X509Store()
    # Whatever the user names is trusted by itself, also an intermediate or a single leaf.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for certificate in certificates:
        try:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        except crypto.Error as exc:
            raise ValueError(f"{field}: OpenSSL cannot use a certificate: {exc}") from exc
    return store


@lru_cache(maxsize=4)
def _system_store_at(cafile: str | None, version: int, capath: str | None) -> crypto.X509Store:
    """`version` makes a changed file a different key, so that updated roots are picked up."""
    store = crypto.X509Store()
    store.load_locations(cafile, capath)
    return store


def _system_store() -> crypto.X509Store:
    """The authorities which the system trusts; certifi's where it has none.

    As in :mod:`ssl`, the environment's SSL_CERT_FILE and SSL_CERT_DIR count.
    """
    paths = ssl.get_default_verify_paths()
    # None where the file or directory does not exist, which typeshed does not know.
    cafile: str | None = paths.cafile
    capath: str | None = paths.capath
    # An empty directory is what minimal containers have, and would trust nobody.
    if capath is not None and not glob.glob(
        os.path.join(glob.escape(capath), "[0-9a-f]" * 8 + ".[0-9]*")
    ):
        capath = None
    if cafile is not None or capath is not None:
        try:
            return _system_store_at(cafile, _version(cafile), capath)
        except crypto.Error:
            # An empty or damaged file is as good as none.
            logger.warning("the system's certificates in %s cannot be read", cafile or capath)
    return _system_store_at(certifi.where(), _version(certifi.where()), None)


def _version(path: str | None) -> int:
    return 0 if path is None else os.stat(path).st_mtime_ns


def normalize_server_name(name: str) -> str:
    """The form in which a server's name is sent, compared and remembered.

    International names become ASCII, letters lower case, a final dot goes, IP
    addresses get their shortest form and lose their scope.

    Raises:
      TypeError: it is not text.
      ValueError: it is neither a DNS name nor an IP address.
    """
    if not isinstance(name, str):
        raise TypeError(f"server_name must be text, not {name!r}")
    try:
        return str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass  # then it has to be a DNS name
    try:
        return ascii_dns_name(name)
    except ValueError as exc:
        raise ValueError(
            f"server_name: {name[:300]!r} is neither a DNS name nor an IP address: {exc}"
        ) from exc


# -------------------------------------------------------------------------- servers


@attrs.frozen(eq=False)
class Identity:
    """A certificate, what chains it to an authority, and its private key; checked to fit."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """The authorities' certificates which are sent along, without the certificate itself."""
    private_key: PrivateKey = attrs.field(repr=False)


@attrs.frozen(eq=False)
class ServerIdentity(Identity):
    """What a new connection takes from a :class:`ServerTLS`; it never changes."""

    client_store: crypto.X509Store | None = attrs.field(default=None, repr=False)
    """The authorities of client certificates; ``None``: no certificates are asked for."""


@final
class ServerTLS:
    """A server's certificate and key, and whether clients have to show certificates.

    Each of the first three arguments is a path, or PEM (bytes, or text which
    holds ``-----BEGIN``); certificate and key may be in one file.

    Args:
      certificate: the server's certificate, followed by those of intermediate
        authorities, if any.
      private_key: the certificate's key: P-256, P-384, Ed25519, Ed448 or RSA.
      client_ca: authorities for client certificates.  If given, clients *must*
        show a certificate which one of them has signed, and every connection
        makes a full handshake: aioquic's state machine would wait for a
        certificate after a resumed one too, where TLS sends none.
      early_data: let clients which come back send data in their first flight
        (0-RTT).  **An attacker can replay it** (RFC 8446 section 8, RFC 9001
        section 9.2).  Tickets can be used once, which stops replays within one
        process; several processes with the same key do not know of each other's.
        Open it only to what may happen twice, or wait for the confirmed handshake.
      password: of an encrypted `private_key`.

    Raises:
      OSError: a file cannot be read (FileNotFoundError, PermissionError and so
        on); the text names the argument and the file.
      TypeError: an argument has the wrong type.
      ValueError: something cannot be parsed, the key does not belong to the
        certificate, or is of a kind which TLS 1.3 here cannot use; the text
        names the argument and the file.
    """

    def __init__(
        self,
        certificate: PEMSource,
        private_key: PEMSource,
        *,
        client_ca: PEMSource | None = None,
        early_data: bool = False,
        password: bytes | str | None = None,
    ) -> None:
        if not isinstance(early_data, bool):
            raise TypeError(f"early_data must be True or False, not {early_data!r}")
        self._sources: tuple[PEMSource, PEMSource, PEMSource | None] = (
            certificate,
            private_key,
            client_ca,
        )
        self._password = _password(password)
        self._identity = self._load(*self._sources)
        self.early_data: Final = early_data
        self.tickets: Final = ServerTicketStore()

    def __repr__(self) -> str:
        certificate, private_key, client_ca = self._sources
        authority = "None" if client_ca is None else _name_of(client_ca)
        return (
            f"ServerTLS({_name_of(certificate)}, {_name_of(private_key)}, "
            f"client_ca={authority}, early_data={self.early_data})"
        )

    def _load(
        self, certificate: PEMSource, private_key: PEMSource, client_ca: PEMSource | None
    ) -> ServerIdentity:
        certificates = _load_certificates("certificate", certificate)
        key = _load_private_key("private_key", private_key, self._password)
        _check_pair(certificates, certificate, key, private_key)
        store = None
        if client_ca is not None:
            store = _store_of("client_ca", _load_certificates("client_ca", client_ca))
        return ServerIdentity(certificates[0], certificates[1:], key, store)

    @property
    def identity(self) -> ServerIdentity:
        """The identity which connections take that are accepted from now on."""
        return self._identity

    def reload(
        self,
        certificate: PEMSource | None = None,
        private_key: PEMSource | None = None,
        client_ca: PEMSource | None = None,
    ) -> None:
        """Take a renewed certificate into use without a restart.

        Connections which exist keep what they have.  What is not given is read
        again from where it came from, so without arguments all files are read anew.

        Raises:
          OSError, TypeError, ValueError: as on construction; the old identity
            stays in use, nothing has changed.
        """
        sources = tuple(
            old if new is None else new
            for old, new in zip(self._sources, (certificate, private_key, client_ca), strict=True)
        )
        new_certificate, new_key, new_client_ca = sources
        assert new_certificate is not None
        assert new_key is not None
        self._identity = self._load(new_certificate, new_key, new_client_ca)
        self._sources = (new_certificate, new_key, new_client_ca)

    def stateless_reset_secret(self) -> bytes:
        """32 bytes derived from the private key (RFC 9000 section 10.3.2).

        The same after a restart with the same key, so that clients of the old
        process learn at once that their connections are gone.
        """
        der = self._identity.private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return HKDF(hashes.SHA256(), 32, salt=None, info=_RESET_SECRET_LABEL).derive(der)


@final
class ServerTicketStore:
    """The session tickets a server has issued, each good for one resumption.

    A ticket is taken out when it comes back, so no second ClientHello can
    resume with it: that is the protection against replayed 0-RTT data of RFC
    8446 section 8.1, as far as this store reaches.  That is one process; tickets
    are not shared with others, nor kept over a restart.  The oldest goes when
    the store is full, and its client makes a full handshake.

    Args:
      max_tickets: how many tickets are kept, at least 1.
    """

    def __init__(self, max_tickets: int = 8192) -> None:
        if max_tickets < 1:
            raise ValueError(f"max_tickets must be at least 1, not {max_tickets}")
        self._max_tickets = max_tickets
        self._tickets: OrderedDict[bytes, SessionTicket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<ServerTicketStore with {len(self)} of {self._max_tickets} tickets>"

    def add(self, ticket: SessionTicket) -> None:
        """Remember a ticket which was issued just now."""
        self._tickets[ticket.ticket] = ticket
        self._tickets.move_to_end(ticket.ticket)
        while len(self._tickets) > self._max_tickets:
            self._tickets.popitem(last=False)

    def take(self, label: bytes) -> SessionTicket | None:
        """The ticket with this label, which is forgotten; ``None``: unknown, used or expired."""
        ticket = self._tickets.pop(label, None)
        return ticket if ticket is not None and ticket.is_valid else None

    def clear(self) -> None:
        """Forget all tickets: everybody makes a full handshake next time."""
        self._tickets.clear()


# -------------------------------------------------------------------------- clients

_SessionKey: TypeAlias = tuple[bytes, str, int, tuple[str, ...]]


@final
class SessionStore:
    """A client's session tickets, in memory: they make the next handshake shorter.

    A resumed handshake shows no certificate: the ticket stands for the
    verification of the first one.  So tickets are found only by a
    :class:`ClientTLS` with the same trust settings as the one which earned
    them, also if several share a store.  Each ticket is used once (RFC 8446
    appendix C.4: a second use would let observers link the connections).
    The ticket which was used least recently goes when the store is full.

    Args:
      max_tickets: how many tickets are kept, at least 1.
    """

    #: Several connections at once need a ticket each; more would only be old ones.
    TICKETS_PER_SERVER: Final = 4

    def __init__(self, max_tickets: int = 256) -> None:
        if max_tickets < 1:
            raise ValueError(f"max_tickets must be at least 1, not {max_tickets}")
        self._max_tickets = max_tickets
        # Per server the oldest first; servers in the order of their last use.
        self._tickets: OrderedDict[_SessionKey, list[SessionTicket]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<SessionStore with {self._count} of {self._max_tickets} tickets>"

    def put(
        self,
        server: str,
        port: int,
        alpn: Sequence[str],
        ticket: SessionTicket,
        *,
        scope: bytes = b"",
    ) -> None:
        """Remember a ticket; one which is expired or larger than 4096 bytes is not kept.

        Args:
          server: the name which was verified.
          port: the server's port.
          alpn: the protocols which were offered.
          ticket: what the server sent.
          scope: stands for the trust settings under which it was earned.
        """
        if len(ticket.ticket) > _LARGEST_TICKET or not ticket.is_valid:
            return
        latest = ticket.not_valid_before + _LONGEST_TICKET_LIFETIME
        if ticket.not_valid_after > latest:
            ticket = replace(ticket, not_valid_after=latest)
        key = (scope, server, port, tuple(alpn))
        tickets = self._tickets.setdefault(key, [])
        self._tickets.move_to_end(key)
        tickets.append(ticket)
        self._count += 1
        if len(tickets) > self.TICKETS_PER_SERVER:
            del tickets[0]
            self._count -= 1
        while self._count > self._max_tickets:
            oldest_key, oldest = next(iter(self._tickets.items()))
            del oldest[0]
            self._count -= 1
            if not oldest:
                del self._tickets[oldest_key]

    def take(
        self, server: str, port: int, alpn: Sequence[str], *, scope: bytes = b""
    ) -> SessionTicket | None:
        """The newest valid ticket for this server, which is removed; ``None``: there is none."""
        key = (scope, server, port, tuple(alpn))
        tickets = self._tickets.get(key)
        if tickets is None:
            return None
        self._tickets.move_to_end(key)
        found = None
        while tickets and found is None:
            ticket = tickets.pop()
            self._count -= 1
            if ticket.is_valid:
                found = ticket
        if not tickets:
            del self._tickets[key]
        return found

    def clear(self) -> None:
        """Forget all tickets."""
        self._tickets.clear()
        self._count = 0


@attrs.frozen(eq=False)
class TrustScopedSessions:
    """A :class:`SessionStore` as one :class:`ClientTLS` sees it: only tickets of equal trust."""

    store: SessionStore
    scope: bytes = attrs.field(repr=False)

    def put(self, server: str, port: int, alpn: Sequence[str], ticket: SessionTicket) -> None:
        """As :meth:`SessionStore.put`."""
        self.store.put(server, port, alpn, ticket, scope=self.scope)

    def take(self, server: str, port: int, alpn: Sequence[str]) -> SessionTicket | None:
        """As :meth:`SessionStore.take`."""
        return self.store.take(server, port, alpn, scope=self.scope)


def _pin(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        if len(value) != 32:
            raise ValueError(f"pinned_sha256 must have 32 bytes, not {len(value)}")
        return value
    if not isinstance(value, str):
        raise TypeError(f"pinned_sha256 must be text or bytes, not {type(value).__name__}")
    text = value.replace(":", "")
    # fromhex() alone would skip white space, and a short pin would go unnoticed.
    if len(text) != 64 or not set(text) <= set("0123456789abcdefABCDEF"):
        raise ValueError(
            f"pinned_sha256 must be 64 hexadecimal digits, with or without colons, not {value!r}"
        )
    return bytes.fromhex(text)


def _check_groups(groups: Sequence[str]) -> tuple[str, ...]:
    if isinstance(groups, str) or not all(isinstance(each, str) for each in groups):
        raise TypeError(f"groups must be a sequence of names, not {groups!r}")
    unknown = [each for each in groups if each not in KNOWN_GROUPS]
    if unknown or not groups:
        raise ValueError(f"groups must be some of {', '.join(KNOWN_GROUPS)}, not {groups!r}")
    return tuple(dict.fromkeys(groups))


@final
class ClientTLS:
    """Which servers a client trusts, and the certificate it shows to those which ask.

    By default the server's certificate must lead to an authority which the
    system trusts, be valid now, and name the server which was dialled.

    Args:
      ca: trust these authorities instead of the system's: a path, or PEM.
      server_name: the DNS name or IP address which the certificate must name,
        and which is sent to the server (SNI); ``None``: the host which is dialled.
      certificate: a certificate to show to servers which ask for one, followed by
        those of intermediate authorities; a path, or PEM.
      private_key: the key of `certificate`; a path, or PEM.
      pinned_sha256: accept exactly the certificate with this SHA-256 fingerprint
        (32 bytes, or hexadecimal digits with or without colons), whoever has
        signed it and whatever it names; it still has to be valid now.
      session_store: where tickets are kept, to resume sessions.
      early_data: send data in the first flight to servers which allow it.  **An
        attacker can replay it** (RFC 8446 section 8); needs a `session_store`.
      danger_accept_any_certificate: verify nothing but that the server has the key
        of its certificate.  Anybody on the path can pose as the server: for
        experiments alone.
      password: of an encrypted `private_key`.
      groups: the groups for key exchange which are offered, the preferred one first:
        of ``"x25519"``, ``"secp256r1"``, ``"secp384r1"``, ``"x448"``.  Every server
        has to know ``"secp256r1"`` (RFC 8446 section 9.1), unless its profile forbids
        that; each of the last two costs a sixth of a millisecond for every connection.

    Raises:
      OSError: a file cannot be read; the text names the argument and the file.
      TypeError: an argument has the wrong type.
      ValueError: something cannot be parsed, or two arguments contradict each
        other; the text names them.
    """

    def __init__(
        self,
        *,
        ca: PEMSource | None = None,
        server_name: str | None = None,
        certificate: PEMSource | None = None,
        private_key: PEMSource | None = None,
        pinned_sha256: str | bytes | None = None,
        session_store: SessionStore | None = None,
        early_data: bool = False,
        danger_accept_any_certificate: bool = False,
        password: bytes | str | None = None,
        groups: Sequence[str] = DEFAULT_GROUPS,
    ) -> None:
        for name, flag in (
            ("early_data", early_data),
            ("danger_accept_any_certificate", danger_accept_any_certificate),
        ):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, not {flag!r}")
        if session_store is not None and not isinstance(session_store, SessionStore):
            raise TypeError(f"session_store must be a SessionStore, not {session_store!r}")
        kinds_of_trust = [
            name
            for name, is_given in (
                ("ca", ca is not None),
                ("pinned_sha256", pinned_sha256 is not None),
                ("danger_accept_any_certificate", danger_accept_any_certificate),
            )
            if is_given
        ]
        if len(kinds_of_trust) > 1:
            raise ValueError(
                f"{' and '.join(kinds_of_trust)} contradict each other: each says by itself "
                "which servers to trust"
            )
        if early_data and session_store is None:
            raise ValueError("early_data needs a session_store: 0-RTT resumes an earlier session")
        if (certificate is None) != (private_key is None):
            given, missing = (
                ("certificate", "private_key")
                if private_key is None
                else ("private_key", "certificate")
            )
            raise ValueError(f"{given} is of no use without {missing}")
        if password is not None and private_key is None:
            raise ValueError("password is of no use without private_key")

        self.server_name: Final = (
            None if server_name is None else normalize_server_name(server_name)
        )
        self.pinned_sha256: Final = None if pinned_sha256 is None else _pin(pinned_sha256)
        self.early_data: Final = early_data
        self.groups: Final = _check_groups(groups)
        self.accepts_any_certificate: Final = danger_accept_any_certificate

        trusted: tuple[x509.Certificate, ...] = ()
        store: crypto.X509Store | None = None
        self._ca_name: str | None = None
        if ca is not None:
            trusted = _load_certificates("ca", ca)
            store = _store_of("ca", trusted)
            self._ca_name = _name_of(ca)
        elif not kinds_of_trust:
            store = _system_store()
        identity: Identity | None = None
        if certificate is not None and private_key is not None:
            certificates = _load_certificates("certificate", certificate)
            key = _load_private_key("private_key", private_key, _password(password))
            _check_pair(certificates, certificate, key, private_key)
            identity = Identity(certificates[0], certificates[1:], key)
        #: The trusted authorities; ``None`` where no chain is verified.
        self.store: Final = store
        #: What is shown to servers which ask for a certificate.
        self.identity: Final = identity
        #: Where this client's tickets are kept and found.
        self.session_store: Final = (
            None
            if session_store is None
            else TrustScopedSessions(session_store, self._trust_scope(trusted))
        )

    def _trust_scope(self, trusted: tuple[x509.Certificate, ...]) -> bytes:
        """Equal for equal trust: what a ticket was worth when it was earned."""
        digest = hashlib.sha256()
        if self.accepts_any_certificate:
            digest.update(b"any")
        elif self.pinned_sha256 is not None:
            digest.update(b"pin" + self.pinned_sha256)
        elif trusted:
            digest.update(b"ca")
            for fingerprint in sorted(c.fingerprint(hashes.SHA256()) for c in trusted):
                digest.update(fingerprint)
        else:
            digest.update(b"system")
        # To the server, the ticket stands for the client's certificate as well.
        digest.update(b"|")
        if self.identity is not None:
            digest.update(self.identity.certificate.fingerprint(hashes.SHA256()))
        return digest.digest()

    def __repr__(self) -> str:
        fields = []
        if self._ca_name is not None:
            fields.append(f"ca={self._ca_name}")
        if self.server_name is not None:
            fields.append(f"server_name={self.server_name!r}")
        if self.identity is not None:
            subject = self.identity.certificate.subject.rfc4514_string()
            fields.append(f"certificate=<{subject}>")
        if self.pinned_sha256 is not None:
            fields.append(f"pinned_sha256={self.pinned_sha256.hex()!r}")
        if self.session_store is not None:
            fields.append(f"session_store={self.session_store.store!r}")
        if self.early_data:
            fields.append("early_data=True")
        if self.accepts_any_certificate:
            fields.append("danger_accept_any_certificate=True")
        return f"ClientTLS({', '.join(fields)})"
