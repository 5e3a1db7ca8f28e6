"""Recordings that no run can have made: found before anything is diagnosed, and said of the recording.

Only what cannot be a model's doing is refused. Other sums than the declared ones (a parallel block, a factor, a
norm that is left out) are differences of a model, and are left to the diagnosis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from twinlens.errors import RecordingError
from twinlens.ops import Add, Embed, Normalize, Project
from twinlens.parity.rounding import by_rows
from twinlens.parity.sides import inputs_of
from twinlens.recording import Recording
from twinlens.sites import INPUTS, axes, by_slot, split
from twinlens.spec import Spec, Step, Weights, evaluate

_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
_VIOLATED, _FITS = 0.05, 0.1
"""A sum is broken beyond this part of what it adds, and repaired when what is broken shrinks to this part."""
_CLONE = "keep a copy (clone) of each tensor when it is written: a buffer that is used again shows what came last"


def check_recording(spec: Spec, weights: Weights, recording: Recording, name: str) -> None:
    """Raises RecordingError, which names the sites, where these tensors cannot be those of one run."""
    seen = _Seen(spec, weights, recording)
    said = seen.repeated() or seen.overwritten() or seen.weighted() or seen.misplaced()
    if said is not None:
        raise RecordingError(f"the recording of {name} is not of one run: {said}.")


@dataclass(frozen=True)
class _Point:
    """A visible site of the residual stream, what was added since the one before, and how it is computed alone."""

    site: str
    value: Tensor
    added: Tensor | None
    """None where a branch in between is not visible."""


class _Seen:
    def __init__(self, spec: Spec, weights: Weights, recording: Recording) -> None:
        call = recording.first
        self.given = inputs_of(recording, spec, call.tokens.device)
        self.spec, self.mask, self.sites = spec, call.mask, call.sites
        self.weights: Weights = lambda name: weights(name).detach()
        self.visible = [s for s in spec.sites if s in call.sites and not by_slot(s)]
        self.adds = [s for s in spec.steps if isinstance(s.op, Add)]

    def rows(self, site: str) -> Tensor:
        return by_rows(site, self.sites[site].detach(), self.mask).double()

    # the same tensor in several layers -----------------------------------------------------------------------

    def repeated(self) -> str | None:
        """Sites of two layers that hold the same bits, though other weights and another stream made them."""
        by_name = defaultdict[str, list[str]](list)
        for site in self.visible:
            layer, rest = split(site)
            if layer is not None:
                by_name[rest].append(site)
        pairs = [
            pair for rest, group in by_name.items() if rest not in _STREAM and ".ln" not in f".{rest}"
            for pair in pairwise(group) if self._same(*pair) and self._tells(pair[0])
        ]  # fmt: skip
        if pairs:
            (a, b), more = pairs[0], len(pairs) - 1
            return f"{b} is bit for bit {a}{f', and so are {more} more sites' if more else ''}; {_CLONE}"
        names = [by_name[n] for n in _STREAM if by_name[n]]
        if names and all(len(g) > 1 and all(self._same(*p) for p in pairwise(g)) for g in names):
            first = [g[0] for g in names]
            if len(first) > 1 and not all(self._same(*p) for p in pairwise(first)):
                return f"{' and '.join(first)} are bit for bit the same in every layer; {_CLONE}"
        return None

    def _same(self, a: str, b: str) -> bool:
        x, y = self.sites[a], self.sites[b]
        return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)

    def _tells(self, site: str) -> bool:
        """Whether it hangs on its input: no zeros, no bias alone, no pattern that any model has."""
        x = self.rows(site)
        if axes(site)[-1] != "s":
            return bool((x != x[:1]).any())
        low = x.masked_fill(x <= 0, torch.inf).amin(-1)
        return bool(((x > low[:, None]) & torch.isfinite(low)[:, None] & torch.isfinite(x)).any())

    # the residual stream -------------------------------------------------------------------------------------

    def overwritten(self) -> str | None:
        """A run of equal sites of the stream that hold what comes only later, since more was added meanwhile."""
        points = list(self._points())
        start = 0
        while start < len(points):
            end = start
            while end + 1 < len(points) and torch.equal(points[end + 1].value, points[start].value):
                end += 1
            run = points[start : end + 1]
            if len(run) > 1 and self._later(points[start - 1] if start else None, run):
                first, last = run[0].site, run[-1].site
                between = f"all {len(run)} from {first} to {last}" if len(run) > 2 else f"{first} and {last}"
                return f"{between} are bit for bit the same and hold the stream as it is at the end; {_CLONE}"
            start = end + 1
        return None

    def _points(self) -> Iterator[_Point]:
        whole: Tensor | None = None
        known = True
        first = self.adds[0].reads[0]
        if first in self.sites:
            yield _Point(first, self.rows(first), None)
        for step in self.adds:
            if len(step.reads) > 1:
                branch = self.rows(step.reads[1]) if step.reads[1] in self.sites else None
                known = known and branch is not None
                if branch is not None:
                    whole = branch if whole is None else whole + branch
            if step.writes in self.sites:
                value = self.rows(step.writes)
                yield _Point(
                    step.writes, value, (torch.zeros_like(value) if whole is None else whole) if known else None
                )
                whole, known = None, True

    def _later(self, before: _Point | None, run: list[_Point]) -> bool:
        first, last = run[0], run[-1]
        if before is not None and first.added is not None:
            off = first.value - before.value - first.added
        else:
            earlier = self.visible[: self.visible.index(first.site)]
            off = first.value - self._replayed(first.site, {s: self.sites[s] for s in earlier})
        meanwhile = [p.added for p in run[1:] if p.added is not None]
        if len(meanwhile) < len(run) - 1:  # what was added is not seen: a whole layer adds something
            return split(first.site)[0] != split(last.site)[0] and _rms(off) > _FITS * _rms(first.value)
        total = torch.stack(meanwhile).sum(0)
        return _rms(off) > 0.5 * _rms(total) > 0.0 and _rms(off - total) < _FITS * _rms(total)

    def _replayed(self, site: str, known: Mapping[str, Tensor]) -> Tensor:
        """What the declared steps make of these tensors and the inputs."""
        value = evaluate(self.spec.between(site, known), {**self.given, **known}, self.weights)[site]
        return by_rows(site, value, self.mask).double()

    # hooks that fire elsewhere -------------------------------------------------------------------------------

    def weighted(self) -> str | None:
        """A norm's result under the name of its value before the weight: where TransformerLens's layer norm hooks."""
        found = list[str]()
        for step in self.spec.steps:
            site = step.writes
            if isinstance(step.op, Normalize) and site in self.sites and step.reads[0] in self.sites:
                after = self.spec.readers[site][0]
                hidden = after.writes not in self.sites or self._same(site, after.writes)
                if not hidden or not self._is_later(site, after.writes):
                    break
                found.append(f"{site} is taken after its weight and is this model's {after.writes}")
        more = f"; so are {len(found) - 1} more sites" if len(found) > 1 else ""
        return f"{found[0]}; file it under that name{more}" if found else None

    def _is_later(self, site: str, later: str) -> bool:
        """Whether a site holds what the model has at a later one, and the model goes on from there."""
        x = self.rows(site)
        known = {s: self.sites[s] for s in self.visible if s not in (site, later)}
        off = _rms(x - self._replayed(site, known))
        if off <= _VIOLATED * _rms(x) or _rms(x - self._replayed(later, known)) > _FITS * off:
            return False
        following = next((s for s in self.visible[self.visible.index(site) + 1 :] if self._hangs_on(s, later)), None)
        if following is None:
            return True
        y, others = self.rows(following), {s: t for s, t in known.items() if s != following}
        right, wrong = (self._replayed(following, {**others, name: self.sites[site]}) for name in (later, site))
        return _rms(y - right) < _FITS * _rms(y - wrong)

    def _hangs_on(self, site: str, hidden: str) -> bool:
        return any(hidden in step.reads for step in self.spec.between(site, (s for s in self.visible if s != site)))

    def misplaced(self) -> str | None:
        """Sums that do not hold, and hold once a site is taken for what the model has at another point."""
        found = defaultdict[str, list[str | None]](list)
        for i, step in enumerate(self.adds):
            if all(s in self.sites for s in (step.writes, *step.reads)):
                broken = self._broken(step)
                if broken is not None:
                    found[split(step.writes)[1]].append(self._reason(i, step, broken))
        for reasons in found.values():
            if reasons[0] is not None and None not in reasons:
                return reasons[0] + (f"; so in {len(reasons)} layers" if len(reasons) > 1 else "")
        return None

    def _broken(self, step: Step) -> Tensor | None:
        """What a sum leaves over, where that is no rounding."""
        tensors = [self.sites[s] for s in (step.writes, *step.reads)]
        total, stream, *branch = (self.rows(s) for s in (step.writes, *step.reads))
        added = total - stream
        over = added - branch[0] if branch else added
        floats = [t.dtype for t in tensors if t.is_floating_point()]
        u = max(torch.finfo(t).eps for t in floats)
        small = _VIOLATED * _rms(added if branch else total)
        return over if _rms(over) > max(small, 8 * u * _rms(total)) else None

    def _reason(self, index: int, step: Step, broken: Tensor) -> str | None:
        total, stream = self.rows(step.writes), self.rows(step.reads[0])
        fits = _FITS * _rms(broken)
        if len(step.reads) == 1:
            return self._unscaled(step, total, stream, fits)
        site, added = step.reads[1], total - stream
        for point in self._earlier(site):
            if _rms(self._replayed(site, {point: self.sites[site]}) - added) < fits:
                return f"{site} is taken before its last step and is this model's {point}; file it under that name"
        twin = next(
            (s for s in self.visible if s != site and split(s)[0] == split(site)[0] and self._same(s, site)), None
        )
        if twin is not None:
            due = self._replayed(site, {s: self.sites[s] for s in self.visible if s != site})
            if _rms(due - added) < 0.5 * min(_rms(due - self.rows(site)), _rms(added)):
                return f"{site} is bit for bit {twin}, and the stream took up something else; hook it where it is made"
        return self._aside(index, step, fits)

    def _unscaled(self, step: Step, total: Tensor, stream: Tensor, fits: float) -> str | None:
        """The embedding before its factor."""
        before = self.spec.at.get(step.reads[0])
        if before is None or not isinstance(before.op, Embed) or _rms(before.op.folded(stream) - total) > fits:
            return None
        return (
            f"{before.writes} is taken before its factor, which stands in {step.writes}; "
            "give it as the blocks read it, or leave it out"
        )

    def _earlier(self, site: str) -> Iterator[str]:
        """Hidden sites before this one, back to the product."""
        step = self.spec.at[site]
        while not isinstance(step.op, Project) and step.reads[0] not in INPUTS:
            site = step.reads[0]
            yield site
            step = self.spec.at[site]

    def _aside(self, index: int, step: Step, fits: float) -> str | None:
        """A sum that the next one goes on without: what stands under its name is not the stream."""
        site, following = step.writes, self.adds[index + 1] if index + 1 < len(self.adds) else None
        if following is None or following.reads[0] != site or any(self._same(site, r) for r in step.reads):
            return None
        if any(s not in self.sites for s in (following.writes, *following.reads)):
            return None
        parts = (*step.reads, *following.reads[1:])
        without = self.rows(following.writes) - torch.stack([self.rows(s) for s in parts]).sum(0)
        if _rms(without) > fits:
            return None
        return f"{site} is not {' + '.join(step.reads)}, but {following.writes} goes on as if it were; {_CLONE}"


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / max(x.numel(), 1) ** 0.5
