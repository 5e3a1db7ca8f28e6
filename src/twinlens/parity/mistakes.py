"""Changes that are one mistake of the code: alike in all like steps, in one part of each, in layers of two kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

from twinlens.fields import kinds
from twinlens.parity.changes import Change, Feed, Leave, Rewire, SetField, Use, twins
from twinlens.parity.structure import FEW_LAYERS
from twinlens.sites import any_layer, generic, split
from twinlens.spec import Spec, Step

Mistake = tuple[Change, ...]


def together(changes: Iterable[Change], spec: Spec) -> Iterator[Mistake]:
    """Changes that are one mistake: alike in all like steps; and alike in those of one place in a layer."""
    everywhere: dict[tuple[Any, ...], list[Change]] = {}
    for change in dict.fromkeys(changes):
        everywhere.setdefault(of_one_kind(change, spec), []).append(change)
    yield from (tuple(like) for like in everywhere.values())
    for (kind, *what), like in everywhere.items():
        back = everywhere.get((kind, *what[:2], *reversed(what[2:]))) if kind == "SetField" else None
        if back is not None and str(what[2]) < str(what[3]):  # layers of two kinds, each taken for the other
            yield (*like, *back)
    for like in everywhere.values():
        places: dict[str, list[Change]] = {}
        for change in like:
            places.setdefault(generic(change.site), []).append(change)
        if len(places) > 1 and not isinstance(like[0], Feed):
            yield from (tuple(some) for some in places.values())
        if 1 < len(like) <= FEW_LAYERS and isinstance(like[0], Leave):  # a part that one layer has not
            yield from ((change,) for change in like)


def beside(changes: Iterable[Change], spec: Spec) -> Iterator[Mistake]:
    """The same change of like steps in one part of a block: the norm of queries and that of keys."""
    found: dict[tuple[Any, ...], list[Change]] = {}
    for change in changes:
        what = type(spec.at[change.site].op).__name__ if isinstance(change, Leave) else of_one_kind(change, spec)
        found.setdefault((what, split(change.site)[0], split(change.site)[1].split(".")[0]), []).append(change)
    yield from (tuple(like) for like in found.values() if len(like) > 1)


def in_all(mistakes: Iterable[Mistake], spec: Spec) -> Iterator[Mistake]:
    """Mistakes of single steps, made in all like ones."""
    alike: dict[tuple[Any, ...], list[Change]] = {}
    for mistake in mistakes:
        alike.setdefault(tuple(of_one_kind(c, spec) for c in mistake), []).extend(mistake)
    yield from map(tuple, alike.values())


def without(changes: Iterable[Change], spec: Spec) -> Iterator[Mistake]:
    """What several places of each layer go without: each two like parts or biases, those of one part of it, and all."""
    kinds: dict[str, dict[str, list[Change]]] = {}
    for change in changes:
        if isinstance(change, Leave):
            kind, site = type(spec.at[change.sites[-1]].op).__name__, change.sites[-1]
        elif isinstance(change, Use) and change.tensor is None:
            kind, site = "", change.site
        else:
            continue
        kinds.setdefault(kind, {}).setdefault(generic(site), []).append(change)
    for places in kinds.values():
        parts: dict[str, list[str]] = {}
        for place, (first, *_) in places.items():
            parts.setdefault(split(first.site)[1].split(".")[0], []).append(place)
        some = [*combinations(places, 2), *map(tuple, parts.values()), tuple(places)]
        for these in dict.fromkeys(s for s in some if len(s) > 1):
            yield tuple(change for place in these for change in places[place])


def unread(steps: Sequence[Step]) -> Iterator[SetField]:
    """Numbers as they are where nobody reads them."""
    for step in steps:
        usual = {f.name: f.default for f in dataclasses.fields(step.op)}
        for name, kind, now in kinds(step.op):
            tied = twins(steps, step.writes, name) if kind.name == "number" else ()
            if tied[:1] == (step.writes,) and usual[name] not in (now, None, dataclasses.MISSING):
                yield SetField(tied, name, usual[name])


def levelled(steps: Sequence[Step]) -> Iterator[Mistake]:
    """A field that like steps have in several values, in one of them everywhere: what tells the layers apart was not
    read.
    """
    groups: dict[tuple[str, str, str], dict[Any, list[str]]] = {}
    for step in steps:
        for name, kind, value in kinds(step.op):
            if kind.name in ("number", "integer", "choice"):
                key = (type(step.op).__name__, generic(step.writes), name)
                groups.setdefault(key, {}).setdefault(value, []).append(step.writes)
    for (_, _, name), values in groups.items():
        for one in values if len(values) > 1 else ():
            others = [site for value, at in values.items() if value != one for site in at]
            yield tuple(SetField((site,), name, one) for site in others)


def of_one_kind(change: Change, spec: Spec) -> tuple[Any, ...]:
    """What is the same of it in every layer."""
    kind = type(change).__name__
    match change:
        case SetField(sites=(site, *_), name=name, value=value):
            op = spec.at[site].op
            return kind, type(op).__name__, name, getattr(op, name), value
        case Leave():
            return kind, generic(change.sites[-1])
        case Feed():
            return kind, change.name, change.value
        case Rewire():
            return kind, change.value, generic(change.site)
        case Use():
            return kind, any_layer(change.name), change.pattern
        case _:
            return kind, generic(change.site), getattr(change, "value", None)
