"""A client whose socket is bound to an address which the host loses."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import socket_options
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, forbid_moves, forget_spare_connection_ids
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

SECOND = "10.0.0.9"


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            await stream.send_all(await stream.receive_all(100))


@asynccontextmanager
async def bound_client(
    network: SimulatedNetwork, host: str | None = CLIENT, *, leaves: bool = True
) -> AsyncIterator[phoenix_trio.QuicConnection]:
    """A connection whose client's socket is bound to one of the host's two addresses."""
    config = TransportConfig(leave_lost_address=leaves, max_idle_timeout=10.0)
    here = network.host(CLIENT, SECOND)
    async with (
        phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as server,
        phoenix_trio.Endpoint.open(host, config=config, network=here) as endpoint,
        trio.open_nursery() as nursery,
    ):
        listener = server.listen(tls=server_tls(), alpn=ALPN)

        async def accept() -> None:
            with suppress(phoenix_trio.ConnectionTimedOut):
                await answer(await listener.accept())

        nursery.start_soon(accept)
        async with endpoint.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN) as connection:
            await connection.wait_confirmed()
            await trio.sleep(0.1)
            yield connection
        nursery.cancel_scope.cancel()


async def test_a_connection_goes_on_from_another_address(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network) as client:
        assert await client.request(b"one") == b"one"
        network.host(CLIENT).lose(CLIENT)
        with trio.fail_after(2):
            assert await client.request(b"two") == b"two"
        assert client.local_address[1] != 0
        assert len(client._driver.sockets.more) == 1
        assert await client.request(b"three") == b"three"
        assert len(client._driver.sockets.more) == 1, "once is enough"
    assert not network._sockets


async def test_it_does_so_after_a_move_as_well(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network) as client:
        await client.migrate(SECOND)
        assert await client.request(b"one") == b"one"
        network.host(CLIENT).lose(SECOND)
        with trio.fail_after(2):
            assert await client.request(b"two") == b"two"
        assert len(client._driver.sockets.more) == 1, "the socket of the lost address is closed"


async def test_it_stays_unless_it_was_asked_to_leave(autojump_clock: MockClock) -> None:
    """Packets for a tunnel must not leave by another interface when the tunnel is gone."""
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network, leaves=False) as client:
        network.host(CLIENT).lose(CLIENT)
        with pytest.raises(phoenix_trio.ConnectionTimedOut):
            await client.request(b"two")
        assert not client._driver.sockets.more


async def test_a_socket_of_all_addresses_goes_on_by_itself(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network, None) as client:
        network.host(CLIENT).lose(CLIENT)
        with trio.fail_after(2):
            assert await client.request(b"two") == b"two"
        assert not client._driver.sockets.more


async def test_it_stays_where_the_server_permits_no_moves(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network) as client:
        forbid_moves(engine_of(client))
        network.host(CLIENT).lose(CLIENT)
        with pytest.raises(phoenix_trio.ConnectionTimedOut):
            await client.request(b"two")
        assert not client._driver.sockets.more


async def test_attempts_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with bound_client(network) as client:
        forget_spare_connection_ids(engine_of(client))
        opened = 0
        rebinding = client._driver.rebinding
        open_socket = rebinding.open_socket
        assert open_socket is not None

        async def counting(host: str | None, port: int):  # type: ignore[no-untyped-def]
            nonlocal opened
            opened += 1
            return await open_socket(host, port)

        monkeypatch.setattr(rebinding, "open_socket", counting)
        network.host(CLIENT).lose(CLIENT)
        with pytest.raises(phoenix_trio.ConnectionTimedOut):
            await client.request(b"two")
        assert opened == 3
        assert not client._driver.sockets.more


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is local on Linux")
def test_a_real_socket_knows_whether_its_address_is_lost() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.bind(("127.0.0.1", 0))
        assert not socket_options.has_lost_address(raw)

    class Elsewhere:
        family = socket.AF_INET

        def getsockname(self) -> tuple[str, int]:
            return "192.0.2.1", 5555

    assert socket_options.has_lost_address(Elsewhere())  # type: ignore[arg-type]
