"""Brings targets, as people write them, into one normal form.

Floor 4, no I/O: names are not resolved here.  Two spellings of one target have to
become equal, because the pool shares connections by target.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TypeAlias

import attrs

__all__ = ["Target", "TargetLike", "parse_target"]


@attrs.frozen(order=True)
class Target:
    """A host and a UDP port, in normal form; made by :func:`parse_target`.

    :func:`parse_target` accepts ``str(target)``.

    Args:
      host: A name in lower case, or an address in its shortest form, without brackets.
      port: 1 to 65,535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Targets that the pool accepts: ``"host:port"``, ``"[v6]:port"``, ``(host, port)``, or parsed.
TargetLike: TypeAlias = "str | tuple[str, int] | Target"

#: RFC 1035 section 2.3.4: the longest name.
_LONGEST_NAME = 253

_FORBIDDEN = re.compile(r"[\s/\\@\[\]?#\"'<>\x00-\x1f\x7f]")


def parse_target(target: TargetLike) -> Target:
    """The normal form of a target.

    Names are compared without regard to case, addresses by value: ``"Example.org:443"``
    and ``("example.org", 443)`` are the same target, ``"[0::1]:443"`` and ``"[::1]:443"``
    as well.  Otherwise names stay as they are; a name that does not exist is only found
    out when it is dialled.

    Args:
      target: ``"host:port"``, ``"[v6-address]:port"``, or a tuple ``(host, port)``, with or
        without brackets around an IPv6 address.

    Raises:
      TypeError: `target` is none of these.
      ValueError: the host or the port is missing or malformed; the text says which.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        return _parse_text(target)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise ValueError(f"a target is (host, port), not {len(target)} items: {target!r}")
        host, port = target
        if not isinstance(host, str):
            raise TypeError(f"the host of a target must be a string: {target!r}")
        if not isinstance(port, int) or isinstance(port, bool):
            raise TypeError(f"the port of a target must be an integer: {target!r}")
        if host.startswith("[") and host.endswith("]"):
            return Target(_address_v6(host[1:-1], target), _port(port, target))
        return Target(_host(host, target), _port(port, target))
    raise TypeError(f'a target is "host:port", "[v6]:port" or (host, port), not {target!r}')


@lru_cache(maxsize=1024)
def _parse_text(text: str) -> Target:
    if "://" in text:
        raise ValueError(f'a target is "host:port" and not a URL: {text!r}')
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise ValueError(f"the target {text!r} has no closing bracket")
        if not rest.startswith(":"):
            raise ValueError(f'the target {text!r} has no port: write "[{address}]:port"')
        return Target(_address_v6(address, text), _digits(rest[1:], text))
    host, colon, digits = text.rpartition(":")
    if not colon:
        raise ValueError(f'the target {text!r} has no port: write "host:port"')
    if ":" in host:
        raise ValueError(
            f'an IPv6 address needs brackets where a port follows: "[address]:port", not {text!r}'
        )
    return Target(_host(host, text), _digits(digits, text))


def _digits(digits: str, target: object) -> int:
    if not digits:
        raise ValueError(f"the target {target!r} has no port")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 5:
        raise ValueError(f"the port of {target!r} must be a number from 1 to 65535")
    return _port(int(digits), target)


def _port(port: int, target: object) -> int:
    if not 1 <= port <= 65_535:
        raise ValueError(f"the port of {target!r} must be between 1 and 65535")
    return port


def _address_v6(address: str, target: object) -> str:
    try:
        return str(ipaddress.IPv6Address(address))
    except ValueError:
        raise ValueError(f"{address!r} in {target!r} is not an IPv6 address") from None


def _host(host: str, target: object) -> str:
    if not host:
        raise ValueError(f"the target {target!r} has no host")
    if ":" in host:
        return _address_v6(host, target)
    wrong = _FORBIDDEN.search(host)
    if wrong is not None:
        raise ValueError(f"the host of {target!r} must not contain {wrong[0]!r}")
    if len(host) > _LONGEST_NAME + 1:  # one more for the dot at the end of an absolute name
        raise ValueError(f"the host of {target!r} is longer than {_LONGEST_NAME} characters")
    return host.lower()
