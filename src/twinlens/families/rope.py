"""What a config says about rotary positions, in its old and its new spelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from twinlens.errors import ConfigError
from twinlens.families.config import Config
from twinlens.families.values import checked
from twinlens.ops import RotaryTable


@dataclass(frozen=True)
class _Kind:
    """A kind of scaling: keys of a config that it needs or may have, and our fields for them."""

    needs: Mapping[str, str] = field(default_factory=dict[str, str])
    may: Mapping[str, str] = field(default_factory=dict[str, str])
    attention: Callable[[Mapping[str, Any], float, float], float] = lambda said, factor, original: 1.0
    """The factor on cos and sin where the config has no `attention_factor`, from the stretch and the first length."""


def _yarn_factor(said: Mapping[str, Any], factor: float, original: float) -> float:
    """Peng et al. 2023, equation 22; DeepSeek's `mscale` and `mscale_all_dim` make it a quotient."""
    mscale, everywhere = said.get("mscale"), said.get("mscale_all_dim")
    return _size(factor, mscale) / _size(factor, everywhere) if mscale and everywhere else _size(factor, 1.0)


def _size(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope_factor(said: Mapping[str, Any], factor: float, original: float) -> float:
    """Ding et al. 2024, as released with Phi-3."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


_ORIGINAL = {"original_max_position_embeddings": "original_max_position"}
_SCALING: dict[str, _Kind] = {
    "default": _Kind(),
    "linear": _Kind({"factor": "factor"}),
    "llama3": _Kind({
        "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor", **_ORIGINAL,
    }),
    "dynamic": _Kind({"factor": "factor", "max_position_embeddings": "original_max_position"}),
    "yarn": _Kind(
        {"factor": "factor", **_ORIGINAL},
        {"beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "", "mscale": "", "mscale_all_dim": ""},
        _yarn_factor,
    ),
    "longrope": _Kind(
        {"short_factor": "short_factor", "long_factor": "long_factor", **_ORIGINAL}, {"factor": ""}, _longrope_factor
    ),
}  # fmt: skip
_SHARED = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "attention_factor"}
_LIKE: dict[str, Any] = {
    "rope_type": "", "type": "", "truncate": True, "short_factor": [1.0], "long_factor": [1.0],
}  # fmt: skip
"""What is no number."""
_KEYS = _SHARED.union(*(kind.needs.keys() | kind.may.keys() for kind in _SCALING.values()))


def rotary(
    c: Config, width: int, out: torch.dtype, *, theta: float = 10000.0, partial: float = 1.0,
    layers: str | None = None, key: str = "rope_theta", default: Mapping[str, Any] = MappingProxyType({}),
) -> RotaryTable:  # fmt: skip
    """The rotary table of a config.

    `width` is a head's, of which `partial` is rotated where the config does not say how much. In the new spelling all
    stands in `rope_parameters`, or in its part for a kind of `layers` where each kind has its own; in the old one the
    base is `key`, and `rope_scaling` is that of `rope_theta`. `default` is the class's, where the config has neither.
    Raises ConfigError for a scaling, or a number of one, that is not declared.
    """
    said = _said(c, layers, key) or dict(default)
    name = said.get("rope_type", said.get("type", "default"))
    kind = _SCALING.get(name)
    if kind is None or set(said) - {*_SHARED, *kind.needs, *kind.may}:
        raise ConfigError(
            f"the config asks for rotary scaling {said!r}; known are {', '.join(_SCALING)} with "
            f"their own keys: "
            f"add it to twinlens/families/rope.py"
        )
    said = _completed(c, kind, said)
    missing = [key for key in kind.needs if key not in said]
    if missing:
        raise ConfigError(f"the config asks for rotary scaling {name!r} without {missing[0]!r}; add it to config.json")
    base = said.get("rope_theta", c.get(key, "rotary_emb_base", default=theta))
    share = said.get("partial_rotary_factor", c.get("partial_rotary_factor", "rotary_pct", default=partial))
    table = RotaryTable(width=int(width * share), out=out, base=float(base))
    if table.width % 2 or not 0 < table.width <= width:
        raise ConfigError(
            f"the config asks for {table.width} rotated numbers of the {width} of a head, where an even number of them "
            "was expected; correct head_dim, or the part that is rotated"
        )
    return table if name == "default" else _scaled(c, table, kind, name, said)


def yarn_size(c: Config) -> float:
    """By which DeepSeek multiplies queries and keys where the context is stretched: `mscale_all_dim` of equation 22."""
    said = _said(c, None, "rope_theta")
    name = said.get("rope_type", said.get("type", "default"))
    if name == "default" or not said.get("mscale_all_dim"):
        return 1.0
    return _size(float(_completed(c, _SCALING[name], said)["factor"]), said["mscale_all_dim"])


def _said(c: Config, layers: str | None, key: str) -> dict[str, Any]:
    new, old = c.get("rope_parameters", default={}), c.get("rope_scaling", default={})
    if layers is not None:
        new = checked(f"rope_parameters[{layers!r}]", new.get(layers, {}), {})
    said = {**(old if key == "rope_theta" else {}), **new}
    return {k: checked(k, v, _LIKE.get(k, 1.0) if k in _KEYS else None) for k, v in said.items() if v is not None}


def _scaled(c: Config, table: RotaryTable, kind: _Kind, name: str, said: dict[str, Any]) -> RotaryTable:
    named = {**kind.needs, **kind.may}
    for key in ("short_factor", "long_factor"):
        if key in named and len(said[key]) != table.width // 2:
            raise ConfigError(
                f"the config has {len(said[key])} numbers in {key} where {table.width // 2} were expected, one for "
                "each pair of rotated numbers; correct it there"
            )
    fields = {ours: _value(said[theirs]) for theirs, ours in named.items() if ours and theirs in said}
    untruncated = name == "yarn" and said.get("truncate") is False
    table = table.replace(scaling="yarn_untruncated" if untruncated else name, **fields)
    original = table.original_max_position
    factor = said.get("factor") or _longest(c) / original
    return table.replace(attention_factor=float(said.get("attention_factor", kind.attention(said, factor, original))))


def _completed(c: Config, kind: _Kind, said: dict[str, Any]) -> dict[str, Any]:
    """With what a config may say outside of its rotary part; a stretch that is left out follows from both lengths."""
    keys = ("max_position_embeddings", "original_max_position_embeddings")
    outside = {key: c.get(key, default=None, like=1) for key in keys if key in kind.needs}
    c.get("original_max_position_embeddings", default=None, like=1)  # a length that only a scaling uses
    found = {k: v for k, v in outside.items() if v is not None} | said
    if "factor" in kind.needs and "factor" not in found and "original_max_position_embeddings" in found:
        found["factor"] = _longest(c) / found["original_max_position_embeddings"]
    return found


def _longest(c: Config) -> float:
    return float(c.get("max_position_embeddings"))


def _value(said: Any) -> Any:
    """Lists as tuples, anything else as a number."""
    return tuple(map(float, said)) if isinstance(said, list) else float(said)  # pyright: ignore[reportUnknownArgumentType]
