"""Functions of torch that a user has replaced run once, and what they call is seen."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.capture import trace


class Softened(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return F.softmax(tokens.float().unsqueeze(-1) * torch.ones(3), dim=-1)


def test_a_replaced_function_is_called_through() -> None:
    soften = F.softmax

    def twice(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return soften(x, *args, **kwargs) * 2.0

    tokens = torch.arange(6).reshape(2, 3)
    with mock.patch.object(F, "softmax", twice):
        graph = trace(Softened(), tokens)
        plain = Softened()(tokens)
    assert torch.equal(graph[graph.logits], plain)
    assert [n.function for n in graph.nodes if n.index in graph.live][-2:] == ["softmax", "mul"]


def test_a_mock_is_called_through() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    with mock.patch.object(F, "softmax", mock.Mock(wraps=F.softmax)):
        graph = trace(Softened(), tokens)
    assert torch.equal(graph[graph.logits], Softened()(tokens))
    assert graph.nodes[graph.logits].function == "softmax"
