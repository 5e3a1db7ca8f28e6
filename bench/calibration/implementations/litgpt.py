"""LitGPT: its own model, by its own conversion of weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.calibration.implementations.row import BEFORE, Row, stored

ADDS = "adds 1 to the norm's weight in bfloat16, transformers in float32 (norm.dtype)"
SIZES: dict[str, Any] = {
    "n_layer": 3, "n_head": 4, "n_query_groups": 2, "n_embd": 48, "head_size": 12, "intermediate_size": 80,
    "vocab_size": 103, "padded_vocab_size": 103, "block_size": 256, "rope_base": 7000, "norm_eps": 3e-6,
}  # fmt: skip


def converted(
    name: str, copy: str, *, wide_tables: bool = False, **config: Any
) -> Callable[[PreTrainedModel], nn.Module]:
    """The model that LitGPT calls so, at our sizes, with weights by its function `copy_weights_…`."""

    def build(model: PreTrainedModel) -> nn.Module:
        from litgpt.config import Config
        from litgpt.model import GPT
        from litgpt.scripts import convert_hf_checkpoint

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = GPT(Config.from_name(name, **(SIZES | config))).eval()
        function = getattr(convert_hf_checkpoint, f"copy_weights_{copy}")
        weights = dict[str, Tensor]()
        given = {"config": made.config, "qkv_weights": {}, "state_dict": weights, "hf_weights": stored(model)}
        function(**{k: v for k, v in given.items() if k in inspect.signature(function).parameters})
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])  # tied
        made.load_state_dict(weights)
        made.to(model.dtype)
        if wide_tables:
            made.reset_parameters()  # makes the rotary tables again, in float32
        return made

    return build


def _window(layers: int) -> dict[str, Any]:
    """A window of 8 in every other layer, from the first."""
    return {"sliding_window_size": 8, "sliding_window_indices": [1 - i % 2 for i in range(layers)]}


_NO_WINDOW: dict[str, Any] = {"sliding_window_size": None, "sliding_window_indices": None}
_WIDE: dict[str, Any] = {"head_size": 16, "attention_scores_scalar": 24}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 64}
_ONE: dict[str, Any] = {"dtypes": ("float32",), "why": BEFORE}
_GEMMA: dict[str, Any] = {"dtypes": ("float32",), "why": ADDS}
ROWS = {
    "llama": Row("llama", converted("Llama-2-7b-hf", "hf_llama"), **_ONE),
    "llama, llama3": Row(
        "llama", converted("Llama-3.1-8B", "hf_llama", rope_adjustments=_LLAMA3), {"rope": "llama3"}, **_ONE
    ),
    "mistral": Row("mistral", converted("Mistral-7B-v0.1", "hf_llama", **_NO_WINDOW), {"sliding_window": None}, **_ONE),
    "mistral, window": Row(
        "mistral",
        converted("Mistral-7B-v0.1", "hf_llama", sliding_window_size=8, sliding_window_indices=[1, 1, 1]),
        **_ONE,
    ),
    "mixtral": Row(
        "mixtral",
        converted("Mixtral-8x7B-v0.1", "hf_llama", n_expert=5, **_NO_WINDOW),
        {"sliding_window": None},
        **_ONE,
    ),
    "qwen2": Row("qwen2", converted("Qwen2.5-0.5B", "qwen_2_5"), {"use_sliding_window": False}, **_ONE),
    "qwen3": Row("qwen3", converted("Qwen3-0.6B", "qwen_3", head_size=16), **_ONE),
    "qwen3_moe": Row(
        "qwen3_moe",
        converted(
            "Qwen3-30B-A3B", "qwen_3", head_size=16, n_expert=7, n_expert_per_token=3, moe_intermediate_size=32
        ),
        {"mlp_only_layers": []},
        **_ONE,
    ),
    "gemma": Row(
        "gemma", converted("Gemma-2b", "hf_llama", head_size=16), {"hidden_act": "gelu_pytorch_tanh"}, **_GEMMA,
    ),
    "gemma2": Row(
        "gemma2",
        converted(
            "Gemma-2-2b", "gemma_2", n_layer=4, vocab_size=107, padded_vocab_size=107,
            attention_logit_softcapping=8.0, final_logit_softcapping=10.0, **_WIDE, **_window(4),
        ),
        **_GEMMA,
    ),
    "gemma3_text": Row(
        "gemma3_text",
        converted(
            "Gemma-3-1b-it", "gemma_3", rope_local_base_freq=500, rope_indices=[1, 0, 1],
            rope_adjustments={"factor": 8.0}, **_WIDE, **_window(3),
        ),
        **_GEMMA,
    ),
    "olmo2": Row("olmo2", converted("OLMo-2-1124-7B", "olmo2", wide_tables=True)),
    "phi3": Row(
        "phi3",
        converted("Phi-3-mini-4k-instruct", "phi", rotary_percentage=0.5, **_NO_WINDOW),
        {"sliding_window": None},
        **_ONE,
    ),
    "gpt_neox": Row(
        "gpt_neox", converted("pythia-14m", "gpt_neox", norm_eps=1e-5, rotary_percentage=0.5, n_query_groups=4)
    ),
    "gpt_neox, in sequence": Row(
        "gpt_neox",
        converted(
            "pythia-14m", "gpt_neox", norm_eps=1e-5, rotary_percentage=0.5, n_query_groups=4, parallel_residual=False
        ),
        {"use_parallel_residual": False},
    ),
    "falcon": Row(
        "falcon",
        converted("falcon-7b", "falcon", norm_eps=2e-5, n_query_groups=1, intermediate_size=192),
        {"bias": False},
    ),
    "falcon, 40b": Row(
        "falcon, 40b", converted("falcon-40b", "falcon", norm_eps=1e-5, n_query_groups=2, intermediate_size=192)
    ),
}  # fmt: skip
