"""Reads what a machine says of itself: files below /proc and /sys, limits, versions.

Floor 4.  Reads only.  A missing file gives ``None``, so that the checks above can say "unknown".
"""

from __future__ import annotations

import os
import platform
import re
import socket
import ssl
import sys
from importlib import metadata
from pathlib import Path

import attrs
from cryptography.hazmat.backends.openssl import backend

__all__ = [
    "Drops",
    "Interface",
    "Machine",
    "has_message_calls",
    "interfaces",
    "open_descriptors",
    "package_version",
    "parse_drops",
    "parse_quota",
    "read_machine",
    "usable_processors",
]

#: The packages on which the speed or the safety of connections depends.
_PACKAGES = ("phoenix-trio", "trio", "aioquic", "cryptography")


@attrs.frozen
class Interface:
    """One network interface."""

    name: str
    mtu: int
    is_loopback: bool


@attrs.frozen
class Drops:
    """UDP datagrams of all programs since the start of the system."""

    received: int
    """Datagrams given to programs."""
    dropped: int
    """Datagrams dropped because the buffer of their socket was full."""


@attrs.frozen(kw_only=True)
class Machine:
    """The facts about a machine that need no measuring; ``None``: this system does not tell."""

    system: str
    """As ``sys.platform``."""
    release: str
    receive_buffer_limit: int | None
    """``net.core.rmem_max``."""
    send_buffer_limit: int | None
    drops: Drops | None
    interfaces: tuple[Interface, ...]
    ipv6_disabled: bool | None
    has_dual_stack: bool
    descriptors: int | None
    """The soft limit."""
    descriptors_hard: int | None
    versions: dict[str, str]
    processors: int
    """Those that this process may use."""
    quota: float | None
    """Processors' worth of time which a control group grants."""
    load: float | None
    """Processes that want to run, over the last minute."""
    governor: str | None
    clock_source: str | None
    has_aes: bool | None
    """Whether the processor says that it has instructions for AES."""
    tracked: int | None
    """Flows in the table of connection tracking."""
    tracked_limit: int | None
    tracked_udp_seconds: int | None


def read_machine(root: Path = Path("/")) -> Machine:
    """The facts about this machine.  Blocks for a moment: run it in a thread.

    Args:
      root: below which ``proc`` and ``sys`` are.
    """

    def text(path: str) -> str | None:
        try:
            return (root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(path: str) -> int | None:
        found = text(path)
        return int(found) if found is not None and re.fullmatch(r"-?\d+", found) else None

    snmp = text("proc/net/snmp")
    disabled = number("proc/sys/net/ipv6/conf/all/disable_ipv6")
    soft, hard = open_descriptors()
    cpuinfo = text("proc/cpuinfo")
    conntrack = "proc/sys/net/netfilter/nf_conntrack_"
    return Machine(
        system=sys.platform,
        release=platform.release(),
        receive_buffer_limit=number("proc/sys/net/core/rmem_max"),
        send_buffer_limit=number("proc/sys/net/core/wmem_max"),
        drops=None if snmp is None else parse_drops(snmp),
        interfaces=interfaces(root / "sys/class/net"),
        ipv6_disabled=None if disabled is None else bool(disabled),
        has_dual_stack=socket.has_dualstack_ipv6(),
        descriptors=soft,
        descriptors_hard=hard,
        versions=_versions(),
        processors=usable_processors(),
        quota=_quota(root),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governor=text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        clock_source=text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        has_aes=None if cpuinfo is None else _has_aes(cpuinfo),
        tracked=number(f"{conntrack}count"),
        tracked_limit=number(f"{conntrack}max"),
        tracked_udp_seconds=number(f"{conntrack}udp_timeout"),
    )


def parse_drops(snmp: str) -> Drops | None:
    """The counters in a ``/proc/net/snmp``."""
    rows = [line.split() for line in snmp.splitlines() if line.startswith("Udp:")]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]):
        return None
    fields = dict(zip(rows[0][1:], rows[1][1:], strict=True))
    try:
        return Drops(int(fields["InDatagrams"]), int(fields["RcvbufErrors"]))
    except (KeyError, ValueError):
        return None


def interfaces(folder: Path) -> tuple[Interface, ...]:
    """The interfaces that are up, and their MTUs, from a ``/sys/class/net``."""
    found: list[Interface] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return ()
    for entry in entries:
        try:
            mtu = int((entry / "mtu").read_text())
            flags = int((entry / "flags").read_text(), 16)
        except (OSError, ValueError):
            continue  # it has gone meanwhile, or is none
        if flags & 0x1:  # IFF_UP
            found.append(Interface(entry.name, mtu, bool(flags & 0x8)))  # IFF_LOOPBACK
    return tuple(found)


def open_descriptors() -> tuple[int | None, int | None]:
    """The soft and the hard limit of open files; ``None``: no limit, or an unknown one."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return (None if soft == unlimited else soft), (None if hard == unlimited else hard)


def has_message_calls() -> bool:
    """Whether sockets have ``sendmsg`` and ``recvmsg``, which the library needs."""
    return hasattr(socket.socket, "recvmsg") and hasattr(socket.socket, "sendmsg")


def usable_processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_quota(cpu_max: str) -> float | None:
    """The processors' worth of time in a ``cpu.max`` (control groups, version 2)."""
    words = cpu_max.split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _quota(root: Path) -> float | None:
    """The smallest quota of the control groups of this process."""
    quotas: list[float] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups = [path, *(str(parent) for parent in Path(path).parents)]
        for group in dict.fromkeys(each.strip("/") for each in groups):
            try:
                if not controllers:
                    folder = root / "sys/fs/cgroup" / group
                    found = parse_quota((folder / "cpu.max").read_text())
                elif "cpu" in controllers.split(","):
                    folder = root / "sys/fs/cgroup/cpu" / group
                    quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                    period = (folder / "cpu.cfs_period_us").read_text().strip()
                    found = parse_quota(f"{quota} {period}")
                else:
                    continue
            except OSError:
                continue
            if found is not None:
                quotas.append(found)
    return min(quotas, default=None)


def _has_aes(cpuinfo: str) -> bool | None:
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return None if flags is None else "aes" in flags[1].split()


def package_version(name: str) -> str:
    """The version of an installed package, or ``"unknown"``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"  # (run from a folder, say)


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        versions[name] = package_version(name)
    # Packets are encrypted by cryptography's own OpenSSL; the ssl module can have another one.
    versions["OpenSSL"] = backend.openssl_version_text().removeprefix("OpenSSL ").split()[0]
    versions["OpenSSL (module ssl)"] = ssl.OPENSSL_VERSION.removeprefix("OpenSSL ").split()[0]
    return versions
