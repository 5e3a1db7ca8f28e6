"""A config taken apart and put together; one key changed and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from twinlens.lint.keys import changes, drop, has, leaves, put, value_at
from twinlens.museum.tiny import CONFIGS, ROPE

names = st.sampled_from(["a", "b", "rope_theta", "factor"])
values = (
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats(0, 9) | st.just("silu") | st.lists(st.integers(0, 9))
)
configs = st.dictionaries(names, values | st.dictionaries(names, values, min_size=1), min_size=1)


@given(configs)
def test_the_leaves_put_together_are_the_config(config: dict[str, Any]) -> None:
    again: dict[str, Any] = {}
    for key, value in leaves(config):
        assert has(config, key)
        again = put(again, key, value)
    assert again == config


@given(configs)
def test_a_change_is_of_one_key_and_to_another_value(config: dict[str, Any]) -> None:
    before = repr(config)
    for key, value in leaves(config):
        for change in changes(config, key):
            assert repr(change.value) != repr(value)
            assert repr(value_at(change.config, key)) == repr(change.value)
            assert repr(put(change.config, key, value)) == before
    assert repr(config) == before


@given(configs)
def test_what_is_dropped_is_gone_and_nothing_else(config: dict[str, Any]) -> None:
    for key, _ in leaves(config):
        rest = drop(config, key)
        assert not has(rest, key)
        assert len(list(leaves(rest))) == len(list(leaves(config))) - 1


def test_every_key_of_every_family_has_another_value() -> None:
    for _, config, _ in CONFIGS.values():
        for key, _ in leaves(config):
            assert next(changes(config, key), None) is not None, key


def test_another_kind_of_rotary_positions_has_its_own_numbers() -> None:
    [change] = changes({"rope_parameters": ROPE["llama3"]}, ("rope_parameters", "rope_type"))
    assert change.config == {"rope_parameters": ROPE["default"]}
    [change] = changes({"rope_parameters": ROPE["default"]}, ("rope_parameters", "rope_type"))
    assert change.config == {"rope_parameters": {**ROPE["linear"], "factor": 2.0}}
