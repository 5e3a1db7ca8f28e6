"""With the logits alone, a constant that is wrong in all norms is one hypothesis; in one norm it is another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import twinlens
from twinlens.museum.tiny import random_tokens, tiny_gpt2
from twinlens.recording import Recording


def compared(places: list[str]) -> twinlens.Report:
    reference: Any = tiny_gpt2(1, layer_norm_epsilon=2e-5)
    candidate = copy.deepcopy(reference)
    for name, module in candidate.named_modules():
        if isinstance(module, torch.nn.LayerNorm) and (not places or name in places):
            module.eps = 1e-3 if places else 1e-5
    tokens = random_tokens(reference)
    with torch.no_grad():
        logits = candidate(tokens).logits
    return twinlens.compare(reference, Recording.from_tensors({"logits": logits}, tokens=tokens))


def test_all_norms_have_one_eps() -> None:
    report = compared([])
    assert {(c.parameter, c.candidate) for c in report.causes} == {("norm.eps", 1e-5)}
    assert sorted((c.site, c.layers) for c in report.causes) == [
        ("blocks.0.ln1.hook_normalized", [0, 1, 2]),
        ("blocks.0.ln2.hook_normalized", [0, 1, 2]),
        ("ln_final.hook_normalized", []),
    ]


@pytest.mark.sliced
@pytest.mark.parametrize("place", ["transformer.ln_f", "transformer.h.1.ln_1"])
def test_one_norm_is_not_all(place: str) -> None:
    report = compared([place])
    site = "ln_final" if place.endswith("ln_f") else "blocks.1.ln1"
    assert [(c.site, c.parameter) for c in report.causes] == [(f"{site}.hook_normalized", "norm.eps")]
    assert report.causes[0].candidate == pytest.approx(1e-3, rel=1e-2)
