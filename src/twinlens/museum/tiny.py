"""Tiny random transformers models, made so that no fault can hide in them.

The usual initialisation (0.02) gives scores near zero, a uniform softmax, norm weights of one and
biases of zero: a wrong scale, mask, cap, offset or bias then moves nothing. Here scores have a
standard deviation of several units, norms and biases are drawn, caps bite, windows are shorter than
the prompts, and two fields that could be taken for one another never have the same value.
`test_tiny.py` measures all this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from twinlens.spec import stored_name

# A value of theta that is no class's default shows that it is read.
THETA = {"rope_theta": 7000.0}
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", **THETA},
    "linear": {"rope_type": "linear", **THETA, "factor": 4.0},
    # With head width 12 the wavelengths are 6.3, 27, 120, ...: the first is kept, the second lies
    # on the ramp between 64 / 4 and 64 / 1, the rest are stretched.
    "llama3": {
        "rope_type": "llama3",
        **THETA,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "dynamic": {"rope_type": "dynamic", **THETA, "factor": 1.1},  # of max_position_embeddings
    "yarn": {"rope_type": "yarn", **THETA, "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, not truncated": {
        "rope_type": "yarn",
        **THETA,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
        "beta_fast": 4.0,
        "beta_slow": 1.5,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        **THETA,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
    "longrope": {
        "rope_type": "longrope",
        **THETA,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.2, 1.5, 2.0, 3.0, 5.0, 8.0],
        "original_max_position_embeddings": 16,
        "factor": 3.0,
    },
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_LLAMA: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": dict(ROPE["default"]),
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    **_IDS,
}
_RMS = {"rms_norm_eps": 3e-6}
_WIDE = {"head_dim": 16}  # 4 × 16 = 64, not 48
_HALF = {"rope_parameters": {**ROPE["default"], "partial_rotary_factor": 0.5}}
_GPT2: dict[str, Any] = {
    "vocab_size": 101,
    "n_positions": 128,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 112,
    "layer_norm_epsilon": 2e-5,
    **_IDS,
}
_GEMMA = _LLAMA | _RMS | _WIDE | {"tie_word_embeddings": True}
CONFIGS: dict[str, tuple[str, dict[str, Any], float]] = {
    "gpt2": ("gpt2", _GPT2, 3.0),
    "llama": ("llama", {k: v for k, v in (_LLAMA | _RMS).items() if k != "pad_token_id"}, 6.0),
    "gemma2": (
        "gemma2",
        _GEMMA
        | {
            "vocab_size": 107,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 24,  # neither head_dim nor hidden_size / heads = 12
            "sliding_window": 8,
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 10.0,
        },
        4.0,
    ),
    "cohere2": ("cohere2", _LLAMA | {"num_hidden_layers": 4, "sliding_window": 8, "logit_scale": 0.7}, 4.0),
    "deepseek_v3": ("deepseek_v3", _LLAMA | _RMS | {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "kv_lora_rank": 20, "q_lora_rank": 28,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "rope_parameters": dict(ROPE["yarn, mscale"]),
    }, 4.0),
    "falcon": ("falcon", {
        "vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "bias": True,
        "rope_parameters": dict(ROPE["default"]), "layer_norm_epsilon": 2e-5, **_IDS,
    }, 4.0),
    "falcon, 40b": ("falcon", {
        "vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2,
        "new_decoder_architecture": True, "rope_parameters": dict(ROPE["default"]), **_IDS,
    }, 4.0),
    "falcon, one norm": ("falcon", {
        "vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "multi_query": False, "parallel_attn": False, "rope_parameters": dict(ROPE["default"]), **_IDS,
    }, 4.0),
    "gemma": ("gemma", _GEMMA, 4.0),
    "gemma3_text": (
        "gemma3_text",
        _GEMMA
        | {
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        4.0,
    ),
    "glm4": ("glm4", _LLAMA | _RMS | _WIDE | _HALF, 4.0),
    "gpt_bigcode": ("gpt_bigcode", _GPT2, 3.0),
    "gpt_neox": ("gpt_neox", {k: v for k, v in (_LLAMA | _HALF).items() if k != "num_key_value_heads"}, 6.0),
    "gpt_oss": ("gpt_oss", _LLAMA | _RMS | _WIDE | {
        "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32, "sliding_window": 8,
        "swiglu_limit": 2.5, "rope_parameters": dict(ROPE["yarn, not truncated"]), "num_hidden_layers": 4,
    }, 4.0),
    "granite": (
        "granite",
        _LLAMA
        | _RMS
        | {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.37,
            "logits_scaling": 0.7,
        },
        4.0,
    ),
    "mistral": ("mistral", _LLAMA | _RMS | {"sliding_window": 8}, 6.0),
    "mixtral": ("mixtral", _LLAMA | _RMS | {"sliding_window": 8, "num_local_experts": 5}, 6.0),
    "olmo2": ("olmo2", _LLAMA | _RMS, 4.0),
    "opt": ("opt", {
        "vocab_size": 103, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 128, "word_embed_proj_dim": 48, "pad_token_id": 1, **_IDS,
    }, 4.0),
    "phi3": ("phi3", _LLAMA | _RMS | _HALF | {"sliding_window": 9}, 6.0),
    "qwen2": (
        "qwen2", _LLAMA | _RMS | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 6.0,
    ),
    "qwen3": ("qwen3", _LLAMA | _RMS | _WIDE, 4.0),
    "qwen3_moe": ("qwen3_moe", _LLAMA | _RMS | _WIDE | {
        "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "mlp_only_layers": [1],
    }, 4.0),
    "smollm3": ("smollm3", _LLAMA | _RMS | {"no_rope_layer_interval": 2}, 6.0),
    "starcoder2": ("starcoder2", _LLAMA | {"norm_epsilon": 2e-5, "sliding_window": 8}, 6.0),
}  # fmt: skip
"""Tiny models by name: `model_type`, config, and the size of embeddings and logits."""
EAGER_ONLY = {"gemma2", "gpt_oss"}
"""What transformers 5 refuses to run with sdpa."""


def tiny(
    name: str, seed: int = 0, *, rope: str | None = None, attn: str = "eager", dtype: torch.dtype = torch.float32,
    **config: Any,
) -> PreTrainedModel:  # fmt: skip
    """A model of the table, with some keys of its config changed."""
    kind, defaults, embedding = CONFIGS[name]
    rotary = {} if rope is None else {"rope_parameters": dict(ROPE[rope])}
    make: Any = CONFIG_MAPPING[kind]
    return _build(make(**(defaults | rotary | config)), seed, attn, dtype, embedding)


tiny_gpt2, tiny_llama, tiny_gemma2 = (partial(tiny, name) for name in ("gpt2", "llama", "gemma2"))

Builder = Callable[..., PreTrainedModel]
FAMILIES: dict[str, Builder] = {"gpt2": tiny_gpt2, "llama": tiny_llama, "gemma2": tiny_gemma2}
"""Those on which everything is tried: they pull in different directions."""
ALL: dict[str, Builder] = {name: partial(tiny, name) for name in CONFIGS}


def save(model: PreTrainedModel, folder: Path | str) -> Path:
    """Writes config.json and safetensors into `folder`, and returns it."""
    model.save_pretrained(folder)
    return Path(folder)


def random_tokens(model: PreTrainedModel, batch: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    """Token ids of shape (batch, length), drawn from the whole vocabulary."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=draw)


def left_padded(model: PreTrainedModel, lengths: tuple[int, ...] = (24, 15), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of these lengths, padded on the left to the longest: tokens, and a mask (1 = real)."""
    width = max(lengths)
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths]).long()
    padding = model.config.pad_token_id or 0
    tokens = random_tokens(model, len(lengths), width, seed)
    return torch.where(mask.bool(), tokens, padding), mask


def _build(config: PretrainedConfig, seed: int, attn: str, dtype: torch.dtype, embedding: float) -> PreTrainedModel:
    # from_config and not .to(dtype): the latter would also round the rotary frequencies.
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn, dtype=dtype).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied weight comes once
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(_fill(model, name, noise, embedding))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=draw))
    return model


def _fill(model: PreTrainedModel, name: str, noise: Tensor, embedding: float) -> Tensor:
    """Standard normal noise as this parameter: `embedding` is the size of embeddings and logits."""
    owner, _, kind = name.rpartition(".")
    module = model.get_submodule(owner)
    if kind == "bias":
        return 0.3 * noise
    if "norm" in name or ".ln_" in name:
        heads = 1.0 if "q_norm" in name or "k_norm" in name else 0.0  # scores are then about 2 · 2 wide
        return 0.3 * noise + heads + (0.0 if model.config.model_type.startswith("gemma") else 1.0)
    if name.endswith(("wpe.weight", "embed_positions.weight")):
        return 0.3 * noise
    if isinstance(module, nn.Embedding) or owner == "lm_head":
        return embedding * noise / noise.shape[1] ** 0.5
    if ".experts" in owner + "." + kind or kind == "sinks":
        return _expert(module, kind, noise)
    rows_out = isinstance(module, nn.Linear) or owner.endswith(("gate", "router"))
    fan_in = noise.shape[1 if rows_out else 0]  # Conv1D: in × out
    return _gain(name) * noise / fan_in**0.5


def _expert(module: Any, kind: str, noise: Tensor) -> Tensor:
    """A matrix for each expert, [out, in], or [in, out] where the class says so; a bias; a sink."""
    if noise.ndim < 3:
        return 0.3 * noise if kind != "sinks" else 2.0 * noise
    fan_in = noise.shape[1 if module.is_transposed else 2]
    return 1.3 * noise / fan_in**0.5


def _gain(name: str) -> float:
    """2 for queries and keys: scores are then about 2 · 2 = 4 wide. 1.3 for all other products."""
    return 2.0 if any(part in name for part in ("q_proj", "k_proj", "c_attn", "qkv", "query_key_value")) else 1.3


class Tensors(dict[str, Tensor]):
    """A model's tensors by the names that a spec has for them."""

    @classmethod
    def of(cls, model: nn.Module) -> Tensors:
        """Copies of all tensors of a module."""
        return cls((name, tensor.clone()) for name, tensor in model.state_dict().items())

    def __missing__(self, name: str) -> Tensor:
        if stored_name(name) == name:
            raise KeyError(name)
        return self[stored_name(name)]
