"""The order in which a model runs its steps, and when it lets go of what they wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.shapes import Float
from twinlens.sites import is_input
from twinlens.spec import Step, Unit, Weights


@dataclass(frozen=True)
class Row:
    """A unit, and the sites that nobody reads after it."""

    unit: Unit
    frees: tuple[str, ...]


def rows(plan: tuple[Unit, ...]) -> Iterator[Row]:
    """Units with the sites that each one is the last to read; what nobody reads goes at once."""
    last = {unit.step.writes: n for n, unit in enumerate(plan)}
    for n, unit in enumerate(plan):
        last.update(dict.fromkeys((*unit.reads, *(r for s in unit.absorbed for r in s.reads)), n))
    last["logits"] = len(plan)
    hidden = {step.writes for unit in plan for step in unit.absorbed}
    ends: dict[int, list[str]] = {}
    for site, n in last.items():
        if not is_input(site) and site not in hidden:
            ends.setdefault(n, []).append(site)
    for n, unit in enumerate(plan):
        yield Row(unit, tuple(ends.get(n, ())))


def result_site(step: Step) -> str | None:
    """`attn.hook_result` of the layer whose `attn.hook_out` this step writes."""
    if step.writes.endswith("attn.hook_out"):
        return step.writes.removesuffix("hook_out") + "hook_result"
    return None


def results(step: Step, values: Mapping[str, Tensor], weights: Weights) -> Float[Tensor, "b p h d"]:
    """Each head's own contribution to `attn.hook_out`; the bias belongs to none."""
    z = values[step.reads[0]]
    by_head = step.arguments(weights)["W"].T.unflatten(0, (z.shape[2], -1))
    return torch.einsum("bphe,hed->bphd", z, by_head)
