"""A declared model as it runs with a key/value cache: each call reads what the calls before it left.

Prefill, chunks and steps of decoding are calls of one kind: keys and values of earlier calls stand before the call's
own, and the mask is that of all slots. A layer with a window keeps no more than a later query sees, as transformers
does: window - 1 slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from twinlens.errors import InputError
from twinlens.inputs import given
from twinlens.ops import Append, LatentKey, Mix, Op, Scores
from twinlens.sites import axes, block, split
from twinlens.spec import Spec, Step


@dataclass
class Past:
    """What the calls of one text so far left; a call that is given it goes on from there, and adds its own."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    """By `attn.hook_k_past` and `hook_v_past`."""
    mask: Tensor | None = None
    """[b u], 1 = a real token."""

    def __len__(self) -> int:
        """The slots so far."""
        return 0 if self.mask is None else self.mask.shape[1]

    def before(self, spec: Spec, tokens: Tensor) -> dict[str, Tensor]:
        """The tensors that the next call reads."""
        return self.tensors or nothing(spec, len(tokens), tokens.device)

    def add(self, spec: Spec, sites: Mapping[str, Tensor], key_mask: Tensor) -> None:
        """Take what a call of a cached spec wrote."""
        self.tensors, self.mask = left(spec, sites), key_mask

    def unseen(self, spec: Spec) -> str | None:
        """The first site by slot of which nothing was left, so that the next call cannot be judged."""
        return next((step.writes for step in appended(spec) if step.reads[0] not in self.tensors), None)


_LATENT = {
    "attn.kv_latent_norm.hook_out": "latent",
    "attn.hook_rot_k_shared": "k_shared",
    "attn.hook_kv": "kv",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
}
"""What a cache holds of latent attention, the first two, and what is made of it slot by slot."""


@lru_cache(maxsize=64)
def cached(spec: Spec) -> Spec:
    """The same model, whose attention reads keys and values by slot, `attn.hook_k_cache` and `hook_v_cache`.

    They are what is kept, with what the call adds; of latent attention latents are, as transformers does.
    """
    layers = dict[int | None, list[Step]]()
    for step in spec.steps:
        layers.setdefault(split(step.writes)[0], []).append(step)
    names = {layer: _kept(steps) for layer, steps in layers.items()}
    made = (s for step in spec.steps for s in _with_cache(step, names[split(step.writes)[0]]))
    return dataclasses.replace(spec, steps=tuple(made))


def _kept(steps: Iterable[Step]) -> dict[str, str]:
    """By the site within a layer, the word for what stands by slot."""
    if any(isinstance(s.op, LatentKey) for s in steps):
        return _LATENT
    reads = {part: s.reads[1] for s in steps for part, op in (("k", Scores), ("v", Mix)) if isinstance(s.op, op)}
    return {split(site)[1]: part for part, site in reads.items()}


def _with_cache(step: Step, names: Mapping[str, str]) -> Iterator[Step]:
    """A step of a cached model: what it reads by slot it reads so, what it makes of that is by slot as well."""
    layer, name = split(step.writes)

    def by_slot(site: str) -> str:
        part = names.get(split(site)[1])
        return block(layer or 0, f"attn.hook_{part}_cache") if part and split(site)[0] == layer else site

    if isinstance(step.op, Scores | Mix) or (name in names and any(by_slot(r) != r for r in step.reads)):
        reads = tuple("key_mask" if r == "mask" else by_slot(r) for r in step.reads)
        yield dataclasses.replace(step, writes=by_slot(step.writes), op=_folding(step.op), reads=reads)
        return
    yield step
    if name in names:
        past = block(layer or 0, f"attn.hook_{names[name]}_past")
        yield Step(by_slot(step.writes), Append(), (past, step.writes))


def _folding(op: Op) -> Op:
    """torch's kernel as transformers calls it for a single query."""
    folds = isinstance(op, Mix) and op.kernel == "sdpa" and op.sharing == "expand"
    return op.replace(sharing="folded") if folds else op


def appended(spec: Spec) -> list[Step]:
    """The steps of a cached spec that write what a call reads by slot."""
    return [step for step in spec.steps if isinstance(step.op, Append)]


def nothing(spec: Spec, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What the first call of a cached spec finds: no slots."""
    sizes = spec.shape.axes | {"b": batch, "u": 0}
    return {
        step.reads[0]: torch.empty([sizes[a] for a in axes(step.reads[0])], dtype=spec.dtype, device=device)
        for step in appended(spec)
    }


def left(spec: Spec, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a call of a cached spec leaves to the next, from the sites that it wrote; what is not seen is left out."""
    windows = {split(s.writes)[0]: s.op.window for s in spec.steps if isinstance(s.op, Scores)}
    found = dict[str, Tensor]()
    for step in appended(spec):
        if step.writes in sites:
            window, kept = windows[split(step.writes)[0]], sites[step.writes]
            found[step.reads[0]] = kept if window is None else kept[:, max(kept.shape[1] - window + 1, 0) :]
    return found


@runtime_checkable
class Ran(Protocol):
    """A call that was made: its tokens [b p], its mask [b p], what it wrote."""

    @property
    def tokens(self) -> Tensor:
        """[b p]."""
        ...

    @property
    def mask(self) -> Tensor:
        """[b p], 1 = a real token."""
        ...

    @property
    def sites(self) -> Mapping[str, Tensor]:
        """What it wrote."""
        ...


def befores(spec: Spec, calls: Sequence[Ran]) -> Iterator[dict[str, Tensor]]:
    """For each of the calls of one text, by a cached spec, what the calls before it left, and the mask of all slots.

    Raises InputError where a call does not show what it read by slot, and the next one cannot be judged.
    """
    past = Past()
    for number, call in enumerate(calls):
        before = past.before(spec, call.tokens)
        key_mask = call.mask if past.mask is None else torch.cat((past.mask, call.mask), dim=1)
        yield {**before, "key_mask": key_mask}
        if number + 1 < len(calls):
            past.add(spec, written(spec, call.sites, before), key_mask)
            if (site := past.unseen(spec)) is not None:
                raise InputError(
                    f"{site} is not among the sites of call {number}, so that the next call has no keys and "
                    "values to be judged by; record them, or compare one call."
                )


def written(spec: Spec, sites: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a call read by slot: as it shows it, else what stood there with its own behind."""
    made = dict[str, Tensor]()
    for step in appended(spec):
        if step.writes in sites:
            made[step.writes] = sites[step.writes]
        elif step.reads[1] in sites:
            made[step.writes] = step.op(before[step.reads[0]], sites[step.reads[1]])
    return made


def calls_of(tokens: Tensor, mask: Tensor | None, lengths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens [b p] of each call, and the mask [b s] of all slots that it reads."""
    mask = torch.ones_like(tokens) if mask is None else mask
    end = 0
    for length in lengths:
        yield tokens[:, end : end + length], mask[:, : end + length]
        end += length


def inputs_of(spec: Spec, tokens: Tensor, key_mask: Tensor, past: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of one call: its tokens [b p], the mask [b s] of all slots, and what the calls before left."""
    return {**given(tokens, changes=spec.inputs, key_mask=key_mask), **past}


def check_lengths(lengths: Iterable[int], total: int) -> tuple[int, ...]:
    """The lengths of calls that together run `total` tokens; what they leave over is one more call.

    Raises InputError for a call without tokens, or for more tokens than there are.
    """
    # A border: callers are not type-checked.
    given = tuple(lengths) if isinstance(lengths, Iterable) else (lengths,)  # pyright: ignore[reportUnnecessaryIsInstance]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in given)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not given or not whole or min(given) < 1 or sum(given) > total:
        raise InputError(
            f"calls={list(given)} are no calls of {total} tokens; give the number of tokens of each call, such as "
            f"[{max(total - 2, 1)}, 1, 1], together no more than there are."
        )
    return (*given, total - sum(given)) if sum(given) < total else given
