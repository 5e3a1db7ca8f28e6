"""From whatever holds a transformer to the native model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from twinlens.checkpoint import Checkpoint, from_module, open_checkpoint
from twinlens.errors import InputError, SourceError
from twinlens.families import declare
from twinlens.model import Model
from twinlens.sources.parse import ATTENTIONS


def load(
    model: nn.Module | Checkpoint | str | Path,
    *,
    attention: str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """The native model of a live transformers model, a checkpoint, a model folder or a .gguf file.

    Args:
        model: a live model's weights are shared, not copied; a folder's stay mapped from disk; a
            .gguf file is dequantised by transformers.
        attention: the kernel, `eager` or `sdpa`; None is the live model's own, else `eager`.
        dtype: in which weights are held and the model computes; None is that of the weights. Any
            other makes copies.

    Raises:
        CheckpointError: weights are missing, of another shape or not finite.
        SourceError, InputError: `model` is nothing of these, or one of the others is not there.
        UnknownArchitecture: no family declares this architecture.
        ConfigError: the config lacks a key, or has one that is not understood.

    Example:
        >>> from twinlens.museum.tiny import tiny_gpt2, random_tokens
        >>> theirs = tiny_gpt2(attn="sdpa")
        >>> tokens = random_tokens(theirs)
        >>> torch.equal(load(theirs)(tokens), theirs(tokens).logits)
        True
    """
    if not isinstance(model, nn.Module | Checkpoint | str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SourceError(
            f"a {type(model).__name__} cannot be loaded; give a transformers model, a Checkpoint, a folder or a .gguf."
        )
    _check_choices(attention, dtype)
    if isinstance(model, str | Path) and str(model).endswith(".gguf"):
        model = _gguf(str(model), attention or "eager", dtype or torch.float32)
    if isinstance(model, nn.Module):
        attention = attention or kernel_of(model)
        model = from_module(model)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    dtype = dtype or checkpoint.dtype
    spec = declare(checkpoint.config, dtype=dtype, attention=attention or "eager")
    checkpoint.check(spec)
    return Model(spec, spec.in_dtype(checkpoint.weight))


def _check_choices(attention: object, dtype: object) -> None:
    """A border: callers are not type-checked."""
    if attention not in (None, *ATTENTIONS):
        raise InputError(f"attention={attention!r} is unknown; it is {' or '.join(ATTENTIONS)}.")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={dtype!r} is no dtype in which a model computes; give torch.float32, say.")


def kernel_of(module: nn.Module) -> str:
    """The attention kernel that a live transformers model says it uses: `eager` or `sdpa`."""
    config = getattr(module, "config", None)  # the border: not every module has one
    return str(getattr(config, "_attn_implementation", None) or "eager")


def _gguf(path: str, attention: str, dtype: torch.dtype) -> nn.Module:
    from twinlens.sources.hf import build

    return build(path, attn=attention, dtype=str(dtype).removeprefix("torch.")).module
