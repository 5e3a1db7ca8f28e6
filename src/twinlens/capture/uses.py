"""Where a call multiplies something that descends from the tokens with a constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod

from torch import Tensor

from twinlens.capture.graph import LEAF, Graph, Node
from twinlens.capture.layout import Wanted, distance, tolerance

PRODUCTS = frozenset(
    ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot",
     "conv1d", "inner")
)  # fmt: skip
SCALINGS = frozenset(("mul", "__mul__", "__rmul__", "multiply", "mul_", "__imul__"))
FACTORS = SCALINGS | {"div", "__truediv__", "true_divide", "div_", "__itruediv__"}
NORMS = frozenset(("layer_norm", "rms_norm", "native_layer_norm"))
SUMS = frozenset(("add", "__add__", "__radd__", "add_", "__iadd__"))
LOOKUPS = frozenset(("embedding", "__getitem__", "index_select", "index", "take"))
TURNS = frozenset(("transpose", "permute", "T", "mT", "swapaxes", "movedim"))
"""Functions that change the order of axes: two of one size may have changed places where the shape is the same."""
MOVES = TURNS | frozenset(
    ("view", "reshape", "contiguous", "unflatten", "flatten", "squeeze", "unsqueeze", "to", "float", "type_as", "type",
     "clone", "expand", "dropout", "bfloat16", "half")
)  # fmt: skip
"""Functions that change where entries stand, or their dtype, and no value."""


@dataclass(frozen=True)
class Use:
    """`out` = product of `x` with `constant`, plus `bias`.

    The constant is a matrix [rows, width] once its axes `rows` and `width` are merged; `over` are the
    axes of `x` that are summed. A norm's weight is a matrix of one row: the factor of what is normalised
    ("scaling"), or one of several factors that give the norm together ("norm").
    """

    kind: str
    out: int
    x: int
    constant: int
    rows: tuple[int, ...]
    width: tuple[int, ...]
    over: tuple[int, ...] = ()
    bias: int | None = None

    def matrix(self, graph: Graph) -> Tensor:
        """The constant as [rows, width]; a view where that is possible."""
        value = graph[self.constant]
        turned = value.permute(*self.rows, *self.width)
        return turned.reshape(prod(value.shape[a] for a in self.rows), -1)


def uses(graph: Graph) -> Iterator[Use]:
    """All of them, in order of execution; only those with a path to the logits."""
    for node in graph.nodes:
        if node.index not in graph.live or node.function == LEAF:
            continue
        constants = [i for i in dict.fromkeys(node.inputs) if _constant(graph.nodes[i])]
        moving = [i for i in dict.fromkeys(node.inputs) if graph.nodes[i].tokens]
        if node.function in PRODUCTS:
            yield from _product(graph, node, moving, constants)
        elif node.function in LOOKUPS:
            yield from _lookup(graph, node, constants)
        elif moving and (node.function in SCALINGS or node.function in NORMS):
            yield from _scaling(graph, node, moving[0], constants)


def _constant(node: Node) -> bool:
    return not node.tokens and node.value is not None and node.value.is_floating_point() and node.value.numel() > 1


def _product(graph: Graph, node: Node, moving: list[int], constants: list[int]) -> Iterator[Use]:
    matrices = [c for c in constants if graph[c].ndim >= 2]
    biases = [c for c in constants if graph[c].ndim == 1]
    if len(moving) != 1 or len(matrices) != 1 or not graph[moving[0]].is_floating_point():
        return
    (x,), (c,), bias = moving, matrices, biases[0] if biases else None
    forms = list(_forms(graph[x].shape, graph[c].shape, graph[node.index].numel()))
    if node.function == "linear":
        forms = [f for f in forms if f[1] == (1,) and f[2] == (graph[x].ndim - 1,)]
    for rows, width, over in forms:
        use = Use("product", node.index, x, c, rows, width, over, bias)
        if node.function == "linear" or _holds(graph, use):
            yield use
            return


def _forms(
    x: tuple[int, ...], c: tuple[int, ...], out: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Ways to sum axes of x against axes of c, that give as many entries as there are."""
    for width in _subsets(len(c), len(c) - 1):
        inner = prod(c[a] for a in width)
        rows = tuple(a for a in range(len(c)) if a not in width)
        for over in _subsets(len(x), len(x) - 1):
            if prod(x[a] for a in over) == inner and prod(x) // inner * prod(c[a] for a in rows) == out:
                yield rows, width, over


def _subsets(n: int, most: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, most + 1):
        yield from reversed(list(combinations(range(n), size)))


def _holds(graph: Graph, use: Use) -> bool:
    """Whether the product, done here, has the values that were captured, in whatever order."""
    x, out = graph[use.x].float(), graph[use.out].float()
    rest = [a for a in range(x.ndim) if a not in use.over]
    flat = x.permute(*rest, *use.over).reshape(-1, prod(x.shape[a] for a in use.over))
    y = flat @ use.matrix(graph).float().T
    if use.bias is not None:
        y = y + graph[use.bias].float().flatten()
    close = 10 * tolerance(graph[use.out], graph[use.constant])
    got, want = out.flatten().sort().values, y.flatten().sort().values
    return distance(got, Wanted(want, ("d",))) < close and (
        distance(out.reshape(-1), Wanted(y.reshape(-1), ("d",))) < close or out.shape != (*x.shape[:-1], y.shape[-1])
    )


def _lookup(graph: Graph, node: Node, constants: list[int]) -> Iterator[Use]:
    ids = [i for i in node.inputs if graph[i].dtype.is_floating_point is False]
    tables = [c for c in constants if graph[c].ndim == 2]
    if len(tables) == 1 and len(ids) <= 1 and graph[node.index].shape[-1] == graph[tables[0]].shape[1]:
        # without ids: the first rows of a table of positions
        yield Use("lookup", node.index, (ids or tables)[0], tables[0], (0,), (1,))


def _scaling(graph: Graph, node: Node, x: int, constants: list[int]) -> Iterator[Use]:
    if not graph[x].is_floating_point() or not constants:
        return
    width = graph[node.index].shape[-1]
    vectors = [c for c in constants if graph[c].numel() == width and graph[c].shape[-1] == width]
    if vectors:
        rows = tuple(range(graph[vectors[0]].ndim - 1))
        out = node.index if node.function in NORMS else _normalised_after(graph, node.index, graph[x].shape[-1] == 1)
        kind = "scaling" if out is None else "norm"
        bias = vectors[1] if len(vectors) > 1 else None
        yield Use(kind, node.index if out is None else out, x, vectors[0], rows, (len(rows),), bias=bias)


def _normalised_after(graph: Graph, scaled: int, by_row: bool) -> int | None:
    """The product of what a weight has scaled with a number for each row, or (`by_row`) of such numbers with the rest.

    A norm may take its factors in any order: (w · x) · r and (w · r) · x are w · (x · r).
    """
    at, shape = scaled, graph[scaled].shape
    while True:
        readers = [r for r in graph.readers[at] if r in graph.live]
        if len(readers) != 1 or graph[readers[0]].shape != shape:
            return None
        node = graph.nodes[readers[0]]
        others = [i for i in node.inputs if i != at and graph.nodes[i].tokens]
        if node.function in FACTORS and len(others) == 1:
            return node.index if by_row or graph[others[0]].shape[-1] == 1 else None
        if node.function not in MOVES:
            return None
        at = node.index


def root(graph: Graph, index: int) -> Node:
    """The leaf from which a constant was made, through whatever turned, cut or shifted it; itself where it has more."""
    node = graph.nodes[index]
    while node.function != LEAF:
        made_of = {i for i in node.inputs if graph[i].numel() > 1}
        if len(made_of) != 1:
            break
        node = graph.nodes[made_of.pop()]
    return node


def added(graph: Graph, out: int, count: int) -> tuple[int, int] | None:
    """The sum that adds a constant of `count` entries to a product's output, and that constant."""
    pending = [(out, 0)]
    while pending:
        at, depth = pending.pop(0)
        for reader in graph.readers[at]:
            node = graph.nodes[reader]
            others = [i for i in node.inputs if i != at]
            if node.function in SUMS and len(others) == 1 and _constant(graph.nodes[others[0]]):
                if graph[others[0]].numel() == count:
                    return reader, others[0]
            elif depth < 4 and (
                node.function in MOVES or (node.function in FACTORS and by_a_number(graph, reader, at))
            ):
                pending.append((reader, depth + 1))
    return None


def by_a_number(graph: Graph, product: int, of: int) -> bool:
    """Whether a tensor is multiplied by a constant of one entry, or by none that is a tensor."""
    others = [i for i in graph.nodes[product].inputs if i != of]
    return all(graph[i].numel() == 1 and not graph.nodes[i].tokens for i in others)
