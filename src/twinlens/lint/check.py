"""The whole of a lint in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twinlens.errors import CheckpointError, InputError
from twinlens.lint.declared import Declared, Effect
from twinlens.lint.effective import effective
from twinlens.lint.keys import Change, Key, changes, drop, value_at
from twinlens.lint.result import Lint
from twinlens.lint.runner import Progress, Trials
from twinlens.lint.silence import heard, moves
from twinlens.lint.trials import tried
from twinlens.lint.verdicts import Verdicts
from twinlens.sources.parse import SourceString, parse
from twinlens.subjects import Say
from twinlens.tensors import read_json


def lint(path: Path, source: str | None, say: Say, progress: Progress) -> Lint:
    """Which keys of the config at `path` an implementation does not read, and whether that matters.

    `source`: the implementation, as for `compare`; None is transformers. Each key that its family does not hold for
    irrelevant is changed by itself, without anything being written to `path`.

    Raises TwinlensError where the checkpoint, or the implementation of it, is none that can be asked.
    """
    _check(path)
    named = _named(path, source)
    dtype = getattr(torch, named.options.get("dtype", "float32"))
    say("reading the config as it is declared")
    declared = Declared(path, read_json(path / "config.json", "give a folder with config.json and weights"), dtype)
    effects = _effects(declared, progress)
    tries = [(key, change) for key, change in _tries(declared, effects)]
    say(f"building {named}")

    def run(configs: list[dict[str, Any]]) -> Trials:
        return tried(named, path, configs, declared.tokens, say, progress)

    trials = run([change.config for _, change in tries])
    outcomes = {key: outcome for (key, _), outcome in zip(tries, trials.outcomes, strict=True)}
    say("comparing with what is declared")
    verdicts = Verdicts(
        declared, effects, outcomes, frozenset(trials.reads), trials.opened,
        effective(declared, named, path, say, progress),
    )  # fmt: skip
    silent = verdicts.silent()
    verdicts.moves = heard([m for key in silent for m in moves(declared.said, key, trials.reads)], run)
    found = Lint(str(path), str(named), verdicts.rows(), declared.tokens.shape[1])
    found.besides, found.uncompared = list(verdicts.besides()), verdicts.effective.words
    return found


def _check(path: Path) -> None:
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} has no config.json whose keys could be changed: give the model folder that it was made of."
        )
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a model folder with config.json and safetensors.")


def _named(path: Path, source: str | None) -> SourceString:
    """The implementation of this checkpoint. Raises InputError where it is one of another."""
    named = SourceString("hf", str(path)) if source is None else parse(source)
    if named.kind == "recording":
        raise InputError(
            f"{source} is a recording, which reads no config; give hf:PATH, tl:PATH or torch:FILE.py:make."
        )
    if named.kind != "torch" and os.path.realpath(named.path) != os.path.realpath(path):
        raise InputError(
            f"{named} is an implementation of another checkpoint than {path}; give --for {named.kind}:{path}."
        )
    return named


def _effects(declared: Declared, progress: Progress) -> dict[Key, Effect | None]:
    """Of each key that could count, the most telling change, by what is declared."""
    keys = [key for key, _ in declared.leaves if declared.reason(key) is None]
    effects: dict[Key, Effect | None] = {}
    for done, key in enumerate(keys):
        progress("keys as declared", done, len(keys))
        if not any(key[: len(unknown)] == unknown for unknown in declared.unknown):
            effects[key] = declared.best(changes(declared.said, key))
    return effects


def _tries(declared: Declared, effects: Mapping[Key, Effect | None]) -> list[tuple[Key, Change]]:
    """The change of each key that the implementation is asked about; of what no family knows, the first, or none."""
    found = [(key, effect.change) for key, effect in effects.items() if effect is not None]
    for key, _ in declared.leaves:
        if key not in effects and declared.reason(key) is None:
            if value_at(declared.said, key) is not None:
                gone = Change(key, None, drop(declared.said, key))
                found.append((key, next(changes(declared.said, key), gone)))
    return found
