"""examples/libp2p against py-libp2p's own QUIC transport, each host a process of its own.

They run in an environment of libp2p's: ``python3 tests/interop/install.py`` makes it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .install import ROOT, find_all

PROGRAMS = Path(__file__).with_name("programs")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples' / 'libp2p'}"}

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def python() -> str:
    found = find_all(["libp2p"], install=False)["libp2p"]
    if found.missing is not None:
        pytest.skip(f"absent: libp2p: {found.missing}")
    return found.programs["python"]


@contextmanager
def listening(python: str, transport: str) -> Iterator[str]:
    """The address of a host, with its peer ID."""
    process = subprocess.Popen(
        [python, str(PROGRAMS / "libp2p_host.py"), "listen", "--transport", transport],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on /ip4/127.0.0.1/udp/"), process.communicate(timeout=9)
        yield line.split()[-1]
    finally:
        _, errors = process.communicate(timeout=20)  # with the end of its input
    assert process.returncode == 0, errors


def dial(python: str, transport: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(PROGRAMS / "libp2p_host.py"), "dial", *arguments, "--transport", transport],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "client"), [("phoenix", "stock"), ("stock", "phoenix"), ("phoenix", "phoenix")]
)
def test_hosts_find_out_who_the_other_is_and_echo(server: str, client: str, python: str) -> None:
    with listening(python, server) as address:
        done = dial(python, client, address, "one", "two", "three", "--transfer", "300000")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"connected to {address.rpartition('/')[2]}"
    assert sorted(lines[1:4]) == ["echo: one", "echo: three", "echo: two"]
    assert lines[4].startswith("transferred 300000 bytes")
    assert lines[5:] == ["closed"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["stock", "phoenix"])
def test_a_host_which_is_another_one_than_was_dialled_is_refused(server: str, python: str) -> None:
    with listening(python, server) as address, listening(python, server) as another:
        wrong = f"{address.rpartition('/')[0]}/{another.rpartition('/')[2]}"
        done = dial(python, "phoenix", wrong, "secret")
        assert done.returncode != 0
        assert not done.stdout
        assert "no addresses established a successful connection" in done.stderr
        done = dial(python, "phoenix", address, "hello")  # the same, with the right name
        assert done.returncode == 0, done.stderr


def test_certificates_which_prove_no_identity_are_refused(python: str) -> None:
    done = subprocess.run(
        [python, str(PROGRAMS / "libp2p_certificates.py")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts = [line.split(": ") for line in done.stdout.splitlines()]
    accepted = [kind for kind, verdict in verdicts if verdict == "accepted"]
    assert accepted == [
        f"{whose} of {kind}"
        for kind in ("ed25519", "secp256k1", "rsa")
        for whose in ("ours", "stock")
    ]
    assert len(verdicts) > len(accepted) + 15


@pytest.mark.slow
def test_a_transfer_is_twenty_times_as_fast_as_with_the_stock_transport(python: str) -> None:
    size = 4_000_000
    rates = {}
    for transport in ("stock", "phoenix"):
        with listening(python, transport) as address:
            done = dial(python, transport, address, "--transfer", str(size))
        assert done.returncode == 0, done.stderr
        found = re.search(r"transferred 4000000 bytes: ([\d.]+) MB/s", done.stdout)
        assert found is not None, done.stdout
        rates[transport] = float(found[1])
    assert rates["phoenix"] >= 20 * rates["stock"], rates
