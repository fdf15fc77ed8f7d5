"""The TLS settings of servers and clients: certificates, keys, trust, sessions.

Floor 0.  For users, who make :class:`ServerTLS` and :class:`ClientTLS`, and for
handshakes, which apply them.  Everything is read, parsed and checked when it is made, so
that a mistake shows where it was made, and no handshake ever touches a file.  Reading
files blocks for a moment: make these objects before the nursery gets busy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from OpenSSL import crypto

from ..shared_keys import SharedKeys
from .identities import Identity, ServerIdentity
from .key_exchange import GROUPS
from .pem import (
    PEMSource,
    PrivateKey,
    check_pair,
    load_certificates,
    load_private_key,
    name_of,
    password_bytes,
)
from .server_names import normalize_server_name
from .session_tickets import ServerTicketStore, SessionStore, TrustScopedSessions
from .trust_stores import store_of, system_store
from .verdicts import Verdicts
from .verifiers import Verifier, check_verifier

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
    "Verifier",
    "normalize_server_name",
]

#: The names of the known groups for key exchange (RFC 8446 section 4.2.7), in the order of a
#: server's preference.
KNOWN_GROUPS = tuple(GROUPS)

#: Those which a client offers.
DEFAULT_GROUPS = tuple(name for name in ("x25519mlkem768", "x25519", "secp256r1") if name in GROUPS)

_RESET_SECRET_LABEL = b"phoenix_trio stateless reset secret"


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
        makes a full handshake, because a resumed one shows no certificate.
      verify: a function which decides about client certificates instead of
        `client_ca`.  Clients are asked for a certificate, and
        ``verify(chain, None)`` is called once for each handshake, after the client
        has proved that it has the private key.  `chain` is a list of
        ``cryptography.x509.Certificate``, the client's own first (16 at most);
        it is empty where the client shows none.  Returning ``None`` accepts the
        client; any exception rejects it.  Nothing else is verified: no
        authority, no dates, no purpose.  Every connection makes a full
        handshake, as with `client_ca`.  The function must be synchronous and
        quick: all connections of the socket wait for it.
      early_data: let clients which come back send data in their first flight
        (0-RTT).  **An attacker can replay it** (RFC 8446 section 8, RFC 9001
        section 9.2).  Tickets can be used once, which stops replays within one
        process; other servers refuse early data with a ticket which they have not issued.
        Open it only to what may happen twice, or wait for the confirmed handshake.
      password: of an encrypted `private_key`.
      groups: the groups for key exchange which the server accepts, the preferred one first;
        by default all those of :class:`ClientTLS`.  A client's first message has keys in
        some groups; the server takes the one it prefers, and asks for another one only if
        none of them is of use.
      ticket_keys: secrets which several servers share, 1 to 4 of 32 random bytes or more
        each.  Session tickets and address tokens (RFC 9000 section 8.1) of one server hold
        at all of them then, also after a restart.  The first key seals new ones, all keys
        open old ones.  To replace a key, put the new one behind the old one at all servers
        first, then before it, and take the old one away a day later.  Give the same keys
        only to servers of the same service: a session of one is a session of all.  A thief
        of a key can read early data, and can pose as the server to clients that resume.
        ``None``: tickets and tokens hold in this process alone; among the processes of
        :func:`run_workers`, in all of them.

    Raises:
      OSError: a file cannot be read (FileNotFoundError, PermissionError and so
        on); the text names the argument and the file.
      TypeError: an argument has the wrong type.
      ValueError: something cannot be parsed, the key does not belong to the
        certificate, or is of a kind which TLS 1.3 here cannot use, or `client_ca`
        and `verify` are both given; the text names the argument and the file.  Or
        `ticket_keys` are too few, too many or too short.
    """

    def __init__(
        self,
        certificate: PEMSource,
        private_key: PEMSource,
        *,
        client_ca: PEMSource | None = None,
        verify: Verifier | None = None,
        early_data: bool = False,
        password: bytes | str | None = None,
        groups: Sequence[str] = KNOWN_GROUPS,
        ticket_keys: Sequence[bytes] | None = None,
    ) -> None:
        if not isinstance(early_data, bool):
            raise TypeError(f"early_data must be True or False, not {early_data!r}")
        self.groups: Final = _check_groups(groups)
        if verify is not None:
            check_verifier(verify)
        #: Decides about client certificates; ``None``: `client_ca` does, if it is given.
        self.verify: Final = verify
        self._sources: tuple[PEMSource, PEMSource, PEMSource | None] = (
            certificate,
            private_key,
            client_ca,
        )
        self._password = password_bytes(password)
        self._identity = self._load(*self._sources)
        self.early_data: Final = early_data
        self.tickets: Final = ServerTicketStore()
        #: Those which other servers have, too; ``None``: there are none.
        self.shared_keys: Final = None if ticket_keys is None else SharedKeys(ticket_keys)

    def __repr__(self) -> str:
        certificate, private_key, client_ca = self._sources
        authority = "None" if client_ca is None else name_of(client_ca)
        verify = "" if self.verify is None else f"verify={self.verify!r}, "
        return (
            f"ServerTLS({name_of(certificate)}, {name_of(private_key)}, "
            f"client_ca={authority}, {verify}early_data={self.early_data})"
        )

    def _load(
        self, certificate: PEMSource, private_key: PEMSource, client_ca: PEMSource | None
    ) -> ServerIdentity:
        if client_ca is not None and self.verify is not None:
            raise ValueError(
                "client_ca and verify contradict each other: each says by itself which clients "
                "to accept"
            )
        certificates = load_certificates("certificate", certificate)
        key = load_private_key("private_key", private_key, self._password)
        check_pair(certificates, certificate, key, private_key)
        store = None
        if client_ca is not None:
            store = store_of("client_ca", load_certificates("client_ca", client_ca))
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
        *,
        ticket_keys: Sequence[bytes] | None = None,
    ) -> None:
        """Take a renewed certificate, or other ticket keys, into use without a restart.

        Connections which exist keep what they have.  What is not given is read
        again from where it came from, so without arguments all files are read anew;
        ticket keys stay what they are.

        Raises:
          OSError, TypeError, ValueError: as on construction; the old identity
            stays in use, nothing has changed.  Also where `ticket_keys` are given, but
            were not on construction.
        """
        if ticket_keys is not None:
            if self.shared_keys is None:
                raise ValueError("ticket_keys can be replaced only where they were given before")
            SharedKeys(ticket_keys)
        sources = tuple(
            old if new is None else new
            for old, new in zip(self._sources, (certificate, private_key, client_ca), strict=True)
        )
        new_certificate, new_key, new_client_ca = sources
        assert new_certificate is not None
        assert new_key is not None
        self._identity = self._load(new_certificate, new_key, new_client_ca)
        self._sources = (new_certificate, new_key, new_client_ca)
        if ticket_keys is not None and self.shared_keys is not None:
            self.shared_keys.replace(ticket_keys)

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
    if "x25519mlkem768" in unknown:
        raise ValueError(
            "groups: x25519mlkem768 needs a cryptography package whose OpenSSL has ML-KEM"
        )
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
        (32 bytes, or hexadecimal digits with or without colons), with any
        signature and any name; it still has to be valid now.
      session_store: where tickets are kept, to resume sessions.
      verify: a function which decides about the server's certificates instead of
        authorities.  ``verify(chain, server_name)`` is called once for each
        handshake, after the server has proved that it has the private key.  `chain`
        is a list of ``cryptography.x509.Certificate``, the server's own first (16 at
        most), `server_name` the name or address which was dialled, or the argument
        `server_name`.  Returning ``None`` accepts the server; any exception
        rejects it, and is the ``__cause__`` of the error.  Nothing else is
        verified: no authority, no dates, no name.  The function must be synchronous
        and quick: all connections of the socket wait for it.  It excludes a
        `session_store`, because a resumed session shows no certificates.
      early_data: send data in the first flight to servers which allow it.  **An
        attacker can replay it** (RFC 8446 section 8); needs a `session_store`.
      danger_accept_any_certificate: verify nothing but that the server has the key
        of its certificate.  Any host on the path can pose as the server: for
        experiments alone.
      password: of an encrypted `private_key`.
      groups: the groups for key exchange which are offered, the preferred one first:
        of ``"x25519mlkem768"``, ``"x25519"``, ``"secp256r1"``, ``"secp384r1"``,
        ``"x448"``; the first three by default.  ``"x25519mlkem768"`` (RFC 10024) also
        protects against quantum computers of the future, which could decrypt traffic
        recorded now.  Its keys are large, so the first message takes two datagrams
        instead of one: ``groups=("x25519", "secp256r1")`` switches it off.  The default
        leaves it out where the ``cryptography`` package has no ML-KEM.  Every server
        has to know ``"secp256r1"`` (RFC 8446 section 9.1), unless its profile forbids
        that.  The first message has a key of the preferred group alone (and of the next one, if
        that is ``"x25519mlkem768"``): a server which does
        not know these groups asks for another one, which takes one more round trip and refuses
        early data.

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
        verify: Verifier | None = None,
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
                ("verify", verify is not None),
                ("danger_accept_any_certificate", danger_accept_any_certificate),
            )
            if is_given
        ]
        if len(kinds_of_trust) > 1:
            raise ValueError(
                f"{' and '.join(kinds_of_trust)} contradict each other: each says by itself "
                "which servers to trust"
            )
        if verify is not None:
            check_verifier(verify)
            if session_store is not None:
                raise ValueError(
                    "verify and session_store contradict each other: a resumed session shows no "
                    "certificates which verify could judge"
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
        #: Decides about the server's certificates; ``None``: the other settings do.
        self.verify: Final = verify

        trusted: tuple[x509.Certificate, ...] = ()
        store: crypto.X509Store | None = None
        self._ca_name: str | None = None
        if ca is not None:
            trusted = load_certificates("ca", ca)
            store = store_of("ca", trusted)
            self._ca_name = name_of(ca)
        elif not kinds_of_trust:
            store = system_store()
        identity: Identity | None = None
        if certificate is not None and private_key is not None:
            certificates = load_certificates("certificate", certificate)
            key = load_private_key("private_key", private_key, password_bytes(password))
            check_pair(certificates, certificate, key, private_key)
            identity = Identity(certificates[0], certificates[1:], key)
        #: The trusted authorities; ``None`` where no chain is verified.
        self.store: Final = store
        #: About chains which `store` has verified.
        self.verdicts: Final = Verdicts()
        #: The certificate which is shown to servers that ask for one.
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
        if self.verify is not None:
            fields.append(f"verify={self.verify!r}")
        if self.session_store is not None:
            fields.append(f"session_store={self.session_store.store!r}")
        if self.early_data:
            fields.append("early_data=True")
        if self.accepts_any_certificate:
            fields.append("danger_accept_any_certificate=True")
        return f"ClientTLS({', '.join(fields)})"
