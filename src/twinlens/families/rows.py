"""Rows outside the layers that families share, and what their configs say alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twinlens.errors import ConfigError
from twinlens.families.block import Block, Norm
from twinlens.families.config import Config
from twinlens.ops import Embed, Mix, PositionEmbed, RotaryTable, Select, Unembed
from twinlens.spec import Shape, Step, Weight


def llama_shape(
    c: Config, head_width: int | None = None, kv_heads: int | None = None, experts: int | None = None
) -> Shape:
    """Sizes that the weights fix, under the names that most configs use.

    `head_width`, `kv_heads` and `experts` are those of a family's class where the config says nothing.
    """
    heads, width = c.get("num_attention_heads"), c.get("hidden_size")
    c.ignore("rotary positions have no table", "max_position_embeddings")
    return Shape(
        layers=c.get("num_hidden_layers"),
        d_model=width,
        heads=heads,
        kv_heads=c.optional("num_key_value_heads", kv_heads, like=1) or heads,
        head_width=c.get("head_dim", default=head_width or width // heads),
        vocabulary=c.get("vocab_size"),
        mlp_width=c.get("intermediate_size", default=None, like=1),
        experts=experts and c.get("num_local_experts", "num_experts", "n_routed_experts", default=experts),
    )


def blocks(shape: Shape, name: str) -> Iterator[Block]:
    """The layers, whose weights are named NAME.0, NAME.1 and so on."""
    for layer in range(shape.layers):
        yield Block(layer, f"{name}.{layer}", shape)


def embed(name: str, op: Embed | None = None) -> Step:
    """`hook_embed`."""
    return Step("hook_embed", op or Embed(), ("tokens",), (("W", Weight(f"{name}.weight")),))


def learned_positions(name: str, op: PositionEmbed | None = None) -> Step:
    """`hook_pos_embed`."""
    return Step("hook_pos_embed", op or PositionEmbed(), ("positions",), (("W", Weight(f"{name}.weight")),))


def rotary_tables(table: RotaryTable, under: str = "rotary") -> Iterator[Step]:
    """`rotary.hook_cos` and `rotary.hook_sin`."""
    reads = ("positions", "positions") if table.scaling in ("dynamic", "longrope") else ("positions",)
    for wave in ("cos", "sin"):
        yield Step(f"{under}.hook_{wave}", table.replace(wave=wave), reads)


def unembed(
    c: Config, embedding: str, *, tied: bool, op: Unembed | None = None, reads: str = "ln_final.hook_out"
) -> Step:  # fmt: skip
    """The logits; `tied` where the config does not say whether they use the embedding's weight."""
    name = embedding if c.get("tie_word_embeddings", default=tied) else "lm_head"
    return Step("logits", op or Unembed(), (reads,), (("W", Weight(f"{name}.weight")),))


SANDWICH = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
"""Gemma's norms: one before and one after attention, and as many around the MLP."""


def windows(
    c: Config, layers: int, default: tuple[str, ...], width: int | None, *, on: bool = True
) -> list[int | None]:
    """The window of each layer: where `layer_types`, or a pattern that repeats, says that it slides.

    `width` is what it is where the config does not say; `on` whether the config uses any at all.
    """
    width = c.optional("sliding_window", width, like=1)
    return [width if on and kind == "sliding_attention" else None for kind in layer_types(c, layers, default)]


def upper_windows(c: Config, layers: int) -> list[int | None]:
    """Qwen's: from layer `max_window_layers` on, if `use_sliding_window` says so."""
    on, first = c.get("use_sliding_window", default=False), c.get("max_window_layers", default=28)
    kinds = tuple("sliding_attention" if on and i >= first else "full_attention" for i in range(layers))
    return windows(c, layers, kinds, 4096, on=on)


def layer_types(c: Config, layers: int, default: tuple[str, ...]) -> list[str]:
    """For each layer "sliding_attention" or "full_attention".

    Raises ConfigError for another kind of attention, or for more or fewer layers.
    """
    kinds = c.get("layer_types", default=[default[i % len(default)] for i in range(layers)])
    known = {"sliding_attention", "full_attention"}
    if len(kinds) != layers or not set(kinds) <= known:
        raise ConfigError(
            f"the config says layer_types={kinds!r}; {c.family} is declared for {layers} layers, each of them one of "
            f"{', '.join(sorted(known))}"
        )
    return kinds


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
    """The activation that a config names: our word for it, and the formula in which transformers computes it.

    Raises ConfigError for an unknown one.
    """
    name = c.get(*keys, default=default)
    if name not in ACTIVATION_NAMES:
        raise ConfigError(
            f"the config names the activation {name!r}; known are {', '.join(ACTIVATION_NAMES)}: "
            f"add it to twinlens/ops/mlp.py"
        )
    return ACTIVATION_NAMES[name], "plain" if name == "gelu_new" else "kernel"


def select(c: Config, shape: Shape, top_k: int, **fields: Any) -> Select:
    """How a config says that experts are chosen; `top_k` of them where it does not say how many.

    Raises ConfigError for more than there are, and for groups that are not of one size.
    """
    op, experts = Select(c.get("num_experts_per_tok", default=top_k), **fields), shape.experts or 0
    among = experts // op.groups * op.top_groups
    if experts % op.groups or not 0 < op.top_groups <= op.groups or not 0 < op.top_k <= among:
        raise ConfigError(
            f"the config asks for {op.top_k} of {experts} experts, from {op.top_groups} of {op.groups} groups; there "
            "are not as many: correct num_experts_per_tok, n_group and topk_group in config.json"
        )
    return op


EXPERT_KERNELS = {"eager": "loop", "grouped_mm": "grouped", "batched_mm": "rows"}
"""What transformers calls the ways to run experts."""


def expert_kernel(c: Config) -> str:
    """The way in which a model says that it runs its experts; where it does not, that of transformers.

    Raises ConfigError for one that has no counterpart here.
    """
    name = c.get("_experts_implementation", default="grouped_mm")
    if name not in EXPERT_KERNELS:
        raise ConfigError(f"the model runs its experts by {name!r}; known are {', '.join(EXPERT_KERNELS)}: choose one")
    return EXPERT_KERNELS[name]


def with_kernel(steps: Iterator[Step], kernel: str) -> Iterator[Step]:
    """The same rows with the attention kernel that was asked for."""
    for step in steps:
        if isinstance(step.op, Mix) and kernel == "sdpa":
            step = Step(step.writes, step.op.replace(kernel="sdpa"), step.reads, step.weights)
        yield step


__all__ = ["Block", "Norm"]
