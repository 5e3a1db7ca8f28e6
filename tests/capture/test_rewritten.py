"""The same function written in another way: no site is placed where it is not, and nothing is accused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import twinlens
from twinlens.museum.hands import attention, method, modeling, norms
from twinlens.museum.tiny import ALL, left_padded, random_tokens, tiny_gpt2, tiny_llama

Forward = Callable[[Any, Tensor], Tensor]


def compared(model: Any, forward: Forward) -> twinlens.Report:
    candidate = copy.deepcopy(model)
    for norm in norms(candidate):
        method(norm, forward)
    return twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))


def root(norm: Any, x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def deviation(norm: Any, x: Tensor) -> Tensor:
    return torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + norm.eps)


@pytest.mark.parametrize(
    ("build", "forward"),
    [
        (tiny_llama, lambda n, x: n.weight * x * root(n, x)),
        (tiny_llama, lambda n, x: x * (n.weight * root(n, x))),
        (tiny_gpt2, lambda n, x: n.weight * centred(x) / deviation(n, x) + n.bias),
        (tiny_gpt2, lambda n, x: F.layer_norm(x, x.shape[-1:], n.weight, None, n.eps) + n.bias),
    ],
    ids=["weight first", "weight with the root", "weight before the division", "bias after the kernel"],
)
def test_a_norm_may_take_its_factors_in_any_order(build: Callable[[], Any], forward: Forward) -> None:
    report = compared(build(), forward)
    assert (report.verdict, report.causes) == ("rounding", [])
    assert [s for s in report.unmatched if not s.endswith("hook_normalized")] == []


def test_a_bias_after_a_kernel_is_the_norms_own() -> None:
    report = compared(tiny_gpt2(), lambda n, x: F.rms_norm(x, x.shape[-1:], n.weight, n.eps) + n.bias)
    assert {(c.parameter, c.reference, c.candidate) for c in report.causes} == {("norm.kind", "layer", "rms")}
    assert report.unexplained == []


@pytest.mark.parametrize("separate", [False, True])
def test_a_bias_that_the_reference_has_not_belongs_to_the_product(separate: bool) -> None:
    """Of the keys, with as many rows as key heads: what follows could not tell these two axes apart."""
    model = tiny_llama()
    candidate = copy.deepcopy(model)
    keys = candidate.model.layers[1].self_attn.k_proj
    bias = nn.Parameter(torch.linspace(-1, 1, len(keys.weight)))
    if separate:
        method(keys, lambda m, x: F.linear(x, m.weight) + bias)
    else:
        keys.bias = bias
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    [cause] = report.causes
    assert (cause.parameter, cause.site, cause.reference) == ("bias", "blocks.1.attn.hook_k", None)
    assert report.fix(candidate).verdict == "identical"


def test_scores_may_have_keys_before_queries() -> None:
    model = tiny_llama()
    candidate = copy.deepcopy(model)

    turned = attention(
        score=lambda q, k, scale: k @ q.mT * scale, hide=lambda s, m: s + m.mT, soften=lambda s: s.softmax(-2).mT
    )
    modeling(candidate, eager_attention_forward=turned)
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert (report.verdict, report.causes) in (("identical", []), ("rounding", []))


def test_a_row_of_the_batch_is_not_the_site_of_all() -> None:
    model = tiny_llama()
    candidate = copy.deepcopy(model)
    forward = candidate.forward

    def row_by_row(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        width, lengths = input_ids.shape[1], attention_mask.sum(1).tolist()
        rows = [
            forward(ids[None, -n:], position_ids=torch.arange(width - n, width)[None]).logits
            for ids, n in zip(input_ids, lengths, strict=True)
        ]
        return torch.cat([F.pad(row, (0, 0, width - row.shape[1], 0)) for row in rows])

    candidate.forward = row_by_row
    tokens, mask = left_padded(model, (17, 9))
    report = twinlens.compare(model, candidate, tokens=tokens, mask=mask)
    assert (report.verdict, report.causes) == ("rounding", [])


def test_an_adapter_that_is_not_merged_belongs_to_the_product() -> None:
    """Solved for: no tensor of the call is the weight that is in use."""
    model = tiny_llama()
    candidate = copy.deepcopy(model)
    queries, draw = candidate.model.layers[1].self_attn.q_proj, torch.Generator().manual_seed(1)
    down, up = (0.1 * torch.randn(shape, generator=draw) for shape in ((4, 48), (48, 4)))
    method(queries, lambda m, x: F.linear(x, m.weight) + 2.0 * F.linear(F.linear(x, down), up))
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 40, seed=1))
    [cause] = report.causes
    assert (cause.parameter, cause.site) == ("weight", "blocks.1.attn.hook_q")
    assert report.fix(candidate).verdict == "identical"


def test_what_is_made_of_a_products_result_is_no_adapter_of_it() -> None:
    """With no residual around attention, the MLP is added to what attention gives."""
    model = tiny_llama()
    candidate = copy.deepcopy(model)

    def forward(layer: Any, hidden_states: Tensor, **how: Any) -> Tensor:
        h = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **how)[0]
        return h + layer.mlp(layer.post_attention_layernorm(h))

    method(candidate.model.layers[1], forward)
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert report.unmatched == []
    assert [(c.parameter, c.site, c.candidate) for c in report.causes] == [
        ("residual.stream", "blocks.1.hook_resid_mid", None)
    ]


def test_a_bias_after_a_factor_is_not_missing() -> None:
    model = tiny_gpt2()
    candidate = copy.deepcopy(model)
    for block in candidate.transformer.h:
        method(block.mlp.c_proj, lambda m, x: (x @ m.weight) * 0.5 + m.bias)
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert not any(c.parameter == "bias" for c in report.causes)
    assert report.first_difference == "blocks.0.mlp.hook_out"


def test_a_weight_made_of_several_is_the_checkpoints_but_for_rounding() -> None:
    """As torch's weight norm computes it anew in each call."""
    model = tiny_llama()
    candidate = copy.deepcopy(model)
    for layer in candidate.model.layers:
        nn.utils.parametrizations.weight_norm(layer.self_attn.o_proj)
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert (report.verdict, report.causes) == ("rounding", [])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("part", ["mlp", "self_attn", "input_layernorm"])
def test_a_module_that_two_layers_share_is_put_into_each(family: str, part: str) -> None:
    model: Any = ALL[family]()
    candidate = copy.deepcopy(model)
    layers = candidate.model.layers
    setattr(layers[1], part, getattr(layers[2], part))
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert {(c.parameter, tuple(c.layers)) for c in report.causes} == {("weight", (1,))}
    assert {str(c.candidate).split(".")[2] for c in report.causes} == {"2"}
    assert report.unexplained == []


def test_one_layer_in_the_place_of_all() -> None:
    """`[layer] * n`, which is one layer n times."""
    model: Any = ALL["llama"]()
    candidate = copy.deepcopy(model)
    for i in range(1, len(candidate.model.layers)):
        candidate.model.layers[i] = candidate.model.layers[0]
    report = twinlens.compare(model, candidate, tokens=random_tokens(model, 2, 17, seed=1))
    assert {c.parameter for c in report.causes} == {"weight"}
    assert {layer for c in report.causes for layer in c.layers} == {1, 2}
    assert report.unexplained == []
