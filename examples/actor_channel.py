"""The channel of an actor system on a QUIC stream: msgpack messages, each with its length.

    phoenix-trio certificate --directory certificates
    python examples/actor_channel.py serve --port 4433
    python examples/actor_channel.py ask --port 4433 one two 3

tractor, for one, connects its actors by channels of this shape over TCP: 4 bytes of length,
the lowest first, and the message.  MessageChannel needs no more than a Trio stream.  On QUIC,
channels between two processes share a connection: a new one costs no round trip, a large
message holds up no other channel, and each has its own end.
"""

import argparse
from typing import Any

import msgspec
import trio

import phoenix_trio

ALPN = ("actors",)
LARGEST = 1024 * 1024


class MessageChannel(trio.abc.Channel[Any]):
    """Sends and receives whatever msgpack can carry.

    Cancellation: the next call receives a message that had not arrived whole.  A message not
    sent whole ends its stream.
    """

    def __init__(self, stream: phoenix_trio.QuicStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._sending = trio.StrictFIFOLock()

    async def send(self, value: Any) -> None:
        data = msgspec.msgpack.encode(value)
        if len(data) > LARGEST:
            raise ValueError(f"a message of {len(data)} bytes is above the limit of {LARGEST}")
        async with self._sending:
            try:
                await self._stream.send_all(len(data).to_bytes(4, "little") + data)
            except trio.Cancelled:
                self._stream.reset()
                raise

    async def receive(self) -> Any:
        await trio.lowlevel.checkpoint()
        if not await self._receive_up_to(4):
            raise trio.EndOfChannel
        end = 4 + int.from_bytes(self._received[:4], "little")
        if end > 4 + LARGEST:
            raise trio.BrokenResourceError(f"the peer announced a message of {end - 4} bytes")
        await self._receive_up_to(end)
        try:
            value = msgspec.msgpack.decode(self._received[4:end])
        except msgspec.DecodeError as error:
            raise trio.BrokenResourceError("the peer sent something else than msgpack") from error
        del self._received[:end]
        return value

    async def _receive_up_to(self, size: int) -> bool:
        while len(self._received) < size:
            data = await self._stream.receive_some()
            if not data and self._received:
                raise trio.BrokenResourceError("the peer ended within a message")
            if not data:
                return False
            self._received += data
        return True

    async def aclose(self) -> None:
        await self._stream.aclose()


async def actor(stream: phoenix_trio.QuicStream) -> None:
    """Answers calls, one after the other, until its channel ends."""
    async with MessageChannel(stream) as channel:
        try:
            async for call in channel:
                try:
                    answer = {"return": call["argument"].upper()}
                except (AttributeError, KeyError, TypeError) as error:
                    answer = {"error": repr(error)}
                await channel.send(answer)
        except trio.BrokenResourceError:
            pass  # the caller has gone, or is no actor


async def serve(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    listener = await phoenix_trio.open_stream_listener(options.port, tls=tls, alpn=ALPN)
    print(f"listening on port {listener.port}", flush=True)
    await trio.serve_listeners(actor, [listener])


async def call(connection: phoenix_trio.QuicConnection, argument: int | str) -> None:
    async with MessageChannel(await connection.open_stream()) as channel:
        await channel.send({"call": "upper", "argument": argument})
        print(f"{argument}: {await channel.receive()}", flush=True)


async def ask(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        async with trio.open_nursery() as nursery:
            for text in options.argument:
                argument = int(text) if text.isdigit() else text
                nursery.start_soon(call, connection, argument)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="actors which answer in capitals")
    parser.add_argument("role", choices=["serve", "ask"])
    parser.add_argument("argument", nargs="*")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else ask, chosen)
