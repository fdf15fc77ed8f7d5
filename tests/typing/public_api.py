"""The types that users see.  Checked by mypy, never run.

Each `assert_type` is a promise: a change to this file is a change to the API.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import assert_type

import attrs
import trio
from cryptography.x509 import Certificate

import phoenix_trio
import phoenix_trio.streams
from phoenix_trio import (
    ApplicationErrorCode,
    ClientTLS,
    ConnectionStatistics,
    Endpoint,
    EndpointStatistics,
    QuicConnection,
    QuicListener,
    QuicStream,
    ReceiveStream,
    SendStream,
    ServerTLS,
    SessionStore,
    StreamListener,
    TransportConfig,
)
from phoenix_trio.streams.messages import Buffer


async def dialling() -> None:
    async with phoenix_trio.open_connection("example.org", 4433) as connection:
        assert_type(connection, QuicConnection)
    async with phoenix_trio.open_connection(
        "example.org",
        4433,
        tls=ClientTLS(),
        alpn=["first/1", "second/2"],
        config=TransportConfig(),
    ) as connection:
        assert_type(connection, QuicConnection)


async def handler(connection: QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        assert_type(stream, QuicStream)
    async for receiver in connection.incoming_receive_streams():
        assert_type(receiver, ReceiveStream)


async def handler_with_a_result(connection: QuicConnection) -> int:
    return 0


async def serving(tls: ServerTLS) -> None:
    await phoenix_trio.serve(handler, 4433, tls=tls)
    await phoenix_trio.serve(handler, tls=tls, socket=socket.socket())
    await phoenix_trio.serve(handler_with_a_result, 4433, tls=tls, host="::1", strict=True)
    await phoenix_trio.serve(
        handler, 4433, tls=tls, alpn=("own/1",), config=TransportConfig(), on_error=print
    )
    await phoenix_trio.serve(handler, 4433, tls=tls, preferred_address="203.0.113.7")
    await phoenix_trio.serve(handler, 4433, tls=tls, preferred_address=("203.0.113.7", 443))
    await phoenix_trio.serve(
        handler, 4433, tls=tls, preferred_address=["203.0.113.7", ("2001:db8::7", 443)]
    )
    assert_type(await phoenix_trio.open_listener(4433, tls=tls), QuicListener)
    assert_type(await phoenix_trio.open_stream_listener(4433, tls=tls), StreamListener)


async def work(worker: phoenix_trio.Worker) -> None:
    assert_type(worker.number, int)
    assert_type(worker.port, int)
    assert_type(worker.socket, socket.socket)


def several_processes() -> None:
    phoenix_trio.run_workers(work, 4433, workers=4, host="::", stop_timeout=60.0, max_crashes=3)


async def listeners_are_trios(
    connections: QuicListener, streams: StreamListener, nursery: trio.Nursery
) -> None:
    connection_listener: trio.abc.Listener[QuicConnection] = connections
    stream_listener: trio.abc.Listener[QuicStream] = streams
    assert_type(await connection_listener.accept(), QuicConnection)
    assert_type(await stream_listener.accept(), QuicStream)
    assert_type(connections.port, int)
    assert_type(streams.port, int)
    assert_type(connections.statistics(), EndpointStatistics)

    async def stream_handler(stream: QuicStream) -> None:
        await stream.aclose()

    await trio.serve_listeners(stream_handler, [streams], handler_nursery=nursery)
    await trio.serve_listeners(handler, [connections])


async def endpoints(tls: ServerTLS) -> None:
    async with Endpoint.open("::", 4433, config=TransportConfig()) as endpoint:
        assert_type(endpoint, Endpoint)
        assert_type(endpoint.port, int)
        assert_type(endpoint.statistics(), EndpointStatistics)
        assert_type(endpoint.listen(tls=tls), QuicListener)
        async with endpoint.connect("example.org", 4433) as connection:
            assert_type(connection, QuicConnection)


async def connections(connection: QuicConnection) -> None:
    resource: trio.abc.AsyncResource = connection
    await resource.aclose()
    assert_type(await connection.open_stream(), QuicStream)
    assert_type(await connection.open_send_stream(), SendStream)
    assert_type(await connection.accept_stream(), QuicStream)
    assert_type(await connection.accept_receive_stream(), ReceiveStream)
    assert_type(await connection.request(b"question"), bytes)
    assert_type(await connection.request(memoryview(b"question"), max_answer=10), bytes)
    assert_type(connection.incoming_streams(), AsyncIterator[QuicStream])
    assert_type(connection.incoming_receive_streams(), AsyncIterator[ReceiveStream])
    await connection.send_datagram(bytearray(b"reading"))
    connection.send_datagram_nowait(memoryview(b"reading"))
    assert_type(connection.version, int)
    assert_type(connection.cipher, str | None)
    assert_type(connection.key_exchange, str | None)
    await connection.send_datagram(b"frame", expires_after=0.1, priority=1)
    connection.send_datagram_nowait(b"frame", expires_after=1, priority=-1, tag=7)
    assert_type(connection.lost_datagrams(), AsyncIterator[int])
    assert_type(await connection.receive_datagram(), bytes)
    assert_type(connection.max_datagram_size, int | None)
    assert_type(connection.statistics(), ConnectionStatistics)
    assert_type(connection.paths(), tuple[phoenix_trio.PathStatistics, ...])
    await connection.migrate(("192.0.2.7", 0))
    assert_type(connection.congestion_window, int)
    assert_type(connection.rtt_smoothed, float | None)
    assert_type(connection.path_mtu, int)
    assert_type(await connection.ping(), float)
    assert_type(connection.alpn_protocol, str | None)
    assert_type(connection.peer_certificate, Certificate | None)
    assert_type(connection.peer_certificate_chain, tuple[Certificate, ...])
    assert_type(connection.is_closed, bool)
    assert_type(connection.idle_timeout, float)
    assert_type(connection.keep_alive, float | None)
    assert_type(connection.close_reason, Exception | None)
    assert_type(connection.peer_address[0], str)
    assert_type(connection.peer_address[1], int)
    await connection.update_keys()
    await connection.wait_closed()
    await connection.aclose()
    await connection.aclose(7, "done")
    connection.abort(ApplicationErrorCode.SHUTTING_DOWN, reason="maintenance")


async def streams(stream: QuicStream, sender: SendStream, receiver: ReceiveStream) -> None:
    both: trio.abc.HalfCloseableStream = stream
    sending: trio.abc.SendStream = sender
    receiving: trio.abc.ReceiveStream = receiver
    stapled: trio.StapledStream[SendStream, ReceiveStream] = trio.StapledStream(sender, receiver)
    await trio.aclose_forcefully(both)
    await trio.aclose_forcefully(sending)
    await trio.aclose_forcefully(receiving)
    await trio.aclose_forcefully(stapled)

    assert_type(stream.id, int)
    assert_type(stream.connection, QuicConnection)
    assert_type(stream.send_stream, SendStream)
    assert_type(stream.receive_stream, ReceiveStream)
    assert_type(stream.is_readable, bool)
    await stream.send_all(b"bytes")
    await stream.send_all(bytearray(b"bytes"))
    await stream.send_all(memoryview(b"bytes"))
    await stream.send_all(b"bytes", end=True)
    await sender.send_all(b"bytes", end=True)
    await stream.send_eof()
    await sender.send_eof()
    await stream.wait_acked()
    assert_type(await stream.receive_some(), bytes | bytearray)
    assert_type(await receiver.receive_some(max_bytes=10), bytes | bytearray)
    assert_type(await stream.receive_all(10), bytes)
    assert_type(await receiver.receive_all(10, code=7), bytes)
    stream.reset(3)
    stream.stop_receiving(3)
    stream.close()


async def application(
    phoenix: phoenix_trio.PhoenixTransport, pool: phoenix_trio.ConnectionPool
) -> None:
    async with phoenix.connect("there:1") as connection, phoenix.connect(("there", 1)):
        assert_type(connection, phoenix_trio.PhoenixConnection)
        assert_type(connection.quic, QuicConnection)
        assert_type(await connection.receive_data(), bytes)
        assert_type(await connection.receive_data(decode=len), int)
        assert_type(await connection.request(b"question", max_answer=10), bytes)
        async for message in connection.messages():
            assert_type(message, bytes)
        async for number in connection.messages(decode=int):
            assert_type(number, int)
        assert_type(await connection.stream_data([b"one"]), int)
        assert_type(connection.metrics(), phoenix_trio.ConnectionMetrics)
        async with await connection.open_stream() as stream:
            async with phoenix_trio.open_batching_channel(stream) as (send, receive):
                assert_type(send, phoenix_trio.BatchSender[Buffer])
                assert_type(receive, phoenix_trio.BatchReceiver[bytes])
                assert_type(await receive.receive_many(), list[bytes])
            await batches(connection, stream)
    async with phoenix.connect("there:1", exclusive=True) as alone:
        assert_type(alone, phoenix_trio.PhoenixConnection)
    assert_type(await phoenix.request("there:1", b"question"), bytes)
    retry = phoenix_trio.Retry(attempts=3, idempotent=True)
    assert_type(await phoenix.request("there:1", b"q", max_answer=10, retry=retry), bytes)
    assert_type(await retry.run(partial(phoenix.request, "there:1", b"q", retry=None)), bytes)
    await phoenix.shutdown()
    await phoenix.shutdown(grace=5)
    summary = await phoenix.send_multiplexed("there:1", b"data")
    assert_type(summary, phoenix_trio.TransferSummary)
    async with await phoenix.receive_multiplexed() as transfer:
        assert_type(await transfer.read_all(max_size=10), bytes)
        assert_type(await transfer.confirm(), None)
        await transfer.store(Path("copy"), limits=phoenix_trio.PartLimits(lifetime=3600.0))
    stored = await phoenix.receive_multiplexed(path=lambda each: each.metadata.decode())
    assert_type(stored, phoenix_trio.IncomingTransfer)
    await phoenix.receive_multiplexed(path="copy", limits=phoenix_trio.PartLimits())
    assert_type(phoenix.stats(), phoenix_trio.TransportStatistics)
    async with pool.lease("[::1]:1") as leased:
        assert_type(leased, QuicConnection)
    assert_type(pool.statistics(), phoenix_trio.PoolStatistics)
    assert_type(TransportConfig.video(), TransportConfig)


def encode(value: float) -> bytes:
    return repr(value).encode()


def decode(data: bytes) -> float:
    return float(data)


async def batches(connection: phoenix_trio.PhoenixConnection, stream: QuicStream) -> None:
    async with phoenix_trio.open_batching_channel(stream, encode=encode, decode=decode) as (
        send,
        receive,
    ):
        assert_type(send, phoenix_trio.BatchSender[float])
        assert_type(receive, phoenix_trio.BatchReceiver[float])
        assert_type(await receive.receive(), float)
        sending: trio.abc.SendChannel[float] = send
        receiving: trio.abc.ReceiveChannel[float] = receive
        await sending.aclose()
        await receiving.aclose()
        await send.send("text")  # type: ignore[arg-type] # encode= takes a number
        await send.send_many([1.0, "text"])  # type: ignore[list-item]
        async for value in receive:
            assert_type(value, float)
    async with connection.open_batching_channel(stream, decode=decode) as (raw, typed):
        assert_type(raw, phoenix_trio.BatchSender[Buffer])
        assert_type(typed, phoenix_trio.BatchReceiver[float])
    async with connection.open_batching_channel(stream, encode=encode) as (numbers, parts):
        assert_type(numbers, phoenix_trio.BatchSender[float])
        assert_type(parts, phoenix_trio.BatchReceiver[bytes])
    async with phoenix_trio.streams.open_batch_sender(stream, encode=encode) as sender:
        assert_type(sender, phoenix_trio.BatchSender[float])
    assert_type(phoenix_trio.BatchReceiver(stream), phoenix_trio.BatchReceiver[bytes])
    assert_type(
        phoenix_trio.BatchReceiver(stream, decode=decode), phoenix_trio.BatchReceiver[float]
    )


async def broadcasts(stream: QuicStream) -> None:
    with phoenix_trio.Broadcast(encode=encode) as numbers:
        assert_type(numbers, phoenix_trio.Broadcast[float])
        await numbers.publish(1.0)
        numbers.publish_nowait("text")  # type: ignore[arg-type] # encode= takes a number
        assert_type(await numbers.serve(stream), phoenix_trio.SubscriberSummary)
        assert_type(numbers.statistics(), phoenix_trio.BroadcastStatistics)
    assert_type(phoenix_trio.Broadcast(when_slow="end"), phoenix_trio.Broadcast[Buffer])


def accept(chain: list[Certificate], server_name: str | None) -> None: ...


def transport_layer_security() -> None:
    ServerTLS("server.pem", "server.key")
    ServerTLS(b"-----BEGIN...", b"-----BEGIN...", client_ca="authority.pem")
    ServerTLS("server.pem", "server.key", ticket_keys=[bytes(32)]).reload(ticket_keys=[bytes(32)])
    store = SessionStore()
    ClientTLS(
        ca=b"-----BEGIN...",
        server_name="example.org",
        certificate="client.pem",
        private_key="client.key",
        session_store=store,
        early_data=True,
    )
    ClientTLS(danger_accept_any_certificate=True)
    ClientTLS(verify=accept)
    ServerTLS("server.pem", "server.key", verify=accept)
    ServerTLS("server.pem", "server.key", groups=("x25519mlkem768", "x25519"))


def configuration(config: TransportConfig) -> None:
    assert_type(attrs.evolve(config, keep_alive=5.0), TransportConfig)
    assert_type(config.max_idle_timeout, float)
    assert_type(config.max_udp_payload_size, int | None)
    config.keep_alive = 5.0  # type: ignore[misc] # frozen


def failures(error: Exception) -> None:
    match error:
        case phoenix_trio.ConnectionClosedByPeer():
            assert_type(error.is_clean, bool)
            assert_type(error.error_code, int | None)
        case phoenix_trio.HandshakeFailed():
            assert_type(error.alert, int | None)
        case phoenix_trio.ConnectionBroken():
            assert_type(error.processed, bool | None)
            assert_type(error.reason, str)
            assert_type(error.by_peer, bool)
            assert_type(error.is_application, bool)
        case phoenix_trio.StreamBroken():
            assert_type(error.stream_id, int)
            assert_type(error.error_code, int)
            assert_type(error.processed, bool | None)
        case phoenix_trio.StreamTooLarge():
            assert_type(error.stream_id, int)
            assert_type(error.maximum, int)
            assert_type(error.code, int)
        case phoenix_trio.DatagramTooLarge():
            assert_type(error.maximum, int)
        case _:
            pass
    broken: type[trio.BrokenResourceError] = phoenix_trio.StreamReset
    assert issubclass(broken, phoenix_trio.StreamBroken)
