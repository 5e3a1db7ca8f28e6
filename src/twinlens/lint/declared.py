"""What each key does by declaration: the fields that it governs, and whether another value shows in the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from twinlens import probes
from twinlens.bits import equal
from twinlens.checkpoint import open_checkpoint
from twinlens.errors import CheckpointError, ConfigError, TwinlensError
from twinlens.families import FAMILIES, declare, is_declared
from twinlens.families.config import Config
from twinlens.fields import kinds
from twinlens.lint.keys import KINDS, Change, Key, drop, leaves
from twinlens.model import Model
from twinlens.spec import Spec, Step

_REFUSED_ANYWAY = ("pruned_heads", "quantization_config")
"""No family reads them, and none can be judged that has them."""
_STRANGERS = 3
"""Keys of one rotary part that may be unknown at once."""

Kind = Literal["shown", "size", "weights", "hidden", "nothing", "refused"]
BEST: tuple[Kind, ...] = ("shown", "size", "weights", "hidden", "nothing", "refused")
"""What a change may do by declaration, the most telling first: other logits; another shape of some weight; a weight
that there is not; another model with the same logits on this prompt; the same model; no model."""


@dataclass(frozen=True)
class Field:
    """A field of a step, or a tensor that it reads, and the parameter under which a cause is reported."""

    site: str
    name: str
    parameter: str


@dataclass(frozen=True)
class Effect:
    """What a change of one key does by declaration, to which fields."""

    change: Change
    kind: Kind
    fields: tuple[Field, ...] = ()
    spec: Spec | None = None


class Declared:
    """The model that a checkpoint's config declares, for asking what becomes of it under another config.

    `unknown` are keys that the family does not know; the model is that of the config without them.

    Raises TwinlensError where the rest declares no model, or the weights are not its own.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.said, self.dtype = dict(config), dtype
        self.unknown, self.irrelevant = _strangers(config, dtype)
        self.config = without(config, self.unknown)
        self.spec = declare(self.config, dtype=dtype)
        self._checkpoint = dataclasses.replace(open_checkpoint(folder), config=self.config)
        self._checkpoint.check(self.spec)
        self.model = Model(self.spec, self.spec.in_dtype(self._checkpoint.weight))
        self.tokens = prompt(self.spec)
        self._logits = self._run(self.spec, self.config)

    @cached_property
    def leaves(self) -> list[tuple[Key, Any]]:
        """Every key with what it says."""
        return list(leaves(self.said, self.irrelevant))

    def reason(self, key: Key) -> str | None:
        """Why the family holds a key for irrelevant."""
        return self.irrelevant.get(key[0])

    def spec_of(self, config: Mapping[str, Any]) -> Spec | None:
        """What another config declares; None where that is nothing."""
        try:
            return declare(without(config, self.unknown), dtype=self.dtype)
        except (ConfigError, ArithmeticError):  # half of a width may be none
            return None

    def effect(self, change: Change) -> Effect:
        """What a change does."""
        spec = self.spec_of(change.config)
        if spec is None:
            return Effect(change, "refused")
        fields = tuple(differing(self.spec, spec))
        if spec.shape != self.spec.shape:
            return Effect(change, "size", fields, spec)
        if not fields:
            return Effect(change, "nothing", (), spec)
        return Effect(change, self._seen(spec, change.config), fields, spec)

    def best(self, these: Iterable[Change]) -> Effect | None:
        """Of several changes of one key the most telling one."""
        found: Effect | None = None
        for change in these:
            effect = self.effect(change)
            if found is None or BEST.index(effect.kind) < BEST.index(found.kind):
                found = effect
            if found.kind == "shown":
                break
        return found

    def _seen(self, spec: Spec, config: Mapping[str, Any]) -> Kind:
        try:
            logits = self._run(spec, config)
        except CheckpointError:
            return "weights"
        except (TwinlensError, RuntimeError):  # a product of sizes that do not fit
            return "size"
        return "hidden" if equal(logits, self._logits) else "shown"

    @torch.no_grad()
    def _run(self, spec: Spec, config: Mapping[str, Any]) -> Tensor:
        """Its logits; tensors that the declared model has read already are not read again."""
        other = dataclasses.replace(self._checkpoint, config=config)
        own = set(self.spec.weight_names)
        read = spec.in_dtype(other.weight)
        return Model(spec, lambda name: self.model.weight(name) if name in own else read(name))(self.tokens)


def prompt(spec: Spec) -> Tensor:
    """Seeded random ids [1 p], past every window and every context that is stretched, up to 512 tokens."""
    ids, most = probes.short(spec), spec.shape.positions or probes.LONGEST
    reached = [int(1.25 * t) for step in spec.steps for t in step.op.thresholds()]
    length = min(max([ids.shape[1], *(t for t in reached if t <= probes.LONGEST)]), most)
    return torch.randint(spec.shape.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


def without(config: Mapping[str, Any], keys: Iterable[Key]) -> dict[str, Any]:
    """A copy without some keys, as far as they are there."""
    made = dict(config)
    for key in keys:
        try:
            made = drop(made, key)
        except KeyError:
            continue
    return made


def differing(a: Spec, b: Spec) -> Iterator[Field]:
    """Fields in which the steps of two specs differ, and steps that only one of them has."""
    for step in a.steps:
        other = b.at.get(step.writes)
        if other is None or type(other.op) is not type(step.op):
            yield Field(step.writes, type(step.op).__name__, step.op.removable or "step")
        else:
            yield from _in_step(step, other)
    yield from (Field(s.writes, type(s.op).__name__, s.op.removable or "step") for s in b.steps if s.writes not in a.at)


def _in_step(ours: Step, theirs: Step) -> Iterator[Field]:
    values = vars(theirs.op)
    for name, kind, value in kinds(ours.op):
        if kind.name != "order" and values[name] != value:
            yield Field(ours.writes, name, kind.parameter or name)
    if ours.weights != theirs.weights:
        yield Field(ours.writes, "W", "weight")
    if ours.reads != theirs.reads:
        yield Field(ours.writes, "reads", "step")


def _strangers(config: Mapping[str, Any], dtype: torch.dtype) -> tuple[list[Key], dict[str, str]]:
    """Keys that the family does not know, and those that it holds for irrelevant, with its reasons.

    A rotary part is read whole, so that a key in it which is unknown is found by leaving it out. Raises ConfigError
    where that does not help.
    """
    if not is_declared(config.get("model_type")):
        declare(config)  # says which are
    inside = [key for key, _ in leaves(config) if len(key) > 1 and key[0].startswith("rope_") and key[-1] not in KINDS]
    sets = [these for count in range(_STRANGERS + 1) for these in combinations(inside, count)]
    first: ConfigError | None = None
    for left_out in sets:
        try:
            read = _read(without(config, left_out), dtype)
        except ConfigError as error:
            first = first or error
            continue
        unknown = [(name,) for name in read.unread if name not in _REFUSED_ANYWAY]
        return [*left_out, *unknown], read.irrelevant
    assert first is not None
    raise first


def _read(config: Mapping[str, Any], dtype: torch.dtype) -> Config:
    """The config after its family has read it."""
    name = str(config["model_type"])
    family, read = FAMILIES[name], Config(name, config)
    for _ in family.steps(read, family.shape(read), dtype):
        pass
    return read
