"""Which constant of a call is which tensor of the checkpoint.

Rows decide: a weight may be fused with others, cut, interleaved, laid out by heads, scaled or damaged in
part, and each of its rows is still more like the right row of the checkpoint than like any other.
Uses of one kind are then numbered by order of execution, so that a weight that stands in a wrong layer, or
is another one altogether, keeps the place in which it is used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from twinlens.capture.graph import Graph
from twinlens.capture.uses import Use, added, root, uses
from twinlens.spec import Spec, Step, Weight, Weights

COLUMNS = 64
"""Entries of a row that are compared: the correlation of unrelated rows then has a standard deviation of
1/8, so that 0.9 is out of reach even among a million."""
ALIKE = 0.9
SAMPLED_ROWS = 24


@dataclass(frozen=True)
class Reference:
    """A tensor of the checkpoint as a step uses it: [out, in]; a norm's weight is one row."""

    name: str
    step: Step
    weight: Weight
    matrix: Tensor
    what: str


@lru_cache(maxsize=65536)
def generic(name: str) -> str:
    """A weight's name without the layer's number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "L", name)


@dataclass(frozen=True)
class Held:
    """Rows `there` of the matrix of a use are rows `here` of a checkpoint's tensor (None: all, in order)."""

    use: Use
    there: Tensor
    here: Tensor
    again: tuple[Use, ...] = ()
    """Further uses of the same constant."""


@dataclass
class Anchors:
    """For each tensor of the checkpoint the uses that hold its rows."""

    held: dict[tuple[str, str], list[Held]] = field(default_factory=dict[tuple[str, str], "list[Held]"])
    """By (name, "product" | "lookup" | "norm")."""

    def of(self, step: Step) -> list[Held]:
        """Where the weight of a step is used."""
        for argument, weight in step.weights:
            if argument in ("W", "w"):
                return self.held.get((weight.name, role(step)), [])
        return []


def role(step: Step) -> str:
    """How a step uses its weight: its operation says so by what it reads and by the weight's name there."""
    arguments = dict(step.weights)
    if "w" in arguments:
        return "norm"
    return "lookup" if step.reads[0] in ("tokens", "positions") else "product"


def references(spec: Spec, weights: Weights) -> list[Reference]:
    """Every weight matrix and norm weight, by the step that uses it."""
    found: list[Reference] = []
    for step in spec.steps:
        for argument, weight in step.weights:
            tensor = weight.view(weights(weight.name))
            if argument in ("W", "w"):
                matrix = tensor if tensor.ndim == 2 else tensor[None]
                found.append(Reference(weight.name, step, weight, matrix, role(step)))
    return found


class Matcher:
    """Finds which rows of which reference a matrix holds."""

    def __init__(self, graph: Graph, known: Sequence[Reference]) -> None:
        self.graph = graph
        self.known = known
        self._tables: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._pointer = {(r.what, r.matrix.data_ptr(), tuple(r.matrix.shape)): n for n, r in enumerate(known)}

    def match(self, use: Use) -> tuple[int, Tensor, Tensor] | None:
        """(the layer's reference that most rows belong to, for each row the reference's number, and its row)."""
        matrix = use.matrix(self.graph)
        what = "norm" if use.kind == "scaling" else use.kind
        same = self._pointer.get((what, matrix.data_ptr(), tuple(matrix.shape)))
        if same is not None and matrix.stride() == self.known[same].matrix.stride():
            return same, *_in_place(same, len(matrix))
        table, owner, row = self._table(what, matrix.shape[1])
        if len(table) == 0:
            return None
        sample = torch.linspace(0, len(matrix) - 1, min(len(matrix), SAMPLED_ROWS)).long().unique()
        drawn = sketch(matrix[sample])
        best, at = _nearest(drawn, table)
        good = best > ALIKE
        if int(good.sum()) * 4 < len(sample):
            return None
        votes = Counter(owner[at[good]].tolist())
        number = votes.most_common(1)[0][0]
        if len(matrix) == len(self.known[number].matrix):
            there = sketch(self.known[number].matrix[sample])
            if int(((drawn * there).sum(1) > ALIKE).sum()) * 2 >= int(good.sum()):
                return number, *_in_place(number, len(matrix))
        likely = torch.isin(owner, torch.tensor(list(votes)))
        best, at = _nearest(sketch(matrix), table[likely])
        owners = torch.where(best > ALIKE, owner[likely][at], -1)
        return number, *_filled(owners, row[likely][at])

    def _table(self, what: str, width: int) -> tuple[Tensor, Tensor, Tensor]:
        if (what, width) not in self._tables:
            fit = [(n, r) for n, r in enumerate(self.known) if r.what == what and r.matrix.shape[1] == width]
            sketches = [sketch(r.matrix) for _, r in fit]
            owner = [torch.full((len(r.matrix),), n) for n, r in fit]
            row = [torch.arange(len(r.matrix)) for _, r in fit]
            empty = torch.zeros(0, dtype=torch.long)
            self._tables[what, width] = (
                torch.cat(sketches) if fit else torch.zeros(0, 1),
                torch.cat(owner) if fit else empty,
                torch.cat(row) if fit else empty,
            )
        return self._tables[what, width]


def _nearest(rows: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the highest correlation in the table, and where it is."""
    parts = [(part @ table.T).max(dim=1) for part in rows.split(256)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def sketch(matrix: Tensor) -> Tensor:
    """Some columns of each row, centred, of norm 1; 0 where a row is constant."""
    width = matrix.shape[1]
    draw = torch.Generator().manual_seed(width)
    columns = torch.randperm(width, generator=draw)[:COLUMNS].sort().values
    part = matrix[:, columns.to(matrix.device)].float().cpu()
    part = part - part.mean(1, keepdim=True)
    norm = part.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-6 * part.abs().amax().clamp(min=1e-30), part / norm.clamp(min=1e-30), 0.0)


def _in_place(number: int, rows: int) -> tuple[Tensor, Tensor]:
    return torch.full((rows,), number), torch.arange(rows)


def _filled(owner: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that are like none (damaged) continue what stands before them, or lead to what stands after."""
    owner, row = owner.clone(), row.clone()
    for order, step in ((range(1, len(owner)), -1), (range(len(owner) - 2, -1, -1), 1)):
        for r in order:
            if owner[r] < 0 <= owner[r + step]:
                owner[r], row[r] = owner[r + step], row[r + step] - step
    return owner, row


@dataclass
class _Member:
    use: Use
    layer: int | None = None
    kinds: tuple[str, ...] | None = None
    kind: Tensor | None = None
    row: Tensor | None = None
    again: list[Use] = field(default_factory=list[Use])


class Numbering:
    """Puts the uses of one kind into layers."""

    def __init__(self, graph: Graph, spec: Spec, weights: Weights) -> None:
        self.graph, self.spec = graph, spec
        self.known = references(spec, weights)
        self.names: dict[tuple[str, str], list[str]] = {}
        for r in self.known:
            self.names.setdefault((r.what, generic(r.name)), []).append(r.name)
        self.matcher = Matcher(graph, self.known)

    def anchors(self) -> Anchors:
        """All of them."""
        found = Anchors()
        unlike: list[list[_Member]] = []
        for group in self._groups():
            by_kind = self._kinds(group)
            for members in by_kind.values():
                self._number(found, members)
            if not by_kind:
                unlike.append(group)
        for group in unlike:
            self._by_elimination(found, group)
        return found

    def _by_elimination(self, found: Anchors, group: list[_Member]) -> None:
        """Constants that are like nothing, where one kind of their shape is left and as many of it."""
        use = group[0].use
        what = "norm" if use.kind == "scaling" else use.kind
        shape = use.matrix(self.graph).shape
        kinds = tuple({
            generic(r.name) for r in self.known
            if r.what == what and r.matrix.shape == shape and (r.name, what) not in found.held
        })  # fmt: skip
        if len(kinds) != 1 or len(group) != len(self.names[what, kinds[0]]):
            return
        rows = torch.arange(shape[0])
        self._number(found, [_Member(m.use, None, kinds, torch.zeros_like(rows), rows, m.again) for m in group])

    def _groups(self) -> Iterator[list[_Member]]:
        groups: dict[object, dict[int, _Member]] = {}
        for use in uses(self.graph):
            leaf = root(self.graph, use.constant)
            name = generic(f".{leaf.owner}") if leaf.owner else None
            key = (use.kind, tuple(self.graph[use.constant].shape), use.rows, name)
            group = groups.setdefault(key, {})
            if leaf.index in group:  # one weight that is used again for the same: a norm for q, for k, for v
                group[leaf.index].again.append(use)
            else:
                group[leaf.index] = self._member(use)
        yield from (list(group.values()) for group in groups.values())

    def _member(self, use: Use) -> _Member:
        match = self.matcher.match(use)
        if match is None:
            return _Member(use)
        number, owners, rows = match
        order = list(dict.fromkeys(owners.tolist()))
        kinds = tuple(dict.fromkeys(generic(self.known[n].name) for n in order))
        kind = torch.zeros_like(owners)
        for n in order:
            kind[owners == n] = kinds.index(generic(self.known[n].name))
        name = self.known[number].name
        what = self.known[number].what
        layer = self.names[what, generic(name)].index(name)
        return _Member(use, layer, kinds, kind, rows)

    def _kinds(self, group: list[_Member]) -> dict[object, list[_Member]]:
        """Members by what they hold; those that are like nothing belong where the order of the others says."""
        found: dict[object, list[_Member]] = {}
        keys = [self._key(m) for m in group]
        distinct = list(dict.fromkeys(k for k in keys if k is not None))
        if not distinct:
            return {}
        examples = {k: next(m for m, key in zip(group, keys, strict=True) if key == k) for k in distinct}
        main = self._period(keys, distinct, len(group))
        for place, (member, key) in enumerate(zip(group, keys, strict=True)):
            chosen = main[place % len(main)] if main else key
            if chosen is None:
                continue
            if chosen != key:
                like = examples[chosen]
                again = member.again
                member = _Member(member.use, None, like.kinds, like.kind, like.row, again)
            found.setdefault(chosen, []).append(member)
        return found

    def _period(self, keys: list[object], distinct: list[object], count: int) -> list[object] | None:
        """The order of kinds within a layer, if the group repeats it layer by layer."""
        layers = self.spec.shape.layers
        if count % layers:
            return None
        length = count // layers
        period: list[object] = []
        for place in range(length):
            votes = Counter(k for k in keys[place::length] if k is not None)
            if not votes:
                return None
            period.append(votes.most_common(1)[0][0])
        return period if len(set(period)) == length else None

    def _key(self, member: _Member) -> object:
        if member.kinds is None or member.row is None or member.kind is None:
            return None
        return member.kinds, int(member.row[0]), len(member.row)

    def _number(self, found: Anchors, members: list[_Member]) -> None:
        like = members[0]
        assert like.kinds is not None and like.kind is not None and like.row is not None
        for number, kind in enumerate(like.kinds):
            what = "norm" if like.use.kind in ("norm", "scaling") else like.use.kind
            names = self.names[what, kind]
            for member, name in _layers(members, names):
                assert member.kind is not None and member.row is not None
                there = (member.kind == number).nonzero()[:, 0]
                here = member.row[there]
                found.held.setdefault((name, what), []).append(Held(member.use, there, here, tuple(member.again)))


def _layers(members: Sequence[_Member], names: Sequence[str]) -> Iterator[tuple[_Member, str]]:
    """By order of execution where there are as many as layers; else only where values say an order that rises."""
    if len(members) == len(names):
        yield from zip(members, names, strict=True)
        return
    seen = [m.layer for m in members if m.layer is not None]
    if seen == sorted(set(seen)):
        yield from ((m, names[m.layer]) for m in members if m.layer is not None)


def covers(held: Iterable[Held], rows: int) -> bool:
    """Whether the uses together hold every row once."""
    here = torch.cat([h.here for h in held])
    return bool(torch.equal(here.sort().values, torch.arange(rows)))


class OwnWeights:
    """The candidate's own tensors under the checkpoint's names and in its layout, where anchors gave them."""

    def __init__(self, graph: Graph, spec: Spec, weights: Weights, anchors: Anchors) -> None:
        self.graph, self.spec, self._reference, self.anchors = graph, spec, weights, anchors
        self.found: dict[str, Tensor] = {}
        for step in spec.steps:
            for argument, weight in step.weights:
                if weight.name not in self.found:
                    own = self._own(step, argument, weight)
                    if own is not None:
                        self.found[weight.name] = own

    def __call__(self, name: str) -> Tensor:
        """The candidate's own where it was found, else the reference's."""
        return self.found[name] if name in self.found else self._reference(name)

    def _own(self, step: Step, argument: str, weight: Weight) -> Tensor | None:
        held = self.anchors.of(step)
        reference = weight.view(self._reference(weight.name))
        if not held or not covers(held, len(reference) if role(step) != "norm" else 1):
            return None
        if argument in ("W", "w"):
            own = self._matrix(held, reference)
            if role(step) == "norm":
                own = self._shift(held[0].use, own, reference, step)
            elif role(step) == "lookup":
                own = _unscaled(own, reference, step)
        else:
            own = self._bias(held, reference)
        return None if own is None or own.shape != reference.shape else (own.T if weight.transposed else own)

    def _matrix(self, held: list[Held], reference: Tensor) -> Tensor:
        if len(held) == 1:
            matrix, here = held[0].use.matrix(self.graph), held[0].here
            if torch.equal(here, torch.arange(len(matrix))):
                return matrix.reshape(reference.shape) if reference.ndim == 1 else matrix
        parts = [h.use.matrix(self.graph)[h.there] for h in held]
        here = torch.cat([h.here for h in held])
        return torch.cat(parts)[here.argsort()]

    def _bias(self, held: list[Held], reference: Tensor) -> Tensor | None:
        parts: list[Tensor] = []
        for h in held:
            rows = len(h.use.matrix(self.graph))
            at = h.use.bias
            if at is None and h.use.kind != "norm":
                count = rows if h.use.kind == "product" else self.graph[h.use.constant].numel()
                later = added(self.graph, h.use.out, count)
                at = later[1] if later else None
            if at is None or (self.graph[at].numel() != rows and h.use.kind == "product"):
                return None
            flat = self.graph[at].flatten()
            parts.append(flat if h.use.kind in ("norm", "scaling") else flat[h.there])
        if held[0].use.kind in ("norm", "scaling"):
            return parts[0]
        here = torch.cat([h.here for h in held])
        return torch.cat(parts)[here.argsort()]

    def _shift(self, use: Use, constant: Tensor, reference: Tensor, step: Step) -> Tensor:
        """A norm's weight from the factor in use: the checkpoint's, the code's own parameter, or the factor itself."""
        offset = float(vars(step.op).get("offset", 0.0))
        if _close(constant, offset + reference.float()):
            return reference
        leaf = root(self.graph, use.constant)
        if leaf.owner is not None and leaf.value is not None and leaf.value.numel() == reference.numel():
            return leaf.value.reshape(reference.shape)
        return (constant.float() - offset).to(reference.dtype)


def _unscaled(table: Tensor, reference: Tensor, step: Step) -> Tensor:
    """An embedding table whose factor was multiplied in beforehand holds the checkpoint's table."""
    factor = float(vars(step.op).get("factor", 1.0))
    folded = factor != 1.0 and table.shape == reference.shape
    return reference if folded and _close(table, factor * reference.float()) else table


def _close(x: Tensor, y: Tensor) -> bool:
    """Equal but for the rounding of one multiplication or sum."""
    return torch.allclose(x.float(), y, rtol=1e-6 if x.dtype == torch.float32 else 1e-2, atol=0.0)
