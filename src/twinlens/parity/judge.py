"""Two recordings of one declared model: where they part, why, and what is only rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from twinlens.bits import each
from twinlens.errors import ComparisonError
from twinlens.parity import gauges
from twinlens.parity.changes import SetField, is_precision
from twinlens.parity.examine import Examiner
from twinlens.parity.grouping import group_causes, group_orders, plain
from twinlens.parity.merged import Merged, coming_in, stored
from twinlens.parity.meter import Meter, work
from twinlens.parity.reference import Computed, as_computed
from twinlens.parity.relative import relative
from twinlens.parity.result import Cause, Examination, Finding, Result, Verdict
from twinlens.parity.rounding import by_rows, difference, equal, unmasked
from twinlens.parity.sides import (
    Side,
    check_dtypes,
    check_finite,
    check_shapes,
    check_sizes,
    check_tokens,
    check_weights,
    inputs_of,
)  # fmt: skip
from twinlens.parity.walk import Walk
from twinlens.recording import Recording
from twinlens.sites import ASKED, INPUTS, by_slot, is_input
from twinlens.spec import Spec, Weights

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, of: int) -> None:
    """No progress shown."""


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
        self, spec: Spec, weights: Weights, reference: Recording, candidate: Recording, progress: Progress,
        before: Judge | None = None,
    ) -> None:  # fmt: skip
        """`before` judged an earlier call of the same two sides."""
        self._before, self.examiners = before.examiners if before is not None else {}, dict[str, Examiner]()
        check_tokens(reference, candidate)
        self.declared, self.progress = spec, progress
        self.first, self.second = reference, candidate
        self.computed = Computed(spec, lambda name: weights(name).detach())
        """What the reference computes; after `run` also where that is not what it is declared to."""
        self._beyond: list[str] = []
        """Visible sites where it does what neither its declaration says nor any change of it."""
        device = weights(spec.weight_names[0]).device
        self.reference, self.candidate = (Side.of(r, spec, device) for r in (reference, candidate))
        self.mask = self.reference.sites["mask"]
        sides = (set(reference.first.sites), set(candidate.first.sites))
        self.common = [s for s in spec.sites if s in sides[0] & sides[1] and not by_slot(s)]
        if not self.common:
            raise ComparisonError(
                "the two recordings have no site in common; record the same sites of both, e.g. --sites all"
            )
        check_dtypes(self.common, self.reference.sites, self.candidate.sites)
        check_shapes(self.common, self.reference.sites, self.candidate.sites)
        check_sizes(spec, self.common, self.reference.sites)
        check_weights(self.candidate.own)
        odd = sorted((sides[0] ^ sides[1]) | (sides[0] & sides[1]) - set(spec.sites))
        self.unmatched = [s for s in odd if not is_input(s)] + reference.unknown + candidate.unknown

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
        self._check_reference(same, result)
        examined, natives = self._examine_candidate(same, result)
        result.findings = [self._finding(s, examined.get(s), natives.get(s), same[s]) for s in self.common]
        self._conclude(examined, result)
        return result

    def _same(self, site: str) -> bool:
        return equal(site, self.reference.sites[site], self.candidate.sites[site], self.mask)

    def _scope(self) -> str:
        sides = {"reference": self.first, "candidate": self.second}
        cut = [f"; the {name}'s recording is partial: more was to come" for name, side in sides.items() if side.partial]
        return f"{len(self.common)} sites of both sides, {int(self.mask.sum())} tokens{''.join(cut)}"

    @property
    def weights(self) -> Weights:
        """The reference's."""
        return self.computed.weights

    def _check_reference(self, same: Mapping[str, bool], result: Result) -> None:
        """What the reference computes, where the sides differ in bits (rule 10)."""
        seen = Walk(
            self.declared, self.reference, self.weights, self.meter, self.declared, self._before.get("reference")
        )
        self.examiners["reference"] = seen.examiner
        seen.run(lambda m: same.get(m.target, False), lambda i, n: self.progress("checking the reference", i, n))
        found = {site: e for site, e in seen.examined.items() if e.status != "equal"}
        result.reference_edits = group_causes(self.declared, found)
        result.reference_orders = group_orders(self.declared, found)
        unsolved = [e for e in found.values() if e.is_unsolved]
        result.unexplained += [e.unexplained(" (of the reference itself)") for e in unsolved]
        changes = [c for e in found.values() for c in (*e.changes.changes, *e.orders.changes)]
        checkpoint, self.computed = self.weights, as_computed(self.declared, self.weights, changes)
        self._beyond = [self._visible(s) for s in (*(e.target for e in unsolved), *self.computed.left_out)]
        for name, tensor in self.computed.own.items():
            if name in self.declared.weight_names:
                self.candidate.meet(name, checkpoint(name), tensor)
        given = inputs_of(self.second, self.computed.spec, self.mask.device)
        self.candidate.sites = {**self.candidate.sites, **given}

    def _examine_candidate(
        self, same: Mapping[str, bool], result: Result
    ) -> tuple[dict[str, Examination], dict[str, Tensor]]:
        def is_equal(m: Merged) -> bool:
            return same.get(m.target, False) and all(same.get(r, r in INPUTS or r in ASKED) for r in m.reads)

        spec = self.computed.spec
        seen = Walk(spec, self.candidate, self.weights, self.meter, self.declared, self._before.get("candidate"))
        self.examiners["candidate"] = seen.examiner
        seen.run(is_equal, lambda i, n: self.progress("replaying the candidate", i, n))
        result.cost, result.diagnosis_cost = self.meter.spent, seen.examiner.diagnosis_cost
        result.assumed = [n for n in spec.weight_names if n not in self.candidate.known and n not in self.candidate.own]
        run = spec, self.candidate.sites, self.weights, self.meter, seen.examined
        result.gauges = [*gauges.carried_over(*run), *relative(*run)]
        return seen.examined, {s: x for s, x in seen.natives.items() if s in self.reference.sites}

    def _finding(self, site: str, e: Examination | None, native: Tensor | None, same: bool) -> Finding:
        reference, candidate = self.reference.sites[site], self.candidate.sites[site]
        if same and native is None:
            return Finding(site, "equal")
        if self.declared.at[site].op.chooses:
            return self._chosen(site, e)
        size = _size(site, by_rows(site, reference, self.mask))
        if native is None or (e is not None and e.status in ("equal", "innocent")):  # it gives the candidate's bits
            total = by_rows(site, difference(site, candidate, reference, torch.float32), self.mask)
            whole = carried = _rms(total)
            injected = 0.0
        else:
            total, here, came = (
                by_rows(site, difference(site, x, y), self.mask)
                for x, y in ((candidate, reference), (candidate, native), (native, reference))
            )
            whole, injected, carried = _rms(total), _rms(here), _rms(came)
        status = "equal" if same else e.status if e is not None else "different"
        return Finding(site, status, whole, injected, carried, size, _largest(total), e.ratio if e else None)

    def _others(self, site: str) -> Tensor:
        """For each real token how many of the reference's choices the candidate did not make."""
        reference, candidate = self.reference.sites[site], self.candidate.sites[site]
        missing = ~(reference.unsqueeze(-1) == candidate.unsqueeze(-2)).any(-1)
        return by_rows(site, missing.float(), self.mask).sum(-1)

    def _chosen(self, site: str, e: Examination | None) -> Finding:
        """How large a part of what the one side chose the other did not."""
        off = float(self._others(site).mean()) / self.reference.sites[site].shape[-1]
        return Finding(
            site, e.status if e is not None else "different", off, 0.0, off, 1.0, off, e.ratio if e else None
        )

    def _flips(self) -> int:
        """Tokens that took another expert in some layer."""
        chosen = [s for s in self.common if self.declared.at[s].op.chooses]
        return int(sum(self._others(s) for s in chosen).gt(0).sum()) if chosen else 0  # type: ignore[union-attr]

    def _conclude(self, examined: Mapping[str, Examination], result: Result) -> None:
        result.causes = [self._told(c) for c in group_causes(self.computed.spec, examined)]
        result.orders = group_orders(self.computed.spec, examined)
        unsolved = [e for e in examined.values() if e.is_unsolved]
        result.unexplained += [e.unexplained() for e in unsolved]
        at_fault = {self._visible(s) for s, e in examined.items() if e.status in ("explained", "different")}
        at_fault |= set(self._beyond)  # the candidate was judged by what the reference does not do
        result.first_difference = next((s for s in self.common if s in at_fault), None)
        result.verdict = "different" if at_fault else "rounding"
        result.flips = 0 if at_fault else self._flips()
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
