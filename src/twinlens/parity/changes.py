"""Changes of a step that an implementation may have made: what a hypothesis tries and a cause reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from twinlens import sites
from twinlens.fields import Kind, kind_of, kinds
from twinlens.ops import Add
from twinlens.parity.rebuilt import AGAIN, Rebuilt
from twinlens.spec import Spec, Step, Weights


@dataclass(frozen=True)
class SetField:
    """One field has another value, at one step or at those that are tied to it."""

    sites: tuple[str, ...]
    name: str
    value: Any

    @property
    def site(self) -> str:
        """The first of the sites."""
        return self.sites[0]

    def apply(self, step: Step) -> Step:
        """The step with the change made, where it has the field: another one may stand in its place (`Rebuilt`)."""
        if all(name != self.name for name, _, _ in kinds(step.op)):
            return step
        return dataclasses.replace(step, op=step.op.replace(**{self.name: self.value}))

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        return kind_of(spec.at[self.site].op, self.name).parameter


@dataclass(frozen=True)
class Leave:
    """A step is left out, with those before it that belong to it: what the first reads passes unchanged."""

    sites: tuple[str, ...]

    @property
    def site(self) -> str:
        """The first of the sites."""
        return self.sites[0]

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return Step(step.writes, Add(), step.reads[:1])

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        return spec.at[self.sites[-1]].op.removable or "block.parallel"


ROUNDED, APART = "rounded to ", "apart by "
"""Words of patterns."""


@dataclass(frozen=True, eq=False)
class Use:
    """Another tensor in the place of a weight, in the checkpoint's layout; None drops it."""

    site: str
    argument: str
    tensor: Tensor | None
    name: str
    """The checkpoint's name of the weight that it stands for."""
    pattern: str
    """What is known of the difference, in words."""
    other: str = ""
    """The checkpoint's name of the tensor that it is, where it is another one."""

    @property
    def kind(self) -> str:
        """The pattern without what was measured, which is another figure in each layer."""
        return self.pattern.rpartition(": ")[0] if APART in self.pattern else self.pattern

    @property
    def key(self) -> str:
        """The name under which the tensor is handed to the step."""
        return f"candidate:{self.site}:{self.argument}"

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return step.without(self.argument) if self.tensor is None else step.using(self.argument, self.key)

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        own = spec.at[self.site].op.weight_parameters.get(self.argument)
        return own[0] if own else "bias" if self.argument == "b" else "weight"


@dataclass(frozen=True, eq=False)
class Feed:
    """The step is given another input (positions, mask) than the model was."""

    site: str
    name: str
    tensor: Tensor
    value: Any
    """What the input is, as an integer offset or in words."""
    expression: str = ""
    """The same over the inputs (`twinlens.inputs.evaluate`), where there is one."""

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        reads = tuple(f"candidate:{self.name}" if r == self.name else r for r in step.reads)
        return dataclasses.replace(step, reads=reads)

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        return {"tokens": "tokens.ids"}.get(self.name, f"{self.name}.offset")


@dataclass(frozen=True)
class Restore:
    """Steps that the reference leaves out are there, as they are declared."""

    steps: tuple[Step, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """What they write."""
        return tuple(s.writes for s in self.steps)

    @property
    def site(self) -> str:
        """The first of the sites."""
        return self.steps[0].writes

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return next(s for s in self.steps if s.writes == step.writes)

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        return self.steps[-1].op.removable or "block.parallel"


@dataclass(frozen=True)
class Rewire:
    """The step reads other places of the residual stream."""

    site: str
    reads: tuple[str, ...]
    value: str
    """In words, what that makes of the block."""
    was: str = "sequential"
    """In words, what it is in the reference."""

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return dataclasses.replace(step, reads=self.reads)

    def parameter(self, spec: Spec) -> str:
        """The vocabulary's word for it."""
        return "block.parallel"


Change = SetField | Leave | Restore | Use | Feed | Rewire | Rebuilt


@dataclass(frozen=True)
class Variant:
    """Several changes at once."""

    changes: tuple[Change, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __add__(self, other: Variant | Iterable[Change]) -> Variant:
        """Both; where both change the same thing, the later one holds."""
        more = other.changes if isinstance(other, Variant) else tuple(other)
        changed = {slot(c) for c in more}
        return Variant(tuple(c for c in self.changes if slot(c) not in changed) + more)

    def without(self, change: Change) -> Variant:
        """All but one."""
        return Variant(tuple(c for c in self.changes if c is not change))

    def at(self, steps: Iterable[Step]) -> Variant:
        """Those that concern some steps."""
        here = {s.writes for s in steps}
        return Variant(tuple(c for c in self.changes if here.intersection(concerns(c))))

    def steps(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """The steps with the changes made."""
        by_site: dict[str, list[Change]] = {}
        made = list(steps)
        for change in self.changes:
            if isinstance(change, Rebuilt):
                made = list(change.built(made))
                continue
            for site in concerns(change):
                by_site.setdefault(site, []).append(change)
        for i, step in enumerate(made):
            own = by_site.get(step.writes.removesuffix(AGAIN), ())
            again = step.writes.endswith(AGAIN)
            for change in (c for c in own if isinstance(c, SetField) or not again):
                step = change.apply(step)
            made[i] = step
        return tuple(made)

    def weights(self, weights: Weights) -> Weights:
        """The weights with those that were put in their place."""
        own = {c.key: c.tensor for c in self.changes if isinstance(c, Use) and c.tensor is not None}
        return (lambda name: own[name] if name in own else weights(name)) if own else weights

    def inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors with the inputs that were fed instead."""
        fed = {f"candidate:{c.name}": c.tensor for c in self.changes if isinstance(c, Feed)}
        fed |= {name: tensor for c in self.changes if isinstance(c, Rebuilt) for name, tensor in c.given}
        return {**inputs, **fed} if fed else inputs

    def tied_to(self, steps: tuple[Step, ...]) -> Variant:
        """The changes of fields that some steps share with those that are changed."""
        found = [_same_field(c, steps) for c in self.changes]
        return Variant(tuple(c for c in found if c is not None))

    def in_layer(self, layer: int) -> Variant:
        """The field changes of one layer carried to another one, which may well have the same."""
        return Variant(tuple(_moved(c, layer) for c in self.changes if isinstance(c, SetField | Leave | Rewire)))


def _same_field(change: Change, steps: tuple[Step, ...]) -> SetField | None:
    """The change at those of some steps that are tied to it."""
    if not isinstance(change, SetField):
        return None
    layer = sites.split(change.site)[0]
    alike = (s.writes for s in steps if any(n == change.name and _is_tied(k, change) for n, k, _ in kinds(s.op)))
    here = tuple(site for site in alike if sites.split(site)[0] == layer)
    return SetField(here, change.name, change.value) if here else None


def _is_tied(kind: Kind, change: SetField) -> bool:
    """Whether a tied field of the name that is changed is the same: a rotation has a layout, and so has a product."""
    return kind.tied and (kind.name != "choice" or change.value in kind.alternatives)


def _moved(change: SetField | Leave | Rewire, layer: int) -> Change:
    def there(site: str) -> str:
        return site if sites.split(site)[0] is None else sites.block(layer, sites.split(site)[1])

    if isinstance(change, Leave):
        return Leave(tuple(there(s) for s in change.sites))
    if isinstance(change, Rewire):
        return dataclasses.replace(change, site=there(change.site), reads=tuple(map(there, change.reads)))
    return SetField(tuple(there(s) for s in change.sites), change.name, change.value)


def concerns(change: Change) -> tuple[str, ...]:
    """The sites whose steps a change changes."""
    if isinstance(change, Rebuilt):
        return tuple(s.writes for s in change.steps)
    return change.sites if isinstance(change, SetField | Leave | Restore) else (change.site,)


def is_precision(spec: Spec, change: Change) -> bool:
    """Whether a change is of the precision in which something is computed."""
    return isinstance(change, SetField) and kind_of(spec.at[change.site].op, change.name).name == "dtype"


def twins(steps: Iterable[Step], site: str, name: str) -> tuple[str, ...]:
    """The steps among some that share a field with the step at `site`, in their order: of its layer, of its table."""
    steps = tuple(steps)
    own = kind_of(next(s.op for s in steps if s.writes == site), name)
    if not own.tied:
        return (site,)
    scope = _scope(site)
    return tuple(
        s.writes
        for s in steps
        if _scope(s.writes) == scope
        and any(f == name and k.tied and k.parameter == own.parameter for f, k, _ in kinds(s.op))
    )


def _scope(site: str) -> object:
    layer = sites.split(site)[0]
    return site.rpartition(".")[0] if layer is None else layer


def slot(change: Change) -> tuple[str, str, str]:
    """What a change changes: two changes of one slot exclude each other."""
    name = ""
    if isinstance(change, SetField | Feed):
        name = change.name
    elif isinstance(change, Use):
        name = change.argument
    elif isinstance(change, Rebuilt):
        name = str(sites.split(change.enters)[0])  # a layer is put together in one way
    return (type(change).__name__, change.site, name)
