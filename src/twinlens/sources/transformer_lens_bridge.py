"""TransformerLens from 3.0 on: a `TransformerBridge` around a live model of transformers."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.sources.built import Call


def bridge(path: str, live: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A bridge around `live`, which it changes in place.

    Args:
        path: the checkpoint's folder, as a name.
        live: the checkpoint, loaded by transformers.
        dtype: that of the weights.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    # It insists on a tokenizer, which a checkpoint need not have; only token ids are ever passed.
    # One without a BOS token is taken as it is, any other is loaded again by its name.
    nothing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="<unk>",
    )
    theirs: Any = import_module("transformer_lens.model_bridge")
    return theirs.TransformerBridge.boot_transformers(path, hf_model=live, tokenizer=nothing, device="cpu", dtype=dtype)


def bridge_call(module: nn.Module) -> Call:
    """Logits of a bridge; it derives the positions from the mask itself."""

    def call(tokens: Tensor, mask: Tensor | None) -> Tensor:
        return module(tokens, attention_mask=mask, return_type="logits")

    return call
