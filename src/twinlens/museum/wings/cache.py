"""A model's own key/value cache: positions, precision, windows, chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import called, during, modeling

WING = Wing("cache and decoding")
exhibit = WING.exhibit
ALL3 = (0, 1, 2)
DECODING = (36, 1, 1, 1, 1)
CHUNKS = (20, 12, 8)


def past(given: dict[str, Any]) -> int:
    """Slots that earlier calls filled."""
    cache = given.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _at(ids: Tensor, first: int) -> dict[str, Any]:
    return {"position_ids": (torch.arange(ids.shape[1]) + first)[None].expand_as(ids)}


@exhibit(
    "decode-position-off-by-one",
    "llama",
    Want("cache.position", layers=None),
    calls=DECODING,
    source="vllm-project/vllm-metal#144",
)
def _(m: Model) -> None:
    """After the prefill, positions are one too large."""
    called(m, lambda ids, given: _at(ids, past(given) + 1) if past(given) else {})


@exhibit(
    "eviction-offset-is-row-count",
    "qwen3",
    Want("cache.position", layers=None),
    calls=DECODING,
    source="rajveer43/VeloxQuant-MLX#138; rajveer43/VeloxQuant-MLX#389",
)
def _(m: Model) -> None:
    """After the prefill, positions are three too small."""
    called(m, lambda ids, given: _at(ids, past(given) - 3) if past(given) else {})


@exhibit(
    "prefix-restore-offset-zero",
    "llama",
    Want("cache.position", layers=None),
    calls=CHUNKS,
    source="vllm-project/vllm-metal#144",
)
def _(m: Model) -> None:
    """What follows a cached prefix starts again at position 0."""
    called(m, lambda ids, given: _at(ids, 0) if past(given) else {})


@exhibit(
    "learned-positions-restart-in-decoding",
    "gpt2",
    Want(("cache.position", "positions.offset"), layers=None),
    calls=DECODING,
    source="vllm-project/vllm-metal#144",
    like="prefix-restore-offset-zero",
)
def _(m: Model) -> None:
    """Decoded tokens have the position of the first."""
    called(m, lambda ids, given: _at(ids, 0) if past(given) else {})


def _stored(m: Model, change: Any) -> None:
    from transformers.cache_utils import DynamicLayer

    plain = DynamicLayer.update

    def update(self: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *change(key, value), *args, **kwargs)

    during(m, DynamicLayer, update=update)


@exhibit(
    "kv-fp8-default",
    "llama",
    Want("cache.dtype", layers=ALL3),
    calls=DECODING,
    source="vllm-project/vllm#27121; vllm-project/vllm#5493",
)
def _(m: Model) -> None:
    """Keys and values are stored as float8 with a scale of 1."""
    _stored(m, lambda k, v: tuple(t.to(torch.float8_e4m3fn).to(t.dtype) for t in (k, v)))


@exhibit(
    "kv-cache-half-precision",
    "qwen2",
    Want("cache.dtype", layers=ALL3),
    calls=DECODING,
    build={"dtype": torch.float32, "use_sliding_window": False},
    source="vllm-project/vllm#27121; vllm-project/vllm#5493",
    like="kv-fp8-default",
)
def _(m: Model) -> None:
    """Keys and values of a float32 model are stored as float16."""
    _stored(m, lambda k, v: tuple(t.half().to(t.dtype) for t in (k, v)))


@exhibit(
    "cached-key-rotated-twice",
    "llama",
    Want("cache.rotation", layers=ALL3),
    calls=CHUNKS,
    source="rajveer43/VeloxQuant-MLX#138",
)
def _(m: Model) -> None:
    """Keys that come from the cache are rotated once more."""
    from transformers.models.llama.modeling_llama import eager_attention_forward, rotate_half

    def again(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        old = key.shape[2] - query.shape[2]
        angles = torch.arange(key.shape[2])[:, None].float() * m.model.rotary_emb.inv_freq
        cos, sin = (torch.cat((t, t), -1).to(key.dtype) for t in (angles.cos(), angles.sin()))
        twice = key * cos + rotate_half(key) * sin
        key = torch.cat((twice[:, :, :old], key[:, :, old:]), 2)
        return eager_attention_forward(module, query, key, *args, **kwargs)

    modeling(m, eager_attention_forward=again)


@exhibit(
    "chunked-prefill-loses-prefix",
    "llama",
    Want(("cache.prefix", "attn.mask"), layers=ALL3),
    calls=CHUNKS,
    source="tenstorrent/vllm#415; tanishqkumar/ssd#23",
)
def _(m: Model) -> None:
    """A later chunk does not attend to what the cache holds."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def alone(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        n = query.shape[2]
        mask = None if attention_mask is None else attention_mask[..., -n:]
        return eager_attention_forward(module, query, key[:, :, -n:], value[:, :, -n:], mask, **kwargs)

    modeling(m, eager_attention_forward=alone)


@exhibit(
    "cache-evicts-too-early",
    "mistral",
    Want(("cache.window", "attn.window"), layers=ALL3),
    calls=DECODING,
    source="huggingface/transformers#37574",
)
def _(m: Model) -> None:
    """While decoding, keys older than four are gone, where the window is eight."""
    from transformers.models.mistral.modeling_mistral import eager_attention_forward

    def short(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        if query.shape[2] == 1:
            key, value = key[:, :, -4:], value[:, :, -4:]
            attention_mask = None if attention_mask is None else attention_mask[..., -4:]
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    modeling(m, eager_attention_forward=short)


@exhibit(
    "scale-wrong-in-decoding-only",
    "llama",
    Want("attn.scale", layers=ALL3),
    calls=DECODING,
    source="vllm-project/vllm-metal#144",
    like="decode-position-off-by-one",
)
def _(m: Model) -> None:
    """The kernel for one token has a scale of its own."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def other(module: Any, query: Tensor, *args: Any, scaling: float, **kwargs: Any) -> Any:
        if query.shape[2] == 1:
            scaling = 0.25
        return eager_attention_forward(module, query, *args, scaling=scaling, **kwargs)

    modeling(m, eager_attention_forward=other)


@exhibit(
    "longrope-stale-cache-at-switch",
    "phi3",
    Want(("cache.rotation", "rotary.scaling"), layers=None),
    calls=(14, 6, 4),
    build={"rope": "longrope", "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16},
    length=24,
    source="huggingface/transformers#33129; microsoft/onnxruntime-genai#1161",
)
def _(m: Model) -> None:
    """Frequencies stay those of the prefill when the length crosses the trained one."""
    from twinlens.museum.hands import rope_again

    rope_again(m, long_factor=m.config.rope_parameters["short_factor"])


@exhibit(
    "decoding-against-itself",
    "smollm3",
    calls=DECODING,
    source="Thinking Machines, Defeating Nondeterminism in LLM Inference (2025)",
    like="batch-invariance",
)
def _(m: Model) -> None:
    """Nothing is changed; prefill and decoding are compared apart."""
