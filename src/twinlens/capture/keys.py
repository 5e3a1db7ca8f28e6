"""Keys of nodes: by which functions, of which leaves a tensor was made, in whatever call that was."""

from __future__ import annotations

from collections.abc import Sequence

from twinlens.capture.graph import Node


class Keys:
    """The keys of a call's nodes, as they are made.

    `nodes`: those of the call; they grow. `before`: those of an earlier call. As long as this one makes the same
    nodes, in the same order, their keys are the same too, and need not be computed.
    """

    def __init__(self, nodes: Sequence[Node], before: Sequence[Node] = ()) -> None:
        self._nodes, self._before = nodes, before
        self._times: dict[int, int] = {}

    def again(self, name: str, inputs: tuple[int, ...], slot: int, owner: str | None, form: str) -> Node | None:
        """The node of the earlier call that such a call makes again; None from where they part."""
        index = len(self._nodes)
        if index >= len(self._before):
            if self._before:
                self._part()
            return None
        node = self._before[index]
        if (
            node.function == name
            and node.inputs == inputs
            and node.form == form
            and node.slot == slot
            and node.owner == owner
        ):
            return node
        self._part()
        return None

    def next(self, name: str, inputs: tuple[int, ...], slot: int, owner: str | None, form: str) -> int:
        """The key of the node that such a call makes next."""
        kind = self._kind(name, inputs, slot, owner, form)
        times = self._times.get(kind)
        return kind if times is None else hash((kind, times))

    def count(self, name: str, inputs: tuple[int, ...], slot: int, owner: str | None, form: str) -> int:
        """The same, when it is made."""
        kind = self._kind(name, inputs, slot, owner, form)
        times = self._times.get(kind, 0)
        self._times[kind] = times + 1
        return hash((kind, times)) if times else kind

    def _kind(self, name: str, inputs: tuple[int, ...], slot: int, owner: str | None, form: str) -> int:
        """What calls of one kind are counted under."""
        nodes = self._nodes
        return hash((name, slot, owner, form, *[nodes[i].key for i in inputs]))

    def _part(self) -> None:
        """From here on nodes are counted, and those that there are have been, each under its kind."""
        self._before = ()
        for node in self._nodes:
            kind = self._kind(node.function, node.inputs, node.slot, node.owner, node.form)
            self._times[kind] = self._times.get(kind, 0) + 1
