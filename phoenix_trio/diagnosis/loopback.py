"""Measures what the sockets of this machine can do, and what the library reaches, over loopback.

Floor 4.  Uses the sockets and the connections of the library itself, so the results are what a
program gets: the options are set, and then tried by sending.
"""

from __future__ import annotations

import time
from functools import partial

import attrs
import trio

from ..config import TransportConfig
from ..quic.connection import QuicConnection
from ..quic.endpoint import Endpoint
from ..quic.established.ecn import ECT_0
from ..quic.groups import unwrap_lone
from ..quic.handshake.certificates import create_development_ca, issue_certificate
from ..quic.handshake.tls import ClientTLS, ServerTLS
from ..quic.listener import QuicListener
from ..quic.packet_io import UdpNetwork, UdpSocket
from .commands import command
from .results import Finding, Status
from .text import format_bytes, format_rate, format_seconds

__all__ = [
    "Baseline",
    "Offloads",
    "check_baseline",
    "check_ecn",
    "check_offloads",
    "goes_over",
    "granted_buffers",
    "measure_baseline",
    "measure_offloads",
]

_ALPN = "phoenix-doctor/1"

_RUN_DATAGRAMS = 16
_DATAGRAM = 1200

#: Datagrams on loopback arrive at once, or never.
_ANSWER_SECONDS = 1.0

_ROUNDS = 20

#: Processor time a gigabyte of both ends, in ``docs/performance.md``: 0.8 s to send, 1.0 s to
#: receive, with packets of 65,000 bytes.
_REFERENCE_SECONDS_A_GIGABYTE = 1.8


# ------------------------------------------------------------------ sockets


@attrs.frozen(kw_only=True)
class Offloads:
    """What sockets did with a run of datagrams; times are in seconds for 16 of 1,200 bytes."""

    sent_in_one_call: bool
    received_in_one_call: bool
    mark_arrived: bool
    run_seconds: float
    """To send them as a run."""
    single_seconds: float
    """To send them one by one."""


async def granted_buffers(size: int) -> tuple[int, int]:
    """The receive and the send buffer that a socket gets when it asks for `size` bytes.

    Raises:
      OSError: no socket can be opened.
    """
    socket = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=size)
    try:
        statistics = socket.statistics
        return statistics.receive_buffer_size, statistics.send_buffer_size
    finally:
        socket.close()


async def goes_over(host: str) -> bool:
    """Whether a datagram from `host` to itself arrives.

    Raises:
      OSError: no socket can be bound to it.
    """
    socket = await UdpNetwork().open_socket(host, 0, buffer_size=65536)
    try:
        socket.send_run(b"here", socket.address)
        with trio.move_on_after(_ANSWER_SECONDS):
            await socket.wait_readable()
            return bool(socket.receive_runs(1))
    finally:
        socket.close()
    return False


async def measure_offloads() -> Offloads:
    """Send runs of datagrams with a mark over 127.0.0.1, and look at how they arrive.

    Raises:
      OSError: no socket can be opened.
    """
    open_socket = partial(UdpNetwork().open_socket, "127.0.0.1", 0, buffer_size=1 << 20)
    sender = await open_socket()
    try:
        receiver = await open_socket()
        try:
            return await _measure_offloads(sender, receiver)
        finally:
            receiver.close()
    finally:
        sender.close()


async def _measure_offloads(sender: UdpSocket, receiver: UdpSocket) -> Offloads:
    run = bytes(_RUN_DATAGRAMS * _DATAGRAM)
    single = bytes(_DATAGRAM)
    best_run = best_single = float("inf")
    in_one_call = marked = True
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        sender.send_run(run, receiver.address, _DATAGRAM, ECT_0)
        best_run = min(best_run, time.perf_counter() - start)
        whole, mark = await _take_run(receiver)
        in_one_call, marked = in_one_call and whole, marked and mark
        start = time.perf_counter()
        for _ in range(_RUN_DATAGRAMS):
            sender.send_run(single, receiver.address)
        best_single = min(best_single, time.perf_counter() - start)
        await _take_run(receiver)
    statistics = sender.statistics
    runs = statistics.send_calls - _ROUNDS * _RUN_DATAGRAMS
    return Offloads(
        sent_in_one_call=statistics.gso and runs == _ROUNDS,
        received_in_one_call=in_one_call,
        mark_arrived=marked,
        run_seconds=best_run,
        single_seconds=best_single,
    )


async def _take_run(receiver: UdpSocket) -> tuple[bool, bool]:
    """Whether the datagrams came in one call, and with their mark.

    Raises:
      OSError: they did not come.
    """
    total = calls = 0
    marks = True
    with trio.move_on_after(_ANSWER_SECONDS):
        while total < _RUN_DATAGRAMS * _DATAGRAM:
            await receiver.wait_readable()
            for _, _, _, mark, size in receiver.receive_runs(_RUN_DATAGRAMS):
                total += size
                calls += 1
                marks = marks and mark == ECT_0
        return calls == 1, marks
    raise OSError("datagrams sent over 127.0.0.1 do not arrive")


def check_offloads(offloads: Offloads, device: str, system: str) -> Finding:
    """Whether runs of datagrams go through one system call.

    Args:
      offloads: as measured.
      device: an interface, for the command.
      system: as ``sys.platform``.
    """
    words = {True: "one call", False: "a call for each"}
    found = (
        f"16 datagrams: {words[offloads.sent_in_one_call]} to send (GSO, "
        f"{format_seconds(offloads.run_seconds)}; one by one "
        f"{format_seconds(offloads.single_seconds)}), "
        f"{words[offloads.received_in_one_call]} to receive (GRO)"
    )
    values = {
        "gso": offloads.sent_in_one_call,
        "gro": offloads.received_in_one_call,
        "run_seconds": round(offloads.run_seconds, 9),
        "single_seconds": round(offloads.single_seconds, 9),
    }
    if offloads.sent_in_one_call and offloads.received_in_one_call:
        return Finding(name="offloads", status=Status.OK, found=found, values=values)
    each = offloads.single_seconds / _RUN_DATAGRAMS
    why = f"each datagram costs a system call of {format_seconds(each)}, "
    why += f"{each * 1e9 / _DATAGRAM:.2g} s for a gigabyte; "
    why += (
        "Linux 4.18 sends and 5.0 receives runs"
        if system == "linux"
        else "only Linux sends and receives runs"
    )
    return Finding(
        name="offloads",
        status=Status.WARN,
        found=found,
        why=why,
        commands=command("offloads", system, device=device),
        values=values,
    )


def check_ecn(offloads: Offloads) -> Finding:
    """Whether marks of congestion (ECN) are sent and received."""
    values = {"works": offloads.mark_arrived}
    if offloads.mark_arrived:
        return Finding(
            name="ecn", status=Status.OK, found="a mark arrives with its datagram", values=values
        )
    return Finding(
        name="ecn",
        status=Status.WARN,
        found="marks do not arrive, or cannot be set",
        why="a full queue can then be seen by lost packets alone: each costs a round trip until "
        "it is repeated",
        values=values,
    )


# ------------------------------------------------------------------ a transfer


@attrs.frozen(kw_only=True)
class Baseline:
    """A connection of this process with itself over 127.0.0.1."""

    size: int
    """Bytes moved on one stream."""
    seconds: float
    processor_seconds: float
    """Of both ends, for the transfer."""
    handshake_processor_seconds: float
    """The same for the handshake."""
    exchange_processor_seconds: float
    """The same for a request of 64 bytes and its answer, on a stream of its own."""
    path_mtu: int
    packets_lost: int

    @property
    def rate(self) -> float:
        """Bits a second."""
        return 8 * self.size / self.seconds

    @property
    def seconds_a_gigabyte(self) -> float:
        """Processor time of both ends."""
        return self.processor_seconds * 1e9 / self.size


async def measure_baseline(size: int = 16 * 1024 * 1024, exchanges: int = 50) -> Baseline:
    """Connect to this process itself, and move `size` bytes.

    Raises:
      OSError, ConnectionBroken: it does not work.
    """
    issued = await trio.to_thread.run_sync(
        lambda: issue_certificate(create_development_ca(), ["localhost"])
    )
    tls = ServerTLS(issued.certificate, issued.private_key)
    pinned = ClientTLS(pinned_sha256=issued.fingerprint)
    config = TransportConfig(handshake_timeout=5.0, close_linger=0.1)
    with unwrap_lone():
        async with (
            Endpoint.open("127.0.0.1", config=config) as server,
            Endpoint.open("127.0.0.1", config=config) as client,
            trio.open_nursery() as nursery,
        ):
            listener = server.listen(tls=tls, alpn=(_ALPN,))
            nursery.start_soon(_answer, listener)
            processor = time.process_time()
            async with client.connect(
                "127.0.0.1", server.port, tls=pinned, alpn=(_ALPN,)
            ) as connection:
                await connection.wait_confirmed()
                handshake = time.process_time() - processor
                found = await _measure(connection, size, exchanges, handshake)
            nursery.cancel_scope.cancel()
    return found


async def _answer(listener: QuicListener) -> None:
    """Answer each stream of one connection with the number of bytes that have come."""
    async with await listener.accept() as connection:
        async for stream in connection.incoming_streams():
            async with stream:
                received = 0
                while data := await stream.receive_some():
                    received += len(data)
                await stream.send_all(b"%d" % received, end=True)


async def _measure(
    connection: QuicConnection, size: int, exchanges: int, handshake: float
) -> Baseline:
    for _ in range(3):
        await connection.request(bytes(size // 4))  # finds the path MTU, opens windows
    data = bytes(size)
    start, processor = time.perf_counter(), time.process_time()
    await connection.request(data)
    seconds, transfer = time.perf_counter() - start, time.process_time() - processor
    processor = time.process_time()
    for _ in range(exchanges):
        await connection.request(bytes(64))
    exchange = (time.process_time() - processor) / exchanges
    statistics = connection.statistics()
    return Baseline(
        size=size,
        seconds=seconds,
        processor_seconds=transfer,
        handshake_processor_seconds=handshake,
        exchange_processor_seconds=exchange,
        path_mtu=statistics.path_mtu,
        packets_lost=statistics.packets_lost,
    )


def check_baseline(baseline: Baseline) -> Finding:
    """Whether this machine moves data about as fast as the one of ``docs/performance.md``."""
    cost = baseline.seconds_a_gigabyte
    found = (
        f"{format_bytes(baseline.size)} at {format_rate(baseline.rate)} over 127.0.0.1, both ends "
        f"in one process: {cost:.1f} s of processor time a gigabyte, packets of "
        f"{baseline.path_mtu:,} bytes"
    )
    values = {
        "size_bytes": baseline.size,
        "rate_bits_per_second": round(baseline.rate),
        "processor_seconds_per_gigabyte": round(cost, 3),
        "handshake_processor_seconds": round(baseline.handshake_processor_seconds, 6),
        "exchange_processor_seconds": round(baseline.exchange_processor_seconds, 6),
        "path_mtu_bytes": baseline.path_mtu,
        "lost_packets": baseline.packets_lost,
    }
    if cost <= 2 * _REFERENCE_SECONDS_A_GIGABYTE:
        return Finding(name="loopback", status=Status.OK, found=found, values=values)
    return Finding(
        name="loopback",
        status=Status.WARN,
        found=found,
        why=f"more than twice the {_REFERENCE_SECONDS_A_GIGABYTE} s of the machine in the "
        f"documentation; one processor ends at {format_rate(8e9 / cost)} with both ends in one "
        "process",
        values=values,
    )
