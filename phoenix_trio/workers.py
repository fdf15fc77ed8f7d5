"""Several processes that serve one port together: starts them, replaces them, ends them.

Floor 5.  Plain Python without Trio: this process only looks after the others
(:mod:`~phoenix_trio.worker`), each of which runs an event loop of its own.

All sockets are made here, once, and each is inherited by the process with its number, also by
those which replace it.  So the system spreads clients over the same sockets whatever happens to a
process; datagrams for a process that is being replaced wait in its socket.
"""

from __future__ import annotations

import errno
import logging
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final

import attrs
import trio

from .quic.connection_id_format import MOST_WORKERS
from .quic.packet_io import bind_raw
from .quic.path_address import SocketAddress
from .quic.relay import open_inbox
from .quic.shared_keys import ROTATION_PERIOD, KeyChain, period_at
from .worker import HELD_BACK, Equipment, Worker, run_worker

__all__ = ["WorkersFailed", "run_workers"]

logger: logging.Logger = logging.getLogger("phoenix_trio")

#: Crashes of one worker within so many seconds count together.
_CRASH_WINDOW: Final = 60.0

#: Seconds before a crashed worker is started again: the first time, and at most.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0

_SECRET_SIZE: Final = 32


class WorkersFailed(RuntimeError):
    """The workers of :func:`run_workers` have not ended in good order; the text says which."""


def run_workers(
    main: Callable[[Worker], Awaitable[object]],
    port: int,
    *,
    workers: int | None = None,
    host: str | None = None,
    stop_timeout: float = 30.0,
    max_crashes: int = 5,
) -> None:
    """Run `main` in several processes which serve one UDP port together, until they are to end.

    Each process runs ``trio.run(main, worker)``; ``worker.socket`` is what it serves on::

        async def main(worker: phoenix_trio.Worker) -> None:
            tls = phoenix_trio.ServerTLS("server.pem", "server.key")
            await phoenix_trio.serve(handler, tls=tls, socket=worker.socket, grace_period=10)


        if __name__ == "__main__":
            phoenix_trio.run_workers(main, 4433)

    The system gives each a part of the clients, by their addresses.  The number of a worker is
    in its connection IDs, hidden from others; what a client sends after it has moved is passed
    on to its worker, whichever one receives it.

    On SIGTERM or SIGINT, `main` is cancelled in all of them (so ``serve`` takes its
    `grace_period`), and this returns when all have ended; a second signal kills them.  If this
    process is killed, they end by themselves in the same way.  A worker that crashes is
    replaced after a tenth of a second, later after up to 5 seconds; its connections are reset
    when their clients send next, and those of the others go on.  If `main` returns in one
    worker, all are told to end.

    Call it from the main thread, outside of Trio, below ``if __name__ == "__main__"``: the
    processes import the program (``multiprocessing``'s spawn).  Linux only.

    Args:
      main: an async function of a module, or a :func:`functools.partial` of one, which takes a
        :class:`Worker`.
      port: the UDP port; 0: any free one, ``worker.port`` in `main`.
      workers: how many, 1 to 256; ``None``: as many as there are processors for this process.
      host: the local address or name, of several addresses the first; ``None``: all, IPv4 and
        IPv6.
      stop_timeout: seconds after which workers that have not ended are killed; ``math.inf``:
        they are waited for.
      max_crashes: how often a worker may crash in a minute (0 or more); once more ends all.

    Raises:
      WorkersFailed: a worker has crashed too often, or while all were ending, or had to be
        killed.  All have ended.
      OSError: the address is unknown or not local, or the port is in use; or this is not Linux.
      TypeError: `main` is not a function that another process can import.
      ValueError: a number is out of its range.
      RuntimeError: it was called inside Trio, or not from the main thread.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        workers = min(workers, MOST_WORKERS)
    _check(main, port, workers, stop_timeout, max_crashes)
    udp_sockets = _bind(host, port, workers)
    inboxes: list[tuple[socket.socket, socket.socket]] = []
    try:
        inboxes.extend(open_inbox() for _ in range(workers))
        secret = os.urandom(_SECRET_SIZE)
        outboxes = [send for _, send in inboxes]
        keys = KeyChain.begin(time.monotonic())
        equipment = [
            Equipment(number, udp_sockets[number], inboxes[number][0], outboxes, secret, keys)
            for number in range(workers)
        ]
        _Supervisor(main, equipment, stop_timeout, max_crashes).run()
    finally:
        for each in udp_sockets:
            each.close()
        for pair in inboxes:
            for end in pair:
                end.close()


def _check(main: object, port: int, workers: int, stop_timeout: float, max_crashes: int) -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "run_workers needs Linux, which spreads datagrams evenly")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("run_workers runs Trio in each worker: call it outside of trio.run")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run_workers handles signals: call it from the main thread")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "run_workers was called while a worker imported the program: call it below"
            " if __name__ == '__main__'"
        )
    if not callable(main):
        raise TypeError(f"main must be an async function, not {main!r}")
    try:
        pickle.dumps(main)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            "main must be a function of a module, or a partial of one, so that each worker can"
            f" import it: {error}"
        ) from error
    for name, value, least, most in (
        ("port", port, 0, 65535),
        ("workers", workers, 1, MOST_WORKERS),
        ("max_crashes", max_crashes, 0, 1_000_000),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {most}, not {value}")
    if not stop_timeout >= 0:
        raise ValueError(f"stop_timeout must not be negative, not {stop_timeout!r}")


def _bind(host: str | None, port: int, count: int) -> list[socket.socket]:
    """So many sockets on one port, each of which gets a part of what arrives."""
    if port:
        # Sockets of another program of this user would share the port otherwise.
        _bind_one(host, port, reuse_port=False).close()
    first = _bind_one(host, port, reuse_port=True)
    bound = [first]
    try:
        address = first.getsockname()
        while len(bound) < count:
            bound.append(bind_raw(address, None, reuse_port=True))
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _bind_one(host: str | None, port: int, *, reuse_port: bool) -> socket.socket:
    if host is None:
        try:
            return bind_raw(("::", port, 0, 0), None, reuse_port=reuse_port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
        return bind_raw(("0.0.0.0", port), None, reuse_port=reuse_port)  # noqa: S104 - all is what was asked for
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    address: SocketAddress = found[0][4]  # type: ignore[assignment] # of IPv4 or IPv6
    return bind_raw(address, None, reuse_port=reuse_port)


class _Place:
    """One worker's number: its process at present, and its crashes."""

    def __init__(self, equipment: Equipment) -> None:
        self.equipment = equipment
        self.process: SpawnProcess | None = None
        self.start_at = 0.0
        """When to start a process, if there is none."""
        self.crashes: list[float] = []
        """When processes have crashed, in the last minute."""


class _Supervisor:
    """Starts the workers, and looks after them until all have ended.

    Args: see :func:`run_workers`.
    """

    def __init__(
        self,
        main: Callable[[Worker], Awaitable[object]],
        equipment: list[Equipment],
        stop_timeout: float,
        max_crashes: int,
    ) -> None:
        self._main = main
        self._places = [_Place(each) for each in equipment]
        self._stop_timeout = stop_timeout
        self._max_crashes = max_crashes
        self._context = multiprocessing.get_context("spawn")
        self._is_stopping = False
        self._kill_at = math.inf
        self._failures: list[str] = []
        self._signals_seen = 0
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> None:
        """Until all have ended.

        Raises:
          WorkersFailed: not in good order.
        """
        try:
            with self._handling_signals():
                try:
                    self._supervise_workers()
                finally:
                    self._kill_all()
        finally:
            self._woken.close()
            self._waker.close()
        if self._failures:
            raise WorkersFailed("; ".join(self._failures))

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals_seen += 1
            with suppress(BlockingIOError):  # (It wakes in any case then.)
                self._waker.send(b"\0")

        before = {number: signal.signal(number, note) for number in HELD_BACK}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _supervise_workers(self) -> None:
        # (It lets signals through when it starts, which is not to happen later.)
        multiprocessing.resource_tracker.ensure_running()
        acted_on = 0
        while True:
            now = time.monotonic()
            self._renew_keys(now)
            if self._signals_seen > acted_on:
                if self._is_stopping and acted_on:
                    self._kill_at = now
                acted_on = self._signals_seen
                self._stop(now)
            if now >= self._kill_at:
                self._give_up_waiting()
            for place in self._places:
                if place.process is None and not self._is_stopping and now >= place.start_at:
                    self._start(place)
            if self._is_stopping and all(place.process is None for place in self._places):
                return
            self._wait(now)

    def _renew_keys(self, now: float) -> None:
        """Keep no secret which the workers have forgotten (they renew theirs by themselves)."""
        for place in self._places:
            keys = place.equipment.keys.at(period_at(now) - 1)
            if keys is not place.equipment.keys:
                place.equipment = attrs.evolve(place.equipment, keys=keys)

    def _wait(self, now: float) -> None:
        """Until a process ends, a signal comes, or there is something to do."""
        wake_at = min(self._kill_at, (period_at(now) + 1) * ROTATION_PERIOD)
        by_sentinel: dict[int, _Place] = {}
        for place in self._places:
            if place.process is not None:
                by_sentinel[place.process.sentinel] = place
            elif not self._is_stopping:
                wake_at = min(wake_at, place.start_at)
        ready = multiprocessing.connection.wait(
            [*by_sentinel, self._woken],
            max(0.0, wake_at - now),
        )
        for each in ready:
            if each is self._woken:
                self._woken.recv(1000)
            else:
                assert isinstance(each, int)
                self._on_end(by_sentinel[each])

    def _start(self, place: _Place) -> None:
        number = place.equipment.number
        process = self._context.Process(
            target=run_worker,
            args=(self._main, place.equipment),
            name=f"phoenix_trio worker {number}",
        )
        # The process inherits what is held back, so that a signal waits until it can act on it.
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            process.start()
            place.process = process
        except OSError as error:
            self._on_crash(place, f"could not be started ({error})")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)

    def _on_end(self, place: _Place) -> None:
        process = place.process
        assert process is not None
        process.join()
        code = process.exitcode
        process.close()
        place.process = None
        if code == 0:
            self._stop(time.monotonic())
        else:
            self._on_crash(place, _describe(code))

    def _on_crash(self, place: _Place, what: str) -> None:
        now = time.monotonic()
        what = f"worker {place.equipment.number} {what}"
        if self._is_stopping:
            self._failures.append(f"{what} while it was ending")
            return
        place.crashes = [at for at in place.crashes if at > now - _CRASH_WINDOW]
        place.crashes.append(now)
        if len(place.crashes) > self._max_crashes:
            self._failures.append(f"{what}, {len(place.crashes)} times within a minute")
            self._stop(now)
            return
        pause = min(_FIRST_PAUSE * 2.0 ** (len(place.crashes) - 1), _LONGEST_PAUSE)
        place.start_at = now + pause
        logger.error("%s; another one takes its place in %.1f s", what, pause)

    def _stop(self, now: float) -> None:
        """Tell all workers to end.  Idempotent."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._kill_at = now + self._stop_timeout
        for place in self._places:
            if place.process is not None:
                place.process.terminate()

    def _give_up_waiting(self) -> None:
        self._kill_at = math.inf
        for place in self._places:
            if place.process is not None:
                place.process.kill()

    def _kill_all(self) -> None:
        """Leave no process behind, whatever has happened here."""
        for place in self._places:
            if place.process is not None:
                place.process.kill()
                place.process.join()
                place.process.close()
                place.process = None


def _describe(code: int | None) -> str:
    """How a process has ended, by its exit code."""
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit status {code}"
