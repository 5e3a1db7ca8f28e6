"""What is to be mended, as data that another environment can read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from twinlens.parity.changes import Feed, Leave, Rebuilt, Restore, Rewire, SetField, Use
from twinlens.parity.result import Cause, Order


@dataclass(frozen=True)
class Instruction:
    """One step of the candidate that shall compute what the reference computes.

    `seen_at` is the visible site that closes the step. For a field, `name` says which and `candidate` what it is
    now; for a weight, `name` is the checkpoint's tensor.
    """

    what: str  # field, weight or other
    parameter: str
    sites: tuple[str, ...]
    seen_at: str
    name: str = ""
    candidate: Any = None


def instructions(causes: Iterable[Cause], orders: Iterable[Order]) -> list[Instruction]:
    """Of the causes, and of the orders where bits shall be equal too."""
    made: list[Instruction] = []
    for cause in causes:
        for change in cause.changes:
            seen = cause.seen.get(change.site, cause.seen_at)
            if isinstance(change, SetField):
                made.append(
                    Instruction("field", cause.parameter, change.sites, seen, change.name, written(change.value))
                )
            elif (isinstance(change, Use) and change.argument == "W") or (
                isinstance(change, Use) and change.tensor is not None
            ):
                made.append(Instruction("weight", cause.parameter, (change.site,), seen, change.name))
            else:
                assert isinstance(change, Leave | Restore | Feed | Use | Rewire | Rebuilt)
                made.append(Instruction("other", cause.parameter, (change.site,), seen))
    for order in orders:
        for change in order.changes:
            assert isinstance(change, SetField)
            made.append(
                Instruction(
                    "field",
                    "order",
                    change.sites,
                    order.seen.get(change.site, change.site),
                    change.name,
                    written(change.value),
                )
            )
    return made


def written(value: Any) -> Any:
    """A field's value as JSON has it."""
    return {"dtype": str(value).removeprefix("torch.")} if isinstance(value, torch.dtype) else value


def read(value: Any) -> Any:
    """And back."""
    return getattr(torch, value["dtype"]) if isinstance(value, dict) else value


def to_json(these: Sequence[Instruction]) -> str:
    """As text for the recorder."""
    return json.dumps([asdict(i) for i in these])


def from_json(text: str) -> list[Instruction]:
    """From the text that the recorder was given."""
    rows: list[dict[str, Any]] = json.loads(text)
    return [Instruction(**dict(row, sites=tuple(row["sites"]))) for row in rows]
