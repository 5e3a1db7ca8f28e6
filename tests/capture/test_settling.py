"""A site is the tensor that the next step reads, not an earlier one that is changed once more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from twinlens.capture import trace
from twinlens.capture.settling import settled, unwidened


class Chain(nn.Module):
    """cos of the ids, something done to it, and a sum over two uses of what came out."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.then = then

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.then(tokens.float().cos())
        return x.unsqueeze(-1) * x.unsqueeze(-2)


def found(then: Callable[[Tensor], Tensor], *, factors: bool = True) -> str:
    """The functions from the cosine to the tensor that is the site."""
    graph = trace(Chain(then), torch.arange(6).reshape(2, 3))
    cos = next(n.index for n in graph.nodes if n.function == "cos")
    last = settled(graph, cos, torch.float32, factors=factors)
    return " ".join(n.function for n in graph.nodes[cos : last + 1])


@pytest.mark.parametrize(
    ("then", "path"),
    [
        (lambda x: x, "cos"),
        (lambda x: x.bfloat16().float(), "cos bfloat16 float"),
        (lambda x: x * 1.2, "cos mul"),
        (lambda x: (x / 3.0).bfloat16().float(), "cos div bfloat16 float"),
        (lambda x: x.double(), "cos"),  # the precision of whoever reads it
        (lambda x: x * torch.ones(3), "cos"),  # a product with more than a number is another step
        (lambda x: x + x.bfloat16().float(), "cos"),  # two read it
    ],
)
def test_a_cast_and_a_factor_belong_to_the_site(then: Callable[[Tensor], Tensor], path: str) -> None:
    assert [f.strip("_") for f in found(then).split()] == path.split()


def test_a_factor_that_a_reader_may_have_is_left_to_it() -> None:
    assert found(lambda x: x * 1.2, factors=False) == "cos"


def test_what_a_product_widens_is_the_tensor_before() -> None:
    graph = trace(Chain(lambda x: x.double()), torch.arange(6).reshape(2, 3))
    wide = next(n for n in graph.nodes if n.function == "double")
    assert unwidened(graph, wide.index, torch.float32) == wide.inputs[0]
    assert unwidened(graph, wide.index, torch.bfloat16) == wide.index
