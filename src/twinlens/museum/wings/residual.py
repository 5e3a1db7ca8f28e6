"""The residual stream and the structure of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import layers, method

WING = Wing("residual and blocks")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)


@exhibit(
    "granite-residual-multiplier-ignored",
    "granite",
    Want("residual.scale", 0.37, 1.0, ALL3),
    source="OpenNMT/CTranslate2#1882",
)
def _(m: Model) -> None:
    """Granite's residual multiplier is not read."""
    for x in layers(m):
        x.residual_multiplier = 1.0


@exhibit(
    "minicpm-scale-depth-ignored", "llama", Want("residual.scale", 1.0, 0.2214, ALL3), source="ggml-org/llama.cpp#5276"
)
def _(m: Model) -> None:
    """A factor of MiniCPM on what each sublayer adds, which one side has and the other not."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states + 0.2214 * self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return h + 0.2214 * self.mlp(self.post_attention_layernorm(h))

    for x in layers(m):
        method(x, forward)


@exhibit(
    "neox-parallel-as-sequential",
    "gpt_neox",
    Want("block.parallel", layers=ALL3),
    source="elixir-nx/bumblebee#204; lablup/mlxcel#928",
)
def _(m: Model) -> None:
    """Attention and MLP in sequence, where they stand beside one another."""
    for x in layers(m):
        x.use_parallel_residual = False


@exhibit(
    "falcon-parallel-as-sequential",
    "falcon",
    Want("block.parallel", layers=ALL3),
    source="NVIDIA/TransformerEngine#625",
)
def _(m: Model) -> None:
    """Falcon's MLP reads the state after attention, through the shared norm."""

    def forward(self: Any, hidden_states: Tensor, alibi: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        h = hidden_states
        given = {
            k: kwargs.get(k)
            for k in ("position_ids", "layer_past", "use_cache", "output_attentions", "position_embeddings")
        }
        out = self.self_attention(self.input_layernorm(h), attention_mask=attention_mask, alibi=alibi, **given)
        h = h + out[0]
        return h + self.mlp(self.input_layernorm(h)), out[1]

    for x in layers(m):
        method(x, forward)


@exhibit(
    "cohere-parallel-as-sequential",
    "cohere2",
    Want("block.parallel", layers=ALL4),
    source="Lightning-AI/litgpt#1089; ggml-org/llama.cpp#6033",
)
def _(m: Model) -> None:
    """Cohere's block in sequence, with its one norm."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return h + self.mlp(self.input_layernorm(h))

    for x in layers(m):
        method(x, forward)


@exhibit(
    "llama-in-parallel",
    "llama",
    Want("block.parallel", layers=ALL3),
    source="elixir-nx/bumblebee#204; lablup/mlxcel#928",
    like="neox-parallel-as-sequential",
)
def _(m: Model) -> None:
    """Llama's MLP reads the state before attention."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states
        a = self.self_attn(hidden_states=self.input_layernorm(h), **kwargs)[0]
        return (h + a) + self.mlp(self.post_attention_layernorm(h))

    for x in layers(m):
        method(x, forward)


@exhibit(
    "residual-stream-fp32-in-bf16-model",
    "llama",
    Want("residual.dtype", layers=None),
    build={"dtype": torch.bfloat16},
    source="vllm-project/vllm-omni#6878",
)
def _(m: Model) -> None:
    """The residual stream is float32 in a bfloat16 model."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        h = hidden_states.float()
        h = h + self.self_attn(hidden_states=self.input_layernorm(h).bfloat16(), **kwargs)[0].float()
        return h + self.mlp(self.post_attention_layernorm(h).bfloat16()).float()

    for x in layers(m):
        method(x, forward)
    norm = m.model.norm
    plain = norm.forward
    norm.forward = lambda x: plain(x.bfloat16())


@exhibit("layer-weights-swapped", "llama", Want("weight", layers=(1, 2)), source="general")
def _(m: Model) -> None:
    """Two layers have each other's weights."""
    m.model.layers[1], m.model.layers[2] = m.model.layers[2], m.model.layers[1]


@exhibit(
    "layer-weights-swapped-qwen3",
    "qwen3",
    Want("weight", layers=(0, 2)),
    source="general",
    like="layer-weights-swapped",
)
def _(m: Model) -> None:
    """First and last layer have each other's weights."""
    m.model.layers[0], m.model.layers[2] = m.model.layers[2], m.model.layers[0]
