"""torchtune: its own models, by its own conversion of weights.

Not its Gemma 2, which is another model: its conversion exchanges the norms before and after the MLP, and it caps what
it multiplies by the unembedding instead of the logits. With both undone the logits are those of transformers to 3e-7.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bench.calibration.implementations.row import LLAMA3, Row, stored

SIZES: dict[str, Any] = {
    "vocab_size": 103, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 48, "intermediate_dim": 80,
    "max_seq_len": 256, "norm_eps": 3e-6, "rope_base": 7000,
}  # fmt: skip


def converted(
    name: str, convert: str = "convert_weights.hf_to_tune", **config: Any
) -> Callable[[PreTrainedModel], nn.Module]:
    """The model that torchtune calls so, at our sizes, with weights by its function `convert`."""

    def build(model: PreTrainedModel) -> nn.Module:
        home, _, function = f"torchtune.models.{convert}".rpartition(".")
        made = getattr(import_module(f"torchtune.models.{name}"), name)(**(SIZES | config))
        sizes = {"num_heads": 4, "num_kv_heads": 2, "dim": 48, "head_dim": config.get("head_dim")}
        change = getattr(import_module(home), function)
        known = inspect.signature(change).parameters
        made.load_state_dict(change(stored(model), **{k: v for k, v in sizes.items() if k in known}))
        for parameter in made.parameters():  # not .to(): the rotary tables stay as they are made
            parameter.data = parameter.data.to(model.dtype)
        return made.eval()

    return build


ROWS = {
    "llama": Row("llama", converted("llama2")),
    "llama, llama3": Row("llama", converted("llama3_1"), LLAMA3),
    "mistral": Row("mistral", converted("mistral"), {"sliding_window": None}),
    "qwen2": Row("qwen2", converted("qwen2", "qwen2._convert_weights.qwen2_hf_to_tune"), {"use_sliding_window": False}),
    "gemma": Row("gemma", converted("gemma", head_dim=16), {"hidden_act": "gelu_pytorch_tanh"}),
    "phi3": Row(
        "phi3", converted("phi3", "phi3._convert_weights.phi3_hf_to_tune"),
        {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}},
    ),
}  # fmt: skip
