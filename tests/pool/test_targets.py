"""Targets: every spelling in one normal form, every mistake with a helpful text."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.pool.targets import Target, parse_target


@pytest.mark.parametrize(
    ("spelling", "host", "port"),
    [
        ("example.org:443", "example.org", 443),
        ("Example.ORG:443", "example.org", 443),
        ("localhost:1", "localhost", 1),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("[::1]:8080", "::1", 8080),
        ("[0:0:0:0:0:0:0:1]:8080", "::1", 8080),
        ("[FE80::1%eth0]:8080", "fe80::1%eth0", 8080),
        (("example.org", 443), "example.org", 443),
        (("::1", 443), "::1", 443),
        (("[::1]", 443), "::1", 443),
        (("0::1", 443), "::1", 443),
        (Target("example.org", 443), "example.org", 443),
    ],
)
def test_every_spelling_has_one_normal_form(spelling: Any, host: str, port: int) -> None:
    assert parse_target(spelling) == Target(host, port)


@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        ("", "has no port"),
        ("example.org", 'write "host:port"'),
        ("example.org:", "has no port"),
        (":443", "has no host"),
        ("::1:443", "needs brackets"),
        ("::1", "needs brackets"),
        ("[::1]", "has no port"),
        ("[::1]443", "has no port"),
        ("[::1:443", "no closing bracket"),
        ("[]:443", "not an IPv6 address"),
        ("[example.org]:443", "not an IPv6 address"),
        ("https://example.org:443", "not a URL"),
        ("example.org:443/path", "must be a number"),
        ("user@example.org:443", "must not contain '@'"),
        ("exa mple.org:443", "must not contain ' '"),
        ("example.org\n:443", r"must not contain '\\n'"),
        ("example.org:http", "must be a number"),
        ("example.org:-1", "must be a number"),
        ("example.org:+80", "must be a number"),
        ("example.org: 80", "must be a number"),
        ("example.org:٤٤٣", "must be a number"),
        ("example.org:0", "between 1 and 65535"),
        ("example.org:65536", "between 1 and 65535"),
        ("example.org:" + "9" * 5000, "must be a number"),
        ("a" * 300 + ":443", "longer than 253"),
        (("", 443), "has no host"),
        (("example.org", 0), "between 1 and 65535"),
        (("example.org", 70_000), "between 1 and 65535"),
        (("not:an:address", 443), "not an IPv6 address"),
        (("example.org",), "not 1 items"),
        (("example.org", 443, 0, 0), "not 4 items"),
    ],
)
def test_a_malformed_target_says_what_is_wrong(spelling: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_target(spelling)


@pytest.mark.parametrize(
    "spelling",
    [None, 443, b"example.org:443", ["example.org", 443], ("example.org", "443"), (1, 443)]
    + [("example.org", True)],
)
def test_what_is_no_target_at_all_is_a_type_error(spelling: Any) -> None:
    with pytest.raises(TypeError, match="target"):
        parse_target(spelling)


@given(
    host=st.one_of(
        st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,40}[A-Za-z0-9])?", fullmatch=True),
        st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
        st.integers(0, 2**128 - 1).map(lambda n: ipaddress.IPv6Address(n).exploded),
        st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    ),
    port=st.integers(1, 65535),
)
def test_what_a_target_prints_is_the_same_target(host: str, port: int) -> None:
    target = parse_target((host, port))
    assert parse_target(str(target)) == target
    assert hash(parse_target(str(target))) == hash(target)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_value_error(text: str) -> None:
    try:
        target = parse_target(text)
    except ValueError:
        return
    assert 1 <= target.port <= 65535
    assert target.host
    assert parse_target(str(target)) == target
