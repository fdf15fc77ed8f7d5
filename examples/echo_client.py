"""An echo client: sends each argument on a stream of its own, all at once.

See echo_server.py for how to run the two.
"""

import argparse

import trio

import phoenix_trio


async def ask(connection: phoenix_trio.QuicConnection, text: str) -> None:
    answer = await connection.request(text.encode(), max_answer=100_000)
    print(f"echo: {answer.decode()}", flush=True)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=("echo/1",)
    ) as connection:
        async with trio.open_nursery() as nursery:
            for text in options.text:
                nursery.start_soon(ask, connection, text)
        print(f"round trip: {await connection.ping() * 1000:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo client over QUIC")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--ca", default="certificates/ca.pem")
    trio.run(main, parser.parse_args())
