"""What everything is judged against rounds nowhere: every step of every family in float64."""

from __future__ import annotations

import pytest
import torch

import twinlens
from twinlens.inputs import prepare
from twinlens.museum.tiny import ALL, random_tokens
from twinlens.spec import evaluate, exact


@pytest.mark.parametrize("family", ALL)
def test_the_exact_steps_are_in_float64_throughout(family: str) -> None:
    model = ALL[family](dtype=torch.bfloat16)
    native = twinlens.load(model)
    inputs = prepare(native.spec, random_tokens(model, 1, 5))
    steps = exact(native.spec.steps)
    written = evaluate(steps, inputs, lambda name: native.weight(name).double(), keep=native.spec.sites)
    assert {site: x.dtype for site, x in written.items() if x.is_floating_point() and x.dtype != torch.float64} == {}
