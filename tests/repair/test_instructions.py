"""Instructions are data: another process reads what this one wrote."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from twinlens.repair.instructions import Instruction, from_json, read, to_json, written

values = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["half", "interleaved", torch.bfloat16, torch.float32, torch.float64]),
)
names = st.text("abcdefgh._0123456789", max_size=12)


@given(values)
def test_a_value_is_read_as_it_was_written(value: object) -> None:
    again = read(written(value))
    assert again == value and type(again) is type(value)


rows = st.tuples(
    st.sampled_from(["field", "weight", "other"]), names, st.lists(names, min_size=1, max_size=3), names, names, values
)


@given(st.lists(rows, max_size=4))
def test_instructions_survive_json(given: list[tuple[Any, ...]]) -> None:
    these = [Instruction(w, p, tuple(sites), seen, name, written(value)) for w, p, sites, seen, name, value in given]
    assert from_json(to_json(these)) == these
