"""How a module is called, and where its logits are in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.errors import CaptureError, is_asked_to_end

Call = Callable[[Tensor, "Tensor | None"], Tensor]
"""`(tokens, mask or None) -> logits`."""


def invoke(module: nn.Module, tokens: Tensor, mask: Tensor | None, call: Call | None) -> Tensor:
    """Logits of a call as `module(tokens)`, with `attention_mask=` where the forward takes one.

    Raises CaptureError where it fails, or returns no logits.
    """
    try:
        out: Any = call(tokens, mask) if call is not None else module(tokens, **_keywords(module, mask))
    except CaptureError:
        raise
    except BaseException as error:  # the border: anything may be raised by somebody's module, SystemExit too
        if is_asked_to_end(error):
            raise
        raise CaptureError(
            f"{type(module).__name__} failed on tokens of shape {list(tokens.shape)} with "
            f"{type(error).__name__}: {error}; pass call= if it is called in another way."
        ) from error
    return logits_of(out, module)


def device_of(module: nn.Module) -> torch.device:
    """Where a module is: where its first parameter is, or its first buffer."""
    tensors = (t for some in (module.parameters(), module.buffers()) for t in some)
    return next((t.device for t in tensors), torch.device("cpu"))


def logits_of(out: Any, module: nn.Module) -> Tensor:
    """The logits in what a module returned."""
    if isinstance(out, (tuple, list)) and out:
        out = out[0]
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise CaptureError(
            f"{type(module).__name__} returned a {type(out).__name__} where logits, or an object with .logits, "
            "were expected; pass call=lambda tokens, mask: logits."
        )
    return logits


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # no function of Python's
        return {}


def _keywords(module: nn.Module, mask: Tensor | None) -> dict[str, Any]:
    takes = _parameters(module)
    hides = mask is not None and not bool(mask.all())
    # A cache changes no value of a single call, but holds keys and values alive (and in some releases a
    # window of its own), so it is switched off where there is a switch.
    keywords: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    if mask is not None and "attention_mask" in takes:
        keywords["attention_mask"] = mask
    elif hides and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        keywords["attention_mask"] = mask  # a wrapper, which hands on what it is given
    elif hides:
        raise CaptureError(
            f"{type(module).__name__}.forward takes no attention_mask, and the mask hides tokens; "
            "run without padding, or pass call= that hands the mask on."
        )
    return keywords
