"""A relay: every publisher's messages go to all subscribers; a slow one delays no other.

    phoenix-trio certificate --directory certificates
    python examples/fan_out.py relay --port 4433 --when-slow end
    python examples/fan_out.py publish --port 4433 --rate 100
    python examples/fan_out.py subscribe --port 4433 --count 500
    python examples/fan_out.py subscribe --port 4433 --pause 1    # a slow one

The relay keeps 256 KiB for a subscriber that does not keep up. Then it drops the oldest
messages, or ends that subscriber's stream. A subscriber that leaves is a line of text.
"""

import argparse
from functools import partial

import trio

import phoenix_trio

PUBLISHER, SUBSCRIBER = b"P", b"S"

#: A stream's own buffer comes before the queue: with a small one, messages are fresh.
CONFIG = phoenix_trio.TransportConfig(stream_send_buffer_size=64 * 1024)


async def relay(options: argparse.Namespace) -> None:
    broadcast = phoenix_trio.Broadcast(max_queued_bytes=256 * 1024, when_slow=options.when_slow)

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        try:
            async with await connection.accept_stream() as stream:
                if await stream.receive_some(1) == PUBLISHER:
                    async for message in phoenix_trio.BatchReceiver(stream):
                        await broadcast.publish(message)
                else:
                    summary = await broadcast.serve(stream)
                    sent, dropped = summary.messages_sent, summary.messages_dropped
                    print(f"{summary.end}: {sent} sent, {dropped} dropped", flush=True)
        except trio.BrokenResourceError as error:
            print(f"gone: {error}", flush=True)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with (
        phoenix_trio.open_phoenix("relay", config=CONFIG, server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


async def publish(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with (
        phoenix_trio.open_phoenix("publisher", tls=tls) as phoenix,
        phoenix.connect((options.host, options.port)) as connection,
        await connection.open_stream() as stream,
    ):
        await stream.send_all(PUBLISHER)
        async with connection.open_batching_channel(stream) as (send, _):
            for number in range(options.count):
                await send.send(b"message %d" % number)
                await trio.sleep(1 / options.rate)


async def subscribe(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with (
        phoenix_trio.open_phoenix("subscriber", tls=tls) as phoenix,
        phoenix.connect((options.host, options.port)) as connection,
        await connection.open_stream() as stream,
    ):
        await stream.send_all(SUBSCRIBER)
        received = 0
        try:
            async for message in phoenix_trio.BatchReceiver(stream):
                received += 1
                if received == options.count:
                    print(f"the last one: {message.decode()}")
                    break
                await trio.sleep(options.pause)
        except phoenix_trio.StreamReset as error:
            print(f"given up: {error}")
        print(f"{received} messages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A relay, its publishers and subscribers")
    parser.add_argument("role", choices=["relay", "publish", "subscribe"])
    parser.add_argument("--count", type=int, default=10_000, help="messages")
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each message")
    parser.add_argument("--when-slow", choices=["drop-oldest", "end"], default="drop-oldest")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    roles = {"relay": relay, "publish": publish, "subscribe": subscribe}
    trio.run(roles[chosen.role], chosen)
