"""How far two recordings of one prompt are apart, in the figures that are usually published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.parity.rounding import difference, equal
from twinlens.recording import Recording
from twinlens.sites import block
from twinlens.spec import Spec

Sites = Mapping[str, Tensor]


@dataclass(frozen=True)
class Apart:
    """Absolute differences, and the sites that are not equal bit for bit."""

    logits_max: float
    logits_mean: float
    residual_max: float
    residual_mean: float
    unequal: tuple[str, ...]
    sites: int

    @property
    def first(self) -> str:
        """The first unequal site in the order of execution."""
        return self.unequal[0] if self.unequal else "–"


@dataclass(frozen=True)
class Spread:
    """What a tensor's entries look like."""

    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, tensor: Tensor) -> Spread:
        """In float64."""
        x = tensor.double()
        return cls(float(x.mean()), float(x.std()), float(x.min()), float(x.max()))


@dataclass(frozen=True)
class Predictions:
    """How the two differ in what they predict."""

    top1: float
    """Share of tokens with the same best next token."""
    kl_mean: float
    kl_max: float
    """Kullback-Leibler divergence of a token's next-token distribution, in nats."""


def apart(spec: Spec, a: Sites, b: Sites, mask: Tensor) -> Apart:
    """Over all sites that both show."""
    common = [s for s in spec.sites if s in a and s in b]
    unequal = tuple(s for s in common if not equal(s, a[s], b[s], mask))
    logits = _distance("logits", a, b)
    residual = _distance(block(spec.shape.layers - 1, "hook_resid_post"), a, b)
    return Apart(*logits, *residual, unequal, len(common))


def _distance(site: str, a: Sites, b: Sites) -> tuple[float, float]:
    error = difference(site, a[site], b[site]).abs()
    return float(error.max()), float(error.mean())


def growth(spec: Spec, a: Recording, b: Recording) -> list[float]:
    """By layer: the residual stream's difference as a share of its size, in the mean square."""
    found: list[float] = []
    for layer in range(spec.shape.layers):
        site = block(layer, "hook_resid_post")
        error = difference(site, a.sites[site], b.sites[site])
        found.append(float(error.norm() / a.sites[site].double().norm()))
    return found


def predictions(a: Recording, b: Recording) -> Predictions:
    """Of the reference `a` and the candidate `b`, from their logits in float64."""
    x, y = (r.sites["logits"].double() for r in (a, b))
    top1 = float((x.argmax(-1) == y.argmax(-1)).double().mean())
    p, q = x.log_softmax(-1), y.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return Predictions(top1, float(kl.mean()), float(kl.max()))


def scores_spread(spec: Spec, a: Recording) -> Spread | None:
    """Of the first layer's scores where a query may look; None where the kernel hides them."""
    site = block(0, "attn.hook_attn_scores")
    if site not in a.sites:
        return None
    scores = a.sites[site]
    return Spread.of(scores[scores > torch.finfo(scores.dtype).min / 2])
