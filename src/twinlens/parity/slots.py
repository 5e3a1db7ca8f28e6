"""What a call may make of the keys and values that earlier calls left, as rows: it reads none, or turns keys again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from twinlens.ops import Add, Append, Rotate
from twinlens.parity.rebuilt import AGAIN, Otherwise
from twinlens.spec import Spec, Step

_PLACES = f"candidate:positions{AGAIN}"
"""The slots of earlier calls, counted."""


def from_the_cache(rows: Mapping[str, Step], spec: Spec, seen: Mapping[str, Tensor]) -> Iterator[Otherwise]:
    """Ways of one layer."""
    appended = [s for s in rows.values() if isinstance(s.op, Append)]
    if not appended or not seen[appended[0].reads[0]].shape[1]:
        return
    yield Otherwise(
        tuple(Step(s.writes, Add(), s.reads[1:]) for s in appended), "cache.prefix", appended[0].writes,
        "all slots", "of this call", "what earlier calls left is not read",
    )  # fmt: skip
    for step in appended:
        turn = rows.get(step.reads[1])
        if turn is not None and isinstance(turn.op, Rotate):
            yield _turned_again(step, turn, spec, seen[step.reads[0]])


def _turned_again(step: Step, turn: Step, spec: Spec, past: Tensor) -> Otherwise:
    """Keys are turned once more, by where they stand, as they come from the cache."""
    tables = [spec.at[r] for r in turn.reads[1:]]
    again = [dataclasses.replace(t, writes=f"{t.writes}{AGAIN}", reads=tuple(_PLACES for _ in t.reads)) for t in tables]
    kept = Step(f"{step.reads[0]}{AGAIN}", turn.op, (step.reads[0], *(t.writes for t in again)))
    reading = dataclasses.replace(step, reads=(kept.writes, step.reads[1]))
    places = torch.arange(past.shape[1], device=past.device).expand(past.shape[:2])
    return Otherwise(
        (*again, kept, reading), "cache.rotation", step.writes, "once", "twice",
        "keys that earlier calls left are rotated once more", ((_PLACES, places),),
    )  # fmt: skip
