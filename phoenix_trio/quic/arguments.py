"""Checks the arguments of calls that open sockets, connections and servers.

Floor 1, no I/O.  A wrong type that passed here would fail deep inside, with a text about
something else.  Each error names the argument and says what to write instead.  Called once a
socket, a connection or a server, never on the way of data.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from ..config import TransportConfig
from .handshake.tls import ClientTLS, ServerTLS

__all__ = [
    "check_alpn",
    "check_client_tls",
    "check_config",
    "check_handler",
    "check_local_address",
    "check_server_tls",
    "check_target",
]


def check_alpn(alpn: Sequence[str]) -> tuple[str, ...]:
    """ALPN protocol names as RFC 7301 allows them: 1 to 255 bytes each, at least one.

    Raises:
      TypeError: a single string, or something that is not a string in the list.
      ValueError: an empty list or name, or a name too long or not ASCII.
    """
    if isinstance(alpn, bytes):
        raise TypeError(f"alpn must be a sequence of strings, such as ({alpn.decode()!r},)")
    if isinstance(alpn, str):
        raise TypeError(f'alpn must be a sequence of names, such as ("{alpn!s}",)')
    try:
        names = tuple(alpn)
    except TypeError:
        raise TypeError(
            f'alpn must be a sequence of names, such as ("my-protocol/1",), not {alpn!r}'
        ) from None
    if not names:
        raise ValueError(
            "alpn must name at least one protocol, because QUIC requires ALPN:"
            ' for instance alpn=("my-protocol/1",), the same on both sides'
        )
    for name in names:
        if isinstance(name, bytes):
            raise TypeError(f"alpn must hold strings, not {name!r}: write {name.decode()!r}")
        if not isinstance(name, str):
            raise TypeError(f"alpn must hold strings, not {name!r}")
        if not name.isascii() or not 1 <= len(name) <= 255:
            raise ValueError(f"alpn: {name!r} must have 1 to 255 ASCII characters")
    return names


def check_target(host: str, port: int) -> None:
    """A host and a port to dial.

    Raises:
      TypeError, ValueError: they are none.
    """
    _check_host(host, port)
    if not host:
        raise ValueError("host must not be empty")
    _check_port(port, smallest=1)


def check_local_address(host: str | None, port: int) -> None:
    """A host and a port to bind a socket to.

    Raises:
      TypeError, ValueError: they are none.
    """
    if host is not None:
        _check_host(host, port)
        if not host:
            raise ValueError("host must not be empty; leave it out to listen on all addresses")
    _check_port(port, smallest=0)


def _check_host(host: object, port: object) -> None:
    if isinstance(host, (bytes, bytearray)):
        raise TypeError(f"host must be a string, not {host!r}: write {host.decode()!r}")
    if isinstance(host, (tuple, list)):
        raise TypeError(f"host must be a string, not {host!r}: host and port are two arguments")
    if not isinstance(host, str):
        raise TypeError(f"host must be a string, not {host!r}")
    if "/" in host:
        name = urlsplit(host).hostname if "://" in host else host.split("/")[0]
        raise ValueError(f"host must be a name or an address, not a URL: {name!r}, not {host!r}")
    if found := re.fullmatch(r"\[(.*)\](?::(\d*))?", host):
        raise ValueError(
            f"an IPv6 address goes without brackets here, and the port is an argument of its own:"
            f" {_written(found[1], found[2] or port)}, not {host!r}"
        )
    if found := re.fullmatch(r"([^:]*):([^:]*)", host):
        raise ValueError(
            f"host and port are two arguments: {_written(found[1], found[2] or port)}, not {host!r}"
        )


def _written(host: str, port: object) -> str:
    return f"{host!r}, {port}"


def _check_port(port: object, *, smallest: int) -> None:
    if isinstance(port, str) and port.isdecimal():
        raise TypeError(f"port must be an integer, not {port!r}: write {int(port)}, or int(port)")
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be an integer, not {port!r}")
    if not smallest <= port <= 65535:
        raise ValueError(f"port must be between {smallest} and 65535, not {port}")


def check_config(config: TransportConfig) -> TransportConfig:
    """Return it.

    Raises:
      TypeError: it is no :class:`TransportConfig`.
    """
    if isinstance(config, TransportConfig):
        return config
    if config is TransportConfig:
        raise TypeError("config must be a TransportConfig, not the class: write TransportConfig()")
    if isinstance(config, dict):
        raise TypeError("config must be a TransportConfig, not a dict: TransportConfig(**values)")
    raise TypeError(f"config must be a TransportConfig, not {_kind(config)}{_place_of(config)}")


def check_client_tls(tls: ClientTLS | None, name: str = "tls") -> None:
    """Settings for dialling, or ``None``.

    Raises:
      TypeError: something else.
    """
    if tls is None or isinstance(tls, ClientTLS):
        return
    if isinstance(tls, ServerTLS):
        raise TypeError(
            f"{name} must be a ClientTLS, not a ServerTLS: a client says which servers it trusts,"
            ' for instance ClientTLS(ca="ca.pem"); a ServerTLS belongs to the server'
        )
    raise TypeError(
        f"{name} must be a ClientTLS, not {_kind(tls)}:"
        f' for instance ClientTLS(ca="ca.pem"){_place_of(tls)}'
    )


def check_server_tls(tls: ServerTLS | None, name: str = "tls") -> None:
    """Settings for serving.

    Raises:
      TypeError: something else.
    """
    if isinstance(tls, ServerTLS):
        return
    if isinstance(tls, ClientTLS):
        raise TypeError(
            f"{name} must be a ServerTLS, not a ClientTLS: a server shows a certificate and has"
            ' its key, for instance ServerTLS("server.pem", "server-key.pem");'
            " to ask clients for certificates, give it client_ca="
        )
    raise TypeError(
        f"{name} must be a ServerTLS, not {_kind(tls)}:"
        f' for instance ServerTLS("server.pem", "server-key.pem"){_place_of(tls)}'
    )


def check_handler(handler: object) -> None:
    """A handler of connections.

    Raises:
      TypeError: it cannot be called.
    """
    if inspect.iscoroutine(handler):
        name = handler.__name__
        handler.close()  # or Python warns that it was never awaited, which is not the point
        raise TypeError(
            f"handler must be an async function that takes the connection: pass {name} itself,"
            f" not the result of calling it, {name}(...)"
        )
    if inspect.isasyncgenfunction(handler):
        raise TypeError(
            f"handler must be an async function, and {handler.__name__} is an async generator:"
            " it must not yield"
        )
    if not callable(handler):
        raise TypeError(
            f"handler must be an async function that takes the connection, not {_kind(handler)}"
        )


def _kind(value: object) -> str:
    """The type of a value, for a text."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def _place_of(value: object) -> str:
    """Where a value of another argument belongs, for a text."""
    kind = type(value).__name__
    places = {
        "TransportConfig": "config=",
        "PoolConfig": "pool= of open_phoenix()",
        "ClientTLS": "tls=",
        "ServerTLS": "tls= of serve(), or server_tls= of open_phoenix()",
        "SSLContext": "",
    }
    place = places.get(kind)
    if place is None:
        return ""
    if not place:
        return "; an ssl.SSLContext cannot speak QUIC"
    return f"; a {kind} goes into {place}"
