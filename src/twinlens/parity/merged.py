"""Merged steps: what lies between the sites that one run shows, replayed on that run's own tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twinlens.cached import nothing
from twinlens.parity.changes import Variant, concerns
from twinlens.parity.meter import Meter
from twinlens.parity.oracle import Oracle, double
from twinlens.parity.rows import Noise, Rows
from twinlens.sites import ASKED, INPUTS, axes, by_slot, is_input, split
from twinlens.spec import Spec, Step, Weights, evaluate, needed, units


@dataclass(frozen=True)
class Merged:
    """The steps from visible sites to the next visible one, on one run's tensors.

    `steps` go from the sites that this run shows; `kernel_steps` are the same, or longer where the declared kernel
    computes several steps at once although the run shows the sites between them.
    """

    target: str
    steps: tuple[Step, ...]
    kernel_steps: tuple[Step, ...]
    sites: Mapping[str, Tensor]
    weights: Weights
    meter: Meter
    dtypes: Mapping[str, torch.dtype]
    """What the declared model stores at each site."""
    declared: Spec
    """What the reference is said to be, where it computes otherwise."""
    gone: int = 0
    """Positions at the end that are left out (`head`)."""
    products: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Operand and result of products with large weights (`Oracle`)."""

    def head(self, length: int) -> Merged:
        """The same on the first positions, which look at no later ones."""
        gone = self.sites["tokens"].shape[1] - length
        return dataclasses.replace(
            self, sites={site: _without_last(site, x, gone) for site, x in self.sites.items()}, gone=gone
        )

    @property
    def share(self) -> float:
        """Of the run's positions, those that are there."""
        length = self.sites["tokens"].shape[1]
        return length / (length + self.gone)

    @cached_property
    def value(self) -> Tensor:
        """What the run itself has at the target."""
        return self.compared(self.sites[self.target])

    def compared(self, value: Tensor, rows: Rows | None = None) -> Tensor:
        """A choice by what was chosen (`Op.compared`), as the steps give scores whatever a variant makes of them."""
        step = self.steps[-1]
        if not step.op.chooses:
            return value
        reads = [x if rows is None else rows.of(r, x) for r, x in zip(step.reads, self._scores, strict=True)]
        weights = {name: double(w) for name, w in step.arguments(self.weights).items()}
        return step.op.exact().compared(value, *map(double, reads), **weights).float()

    @cached_property
    def _scores(self) -> list[Tensor]:
        """What a step that chooses reads."""
        with torch.no_grad():
            values = {**self.sites, **replayed(self.steps[:-1], self._narrowed, self.weights, self.dtypes)}
        return [values[r] for r in self.steps[-1].reads]

    @cached_property
    def is_far(self) -> bool:
        """Whether steps of several layers lie in it."""
        return len({split(s.writes)[0] for s in self.steps} - {None}) > 1

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The sites that the steps start from."""
        inner = {s.writes for s in self.steps}
        return tuple(dict.fromkeys(r for s in self.steps for r in s.reads if r not in inner))

    def with_spec(self, spec: Spec) -> Merged:
        """The same with the steps of another spec over the same sites."""
        return dataclasses.replace(
            self,
            steps=tuple(spec.at[s.writes] for s in self.steps),
            kernel_steps=tuple(spec.at[s.writes] for s in self.kernel_steps),
        )

    def native(self, variant: Variant = Variant()) -> Tensor:
        """The target recomputed in the dtype and order that are declared."""
        steps = variant.steps(self.kernel_steps)
        if steps[-1].op.fused() is None or len(list(units(steps))) == len(steps):
            steps = variant.steps(self.steps)
        return self.compared(self._run(steps, variant)[self.target])

    def stepwise(self, variant: Variant = Variant()) -> Tensor:
        """The target from the sites shown right before it: what a kernel computes once more is judged at its own."""
        steps, known = variant.steps(self.steps), dict[str, Tensor]()
        if self.is_far and variant:
            known = self._before(variant)
            steps = needed(steps, self.target, known)
        return self.compared(self._run(steps, variant, known=known)[self.target])

    def _before(self, variant: Variant) -> dict[str, Tensor]:
        """What a variant leaves as it is of where layers begin and of what they share."""
        places = {s.writes: i for i, s in enumerate(self.steps)}
        first = min((places[s] for c in variant.changes for s in concerns(c) if s in places), default=0)
        return {site: x for site, x in self._unchanged.items() if places[site] < first}

    @cached_property
    def _unchanged(self) -> dict[str, Tensor]:
        kept = {s.writes for s in self.steps if split(s.writes)[0] is None or s.writes.endswith("hook_resid_pre")}
        written = self._run(self.steps, Variant(), keep=kept)
        return {site: x for site, x in written.items() if site in kept and site != self.target}

    def plain(self, variant: Variant = Variant()) -> dict[str, Tensor]:
        """All that the steps write, each by itself, in the declared dtype."""
        steps = variant.steps(self.steps)
        return self._run(steps, variant, keep=[s.writes for s in steps])

    def _run(
        self, steps: Sequence[Step], variant: Variant, keep: Collection[str] = (), known: Mapping[str, Tensor] = {}
    ) -> dict[str, Tensor]:
        self.meter.add(steps, 1.0, self.weights, self.share)
        inputs, weights = {**self.given(variant), **known}, variant.weights(self.weights)
        with torch.no_grad():
            return replayed(steps, inputs, weights, self.dtypes, keep)

    def given(self, variant: Variant) -> Mapping[str, Tensor]:
        """What the steps read of the run, and what a variant feeds instead."""
        found = variant.inputs(self._narrowed)
        fed = found.keys() - self.sites.keys() if self.gone else ()
        cut = {k: _without_last(k.removeprefix("candidate:"), found[k], self.gone) for k in fed}
        return {**found, **cut} if cut else found

    def precision(self, step: Step, value: torch.dtype | None) -> torch.dtype:
        """What a precision field says: None is what the declared step reads."""
        return coming_in(step, self.dtypes) if value is None else value

    def is_coarser(self, step: Step, a: torch.dtype | None, b: torch.dtype | None) -> bool:
        """Whether a step would compute more coarsely in `a` than in `b`."""
        return torch.finfo(self.precision(step, a)).eps > torch.finfo(self.precision(step, b)).eps

    @cached_property
    def _narrowed(self) -> Mapping[str, Tensor]:
        """The run's tensors; none of them in float64, in which a product may be but nothing is handed on."""
        wide = {r: self.sites[r] for r in self.reads if self.sites[r].dtype == torch.float64}
        return {**self.sites, **{r: _as_stored(r, x, self.dtypes) for r, x in wide.items()}} if wide else self.sites

    def oracle(self, variant: Variant, rows: Rows, noise: Noise | None = None) -> Tensor:
        """The target in float64 by the plain formulas, on some rows of the positions, differentiable in the fields."""
        return self.prepared(variant, rows)(variant, noise)

    def prepared(self, variant: Variant, rows: Rows) -> Oracle:
        """The tensors of an oracle in float64, made once for many values of the fields."""
        return Oracle.of(self, variant, rows)


def replayed(
    steps: Sequence[Step], inputs: Mapping[str, Tensor], weights: Weights, dtypes: Mapping[str, torch.dtype],
    keep: Collection[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """What declared steps write on a run's own tensors, in the declared dtype where they cannot take the run's."""
    try:
        return evaluate(steps, inputs, weights, keep=keep)
    except RuntimeError:
        return evaluate(steps, {k: _as_stored(k, v, dtypes) for k, v in inputs.items()}, weights, keep=keep)


def _without_last(site: str, x: Tensor, count: int) -> Tensor:
    """Without so many positions at the end, and the slots in which their keys stand."""
    for axis, name in enumerate(axes(site)):
        x = x.narrow(axis, 0, x.shape[axis] - count) if name in ("p", "s") else x
    return x


def _as_stored(site: str, x: Tensor, dtypes: Mapping[str, torch.dtype]) -> Tensor:
    return x.to(dtypes.get(site, x.dtype)) if x.is_floating_point() else x


def merge(
    spec: Spec,
    sites: Mapping[str, Tensor],
    weights: Weights,
    meter: Meter,
    declared: Spec | None = None,
) -> Iterator[Merged]:
    """The merged steps of a run, in the order of the spec."""
    shown = [s for s in spec.sites if s in sites and not by_slot(s)]
    hidden_by_kernel = {
        unit.step.writes: tuple(s.writes for s in unit.absorbed) for unit in units(spec.steps) if unit.absorbed
    }
    given = {s: x for s, x in sites.items() if is_input(s)} | {s: sites[s] for s in shown}
    dtypes = stored(spec, weights)
    for target in shown:
        others = [s for s in shown if s != target]
        steps = spec.between(target, others)
        inner = hidden_by_kernel.get(target, ())
        kernel_steps = spec.between(target, [s for s in others if s not in inner]) if inner else steps
        yield Merged(target, steps, kernel_steps, given, weights, meter, dtypes, declared or spec)


def coming_in(step: Step, dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype in which a step computes that is given no other: that of what it reads."""
    reads = dtypes.get(step.reads[0], torch.float32)
    return reads if reads.is_floating_point else torch.float32


def stored(spec: Spec, weights: Weights) -> dict[str, torch.dtype]:
    """What the declared model stores at each site: its rows, run on tensors without data."""
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    given = dict.fromkeys(INPUTS, ids) | {"slots": ids[0]} | nothing(spec, 1, "meta")
    given |= {ASKED[0]: ids, ASKED[1]: ids[..., None]}

    def empty(name: str) -> Tensor:
        return torch.empty_like(weights(name), device="meta")

    alike = dict[object, Tensor]()  # most layers do the same to tensors of the same kind
    with torch.no_grad():
        for step in spec.steps:
            inputs, own = [given[r] for r in step.reads], step.arguments(empty)
            kind = (step.op, *map(_bare, inputs), *own, *map(_bare, own.values()))
            if kind not in alike:
                alike[kind] = step.op(*inputs, **own)
            given[step.writes] = alike[kind]
    chosen = {step.writes for step in spec.steps if step.op.chooses}  # compared by scores
    return {s.writes: torch.float32 if s.writes in chosen else given[s.writes].dtype for s in spec.steps}


def _bare(x: Tensor) -> tuple[torch.dtype, torch.Size]:
    return x.dtype, x.shape
