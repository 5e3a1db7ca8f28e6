"""What a model is given, made in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinlens.capture import trace
from twinlens.inputs import given


class Shifted(nn.Module):
    """Makes its inputs while it is captured, as a replaced step does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(given(tokens)["positions"]) + self.table(tokens)


def test_positions_do_not_descend_from_tokens() -> None:
    graph = trace(Shifted(), torch.tensor([[3, 5, 7]]))
    first, second = (n for n in graph.nodes if n.function == "embedding")
    assert not first.tokens
    assert second.tokens


def test_padding_and_positions_are_taken_as_they_are() -> None:
    tokens = torch.tensor([[3, 5, 7]], dtype=torch.int32)
    made = given(tokens, torch.tensor([[False, True, True]]), torch.tensor([[0, 0, 1]]))
    assert {k: v.tolist() for k, v in made.items()} == {
        "tokens": [[3, 5, 7]], "positions": [[0, 0, 1]], "mask": [[0, 1, 1]], "slots": [0, 1, 2],
        "key_mask": [[0, 1, 1]],
    }  # fmt: skip
    assert {v.dtype for v in made.values()} == {torch.int64}
