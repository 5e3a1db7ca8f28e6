"""Moving a site to where code changes it once more before the next step reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from twinlens.capture.lookahead import Lookahead
from twinlens.capture.values import parallel
from twinlens.ops import Add, Normalize
from twinlens.spec import Step

_STORED = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Precisions in which a tensor may be put away: the step that reads it has a field for that."""


def changed_before(ahead: Lookahead, step: Step) -> bool:
    """Move what a step reads, a product or a branch, to where it is changed once more, if the step replays there: a
    clamp, another order of heads or positions. Not by a factor or a rounding, which fields may say.
    """
    a = ahead.a
    if step.weights or step.op.chooses:
        return False
    for read in step.reads[isinstance(step.op, Add) :]:  # what the stream is, is said by which site a sum reads
        place, made = a.places.get(read), a.spec.at.get(read)
        if place is None or made is None or not (a.anchors.of(made) or a.is_copy(made)):
            continue
        now = a.values[read]
        wanted = a.search.wanted(read, now)
        behind = [
            (guess,) for guess in ahead.guesses(made, now)
            if guess.node != place.node and a.search.above[guess.node] >> place.node & 1
            and not parallel(guess.value, wanted) and not _said_by(step, guess.value, now)
        ]  # fmt: skip
        alike = [option for option in behind if option[0].layout == place.layout]  # where heads turned, the one
        best = ahead.best((made,), alike, loose=False) or ahead.best((made,), behind, loose=False)
        if best is not None and not ahead.judge({read: best[0]}, loose=False).misses:
            a.put(read, best[0].node, best[0].layout, "provisional")
            return True
    return False


def _said_by(step: Step, x: Tensor, of: Tensor) -> bool:
    """Whether fields of the step that reads say such a change: a lower precision, and back; or, of a norm, its kind and
    where it stands, which say all but a clamp.
    """
    if any(torch.equal(of.to(dtype).to(of.dtype), x.to(of.dtype)) for dtype in _STORED):
        return True
    bound = x.abs().max()
    return isinstance(step.op, Normalize) and not torch.equal(of.clamp(-bound, bound), x)
