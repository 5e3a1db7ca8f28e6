"""Moving a site to where code changes it once more before the next step reads it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from twinlens.capture.guesses import Guess
from twinlens.capture.lookahead import Lookahead
from twinlens.capture.values import parallel
from twinlens.ops import Add, Branch, Normalize
from twinlens.spec import Step

_STORED = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Precisions in which a tensor may be put away: the step that reads it has a field for that."""


def changed_before(ahead: Lookahead, step: Step) -> bool:
    """Move what a step reads, a product, a branch or the stream, to where it is changed once more, if the step replays
    there: a clamp, another order of heads or positions. Not by a factor or a rounding, which fields may say. Of scores
    that read two products both may be clamped; what else is done to both is a rotation more.
    """
    if step.weights or step.op.chooses:
        return False
    behind = dict[str, list[Guess]]()
    for read in step.reads[isinstance(step.op, Add) :]:  # what the stream is, is said by which site a sum reads
        if found := _behind(ahead, step, read):
            behind[read] = found
    for reads in ([read] for read in behind):
        if _moved(ahead, reads, [(guess,) for guess in behind[reads[0]]]):
            return True
    both = [[g for g in found if _is_clamp(g.value, ahead.a.values[read])] for read, found in behind.items()]
    return len(both) == 2 and _moved(ahead, list(behind), list(product(*both)))


def _behind(ahead: Lookahead, step: Step, read: str) -> list[Guess]:
    """What a site could be instead; in its own layout, where heads turned are the same in another one, first of all."""
    a = ahead.a
    place, made = a.places.get(read), a.spec.at.get(read)
    if place is None or made is None or not (a.anchors.of(made) or isinstance(made.op, Add | Branch)):
        return []
    now = a.values[read]
    wanted = a.search.wanted(read, now)
    found = [
        guess for guess in ahead.guesses(made, now)
        if guess.node != place.node and guess.value.dtype == now.dtype and a.search.above[guess.node] >> place.node & 1
        and not parallel(guess.value, wanted) and not _said_by(step, guess.value, now)
    ]  # fmt: skip
    return [guess for guess in found if guess.layout == place.layout] or found


def _moved(ahead: Lookahead, reads: Sequence[str], options: Sequence[tuple[Guess, ...]]) -> bool:
    best = ahead.best([ahead.a.spec.at[read] for read in reads], options, loose=False)
    if best is None or ahead.judge(dict(zip(reads, best, strict=True)), loose=False).misses:
        return False
    for read, guess in zip(reads, best, strict=True):
        ahead.a.put(read, guess.node, guess.layout, "provisional")
    return True


def _said_by(step: Step, x: Tensor, of: Tensor) -> bool:
    """Whether fields of the step that reads say such a change: a lower precision, and back; or, of a norm, its kind and
    where it stands, which say all but a clamp.
    """
    if any(torch.equal(of.to(dtype).to(of.dtype), x.to(of.dtype)) for dtype in _STORED):
        return True
    return isinstance(step.op, Normalize) and not _is_clamp(x, of)


def _is_clamp(x: Tensor, of: Tensor) -> bool:
    bound = x.abs().max()
    return torch.equal(of.clamp(-bound, bound), x)
