"""Settings are checked when they are made, for any values."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio import TransportConfig

FIELDS = [field.name for field in attrs.fields(TransportConfig)]

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.binary(max_size=20),
    st.lists(st.integers(), max_size=2),
)


@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4))
def test_any_values_make_a_sane_configuration_or_an_error_which_names_a_field(
    values: dict[str, Any],
) -> None:
    try:
        config = TransportConfig(**values)
    except (TypeError, ValueError) as error:
        text = str(error)
        assert any(name in text for name in values), text
        return
    assert 1200 <= (config.max_udp_payload_size or 1200) <= 65507
    assert config.max_idle_timeout > 0
    assert config.keep_alive is None or config.keep_alive < config.max_idle_timeout
    assert config.stream_send_buffer_size > 0
    assert 0 < config.receive_buffer_size <= 2**30
    assert 0 <= config.max_bidirectional_streams <= 100_000
    assert config.retry_threshold <= config.max_handshakes
    assert attrs.evolve(config) == config
    assert hash(config) == hash(attrs.evolve(config))


def test_unknown_settings_and_changes_are_refused() -> None:
    with pytest.raises(TypeError, match="max_stream"):
        TransportConfig(max_streams=5)  # type: ignore[call-arg]
    config = TransportConfig()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.keep_alive = 1.0  # type: ignore[misc]


def test_secrets_are_not_shown() -> None:
    assert "sixteen" not in repr(TransportConfig(stateless_reset_key=b"sixteen secret bytes"))
