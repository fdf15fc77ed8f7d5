"""Move a directory over striped connections, with a bar for each file.

    phoenix-trio certificate --directory certificates
    python examples/directory_mover.py receive --port 4433 --directory incoming
    python examples/directory_mover.py send --host localhost --port 4433 --directory photos

Each file is one striped transfer, with its name as metadata; several are under way
at once. The bars show the bytes that the receiver has, not the bytes handed to the network.
A file appears under its name only when its checksum is right.
"""

import argparse
from functools import partial
from pathlib import Path

import trio
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

import phoenix_trio


async def receive(options: argparse.Namespace) -> None:
    directory = Path(await trio.Path(options.directory).resolve())
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)

    async def store(transfer: phoenix_trio.IncomingTransfer) -> None:
        async with transfer:
            name = transfer.metadata.decode()
            target = (directory / name).resolve()
            inside = target.is_relative_to(directory) and target != directory
            if not inside or any(part.startswith(".") for part in name.split("/")):
                transfer.abandon(phoenix_trio.TransferCode.MALFORMED)
                print(f"refused {name!r}", flush=True)
                return
            await trio.Path(target.parent).mkdir(parents=True, exist_ok=True)
            await transfer.store(target)
            print(f"received {name} ({transfer.size} bytes)", flush=True)

    async def guarded(transfer: phoenix_trio.IncomingTransfer) -> None:
        try:
            await store(transfer)
        except (phoenix_trio.TransferFailed, OSError) as error:
            print(f"failed: {error}", flush=True)

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        await connection.quic.wait_closed()  # transfers come over many connections

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    config = phoenix_trio.TransportConfig.high_throughput()
    async with (
        phoenix_trio.open_phoenix("mover", config=config, server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)
        while True:
            nursery.start_soon(guarded, await phoenix.receive_multiplexed())


async def send(options: argparse.Namespace) -> None:
    directory = Path(options.directory)
    found = await trio.Path(directory).rglob("*")
    files = [path for path in found if await path.is_file()]
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    config = phoenix_trio.TransportConfig.high_throughput()
    target = (options.host, options.port)
    limit = trio.CapacityLimiter(options.at_once)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as progress:
        async with phoenix_trio.open_phoenix("mover", config=config, tls=tls) as phoenix:
            await phoenix.enable_multiplexing(target, options.connections)

            async def move(path: trio.Path) -> None:
                name = path.relative_to(directory).as_posix()
                async with limit, await trio.open_file(path, "rb") as file:
                    size = (await path.stat()).st_size
                    bar = progress.add_task(name, total=size)
                    await phoenix.send_multiplexed(
                        target,
                        file,
                        metadata=name.encode(),
                        on_progress=lambda done: progress.update(bar, completed=done),
                    )

            async with trio.open_nursery() as nursery:
                for path in sorted(files):
                    nursery.start_soon(move, path)
            stats = phoenix.stats()
    print(f"sent {len(files)} files, {stats.total_bytes_sent} bytes on the way")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Move a directory over striped connections")
    parser.add_argument("role", choices=["receive", "send"])
    parser.add_argument("--directory", required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=4, help="files under way at once")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(receive if chosen.role == "receive" else send, chosen)
