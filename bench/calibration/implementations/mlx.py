"""MLX on the CPU: the models of mlx-lm, by its own loading of a checkpoint.

Not Gemma, which has the exact GELU there and that by tanh in transformers (1e-4). Gemma 3 at width 64, whose root is
the same in the bfloat16 that its embeddings are scaled in (at width 48 the logits are 7e-4 apart, at 64 3e-7). No
windows where it reads none. DeepSeek-V3 with one group of experts: it masks groups that are not chosen by 0 and not by
-inf, so that an expert of theirs is chosen where the corrected scores of the others are negative. Not GPT-2 and
gpt-oss, whose checkpoints it wants under the names of the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.calibration.implementations.row import Logits, checkpoint, engine
from twinlens.museum.tiny import ROPE


def loaded(**keys: Any) -> Callable[[PreTrainedModel], Logits]:
    """The model of a checkpoint; `keys` are those of a config.json of transformers 4 that it reads."""

    def build(model: PreTrainedModel) -> Logits:
        import mlx.core
        from mlx_lm import utils

        with checkpoint(model) as folder:
            made: Any = utils.load_model(folder, model_config={"rope_theta": 7000.0, **keys})[0]

        def logits(tokens: Tensor) -> Tensor:
            return torch.from_numpy(np.array(made(mlx.core.array(tokens.numpy()))))

        return Logits(logits)

    return build


_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt_bigcode": ("gpt_bigcode", {"activation_function": "gelu"}, {}),
    "gpt_neox": (
        "gpt_neox",
        {"intermediate_size": 192, "hidden_act": "gelu_new"},
        {"rotary_pct": 0.5, "rotary_emb_base": 7000},
    ),
    "llama": ("llama", {}, {}),
    "llama, linear": ("llama", {"rope": "linear"}, {"rope_scaling": ROPE["linear"]}),
    "llama, llama3": ("llama", {"rope": "llama3"}, {"rope_scaling": ROPE["llama3"]}),
    "llama, yarn": ("llama", {"rope": "yarn"}, {"rope_scaling": ROPE["yarn"]}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "mixtral": ("mixtral", {"sliding_window": None}, {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}, {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": []}, {"num_experts": 7}),
    "gemma2": ("gemma2", {"sliding_window": 256}, {}),
    "gemma3_text": (
        "gemma3_text",
        {"hidden_size": 64},
        {"sliding_window_pattern": 2, "rope_local_base_freq": 500.0, "rope_scaling": ROPE["linear"] | {"factor": 8.0}},
    ),
    "cohere2": ("cohere2", {"tie_word_embeddings": True}, {}),
    "deepseek_v3": (
        "deepseek_v3",
        {"n_group": 1, "topk_group": 1},
        {"rope_scaling": ROPE["yarn, mscale"], "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    "glm4": ("glm4", {}, {"partial_rotary_factor": 0.5}),
    "granite": ("granite", {}, {}),
    "olmo2": ("olmo2", {}, {}),
    "phi3": ("phi3", {"sliding_window": None}, {"partial_rotary_factor": 0.5}),
    "smollm3": ("smollm3", {}, {}),
    "starcoder2": ("starcoder2", {"sliding_window": None, "hidden_act": "gelu"}, {}),
}
ROWS = engine(loaded, _CONFIGS)
