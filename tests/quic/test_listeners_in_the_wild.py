"""Unchanged code that knows only Trio's streams and listeners runs over QUIC."""

from __future__ import annotations

import json
import ssl
from functools import partial
from pathlib import Path

import h11
import pytest
import trio
import trustme
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls
from tests.support import stream_pair as streams


async def shout(stream: trio.abc.Stream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(bytes(chunk).upper())


async def ask(stream: trio.abc.HalfCloseableStream, text: bytes) -> bytes:
    async with stream:
        await stream.send_all(text)
        await stream.send_eof()
        return b"".join([bytes(chunk) async for chunk in stream])


async def test_trio_serves_a_stream_listener_unchanged() -> None:
    listener = await phoenix_trio.open_stream_listener(0, host="127.0.0.1", tls=server_tls())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, shout, [listener])
            answers: list[bytes] = []

            async def client(number: int) -> None:
                async with phoenix_trio.open_connection(
                    "127.0.0.1", listener.port, tls=client_tls()
                ) as connection:
                    for _ in range(5):
                        stream = await connection.open_stream()
                        answers.append(await ask(stream, b"hello %d" % number))

            async with trio.open_nursery() as clients:
                for number in range(5):
                    clients.start_soon(client, number)
            assert sorted(answers) == sorted(b"HELLO %d" % n for n in range(5) for _ in range(5))
            nursery.cancel_scope.cancel()


async def test_a_closed_stream_listener_lets_its_streams_finish(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    listener = await phoenix_trio.open_stream_listener(
        PORT, tls=server_tls(), alpn=ALPN, network=network.host(SERVER)
    )
    async with trio.open_nursery() as nursery:

        async def client() -> None:
            async with phoenix_trio.open_connection(
                SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
            ) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"first")
                assert await stream.receive_some() == b"FIRST"
                await trio.sleep(1)
                late = await connection.open_stream()
                await late.send_all(b"late")
                with pytest.raises(phoenix_trio.StreamReset) as caught:
                    await late.receive_some()
                assert caught.value.error_code == phoenix_trio.ApplicationErrorCode.NOT_PROCESSED
                assert await ask(stream, b"second") == b"SECOND"
                await connection.wait_closed()

        nursery.start_soon(client)
        accepted = await listener.accept()
        nursery.start_soon(shout, accepted)
        await trio.sleep(0.5)
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
    assert not network._sockets, "the socket outlives its last stream"


async def test_tls_inside_a_quic_stream(autojump_clock: MockClock) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("inner.example").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with connected_pair() as (client, server):
        ours, theirs = await streams(client, server)
        outside = trio.SSLStream(ours, client_context, server_hostname="inner.example")
        inside = trio.SSLStream(theirs, server_context, server_side=True)
        data = bytes(range(256)) * 4000

        async def echo_inside() -> None:
            received = bytearray()
            while len(received) < len(data):
                chunk = await inside.receive_some()
                received += chunk
                await inside.send_all(chunk)
            await inside.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_inside)
            nursery.start_soon(outside.send_all, data)
            received = bytearray()
            async for chunk in outside:
                received += chunk
            assert received == data
            await outside.aclose()


async def test_a_library_which_takes_any_stream_speaks_http_over_quic(
    autojump_clock: MockClock,
) -> None:
    """h11 over Trio streams, as in its documentation over sockets."""

    async def exchange(stream: trio.abc.Stream, machine: h11.Connection) -> object:
        while (event := machine.next_event()) is h11.NEED_DATA:
            machine.receive_data(bytes(await stream.receive_some()))
        return event

    async def server(stream: trio.abc.Stream) -> None:
        machine = h11.Connection(h11.SERVER)
        request = await exchange(stream, machine)
        assert isinstance(request, h11.Request)
        while not isinstance(await exchange(stream, machine), h11.EndOfMessage):
            pass
        body = b"you asked for " + request.target
        headers = [("content-length", str(len(body)))]
        for event in (
            h11.Response(status_code=200, headers=headers),
            h11.Data(body),
            h11.EndOfMessage(),
        ):
            await stream.send_all(machine.send(event) or b"")

    async with connected_pair() as (client, here), trio.open_nursery() as nursery:
        ours, theirs = await streams(client, here)
        nursery.start_soon(server, theirs)
        machine = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target="/x", headers=[("host", "h")])
        await ours.send_all(
            (machine.send(request) or b"") + (machine.send(h11.EndOfMessage()) or b"")
        )
        response = await exchange(ours, machine)
        assert isinstance(response, h11.Response)
        data = await exchange(ours, machine)
        assert isinstance(data, h11.Data)
        assert bytes(data.data) == b"you asked for /x"


# ------------------------------------------------------------------ key log and traces


async def test_secrets_are_logged_for_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "from-environment"))
    config = TransportConfig(keylog_file=tmp_path / "from-configuration")
    async with connected_pair(client_config=config):
        pass
    logs = [
        {
            tuple(line.split()[:2]): line.split()[2]
            for line in (tmp_path / name).read_text().splitlines()
        }
        for name in ("from-environment", "from-configuration")
    ]
    assert logs[0] == logs[1]
    assert {label for label, _ in logs[0]} == {
        f"{side}_{kind}"
        for side in ("CLIENT", "SERVER")
        for kind in ("HANDSHAKE_TRAFFIC_SECRET", "TRAFFIC_SECRET_0")
    }


async def test_traces_are_written_as_things_happen_and_closed_with_the_connection(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    config = TransportConfig(qlog_dir=tmp_path)
    async with connected_pair(config=config) as (client, server):
        ours, theirs = await streams(client, server)
        await ours.send_all(bytes(100_000))
        await ours.wait_acked()
        (file,) = tmp_path.glob("*-client.sqlog")
        written = file.read_text()
        assert "transport:packet_sent" in written, "nothing is kept in memory"
        await theirs.aclose()
    files = sorted(tmp_path.iterdir())
    assert [f.name.rpartition("-")[2] for f in files] == ["client.sqlog", "server.sqlog"]
    for file in files:
        records = [json.loads(r) for r in file.read_text().split("\x1e")[1:]]
        assert records[0]["qlog_format"] == "JSON-SEQ"
        names = {record["name"] for record in records[1:]}
        assert {"transport:packet_sent", "transport:packet_received"} <= names


async def test_a_missing_trace_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="qlog_dir"):
        async with phoenix_trio.Endpoint.open(
            "127.0.0.1", config=TransportConfig(qlog_dir=tmp_path / "missing")
        ):
            pass
    with pytest.raises(FileNotFoundError, match="missing"):
        async with phoenix_trio.Endpoint.open(
            "127.0.0.1", config=TransportConfig(keylog_file=tmp_path / "missing" / "keys")
        ):
            pass


async def test_a_trace_which_cannot_be_written_costs_one_client_only(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(qlog_dir=traces)
    async with phoenix_trio.Endpoint.open(
        None, PORT, config=config, network=network.host(SERVER)
    ) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)
        traces.rename(tmp_path / "moved")

        def dial():  # type: ignore[no-untyped-def]
            return phoenix_trio.open_connection(
                SERVER,
                PORT,
                tls=client_tls(),
                alpn=ALPN,
                network=network.host(CLIENT),
                config=TransportConfig(max_idle_timeout=3),
            )

        with pytest.raises(phoenix_trio.HandshakeTimedOut):
            async with dial():
                pass
        assert "could not be made" in caplog.text
        (tmp_path / "moved").rename(traces)
        async with dial():
            pass


async def test_a_server_takes_a_new_certificate_while_it_runs(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    tls = server_tls()
    other = trustme.CA()
    issued = other.issue_cert(SERVER)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()

    def dial(trust: phoenix_trio.ClientTLS):  # type: ignore[no-untyped-def]
        return phoenix_trio.open_connection(
            SERVER, PORT, tls=trust, alpn=ALPN, network=network.host(CLIENT)
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                phoenix_trio.serve,
                handler,
                PORT,
                tls=tls,
                alpn=ALPN,
                network=network.host(SERVER),
            )
        )
        async with dial(client_tls()) as old:
            tls.reload(issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())
            async with dial(phoenix_trio.ClientTLS(ca=other.cert_pem.bytes())):
                await old.ping()
            with pytest.raises(phoenix_trio.CertificateUntrusted):
                async with dial(client_tls()):
                    pass
        nursery.cancel_scope.cancel()
