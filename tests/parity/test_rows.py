"""What is read off the outputs of tables, heads and norms whose weights nobody saw."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import twinlens
from tests.parity.judged import sublayers
from twinlens.museum.tiny import FAMILIES, random_tokens
from twinlens.parity.weighing import pattern


def untied(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight.data[5] += 0.3


def position(model: Any) -> None:
    model.transformer.wpe.weight.data[7] += 0.5


def doubled(model: Any) -> None:
    model.model.embed_tokens.weight.data[int(random_tokens(model, 2, 40)[0, 3])] *= 2


def ones(model: Any) -> None:
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(1.0)


def zeros(model: Any) -> None:
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(0.0)


@pytest.mark.parametrize(
    ("family", "change", "weight", "said"),
    [
        ("gpt2", untied, "transformer.wte.weight", "row 5 of"),
        ("gpt2", position, "transformer.wpe.weight", "row 7 of"),
        ("llama", doubled, "model.embed_tokens.weight", "times 2"),
        ("llama", ones, "model.layers.1.post_attention_layernorm.weight", "all ones"),
        ("gemma2", zeros, "model.layers.1.post_attention_layernorm.weight", "all zeros"),
    ],
)
def test_what_became_of_a_weight(family: str, change: Callable[[Any], None], weight: str, said: str) -> None:
    reference: Any = FAMILIES[family]()
    candidate = copy.deepcopy(reference)
    change(candidate)
    tokens = random_tokens(reference, 2, 40)
    report = twinlens.compare(reference, sublayers(candidate, tokens, None), tokens=tokens)
    assert [(c.parameter, c.reference) for c in report.causes] == [("weight", weight)]
    assert said in report.causes[0].evidence
    assert report.unexplained == []


def test_a_head_of_its_own_is_not_what_was_seen_as_the_embedding() -> None:
    reference: Any = FAMILIES["gpt2"]()
    candidate = copy.deepcopy(reference)
    untied(candidate)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40))
    assert [(c.parameter, c.site) for c in report.causes] == [("weight", "logits")]


def test_rows_scaled_differently_are_two_causes() -> None:
    reference: Any = FAMILIES["llama"]()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for layer, factor in ((0, 0.5), (1, 0.75)):
            candidate.model.layers[layer].mlp.down_proj.weight[7] *= factor
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference))
    assert [(c.parameter, c.layers) for c in report.causes] == [("weight", [0]), ("weight", [1])]


@pytest.mark.parametrize(
    ("where", "factor", "said"),
    [
        ((2, 3), 3.0, r"entry \[2, 3\]: .* for .*"),
        ((2, slice(None)), 0.5, "row 2 of 6: times 0.5"),
        ((2, slice(3)), 0.5, "3 entries in row 2 of 6: times 0.5"),
        ((slice(None), 2), 0.5, "column 2 of 5: times 0.5"),
        ((slice(4), 2), 0.0, "4 entries in column 2 of 5: zero"),
        ((slice(None), slice(None)), 1.5, "all rows: times 1.5"),
    ],
)
def test_what_of_a_tensor_changed_in_words(where: Any, factor: float, said: str) -> None:
    tensor = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    other = tensor.clone()
    other[where] *= factor
    assert re.fullmatch(said, pattern(tensor, other))
