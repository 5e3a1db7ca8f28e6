"""`tl:PATH`: the model that the installed TransformerLens makes of a checkpoint folder.

Before 3.0 that is a `HookedTransformer`: TransformerLens's own table for an official model says
what the model means, the checkpoint says its size and its weights, and TransformerLens's own
converter renames them; nothing is folded or centred. From 3.0 on it is a `TransformerBridge`.
"""

import inspect
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch import Tensor, nn

from twinlens.errors import CheckpointError, SourceError
from twinlens.sources import hf
from twinlens.sources.built import Built, Call, dtype_of, first_sentence, numbers, version_of
from twinlens.sources.transformer_lens_bridge import bridge, bridge_call
from twinlens.sources.transformer_lens_table import entry_for, hooked_config, loading


def build(path: str, *, model: str | None = None, dtype: str = "float32") -> Built:
    """TransformerLens's model of the checkpoint folder at `path`, weights unprocessed.

    Args:
        path: a folder with config.json and safetensors.
        model: the entry of TransformerLens's table, such as `gpt2`; absent: by config.json.
        dtype: in which the weights are held and the model computes.

    Raises:
        CheckpointError: the folder or its weights are not whole.
        SourceError: TransformerLens is not installed, has no such entry, or cannot build it.
    """
    version = version_of("transformer-lens", "tl:PATH")
    if Path(path).is_file():
        raise CheckpointError(f"{path} is a file; tl:PATH takes a model folder with config.json.")
    live = hf.build(path, dtype=dtype)
    bridged = numbers(version) >= (3,)
    if bridged and model is not None:
        raise SourceError(
            f"TransformerLens {version} has no table of models: it reads the checkpoint's own "
            f"config.json; leave out ?model={model}."
        )
    entry = model or ("" if bridged else entry_for(live.config or {}))
    try:
        module = bridge(path, live.module, dtype_of(dtype)) if bridged else _hooked(entry, live, dtype)
    except Exception as error:  # the border: asserts, KeyErrors, shape errors of three generations
        raise SourceError(
            f"TransformerLens {version} cannot build {path}{f' as {entry}' if entry else ''}: {first_sentence(error)}."
        ) from error
    about = {
        **live.about,
        "implementation": "transformer_lens",
        "transformer_lens": version,
        "class": type(module).__name__,
        **({"model": entry} if entry else {}),
    }
    call = bridge_call(module) if bridged else _hooked_call(module)
    return Built(module.eval().requires_grad_(False), call, about, live.config, live.checkpoint)


def _hooked(entry: str, live: Built, dtype: str) -> nn.Module:
    name = loading().get_official_model_name(entry)
    config = hooked_config(name, live.module, dtype_of(dtype))
    model: Any = import_module("transformer_lens").HookedTransformer(config, move_to_device=False)
    # With a live model at hand this only calls the converter for `config.original_architecture`.
    state = loading().get_pretrained_state_dict(name, config, hf_model=live.module, dtype=config.dtype)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def _hooked_call(module: Any) -> Call:
    takes_mask = "attention_mask" in inspect.signature(module.input_to_embed).parameters

    def call(tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return module(tokens)
        with nullcontext() if takes_mask else _left_padded(module, mask):
            return module(tokens, attention_mask=mask)

    return call


@contextmanager
def _left_padded(module: Any, mask: Tensor) -> Generator[None, None, None]:
    """2.3.0 overwrites the mask that `forward` is given by the one that its tokenizer implies.

    So a left-padding tokenizer stands in, and the function that asks it answers with our mask.
    """
    utils: Any = import_module("transformer_lens.utils")
    tokenizer = SimpleNamespace(padding_side="left")
    with (
        mock.patch.object(module, "tokenizer", tokenizer),
        mock.patch.object(utils, "get_attention_mask", return_value=mask),
    ):
        yield
