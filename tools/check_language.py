#!/usr/bin/env python3
"""Counts constructions that make documentation, docstrings and comments hard to read.

    tools/check_language.py            the count for each 1,000 lines; fails above the limit
    tools/check_language.py --list     every place as well

Looks at the pages in docs/ and README.md, and at docstrings and comments of Python files.
Lines of code, and code in pages, do not count.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: Places for each 1,000 lines of prose.
LIMIT = 5.0

#: Trees that are checked.
PYTHON = ("phoenix_trio", "bench", "examples", "tests", "tools")
PAGES = ("README.md", "CONTRIBUTING.md", "docs")

#: Each construction, and what to write instead.
CONSTRUCTIONS: dict[str, tuple[str, str]] = {
    "indefinite person": (
        r"\b(?:whoever|whomever|whosoever|nobody|those who|he who|who (?:comes|waits|overflows))\b",
        "name the task, the caller or the peer",
    ),
    "relative clause with be or have": (
        r"(?<![,;:(-]) which (?:is|are|was|were|has|have|had) (?!to be\b)",
        "use an adjective, a participle or a sentence of its own",
    ),
    "free relative as subject": (
        r"(?:^|[.;:] )What (?:is|was|has|comes|waits|does|a|the|it|they|this)\b",
        "begin with the subject",
    ),
    "question as header": (
        r"^(?:Who|What|When|Where|Why|How|Which)\b[^.]*\?",
        "state what the module does",
    ),
    "inverted condition": (
        r"(?:^|[.;:] )(?:Be it|Were it|So it is|Not so)\b",
        "use if, or a plain statement",
    ),
}

_PATTERNS = {name: re.compile(pattern) for name, (pattern, _) in CONSTRUCTIONS.items()}


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Lines of docstrings and comments, with their numbers; a block of comments is joined."""
    tree = ast.parse(text)
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                yield number, lines[number - 1].strip().strip('"')
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            yield token.start[0], token.string.lstrip("#: ")


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a page, but for code and tables of figures."""
    in_code = in_figures = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif "tables: begin" in line:
            in_figures = True
        elif "tables: end" in line:
            in_figures = False
        elif not in_code and not in_figures and line.strip():
            yield number, line.strip().lstrip("#*- ")


def files() -> Iterator[Path]:
    """The files to check."""
    for name in PAGES:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]
    for name in PYTHON:
        yield from sorted((ROOT / name).rglob("*.py"))


def places(path: Path) -> tuple[int, list[tuple[int, str, str]]]:
    """Lines of prose in a file, and each place: its line, the construction, the words."""
    text = path.read_text()
    prose = list(prose_of_page(text) if path.suffix == ".md" else prose_of_python(text))
    found = []
    for number, line in prose:
        for name, pattern in _PATTERNS.items():
            found += [(number, name, match.group().strip()) for match in pattern.finditer(line)]
    return len(prose), found


def main() -> int:
    """Check all files; 1: there are too many places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print every place")
    options = parser.parse_args()
    total = 0
    counts: Counter[str] = Counter()
    by_tree: dict[str, list[int]] = {}
    for path in files():
        lines, found = places(path)
        total += lines
        relative = path.relative_to(ROOT)
        tree = by_tree.setdefault(relative.parts[0], [0, 0])
        tree[0] += lines
        tree[1] += len(found)
        for number, name, words in found:
            counts[name] += 1
            if options.list:
                print(f"{relative}:{number}: {name}: {words!r}: {CONSTRUCTIONS[name][1]}")
    for name, (lines, count) in by_tree.items():
        print(f"{1000 * count / lines:6.1f} in 1,000 lines  {name} ({count} in {lines})")
    for name, count in counts.most_common():
        print(f"{1000 * count / total:6.1f}  {name}")
    rate = 1000 * sum(counts.values()) / total
    print(f"{rate:6.1f}  together; the limit is {LIMIT:.0f}")
    return int(rate > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
