"""What a value is found in: looking at norms first leaves nothing out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twinlens import sites as names
from twinlens.capture import trace
from twinlens.capture.search import Match, Search, wanted

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])
SITE = "blocks.0.hook_resid_post"


class Alike(nn.Module):
    """Many tensors of one shape: factors of one another, some beside the range of numbers."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.embed, self.head, self.factors = nn.Embedding(11, 6), nn.Linear(6, 11), factors

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        made = [x * factor for factor in self.factors]
        return self.head(x + sum(made))


def searched(factors: list[float]) -> Search:
    torch.manual_seed(0)
    with torch.no_grad():
        return Search(trace(Alike(factors), TOKENS), {"b": 1, "p": 5, "d": 6, "h": 1, "k": 1})


FACTORS = st.sampled_from([1.0, 1.00001, 0.9999, 1.01, 1.03, -1.0, 0.0, 1e-40, math.inf, math.nan])


@settings(max_examples=30, deadline=None)
@given(st.lists(FACTORS, min_size=1, max_size=8), st.integers(0, 7))
def test_norms_leave_out_nothing_that_is_near(factors: list[float], at: int) -> None:
    search = searched(factors)
    nodes = list(search.nodes(30, ()))
    value = search.graph[nodes[at % len(nodes)]]
    looked_for = wanted(SITE, value, None)
    found = list(search.matches(looked_for, ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_of_norm", lambda self, count, whole, size: self._by_size[count, whole])
        assert found == list(search.matches(looked_for, ()))
    if bool(torch.isfinite(value).all()):
        assert Match(nodes[at % len(nodes)], found[0].layout, 0.0) in found
    assert names.axes(SITE) == ("b", "p", "d")


def test_only_what_has_about_the_norm_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched([2.0**i for i in range(20)])
    compared = list[int]()
    plain = Search._compare
    monkeypatch.setattr(
        Search, "_compare", lambda self, node, *args: (compared.append(node), plain(self, node, *args))[1]
    )
    value = search.graph[next(search.nodes(30, ()))]
    assert search.find(wanted(SITE, value * 4.0, None), ()) is not None
    assert len(compared) < 4
