"""Tables that one layer, or the keys alone, have for themselves: told from those that all layers share, and mended."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from twinlens.museum.hands import layers, modeling
from twinlens.museum.tiny import ALL, random_tokens, tiny_llama
from twinlens.parity.changes import Variant
from twinlens.parity.rebuilt import Rebuilt


def compared(reference: Any, candidate: Any, sites: str = "all") -> twinlens.Report:
    return twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3), sites=sites)


def base_of(model: Any, layer: int, base: float) -> None:
    """A layer turns by another base than the others."""
    own = copy.deepcopy(model.model.rotary_emb)
    was = model.config.rope_parameters["rope_theta"]
    own.inv_freq = own.inv_freq ** (math.log(base) / math.log(was))
    attention = layers(model)[layer].self_attn
    plain = attention.forward

    def forward(hidden_states: Tensor, **kwargs: Any) -> Any:
        places = torch.arange(hidden_states.shape[1])[None]
        return plain(hidden_states, **kwargs | {"position_embeddings": own(hidden_states, places)})

    attention.forward = forward


@pytest.mark.sliced
@pytest.mark.parametrize(("family", "sites"), [("llama", "all"), ("qwen3", "all"), ("llama", "sublayers")])
def test_one_layer_has_a_base_of_its_own(sites: str, family: str) -> None:
    reference, candidate = ALL[family](), ALL[family]()
    base_of(candidate, 1, 11_000.0)
    report = compared(reference, candidate, sites)
    (cause,) = report.causes
    assert (cause.parameter, cause.layers, cause.status) == ("rotary.base", [1], "proved")
    assert cause.candidate == pytest.approx(11_000.0, rel=1e-5)
    assert "read from tables of its own" in cause.evidence
    assert (cause.site, report.unexplained) == ("blocks.1.attn.hook_rot_q", [])
    assert report.fix(candidate).verdict in ("identical", "rounding")


@pytest.mark.sliced
def test_a_base_that_all_layers_share_is_that_of_the_tables() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    for layer in range(len(layers(candidate))):
        base_of(candidate, layer, 11_000.0)
    report = compared(reference, candidate, "residual")
    (cause,) = report.causes
    assert (cause.parameter, cause.layers, cause.site) == ("rotary.base", [], "rotary.hook_cos")


def test_keys_stand_one_position_further_than_queries() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    tables = candidate.model.rotary_emb

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        plain = plain_of(candidate)
        further = tables(q, torch.arange(q.shape[2])[None] + 1)
        return plain(q, k, cos, sin)[0], plain(q, k, *further)[1]

    modeling(candidate, apply_rotary_pos_emb=rotated)
    report = compared(reference, candidate)
    (cause,) = report.causes
    assert (cause.parameter, cause.candidate, cause.layers) == ("positions.offset", 1, [0, 1, 2])
    assert (cause.site, report.explained) == ("blocks.0.attn.hook_rot_k", "identical")
    assert report.fix(candidate).verdict == "identical"


def plain_of(model: Any) -> Any:
    """The function as the file has it, whatever stands in its place now."""
    from transformers.models.llama import modeling_llama

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        half = modeling_llama.rotate_half
        return (q * cos) + (half(q) * sin), (k * cos) + (half(k) * sin)

    return rotate


@pytest.mark.parametrize("sites", ["all", "logits"])
def test_a_rotation_that_turns_back(sites: str) -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    for layer in layers(candidate):
        attention = layer.self_attn
        plain = attention.forward
        attention.forward = lambda *args, plain=plain, **kw: plain(
            *args, **kw | {"position_embeddings": (kw["position_embeddings"][0], -kw["position_embeddings"][1])}
        )
    report = compared(reference, candidate, sites)
    (cause,) = report.causes
    assert (cause.parameter, cause.candidate, cause.layers) == ("rotary.direction", "back", [0, 1, 2])
    assert report.explained == "identical"


def test_one_layer_and_its_tables_are_one_change() -> None:
    reference, candidate = tiny_llama(), tiny_llama()
    base_of(candidate, 2, 11_000.0)
    report = compared(reference, candidate)
    (cause,) = report.causes
    assert len(cause.changes) == 2  # queries and keys
    assert all(isinstance(c, Rebuilt) for c in cause.changes)
    assert report.judge is not None
    steps = Variant(cause.changes).steps(report.judge.computed.spec.steps)
    own = [s.writes for s in steps if "@again" in s.writes]
    assert len(own) == 4  # both tables of both
    for name in own:
        assert all(reader.writes.startswith("blocks.2.") for reader in steps if name in reader.reads)
