"""Rounding that is carried through many steps of 16 bits: as large as it is, and no larger."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import twinlens
from twinlens.museum import named
from twinlens.museum.hands import act, attentions, during
from twinlens.museum.tiny import ALL, EAGER_ONLY, random_tokens
from twinlens.museum.visit import compared, misses, shown
from twinlens.parity.merged import Merged, merge
from twinlens.parity.meter import Meter
from twinlens.parity.rounding import Ratio
from twinlens.parity.score import Scorer
from twinlens.parity.sides import Side
from twinlens.subjects import agreed, say_nothing, subject

BF16 = torch.bfloat16
Change = Callable[[Any], None]


def in_parts(model: Any) -> None:
    """Every product as the sum of two, each of which is stored."""

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        y = F.linear(x[..., :half], self.weight[:, :half]) + F.linear(x[..., half:], self.weight[:, half:])
        return y if self.bias is None else y + self.bias

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = MethodType(linear, module)


def other_kernel(model: Any) -> None:
    model.set_attn_implementation("sdpa")


def wider(model: Any) -> None:
    for a in attentions(model):
        a.scaling *= 1.25


def next_best(model: Any) -> None:
    """A router takes the next best in the place of the last of those that it should take."""
    topk = torch.topk

    def passing(x: Tensor, k: int, dim: int = -1, **_: Any) -> tuple[Tensor, Tensor]:
        values, at = topk(x, k + 1, dim=dim)
        return tuple(torch.cat((t[..., : k - 1], t[..., k:]), -1) for t in (values, at))  # type: ignore[return-value]

    during(model, torch, topk=passing)


def pair(family: str, change: Change, seed: int) -> tuple[Any, Any]:
    model: Any = ALL[family](seed, dtype=BF16)
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return model, other


def scored(model: Any, seen: twinlens.Recording) -> Iterator[tuple[Merged, Scorer]]:
    """The merged steps of a candidate of which this is seen."""
    native, device = twinlens.load(model), torch.device("cpu")
    for m in merge(native.spec, Side.of(seen, native.spec, device).sites, native.weight, Meter(1.0)):
        yield m, Scorer(m, native.spec)


def from_logits(family: str, change: Change, seed: int = 0) -> Ratio:
    """How far logits alone are from what the model says."""
    model, other = pair(family, change, seed)
    tokens = random_tokens(model, 2, 40, seed)
    ((_, scorer),) = scored(model, logits_of(other, tokens))
    return scorer.base.ratio


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> twinlens.Recording:
    return twinlens.Recording.from_tensors({"logits": model(tokens).logits}, tokens=tokens)


AFAR = ("glm4", "llama", "gpt2", "cohere2", "granite", "qwen3_moe", "mixtral", "gpt_oss")


@pytest.mark.parametrize("family", AFAR)
def test_what_16_bits_do_to_logits_is_rounding(family: str) -> None:
    assert from_logits(family, in_parts).is_rounding
    if family not in EAGER_ONLY:
        assert from_logits(family, other_kernel).is_rounding


@pytest.mark.parametrize("family", AFAR)
def test_and_several_times_as_much_is_none(family: str) -> None:
    """A formula that has a rounding for each term of a sum makes ten times as much of it."""
    assert not from_logits(family, wider).is_rounding


def test_another_activation_is_named_from_logits() -> None:
    reference, candidate = pair("glm4", lambda m: act(m, F.relu), 0)
    report = twinlens.compare(reference, candidate, tokens=random_tokens(reference, 1, 24), sites="logits")
    assert report.verdict == "different"
    assert [(c.parameter, c.candidate, c.status) for c in report.causes] == [("mlp.act", "relu", "proved")]


def choices(family: str, change: Change) -> Iterator[tuple[Merged, Scorer]]:
    """The routers, of whose scores nothing is seen."""
    model, other = pair(family, change, 2)
    tokens, side = random_tokens(model, 2, 100, 2), subject(other)
    (call,) = side.record(agreed(subject(model), side), tokens, None, say_nothing, None).calls
    kept = ("hook_resid_pre", "router.hook_indices", "hook_resid_post")
    sites = {site: x for site, x in call.sites.items() if site.endswith(kept)}
    seen = shown(twinlens.Recording([dataclasses.replace(call, sites=sites)]), "all")
    yield from ((m, scorer) for m, scorer in scored(model, seen) if m.steps[-1].op.chooses)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_another_expert_is_rounding_where_the_scores_are_that_near(family: str) -> None:
    seen = list(choices(family, in_parts))
    assert sum(int((m.value != scorer.native).any(-1).sum()) for m, scorer in seen) > 0
    assert all(scorer.base.ratio.is_rounding for _, scorer in seen)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_and_nowhere_else(family: str) -> None:
    seen = list(choices(family, next_best))
    assert seen
    assert not any(scorer.base.ratio.is_rounding for _, scorer in seen)


@pytest.mark.parametrize("name", ["router-top-k-off-by-one", "qwen3moe-top-k-from-default"])
def test_one_expert_more_or_less_is_no_flip(name: str) -> None:
    assert misses(named(name), compared(named(name), dtype="bfloat16")[1]) == []
