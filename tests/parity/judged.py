"""Whether a report says of a fault what it must, and a recording of what few sites show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import twinlens
from tests.parity.faults import FAULTS
from twinlens.museum.exhibit import Exhibit
from twinlens.museum.hands import layers
from twinlens.museum.visit import misses

__all__ = ["BY_NAME", "compared", "misses", "sublayers", "title"]


def title(fault: Exhibit) -> str:
    """Family and name, by which it is known."""
    return f"{fault.family}: {fault.name}"


BY_NAME = {title(fault): fault for fault in FAULTS}


def compared(fault: Exhibit, *, afar: bool = False) -> tuple[Any, twinlens.Report]:
    """The candidate, and the comparison with it, or with its sublayer outputs alone."""
    reference = fault.reference()
    candidate = fault.candidate(reference)
    tokens, mask = fault.inputs(reference)
    seen = sublayers(candidate, tokens, mask) if afar else candidate
    return candidate, twinlens.compare(reference, seen, tokens=tokens, mask=mask)


@torch.no_grad()
def sublayers(model: Any, tokens: Tensor, mask: Tensor | None) -> twinlens.Recording:
    """What modules hand to each other, and nothing within them, by plain hooks on transformers' modules."""
    got = dict[str, Tensor]()
    kind = model.config.model_type
    hooks = list[Any]()

    def output(module: Any, site: str) -> None:
        def take(mod: Any, args: Any, out: Any) -> None:
            got[site] = (out[0] if isinstance(out, tuple) else out).detach().clone()

        hooks.append(module.register_forward_hook(take))

    def reads(module: Any, site: str) -> None:
        def take(mod: Any, args: Any, kwargs: Any) -> None:
            got[site] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

        hooks.append(module.register_forward_pre_hook(take, with_kwargs=True))

    output(model.transformer.wte if kind == "gpt2" else model.model.embed_tokens, "hook_embed")
    for i, x in enumerate(layers(model)):
        at = f"blocks.{i}"
        reads(x, f"{at}.hook_resid_pre")
        output(x, f"{at}.hook_resid_post")
        if kind == "gpt2":
            named = (x.attn, x.ln_2, x.mlp)
        elif kind == "llama":
            named = (x.self_attn, x.post_attention_layernorm, x.mlp)
        else:
            named = (x.post_attention_layernorm, x.pre_feedforward_layernorm, x.post_feedforward_layernorm)
        output(named[0], f"{at}.hook_attn_out")
        reads(named[1], f"{at}.hook_resid_mid")
        output(named[2], f"{at}.hook_mlp_out")
    try:
        out = model(tokens) if mask is None else model(tokens, attention_mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    return twinlens.Recording.from_tensors({**got, "logits": out.logits}, tokens=tokens, mask=mask)
