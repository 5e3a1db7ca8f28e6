"""A layer that never ran has no sites of its own, and is told as one that adds nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import twinlens
from twinlens.capture import record
from twinlens.museum.tiny import random_tokens, tiny_llama
from twinlens.sites import block, split
from twinlens.subjects import subject


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_is_skipped_adds_nothing(layer: int) -> None:
    reference: Any = tiny_llama()
    candidate = copy.deepcopy(reference)
    candidate.model.layers[layer].forward = lambda hidden, *_, **__: hidden
    tokens = random_tokens(reference)

    declared = subject(reference).declaration()
    assert declared is not None
    shown = record(candidate, declared.spec, declared.weights, tokens).calls[0].sites
    assert {split(s)[1] for s in shown if split(s)[0] == layer} == {"hook_resid_pre", "hook_resid_post"}
    assert torch.equal(shown[block(layer, "hook_resid_pre")], shown[block(layer, "hook_resid_post")])

    report = twinlens.compare(reference, candidate, tokens=tokens)
    told = {(c.site, c.parameter, c.candidate) for c in report.causes}
    assert told == {(block(layer, f"hook_{s}_out"), "residual.scale", 0.0) for s in ("attn", "mlp")}
    assert report.unexplained == []
    assert report.first_difference == block(layer, "hook_resid_post")
