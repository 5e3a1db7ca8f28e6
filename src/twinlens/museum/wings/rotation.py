"""Rotary positions, as they are applied: width, layout, rows of queries and keys, precision, layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import (
    attentions,
    file_of,
    frequencies,
    interleaved,
    layers,
    method,
    modeling,
    rope_again,
    tables,
)

WING = Wing("rotation")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
FLOAT32 = {"dtype": torch.float32}


@exhibit(
    "partial-rotary-full-width",
    "glm4",
    Want("rotary.dim", 8, 16),
    source="ml-explore/mlx-lm#1698; vllm-project/vllm#16912; InternLM/lmdeploy#3861",
)
def _(m: Model) -> None:
    """All of a head is rotated, where half should be."""
    rope_again(m, partial_rotary_factor=1.0)


@exhibit(
    "neox-rotary-pct-ignored",
    "gpt_neox",
    Want("rotary.dim", 6, 12),
    source="lablup/mlxcel#928; huggingface/transformers#48630",
)
def _(m: Model) -> None:
    """GPT-NeoX's rotary_pct is not read."""
    rope_again(m, partial_rotary_factor=1.0)


@exhibit("phi-partial-rotary-ignored", "phi3", Want("rotary.dim", 6, 12), source="vllm-project/vllm#17266")
def _(m: Model) -> None:
    """Phi's partial_rotary_factor is not read."""
    rope_again(m, partial_rotary_factor=1.0)


def _half(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Halves, from tables that hold each angle twice in a row or all angles twice."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turn(x: Tensor) -> Tensor:
        width = cos.shape[-1]
        each = (cos[..., ::2], sin[..., ::2]) if bool((cos[..., 0] == cos[..., 1]).all()) else (
            cos[..., : width // 2], sin[..., : width // 2]
        )  # fmt: skip
        c, s = (torch.cat((t, t), -1) for t in each)
        y, rest = x[..., :width], x[..., width:]
        other = torch.cat((-y[..., width // 2 :], y[..., : width // 2]), -1)
        return torch.cat((y * c + other * s, rest), -1).to(x.dtype)

    return turn(q), turn(k)


@exhibit(
    "cohere-half-for-interleaved",
    "cohere2",
    Want("rotary.layout", "interleaved", "half"),
    source="linkedin/Liger-Kernel#248; ggml-org/llama.cpp#6033; Lightning-AI/litgpt#1089",
)
def _(m: Model) -> None:
    """Cohere rotates neighbours, the port halves."""
    modeling(m, apply_rotary_pos_emb=_half)


@exhibit(
    "glm-half-for-interleaved",
    "glm4",
    Want("rotary.layout", "interleaved", "half", ALL3),
    source="Blaizzy/mlx-vlm#481; ModelTC/LightLLM#103; huggingface/transformers#34629",
)
def _(m: Model) -> None:
    """GLM rotates neighbours, the port halves."""
    modeling(m, apply_rotary_pos_emb=_half)


@exhibit(
    "llama-interleaved-for-half",
    "llama",
    Want("rotary.layout", "half", "interleaved", ALL3),
    source="ml-explore/mlx-examples#1145",
)
def _(m: Model) -> None:
    """GPT-J's rotation for Llama's."""
    modeling(m, apply_rotary_pos_emb=interleaved)


@exhibit(
    "qwen3-interleaved-for-half",
    "qwen3",
    Want("rotary.layout", "half", "interleaved", ALL3),
    source="ml-explore/mlx-examples#1145",
    like="llama-interleaved-for-half",
)
def _(m: Model) -> None:
    """GPT-J's rotation in a family with norms of queries and keys."""
    modeling(m, apply_rotary_pos_emb=interleaved)


def _permuted(w: Tensor, heads: int) -> None:
    width = w.shape[0] // heads
    w.copy_(w.view(heads, 2, width // 2, -1).transpose(1, 2).reshape(w.shape).clone())


@exhibit(
    "gguf-qk-permutation-left-in",
    "llama",
    Want("weight", layers=ALL3),
    source="mattn/tensai#37; JustVugg/colibri#1425; ggml-org/llama.cpp#15852",
)
def _(m: Model) -> None:
    """Rows of queries and keys stand as the other layout wants them."""
    for a in attentions(m):
        _permuted(a.q_proj.weight, 4)
        _permuted(a.k_proj.weight, 2)


@exhibit(
    "gguf-k-permuted-with-query-head-count",
    "llama",
    Want("weight", layers=ALL3),
    source="huggingface/transformers#31788",
)
def _(m: Model) -> None:
    """The keys' permutation is undone with the number of query heads."""
    for a in attentions(m):
        _permuted(a.k_proj.weight, 4)


@exhibit("qk-permutation-plus-interleaved-rotation", "llama", source="ggml-org/llama.cpp#2398")
def _(m: Model) -> None:
    """Permuted rows and the other layout: the same function."""
    for a in attentions(m):
        _permuted(a.q_proj.weight, 4)
        _permuted(a.k_proj.weight, 2)
    modeling(m, apply_rotary_pos_emb=interleaved)


@exhibit("nope-layer-qk-permutation-invisible", "smollm3", source="mattn/tensai#57")
def _(m: Model) -> None:
    """Rows permuted in a layer that does not rotate."""
    a = attentions(m)[1]
    _permuted(a.q_proj.weight, 4)
    _permuted(a.k_proj.weight, 2)


@exhibit(
    "smollm3-rope-on-nope-layers",
    "smollm3",
    Want("rotary.layers", layers=(1,)),
    source="timtoole02/Camelid#535; airockchip/rknn-llm#501",
)
def _(m: Model) -> None:
    """Layers without rotary positions rotate."""
    for a in attentions(m):
        a.use_rope = True


@exhibit(
    "smollm3-nope-flag-read-inverted",
    "smollm3",
    Want("rotary.layers", layers=ALL3),
    source="huggingface/transformers#43756; huggingface/smollm#130",
)
def _(m: Model) -> None:
    """The flag is read the other way round."""
    for a in attentions(m):
        a.use_rope = not a.use_rope


@exhibit(
    "cohere2-rope-on-global-layers",
    "cohere2",
    Want("rotary.layers", layers=(3,)),
    source="TransformerLensOrg/TransformerLens#1485; magicnight/Mac-MLX#88",
)
def _(m: Model) -> None:
    """Cohere's global layers rotate, though they should not."""
    plain = file_of(m).apply_rotary_pos_emb
    a = attentions(m)[3]
    forward = a.forward

    def turned(*args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        q, k = a.q_proj, a.k_proj

        def rotated(product: Any) -> Any:
            def after(x: Tensor) -> Tensor:
                y = product(x)
                z = y.view(*y.shape[:-1], -1, a.head_dim).transpose(1, 2)
                return plain(z, z, cos, sin)[0].transpose(1, 2).reshape(y.shape)

            return after

        object.__setattr__(a, "museum", True)
        modules = a._modules
        modules["q_proj"], modules["k_proj"] = _Lambda(rotated(q)), _Lambda(rotated(k))
        try:
            return forward(*args, position_embeddings=position_embeddings, **kwargs)
        finally:
            modules["q_proj"], modules["k_proj"] = q, k

    a.forward = turned


class _Lambda(torch.nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


@exhibit(
    "model-to-bf16-casts-inv-freq",
    "llama",
    Want("rotary.dtype", layers=()),
    build={"dtype": torch.bfloat16},
    source="huggingface/transformers#25681; NVIDIA/Megatron-LM#744",
)
def _(m: Model) -> None:
    """`model.to(bfloat16)` casts the frequencies too."""
    m.to(torch.bfloat16)


@exhibit(
    "rope-inv-freq-bf16",
    "mistral",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="huggingface/transformers#29496",
)
def _(m: Model) -> None:
    """Frequencies in bfloat16 in a float32 model."""
    frequencies(m, lambda f: f.bfloat16().float())


@exhibit(
    "rope-angles-bf16",
    "llama",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003; huggingface/transformers#29285",
)
def _(m: Model) -> None:
    """Angles in bfloat16."""
    method(m.model.rotary_emb, tables(lambda p, f: (p * f).bfloat16().float()))


@exhibit(
    "rope-angles-bf16-gpt-neox",
    "gpt_neox",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003; huggingface/transformers#29285",
    like="rope-angles-bf16",
)
def _(m: Model) -> None:
    """Angles in bfloat16, of a part of the width."""
    method(m.gpt_neox.rotary_emb, tables(lambda p, f: (p * f).bfloat16().float()))


@exhibit(
    "rope-cos-sin-bf16-in-fp32-model",
    "llama",
    Want("rotary.dtype", layers=()),
    build=FLOAT32,
    source="EleutherAI/gpt-neox#1003",
)
def _(m: Model) -> None:
    """cos and sin in bfloat16 in a float32 model."""
    method(m.model.rotary_emb, tables(table=lambda t: t.bfloat16().float()))


@exhibit("benign-rope-angles-float64", "llama", source="TransformerLensOrg/TransformerLens#693")
def _(m: Model) -> None:
    """Angles in float64."""
    method(m.model.rotary_emb, tables(lambda p, f: p.double() * f.double()))


@exhibit(
    "layer-that-does-not-rotate",
    "llama",
    Want("rotary.layers", layers=(1,)),
    source="huggingface/transformers#43756; huggingface/smollm#130",
    like="smollm3-nope-flag-read-inverted",
)
def _(m: Model) -> None:
    """A flag of another family switches the rotation of a layer off."""
    a = layers(m)[1].self_attn
    forward = a.forward

    def still(*args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        return forward(*args, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **kwargs)

    a.forward = still
