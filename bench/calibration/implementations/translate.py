"""CTranslate2: its own engine, from its own conversion of a model of transformers.

Not Llama 3's scaling, whose factor its conversion writes down for the linear one alone: its logits are to 1e-6 those of
transformers without scaling. No window but one longer than the prompt: it refuses prompts beyond it. No cap of Gemma 2,
which it does not know; no Phi-3, which it reads from what modules of transformers 4 had.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.calibration.implementations.row import Logits, checkpoint, engine


def converted(**keys: Any) -> Callable[[PreTrainedModel], Logits]:
    """Its Generator in float32; `keys` are those of a config of transformers 4 that its converter reads."""
    return lambda model: _generator(model, keys)


def _generator(model: PreTrainedModel, keys: dict[str, Any]) -> Logits:
    """With a vocabulary of names made up: only token ids are passed."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    taken_apart = copy.deepcopy(model)
    for key, value in keys.items():
        setattr(taken_apart.config, key, value)
    taken_apart.embed_out = taken_apart.lm_head  # its name in transformers 4 where GPT-NeoX is concerned
    names = {f"<{number}>": number for number in range(model.config.vocab_size)}
    words = SimpleNamespace(get_vocab=lambda: names, bos_token="<1>", eos_token="<2>", unk_token="<0>", pad_token="<0>")

    class Converter(TransformersConverter):
        def load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return taken_apart

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return words

    with checkpoint(model) as folder:
        Converter(str(folder)).convert(str(folder / "converted"))
        made = ctranslate2.Generator(str(folder / "converted"), compute_type="float32", intra_threads=1)

    def logits(tokens: Tensor) -> Tensor:
        lengths = np.full(len(tokens), tokens.shape[1], dtype=np.int32)
        given = (ctranslate2.StorageView.from_array(x) for x in (tokens.numpy().astype(np.int32), lengths))
        return torch.from_numpy(np.array(made.forward_batch(*given)))

    return Logits(logits)


_FIVE = {"layer_norm_epsilon": 1e-5}
"""It writes no eps of a LayerNorm or of Gemma 3 down, nor for most a theta: they are then what its engine has."""
_TEN: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_NEOX: dict[str, Any] = {"rope_parameters": _TEN["rope_parameters"] | {"partial_rotary_factor": 0.5}}
_GEMMA2: dict[str, Any] = {
    "query_pre_attn_scalar": 16, "sliding_window": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
_GEMMA3: dict[str, Any] = {
    "sliding_window": 256, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", _FIVE, {}),
    "gpt_bigcode": ("gpt_bigcode", _FIVE, {}),
    "gpt_neox": ("gpt_neox", _NEOX, {"rotary_pct": 0.5}),
    "gpt_neox, in sequence": ("gpt_neox", _NEOX | {"use_parallel_residual": False}, {"rotary_pct": 0.5}),
    "opt": ("opt", {"vocab_size": 104}, {}),  # it makes it a multiple of 8
    "falcon": ("falcon", _FIVE | _TEN, {}),
    "falcon, 40b": ("falcon, 40b", _TEN | {"multi_query": False}, {}),
    "falcon, one norm": ("falcon, one norm", _TEN, {}),
    "llama": ("llama", {}, {}),
    "llama, linear": ("llama", {"rope": "linear"}, {}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}, {}),
    "qwen3": ("qwen3", {}, {}),
    "gemma": ("gemma", _TEN | {"hidden_act": "gelu_pytorch_tanh"}, {}),
    "gemma2": ("gemma2", _TEN | _GEMMA2, {}),
    "gemma3_text": ("gemma3_text", _GEMMA3, {}),
}
ROWS = engine(converted, _CONFIGS)
