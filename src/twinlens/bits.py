"""Whether two tensors hold the same numbers, at the speed at which memory is read."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 8
"""Bytes that are compared at once; torch.equal compares one entry at a time."""


def equal(x: Tensor, y: Tensor) -> bool:
    """As `torch.equal` for tensors of one dtype, except that a NaN equals itself; False for other dtypes or shapes."""
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        return False
    if x.data_ptr() == y.data_ptr() and x.stride() == y.stride():
        return True
    a, b = _words(x), _words(y)
    if a is not None and b is not None and x.stride() == y.stride() and torch.equal(a, b):
        return True
    return torch.equal(x, y)  # also where a zero has the other sign


def _words(tensor: Tensor) -> Tensor | None:
    """The memory of a tensor that has no gaps, as words; None where it has any, or too few bytes."""
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    dense = tensor.detach().permute(order)
    whole = tensor.nbytes % _WORD == 0 and tensor.data_ptr() % _WORD == 0 and tensor.nbytes > 0
    if not whole or not dense.is_contiguous() or tensor.is_complex() or tensor.is_conj():
        return None
    return dense.view(-1).view(torch.int64)
