"""What is in effect: the implementation compared with the declared model, its causes in the words of the config."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from twinlens.comparison import Report, run
from twinlens.errors import TwinlensError
from twinlens.lint.declared import Declared, Field
from twinlens.parity.judge import Progress
from twinlens.parity.result import Cause
from twinlens.sources.build import build
from twinlens.sources.parse import SourceString
from twinlens.spec import Spec
from twinlens.subjects import Declaration, Elsewhere, Live, Native, Say, Subject, subject


@dataclass
class Effective:
    """What a comparison with the declared model says; where there could be none, why."""

    report: Report | None
    words: str = ""

    @property
    def causes(self) -> list[Cause]:
        """What was found."""
        return [] if self.report is None else self.report.causes

    @property
    def is_explained(self) -> bool:
        """Whether causes, if any, account for all that differs."""
        return self.report is not None and self.report.explained != "different"

    def verified(self, fields: Iterable[Field]) -> bool:
        """Whether the comparison would have shown another value of one of these fields.

        Of what coverage does not speak, weights and whole steps, the verdict itself tells.
        """
        spoken = {parameter for told in self._coverage.values() for parameter in told}
        told = [
            self._coverage.get(f.site, {}).get(f.parameter, "not verified") for f in fields if f.parameter in spoken
        ]
        return not told or any(not words.startswith("not verified") for words in told)

    @cached_property
    def _coverage(self) -> dict[str, dict[str, str]]:
        return {} if self.report is None else self.report.coverage


def effective(declared: Declared, source: SourceString, folder: Path, say: Say, progress: Progress) -> Effective:
    """Compare the source with what the checkpoint declares."""
    try:
        with _side(declared, source, folder) as candidate:
            said = Declaration(declared.spec, declared.model.weight)
            return Effective(run((Native(declared.model), candidate), said, declared.tokens, None, progress, say))
    except TwinlensError as error:
        return Effective(None, str(error))


@contextmanager
def _side(declared: Declared, source: SourceString, folder: Path) -> Generator[Subject]:
    """The source; one that runs elsewhere is given a config without what no family knows, which would be refused."""
    if source.requirements and declared.unknown and source.kind != "torch":
        with tempfile.TemporaryDirectory(prefix="twinlens-lint-") as made:
            for file in folder.iterdir():
                (Path(made) / file.name).symlink_to(file.resolve())
            (Path(made) / "config.json").unlink()
            (Path(made) / "config.json").write_text(json.dumps(declared.config), encoding="utf-8")
            there = SourceString(source.kind, made, source.options, source.requirements)
            yield Elsewhere(there, str(source))
    elif source.requirements:
        yield Elsewhere(source.absolute(), str(source))
    elif source.kind == "native":
        yield subject(str(source))
    else:
        built = build(source)
        yield Live(built.module, built.call, str(source), dict(built.about))


_FORMS: tuple[tuple[Callable[[float], float], Callable[[float], float]], ...] = (
    (lambda x: x, lambda y: y),
    (lambda x: 1 / x, lambda y: 1 / y),
    (lambda x: math.sqrt(x), lambda y: y * y),
    (lambda x: 1 / math.sqrt(x), lambda y: 1 / (y * y)),
)
"""How a number of a config becomes a field, and back: as it is, as a divisor, as a width whose root divides."""


@dataclass(frozen=True)
class Known:
    """A value of a key, and the model that the config with it declares."""

    value: Any
    spec: Spec


def in_terms_of(key: Iterable[Known], field: Field, found: Any) -> Any:
    """The value of a key under which a field is what was found; None where that cannot be told."""
    pairs = list(_pairs(key, field))
    for value, said in pairs:
        if _close(said, found):
            return value
    if not isinstance(found, int | float) or not pairs:
        return None
    for to_field, back in _FORMS:
        try:
            if all(_is_number(v) and _is_number(f) and _close(to_field(v), f) for v, f in pairs):
                value = back(float(found))
                return round(value) if isinstance(pairs[0][0], int) and _close(round(value), value) else value
        except (ValueError, ZeroDivisionError):
            continue
    return None


def _pairs(key: Iterable[Known], field: Field) -> Iterator[tuple[Any, Any]]:
    for known in key:
        step = known.spec.at.get(field.site)
        if step is not None and field.name in vars(step.op):
            yield known.value, vars(step.op)[field.name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return math.isclose(a, b, rel_tol=1e-4)
    return type(a) is type(b) and a == b
