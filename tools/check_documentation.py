"""Checks that the documentation is true.  For `.ci/run`, and before a release.

* Every Python block of README.md and the pages in docs/ passes `mypy --strict`: whole programs
  as they are, and fragments (those without an import, a docstring or a comment naming a file at
  the beginning) inside an async function where the usual names exist.  A block after the line `<!--
  not checked: reason -->` is left out.
* The instructions of a document with the programs `# server.py` and `# client.py` are followed:
  certificates come from trustme, both programs run, and the client prints the `text` block that
  comes next (or the output promised by the prose in README.md).
  (tests/examples/test_howto.py runs the programs of docs/howto.)
* Every error and every application error code stands in docs/, in its table.
* Every name in the prose of the pages exists in the sources, or is known to be another project's.
* Every public class, method and function has a docstring of its own.
* The tables of names in docs/api.md agree with the docstrings.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import make_api_text

import phoenix_trio
import phoenix_trio.testing
from phoenix_trio import errors

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "documentation"

#: Names in the prose that belong to other projects.
FOREIGN = {
    "OPENSSL_ia32cap",
    "TCP_NODELAY",
    "TimeoutStopSec",
    "open_ssl_over_tcp_listeners",
    "quic_logger",
    "secrets_log_file",
    "start_guest_run",
    "stream_",
    "terminationGracePeriodSeconds",
    "transport_stream",
    "trio_mode",
}

#: The names that fragments may use without defining them.
FRAGMENT = """\
import functools
import os
import socket

import attrs
import msgspec
import phoenix_trio
import phoenix_trio.prometheus
import prometheus_client
import trio


def store(data: bytes | bytearray) -> None: ...


async def handler(connection: phoenix_trio.QuicConnection) -> None: ...


async def stream_handler(stream: phoenix_trio.QuicStream) -> None: ...


async def fragment(
    phoenix: phoenix_trio.PhoenixTransport,
    connection: phoenix_trio.QuicConnection,
    stream: phoenix_trio.QuicStream,
    server_tls: phoenix_trio.ServerTLS,
) -> None:
"""


@attrs.frozen(kw_only=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str
    checked: bool

    @property
    def file_name(self) -> str | None:
        """The `server.py` of a first line `# server.py`."""
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match else None

    @property
    def is_program(self) -> bool:
        """Whether the block is a whole program."""
        return re.match(r'# \w+\.py\n|import |from |"""', self.text) is not None


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path) -> Iterator[Block]:
    pattern = re.compile(
        r"^(?P<skip><!-- not checked: .+ -->\n+)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
        re.DOTALL | re.MULTILINE,
    )
    content = document.read_text(encoding="utf-8")
    for match in pattern.finditer(content):
        yield Block(
            document=document,
            line=content.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            text=match["text"],
            checked=match["skip"] is None,
        )


def check_types(found: list[Block]) -> list[str]:
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in BUILD.glob("*.py"):
        old.unlink()
    paths = []
    for block in found:
        if block.language != "python" or not block.checked:
            continue
        name = f"{block.document.stem.replace('-', '_').lower()}_line_{block.line}.py"
        text = block.text if block.is_program else FRAGMENT + textwrap.indent(block.text, "    ")
        path = BUILD / name
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    command = [sys.executable, "-m", "mypy", "--no-warn-unreachable", *paths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{len(paths)} Python blocks: {result.stdout.strip().splitlines()[-1]}")
    return [] if result.returncode == 0 else [result.stdout + result.stderr]


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_bound(port: int) -> None:
    """Wait up to 10 seconds for the server to open its port, as readers do."""
    for _ in range(200):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return
        time.sleep(0.05)


def expected_output(found: list[Block], client: Block) -> str:
    """The `text` block that follows the client, or the word after "prints" in the prose."""
    for block in found:
        if block.line > client.line and block.language == "text":
            return block.text
    prose = client.document.read_text(encoding="utf-8").split(client.text, 1)[1]
    match = re.search(r"prints\s+`([^`]+)`", prose)
    return f"{match[1]}\n" if match else "(the document does not say what the client prints)"


def check_programs(document: Path) -> list[str]:
    found = list(blocks(document))
    programs = {block.file_name: block for block in found if block.file_name is not None}
    if not {"server.py", "client.py"} <= programs.keys():
        return []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        port = str(free_port())
        for file_name, block in programs.items():
            assert file_name is not None
            text = block.text.replace("4433", port)
            (directory / file_name).write_text(text, encoding="utf-8")
        subprocess.run([sys.executable, "-m", "trustme", "--quiet"], cwd=directory, check=True)
        server_log = directory / "server.log"
        with server_log.open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "server.py"], cwd=directory, stdout=log, stderr=log
            )
        try:
            wait_until_bound(int(port))
            client = subprocess.run(
                [sys.executable, "client.py"],
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = server_log.read_text()
            return [f"{document.name}: the client does not end; the server said: {said}"]
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=0.2)  # a server must not end by itself
            ended = server.poll()
            server.terminate()
            server.wait()
        wanted = expected_output(found, programs["client.py"])
        if client.returncode != 0 or client.stdout != wanted or ended is not None:
            problem = (
                f"{document.name}: the client printed {client.stdout!r} rather than {wanted!r},"
                f" ended with {client.returncode}, and said: {client.stderr}\n"
                f"the server (which {'ran on' if ended is None else f'ended with {ended}'})"
                f" said: {server_log.read_text()}"
            )
            return [problem]
    print(f"{document.name}: its server and client do what it says")
    return []


def check_tables() -> list[str]:
    problems = []
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| \{py:exc\}`~phoenix_trio\.(\w+)` \|", text, re.MULTILINE))
    known = {name for name in errors.__all__ if issubclass(getattr(errors, name), Exception)}
    problems += [f"docs/errors.md lacks {name}" for name in sorted(known - rows)]
    problems += [f"docs/errors.md has {name}, which does not exist" for name in rows - known]
    specification = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
    for code in errors.ApplicationErrorCode:
        if f"| 0x{code:x} | `{code.name}` |" not in specification:
            problems.append(f"docs/specification.md lacks the code 0x{code:x} {code.name}")
    print(f"{len(known)} errors and {len(errors.ApplicationErrorCode)} codes: compared")
    return problems


def check_names(found: list[Path]) -> list[str]:
    """Names with an underscore or a capital inside: a renamed option shows here."""
    known = set(FOREIGN)
    for tree in ("phoenix_trio", "bench", "examples", "tests", "tools"):
        for source in (ROOT / tree).rglob("*.py"):
            known.add(source.stem)
            known.update(re.findall(r"\w+", source.read_text(encoding="utf-8")))
    # The collector composes the names of metrics; a test compares the dashboard's with a scrape.
    for dashboard in (ROOT / "docs" / "grafana").glob("*.json"):
        known.update(re.findall(r"\w+", dashboard.read_text(encoding="utf-8")))
    problems = []
    for path in found:
        prose = re.sub(
            r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        for span in re.findall(r"`([^`\n]+)`", prose):
            problems += [
                f"{path.relative_to(ROOT)}: {name} in `{span}` does not exist"
                for name in re.findall(r"[A-Za-z_]\w{3,}", span)
                if re.search(r"_|[a-z][A-Z]", name) and name not in known
            ]
    print(f"names in the prose of {len(found)} pages: compared with the sources")
    return problems


def members(item: type) -> Iterator[tuple[str, object]]:
    """The names and members that a class and its bases in this package define."""
    for each in item.__mro__:
        if each.__module__.startswith("phoenix_trio"):
            yield from vars(each).items()


def public_objects() -> Iterator[tuple[str, object]]:
    for module in (phoenix_trio, phoenix_trio.testing):
        for name in module.__all__:
            item = getattr(module, name)
            if not inspect.isclass(item) and not inspect.isroutine(item):
                continue
            yield f"{module.__name__}.{name}", item
            if not inspect.isclass(item):
                continue
            for member_name, member in members(item):
                if member_name.startswith("_"):
                    continue
                function = member.fget if isinstance(member, property) else member
                if inspect.isroutine(function) or isinstance(function, (classmethod, staticmethod)):
                    yield f"{module.__name__}.{name}.{member_name}", function


def check_docstrings() -> list[str]:
    found = list(public_objects())
    print(f"{len(found)} public classes, methods and functions: docstrings looked at")
    return [
        f"{name} has no docstring" for name, item in found if not getattr(item, "__doc__", None)
    ]


def main() -> int:
    problems = check_tables() + check_docstrings() + check_names(documents())
    if make_api_text.is_stale():
        problems.append("docs/api.md is stale: run tools/make_api_text.py")
    problems += check_types([block for path in documents() for block in blocks(path)])
    for path in documents():
        problems += check_programs(path)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
