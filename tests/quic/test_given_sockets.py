"""Sockets handed in by the application, and ports shared by several sockets."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, SERVER, client_tls, server_tls


def bound(host: str, *, dual_stack: bool = False) -> socket.socket:
    """A UDP socket on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        opened.bind((host, 0))
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")
    return opened


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            await stream.send_all(await stream.receive_all(100), end=True)


async def ask(port: int, host: str = "127.0.0.1") -> bytes:
    async with phoenix_trio.open_connection(host, port, tls=client_tls(), alpn=ALPN) as connection:
        return await connection.request(b"hello")


@asynccontextmanager
async def serving(**arguments: Any) -> AsyncIterator[list[phoenix_trio.QuicListener]]:
    serve = partial(phoenix_trio.serve, answer, tls=server_tls(), alpn=ALPN, **arguments)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(serve)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("host", "dual_stack", "reached"),
    [
        ("127.0.0.1", False, ["127.0.0.1"]),
        ("0.0.0.0", False, ["127.0.0.1"]),
        ("::1", False, ["::1"]),
        ("::", True, ["127.0.0.1", "::1"]),
    ],
)
async def test_a_server_serves_on_a_socket_which_it_is_given(
    host: str, dual_stack: bool, reached: list[str]
) -> None:
    given = bound(host, dual_stack=dual_stack)
    port = given.getsockname()[1]
    async with serving(socket=given) as listeners:
        assert [listener.port for listener in listeners] == [port]
        for each in reached:
            assert await ask(port, each) == b"hello"
    assert given.fileno() == -1, "it was closed at the end"


async def test_listeners_and_endpoints_take_a_socket_and_close_it() -> None:
    given = bound("127.0.0.1")
    port = given.getsockname()[1]
    listener = await phoenix_trio.open_listener(tls=server_tls(), alpn=ALPN, socket=given)
    assert listener.port == port
    await listener.aclose()
    assert given.fileno() == -1

    given = bound("127.0.0.1")
    streams = await phoenix_trio.open_stream_listener(tls=server_tls(), alpn=ALPN, socket=given)
    await streams.aclose()
    assert given.fileno() == -1

    given = bound("127.0.0.1")
    port = given.getsockname()[1]
    async with (
        serving(port=0, host="127.0.0.1") as (served,),
        phoenix_trio.Endpoint.open(socket=given) as endpoint,
    ):
        assert endpoint.address == ("127.0.0.1", port)
        async with endpoint.connect(
            "127.0.0.1", served.port, tls=client_tls(), alpn=ALPN
        ) as connection:
            assert await connection.request(b"hello") == b"hello"
    assert given.fileno() == -1


async def test_a_duplicate_leaves_the_original_to_its_owner() -> None:
    given = bound("127.0.0.1")
    port = given.getsockname()[1]
    for _ in range(2):
        async with serving(socket=given.dup()):
            assert await ask(port) == b"hello"
    assert given.getsockname()[1] == port
    given.close()


async def test_chosen_buffers_of_a_given_socket_stay_and_others_grow() -> None:
    chosen, ordinary = bound("127.0.0.1"), bound("127.0.0.1")
    chosen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    size = chosen.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    before = ordinary.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    config = phoenix_trio.TransportConfig(socket_buffer_size=before)
    async with (
        phoenix_trio.Endpoint.open(socket=chosen, config=config),
        phoenix_trio.Endpoint.open(socket=ordinary, config=config),
    ):
        assert chosen.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        if sys.platform == "linux":
            assert ordinary.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before


def unbound() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def of_tcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def lying() -> socket.socket:
    """A socket whose type attribute is wrong."""
    tcp = of_tcp()
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, fileno=tcp.detach())


def of_unix() -> socket.socket:
    if sys.platform == "win32":
        pytest.skip("no UNIX sockets here")
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def of_pings() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except OSError:
        pytest.skip("no sockets for pings here")


def connected() -> socket.socket:
    opened = bound("127.0.0.1")
    opened.connect(("127.0.0.1", 9))
    return opened


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (unbound, "not bound"),
        (of_tcp, "must be a datagram socket"),
        (lying, "must be a datagram socket"),
        (of_unix, "must be one of IPv4 or IPv6"),
        (of_pings, "must be of UDP"),
        (connected, "is connected to 127.0.0.1 port 9"),
    ],
)
async def test_a_socket_which_does_not_fit_is_refused_and_left_as_it_was(
    make: Callable[[], socket.socket], text: str
) -> None:
    given = make()
    for call in (
        partial(phoenix_trio.serve, answer, tls=server_tls(), socket=given),
        partial(phoenix_trio.open_listener, tls=server_tls(), socket=given),
        phoenix_trio.Endpoint.open(socket=given).__aenter__,
    ):
        with pytest.raises(ValueError, match=text):
            await call()
    assert given.fileno() != -1
    assert given.getblocking()
    given.close()


async def test_what_is_no_socket_and_what_is_closed_is_refused() -> None:
    given: Any
    for given in (7, "socket", trio.socket.socket()):
        with pytest.raises(TypeError, match=r"must be a socket\.socket"):
            async with phoenix_trio.Endpoint.open(socket=given):
                pass
    given.close()
    closed = bound("127.0.0.1")
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        async with phoenix_trio.Endpoint.open(socket=closed):
            pass


async def test_arguments_which_contradict_a_socket_are_refused() -> None:
    with bound("127.0.0.1") as given:
        for arguments, text in [
            ({"host": "127.0.0.1"}, "leave out host and port"),
            ({"port": 4433}, "leave out host and port"),
            ({"reuse_port": True}, "before a socket is bound"),
            ({"network": SimulatedNetwork().host(SERVER)}, "leave out network"),
        ]:
            with pytest.raises(ValueError, match=text):
                await phoenix_trio.open_listener(
                    tls=server_tls(),
                    socket=given,
                    **arguments,  # type: ignore[arg-type]
                )
            with pytest.raises(ValueError, match=text):
                await phoenix_trio.serve(
                    answer,
                    tls=server_tls(),
                    socket=given,
                    **arguments,  # type: ignore[arg-type]
                )
        assert given.fileno() != -1
        assert given.getblocking()
    for call in (phoenix_trio.open_listener, partial(phoenix_trio.serve, answer)):
        with pytest.raises(TypeError, match="a port is needed, or a socket"):
            await call(tls=server_tls())  # type: ignore[operator]


async def test_cancellation_leaves_a_given_socket_to_the_caller() -> None:
    with bound("127.0.0.1") as given:
        with trio.CancelScope() as scope:
            scope.cancel()
            await phoenix_trio.open_listener(tls=server_tls(), alpn=ALPN, socket=given)
        assert scope.cancelled_caught
        assert given.fileno() != -1
        assert given.getblocking()


async def test_a_log_which_cannot_be_written_leaves_a_given_socket_to_the_caller() -> None:
    config = phoenix_trio.TransportConfig(keylog_file="/no such directory/keys")
    with bound("127.0.0.1") as given:
        with pytest.raises(FileNotFoundError):
            await phoenix_trio.open_listener(tls=server_tls(), socket=given, config=config)
        assert given.fileno() != -1
        assert given.getblocking()


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
async def test_several_sockets_share_a_port_where_each_says_so() -> None:
    async with serving(port=0, host="127.0.0.1", reuse_port=True) as (first,):
        port = first.port
        with pytest.raises(OSError, match="cannot bind") as caught:
            await phoenix_trio.open_listener(port, host="127.0.0.1", tls=server_tls())
        assert caught.value.errno == errno.EADDRINUSE
        async with serving(port=port, host="127.0.0.1", reuse_port=True) as (second,):
            for _ in range(24):
                assert await ask(port) == b"hello"
            accepted = [each.statistics().connections_accepted for each in (first, second)]
            assert sum(accepted) == 24
            assert min(accepted) > 0, "(it is 0 once in eight million runs)"
        async with phoenix_trio.Endpoint.open("127.0.0.1", port, reuse_port=True) as endpoint:
            assert endpoint.port == port


async def test_a_simulated_host_shares_no_port() -> None:
    with pytest.raises(OSError, match="SO_REUSEPORT"):
        await phoenix_trio.open_listener(
            4433, tls=server_tls(), reuse_port=True, network=SimulatedNetwork().host(SERVER)
        )
