"""The edits that turn one spec into another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from twinlens.edits import Edit, Input, Insert, Remove, Rewire, Set, apply, same
from twinlens.errors import ComparisonError
from twinlens.fields import kinds
from twinlens.sites import block, split
from twinlens.spec import Spec, Step, Weight


def diff(a: Spec, b: Spec) -> list[Edit]:
    """The edits that turn `a` into `b`; none where the specs are equal.

    Laws: `apply(a, diff(a, b)) == b`, `diff(a, a) == []`. Equal edits in several layers are one
    edit of a pattern.

    Raises:
        ComparisonError: the specs differ in family, dtype or geometry, which no edit changes.
    """
    for name in ("family", "dtype", "shape"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            raise ComparisonError(
                f"the specs differ in {name}, {ours} and {theirs}; edits are between specs of one "
                "family, dtype and geometry."
            )
    single = list(_single(a, b))
    grouped = list(_grouped(a, b, single))
    return grouped if apply(a, grouped) == b else single


def _single(a: Spec, b: Spec) -> Iterator[Edit]:
    """Site by site: what goes, what comes, what changes, what is wired otherwise, inputs."""
    kept = _kept(a, b)
    if not kept:
        raise ComparisonError("the specs have no step in common; no edit can begin anywhere.")
    gone: list[Edit] = [Remove(site) for site in a.sites if site not in kept]
    yield from gone
    come = list(_inserts(b, kept))
    yield from come
    now = apply(a, [*gone, *come])
    for step in now.steps:
        yield from _sets(step, b.at[step.writes])
    for step in now.steps:
        if step.reads != b.at[step.writes].reads:
            yield Rewire(step.writes, b.at[step.writes].reads)
    changes, wanted = dict(a.inputs), dict(b.inputs)
    for name in changes | wanted:
        if changes.get(name) != wanted.get(name):
            yield Input(name, wanted.get(name, name))


def _kept(a: Spec, b: Spec) -> set[str]:
    """Sites whose steps stay: the same operation, in the same order."""
    blocks = SequenceMatcher(None, a.sites, b.sites, autojunk=False).get_matching_blocks()
    common = (a.sites[m.a + n] for m in blocks for n in range(m.size))
    return {site for site in common if _becomes(a.at[site], b.at[site])}


def _becomes(ours: Step, theirs: Step) -> bool:
    """Whether setting fields and reads turns one step into the other."""
    if type(ours.op) is not type(theirs.op):
        return False
    names = {name: None for name, _ in ours.weights if name in dict(theirs.weights)}
    names |= {name: None for name, _ in theirs.weights}
    return tuple(names) == tuple(name for name, _ in theirs.weights)


def _inserts(b: Spec, kept: set[str]) -> Iterator[Insert]:
    """Steps of b that are not kept, in its order; the first kept one anchors those before it."""
    first = next((site for site in b.sites if site in kept), None)
    before: str | None = None
    for step in b.steps:
        if step.writes not in kept:
            yield Insert(step, before=first) if before is None else Insert(step, after=before)
        if before is not None or step.writes == first:
            before = step.writes


def _sets(ours: Step, theirs: Step) -> Iterator[Set]:
    values = {name: value for name, _, value in kinds(theirs.op)}
    for name, _, value in kinds(ours.op):
        if not same(value, values[name]):
            yield Set(ours.writes, name, values[name], value)
    mine, wanted = dict(ours.weights), dict(theirs.weights)
    for name in mine | wanted:
        if mine.get(name) != wanted.get(name):
            yield Set(ours.writes, name, wanted.get(name), mine.get(name))


def _grouped(a: Spec, b: Spec, edits: Iterable[Edit]) -> Iterator[Edit]:
    """Edits that are the same but for their layer, as one, at the place of the first."""
    groups: dict[Edit, dict[int, Edit]] = {}
    for edit in edits:
        layer = split(_site(edit))[0]
        if layer is None:
            groups[edit] = {}
        else:
            groups.setdefault(_template(edit, layer), {})[layer] = edit
    for template, layers in groups.items():
        if not layers:
            yield template
        elif len(layers) == 1:
            yield from layers.values()
        else:
            yield _over(template, tuple(layers), a if isinstance(template, Remove) else b)


def _site(edit: Edit) -> str:
    """Where an edit applies; for an insertion, its anchor."""
    match edit:
        case Set(site=site) | Remove(site=site) | Rewire(site=site):
            return site
        case Insert():
            return edit.before or edit.after or ""
        case _:
            return ""


def _template(edit: Edit, layer: int) -> Edit:
    """The edit with `*` for its layer."""

    def star(name: str) -> str:
        return name.replace(f"blocks.{layer}.", "blocks.*.")

    def weight(value: object) -> object:
        if not isinstance(value, Weight):
            return value
        return dataclasses.replace(value, name=value.name.replace(f".{layer}.", ".*."))

    match edit:
        case Set(site, field, value, old):
            return Set(star(site), field, weight(value), weight(old))
        case Rewire(site, reads):
            return Rewire(star(site), tuple(map(star, reads)))
        case Insert(step):
            weights = tuple((name, weight(w)) for name, w in step.weights)
            reads = tuple(map(star, step.reads))
            general = dataclasses.replace(step, writes=star(step.writes), reads=reads, weights=weights)
            return _anchored(dataclasses.replace(edit, step=general), star(_site(edit)))
        case _:
            return _anchored(edit, star(_site(edit)))


def _over(template: Edit, layers: tuple[int, ...], spec: Spec) -> Edit:
    """The template for these layers: `*` where they are all that have the site."""
    rest = _site(template).removeprefix("blocks.*.")
    every = {n for n in range(spec.shape.layers) if block(n, rest) in spec.at}
    which = "*" if every == set(layers) else "{" + ",".join(map(str, layers)) + "}"
    return _anchored(template, f"blocks.{which}.{rest}")


def _anchored(edit: Edit, site: str) -> Edit:
    """The edit at another site or pattern."""
    match edit:
        case Set() | Remove() | Rewire():
            return dataclasses.replace(edit, site=site)
        case Insert(before=None):
            return dataclasses.replace(edit, after=site)
        case Insert():
            return dataclasses.replace(edit, before=site)
        case _:
            return edit
