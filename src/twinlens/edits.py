"""Edits of a spec: what is said of a model that differs, and what mends it.

A site may be a pattern over layers: `blocks.*.attn.hook_z` is every layer that has the site,
`blocks.{0,2}.attn.hook_z` these two. Within an edit, `*` in what it reads is the same layer.
`str(edit)` is a line of text; `parse` reads it back.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from twinlens.errors import InputError, SpecError
from twinlens.inputs import parse as parse_input
from twinlens.sites import INPUTS
from twinlens.spec import Spec, Step, Weight
from twinlens.text import (
    check_field,
    format_step,
    format_value,
    parse_change,
    parse_step,
    parse_value,
)

_LAYERS = re.compile(r"blocks\.(\*|\{\d+(?:,\d+)*\})\.(.+)")


class Unsaid(enum.Enum):
    """The value of a field before an edit, where it is not said."""

    UNSAID = "unsaid"


UNSAID = Unsaid.UNSAID


@dataclass(frozen=True)
class Edit:
    """A change of a spec; `apply` returns the changed copy, `str` the line that `parse` reads."""

    def apply(self, spec: Spec) -> Spec:
        """The spec after the edit. Raises SpecError where the edit does not fit it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Set(Edit):
    """Another value of a field, or another weight (a `Weight`, or None for none) of a step.

    With `old` said, the edit fits only where that is the present value.
    """

    site: str
    field: str
    value: object
    old: object = UNSAID

    def apply(self, spec: Spec) -> Spec:
        """The spec with the field changed at every site of the pattern."""
        sites = matches(spec, self.site)
        changed = {site: self._in_layer(layer)._changed(spec.at[site]) for site, layer in sites}
        return spec.replace_steps(changed)

    def _in_layer(self, layer: int | None) -> Set:
        return dataclasses.replace(self, value=_weight_in(self.value, layer), old=_weight_in(self.old, layer))

    def _changed(self, step: Step) -> Step:
        weights = dict(step.weights)
        is_weight = self.field in weights or isinstance(self.value, Weight)
        if not is_weight:
            check_field(type(step.op), self.field, self.value)
        now = weights.get(self.field) if is_weight else vars(step.op)[self.field]
        if self.old is not UNSAID and not same(now, self.old):
            raise SpecError(f"{step.writes} has {self.field}={now!r}, where the edit expects {self.old!r}.")
        if not is_weight:
            return dataclasses.replace(step, op=step.op.replace(**{self.field: self.value}))
        if isinstance(self.value, Weight):
            weights[self.field] = self.value
        else:
            weights.pop(self.field)
        return dataclasses.replace(step, weights=tuple(weights.items()))

    def __str__(self) -> str:
        old = "" if self.old is UNSAID else f" {format_value(self.old)}"
        return f"set {self.site} {self.field}{old} -> {format_value(self.value)}"


@dataclass(frozen=True)
class Insert(Edit):
    """One more step, before or after the one that writes a site. It changes no reader."""

    step: Step
    before: str | None = None
    after: str | None = None

    def apply(self, spec: Spec) -> Spec:
        """The spec with the step, once for each layer of the pattern."""
        steps = list(spec.steps)
        for site, layer in matches(spec, self._anchor):
            step = in_layer(self.step, layer)
            if any(s.writes == step.writes for s in steps):
                raise SpecError(f"{step.writes} is there already; remove it, or set its fields.")
            at = next(n for n, s in enumerate(steps) if s.writes == site)
            steps.insert(at + (self.after is not None), step)
        return dataclasses.replace(spec, steps=tuple(steps))

    @property
    def _anchor(self) -> str:
        if (self.before is None) == (self.after is None):
            raise SpecError(f"the insertion of {self.step.writes} takes either before or after.")
        return self.before or self.after or ""

    def __str__(self) -> str:
        where = "before" if self.before is not None else "after"
        return f"insert {where} {self._anchor}: {format_step(self.step)}"


@dataclass(frozen=True)
class Remove(Edit):
    """One step less; who read its site reads what that step read first."""

    site: str

    def apply(self, spec: Spec) -> Spec:
        """The spec without the step, in every layer of the pattern."""
        for site, _ in matches(spec, self.site):
            instead = spec.at[site].reads[0]
            steps = (_reading(s, site, instead) for s in spec.steps if s.writes != site)
            spec = dataclasses.replace(spec, steps=tuple(steps))
        return spec

    def __str__(self) -> str:
        return f"remove {self.site}"


@dataclass(frozen=True)
class Rewire(Edit):
    """Other sites that a step reads."""

    site: str
    reads: tuple[str, ...]

    def apply(self, spec: Spec) -> Spec:
        """The spec with the step reading other sites, in every layer of the pattern."""
        changed: dict[str, Step] = {}
        for site, layer in matches(spec, self.site):
            reads = tuple(_at(read, layer) for read in self.reads)
            changed[site] = dataclasses.replace(spec.at[site], reads=reads)
        return spec.replace_steps(changed)

    def __str__(self) -> str:
        return f"rewire {self.site} -> {', '.join(self.reads)}"


@dataclass(frozen=True)
class Input(Edit):
    """Another value of what the model is given, as arithmetic over it: `positions + 1`.

    The input's own name undoes an earlier change.
    """

    name: str
    expression: str

    def apply(self, spec: Spec) -> Spec:
        """The spec with the change in place of any earlier one of the same input."""
        if self.name not in INPUTS:
            raise SpecError(f"{self.name!r} is no input; those are {', '.join(INPUTS)}.")
        try:
            parse_input(self.expression)
        except InputError as error:
            raise SpecError(str(error)) from None
        changes = dict(spec.inputs) | {self.name: self.expression.strip()}
        kept = tuple((n, changes[n]) for n in INPUTS if n in changes and changes[n] != n)
        return dataclasses.replace(spec, inputs=kept)

    def __str__(self) -> str:
        return f"input {self.name} = {self.expression}"


def apply(spec: Spec, edits: tuple[Edit, ...] | list[Edit]) -> Spec:
    """The spec after the edits, in their order. Raises SpecError where one does not fit."""
    for edit in edits:
        spec = edit.apply(spec)
    return spec


def parse(line: str) -> Edit:
    """The edit that `str(edit)` printed.

    Example:
        >>> parse("set blocks.*.attn.hook_attn_scores scale 16.0 -> 14.966629547095765").value
        14.966629547095765

    Raises:
        SpecError: it is no edit.
    """
    line = line.strip()
    word = line.partition(" ")[0]
    match word:
        case "set":
            return _parse_set(line)
        case "insert":
            found = re.fullmatch(r"insert (before|after) (\S+): (.+)", line)
            if found:
                return Insert(parse_step(found[3]), **{found[1]: found[2]})
        case "remove":
            found = re.fullmatch(r"remove (\S+)", line)
            if found:
                return Remove(found[1])
        case "rewire":
            found = re.fullmatch(r"rewire (\S+) -> (\S+(?:, \S+)*)", line)
            if found:
                return Rewire(found[1], tuple(found[2].split(", ")))
        case "input":
            return Input(*parse_change(line))
        case _:
            pass
    raise SpecError(f"{line!r} is no edit; one begins with set, insert, remove, rewire or input.")


def _parse_set(line: str) -> Set:
    found = re.fullmatch(r"set (\S+) (\w+)( .+)? -> (.+)", line)
    if found is None:
        raise SpecError(f"{line!r} is no edit; write 'set SITE FIELD OLD -> NEW'.")
    old = UNSAID if found[3] is None else parse_value(found[3])
    return Set(found[1], found[2], parse_value(found[4]), old)


def parse_edits(text: str) -> list[Edit]:
    """The edits of a text, one a line; empty lines and lines that begin with # are left out."""
    lines = (line.strip() for line in text.split("\n"))
    return [parse(line) for line in lines if line and not line.startswith("#")]


def matches(spec: Spec, pattern: str) -> Iterator[tuple[str, int | None]]:
    """The sites of a spec that a pattern means, each with the layer its `*` or braces stand for.

    Raises SpecError if there is none, or if one of the layers in braces lacks the site.
    """
    found = _LAYERS.fullmatch(str(pattern))  # whoever writes it in code may write anything
    if found is None:
        sites = {pattern: None}
    elif found[1] == "*":
        every = ((f"blocks.{n}.{found[2]}", n) for n in range(spec.shape.layers))
        sites = {site: n for site, n in every if site in spec.at}
    else:
        layers = map(int, found[1][1:-1].split(","))
        sites = {f"blocks.{n}.{found[2]}": n for n in layers}
    missing = [site for site in sites if site not in spec.at]
    if missing or not sites:
        raise SpecError(f"{pattern} fits no site: {spec.family} has no {(missing or [pattern])[0]}.")
    yield from sites.items()


def in_layer(step: Step, layer: int | None) -> Step:
    """A step in which `*` was the layer."""
    weights = tuple((n, Weight(_at(w.name, layer), w.transposed)) for n, w in step.weights)
    reads = tuple(_at(read, layer) for read in step.reads)
    return Step(_at(step.writes, layer), step.op, reads, weights)


def same(a: object, b: object) -> bool:
    """Equal values of a field; 1, 1.0 and True are three values."""
    return type(a) is type(b) and a == b


def _at(name: str, layer: int | None) -> str:
    return name if layer is None else name.replace("*", str(layer))


def _weight_in(value: object, layer: int | None) -> object:
    return Weight(_at(value.name, layer), value.transposed) if isinstance(value, Weight) else value


def _reading(step: Step, site: str, instead: str) -> Step:
    if site not in step.reads:
        return step
    reads = tuple(instead if read == site else read for read in step.reads)
    return dataclasses.replace(step, reads=reads)
