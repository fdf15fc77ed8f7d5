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
    """Bytes of a transfer which wait in memory at most."""
    _multiplexed: dict[Target, int]
    """How many connections :meth:`enable_multiplexing` keeps."""

    async def enable_multiplexing(self, target: TargetLike, connections: int) -> None:
        """Have so many connections to `target`, and keep them, for striped transfers.

        Returns when all are open.  They are replaced when they are lost, and give way to no
        other target: see :meth:`ConnectionPool.keep_warm`, also for ``keep_alive``.

        Args:
          connections: from 1 to what the pool permits for one target.

        Raises:
          TypeError, ValueError: that is no target, or the number is out of range.
          And what entering ``connect`` raises, if one of them cannot be established.
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
        """Send `data` over several connections side by side; returns when it is stored there.

        That is when the receiving program has confirmed the transfer, however long that takes:
        a cancel scope bounds the time.  A connection which is lost is replaced, and costs what
        was under way on it.

        Args:
          target: as for :meth:`connect`; it receives with :meth:`receive_multiplexed` or
            ``incoming_transfers()``.
          data: bytes-like; a binary file, from where it stands; an iterable or an async
            iterable of bytes-like items.  Memory does not grow with its size.
          connections: over how many; ``None``: as :meth:`enable_multiplexing` said, or
            the configuration's ``multiplexed_connections``.
          on_progress: called with the number of bytes which the receiver has.
          metadata: up to 16 KiB for the receiver's application, as a name.
          transfer_id: 16 bytes, of a :class:`TransferInterrupted` or drawn by the caller
            (``os.urandom(16)``) and kept until the transfer is through: goes on where an
            earlier attempt with this ID has ended.  A receiver which stores transfers
            (``receive_multiplexed(path=...)``) has kept what it had, also when its process was
            killed.  Knowing the ID is all that this takes, so it is a secret of both sides;
            other data need another ID.

        Cancellation: the transfer is given up, and nothing stays behind but the receiver's
        partial file.

        Raises:
          TypeError, ValueError: an argument is out of range, or `data` is nothing to send:
            found before anything is dialled, but for the items of an iterable.
          TransferUnconfirmed: all connections were lost after everything was sent: it is
            unknown whether the receiver has stored it.
          TransferInterrupted: all connections were lost before that and no new ones could be
            had, or the receiver was started anew.
          TransferRefused: the receiver does not want it, or has failed to store it.
          ChecksumMismatch: what arrived, or what an earlier attempt had left there, is not
            what was sent.
          And what entering ``connect`` and reading `data` raise.
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
        """The next striped transfer which any peer begins.

        Use it as a context manager, and read it: see :class:`IncomingTransfer`.  With `path`
        it is stored there instead, and returned at its end: :meth:`IncomingTransfer.store`
        says how, and what is kept for the next attempt when it does not come to a good end.

        Args:
          path: where the transfer is stored; or a function which says that of a transfer, by
            its metadata, for instance, which are untrusted.
          limits: how long and how many partial files wait beside `path`.

        Twice the configuration's ``receive_buffer_size`` waits in memory at most (64 MiB), for
        each of ``max_incoming_transfers``; further ones are refused meanwhile, and those of one
        peer above ``max_incoming_transfers_per_peer``.

        Cancellation: no transfer is lost; one which is being stored is abandoned, and its
        partial file stays.

        Raises:
          trio.ClosedResourceError: the transport was closed.
          OSError: the directory of `path` is missing, or something else than a file is there:
            found before a transfer is waited for.
          And with `path`, what ``IncomingTransfer.store`` raises.
        """
        if path is None:
            return await self._hub.accept()
        if not callable(path):
            await check_target(path)
        transfer = await self._hub.accept()
        async with transfer:
            await transfer.store(path(transfer) if callable(path) else path, limits=limits)
        return transfer
