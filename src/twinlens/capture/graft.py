"""A graft: where a module computes a site, another value takes its place, in the module's own layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.cached import cached, calls_of
from twinlens.capture.align import align
from twinlens.capture.arguments import Arguments, sees_others
from twinlens.capture.calling import Call, device_of, invoke, logits_of
from twinlens.capture.calls import seen_calls, stepping
from twinlens.capture.copies import following
from twinlens.capture.graph import Graph
from twinlens.capture.lines import Line
from twinlens.capture.placement import Placement
from twinlens.capture.plan import Plan, Run, Value
from twinlens.capture.recorder import probe
from twinlens.capture.remembered import Remembered
from twinlens.capture.tracer import Tracer
from twinlens.errors import CaptureError
from twinlens.spec import Spec, Step, Weights

MOST_PATHS = 16
"""Paths that are remembered: code that follows the data, as a loop over experts does, has one for each call."""


@dataclass(eq=False)
class Graft:
    """What was put into a module; `remove` takes it out again."""

    module: nn.Module
    forward: Callable[..., Any]
    """The forward that the module had."""
    lines: Mapping[str, Line | None] = field(default_factory=dict[str, "Line | None"])
    """Where the module's code computes what is replaced."""

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.__dict__.pop("forward", None)
        if getattr(self.forward, "__func__", None) is not type(self.module).forward:  # not the class's own
            self.module.forward = self.forward


def graft(
    module: nn.Module, spec: Spec, weights: Weights, replacements: Mapping[str, Value], *,
    mask: Tensor | None = None, call: Call | None = None, unread: Mapping[str, Collection[str]] | None = None,
) -> Graft:  # fmt: skip
    """From now on every call of `module` computes these sites by other functions.

    One short call is made to see where the sites are within the module's forward, and one to see what follows from
    them. A later call that takes another path of the code (one with a mask, of one token, with a cache) is followed by
    what the two paths have in common, and held against what followed on the first one. `unread`: by site, those that
    it is not computed from, though they are shown; what a cache is filled with is then not what it reads.

    Raises:
        CaptureError: a site cannot be seen; of a call: it runs other code, or hides what a site is computed from.
    """
    tokens, padding = probe(spec, mask, device=device_of(module))
    with _traced(module) as graphs, torch.no_grad():
        invoke(module, tokens, padding, call)
    placement = align(graphs[-1], spec, weights)
    _check_seen(module, placement, replacements)
    plan = Plan.of(placement, spec, list(replacements), unread=unread)
    made, grafted = _put(module, spec, weights, replacements, [plan])
    grafted.keeps = grafted.keeps and not unread
    return _tried(made, lambda: invoke(module, tokens, padding, call))


def graft_calls(
    module: nn.Module, spec: Spec, weights: Weights, replacements: Mapping[str, Value],
    sites: Sequence[Collection[str]], tokens: Tensor, mask: Tensor | None, lengths: Sequence[int],
) -> Graft:  # fmt: skip
    """The same where calls with a cache are at fault: `sites` are those that are replaced in each of these calls.

    Calls are of two kinds, those that begin a cache and those that go on from one; in all of a kind the same sites are
    replaced, as far as they are there.

    Raises:
        CaptureError: as `graft`.
    """
    plans = list[Plan]()
    with _traced(module) as graphs:

        def tracing(tokens: Tensor, mask: Tensor | None, call: Call) -> Graph:
            with torch.no_grad():
                call(tokens, mask)
            return graphs[-1]

        later = dict.fromkeys(s for some in sites[1:] for s in some)
        for seen, own in zip(seen_calls(module, spec, weights, tokens, mask, lengths, tracing), sites, strict=True):
            _check_seen(module, seen.placement, own)
            if not plans or not any(p.holds(seen.placement.graph) for p in plans[1:]):
                here = [s for s in (later if plans else own) if s in seen.placement.places]
                plans.append(Plan.of(seen.placement, cached(spec), here, later=bool(plans)))
    made, grafted = _put(module, spec, weights, replacements, plans)
    grafted.keeps = True
    step = stepping(module)
    return _tried(made, lambda: [step(ids, slots) for ids, slots in calls_of(tokens, mask, lengths)])


def _check_seen(module: nn.Module, placement: Placement, sites: Iterable[str]) -> None:
    missing = [s for s in sites if s not in placement.places]
    if missing:
        raise CaptureError(f"{missing[0]} is not visible in {type(module).__name__}; nothing can be put in its place.")


def _put(
    module: nn.Module, spec: Spec, weights: Weights, values: Mapping[str, Value], plans: list[Plan]
) -> tuple[Graft, Grafted]:  # fmt: skip
    forward = module.forward
    grafted = Grafted(module, spec, weights, values, plans)

    @functools.wraps(forward)
    def mended(*args: Any, **kwargs: Any) -> Any:
        return grafted(args, kwargs)

    module.forward = mended
    return Graft(module, forward, grafted.lines), grafted


def _tried(made: Graft, calls: Callable[[], Any]) -> Graft:
    """What was put in, if it can be seen in these calls that it is in the right place."""
    try:
        with torch.no_grad():
            calls()
    except CaptureError:
        made.remove()
        raise
    return made


@contextmanager
def _traced(module: nn.Module) -> Generator[list[Graph]]:
    """What happens inside the module's forward, whatever calls it."""
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
        yield graphs
    finally:
        made.remove()


@dataclass(eq=False)
class Grafted:
    """A module's forward with other values at some sites."""

    module: nn.Module
    spec: Spec
    weights: Weights
    values: Mapping[str, Value]
    plans: list[Plan]
    """By path; the first ones are those on which the sites were placed."""
    agreed: dict[Plan, set[str]] = field(default_factory=dict[Plan, set[str]])
    """By the path on which sites were placed: of what is computed from those, what followed from what was put in."""
    of_kind: dict[tuple[bool, ...], Plan] = field(default_factory=dict[tuple[bool, ...], Plan])

    def __post_init__(self) -> None:
        self.forward = self.module.forward
        self.placed = len(self.plans)
        self.lines: dict[str, Line | None] = {}
        self.kept = Remembered(self.spec)
        self.keeps = any(sees_others(s) for plan in self.plans for site in plan.sites for s in self._needed(site, plan))

    def __call__(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """One call: the first plan that holds on its path; what is tried before is no part of it for who traces."""
        call = Arguments.of(self.forward, args, kwargs, self.kept)
        restore = call.saved()
        plans = [p for p in self.plans if p.later == (call.past != 0)] or self.plans
        plan = self.of_kind.get(call.kind, plans[0])
        for _ in range(len(self.values) + 2):  # a graft may change where the code of later ones leads
            self._refuse(call, plan)
            run = Run(self.module, self.spec, plan, self.values, call)
            with Tracer.aside():
                out = run(self.forward, args, kwargs)
            graph = run.tracer.close(self.module, logits_of(out, self.module))
            if run.complete(graph):
                self._keep(plan, run, graph)
                self.lines |= run.lines
                if Tracer.listening:  # the same once more, for those who trace it
                    restore()
                    out = Run(self.module, self.spec, plan, self.values, call)(self.forward, args, kwargs)
                if self.keeps:
                    self._remember(out, run, graph)
                return out
            restore()
            followed = next((p for p in plans if p is not plan and p.holds(graph)), None)
            followed = followed or plan.origin.on(graph)
            if followed is None:
                break
            plan = followed
        raise self._other_code(call, plan)

    def _remember(self, out: Any, run: Run, graph: Graph) -> None:
        """What the call leaves to the next one."""
        if run.call.key_mask is not None or not run.call.whole:
            with Tracer.aside():
                self.kept.add(out, run.call.before, run.showed(graph), run.inputs["key_mask"])

    def _keep(self, plan: Plan, run: Run, graph: Graph) -> None:
        """Remember a path, once what is computed from the sites is what it was on the first one."""
        if plan.origin not in self.agreed:
            self.agreed[plan.origin] = run.agreeing(graph, self.weights)
        elif self.of_kind.get(run.call.kind) is not plan:
            held = run.agreeing(graph, self.weights)
            for site in plan.sites:
                checks = self._checks(plan.origin, site)
                shown = [s for s in checks if s in run.checks(site)]
                if checks and not (shown and held >= set(shown)):
                    raise self._other_code(run.call, plan)
            if plan not in self.plans:
                self.plans.append(plan)
                del self.plans[self.placed : -MOST_PATHS]
        self.of_kind[run.call.kind] = plan

    def _checks(self, plan: Plan, site: str) -> set[str]:
        """Sites that showed on the path on which it was placed that this one was put in the right place."""
        return set(following(self._spec(plan), plan.placement, site)) & self.agreed[plan]

    def _spec(self, plan: Plan) -> Spec:
        return cached(self.spec) if plan.later else self.spec

    def _needed(self, site: str, plan: Plan) -> tuple[Step, ...]:
        spec = self._spec(plan)
        return spec.between(site, [s for s in plan.origin.shown[site] if s not in spec.hidden])

    def _refuse(self, call: Arguments, plan: Plan) -> None:
        """Raise where a value cannot be computed from what a call shows."""
        for site in plan.sites:
            if not all(call.can(step) for step in self._needed(site, plan)):
                how = call.whole or "with position_ids"
                raise CaptureError(f"{site} was mended by a graft, which sees one call alone; call the module {how}.")

    def _other_code(self, call: Arguments, plan: Plan) -> CaptureError:
        how = "with use_cache=False" + ("" if call.cache is not None else " or as it was compared, or fix it again")
        return CaptureError(
            f"{type(self.module).__name__} runs other code in this call than when it was mended, in which "
            f"{', '.join(plan.sites[:3])} cannot be told; call it {how}."
        )
