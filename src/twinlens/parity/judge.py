"""Two recordings of one declared model: where they part, why, and what is only rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from twinlens.bits import each
from twinlens.bits import equal as equal_bytes
from twinlens.errors import ComparisonError
from twinlens.inputs import given
from twinlens.parity import gauges
from twinlens.parity.agreement import Agreement
from twinlens.parity.changes import Change, SetField, Use, Variant, is_precision
from twinlens.parity.examine import Examiner
from twinlens.parity.grouping import group_causes, group_orders, plain
from twinlens.parity.merged import Meter, coming_in, merge, stored, work
from twinlens.parity.result import Cause, Examination, Finding, Result, Verdict
from twinlens.parity.rounding import by_rows, difference, equal, unmasked
from twinlens.recording import Recording
from twinlens.sites import INPUTS, axes
from twinlens.spec import Spec, Weights

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, of: int) -> None:
    """No progress shown."""


@dataclass
class Side:
    """One run: its tensors with its inputs, its own weights where they differ, what is known of them."""

    sites: Mapping[str, Tensor]
    own: dict[str, Tensor]
    known: frozenset[str]

    @classmethod
    def of(cls, recording: Recording, weights: Weights) -> Side:
        """The first call of a recording."""
        call = recording.first
        inputs = given(call.tokens, call.mask, call.positions)
        sites = {name: tensor.detach() for name, tensor in {**call.sites, **inputs}.items()}
        own = {name: tensor.detach() for name, tensor in recording.weights.items()}
        return cls(sites, own, recording.weights_equal)

    def meet(self, name: str, checkpoint: Tensor, reference: Tensor) -> None:
        """Of a weight that is not the checkpoint's in the reference: whether this side's is the reference's."""
        if name in self.known:
            self.own[name] = checkpoint
        elif name in self.own and equal_bytes(self.own[name], reference):
            del self.own[name]
            self.known |= {name}
            return
        self.known -= {name}


def judge(
    spec: Spec, weights: Weights, reference: Recording, candidate: Recording, *, progress: Progress = silent
) -> Result:
    """Compare two recordings step by step.

    `spec` and `weights` are the reference's declared model. Raises ComparisonError if the recordings cannot be
    compared: other tokens, no common site.
    """
    return Judge(spec, weights, reference, candidate, progress).run()


class Judge:
    """The ladder: bytes, replay, rounding's scale, search."""

    def __init__(
        self, spec: Spec, weights: Weights, reference: Recording, candidate: Recording, progress: Progress
    ) -> None:
        check_tokens(reference, candidate)
        self.declared, self.progress = spec, progress
        self.first, self.second = reference, candidate
        self.reference_spec = spec
        """The spec as the reference computes it, known after `run`."""
        self.own: dict[str, Tensor] = {}
        """Tensors of the reference that are not its checkpoint's, known after `run`."""
        self._beyond: list[str] = []
        """Visible sites where the reference does what neither its declaration says nor any change of it."""
        self._coarse: frozenset[tuple[str, str]] = frozenset()
        self.weights: Weights = lambda name: weights(name).detach()
        self.reference, self.candidate = Side.of(reference, weights), Side.of(candidate, weights)
        self.mask = self.reference.sites["mask"]
        sides = (set(reference.first.sites), set(candidate.first.sites))
        self.common = [s for s in spec.sites if s in sides[0] & sides[1]]
        if not self.common:
            raise ComparisonError(
                "the two recordings have no site in common; record the same sites of both, e.g. --sites all"
            )
        check_shapes(self.common, self.reference.sites, self.candidate.sites)
        check_sizes(spec, self.common, self.reference.sites)
        check_weights(self.candidate.own)
        odd = sorted((sides[0] ^ sides[1]) | (sides[0] & sides[1]) - set(spec.sites))
        self.unmatched = [s for s in odd if s not in INPUTS] + reference.unknown + candidate.unknown

    @cached_property
    def meter(self) -> Meter:
        """What judging costs; nothing, where all bytes are equal."""
        shape = self.declared.shape
        attention = float(self.mask.shape[1] * shape.heads * shape.head_width)
        return Meter(sum(work(s, self.weights, attention) for s in self.declared.steps), attention)

    def run(self) -> Result:
        """Judge every site."""
        same = each(self._same, self.common)
        result = Result("identical", [], unmatched=self.unmatched, scope=self._scope())
        if all(same.values()):
            check_finite("reference", self.common[-1:], self.reference.sites, self.mask)  # what is not finite spreads
            result.findings = [Finding(s, "equal") for s in self.common]
            return result
        for name, side in (("reference", self.reference), ("candidate", self.candidate)):
            check_finite(name, [s for s in self.common if not same[s]], side.sites, self.mask)
        spec = self.reference_spec = self._checked_reference(same, result)
        examined, natives = self._examine_candidate(spec, same, result)
        result.findings = [self._finding(s, examined.get(s), natives.get(s), same[s]) for s in self.common]
        self._conclude(spec, examined, result)
        return result

    def _same(self, site: str) -> bool:
        return equal(site, self.reference.sites[site], self.candidate.sites[site], self.mask)

    def _scope(self) -> str:
        sides = {"reference": self.first, "candidate": self.second}
        cut = [f"; the {name}'s recording is partial: more was to come" for name, side in sides.items() if side.partial]
        return f"{len(self.common)} sites of both sides, {int(self.mask.sum())} tokens{''.join(cut)}"

    # the reference against its own declaration -------------------------------------------------------------

    def _checked_reference(self, same: Mapping[str, bool], result: Result) -> Spec:
        """The spec as the reference computes it (rule 10); only where the sides differ in bits."""
        side = self.reference
        examiner = Examiner(self.declared, side.own, side.known)
        found: dict[str, Examination] = {}
        steps = list(merge(self.declared, self.reference.sites, self.weights, self.meter))
        for i, m in enumerate(steps):
            self.progress("checking the reference", i, len(steps))
            if not same.get(m.target, False):
                found[m.target] = examiner(m)
        result.reference_edits = group_causes(self.declared, found)
        result.reference_orders = group_orders(self.declared, found)
        unsolved = [e for e in found.values() if e.is_unsolved]
        result.unexplained += [e.unexplained(" (of the reference itself)") for e in unsolved]
        self._beyond = [self._visible(e.target) for e in unsolved]
        self._coarse = frozenset(
            (site, c.name)
            for e in found.values()
            for c in e.changes.changes
            if isinstance(c, SetField) and is_precision(self.declared, c)
            for site in c.sites
        )
        return self._as_computed([c for e in found.values() for c in (*e.changes.changes, *e.orders.changes)])

    def _as_computed(self, changes: list[Change]) -> Spec:
        """The declared steps with the reference's own changes; its own tensors stand for the checkpoint's."""
        steps = {s.writes: s for s in Variant(tuple(changes)).steps(self.declared.steps)}
        for c in changes:
            if isinstance(c, Use) and c.tensor is not None:
                if c.name in self.declared.weight_names:
                    self.candidate.meet(c.name, self.weights(c.name), c.tensor)
                self.own[c.name] = c.tensor
                steps[c.site] = steps[c.site].using(c.argument, c.name)
        before = self.weights
        self.weights = lambda name: self.own[name] if name in self.own else before(name)
        return self.declared.replace_steps(steps)

    # the candidate against the reference ---------------------------------------------------------------------

    def _examine_candidate(
        self, spec: Spec, same: Mapping[str, bool], result: Result
    ) -> tuple[dict[str, Examination], dict[str, Tensor]]:
        examiner = Examiner(spec, self.candidate.own, self.candidate.known)
        examined: dict[str, Examination] = {}
        natives: dict[str, Tensor] = {}
        steps = list(merge(spec, self.candidate.sites, self.weights, self.meter, self._coarse))
        # the simplest first: what they show is a proposal for those that hide more
        for i, m in enumerate(sorted(steps, key=lambda m: len(m.steps))):
            self.progress("replaying the candidate", i, len(steps))
            if same.get(m.target, False) and all(same.get(r, r in INPUTS) for r in m.reads):
                examined[m.target] = Examination(m.target, "equal", exact=True, exact_without_orders=True)
                continue
            examined[m.target] = examiner(m, hasty=True)
            if m.target in self.reference.sites:
                natives[m.target] = examiner.native
        for i, m in enumerate(steps):
            if examined[m.target].is_unfinished:
                self.progress("searching on", i, len(steps))
                examined[m.target] = examiner(m)
        result.cost, result.diagnosis_cost = self.meter.spent, examiner.diagnosis_cost
        result.assumed = [n for n in spec.weight_names if n not in self.candidate.known and n not in self.candidate.own]
        Agreement(spec, {m.target: m for m in steps}, examined, examiner).run()
        examined = {m.target: examined[m.target] for m in steps}
        result.gauges = gauges.carried_over(spec, self.candidate.sites, self.weights, self.meter, examined)
        return examined, natives

    def _finding(self, site: str, e: Examination | None, native: Tensor | None, same: bool) -> Finding:
        reference, candidate = self.reference.sites[site], self.candidate.sites[site]
        if same and native is None:
            return Finding(site, "equal")
        size = _size(site, by_rows(site, reference, self.mask))
        if native is None or (e is not None and e.status in ("equal", "innocent")):  # it gives the candidate's bits
            total = by_rows(site, difference(site, candidate, reference, torch.float32)[0], self.mask)
            whole = carried = _rms(total)
            injected = 0.0
        else:
            total, here, came = (
                by_rows(site, difference(site, x, y)[0], self.mask)
                for x, y in ((candidate, reference), (candidate, native), (native, reference))
            )
            whole, injected, carried = _rms(total), _rms(here), _rms(came)
        status = "equal" if same else e.status if e is not None else "different"
        return Finding(site, status, whole, injected, carried, size, _largest(total), e.ratio if e else None)

    def _conclude(self, spec: Spec, examined: Mapping[str, Examination], result: Result) -> None:
        result.causes = [self._told(c) for c in group_causes(spec, examined)]
        result.orders = group_orders(spec, examined)
        unsolved = [e for e in examined.values() if e.is_unsolved]
        result.unexplained += [e.unexplained() for e in unsolved]
        at_fault = {self._visible(s) for s, e in examined.items() if e.status in ("explained", "different")}
        at_fault |= set(self._beyond)  # the candidate was judged by what the reference does not do
        result.first_difference = next((s for s in self.common if s in at_fault), None)
        result.verdict = "different" if at_fault else "rounding"
        result.exact = all(e.exact for e in examined.values()) and not self._beyond
        to_the_bit = all(e.exact_without_orders for e in examined.values()) and not result.reference_orders
        explained: Verdict = "identical" if to_the_bit else "rounding"
        result.explained = "different" if unsolved or self._beyond else explained

    def _visible(self, target: str) -> str:
        """The first site of both sides at which a step of one side is seen."""
        at = self.declared.sites.index(target)
        return next((s for s in self.common if self.declared.sites.index(s) >= at), self.common[-1])

    def _told(self, cause: Cause) -> Cause:
        """A cause with the site of both sides where it is seen, and the precisions that it speaks of by name."""
        told = replace(cause, seen_at=self._visible(cause.seen_at))
        change = cause.changes[0]
        if not isinstance(change, SetField) or not is_precision(self.declared, change):
            return told
        given = plain(coming_in(self.declared.at[change.site], stored(self.declared, self.weights)))
        return replace(told, reference=cause.reference or given, candidate=cause.candidate or given)


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / max(x.numel(), 1) ** 0.5


def _largest(x: Tensor) -> float:
    return max(abs(float(end)) for end in torch.aminmax(x)) if x.numel() else 0.0


def _size(site: str, x: Tensor) -> float:
    """Root mean square, masked scores left out; in double precision only where single overflows."""
    x = unmasked(site, x)
    single = _rms(x.float())
    return single if math.isfinite(single) else _rms(x.double())


def check_tokens(reference: Recording, candidate: Recording) -> None:
    """Raises ComparisonError unless both ran the same tokens under the same mask."""
    a, b = reference.first, candidate.first
    if a.tokens.shape != b.tokens.shape or not torch.equal(a.tokens, b.tokens):
        where = "" if a.tokens.shape != b.tokens.shape else f", first at {(a.tokens != b.tokens).nonzero()[0].tolist()}"
        raise ComparisonError(
            f"the recordings ran different tokens (shapes {tuple(a.tokens.shape)} and {tuple(b.tokens.shape)}{where}); "
            f"record both with the same --tokens"
        )
    if not torch.equal(a.mask, b.mask):
        raise ComparisonError("the recordings ran the same tokens under different attention masks; record both alike")


def check_shapes(common: Iterable[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError for a site of another shape; a rotary table may be half as wide."""
    for site in common:
        x, y = a[site].shape, b[site].shape
        if x[:-1] != y[:-1] or (x[-1] != y[-1] and not site.startswith("rotary.")):
            raise ComparisonError(
                f"{site} has shape {tuple(x)} in the reference and {tuple(y)} in the candidate; "
                f"these are models of different size or one recording is damaged"
            )


def check_sizes(spec: Spec, common: Iterable[str], a: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError where a tensor is of another size than the declared model's."""
    shape = spec.shape
    known = {"d": shape.d_model, "h": shape.heads, "k": shape.kv_heads, "e": shape.head_width, "v": shape.vocabulary}
    for site in common:
        for axis, size in zip(axes(site), a[site].shape, strict=True):
            if known.get(axis, size) != size:
                raise ComparisonError(
                    f"{site} has shape {tuple(a[site].shape)}, but the model that was declared has {known[axis]} along "
                    f"{axis!r}; give the checkpoint that was recorded with --model PATH"
                )


def check_weights(own: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError for a weight of the candidate that is not finite."""
    for name, tensor in own.items():
        if not bool(torch.isfinite(tensor).all()):
            row = int((~torch.isfinite(tensor)).nonzero()[0][0])
            raise ComparisonError(
                f"{name} of the candidate has a NaN or an infinity at row {row}; a model that is not finite cannot be "
                "compared: reload its checkpoint"
            )


def check_finite(side: str, sites: Iterable[str], values: Mapping[str, Tensor], mask: Tensor) -> None:
    """Raises ComparisonError for the first site that is not finite at a real token; masked scores may be -inf."""
    for site in sites:
        rows = by_rows(site, values[site], mask)
        if not site.endswith("scores") and bool(torch.isfinite(rows.sum())):
            continue
        bad = torch.isnan(rows) if site.endswith("scores") else ~torch.isfinite(rows)
        if bool(bad.any()):
            raise ComparisonError(
                f"{site} of the {side} has {int(bad.sum())} entries that are not finite, the first site that has any; "
                "a model that is not finite cannot be compared: look at the step that writes it"
            )
