"""The other stacks as a table: command lines, and the cases that each cannot do.

``build`` functions turn a :class:`Task` into command lines.  A client may need several,
run one after another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs

Role = Literal["client", "server"]

PROGRAMS = Path(__file__).with_name("programs")


@attrs.frozen(kw_only=True)
class Task:
    """The work of one program."""

    host: str
    port: int
    paths: list[str]
    files: Path
    """Client: where downloads go.  Server: the files that it serves."""
    home: Path
    """For tickets and the like."""
    ca: Path
    certificate: Path
    key: Path
    public_key_sha256: str
    flags: frozenset[str]
    """Of: each, resume, early-data, update-keys, migrate, chacha20, v2, retry, h3."""

    def words(self, *flags: str) -> list[str]:
        return [f"--{flag}" for flag in flags if flag in self.flags]


Build = Callable[[dict[str, str], Task], list[list[str]]]


@attrs.frozen(kw_only=True)
class Peer:
    """One stack."""

    name: str
    description: str
    client: Build | None = None
    server: Build | None = None
    only_h3: bool = False
    has_h3: bool = False
    suffix: str = ""
    """The suffix of the names of files that it serves."""
    cannot: dict[tuple[Role, str], str] = attrs.field(factory=dict)
    """(The peer's role, the case): the reason why it cannot."""

    @property
    def roles(self) -> list[Role]:
        roles: list[Role] = []
        if self.client is not None:
            roles.append("client")
        if self.server is not None:
            roles.append("server")
        return roles


_CLIENT_FLAGS = (
    *("h3", "each", "resume", "early-data", "update-keys", "migrate", "chacha20", "v2"),
)


def _served(task: Task) -> list[str]:
    return ["--certificate", str(task.certificate), "--key", str(task.key)]


def _where(task: Task) -> list[str]:
    return [task.host, str(task.port)]


def _asyncio_client(stack: str) -> Build:
    def build(programs: dict[str, str], task: Task) -> list[list[str]]:
        return [
            [programs["python"], str(PROGRAMS / "hq_asyncio.py"), stack, "client", *_where(task)]
            + [*task.paths, "--directory", str(task.files), "--ca", str(task.ca)]
            + task.words(*_CLIENT_FLAGS)
        ]

    return build


def _asyncio_server(stack: str) -> Build:
    def build(programs: dict[str, str], task: Task) -> list[list[str]]:
        return [
            [programs["python"], str(PROGRAMS / "hq_asyncio.py"), stack, "server", *_where(task)]
            + ["--directory", str(task.files), *_served(task)]
            + task.words("h3", "chacha20", "v2", "retry")
        ]

    return build


def _picoquic_client(programs: dict[str, str], task: Task) -> list[list[str]]:
    tickets: list[str] = []
    if task.flags & {"resume", "early-data"}:
        tickets = ["--tickets", str(task.home / "tickets")]
    return [
        [programs["python"], str(PROGRAMS / "hq_picoquic.py"), "client", *_where(task)]
        + [*task.paths, "--directory", str(task.files), "--ca", str(task.ca), *tickets]
        + task.words("each", "early-data", "update-keys", "chacha20", "v2")
    ]


def _picoquic_server(programs: dict[str, str], task: Task) -> list[list[str]]:
    return [
        [programs["python"], str(PROGRAMS / "hq_picoquic.py"), "server", *_where(task)]
        + ["--directory", str(task.files), *_served(task)]
        + task.words("chacha20", "v2", "retry")
    ]


def _quiche(role: Role) -> Build:
    def build(programs: dict[str, str], task: Task) -> list[list[str]]:
        command = [programs["node"], str(PROGRAMS / "hq_quiche.mjs"), programs["home"], role]
        command += [*_where(task), "--directory", str(task.files)]
        if role == "server":
            return [[*command, *_served(task), *task.words("retry")]]
        return [
            [*command, *task.paths, "--ca", str(task.ca)]
            + task.words("each", "resume", "early-data", "migrate")
        ]

    return build


_CHACHA20 = "--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305"


def _ngtcp2_client(programs: dict[str, str], task: Task) -> list[list[str]]:
    command = [programs["client"], "-q", "--exit-on-all-streams-close", "--no-quic-dump"]
    command += ["--no-http-dump", "--download", str(task.files), "--timeout=60s"]
    command += ["--handshake-timeout=60s"]
    rounds = [task.paths]
    if "each" in task.flags:
        rounds = [[path] for path in task.paths]
    if task.flags & {"resume", "early-data"}:
        rounds = [task.paths[:1], task.paths[1:]]
        command += ["--session-file", str(task.home / "session")]
        command += ["--tp-file", str(task.home / "parameters")]
        if "early-data" not in task.flags:
            command.append("--disable-early-data")
    if "update-keys" in task.flags:
        command.append("--key-update=50ms")
    if "migrate" in task.flags:
        command.append("--change-local-addr=300ms")
    if "chacha20" in task.flags:
        command.append(_CHACHA20)
    host = f"[{task.host}]" if ":" in task.host else task.host
    return [
        [*command, *_where(task), *(f"https://{host}:{task.port}{path}" for path in paths)]
        for paths in rounds
    ]


def _ngtcp2_server(programs: dict[str, str], task: Task) -> list[list[str]]:
    command = [programs["server"], "-q", "--htdocs", str(task.files), "--timeout=60s"]
    command += ["--handshake-timeout=60s", "--max-streams-bidi=100"]
    if "retry" in task.flags:
        command.append("--validate-addr")
    if "chacha20" in task.flags:
        command.append(_CHACHA20)
    return [[*command, *_where(task), str(task.key), str(task.certificate)]]


def _curl_client(programs: dict[str, str], task: Task) -> list[list[str]]:
    return [
        [programs["python"], str(PROGRAMS / "get_curl.py"), *_where(task), *task.paths]
        + ["--directory", str(task.files), "--ca", str(task.ca), *task.words("each")]
    ]


def _chromium_client(programs: dict[str, str], task: Task) -> list[list[str]]:
    return [
        [sys.executable, str(PROGRAMS / "get_chromium.py"), *_where(task), *task.paths]
        + ["--chromium", programs["chromium"], "--directory", str(task.files)]
        + ["--public-key-sha256", task.public_key_sha256, *task.words("each")]
    ]


def our_client(task: Task) -> list[list[str]]:
    """Our command lines, by the same rules."""
    return [
        [sys.executable, str(PROGRAMS / "ours_client.py"), *_where(task), *task.paths]
        + ["--directory", str(task.files), "--ca", str(task.ca)]
        + task.words("h3", "each", "resume", "early-data", "update-keys", "migrate")
    ]


def our_server(task: Task) -> list[list[str]]:
    return [
        [sys.executable, str(PROGRAMS / "ours_server.py"), "--host", task.host]
        + ["--port", str(task.port), "--directory", str(task.files), *_served(task)]
        + task.words("retry", "early-data")
    ]


_FIXED_CLIENT = dict.fromkeys(
    ("resumption", "0-RTT", "key update", "ChaCha20", "v2", "migration"),
    "its program cannot be told to",
)

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="aioquic",
            description="aioquic, unmodified",
            client=_asyncio_client("aioquic"),
            server=_asyncio_server("aioquic"),
            has_h3=True,
            cannot={
                ("client", "post-quantum"): "aioquic has no ML-KEM",
                ("server", "post-quantum"): "aioquic has no ML-KEM",
                ("client", "ECN"): "aioquic does not mark packets",
                ("server", "ECN"): "aioquic does not mark packets",
            },
        ),
        Peer(
            name="qh3",
            description="qh3",
            client=_asyncio_client("qh3"),
            server=_asyncio_server("qh3"),
            has_h3=True,
            cannot={
                ("client", "ECN"): "qh3 does not mark packets",
                ("server", "ECN"): "qh3 does not mark packets",
            },
        ),
        Peer(
            name="picoquic",
            description="picoquic (PyPI: aiopquic)",
            client=_picoquic_client,
            server=_picoquic_server,
            cannot={
                ("client", "post-quantum"): "its client offers X25519 alone",
                ("client", "HTTP/3"): "the binding has no HTTP/3 requests",
                ("server", "HTTP/3"): "the binding has no HTTP/3 requests",
                ("client", "migration"): "the binding has no call for it",
                ("server", "v2"): "it accepts version 1, with which our client begins",
            },
        ),
        Peer(
            name="quiche",
            description="quiche (npm: @matrixai/quic)",
            client=_quiche("client"),
            server=_quiche("server"),
            cannot={
                ("client", "post-quantum"): "the binding does not switch it on",
                ("server", "post-quantum"): "the binding does not switch it on",
                ("client", "HTTP/3"): "the binding has no HTTP/3",
                ("server", "HTTP/3"): "the binding has no HTTP/3",
                ("client", "key update"): "the binding has no call for it",
                ("client", "ChaCha20"): "the binding has no choice of ciphers",
                ("server", "ChaCha20"): "the binding has no choice of ciphers",
                ("client", "v2"): "quiche has only QUIC version 1",
                ("server", "v2"): "quiche has only QUIC version 1",
                ("client", "ECN"): "the program's sockets set no marks",
                ("server", "ECN"): "the program's sockets set no marks",
            },
        ),
        Peer(
            name="ngtcp2",
            description="ngtcp2 (Debian)",
            client=_ngtcp2_client,
            server=_ngtcp2_server,
            only_h3=True,
            suffix=".bin",  # for /1000 it makes up 1,000 bytes by itself
            has_h3=True,
            cannot={
                ("client", "post-quantum"): "the GnuTLS of this version has no ML-KEM",
                ("server", "post-quantum"): "the GnuTLS of this version has no ML-KEM",
                ("client", "v2"): "this version knows only a draft of QUIC version 2",
                ("server", "v2"): "this version knows only a draft of QUIC version 2",
            },
        ),
        Peer(
            name="curl",
            description="curl with HTTP/3 (PyPI: curl_cffi)",
            client=_curl_client,
            only_h3=True,
            has_h3=True,
            cannot={
                ("client", "post-quantum"): "the program does not offer it over QUIC",
                **{("client", case): why for case, why in _FIXED_CLIENT.items()},
                ("client", "ECN"): "curl does not mark packets",
            },
        ),
        Peer(
            name="chromium",
            description="Chromium, headless (Debian)",
            client=_chromium_client,
            only_h3=True,
            has_h3=True,
            cannot={
                **{("client", case): why for case, why in _FIXED_CLIENT.items()},
                ("client", "multiplexing"): "the page loads its files one after another",
                ("client", "ECN"): "this Chromium does not mark packets",
            },
        ),
    )
}
