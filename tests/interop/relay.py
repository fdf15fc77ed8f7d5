"""The network between two programs: a relay on loopback that delays, loses, corrupts and records.

Every cell of the matrix goes through one, so that proofs rely on the packets on the wire.
The relay knows no QUIC beyond the bytes it records (``wire.py`` reads them).
All random values come from one seed.  Delay and bandwidth are those of the benchmark's link.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import socket as stdlib
import struct
from collections.abc import Callable

import attrs
import trio

from phoenix_trio_bench.relay import Direction

#: The largest payload on Ethernet over IPv4; larger datagrams are dropped, as Ethernet would.
LARGEST = 1472
_BUFFER = 4 * 1024 * 1024
_MAX_RECORDS = 200_000
_MAX_CLIENTS = 512
#: Bytes kept of a short-header datagram: enough for header protection's sample.
_HEAD = 64


@attrs.frozen(kw_only=True)
class Faults:
    """The faults of the network.  Shares are 0 to 1, times in seconds."""

    loss: float = 0.0
    corrupt: float = 0.0
    burst: int = 3
    """The most datagrams in a row that are hit, so that a run ends in good time."""
    delay: float = 0.0
    """Each way."""
    bandwidth: float | None = None
    """Bits a second, each way."""
    queue_bytes: int = 64 * 1024
    blackout: tuple[float, float] | None = None
    """Nothing passes from the first to the second moment after the first datagram."""
    rebind_every: float | None = None
    """The server sees the client at a new port so often, as behind a forgetful NAT."""
    rebind_address: bool = False
    """... and at a new address (127.0.0.2, ...)."""


@attrs.frozen
class Record:
    """One datagram as it came to the relay."""

    time: float
    to_server: bool
    client: int
    """The number of the client's socket."""
    path: int
    """The number of the address at which the server sees the client."""
    size: int
    ecn: int
    passed: bool
    corrupted: bool
    """Whether a bit was flipped afterwards; `head` is from before."""
    head: bytes
    """All of it if it begins with a long header."""


@attrs.define
class _Client:
    number: int
    address: tuple[str, int]
    socket: trio.socket.SocketType
    path: int
    scope: trio.CancelScope


class Relay:
    """Passes datagrams between clients and one server, and keeps a record of each."""

    def __init__(self, faults: Faults, *, host: str, server_port: int, seed: int) -> None:
        self._faults = faults
        self._server = (host, server_port)
        self._random = random.Random(seed)
        self._directions = [
            Direction(
                delay=faults.delay,
                loss=0.0,
                bandwidth=faults.bandwidth,
                queue_bytes=faults.queue_bytes,
                seed=seed + way,
            )
            for way in range(2)
        ]
        self._hits = [0, 0]
        self._number = itertools.count()
        self._under_way: list[tuple[float, int, Callable[[], None]]] = []
        self._lot = trio.lowlevel.ParkingLot()
        self._clients: dict[tuple[str, int], _Client] = {}
        self._paths = itertools.count()
        self._start: float | None = None
        self.records: list[Record] = []
        self.port = 0
        self.rebindings = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay datagrams until cancelled."""
        listening = await self._open(self._server[0])
        self.port = listening.getsockname()[1]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver)
                if self._faults.rebind_every is not None:
                    nursery.start_soon(self._rebind, nursery, listening)
                task_status.started()
                while True:
                    data, ecn, address = await _receive(listening)
                    client = self._clients.get(address)
                    if client is None:
                        if len(self._clients) >= _MAX_CLIENTS:
                            continue
                        client = await self._welcome(address, nursery, listening)
                    self._pass(data, ecn, client, to_server=True, listening=listening)
        finally:
            listening.close()
            for client in self._clients.values():
                client.socket.close()

    async def _open(self, host: str) -> trio.socket.SocketType:
        family = stdlib.AF_INET6 if ":" in host else stdlib.AF_INET
        socket = trio.socket.socket(family, stdlib.SOCK_DGRAM)
        for option in (stdlib.SO_RCVBUF, stdlib.SO_SNDBUF):
            socket.setsockopt(stdlib.SOL_SOCKET, option, _BUFFER)
        if family == stdlib.AF_INET6:
            socket.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_RECVTCLASS, 1)
        else:
            socket.setsockopt(stdlib.IPPROTO_IP, stdlib.IP_RECVTOS, 1)
        try:
            await socket.bind((host, 0))  # (a checkpoint: the relay may be cancelled here)
        except BaseException:
            socket.close()
            raise
        return socket

    async def _welcome(
        self, address: tuple[str, int], nursery: trio.Nursery, listening: trio.socket.SocketType
    ) -> _Client:
        socket = await self._open(self._server[0])
        client = _Client(len(self._clients), address, socket, next(self._paths), trio.CancelScope())
        self._clients[address] = client
        nursery.start_soon(self._read_answers, client, socket, client.path, listening)
        return client

    async def _rebind(self, nursery: trio.Nursery, listening: trio.socket.SocketType) -> None:
        assert self._faults.rebind_every is not None
        while True:
            await trio.sleep(self._faults.rebind_every)
            for client in self._clients.values():
                self.rebindings += 1
                host = self._server[0]
                if self._faults.rebind_address:
                    host = f"127.0.0.{1 + self.rebindings % 250}"
                socket = await self._open(host)
                client.socket, client.path = socket, next(self._paths)
                # The old one goes on receiving: a NAT's old binding forwards for a while.
                nursery.start_soon(self._read_answers, client, socket, client.path, listening)

    async def _read_answers(
        self,
        client: _Client,
        socket: trio.socket.SocketType,
        path: int,
        listening: trio.socket.SocketType,
    ) -> None:
        with socket:
            while True:
                try:
                    data, ecn, source = await _receive(socket)
                except ConnectionError:
                    continue  # the server has gone
                if source == self._server:
                    self._pass(data, ecn, client, to_server=False, listening=listening, path=path)

    def _pass(
        self,
        data: bytes,
        ecn: int,
        client: _Client,
        *,
        to_server: bool,
        listening: trio.socket.SocketType,
        path: int | None = None,
    ) -> None:
        now = trio.current_time()
        if self._start is None:
            self._start = now
        since = now - self._start
        arrival = None
        hit = False
        if len(data) <= LARGEST:  # larger ones never get as far as the link
            arrival = self._directions[to_server].arrival(len(data), now)
            hit = self._draw_hit(to_server)
        blackout = self._faults.blackout
        if (hit and self._faults.loss) or (
            blackout is not None and blackout[0] <= since < blackout[1]
        ):
            arrival = None
        if len(self.records) < _MAX_RECORDS:
            head = data if data and data[0] & 0x80 else data[:_HEAD]
            self.records.append(
                Record(
                    since,
                    to_server,
                    client.number,
                    client.path if path is None else path,
                    len(data),
                    ecn,
                    arrival is not None,
                    bool(hit and self._faults.corrupt and arrival is not None),
                    head,
                )
            )
        if arrival is None:
            return
        if hit and self._faults.corrupt:
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << self._random.randrange(8))]) + data[at + 1 :]
        socket = client.socket if to_server else listening
        target = self._server if to_server else client.address
        if arrival <= now:
            _send(socket, data, ecn, target)
            return
        entry = (arrival, next(self._number), lambda: _send(socket, data, ecn, target))
        is_first = not self._under_way or arrival < self._under_way[0][0]
        heapq.heappush(self._under_way, entry)
        if is_first:
            self._lot.unpark_all()

    def _draw_hit(self, way: bool) -> bool:
        share = self._faults.loss or self._faults.corrupt
        hit = self._random.random() < share and self._hits[way] < self._faults.burst
        self._hits[way] = self._hits[way] + 1 if hit else 0
        return hit

    async def _deliver(self) -> None:
        while True:
            with trio.move_on_at(self._under_way[0][0] if self._under_way else math.inf):
                await self._lot.park()
            now = trio.current_time()
            while self._under_way and self._under_way[0][0] <= now:
                heapq.heappop(self._under_way)[2]()


async def _receive(socket: trio.socket.SocketType) -> tuple[bytes, int, tuple[str, int]]:
    data, ancillary, _, source = await socket.recvmsg(65_535, 64)
    ecn = 0
    for _level, kind, value in ancillary:
        if kind in (stdlib.IP_TOS, stdlib.IPV6_TCLASS):
            ecn = value[0] & 3
    return data, ecn, source[:2]


def _send(socket: trio.socket.SocketType, data: bytes, ecn: int, target: tuple[str, int]) -> None:
    if socket.fileno() < 0:
        return
    if socket.family == stdlib.AF_INET6:
        ancillary = (stdlib.IPPROTO_IPV6, stdlib.IPV6_TCLASS, struct.pack("i", ecn))
    else:
        ancillary = (stdlib.IPPROTO_IP, stdlib.IP_TOS, struct.pack("i", ecn))
    try:
        stdlib.socket.sendmsg(_plain(socket), [data], [ancillary], 0, target)
    except OSError:
        pass  # full or refused: a link would lose it as well


def _plain(socket: trio.socket.SocketType) -> stdlib.socket:
    plain: stdlib.socket = socket._sock  # type: ignore[attr-defined]
    return plain
