"""Weights entry by entry: which differ, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product

import torch
from torch import Tensor

from twinlens import sites
from twinlens.ops import Add, Branch, Mix, Project, Rotate, Unembed
from twinlens.ops.base import LARGE
from twinlens.parity.changes import APART, ROUNDED, Use
from twinlens.parity.merged import Merged
from twinlens.spec import Spec, Step, Weight, Weights

_PART = 1 << 22
_FEW = 8
"""Of so many at most each two are tried together."""


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
    stored, others = ours.to(reference.dtype), dict.fromkeys([*same_kind(spec, name), *spec.weight_names])
    is_constant = bool((ours == ours.flatten()[:1]).all())  # zeros are every dropped bias's, and nobody's
    for other in others if not is_constant else ():
        if other != name and weights(other).shape == ours.shape and torch.equal(weights(other), stored):
            return _holds(other), other
    if ours.ndim == 2 and ours.shape[0] == ours.shape[1] and torch.equal(reference.T, ours):
        return "transposed", name
    return pattern(reference, ours), name


def _holds(other: str) -> str:
    """In words."""
    name, _, site = other.partition("@")
    return f"holds {name}" + (f" of {site}" if site else "")


def pattern(reference: Tensor, ours: Tensor) -> str:
    """How the entries of one differ from the other's, in words."""
    a, b = reference.detach(), ours.detach()
    differs = (a != b).reshape(a.shape[0], -1)
    rows = differs.any(1).nonzero().flatten().tolist()
    columns = differs.any(0).nonzero().flatten().tolist() if a.ndim == 2 else []
    place = _place("row" if a.ndim == 2 else "entry", rows, a.shape[0])
    if a.ndim == 2 and len(columns) < min(len(rows), a.shape[1]):
        place = _place("column", columns, a.shape[1])
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(x.to(dtype).to(y.dtype), y) for x, y in zip(_split(a), _split(b), strict=True)):
            return f"{ROUNDED}{str(dtype).removeprefix('torch.')}"
    mask = differs.reshape(a.shape)
    x, y = a[mask], b[mask]
    if len(x) == 1:
        return f"entry {mask.nonzero()[0].tolist()}: {float(y):.6g} for {float(x):.6g}"
    some = place
    if len(x) < min(a.numel(), len(rows) * a[0].numel(), len(columns or rows) * len(a)):
        some = f"{len(x)} entries in {place}"
    if not bool(y.any()):
        return f"{some}: zero"
    size, theirs = _total(torch.dot, x, x), _total(torch.dot, y, y)
    factor = _total(torch.dot, x, y) / max(size, 1e-300)
    if _total(lambda x, y: (y - factor * x).square().sum(), x, y) <= 1e-12 * theirs:
        return f"{some}: times {factor:.6g}"
    if a.numel() <= LARGE:  # sorting takes four times the memory
        if len(rows) > 1 and torch.equal(a[rows].sort(0).values, b[rows].sort(0).values):
            return f"{place}: permuted"
        if a.ndim == 2 and torch.equal(a.sort(1).values, b.sort(1).values):
            return f"{_place('column', columns, a.shape[1])}: permuted"
    share = (_total(lambda x, y: (y - x).square().sum(), x, y) / max(size, 1e-300)) ** 0.5
    return f"{place}: {int(mask.sum())} of {mask.numel()} entries, {APART}{share:.2g} of their size"


def _split(x: Tensor) -> Iterable[Tensor]:
    """Rows by rows, of a large tensor."""
    return x.split(max(LARGE // max(x[0].numel(), 1), 1)) if x.ndim else [x]


def _total(of: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """A sum over all entries in float64, of a part of them at a time."""
    return sum(float(of(a.double(), b.double())) for a, b in zip(x.split(_PART), y.split(_PART), strict=True))


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
            elif tensor.ndim == 1 and argument != "w" and step.op.does_without(argument):
                yield Use(step.writes, argument, None, weight.name, "missing")
                yield Use(step.writes, argument, torch.zeros_like(tensor), weight.name, "all zeros", weight.name)
            if argument == "w":
                for same, words in ((torch.ones_like(tensor), "all ones"), (torch.zeros_like(tensor), "all zeros")):
                    if not torch.equal(same, tensor):
                        yield Use(step.writes, argument, same, weight.name, words, weight.name)
            if argument == "W" and isinstance(step.op, Unembed):
                view = weight.view(tensor)
                yield instead(merged, step, argument, weight, view - view.mean(0))  # centred, as for a gauge
            if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
                yield Use(step.writes, argument, tensor.T, weight.name, "transposed", weight.name)
            for other in (*same_kind(spec, weight.name), *_outside(spec, step)):
                if other != weight.name and merged.weights(other).shape == tensor.shape:
                    yield Use(
                        step.writes,
                        argument,
                        merged.weights(other),
                        weight.name,
                        _holds(other),
                        other,
                    )


def _outside(spec: Spec, step: Step) -> list[str]:
    """Weights outside any layer, for a step that is outside: a head may hold the embedding."""
    if sites.split(step.writes)[0] is not None:
        return []
    return [w.name for s in spec.steps if sites.split(s.writes)[0] is None for _, w in s.weights]


def swapped(merged: Merged, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """Two weights of one shape in each other's place, within the step."""
    slots = [(s, a, w.name, merged.weights(w.name)) for s in merged.steps for a, w in s.weights if w.name not in known]
    for i, (s, a, name, x) in enumerate(slots):
        for t, b, other, y in slots[i + 1 :]:
            if a == b and x.shape == y.shape and name != other:
                yield (
                    Use(s.writes, a, y, name, _holds(other), other),
                    Use(t.writes, b, x, other, _holds(name), name),
                )


def pairs(merged: Merged) -> Iterator[tuple[Use, ...]]:
    """Rows of queries and keys in the order of the other rotary layout, as converters between checkpoints put them: of
    both; and of one, counted in its own heads or in the other's.
    """
    turned = {s.reads[0] for s in merged.steps if isinstance(s.op, Rotate)}
    products = {s: s.op.heads for s in merged.steps if s.writes in turned and isinstance(s.op, Project) and s.op.heads}
    for words in _LAYOUTS:
        if products:
            yield tuple(u for step, heads in products.items() for u in _reordered(merged, step, heads, words))
    for place in dict.fromkeys(sites.generic(s.writes) for s in products):
        here = [s for s in products if sites.generic(s.writes) == place]
        for heads, words in product(dict.fromkeys(products.values()), _LAYOUTS):
            made = tuple(u for step in here for u in _reordered(merged, step, heads, words))
            if made:
                yield made


_LAYOUTS = "half to interleaved", "interleaved to half"


def _reordered(merged: Merged, step: Step, heads: int, words: str) -> Iterator[Use]:
    """The step's weights with the rows of each of so many heads in another order."""
    for argument, weight in step.weights:
        view = weight.view(merged.weights(weight.name))
        if len(view) % (2 * heads):
            return
        half = len(view) // heads // 2
        by_head = view.unflatten(0, (heads, *((2, half) if words == _LAYOUTS[0] else (half, 2))))
        rows = by_head.transpose(1, 2).flatten(0, 2)
        stored = rows.mT if weight.transposed else rows
        yield Use(step.writes, argument, stored, weight.name, f"rows permuted, {words}", weight.name)


def exchanged(merged: Merged, spec: Spec, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """Every weight of the step from another layer."""
    slots = [(s, a, w.name, same_kind(spec, w.name)) for s in merged.steps for a, w in s.weights]
    slots = [row for row in slots if len(row[3]) > 1 and row[2] not in known]
    for i in range(max((len(names) for *_, names in slots), default=0)):
        others = [(s, a, name, names[i]) for s, a, name, names in slots if i < len(names) and names[i] != name]
        if others:
            yield tuple(Use(s.writes, a, merged.weights(o), name, _holds(o), o) for s, a, name, o in others)


def layers_exchanged(merged: Merged, spec: Spec, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """Each two layers with the weights of one another, where both lie in the step."""
    slots: dict[int, list[tuple[Step, str, str, list[str]]]] = {}
    for step in merged.steps:
        layer = sites.split(step.writes)[0]
        for argument, weight in step.weights:
            if layer is not None and weight.name not in known:
                slots.setdefault(layer, []).append((step, argument, weight.name, same_kind(spec, weight.name)))
    for a, b in combinations(sorted(slots), 2):
        names, others = ({name for _, _, name, _ in slots[at]} for at in (a, b))
        pairs = [
            (step, argument, name, other)
            for at, theirs in ((a, others), (b, names))
            for step, argument, name, alike in slots[at]
            for other in alike
            if other in theirs
        ]
        if len(pairs) == len(slots[a]) + len(slots[b]):
            yield tuple(Use(s.writes, g, merged.weights(o), name, _holds(o), o) for s, g, name, o in pairs)


def instead(merged: Merged, step: Step, argument: str, weight: Weight, view: Tensor) -> Use:
    """The checkpoint's tensor as it would be for a step to be given this."""
    stored = view.mT if weight.transposed else view
    return Use(step.writes, argument, stored, weight.name, pattern(merged.weights(weight.name), stored), weight.name)


def absent(merged: Merged, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """All that a step, and all that the whole, may do without, as where nobody loads any bias; and each two."""
    may = [
        Use(step.writes, argument, None, weight.name, "missing")
        for step in merged.steps
        for argument, weight in step.weights
        if weight.name not in known and step.op.does_without(argument)
    ]
    alone = [tuple(u for u in may if u.site == site) for site in dict.fromkeys(u.site for u in may)]
    yield from (uses for uses in dict.fromkeys([*alone, tuple(may), *combinations(may[:_FEW], 2)]) if len(uses) > 1)


def folded(merged: Merged, known: frozenset[str]) -> Iterator[tuple[Use, ...]]:
    """The values' bias within the output's: the same function only where the weights of a pattern add to one."""
    products = [s for s in merged.steps if isinstance(s.op, Project)]
    mixed = {(s.reads[1], s.writes) for s in merged.steps if isinstance(s.op, Mix)}
    for v, out in product(products, products):
        bias, weight, added = (dict(s.weights).get(a) for s, a in ((v, "b"), (out, "W"), (out, "b")))
        if (v.writes, out.reads[0]) not in mixed or bias is None or weight is None or bias.name in known:
            continue
        assert isinstance(v.op, Project)
        by_head = bias.view(merged.weights(bias.name)).double().unflatten(0, (v.op.heads, -1))
        w = weight.view(merged.weights(weight.name)).double()
        each = by_head.repeat_interleave(w.shape[1] // by_head.numel(), 0).flatten()
        name = added.name if added else weight.name.removesuffix("weight") + "bias"
        before = merged.weights(name) if added else torch.zeros_like(w[:, 0])
        ours = (before.double() + w @ each).to(merged.value.dtype)
        yield (
            Use(v.writes, "b", None, bias.name, "missing"),
            Use(out.writes, "b", ours, name, pattern(before, ours), name),
        )


def is_copy(step: Step) -> bool:
    """Whether a step only gives a site another name."""
    return isinstance(step.op, Add | Branch) and len(step.reads) == 1
