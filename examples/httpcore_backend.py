"""httpcore over QUIC: each HTTP/1.1 connection of its pool is a stream of a QUIC connection.

    python examples/httpcore_backend.py https://localhost:4433/100000 https://localhost:4433/10

See h11_server.py for the server.  QuicBackend is all that httpcore needs.  Its connections
cost no handshake but the first, they share one congestion window, and a lost packet holds up
one of them only.
"""

import argparse
import math
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import httpcore
import trio
from h11_server import ALPN

import phoenix_trio


@contextmanager
def as_httpcore(
    timeout: float | None, too_slow: type[Exception], failed: type[Exception]
) -> Iterator[None]:
    """Bound the time, and raise httpcore's errors."""
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except trio.TooSlowError as error:
        raise too_slow(f"it took more than {timeout} seconds") from error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise failed(str(error)) from error


class HttpStream(httpcore.AsyncNetworkStream):
    """One of our streams, as httpcore wants it."""

    def __init__(self, stream: phoenix_trio.QuicStream, held: AsyncExitStack) -> None:
        self._stream = stream
        self._held = held

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with as_httpcore(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with as_httpcore(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._held.aclose()

    async def start_tls(self, *arguments: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        await trio.lowlevel.checkpoint()
        return self  # QUIC is encrypted, and has checked the certificate for this host

    def get_extra_info(self, info: str) -> Any:
        # httpcore asks this of idle connections: those which the server has ended are readable.
        return self._stream.is_readable if info == "is_readable" else None


class QuicBackend(httpcore.AsyncNetworkBackend):
    """Opens streams on the connections of a pool."""

    def __init__(self, pool: phoenix_trio.ConnectionPool) -> None:
        self._pool = pool

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with as_httpcore(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            async with AsyncExitStack() as held:
                # Held as long as the stream: the pool closes connections without a lease.
                quic = await held.enter_async_context(self._pool.lease((host, port)))
                stream = await held.enter_async_context(await quic.open_stream())
                return HttpStream(stream, held.pop_all())

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)

    async def fetch(http: httpcore.AsyncConnectionPool, url: str) -> None:
        answer = await http.request("GET", url)
        print(f"{url}: {answer.status}, {len(answer.content)} bytes")

    async with (
        phoenix_trio.Endpoint.open() as endpoint,
        phoenix_trio.open_pool(
            lambda target: endpoint.connect(target.host, target.port, tls=tls, alpn=ALPN)
        ) as pool,
        httpcore.AsyncConnectionPool(network_backend=QuicBackend(pool)) as http,
        trio.open_nursery() as nursery,
    ):
        for url in options.url:
            nursery.start_soon(fetch, http, url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="fetch URLs over QUIC, all at once")
    parser.add_argument("url", nargs="+")
    parser.add_argument("--ca", default="certificates/ca.pem")
    trio.run(main, parser.parse_args())
