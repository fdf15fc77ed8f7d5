"""A libp2p host over QUIC, with the transport of examples/libp2p or with py-libp2p's own.

    libp2p_host.py listen --transport stock
    libp2p_host.py dial /ip4/127.0.0.1/udp/.../quic-v1/p2p/... hello --transport phoenix

Runs in an environment with libp2p; phoenix_trio and the example come from PYTHONPATH.  The
dialling side says whom it has reached, has each text echoed on a stream of its own, and
with --transfer sends so many bytes and says how fast that was.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamReset
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.transport.quic.transport import QUICTransport
from libp2p_transport import QuicTransport
from multiaddr import Multiaddr

ECHO = TProtocol("/phoenix-trio/echo/1.0.0")
SINK = TProtocol("/phoenix-trio/sink/1.0.0")
CHUNK = 256 * 1024


def make_host(transport: str) -> Any:
    key_pair = create_new_key_pair()
    kind = QuicTransport if transport == "phoenix" else QUICTransport
    return new_host(key_pair=key_pair, transports=[kind(key_pair.private_key)])


async def echo(stream: Any) -> None:
    while data := await read(stream):
        await stream.write(data)
    await stream.close()


async def sink(stream: Any) -> None:
    """The first 8 bytes say how many follow; answers with their SHA-256."""
    head = await read(stream)
    while len(head) < 8:
        data = await read(stream)
        if not data:
            return
        head += data
    left, digest = int.from_bytes(head[:8], "big"), hashlib.sha256(head[8:])
    left -= len(head) - 8
    while left > 0:
        data = await read(stream)
        if not data:
            await stream.reset()
            return
        digest.update(data)
        left -= len(data)
    await stream.write(digest.digest())
    await stream.close()


async def read(stream: Any) -> bytes:
    """Some bytes; none at the end of the stream, or where the peer closed it altogether."""
    try:
        data: bytes = await stream.read(CHUNK)
    except (EOFError, StreamReset):
        return b""
    return data


async def read_exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await read(stream)
        if not more:
            raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
        data += more
    return data


async def listen(options: argparse.Namespace) -> None:
    host = make_host(options.transport)
    address = Multiaddr(f"/ip4/127.0.0.1/udp/{options.port}/quic-v1")
    async with host.run(listen_addrs=[address]):
        host.set_stream_handler(ECHO, echo)
        host.set_stream_handler(SINK, sink)
        (bound,) = host.get_network().listeners[str(address)].get_addrs()
        print(f"listening on {bound}/p2p/{host.get_id()}", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def dial(options: argparse.Namespace) -> None:
    host = make_host(options.transport)
    peer = info_from_p2p_addr(Multiaddr(options.address))
    async with host.run(listen_addrs=[]):
        await host.connect(peer)
        (connection,) = host.get_network().get_connections(peer.peer_id)
        print(f"connected to {connection.muxed_conn.peer_id}", flush=True)
        async with trio.open_nursery() as nursery:
            for text in options.text:
                nursery.start_soon(say, host, peer.peer_id, text.encode())
        if options.transfer:
            await transfer(host, peer.peer_id, options.transfer)
    print("closed", flush=True)


async def say(host: Any, peer: Any, text: bytes) -> None:
    stream = await host.new_stream(peer, [ECHO])
    await stream.write(text)
    answer = await read_exactly(stream, len(text))
    await stream.close()
    print(f"echo: {answer.decode()}", flush=True)


async def transfer(host: Any, peer: Any, size: int) -> None:
    data = bytes(range(256)) * (CHUNK // 256)
    digest = hashlib.sha256()
    stream = await host.new_stream(peer, [SINK])
    started = time.perf_counter()
    await stream.write(size.to_bytes(8, "big"))
    for at in range(0, size, CHUNK):
        part = data[: size - at]
        digest.update(part)
        await stream.write(part)
    answer = await read_exactly(stream, digest.digest_size)
    seconds = time.perf_counter() - started
    await stream.close()
    if answer != digest.digest():
        raise ValueError("what arrived is not what was sent")
    print(f"transferred {size} bytes: {size / seconds / 1e6:.2f} MB/s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="libp2p hosts over QUIC")
    parser.add_argument("role", choices=["listen", "dial"])
    parser.add_argument("address", nargs="?", help="dial: the other host, with its peer ID")
    parser.add_argument("text", nargs="*", help="dial: what is to be echoed")
    parser.add_argument("--transport", choices=["phoenix", "stock"], default="phoenix")
    parser.add_argument("--port", type=int, default=0, help="listen: 0: any free one")
    parser.add_argument("--transfer", type=int, default=0, help="dial: bytes to send")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    trio.run(listen if chosen.role == "listen" else dial, chosen)
