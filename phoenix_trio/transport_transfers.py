"""The calls of a transport for striped transfers.

Floor 5.  A part of :class:`~phoenix_trio.PhoenixTransport`, which documents the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from .config import TransportConfig
from .pool.hub import TransferHub
from .pool.pool import ConnectionPool
from .pool.receiving import IncomingTransfer
from .pool.storing import StrPath, check_target
from .pool.targets import Target, TargetLike, parse_target
from .pool.transfer_records import check_labels
from .pool.transfer_source import SourceData, check_source
from .pool.transfer_summary import TransferSummary
from .quic.connection import QuicConnection
from .storage.parts import PartLimits

__all__ = ["TransferCalls"]


class TransferCalls:
    """Sends and receives striped transfers over the connections of a pool."""

    _config: TransportConfig
    _hub: TransferHub
    _pool: ConnectionPool
    _window: int
    """The most bytes of a transfer that wait in memory."""
    _multiplexed: dict[Target, int]
    """The number of connections that :meth:`enable_multiplexing` keeps."""

    async def enable_multiplexing(self, target: TargetLike, connections: int) -> None:
        """Open `connections` connections to `target`, and keep them, for striped transfers.

        Returns when all are open.  The pool replaces lost ones, and closes none of them for
        another target: see :meth:`ConnectionPool.keep_warm`, also for ``keep_alive``.

        Args:
          target: as for :meth:`connect`.
          connections: from 1 to the pool's limit for one target.

        Raises:
          TypeError, ValueError: not a valid target, or the number is out of range.
          Errors from entering ``connect``: one of them cannot be established.
        """
        parsed = parse_target(target)
        async with self._pool.lease_several(parsed, connections):
            self._multiplexed[parsed] = connections
            self._pool.keep_warm(parsed, connections)

    async def send_multiplexed(
        self,
        target: TargetLike,
        data: SourceData,
        *,
        connections: int | None = None,
        on_progress: Callable[[int], object] | None = None,
        metadata: bytes = b"",
        transfer_id: bytes | None = None,
    ) -> TransferSummary:
        """Send `data` over several connections side by side, until the receiver confirms it.

        The receiving program confirms the transfer after it has stored the data.  A cancel
        scope bounds the time.  A lost connection is replaced; only its unacknowledged stripes
        are sent again.

        Args:
          target: as for :meth:`connect`; it receives with :meth:`receive_multiplexed` or
            ``incoming_transfers()``.
          data: bytes-like; a binary file, from its present position; an iterable or an async
            iterable of bytes-like items.  Memory does not grow with its size.
          connections: the number of connections; ``None``: that of
            :meth:`enable_multiplexing`, or the configuration's ``multiplexed_connections``.
          on_progress: called with the number of bytes that the receiver has.
          metadata: up to 16 KiB for the receiver's application, such as a name.
          transfer_id: 16 bytes, of a :class:`TransferInterrupted` or drawn by the caller
            (``os.urandom(16)``), to continue an earlier attempt with this ID.  A receiver with
            ``receive_multiplexed(path=...)`` keeps the data of an interrupted attempt, even
            when its process is killed.  Every program with the ID could continue the transfer,
            so keep it secret.  Other data need another ID.

        Cancellation: the transfer is given up; only the receiver's partial file stays.

        Raises:
          TypeError, ValueError: an argument is out of range, or `data` has a wrong type.  The
            check comes before dialling, except for the items of an iterable.
          TransferUnconfirmed: all connections were lost after everything was sent: it is
            unknown whether the receiver has stored it.
          TransferInterrupted: all connections were lost earlier, and new ones could not be
            established, or the receiver was restarted.
          TransferRefused: the receiver has refused the transfer, or has failed to store it.
          ChecksumMismatch: the data at the receiver, of this attempt or an earlier one, is not
            the data sent.
          Errors from entering ``connect`` and from reading `data`.
        """
        parsed = parse_target(target)
        check_labels(metadata, transfer_id)
        check_source(data)
        if connections is None:
            connections = self._multiplexed.get(parsed, self._config.multiplexed_connections)
            connections = min(connections, self._pool.config.per_target)
        async with (
            AsyncExitStack() as replacements,
            self._pool.lease_several(parsed, connections) as leased,
        ):
            in_use = list(leased)

            async def replace() -> QuicConnection:
                in_use[:] = [each for each in in_use if not each.is_closed]
                lease = self._pool.lease_several(parsed, 1, besides=in_use)
                (quic,) = await replacements.enter_async_context(lease)
                in_use.append(quic)
                return quic

            return await self._hub.send(
                leased,
                data,
                window=self._window,
                on_progress=on_progress,
                replace=replace,
                metadata=metadata,
                transfer_id=transfer_id,
            )

    async def receive_multiplexed(
        self,
        *,
        path: StrPath | Callable[[IncomingTransfer], StrPath] | None = None,
        limits: PartLimits | None = None,
    ) -> IncomingTransfer:
        """The next striped transfer from any peer.

        Use it as a context manager, and read it: see :class:`IncomingTransfer`.  With `path`,
        the call stores the transfer there, and returns it afterwards.
        :meth:`IncomingTransfer.store` describes the partial file that an interrupted transfer
        leaves for the next attempt.

        Args:
          path: the file for the transfer; or a function that returns it for a transfer.  The
            transfer's metadata come from the peer: do not trust them.
          limits: how long and how many partial files wait beside `path`.

        Each transfer holds at most twice the configuration's ``receive_buffer_size`` in memory
        (64 MiB).  Transfers above ``max_incoming_transfers``, or one peer's above
        ``max_incoming_transfers_per_peer``, are refused.

        Cancellation: no transfer is lost.  A transfer that is being stored is abandoned; its
        partial file stays.

        Raises:
          trio.ClosedResourceError: the transport was closed.
          OSError: the directory of `path` is missing, or `path` is not a regular file; raised
            before the wait for a transfer.
          Errors from ``IncomingTransfer.store``: only with `path`.
        """
        if path is None:
            return await self._hub.accept()
        if not callable(path):
            await check_target(path)
        transfer = await self._hub.accept()
        async with transfer:
            await transfer.store(path(transfer) if callable(path) else path, limits=limits)
        return transfer
