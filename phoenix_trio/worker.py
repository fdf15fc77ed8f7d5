"""Runs inside of each of several processes that serve one port together.

Floor 5.  :mod:`~phoenix_trio.workers` runs in the process that starts them.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import FrameType
from typing import final

import attrs
import trio

from .quic.construction import NoPublicConstructor
from .quic.groups import unwrap_lone
from .quic.path_address import SocketAddress
from .quic.relay import Relay
from .quic.shared_keys import KeyChain, WorkerKeys
from .quic.worker_socket import WorkerSocket

__all__ = ["HELD_BACK", "Equipment", "Worker", "run_worker"]

#: Signals that a starting process blocks until it can act on them.
HELD_BACK = (signal.SIGTERM, signal.SIGINT)


@final
class Worker(metaclass=NoPublicConstructor):
    """The number and the socket of one of the processes of :func:`run_workers`.

    Passed to the program's main function.
    """

    def __init__(self, number: int, udp_socket: WorkerSocket) -> None:
        self._number = number
        self._socket = udp_socket
        self._address: SocketAddress = udp_socket.getsockname()
        self._relay = udp_socket.relay

    def __repr__(self) -> str:
        return f"<Worker {self.number} of {self.count} on {self.address}>"

    @property
    def number(self) -> int:
        """The process's number, from 0 on.  A replacement has the number of the old process."""
        return self._number

    @property
    def count(self) -> int:
        """The number of processes."""
        return self._relay.count

    @property
    def address(self) -> SocketAddress:
        """The address that all of them serve, ``(host, port)`` or longer for IPv6."""
        return self._address

    @property
    def port(self) -> int:
        """The UDP port that all of them serve."""
        return self._address[1]

    @property
    def socket(self) -> sockets.socket:
        """This process's socket, as ``socket=`` of :func:`serve` and others takes it.

        Its endpoint closes it at the end; to serve several times in turn, pass
        ``worker.socket.dup()``.  It is for listening only: dial from another endpoint.
        """
        return self._socket


@attrs.frozen
class Equipment:
    """The data that a new process gets from its parent; it inherits the sockets."""

    number: int
    udp_socket: sockets.socket
    inbox: sockets.socket
    outboxes: Sequence[sockets.socket]
    secret: bytes = attrs.field(repr=False)
    keys: KeyChain

    def unpack(self) -> Worker:
        """The worker of this process; it owns the sockets."""
        keys = WorkerKeys(self.keys)
        relay = Relay(self.number, self.secret, self.inbox, self.outboxes, keys)
        worker: Worker = Worker._create(self.number, WorkerSocket(self.udp_socket, relay))
        return worker


def run_worker(main: Callable[[Worker], Awaitable[object]], equipment: Equipment) -> None:
    """Run `main` in one of the processes, until it returns or is cancelled.

    `main` is cancelled on SIGTERM, and when the parent process is gone.  SIGINT is ignored: a
    terminal sends it to all processes, and the parent sends SIGTERM then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # (Installed whenever no receiver is: a second SIGTERM has no effect.  SIG_IGN would discard
    # a blocked signal.)
    signal.signal(signal.SIGTERM, _do_nothing)
    trio.run(_run_until_sigterm, main, equipment.unpack())


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


async def _run_until_sigterm(main: Callable[[Worker], Awaitable[object]], worker: Worker) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals, unwrap_lone():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(_cancel_on_signal, signals, scope)
            nursery.start_soon(_cancel_when_alone, scope)
            await main(worker)
            scope.cancel()


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return


async def _cancel_when_alone(scope: trio.CancelScope) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # (A pipe; the system closes its other end when the parent ends, for any reason.)
    await trio.lowlevel.wait_readable(parent.sentinel)
    scope.cancel()
