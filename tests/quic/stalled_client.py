"""A client process for test_stalls.py: echoes until told to stop, and prints its round trips.

Each line: the longest credible round trip of the connection so far, in seconds.
The last argument: seconds for which the event loop is blocked after each message.
"""

from __future__ import annotations

import sys
import time

import trio

import phoenix_trio


async def main(authority: str, port: int, blocked: float) -> None:
    tls = phoenix_trio.ClientTLS(ca=authority)
    async with phoenix_trio.open_connection("127.0.0.1", port, tls=tls) as connection:
        stream = await connection.open_stream()
        longest = 0.0
        reported = trio.current_time()
        while True:
            await stream.send_all(b"hello")
            if blocked:
                for _ in range(20):  # until the message has left
                    await trio.lowlevel.checkpoint()
                time.sleep(blocked)  # noqa: ASYNC251 - on purpose
            assert await stream.receive_some() == b"hello"
            longest = max(longest, connection.statistics().rtt_latest or 0.0)
            if trio.current_time() - reported > 0.1:
                reported = trio.current_time()
                print(longest, flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
