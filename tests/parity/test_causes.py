"""A slice of the planted faults: named with value and layers, nothing else accused, the fix proved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

import twinlens
from tests.parity.faults import rope_of
from tests.parity.judged import BY_NAME, compared, misses
from twinlens.museum.hands import modeling
from twinlens.museum.tiny import FAMILIES, random_tokens, tiny_llama

NAMED = (
    "gemma2: scale",
    "gpt2: eps",
    "gpt2: residual factor of the MLP",
    "gpt2: deviation of d - 1, eps outside the root",
    "gpt2: own token not seen by sdpa",
    "llama: linear factor",
    "llama: row halved",
    "llama: logits scaled",
    "llama: next token seen",
    "llama: attention by einsum, exp and sum",
    "llama: products in float64",
)
SEEN_FROM_AFAR = ("gemma2: scale", "gpt2: layers exchanged", "llama: row halved", "llama: logits scaled")


@pytest.mark.sliced
@pytest.mark.parametrize("name", NAMED)
def test_a_fault_is_named_and_mended(name: str) -> None:
    fault = BY_NAME[name]
    candidate, report = compared(fault)
    assert misses(fault, report) == []
    if not fault.benign:
        assert report.fix(candidate, order=True).verdict == "identical"


@pytest.mark.sliced
@pytest.mark.parametrize("name", SEEN_FROM_AFAR)
def test_a_fault_is_named_from_sublayer_outputs(name: str) -> None:
    fault = BY_NAME[name]
    assert misses(fault, compared(fault, afar=True)[1]) == []


def test_values_alone_in_another_order_of_heads() -> None:
    """Where the values enter, not where keys do."""

    def values_tiled(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float = 1.0, **_: Any) -> Any:
        groups = module.num_key_value_groups
        scores = q @ modeling_llama.repeat_kv(k, groups).transpose(2, 3) * scaling + mask
        pattern = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        return (pattern @ v.repeat(1, groups, 1, 1)).transpose(1, 2).contiguous(), pattern

    reference = tiny_llama()
    candidate = copy.deepcopy(reference)
    modeling(candidate, eager_attention_forward=values_tiled)
    (cause,) = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40)).causes
    assert (cause.parameter, cause.site, cause.layers) == ("attn.kv_map", "blocks.0.attn.hook_z", [0, 1, 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_other_ids_reach_the_model(family: str) -> None:
    reference = FAMILIES[family]()
    candidate: Any = copy.deepcopy(reference)
    plain = candidate.forward

    def doubled(input_ids: torch.Tensor, **more: Any) -> Any:
        ids = input_ids.clone()
        ids[:, 0] = 1
        return plain(ids, **more)

    candidate.forward = doubled
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40))
    (cause,) = report.causes
    assert (cause.parameter, cause.site, cause.reference) == ("tokens.ids", "tokens", "as given")
    assert "2 of 80 ids" in cause.candidate
    assert report.fix(candidate).verdict == "identical"


def test_two_numbers_of_a_rotary_scaling_at_once() -> None:
    """Neither shows the way alone, and the four that could do it together are not the fewest."""
    reference = tiny_llama(rope="llama3")
    candidate: Any = copy.deepcopy(reference)
    changed = rope_of("llama3", factor=4.0, original_max_position_embeddings=128)
    candidate.model.rotary_emb.inv_freq = changed[0]
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 60))
    assert {(c.reference, c.candidate) for c in report.causes} == {(8.0, 4.0), (64.0, 128.0)}
    assert report.explained == "identical"


def test_a_side_that_is_not_steady_is_said_to_be() -> None:
    reference = tiny_llama()
    candidate: Any = copy.deepcopy(reference)
    plain = candidate.model.layers[1].mlp.forward
    candidate.model.layers[1].mlp.forward = lambda x: torch.dropout(plain(x), 0.1, train=True)
    tokens = random_tokens(reference, 2, 40)
    for sides, name in (((reference, candidate), "candidate"), ((candidate, reference), "reference")):
        report = twinlens.compare(*sides, tokens=tokens)
        assert (report.verdict, report.unsteady) == ("different", [name])
        assert f"a second run of the {name} gives other logits" in " ".join(str(report).split())
