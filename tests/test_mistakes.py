"""Mistakes of programs get errors that say what to write instead."""

from __future__ import annotations

import gc
import logging
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, ClientTLS, ServerTLS, TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    authority_pem,
    client_pem,
    client_tls,
    server_pem,
    server_tls,
)

Connection = phoenix_trio.QuicConnection


async def handler(connection: Any) -> None:
    await connection.wait_closed()


async def generating_handler(connection: Any) -> AsyncIterator[int]:
    await connection.wait_closed()
    yield 1


def dial(host: Any = SERVER, port: Any = PORT, **more: Any) -> Callable[[], Awaitable[None]]:
    async def attempt() -> None:
        network = SimulatedNetwork().host(CLIENT)
        async with phoenix_trio.open_connection(host, port, network=network, **more):
            pass

    return attempt


def serve(run: Any = handler, port: Any = PORT, **more: Any) -> Callable[[], Awaitable[None]]:
    async def attempt() -> None:
        network = SimulatedNetwork().host(SERVER)
        arguments = {"tls": server_tls(), "alpn": ALPN, "network": network} | more
        await phoenix_trio.serve(run, port, **arguments)

    return attempt


def phoenix(*arguments: Any, **more: Any) -> Callable[[], Awaitable[None]]:
    async def attempt() -> None:
        async with phoenix_trio.open_phoenix(*arguments, **more):
            pass

    return attempt


#: A call, the exception's type, and what its text must say.
WRONG_ARGUMENTS: dict[str, tuple[Callable[[], Awaitable[Any]], type[Exception], str]] = {
    "a server's TLS for a client": (dial(tls=server_tls()), TypeError, "ClientTLS(ca="),
    "a path for TLS": (dial(tls="ca.pem"), TypeError, 'ClientTLS(ca="ca.pem")'),
    "host:port": (dial("there:4433"), ValueError, "two arguments: 'there', 4433"),
    "[v6]:port": (dial("[::1]:443"), ValueError, "'::1', 443"),
    "[v6]": (dial("[::1]"), ValueError, f"'::1', {PORT}"),
    "a URL": (dial("https://there:1/x"), ValueError, "not a URL: 'there'"),
    "host and port as one": (dial((SERVER, PORT)), TypeError, "two arguments"),
    "a host of bytes": (dial(b"there"), TypeError, "write 'there'"),
    "no host": (dial(""), ValueError, "host must not be empty"),
    "a port of text": (dial(port="4433"), TypeError, "write 4433"),
    "a port of words": (dial(port="https"), TypeError, "an integer, not 'https'"),
    "port 0": (dial(port=0), ValueError, "between 1 and 65535"),
    "a dict for config": (dial(config={}), TypeError, "TransportConfig(**values)"),
    "the class as config": (dial(config=TransportConfig), TypeError, "write TransportConfig()"),
    "a pool's config": (dial(config=phoenix_trio.PoolConfig()), TypeError, "goes into pool="),
    "TLS as config": (dial(config=client_tls()), TypeError, "a ClientTLS goes into tls="),
    "one protocol name": (dial(alpn="h3"), TypeError, '("h3",)'),
    "a protocol name of bytes": (dial(alpn=b"h3"), TypeError, "('h3',)"),
    "protocol names of bytes": (dial(alpn=[b"h3"]), TypeError, "write 'h3'"),
    "no protocol names": (dial(alpn=()), ValueError, "the same on both sides"),
    "None for names": (dial(alpn=None), TypeError, "a sequence of names"),
    "a client's TLS for a server": (serve(tls=client_tls()), TypeError, "give it client_ca="),
    "None as TLS": (serve(tls=None), TypeError, "ServerTLS, not None"),
    "an SSLContext": (
        serve(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)),
        TypeError,
        "cannot speak QUIC",
    ),
    "a number as handler": (serve(5), TypeError, "handler must be an async function"),
    "a generator as handler": (serve(generating_handler), TypeError, "must not yield"),
    "a server's port of text": (serve(port="4433"), TypeError, "write 4433"),
    "a server's port below 0": (serve(port=-1), ValueError, "between 0 and 65535"),
    "a server's host with a port": (serve(host="127.0.0.1:80"), ValueError, "'127.0.0.1', 80"),
    "an empty local host": (serve(host=""), ValueError, "leave it out"),
    "a server's names": (serve(alpn="h3"), TypeError, '("h3",)'),
    "a server's config": (serve(config={}), TypeError, "TransportConfig"),
    "no name": (phoenix(TransportConfig()), TypeError, "keyword arguments"),
    "swapped TLS": (phoenix("x", tls=server_tls()), TypeError, "ClientTLS"),
    "swapped server TLS": (phoenix("x", server_tls=client_tls()), TypeError, "server_tls must"),
    "swapped configs": (phoenix("x", pool=TransportConfig()), TypeError, "PoolConfig"),
}


@pytest.mark.parametrize("mistake", WRONG_ARGUMENTS)
async def test_wrong_arguments_are_named(mistake: str, autojump_clock: MockClock) -> None:
    call, kind, text = WRONG_ARGUMENTS[mistake]
    with trio.fail_after(60), pytest.raises(kind) as caught:
        await call()
    assert type(caught.value) is kind
    assert text in str(caught.value)


async def test_a_handler_that_was_called_is_named_without_a_second_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="pass handler itself"):
            await serve(handler(None))()
        gc.collect()


async def test_ipv6_addresses_without_brackets_are_targets() -> None:
    from phoenix_trio.quic.arguments import check_local_address, check_target

    for host in ("::1", "fe80::1%eth0", "2001:db8::", "localhost", "127.0.0.1"):
        check_target(host, 1)
        check_local_address(host, 0)


@asynccontextmanager
async def connected(
    serve_one: Callable[[Connection], Awaitable[object]] = handler,
    *,
    alpn: tuple[str, ...] = ALPN,
    **more: Any,
) -> AsyncIterator[Connection]:
    """A client's connection to a server with this handler."""
    network = SimulatedNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                serve_one,
                PORT,
                tls=server_tls(),
                alpn=alpn,
                network=network.host(SERVER),
                **more,
            )
        )
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=alpn, network=network.host(CLIENT)
        ) as connection:
            yield connection
        nursery.cancel_scope.cancel()


async def test_values_that_are_no_bytes_are_named(autojump_clock: MockClock) -> None:
    async with connected() as connection, await connection.open_stream() as stream:
        calls: list[Callable[[Any], Awaitable[object]]] = [
            stream.send_all,
            connection.request,
            connection.send_datagram,
        ]
        for call in calls:
            with pytest.raises(TypeError, match=r"not str: pass text.encode\(\)"):
                await call("text")
            with pytest.raises(TypeError, match=r"not dict: .*encode="):
                await call({"a": 1})
            with pytest.raises(TypeError, match="not int"):
                await call(5)  # bytes(5) would be five zeros
        with pytest.raises(TypeError, match="contiguous"):
            await stream.send_all(memoryview(b"abcdef")[::2])
        await stream.send_all(memoryview(b"abcd"))
        await connection.send_datagram(memoryview(b"abcdef")[::2])
        with pytest.raises(TypeError, match="text goes into reason="):
            connection.abort("bye")  # type: ignore[arg-type]


async def test_messages_and_transfers_say_how_to_make_bytes(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)

    async def closed(connection: phoenix_trio.PhoenixConnection) -> None:
        await connection.quic.wait_closed()

    async with (
        trio.open_nursery() as nursery,
        phoenix_trio.open_phoenix(
            "server", server_tls=server_tls(), network=network.host(SERVER)
        ) as server,
        phoenix_trio.open_phoenix("x", tls=client_tls(), network=network.host(CLIENT)) as client,
    ):
        await nursery.start(partial(server.serve, closed, PORT))
        with pytest.raises(TypeError, match=r"json.dumps"):
            await client.send_multiplexed((SERVER, PORT), {"a": b""})  # type: ignore[arg-type]
        async with client.connect((SERVER, PORT)) as connection:
            with pytest.raises(TypeError, match="encode="):
                await connection.send_data({"a": 1})
            with pytest.raises(ValueError, match="max_size must be 0 or more"):
                await connection.receive_data(max_size=-1)
            with pytest.raises(TypeError, match="decode must be a function"):
                await connection.receive_data(decode=5)  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="messages"):
                async for _ in connection:  # type: ignore[attr-defined]
                    pass
            with pytest.raises(TypeError, match=r"await connection.open_stream"):
                connection.open_batching_channel(connection)  # type: ignore[call-overload]
        nursery.cancel_scope.cancel()


async def test_a_channel_needs_a_stream(autojump_clock: MockClock) -> None:
    async with connected() as connection:
        with pytest.raises(TypeError, match="not QuicConnection: open one with await"):
            phoenix_trio.open_batching_channel(connection)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"not a coroutine: write await open_stream"):
            phoenix_trio.open_batching_channel(connection.open_stream())  # type: ignore[call-overload]
        one_way = await connection.open_send_stream()
        with pytest.raises(TypeError, match=r"receive_some\(\), not SendStream"):
            phoenix_trio.open_batching_channel(one_way)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="incoming_streams"):
            async for _ in connection:  # type: ignore[attr-defined]
                pass


async def test_a_second_task_on_a_stream_is_told_what_to_do(autojump_clock: MockClock) -> None:
    async with connected() as connection, await connection.open_stream() as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(50_000_000))
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match=r"trio.Lock .* stream for each"):
                await stream.send_all(b"x")
            with pytest.raises(trio.BusyResourceError, match="open_memory_channel"):
                await stream.receive_some()
            with pytest.raises(trio.BusyResourceError, match="open_memory_channel"):
                await stream.receive_all(10)
            nursery.cancel_scope.cancel()
        stream.reset()


async def test_codes_of_closed_connections_have_their_names(autojump_clock: MockClock) -> None:
    async def refuse(connection: Connection) -> None:
        connection.abort(ApplicationErrorCode.MESSAGE_TOO_LARGE, "no")

    async def text_of(alpn: str) -> str:
        async with connected(refuse, alpn=(alpn,)) as connection:
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                await connection.accept_stream()
        return str(caught.value)

    assert "MESSAGE_TOO_LARGE (0x4): 'no'" in await text_of("phoenix/1")
    # Another protocol may use the same number for something else.
    assert "code 0x4: 'no'" in await text_of("own/1")


async def test_a_stopped_stream_names_the_code(autojump_clock: MockClock) -> None:
    async def small(connection: Connection) -> None:
        async with await connection.accept_stream() as stream:
            with suppress(phoenix_trio.StreamTooLarge):
                await stream.receive_all(1000)
            await connection.wait_closed()

    async with (
        connected(small, alpn=("phoenix/1",)) as connection,
        await connection.open_stream() as stream,
    ):
        with pytest.raises(phoenix_trio.StreamStopped, match="MESSAGE_TOO_LARGE"):
            while True:
                await stream.send_all(bytes(100_000))


# ---------------------------------------------------------------- peers that leave


def subscriber_loop(kind: str) -> Callable[[Connection], Awaitable[object]]:
    """A handler which sends for ever to the subscriber that has opened a stream."""

    async def plain(stream: phoenix_trio.QuicStream) -> None:
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)

    async def batches(stream: phoenix_trio.QuicStream) -> None:
        async with phoenix_trio.open_batching_channel(stream) as (sending, _):
            while True:
                await sending.send(b"x")
                await trio.sleep(0.01)

    async def in_a_nursery(stream: phoenix_trio.QuicStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plain, stream)
            nursery.start_soon(trio.sleep_forever)

    send = {"plain": plain, "batches": batches, "nursery": in_a_nursery}[kind]

    async def serve_one(connection: Connection) -> None:
        async with await connection.accept_stream() as stream:
            await send(stream)

    return serve_one


@pytest.mark.parametrize("kind", ["plain", "batches", "nursery"])
@pytest.mark.parametrize("way", ["stream", "connection", "exception"])
async def test_a_subscriber_who_leaves_is_no_crash(
    kind: str, way: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    crashes: list[Exception] = []
    with caplog.at_level(logging.INFO, "phoenix_trio"), suppress(KeyError):
        async with connected(subscriber_loop(kind), on_error=crashes.append) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"subscribe")
            await stream.receive_some()
            if way == "stream":
                await stream.aclose()
                with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                    await connection.accept_stream()
                assert caught.value.error_code == ApplicationErrorCode.CANCELLED
            elif way == "exception":
                connection.abort(ApplicationErrorCode.CANCELLED)
            else:
                await connection.aclose()
            await trio.sleep(1)
    assert not crashes
    said = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(said) == (way == "stream")
    if said:
        assert "catch trio.BrokenResourceError" in said[0].getMessage()


async def test_a_stream_that_is_refused_for_a_reason_is_a_crash(autojump_clock: MockClock) -> None:
    crashes: list[Exception] = []
    async with connected(subscriber_loop("plain"), on_error=crashes.append) as connection:
        stream = await connection.open_stream()
        await stream.send_all(b"subscribe")
        await stream.receive_some()
        stream.stop_receiving(ApplicationErrorCode.MALFORMED)
        await trio.sleep(1)
    assert [type(crash) for crash in crashes] == [phoenix_trio.StreamStopped]


# ---------------------------------------------------------------- unidirectional streams


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if "unidirectional" in record.getMessage()
    ]


@pytest.mark.parametrize("early", [True, False])
async def test_a_unidirectional_stream_without_a_taker_is_warned_of_once(
    early: bool, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async def only_bidirectional(connection: Connection) -> None:
        if early:
            await trio.sleep(1)  # the stream is there before the task asks
        async for _ in connection.incoming_streams():
            pass

    async with connected(only_bidirectional) as connection:
        if not early:
            await trio.sleep(1)
        for _ in range(3):
            await (await connection.open_send_stream()).send_all(b"x")
        await trio.sleep(2)
    (text,) = warnings_in(caplog)
    assert "incoming_receive_streams()" in text


async def test_tasks_for_both_kinds_of_streams_are_not_warned(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    taken = 0

    async def both(connection: Connection) -> None:
        async def take(streams: AsyncIterator[object]) -> None:
            nonlocal taken
            async for _ in streams:
                taken += 1

        async def one_way() -> None:
            await take(connection.incoming_receive_streams())

        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_way)  # which runs for the first time while this task waits
            await take(connection.incoming_streams())

    async with connected(both) as connection:
        await (await connection.open_send_stream()).send_all(b"x")
        await trio.sleep(2)
        await (await connection.open_stream()).send_all(b"x")
        await trio.sleep(2)
    assert taken == 2
    assert not warnings_in(caplog)


# ---------------------------------------------------------------- certificates, settings, modules


def test_certificates_and_keys_in_the_wrong_place_are_named(tmp_path: Path) -> None:
    certificate, key = server_pem()
    with pytest.raises(ValueError, match=r"certificate: .* but a private key: are the two .*swap"):
        ServerTLS(key, certificate)
    with pytest.raises(ValueError, match=r"private_key: .* but a certificate: are the two .*swap"):
        ServerTLS(certificate, certificate)
    with pytest.raises(ValueError, match="does not belong to"):
        ServerTLS(certificate, client_pem()[1])
    with pytest.raises(FileNotFoundError, match=r"certificate: .*nowhere.pem"):
        ServerTLS(tmp_path / "nowhere.pem", key)
    with pytest.raises(ValueError, match="pass a path as a string"):
        ServerTLS(b"server.pem", key)
    with pytest.raises(ValueError, match="openssl x509 -inform DER"):
        ServerTLS(b"\x30\x82\x01\x0a", key)
    with pytest.raises(ValueError, match=r"ca: <PEM> holds no certificate, but a private key$"):
        ClientTLS(ca=key)
    tls = server_tls()
    with pytest.raises(TypeError, match=r"public_bytes\(Encoding.PEM\)"):
        ServerTLS(tls.identity.certificate, key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="private_bytes"):
        ServerTLS(certificate, tls.identity.private_key)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one file"):
        ServerTLS([certificate, authority_pem()], key)  # type: ignore[arg-type]


def test_settings_name_what_they_may_be() -> None:
    with pytest.raises(ValueError, match=r"^congestion_control must be 'cubic' or 'reno', not 'b"):
        TransportConfig(congestion_control="bbr")  # type: ignore[arg-type]
    with pytest.raises(TypeError) as flag:
        TransportConfig(enable_datagrams=1)  # type: ignore[arg-type]
    assert str(flag.value) == "enable_datagrams must be True or False, not 1"
    with pytest.raises(TypeError) as key:
        TransportConfig(stateless_reset_key="secret")  # type: ignore[arg-type]
    assert str(key.value) == "stateless_reset_key must be bytes or None, not str"


def test_modules_loaded_on_request_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prometheus", "opentelemetry"):
        monkeypatch.delattr(phoenix_trio, name, raising=False)
        with pytest.raises(AttributeError, match=f"write import phoenix_trio.{name}"):
            getattr(phoenix_trio, name)
    with pytest.raises(AttributeError, match="has no attribute 'conect'"):
        _ = phoenix_trio.conect  # type: ignore[attr-defined]
