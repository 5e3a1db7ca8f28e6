"""Which rows of a constant are which rows of a checkpoint's tensors.

Rows decide: a weight may be fused with others, cut, interleaved, laid out by heads, scaled or damaged in
part, and each of its rows is still more like the right row of the checkpoint than like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.capture.graph import Graph
from twinlens.capture.uses import Use
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
        self._first_rows: dict[str, dict[tuple[object, ...], int]] = {}
        self._pointer = {(r.what, r.matrix.data_ptr(), tuple(r.matrix.shape)): n for n, r in enumerate(known)}

    def match(self, use: Use) -> tuple[int, Tensor, Tensor] | None:
        """(the layer's reference that most rows belong to, for each row the reference's number, and its row)."""
        matrix = use.matrix(self.graph)
        what = "norm" if use.kind == "scaling" else use.kind
        same = self._pointer.get((what, matrix.data_ptr(), tuple(matrix.shape)))
        if same is not None and matrix.stride() == self.known[same].matrix.stride():
            return same, *_in_place(same, len(matrix))
        twin = self._twin(what, matrix)
        if twin is not None:
            return twin, *_in_place(twin, len(matrix))
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
        owners, rows = _filled(torch.where(best > ALIKE, owner[likely][at], -1), row[likely][at])
        if len(matrix) == len(self.known[number].matrix) and bool((owners == number).all()):
            return number, *_in_place(number, len(matrix))  # one tensor in another order, which what reads it may share
        return number, owners, rows

    def _twin(self, what: str, matrix: Tensor) -> int | None:
        """A reference of which this is a copy, by bits: found by its first row, tried on the sampled ones."""
        if what not in self._first_rows:
            rows = self._first_rows[what] = {}
            for n, r in enumerate(self.known):
                if r.what == what and len(r.matrix):
                    rows.setdefault(_bits(r.matrix), n)
        number = self._first_rows[what].get(_bits(matrix)) if len(matrix) else None
        if number is None or self.known[number].matrix.shape != matrix.shape:
            return None
        sample = torch.linspace(0, len(matrix) - 1, min(len(matrix), SAMPLED_ROWS)).long().unique()
        return number if torch.equal(matrix[sample], self.known[number].matrix[sample]) else None

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


def _bits(matrix: Tensor) -> tuple[object, ...]:
    return matrix.dtype, *matrix[0, :COLUMNS].tolist()


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
