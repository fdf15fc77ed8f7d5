"""Real interfaces: two network namespaces with a cable between them.

Path MTU discovery, a server on a host with several addresses, and hosts out of reach.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

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


def pems(directory: Path) -> None:
    certificate, key = server_pem()
    (directory / "certificate.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    (directory / "ca.pem").write_bytes(authority_pem())


@contextmanager
def server(directory: Path, host: str = "::", **config: object) -> Iterator[None]:
    process = subprocess.Popen(
        inside(FAR, "serve", str(directory), host, json.dumps(config)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


def run(command: str, directory: Path, host: str) -> dict[str, Any]:
    """The output of a client."""
    done = subprocess.run(
        inside(NEAR, command, str(directory), host),
        stdout=subprocess.PIPE,
        check=True,
        timeout=90,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class Staying:
    """A client that pings its connection on request."""

    def __init__(self, directory: Path, host: str) -> None:
        self.process = subprocess.Popen(
            inside(NEAR, "stay", str(directory), host),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self.hear() == "connected"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ping(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("ping\n")
        self.process.stdin.flush()
        return self.hear()


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
    pems(tmp_path)
    with server(tmp_path):
        for host, expected in (("10.77.0.2", four), ("fd77::2", six)):
            report = run("send", tmp_path, host)
            assert report["intact"]
            assert (report["our path_mtu"], report["path_mtu"]) == (expected, expected)


# ------------------------------------------------------------------ several addresses

LINK_LOCAL_IPV6, LINK_LOCAL_IPV4 = "fe80::77:2", "169.254.77.2"


@pytest.fixture
def addresses(cable: None, tmp_path: Path) -> None:
    """Add addresses to the far interface."""
    pems(tmp_path)
    for address in ("10.77.0.3/24", "10.77.0.4/24", f"{LINK_LOCAL_IPV4}/16"):
        ip("-n", FAR, "addr", "add", address, "dev", "far0")
    for address in ("fd77::3/64", "fd77::4/64", f"{LINK_LOCAL_IPV6}/64"):
        ip("-n", FAR, "addr", "add", address, "dev", "far0", "nodad")
    for address in ("169.254.77.1/16", "fe80::77:1/64"):
        ip("-n", NEAR, "addr", "add", address, "dev", "near0", "nodad")


@pytest.mark.parametrize(
    ("bound_to", "targets"),
    [
        ("0.0.0.0", ["10.77.0.3", LINK_LOCAL_IPV4]),
        (
            "::",
            [
                "10.77.0.3",
                "fd77::2",
                "fd77::3",
                LINK_LOCAL_IPV4,
                LINK_LOCAL_IPV6 + "%near0",
            ],
        ),
    ],
)
def test_a_wildcard_server_answers_from_each_of_its_addresses(
    bound_to: str, targets: list[str], addresses: None, tmp_path: Path
) -> None:
    with server(tmp_path, bound_to, retry="always", max_connections=1):
        for number, target in enumerate(targets):
            report = run("visit", tmp_path, target)
            assert report["intact"]
            assert report["local"] == target.partition("%")[0]
            # One for each datagram of a hello.
            assert report["retries"] == 2 * (number + 1)
            assert report["gso"]
            assert report["datagrams per call"] > 3
            assert report["ecn"]
            assert report["validated"]
            assert "takes no more connections" in report["refused"]
            assert report["versions"][2:10] == "00000000"
            assert report["reset"] > 20


def test_a_restarted_wildcard_server_resets_connections_of_all_its_addresses(
    addresses: None, tmp_path: Path
) -> None:
    targets = ["10.77.0.3", "fd77::3", LINK_LOCAL_IPV6 + "%near0"]
    with ExitStack() as stack:
        with server(tmp_path):
            clients = [stack.enter_context(Staying(tmp_path, target)) for target in targets]
            assert [client.ping() for client in clients] == ["alive"] * len(targets)
        with server(tmp_path):
            assert [client.ping() for client in clients] == ["StatelessReset"] * len(targets)


@pytest.mark.parametrize(
    ("leaving", "staying"), [("10.77.0.3/24", "10.77.0.2"), ("fd77::3/64", "fd77::2")]
)
def test_an_address_which_leaves_its_interface_costs_the_others_nothing(
    leaving: str, staying: str, addresses: None, tmp_path: Path
) -> None:
    """And when the address comes back, so do its connections."""
    with (
        server(tmp_path, keep_alive=0.2, max_idle_timeout=60.0),
        Staying(tmp_path, leaving.partition("/")[0]) as client,
    ):
        ip("-n", FAR, "addr", "del", leaving, "dev", "far0")
        time.sleep(1.0)
        report = run("send", tmp_path, staying)
        assert report["intact"]
        assert report["local"] == staying
        assert report["gso"]
        assert report["ecn"]
        assert report["validated"]
        ip("-n", FAR, "addr", "add", leaving, "dev", "far0", "nodad")
        assert client.ping() == "alive"


# ------------------------------------------------------------------ out of reach


def test_dialling_what_cannot_be_reached_ends_at_once(cable: None, tmp_path: Path) -> None:
    """A closed port, a router without a route, and no route from here."""
    pems(tmp_path)
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        ip("netns", "exec", FAR, "sh", "-c", f"echo 1 > /proc/sys/net/{setting}")
    for version, network, gateway in (
        ("-4", "10.99.0.0/24", "10.77.0.2"),
        ("-6", "fd99::/64", "fd77::2"),
    ):
        ip(version, "-n", NEAR, "route", "add", network, "via", gateway)
        ip(version, "-n", FAR, "route", "add", "unreachable", network)
    for host, numbers in {
        "10.77.0.2": {errno.ECONNREFUSED},
        "fd77::2": {errno.ECONNREFUSED},
        "10.99.0.1": {errno.EHOSTUNREACH},
        "fd99::1": {errno.EHOSTUNREACH, errno.ENETUNREACH},
        "10.55.0.1": {errno.ENETUNREACH},
        "fd55::1": {errno.ENETUNREACH},
    }.items():
        report = run("dial", tmp_path, host)
        assert report["error"] == "ServerUnreachable", host
        assert report["errno"] in numbers, host
        assert report["seconds"] < 4, host  # (Neighbours look for each other for a second or two.)
