"""Build a Large Language Model From Scratch: the models of the book, llms-from-scratch on PyPI."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bench.calibration.implementations.row import BEFORE, Row, renamed, stored

SIZES: dict[str, Any] = {
    "n_layers": 3, "n_heads": 4, "n_kv_groups": 2, "emb_dim": 48, "hidden_dim": 80, "vocab_size": 103,
    "context_length": 256, "rope_base": 7000, "rope_freq": None,
}  # fmt: skip
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 64}
_QWEN: dict[str, Any] = {"head_dim": 16, "qk_norm": True}
_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_GPT2 = {"vocab_size": 101, "context_length": 128, "drop_rate": 0.0, "qkv_bias": True}


def loaded(module: str, name: str, load: str, **config: Any) -> Callable[[PreTrainedModel], nn.Module]:
    """A model of the book, with weights by the book's own function."""

    def build(model: PreTrainedModel) -> nn.Module:
        home = import_module(f"llms_from_scratch.{module}")
        sizes = SIZES | config | {"dtype": model.dtype}
        made = getattr(home, name)(sizes)
        getattr(home, load)(made, sizes, stored(model))
        return made.eval()

    return build


def gpt2(name: str) -> Callable[[PreTrainedModel], nn.Module]:
    """GPT-2 of its chapter 4. What loads its weights there draws figures too: here it is a table of names."""

    def build(model: PreTrainedModel) -> nn.Module:
        from llms_from_scratch import ch04

        made = getattr(ch04, name)(SIZES | _GPT2).to(model.dtype)
        weights = renamed(model, _NAMES | _JOINT) if name.endswith("Fast") else renamed(model, _NAMES, "qkv", _APART)
        buffers = {k: v for k, v in made.state_dict().items() if k.endswith("mask")}
        made.load_state_dict(weights | buffers)
        return made.eval()

    return build


_NAMES = {
    "transformer.": "", "lm_head": "out_head", "wte": "tok_emb", "wpe": "pos_emb", "h.": "trf_blocks.",
    "attn.c_attn": "att.qkv", "attn.c_proj": "att.out_proj",
    "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2", "ln_1.weight": "norm1.scale", "ln_1.bias": "norm1.shift",
    "ln_2.weight": "norm2.scale", "ln_2.bias": "norm2.shift", "ln_f.weight": "final_norm.scale",
    "ln_f.bias": "final_norm.shift",
}  # fmt: skip
_JOINT = {"scale": "weight", "shift": "bias", "att.out_proj": "att.proj"}
_APART = ("W_query", "W_key", "W_value")
_SAME = {"n_inner": 192, "layer_norm_epsilon": 1e-5}
_ONE: dict[str, Any] = {"dtypes": ("float32",), "why": BEFORE}
_FIVE, _SIX = {"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}
ROWS = {
    "gpt2": Row("gpt2", gpt2("GPTModel"), _SAME),
    "gpt2, fast": Row("gpt2", gpt2("GPTModelFast"), _SAME),
    "llama": Row("llama", loaded("llama3", "Llama3Model", "load_weights_into_llama"), _FIVE),
    "llama, fast": Row("llama", loaded("llama3", "Llama3ModelFast", "load_weights_into_llama"), _FIVE),
    "llama, llama3": Row(
        "llama",
        loaded("llama3", "Llama3Model", "load_weights_into_llama", rope_freq=_LLAMA3),
        _FIVE | {"rope": "llama3"},
    ),
    "qwen3": Row("qwen3", loaded("qwen3", "Qwen3Model", "load_weights_into_qwen", **_QWEN), _SIX, **_ONE),
    "qwen3_moe": Row(
        "qwen3_moe",
        loaded("qwen3", "Qwen3Model", "load_weights_into_qwen", **_QWEN, **_EXPERTS),
        _SIX | {"mlp_only_layers": []},
        **_ONE,
    ),
}
