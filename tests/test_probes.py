"""A probe shows what a short prompt hides."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import twinlens
from twinlens import InputError, probes
from twinlens.fields import kinds
from twinlens.museum.tiny import ALL, tiny_gemma2, tiny_llama


@pytest.mark.parametrize("family", ALL)
def test_the_automatic_probe_is_past_every_threshold(family: str) -> None:
    spec = twinlens.load(ALL[family]()).spec
    tokens, mask = probes.auto(spec)
    room = spec.shape.positions or probes.FARTHEST
    windows = [v for s in spec.steps for n, _, v in kinds(s.op) if n == "window" and v]
    assert tokens.shape[1] >= min(room, max([257, *(1.25 * w for w in windows)]))
    assert tokens.shape[1] <= room
    assert tokens.max() < spec.shape.vocabulary
    assert mask[0].all()
    assert 0 < mask[1].sum() < mask.shape[1]
    assert mask[1].diff().min() >= 0  # on the left


@pytest.mark.parametrize(("rope", "length"), [("longrope", 257), ("llama3", 257), ("default", 257)])
def test_how_far_it_goes(rope: str, length: int) -> None:
    assert probes.auto(twinlens.load(tiny_llama(rope=rope, max_position_embeddings=8192)).spec)[0].shape[1] == length


def test_far_contexts_are_reached_up_to_the_farthest() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 2000}
    assert probes.auto(twinlens.load(tiny_llama(rope_parameters=rope)).spec)[0].shape[1] == 2500
    rope["original_max_position_embeddings"] = 8192
    assert probes.auto(twinlens.load(tiny_llama(rope_parameters=rope)).spec)[0].shape[1] == probes.FARTHEST


def test_a_fault_that_only_long_or_padded_prompts_show() -> None:
    reference = tiny_gemma2(sliding_window=128)
    candidate: Any = copy.deepcopy(reference)
    candidate.config.sliding_window = 200
    for layer in candidate.model.layers:
        layer.self_attn.sliding_window = 200 if layer.self_attn.sliding_window else None
    short = probes.short(twinlens.load(reference).spec)[:, :64]
    assert twinlens.compare(reference, candidate, tokens=short).verdict == "identical"
    report = twinlens.compare(reference, candidate, probe="auto")
    assert [(c.parameter, c.reference, c.candidate) for c in report.causes] == [("attn.window", 128, 200)]


def test_coverage_says_what_would_tell() -> None:
    reference = tiny_gemma2(sliding_window=128)
    told = twinlens.compare(reference, copy.deepcopy(reference), tokens=[[1, 2, 3, 4]]).coverage
    at = told["blocks.0.attn.hook_attn_scores"]
    assert at["attn.window"].endswith("a prompt longer than the window would tell")
    assert at["attn.mask"].endswith("padding on the left would tell")


def test_probes_that_cannot_be() -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="give auto"):
        twinlens.compare(model, model, probe="long")
    with pytest.raises(InputError, match="leave the probe out"):
        twinlens.compare(model, model, probe="auto", tokens=[[1, 2]])
