"""Masks, windows, padding, packing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import attention, diagonal, file_of, modeling, unmasked

WING = Wing("masks and windows")
exhibit = WING.exhibit
ALL3, ALL4 = (0, 1, 2), (0, 1, 2, 3)
LOWEST = torch.finfo(torch.float32).min


@exhibit(
    "gemma2-local-global-swapped",
    "gemma2",
    Want("attn.window", 8, None, (0, 2)),
    Want("attn.window", None, 8, (1, 3)),
    source="TransformerLensOrg/TransformerLens#778; huggingface/transformers#31775",
)
def _(m: Model) -> None:
    """Local and global layers are exchanged."""
    m.config.layer_types = m.config.layer_types[::-1]


@exhibit("gemma2-window-dropped", "gemma2", Want("attn.window", 8, None, (0, 2)), source="vllm-project/vllm#5908")
def _(m: Model) -> None:
    """All layers are global."""
    m.config.layer_types = ["full_attention"] * 4


@exhibit(
    "gemma4-consecutive-global-layers",
    "gemma2",
    Want("attn.window", 8, None, (2,)),
    source="NVIDIA-NeMo/Megatron-Bridge#5441",
)
def _(m: Model) -> None:
    """The pattern of local and global layers is off in one layer."""
    m.config.layer_types = ["sliding_attention", "full_attention", "full_attention", "full_attention"]


@exhibit(
    "sdpa-without-window",
    "mistral",
    Want("attn.window", 8, None, ALL3),
    source="huggingface/transformers#28980; hiyouga/LlamaFactory#7063",
)
def _(m: Model) -> None:
    """A kernel that knows no window."""
    m.config.sliding_window = None


@exhibit(
    "qwen2-use-sliding-window-ignored",
    "starcoder2",
    Want("attn.window", 8, None, ALL3),
    source="InternLM/lmdeploy#3614; vllm-project/vllm#17772",
)
def _(m: Model) -> None:
    """The flag that a window is used is not read."""
    m.config.sliding_window = None


@exhibit(
    "window-off-by-one",
    "mistral",
    Want("attn.window", 8, 9, ALL3),
    source="vllm-project/vllm#3385; huggingface/transformers#29623",
)
def _(m: Model) -> None:
    """The window counts the token itself, or not."""
    m.config.sliding_window = 9


@exhibit(
    "window-one-narrower-gpt-oss",
    "gpt_oss",
    Want("attn.window", 8, 7, (0, 2)),
    source="vllm-project/vllm#3385; huggingface/transformers#29623",
    like="window-off-by-one",
)
def _(m: Model) -> None:
    """The window is one token narrower."""
    m.config.sliding_window = 7


@exhibit(
    "qwen2-window-layers-inverted",
    "qwen2",
    Want("attn.window", None, 8, (0,)),
    Want("attn.window", 8, None, (1, 2)),
    source="huggingface/transformers#35896; huggingface/transformers#36162",
)
def _(m: Model) -> None:
    """The bottom layers have the window, where the top ones should."""
    swap = {"sliding_attention": "full_attention", "full_attention": "sliding_attention"}
    m.config.layer_types = [swap[kind] for kind in m.config.layer_types]


@exhibit(
    "gemma3-window-dropped",
    "gemma3_text",
    Want("attn.window", 8, None, (0, 2)),
    source="vllm-project/vllm#5908",
    like="gemma2-window-dropped",
)
def _(m: Model) -> None:
    """Gemma 3's local layers see everything, with the local base."""
    modeling(m, create_sliding_window_causal_mask=file_of(m).create_causal_mask)


@exhibit(
    "causal-mask-missing", "llama", Want("attn.mask", "causal", "none", ALL3), source="facebookresearch/xformers#103"
)
def _(m: Model) -> None:
    """Tokens see those that follow."""
    modeling(m, eager_attention_forward=attention(hide=lambda s, mask: s))


@exhibit(
    "causal-mask-missing-gpt2",
    "gpt2",
    Want("attn.mask", "causal", "none", ALL3),
    source="facebookresearch/xformers#103",
    like="causal-mask-missing",
)
def _(m: Model) -> None:
    """Tokens see those that follow, with learned positions."""
    modeling(m, eager_attention_forward=attention(hide=lambda s, mask: s))


@exhibit(
    "mask-diagonal-off-by-one",
    "qwen2",
    Want("attn.mask", "causal", "ahead"),
    build={"use_sliding_window": False},
    source="facebookresearch/xformers#103",
    like="causal-mask-missing",
)
def _(m: Model) -> None:
    """Each token sees the one that follows."""
    diagonal(m, 2)


@exhibit(
    "finite-mask-reached-by-real-scores",
    "gpt_neox",
    Want("attn.mask", layers=ALL3),
    source="TransformerLensOrg/TransformerLens#385",
)
def _(m: Model) -> None:
    """Masked scores are a number that real scores can reach."""

    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return s if mask is None else s.masked_fill(mask < 0, -4.0)

    modeling(m, eager_attention_forward=attention(hide=hide))


@exhibit(
    "padding-mask-dropped-left",
    "llama",
    Want("attn.mask", "masked", "ignored", ALL3),
    padded=True,
    source="turboderp-org/exllamav2#606",
)
def _(m: Model) -> None:
    """The padding on the left is attended."""
    unmasked(m)


@exhibit(
    "padding-mask-dropped-left-qwen3",
    "qwen3",
    Want("attn.mask", "masked", "ignored", ALL3),
    padded=True,
    source="turboderp-org/exllamav2#606",
    like="padding-mask-dropped-left",
)
def _(m: Model) -> None:
    """The same in a family with norms of queries and keys."""
    unmasked(m)


@exhibit(
    "packed-sequences-attend-each-other",
    "llama",
    Want(("attn.segments", "attn.mask", "attn.chunk"), layers=ALL3),  # of texts of one length, chunks are the same
    source="huggingface/transformers#46634; huggingface/transformers#39194",
)
def _(m: Model) -> None:
    """Two texts in one row: one side keeps them apart, the other not."""

    def mask(inputs_embeds: Tensor, **_: Any) -> Tensor:
        length = inputs_embeds.shape[1]
        hidden = torch.full((length, length), LOWEST).triu(1)
        hidden[20:, :20] = LOWEST
        return hidden[None, None].to(inputs_embeds.dtype)

    modeling(m, create_causal_mask=mask)


@exhibit(
    "llama4-chunk-as-sliding-window",
    "mistral",
    Want(("attn.chunk", "attn.window"), layers=ALL3),
    source="flashinfer-ai/flashinfer#1004",
)
def _(m: Model) -> None:
    """Chunks of eight tokens where the other has a window of eight."""

    def mask(inputs_embeds: Tensor, **_: Any) -> Tensor:
        at = torch.arange(inputs_embeds.shape[1])
        seen = (at[:, None] >= at) & (at[:, None] // 8 == at // 8)
        return torch.zeros(seen.shape).masked_fill(~seen, LOWEST)[None, None].to(inputs_embeds.dtype)

    modeling(m, create_sliding_window_causal_mask=mask)


@exhibit(
    "masked-with-minus-infinity",
    "llama",
    source="pytorch/pytorch#103749; pytorch/pytorch#110213; unslothai/unsloth#9848",
    like="fully-masked-rows-nan",
)
def _(m: Model) -> None:
    """Minus infinity for the lowest number."""

    def hide(s: Tensor, mask: Tensor | None) -> Tensor:
        return s if mask is None else s.masked_fill(mask < 0, float("-inf"))

    modeling(m, eager_attention_forward=attention(hide=hide))
