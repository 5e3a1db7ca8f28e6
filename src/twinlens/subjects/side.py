"""One side of a comparison, and what it is declared to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from twinlens.capture import Placement
from twinlens.checkpoint import Checkpoint, from_module, open_checkpoint
from twinlens.families import declare
from twinlens.recording import Recording
from twinlens.sources.build import build
from twinlens.sources.parse import parse
from twinlens.spec import Spec, Weights

Say = Callable[[str], None]
"""Told in a few words what is going on."""


def say_nothing(words: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Declaration:
    """What a model is said to be: its steps and its weights."""

    spec: Spec
    weights: Weights
    checkpoint: Checkpoint | None = None
    placements: list[Placement] = field(default_factory=list[Placement], repr=False, compare=False)
    """Where the sites of modules are that were recorded under it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, attention: str = "eager", dtype: torch.dtype | None = None) -> Declaration:
        """Of a checkpoint; its weights are checked to be there, of the right shapes and finite."""
        dtype = dtype or checkpoint.dtype
        spec = declare(checkpoint.config, dtype=dtype, attention=attention)
        checkpoint.check(spec)
        return cls(spec, spec.in_dtype(checkpoint.weight), checkpoint)


@runtime_checkable
class Subject(Protocol):
    """One side of a comparison."""

    name: str

    def said(self) -> Spec | None:
        """The spec of its config, whatever its weights; None where it says nothing that is known."""
        ...

    def declaration(self) -> Declaration | None:
        """What its own config says that it is; None where it has none."""
        ...

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """One run of it; `calls` are the lengths of several, with a key/value cache."""
        ...

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """The logits of one more run; None where that could be none, or only the same."""
        ...

    @property
    def goes_on(self) -> bool:
        """Whether it can be called with what earlier calls left."""
        ...


class Once:
    """What is not run a second time."""

    goes_on = False

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """None."""
        return None


def declared_at(path: str, **options: str) -> Declaration:
    """The declaration of a folder, or of a .gguf file, which transformers reads."""
    dtype = getattr(torch, options["dtype"]) if "dtype" in options else None
    if path.endswith(".gguf"):
        built = build(parse(f"hf:{path}?dtype={options.get('dtype', 'float32')}"))
        return Declaration.of(from_module(built.module), options.get("attn", "eager"))
    return Declaration.of(open_checkpoint(path), options.get("attn", "eager"), dtype or torch.float32)
