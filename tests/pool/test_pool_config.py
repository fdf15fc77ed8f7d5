"""The pool's settings: checked when they are made, and the values derived from them."""

from __future__ import annotations

import math
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.pool.config import Backoff, PoolConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_connections", 0),
        ("max_connections_per_target", 0),
        ("max_leases_per_connection", 0),
        ("idle_timeout", 0),
        ("idle_timeout", math.nan),
        ("patience", -1),
        ("failure_memory", -0.1),
        ("health_check_interval", 0),
        ("health_check_timeout", 0),
        ("close_timeout", 0),
        ("close_timeout", -math.inf),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PoolConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_connections", 1.5),
        ("max_connections", True),
        ("max_leases_per_connection", "3"),
        ("idle_timeout", "soon"),
        ("idle_timeout", None),
        ("reconnect_backoff", 0.5),
        ("health_check_interval", "often"),
    ],
)
def test_a_value_of_a_wrong_type_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=field):
        PoolConfig(**{field: value})


@pytest.mark.parametrize(
    "values", [{"initial": 0}, {"maximum": 0}, {"jitter": 1.1}, {"initial": 5, "maximum": 1}]
)
def test_a_back_off_out_of_range_names_its_field(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Backoff(**values)


def test_a_jitter_which_is_no_number_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="jitter"):
        Backoff(jitter="much")  # type: ignore[arg-type]


def test_the_limit_for_one_target_never_exceeds_the_limit_for_all() -> None:
    assert PoolConfig(max_connections=4).per_target == 4
    assert PoolConfig(max_connections=4, max_connections_per_target=2).per_target == 2


def test_a_changed_copy_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="max_connections"):
        attrs.evolve(PoolConfig(), max_connections=0)


@given(
    initial=st.floats(0.001, 10),
    ratio=st.floats(1, 10_000),
    jitter=st.floats(0, 1),
    failures=st.integers(1, 10_000),
    seed=st.integers(0, 2**32),
)
def test_a_back_off_doubles_up_to_its_maximum_and_differs_by_its_jitter(
    initial: float, ratio: float, jitter: float, failures: int, seed: int
) -> None:
    backoff = Backoff(initial=initial, maximum=min(initial * ratio, 86_400), jitter=jitter)
    delay = backoff.delay(failures, random.Random(seed))
    full = min(backoff.maximum, initial * 2.0 ** min(failures - 1, 60))
    assert full * (1 - jitter) <= delay <= full
    assert delay == backoff.delay(failures, random.Random(seed))
