"""What is known of torch's functions by their names, and of calls by the types of their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.capture.functions import TORCH, function, own_function
from twinlens.capture.memory import signature, written_by

SHAPE: Any = Tensor.shape


@pytest.mark.parametrize("func", [torch.add, Tensor.add, Tensor.__getitem__, SHAPE.__get__, F.softmax])
def test_functions_that_torch_brought_need_not_be_asked_for(func: Any) -> None:
    assert own_function(func) == function(func)
    assert own_function(func) is own_function(func)


def test_in_the_place_of_a_python_function_may_stand_anything() -> None:
    def softmax(x: Tensor) -> Tensor:
        return x.softmax(-1)

    def elsewhere(name: str) -> Any:
        made: dict[str, Any] = {}
        exec(compile("def softmax(x): return x", name, "exec"), made)
        return made["softmax"]

    assert own_function(softmax) is None
    assert own_function(elsewhere(f"{TORCH}nn/functional.py")) is not None
    assert own_function(elsewhere(f"{TORCH[:-1]}tune/functional.py")) is None
    assert own_function(object()) is None


def test_functions_of_one_code_keep_their_names() -> None:
    pools: list[Any] = [F.max_pool1d, F.max_pool2d]
    assert pools[0].__code__ is pools[1].__code__
    assert [getattr(own_function(f), "name", None) for f in pools] == [f.__name__ for f in pools]


@pytest.mark.parametrize(
    ("func", "writes"),
    [(Tensor.add_, True), (Tensor.__iadd__, True), (Tensor.__setitem__, True), (Tensor.__add__, False),
     (Tensor.__invert__, False), (Tensor.add, False), (SHAPE.__get__, False)],
)  # fmt: skip
def test_what_a_function_writes_is_told_by_its_name(func: Any, writes: bool) -> None:
    x = torch.ones(2)
    assert [t is x for t in written_by(function(func), (x, 1), None)] == [True] * writes
    assert written_by(function(torch.add), (x, x), {"out": x})[0] is x
    assert written_by(function(F.relu), (x,), {"inplace": True})[0] is x


def test_attributes_are_told_from_calls() -> None:
    assert function(SHAPE.__get__).name == "shape"
    assert function(SHAPE.__get__).attribute
    assert function(Tensor.size).silent
    assert function(torch.zeros_like).factory


def test_a_signature_is_that_of_all_calls_with_these_types() -> None:
    x = torch.ones(2)
    assert signature((x, 1, nn.Parameter(x), None)) == ((0, 2), "n,t,-")
    assert signature((x, 2, nn.Parameter(x), None)) == ((0, 2), "n,t,-")
    assert signature((x, 1.0)) == ((0,), "x")


def test_what_lies_within_arguments_tells_calls_apart() -> None:
    x = torch.ones(2)
    assert signature((x, "ij->ji"))[1] != signature((x, "ij->ij"))[1]
    assert signature((x, (1, 2))) == ((0,), "(n,n)") != signature((x, (1,)))
    assert signature((x, (slice(None), None))) == ((0,), "([-,-,-],-)")
    assert signature((x, (slice(None, 1), None))) == ((0,), "([-,n,-],-)")
    assert signature((x, x.shape))[1] == "(n)"


@pytest.mark.parametrize("within", [[torch.ones(1)], (1, [torch.ones(1)]), {"x": torch.ones(1)}])
def test_tensors_within_arguments_are_looked_for(within: Any) -> None:
    assert signature((torch.ones(2), within))[0] is None
