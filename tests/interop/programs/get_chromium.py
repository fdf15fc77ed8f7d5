"""Downloads over HTTP/3 with a headless Chromium, through the page of ``ours_server.py``.

The page's script compares every byte with the expected one, and puts the result into the
document.  Files found whole are written to the disk, so that the matrix examines all clients
in the same way.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--public-key-sha256", required=True, help="base64, of the SPKI")
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    # Chromium forces QUIC on names and IPv4 addresses only, so that an IPv6 one gets a name.
    is_v6 = ":" in options.host
    origin = f"{'six.test' if is_v6 else options.host}:{options.port}"
    rules = [f"--host-resolver-rules=MAP six.test [{options.host}]"] if is_v6 else []
    sizes = [path.strip("/") for path in options.paths]
    for some in [[size] for size in sizes] if options.each else [sizes]:
        with tempfile.TemporaryDirectory() as profile:
            result = subprocess.run(
                [options.chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
                + ["--disable-background-networking", "--disable-component-update"]
                + ["--disable-sync", f"--user-data-dir={profile}"]
                + [f"--origin-to-force-quic-on={origin}"]
                + [f"--ignore-certificate-errors-spki-list={options.public_key_sha256}"]
                + rules
                + ["--dump-dom", f"https://{origin}/?{','.join(some)}"],
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
        found = dict(
            re.findall(
                r"^(?:<pre id=\"result\">)?(\w+)=(\w+)",
                result.stdout[result.stdout.find("<pre") :],
                re.MULTILINE,
            )
        )
        if found.pop("protocol", None) != "h3" or set(found.values()) != {"true"}:
            failure = re.findall(r"net::\w+", result.stderr)
            sys.exit(f"{' '.join(failure) or 'not whole'}: {found}")
        for size in found:
            body = (bytes(range(251)) * (int(size) // 251 + 1))[: int(size)]
            (options.directory / size).write_bytes(body)


if __name__ == "__main__":
    main()
