"""What is declared of a model of another implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

HALF_TOO = ("float32", "bfloat16")


@dataclass(frozen=True)
class Logits:
    """A model that is no torch module: only its logits are seen."""

    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """A tiny model of `family`, and how this implementation is given its weights."""

    family: str
    build: Callable[[PreTrainedModel], Any]
    """A torch module, or its `Logits`."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What differs from the table of tests/tiny.py, where the implementation knows nothing else."""
    dtypes: tuple[str, ...] = HALF_TOO
    why: str = ""
    """Why not bfloat16 too."""
    longest: int = 120
