"""ONNX Runtime with all its optimisations, on what torch exports of a model of transformers."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.calibration.implementations.row import ENGINE, Logits, Row
from twinlens.museum.tiny import CONFIGS


class Exported(nn.Module):
    """The model as a function of token ids alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        if hasattr(self.model, "set_experts_implementation"):
            self.model.set_experts_implementation("batched_mm")

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; with a mask and positions it asks nothing of the tokens that has no counterpart in ONNX."""
        places = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        return self.model(tokens, attention_mask=torch.ones_like(tokens), position_ids=places, use_cache=False).logits


def exported(model: PreTrainedModel) -> Logits:
    """By the exporter that traces, for tokens of one shape: it takes a tenth of the other's time."""

    def logits(tokens: Tensor) -> Tensor:
        import onnxruntime

        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Exported(model), (tokens,), file, dynamo=False, input_names=["tokens"])
        settings: Any = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        made = onnxruntime.InferenceSession(file.getvalue(), settings, providers=["CPUExecutionProvider"])
        return torch.from_numpy(made.run(None, {"tokens": tokens.numpy()})[0])

    return Logits(logits)


_FAILS = {"cohere2", "glm4", "gpt_oss"}
"""The exporter breaks off at what turns neighbours in two of them, the comparison of the third takes long."""
ROWS = {name: Row(name, exported, **ENGINE) for name in CONFIGS if name not in _FAILS}
