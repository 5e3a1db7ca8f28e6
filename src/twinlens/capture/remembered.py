"""What the calls of a mended module left, by the cache that they filled: a later call reads it by slot.

A cache is an object of somebody's, and what it holds may be what was mended. So nothing is read from it: keys and
values are kept as the calls showed them, and the cache only says which calls came before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from twinlens.cached import Past, cached, written
from twinlens.spec import Spec

_DEPTH = 4
"""A cache holds layers, which hold tensors."""


@dataclass(eq=False)
class Remembered:
    """Of each cache that is still there, what calls left in it, by the number of its slots."""

    spec: Spec
    """As one call without a cache has it."""
    known: weakref.WeakKeyDictionary[Any, dict[int, tuple[Past, list[Tensor]]]] = field(
        default_factory=weakref.WeakKeyDictionary[Any, dict[int, tuple[Past, list[Tensor]]]]
    )

    def before(self, cache: Any, slots: int | None) -> Past | None:
        """What stands in a cache; None where that is not known, or somebody has changed it since."""
        left = self.known.get(cache, {}).get(slots or 0) if _can_be_known(cache) else None
        if left is None or not _same(left[1], _state(cache)):
            return None
        return left[0]

    def add(self, out: Any, before: Past | None, sites: Mapping[str, Tensor], key_mask: Tensor) -> None:
        """What a call has left in the cache that it returns; nothing where it does not show it."""
        cache = getattr(out, "past_key_values", None)  # the border: as transformers' models return it
        if not _can_be_known(cache):
            return
        steps, past = cached(self.spec), before or Past()
        made = written(steps, sites, past.before(steps, key_mask))
        past = replace(past)
        past.add(steps, made, key_mask)
        if past.unseen(steps) is None:
            held = self.known.setdefault(cache, {})
            held[len(past)] = past, _state(cache)


def _can_be_known(cache: Any) -> bool:
    return hasattr(cache, "__weakref__") and getattr(type(cache), "__hash__", None) is not None


def _state(cache: Any) -> list[Tensor]:
    """Enough of its tensors to see that rows were exchanged or slots taken away: a copy of each would be another
    cache.
    """
    return [t.detach().flatten(1).double().sum(1) for t in _tensors(vars(cache), _DEPTH) if t.ndim > 2]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _tensors(held: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif depth:
        inner = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ()
        inner = inner or vars(held).values() if hasattr(held, "__dict__") else inner
        for each in inner:
            yield from _tensors(each, depth - 1)
