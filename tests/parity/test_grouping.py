"""One mistake is one line, whatever it touches; two mistakes are two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from twinlens.museum.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from twinlens.parity.weighing import pattern


def compared(model: Any, plant: Callable[[Any], None]) -> twinlens.Report:
    candidate = copy.deepcopy(model)
    with torch.no_grad():
        plant(candidate)
    report = twinlens.compare(model, candidate)
    assert report.fix(candidate).verdict == "identical"
    return report


def coarse(parameter: Tensor) -> None:
    parameter.copy_(parameter.bfloat16().float())


@pytest.mark.parametrize(("build", "parameters"), [(tiny_llama, ["weight"]), (tiny_gpt2, ["weight", "bias"])])
def test_a_checkpoint_of_a_coarser_dtype_is_one_line(build: Callable[[], Any], parameters: list[str]) -> None:
    model = build()
    report = compared(model, lambda m: [coarse(p) for p in m.parameters()])
    assert [c.parameter for c in report.causes] == parameters
    assert all(c.layers == list(range(model.config.num_hidden_layers)) for c in report.causes)
    assert all("tensors" in c.evidence and "rounded to bfloat16" in c.evidence for c in report.causes)


def test_two_weights_of_a_coarser_dtype_are_two() -> None:
    def plant(model: Any) -> None:
        for layer in model.model.layers:
            coarse(layer.self_attn.q_proj.weight)
            coarse(layer.mlp.up_proj.weight)

    sites = [c.site for c in compared(tiny_llama(), plant).causes]
    assert sites == ["blocks.0.attn.hook_q", "blocks.0.mlp.hook_pre_linear"]


def test_what_was_measured_in_each_layer_does_not_split_a_cause() -> None:
    def plant(model: Any) -> None:
        for i, layer in enumerate(model.transformer.h):
            layer.mlp.c_fc.bias[3:5] += torch.tensor([0.5, 1.0]) * (i + 1)

    (cause,) = compared(tiny_gpt2(), plant).causes
    assert (cause.parameter, cause.site, cause.layers) == ("bias", "blocks.0.mlp.hook_pre", [0, 1, 2])


def test_rows_of_another_dtype_are_permuted_as_well() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert pattern(x, x[[1, 0, 2, 3, 4, 5]].float()) == "rows 0, 1 of 6: permuted"


def test_parts_of_a_vector_in_each_others_place_are_permuted() -> None:
    x = torch.arange(12.0)
    assert pattern(x, torch.cat([x[4:8], x[:4], x[8:]])).endswith("of 12: permuted")


@pytest.mark.parametrize(
    ("build", "first", "second"),
    [
        (tiny_gemma2, "input_layernorm", "post_attention_layernorm"),
        (tiny_llama, "input_layernorm", "post_attention_layernorm"),
        (tiny_gpt2, "ln_1", "ln_2"),
    ],
)
def test_norms_in_each_others_place_are_told_as_weights(build: Callable[[], Any], first: str, second: str) -> None:
    """Where a norm is, the products around it say; only gpt2's have biases besides."""

    def plant(model: Any) -> None:
        for layer in model.transformer.h if hasattr(model, "transformer") else model.model.layers:
            one, other = getattr(layer, first), getattr(layer, second)
            setattr(layer, first, other)
            setattr(layer, second, one)

    model = build()
    report = compared(model, plant)
    layers = list(range(model.config.num_hidden_layers))
    assert {c.parameter for c in report.causes} <= {"weight", "bias"}
    assert [(c.site, c.layers) for c in report.causes if c.parameter == "weight"] == [
        ("blocks.0.ln1.hook_out", layers),
        (f"blocks.0.{'ln1_post' if build is tiny_gemma2 else 'ln2'}.hook_out", layers),
    ]
