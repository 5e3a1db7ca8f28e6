"""What torch's functions do, told by their names: looked at once for each, and then known."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any

import torch

TORCH = f"{Path(torch.__file__).parent}{os.sep}"
"""Where torch's own code lies, and not that of packages whose names begin alike."""

FACTORIES = frozenset(
    f"{kind}{form}" for kind in ("ones", "zeros", "empty", "full", "rand", "randn") for form in ("_like",)
) | {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
"""Functions whose result has a shape or a dtype of what they are given, and nothing of its values."""

_UNWRITTEN = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"))

_SILENT = frozenset(("__set__", "requires_grad_", "is_floating_point", "size", "dim", "__len__", "is_complex"))
"""Functions that make no tensor."""

_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul")
_BITWISE = ("and", "or", "xor", "lshift", "rshift")
_MUTATING = frozenset(f"__i{name}__" for name in (*_ARITHMETIC, *_BITWISE)) | {"__setitem__"}

_OF_C = frozenset((BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType))
"""Types of functions that are written in C: nobody can have put them in the place of others."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of torch.

    `attribute`: it reads one of a tensor. `silent`: it makes no tensor. `writes`: into its first argument, as torch
    names such functions: a trailing underscore, `__iadd__`. `factory`: see `FACTORIES`. `unwritten`: it gives memory
    as it was left, by the same code on the same tokens, perhaps, and so what is to come.
    """

    name: str
    attribute: bool
    silent: bool
    writes: bool
    factory: bool
    unwritten: bool


def function(func: Any) -> Function:
    """What is known of a function."""
    name = getattr(func, "__name__", "")
    attribute = name == "__get__"
    if attribute:
        name = getattr(func.__self__, "__name__", "property")
    writes = name[-1:] == "_" and (name[-2:] != "__" or name in _MUTATING)
    return Function(name, attribute, name in _SILENT, writes and not attribute, name in FACTORIES, name in _UNWRITTEN)


_known = dict[Hashable, Function]()


def own_function(func: Any) -> Function | None:
    """What is known of a function that torch brought: written in C, or in a file of its own; None for others.

    Functions of one code have names of their own (`torch._jit_internal.boolean_dispatch`).
    """
    kind = type(func)
    if kind in _OF_C:
        key: Hashable = func
    elif kind is FunctionType and func.__code__.co_filename.startswith(TORCH):  # equal code may lie elsewhere
        key = func.__code__, func.__name__
    else:
        return None
    known = _known.get(key)
    if known is None:
        known = _known[key] = function(func)
    return known
