"""The addresses to which a server asks its clients to move (RFC 9000 section 9.6).

Floor 0, pure.  For listeners, which check them, and for handshakes, which announce them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, TypeAlias

from .path_address import IPV4_MAPPED, Address, local_of

__all__ = ["PreferredAddressOption", "PreferredAddresses", "preferred_addresses"]

#: A numeric address, with which the listener's own port is meant, or that and another port.
_One: TypeAlias = str | tuple[str, int]

#: One address, or one of each family.
PreferredAddressOption: TypeAlias = _One | Sequence[_One]


class PreferredAddresses:
    """The announced addresses, at most one of each family.

    Args:
      ipv4: host and port; ``None``: no address of this family.
      ipv6: the same.
    """

    __slots__ = ("_head", "_hosts")

    def __init__(
        self,
        ipv4: tuple[ipaddress.IPv4Address, int] | None,
        ipv6: tuple[ipaddress.IPv6Address, int] | None,
    ) -> None:
        hosts: list[str] = []
        head = bytes(6)
        if ipv4 is not None:
            hosts += [str(ipv4[0]), IPV4_MAPPED + str(ipv4[0])]
            head = ipv4[0].packed + ipv4[1].to_bytes(2, "big")
        if ipv6 is not None:
            hosts.append(str(ipv6[0]))
            head += ipv6[0].packed + ipv6[1].to_bytes(2, "big")
        else:
            head += bytes(18)
        self._hosts: Final = frozenset(hosts)
        self._head: Final = head

    def build(self, connection_id: bytes, reset_token: bytes) -> bytes:
        """The content of the transport parameter (RFC 9000 section 18.2, figure 22).

        Args:
          connection_id: of 1 to 20 bytes, with sequence number 1.
          reset_token: its stateless reset token.
        """
        return self._head + bytes((len(connection_id),)) + connection_id + reset_token

    def has(self, address: Address) -> bool:
        """Whether the local end of a path is one of these addresses."""
        return local_of(address) in self._hosts


def preferred_addresses(value: PreferredAddressOption, port: int) -> PreferredAddresses:
    """Check the addresses of a listener on this port.

    Raises:
      TypeError: `value` has another form.
      ValueError: a host is not a numeric address of one host, a port is out of range, or there
        is no address or there are two of a family.
    """
    ipv4: tuple[ipaddress.IPv4Address, int] | None = None
    ipv6: tuple[ipaddress.IPv6Address, int] | None = None
    for each in _split(value):
        host, at = each if isinstance(each, tuple) else (each, port)
        if not 1 <= at <= 65535:
            raise ValueError(f"preferred_address: the port must be 1 to 65535, not {at}")
        found = _numeric(host)
        if isinstance(found, ipaddress.IPv4Address):
            if ipv4 is not None:
                raise ValueError("preferred_address: there are two IPv4 addresses")
            ipv4 = found, at
        else:
            if ipv6 is not None:
                raise ValueError("preferred_address: there are two IPv6 addresses")
            ipv6 = found, at
    if ipv4 is None and ipv6 is None:
        raise ValueError("preferred_address: there is no address")
    return PreferredAddresses(ipv4, ipv6)


def _split(value: PreferredAddressOption) -> list[_One]:
    if _is_one(value):
        return [value]  # type: ignore[list-item]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(_form(value))
    for each in value:
        if not _is_one(each):
            raise TypeError(_form(value))
    return list(value)  # type: ignore[arg-type]


def _is_one(value: object) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def _form(value: object) -> str:
    return (
        "preferred_address must be an address, a pair of address and port, or a sequence of "
        f"these, not {value!r}"
    )


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"preferred_address: {host!r} is not a numeric address") from None
    if isinstance(found, ipaddress.IPv6Address) and (found.scope_id or found.ipv4_mapped):
        raise ValueError(f"preferred_address: {host!r} cannot be told to a client")
    if found.is_unspecified or found.is_multicast or str(found) == "255.255.255.255":
        raise ValueError(f"preferred_address: {host!r} is not the address of one host")
    return found
