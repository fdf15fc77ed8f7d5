"""Several processes serve one port: real processes on loopback, since nothing else shows it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import phoenix_trio
from phoenix_trio.quic.relay import Relay, open_inbox
from phoenix_trio.quic.worker_socket import WorkerSocket
from tests.support import client_tls, server_pem, server_tls

PROGRAM = Path(__file__).with_name("workers_program.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux"),
]


class Workers:
    """The processes of a running program."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.port = 0
        self.pids: dict[int, int] = {}
        """By the workers' numbers."""
        self._rest = b""

    async def wait_started(self) -> int:
        """Until one more worker serves; its number."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            chunk = await self.process.stdout.receive_some()
            assert chunk, "the program has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        number, pid, self.port = map(int, line.split())
        self.pids[number] = pid
        return number


@asynccontextmanager
async def program(directory: Path, behaviour: str = "serve") -> AsyncIterator[Workers]:
    certificate, key = server_pem()
    (directory / "certificate.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    arguments = [str(directory / "certificate.pem"), str(directory / "key.pem"), behaviour]
    with (directory / "errors").open("wb") as errors:
        process = await trio.lowlevel.open_process(
            [sys.executable, str(PROGRAM), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    workers = Workers(process)
    try:
        with trio.fail_after(60):
            yield workers
    finally:
        process.kill()
        await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


async def ask(connection: phoenix_trio.QuicConnection, question: bytes = b"who") -> dict[str, int]:
    with trio.fail_after(20):
        answer: dict[str, int] = json.loads(await connection.request(question))
    return answer


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def wait_gone(pids: list[int]) -> None:
    with trio.fail_after(10):
        while any(is_there(pid) for pid in pids):
            await trio.sleep(0.02)


class Nat:
    """A way to a server whose outer port changes, as after a restart of a NAT router."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self._server = ("127.0.0.1", port)
        self._nursery = nursery
        self._inner = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        self._outer: trio.socket.SocketType | None = None
        self._client: Any = None

    async def start(self) -> int:
        """Returns the port to dial."""
        await self._inner.bind(("127.0.0.1", 0))
        await self.rebind()
        self._nursery.start_soon(self._send)
        port: int = self._inner.getsockname()[1]
        return port

    async def rebind(self) -> None:
        outer = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        await outer.bind(("127.0.0.1", 0))
        if self._outer is not None:
            self._outer.close()
        self._outer = outer
        self._nursery.start_soon(self._receive, outer)

    async def _send(self) -> None:
        while True:
            data, self._client = await self._inner.recvfrom(65_535)
            assert self._outer is not None
            outer = self._outer
            with suppress(trio.ClosedResourceError, OSError):  # (Replaced: a datagram is lost.)
                await outer.sendto(data, self._server)

    async def _receive(self, outer: trio.socket.SocketType) -> None:
        with suppress(trio.ClosedResourceError, OSError):  # (It was replaced.)
            while True:
                await self._inner.sendto(await outer.recv(65_535), self._client)

    def close(self) -> None:
        self._inner.close()
        assert self._outer is not None
        self._outer.close()


async def test_two_workers_serve_one_port(tmp_path: Path) -> None:
    """Clients are spread; one that moves stays; a killed worker is replaced; SIGTERM ends all."""
    async with program(tmp_path) as workers, AsyncExitStack() as stack:
        assert {await workers.wait_started(), await workers.wait_started()} == {0, 1}

        async def dial(port: int = workers.port) -> phoenix_trio.QuicConnection:
            return await stack.enter_async_context(
                phoenix_trio.open_connection("127.0.0.1", port, tls=client_tls())
            )

        of: dict[int, list[phoenix_trio.QuicConnection]] = {0: [], 1: []}
        for _ in range(40):
            connection = await dial()
            answer = await ask(connection)
            assert answer["pid"] == workers.pids[answer["worker"]]
            of[answer["worker"]].append(connection)
        assert min(len(of[0]), len(of[1])) >= 4, "(fewer once in ten million runs)"

        await move_a_client(workers, of)

        victim, survivor = 0, 1
        old = workers.pids[victim]
        os.kill(old, signal.SIGKILL)
        for connection in of[survivor]:
            assert (await ask(connection))["pid"] == workers.pids[survivor]
        assert await workers.wait_started() == victim
        assert workers.pids[victim] != old
        for connection in of[victim]:
            with pytest.raises(phoenix_trio.StatelessReset):
                await ask(connection)
        served = set()
        for _ in range(24):
            async with phoenix_trio.open_connection(
                "127.0.0.1", workers.port, tls=client_tls()
            ) as connection:
                served.add((await ask(connection))["pid"])
        assert served == set(workers.pids.values())

        answers: list[dict[str, int]] = []

        async def ask_slowly(connection: phoenix_trio.QuicConnection) -> None:
            answers.append(await ask(connection, b"slow"))

        async with trio.open_nursery() as nursery:
            for connection in of[survivor][:3]:
                nursery.start_soon(ask_slowly, connection)
            await trio.sleep(0.2)
            workers.process.terminate()
        assert len(answers) == 3, "handlers had their grace period"
        assert await workers.process.wait() == 0
        assert not any(is_there(pid) for pid in workers.pids.values())
    assert b"worker 0 was killed by SIGKILL" in (tmp_path / "errors").read_bytes()


async def move_a_client(workers: Workers, of: dict[int, list[phoenix_trio.QuicConnection]]) -> None:
    """A client moves until the system hands what it sends to the other worker."""
    async with trio.open_nursery() as nursery:
        nat = Nat(workers.port, nursery)
        async with phoenix_trio.open_connection(
            "127.0.0.1", await nat.start(), tls=client_tls()
        ) as connection:
            first = await ask(connection)
            watching = of[1 - first["worker"]][0]
            before = (await ask(watching))["passed_on"]
            for _ in range(40):
                await nat.rebind()
                for _ in range(2):
                    answer = await ask(connection)
                    assert (answer["worker"], answer["pid"]) == (first["worker"], first["pid"])
                if (await ask(watching))["passed_on"] > before:
                    break
            else:
                raise AssertionError("it never came to the other worker")
        nursery.cancel_scope.cancel()
    nat.close()


async def test_a_session_of_one_worker_is_resumed_by_all_and_early_data_by_that_one_alone(
    tmp_path: Path,
) -> None:
    tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=True)
    seen: set[tuple[bool, bool]] = set()
    issued_by = -1
    async with program(tmp_path) as workers:
        for _ in range(2):
            await workers.wait_started()
        for attempt in range(60):
            async with phoenix_trio.open_connection(
                "127.0.0.1", workers.port, tls=tls
            ) as connection:
                number = (await ask(connection))["worker"]
                await connection.wait_confirmed()
                await connection.ping()  # (The ticket is there.)
                assert connection.session_resumed is bool(attempt)
                if attempt:
                    seen.add((number == issued_by, bool(connection.early_data_accepted)))
                issued_by = number
            if len(seen) == 2 and attempt > 10:
                break
    assert seen == {(True, True), (False, False)}


async def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    async with program(tmp_path) as workers:
        for _ in range(2):
            await workers.wait_started()
        workers.process.kill()
        await workers.process.wait()
        await wait_gone(list(workers.pids.values()))


async def test_an_interrupt_of_all_processes_ends_them_in_good_order(tmp_path: Path) -> None:
    """As a terminal does on Ctrl-C, here while one of them is perhaps not ready."""
    async with program(tmp_path) as workers:
        await workers.wait_started()
        os.killpg(workers.process.pid, signal.SIGINT)
        assert await workers.process.wait() == 0
        await wait_gone(list(workers.pids.values()))
    assert "Traceback" not in (tmp_path / "errors").read_text()


async def test_workers_which_cannot_start_end_the_program_with_an_error(tmp_path: Path) -> None:
    async with program(tmp_path, "crash") as workers:
        assert await workers.process.wait() == 1
    said = (tmp_path / "errors").read_text()
    assert "RuntimeError: no configuration" in said
    assert "WorkersFailed: worker" in said
    assert "1 times within a minute" in said


async def test_workers_which_do_not_end_are_killed(tmp_path: Path) -> None:
    async with program(tmp_path, "stubborn") as workers:
        for _ in range(2):
            await workers.wait_started()
        workers.process.terminate()
        assert await workers.process.wait() == 1
        assert not any(is_there(pid) for pid in workers.pids.values())
    assert "was killed by SIGKILL while it was ending" in (tmp_path / "errors").read_text()


async def test_a_worker_that_returns_ends_all_in_good_order(tmp_path: Path) -> None:
    async with program(tmp_path, "return") as workers:
        assert await workers.process.wait() == 0
    assert "Traceback" not in (tmp_path / "errors").read_text()


async def main(worker: phoenix_trio.Worker) -> None:
    """Is never run."""


def test_arguments_out_of_range_are_refused() -> None:
    for arguments, text in [
        ({"port": 65_536}, "port must be between 0 and 65535"),
        ({"workers": 0}, "workers must be between 1 and 256"),
        ({"workers": 257}, "workers must be between 1 and 256"),
        ({"max_crashes": -1}, "max_crashes must be between"),
        ({"stop_timeout": -1.0}, "stop_timeout must not be negative"),
    ]:
        chosen: dict[str, Any] = {"port": 0, **arguments}
        with pytest.raises(ValueError, match=text):
            phoenix_trio.run_workers(main, **chosen)
    with pytest.raises(TypeError, match="workers must be an integer"):
        phoenix_trio.run_workers(main, 0, workers=2.0)  # type: ignore[arg-type]


def test_a_main_function_which_no_process_can_import_is_refused() -> None:
    async def local(worker: phoenix_trio.Worker) -> None:
        pass

    with pytest.raises(TypeError, match="each worker can import it"):
        phoenix_trio.run_workers(local, 0)
    with pytest.raises(TypeError, match="must be an async function"):
        phoenix_trio.run_workers("main", 0)  # type: ignore[arg-type]


async def test_it_is_called_outside_of_trio_and_from_the_main_thread() -> None:
    with pytest.raises(RuntimeError, match=r"outside of trio\.run"):
        phoenix_trio.run_workers(main, 0)
    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(phoenix_trio.run_workers, main, 0)


def test_a_port_in_use_is_refused_although_workers_share_theirs() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="cannot bind"):
            phoenix_trio.run_workers(main, taken.getsockname()[1], host="127.0.0.1", workers=1)


@asynccontextmanager
async def worker_socket() -> AsyncIterator[WorkerSocket]:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    inboxes = [open_inbox() for _ in range(2)]
    relay = Relay(1, bytes(32), inboxes[1][0], [send for _, send in inboxes])
    with WorkerSocket(bound, relay) as opened:
        yield opened
    for pair in inboxes:
        for end in pair:
            end.close()


async def test_a_workers_socket_listens_and_does_not_dial() -> None:
    async with (
        worker_socket() as opened,
        phoenix_trio.Endpoint.open(socket=opened) as endpoint,
        phoenix_trio.Endpoint.open("127.0.0.1") as other,
    ):
        endpoint.listen(tls=server_tls())
        with pytest.raises(OSError, match="dial from another endpoint"):
            async with endpoint.connect("127.0.0.1", 4433, tls=client_tls()):
                pass
        async with other.connect("127.0.0.1", endpoint.port, tls=client_tls()) as connection:
            assert await connection.ping() >= 0


async def test_a_server_id_leaves_room_for_the_workers_number() -> None:
    async with worker_socket() as opened:
        config = phoenix_trio.TransportConfig(connection_id_server_id=b"ab")
        with pytest.raises(ValueError, match="1 byte in a worker"):
            async with phoenix_trio.Endpoint.open(socket=opened, config=config):
                pass
        assert opened.fileno() != -1, "it is left as it was"
        config = phoenix_trio.TransportConfig(connection_id_server_id=b"a")
        async with phoenix_trio.Endpoint.open(socket=opened, config=config):
            pass


async def test_a_transport_serves_on_a_workers_socket() -> None:
    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        async for stream in connection.incoming_streams():
            async with stream:
                await stream.send_all(await stream.receive_all(100), end=True)

    async with (
        worker_socket() as opened,
        phoenix_trio.open_phoenix("server", server_tls=server_tls()) as server,
        phoenix_trio.open_phoenix("client", tls=client_tls()) as client,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(partial(server.serve, handler, socket=opened))
        assert await client.request(("127.0.0.1", listeners[0].port), b"hello") == b"hello"
        nursery.cancel_scope.cancel()
