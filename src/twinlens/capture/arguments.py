"""What a mended module is called with: tokens, mask and positions as a step reads them, and a cache."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinlens.cached import Past, cached
from twinlens.capture.remembered import Remembered
from twinlens.errors import CaptureError
from twinlens.inputs import given
from twinlens.sites import axes
from twinlens.spec import Spec, Step


@dataclass(frozen=True, eq=False)
class Arguments:
    """One call of a module's forward.

    `past` counts the tokens in the cache that is handed in; None where it does not say. `before` is what the calls that
    filled it left, where those were seen. `whole` is empty, or says why steps that see several positions at once cannot
    be computed for this call.
    """

    tokens: Tensor
    mask: Tensor | None
    positions: Tensor | None
    cache: Any
    past: int | None
    whole: str
    last: int | None
    """For how many of the last positions logits are asked, where that is said."""
    before: Past | None = None
    key_mask: Tensor | None = None
    """[b s], 1 = a real token, where earlier calls left slots."""

    @classmethod
    def of(
        cls, forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], kept: Remembered | None = None
    ) -> Arguments:  # fmt: skip
        """Of a call of this forward; `kept` is what earlier calls left."""
        named = _named(forward, args, kwargs)
        whole_numbers = [t for t in named.values() if isinstance(t, Tensor) and not t.is_floating_point()]
        if not whole_numbers:
            raise CaptureError("the mended module was called without token ids; call it as module(tokens).")
        tokens, mask, at = whole_numbers[0], named.get("attention_mask"), named.get("position_ids")
        cache = next((v for name, v in named.items() if name.startswith("past_key") and v is not None), None)
        past = 0 if cache is None else _length(cache)
        before = kept.before(cache, past) if kept is not None and past else None
        slots = None if before is None else _of_slots(mask, tokens, before)
        whole, plain = "", isinstance(mask, Tensor) and mask.shape == tokens.shape
        if (past != 0 and slots is None) or (cache is not None and past == 0 and mask is not None and not plain):
            whole = "with use_cache=False, or with a cache that it has filled itself: the keys of this one are not seen"
        elif mask is not None and not plain and slots is None:
            whole = "with an attention_mask of the tokens' shape, [batch, position]"
        mask = None if mask is None or (not plain and slots is None) else mask[:, -tokens.shape[1] :]
        at = at.expand(tokens.shape) if isinstance(at, Tensor) and at.ndim == 2 else None
        if at is None and past and before is None and kept is not None and "positions" not in dict(kept.spec.inputs):
            at = torch.arange(past, past + tokens.shape[1], device=tokens.device).expand(tokens.shape)
        last = named.get("logits_to_keep")
        last = last if isinstance(last, int) and last > 0 else None
        return cls(tokens, mask, at, cache, past, whole, last, None if slots is None else before, slots)

    @property
    def kind(self) -> tuple[bool, ...]:
        """Calls of one kind mostly run the same code."""
        padded = self.mask is not None and not bool(self.mask.all())
        rows, length = self.tokens.shape
        return rows == 1, length == 1, self.mask is None, padded, self.cache is None, self.past == 0

    def steps(self, spec: Spec) -> Spec:
        """The steps of this call, which reads by slot where earlier calls left some."""
        return spec if self.before is None else cached(spec)

    def inputs(self, spec: Spec) -> dict[str, Tensor]:
        """The sites that a call is given; positions that are handed in are not counted anew."""
        changes = [(n, text) for n, text in spec.inputs if n != "positions" or self.positions is None]
        inputs = given(self.tokens, self.mask, self.positions, changes, self.key_mask)
        return inputs if self.before is None else inputs | self.before.tensors

    def can(self, step: Step) -> bool:
        """Whether a step sees here all that it reads."""
        if sees_others(step):
            return not self.whole
        known = self.past == 0 or self.before is not None
        return "positions" not in step.reads or self.positions is not None or known

    def saved(self) -> Callable[[], None]:
        """What puts the cache back as it is now: a call fills it, and may have to be made again."""
        if self.cache is None or not hasattr(self.cache, "__dict__"):
            return lambda: None
        held = copy.deepcopy(vars(self.cache))
        return lambda: vars(self.cache).update(copy.deepcopy(held))


def sees_others(step: Step) -> bool:
    """Whether a step sees several positions at once, so that with a cache it reads what earlier calls left."""
    return any("s" in axes(s) or s in ("slots", "mask") for s in (step.writes, *step.reads))


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


def _of_slots(mask: Any, tokens: Tensor, before: Past) -> Tensor | None:
    """The mask of all slots, also of those that the calls before left; None where it is said in another form."""
    rows, length = tokens.shape
    if before.mask is None or len(before.mask) != rows:
        return None
    if mask is None:
        return torch.cat((before.mask, torch.ones_like(tokens, dtype=before.mask.dtype)), dim=1)
    shaped = isinstance(mask, Tensor) and mask.shape == (rows, len(before) + length)
    return mask if shaped else None


def _length(cache: Any) -> int | None:
    """The border: a cache is an object of somebody's, or keys and values by layer."""
    try:
        length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache[0][0].shape[-2]
    except (AttributeError, IndexError, TypeError):
        return None
    return int(length)
