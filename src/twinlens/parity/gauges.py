"""Changes of tensors that change no function: neurons in another order, pairs of a rotation, factors that cancel.

Whatever the change is, it need not be known: two weights of a layer that differ, and a later site at which the
reference's own weights give what the candidate has, from the same inputs, with all between them hidden.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from twinlens import sites
from twinlens.parity.changes import Use
from twinlens.parity.merged import Meter, merge
from twinlens.parity.result import Examination
from twinlens.parity.score import Scorer
from twinlens.spec import Spec, Weights

_GONE = 0.01
"""A change is a gauge where less than this is left of it: what two faults leave of each other is more."""


def carried_over(
    spec: Spec, seen: Mapping[str, Tensor], weights: Weights, meter: Meter, examined: dict[str, Examination]
) -> list[str]:
    """What is a gauge, in words, layer by layer; the steps that it moved are rounding from then on."""
    words = list[str]()
    for targets in _layers(examined):
        for end, inner in _ends(spec, seen, targets):
            worst = max(r.wide for t in targets if (r := examined[t].ratio) is not None)
            shown = {s: x for s, x in seen.items() if s not in inner}
            merged = next(m for m in merge(spec, shown, weights, meter) if m.target == end)
            ratio = Scorer(merged, spec).base.ratio
            if ratio.is_rounding and ratio.wide < _GONE * worst:
                words.append(_words(end, targets, examined))
                for site in (*inner, end):
                    if site in examined and examined[site].status in ("explained", "different"):
                        examined[site] = Examination(site, "rounding", ratio=ratio)
                break
    return words


def _layers(examined: Mapping[str, Examination]) -> Iterator[list[str]]:
    """The steps of a layer whose weights differ, where there are two or more."""
    found = defaultdict[int, list[str]](list)
    for target, e in examined.items():
        layer = sites.split(target)[0]
        if layer is not None and any(isinstance(c, Use) for c in e.changes.changes):
            found[layer].append(target)
    yield from (targets for targets in found.values() if len(targets) > 1)


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


def _words(end: str, targets: list[str], examined: Mapping[str, Examination]) -> str:
    uses = [c for t in targets for c in examined[t].changes.changes if isinstance(c, Use)]
    told = ", ".join(dict.fromkeys(f"{u.name} ({u.pattern})" for u in uses))
    return f"{told}: the same function at {end}"
