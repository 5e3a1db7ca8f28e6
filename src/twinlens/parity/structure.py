"""How a layer may be put together otherwise than it is declared, as rows: what is in sequence, where norms stand, what
other layers of the model have.

Each hypothesis is of a whole layer. A merged step is tried with those rows of it that change what the step computes;
sites whose own rows are other ones are computed anew, since a tensor may stand under the name of what it was taken for.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from twinlens.ops import Add, Normalize, NormWeight
from twinlens.parity.branches import in_sequence, leading_to, norms, overwritten, streams, with_reads
from twinlens.parity.changes import Variant
from twinlens.parity.merged import Merged
from twinlens.parity.rebuilt import AGAIN, Otherwise, Rebuilt
from twinlens.parity.relations import normed_at, unweighted
from twinlens.parity.slots import from_the_cache
from twinlens.sites import axes, block, generic, split
from twinlens.spec import Spec, Step


def rebuilt(merged: Merged, spec: Spec) -> Iterator[Rebuilt]:
    """What a merged step may be in a layer that is put together otherwise."""
    layer = next((at for s in reversed(merged.steps) if (at := split(s.writes)[0]) is not None), None)
    if layer is None:
        return
    seen = set[tuple[Step, ...]]()
    for other in (*otherwise(spec, layer, merged.sites), *norms_added(rows_of(spec, layer))):
        change = other.at(merged.target, merged.steps, merged.sites, spec)
        if change is not None and change.steps not in seen:
            seen.add(change.steps)
            yield change


FEW_LAYERS = 8
"""Of so many each is tried by itself too, where all lie in one step: of more that would cost more than all the rest."""


def everywhere(merged: Merged, spec: Spec) -> Iterator[tuple[Rebuilt, ...]]:
    """The same of all layers that lie in a merged step, where several do; then, of a few, of each of them."""
    alike = dict[Any, list[Rebuilt]]()
    for layer in sorted({at for s in merged.steps if (at := split(s.writes)[0]) is not None}):
        counted = Counter[Any]()
        for other in otherwise(spec, layer, merged.sites):
            change = other.at(merged.target, merged.steps, merged.sites, spec)
            if change is not None:
                what = change.kind, generic(change.enters)
                counted[what] += 1
                alike.setdefault((what, counted[what]), []).append(change)
    yield from (tuple(changes) for changes in alike.values())
    yield from ((c,) for changes in alike.values() if 1 < len(changes) <= FEW_LAYERS for c in changes)


def like(known: Iterable[Variant], merged: Merged, spec: Spec) -> Iterator[Variant]:
    """What other steps were explained by, as this one would have it."""
    kinds = {c.kind for v in known for c in v.changes if isinstance(c, Rebuilt)}
    if kinds:
        yield from (Variant((c,)) for c in rebuilt(merged, spec) if c.kind in kinds)


def otherwise(spec: Spec, layer: int, seen: Mapping[str, Tensor]) -> Iterator[Otherwise]:
    """The ways in which a layer may be put together, likeliest first."""
    rows = rows_of(spec, layer)
    yield from in_sequence(rows, layer)
    yield from overwritten(rows, layer)
    yield from streams(rows)
    yield from norms_before(spec, layer)
    yield from norms_exchanged(rows)
    yield from norms_shared(rows)
    yield from as_in_other_layers(spec, layer)
    yield from from_the_cache(rows, spec, seen)


def rows_of(spec: Spec, layer: int) -> dict[str, Step]:
    """The rows of one layer, by what they write."""
    return {s.writes: s for s in spec.steps if split(s.writes)[0] == layer}


# norms ----------------------------------------------------------------------------------------------------------


def norms_before(spec: Spec, layer: int) -> Iterator[Otherwise]:
    """Norms of what sublayers give, each instead of what its sublayer reads: of one sublayer, of all; then also with
    the site of the stream at what the sublayer reads, here and in every layer.
    """
    layers = sorted({at for s in spec.steps if (at := split(s.writes)[0]) is not None})
    norms = {at: list(_after_sublayers(rows_of(spec, at))) for at in layers}
    for some in ([[n] for n in norms[layer]] if len(norms[layer]) > 1 else []) + [norms[layer]]:
        kinds = {generic(normalize.writes) for normalize, *_ in some}
        alike = [n for at in layers for n in norms[at] if generic(n[0].writes) in kinds]
        here = [s for n in some for s in _before(spec, *n)]
        apart = ([s for n in these for s in _before(spec, *n, apart=True)] for these in (some, alike))
        for made in (here, *(_with_streams(rows, spec) for rows in apart)) if some else ():
            yield Otherwise(
                tuple(made), "norm.order", some[0][0].writes, "after the sublayer", "before the sublayer",
                "what a sublayer reads is normed, not what it gives",
            )  # fmt: skip


def _after_sublayers(rows: Mapping[str, Step]) -> Iterator[tuple[Step, Step, str, tuple[str, ...]]]:
    """Norms of what a sublayer gives: their two rows, the stream that it reads, the steps that read it."""
    for normalize, weight in norms(rows):
        given = normalize.reads[0]
        above = leading_to(rows, given)[::-1]  # the nearest sum first
        stream = next((r for r in above if isinstance(rows[r].op, Add)), given)
        if stream != given and axes(stream) == axes(weight.writes):
            yield normalize, weight, stream, tuple(r for r in above if stream in rows[r].reads)


def _before(
    spec: Spec, normalize: Step, weight: Step, stream: str, entries: tuple[str, ...], *, apart: bool = False
) -> Iterator[Step]:
    """The rows of a norm that stands before its sublayer. `apart`: the stream's site is what the sublayer reads."""
    if apart:
        yield dataclasses.replace(spec.at[stream], writes=f"{stream}{AGAIN}")
        yield Step(stream, Add(), (weight.writes,))
    else:
        yield from (_instead(spec.at[s], stream, weight.writes) for s in entries)
    yield dataclasses.replace(normalize, reads=(f"{stream}{AGAIN}" if apart else stream,))
    yield from (_instead(s, weight.writes, normalize.reads[0]) for s in spec.readers[weight.writes])


def _with_streams(rows: Iterable[Step], spec: Spec) -> list[Step]:
    """With all sums of the stream reading the stream itself, where it is apart from what a sublayer reads."""
    made = {s.writes: s for s in rows}
    apart = {s.removesuffix(AGAIN): s for s in made if s.endswith(AGAIN)}
    sums = [s for s in spec.steps if isinstance(s.op, Add) and s.writes not in apart]
    made |= {s.writes: s for s in sums}
    return [
        dataclasses.replace(s, reads=with_reads(s.reads, apart)) if isinstance(s.op, Add) else s
        for s in made.values()
    ]  # fmt: skip


def _instead(step: Step, read: str, other: str) -> Step:
    return dataclasses.replace(step, reads=with_reads(step.reads, {read: other}))


def norms_added(rows: Mapping[str, Step]) -> Iterator[Otherwise]:
    """What a product gives is normed once more, without a weight; queries and keys by themselves and together."""
    plain = [n.op for n, _ in norms(rows) if isinstance(n.op, Normalize)]
    if not plain:
        return
    for op in unweighted(plain[0]):
        found = dict[str, Otherwise]()
        for site, step in rows.items():
            readers = [s for s in rows.values() if site in s.reads]
            if not step.weights or isinstance(step.op, NormWeight) or not readers:
                continue
            made = Step(f"{site}{AGAIN}", op, (site,))
            found[generic(site)] = Otherwise(
                (made, *(_instead(s, site, made.writes) for s in readers)), "norm.missing", normed_at(site),
                None, "present", f"{split(site)[1]} is normed once more, by {op}",
            )  # fmt: skip
            yield found[generic(site)]
        queries, keys = (found.get(generic(block(0, f"attn.hook_{x}"))) for x in "qk")
        if queries is not None and keys is not None:
            both = (*queries.rows, *keys.rows)
            if len({s.writes for s in both}) == len(both):
                yield dataclasses.replace(queries, rows=both, words=f"queries and keys are normed, by {op}")


def norms_exchanged(rows: Mapping[str, Step]) -> Iterator[Otherwise]:
    """A norm and what stands next to it, the rotation of queries or keys, in each other's place; then of both."""
    found = list[Otherwise]()
    for normalize, weight in norms(rows):
        for step in rows.values():
            if step.reads[0] == weight.writes and step.op.removable and not isinstance(step.op, type(normalize.op)):
                before = dataclasses.replace(
                    step, writes=f"{step.writes}{AGAIN}", reads=(*normalize.reads, *step.reads[1:])
                )
                made = (before, dataclasses.replace(normalize, reads=(before.writes,)), _copy(step, weight.writes))
                found.append(Otherwise(
                    made, "norm.order", normalize.writes, "norm, then rotation", "rotation, then norm",
                    f"{split(normalize.reads[0])[1]} is normed after its rotation",
                ))  # fmt: skip
    yield from found
    if len(found) > 1:
        made = tuple(row for each in found for row in each.rows)
        yield dataclasses.replace(found[0], rows=made, words="queries and keys are normed after their rotation")


def norms_shared(rows: Mapping[str, Step]) -> Iterator[Otherwise]:
    """A norm with weight and bias of another one of the layer."""
    ends = [weight for _, weight in norms(rows)]
    for here in ends:
        for other in ends:
            names, theirs = dict(here.weights), dict(other.weights)
            if here is not other and len(names) > 1 and names.keys() == theirs.keys() and _alike(here, other):
                yield Otherwise(
                    (dataclasses.replace(here, weights=other.weights),), "norm.shared", here.writes,
                    "its own", split(other.writes)[1].partition(".")[0], f"weight and bias of {generic(other.writes)}",
                )  # fmt: skip


def _alike(a: Step, b: Step) -> bool:
    return axes(a.writes) == axes(b.writes)


def _copy(step: Step, of: str) -> Step:
    return Step(step.writes, Add(), (of,))


# other layers ---------------------------------------------------------------------------------------------------


_OF_A_KIND = 4
"""Layers of one structure that another one is tried as, each with its own weights, the nearest first."""


def as_in_other_layers(spec: Spec, layer: int) -> Iterator[Otherwise]:
    """The rows that other layers of the model have and this one has not, with their weights; what both have stays."""
    layers = dict[int, list[Step]]()
    for step in spec.steps:
        if (at := split(step.writes)[0]) is not None:
            layers.setdefault(at, []).append(step)
    layers = {at: rows[1:] for at, rows in layers.items()}  # how a layer begins is no part of it
    own, seen = _structure(layers[layer]), list[Any]()
    for other in sorted(layers, key=lambda n: (abs(n - layer), n)):
        theirs = _structure(layers[other])
        if theirs != own and seen.count(theirs) < _OF_A_KIND:
            made = _as_in(other, layers[other], layer, layers[layer], spec)
            if theirs not in seen or any(s.weights for s in made.rows if s.writes not in spec.at):
                yield made
            seen.append(theirs)


def _as_in(other: int, theirs: Iterable[Step], layer: int, own: Iterable[Step], spec: Spec) -> Otherwise:
    """A layer with the rows of another one, said by what is new, or else by what is gone."""
    moved = [_there(s, layer, spec) for s in theirs]
    rows, there = [s for s in moved if spec.at.get(s.writes) != s], {s.writes for s in moved}
    new, gone = [s for s in rows if s.writes not in spec.at], [s for s in own if s.writes not in there]
    first = (new or gone or rows)[0]
    word = next((s.op.removable for s in new or gone if s.op.removable), None)
    word = word or f"{split(first.writes)[1].partition('.')[0]}.layers"
    was, value = "as declared", f"as in layer {other}"
    if bool(new) != bool(gone):
        was, value = (None, "present") if new else ("present", None)
    return Otherwise(tuple(rows), word, first.writes, was, value, f"its rows are those of layer {other}")


def _structure(rows: Iterable[Step]) -> set[Any]:
    return {(generic(s.writes), type(s.op).__name__, tuple(map(generic, s.reads))) for s in rows}


def _there(step: Step, layer: int, spec: Spec) -> Step:
    """A row of another layer in this one: its own operation and weights where it has a row like that."""

    def move(site: str) -> str:
        return site if split(site)[0] is None else block(layer, split(site)[1])

    moved = dataclasses.replace(step, writes=move(step.writes), reads=tuple(map(move, step.reads)))
    own = spec.at.get(moved.writes)
    if own is None or type(own.op) is not type(step.op):
        return moved
    return dataclasses.replace(own, reads=moved.reads)
