"""Servers are restarted one by one under load, as real processes: no call is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import phoenix_trio
from phoenix_trio.quic.packet_io import UdpNetwork
from phoenix_trio.quic.path_address import SocketAddress
from tests.support import client_tls, server_pem

PROGRAM = Path(__file__).parents[1] / "examples" / "graceful_service.py"

CALLERS = 500


class Names(UdpNetwork):
    """Real sockets, and one name more than the system knows."""

    def __init__(self, name: str, *addresses: str) -> None:
        super().__init__()
        self._name = name
        self._addresses = addresses

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        if host != self._name:
            return await super().resolve(host, port)
        await trio.lowlevel.checkpoint()
        return [(address, port) for address in self._addresses]


@attrs.define
class Server:
    """A serving process."""

    process: trio.Process
    port: int
    output: bytes = b""

    async def restart(self, directory: Path, address: str) -> Server:
        """End it as a service manager does, and start the next one when it has ended."""
        await self.end()
        return await start(directory, address, self.port)

    async def end(self) -> None:
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(8):
            async for chunk in self.process.stdout:
                self.output += chunk
            assert await self.process.wait() == 0
        answers, _, cancelled = self.output.split()[:3]
        assert cancelled == b"0", "all answers were given within the grace"
        assert int(answers) > 0


async def start(directory: Path, address: str, port: int = 0) -> Server:
    process = await trio.lowlevel.open_process(
        [
            *(sys.executable, str(PROGRAM), "serve"),
            *("--host", address, "--port", str(port), "--grace", "5"),
        ],
        cwd=directory,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = bytearray()
    with trio.fail_after(20):
        while not line.endswith(b"\n"):
            chunk = await process.stdout.receive_some(1)
            assert chunk, "the server process ended"
            line += chunk
    return Server(process, int(line.split()[-1]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    certificate, key = server_pem()
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / "server.pem").write_bytes(certificate)
    (tmp_path / "certificates" / "server-key.pem").write_bytes(key)
    return tmp_path


class Load:
    """Callers of a service, each of which makes one call after the other."""

    def __init__(self, client: phoenix_trio.PhoenixTransport, target: tuple[str, int]) -> None:
        self.answers = 0
        self._client = client
        self._target = target
        self._is_over = False
        self._lot = trio.lowlevel.ParkingLot()
        self._retry = phoenix_trio.Retry(attempts=30)

    async def _call(self, number: int) -> None:
        calls = 0
        # There are calls all through a restart, because the callers do not keep step.
        await trio.sleep(0.3 * number / CALLERS)
        # (A few calls each, however short the test.)
        while not self._is_over or calls < 3:
            question = b"question %d of %d" % (calls, number)
            answer = await self._client.request(self._target, question, retry=self._retry)
            assert answer == question.upper()
            self.answers += 1
            self._lot.unpark_all()
            calls += 1
            await trio.sleep(0.3)

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for number in range(callers):
                nursery.start_soon(self._call, number)
            yield
            self._is_over = True

    async def wait_for_answers(self, count: int) -> None:
        more = self.answers + count
        while self.answers < more:
            await self._lot.park()


@asynccontextmanager
async def killed_in_the_end(servers: list[Server]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for server in servers:
            server.process.kill()
            with trio.CancelScope(shield=True):
                await server.process.wait()
            if server.process.stdout is not None:
                await server.process.stdout.aclose()


async def test_two_servers_behind_one_name_are_restarted_and_no_call_is_lost(
    directory: Path,
) -> None:
    addresses = ("127.0.0.1", "127.0.0.2")
    servers = [await start(directory, addresses[0])]
    async with killed_in_the_end(servers):
        servers.append(await start(directory, addresses[1], servers[0].port))
        async with phoenix_trio.open_phoenix(
            tls=client_tls(server_name="localhost"),
            network=Names("service.test", *addresses),
            max_connections=8,
        ) as client:
            load = Load(client, ("service.test", servers[0].port))
            async with load.running(CALLERS):
                await load.wait_for_answers(CALLERS)
                for number, address in enumerate(addresses):
                    servers[number] = await servers[number].restart(directory, address)
                    await load.wait_for_answers(CALLERS)
            assert load.answers >= 3 * CALLERS
            assert client.pool.statistics().waiting == 0


async def test_a_process_which_takes_over_the_port_of_the_one_before_loses_no_call(
    directory: Path,
) -> None:
    """There is a gap between the two: calls wait in it until the next process answers."""
    servers = [await start(directory, "127.0.0.1")]
    async with killed_in_the_end(servers):
        async with phoenix_trio.open_phoenix(tls=client_tls(), max_connections=4) as client:
            load = Load(client, ("127.0.0.1", servers[0].port))
            async with load.running(100):
                await load.wait_for_answers(100)
                servers[0] = await servers[0].restart(directory, "127.0.0.1")
                await load.wait_for_answers(100)
            assert load.answers >= 300
