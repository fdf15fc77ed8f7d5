"""An echo server on a socket that systemd, or another program, has bound for it.

As /etc/systemd/system/echo.socket and echo.service:

    [Socket]                  [Service]
    ListenDatagram=4433       ExecStart=/usr/bin/python3 socket_activation.py --certificate ...

The service needs no right to bind the port, and while it is restarted, first packets of
clients wait in the socket.  Started by hand, the server binds --port itself.
"""

import argparse
import os
import socket
from functools import partial

import trio

import phoenix_trio

FIRST_HANDED_IN = 3  # sd_listen_fds(3)


async def handler(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            await stream.send_all(await stream.receive_all(100_000), end=True)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    serve = partial(phoenix_trio.serve, handler, tls=tls, alpn=("echo/1",))
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        serve = partial(serve, socket=socket.socket(fileno=FIRST_HANDED_IN))
    else:
        serve = partial(serve, port=options.port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve)
        print(f"listening on port {listeners[0].port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo server on a socket of systemd's")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
