"""What was done to a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twinlens.capture import Graft
from twinlens.capture.lines import Line
from twinlens.repair.lines import patch


@dataclass
class Mended:
    """What was done, in the implementation's own words, and how to undo it."""

    words: list[str] = field(default_factory=list[str])
    undo: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    where: dict[str, Line] = field(default_factory=dict[str, Line])
    """By the words of what the code has: its line."""

    def add(self, words: Mapping[str, str], made: Graft) -> None:
        """What was put in the place of some sites."""
        self.undo.append(made.remove)
        self.words += words.values()
        lines = {said: made.lines.get(site) for site, said in words.items()}
        self.where |= {said: line for said, line in lines.items() if line is not None}

    def take_back(self) -> None:
        """The module as it was."""
        for undo in reversed(self.undo):
            undo()

    @property
    def patch(self) -> str:
        """What is to be changed in the implementation, in its own words."""
        return patch(self.words, self.where)

    def __iadd__(self, later: Mended) -> Mended:
        self.words += later.words
        self.undo += later.undo
        self.where |= later.where
        return self
