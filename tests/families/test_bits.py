"""The native model is transformers, bit for bit, at every site that no fused kernel hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import twinlens
from tests.families.seen import run
from twinlens.museum.tiny import ALL, EAGER_ONLY, ROPE, left_padded, random_tokens
from twinlens.sites import split

KERNELS = [(f, a) for f in ALL for a in ("eager", "sdpa") if a == "eager" or f not in EAGER_ONLY]
every_kernel = pytest.mark.parametrize(("family", "attn"), KERNELS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def assert_equal_everywhere(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None) -> None:
    native = twinlens.load(model)
    theirs = run(model, native.spec, tokens, mask)
    logits, ours = native.run_with_cache(tokens, mask)
    visible = set(native.spec.sites) - native.spec.hidden
    assert set(theirs) <= visible
    assert {split(site)[1] for site in visible - set(theirs)} <= unheard(model)
    assert torch.equal(ours["logits"], logits)
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    for site in native.spec.sites:
        if site in theirs:
            a, b = rows(site, ours[site], real), rows(site, theirs[site], real)
            assert a.dtype == b.dtype, site
            assert torch.equal(a, b), f"{site} differs by {(a - b).abs().max()}"


def unheard(model: PreTrainedModel) -> set[str]:
    """Sites that no module and no function of transformers hands over; what is made of them is compared."""
    fused_heads, halves = {"attn.hook_q", "attn.hook_k"}, {"mlp.hook_pre", "mlp.hook_pre_linear"}
    rotated = {"attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v"}
    return {
        "phi3": fused_heads | halves,
        "glm4": halves,
        "gpt_neox": fused_heads,
        "deepseek_v3": {
            "attn.hook_latent",
            "attn.hook_k_shared",
            "attn.hook_rot_k_shared",
            "mlp.hook_out",
            "hook_mlp_out",
        },
        "gpt_oss": {"attn.hook_attn_scores"},
        "granite": {"hook_attn_out", "hook_mlp_out"},
        "falcon": fused_heads | (rotated if model.config._attn_implementation == "eager" else set[str]()),
    }.get(model.config.model_type, set[str]())


def rows(site: str, x: Tensor, real: Tensor) -> Tensor:
    """The rows of tokens that are no padding."""
    if site.endswith(("hook_attn_scores", "hook_pattern")):
        return x.transpose(1, 2)[real]
    return x.expand(len(real), *x.shape[1:])[real]


@every_kernel
@every_dtype
def test_plain(family: str, attn: str, dtype: torch.dtype) -> None:
    model = ALL[family](attn=attn, dtype=dtype)
    assert_equal_everywhere(model, random_tokens(model, length=24), None)


@every_kernel
@every_dtype
def test_left_padding(family: str, attn: str, dtype: torch.dtype) -> None:
    model = ALL[family](attn=attn, dtype=dtype)
    assert_equal_everywhere(model, *left_padded(model, (31, 12)))


@every_dtype
@pytest.mark.parametrize("length", [7, 8, 9, 40])
@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_window(family: str, length: int, dtype: torch.dtype) -> None:
    model = ALL[family](dtype=dtype)
    assert model.config.sliding_window == 8
    assert_equal_everywhere(model, random_tokens(model, length=length), None)


@every_dtype
@pytest.mark.parametrize("length", [12, 24, 40])
@pytest.mark.parametrize("rope", ROPE)
def test_rotary_scaling(rope: str, length: int, dtype: torch.dtype) -> None:
    """Shorter and longer than the context that each of them stretches (16, or 20 for dynamic)."""
    longest = {"dynamic": 20}.get(rope, 256)
    model = ALL["llama"](rope=rope, dtype=dtype, max_position_embeddings=longest)
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
    ("cohere2", {"attention_bias": True}),
    ("falcon", {"bias": False, "parallel_attn": False}),
    ("falcon, 40b", {"num_ln_in_parallel_attn": 1}),
    ("gemma", {"attention_bias": True, "hidden_act": "gelu"}),
    ("gemma3_text", {"final_logit_softcapping": 10.0}),
    ("glm4", {"attention_bias": False}),
    ("gpt_bigcode", {"multi_query": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": None}),
    ("olmo2", {"attention_bias": True}),
    ("opt", {"enable_bias": False}),
    ("phi3", {"rope": "longrope", "sliding_window": None}),
    ("qwen2", {"use_sliding_window": False, "rope": "yarn"}),
    ("deepseek_v3", {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "attention_bias": True}),
    ("gpt_oss", {"attention_bias": False, "swiglu_alpha": 1.1}),
    ("mixtral", {"num_experts_per_tok": 1, "hidden_act": "gelu"}),
    ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [], "decoder_sparse_step": 2}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 8}),
    ("starcoder2", {"use_bias": False}),
]


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_variants(family: str, config: dict[str, Any]) -> None:
    model = ALL[family](**config)
    tokens, mask = left_padded(model, (100, 33))
    assert_equal_everywhere(model, tokens, mask)
    if family not in EAGER_ONLY:
        assert_equal_everywhere(ALL[family](**config | {"attn": "sdpa"}), tokens, mask)


def test_another_order_is_seen_where_it_is() -> None:
    model = ALL["llama"]()
    native = twinlens.load(model)
    spec = native.spec.edit(twinlens.Set("blocks.1.ln1.hook_normalized", "division", "sqrt"))
    tokens = random_tokens(model)
    theirs = run(model, native.spec, tokens, None)
    _, ours = twinlens.Model(spec, native.weight).run_with_cache(tokens)
    different = {s for s in theirs if not torch.equal(ours[s], theirs[s].expand_as(ours[s]))}
    assert min(different, key=spec.sites.index) == "blocks.1.ln1.hook_normalized"
