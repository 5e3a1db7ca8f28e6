"""Layouts: how a tensor of somebody's code holds a site, as data, found by comparing values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

REPEAT = "g"
"""The axis of copies, where each key/value head is repeated for the query heads that it serves."""


@dataclass(frozen=True)
class Layout:
    """For each axis of their tensor, which of our axes it holds, merged in order; none where its size is 1.

    `site` are our axes. An axis that no group holds is one over which their tensor does not vary. `paired` says that
    the last axis holds the two entries of each pair side by side, where we have all first ones before all second ones.

    >>> layout = Layout(("b", "p", "h", "e"), (("b",), ("h",), ("p",), ("e",)))
    >>> layout.ours(torch.zeros(2, 4, 13, 8), {"b": 2, "p": 13, "h": 4}).shape
    torch.Size([2, 13, 4, 8])
    """

    site: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    paired: bool = False

    def ours(self, theirs: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Their tensor as the site has it; a view where that is possible."""
        way = self._way(theirs.shape, tuple(sizes.items()))
        x = theirs if way.shape is None else theirs.reshape(way.shape)
        if way.copies is not None:
            x = x.select(way.copies, 0)
        if way.order is not None:
            x = x.permute(way.order)
        for at in way.missing:
            x = x.unsqueeze(at)
        x = x.expand(way.wide) if way.missing else x
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if self.paired else x

    def _way(self, theirs: Sequence[int], known: tuple[tuple[str, int], ...]) -> Way:
        """The way from a tensor of this shape, where these sizes are known; hundreds of sites ask in each call."""
        way = self._ways.get((theirs, known))
        if way is None:
            way = self._ways[theirs, known] = self._way_from(tuple(theirs), dict(known))
        return way

    @cached_property
    def _ways(self) -> dict[tuple[Sequence[int], tuple[tuple[str, int], ...]], Way]:
        return {}

    def _way_from(self, theirs: tuple[int, ...], sizes: dict[str, int]) -> Way:
        held = [axis for group in self.groups for axis in group]
        shape = [n for group, size in zip(self.groups, theirs, strict=True) for n in _split(group, size, sizes)]
        copies = held.index(REPEAT) if REPEAT in held else None
        left = [(axis, n) for axis, n in zip(held, shape, strict=True) if axis != REPEAT]
        axes = [axis for axis, _ in left]
        order = [axes.index(axis) for axis in self.site if axis in axes]
        ours = dict(left)
        wide = [ours[axis] if axis in ours else sizes[axis] for axis in self.site]
        missing = [at for at, axis in enumerate(self.site) if axis not in axes]
        turned = order != sorted(order)
        return Way(shape if tuple(shape) != theirs else None, copies, order if turned else None, missing, wide)

    def fitted(self, theirs: Tensor, sizes: Mapping[str, int]) -> Layout:
        """This layout in a call in which a tensor has the batch that it had not before, or has none any more: tables
        of positions are made for one row, or for each.
        """
        b, held = sizes["b"], any("b" in group for group in self.groups)
        if "b" not in self.site or b == 1 or len(self.groups) != theirs.ndim:
            return self
        change = {(False, b): ((), ("b",)), (True, 1): (("b",), ())}
        for at, size in enumerate(theirs.shape):
            old, new = change.get((held, size), (None, ()))
            if self.groups[at] == old:
                return replace(self, groups=(*self.groups[:at], new, *self.groups[at + 1 :]))
        return self

    def theirs(self, ours: Tensor, like: Tensor) -> Tensor:
        """Our tensor as theirs has it, in the shape and dtype of `like`.

        Where theirs was one for all rows of the batch and ours is not, it is as wide as ours: who reads it spreads it.
        """
        for at, axis in enumerate(self.site):
            if like.ndim == ours.ndim and like.shape[at] == 1 and self._varies(ours, at, axis):
                rows = ours.split(1, dim=at)
                return torch.cat([self.theirs(row, like) for row in rows], dim=at)
        if self.paired:
            ours = ours.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        held = [axis for group in self.groups for axis in group]
        for at, axis in reversed(list(enumerate(self.site))):
            if axis not in held:
                ours = ours.select(at, 0)
        left = [axis for axis in self.site if axis in held]
        if REPEAT in held:
            copies = like.numel() // ours.numel()
            ours, left = ours.unsqueeze(0).expand(copies, *ours.shape), [REPEAT, *left]
        return ours.permute([left.index(axis) for axis in held]).reshape(like.shape).to(like.dtype)

    def _varies(self, ours: Tensor, at: int, axis: str) -> bool:
        """Whether ours varies along an axis that theirs has not."""
        held = any(axis in group for group in self.groups)
        return not held and not torch.equal(ours, ours.select(at, 0).unsqueeze(at).expand_as(ours))


class Way(NamedTuple):
    """From a tensor of theirs to ours; None for what changes nothing."""

    shape: list[int] | None
    """Theirs, with one axis for each of ours."""
    copies: int | None
    """The axis of copies."""
    order: list[int] | None
    """The axes that are left, in ours."""
    missing: list[int]
    """Where axes go over which it does not vary."""
    wide: list[int]
    """Our shape."""


def _split(group: tuple[str, ...], size: int, sizes: Mapping[str, int]) -> list[int]:
    """Sizes of merged axes: those that are known, and for one that is not what is left."""
    unknown = [axis for axis in group if axis not in sizes]
    if not group:
        return []
    if len(unknown) > 1:
        return [sizes.get(a, -1) for a in group]
    rest = size // prod(sizes[a] for a in group if a in sizes)
    return [sizes.get(axis, rest) for axis in group]


@lru_cache(maxsize=4096)
def layouts(axes: tuple[str, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Layout, ...]:
    """Every way in which a tensor of `shape` can hold these axes; the plain order first."""
    wide = [i for i, size in enumerate(sizes) if size > 1]
    found: dict[Layout, None] = {}
    for copies in _copies(axes, sizes, shape):
        names = [axes[i] for i in wide] + ([REPEAT] if copies > 1 else [])
        known = {axes[i]: sizes[i] for i in wide} | {REPEAT: copies}
        for order in permutations(names):
            groups = _grouped(order, known, shape)
            if groups is not None and not any({"b", "r"} <= set(group) for group in groups):
                found[Layout(axes, groups)] = None
    return tuple(found)


def _copies(axes: Sequence[str], sizes: Sequence[int], shape: Sequence[int]) -> Iterator[int]:
    total, theirs = prod(sizes), prod(shape)
    if total == theirs:
        yield 1
    elif "k" in axes and total and theirs % total == 0:
        yield theirs // total


def _grouped(
    order: Sequence[str], sizes: Mapping[str, int], shape: Sequence[int]
) -> tuple[tuple[str, ...], ...] | None:
    groups: list[tuple[str, ...]] = []
    left = list(order)
    for size in shape:
        group: list[str] = []
        covered = 1
        while covered < size:
            if not left:
                return None
            covered *= sizes[left[0]]
            group.append(left.pop(0))
        if covered != size:
            return None
        groups.append(tuple(group))
    return None if left else tuple(groups)


@dataclass(frozen=True)
class Wanted:
    """A value that is looked for: a site's tensor, its axes, and the entries that count (None: all)."""

    value: Tensor
    axes: tuple[str, ...]
    counts: Tensor | None = None
    paired: bool = False
    """Each pair of its last axis side by side."""


def variants(wanted: Wanted) -> Iterator[Wanted]:
    """The value as it may be held: as it is; tables in half width or with each pair beside the other; without the
    batch, where all rows are alike.
    """
    alike = wanted.counts is None and wanted.axes[0] == "b" and bool((wanted.value == wanted.value[:1]).all())
    for form in (wanted, *(_tables(wanted) if "r" in wanted.axes else ())):
        yield form
        if alike and len(form.value) > 1:
            yield Wanted(form.value[:1], form.axes, paired=form.paired)


def _tables(wanted: Wanted) -> Iterator[Wanted]:
    half = wanted.value.shape[-1] // 2
    if torch.equal(wanted.value[..., :half], wanted.value[..., half:]):
        yield Wanted(wanted.value[..., :half], wanted.axes, _cut(wanted.counts, half))
        paired = wanted.value[..., :half].repeat_interleave(2, dim=-1)
        yield Wanted(paired, wanted.axes, wanted.counts, paired=True)


def held_shapes(axes: tuple[str, ...], shape: tuple[int, ...], *, alike: bool) -> Iterator[tuple[int, ...]]:
    """A site's shape as it may be held: tables also in half width; without a batch, where all rows are alike."""
    for wide in (shape, *([(*shape[:-1], shape[-1] // 2)] if "r" in axes else ())):
        yield wide
        if alike and axes[0] == "b":
            yield (1, *wide[1:])


def _cut(counts: Tensor | None, half: int) -> Tensor | None:
    return None if counts is None else counts[..., :half]


TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""How far, relative to its size, an honest value may be from its replay. It only says which tensor is meant:
whether that tensor is right is judged later, by rounding's own scale."""


def tolerance(*tensors: Tensor) -> float:
    """That of the coarsest dtype."""
    return max(TOLERANCE.get(t.dtype, 0.0) for t in tensors)


def distance(theirs: Tensor, wanted: Wanted) -> float:
    """Norm of the difference over norm of the wanted value, over the entries that count; 0 only for equal values."""
    if theirs.dtype == wanted.value.dtype and wanted.counts is None and torch.equal(theirs, wanted.value):
        return 0.0
    x, y = theirs.float(), wanted.value.float()
    if wanted.counts is not None:
        x, y = x[wanted.counts], y[wanted.counts]
    off = (x - y).norm()
    size = y.norm()
    if not bool(torch.isfinite(off)):
        return float("inf")
    return float(off / size) if float(size) > 0 else float(off)
