"""What acts alike: which of it is told, what else it may be, and what other layers deny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinlens
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.subjects import agreed, say_nothing, subject
from twinlens.visibility import only


def sublayers(change: Callable[[Any], None], family: str = "llama") -> twinlens.Report:
    """Against a recording of sublayer outputs, whose weights nobody sees."""
    reference, candidate = FAMILIES[family](), FAMILIES[family]()
    with torch.no_grad():
        change(candidate)
    tokens, side = random_tokens(reference, 2, 40, seed=3), subject(candidate)
    seen = only(side.record(agreed(subject(reference), side), tokens, None, say_nothing), "sublayers")
    recording = twinlens.Recording.from_tensors(dict(seen.sites), tokens=tokens)
    return twinlens.compare(reference, recording, tokens=tokens)


def scaled(name: str, by: float = 1.2) -> Callable[[Any], None]:
    def change(m: Any) -> None:
        m.get_submodule(name).weight.mul_(by)

    return change


@pytest.mark.sliced
@pytest.mark.parametrize(
    "name", ["mlp.gate_proj", "input_layernorm", "post_attention_layernorm"]
)  # no number does the same
def test_a_weight_that_nobody_saw_is_scaled(name: str) -> None:
    [cause] = sublayers(scaled(f"model.layers.1.{name}")).causes
    assert (cause.parameter, cause.layers, cause.status) == ("weight", [1], "proved")
    assert f"layers.1.{name}.weight: all entries: times 1.2" in cause.evidence


@pytest.mark.sliced
@pytest.mark.parametrize(
    ("name", "parameter", "rival"),
    [
        ("self_attn.q_proj", "attn.scale", "weight at blocks.1.attn.hook_q"),
        ("self_attn.v_proj", "residual.scale", "weight at blocks.1.attn.hook_v: all entries: times 1.2"),
        ("mlp.down_proj", "residual.scale", "weight at blocks.1.mlp.hook_out: all entries: times 1.2"),
    ],
)
def test_what_a_number_is_not_told_from_is_said(name: str, parameter: str, rival: str) -> None:
    report = sublayers(scaled(f"model.layers.1.{name}"))
    [cause] = report.causes
    assert (cause.parameter, cause.layers) == (parameter, [1])
    assert any(f" or {rival}" in pair for pair in report.pairs)


@pytest.mark.sliced
@pytest.mark.parametrize("layer", [0, 1])
def test_tables_that_all_layers_read_are_not_at_fault_in_one(layer: int) -> None:
    report = sublayers(scaled(f"model.layers.{layer}.self_attn.q_proj"))
    [cause] = report.causes
    assert (cause.site, cause.layers) == (f"blocks.{layer}.attn.hook_attn_scores", [layer])
    assert report.explained == "rounding"
