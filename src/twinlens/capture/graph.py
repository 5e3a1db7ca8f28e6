"""One call of a module as a graph: every tensor that it made, what of, by which function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from twinlens.errors import CaptureError

LEAF, ALIAS = "leaf", "alias"


@dataclass(eq=False, slots=True)
class Node:
    """A tensor of the call: made by `function` from the nodes `inputs`; a leaf was there before.

    `owner` is the qualified name of a parameter or buffer. `tokens`: it descends from the token ids.
    `value` is None where the tracer was not asked to keep it. `key` says by which functions, of which
    leaves, the tensor was made, all the way up: equal keys of two calls are one place in the code, whatever
    else the calls did. `form`: of which kinds the function's other arguments were.
    """

    index: int
    function: str
    inputs: tuple[int, ...]
    slot: int = 0
    owner: str | None = None
    tokens: bool = False
    value: Tensor | None = None
    key: int = 0
    form: str = ""

    def with_value(self, value: Tensor | None) -> Node:
        """The same node with another tensor, or none; `dataclasses.replace` takes ten times as long."""
        return Node(
            self.index, self.function, self.inputs, self.slot, self.owner, self.tokens, value, self.key, self.form
        )


@dataclass(eq=False)
class Graph:
    """Nodes in the order of execution, the inputs, and the node that holds the logits."""

    nodes: list[Node]
    tokens: Tensor
    mask: Tensor | None
    logits: int

    def __getitem__(self, index: int) -> Tensor:
        value = self.nodes[index].value
        if value is None:
            raise CaptureError(
                f"the tensor of node {index} ({self.nodes[index].function}) was not kept; record the site again."
            )
        return value

    @cached_property
    def at(self) -> dict[int, int]:
        """Node by key."""
        return {node.key: node.index for node in self.nodes}

    @cached_property
    def readers(self) -> list[list[int]]:
        """For each node the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in dict.fromkeys(node.inputs):
                found[i].append(node.index)
        return found

    @cached_property
    def live(self) -> frozenset[int]:
        """Nodes with a path to the logits."""
        return self.above([self.logits])

    def above(self, of: Iterable[int]) -> frozenset[int]:
        """Nodes from which these descend, themselves included."""
        return frozenset(self._walk(of, lambda i: self.nodes[i].inputs))

    def below(self, of: Iterable[int]) -> frozenset[int]:
        """Nodes that descend from these, themselves included."""
        return frozenset(self._walk(of, lambda i: self.readers[i]))

    @staticmethod
    def _walk(start: Iterable[int], to: Callable[[int], Iterable[int]]) -> set[int]:
        seen, pending = set[int](), list(start)
        while pending:
            i = pending.pop()
            if i not in seen:
                seen.add(i)
                pending.extend(to(i))
        return seen
