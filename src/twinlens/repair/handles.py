"""Where an implementation holds a value: found by the value, not by a table of names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.ops import Op
from twinlens.spec import stored_name

_FORMS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("x", lambda x: x),
    ("1/x", lambda x: 1 / x),
    ("x²", lambda x: x * x),
    ("1/x²", lambda x: 1 / (x * x)),
    ("sqrt x", lambda x: math.sqrt(x)),
    ("1/sqrt x", lambda x: 1 / math.sqrt(x)),
)
"""How constants are written in the field's code: scaling = 1 / scale, query_pre_attn_scalar = scale², …"""


@dataclass(frozen=True)
class Handle:
    """Something that can be set: in words, and done or undone."""

    words: str
    set: Callable[[], None]
    undo: Callable[[], None]


@dataclass(frozen=True)
class Holder:
    """An object whose attributes may hold a value, by the path at which it stands."""

    path: str
    object: Any


def holders(module: nn.Module, layer_paths: list[str]) -> Iterator[Holder]:
    """The modules of some layers (all modules outside any layer where none is given), and their configs."""
    seen = set[int]()
    for path, m in module.named_modules():
        inside = any(path == p or path.startswith(p + ".") for p in layer_paths)
        if layer_paths and not inside:
            continue
        yield Holder(path, m)
    for path, m in module.named_modules():
        for name in ("config", "cfg"):  # the border: this is where implementations keep what they read at run time
            held = getattr(m, name, None)
            if held is not None and id(held) not in seen:
                seen.add(id(held))
                yield Holder(f"{path}.{name}" if path else name, held)


def integers(holder: Holder, now: int, wanted: int | None) -> Iterator[Handle]:
    """Attributes that hold an integer."""
    for name, value in list(vars(holder.object).items()):
        if type(value) is int and value == now:
            yield _attribute(holder, name, wanted)


def numbers(holder: Holder, now: float, wanted: float | None) -> Iterator[Handle]:
    """Attributes that hold a number in one of the usual forms."""
    for name, value in list(vars(holder.object).items()):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for _, form in _FORMS:
            held = _safely(form, now)
            if held is not None and held != 0 and abs(value - held) <= 1e-6 * abs(held):
                yield from _written(holder, name, value, form, wanted)
                break


def _written(
    holder: Holder, name: str, value: float, form: Callable[[float], float], wanted: float | None
) -> Iterator[Handle]:
    """A new value in the form of the old one; off is None in some code, -1 or 0 in other."""
    if wanted is None:
        yield from (_attribute(holder, name, off) for off in (None, -1.0, 0.0))
        return
    new = _safely(form, wanted)
    if new is not None:
        whole = isinstance(value, int) and float(new).is_integer()
        yield _attribute(holder, name, int(new) if whole else new)


def switches(holder: Holder, field: str, wanted: Any) -> Iterator[Handle]:
    """Attributes of a like name that are off."""
    words = [w for w in re.split(r"[^a-z]+", field.lower()) if len(w) > 2]
    for name, value in list(vars(holder.object).items()):
        off = value is None or (type(value) in (int, float) and value in (-1, 0))
        if off and any(w in name.lower().replace("_", "") for w in words):
            yield _attribute(holder, name, wanted)


def tables(holder: Holder, now: Op, wanted: Op) -> Iterator[Handle]:
    """Buffers and tensors that hold what an operation has precomputed."""
    if not isinstance(holder.object, nn.Module):
        return
    held = {
        **dict(holder.object.named_buffers(recurse=False)),
        **{k: v for k, v in vars(holder.object).items() if isinstance(v, Tensor)},
    }
    for name, tensor in held.items():
        if tensor.ndim not in (1, 2) or tensor.numel() == 0:
            continue
        for old, new in zip(now.precomputed(tensor.shape[0]), wanted.precomputed(tensor.shape[0]), strict=True):
            if old.shape == tensor.shape and _alike(old, tensor) and not torch.equal(new, tensor):
                yield _contents(f"{holder.path}.{name}", tensor, new)
                break


def together(these: list[Handle]) -> Handle:
    """Several handles as one."""

    def do() -> None:
        for handle in these:
            handle.set()

    def undo() -> None:
        for handle in reversed(these):
            handle.undo()

    more = f" (and {len(these) - 1} more like it)" if len(these) > 1 else ""
    return Handle(these[0].words + more, do, undo)


def _alike(expected: Tensor, tensor: Tensor) -> bool:
    if expected.dtype == torch.bool or tensor.dtype == torch.bool:
        return expected.dtype == tensor.dtype and torch.equal(expected, tensor)
    if not tensor.is_floating_point():
        return False
    x, y = expected.double(), tensor.double()
    return bool((x - y).norm() <= 1e-4 * x.norm())


def _attribute(holder: Holder, name: str, new: Any) -> Handle:
    old = getattr(holder.object, name)

    def put(value: Any) -> Callable[[], None]:
        return lambda: setattr(holder.object, name, value)

    shown = f"{new:.10g}" if isinstance(new, float) else repr(new)
    was = f"{old:.10g}" if isinstance(old, float) else repr(old)
    return Handle(f"{holder.path}.{name} = {shown}  # was {was}", put(new), put(old))


def _contents(path: str, tensor: Tensor, new: Tensor, words: str = "") -> Handle:
    old = tensor.detach().clone()

    def fill(value: Tensor) -> Callable[[], None]:
        def do() -> None:
            with torch.no_grad():
                tensor.copy_(value)

        return do

    return Handle(words or f"{path}: the table recomputed", fill(new), fill(old))


def weight(name: str, tensor: Tensor, owner: str, reference: Tensor) -> Handle:
    """The contents of a parameter, through the view of it in the checkpoint's layout."""
    return _contents(owner, tensor, reference, f"{owner}: {stored_name(name)} of the reference copied in")


def untied(module: nn.Module, path: str, parameter: nn.Parameter, view: Tensor, reference: Tensor) -> Handle:
    """A parameter of its own where another name holds the same one, and rightly."""
    held = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=parameter.device)
    held.copy_(parameter.detach())
    held.as_strided(view.shape, view.stride(), view.storage_offset() - parameter.storage_offset()).copy_(reference)
    own = nn.Parameter(held, requires_grad=parameter.requires_grad)
    parent, _, name = path.rpartition(".")
    holder = module.get_submodule(parent)
    words = f"{path}: a parameter of its own, the reference's copied in"
    return Handle(words, lambda: setattr(holder, name, own), lambda: setattr(holder, name, parameter))


def _safely(form: Callable[[float], float], x: float) -> float | None:
    try:
        return form(x)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
