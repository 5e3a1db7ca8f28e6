"""A step that has tables of its own where all layers share one: with another base, at other positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from twinlens.parity.changes import Feed, SetField, Variant, concerns, slot
from twinlens.parity.grouping import values
from twinlens.parity.hypotheses import show
from twinlens.parity.merged import Merged
from twinlens.parity.rebuilt import AGAIN, Rebuilt
from twinlens.parity.score import Found
from twinlens.sites import split
from twinlens.spec import Spec, Step


def shared(m: Merged, spec: Spec, fixed: Collection[str]) -> set[str]:
    """The sites outside the layers that a step of a layer reads, where the run shows them or other steps say that they
    are as declared (`fixed`).
    """
    if split(m.target)[0] is None:
        return set()
    reads = {r for s in m.steps for r in s.reads}
    return {r for r in reads if split(r)[0] is None and r in spec.at and (r in m.sites or r in fixed)}


def inside(m: Merged, tables: set[str], spec: Spec) -> Merged:
    """The same merged step, in which these tables are computed once more."""
    sites = {site: x for site, x in m.sites.items() if site not in tables}
    steps = spec.between(m.target, sites)
    return dataclasses.replace(m, steps=steps, kernel_steps=steps, sites=sites)


def own(m: Merged, tables: set[str], found: Found, spec: Spec, before: Iterable[Variant]) -> Found | None:
    """What explains such a step, as a change of the step itself alone; None where it is no change of the tables.

    The score is not known yet. `before` are what other steps were explained by: of queries and keys of one layer that
    have the same tables it is one cause, and enters at the queries.
    """
    changes = found.variant.changes
    if not all(isinstance(c, SetField | Feed) and tables.issuperset(concerns(c)) for c in changes):
        return None
    first, layer = changes[0], split(m.target)[0]
    again = {t: f"{t}{AGAIN}.{m.target}" for t in tables}
    fed = {f"candidate:{c.name}": c for c in changes if isinstance(c, Feed)}
    names = {**again, **{name: f"{name}{AGAIN}.{m.target}" for name in fed}}
    made = [s for s in found.variant.steps(spec.steps) if s.writes in tables]
    readers = [s for s in m.steps if s.writes not in tables and tables.intersection(s.reads)]
    rows = tuple(_moved(s, names) for s in (*made, *readers))
    was, value = values(spec, first)
    more = ", ".join(show(c, spec) for c in changes[1:])
    word, words = first.parameter(spec), f"read from tables of its own{', also with ' * bool(more)}{more}"
    alike = (c for v in before for c in v.changes if isinstance(c, Rebuilt) and c.kind == (word, value))
    enters = next((c.enters for c in alike if split(c.enters)[0] == layer), readers[0].writes)
    given = tuple((names[name], c.tensor) for name, c in fed.items())
    change = Rebuilt(m.target, rows, word, enters, was, value, words, given)
    intervals, closed = (
        {slot(change): of[slot(first)]} if slot(first) in of else {} for of in (found.intervals, found.names)
    )
    return Found(Variant((change,)), found.score, intervals, closed)  # type: ignore[arg-type]


def _moved(step: Step, names: Mapping[str, str]) -> Step:
    reads = tuple(names.get(r, r) for r in step.reads)
    return dataclasses.replace(step, writes=names.get(step.writes, step.writes), reads=reads)
