"""Hypotheses are read off the fields: this module knows kinds, never a field by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import combinations, groupby, permutations
from typing import Any

import torch

from twinlens.fields import Kind, kinds
from twinlens.inputs import evaluate
from twinlens.ops import Add
from twinlens.parity.changes import Change, Feed, Leave, Restore, Rewire, SetField, twins
from twinlens.parity.merged import Merged
from twinlens.parity.places import read_off
from twinlens.parity.rounding import masked
from twinlens.sites import axes, block, generic, split
from twinlens.spec import Spec, Step


def discrete(merged: Merged, spec: Spec, native: torch.Tensor) -> Iterator[Change]:
    """Every choice, precision, integer and missing part that a merged step could differ in, likeliest first."""
    hints = support(merged, native)
    yield from as_declared(merged)
    for step in merged.steps:
        if "positions" in step.reads:
            yield from read_off(step, merged)
            yield from positions(step, merged)
    for step in merged.steps:
        for name, kind, now in kinds(step.op):
            tied = twins(merged.steps, step.writes, name)
            if tied[0] != step.writes:
                continue
            if kind.name in ("number", "integer") and kind.off and now is not None:
                yield SetField(tied, name, None)
            if kind.read and now is None:
                given = [*constants(merged, native), *step.op.likely().get(name, ())]
                yield from (SetField(tied, name, value) for value in dict.fromkeys(given))
            if kind.name == "integer":
                for value in integers(spec, step, name, kind, now, hints):
                    yield SetField(tied, name, value)
    for step in merged.steps:
        for name, kind, now in kinds(step.op):
            if kind.name == "choice":
                yield from _others(merged, step, name, kind, now)
    for step in merged.steps:
        if step.op.removable:
            yield Leave((*_belonging(step, merged), *_alike(step, merged)))
    yield from dropped(merged)
    yield from streams(merged)
    for step in merged.steps:
        for name, kind, now in kinds(step.op):
            if kind.name == "dtype":
                yield from (c for c in _others(merged, step, name, kind, now) if merged.is_coarser(step, c.value, now))


def everywhere(merged: Merged) -> Iterator[tuple[Change, ...]]:
    """Numbers that implementations take for one another, each by itself and in every like step at once."""
    found: dict[tuple[str, str, float, float], list[SetField]] = {}
    for step in merged.steps:
        for name, kind, now in kinds(step.op):
            for value in kind.natural:
                if now in kind.natural and value != now:
                    change = SetField((step.writes,), name, value)
                    found.setdefault((type(step.op).__name__, name, now, value), []).append(change)
    for changes in found.values():
        yield tuple(changes)
        if len(changes) > 1:
            yield from ((c,) for c in changes)


def defaults(merged: Merged) -> Iterator[tuple[Change, ...]]:
    """Steps as an implementation has them that does not read the config: all fields at their defaults, each number."""
    for step in merged.steps:
        usual = {f.name: f.default for f in dataclasses.fields(step.op)}
        found: dict[str, list[SetField]] = {"number": [], "choice": []}
        for name, kind, now in kinds(step.op):
            tied = twins(merged.steps, step.writes, name)
            if kind.name in found and usual[name] not in (now, dataclasses.MISSING) and tied[0] == step.writes:
                found[kind.name].append(SetField(tied, name, usual[name]))
        numbers, choices = found["number"], found["choice"]
        if len(numbers) + len(choices) > 1:
            yield (*numbers, *choices)  # what a choice makes meaningless is the first to be dropped
        yield from ((c,) for c in numbers if c.value is not None)


def exchanged(merged: Merged) -> Iterator[tuple[Change, ...]]:
    """Two numbers of one parameter in each other's place: both bounds of a blend."""
    for step in merged.steps:
        found = [(n, k, v) for n, k, v in kinds(step.op) if k.name == "number" and v is not None]
        for (a, of_a, x), (b, of_b, y) in combinations(found, 2):
            tied = twins(merged.steps, step.writes, a)
            if of_a.parameter == of_b.parameter and x != y and tied[0] == step.writes:
                yield SetField(tied, a, y), SetField(twins(merged.steps, step.writes, b), b, x)


def as_beside(merged: Merged, spec: Spec) -> Iterator[tuple[SetField, ...]]:
    """Tables as those beside them are, that other layers read: what tells them apart is read for both, or for neither.

    Each parameter by itself, all, all but one; and each two tables in each other's place.
    """
    scopes: dict[str, dict[str, list[Step]]] = {}
    for step in spec.steps:
        if split(step.writes)[0] is None:
            scopes.setdefault(type(step.op).__name__, {}).setdefault(step.writes.rpartition(".")[0], []).append(step)
    here = {s.writes for s in merged.steps}
    for tables in scopes.values():
        made: dict[tuple[str, ...], list[tuple[SetField, ...]]] = {}
        for steps, others in permutations(tables.values(), 2):
            there = [s for s in steps if s.writes in here]
            apart = _apart(merged, there[0], others[0]) if there else {}
            some = dict.fromkeys([*((p,) for p in apart), tuple(apart), *combinations(apart, max(len(apart) - 1, 1))])
            for parameters in some if apart else ():
                made.setdefault(parameters, []).append(tuple(c for p in parameters for c in apart[p]))
        for ways in made.values():
            yield from ways
            if len(ways) == 2:
                yield (*ways[0], *ways[1])


def _apart(merged: Merged, step: Step, other: Step) -> dict[str, list[SetField]]:
    """By parameter, the fields in which a step is unlike another one, as that one has them."""
    found, theirs = dict[str, list[SetField]](), {n: v for n, _, v in kinds(other.op)}
    for name, kind, now in kinds(step.op):
        if kind.name in ("number", "integer", "choice") and theirs[name] != now:
            change = SetField(twins(merged.steps, step.writes, name), name, theirs[name])
            found.setdefault(kind.parameter, []).append(change)
    return found


def settings(merged: Merged) -> Iterator[tuple[Change, ...]]:
    """An integer that two kinds of operations read as one setting, another in both: the width of a rotation."""
    found: dict[str, dict[tuple[str, str], list[Step]]] = {}
    for step in merged.steps:
        for name, kind, now in kinds(step.op):
            if kind.name == "integer" and kind.tied and now:
                places = found.setdefault(kind.parameter, {})
                places.setdefault((type(step.op).__name__, name), []).append(step)
    for places in found.values():
        if len(places) < 2:
            continue
        ((_, first), steps), *_ = places.items()
        kind, now = next((k, v) for n, k, v in kinds(steps[0].op) if n == first)
        for value in (now // 2, now // 4, now - now // 4, now * 2, now * 4):
            if value > 0 and value % kind.multiple == 0:
                yield tuple(
                    SetField(tuple(s.writes for s in tied), n, value)
                    for (_, n), at in places.items()
                    for _, tied in groupby(at, lambda s: split(s.writes)[0])
                )


def _others(merged: Merged, step: Step, name: str, kind: Kind, now: Any) -> Iterator[SetField]:
    tied = twins(merged.steps, step.writes, name)
    if tied[0] == step.writes:
        yield from (SetField(tied, name, v) for v in kind.alternatives if v != now)


def _alike(step: Step, merged: Merged) -> tuple[str, ...]:
    """The step, with those of its layer that share its fields: queries and keys rotate both, or neither."""
    if not any(kind.tied for _, kind, _ in kinds(step.op)):
        return (step.writes,)
    layer = split(step.writes)[0]
    return tuple(s.writes for s in merged.steps if type(s.op) is type(step.op) and split(s.writes)[0] == layer)


def dropped(merged: Merged) -> Iterator[SetField]:
    """A branch that is not added to the stream, here or together with the next one."""
    step = merged.steps[-1]
    if not isinstance(step.op, Add) or len(step.reads) != 2 or not {step.writes, *step.reads} <= merged.sites.keys():
        return
    layer, branch = split(step.writes)[0], merged.sites[step.reads[1]]
    later = [block(layer or 0, name) for name in ("hook_resid_post", "hook_mlp_out")]
    if later[0] != step.writes and all(site in merged.sites for site in later):
        end, other = (merged.sites[site] for site in later)
        more = (end - merged.value - other)[merged.sites["mask"].bool()].double()
        if (more - branch[merged.sites["mask"].bool()].double()).norm() < more.norm():
            return
    yield SetField((step.writes,), "factor", 0.0)


def streams(merged: Merged) -> Iterator[Rewire]:
    """Attention and MLP in parallel: a step that reads the stream after attention reads it before.

    Where that is what a run shows between the two, attention is added together with the MLP.
    """
    there = {*merged.sites, *(s.writes for s in merged.steps)}
    for step in merged.steps:
        layer, name = split(step.reads[0])
        if layer is None:
            continue
        before, attention = (block(layer, s) for s in ("hook_resid_pre", "hook_attn_out"))
        if name == "hook_resid_mid" and len(step.reads) == 1 and before in there:
            yield Rewire(step.writes, (before,), "parallel")
        if step.reads == (before, attention):
            yield Rewire(step.writes, (before,), "parallel")
        if name == "hook_resid_mid" and isinstance(step.op, Add) and attention in merged.sites:
            yield Rewire(step.writes, (*step.reads, attention), "parallel")


def _belonging(step: Step, merged: Merged) -> tuple[str, ...]:
    """The hidden steps before a step that are one thing with it: normalising, before a norm's weight."""
    at = {s.writes: s for s in merged.steps}
    before = at.get(step.reads[0])
    return (before.writes,) if before is not None and type(before.op).__name__ in step.op.absorbs else ()


_COUNTED = {"counted over real tokens": "maximum(cumsum(mask) - 1, 0)", "counted over all tokens": "slots"}


def positions(step: Step, merged: Merged) -> Iterator[Feed]:
    """Positions that are shifted, or counted without regard to padding, or with."""
    offsets = {k: f"maximum(positions + {k}, 0)" for k in (1, -1, 2, -2)}
    padded = not bool(merged.sites["mask"].all())
    for value, expression in (*(_COUNTED.items() if padded else ()), *offsets.items()):
        tensor = evaluate(expression, merged.sites, "positions")
        if not torch.equal(tensor, merged.sites["positions"]):
            yield Feed(step.writes, "positions", tensor, value, expression)


def moved(merged: Merged) -> Iterator[tuple[Feed, ...]]:
    """The same for all steps that read positions."""
    yield from zip(*(positions(s, merged) for s in merged.steps if "positions" in s.reads), strict=True)


def stretched(merged: Merged) -> Iterator[tuple[Feed, ...]]:
    """Positions twice as far apart; a factor of the tables that says so is the better name, and is tried before."""
    expression = "positions * 2"
    tensor = evaluate(expression, merged.sites, "positions")
    feeds = [Feed(s.writes, "positions", tensor, "times 2", expression) for s in merged.steps if "positions" in s.reads]
    if feeds:
        yield tuple(feeds)


def as_declared(merged: Merged) -> Iterator[Change]:
    """What the reference does otherwise than it is declared, as it is declared."""
    there = [(s, merged.declared.at[s.writes]) for s in merged.steps]
    missing = tuple(d for s, d in there if type(d.op) is not type(s.op))
    if missing:
        yield Restore(missing)
    for step, declared in there:
        if declared in missing:
            continue
        if step.reads != declared.reads:
            yield Rewire(step.writes, declared.reads, "sequential", "parallel")
        for name, kind, value in kinds(declared.op):
            tied = twins(merged.steps, step.writes, name)
            if kind.name not in ("order", "size") and value != getattr(step.op, name) and tied[0] == step.writes:
                yield SetField(tied, name, value)


def integers(spec: Spec, step: Step, name: str, kind: Kind, now: int | None, hints: Iterable[int]) -> list[int]:
    """Values that an integer may have: those of other layers, its neighbours, and what the support says."""
    elsewhere = {
        {n: v for n, _, v in kinds(s.op)}.get(name)
        for s in spec.steps
        if type(s.op) is type(step.op) and generic(s.writes) == generic(step.writes)
    }
    near = [] if now is None else [now - 1, now + 1, now // 2, now * 2, now // 4, now + 2]
    found = dict.fromkeys([*(v for v in elsewhere if v is not None), *hints, *near])
    counted = kind.multiple == 1 and any(f.name == name and f.default == 0 for f in dataclasses.fields(step.op))
    lowest = 1 if kind.off or ((now or 0) > 0 and not counted) else -8
    return [v for v in found if v != now and v >= lowest and v % kind.multiple == 0]


def support(merged: Merged, native: torch.Tensor) -> list[int]:
    """Rows and columns where a difference begins or ends, as integers that may mean something."""
    site, value = merged.target, merged.value
    width = min(value.shape[-1], native.shape[-1])
    x, y = value[..., :width], native[..., :width]
    mx, my = masked(site, x), masked(site, y)
    differs = (x.double() - y.double()).abs() > 1e-3 * y.double().abs().clamp(max=1e30).mean()
    if mx is not None and my is not None:
        differs = (differs & ~mx & ~my) | (mx ^ my)
    found: list[int] = []
    names = axes(site)
    if "p" in names:
        at = differs.movedim(names.index("p"), 0).flatten(1).any(1).nonzero().flatten().tolist()
        found += [at[0], at[0] + 1, at[0] - 1] if at else []
    at = differs.flatten(0, -2).any(0).nonzero().flatten().tolist()
    found += [at[0], at[-1] + 1, 2 * at[0]] if at else []
    if mx is not None and my is not None:
        found += band(mx)
    return [v for v in dict.fromkeys(found) if v > 0]


def constants(merged: Merged, native: torch.Tensor) -> list[float]:
    """The one value that entries have which the step masks and the candidate does not; none where they have several."""
    mx, my = masked(merged.target, merged.value), masked(merged.target, native)
    if mx is None or my is None:
        return []
    real = merged.sites["mask"].bool()[:, None, :, None]
    values = merged.value[my & ~mx & real].unique()
    return values.tolist() if len(values) == 1 else []


def band(hidden: torch.Tensor) -> list[int]:
    """The widest run of keys that any query sees: the window, where the mask is visible."""
    seen = (~hidden).sum(-1)
    return [int(seen.max())]


def show(change: Change, spec: Spec) -> str:
    """A hypothesis in words."""
    value: Any = getattr(change, "value", getattr(change, "pattern", "left out"))
    said = f"{value:.6g}" if isinstance(value, float) else value
    return f"{change.parameter(spec)} at {change.site}: {said}"
