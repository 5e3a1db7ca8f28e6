"""The two runs that are compared, and what they must have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.bits import equal
from twinlens.errors import ComparisonError
from twinlens.inputs import given
from twinlens.logprobs import CHOSEN, FOLLOWING, asked, by_position
from twinlens.parity.rounding import by_rows
from twinlens.recording import Recording
from twinlens.sites import axes
from twinlens.spec import Spec


@dataclass
class Side:
    """One run: its tensors with its inputs, its own weights where they differ, what is known of them."""

    sites: Mapping[str, Tensor]
    own: dict[str, Tensor]
    known: frozenset[str]

    @classmethod
    def of(cls, recording: Recording, spec: Spec, device: torch.device) -> Side:
        """The first call of a recording, on the device on which it is judged."""
        sites = {n: _as_made(x.detach().to(device), spec.dtype) for n, x in recording.first.sites.items()}
        sites |= inputs_of(recording, spec, device)
        sites |= {n: by_position(sites[n], sites[FOLLOWING]) for n in sites if n == CHOSEN}
        if not bool(sites["key_mask"].all()):
            sites = {n: _without_garbage(n, x, sites["mask"], sites["key_mask"]) for n, x in sites.items()}
        own = {name: tensor.detach().to(device) for name, tensor in recording.weights.items()}
        return cls(sites, own, recording.weights_equal)

    def meet(self, name: str, checkpoint: Tensor, reference: Tensor) -> None:
        """Of a weight that is not the checkpoint's in the reference: whether this side's is the reference's."""
        if name in self.known:
            self.own[name] = checkpoint
        elif name in self.own and equal(self.own[name], reference):
            del self.own[name]
            self.known |= {name}
            return
        self.known -= {name}


def _as_made(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that is written in float64 and whose entries are those of a narrower dtype, in that."""
    if x.dtype == torch.float64:
        for made in (dtype, torch.float32):
            if equal((narrow := x.to(made)).double(), x):
                return narrow
    return x


def _without_garbage(site: str, x: Tensor, mask: Tensor, key_mask: Tensor) -> Tensor:
    """With numbers wherever padding alone has none: a NaN that no real token can have met would meet it in a replay,
    as 0 · NaN. Keys of padding that have no score are as those that are not looked at.
    """
    names = axes(site)
    if not x.is_floating_point() or names[0] != "b" or x.shape[0] != mask.shape[0]:
        return x
    for axis, real in (("p", mask), ("s", key_mask)):
        if axis in names and x.shape[names.index(axis)] == real.shape[1]:
            shape = [n if a in ("b", axis) else 1 for a, n in zip(names, x.shape, strict=True)]
            garbage = ~real.bool().view(shape) & ~torch.isfinite(x)
            if bool(garbage.any()):
                scores = axis == "s" and site.endswith("scores")
                x = x.masked_fill(garbage, torch.finfo(x.dtype).min if scores else 0.0)
    return x


def inputs_of(recording: Recording, spec: Spec, device: torch.device) -> dict[str, Tensor]:
    """The inputs of a recording as a spec changes them, what earlier calls left among them."""
    call = recording.first
    past = {site: x for site, x in call.before.items() if site != "key_mask"}
    values = {**given(call.tokens, call.mask, call.positions, spec.inputs, call.before.get("key_mask")), **past}
    values |= asked(spec, call.tokens, call.mask, call.sites)
    return {site: _as_made(x.to(device), spec.dtype) for site, x in values.items()}


def check_tokens(reference: Recording, candidate: Recording) -> None:
    """Raises ComparisonError unless both ran the same tokens under the same mask."""
    a, b = reference.first, candidate.first
    x, y = a.tokens.cpu(), b.tokens.cpu()
    if x.shape != y.shape or not torch.equal(x, y):
        where = "" if x.shape != y.shape else f", first at {(x != y).nonzero()[0].tolist()}"
        raise ComparisonError(
            f"the recordings ran different tokens (shapes {tuple(x.shape)} and {tuple(y.shape)}{where}); "
            f"record both with the same --tokens"
        )
    if not torch.equal(a.mask.cpu(), b.mask.cpu()):
        raise ComparisonError("the recordings ran the same tokens under different attention masks; record both alike")


def check_dtypes(common: Iterable[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError for integers where a model computes real numbers, and the other way round."""
    for site in common:
        for side, tensor in (("reference", a[site]), ("candidate", b[site])):
            chosen = site.endswith("hook_indices")  # which experts
            real = tensor.is_floating_point() and tensor.dtype.itemsize > 1  # of 8 bits torch computes nothing
            if (tensor.is_floating_point() or tensor.dtype == torch.bool) if chosen else not real:
                expected = "integers" if chosen else "floating-point numbers of 16 bits or more"
                raise ComparisonError(
                    f"{site} of the {side} is {str(tensor.dtype).removeprefix('torch.')} where {expected} were "
                    "expected; record the tensor as the model computes it"
                )


def check_shapes(common: Iterable[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError for a site of another shape.

    A rotary table may be half as wide, and a router may choose more or fewer experts.
    """
    for site in common:
        x, y = a[site].shape, b[site].shape
        free = site.startswith("rotary.") or axes(site)[-1] == "t"
        if x[:-1] != y[:-1] or (x[-1] != y[-1] and not free):
            raise ComparisonError(
                f"{site} has shape {tuple(x)} in the reference and {tuple(y)} in the candidate; "
                f"these are models of different size or one recording is damaged"
            )


def check_sizes(spec: Spec, common: Iterable[str], a: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError where a tensor is of another size than the declared model's."""
    known = spec.shape.axes
    for site in common:
        for axis, size in zip(axes(site), a[site].shape, strict=True):
            if known.get(axis, size) != size:
                raise ComparisonError(
                    f"{site} has shape {tuple(a[site].shape)}, but the model that was declared has {known[axis]} along "
                    f"{axis!r}; give the checkpoint that was recorded with --model PATH"
                )


def check_weights(own: Mapping[str, Tensor]) -> None:
    """Raises ComparisonError for a weight of the candidate that is not finite."""
    for name, tensor in own.items():
        ends = torch.stack(tensor.aminmax()) if tensor.numel() else tensor  # no second tensor of its size is made
        if not bool(torch.isfinite(ends).all()):
            row = int((~torch.isfinite(tensor)).nonzero()[0][0])
            raise ComparisonError(
                f"{name} of the candidate has a NaN or an infinity at row {row}; a model that is not finite cannot be "
                "compared: reload its checkpoint"
            )


def check_finite(side: str, sites: Iterable[str], values: Mapping[str, Tensor], mask: Tensor) -> None:
    """Raises ComparisonError for the first site that is not finite at a real token; masked scores may be -inf."""
    for site in sites:
        rows = by_rows(site, values[site], mask)
        if not site.endswith("scores") and bool(torch.isfinite(rows.sum())):
            continue
        bad = torch.isnan(rows) if site.endswith("scores") else ~torch.isfinite(rows)
        if bool(bad.any()):
            raise ComparisonError(
                f"{site} of the {side} has {int(bad.sum())} entries that are not finite, the first site that has any; "
                "a model that is not finite cannot be compared: look at the step that writes it"
            )
