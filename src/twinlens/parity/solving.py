"""Weights that nobody saw, read off the error of the step that uses them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinlens.ops import Add, Embed, Experts, Normalize, NormWeight, PositionEmbed, Project, Unembed
from twinlens.parity.changes import Feed, Use
from twinlens.parity.merged import Merged
from twinlens.parity.shuffled import shuffled
from twinlens.parity.weighing import instead, is_copy
from twinlens.spec import Step, stored_name

_MOVED = 1e-4
"""A row whose factor is nearer to 1 is the reference's: rounding moves it by less."""
_SAME = 1e-4
"""Rows gave the same where the squares of their difference are this part of theirs."""
_ROWS = 8192
"""As many rows are held against each other at once; where more have moved, all are another function's."""
_KNOWN = 1e-5
"""How far a factor that was read off may be from the one that it is."""


def solved(merged: Merged, native: Tensor, mask: Tensor, known: frozenset[str]) -> Iterator[tuple[Use | Feed, ...]]:
    """What may have become of the last product's weight and bias, and of tables that ids are looked up in."""
    steps = [s for s in merged.steps if not is_copy(s)]
    yield from _other_ids(merged, native, mask)
    yield from _looked_up(merged, native, mask, known)
    value, given = merged.value.double(), native.double()
    while steps and (added := _added(merged, steps[-1])) is not None and value.shape == given.shape:
        rest, factor = added
        value, given, steps = (value - rest) / factor, (given - rest) / factor, steps[:-1]
    if not steps:
        return
    norms = 0
    while norms < len(steps) - 1 and isinstance(steps[-1 - norms].op, Normalize | NormWeight):
        norms += 1
    step = steps[-1 - norms]
    if not isinstance(step.op, Project | Unembed | Experts):
        return
    y, n = (x.flatten(2)[mask.bool()] for x in (value, given))
    if y.shape != n.shape:
        return
    if isinstance(step.op, Experts):
        if not norms and known.isdisjoint(w.name for _, w in step.weights):
            yield from shuffled(merged, step, y, mask)
        return
    name = dict(step.weights)["W"].name
    if norms:
        if name not in known and all(s.op.scales_rows for s in steps[-norms:] if isinstance(s.op, Normalize)):
            yield from _behind_norm(merged, step, y, n)
        return
    if name not in known:
        yield from _permuted(merged, step, y, n)
        yield from whole(merged, step, y, mask)
    yield from _bias(merged, step, step.op.undone(y) - step.op.undone(n))
    if name not in known:
        yield from _rows(merged, step, y, n)


def _added(merged: Merged, step: Step) -> tuple[Tensor, float] | None:
    """What is seen of a sum of which one term is hidden, and that term's factor."""
    if not isinstance(step.op, Add):
        return None
    inner = {s.writes for s in merged.steps}
    hidden = [i for i, read in enumerate(step.reads) if read in inner]
    if len(hidden) != 1 or len(step.reads) == 1:
        return None
    factors = [1.0, *[step.op.factor] * (len(step.reads) - 1)]
    terms = [
        f * merged.sites[r].double() for i, (r, f) in enumerate(zip(step.reads, factors, strict=True)) if i != hidden[0]
    ]
    return sum(terms[1:], terms[0]), factors[hidden[0]]


def _bias(merged: Merged, step: Step, error: Tensor) -> Iterator[tuple[Use, ...]]:
    """A bias that is added where there is none."""
    bias = error.mean(0)
    if "b" not in dict(step.weights) and bool((error - bias).norm() < 0.05 * error.norm()):
        name = stored_name(dict(step.weights)["W"].name).removesuffix("weight") + "bias"
        yield (Use(step.writes, "b", bias.to(merged.value.dtype), name, "added"),)


def _rows(merged: Merged, step: Step, y: Tensor, n: Tensor) -> Iterator[tuple[Use, ...]]:
    """Rows that are scaled."""
    error = y - n
    if "b" in dict(step.weights):
        offset = merged.weights(dict(step.weights)["b"].name).double()
        y, n = y - offset, n - offset
    factor = (y * n).sum(0) / n.square().sum(0).clamp_min(1e-300)
    left = (y - factor * n).square().sum(0)
    rows = ((factor - 1).abs() > _MOVED) & (left < 0.01 * error.square().sum(0))
    yield from _scaled(merged, step, rows, factor)


def _behind_norm(merged: Merged, step: Step, y: Tensor, n: Tensor) -> Iterator[tuple[Use, ...]]:
    """Rows that are scaled before a root mean square norm: it divides all of a position by one number more."""
    if "b" in dict(step.weights):
        return
    ratio = torch.where(n.abs() > 1e-3 * n.abs().mean(), y / n, torch.nan)
    factor = (ratio / ratio.nanmedian(1, keepdim=True).values).nanmedian(0).values.nan_to_num(1.0)
    rows = (factor - 1).abs() > _MOVED
    if int(rows.sum()) <= len(rows) // 4:  # else the median is none of what is left alone
        yield from _scaled(merged, step, rows, factor)


def _scaled(merged: Merged, step: Step, rows: Tensor, factor: Tensor) -> Iterator[tuple[Use, ...]]:
    common = bool(rows.all()) and float(factor.std()) <= _KNOWN * float(factor.mean().abs())
    if common or not bool(rows.any()):  # one factor of all rows is a number's, not a weight's
        return
    plain = (factor * 1000).round() / 1000
    factor = torch.where((factor - plain).abs() < _KNOWN, plain, factor)
    weight = dict(step.weights)["W"]
    view = weight.view(merged.weights(weight.name)).clone()
    view[rows] = (view[rows].double() * factor[rows, None]).to(view.dtype)
    yield (instead(merged, step, "W", weight, view),)


def _permuted(merged: Merged, step: Step, y: Tensor, n: Tensor) -> Iterator[tuple[Use, ...]]:
    """Rows in another order, each of them found again by what it gave."""
    size, apart = n.square().sum(0), (y - n).square().sum(0)
    moved = (apart >= _SAME * size).nonzero()[:, 0]
    if not 1 < len(moved) <= _ROWS:
        return
    y, n, size = y[:, moved], n[:, moved], size[moved]
    at = (y.square().sum(0)[:, None] + size[None] - 2.0 * y.T @ n).argmin(1)
    found = (y - n[:, at]).square().sum(0) < _SAME * size[at]
    if not bool(found.all()) or len(at.unique()) < len(at):
        return
    order = torch.arange(len(apart), device=at.device)
    order[moved] = moved[at]
    yield tuple(instead(merged, step, a, w, w.view(merged.weights(w.name))[order]) for a, w in step.weights)


def whole(merged: Merged, step: Step, value: Tensor, mask: Tensor) -> Iterator[tuple[Use, ...]]:
    """The weight that maps what the step read to what it gave, where more rows were seen than it has columns.

    What it read is computed where it is hidden. A weight before it could do the same to all rows, so that the
    product's are then only a few rows, or such as have the weight's own entries in other places.
    """
    arguments = dict(step.weights)
    weight = merged.weights(arguments["W"].name)
    read = step.reads[0]
    hidden = read not in merged.reads
    x = (merged.plain()[read] if hidden else merged.sites[read]).flatten(2)[mask.bool()].double()
    y = step.op.undone(value)
    if len(x) < 1.2 * x.shape[1] or x.shape[1] > 1024 or not bool(torch.isfinite(y).all()):
        return
    b = merged.weights(arguments["b"].name).double() if "b" in arguments else 0.0
    solution = torch.linalg.lstsq(x, y - b).solution
    view = arguments["W"].view(weight).clone()
    rows = (solution.T - view.double()).norm(dim=1) > 1e-3 * view.double().norm(dim=1)
    left = (x @ solution + b - y).norm(dim=0) > 1e-4 * y.norm(dim=0)
    if bool(left[rows].any()) or not bool(rows.any()):
        return
    turned = _turned(solution.T[rows], view[rows].double())
    if turned is None and hidden and int(rows.sum()) > len(rows) // 4:
        return
    ours = _snapped(solution.T[rows], weight.double().flatten()) if turned is None else turned
    view[rows] = ours.to(view.dtype)
    yield (instead(merged, step, "W", arguments["W"], view),)


def _other_ids(merged: Merged, native: Tensor, mask: Tensor) -> Iterator[tuple[Feed, ...]]:
    """Rows that a lookup gives for another id than it was given."""
    step, real = merged.steps[-1], mask.bool()
    if step.reads != ("tokens",) or native.shape != merged.value.shape:
        return
    ids = merged.sites["tokens"]
    far = real & ((merged.value.double() - native.double()).norm(dim=-1) > _MOVED * native.double().norm(dim=-1))
    if not bool(far.any()):
        return
    weight = dict(step.weights)["W"]
    got, arguments = merged.value[far].double(), step.arguments(merged.weights)
    apart, found = torch.full((len(got),), torch.inf, dtype=got.dtype, device=ids.device), ids.new_zeros(len(got))
    for some in torch.arange(len(merged.weights(weight.name)), device=ids.device).split(_ROWS):
        nearest = torch.cdist(got, step.op(some[None], **arguments)[0].double()).min(1)
        found = torch.where(nearest.values < apart, some[nearest.indices], found)
        apart = torch.minimum(apart, nearest.values)
    rows = step.op(found[None], **arguments)[0].double()
    if bool(((rows - got).norm(dim=1) > _KNOWN * got.norm(dim=1)).any()):
        return
    b, p = far.nonzero()[0].tolist()
    ours = ids.masked_scatter(far, found)
    words = f"at {[b, p]} {int(ours[b, p])} for {int(ids[b, p])}, {int(far.sum())} of {int(real.sum())} ids"
    yield (Feed(step.writes, "tokens", ours, words),)


def _looked_up(merged: Merged, native: Tensor, mask: Tensor, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """Rows of a table: each error is the same wherever an id stands, and most ids have none."""
    real = mask.bool()
    if native.shape != merged.value.shape or native.ndim != 3:
        return
    error = (merged.value.double() - native.double())[real]
    far = error.norm(dim=1) > _MOVED * native.double()[real].norm(dim=1)
    for step in merged.steps:
        weight = dict(step.weights).get("W")
        if weight is None or weight.name in known or not isinstance(step.op, Embed | PositionEmbed):
            continue
        table = merged.weights(weight.name)
        ids = merged.sites[step.reads[0]][real]
        if isinstance(step.op, PositionEmbed):
            ids = (ids + step.op.offset).clamp(0, len(table) - 1)
        if error.shape[1:] == table.shape[1:] and int(far.sum()) > len(far) // 2:
            yield from _scaled_columns(merged, step, (merged.value.double()[real], native.double()[real]))
        wrong = ids[far].unique()
        if table.ndim != 2 or error.shape[1] != table.shape[1] or not 0 < len(wrong) <= len(ids.unique()) // 2:
            continue
        factor = step.op(merged.sites[step.reads[0]], torch.ones_like(table[:, :1]))[real][:1].double()
        ours = table.clone()
        for i in wrong.tolist():
            ours[i] = (table[i].double() + error[ids == i].mean(0) / factor[0]).to(table.dtype)
        yield (instead(merged, step, "W", weight, weight.view(ours)),)


def _scaled_columns(merged: Merged, step: Step, both: tuple[Tensor, Tensor]) -> Iterator[tuple[Use, ...]]:
    """A table whose every row was multiplied by one vector, as where a norm is folded into what shares the table."""
    y, n = both
    factor = (y * n).sum(0) / n.square().sum(0).clamp_min(1e-300)
    if bool((y - factor * n).norm() < _SAME * y.norm()) and float(factor.std()) > _KNOWN * float(factor.mean().abs()):
        weight = dict(step.weights)["W"]
        table = merged.weights(weight.name)
        yield (instead(merged, step, "W", weight, weight.view((table.double() * factor).to(table.dtype))),)


def _turned(found: Tensor, known: Tensor) -> Tensor | None:
    """The same rows with their entries in another order, to the bit; None where they are not."""
    ordered, order = known.sort(1).values, found.argsort(1)
    apart = (found.gather(1, order) - ordered).abs().max()
    if float(apart) > _KNOWN * float(known.square().mean().sqrt()):
        return None
    return torch.empty_like(known).scatter(1, order, ordered)


def _snapped(found: Tensor, known: Tensor) -> Tensor:
    """Rows of which every entry was moved from elsewhere in the weight, to the bit."""
    ordered = known.sort().values
    at = torch.searchsorted(ordered, found.contiguous()).clamp(1, len(ordered) - 1)
    low, high = ordered[at - 1], ordered[at]
    near = torch.where((found - low).abs() < (high - found).abs(), low, high)
    same = (near - found).abs() <= 1e-5 * found.abs().clamp_min(1e-8)
    return torch.where(same.all(1, keepdim=True), near, found)  # one entry is like some other by chance
