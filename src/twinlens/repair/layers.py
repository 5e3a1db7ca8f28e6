"""Layers that are put together otherwise, computed as a whole where single steps cannot be mended by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.inputs import given
from twinlens.parity.rounding import difference
from twinlens.repair.instructions import Instruction
from twinlens.repair.native import Native
from twinlens.spec import evaluate


@dataclass(frozen=True)
class Whole:
    """Layers one after the other: their last site is computed from what the first of them is given.

    What stands under the names of the sites inside is not read: one may be what another one is to be.
    """

    layers: tuple[int, ...]
    native: Native

    @property
    def inner(self) -> list[str]:
        """All sites that lie in them."""
        return [s for s in self.native.spec.sites if names.split(s)[0] in self.layers]

    @property
    def end(self) -> str:
        """The last of these."""
        return self.inner[-1]

    @property
    def words(self) -> str:
        """What is done."""
        first, last = self.layers[0], self.layers[-1]
        which = f"layer {first}" if first == last else f"layers {first} to {last}"
        return f"{self.end}: computed as the rows of {which} are declared, from what stands before, without a cache"


def wholes(native: Native, these: Iterable[Instruction]) -> list[Whole]:
    """The layers in which something stands elsewhere.

    One step by itself may be right and the layer wrong: where a norm has changed places with a sublayer, its tensor is
    made before that of which it is to be computed.
    """
    found = {names.split(site)[0] for i in these if i.what == "other" for site in i.sites} - {None}
    runs = list[list[int]]()
    for layer in sorted(n for n in found if n is not None):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [Whole(tuple(run), native) for run in runs]


def apart(native: Native, found: Mapping[str, Tensor], tokens: Tensor, mask: Tensor | None) -> float:
    """How far the logits of a module are from those of the reference's steps, relative to their size."""
    with torch.no_grad():
        inputs = given(tokens, mask, changes=native.spec.inputs)
        wanted = evaluate(native.spec.steps, inputs, native.weights)["logits"]
    real = inputs["mask"].bool()
    off = difference("logits", found["logits"], wanted)[real].norm()
    return float(off / wanted.double()[real].norm().clamp_min(1e-300))
