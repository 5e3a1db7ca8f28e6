"""How much is seen of a run: all sites, sublayer outputs, the residual stream, logits, or what a server gives."""

from __future__ import annotations

import dataclasses

from twinlens.logprobs import CHOSEN, TOP, TOP_IDS, shown, with_logprobs
from twinlens.recording import Recording
from twinlens.sites import split
from twinlens.spec import Spec

_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "logits")
_LOGPROBS = (CHOSEN, TOP, TOP_IDS)
VISIBLE: dict[str, tuple[str, ...] | None] = {
    "all": None,
    "sublayers": (*_STREAM, "hook_embed", "hook_attn_out", "hook_mlp_out"),
    "residual": _STREAM,
    "logits": ("logits",),
    "logprobs": _LOGPROBS,
}
"""The sites of each level of visibility, by their names within a block."""


def only(recording: Recording, level: str) -> Recording:
    """A recording with the sites of one level; log-probabilities are made of its logits where it has none."""
    kept = VISIBLE[level]
    if kept is None:
        return recording
    if level == "logprobs":
        recording = with_shown(recording, recording)
    calls = [
        dataclasses.replace(call, sites={s: call.sites[s] for s in call.sites if split(s)[1] in kept})
        for call in recording.calls
    ]
    return dataclasses.replace(recording, calls=calls)


def with_shown(recording: Recording, other: Recording) -> Recording:
    """A recording with the log-probabilities of its logits, of the ids that another one of the same calls shows."""
    calls = [
        call
        if CHOSEN in call.sites or TOP in call.sites
        else dataclasses.replace(call, sites={**call.sites, **shown(call.sites, call.tokens, call.mask, theirs.sites)})
        for call, theirs in zip(recording.calls, other.calls, strict=True)
    ]
    return dataclasses.replace(recording, calls=calls)


def seen(spec: Spec, reference: Recording, candidate: Recording, level: str) -> tuple[Spec, Recording, Recording]:
    """What both sides show at one level, and the declared model with the rows that they show."""
    sides = [only(side, level) if level != "logprobs" else side for side in (reference, candidate)]
    if level == "logprobs" or any(CHOSEN in side.first.sites or TOP in side.first.sites for side in sides):
        candidate = with_shown(sides[1], sides[0])
        sides = [with_shown(sides[0], candidate), candidate]
        spec = with_logprobs(spec)
    if level == "logprobs":
        sides = [only(side, level) for side in sides]
    return spec, sides[0], sides[1]
