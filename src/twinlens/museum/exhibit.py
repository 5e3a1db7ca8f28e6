"""An exhibit: a divergence that happened, planted in a live model of transformers, and what must be said of it.

A plant takes a copy of the reference and changes it as somebody would by hand: an attribute, a weight, a method, or a
function of the modeling file that is another one while this model runs. None uses an operation of twinlens: what a
fault is, is said by torch code alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinlens.errors import InputError
from twinlens.museum.tiny import ALL, left_padded, random_tokens

Model = Any  # transformers' classes say little about their own attributes
Plant = Callable[[Model], None]
ANY = "whatever"
"""A value that is not asserted."""


@dataclass(frozen=True)
class Want:
    """A cause that must be named: in one row or several, of these sites and of no others.

    `at` are the site's names without their layer, up to the last dot; `layers` those of all rows.
    """

    parameter: str | tuple[str, ...]
    reference: Any = ANY
    candidate: Any = ANY
    layers: tuple[int, ...] | None = None
    at: tuple[str, ...] = ()
    within: float = 0.02
    """Of the difference between the two values."""


def _nothing(model: Model) -> None:
    """A reference as it is built."""


@dataclass(frozen=True)
class Exhibit:
    """A change, what must be said of it, and where it can be seen.

    Attributes:
        name, wing: its id, and the room in which it hangs.
        family: a row of `twinlens.museum.tiny.CONFIGS`.
        plant: changes a copy of the reference.
        causes: what must be named; none of a change that keeps the function.
        title, source: in words, and who reported it.
        like: the reported case of which it is a variant, in another family or by another hand.
        build: what is different in the model's config.
        prepare: changes the reference itself, before it is copied: scores that reach a cap, say.
        length, padded, calls: the probe: tokens of each row, left padding, calls with a key/value cache.
        mended: what the comparison says after `fix`.
        hidden: by level of visibility or dtype, why it cannot be told there.
    """

    name: str
    family: str
    plant: Plant
    causes: tuple[Want, ...]
    wing: str = ""
    title: str = ""
    source: str = ""
    like: str = ""
    build: dict[str, Any] = field(default_factory=dict[str, Any])
    prepare: Plant = _nothing
    length: int = 40
    padded: bool = False
    calls: tuple[int, ...] | None = None
    mended: str = "identical"
    hidden: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def benign(self) -> bool:
        """Whether it keeps the function."""
        return not self.causes

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes in which it exists: a fault of precision often has one."""
        said = self.build.get("dtype")
        return ("float32", "bfloat16") if said is None else (str(said).removeprefix("torch."),)

    def beside(self, other: Exhibit) -> Exhibit:
        """Both faults in one model. Raises InputError where they are planted in different ones."""
        if not self.goes_with(other):
            raise InputError(f"{self.name} and {other.name} need other models or probes; run them one by one.")

        def both(model: Model) -> None:
            self.plant(model)
            other.plant(model)

        return dataclasses.replace(
            self,
            name=f"{self.name} + {other.name}",
            title=f"{self.title} {other.title}",
            plant=both,
            causes=self.causes + other.causes,
        )

    def goes_with(self, other: Exhibit) -> bool:
        """Whether both are planted in the same model and run on the same probe."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("family", "build", "prepare", "length", "padded", "calls")
        )

    def reference(self, dtype: str | None = None) -> Model:
        """The model that is right, in float32 or as the exhibit says, unless another dtype is asked for."""
        chosen = {} if dtype is None else {"dtype": getattr(torch, dtype)}
        made = ALL[self.family](**(self.build | chosen))
        with torch.no_grad():
            self.prepare(made)
        return made

    def candidate(self, reference: Model) -> Model:
        """A copy with the fault."""
        made = copy.deepcopy(reference)
        torch.manual_seed(0)  # a plant may draw
        with torch.no_grad():
            self.plant(made)
        return made

    def inputs(self, model: Model) -> tuple[Tensor, Tensor | None]:
        """Tokens [b p] and, where there is padding, a mask."""
        if self.padded:
            return left_padded(model, (self.length, self.length - 13), seed=3)
        return random_tokens(model, 2, self.length, seed=3), None


class Wing(Sequence[Exhibit]):
    """The exhibits of one kind, in the order in which they were declared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._exhibits = list[Exhibit]()

    def __getitem__(self, index: Any) -> Any:
        return self._exhibits[index]

    def __len__(self) -> int:
        return len(self._exhibits)

    def __iter__(self) -> Iterator[Exhibit]:
        return iter(self._exhibits)

    def exhibit(self, name: str, family: str, *causes: Want, source: str = "", **more: Any) -> Callable[[Plant], Plant]:
        """Declares a function as the plant of an exhibit; its docstring is the title. With no causes it is benign."""

        def declare(plant: Plant) -> Plant:
            title = " ".join((plant.__doc__ or name).split())
            made = Exhibit(name, family, plant, causes, self.name, title=title, source=source, **more)
            self._exhibits.append(made)
            return plant

        return declare
