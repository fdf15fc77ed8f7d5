"""A link for real sockets: a process that forwards UDP datagrams late, seldom or not at all.

``python -m phoenix_trio_bench.relay --server-port N ...`` prints its own port as JSON, and
ends with its standard input.  Both ways have the same delay, loss and bandwidth, each its
own queue.  It passes on to one port of this machine and to nowhere else; clients, queue
and lifetime are bounded.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import sys
from collections import OrderedDict

import trio

__all__ = ["Direction", "Relay"]

#: The most clients remembered; beyond it, the client silent for longest is forgotten.
_CLIENTS = 64

#: The most datagrams on their way, both directions together.
_UNDER_WAY = 100_000

_LARGEST = 65_535
_BUFFER = 4 * 1024 * 1024
_LIFETIME = 3600.0


class Direction:
    """Decides whether and when datagrams arrive at the other end.  No I/O, and no clock.

    Args:
      delay: seconds on the way.
      loss: the share that gets lost, 0 to 1.
      bandwidth: bits a second; ``None``: no limit.
      queue_bytes: the most bytes that wait before the bottleneck.
      seed: of the losses.
    """

    def __init__(
        self, *, delay: float, loss: float, bandwidth: float | None, queue_bytes: int, seed: int
    ) -> None:
        self._delay = delay
        self._loss = loss
        self._bandwidth = bandwidth
        self._queue_bytes = queue_bytes
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._free_at = -math.inf

    def arrival(self, size: int, now: float) -> float | None:
        """When a datagram of `size` bytes arrives if it is sent now; ``None``: never."""
        if self._random.random() < self._loss:
            return None
        if self._bandwidth is None:
            return now + self._delay
        start = max(now, self._free_at)
        waiting = (start - now) * self._bandwidth / 8
        if waiting and waiting + size > self._queue_bytes:
            return None
        self._free_at = start + size * 8 / self._bandwidth
        return self._free_at + self._delay


class Relay:
    """Passes datagrams on between clients and one server."""

    def __init__(
        self,
        listening: trio.socket.SocketType,
        server: tuple[str, int],
        to_server: Direction,
        to_client: Direction,
    ) -> None:
        self._listening = listening
        self._server = server
        self._to_server = to_server
        self._to_client = to_client
        self._number = itertools.count()
        self._under_way: list[
            tuple[float, int, bytes, trio.socket.SocketType, tuple[str, int]]
        ] = []
        self._lot = trio.lowlevel.ParkingLot()
        self._clients: OrderedDict[
            tuple[str, int], tuple[trio.socket.SocketType, trio.CancelScope]
        ] = OrderedDict()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver)
            while True:
                data, client = await self._listening.recvfrom(_LARGEST)
                upstream = self._clients.get(client)
                if upstream is None:
                    upstream = await self._welcome(client, nursery)
                self._clients.move_to_end(client)
                self._send(self._to_server, data, upstream[0], self._server)

    async def _welcome(
        self, client: tuple[str, int], nursery: trio.Nursery
    ) -> tuple[trio.socket.SocketType, trio.CancelScope]:
        if len(self._clients) >= _CLIENTS:
            _, (_, scope) = self._clients.popitem(last=False)
            scope.cancel()
        socket = await open_socket()
        entry = self._clients[client] = (socket, trio.CancelScope())
        nursery.start_soon(self._read_answers, client, *entry)
        return entry

    async def _read_answers(
        self, client: tuple[str, int], socket: trio.socket.SocketType, scope: trio.CancelScope
    ) -> None:
        with scope, socket:
            while True:
                try:
                    data, source = await socket.recvfrom(_LARGEST)
                except ConnectionError:
                    continue  # the server has gone: so has its answer
                if source == self._server:
                    self._send(self._to_client, data, self._listening, client)

    def _send(
        self,
        direction: Direction,
        data: bytes,
        socket: trio.socket.SocketType,
        address: tuple[str, int],
    ) -> None:
        arrival = direction.arrival(len(data), trio.current_time())
        if arrival is None or len(self._under_way) >= _UNDER_WAY:
            return
        entry = (arrival, next(self._number), data, socket, address)
        is_first = not self._under_way or arrival < self._under_way[0][0]
        heapq.heappush(self._under_way, entry)
        if is_first:
            self._lot.unpark_all()

    async def _deliver(self) -> None:
        while True:
            if not self._under_way:
                await self._lot.park()
                continue
            with trio.move_on_at(self._under_way[0][0]):
                await self._lot.park()
            now = trio.current_time()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, data, socket, address = heapq.heappop(self._under_way)
                if socket.fileno() < 0:
                    continue  # the client was forgotten meanwhile
                try:
                    await socket.sendto(data, address)
                except OSError:
                    continue  # full or refused: a link would lose it as well


async def open_socket() -> trio.socket.SocketType:
    """A socket on loopback, with room for bursts."""
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, _BUFFER)
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, _BUFFER)
    await socket.bind(("127.0.0.1", 0))
    return socket


async def _main(options: argparse.Namespace) -> None:
    def direction(seed: int) -> Direction:
        return Direction(
            delay=options.delay,
            loss=options.loss,
            bandwidth=options.bandwidth,
            queue_bytes=options.queue_bytes,
            seed=seed,
        )

    listening = await open_socket()
    relay = Relay(
        listening,
        ("127.0.0.1", options.server_port),
        direction(2 * options.seed),
        direction(2 * options.seed + 1),
    )
    sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    with listening, trio.move_on_after(_LIFETIME):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description="pass UDP datagrams on, as a slow link would")
    parser.add_argument("--server-port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    parser.add_argument("--loss", type=float, default=0.0, help="0 to 1")
    parser.add_argument("--bandwidth", type=float, default=None, help="bits a second, each way")
    parser.add_argument("--queue-bytes", type=int, default=256 * 1024)
    parser.add_argument("--seed", type=int, default=0)
    trio.run(_main, parser.parse_args())


if __name__ == "__main__":
    main()
