"""The names of servers: one form for sending, comparing and remembering them.

Floor 0, pure.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from .certificates import ascii_dns_name

__all__ = ["normalize_server_name"]


def normalize_server_name(name: str) -> str:
    """The form in which a server's name is sent, compared and remembered.

    International names become ASCII, letters lower case, a final dot goes, IP
    addresses get their shortest form and lose their scope.

    Raises:
      TypeError: it is not text.
      ValueError: it is neither a DNS name nor an IP address.
    """
    if not isinstance(name, str):
        raise TypeError(f"server_name must be text, not {name!r}")
    return _normalize_server_name(name)


@lru_cache(maxsize=1024)
def _normalize_server_name(name: str) -> str:
    # (Dialling asks for it several times.)
    try:
        return str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass  # then it has to be a DNS name
    try:
        return ascii_dns_name(name)
    except ValueError as exc:
        raise ValueError(
            f"server_name: {name[:300]!r} is neither a DNS name nor an IP address: {exc}"
        ) from exc
