"""Changes of tensors that change no function: neurons in another order, pairs of a rotation, factors that cancel.

Whatever the change is, it need not be known: two steps of a layer that differ, and a later site at which the
reference's own give what the candidate has, from the same inputs, with all between them hidden.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from twinlens import sites
from twinlens.parity.changes import Change, SetField, Use, Variant
from twinlens.parity.hypotheses import show
from twinlens.parity.merged import Merged, merge
from twinlens.parity.meter import Meter
from twinlens.parity.relative import GONE, is_near, left
from twinlens.parity.result import Examination
from twinlens.parity.rounding import Ratio
from twinlens.parity.score import Scorer
from twinlens.spec import Spec, Weights


def carried_over(
    spec: Spec, seen: Mapping[str, Tensor], weights: Weights, meter: Meter, examined: dict[str, Examination]
) -> list[str]:  # fmt: skip
    """What is a gauge, in words, layer by layer; the steps that it moved are rounding from then on."""
    words = [e.gauge for e in examined.values() if e.gauge]
    for targets in _layers(examined):
        for end, inner in _ends(spec, seen, targets):
            worst = max(r.wide for t in targets if (r := examined[t].ratio) is not None)
            shown = {s: x for s, x in seen.items() if s not in inner}
            leads = [m for m in merge(spec, shown, weights, meter) if m.target == end or _passes(m, inner)]
            if not all(map(is_near, leads)):
                continue
            known = all(examined[t].changes for t in targets)
            changes = Variant(tuple(c for t in targets if known for c in examined[t].changes.changes))
            ratios = {m.target: left(m, spec, worst, changes.at(m.steps)) for m in leads}
            if all(r is not None for r in ratios.values()):
                words.append(_words(end, targets, examined, spec))
                for site in (*inner, *ratios):  # whoever reads what is hidden gives the same, too
                    if site in examined and examined[site].status in ("explained", "different"):
                        examined[site] = Examination(site, "rounding", ratio=ratios.get(site, ratios[end]))
                break
    return words


def shifted(m: Merged, spec: Spec, before: Ratio) -> Examination | None:
    """A constant per token on what the softmax of the next token reads: no probability changes."""
    if m.target != "logits" or before.support:
        return None
    shift = (m.value.double() - m.native().double()).mean(-1, keepdim=True)
    whole = dataclasses.replace(m, sites={**m.sites, m.target: m.value.double() - shift})
    ratio = Scorer(whole, spec).base.ratio
    # In 16 bits the constant moves the roundings of what is stored, and more than a hundredth is left of a small one.
    gone = ratio.wide < GONE * before.wide or (ratio.is_close and not before.is_rounding)
    if not ratio.is_rounding or not gone:
        return None
    low, high = (float(end) for end in shift.aminmax())
    words = f"logits.shift: {low:.4g} to {high:.4g}, the same for all entries of a token: no probability changes"
    return Examination(m.target, "rounding", ratio=ratio, gauge=words)


def _passes(m: Merged, inner: list[str]) -> bool:
    """Whether a step goes through what is hidden: whoever else reads it must be as it was, too."""
    return any(s.writes in inner for s in m.steps)


def _layers(examined: Mapping[str, Examination]) -> Iterator[list[str]]:
    """The steps of a layer whose weights differ, where there are two or more; then with those whose fields do; then
    with those that nothing explains.
    """
    layers = defaultdict[int | None, list[str]](list)
    for target in examined:
        layers[sites.split(target)[0]].append(target)
    for within in layers.values():
        before = list[str]()
        for kinds in ((Use,), (Use, SetField), ()):
            at_fault = [t for t in within if examined[t].status in ("explained", "different")]
            targets = [t for t in at_fault if not kinds or _has(examined[t], *kinds)]
            used = not kinds or any(_has(examined[t], Use) for t in targets)
            alone = len(targets) == 1 and kinds == (Use,)  # a bias that the next step takes no notice of
            if used and (len(targets) > 1 or alone) and targets != before:
                yield targets
            before = targets


def _has(e: Examination, *kinds: type[Change]) -> bool:
    return any(isinstance(c, kinds) for c in e.changes.changes)


def _ends(spec: Spec, seen: Mapping[str, Tensor], targets: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each site from the last of the targets on, with the sites before it that the targets move."""
    layer, moved, after = sites.split(targets[0])[0], list[str](), False
    for step in spec.steps:
        if sites.split(step.writes)[0] != layer:
            continue
        after = after or step.writes == targets[-1]
        moves = step.writes in targets or any(r in moved for r in step.reads)
        if after and moves and step.writes in seen:
            yield step.writes, [s for s in moved if s != step.writes]
        if moves:
            moved.append(step.writes)


def _words(end: str, targets: list[str], examined: Mapping[str, Examination], spec: Spec) -> str:
    changes = [c for t in targets for c in examined[t].changes.changes]
    told = [f"{c.name} ({c.pattern})" if isinstance(c, Use) else show(c, spec) for c in changes]
    told += [f"{t} (by no change that has a name)" for t in targets if not examined[t].changes]
    told = ", ".join(dict.fromkeys(told))
    return f"{told}: the same function at {end}"
