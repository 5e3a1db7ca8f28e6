"""TransformerLens's table before 3.0: what it believes of an official model, at any size.

The table holds constants for some models and copies others from a config of the hub. What has a
meaning (scales, caps, eps, activation, rotary settings, which layers are local) is taken from it as
it stands, right or wrong; only what is size comes from the checkpoint.
"""

from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import nn

from twinlens.errors import SourceError

# Tried in this order: the first that the installed version lists.
_ENTRIES = {
    "gpt2": ("gpt2",),
    "gemma2": ("google/gemma-2-2b-it",),
    "llama": ("meta-llama/Llama-2-7b-hf",),
    "llama with llama3 scaling": ("meta-llama/Llama-3.2-1B", "meta-llama/Meta-Llama-3-8B"),
}


def loading() -> Any:
    """TransformerLens's module of loaders, which is not installed where this file is checked."""
    return import_module("transformer_lens.loading_from_pretrained")


def entry_for(config: dict[str, Any]) -> str:
    """The official model whose entry TransformerLens would use for this config.json.

    Raises:
        SourceError: none is known for this model type, or this version lists none.
    """
    official: list[str] = loading().OFFICIAL_MODEL_NAMES
    kind = str(config.get("model_type"))
    # 5.x writes rope_parameters, 4.x rope_scaling; 4.43 also wrote `type` for `rope_type`.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if kind == "llama" and "llama3" in (rope.get("rope_type"), rope.get("type")):
        kind = "llama with llama3 scaling"
    for name in _ENTRIES.get(kind, ()):
        if name in official:
            return name
    raise SourceError(
        f"twinlens has no default entry of TransformerLens's table for a model of type {kind!r}; "
        "name one of TransformerLens's official models: tl:PATH?model=NAME."
    )


def hooked_config(name: str, live: nn.Module, dtype: torch.dtype) -> Any:
    """The `HookedTransformerConfig` of an official model, in the size of a checkpoint.

    Args:
        name: an official name of the table.
        live: the checkpoint, loaded by transformers.
        dtype: in which the weights are held.
    """
    table_of = loading()
    config: Any = live.config
    # The hub's config.json of gpt2 has this key, one that is written by GPT2Config has not.
    if config.model_type == "gpt2" and "n_ctx" not in vars(config):
        config.n_ctx = config.n_positions
    # For some names the table asks the hub for a config; the checkpoint's own is the answer, and
    # nothing leaves this machine.
    answer = mock.Mock(**{"from_pretrained.return_value": config})
    read_table: Any = table_of.convert_hf_model_config

    def at_this_size(*args: Any, **kwargs: Any) -> dict[str, Any]:
        table = read_table(*args, **kwargs)
        # A tokenizer would be fetched; only token ids are ever passed.
        return {**table, **_sizes(table, config), "tokenizer_name": None}

    with (
        mock.patch.object(table_of, "AutoConfig", answer),
        mock.patch.object(table_of, "convert_hf_model_config", at_this_size),
    ):
        return table_of.get_pretrained_model_config(
            name, hf_cfg=config.to_dict(), fold_ln=False, device="cpu", dtype=dtype
        )


def _sizes(table: dict[str, Any], config: Any) -> dict[str, Any]:
    heads: int = config.num_attention_heads
    key_value_heads: int = _optional(config, "num_key_value_heads", heads)
    head_width: int = _optional(config, "head_dim", config.hidden_size // heads)
    layers: int = config.num_hidden_layers
    mlp: int | None = _optional(config, "intermediate_size", _optional(config, "n_inner", None))
    sizes: dict[str, Any] = {
        "d_model": config.hidden_size,
        "n_layers": layers,
        "n_heads": heads,
        "d_head": head_width,
        "d_mlp": mlp or 4 * config.hidden_size,
        "d_vocab": config.vocab_size,
        # The table caps it where the square masks would not fit in memory.
        "n_ctx": min(table["n_ctx"], config.max_position_embeddings),
    }
    # An entry of a model without grouped heads has no such key, and another layout of weights.
    if "n_key_value_heads" in table or key_value_heads != heads:
        sizes["n_key_value_heads"] = key_value_heads
    if "rotary_dim" in table and table["rotary_dim"] == table["d_head"]:
        sizes["rotary_dim"] = head_width
    if "window_size" in table:
        sizes["window_size"] = _optional(config, "sliding_window", table["window_size"])
    if types := table.get("attn_types"):
        sizes["attn_types"] = (types * layers)[:layers]  # the tables repeat with a period
    return sizes


def _optional(config: Any, key: str, default: Any) -> Any:
    """A config of transformers has the keys of its own family only, or holds None."""
    value = getattr(config, key, None)
    return default if value is None else value
