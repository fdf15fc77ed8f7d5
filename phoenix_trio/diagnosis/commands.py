"""The commands that change a setting, for Linux, macOS and Windows.

Floor 4, pure functions.  A system is named as ``sys.platform`` names it.  No command is run
here: the user reads it, and decides.
"""

from __future__ import annotations

import shlex
from typing import Final

__all__ = ["command"]

#: By what is to change, then by system; ``{}`` fields are filled in by :func:`command`.
_COMMANDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "socket-buffers": {
        "linux": ("sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608",),
        "darwin": ("sudo sysctl -w kern.ipc.maxsockbuf=8388608",),
    },
    "offloads": {
        "linux": ("ethtool -K {device} tx-udp-segmentation on",),
    },
    "mtu": {
        "linux": ("ip link set {device} mtu {mtu}",),
        "darwin": ("sudo networksetup -setMTU {device} {mtu}",),
        "win32": ('netsh interface ipv4 set subinterface "{device}" mtu={mtu} store=persistent',),
    },
    "path-mtu": {
        "linux": ("tracepath -n {host}",),
        "darwin": ("ping -D -s 1472 {host}",),
        "win32": ("ping -f -l 1472 {host}",),
    },
    "ipv6": {
        "linux": (
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0",
        ),
        "darwin": ('sudo networksetup -setv6automatic "Wi-Fi"',),
        "win32": ('Enable-NetAdapterBinding -Name "*" -ComponentID ms_tcpip6',),
    },
    "descriptors": {
        "linux": ("ulimit -n 65536", "systemctl edit SERVICE   # [Service] LimitNOFILE=65536"),
        "darwin": ("sudo launchctl limit maxfiles 65536 200000", "ulimit -n 65536"),
    },
    "quota": {
        "linux": (
            "docker update --cpus=2 CONTAINER",
            "systemctl set-property SERVICE CPUQuota=200%",
        ),
    },
    "governor": {
        "linux": ("cpupower frequency-set -g performance",),
        "darwin": ("sudo pmset -c lowpowermode 0",),
        "win32": ("powercfg /setactive SCHEME_MIN",),
    },
    "compile": {
        "linux": ("PHOENIX_TRIO_COMPILE=1 pip install .   # in a clone of phoenix_trio",),
        "darwin": ("PHOENIX_TRIO_COMPILE=1 pip install .   # in a clone of phoenix_trio",),
        "win32": ('set "PHOENIX_TRIO_COMPILE=1" && pip install .   # in a clone',),
    },
    "upgrade": {
        "linux": ("pip install --upgrade {packages}",),
        "darwin": ("pip install --upgrade {packages}",),
        "win32": ("py -m pip install --upgrade {packages}",),
    },
    "firewall-here": {
        "linux": ("nft list ruleset | grep -n udp", "iptables -S | grep -n udp"),
        "darwin": ("/usr/libexec/ApplicationFirewall/socketfilterfw --getglobalstate",),
        "win32": ("Get-NetFirewallRule -Enabled True -Action Block",),
    },
    "firewall-there": {
        "linux": ("nft add rule inet filter input udp dport {port} accept   # on the server",),
        "darwin": ("nft add rule inet filter input udp dport {port} accept   # on a Linux server",),
        "win32": (
            (
                "New-NetFirewallRule -DisplayName QUIC -Direction Inbound -Protocol UDP "
                "-LocalPort {port} -Action Allow   # on a Windows server"
            ),
        ),
    },
    "route": {
        "linux": ("ip route get {host}",),
        "darwin": ("route -n get {host}",),
        "win32": ("Find-NetRoute -RemoteIPAddress {host}",),
    },
    "listens": {
        "linux": ("ss -ulnp 'sport = :{port}'   # on the server",),
        "darwin": ("lsof -nP -iUDP:{port}   # on the server",),
        "win32": ("netstat -ano -p udp | findstr :{port}   # on the server",),
    },
    "names": {
        "linux": ("getent ahosts {host}",),
        "darwin": ("dscacheutil -q host -a name {host}",),
        "win32": ("Resolve-DnsName {host}",),
    },
    "clock": {
        "linux": ("timedatectl set-ntp true",),
        "darwin": ("sudo sntp -sS time.apple.com",),
        "win32": ("w32tm /resync",),
    },
    "conntrack": {
        "linux": ("sysctl -w net.netfilter.nf_conntrack_max={maximum}",),
    },
    "busy": {
        "linux": ("top -o %CPU",),
        "darwin": ("top -o cpu",),
        "win32": ("Get-Process | Sort-Object CPU -Descending | Select-Object -First 10",),
    },
    "queue": {
        "linux": ("tc qdisc replace dev DEVICE root fq_codel   # at the slowest link",),
    },
    "message-calls": {
        "win32": ("wsl --install",),
    },
    "clock-source": {
        "linux": ("cat /sys/devices/system/clocksource/clocksource0/available_clocksource",),
    },
}


def command(what: str, system: str, **fields: object) -> tuple[str, ...]:
    """The commands for this system; none where it has no such setting.

    Args:
      what: a key of the table above.
      system: as ``sys.platform``.
      fields: what the commands name: a device, a port.

    Raises:
      KeyError: there is no such `what`, or a field is missing.
    """
    if system != "win32":
        # A name which came from elsewhere must stay one word of the shell.
        fields = {
            key: shlex.quote(value) if isinstance(value, str) and key != "packages" else value
            for key, value in fields.items()
        }
    return tuple(each.format(**fields) for each in _COMMANDS[what].get(system, ()))
