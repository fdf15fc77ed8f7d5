"""Sets the size of a connection's datagrams: by path MTU search, and on moves to other paths.

Floor 1, sans-IO.
"""

from __future__ import annotations

import logging

from ...config import SMALLEST_UDP_PAYLOAD
from ..logs import bounded_logger
from ..path_address import ends_of
from ..wire.qlog import log_packet_size
from .path_mtu import MtuSearch
from .state import State

__all__ = [
    "begin_search",
    "max_datagram_payload",
    "next_probe",
    "on_packets_arrived",
    "on_packets_lost",
    "on_probe_acknowledged",
    "on_probe_lost",
    "set_datagram_size",
]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: The largest payload tried on an unknown interface: Ethernet, IPv6.
_UNKNOWN_PATH_CEILING = 1452

#: Bytes of a packet that are not available to a DATAGRAM frame: header, connection ID (at most
#: 20), packet number, authentication tag, frame type and length.
_DATAGRAM_OVERHEAD = 1 + 20 + 2 + 16 + 1 + 4


def begin_search(s: State) -> None:
    """Look for larger packets; called when the handshake is confirmed or the path changes.

    Before, paths are only known to carry 1200 bytes (RFC 9000 section 14.1).
    """
    address = s.paths.all[0].addr
    ceiling = s.path_ceiling(address)
    wanted = s.config.max_udp_payload_size
    if wanted is not None:
        ceiling = min(ceiling or wanted, wanted)
    ceiling = min(ceiling or _UNKNOWN_PATH_CEILING, s.peer_max_udp_payload)
    s.mtu = MtuSearch(ceiling)
    s.mtu_address = address
    set_datagram_size(s, s.mtu.size)


def set_datagram_size(s: State, size: int) -> None:
    """Send packets of up to `size` bytes from now on."""
    if s.trace is not None and size != s.max_datagram_size:
        log_packet_size(s.trace, s.max_datagram_size, size)
    s.max_datagram_size = size
    s.recovery.pacer.max_datagram_size = size
    s.control.set_max_datagram_size(size)
    drop_too_large_datagrams(s)


def max_datagram_payload(s: State) -> int | None:
    """The largest payload of a datagram at present; ``None``: the peer takes none.

    It is limited by the room in our packets and by the peer's announced limit.
    """
    limit = s.datagrams.limit
    if limit < 0 or not s.config.enable_datagrams:
        return None
    return min(s.max_datagram_size - _DATAGRAM_OVERHEAD, limit)


def drop_too_large_datagrams(s: State) -> None:
    """Drop datagrams that do not fit any more; they would block all datagrams behind them."""
    maximum = max_datagram_payload(s)
    s.datagrams.drop_larger(-1 if maximum is None else maximum)


def next_probe(s: State, now: float) -> int:
    """The size of the probe to send now; -1: none.  Notices a change of the path as well."""
    path = s.paths.all[0]
    if path.addr != s.mtu_address:
        # RFC 9000 section 9.4; a new port alone is the work of a NAT, not another path.
        # (At once, since the challenge has to arrive, too.)
        if s.mtu_address is None or ends_of(path.addr) != ends_of(s.mtu_address):
            begin_search(s)
        s.mtu_address = path.addr
    if not path.is_validated:
        return -1
    known = s.known_path
    if path.addr is not known:
        # Only now: a forged address must not slow the connection down.
        s.known_path = path.addr
        if known is None or ends_of(path.addr) != ends_of(known):
            s.control.begin_path(now)
            s.recovery.begin_path(now)
            s.recovery.pacer.begin_path()
    size = s.mtu.next_probe(now) if s.mtu is not None else None
    return -1 if size is None else size


def on_probe_acknowledged(s: State, size: int) -> None:
    """Take note that a probe has arrived."""
    if s.mtu is not None and s.mtu.on_probe_acknowledged(size):
        set_datagram_size(s, s.mtu.size)


def on_probe_lost(s: State, size: int) -> None:
    """Take note that a probe was lost."""
    if s.mtu is not None:
        s.mtu.on_probe_lost(size)


def on_packets_arrived(s: State, size: int) -> None:
    """Take note that packets of up to `size` bytes have arrived."""
    if s.mtu is not None:
        s.mtu.on_acknowledged(size)


def on_packets_lost(s: State, size: int) -> None:
    """Take note that packets of up to `size` bytes were lost."""
    if size and s.mtu is not None and s.mtu.on_lost(size):
        logger.debug("packets of %d bytes vanish; back to %d", size, SMALLEST_UDP_PAYLOAD)
        set_datagram_size(s, s.mtu.size)
