"""Path MTU discovery on true interfaces: two network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import authority_pem, server_pem

PROGRAM = Path(__file__).with_name("namespace_peer.py")
NEAR, FAR = f"phoenix-near-{os.getpid()}", f"phoenix-far-{os.getpid()}"

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def inside(namespace: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, str(PROGRAM), *arguments]


@pytest.fixture
def cable() -> Iterator[None]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux, root and iproute2")
    try:
        ip("netns", "add", NEAR)
        ip("netns", "add", FAR)
        ip(*f"link add near0 netns {NEAR} type veth peer name far0 netns {FAR}".split())
        for namespace, device, number in ((NEAR, "near0", 1), (FAR, "far0", 2)):
            ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", device)
            ip("-n", namespace, "addr", "add", f"fd77::{number}/64", "dev", device, "nodad")
            ip("-n", namespace, "link", "set", device, "up")
    except (subprocess.CalledProcessError, OSError) as error:
        remove()
        pytest.skip(f"no network namespaces here: {error}")
    yield
    remove()


def remove() -> None:
    for namespace in (NEAR, FAR):
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("near", "far", "four", "six"),
    [
        pytest.param(1500, 1500, 1472, 1452, id="Ethernet"),
        pytest.param(9000, 9000, 8972, 8952, id="jumbo frames"),
        pytest.param(9000, 1500, 1472, 1452, id="a far end which takes less"),
    ],
)
def test_the_mtu_of_an_interface_is_found_and_data_cross_intact(
    near: int, far: int, four: int, six: int, cable: None, tmp_path: Path
) -> None:
    ip("-n", NEAR, "link", "set", "near0", "mtu", str(near))
    ip("-n", FAR, "link", "set", "far0", "mtu", str(far))
    certificate, key = server_pem()
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "ca.pem").write_bytes(authority_pem())
    server = subprocess.Popen(
        inside(FAR, "serve", str(tmp_path)), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        for host, expected in (("10.77.0.2", four), ("fd77::2", six)):
            done = subprocess.run(
                inside(NEAR, "send", str(tmp_path), host),
                stdout=subprocess.PIPE,
                check=True,
                timeout=90,
            )
            is_intact, ours, theirs = json.loads(done.stdout)
            assert is_intact
            assert (ours, theirs) == (expected, expected)
    finally:
        server.kill()
        server.communicate()
