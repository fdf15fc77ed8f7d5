"""The docstring of each public data class describes its fields: what `help()` and editors show."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import attrs
import pytest

import phoenix_trio
import phoenix_trio.pool
import phoenix_trio.streams
import phoenix_trio.testing

MODULES = (phoenix_trio, phoenix_trio.pool, phoenix_trio.streams, phoenix_trio.testing)

CLASSES: list[type] = sorted(
    {
        cls
        for module in MODULES
        for name in module.__all__
        if inspect.isclass(cls := getattr(module, name)) and attrs.has(cls)
    },
    key=lambda cls: cls.__name__,
)

#: Settings: users construct these, and their docstrings state ranges.
SETTINGS = (
    phoenix_trio.TransportConfig,
    phoenix_trio.PoolConfig,
    phoenix_trio.Backoff,
    phoenix_trio.Retry,
    phoenix_trio.PartLimits,
    phoenix_trio.testing.Conditions,
)

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "s": 1}
NUMBER = r"\d[\d,]*(?:\.\d+)?(?: (?:KiB|MiB|GiB|TiB|s)\b)?"
DEFAULT = re.compile(
    rf"\bDefault: (?P<value>\"[^\"]*\"|True|False|None|{NUMBER}|Backoff\([^)]*\))"
    r"(?: \((?P<range>[^)]*)\))?\.(?:\s|$)"
)


def entries(cls: type) -> dict[str, str]:
    """The entries of the section of fields, by name; a name may not occur twice."""
    text = inspect.cleandoc(cls.__doc__ or "")
    sections = re.findall(r"^(?:Args|Attributes):\n((?:  .*\n|\n)*)", text + "\n", re.MULTILINE)
    assert len(sections) == 1, f"{cls.__name__} needs one section Args or Attributes"
    found = re.findall(r"^  (\w+): (.*(?:\n(?:    .*)?)*)", sections[0], re.MULTILINE)
    assert len({name for name, _ in found}) == len(found)
    return {name: " ".join(body.split()) for name, body in found}


def number(text: str) -> float:
    figure, _, unit = text.partition(" ")
    return float(figure.replace(",", "")) * UNITS.get(unit, 1)


def value_of(text: str) -> Any:
    if re.fullmatch(NUMBER, text):
        return number(text)
    return eval(text, {"Backoff": phoenix_trio.Backoff})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_docstring_describes_each_field_once_in_order(cls: type) -> None:
    names = [field.name for field in attrs.fields(cls) if field.init]
    assert list(entries(cls)) == names


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_docstring_states_the_real_defaults(cls: type) -> None:
    for name, body in entries(cls).items():
        default = getattr(attrs.fields_dict(cls)[name], "default", attrs.NOTHING)
        stated = DEFAULT.findall(body)
        if default is attrs.NOTHING:
            assert not stated, f"{name} has no default"
            continue
        assert len(stated) == 1, f"{cls.__name__}.{name} must state its default once: {body!r}"
        assert value_of(stated[0][0]) == default, name


def bounds(text: str) -> tuple[float | None, float | None, bool]:
    """The bounds in "16 KiB to 1 GiB", or "more than 0, up to 3600 s"; whether the lower is out."""
    if found := re.match(rf"({NUMBER}) to ({NUMBER})", text):
        low, high = found.groups()
        unit = high.partition(" ")[2]
        low_unit = low.partition(" ")[2]
        assert low_unit or unit not in UNITS or unit == "s" or number(low) in (0, 1), text
        return number(low), number(high), False
    if found := re.match(rf"more than ({NUMBER})(?:, up to ({NUMBER}))?", text):
        low, upper = found.groups()
        return number(low), None if upper is None else number(upper), True
    if found := re.match(rf"({NUMBER}) or more", text):
        return number(found[1]), None, False
    return None, None, False


def accepts(cls: type, name: str, value: object) -> bool:
    field = attrs.fields_dict(cls)[name]
    assert field.validator is not None, name
    try:
        field.validator(None, field, value)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
def test_the_stated_ranges_are_those_that_are_checked(cls: type) -> None:
    for name, body in entries(cls).items():
        stated = DEFAULT.search(body)
        assert stated is not None
        default = attrs.fields_dict(cls)[name].default
        if stated["range"] is None:
            assert isinstance(default, (bool, str, phoenix_trio.Backoff)), f"{name}: no range"
            continue
        low, high, exclusive = bounds(stated["range"])
        whole = "float" not in str(attrs.fields_dict(cls)[name].type)
        step = 1 if whole else 1e-6
        convert = int if whole else float
        if low is not None:
            assert accepts(cls, name, convert(low)) is not exclusive, f"{name}: {low}"
            assert not accepts(cls, name, convert(low) - step), f"{name}: below {low}"
            assert accepts(cls, name, convert(low) + step), f"{name}: above {low}"
        if high is not None:
            assert accepts(cls, name, convert(high)), f"{name}: {high}"
            assert not accepts(cls, name, high + step), f"{name}: above {high}"
            infinite = "math.inf" in stated["range"]
            assert accepts(cls, name, math.inf) is infinite, f"{name}: infinity"
