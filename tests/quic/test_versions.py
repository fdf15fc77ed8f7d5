"""QUIC versions 1 and 2: the choice of the version, and resumption (RFC 9368, RFC 9369)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import setup
from phoenix_trio.quic.handshake import admission
from phoenix_trio.quic.wire.protection import VERSION_1, VERSION_2
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls

Dial = Callable[[], AbstractAsyncContextManager[phoenix_trio.QuicConnection]]


class Versions:
    """The versions of the first long headers of each side's datagrams, in order."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.of_client: list[int] = []
        self.of_server: list[int] = []
        self.datagrams: list[Datagram] = []
        network.tap = self._note

    def _note(self, datagram: Datagram) -> Datagram:
        data = datagram.data
        self.datagrams.append(datagram)
        if data and data[0] & 0x80:
            seen = self.of_client if datagram.source[0] == CLIENT else self.of_server
            seen.append(int.from_bytes(data[1:5], "big"))
        return datagram


@asynccontextmanager
async def serving(
    network: SimulatedNetwork, preferred_version: Any = 1, **tls: Any
) -> AsyncIterator[Dial]:
    """A server that answers, and a function that dials it."""

    async def answer(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_streams():
            async with stream:
                asked = await stream.receive_all(100)
                await stream.send_all(b"%d %s" % (connection.version, asked), end=True)

    serve = partial(
        phoenix_trio.serve,
        answer,
        PORT,
        tls=server_tls(early_data=True),
        alpn=ALPN,
        network=network.host(SERVER),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield partial(
            phoenix_trio.open_connection,
            SERVER,
            PORT,
            tls=client_tls(**tls),
            alpn=ALPN,
            config=TransportConfig(preferred_version=preferred_version),
            network=network.host(CLIENT),
        )
        nursery.cancel_scope.cancel()


async def test_connections_tell_their_version_and_cipher(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        assert (client.version, server.version) == (1, 1)
        assert client.cipher == server.cipher
        assert client.cipher in (
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
        )
        cipher = client.cipher
        await client.aclose()
        await server.wait_closed()
        await trio.sleep(60)
        for ended in (client, server):
            assert (ended.version, ended.cipher) == (1, cipher)


async def test_there_is_no_cipher_before_it_is_agreed(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(endpoint._dial, SERVER, PORT, tls=client_tls(), alpn=ALPN, config=None)
                )
                await trio.sleep(0.5)
                (sink,) = endpoint._driver.sinks
                assert isinstance(sink, phoenix_trio.QuicConnection)
                assert (sink.cipher, sink.version) == (None, 1)


async def test_a_client_which_prefers_version_2_gets_it_without_another_round_trip(
    autojump_clock: MockClock,
) -> None:
    seconds = []
    for preferred in (1, 2):
        network = SimulatedNetwork(delay=0.1)
        versions = Versions(network)
        async with serving(network, preferred) as dial:
            started = trio.current_time()
            async with dial() as connection:
                seconds.append(trio.current_time() - started)
                assert connection.version == preferred
                assert await connection.request(b"hello") == b"%d hello" % preferred
        assert versions.of_client[0] == VERSION_1, "any server understands the first packet"
        assert versions.of_server[-1] == (VERSION_2 if preferred == 2 else VERSION_1)
    assert seconds[0] == pytest.approx(seconds[1], abs=0.01)


async def test_a_server_without_version_2_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    know_version_1_only(monkeypatch)
    network = SimulatedNetwork(delay=0.1)
    async with serving(network, 2) as dial:
        started = trio.current_time()
        async with dial() as connection:
            assert trio.current_time() - started < 0.25
            assert await connection.request(b"hello") == b"1 hello"
            assert connection.version == 1


def know_version_1_only(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let the test's servers know no other version from now on; returns the tickets they get."""
    tickets: list[bytes] = []
    monkeypatch.setattr(admission, "SUPPORTED_VERSIONS", (VERSION_1,))
    make = setup.server_settings

    def make_older(**arguments: Any) -> Any:
        settings = make(**arguments)
        settings.versions = (VERSION_1,)
        settings.find_ticket = tickets.append
        return settings

    monkeypatch.setattr(setup, "server_settings", make_older)
    return tickets


async def test_a_session_of_version_2_is_resumed_with_version_2_from_the_first_packet(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    store = phoenix_trio.SessionStore()
    async with serving(network, 2, session_store=store, early_data=True) as dial:
        async with dial() as first:
            await first.request(b"hello")
        versions = Versions(network)
        async with dial() as second:
            assert await second.request(b"early") == b"2 early"
            await second.wait_confirmed()
            assert second.session_resumed
            assert second.early_data_accepted
            assert second.version == 2
    assert set(versions.of_client + versions.of_server) == {VERSION_2}


async def test_a_ticket_of_one_version_does_not_resume_the_other(
    autojump_clock: MockClock,
) -> None:
    """RFC 9369 section 5.  A client of ours never tries; this one has lost its knowledge."""
    network = SimulatedNetwork(delay=0.01)
    store = phoenix_trio.SessionStore()
    async with serving(network, 2, session_store=store, early_data=True) as dial:
        async with dial() as first:
            await first.request(b"hello")
        for tickets in store._tickets._values.values():
            tickets[:] = [
                replace(ticket, other_extensions=ticket.other_extensions[:-1]) for ticket in tickets
            ]
        async with dial() as second:
            assert await second.request(b"early") == b"2 early"
            await second.wait_confirmed()
            assert not second.session_resumed
            assert not second.early_data_accepted


async def test_a_server_which_has_lost_version_2_is_dialled_anew_and_early_data_arrives_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It answers the packet of version 2 with Version Negotiation (RFC 9000 section 6)."""
    network = SimulatedNetwork(delay=0.01)
    store = phoenix_trio.SessionStore()
    async with serving(network, 2, session_store=store, early_data=True) as dial:
        async with dial() as first:
            await first.request(b"hello")
        tickets = know_version_1_only(monkeypatch)
        versions = Versions(network)
        async with dial() as second:
            assert await second.request(b"early") == b"1 early"
            await second.wait_confirmed()
            assert not second.session_resumed
            assert not second.early_data_accepted
            assert second.version == 1
            assert await second.request(b"later") == b"1 later"
        assert tickets == [], "the ticket of version 2 is not shown with version 1"
        changed = versions.of_client.index(VERSION_1)
        assert set(versions.of_client[:changed]) == {VERSION_2}
        assert set(versions.of_client[changed:]) == {VERSION_1}
        sent = [each.data for each in versions.datagrams if each.source[0] == CLIENT]
        assert not any(VERSION_2.to_bytes(4, "big") in data for data in sent[changed:]), (
            "nor is 0-RTT data sent any more, behind an Initial packet"
        )


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (3, ValueError), ("2", TypeError)])
def test_other_versions_cannot_be_preferred(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="preferred_version"):
        TransportConfig(preferred_version=value)
