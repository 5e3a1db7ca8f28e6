"""A call as a graph: what was written over keeps its value, and what was written depends on the write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from twinlens.capture import Graph, trace
from twinlens.capture.tracer import Tracer
from twinlens.errors import CaptureError

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Toy(nn.Module):
    """An embedding, whatever `step` does, and a head."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.step = step

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.step(self.embed(tokens)))


def graph_of(step: Callable[[Tensor], Tensor]) -> tuple[Toy, Graph]:
    torch.manual_seed(0)
    toy = Toy(step)
    return toy, trace(toy, TOKENS)


def node(graph: Graph, function: str) -> int:
    [found] = [n.index for n in graph.nodes if n.function == function]
    return found


def test_a_leaf_has_its_owners_name() -> None:
    _, graph = graph_of(lambda x: x)
    assert {n.owner for n in graph.nodes} >= {"embed.weight", "head.weight", "head.bias"}


def test_what_is_written_over_keeps_the_value_that_it_had() -> None:
    toy, graph = graph_of(lambda x: x.mul_(0))
    assert torch.equal(graph[node(graph, "embedding")], toy.embed(TOKENS))
    assert not graph[node(graph, "mul_")].any()


def write_half(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., :3] = x[..., 3:]
    return out * 2


def test_a_base_depends_on_a_write_through_its_view() -> None:
    toy, graph = graph_of(write_half)
    written, read = node(graph, "__setitem__"), node(graph, "mul")
    assert read in graph.below([written])
    assert node(graph, "embedding") in graph.above([read])
    assert torch.equal(graph[read][..., :3], 2 * toy.embed(TOKENS)[..., 3:])


def write_out(x: Tensor) -> Tensor:
    buffer = torch.empty(2, 5, 6)
    torch.add(x, 1.0, out=buffer)
    return buffer.sin()


def test_a_tensor_given_as_out_is_the_result() -> None:
    toy, graph = graph_of(write_out)
    assert torch.equal(graph[node(graph, "sin")], (toy.embed(TOKENS) + 1).sin())
    assert node(graph, "embedding") in graph.above([node(graph, "sin")])


def scale_first_third(x: Tensor) -> Tensor:
    a, b, c = x.chunk(3, dim=-1)
    a *= 5
    return torch.cat((a, b.cos(), c), -1)


def test_views_side_by_side_do_not_depend_on_each_others_writes() -> None:
    _, graph = graph_of(scale_first_third)
    assert node(graph, "cos") not in graph.below([node(graph, "mul_")])


def test_a_shape_taken_from_a_tensor_is_no_descent() -> None:
    _, graph = graph_of(lambda x: x + torch.zeros_like(x))
    assert not graph.nodes[node(graph, "zeros_like")].tokens


def test_keys_are_places_in_the_code_whatever_the_shape() -> None:
    toy, graph = graph_of(write_half)
    other = Tracer(toy, TOKENS[:1, :3], None).run(toy, None)
    assert [n.key for n in other.nodes] == [n.key for n in graph.nodes]
    toy.step = lambda x: write_half(x) + 0
    changed = trace(toy, TOKENS)
    assert changed.nodes[changed.logits].key != graph.nodes[graph.logits].key


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Toy(lambda x: x @ x), "failed on tokens"),
        (Toy(lambda x: x[:, -1]), "logits have shape"),
        (nn.Identity(), "logits have shape"),
    ],
)
def test_what_cannot_be_captured_is_said_in_one_sentence(module: nn.Module, says: str) -> None:
    from twinlens.capture import align
    from twinlens.families import declare
    from twinlens.museum.tiny import Tensors, tiny_llama

    model = tiny_llama()
    weights = Tensors.of(model)
    with pytest.raises(CaptureError, match=says):
        align(trace(module, TOKENS), declare(model.config.to_dict()), weights.__getitem__)


def test_padding_is_refused_where_no_mask_is_taken() -> None:
    with pytest.raises(CaptureError, match="takes no attention_mask"):
        trace(Toy(torch.sin), TOKENS, mask=torch.tensor([[1] * 5, [0, 1, 1, 1, 1]]))


WAYS = st.lists(st.sampled_from(range(5)), max_size=8)


@example([4, 0], [4])
@given(WAYS, WAYS)
def test_a_call_has_the_keys_that_it_has_whichever_was_before_it(these: list[int], those: list[int]) -> None:
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: x + 1, lambda x: x + x, lambda x: torch.cat([x, x], -1)[..., ::2], lambda x: x.sin_().to(x.dtype),
        lambda x: (x + 1, x)[1],
    ]  # fmt: skip
    way = list[int]()

    def walk(x: Tensor) -> Tensor:
        for i in way:
            x = steps[i](x)
        return x

    torch.manual_seed(0)
    toy = Toy(walk)
    way[:] = those
    before = Tracer(toy, TOKENS, None).run(toy, None).nodes
    way[:] = these
    alone = Tracer(toy, TOKENS, None).run(toy, None)
    after = Tracer(toy, TOKENS, None, before=before).run(toy, None)
    assert [(n.key, n.inputs, n.owner, n.tokens) for n in after.nodes] == [
        (n.key, n.inputs, n.owner, n.tokens) for n in alone.nodes
    ]
    assert all(torch.equal(after[n.index], alone[n.index]) for n in alone.nodes)
