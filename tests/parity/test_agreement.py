"""Steps that are seen from afar say together what none of them says alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import twinlens
from tests.parity.judged import BY_NAME, compared, misses
from twinlens.museum.tiny import random_tokens, tiny


@pytest.mark.sliced
@pytest.mark.parametrize(
    "name",
    [
        "gemma2: scale, cap, windows swapped",  # local layers see a cap and a window in one error, global ones do not
        "gemma2: offset dropped",  # found in one norm, asked of all
        "gpt2: eps",  # one value in all norms, wherever it can be told
        "llama: llama3 factor and scale",  # a divisor of scores, not a factor of the tables
    ],
)
def test_one_cause_for_all_layers(name: str) -> None:
    _, report = compared(BY_NAME[name], afar=True)
    assert misses(BY_NAME[name], report) == []
    numbers = {(c.parameter, c.candidate) for c in report.causes if isinstance(c.candidate, float)}
    assert len(numbers) == len({parameter for parameter, _ in numbers})


def test_what_one_layer_has_is_not_asked_of_a_step_that_another_has_left_out() -> None:
    reference: Any = tiny("olmo2")
    candidate = copy.deepcopy(reference)
    first, second, *_ = candidate.model.layers
    first.post_feedforward_layernorm.variance_epsilon = 1e-2
    second.post_attention_layernorm = torch.nn.Identity()
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    assert [(c.parameter, c.layers) for c in report.causes] == [("norm.eps", [0]), ("norm.missing", [1])]
