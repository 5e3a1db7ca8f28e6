"""What a mended module is called with: tokens, mask and positions as a step reads them, and a cache."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twinlens.errors import CaptureError
from twinlens.inputs import given
from twinlens.sites import axes
from twinlens.spec import Spec, Step


@dataclass(frozen=True, eq=False)
class Arguments:
    """One call of a module's forward.

    `past` counts the tokens in the cache that is handed in; None where it does not say. `whole` is empty, or says why
    steps that see several positions at once cannot be computed for this call.
    """

    tokens: Tensor
    mask: Tensor | None
    positions: Tensor | None
    cache: Any
    past: int | None
    whole: str
    last: int | None
    """For how many of the last positions logits are asked, where that is said."""

    @classmethod
    def of(cls, forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Arguments:
        """Of a call of this forward."""
        named = _named(forward, args, kwargs)
        whole_numbers = [t for t in named.values() if isinstance(t, Tensor) and not t.is_floating_point()]
        if not whole_numbers:
            raise CaptureError("the mended module was called without token ids; call it as module(tokens).")
        tokens, mask, at = whole_numbers[0], named.get("attention_mask"), named.get("position_ids")
        cache = next((v for name, v in named.items() if name.startswith("past_key") and v is not None), None)
        past = 0 if cache is None else _length(cache)
        whole, plain = "", isinstance(mask, Tensor) and mask.shape == tokens.shape
        if past != 0 or (cache is not None and mask is not None and not plain):
            whole = "with use_cache=False: the keys of a cache are not seen"
        elif mask is not None and not plain:
            whole = "with an attention_mask of the tokens' shape, [batch, position]"
        mask = mask if plain else None
        at = at.expand(tokens.shape) if isinstance(at, Tensor) and at.ndim == 2 else None
        last = named.get("logits_to_keep")
        return cls(tokens, mask, at, cache, past, whole, last if isinstance(last, int) and last > 0 else None)

    @property
    def kind(self) -> tuple[bool, ...]:
        """Calls of one kind mostly run the same code."""
        padded = self.mask is not None and not bool(self.mask.all())
        rows, length = self.tokens.shape
        return rows == 1, length == 1, self.mask is None, padded, self.cache is None, self.past == 0

    def inputs(self, spec: Spec) -> dict[str, Tensor]:
        """The sites that a call is given; positions that are handed in are not counted anew."""
        changes = [(n, text) for n, text in spec.inputs if n != "positions" or self.positions is None]
        return given(self.tokens, self.mask, self.positions, changes)

    def can(self, step: Step) -> bool:
        """Whether a step sees here all that it reads."""
        sites = (step.writes, *step.reads)
        if any("s" in axes(s) or s in ("slots", "mask") for s in sites):
            return not self.whole
        return "positions" not in sites or self.positions is not None or self.past == 0

    def saved(self) -> Callable[[], None]:
        """What puts the cache back as it is now: a call fills it, and may have to be made again."""
        if self.cache is None or not hasattr(self.cache, "__dict__"):
            return lambda: None
        held = copy.deepcopy(vars(self.cache))
        return lambda: vars(self.cache).update(copy.deepcopy(held))


def _named(forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, in the order of the signature."""
    bound = inspect.signature(forward).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}{i}": v for i, v in enumerate(value)}
        else:
            named[name] = value
    return named


def _length(cache: Any) -> int | None:
    """The border: a cache is an object of somebody's, or keys and values by layer."""
    try:
        length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache[0][0].shape[-2]
    except (AttributeError, IndexError, TypeError):
        return None
    return int(length)
