"""Experts that a checkpoint holds one by one, as the model has them: one tensor for each projection of all of them.

This file also runs where another implementation lives: it needs torch only.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from twinlens.errors import CheckpointError
from twinlens.tensors import Tensors

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)\.weight")
_PROJECTIONS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What is joined, row by row: under the names of most checkpoints, and under Mixtral's."""
_OLDER = (".block_sparse_moe.", ".mlp.")


class Stacked:
    """The tensors of a checkpoint, with those of its experts joined."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._parts: dict[str, list[tuple[str, ...]]] = {}
        """For each joined name and each expert, the names of its parts."""
        self._same: dict[str, str] = {}
        single: dict[str, dict[int, dict[str, str]]] = {}
        for name in tensors.names():
            match = _EXPERT.fullmatch(name)
            if match is None:
                self._same[name.replace(*_OLDER)] = name
            else:
                single.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = name
        for prefix, experts in single.items():
            self._join(prefix, experts)
        self._made: dict[str, Tensor] = {}

    def _join(self, prefix: str, experts: dict[int, dict[str, str]]) -> None:
        under = f"{prefix}.experts".replace(*_OLDER)
        for joined, ways in _PROJECTIONS.items():
            way = next((w for w in ways if w[0] in experts[min(experts)]), ways[0])
            for number in range(max(experts) + 1):
                lacking = [part for part in way if part not in experts.get(number, {})]
                if lacking:
                    raise CheckpointError(
                        f"the checkpoint has no {prefix}.experts.{number}.{lacking[0]}.weight among its "
                        f"{len(experts)} experts; it was converted in part: convert it again, or download it."
                    )
            self._parts[f"{under}.{joined}"] = [tuple(experts[n][p] for p in way) for n in range(max(experts) + 1)]

    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self._same, *self._parts)

    def tensor(self, name: str) -> Tensor:
        """One tensor; a joined one is made once."""
        if name not in self._parts:
            return self._tensors.tensor(self._same[name])
        if name not in self._made:
            self._made[name] = torch.stack([torch.cat([self._own(p) for p in parts]) for parts in self._parts[name]])
        return self._made[name]

    def _own(self, name: str) -> Tensor:
        return self._tensors.tensor(name).detach()

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        if name not in self._parts:
            return self._tensors.shape(self._same[name])
        rows = [self._tensors.shape(part) for part in self._parts[name][0]]
        return len(self._parts[name]), sum(shape[0] for shape in rows), rows[0][1]
