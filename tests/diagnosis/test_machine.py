"""The checks of a machine, each with facts made up here; and how the facts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from phoenix_trio.diagnosis import TargetServer, examine, machine
from phoenix_trio.diagnosis.ciphers import CipherRates, check_ciphers, measure_ciphers
from phoenix_trio.diagnosis.commands import command
from phoenix_trio.diagnosis.results import Finding, Status
from phoenix_trio.diagnosis.system import (
    Drops,
    Interface,
    Machine,
    parse_drops,
    parse_quota,
    read_machine,
)

MIB = 1024 * 1024

GOOD = Machine(
    system="linux",
    release="6.1",
    receive_buffer_limit=8 * MIB,
    send_buffer_limit=8 * MIB,
    drops=Drops(1_000_000, 0),
    interfaces=(Interface("lo", 65536, True), Interface("eth0", 1500, False)),
    ipv6_disabled=False,
    has_dual_stack=True,
    descriptors=65536,
    descriptors_hard=65536,
    versions={"Python": "3.11.7", "trio": "0.35.0", "aioquic": "1.7.2", "cryptography": "50.0"},
    processors=4,
    quota=None,
    load=0.5,
    governor=None,
    clock_source="tsc",
    has_aes=True,
    tracked=None,
    tracked_limit=None,
    tracked_udp_seconds=None,
)


def judge(name: str, **changes: Any) -> Finding:
    found = machine.judge_machine(attrs.evolve(GOOD, **changes), compiled=True)
    return next(each for each in found if each.name == name)


def test_a_good_machine_is_fine() -> None:
    found = machine.judge_machine(GOOD, compiled=True)
    assert {each.status for each in found} == {Status.OK}
    assert not any(each.commands for each in found)


def test_every_warning_says_why_with_a_number() -> None:
    bad = attrs.evolve(
        GOOD,
        drops=Drops(1000, 10),
        interfaces=(Interface("tun0", 1250, False),),
        descriptors=256,
        versions={**GOOD.versions, "trio": "0.20"},
        load=9.0,
        tracked=100,
        tracked_limit=100,
    )
    found = machine.judge_machine(bad, compiled=False)
    for each in found:
        assert each.status in (Status.WARN, Status.FAIL), each.name
        assert any(character.isdigit() for character in each.why), each.name
        assert each.commands, each.name


def test_small_socket_buffers_are_named_with_the_setting() -> None:
    def check(granted: int, limit: int | None, system: str = "linux") -> Finding:
        return machine.check_socket_buffers(
            wanted=4 * MIB,
            receive=granted,
            send=4 * MIB,
            limits={"net.core.rmem_max": limit},
            system=system,
        )

    small = check(208 * 1024, 212992)
    assert small.status is Status.WARN
    assert "208 KiB" in small.found
    assert "1.7 ms" in small.why, "208 KiB at 1 Gbit/s"
    assert small.commands == ("sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608",)
    assert check(208 * 1024, None, "darwin").commands == (
        "sudo sysctl -w kern.ipc.maxsockbuf=8388608",
    )
    assert check(4 * MIB, 8 * MIB).status is Status.OK
    root = check(4 * MIB, 212992)
    assert root.status is Status.WARN
    assert "CAP_NET_ADMIN" in root.why


def test_drops_count_from_one_in_ten_thousand() -> None:
    assert judge("udp-drops", drops=Drops(999_950, 50)).status is Status.OK
    many = judge("udp-drops", drops=Drops(999_000, 1_000))
    assert many.status is Status.WARN
    assert many.values["dropped_percent"] == 0.1
    assert judge("udp-drops", drops=None).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("mtu", "status"),
    [(9000, Status.OK), (1280, Status.OK), (1279, Status.WARN), (1227, Status.FAIL)],
)
def test_an_interface_needs_room_for_the_smallest_packets(mtu: int, status: Status) -> None:
    found = judge("interface-mtu", interfaces=(Interface("wg0", mtu, False),))
    assert found.status is status
    assert found.commands == (() if status is Status.OK else ("ip link set wg0 mtu 1500",))


def test_a_machine_with_loopback_alone_is_not_judged() -> None:
    found = judge("interface-mtu", interfaces=(Interface("lo", 65536, True),))
    assert found.status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"quota": 2.0}, Status.OK, "2 granted"),
        ({"quota": 0.25}, Status.WARN, "75 ms of each 100"),
        ({"load": 8.0}, Status.WARN, "50 %"),
        ({"governor": "powersave"}, Status.WARN, "latency"),
        ({"clock_source": "hpet"}, Status.WARN, "hpet"),
        ({"load": None, "clock_source": None}, Status.OK, "4 usable"),
    ],
)
def test_processors_that_are_taken_or_slow_are_named(
    changes: dict[str, Any], status: Status, text: str
) -> None:
    found = judge("processors", **changes)
    assert found.status is status
    assert text in found.found + found.why


def test_old_packages_fail_with_the_command_to_renew_them() -> None:
    found = judge("versions", versions={**GOOD.versions, "aioquic": "1.7.1"})
    assert found.status is Status.FAIL
    assert found.commands == ("pip install --upgrade aioquic",)
    assert judge("versions", versions={"trio": "unknown"}).status is Status.OK


def test_few_descriptors_are_few_connections() -> None:
    found = judge("descriptors", descriptors=256)
    assert found.status is Status.WARN
    assert "about 232" in found.why
    assert judge("descriptors", descriptors=None).status is Status.OK


def test_a_full_table_of_connection_tracking_is_named() -> None:
    assert judge("tracking", tracked=10, tracked_limit=100).status is Status.OK
    full = judge("tracking", tracked=95, tracked_limit=100)
    assert full.status is Status.WARN
    assert full.commands == ("sysctl -w net.netfilter.nf_conntrack_max=200",)


def test_checks_without_their_files_are_left_out_on_other_systems() -> None:
    mac = attrs.evolve(GOOD, system="darwin", interfaces=(), drops=None)
    names = [each.name for each in machine.judge_machine(mac, compiled=True)]
    assert names == ["versions", "core", "processors", "descriptors"]


async def test_a_system_whose_sockets_lack_calls_is_told_so_without_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phoenix_trio.diagnosis.examination.has_message_calls", lambda: False)
    report = await examine(TargetServer(host="127.0.0.1", port=1), "high-cpu", system="win32")
    found = {each.name: each for each in report.findings}
    assert found["sockets"].status is Status.FAIL
    assert found["sockets"].commands == ("wsl --install",)
    assert "loopback" not in found
    assert list(report.groups) == ["machine"]


def test_ipv6_has_to_work_and_to_share_a_socket() -> None:
    def check(works: bool, dual: bool) -> Finding:
        return machine.check_ipv6(works=works, has_dual_stack=dual, disabled=True, system="win32")

    assert check(True, True).status is Status.OK
    assert "IPv4 as well" in check(True, False).found
    off = check(False, False)
    assert off.found == "IPv6 is switched off"
    assert off.commands == ('Enable-NetAdapterBinding -Name "*" -ComponentID ms_tcpip6',)


def test_slow_aes_is_named_with_what_a_gigabyte_costs() -> None:
    assert check_ciphers(CipherRates(0.8e-6, 1.3e-6), True).status is Status.OK
    assert check_ciphers(CipherRates(0.8e-6, 1.3e-6), None).status is Status.OK
    slow = check_ciphers(CipherRates(6.2e-6, 2.0e-6), None)
    assert slow.status is Status.WARN
    assert "4.3 s of processor time" in slow.why
    assert check_ciphers(CipherRates(0.8e-6, 1.3e-6), False).status is Status.WARN


def test_ciphers_are_measured_in_a_bounded_time() -> None:
    rates = measure_ciphers(0.01)
    assert 1e-8 < rates.aes < 1e-3
    assert 1e-8 < rates.chacha < 1e-3


def test_commands_exist_for_other_systems_and_keep_names_one_word() -> None:
    assert command("mtu", "win32", device="Ethernet 2", mtu=9000) == (
        'netsh interface ipv4 set subinterface "Ethernet 2" mtu=9000 store=persistent',
    )
    assert command("names", "linux", host="a;reboot") == ("getent ahosts 'a;reboot'",)
    assert command("offloads", "darwin", device="en0") == ()


# ------------------------------------------------------------------ reading


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_facts_are_read_from_proc_and_sys(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/net/core/rmem_max", "212992\n")
    write(tmp_path, "proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse2 aes vaes\n")
    write(tmp_path, "proc/self/cgroup", "0::/system.slice/app.service\n")
    write(tmp_path, "sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/system.slice/app.service/cpu.max", "200000 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(tmp_path, "sys/class/net/eth0/mtu", "1400\n")
    write(tmp_path, "sys/class/net/eth0/flags", "0x1003\n")
    write(tmp_path, "sys/class/net/down0/mtu", "9000\n")
    write(tmp_path, "sys/class/net/down0/flags", "0x1002\n")
    write(tmp_path, "sys/class/net/bonding_masters", "")
    found = read_machine(tmp_path)
    assert found.receive_buffer_limit == 212992
    assert found.send_buffer_limit is None
    assert found.ipv6_disabled is True
    assert found.has_aes is True
    assert found.quota == 1.5, "the group above has less than the own one"
    assert found.interfaces == (Interface("eth0", 1400, False),)
    assert found.drops is None
    assert found.processors >= 1
    assert found.versions["trio"] != "unknown"


def test_an_older_control_group_has_its_quota_too(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "2:cpu,cpuacct:/docker/x\n1:memory:/docker/x\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "50000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert read_machine(tmp_path).quota == 0.5


def test_an_empty_system_gives_no_facts_and_no_error(tmp_path: Path) -> None:
    found = read_machine(tmp_path)
    assert (found.quota, found.interfaces, found.has_aes) == (None, (), None)
    names = [each.name for each in machine.judge_machine(found, compiled=True)]
    assert "tracking" not in names


def test_counters_of_dropped_datagrams_are_parsed() -> None:
    header = "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors"
    assert parse_drops(f"Ip: 1\n{header}\nUdp: 100 1 2 3 7\n") == Drops(100, 7)
    assert parse_drops(f"{header}\nUdp: 100 1\n") is None
    assert parse_drops("Udp: A\nUdp: 1\n") is None


def test_a_quota_is_parsed() -> None:
    assert parse_quota("50000 100000") == 0.5
    for text in ("max 100000", "", "1", "1 0", "-1 100000"):
        assert parse_quota(text) is None
