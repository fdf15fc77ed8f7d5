"""The programs of the how-to pages, run on loopback as a reader runs them.

A page's Python blocks that begin with `# name.py` are whole programs.  `server.py` and
`client.py` of a page run together; any other program runs alone, with the certificates that
`python -m trustme` writes.  It prints what the `text` block behind it says, but for the figures
if `<!-- figures vary -->` stands in front.  The other Python blocks continue a program:
tools/check_documentation.py checks their types.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import authority_pem, server_pem

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PAGES = sorted(HOWTO.glob("*.md"))
FIGURES_VARY = "<!-- figures vary -->\n"


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    pattern = re.compile(rf"^({FIGURES_VARY})?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        (language, figures + text)
        for figures, language, text in pattern.findall(page.read_text(encoding="utf-8"))
    ]


def without_figures(text: str) -> str:
    return re.sub(r" *[0-9][0-9,.]*", " 0", text)


def programs(page: Path) -> dict[str, tuple[str, str]]:
    """By file name: the program, and the output that the page shows for it."""
    found: dict[str, tuple[str, str]] = {}
    name = None
    for language, text in blocks(page):
        match = re.match(r"# (\w+\.py)\n", text)
        if language == "python" and match:
            name = match[1]
            assert name not in found, f"{page.name} has {name} twice"
            found[name] = (text, "")
        elif language == "text" and name is not None:
            found[name] = (found[name][0], text)
            name = None
    return found


def programs_run_alone() -> list[tuple[Path, str]]:
    return [
        (page, name)
        for page in PAGES
        for name in programs(page)
        if name not in {"server.py", "client.py"}
    ]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the files of `python -m trustme`."""
    chain, key = server_pem()
    (tmp_path / "server.pem").write_bytes(chain)
    (tmp_path / "server.key").write_bytes(key)
    (tmp_path / "client.pem").write_bytes(authority_pem())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(page: Path, name: str, module: str, port: int | None = None) -> dict[str, Any]:
    """Run a program's text as this module; with `port`, in place of 4433."""
    text = programs(page)[name][0]
    if port is not None:
        text = text.replace("4433", str(port))
    namespace: dict[str, Any] = {"__name__": module}
    exec(compile(text, f"{page.name}: {name}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("page", "name"), programs_run_alone(), ids=lambda value: getattr(value, "stem", value)
)
def test_a_program_of_a_page_prints_what_the_page_says(
    page: Path, name: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(page, name, "__main__")
    printed, (_, wanted) = capsys.readouterr().out, programs(page)[name]
    assert wanted, f"{page.name} does not show what {name} prints"
    if wanted.startswith(FIGURES_VARY):
        printed = without_figures(printed)
        wanted = without_figures(wanted.removeprefix(FIGURES_VARY))
    assert printed == wanted


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "client.py" in programs(page)], ids=lambda page: page.stem
)
async def test_server_and_client_of_a_page_do_what_it_says(
    page: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port = probe.getsockname()[1]
    server = load(page, "server.py", "server", port)
    client = load(page, "client.py", "client", port)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server["main"])
            await trio.testing.wait_all_tasks_blocked(0.05)
            await client["main"]()
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == programs(page)["client.py"][1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_something_that_runs(page: Path) -> None:
    language, text = blocks(page)[0]
    assert language == "sh" or text.startswith("# "), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_stands_in_the_table_of_contents(page: Path) -> None:
    index = (HOWTO.parent / "index.md").read_text(encoding="utf-8")
    assert f"\nhowto/{page.stem}\n" in index
