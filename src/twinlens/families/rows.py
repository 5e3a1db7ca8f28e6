"""Rows that families share. A function returns rows; what differs is an argument."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from twinlens.errors import ConfigError
from twinlens.families.config import Config
from twinlens.ops import (
    Add,
    Branch,
    Gate,
    Mix,
    Normalize,
    NormWeight,
    Project,
    RotaryTable,
    Rotate,
    Scores,
    Softmax,
)
from twinlens.sites import block
from twinlens.spec import Shape, Step, Weight


def norm(site: str, reads: str, normalize: Normalize, weight: NormWeight, names: tuple[str, ...]) -> Iterator[Step]:
    """`site.hook_normalized` and `site.hook_out`; `names` are the weight's and a bias's."""
    yield Step(f"{site}.hook_normalized", normalize, (reads,))
    weights = tuple(zip("wb", (Weight(n) for n in names), strict=False))
    yield Step(f"{site}.hook_out", weight, (f"{site}.hook_normalized",), weights)


def project(writes: str, reads: str, name: str, op: Project, *, bias: bool = False, transposed: bool = False) -> Step:
    """A product with `name.weight`, and `name.bias` where there is one."""
    weights = [("W", Weight(f"{name}.weight", transposed))]
    if bias:
        weights.append(("b", Weight(f"{name}.bias")))
    return Step(writes, op, (reads,), tuple(weights))


def rotary_tables(table: RotaryTable) -> Iterator[Step]:
    """`rotary.hook_cos` and `rotary.hook_sin`."""
    for wave in ("cos", "sin"):
        yield Step(f"rotary.hook_{wave}", table.replace(wave=wave), ("positions",))


def rotated(layer: int, op: Rotate) -> Iterator[Step]:
    """`hook_rot_q` and `hook_rot_k`."""
    for part in "qk":
        yield Step(
            block(layer, f"attn.hook_rot_{part}"),
            op,
            (block(layer, f"attn.hook_{part}"), "rotary.hook_cos", "rotary.hook_sin"),
        )


def attention(layer: int, scores: Scores, softmax: Softmax, mix: Mix, q: str, k: str) -> Iterator[Step]:
    """From queries, keys and values to `hook_z`."""
    at = block(layer, "attn")
    reads = (f"{at}.{q}", f"{at}.{k}", "mask", "slots")
    yield Step(f"{at}.hook_attn_scores", scores, reads)
    yield Step(f"{at}.hook_pattern", softmax, (f"{at}.hook_attn_scores",))
    yield Step(f"{at}.hook_z", mix, (f"{at}.hook_pattern", f"{at}.hook_v"))


def rotary_attention(layer: int, name: str, shape: Shape, scores: Scores, *, bias: bool) -> Iterator[Step]:
    """From `ln1.hook_out` to `attn.hook_out`, by the products q_proj, k_proj, v_proj and o_proj of `name`."""
    at = block(layer, "attn")
    for part, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        reads = block(layer, "ln1.hook_out")
        yield project(f"{at}.hook_{part}", reads, f"{name}.{part}_proj", Project(heads=heads), bias=bias)
    yield from rotated(layer, Rotate(width=shape.head_width))
    yield from attention(layer, scores, Softmax(), Mix(), "hook_rot_q", "hook_rot_k")
    yield project(f"{at}.hook_out", f"{at}.hook_z", f"{name}.o_proj", Project(from_heads=True), bias=bias)


def gated_mlp(layer: int, reads: str, name: str, act: str, *, bias: bool) -> Iterator[Step]:
    """down(act(gate(x)) · up(x))."""
    at = block(layer, "mlp")
    yield project(f"{at}.hook_pre", reads, f"{name}.gate_proj", Project(), bias=bias)
    yield project(f"{at}.hook_pre_linear", reads, f"{name}.up_proj", Project(), bias=bias)
    yield Step(f"{at}.hook_post", Gate(act, formula="kernel"), (f"{at}.hook_pre", f"{at}.hook_pre_linear"))
    yield project(f"{at}.hook_out", f"{at}.hook_post", f"{name}.down_proj", Project(), bias=bias)


def copy(writes: str, reads: str) -> Step:
    """A site that is another one."""
    return Step(writes, Add(), (reads,))


def branch(writes: str, reads: str) -> Step:
    """What a block adds to the residual stream."""
    return Step(writes, Branch(), (reads,))


def residual(writes: str, stream: str, branch: str) -> Step:
    """The residual stream after a branch was added."""
    return Step(writes, Add(), (stream, branch))


ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "linear": "none",
}


def activation(c: Config, *keys: str, default: str) -> tuple[str, str]:
    """The activation that a config names: our word for it, and the config's.

    Raises ConfigError for an unknown one.
    """
    name = c.get(*keys, default=default)
    if name not in ACTIVATION_NAMES:
        raise ConfigError(
            f"the config names the activation {name!r}; known are {', '.join(ACTIVATION_NAMES)}: "
            f"add it to twinlens/ops/mlp.py"
        )
    return ACTIVATION_NAMES[name], name


def rotary(c: Config, width: int, dtype: torch.dtype, theta: float = 10000.0) -> RotaryTable:
    """The rotary table of a config.

    In its old spelling (`rope_theta`, `rope_scaling`) or its new one (`rope_parameters`).
    Raises ConfigError for a scaling, or a number of one, that is not declared.
    """
    new, old = c.get("rope_parameters", default={}), c.get("rope_scaling", default={})
    said = {**old, **new}
    kind = said.get("rope_type", said.get("type", "default"))
    base = said.get("rope_theta", c.get("rope_theta", default=theta))
    table = RotaryTable(width=width, out=dtype, base=float(base))
    known = {"rope_type", "type", "rope_theta", *_SCALING.get(kind, {})}
    if kind not in _SCALING or set(said) - known:
        raise ConfigError(
            f"the config asks for rotary scaling {said!r}; known are {', '.join(_SCALING)} with "
            f"their own keys: "
            f"add it to twinlens/ops/rotary.py"
        )
    missing = [key for key in _SCALING[kind] if key not in said]
    if missing:
        raise ConfigError(f"the config asks for rotary scaling {kind!r} without {missing[0]!r}; add it to config.json")
    numbers = {ours: float(said[theirs]) for theirs, ours in _SCALING[kind].items()}
    return table if kind == "default" else table.replace(scaling=kind, **numbers)


_SCALING: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_position",
    },
}


def with_kernel(steps: Iterator[Step], kernel: str) -> Iterator[Step]:
    """The same rows with the attention kernel that was asked for."""
    for step in steps:
        if isinstance(step.op, Mix) and kernel == "sdpa":
            step = Step(step.writes, step.op.replace(kernel="sdpa"), step.reads, step.weights)
        yield step
