"""Defines socket addresses, and the address of a network path: the peer's with ours behind it.

Floor 0, pure.  A network path has two ends (RFC 9000 section 9).  A socket bound to
one address has the same local end for all peers, and the peer's address alone names
the path.  After a client has moved to another socket, its paths name that as well
(:class:`SocketPath`).  A server's wildcard socket has as many local ends as the host has
addresses, and a peer takes answers only from the one it has sent to (section 9:
"packets from an unknown server address" are discarded).  There, each received
datagram comes with a :class:`PathAddress`, and what answers it is sent to that.

All code between the sockets treats it as one opaque value: equal values are the same path,
different values are different paths.  So a change of the local end is validated, and gets a
connection ID of its own (section 9.5), like a change of the peer's address.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast, final

__all__ = [
    "IPV4_MAPPED",
    "Address",
    "PathAddress",
    "SocketAddress",
    "SocketPath",
    "display_address",
    "ends_of",
    "local_of",
    "local_socket_address",
    "remote_of",
]

#: How a dual-stack socket writes an IPv4 address (RFC 4291 section 2.5.5.2).
IPV4_MAPPED = "::ffff:"

#: As the :mod:`socket` module gives it: IPv4 ``(host, port)``, IPv6 with flow info and scope.
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


class PathAddress(tuple[Any, ...]):
    """A peer's socket address, followed by the local address at which it reaches us.

    The local address is text as the socket has made it: an IP address, with ``%`` and the number
    of the interface if it is link-local.  The class is a tuple, because comparing tuples costs
    next to nothing, and because the peer's host and port stay at ``[0]`` and ``[1]``, as in
    every socket address.
    """

    __slots__ = ()

    @classmethod
    def join(cls, remote: SocketAddress, local: str) -> PathAddress:
        """The path between the peer at `remote` and our address `local`."""
        return cls((*remote, local))

    @property
    def remote(self) -> SocketAddress:
        """The peer's address, as the :mod:`socket` module takes it."""
        return cast(SocketAddress, self[:-1])

    @property
    def local(self) -> str:
        """Our address on this path."""
        return cast(str, self[-1])


@final
class SocketPath(PathAddress):
    """A server's socket address, followed by the name of a socket to which a client has moved.

    The endpoint's own socket has no name: what comes and goes by it has other addresses.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name of the socket."""
        return self.local


#: Where datagrams come from, and go to: with our own end if there is a choice of them.
Address: TypeAlias = SocketAddress | PathAddress


def remote_of(address: Address) -> SocketAddress:
    """The peer's end."""
    return address.remote if isinstance(address, PathAddress) else address


def local_of(address: Address) -> str | None:
    """Our end; ``None``: the socket's own address, or the kernel's choice."""
    return address.local if isinstance(address, PathAddress) else None


def ends_of(address: Address) -> tuple[str, str | None]:
    """The two hosts, without ports.

    A new port alone is the work of a NAT.  Another host at either end is another way through the
    network, of which nothing is known (RFC 9000 section 9.4).
    """
    return address[0], local_of(address)


def display_address(address: Address) -> SocketAddress:
    """A peer's address in the usual form: IPv4 addresses of a dual-stack socket unmapped."""
    address = remote_of(address)
    host, port = address[0], address[1]
    if host.lower().startswith(IPV4_MAPPED) and "." in host:
        return (host[len(IPV4_MAPPED) :], port)
    return address


def local_socket_address(local: str, port: int) -> SocketAddress:
    """The local end of a path as a socket address, IPv4 unmapped."""
    host, _, scope = local.partition("%")
    host = host.removeprefix(IPV4_MAPPED)
    return (host, port, 0, int(scope or 0)) if ":" in host else (host, port)
