"""What is known of torch's functions by their names, and of calls by the types of their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.capture.functions import function, function_of_c
from twinlens.capture.memory import signature, written_by

SHAPE: Any = Tensor.shape


@pytest.mark.parametrize("func", [torch.add, Tensor.add, Tensor.__getitem__, SHAPE.__get__])
def test_functions_of_c_need_not_be_asked_for(func: Any) -> None:
    assert function_of_c(func) == function(func)


def test_in_the_place_of_a_python_function_may_stand_anything() -> None:
    assert function_of_c(F.softmax) is None


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


@pytest.mark.parametrize("held", [("ij->ji",), ((1, 2),), ([torch.ones(1)],), (slice(None),)])
def test_where_types_do_not_say_it_all_there_is_none(held: tuple[Any, ...]) -> None:
    assert signature((torch.ones(2), *held)) is None
