"""What a call was given, what it writes into, and which tensors lie in the same memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.capture.functions import Function


def tensors(*trees: Any) -> list[Tensor]:
    """The tensors among arguments, in order."""
    found: list[Tensor] = []
    for tree in trees:
        _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Tensor]) -> None:
    items = tree.values() if isinstance(tree, dict) else tree
    for item in items:
        if type(item) in _MUTE:
            continue
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            _collect(item, found)


_MUTE = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device, slice))
"""Types of most of what holds no tensor."""

Signature = tuple[tuple[int, ...] | None, str]
"""Which arguments of a call are tensors, None where they lie within others; the form of all but the first."""


def signature(args: tuple[Any, ...]) -> Signature:
    """The same for all calls whose arguments, and what lies within them, have these types."""
    types = tuple(map(type, args))
    known = _SIGNATURES.get(types)
    if known is None:
        telling = any(issubclass(kind, _TELLING) for kind in types)
        known = _SIGNATURES[types] = _DEEPER if telling else _signature(args)
    if known is _DEEPER:
        kinds = tuple(map(_kind, args))
        known = _SIGNATURES.get(kinds) or _SIGNATURES.setdefault(kinds, _signature(args))
    return known


def _signature(args: tuple[Any, ...]) -> Signature:
    within = any(isinstance(a, (tuple, list, dict)) and tensors((a,)) for a in args)
    at = tuple(i for i, argument in enumerate(args) if isinstance(argument, Tensor))
    return (None if within else at), form(args[1:])


_SIGNATURES = dict[tuple[Any, ...], Signature]()
_DEEPER: Signature = None, "what lies within tells more"
_TELLING = (tuple, list, dict, slice, str)
"""Types of arguments that must be looked at."""


def _kind(argument: Any) -> Any:
    """What tells the form of an argument: its type, and those of what lies within it; a string is its own."""
    kind = type(argument)
    if kind in _FORMS:
        return kind
    if kind is slice:
        return kind, type(argument.start), type(argument.stop), type(argument.step)
    if isinstance(argument, (tuple, list)):
        return kind, *[_kind(a) for a in argument]
    if isinstance(argument, dict):
        return kind, *[_kind(a) for a in argument.values()]
    return argument if isinstance(argument, str) else kind


def exchanged(tree: Any, these: list[Tensor], by: Tensor) -> Any:
    """The same arguments with another tensor wherever one of these stands."""
    if isinstance(tree, Tensor):
        return by if any(tree is t for t in these) else tree
    if isinstance(tree, dict):
        items: dict[Any, Any] = tree  # pyright: ignore[reportUnknownVariableType]  # whatever somebody's call was given
        return {name: exchanged(value, these, by) for name, value in items.items()}
    if type(tree) in (tuple, list):
        return type(tree)(exchanged(value, these, by) for value in tree)
    return tree


def form(arguments: Any) -> str:
    """What kinds of arguments a call had: numbers only as numbers, since they vary with the shape of the tokens."""
    return ",".join([_FORMS.get(type(a)) or _form_of(a) for a in arguments])


_FORMS: dict[type, str] = {int: "n", float: "x", Tensor: "t", nn.Parameter: "t", bool: "b", type(None): "-"}


def _form_of(argument: Any) -> str:
    if isinstance(argument, (tuple, list)):
        return f"({form(argument)})"
    if isinstance(argument, slice):
        return f"[{form((argument.start, argument.stop, argument.step))}]"
    return argument if isinstance(argument, str) else type(argument).__name__


WRITING = ("out", "inplace")
"""Arguments by name that may say that a call writes."""


def written_by(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> list[Tensor]:
    """Tensors that a call writes into: its first argument, or `out=`."""
    written = tensors((kwargs["out"],)) if kwargs and kwargs.get("out") is not None else []
    in_place = function.writes or (kwargs and kwargs.get("inplace") is True)
    return [*written, args[0]] if in_place and args and isinstance(args[0], Tensor) else written


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; 0 where it has none of its own."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # no public identity exists
    except (RuntimeError, NotImplementedError):
        return 0


def overlap(x: Tensor, y: Tensor) -> bool:
    """Whether two views of one storage may share an entry: False only where rows interleave without touching."""
    (x_row, x_from, x_to), (y_row, y_from, y_to) = _footprint(x), _footprint(y)
    if x_row != y_row:
        return True
    return x_from < y_to and y_from < x_to


def _footprint(t: Tensor) -> tuple[int, int, int]:
    """The stride of rows, and which part of a row a view covers."""
    dims = sorted((int(n), int(m)) for n, m in zip(t.stride(), t.shape, strict=True) if m > 1)
    extent, offset = 1, int(t.storage_offset())
    for stride, size in dims:
        if stride > extent:
            start = offset % stride
            if start + extent <= stride:
                return stride, start, start + extent
        extent += stride * (size - 1)
    return 0, offset, offset + extent
