"""A change of structure: rows that read other sites, and rows that were not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twinlens.spec import Step


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

    @property
    def kind(self) -> tuple[str, str]:
        """What it is, whatever the layer and the step."""
        return self.word, self.words

    def apply(self, step: Step) -> Step:
        """The step with the change made."""
        return next((s for s in self.steps if s.writes == step.writes), step)

    def built(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """The steps with the change made, each after what it reads."""
        mine, steps = {s.writes: s for s in self.steps}, tuple(steps)
        there, made = {s.writes for s in steps}, dict[str, Step]()

        def put(step: Step) -> None:
            for read in step.reads:
                if read in mine and read not in there and read not in made:
                    put(mine[read])
            made[step.writes] = step

        for step in steps:
            put(mine.get(step.writes, step))
        return tuple(made.values())

    def parameter(self, spec: object) -> str:
        """The vocabulary's word for it."""
        return self.word
