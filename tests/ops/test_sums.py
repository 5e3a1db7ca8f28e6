"""What a sum is off by, in whatever order: the scale holds where one term is far larger than all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twinlens.ops import Mix, Project, Scores
from twinlens.parity.rounding import WIDE

U = torch.finfo(torch.float32).eps / 2
TERMS = 64


def running(terms: Tensor) -> Tensor:
    """One float32 accumulator over the last axis."""
    total = torch.zeros(terms.shape[:-1])
    for term in terms.unbind(-1):
        total = total + term
    return total


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("largest", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("place", [0, TERMS // 2, TERMS - 1])
def test_a_running_sum_is_rounding_wherever_its_largest_term_stands(largest: float, place: int) -> None:
    x, W = draw(1, 200, TERMS), draw(48, TERMS, seed=1)
    x[..., place] *= largest
    exact = Project()(x.double(), W.double())
    error = (running(x[..., None, :] * W).double() - exact).square()
    scale = (U * Project().magnitude(x.double(), W.double())).square()
    for axis in (1, 2):
        assert bool((error.mean(axis) <= WIDE**2 * scale.mean(axis)).all())


def test_a_pattern_that_looks_at_one_key_is_rounding_in_any_order_of_keys() -> None:
    pattern = torch.softmax(12.0 * draw(1, 4, 200, TERMS), -1)
    v = draw(1, TERMS, 4, 16, seed=1)
    terms = pattern[..., None, :] * v.permute(0, 2, 3, 1)[:, :, None]
    scale = (U * Mix().magnitude(pattern.double(), v.double())).square()
    exact = Mix()(pattern.double(), v.double())
    for order in (terms, terms.flip(-1), terms.sort(-1).values):
        error = (running(order).transpose(1, 2).double() - exact).square()
        assert bool((error.mean(-1) <= WIDE**2 * scale.mean(-1)).all())


def test_the_scale_is_at_least_that_of_higham() -> None:
    x, W, b = (t.double() for t in (draw(2, 9, TERMS), draw(48, TERMS, seed=1), draw(48, seed=2)))
    assert bool((Project().magnitude(x, W, b) >= x.abs() @ W.abs().T + b.abs() - 1e-12).all())
    q, k = draw(1, 9, 4, 16).double(), draw(1, 9, 2, 16, seed=1).double()
    mask, slots = torch.ones(1, 9, dtype=torch.long), torch.arange(9)
    plain = q.abs().transpose(1, 2) @ k.abs().repeat_interleave(2, 2).permute(0, 2, 3, 1) / 4.0
    seen = Scores(4.0).allowed(mask, slots).expand_as(plain)
    assert bool((Scores(4.0).magnitude(q, k, mask, slots) >= plain - 1e-12)[seen].all())


def test_what_has_no_weight_adds_no_rounding() -> None:
    pattern, v = torch.zeros(1, 1, 1, TERMS).double(), draw(1, TERMS, 1, 4).double()
    pattern[..., 5] = 1.0
    assert torch.allclose(Mix().magnitude(pattern, v)[0, 0, 0], v[0, 5, 0].abs())
