"""A merged step in float64 by the plain formulas, on a few rows: what is exact, and what rounding is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from twinlens.ops.base import LARGE, Op
from twinlens.parity.changes import Variant
from twinlens.parity.rows import Noise, Rows
from twinlens.spec import Step, Weights, exact

if TYPE_CHECKING:
    from twinlens.parity.merged import Merged


@dataclass
class Oracle:
    """A merged step in float64 on a few rows."""

    merged: Merged
    rows: Rows
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    times: float = 1.0
    """What a call counts: 2 while a derivative is taken along with it."""

    @classmethod
    def of(cls, merged: Merged, variant: Variant, rows: Rows) -> Oracle:
        """Convert what the steps read."""
        inputs = merged.given(variant)
        tensors = {r: double(inputs[r]) for s in variant.steps(merged.steps) for r in s.reads if r in inputs}
        return cls(merged, rows, tensors, {})

    def __call__(self, variant: Variant, noise: Noise | None = None) -> Tensor:
        """The target under a variant's changes."""
        step, reads, arguments = self.last(variant, noise)
        return self._compared(step, self.computed(step, reads, arguments))

    def with_magnitude(self, variant: Variant) -> tuple[Tensor, Tensor]:
        """The target, and what one unit of roundoff in its own step is multiplied by."""
        step, reads, arguments = self.last(variant)
        value = self._compared(step, self.computed(step, reads, arguments))
        return value, self._on_rows(step, self.magnitude(step, reads, arguments))

    def computed(self, step: Step, reads: Sequence[Tensor], arguments: Mapping[str, Tensor]) -> Tensor:
        """A step in float64."""
        bare = step.op.bare()
        if bare is None or not _is_held(arguments):
            return in_parts(step.op, reads, arguments)
        return step.op.finished(self._kept(_value, bare, step, reads, arguments))

    def magnitude(self, step: Step, reads: Sequence[Tensor], arguments: Mapping[str, Tensor]) -> Tensor:
        """What one unit of roundoff inside a step is multiplied by."""
        bare = step.op.bare()
        if bare is None or not _is_held(arguments):
            return in_parts(step.op, reads, arguments, _size)
        both = (self._kept(of, bare, step, reads, arguments) for of in (_value, _size))
        return step.op.finished_magnitude(*both)

    def _kept(
        self, of: Callable[..., Tensor], bare: Op, step: Step, reads: Sequence[Tensor], arguments: Mapping[str, Tensor]
    ) -> Tensor:
        """The product with a large weight, done once for all that is tried of the same operand."""
        x = _constant(reads[0])
        key = of, bare, tuple(w.name for _, w in step.weights)
        before = self.merged.products.get(key)
        if x is not None and before is not None and torch.equal(before[0], x):
            return before[1]
        value = in_parts(bare, reads, arguments, of)
        kept = _constant(value)
        if x is not None and kept is not None and not any(w.name.startswith("candidate:") for _, w in step.weights):
            self.merged.products[key] = x, kept
        return value

    def _compared(self, step: Step, value: Tensor) -> Tensor:
        return self.merged.compared(self._on_rows(step, value), self.rows)

    def _on_rows(self, step: Step, value: Tensor) -> Tensor:
        return value if any(_by_row(step)) else self.rows.of(step.writes, value)

    def last(self, variant: Variant, noise: Noise | None = None) -> tuple[Step, list[Tensor], dict[str, Tensor]]:
        """The target's own step, with all that it reads."""
        written = {s.writes for s in variant.steps(self.merged.steps)}
        values = {k: v for k, v in self.tensors.items() if k not in written}
        for step, reads, arguments in self.each(variant, values):
            if step.writes == self.merged.target:
                return step, reads, arguments
            value = self.computed(step, reads, arguments)
            values[step.writes] = value if noise is None else noise(step, value)
        raise AssertionError(self.merged.target)

    def each(
        self, variant: Variant, values: dict[str, Tensor]
    ) -> Iterator[tuple[Step, list[Tensor], dict[str, Tensor]]]:
        """The steps with what they read of `values`, to which who asks adds what they write, on these rows where no
        later step needs all of them (`narrowed`).
        """
        steps = exact(variant.steps(self.merged.steps))
        whole, find = _needed_whole(steps), variant.weights(self.merged.weights)
        self.merged.meter.add(steps, self.rows.share, self.merged.weights, self.times * self.merged.share)
        values |= {k: double(v) for k, v in self.merged.given(variant).items() if k.startswith("candidate:")}
        narrow = {s.writes for s in steps} - whole
        for step in steps:
            reads = [
                self.rows.of(r, values[r]) if step.writes not in whole and by_row and r not in narrow else values[r]
                for r, by_row in zip(step.reads, _by_row(step), strict=True)
            ]
            yield step, reads, {a: w.view(self._weight(w.name, find)) for a, w in step.weights}

    def narrowed(self, variant: Variant, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the steps write of values with all rows, as `each` takes it."""
        whole = _needed_whole(variant.steps(self.merged.steps))
        return {site: x if site in whole else self.rows.of(site, x) for site, x in values.items()}

    def _weight(self, name: str, find: Weights) -> Tensor:
        if name in self.weights:
            return self.weights[name]
        weight = find(name)
        wide = weight if weight.numel() > LARGE else double(weight)
        if not name.startswith("candidate:"):  # another one in each variant
            self.weights[name] = wide
        return wide


def _value(op: Op, *reads: Any, **weights: Any) -> Tensor:
    return op(*reads, **weights)


def _size(op: Op, *reads: Any, **weights: Any) -> Tensor:
    """What one unit of roundoff inside a step is multiplied by."""
    return op.magnitude(*reads, **weights)


def _constant(x: Tensor) -> Tensor | None:
    """A tensor that does not depend on what a derivative is taken by, without the wrapping; else None."""
    while is_functorch_wrapped_tensor(x):
        if forward_ad.unpack_dual(x).tangent is not None:
            return None
        x = get_unwrapped(x)
    return x


def _is_held(arguments: Mapping[str, Tensor]) -> bool:
    """Whether a weight is still in the dtype in which it is held."""
    return any(w.is_floating_point() and w.dtype != torch.float64 for w in arguments.values())


def in_parts(
    op: Op, reads: Sequence[Tensor], arguments: Mapping[str, Tensor], of: Callable[..., Tensor] = _value
) -> Tensor:
    """An operation, or what is `of` it, in float64; a weight that is still as it is held, part by part."""
    if not _is_held(arguments):
        return of(op, *reads, **arguments)
    found = [
        of(part, *some, **{name: double(w) for name, w in weights.items()})
        for part, some, weights in op.parts(LARGE, *reads, **arguments)
    ]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _by_row(step: Step) -> tuple[bool, ...]:
    by_row = step.op.rows_alone()
    return by_row[: len(step.reads)] + (True,) * (len(step.reads) - len(by_row))


def _needed_whole(steps: Sequence[Step]) -> set[str]:
    """Sites of which some later step needs every row, or whose own step gives them all."""
    whole: set[str] = set()
    for step in reversed(steps):
        if not any(_by_row(step)):
            whole.add(step.writes)
        for site, by_row in zip(step.reads, _by_row(step), strict=True):
            if step.writes in whole or not by_row:
                whole.add(site)
    return whole


def double(x: Tensor) -> Tensor:
    """In float64, but for ids and masks."""
    return x.double() if x.is_floating_point() else x
