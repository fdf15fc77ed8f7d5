#!/usr/bin/env python3
"""Writes the last section of docs/api.md: all public names as text, from their docstrings.

    tools/make_api_text.py            writes the section
    tools/make_api_text.py --check    writes nothing; fails if it is stale

Sphinx takes the names of the page's `eval-rst` blocks; this takes the same, so that a reader of the
plain file sees each call with its arguments and the first sentence about it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
BEGIN = "<!-- text tables: begin, written by tools/make_api_text.py -->\n"
END = "<!-- text tables: end -->\n"
LONGEST_SENTENCE = 120
LONGEST_DEFAULT = 30


def names_of(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each section of the page, with the full names that its directives describe."""
    for section in re.split(r"^## ", page.split(BEGIN, maxsplit=1)[0], flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        found = []
        module = "phoenix_trio"
        for kind, name in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)$", body, re.MULTILINE):
            if kind == "py:currentmodule":
                module = name
            elif kind == "automodule":
                found += [f"{name}.{each}" for each in importlib.import_module(name).__all__]
            elif kind.startswith("auto"):
                found.append(name if name.startswith("phoenix_trio.") else f"{module}.{name}")
        if found:
            yield title, found


def look_up(full: str) -> object:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without the marks of reStructuredText."""
    paragraph = inspect.cleandoc(text or "").split("\n\n")[0]
    line = " ".join(paragraph.split())
    line = re.sub(r":(?:py:)?\w+:`~?(?:[\w.]*\.)?([^`]+)`", r"`\1`", line).replace("``", "`")
    sentence = re.split(r"(?<=[^.\s]{2}\.) ", line)[0]
    if len(sentence) > LONGEST_SENTENCE:
        sentence = re.split(r"[:;] ", sentence)[0]
    return sentence.rstrip(".:;").replace("|", "\\|")


def arguments_of(item: object) -> str:
    """The arguments of a call, with defaults and without types."""
    if not callable(item):
        return ""
    shown = []
    for parameter in inspect.signature(item).parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        default = parameter.default
        if default is not inspect.Parameter.empty:
            text = repr(default)
            default = ... if len(text) > LONGEST_DEFAULT or "<" in text else default
        shown.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(inspect.Signature(shown)).replace("=Ellipsis", "=...")


def field_sentences(item: type) -> dict[str, str]:
    """The first sentence about each field of a class: the string that follows the field."""
    found: dict[str, str] = {}
    for each in reversed(item.__mro__):
        if not each.__module__.startswith("phoenix_trio"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[before.target.id] = first_sentence(str(after.value.value))
    return found


def rows_of_class(name: str, item: type) -> Iterator[tuple[str, str]]:
    """The fields, methods and properties of a class."""
    if attrs.has(item):
        sentences = field_sentences(item)
        for field in attrs.fields(item):
            if not field.name.startswith("_"):
                yield f"{name}.{field.name}", sentences.get(field.name, "")
    seen = set(attrs.fields_dict(item)) if attrs.has(item) else set()
    for each in item.__mro__:
        if not each.__module__.startswith("phoenix_trio"):
            continue
        for member, value in vars(each).items():
            if member.startswith("_") or member in seen:
                continue
            seen.add(member)
            is_static = isinstance(value, (classmethod, staticmethod))
            plain = value.__func__ if is_static else value
            documentation = inspect.getdoc(getattr(item, member))
            if documentation and documentation.startswith("Called by the driver"):
                continue
            if isinstance(value, property):
                yield f"{name}.{member}", first_sentence(documentation)
            elif inspect.isroutine(plain):
                call = f"{name}.{member}{arguments_of(plain)}"
                yield call, first_sentence(documentation)


def section_text() -> str:
    """All names of the page, a table for each section."""
    lines = ["## All names as text", ""]
    for title, names in names_of(PAGE.read_text(encoding="utf-8")):
        lines += [f"### {title}: names", "", "| name | first sentence |", "|---|---|"]
        for full in names:
            item = look_up(full)
            short = full.removeprefix("phoenix_trio.")
            is_error = isinstance(item, type) and issubclass(item, Exception)
            call = arguments_of(item) if inspect.isroutine(item) else ""
            lines.append(f"| `{short}{call}` | {first_sentence(inspect.getdoc(item))} |")
            if isinstance(item, type) and not is_error:
                rows = rows_of_class(item.__name__, item)
                lines += [f"| `{name}` | {sentence} |" for name, sentence in rows]
        lines.append("")
    return "\n".join(lines)


def wanted_page() -> str:
    """The page with a fresh section."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{section_text()}\n{END}{rest.split(END)[1]}"


def is_stale() -> bool:
    return wanted_page() != PAGE.read_text(encoding="utf-8")


def main() -> int:
    """Write the section, or check it; 1: it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say if it is stale")
    if parser.parse_args().check:
        if is_stale():
            print("docs/api.md is stale: run tools/make_api_text.py")
            return 1
        return 0
    PAGE.write_text(wanted_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
