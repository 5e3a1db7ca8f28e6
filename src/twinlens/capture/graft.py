"""A graft: where a module computes a site, another value takes its place, in the module's own layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.capture.align import align
from twinlens.capture.arguments import Arguments
from twinlens.capture.calling import Call, device_of, invoke, logits_of
from twinlens.capture.graph import Graph
from twinlens.capture.placement import Placement
from twinlens.capture.plan import Plan, Run, Value, following
from twinlens.capture.recorder import probe
from twinlens.capture.tracer import Tracer
from twinlens.errors import CaptureError
from twinlens.spec import Spec, Weights

MOST_PATHS = 16
"""Paths that are remembered: code that follows the data, as a loop over experts does, has one for each call."""


@dataclass(eq=False)
class Graft:
    """What was put into a module; `remove` takes it out again."""

    module: nn.Module
    forward: Callable[..., Any]
    """The forward that the module had."""

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.__dict__.pop("forward", None)
        if getattr(self.forward, "__func__", None) is not type(self.module).forward:  # not the class's own
            self.module.forward = self.forward


def graft(
    module: nn.Module, spec: Spec, weights: Weights, replacements: Mapping[str, Value], *,
    mask: Tensor | None = None, call: Call | None = None,
) -> Graft:  # fmt: skip
    """From now on every call of `module` computes these sites by other functions.

    One short call is made to see where the sites are within the module's forward, and one to see what follows from
    them. A later call that takes another path of the code (one with a mask, of one token, with a cache) is followed by
    what the two paths have in common, and held against what followed on the first one.

    Raises:
        CaptureError: a site cannot be seen; of a call: it runs other code, or hides what a site is computed from.
    """
    forward = module.forward
    tokens, padding = probe(spec, mask, device=device_of(module))
    placement = _within(module, spec, weights, tokens, padding, call)
    missing = [s for s in replacements if s not in placement.places]
    if missing:
        raise CaptureError(f"{missing[0]} is not visible in {type(module).__name__}; nothing can be put in its place.")
    grafted = Grafted(module, spec, weights, replacements, [Plan.of(placement, spec, list(replacements))])

    @functools.wraps(forward)
    def mended(*args: Any, **kwargs: Any) -> Any:
        return grafted(args, kwargs)

    module.forward = mended
    made = Graft(module, forward)
    try:
        with torch.no_grad():
            invoke(module, tokens, padding, call)
    except CaptureError:
        made.remove()
        raise
    return made


def _within(
    module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, call: Call | None
) -> Placement:
    """Where the sites are in what happens inside the module's forward, whatever calls it."""
    graphs: list[Graph] = []
    forward = module.forward

    @functools.wraps(forward)
    def traced(*args: Any, **kwargs: Any) -> Any:
        given = Arguments.of(forward, args, kwargs)
        tracer = Tracer(module, given.tokens, given.mask)
        with torch.no_grad(), tracer:
            out = forward(*args, **kwargs)
        graphs.append(tracer.close(module, logits_of(out, module)))
        return out

    made = Graft(module, forward)
    module.forward = traced
    try:
        with torch.no_grad():
            invoke(module, tokens, mask, call)
    finally:
        made.remove()
    return align(graphs[-1], spec, weights)


@dataclass(eq=False)
class Grafted:
    """A module's forward with other values at some sites."""

    module: nn.Module
    spec: Spec
    weights: Weights
    values: Mapping[str, Value]
    plans: list[Plan]
    """By path; the first is the one on which the sites were placed."""
    agreed: set[str] | None = None
    """Of the sites that are computed from those, the ones that followed from what was put in there."""
    of_kind: dict[tuple[bool, ...], Plan] = field(default_factory=dict[tuple[bool, ...], Plan])

    def __post_init__(self) -> None:
        self.forward = self.module.forward

    def __call__(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """One call: the first plan that holds on its path; what is tried before is no part of it for who traces."""
        call = Arguments.of(self.forward, args, kwargs)
        self._refuse(call)
        restore = call.saved()
        plan = self.of_kind.get(call.kind, self.plans[0])
        for _ in range(len(self.values) + 2):  # a graft may change where the code of later ones leads
            run = Run(self.module, self.spec, plan, self.values, call)
            with Tracer.aside():
                out = run(self.forward, args, kwargs)
            graph = run.tracer.close(self.module, logits_of(out, self.module))
            if run.complete(graph):
                self._keep(plan, run, graph)
                return self._seen(plan, call, restore, args, kwargs) if Tracer.listening else out
            restore()
            followed = next((p for p in self.plans if p is not plan and p.holds(graph)), None)
            followed = followed or self.plans[0].on(graph)
            if followed is None:
                break
            plan = followed
        raise self._other_code(call)

    def _seen(self, plan: Plan, call: Arguments, restore: Callable[[], None], args: Any, kwargs: Any) -> Any:
        """The same once more, for those who trace it."""
        restore()
        return Run(self.module, self.spec, plan, self.values, call)(self.forward, args, kwargs)

    def _keep(self, plan: Plan, run: Run, graph: Graph) -> None:
        """Remember a path, once what is computed from the sites is what it was on the first one."""
        if self.agreed is None:
            self.agreed = run.agreeing(graph, self.weights)
        elif self.of_kind.get(run.call.kind) is not plan:
            held = run.agreeing(graph, self.weights)
            for site in self.values:
                shown = [s for s in self._checks(site) if s in run.checks(site)]
                if self._checks(site) and not (shown and held >= set(shown)):
                    raise self._other_code(run.call)
            if plan not in self.plans:
                self.plans.append(plan)
                del self.plans[1:-MOST_PATHS]
        self.of_kind[run.call.kind] = plan

    def _checks(self, site: str) -> set[str]:
        """Sites that showed on the first path that this one was put in the right place."""
        return set(following(self.spec, self.plans[0].placement, site)) & (self.agreed or set())

    def _refuse(self, call: Arguments) -> None:
        """Raise where a value cannot be computed from what a call shows."""
        for site in self.values:
            steps = self.spec.between(site, [s for s in self.plans[0].shown[site] if s not in self.spec.hidden])
            if not all(call.can(step) for step in steps):
                how = call.whole or "with position_ids"
                raise CaptureError(f"{site} was mended by a graft, which sees one call alone; call the module {how}.")

    def _other_code(self, call: Arguments) -> CaptureError:
        how = "with use_cache=False" if call.cache is not None else "as it was compared, or fix it again"
        return CaptureError(
            f"{type(self.module).__name__} runs other code in this call than when it was mended, in which "
            f"{', '.join(list(self.values)[:3])} cannot be told; call it {how}."
        )
