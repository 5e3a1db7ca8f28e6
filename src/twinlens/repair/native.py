"""What the reference's steps give at a site on a module's own tensors, in the declared dtype."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.cached import cached
from twinlens.capture.plan import Value
from twinlens.fields import kinds
from twinlens.inputs import given
from twinlens.ops import Op
from twinlens.parity.changes import SetField, Variant
from twinlens.parity.merged import replayed, stored
from twinlens.repair.instructions import Instruction, read
from twinlens.sites import INPUTS, is_input
from twinlens.spec import Spec, Step, Weights
from twinlens.text import format_value


@dataclass(frozen=True, eq=False)
class Native:
    """`spec` is what a module shall compute, `declared` that by which its sites are found."""

    spec: Spec
    declared: Spec
    weights: Weights

    def __call__(self, site: str, found: Mapping[str, Tensor], others: Sequence[Instruction] = ()) -> Tensor:
        """A site's value from those that the module shows; `others` are faults that are taken as they are."""
        as_is = [SetField(o.sites, o.name, read(o.candidate)) for o in others if o.what == "field"]
        steps = Variant(tuple(as_is)).steps(self._steps(site, found))
        reads = {r: found[r] for step in steps for r in step.reads if r in found}
        return replayed(steps, reads, self.weights, self.dtypes)[site]

    def value(self, site: str) -> Value:
        """The same in a call of its own, which may go on from what earlier ones left."""

        def value(found: Mapping[str, Tensor]) -> Tensor:
            changed = dict[str, Tensor]()
            if self.spec.inputs != self.declared.inputs:
                changed = given(found["tokens"], changes=self.spec.inputs, key_mask=found["key_mask"])
            return self(site, {**{s: found[s] for s in self._reads(site, found)}, **changed})

        return value

    def _reads(self, site: str, found: Mapping[str, Tensor]) -> set[str]:
        return {r for step in self._steps(site, found) for r in step.reads if r in found}

    @cached_property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """What the declared model stores at each site."""
        return stored(self.spec, self.weights)

    def _steps(self, site: str, found: Collection[str]) -> tuple[Step, ...]:
        """The reference's steps to a site from those that the module shows, with what its kernel absorbs."""
        spec = cached(self.spec) if any(is_input(s) and s not in INPUTS for s in found) else self.spec
        inner = set(spec.hidden) if spec.at[site].op.fused() is not None else set[str]()
        return spec.between(site, [s for s in found if s != site and s not in inner and not is_input(s)])


def shown(op: Op, mended: Collection[str] = ()) -> str:
    """An operation with what is not as usual in it, or was mended, for people."""
    usual = {f.name: f.default for f in fields(op)}
    said = [f"{n}={format_value(v)}" for n, k, v in kinds(op) if n in mended or (k.name != "size" and v != usual[n])]
    return f"{type(op).__name__}({', '.join(said)})"


def computed_as(spec: Spec, site: str, these: Sequence[Instruction]) -> str:
    """What a graft does at a site, in words."""
    step = spec.at[these[0].sites[0]]
    inside = "" if step.writes == site else f"with {names.split(step.writes)[1]} "
    op, was = shown(step.op, {i.name for i in these}), sorted({_was(i) for i in these})
    return f"{site}: {inside}computed as {op} ({', '.join(was)})"


def _was(i: Instruction) -> str:
    """What is at fault, and of a field, what it is instead."""
    return f"{i.name} was {format_value(read(i.candidate))}" if i.what == "field" else i.name or i.parameter
