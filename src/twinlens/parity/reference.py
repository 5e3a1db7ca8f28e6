"""The reference as it computes, which may be otherwise than it is declared (rule 10)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from twinlens.parity.changes import Change, Feed, Use, Variant
from twinlens.spec import Spec, Weights


@dataclass(frozen=True)
class Computed:
    """What a run is, with its own changes of what it is declared to be."""

    spec: Spec
    weights: Weights
    own: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Its tensors that are not the checkpoint's."""
    left_out: tuple[str, ...] = ()
    """Sites of changes that no spec can hold: inputs that some steps read otherwise than others."""


def as_computed(declared: Spec, weights: Weights, changes: Sequence[Change]) -> Computed:
    """The declared steps with a run's own changes; its tensors and its inputs instead of those given."""
    inputs = dict(declared.inputs) | dict(_inputs(declared, changes))
    fed = [c for c in changes if isinstance(c, Feed)]
    steps = {s.writes: s for s in Variant(tuple(c for c in changes if c not in fed)).steps(declared.steps)}
    own = dict[str, Tensor]()
    for c in changes:
        if isinstance(c, Use) and c.tensor is not None:
            own[c.name] = c.tensor
            steps[c.site] = steps[c.site].using(c.argument, c.name)
    spec = replace(declared.replace_steps(steps), inputs=tuple(inputs.items()))
    left_out = tuple(c.site for c in fed if c.name not in dict(_inputs(declared, changes)))
    return Computed(spec, lambda name: own[name] if name in own else weights(name), own, left_out)


def _inputs(declared: Spec, changes: Sequence[Change]) -> Iterator[tuple[str, str]]:
    """What is made of the inputs, where all steps that read one of them agree."""
    fed = [c for c in changes if isinstance(c, Feed)]
    for name in dict.fromkeys(c.name for c in fed):
        said = {s.writes: "" for s in declared.steps if name in s.reads}
        said |= {c.site: c.expression for c in fed if c.name == name}
        expressions = set(said.values())
        if len(expressions) == 1 and (expression := expressions.pop()):
            before = dict(declared.inputs).get(name, name)
            yield name, re.sub(rf"\b{name}\b", f"({before})", expression)
