"""Experts in another order than the rows of their router, told by what each token was given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinlens.parity.changes import Use
from twinlens.parity.merged import Merged
from twinlens.parity.weighing import instead
from twinlens.spec import Step

_MOST = 16
"""Of so many experts at most: what is solved for is the square of their number."""
_PLAIN = 0.01
"""An order is one and zeros, but for this."""


def shuffled(
    merged: Merged, step: Step, value: Tensor, mask: Tensor
) -> Iterator[tuple[Use, ...]]:  # fmt: skip
    """The order in which the experts would have given `value` [n d], one row for each real token of `mask` [b p].

    What a token is given is linear in which expert stands in which place: y = \u03a3 P[i, j] s_i f_j(x), with the share
    s_i that the router gives place i and what expert j makes of x; P is solved for by least squares.
    """
    seen, real = {**merged.sites, **merged.plain()}, mask.bool()
    x, chosen, shares = (seen[r][real] for r in step.reads)
    views = {a: w.view(merged.weights(w.name)) for a, w in step.weights}
    count = len(next(iter(views.values())))
    if count > _MOST:
        return
    share = torch.zeros(len(x), count, dtype=torch.float64, device=x.device).scatter_add(1, chosen, shares.double())
    one, op = torch.ones_like(chosen[:, :1], dtype=torch.float64)[None], step.op.exact()
    wide = {a: v.double() for a, v in views.items()}
    made = torch.stack(
        [op(x.double()[None], torch.full_like(chosen[None, :, :1], j), one, **wide)[0] for j in range(count)]
    )
    like = torch.einsum("ite,jte->tij", made, made)
    gram = torch.einsum("ta,tb,tij->aibj", share, share, like).reshape(count**2, count**2)
    given = torch.einsum("ta,ite,te->ai", share, made, value).reshape(-1, 1)
    found = torch.linalg.lstsq(gram, given, driver="gelsd").solution.view(count, count)
    order = _order(found, share.sum(0) > 0)
    if order is not None and order != list(range(count)):
        yield tuple(instead(merged, step, a, w, views[a][order]) for a, w in step.weights)


def _order(found: Tensor, used: Tensor) -> list[int] | None:
    """Which expert stands in each place; where none was called for, one of those that are left."""
    at = found.argmax(1)
    plain = torch.nn.functional.one_hot(at, len(found)).to(found)
    if bool((found - plain)[used].abs().max() > _PLAIN) or len(at[used].unique()) < int(used.sum()):
        return None
    left = [j for j in range(len(found)) if j not in at[used].tolist()]
    return [int(j) if called else left.pop(0) for j, called in zip(at.tolist(), used.tolist(), strict=True)]
