"""A model as data: ordered steps of operations over named sites."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from twinlens.errors import SpecError
from twinlens.ops import Op

if TYPE_CHECKING:
    from twinlens.edits import Edit


@dataclass(frozen=True)
class Weight:
    """A tensor of the checkpoint as a step uses it.

    `name` is its own there, and `name@site` where an earlier step uses it too; `transposed` if it is stored [in, out].
    """

    name: str
    transposed: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor as the step reads it; no copy."""
        return tensor.mT if self.transposed else tensor


@dataclass(frozen=True)
class Step:
    """An operation, the sites it reads, the site it writes, the weights it uses."""

    writes: str
    op: Op
    reads: tuple[str, ...]
    weights: tuple[tuple[str, Weight], ...] = ()

    def __call__(self, sites: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """What the step writes, from the sites that it reads."""
        return self.op(*(sites[r] for r in self.reads), **self.arguments(weights))

    def arguments(self, weights: Weights) -> dict[str, Tensor]:
        """The step's weights under the names by which its operation knows them."""
        return {name: weight.view(weights(weight.name)) for name, weight in self.weights}

    def using(self, argument: str, name: str) -> Step:
        """The step with a tensor of another name, in the checkpoint's layout, as one of its weights."""
        weights = dict(self.weights)
        before = weights.pop(argument, Weight(""))
        weights[argument] = dataclasses.replace(before, name=name)
        return dataclasses.replace(self, weights=tuple(weights.items()))

    def without(self, argument: str) -> Step:
        """The step without one of its weights."""
        return dataclasses.replace(self, weights=tuple(w for w in self.weights if w[0] != argument))


def stored_name(name: str) -> str:
    """The checkpoint's name of a tensor, whichever step uses it."""
    return name.partition("@")[0]


Weights = Callable[[str], Tensor]
"""From a tensor's name in the checkpoint to the tensor."""


@dataclass(frozen=True)
class Shape:
    """The geometry that a call is checked against."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int | None = None
    """Rows of a learned position table; None where any position has a meaning."""
    mlp_width: int | None = None
    """Inside every MLP, where that is one number."""
    value_width: int | None = None
    """Of a head's values, where it is not that of its queries and keys."""
    experts: int | None = None
    """Those that a router chooses among."""
    further: tuple[tuple[str, int], ...] = ()
    """Axes that only this family has, with their lengths."""
    spare_layers: int = 0
    """Behind the last one, which a checkpoint may hold and no forward pass uses: DeepSeek's, for several tokens."""

    @property
    def axes(self) -> dict[str, int]:
        """The length of each axis of a site that is known before anything has run."""
        known = {
            "d": self.d_model, "h": self.heads, "k": self.kv_heads, "e": self.head_width, "v": self.vocabulary,
            "w": self.value_width or self.head_width, "x": self.experts, "j": 1,
        }  # fmt: skip
        return {axis: size for axis, size in known.items() if size is not None} | dict(self.further)


@dataclass(frozen=True)
class Spec:
    """The steps of one model, the dtype it stores, its geometry."""

    family: str
    steps: tuple[Step, ...]
    shape: Shape
    dtype: torch.dtype = torch.float32
    inputs: tuple[tuple[str, str], ...] = field(default=())
    """Changes of what the model is given, as (input, expression); see `twinlens.edits`."""

    @cached_property
    def at(self) -> Mapping[str, Step]:
        """The step that writes each site."""
        return {step.writes: step for step in self.steps}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Step, ...]]:
        """The steps that read each site."""
        found: dict[str, list[Step]] = {}
        for step in self.steps:
            for site in step.reads:
                found.setdefault(site, []).append(step)
        return {site: tuple(steps) for site, steps in found.items()}

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Sites that this spec's own fused kernels do not show."""
        return frozenset(s.writes for unit in units(self.steps) for s in unit.absorbed)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites in the order in which they are written."""
        return tuple(step.writes for step in self.steps)

    @cached_property
    def weight_names(self) -> tuple[str, ...]:
        """The checkpoint's tensors that any step uses, each once."""
        return tuple(dict.fromkeys(w.name for step in self.steps for _, w in step.weights))

    @cached_property
    def kept(self) -> frozenset[str]:
        """Tensors that stay in the precision in which they are stored, whatever the model's."""
        return frozenset(w.name for step in self.steps for name, w in step.weights if name in step.op.kept)

    def in_dtype(self, weights: Weights) -> Weights:
        """A checkpoint's tensors in the dtype in which this model holds them."""
        return lambda name: weights(name) if name in self.kept else weights(name).to(self.dtype)

    def apart(self) -> Spec:
        """A copy in which each use of a tensor has its own name, since an implementation may hold two."""
        seen = set[str]()
        steps = list[Step]()
        for step in self.steps:
            for argument, weight in step.weights:
                if weight.name in seen:
                    step = step.using(argument, f"{weight.name}@{step.writes}")
                seen.add(weight.name)
            steps.append(step)
        return dataclasses.replace(self, steps=tuple(steps))

    def between(self, target: str, given: Iterable[str]) -> tuple[Step, ...]:
        """The steps that compute `target` from `given` sites and the inputs.

        A merged step where some sites between are not given.
        """
        return needed(self.steps, target, set(given))

    def replace_steps(self, changes: Mapping[str, Step]) -> Spec:
        """A copy in which the steps that write these sites are others."""
        return dataclasses.replace(self, steps=tuple(changes.get(s.writes, s) for s in self.steps))

    def edit(self, *edits: Editing) -> Spec:
        """A copy after the edits, in their order. Raises SpecError where one does not fit."""
        spec = self
        for edit in edits:
            if not callable(getattr(edit, "apply", None)):  # the border: parse_edits reads texts
                raise SpecError(f"{edit!r} is no edit; give Set, Insert, Remove, Rewire or Input.")
            spec = edit.apply(spec)
        return spec

    def diff(self, other: Spec) -> list[Edit]:
        """The edits that turn this spec into the other; see `twinlens.difference.diff`."""
        from twinlens.difference import diff  # the one arrow against the stream: a method's home

        return diff(self, other)

    def __str__(self) -> str:
        """The spec as text, one row a step; `twinlens.text.parse_spec` reads it."""
        from twinlens.text import format_spec

        return format_spec(self)

    def set_fields(self, sites: Iterable[str], name: str, value: object) -> Spec:
        """A copy with one field changed at several sites."""
        return self.replace_steps(
            {site: dataclasses.replace(self.at[site], op=self.at[site].op.replace(**{name: value})) for site in sites}
        )


@runtime_checkable
class Editing(Protocol):
    """What `Spec.edit` takes: the edits of `twinlens.edits`."""

    def apply(self, spec: Spec) -> Spec:
        """The spec after the edit."""
        ...


@dataclass(frozen=True)
class Unit:
    """What is executed at once: a step, and those before it that its kernel computes as well."""

    step: Step
    absorbed: tuple[Step, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Sites that the kernel reads."""
        if not self.absorbed:
            return self.step.reads
        return (*self.absorbed[0].reads, *self.step.reads[1:])

    def __call__(self, sites: Mapping[str, Tensor], weights: Weights) -> Tensor:
        """What the unit writes, from the sites that it reads."""
        kernel = self.step.op.fused()
        if kernel is None or not self.absorbed:
            return self.step(sites, weights)
        ops = tuple(s.op for s in self.absorbed)
        return kernel(ops, *(sites[r] for r in self.reads), **self.step.arguments(weights))


def needed(steps: Iterable[Step], target: str, known: Collection[str] = ()) -> tuple[Step, ...]:
    """Of some steps, in whatever order, those that compute a target from known sites and what none of them writes."""
    steps = tuple(steps)
    at, found, pending = {s.writes: s for s in steps}, set[str](), [target]
    while pending:
        site = pending.pop()
        if site in at and site not in found:
            found.add(site)
            pending.extend(r for r in at[site].reads if r not in known)
    return tuple(step for step in steps if step.writes in found)


def units(steps: Iterable[Step], keep: Iterable[str] = ()) -> Iterator[Unit]:
    """Steps as they are executed.

    A fused kernel takes the steps it absorbs with it, if all of them are here, none is in `keep`
    and no other step reads what they write.
    """
    steps, keep = tuple(steps), set(keep)
    by_site = {s.writes: s for s in steps}
    reads = Counter(site for step in steps for site in step.reads)
    taken: dict[str, tuple[Step, ...]] = {}
    for step in steps:
        chain = _absorbed(step, by_site) if step.op.fused() is not None else ()
        if chain and not any(s.writes in keep or reads[s.writes] > 1 for s in chain):
            taken[step.writes] = chain
    hidden = {s.writes for chain in taken.values() for s in chain}
    for step in steps:
        if step.writes not in hidden:
            yield Unit(step, taken.get(step.writes, ()))


def _absorbed(step: Step, by_site: Mapping[str, Step]) -> tuple[Step, ...]:
    chain: list[Step] = []
    site = step.reads[0]
    for name in reversed(step.op.absorbs):
        before = by_site.get(site)
        if before is None or type(before.op).__name__ != name:
            return ()
        chain.insert(0, before)
        site = before.reads[0]
    return tuple(chain) if step.op.fuses(tuple(s.op for s in chain)) else ()


def evaluate(
    steps: Iterable[Step],
    sites: Mapping[str, Tensor],
    weights: Weights,
    *,
    keep: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Run steps on tensors that are there; returns what they wrote, in order."""
    values = dict(sites)
    written: dict[str, Tensor] = {}
    for unit in units(steps, keep):
        values[unit.step.writes] = written[unit.step.writes] = unit(values, weights)
    return written


def exact(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The same steps in float64 by their plain formulas."""
    return tuple(dataclasses.replace(s, op=s.op.exact()) for s in steps)
