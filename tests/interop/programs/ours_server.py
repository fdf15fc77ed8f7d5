"""Our server for the matrix: the examples' hq-interop and HTTP/3 handlers, with more options.

Prints ``listening on port N``, then one JSON line of facts for each connection that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import trio

import phoenix_trio

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import hq_server
import http3_server

#: For browsers: the page loads each file of its query and compares every byte.
http3_server.PAGE = b"""<!doctype html>
<pre id="result"></pre>
<script>
const result = document.getElementById("result");
for (const size of location.search.slice(1).split(",").map(Number)) {
    const request = new XMLHttpRequest();
    request.open("GET", "/" + size, false);
    request.overrideMimeType("text/plain; charset=x-user-defined");
    request.send();
    const text = request.responseText;
    let good = text.length === size;
    for (let i = 0; good && i < size; i++) good = (text.charCodeAt(i) & 255) === i % 251;
    result.textContent += size + "=" + good + "\\n";
}
result.textContent += "protocol=" + performance.getEntriesByType("navigation")[0].nextHopProtocol;
</script>
"""


def facts(connection: phoenix_trio.QuicConnection) -> str:
    statistics = connection.statistics()
    return json.dumps(
        {
            "alpn": connection.alpn_protocol,
            "resumed": connection.session_resumed,
            "early_data_accepted": connection.early_data_accepted,
            "key_exchange": connection.key_exchange,
            "ecn_validated": statistics.ecn_validated,
            "key_updates": statistics.key_updates,
            "packets_lost": statistics.packets_lost,
            "path_mtu": statistics.path_mtu,
            "closed": None if connection.close_reason is None else str(connection.close_reason),
        }
    )


async def handler(directory: Path, connection: phoenix_trio.QuicConnection) -> None:
    try:
        if connection.alpn_protocol in http3_server.ALPN:
            await http3_server.handler(connection)
        else:
            await hq_server.handler(directory, connection)
    finally:
        print(facts(connection), flush=True)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key, early_data=options.early_data)
    config = phoenix_trio.TransportConfig(
        retry="always" if options.retry else "never",
        max_idle_timeout=options.idle_timeout,
        qlog_dir=os.environ.get("INTEROP_QLOG"),  # for people who look into a failed cell
    )
    serve = partial(
        phoenix_trio.serve, partial(handler, options.directory), options.port, host=options.host
    )
    alpn = (*hq_server.ALPN, *http3_server.ALPN)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve, tls=tls, alpn=alpn, config=config))
        print(f"listening on port {listeners[0].port}", flush=True)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--early-data", action="store_true")
    parser.add_argument("--idle-timeout", type=float, default=30.0)
    trio.run(main, parser.parse_args())
