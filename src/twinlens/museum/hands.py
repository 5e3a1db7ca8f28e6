"""What a hand does to a live model of transformers, for plants."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = Any  # transformers' classes say little about their own attributes


def during(model: Model, owner: ModuleType | type, **functions: Any) -> None:
    """Attributes of a module or class are others while this model runs, and only then."""
    forward = model.forward

    @functools.wraps(forward)
    def patched(*args: Any, **kwargs: Any) -> Any:
        before = {name: getattr(owner, name) for name in functions}
        for name, value in functions.items():
            setattr(owner, name, value)
        try:
            return forward(*args, **kwargs)
        finally:
            for name, value in before.items():
                setattr(owner, name, value)

    model.forward = patched


def file_of(model: Model) -> ModuleType:
    """The modeling file."""
    return sys.modules[type(model).__module__]


def modeling(model: Model, **functions: Any) -> None:
    """Functions of the modeling file are others while this model runs."""
    during(model, file_of(model), **functions)


def method(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Another forward of one module, `forward(self, x, ...)`."""
    module.forward = MethodType(forward, module)


def called(model: Model, change: Callable[[Tensor, dict[str, Any]], dict[str, Any]]) -> None:
    """The whole model is called with other arguments: `change(input_ids, arguments)` gives those to add."""
    forward = model.forward

    @functools.wraps(forward)
    def other(input_ids: Tensor, **kwargs: Any) -> Any:
        return forward(input_ids, **(kwargs | change(input_ids, kwargs)))

    model.forward = other


def config_of(module: nn.Module, **keys: Any) -> None:
    """A module reads a config of its own, in which these keys are others."""
    import copy

    owner: Any = module
    owner.config = copy.copy(owner.config)
    for name, value in keys.items():
        setattr(owner.config, name, value)


# ---------------------------------------------------------------------------------- where things are


def layers(model: Model) -> list[Any]:
    """The blocks, in order."""
    for path in ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers"):
        try:
            return list(model.get_submodule(path))
        except AttributeError:
            continue
    raise AttributeError(f"{type(model).__name__} has its layers elsewhere")


def _child(block: Any, word: str) -> Any:
    return next(m for m in block.modules() if word in type(m).__name__ and m is not block)


def attentions(model: Model) -> list[Any]:
    """The attention module of each block."""
    return [_child(x, "Attention") for x in layers(model)]


def norms(model: Model) -> list[Any]:
    """All norms, in order."""
    return [m for m in model.modules() if "Norm" in type(m).__name__]


def mlp(model: Model, forward: Callable[[Any, Tensor], Tensor], *only: int) -> None:
    """Another forward of each MLP, or of those of some layers."""
    for i, x in enumerate(layers(model)):
        if not only or i in only:
            method(x.mlp, forward)


def act(model: Model, f: Callable[[Tensor], Tensor], *only: int) -> None:
    """Another activation, or in some layers."""

    class Act(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return f(x)

    for i, x in enumerate(layers(model)):
        if not only or i in only:
            owner = x if hasattr(x, "activation_fn") else x.mlp
            name = next(n for n in ("act", "act_fn", "activation_fn") if hasattr(owner, n))
            setattr(owner, name, Act())


def scaled(model: Model, width: float, *only: int) -> None:
    """Scores divided by the root of another width, or in some layers."""
    for i, a in enumerate(attentions(model)):
        if not only or i in only:
            a.scaling = width**-0.5


# --------------------------------------------------------------------------------------------- rotary


def frequencies(model: Model, change: Callable[[Tensor], Tensor]) -> None:
    """Other inverse frequencies."""
    rotary = model.get_submodule("gpt_neox.rotary_emb" if hasattr(model, "gpt_neox") else "model.rotary_emb")
    rotary.inv_freq = change(rotary.inv_freq.clone())


def rope_again(model: Model, **parameters: Any) -> None:
    """The rotary module as it would be built from other `rope_parameters`; None leaves a key out."""
    import copy

    owner = model.get_submodule("gpt_neox" if hasattr(model, "gpt_neox") else "model")
    config = copy.deepcopy(model.config)
    kept = {k: v for k, v in (config.rope_parameters | parameters).items() if v is not None}
    config.rope_parameters = kept
    owner.rotary_emb = type(owner.rotary_emb)(config=config)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs 2i and 2i + 1, as in GPT-J; tables of halves, as in Llama."""
    half = cos.shape[-1] // 2
    cos, sin = (t[..., :half].repeat_interleave(2, -1) for t in (cos, sin))
    other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + other * sin


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` in the other layout."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return turned(q, cos, sin), turned(k, cos, sin)


# ------------------------------------------------------------------------------------------ attention


def repeat(x: Tensor, n: int) -> Tensor:
    """Key/value heads as query heads need them."""
    return x.repeat_interleave(n, dim=1)


def plain_cap(s: Tensor, c: float | None) -> Tensor:
    """Scores within ± c."""
    return s if c is None else torch.tanh(s / c) * c


Attend = Callable[..., tuple[Tensor, Tensor]]


def attention(
    *,
    map_kv: Callable[[Tensor, int], Tensor] = repeat,
    score: Callable[[Tensor, Tensor, float], Tensor] = lambda q, k, s: (q @ k.transpose(2, 3)) * s,
    cap: Callable[[Tensor, float | None], Tensor] = plain_cap,
    hide: Callable[[Tensor, Tensor | None], Tensor] = lambda s, m: s if m is None else s + m,
    soften: Callable[[Tensor], Tensor] = lambda s: F.softmax(s, -1, dtype=torch.float32).to(s.dtype),
    read: Callable[[Tensor, Tensor], Tensor] = lambda a, v: a @ v,
) -> Attend:
    """An eager attention with one part written in another way."""

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **_: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        groups = getattr(module, "num_key_value_groups", 1)
        if groups > 1:
            key, value = map_kv(key, groups), map_kv(value, groups)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        s = cap(score(query, key, scale), softcap)
        weights = soften(hide(s, attention_mask))
        return read(weights, value).transpose(1, 2).contiguous(), weights

    return forward


def diagonal(model: Model, first: int) -> None:
    """A mask that hides the keys from this diagonal on; 1 is causal."""
    lowest = torch.finfo(torch.float32).min

    def mask(inputs_embeds: Tensor, **_: Any) -> Tensor:
        length = inputs_embeds.shape[1]
        return torch.full((length, length), lowest).triu(first)[None, None].to(inputs_embeds.dtype)

    modeling(model, create_causal_mask=mask)


def unmasked(model: Model) -> None:
    """The padding mask is not handed on."""
    forward = model.forward

    @functools.wraps(forward)
    def bare(input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return forward(input_ids, **kwargs)

    model.forward = bare


# ---------------------------------------------------------------------------------------------- norms


def rms(x: Tensor, eps: float) -> Tensor:
    """Divided by the root of the mean square."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def eps_of(norm: Any) -> float:
    """By whichever name a norm has it."""
    return next(float(getattr(norm, name)) for name in ("variance_epsilon", "eps") if hasattr(norm, name))


def set_eps(norm: Any, eps: float) -> None:
    """By whichever name a norm has it."""
    setattr(norm, next(name for name in ("variance_epsilon", "eps") if hasattr(norm, name)), eps)


def each_norm(model: Model, forward: Callable[[Any, Tensor], Tensor]) -> None:
    """Another forward of each norm."""
    for n in norms(model):
        method(n, forward)


ROOT12 = math.sqrt(12)
"""Divisor of the scores of a tiny model whose heads are 12 wide."""


# ------------------------------------------------------------------------------------------ positions


def positions_of_mask(ids: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """Real tokens are counted, for `called`."""
    mask = given.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    return {"position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0)}


def tables(
    angles: Callable[[Tensor, Tensor], Tensor] = lambda p, f: p.float() * f.float(),
    table: Callable[[Tensor], Tensor] = lambda t: t,
) -> Callable[..., Any]:
    """A forward of a rotary module, with angles or tables made in another way."""

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        a = angles(position_ids[..., None], self.inv_freq)
        a = torch.cat((a, a), -1)
        factor = self.attention_scaling
        return (table(a.cos()) * factor).to(x.dtype), (table(a.sin()) * factor).to(x.dtype)

    return forward
