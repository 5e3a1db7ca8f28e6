"""Weights entry by entry: which differ, and how."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinlens import sites
from twinlens.ops import Add, Branch, Project, Unembed
from twinlens.parity.changes import Use
from twinlens.parity.merged import Merged
from twinlens.spec import Spec, Step, Weights


def seen(merged: Merged, spec: Spec, own: dict[str, Tensor]) -> list[Use]:
    """The weights of a merged step of which the candidate's own tensor is known to differ."""
    return [
        Use(
            step.writes,
            argument,
            own[weight.name],
            weight.name,
            *describe(spec, weight.name, own[weight.name], merged.weights),
        )
        for step in merged.steps
        for argument, weight in step.weights
        if weight.name in own
    ]


def describe(spec: Spec, name: str, ours: Tensor, weights: Weights) -> tuple[str, str]:
    """How a tensor differs from the reference's of that name, in words, and the name of the tensor that it is."""
    reference = weights(name)
    if ours.shape != reference.shape:
        return f"shape {tuple(ours.shape)} for {tuple(reference.shape)}", ""
    for other in same_kind(spec, name):
        if (
            other != name
            and weights(other).shape == ours.shape
            and torch.equal(weights(other), ours.to(reference.dtype))
        ):
            return f"holds {other}", other
    if ours.ndim == 2 and ours.shape[0] == ours.shape[1] and torch.equal(reference.T, ours):
        return "transposed", name
    for other in spec.weight_names:
        if (
            other != name
            and weights(other).shape == ours.shape
            and torch.equal(weights(other), ours.to(reference.dtype))
        ):
            return f"holds {other}", other
    return _pattern(reference, ours), name


def _pattern(reference: Tensor, ours: Tensor) -> str:
    a, b = reference.detach().double(), ours.detach().double()
    differs = (a != b).reshape(a.shape[0], -1)
    rows = differs.any(1).nonzero().flatten().tolist()
    columns = differs.any(0).nonzero().flatten().tolist() if a.ndim == 2 else []
    place = _place("row" if a.ndim == 2 else "entry", rows, a.shape[0])
    if a.ndim == 2 and len(columns) < len(rows):
        place = _place("column", columns, a.shape[1])
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(reference.to(dtype).to(ours.dtype), ours):
            return f"rounded to {str(dtype).removeprefix('torch.')}"
    mask = differs.reshape(a.shape)
    x, y = a[mask], b[mask]
    if not bool(y.any()):
        return f"{place}: zero"
    factor = float((x @ y) / (x @ x))
    if bool((y - factor * x).norm() <= 1e-6 * y.norm()):
        return f"{place}: times {factor:.6g}"
    if a.ndim == 2 and len(rows) > 1 and torch.equal(a[rows].sort(0).values, b[rows].sort(0).values):
        return f"{place}: permuted"
    share = float((y - x).norm() / x.norm().clamp_min(1e-300))
    return f"{place}: {int(mask.sum())} of {mask.numel()} entries, apart by {share:.2g} of their size"


def _place(axis: str, indices: list[int], length: int) -> str:
    if len(indices) == length:
        return f"all {axis}s" if axis != "entry" else "all entries"
    listed = ", ".join(map(str, indices[:4])) + (f" and {len(indices) - 4} more" if len(indices) > 4 else "")
    plural = axis if len(indices) == 1 else {"entry": "entries"}.get(axis, axis + "s")
    return f"{plural} {listed} of {length}"


def same_kind(spec: Spec, name: str) -> list[str]:
    """The same weight of every layer."""
    for step in spec.steps:
        for argument, weight in step.weights:
            if weight.name == name:
                generic = sites.generic(step.writes)
                return [
                    dict(s.weights)[argument].name
                    for s in spec.steps
                    if sites.generic(s.writes) == generic and argument in dict(s.weights)
                ]
    return [name]


def unseen(merged: Merged, spec: Spec, own: dict[str, Tensor], known: frozenset[str]) -> Iterator[Use]:
    """What may have become of weights that nobody saw: another layer's, transposed, a bias dropped."""
    for step in merged.steps:
        for argument, weight in step.weights:
            if weight.name in own or weight.name in known:
                if argument == "b":
                    yield Use(step.writes, "b", None, weight.name, "missing")
                continue
            tensor = merged.weights(weight.name)
            if argument == "b":
                yield Use(step.writes, "b", None, weight.name, "missing")
            if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
                yield Use(step.writes, argument, tensor.T, weight.name, "transposed", weight.name)
            for other in (*same_kind(spec, weight.name), *_outside(spec, step)):
                if other != weight.name and merged.weights(other).shape == tensor.shape:
                    yield Use(step.writes, argument, merged.weights(other), weight.name, f"holds {other}", other)


def _outside(spec: Spec, step: Step) -> list[str]:
    """Weights outside any layer, for a step that is outside: a head may hold the embedding."""
    if sites.split(step.writes)[0] is not None:
        return []
    return [w.name for s in spec.steps if sites.split(s.writes)[0] is None for _, w in s.weights]


def exchanged(merged: Merged, spec: Spec) -> Iterator[tuple[Use, ...]]:
    """Every weight of the step from another layer."""
    slots = [(s, a, w.name, same_kind(spec, w.name)) for s in merged.steps for a, w in s.weights]
    slots = [row for row in slots if len(row[3]) > 1]
    for i in range(max((len(names) for *_, names in slots), default=0)):
        others = [(s, a, name, names[i]) for s, a, name, names in slots if i < len(names) and names[i] != name]
        if others:
            yield tuple(Use(s.writes, a, merged.weights(o), name, f"holds {o}", o) for s, a, name, o in others)


def whole(merged: Merged, step: Step, mask: Tensor) -> Iterator[Use]:
    """The weight that maps what the step read to what it gave, where more rows were seen than it has columns."""
    arguments = dict(step.weights)
    weight = merged.weights(arguments["W"].name)
    x = merged.sites[step.reads[0]].flatten(2)[mask.bool()].double()
    y = merged.value.flatten(2)[mask.bool()].double()
    if len(x) < 1.2 * x.shape[1] or x.shape[1] > 1024 or not isinstance(step.op, Project):
        return
    b = merged.weights(arguments["b"].name).double() if "b" in arguments else 0.0
    solution = torch.linalg.lstsq(x, y - b).solution
    if float((x @ solution + b - y).norm()) > 1e-4 * float(y.norm()):
        return
    view = arguments["W"].view(weight).clone()
    rows = (solution.T - view.double()).norm(dim=1) > 1e-3 * view.double().norm(dim=1)
    view[rows] = _snapped(solution.T[rows], weight.double().flatten()).to(view.dtype)
    stored = view.T if arguments["W"].transposed else view
    yield Use(step.writes, "W", stored, arguments["W"].name, _pattern(weight, stored), arguments["W"].name)


def _snapped(found: Tensor, known: Tensor) -> Tensor:
    """Entries that were moved from elsewhere in the weight, to the bit."""
    ordered = known.sort().values
    at = torch.searchsorted(ordered, found).clamp(1, len(ordered) - 1)
    low, high = ordered[at - 1], ordered[at]
    near = torch.where((found - low).abs() < (high - found).abs(), low, high)
    return torch.where((near - found).abs() <= 1e-5 * found.abs().clamp_min(1e-8), near, found)


def is_copy(step: Step) -> bool:
    """Whether a step only gives a site another name."""
    return isinstance(step.op, Add | Branch) and len(step.reads) == 1


def solved(
    merged: Merged, step: Step, native: Tensor, mask: Tensor, known: frozenset[str]
) -> Iterator[tuple[Use, ...]]:
    """Rows of the last product's weight that are scaled, and a bias that is added, read off the error itself."""
    if not isinstance(step.op, Project | Unembed):
        return
    if len(merged.steps) == 1 and dict(step.weights)["W"].name not in known:
        yield from ((use,) for use in whole(merged, step, mask))
    y, n = merged.value.flatten(2)[mask.bool()].double(), native.flatten(2)[mask.bool()].double()
    error = y - n
    name = dict(step.weights)["W"].name
    bias = error.mean(0)
    if "b" not in dict(step.weights) and bool((error - bias).norm() < 0.05 * error.norm()):
        yield (Use(step.writes, "b", bias.to(merged.value.dtype), name.removesuffix("weight") + "bias", "added"),)
    if "b" in dict(step.weights):
        offset = merged.weights(dict(step.weights)["b"].name).double()
        y, n = y - offset, n - offset
    factor = (y * n).sum(0) / n.square().sum(0).clamp_min(1e-300)
    left = (y - factor * n).square().sum(0)
    rows = ((factor - 1).abs() > 1e-4) & (left < 0.01 * error.square().sum(0))
    common = bool(rows.all()) and float(factor.std()) <= 1e-5 * float(factor.mean().abs())  # a number's, not a weight's
    if bool(rows.any()) and not common and name not in known:
        weight = merged.weights(name)
        view = dict(step.weights)["W"].view(weight).clone()
        view[rows] = (view[rows].double() * factor[rows, None]).to(view.dtype)
        stored = view.T if dict(step.weights)["W"].transposed else view
        yield (Use(step.writes, "W", stored, name, _pattern(weight, stored), name),)
