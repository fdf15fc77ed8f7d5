"""Move a large file completely, even if the receiver is killed in the middle.

    phoenix-trio certificate --directory certificates
    python examples/resumable_mover.py receive copy.bin --port 4433
    python examples/resumable_mover.py send original.bin --host localhost --port 4433

Kill either of them and start it again: only the missing bytes are sent.  The sender keeps the
transfer's ID beside the file until the receiver has stored it, and copy.bin appears whole.
"""

import argparse
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import trio

import phoenix_trio

CHUNK = 256 * 1024


async def until_closed(connection: phoenix_trio.PhoenixConnection) -> None:
    await connection.quic.wait_closed()


async def receive(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with (
        phoenix_trio.open_phoenix("mover", server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(partial(phoenix.serve, until_closed, options.port))
        print(f"listening on port {listeners[0].port}", flush=True)
        while True:
            try:
                transfer = await phoenix.receive_multiplexed(path=options.path)
            except phoenix_trio.TransferFailed as error:
                print(f"not stored: {error}", flush=True)
            else:
                print(
                    f"stored {transfer.size} bytes, {transfer.bytes_resumed} of them from an"
                    " earlier attempt",
                    flush=True,
                )


async def send(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_phoenix("mover", tls=tls) as phoenix:
        with trio.fail_after(options.seconds):
            try:
                summary = await send_until_stored(phoenix, options)
            except (phoenix_trio.TransferRefused, phoenix_trio.ChecksumMismatch):
                forget_id(options.path)  # the next call begins anew
                raise
    forget_id(options.path)
    skipped = summary.bytes_skipped
    print(f"stored there: {summary.size} bytes, of which {skipped} were there already")


async def send_until_stored(
    phoenix: phoenix_trio.PhoenixTransport, options: argparse.Namespace
) -> phoenix_trio.TransferSummary:
    while True:
        try:
            return await phoenix.send_multiplexed(
                (options.host, options.port),
                chunks(options.path, options.rate),
                connections=4,
                transfer_id=kept_id(options.path),
            )
        except (phoenix_trio.TransferRefused, phoenix_trio.ChecksumMismatch):
            raise
        except (trio.BrokenResourceError, OSError) as error:
            print(f"interrupted: {error}", flush=True)
            await trio.sleep(0.5)


async def chunks(path: str, rate: float | None) -> AsyncIterator[bytes]:
    """The file's content, no faster than `rate` bytes a second."""
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(CHUNK):
            yield chunk
            if rate is not None:
                await trio.sleep(len(chunk) / rate)


# The ID is drawn at random, because anyone who knows it can go on with the transfer.


def kept_id(path: str) -> bytes:
    file = Path(f"{path}.transfer-id")
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(os.urandom(16).hex())
    return bytes.fromhex(file.read_text())


def forget_id(path: str) -> None:
    Path(f"{path}.transfer-id").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Move a large file over QUIC")
    parser.add_argument("direction", choices=["send", "receive"])
    parser.add_argument("path")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--rate", type=float, help="bytes a second at most")
    parser.add_argument("--seconds", type=float, default=86_400, help="give up after so long")
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(send if chosen.direction == "send" else receive, chosen)
