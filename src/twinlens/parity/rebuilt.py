"""A change of structure: rows that read other sites, and rows that were not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from twinlens.ops import Op
from twinlens.sites import by_slot
from twinlens.spec import Spec, Step

AGAIN = "@again"
"""Behind the name of a site that is computed once more, from something else."""


def then(step: Step, op: Op) -> tuple[Step, Step]:
    """A step with one operation more behind it, which writes what the step wrote."""
    again = f"{step.writes}{AGAIN}"
    return dataclasses.replace(step, writes=again), Step(step.writes, op, (again,))


@dataclass(frozen=True)
class Rebuilt:
    """The rows of a layer are put together otherwise.

    `steps` write sites of declared ones and stand in their place, or are new, and stand before the first that reads
    them. What is computed once more writes `SITE@WORD`.
    """

    site: str
    """Where it is seen."""
    steps: tuple[Step, ...]
    word: str
    """The vocabulary's."""
    enters: str
    """Where the vocabulary says that it enters."""
    was: Any
    value: Any
    words: str = ""
    """What that is, in a sentence."""
    given: tuple[tuple[str, Tensor], ...] = field(default=(), compare=False)
    """What new rows read that the model is not given, by name."""

    @property
    def kind(self) -> tuple[str, Any]:
        """What it is, whatever the layer and the step."""
        return self.word, self.value

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return next((s for s in self.steps if s.writes == step.writes), step)

    def built(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The steps with the change made, each after what it reads. Raises ValueError where two need one another."""
        there = [s.writes for s in steps]
        rows = {s.writes: s for s in (*steps, *self.steps)}
        made, begun = dict[str, Step](), set[str]()

        def put(site: str) -> None:
            begun.add(site)
            for read in rows[site].reads:
                if read in begun and read not in made:
                    raise ValueError(f"{site} and {read} are computed from one another")
                if read in rows and read not in begun:
                    put(read)
            made[site] = rows[site]

        for site in there:
            if site not in begun:
                put(site)
        return tuple(made.values())

    def parameter(self, spec: object) -> str:
        """The vocabulary's word for it."""
        return self.word


@dataclass(frozen=True)
class Otherwise:
    """Rows of one layer that are others, or new; the rest as in `Rebuilt`."""

    rows: tuple[Step, ...]
    word: str
    enters: str
    was: Any
    value: Any
    words: str
    given: tuple[tuple[str, Tensor], ...] = field(default=(), compare=False)

    def at(self, target: str, steps: Iterable[Step], sites: Mapping[str, Tensor], spec: Spec) -> Rebuilt | None:
        """What that changes of the steps from `sites` to a target; None where it does not."""
        changed = {s.writes: s for s in self.rows}
        new = [s for s in self.rows if s.writes not in spec.at]
        made = dataclasses.replace(spec, steps=(*new, *spec.replace_steps(changed).steps))
        known = [s for s in sites if s not in changed and s in spec.at and s != target and not by_slot(s)]
        known += [name for name, _ in self.given]
        own = {s.writes: s for s in steps}
        others = tuple(s for s in made.between(target, known) if own.get(s.writes) != s)
        if not changed.keys() & {s.writes for s in others}:
            return None
        return Rebuilt(target, others, self.word, self.enters, self.was, self.value, self.words, self.given)
