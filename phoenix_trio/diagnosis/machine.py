"""Judges the facts about a machine: one function for each check.

Floor 4, pure functions.  Each takes the facts as arguments, so that tests can pass any.  The
numbers in the texts are those of ``docs/performance.md`` and ``docs/howto/doctor.md``, which
say how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .commands import command
from .results import Finding, Status, Value
from .system import Drops, Interface, Machine
from .text import format_bytes, format_seconds

__all__ = [
    "check_core",
    "check_descriptors",
    "check_drops",
    "check_interfaces",
    "check_ipv6",
    "check_processors",
    "check_socket_buffers",
    "check_sockets",
    "check_tracking",
    "check_versions",
    "judge_machine",
]

#: Bytes of payload that every QUIC path carries (RFC 9000 section 14), with the headers of
#: IPv4 and UDP.
_SMALLEST_MTU = 1228

#: The smallest MTU with IPv6 (RFC 8200 section 5).
_SMALLEST_IPV6_MTU = 1280

#: A larger share of dropped datagrams costs throughput: CUBIC takes each for congestion.
_DROPPED_SHARE = 0.0001

_FEW_DESCRIPTORS = 1024

#: Clocks that a system call reads, and not an instruction.
_SLOW_CLOCKS = frozenset({"acpi_pm", "hpet", "jiffies", "refined-jiffies", "xen"})

#: The oldest versions that are good; those of ``pyproject.toml``.
_OLDEST = {
    "Python": (3, 11),
    "trio": (0, 29),
    "aioquic": (1, 7, 2),
    "cryptography": (47,),
}


def check_socket_buffers(
    *,
    wanted: int,
    receive: int,
    send: int,
    limits: Mapping[str, int | None],
    system: str,
) -> Finding:
    """Whether sockets get the buffers that the library asks for.

    Args:
      wanted: ``TransportConfig.socket_buffer_size``, in bytes.
      receive: the granted receive buffer, in bytes.
      send: the same for sending.
      limits: the kernel's limits by their name.
      system: as ``sys.platform``.
    """
    smaller = min(receive, send)
    shown = ", ".join(
        f"{name} is {format_bytes(limit)}" for name, limit in limits.items() if limit is not None
    )
    found = f"asked for {format_bytes(wanted)}, got {format_bytes(receive)} to receive and "
    found += f"{format_bytes(send)} to send" + (f" ({shown})" if shown else "")
    lack = [limit for limit in limits.values() if limit is not None and limit < wanted]
    values = {
        "wanted_bytes": wanted,
        "receive_bytes": receive,
        "send_bytes": send,
        **{name.replace(".", "_") + "_bytes": limit for name, limit in limits.items()},
    }
    if smaller >= wanted and not lack:
        return Finding(name="socket-buffers", status=Status.OK, found=found, values=values)
    filled = 8 * min([smaller, *lack]) / 1e9
    why = f"at 1 Gbit/s a buffer of {format_bytes(min([smaller, *lack]))} is full after "
    why += f"{format_seconds(filled)}, and the kernel drops what comes then"
    if smaller >= wanted:
        why += "; this process may ignore the limit (CAP_NET_ADMIN), others may not"
    return Finding(
        name="socket-buffers",
        status=Status.WARN,
        found=found,
        why=why,
        commands=command("socket-buffers", system),
        values=values,
    )


def check_drops(drops: Drops | None, system: str) -> Finding:
    """How many UDP datagrams the system has dropped because buffers were full."""
    if drops is None:
        return Finding(
            name="udp-drops", status=Status.UNKNOWN, found="could not check: no counters here"
        )
    share = drops.dropped / max(1, drops.received + drops.dropped)
    found = f"{drops.dropped:,} of {drops.received + drops.dropped:,} datagrams were dropped "
    found += "since the system started, as the buffer of a program was full"
    values = {
        "received_datagrams": drops.received,
        "dropped_datagrams": drops.dropped,
        "dropped_percent": round(100 * share, 4),
    }
    if share <= _DROPPED_SHARE:
        return Finding(name="udp-drops", status=Status.OK, found=found, values=values)
    return Finding(
        name="udp-drops",
        status=Status.WARN,
        found=found,
        why=f"{100 * share:.2g} % lost here, not on the way; a sender takes each loss for "
        "congestion and sends 30 % less for a while (CUBIC)",
        commands=command("socket-buffers", system),
        values=values,
    )


def check_interfaces(interfaces: Sequence[Interface], system: str) -> Finding:
    """Whether the MTUs of the interfaces leave room for QUIC's packets."""
    others = [each for each in interfaces if not each.is_loopback]
    if not others:
        return Finding(
            name="interface-mtu",
            status=Status.UNKNOWN,
            found="could not check: no interface but the loopback is known",
        )
    found = ", ".join(f"{each.name} has {each.mtu}" for each in others) + " bytes"
    values: dict[str, Value] = {
        "interfaces": [each.name for each in others],
        "mtu_bytes": [each.mtu for each in others],
    }
    smallest = min(others, key=lambda each: each.mtu)
    if smallest.mtu < _SMALLEST_MTU:
        return Finding(
            name="interface-mtu",
            status=Status.FAIL,
            found=found,
            why=f"QUIC needs packets of 1,200 bytes, which is an MTU of {_SMALLEST_MTU}: "
            "no handshake works over this interface",
            commands=command("mtu", system, device=smallest.name, mtu=1500),
            values=values,
        )
    if smallest.mtu < _SMALLEST_IPV6_MTU:
        return Finding(
            name="interface-mtu",
            status=Status.WARN,
            found=found,
            why="IPv6 needs an MTU of 1,280 bytes",
            commands=command("mtu", system, device=smallest.name, mtu=1500),
            values=values,
        )
    return Finding(name="interface-mtu", status=Status.OK, found=found, values=values)


def check_ipv6(*, works: bool, has_dual_stack: bool, disabled: bool | None, system: str) -> Finding:
    """Whether one socket serves IPv4 and IPv6.

    Args:
      works: whether a datagram went over ``::1``.
      has_dual_stack: whether a socket takes both families.
      disabled: whether a setting switches IPv6 off; ``None``: unknown.
      system: as ``sys.platform``.
    """
    values = {"works": works, "dual_stack": has_dual_stack}
    if works and has_dual_stack:
        return Finding(
            name="ipv6", status=Status.OK, found="one socket takes IPv4 and IPv6", values=values
        )
    found = "IPv6 is switched off" if disabled else "no datagram goes over ::1"
    if works:
        found = "IPv6 works, but one socket cannot take IPv4 as well"
    return Finding(
        name="ipv6",
        status=Status.WARN,
        found=found,
        why="clients with IPv6 alone cannot reach a server here; a name with an IPv6 address "
        "costs clients 0.25 s where packets to it vanish (RFC 8305)",
        commands=command("ipv6", system),
        values=values,
    )


def check_descriptors(soft: int | None, hard: int | None, system: str) -> Finding:
    """Whether there are enough file descriptors for many connections."""
    values = {"soft_limit": soft, "hard_limit": hard}
    if soft is None or soft > _FEW_DESCRIPTORS:
        found = "no limit" if soft is None else f"{soft:,} files and sockets at once"
        return Finding(name="descriptors", status=Status.OK, found=found, values=values)
    return Finding(
        name="descriptors",
        status=Status.WARN,
        found=f"{soft:,} files and sockets at once",
        why=f"each open_connection takes one, so about {max(0, soft - 24):,} at once; an "
        "Endpoint or a pool takes one for all connections",
        commands=command("descriptors", system),
        values=values,
    )


def check_versions(versions: Mapping[str, str], system: str) -> Finding:
    """Whether the packages are new enough."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    old = [
        name
        for name, oldest in _OLDEST.items()
        if (version := _numbers(versions.get(name, ""))) and version < oldest
    ]
    values = {
        re.sub(r"\W+", "_", name.lower()).strip("_"): version for name, version in versions.items()
    }
    if not old:
        return Finding(name="versions", status=Status.OK, found=found, values=values)
    needed = ", ".join(f"{name} {'.'.join(str(n) for n in _OLDEST[name])}" for name in old)
    packages = " ".join(name for name in old if name != "Python")
    return Finding(
        name="versions",
        status=Status.FAIL,
        found=found,
        why=f"phoenix_trio is tested with {needed} or later",
        commands=command("upgrade", system, packages=packages) if packages else (),
        values=values,
    )


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(each) for each in found[0].split(".")) if found else ()


def check_sockets(*, has_message_calls: bool, system: str) -> Finding:
    """Whether the library can send and receive at all."""
    if has_message_calls:
        return Finding(name="sockets", status=Status.OK, found="sockets have sendmsg and recvmsg")
    return Finding(
        name="sockets",
        status=Status.FAIL,
        found=f"Python's sockets have no sendmsg and recvmsg on {system}",
        why="phoenix_trio receives 0 datagrams without them; Linux and macOS have them, and so "
        "has Linux below Windows (WSL 2)",
        commands=command("message-calls", system),
    )


def check_core(*, compiled: bool, system: str) -> Finding:
    """Whether the protocol core is compiled."""
    if compiled:
        return Finding(
            name="core", status=Status.OK, found="compiled", values={"is_compiled": True}
        )
    return Finding(
        name="core",
        status=Status.WARN,
        found="pure Python",
        why="compiled, a small packet costs 8.8 us of processor time and not 23.9, one of 1,452 "
        "bytes 4.8 and not 7.3",
        commands=command("compile", system),
        values={"is_compiled": False},
    )


def check_processors(machine: Machine) -> Finding:
    """Whether there is processor time for both ends of a connection."""
    count, quota, load = machine.processors, machine.quota, machine.load
    found = f"{count} usable"
    if quota is not None:
        found += f", {quota:g} granted by the control group"
    if load is not None:
        found += f", load {load:.2f}"
    if machine.governor is not None:
        found += f", governor {machine.governor}"
    values = {
        "usable_processors": count,
        "quota_processors": quota,
        "load": None if load is None else round(load, 2),
        "governor": machine.governor,
        "clock_source": machine.clock_source,
    }

    def below_par(why: str, what: str) -> Finding:
        return Finding(
            name="processors",
            status=Status.WARN,
            found=found,
            why=why,
            commands=command(what, machine.system),
            values=values,
        )

    if quota is not None and quota < 1:
        return below_par(
            "one busy connection keeps one processor busy; with "
            f"{quota:g} of one, this process stands still for up to "
            f"{100 * (1 - quota):.0f} ms of each 100, and packets wait so long",
            "quota",
        )
    if load is not None and load > count + 0.5:
        return below_par(
            f"{load:.1f} processes want {count} processors: each gets "
            f"{100 * count / load:.0f} % of the time it wants, and figures measured now are low",
            "busy",
        )
    if machine.governor == "powersave":
        return below_par(
            "a governor that saves power costs latency: a processor wakes slowly, for a packet "
            "as well",
            "governor",
        )
    if machine.clock_source in _SLOW_CLOCKS:
        return below_par(
            f"the clock source {machine.clock_source} costs a system call each time the time is "
            "read, which is several times a packet",
            "clock-source",
        )
    return Finding(name="processors", status=Status.OK, found=found, values=values)


def check_tracking(
    tracked: int | None, limit: int | None, udp_seconds: int | None, system: str
) -> Finding | None:
    """Whether the table of connection tracking is nearly full; ``None``: there is no table.

    Args:
      tracked: flows in it.
      limit: the most flows.
      udp_seconds: after so much silence, a UDP flow is forgotten.
      system: as ``sys.platform``.
    """
    if tracked is None or not limit:
        return None
    found = f"{tracked:,} of {limit:,} flows are tracked"
    if udp_seconds is not None:
        found += f"; silent UDP flows are forgotten after {udp_seconds} s"
    values = {"tracked_flows": tracked, "limit_flows": limit, "udp_seconds": udp_seconds}
    if tracked <= 0.9 * limit:
        return Finding(name="tracking", status=Status.OK, found=found, values=values)
    return Finding(
        name="tracking",
        status=Status.WARN,
        found=found,
        why="the first packets of new connections are dropped when the table is full; "
        f"{limit - tracked:,} places are left",
        commands=command("conntrack", system, maximum=2 * limit),
        values=values,
    )


def judge_machine(machine: Machine, *, compiled: bool) -> list[Finding]:
    """The checks that need nothing but the facts."""
    system = machine.system
    tracking = check_tracking(
        machine.tracked, machine.tracked_limit, machine.tracked_udp_seconds, system
    )
    found = [
        check_versions(machine.versions, system),
        check_core(compiled=compiled, system=system),
        check_processors(machine),
        check_descriptors(machine.descriptors, machine.descriptors_hard, system),
    ]
    # Elsewhere there are no files to read these from: left out, and not "unknown".
    if system == "linux" or machine.interfaces:
        found.append(check_interfaces(machine.interfaces, system))
    if system == "linux" or machine.drops is not None:
        found.append(check_drops(machine.drops, system))
    if tracking is not None:
        found.append(tracking)
    return found
