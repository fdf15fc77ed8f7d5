"""Keeps the facts of an ended connection for the application.

Floor 0, sans-IO.  :class:`~phoenix_trio.QuicConnection` holds a :class:`ConnectionRemains` in
place of its freed engine: the last statistics, the peer's certificate, and the acknowledged part
of each stream.  Like the engine, it has an :class:`~phoenix_trio.quic.faces.ApplicationFace`.
Methods that would send or wait do nothing, since the calls above raise the connection's error
first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from ..config import TransportConfig
from ..metrics import ConnectionStatistics
from .established.memory_budget import MemoryAccount
from .path_address import Address

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["ConnectionRemains", "UnreadData"]


class UnreadData:
    """Counts data of an ended connection that was delivered but not read by the application.

    Args:
      account: the connection's account, kept up to date until all was read.
      streams: unread bytes of each stream.
    """

    __slots__ = ("_account", "_streams", "_total")

    def __init__(self, account: MemoryAccount, streams: dict[int, int]) -> None:
        self._account = account
        self._streams = {stream_id: count for stream_id, count in streams.items() if count > 0}
        self._total = sum(self._streams.values())
        account.end(self._total)

    def read(self, stream_id: int, count: int | None = None) -> None:
        """Note that so many bytes of the stream were read; ``None``: the rest was discarded."""
        unread = self._streams.pop(stream_id, 0)
        taken = unread if count is None else min(count, unread)
        if taken < unread:
            self._streams[stream_id] = unread - taken
        self._total -= taken
        self._account.end(self._total)


class ConnectionRemains:
    """The facts of an ended connection.

    Args:
      config: its settings.
      statistics: its counters and estimates at the end.
      quic_version: the QUIC version, 1 or 2.
      cipher: the name of the cipher suite; ``None``: none was agreed.
      key_exchange: the name of the group in which keys were exchanged; ``None``: in none.
      peer_certificate_chain: the certificates of the peer, its own first, if they were accepted.
      max_datagram_payload: the largest payload of a datagram at the end.
      unacknowledged: for each stream with unacknowledged data: the bytes written, and the offset
        up to which they were acknowledged.
      unread: the data that the application can still read.
    """

    __slots__ = (
        "_consumed",
        "_statistics",
        "_unacknowledged",
        "_unread",
        "cipher",
        "config",
        "key_exchange",
        "max_datagram_payload",
        "peer_certificate_chain",
        "quic_version",
    )

    available_streams = 0
    can_send_early_data = False
    can_update_keys = False
    client_certificate_requested = False
    has_limits_to_send = False
    has_queued_datagrams = False
    has_unacknowledged_streams = False
    idle_timeout: float = math.inf
    is_congested = False
    keep_alive: float | None = None
    peer_forbids_moves = False

    def __init__(
        self,
        *,
        config: TransportConfig,
        statistics: ConnectionStatistics,
        quic_version: int,
        cipher: str | None,
        key_exchange: str | None,
        peer_certificate_chain: tuple[Certificate, ...],
        max_datagram_payload: int | None,
        unacknowledged: dict[int, tuple[int, int]],
        unread: UnreadData,
    ) -> None:
        self.config: TransportConfig = config
        self.quic_version: int = quic_version
        self.cipher: str | None = cipher
        self.key_exchange: str | None = key_exchange
        self.peer_certificate_chain: tuple[Certificate, ...] = peer_certificate_chain
        self.max_datagram_payload: int | None = max_datagram_payload
        self._statistics = statistics
        self._unacknowledged = unacknowledged
        self._unread = unread
        self._consumed = 0

    @property
    def peer_certificate(self) -> Certificate | None:
        """The peer's certificate, if it was accepted."""
        return self.peer_certificate_chain[0] if self.peer_certificate_chain else None

    def statistics(
        self,
        *,
        datagrams_dropped_incoming: int,
        flow_control_stalls: int,
        stream_credit_stalls: int,
        receive_buffer_bytes: int,
    ) -> ConnectionStatistics:
        """The last snapshot, with the present counts of the Trio half."""
        return attrs.evolve(
            self._statistics,
            datagrams_dropped_incoming=datagrams_dropped_incoming,
            flow_control_stalls=flow_control_stalls,
            stream_credit_stalls=stream_credit_stalls,
            receive_buffer_bytes=receive_buffer_bytes,
            stream_bytes_read=self._statistics.stream_bytes_read + self._consumed,
        )

    @property
    def congestion_window(self) -> int:
        """The last value, in bytes."""
        return self._statistics.congestion_window

    @property
    def rtt_smoothed(self) -> float | None:
        """The last value, in seconds."""
        return self._statistics.rtt_smoothed

    @property
    def path_mtu(self) -> int:
        """The last value, in bytes."""
        return self._statistics.path_mtu

    @property
    def streams_opened(self) -> int:
        """Streams opened by this side."""
        return self._statistics.streams_opened

    def get_peer_address(self) -> Address | None:
        """``None``: the connection has kept the address itself."""
        return None

    def written(self, stream_id: int) -> int:
        """Bytes written to a stream with unacknowledged data; 0 for other streams."""
        return self._unacknowledged.get(stream_id, (0, 0))[0]

    def is_acknowledged(self, stream_id: int, offset: int, *, with_fin: bool) -> bool:
        """Whether the peer had acknowledged everything below `offset` (and the end)."""
        known = self._unacknowledged.get(stream_id)
        return known is None or (known[1] >= offset and not with_fin)

    def consume(self, stream_id: int, count: int) -> bool:
        """Note that the application has read earlier data; no credit follows."""
        self._consumed += count
        self._unread.read(stream_id, count)
        return False

    def extend_credit(self, stream_id: int, now: float) -> None:
        """Do nothing: credit is not granted any more."""

    def let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> bool:
        """Discard the unread data of the stream; the rest of it is forgotten already."""
        if receiving:
            self._unread.read(stream_id)
        return False

    def streams_left(self, *, unidirectional: bool) -> int:
        """0: no stream can be opened."""
        return 0

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """``None``: no stream can be opened."""
        return None

    def want_stream(self, change: int, *, unidirectional: bool) -> None:
        """Do nothing: no call waits for a stream any more."""

    def send_room(self, stream_id: int, wanted: int = 1) -> int:
        """0: nothing can be written."""
        return 0

    def has_send_room(self, stream_id: int) -> bool:
        """True: no writer may wait for room any more."""
        return True

    def write(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, end_stream: bool = False
    ) -> None:
        """Do nothing: nothing is sent any more."""

    def reset_sending(self, stream_id: int, error_code: int) -> None:
        """Do nothing: nothing is sent any more."""

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Do nothing: nothing is sent any more."""

    def has_datagram_room(self, now: float) -> bool:
        """True: no datagram waits for room any more."""
        return True

    def send_datagram(
        self, data: bytes, priority: int, expires_at: float, now: float, tag: int
    ) -> None:
        """Do nothing: nothing is sent any more."""

    def expire_datagram(self, tag: int) -> None:
        """Do nothing: nothing is counted any more."""

    def want_datagram_room(self) -> None:
        """Do nothing: nothing is reported any more."""

    def send_ping(self, uid: int) -> None:
        """Do nothing: nothing is sent any more."""

    def update_keys(self) -> None:
        """Do nothing: there are no keys any more."""

    def path_facts(self) -> list[tuple[Address, bool]]:
        """There are no paths any more."""
        return []

    @property
    def rtt_min(self) -> float | None:
        """The last one, in seconds."""
        return self._statistics.rtt_min

    def probe_path(self, address: Address, now: float) -> bool:
        """There are no paths any more."""
        return False

    def move_to_path(self, address: Address) -> bool:
        """There are no paths any more."""
        return False

    def forget_path(self, address: Address) -> None:
        """It is forgotten already."""

    def close_application(self, error_code: int, reason: str) -> None:
        """Do nothing: the connection is closed."""
