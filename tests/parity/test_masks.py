"""Masks that no field says: told by the keys that they hide or show, where scores are visible, and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import twinlens
from twinlens.museum.hands import layers
from twinlens.museum.tiny import ALL, random_tokens

Change = Callable[[Tensor], None]


def masked(model: Any, change: Change, of: list[int]) -> None:
    """Layers whose mask, true where a query may look, is changed."""
    for layer in of:
        attention = layers(model)[layer].self_attn
        plain = attention.forward

        def forward(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
            allowed = kwargs["attention_mask"] == 0
            change(allowed)
            least = torch.finfo(kwargs["attention_mask"].dtype).min
            filled = torch.zeros_like(kwargs["attention_mask"]).masked_fill(~allowed, least)
            return plain(*args, **kwargs | {"attention_mask": filled})

        attention.forward = forward


def without_the_first(allowed: Tensor) -> None:
    allowed[..., 2:, 0] = False


def both_ways_in_a_prefix(allowed: Tensor) -> None:
    allowed[..., :10, :10] = True


CHANGES = [
    (without_the_first, [1], "hidden: keys 0 of 76 queries"),
    (both_ways_in_a_prefix, [0, 1, 2], "seen: keys 1 to 9 of 18 queries"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("change", "of", "words"), CHANGES)
def test_a_mask_that_no_field_says(change: Change, of: list[int], words: str, dtype: torch.dtype) -> None:
    reference, candidate = (ALL["llama"]().to(dtype) for _ in range(2))
    masked(candidate, change, of)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    (cause,) = report.causes
    assert (cause.parameter, cause.layers, cause.candidate) == ("attn.mask", of, words)
    assert (cause.site, cause.status) == (f"blocks.{of[0]}.attn.hook_attn_scores", "proved")
    assert report.explained == "identical"
    assert report.fix(candidate).verdict == "identical"


def test_what_a_field_says_is_said_by_it() -> None:
    def documents(allowed: Tensor) -> None:
        allowed[..., 20:, :20] = False

    reference, candidate = ALL["llama"](), ALL["llama"]()
    masked(candidate, documents, [0, 1, 2])
    (cause,) = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3)).causes
    assert (cause.parameter, cause.candidate) == ("attn.chunk", 20)


def test_a_mask_besides_another_scale() -> None:
    reference, candidate = ALL["llama"](), ALL["llama"]()
    masked(candidate, without_the_first, [1])
    layers(candidate)[1].self_attn.scaling *= 1.1
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 2, 40, seed=3))
    assert {c.parameter for c in report.causes} == {"attn.mask", "attn.scale"}
    assert report.explained in ("identical", "rounding")
