"""The native model is transformers, bit for bit, at every site that no fused kernel hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import twinlens
from tests.families.seen import run
from tests.tiny import FAMILIES, left_padded, random_tokens

KERNELS = [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if (f, a) != ("gemma2", "sdpa")]
every_kernel = pytest.mark.parametrize(("family", "attn"), KERNELS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def assert_equal_everywhere(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None) -> None:
    native = twinlens.load(model)
    theirs = run(model, tokens, mask)
    logits, ours = native.run_with_cache(tokens, mask)
    visible = set(native.spec.sites) - native.spec.hidden
    assert set(theirs) == visible
    assert torch.equal(ours["logits"], logits)
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    for site in native.spec.sites:
        if site in visible:
            a, b = rows(site, ours[site], real), rows(site, theirs[site], real)
            assert a.dtype == b.dtype, site
            assert torch.equal(a, b), f"{site} differs by {(a - b).abs().max()}"


def rows(site: str, x: Tensor, real: Tensor) -> Tensor:
    """The rows of tokens that are no padding."""
    if site.endswith(("hook_attn_scores", "hook_pattern")):
        return x.transpose(1, 2)[real]
    return x.expand(len(real), *x.shape[1:])[real]


@every_kernel
@every_dtype
def test_plain(family: str, attn: str, dtype: torch.dtype) -> None:
    model = FAMILIES[family](attn=attn, dtype=dtype)
    assert_equal_everywhere(model, random_tokens(model, length=24), None)


@every_kernel
@every_dtype
def test_left_padding(family: str, attn: str, dtype: torch.dtype) -> None:
    model = FAMILIES[family](attn=attn, dtype=dtype)
    assert_equal_everywhere(model, *left_padded(model, (31, 12)))


@every_dtype
@pytest.mark.parametrize("length", [7, 8, 9, 40])
def test_window(length: int, dtype: torch.dtype) -> None:
    model = FAMILIES["gemma2"](dtype=dtype)
    assert model.config.sliding_window == 8
    assert_equal_everywhere(model, random_tokens(model, length=length), None)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope": "linear"}),
    ("llama", {"rope": "llama3"}),
    ("llama", {"rope": "llama3", "dtype": torch.bfloat16}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}),
    ("llama", {"head_dim": 20}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"activation_function": "gelu"}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    ("gemma2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 4.0}}),
    ("gemma2", {"attention_bias": True}),
    ("gemma2", {"tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_variants(family: str, config: dict[str, Any]) -> None:
    model = FAMILIES[family](**config)
    tokens, mask = left_padded(model, (100, 33))
    assert_equal_everywhere(model, tokens, mask)
    if family != "gemma2":
        assert_equal_everywhere(FAMILIES[family](**config | {"attn": "sdpa"}), tokens, mask)


def test_another_order_is_seen_where_it_is() -> None:
    model = FAMILIES["llama"]()
    native = twinlens.load(model)
    spec = native.spec.edit(twinlens.Set("blocks.1.ln1.hook_normalized", "division", "sqrt"))
    tokens = random_tokens(model)
    theirs = run(model, tokens, None)
    _, ours = twinlens.Model(spec, native.weight).run_with_cache(tokens)
    different = {s for s in theirs if not torch.equal(ours[s], theirs[s].expand_as(ours[s]))}
    assert min(different, key=spec.sites.index) == "blocks.1.ln1.hook_normalized"
