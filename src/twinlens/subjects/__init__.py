"""Whatever can be recorded: a live module, the native model, a recording, a source here or elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from twinlens.checkpoint import from_module, open_checkpoint
from twinlens.errors import ComparisonError, SourceError
from twinlens.families import declare
from twinlens.model import Model
from twinlens.recording import Recording
from twinlens.sources.build import build
from twinlens.sources.parse import SourceString, parse
from twinlens.spec import Spec
from twinlens.subjects.elsewhere import Elsewhere
from twinlens.subjects.live import Live
from twinlens.subjects.native import Native
from twinlens.subjects.recorded import Recorded
from twinlens.subjects.side import Declaration, Say, Subject, declared_at, say_nothing
from twinlens.tensors import check_real, read_json

__all__ = [
    "Declaration",
    "Elsewhere",
    "Live",
    "Native",
    "Recorded",
    "Say",
    "Subject",
    "agreed",
    "check_alike",
    "declared_at",
    "dtype_stored",
    "say_nothing",
    "subject",
]


def subject(of: object, call: Callable[..., Any] | None = None, *, mapped: bool = False) -> Subject:
    """What somebody gives to `compare`, as a subject; `mapped`: its weights are to stay on disk.

    Raises:
        SourceError: it is nothing that can be recorded, or its weights cannot stay on disk.
        CheckpointError: it is a module without numbers.
    """
    if isinstance(of, nn.Module):
        check_real(of)
        return Live(of, call, type(of).__name__)
    if isinstance(of, Model):
        return Native(of)
    if isinstance(of, Recording):
        return Recorded(of, str(of.about.get("implementation", "recording")))
    if isinstance(of, str | Path):
        source = parse(str(of))
        return _of_source(_as_stored(source) if mapped else source)
    raise SourceError(
        f"a {type(of).__name__} cannot be recorded; give a torch module, a Recording, a native model, "
        "a path, or a source such as hf:PATH."
    )


def _of_source(source: SourceString) -> Subject:
    if source.kind == "recording":
        return Recorded(Recording.load(source.path), source.path)
    if source.requirements:
        return Elsewhere(source.absolute(), str(source))
    if source.kind == "native":
        declared = declared_at(source.path, **source.options)
        return Native(Model(declared.spec, declared.weights), str(source))
    config = Path(source.path) / "config.json"
    if config.is_file():
        declare(read_json(config, "give a folder with config.json"))  # before others say less of an unknown family
    built = build(source)
    return Live(built.module, built.call, str(source), dict(built.about))


def _as_stored(source: SourceString) -> SourceString:
    """A source in the dtype of its checkpoint, of which no copy is made. Raises SourceError where one would be."""
    if source.requirements or source.kind not in ("hf", "native") or source.path.endswith(".gguf"):
        if source.kind in ("recording", "torch") and not source.requirements:
            return source  # read lazily; built by somebody else's code
        raise SourceError(
            f"{source} cannot keep its weights on disk; give hf:PATH or native:PATH of a folder with safetensors, in "
            "this environment, or leave out --layers-at-a-time."
        )
    stored = dtype_stored(source.path)
    if (asked := source.options.get("dtype", stored)) != stored:
        raise SourceError(
            f"{source} would be a copy in {asked} of weights that are stored in {stored}; leave dtype={asked} out, or "
            "--layers-at-a-time."
        )
    return dataclasses.replace(source, options={**source.options, "dtype": stored})


def dtype_stored(path: str) -> str:
    """The dtype of a checkpoint's weights, by name."""
    return str(open_checkpoint(path).dtype).removeprefix("torch.")


def agreed(reference: Subject, candidate: Subject) -> Declaration:
    """The declaration under which both are judged: the reference's own, else the candidate's.

    Raises:
        UnknownArchitecture: a transformers model of a family that is not declared.
        ComparisonError: neither says what it is, or they are of different families or sizes.
    """
    ours, theirs = reference.declaration(), candidate.said()
    declared = ours or candidate.declaration()
    if declared is None:
        for side in (reference, candidate):
            if isinstance(side, Live) and hasattr(getattr(side.module, "config", None), "to_dict"):
                declare(from_module(side.module).config)  # says which families are known, and how to add one
        raise ComparisonError(
            f"neither {reference.name} nor {candidate.name} says what model it is; "
            "give --model PATH of a checkpoint with a config.json"
        )
    if ours is not None and theirs is not None:
        check_alike(ours.spec, theirs)
    return declared


def check_alike(a: Spec, b: Spec) -> None:
    """Raises ComparisonError for models of another family or size: no edit makes one of the other."""
    if a.family != b.family:
        raise ComparisonError(
            f"the reference is a {a.family} and the candidate a {b.family}; compare models of one family"
        )
    for what in ("layers", "d_model", "heads", "kv_heads", "head_width", "mlp_width", "vocabulary"):
        x, y = getattr(a.shape, what), getattr(b.shape, what)
        if x != y and x is not None and y is not None:
            raise ComparisonError(
                f"the reference has {what.replace('_', ' ')} {x} and the candidate {y}; "
                "compare two implementations of one checkpoint"
            )
