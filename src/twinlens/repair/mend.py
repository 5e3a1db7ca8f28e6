"""Mend a live module: set what it holds; where nothing holds it, replace what the step gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from twinlens import sites as names
from twinlens.capture import Graft, Placement, capture, graft, placed
from twinlens.capture.layout import tolerance
from twinlens.capture.plan import Value
from twinlens.errors import CaptureError
from twinlens.inputs import given
from twinlens.parity.rounding import difference, support, unmasked
from twinlens.repair import held, layers
from twinlens.repair.handles import Handle
from twinlens.repair.instructions import Instruction
from twinlens.repair.mended import Mended
from twinlens.repair.native import Native, computed_as
from twinlens.spec import Spec, Weights

Error = tuple[int, float]
Trial = tuple[list[Instruction], Instruction, Handle]
"""An instruction among those of its step, and what may mend it."""
_NOTHING: Error = (10**12, float("inf"))
_BETTER = 0.5
"""A handle that leaves more than this share of a step's error is not the one."""


def _is_better(now: Error, before: Error) -> bool:
    return now[0] < before[0] or now[1] <= _BETTER * before[1]


def _kind(i: Instruction) -> tuple[str, ...]:
    """What is mended, whatever the layer."""
    return (i.what, i.parameter, i.name, names.generic(i.sites[0]), str(i.candidate))


def _what(i: Instruction) -> tuple[str, str]:
    """A field as it is, wherever."""
    return i.name, str(i.candidate)


class Mender:
    """Applies instructions to one module under the steps of the reference."""

    def __init__(
        self, module: nn.Module, spec: Spec, weights: Weights, tokens: Tensor, mask: Tensor | None, call: Any = None,
        placement: Placement | None = None, declared: Spec | None = None,
    ) -> None:  # fmt: skip
        """`spec` is what the module shall compute, `declared` that by which its sites are found.

        `placement`: where they are, if that is known; it is held against each call.
        """
        self.module, self.spec, self.weights, self.call = module, spec, weights, call
        self.declared = declared or spec
        self.tokens, self.mask = tokens, mask
        self.native = Native(spec, self.declared, weights)
        self.placement: Placement = placement or placed(module, self.declared, weights, mask=mask, call=call)
        self.done = Mended()
        self.wanted_at = set[str]()
        """Sites at which something is to be mended."""
        self.pending = list[Instruction]()
        """What no handle has mended yet."""
        self._found: dict[str, Tensor] | None = None
        """What the module computes as it stands."""

    def __call__(self, wanted: Sequence[Instruction]) -> Mended:
        """Mend everything that is wanted; steps that no handle mends are replaced together at the end."""
        left: dict[str, list[Instruction]] = {}
        by_place: dict[str, list[Instruction]] = {}
        self.wanted_at = {i.seen_at for i in wanted}
        self.pending = list(wanted)
        for i in wanted:
            by_place.setdefault(i.seen_at, []).append(i)
        while by_place:
            seen_at, here = next(iter(by_place.items()))
            del by_place[seen_at]
            pending = self._not_yet(seen_at, here) if here else []
            for i in list(pending):
                before = len(self.done.words)
                if self._set(i, [j for j in pending if j is not i]):
                    pending.remove(i)
                    for words in self.done.words[before:]:
                        self._likewise(i, words, by_place)
            self.pending = [i for i in self.pending if i.seen_at != seen_at or i in pending]
            if pending:
                left[seen_at] = pending
        try:
            self._graft(left)
        except CaptureError:
            self.done.take_back()
            raise
        return self.done

    def _not_yet(self, site: str, here: Sequence[Instruction]) -> list[Instruction]:
        """Without those that a handle which several layers share has mended already."""
        pending, found = list(here), self._seen()
        now = self._error(site, pending, found)
        for i in here:
            fewer = [j for j in pending if j is not i]
            error = self._error(site, fewer, found)
            if i.what == "field" and i.parameter != "order" and error < now:
                pending, now = fewer, error
        return pending

    def kept(self, wanted: Sequence[Instruction]) -> Placement | None:
        """Where the sites are after mending, if that is certain: mended code may show more, weights are others then."""
        shown = self.declared.hidden.union(self.placement.places) >= set(self.declared.sites)
        certain = shown and self.placement.is_sure(self.declared) and all(i.what != "weight" for i in wanted)
        return self.placement if certain else None

    def _likewise(self, i: Instruction, words: str, by_place: Mapping[str, list[Instruction]]) -> None:
        """Set in the other layers what mended one of them, all at once: two calls instead of some for each layer.

        What it does not mend there is taken back, and left for a search of its own.
        """
        trials = list[Trial]()
        for here in by_place.values():
            for j in here:
                if i.what == "field" and _kind(j) == _kind(i):
                    same = (
                        h
                        for h in held.of_field(self.module, self.spec, self.placement, j)
                        if names.any_layer(h.words) == names.any_layer(words)
                    )
                    trials += [(here, j, handle) for handle in same][:1]
        if not trials:
            return
        before = self._errors(trials)
        for _, _, handle in trials:
            self._put(handle)
        try:
            after = self._errors(trials)
        except Exception:  # the border, as in _tried
            after = [_NOTHING] * len(trials)
        for (here, j, handle), was, now in zip(trials, before, after, strict=True):
            if now < was and _is_better(now, was):
                here.remove(j)
                self.pending.remove(j)
                self._keep(handle)
            else:
                self._take_back(handle)

    def _errors(self, trials: Sequence[Trial]) -> list[Error]:
        found = self._seen()
        return [self._error(i.seen_at, [j for j in here if j is not i], found) for here, i, _ in trials]

    # what the implementation itself holds ------------------------------------------------------------------

    def _set(self, i: Instruction, others: Sequence[Instruction]) -> bool:
        if i.what == "weight":
            handle = held.of_weight(self.module, self.placement, self.weights, i.name)
            if handle is not None:
                self._put(handle)
                self._keep(handle)
            return handle is not None
        if i.what != "field":
            return False
        candidates = list(held.of_field(self.module, self.spec, self.placement, i))
        if not candidates:
            return False
        before = self._error(i.seen_at, others)
        if before == (0, 0.0):  # mended already, by a handle that several layers share
            return True
        best: tuple[Error, Handle] | None = None
        alike = {site: self._error(site, ()) for site in self._alike(i.seen_at)}
        for handle in candidates:
            after = self._tried(handle, i.seen_at, others)
            harms = after < before and any(self._is_worse(s, was) for s, was in alike.items())
            with suppress(Exception):
                self._take_back(handle)
            if after < min(before, best[0] if best else before) and not harms:
                best = after, handle
            if after == (0, 0.0) and not harms:
                break
        if best is None or not _is_better(best[0], before):
            return False
        self._put(best[1])
        self._keep(best[1])
        return True

    def _alike(self, seen_at: str) -> list[str]:
        """The same step of other layers, where nothing is to be mended: what several layers share must not harm it."""
        others = (s for s in self.placement.places if names.generic(s) == names.generic(seen_at))
        return [s for s in others if s not in self.wanted_at]

    def _is_worse(self, site: str, was: Error) -> bool:
        now = self._error(site, ())
        return was < now and _is_better(was, now)

    def _tried(self, handle: Handle, seen_at: str, others: Sequence[Instruction]) -> Error:
        """The error of a step with a handle set; infinite where the implementation refuses it."""
        try:
            self._put(handle)
            return self._error(seen_at, others)
        except Exception:  # the border: an implementation may raise anything at a value that it does not expect
            return _NOTHING

    def _keep(self, handle: Handle) -> None:
        self.done.words.append(handle.words)
        self.done.undo.append(handle.undo)

    def _error(self, site: str, others: Sequence[Instruction], found: Mapping[str, Tensor] | None = None) -> Error:
        """How far a step's value is from the reference's step on the module's own tensors: entries that only one of
        them masks, and the distance relative to its size on the others.

        What else is to be mended in this step is taken as it still is: two faults may partly cancel, and mending one
        alone would look worse.
        """
        found = self._seen() if found is None else found
        value = found.get(site)
        if value is None:
            return _NOTHING
        with torch.no_grad():
            native = self.native(site, found, self._as_is(site, others))
        apart, error = support(site, value, native, found["mask"]), difference(site, value, native)
        size = unmasked(site, native.double()).norm()
        return apart, float(error.norm() / size.clamp_min(1e-300))

    def _as_is(self, site: str, others: Sequence[Instruction]) -> list[Instruction]:
        """With what is told at other sites, and may be of a step that this one is computed from as well: tables that no
        layer shows are in each. What is taken as mended here is taken so in them, too.
        """
        if site not in self.wanted_at:
            return list(others)
        mended = [_what(i) for i in self.pending if i.seen_at == site and i not in others]
        return [*others, *(i for i in self.pending if i.seen_at != site and _what(i) not in mended)]

    def _seen(self) -> dict[str, Tensor]:
        if self._found is None:
            graph, self.placement = capture(
                self.module, self.declared, self.weights, self.tokens,
                mask=self.mask, call=self.call, placement=self.placement,
            )  # fmt: skip
            inputs = given(self.tokens, self.mask, changes=self.spec.inputs)
            self._found = {**inputs, **dict(self.placement.reads(graph, self.spec.shape))}
        return self._found

    def _put(self, handle: Handle) -> None:
        self._found = None
        handle.set()

    def _take_back(self, handle: Handle) -> None:
        self._found = None
        handle.undo()

    # what nothing holds ---------------------------------------------------------------------------------------

    def _graft(self, left: Mapping[str, Sequence[Instruction]]) -> None:
        self._seen()  # what was tried and taken back may have shown other sites
        visible = [s for s in left if s in self.placement.places]
        if not visible:
            return
        single = {s: self.native.value(s) for s in visible}
        words = {s: computed_as(self.spec, s, left[s]) for s in visible}
        made = self._grafted(single)
        whole = layers.wholes(self.native, [i for s in visible for i in left[s]])
        if whole and all(w.end in self.placement.places for w in whole):
            off = self._apart()
            if off > tolerance(self._seen()["logits"]):
                made.remove()
                made, words = self._nearer(single, words, whole, off)
        self.done.add(words, made)

    def _nearer(
        self, single: Mapping[str, Value], words: Mapping[str, str], whole: Sequence[layers.Whole], off: float
    ) -> tuple[Graft, Mapping[str, str]]:
        """Whole layers, where they leave less than single steps, which leave the logits so far off."""
        inner = {s for w in whole for s in w.inner}
        outer = {s: v for s, v in single.items() if s not in inner}
        with suppress(CaptureError):
            made = self._grafted(
                outer | {w.end: self.native.value(w.end) for w in whole}, {w.end: w.inner for w in whole}
            )
            if self._apart() < off:
                return made, {s: words[s] for s in outer} | {w.end: w.words for w in whole}
            made.remove()
        return self._grafted(single), words

    def _apart(self) -> float:
        self._found = None
        return layers.apart(self.native, self._seen(), self.tokens, self.mask)

    def _grafted(self, values: Mapping[str, Value], unread: Mapping[str, Sequence[str]] | None = None) -> Graft:
        self._found = None
        return graft(
            self.module, self.declared, self.weights, values, mask=self.mask, call=self.call, unread=unread
        )  # fmt: skip
