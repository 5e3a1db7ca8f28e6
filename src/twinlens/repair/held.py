"""What of a module could mend an instruction: handles that hold the value, in the layer of its site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from twinlens import sites as names
from twinlens.capture import Anchor, Placement
from twinlens.fields import kind_of
from twinlens.repair import handles
from twinlens.repair.handles import Handle
from twinlens.repair.instructions import Instruction, read
from twinlens.spec import Spec, Weights, stored_name


def of_field(module: nn.Module, spec: Spec, placement: Placement, i: Instruction) -> Iterator[Handle]:
    """Tables, attributes and switches that hold what a field is now."""
    old, new = read(i.candidate), getattr(spec.at[i.sites[0]].op, i.name)
    holders = list(handles.holders(module, _layer_paths(spec, placement, i.sites[0])))
    ops = [spec.at[site].op for site in i.sites]
    tables = [
        table for holder in holders for op in ops for table in handles.tables(holder, op.replace(**{i.name: old}), op)
    ]
    if tables:  # an implementation may hold one in each layer
        yield handles.together(tables)
    for holder in holders:
        kind = kind_of(spec.at[i.sites[0]].op, i.name)
        if kind.name == "integer" and old is not None:
            yield from handles.integers(holder, old, new)
        elif kind.name == "number" and old is not None:
            yield from handles.numbers(holder, float(old), None if new is None else float(new))
        elif kind.name in ("integer", "number"):
            yield from handles.switches(holder, i.name, new)


def of_weight(module: nn.Module, placement: Placement, weights: Weights, name: str) -> Handle | None:
    """The parameter that holds a tensor of the checkpoint wrongly; None where none is known to."""
    anchor = placement.anchors.get(name)
    if anchor is None or anchor.owner is None:  # also of a bias that the reference does not have
        return None
    reference = weights(name)
    if torch.equal(anchor.tensor, reference):
        return None
    named = dict(module.named_parameters(remove_duplicate=False))
    parameter = named.get(anchor.owner)
    if parameter is None or parameter.untyped_storage().data_ptr() != anchor.tensor.untyped_storage().data_ptr():
        return None
    if not _serves_another(placement, weights, name, anchor):
        return handles.weight(name, anchor.tensor, anchor.owner, reference)
    stored = stored_name(name)
    paths = [path for path, p in named.items() if p is parameter and (path == stored) == (name == stored)]
    return handles.untied(module, paths[0], parameter, anchor.tensor, reference) if len(paths) == 1 else None


def _layer_paths(spec: Spec, placement: Placement, site: str) -> list[str]:
    """Where the modules of a site's layer stand, by the parameters that were found in it."""
    layer = names.split(site)[0]
    if layer is None:
        return []
    owners = [
        owner
        for step in spec.steps
        if names.split(step.writes)[0] == layer
        for _, weight in step.weights
        if (anchor := placement.anchors.get(weight.name)) is not None
        for owner in ((anchor.owner,) if anchor.owner else anchor.made_of)
    ]
    layers = Counter(m[0] for o in owners if (m := re.match(r".*?\.\d+(?=\.)", o)))
    return [layers.most_common(1)[0][0]] if layers else []


def _serves_another(placement: Placement, weights: Weights, name: str, anchor: Anchor) -> bool:
    """Whether the memory of a tensor that is to be mended holds another one of the checkpoint, rightly."""
    memory = anchor.tensor.untyped_storage().data_ptr()
    return any(
        other.tensor.untyped_storage().data_ptr() == memory
        and other.tensor.data_ptr() == anchor.tensor.data_ptr()
        and torch.equal(other.tensor, weights(other_name))
        for other_name, other in placement.anchors.items()
        if other_name != name
    )
