"""What a call was given, what it writes into, and which tensors lie in the same memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list, dict)):
            _collect(item, found)


Signature = tuple[tuple[int, ...], str]
"""Which arguments of a call are tensors, and the form of the others."""


def signature(args: tuple[Any, ...]) -> Signature | None:
    """The same for all calls whose arguments have these types; None where that does not say it all."""
    types = tuple(map(type, args))
    try:
        return _SIGNATURES[types]
    except KeyError:
        at = tuple(i for i, kind in enumerate(types) if _FORMS.get(kind) == "t")
        mute = any(kind not in _FORMS and issubclass(kind, _TELLING) for kind in types)
        known = None if mute else (at, form(args[1:]))
        return _SIGNATURES.setdefault(types, known)


_SIGNATURES = dict[tuple[type, ...], Signature | None]()
_TELLING = (Tensor, tuple, list, dict, slice, str)
"""Types of arguments that must be looked at."""


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
