"""TransformerLens: the bridge that it lays around a model of transformers, and its own model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bench.calibration.implementations.row import Row, renamed, turned
from twinlens.museum.tiny import CONFIGS, ROPE
from twinlens.sources.transformer_lens_bridge import bridge


def bridged(model: PreTrainedModel) -> nn.Module:
    """A bridge around a copy of the model, which it changes."""
    live = copy.deepcopy(model)
    live.config.architectures = [type(model).__name__]  # as a checkpoint has it
    return bridge("tiny", live, model.dtype).eval()


def native(
    names: Mapping[str, str], scaling: Mapping[str, Any] | None = None, **config: Any
) -> Callable[[PreTrainedModel], nn.Module]:
    """Their own model, by `boot_native`; `names` are those of transformers, in turn replaced by theirs."""

    def build(model: PreTrainedModel) -> nn.Module:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
        from transformer_lens.model_bridge.sources.native import NativeModel

        made = TransformerBridgeConfig(**(SIZES | config))
        made.rope_scaling = scaling
        inner = NativeModel(made).to(model.dtype)
        weights = renamed(model, names, "c_attn", ("q", "k", "v"))
        if made.positional_embedding_type == "rotary":
            weights = {
                k: turned(v, made.d_head) if ".attn.q." in k or ".attn.k." in k else v for k, v in weights.items()
            }
        none = {k: torch.zeros_like(v) for k, v in inner.state_dict().items() if k.endswith(".bias")}
        inner.load_state_dict(none | weights)
        return build_bridge_from_module(
            inner, architecture="TransformerLensNative", tl_config=made, tokenizer=None, dtype=model.dtype,
            device="cpu", model_name="native",
        ).eval()  # fmt: skip

    return build


SIZES: dict[str, Any] = {
    "d_model": 48, "d_head": 12, "n_layers": 3, "n_ctx": 256, "n_heads": 4, "n_key_value_heads": 2, "d_vocab": 103,
    "d_mlp": 80, "eps": 3e-6, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "final_rms": True,
    "positional_embedding_type": "rotary", "rotary_base": 7000,
}  # fmt: skip
_BLOCK = {
    "embed_tokens": "tok_embed", "lm_head": "head", "self_attn": "attn", "q_proj": "q", "k_proj": "k", "v_proj": "v",
    "o_proj": "o",
}  # fmt: skip
_LLAMA = _BLOCK | {
    "model.norm": "ln_out", "model.": "", "input_layernorm": "ln1", "post_attention_layernorm": "ln2",
    "gate_proj": "gate", "up_proj": "in", "down_proj": "out",
}  # fmt: skip
_GPT2 = {
    "transformer.": "", "wte": "tok_embed", "wpe": "pos", "h.": "layers.", "ln_": "ln", "lnf": "ln_out",
    "mlp.c_fc": "mlp.fc_in", "mlp.c_proj": "mlp.fc_out", "attn.c_proj": "attn.o", "lm_head": "head",
}  # fmt: skip
_STARCODER2 = _LLAMA | {"c_fc": "fc_in", "c_proj": "fc_out"}
_PLAIN: dict[str, Any] = {"gated_mlp": False, "normalization_type": "LN", "final_rms": False, "act_fn": "gelu_new"}
_LEARNT: dict[str, Any] = _PLAIN | {"positional_embedding_type": "standard", "n_key_value_heads": None, "n_ctx": 128}
_NO_SPLIT = {"falcon, 40b"}
"""It cannot take the joint product of these apart, and says so."""
_CONFIG = {"starcoder2": {"norm_epsilon": 1e-5}}
"""It reads no key of this name, and takes 1e-5."""
ROWS = {name: Row(name, bridged, _CONFIG.get(name, {})) for name in CONFIGS if name not in _NO_SPLIT} | {
    "native, gpt2": Row("gpt2", native(_GPT2, **_LEARNT, d_vocab=101, d_mlp=112, eps=2e-5)),
    "native, llama": Row("llama", native(_LLAMA)),
    "native, llama, llama3": Row("llama", native(_LLAMA, scaling=ROPE["llama3"]), {"rope": "llama3"}),
    "native, llama, linear": Row("llama", native(_LLAMA, scaling=ROPE["linear"]), {"rope": "linear"}),
    "native, qwen2": Row("qwen2", native(_LLAMA), {"use_sliding_window": False}),
    "native, starcoder2": Row(
        "starcoder2", native(_STARCODER2, **_PLAIN, d_mlp=80, eps=2e-5), {"sliding_window": None}
    ),
}
