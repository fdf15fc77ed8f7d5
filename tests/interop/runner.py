"""Runs one cell of the matrix: starts a server, a relay and a client, and judges the outcome.

Each program is a process of its own, ended by its process ID; each has a timeout.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import attrs
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import authority, authority_pem, server_pem

from .cases import Case, Evidence
from .install import HOME, Installed
from .known import FAULTS, KNOWN
from .peers import Peer, Role, Task, our_client, our_server
from .relay import Relay
from .wire import Wire

Status = Literal["good", "failed", "cannot", "absent"]

#: Cases that only a server can decide, so they do not apply if our client is the other side.
_DECIDED_BY_SERVER = {"chacha20", "v2"}


@attrs.frozen(kw_only=True)
class Cell:
    """The outcome of one case with one peer in one role."""

    peer: str
    role: Role
    case: str
    status: Status
    reason: str = ""
    known: bool = False
    """Whether a failure is one that `known.py` explains."""
    seconds: float = 0.0
    seed: int = 0


class _Failure(Exception):
    """The cell failed, for the reason in the text."""


def body_of(size: int) -> bytes:
    """The content of a file is told by its name, which is its size."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@cache
def _large_pem() -> tuple[bytes, bytes]:
    """A certificate of some 9,000 bytes, as chains with many names are."""
    names = [f"host-{number:03}.a-rather-long-name.example.org" for number in range(180)]
    issued = authority().issue_cert(
        "localhost", "127.0.0.1", "::1", *names, key_type=trustme.KeyType.ECDSA
    )
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return chain, issued.private_key_pem.bytes()


#: Attempts at a cell in which the peer fails by a fault of its own.
ATTEMPTS = 2


async def run_cells(
    wanted: Iterable[tuple[Peer, Role, Case]],
    installed: dict[str, Installed],
    *,
    quick: bool,
    seed: int,
    jobs: int,
    on_cell: Callable[[Cell], None],
) -> list[Cell]:
    """Run cells, `jobs` at a time; the outcomes are in the order of `wanted`."""
    limiter = trio.CapacityLimiter(jobs)
    cells: dict[int, Cell] = {}

    async def run_one(number: int, peer: Peer, role: Role, case: Case) -> None:
        async with limiter:
            cell = await run_cell(peer, installed[peer.name], role, case, quick=quick, seed=seed)
        cells[number] = cell
        on_cell(cell)

    async with trio.open_nursery() as nursery:
        for number, (peer, role, case) in enumerate(wanted):
            nursery.start_soon(run_one, number, peer, role, case)
            await trio.lowlevel.checkpoint()
    return [cells[number] for number in sorted(cells)]


async def run_cell(
    peer: Peer, installed: Installed, role: Role, case: Case, *, quick: bool, seed: int
) -> Cell:
    """Run one case with `peer` in `role`, and our program in the other."""

    def cell(status: Status, reason: str = "", **more: object) -> Cell:
        return Cell(
            peer=peer.name,
            role=role,
            case=case.name,
            status=status,
            reason=reason,
            **more,  # type: ignore[arg-type]
        )

    our_role: Role = "server" if role == "client" else "client"
    why = peer.cannot.get((role, case.name)) or case.ours_cannot.get(our_role)
    if why is not None:
        return cell("cannot", why)
    if installed.missing is not None:
        return cell("absent", installed.missing)
    known = KNOWN.get((peer.name, role, case.name))
    start = trio.current_time()
    for attempt in range(ATTEMPTS):
        found = await _attempt(peer, installed, role, case, quick=quick, seed=seed + attempt)
        fault = None if found is None else _own_fault(peer, role, case)
        if fault is None:
            break
        known = fault
    seconds = trio.current_time() - start
    if found is not None:
        reason = f"{known} ({found})" if known else found
        return cell("failed", reason, known=known is not None, seconds=seconds, seed=seed)
    reason = f"good, although known to fail: {known}" if known else ""
    return cell("good", reason, seconds=seconds, seed=seed)


async def _attempt(
    peer: Peer, installed: Installed, role: Role, case: Case, *, quick: bool, seed: int
) -> str | None:
    """Why one attempt at a cell failed; ``None``: it did not."""
    try:
        with trio.fail_after(case.timeout + 15):
            await _run(peer, installed, role, case, quick=quick, seed=seed)
    except* (_Failure, trio.TooSlowError) as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        found = str(failure) or "it took too long"
    else:
        return None
    return found


def _home(peer: Peer, role: Role, case: Case) -> Path:
    return HOME / "cells" / f"{peer.name}-{role}" / case.name.replace(" ", "-").replace("/", "")


def _own_fault(peer: Peer, role: Role, case: Case) -> str | None:
    """The reason of a failure for which the peer's program itself gives the proof."""
    text, reason = FAULTS.get((peer.name, role), ("", ""))
    written = _home(peer, role, case) / role / "stderr"
    if text and written.exists() and text in written.read_text(errors="replace"):
        return reason
    return None


async def _run(
    peer: Peer, installed: Installed, role: Role, case: Case, *, quick: bool, seed: int
) -> None:
    home = _home(peer, role, case)
    shutil.rmtree(home, ignore_errors=True)
    served, downloads = home / "served", home / "downloads"
    for directory in (served, downloads, home / "client", home / "server"):
        directory.mkdir(parents=True)
    sizes = case.quick_sizes if quick and case.quick_sizes is not None else case.sizes
    suffix = peer.suffix if role == "server" else ""
    for size in sizes:
        (served / f"{size}{suffix}").write_bytes(body_of(size))
    chain, key = _large_pem() if case.large_certificate else server_pem()
    files = {"ca.pem": authority_pem(), "server.pem": chain, "server-key.pem": key}
    for name, content in files.items():
        (home / name).write_bytes(content)
    public_key = x509.load_pem_x509_certificate(chain).public_key()
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def task(port: int, where: Path, scratch: str, flags: frozenset[str]) -> Task:
        return Task(
            host=case.host,
            port=port,
            paths=[f"/{size}{suffix}" for size in sizes],
            files=where,
            home=home / scratch,
            ca=home / "ca.pem",
            certificate=home / "server.pem",
            key=home / "server-key.pem",
            public_key_sha256=base64.b64encode(hashlib.sha256(spki).digest()).decode(),
            flags=flags | ({"h3"} if peer.only_h3 else set()),
        )

    server_flags = case.server_flags
    if role == "server":
        server_flags |= case.flags & _DECIDED_BY_SERVER
    port = _free_port(case.host)
    if role == "server":
        assert peer.server is not None
        [server_command] = peer.server(
            installed.programs, task(port, served, "server", server_flags)
        )
    else:
        [server_command] = our_server(task(port, served, "server", server_flags))
    relay = Relay(case.faults, host=case.host, server_port=port, seed=seed)
    key_log = home / "keys.log"
    async with trio.open_nursery() as nursery:
        server = await _start(server_command, home / "server", key_log, ours=role == "client")
        try:
            await _wait_until_bound(server, port)
            await nursery.start(relay.run)
            client_task = task(relay.port, downloads, "client", case.flags)
            if role == "client":
                assert peer.client is not None
                commands = peer.client(installed.programs, client_task)
            else:
                commands = our_client(client_task)
            for command in commands:
                client = await _start(command, home / "client", key_log, ours=role == "server")
                await _finish(client, case.timeout, home)
            await trio.sleep(0.1 + 2 * case.faults.delay)  # the goodbye is on its way
        finally:
            with trio.CancelScope(shield=True):
                await _end(server)
            nursery.cancel_scope.cancel()
    _compare(served, downloads)
    wire = Wire(relay.records, key_log)
    evidence = Evidence(
        wire=wire,
        ours=_facts(home / ("client" if role == "server" else "server") / "stdout"),
        role=role,
        files=len(sizes),
        bytes_received=sum(sizes),
        rebindings=relay.rebindings,
    )
    try:
        missing = case.proof(evidence)
    except (LookupError, ValueError) as error:
        raise _Failure(f"the wire's record cannot be read: {error!r}") from error
    if missing:
        raise _Failure(missing)
    shutil.rmtree(downloads)
    shutil.rmtree(served)


async def _start(command: list[str], home: Path, key_log: Path, *, ours: bool) -> trio.Process:
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment.pop("SSLKEYLOGFILE", None)
    if ours:
        environment["SSLKEYLOGFILE"] = str(key_log)
    with open(home / "stdout", "ab") as output, open(home / "stderr", "ab") as errors:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=home,
            env=environment,
            start_new_session=True,
        )


async def _finish(client: trio.Process, timeout: float, home: Path) -> None:
    try:
        with trio.fail_after(timeout):
            status = await client.wait()
    except trio.TooSlowError:
        raise _Failure(f"the client was not done after {timeout:g} s") from None
    finally:
        with trio.CancelScope(shield=True):
            await _end(client)
    if status:
        lines = (home / "client" / "stderr").read_text(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if line.strip(" |+-^")), "no word")
        raise _Failure(f"the client ended with {status}: {last.strip(' |')[:160]}")


async def _end(process: trio.Process) -> None:
    """End a process and its children; it leads a session of its own."""
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(3):
            await process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await process.wait()


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def _wait_until_bound(server: trio.Process, port: int) -> None:
    """Not every server says when it is ready; the kernel knows."""
    wanted = f":{port:04X} "
    with trio.move_on_after(15):
        while server.returncode is None and server.poll() is None:
            for table in ("/proc/net/udp", "/proc/net/udp6"):
                if any(wanted in line[:60] for line in Path(table).read_text().splitlines()):
                    await trio.sleep(0.05)
                    return
            await trio.sleep(0.02)
    raise _Failure("the server did not start")


def _compare(served: Path, downloads: Path) -> None:
    wrong = []
    names = [file.name for file in served.iterdir()]
    for name in names:
        sent, received = served / name, downloads / name
        if not received.is_file() or _sha256(sent) != _sha256(received):
            wrong.append(name)
    if wrong:
        raise _Failure(f"{len(wrong)} of {len(names)} files are missing or wrong")


def _sha256(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def _facts(output: Path) -> list[dict[str, object]]:
    lines = output.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
