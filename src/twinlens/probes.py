"""Tokens that nobody gave: random ids, seeded, that a declared model must show itself on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.errors import InputError
from twinlens.fields import kinds
from twinlens.spec import Spec

LENGTH, LONGEST = 64, 512
"""Tokens of a prompt that nobody gave: at least, and at most however long the window."""
FAR, FARTHEST = 257, 4096
"""Of the automatic probe. Beyond 256 positions bfloat16 holds no odd number, so that angles computed in it repeat."""
PADDING = 0.3
"""The part of the second row that is padding."""


def short(spec: Spec) -> Tensor:
    """Seeded random ids [1 p], longer than any window (up to 512 positions)."""
    return _drawn(spec, 1, _length(spec))


def _length(spec: Spec) -> int:
    windows = [v for s in spec.steps for _, k, v in kinds(s.op) if k.name == "integer" and k.off and v]
    return min(max([LENGTH, *(2 * w for w in windows)]), LONGEST, spec.shape.positions or LONGEST)


def auto(spec: Spec) -> tuple[Tensor, Tensor]:
    """Seeded random ids [2 p] and a mask: past every window, every context that rotary tables are stretched from, and
    256 positions (up to 4,096); the second row with padding on the left.
    """
    thresholds = [t for s in spec.steps for t in s.op.thresholds()]
    length = min(int(max([FAR, *(1.25 * t for t in thresholds)])), FARTHEST, spec.shape.positions or FARTHEST)
    tokens, mask = _drawn(spec, 2, length), torch.ones(2, length, dtype=torch.long)
    mask[1, : int(PADDING * length)] = 0
    return tokens, mask


STEPS = (1, 1)
"""Of decoding, after all else as prefill."""


def decoding(length: int) -> list[int]:
    """The lengths of calls that end in steps of decoding."""
    return [length - sum(STEPS), *STEPS] if length > sum(STEPS) else [length]


@dataclass(frozen=True)
class Probe:
    """Tokens [b p] and a mask [b p] for a second run, and in words what they are."""

    words: str
    tokens: Tensor
    mask: Tensor | None = None


def others(spec: Spec) -> Iterator[Probe]:
    """What may show what another prompt did not: other ids, one id all along, long rows with padding."""
    yield Probe("other ids", _drawn(spec, 2, _length(spec), seed=1))
    yield Probe("one id all along", _drawn(spec, 2, 1, seed=1).expand(-1, _length(spec)).contiguous())
    yield Probe("long rows, one of them padded (--probe auto)", *auto(spec))


def named(name: str, spec: Spec) -> tuple[Tensor, Tensor]:
    """The probe of a name. Raises InputError for one that there is not."""
    if name != "auto":
        raise InputError(f"probe {name!r} is not there; give auto, or leave it out for a short random prompt.")
    return auto(spec)


def _drawn(spec: Spec, rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(spec.shape.vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
