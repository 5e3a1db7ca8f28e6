"""Tiny random transformers models, made so that no fault can hide in them.

The usual initialisation (0.02) gives scores near zero, a uniform softmax, norm weights of one and
biases of zero: a wrong scale, mask, cap, offset or bias then moves nothing. Here scores have a
standard deviation of several units, norms and biases are drawn, caps bite, windows are shorter than
the prompts, and two fields that could be taken for one another never have the same value.
`test_tiny.py` measures all this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

# Llama and Gemma-2 read theta here; a value that is no class's default shows that it is read.
ROPE = {
    "default": {"rope_type": "default", "rope_theta": 7000.0},
    "linear": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 4.0},
    # With head width 12 the wavelengths are 6.3, 27, 120, ...: the first is kept, the second lies
    # on the ramp between 64 / 4 and 64 / 1, the rest are stretched.
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 7000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tiny_gpt2(
    seed: int = 0, *, attn: str = "eager", dtype: torch.dtype = torch.float32, **config: Any
) -> PreTrainedModel:
    """Learned positions, layer norm with bias, one fused projection, tied embeddings."""
    defaults: dict[str, Any] = {
        "vocab_size": 101,
        "n_positions": 128,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 112,
        "layer_norm_epsilon": 2e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _build(GPT2Config(**(defaults | config)), seed, attn, dtype, embedding=3.0)


def tiny_llama(
    seed: int = 0,
    *,
    rope: str = "default",
    attn: str = "eager",
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> PreTrainedModel:
    """Grouped heads (4 query, 2 key/value), rotary of the kind `rope`, gated MLP, untied."""
    defaults: dict[str, Any] = {
        "vocab_size": 103,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 3e-6,
        "rope_parameters": dict(ROPE[rope]),
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _build(LlamaConfig(**(defaults | config)), seed, attn, dtype, embedding=6.0)


def tiny_gemma2(
    seed: int = 0, *, attn: str = "eager", dtype: torch.dtype = torch.float32, **config: Any
) -> PreTrainedModel:
    """1 + w norms, post-norms, both caps, local and global layers, heads wider than the model.

    `attn="sdpa"` is refused by transformers 5.
    """
    defaults: dict[str, Any] = {
        "vocab_size": 107,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,  # 4 × 16 = 64, not 48
        "query_pre_attn_scalar": 24,  # neither head_dim nor hidden_size / heads = 12
        "sliding_window": 8,
        "attn_logit_softcapping": 8.0,
        "final_logit_softcapping": 10.0,
        "max_position_embeddings": 256,
        "rms_norm_eps": 3e-6,
        "rope_parameters": dict(ROPE["default"]),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return _build(Gemma2Config(**(defaults | config)), seed, attn, dtype, embedding=4.0)


Builder = Callable[..., PreTrainedModel]
FAMILIES: dict[str, Builder] = {"gpt2": tiny_gpt2, "llama": tiny_llama, "gemma2": tiny_gemma2}


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
    return model


def _fill(model: PreTrainedModel, name: str, noise: Tensor, embedding: float) -> Tensor:
    """Standard normal noise as this parameter: `embedding` is the size of embeddings and logits."""
    owner, _, kind = name.rpartition(".")
    module = model.get_submodule(owner)
    if kind == "bias":
        return 0.3 * noise
    if "norm" in name or ".ln_" in name:
        return 0.3 * noise + (0.0 if model.config.model_type == "gemma2" else 1.0)
    if name.endswith("wpe.weight"):
        return 0.3 * noise
    if isinstance(module, nn.Embedding) or owner == "lm_head":
        return embedding * noise / noise.shape[1] ** 0.5
    fan_in = noise.shape[1] if isinstance(module, nn.Linear) else noise.shape[0]  # Conv1D: in × out
    return _gain(name) * noise / fan_in**0.5


def _gain(name: str) -> float:
    """2 for queries and keys: scores are then about 2 · 2 = 4 wide. 1.3 for all other products."""
    return 2.0 if any(part in name for part in ("q_proj", "k_proj", "c_attn")) else 1.3
