"""Downloads over HTTP/3 with curl (the package curl_cffi); in the peer's own environment."""

from __future__ import annotations

import argparse
from pathlib import Path

from curl_cffi import CurlHttpVersion, requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    host = f"[{options.host}]" if ":" in options.host else options.host
    session = requests.Session()
    for path in options.paths:
        if options.each:
            session = requests.Session()
        answer = session.get(
            f"https://{host}:{options.port}{path}",
            http_version=CurlHttpVersion.V3ONLY,
            verify=options.ca,
            timeout=60,
        )
        answer.raise_for_status()
        (options.directory / path.strip("/")).write_bytes(answer.content)


if __name__ == "__main__":
    main()
