"""What a run made of a tensor that its step gives: read off the two, where no field of the step says it.

A factor, a bound, a lower precision, another order of heads or positions, an activation or a norm that nobody declared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from twinlens.ops import Activate, Clipped, Normalize, Op, Rounded, Scaled, Taken
from twinlens.ops.mlp import ACTIVATION_NAMES
from twinlens.parity.branches import with_reads
from twinlens.parity.changes import Variant, slot
from twinlens.parity.closed_form import closed_form
from twinlens.parity.grouping import plain
from twinlens.parity.rebuilt import AGAIN, Rebuilt, then
from twinlens.parity.score import NEARLY, Found, Scorer
from twinlens.sites import axes, split
from twinlens.spec import Spec, Step

_NORMS = {
    "attn.hook_q": "attn.q_norm", "attn.hook_k": "attn.k_norm", "attn.hook_out": "ln1_post",
    "hook_attn_out": "ln1_post", "mlp.hook_out": "ln2_post", "hook_mlp_out": "ln2_post",
}  # fmt: skip
"""Norms of what a site holds, by how its name ends."""
_EPS = (1e-6, 1e-5, 0.0)
"""Of norms that a checkpoint knows nothing of, besides its others'."""
_ALONG = {"h": "head", "k": "key/value head", "p": "position", "d": "channel", "m": "channel", "e": "channel"}
_PARTS = {
    "rotary": "rotary", "hook_embed": "embed", "logits": "unembed", "mlp.router": "router", "mlp": "mlp",
    "attn": "attn", "ln1_post": "residual", "ln2_post": "residual", "ln": "norm",
}  # fmt: skip
"""The part of the model that a site belongs to, by how its name begins; the rest is the residual stream."""
_COARSER = (torch.bfloat16, torch.float16)
"""Precisions to which a tensor may be rounded on its way."""
_WIDEST = 4096
"""So many slices at most are held against each other."""
_SIGMAS = 4.0
"""How far a factor may be from the one that was fitted, in standard errors."""
_FEW = 4
"""So many indices at most are told one by one."""


@dataclasses.dataclass(frozen=True)
class Relation:
    """One operation more, and how it is told."""

    op: Op
    what: str
    """The word after the part of the model that the site belongs to."""
    was: Any
    value: Any
    words: str = ""
    """What it does, where the value alone does not say it."""
    interval: tuple[float, float] | None = None
    name: str = ""


def related(scorer: Scorer, spec: Spec) -> Found | None:
    """The operation that makes of the declared value what the run has, or of what the step reads what it read; None
    where there is none.
    """
    merged = scorer.merged
    site, step = merged.target, merged.steps[-1]
    x, y = scorer.native, merged.value
    if axes(site)[:2] != ("b", "p") or x.shape != y.shape or not (x.is_floating_point() and y.is_floating_point()):
        return None
    real = merged.sites["mask"].bool()
    before = (y - x)[real].double().norm()
    for relation in _relations(site, x, y, real, spec):
        after = (y - relation.op(x))[real].double().norm()
        if after <= NEARLY * before and (found := _judged(scorer, _change(site, step, relation), relation)) is not None:
            return found
    seen = {r: merged.sites[r].dtype for r in step.reads if r in merged.sites and merged.sites[r].is_floating_point()}
    coarser = (_read_in(site, step, read, seen[read], dtype) for read in seen for dtype in _COARSER)
    return next((found for change in coarser if (found := _judged(scorer, change)) is not None), None)


def _judged(scorer: Scorer, change: Rebuilt, relation: Relation | None = None) -> Found | None:
    variant = Variant((change,))
    score = scorer.tried(variant)
    if not scorer.is_explained(score):
        return None
    interval, name = (relation.interval, relation.name) if relation is not None else (None, "")
    return Found(variant, score, {slot(change): interval} if interval else {}, {slot(change): name} if name else {})


def _read_in(site: str, step: Step, read: str, was: torch.dtype, dtype: torch.dtype) -> Rebuilt:
    """The step reads a tensor that was rounded to a lower precision on its way."""
    narrow, given = f"{read}{AGAIN}", plain(dtype)
    row = dataclasses.replace(step, reads=with_reads(step.reads, {read: narrow}))
    rows = Step(narrow, Rounded(given), (read,)), row
    words = f"{split(read)[1]} is read in {given}"
    return Rebuilt(site, rows, f"{_part(site)}.dtype", site, plain(was), given, words)


def _change(site: str, step: Step, relation: Relation) -> Rebuilt:
    word, enters = f"{_part(site)}.{relation.what}", site
    if isinstance(relation.op, Normalize):
        word, enters = "norm.missing", normed_at(site)
    words = f"{split(site)[1]} is what the step gives, {relation.words or relation.value}"
    return Rebuilt(site, then(step, relation.op), word, enters, relation.was, relation.value, words)


def _part(site: str) -> str:
    return next((part for start, part in _PARTS.items() if split(site)[1].startswith(start)), "residual")


def _relations(site: str, x: Tensor, y: Tensor, real: Tensor, spec: Spec) -> Iterator[Relation]:
    """What the operation may be, simplest first."""
    yield from _scaled(site, x, y, real)
    yield from _clipped(x[real], y[real])
    yield from _rounded(x[real], y[real])
    for axis, name in enumerate(axes(site)):
        if name in _ALONG:
            yield from _taken(name, axis, x, y, real)
            yield from _scaled_along(site, axis, x, y, real)
    if x.ndim == 3:
        yield from (Relation(Activate(act=name), "act", "none", name, f"through {name}") for name in ACTIVATION_NAMES)
    own = next((s.op for s in spec.steps if isinstance(s.op, Normalize)), None)
    yield from (
        Relation(op, "missing", None, "present", f"normed by {op}")
        for op in (unweighted(own) if own is not None else ())
    )


def unweighted(own: Normalize) -> Iterable[Normalize]:
    """Norms that a checkpoint knows nothing of, as a model with norms like this one may have them."""
    of = ((eps, kind) for eps in (own.eps, *_EPS) for kind in ("rms", "layer"))
    return dict.fromkeys(own.replace(eps=eps, kind=kind, over="head") for eps, kind in of)


def normed_at(site: str) -> str:
    """Where the vocabulary has a norm of what a site holds; else the site itself."""
    return next(
        (f"{site.removesuffix(end)}{norm}.hook_normalized" for end, norm in _NORMS.items() if site.endswith(end)), site
    )


def _factors(x: Tensor, y: Tensor, real: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """y over x by least squares, of all entries or for each index of an axis, and how far it may be off."""
    eps = torch.finfo(y.dtype).eps
    x, y = (t.double().masked_fill(~real.view(*real.shape, *[1] * (t.ndim - 2)), 0.0) for t in (x, y))
    over = [a for a in range(x.ndim) if a != axis]
    size = x.square().sum(over)
    factor = torch.where(size > 0, (x * y).sum(over) / size, 1.0)  # of padding alone nothing is known
    each = factor if axis is None else factor.view(-1, *[1] * (x.ndim - 1 - axis))
    error = ((y - each * x).square().mean(over) / size).sqrt().nan_to_num()
    return factor, _SIGMAS * error + eps * factor.abs()  # a constant is rounded too


def _named(value: float, width: float) -> tuple[float, str]:
    return closed_form(value, (value - width, value + width)) or (value, "")


def _word(site: str) -> str:
    return "scale" if _part(site) in ("residual", "embed", "unembed") else "factor"


def _scaled(site: str, x: Tensor, y: Tensor, real: Tensor) -> Iterator[Relation]:
    factor, width = (float(t) for t in _factors(x, y, real))
    value, name = _named(factor, width)
    yield Relation(
        Scaled((value,)), _word(site), 1.0, value, f"times {value:.6g}", (factor - width, factor + width), name
    )


def _scaled_along(site: str, axis: int, x: Tensor, y: Tensor, real: Tensor) -> Iterator[Relation]:
    """Some indices of an axis times one number, or a few times numbers of their own; positions all have theirs where a
    norm is at fault.
    """
    factors, widths = (t.tolist() for t in _factors(x, y, real, axis))
    told = {i: _named(f, w)[0] for i, (f, w) in enumerate(zip(factors, widths, strict=True)) if abs(f - 1.0) > w}
    alike = len(set(told.values())) == 1
    along = _ALONG[axes(site)[axis]]
    if 0 < len(told) <= max(x.shape[axis] // 2, 1) and (alike or (len(told) <= _FEW and along != _ALONG["p"])):
        some = ", ".join(map(str, told)) if len(told) <= _FEW else f"{min(told)} to {max(told)}"
        times = f"{next(iter(told.values())):.6g}" if alike else "numbers of their own"
        op = Scaled(tuple(told.get(i, 1.0) for i in range(len(factors))), axis)
        yield Relation(op, _word(site), 1.0, f"{along} {some} times {times}")


def _clipped(x: Tensor, y: Tensor) -> Iterator[Relation]:
    bound = float(y.abs().max()) if y.numel() else 0.0
    if bound and int((y.abs() == bound).sum()) > 1 and bool((x.abs() > bound).any()):
        value, name = _named(bound, torch.finfo(y.dtype).eps * bound)
        yield Relation(Clipped(value), "clip", None, value, f"within {value:.6g} of 0", None, name)


def _rounded(x: Tensor, y: Tensor) -> Iterator[Relation]:
    for dtype in _COARSER:
        if torch.equal(y.to(dtype).to(y.dtype), y) and not torch.equal(x.to(dtype).to(x.dtype), x):
            yield Relation(Rounded(plain(dtype)), "dtype", plain(y.dtype), plain(dtype), f"rounded to {plain(dtype)}")


def _taken(along: str, axis: int, x: Tensor, y: Tensor, real: Tensor) -> Iterator[Relation]:
    """Slices along an axis that hold what others should; along positions only where all rows are of one length."""
    if (along == "p" and not bool(real.all())) or x.shape[axis] > _WIDEST:
        return
    if along == "p":
        theirs, ours = (t.movedim(axis, 0).flatten(1) for t in (y, x))
    else:
        theirs, ours = (t[real].movedim(axis - 1, 0).flatten(1) for t in (y, x))
    index = torch.cdist(theirs.double(), ours.double()).argmin(1).tolist()
    if index != list(range(len(index))):
        what = {"h": "heads", "k": "kv_map", "p": "positions"}.get(along, "order")
        yield Relation(Taken(tuple(index), axis), what, "in order", _order(index, _ALONG[along]))


def _order(index: list[int], along: str) -> str:
    """In words, what stands at each index."""
    count = len(index)
    by = {(i - j) % count for i, j in enumerate(index)}
    if count <= 2 * _FEW:
        return f"{along}s {index}"
    if index == list(range(count))[::-1]:
        return f"{along}s in reverse"
    return f"each {along} that of {by.pop()} before" if len(by) == 1 else f"{along}s in another order"
