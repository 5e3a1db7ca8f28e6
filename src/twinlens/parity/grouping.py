"""One cause over many layers is one line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from twinlens import sites
from twinlens.fields import kind_of
from twinlens.parity.changes import ROUNDED, Change, Feed, Leave, Rebuilt, Restore, Rewire, SetField, Use, slot, twins
from twinlens.parity.result import Cause, Examination, Order
from twinlens.spec import Spec, stored_name


def group_causes(spec: Spec, examined: Mapping[str, Examination]) -> list[Cause]:
    """The changes of all steps as causes, in the order of the spec."""
    groups: dict[Any, Cause] = {}
    coarse = _coarser_checkpoint(spec, examined)
    fields = [c for e in examined.values() for c in e.changes.changes if isinstance(c, SetField)]
    changed = {(site, c.name, c.value) for c in fields for site in c.sites}
    for target, e in examined.items():
        for change in e.changes.changes:
            cause = _cause(spec, change, target, e, changed)
            if isinstance(change, Use) and change.pattern == coarse:
                key = (cause.parameter, coarse, cause.status)
            else:
                key = (sites.generic(cause.site), cause.parameter, _key(change, cause), cause.status)
            groups[key] = _joined(groups[key], cause) if key in groups else cause
    found = sorted(_with_tables(list(groups.values())), key=lambda c: _place(spec, c.site))
    return [_counted(c) for c in found]


def _coarser_checkpoint(spec: Spec, examined: Mapping[str, Examination]) -> str | None:
    """The pattern of weights that were rounded to a coarser dtype, where that is what most of them are: one mistake."""
    changes = [c for e in examined.values() for c in e.changes.changes if isinstance(c, Use)]
    names = {c.name: c.pattern for c in changes if c.pattern.startswith(ROUNDED)}
    pattern, count = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    return pattern if 2 * count > len(spec.weight_names) else None


def _counted(cause: Cause) -> Cause:
    """With the number of its tensors, where they are of several kinds."""
    names = {c.name for c in cause.changes if isinstance(c, Use)}
    if len(set(map(sites.any_layer, names))) <= 1:
        return cause
    return dataclasses.replace(cause, evidence=f"{len(names)} tensors, of them {cause.evidence}")


def _with_tables(causes: list[Cause]) -> list[Cause]:
    """Rotary tables follow what the layers do with them: the same change of both is one cause, of the layers."""
    shared = [c for c in causes if not c.layers and c.site.startswith("rotary.")]
    for table in shared:
        told = (table.parameter, table.reference, table.candidate, table.status)
        for i, c in enumerate(causes):
            if c.layers and (c.parameter, c.reference, c.candidate, c.status) == told:
                causes[i] = dataclasses.replace(c, changes=(*c.changes, *table.changes), seen=c.seen | table.seen)
                causes.remove(table)
                break
    return causes


def group_orders(spec: Spec, examined: Mapping[str, Examination]) -> list[Order]:
    """The order fields that make bits equal, alike in many layers."""
    groups: dict[Any, Order] = {}
    for e in examined.values():
        for change in e.orders.changes:
            assert isinstance(change, SetField)
            layer = sites.split(change.site)[0]
            was = plain(getattr(spec.at[change.site].op, change.name))
            order = Order(
                change.site, f"order.{change.name}", was, plain(change.value),
                [] if layer is None else [layer], (change,), {change.site: e.target},
            )  # fmt: skip
            key = (sites.generic(order.site), order.parameter, order.reference, order.candidate)
            if key in groups:
                before = groups[key]
                order = dataclasses.replace(
                    before,
                    layers=sorted({*before.layers, *order.layers}),
                    changes=(*before.changes, change),
                    seen=before.seen | order.seen,
                )
            groups[key] = order
    return sorted(groups.values(), key=lambda o: _place(spec, o.site))


def _cause(spec: Spec, change: Change, target: str, e: Examination, changed: Collection[Any]) -> Cause:
    layer = sites.split(change.enters if isinstance(change, Rebuilt) else change.site)[0]
    reference, candidate = values(spec, change)
    name = e.names.get(slot(change), "")
    described = [f"= {name}"] if name else []
    if isinstance(change, Use):
        described.append(f"{stored_name(change.name)}: {change.pattern}")
    if isinstance(change, Feed):
        described.append(f"{change.name} {change.value}")
    if isinstance(change, Rebuilt):
        described.append(change.words)
    described.append(e.proof)
    solved = e.status == "explained"
    if not solved:
        described.append(f"explains {e.share:.0%} of the error of {target}")
    return Cause(
        site=_enters(spec, change, changed),
        seen_at=target,
        parameter=change.parameter(spec),
        reference=reference,
        candidate=candidate,
        interval=e.intervals.get(slot(change)),
        layers=[] if layer is None else [layer],
        status="proved" if solved else "partial",
        evidence="; ".join(d for d in described if d),
        changes=(change,),
        seen={change.site: target},
        rivals={slot(change): e.rivals} if e.rivals and len(e.changes.changes) == 1 else {},
    )


def values(spec: Spec, change: Change) -> tuple[Any, Any]:
    """What the reference has and what the candidate has, as plain values."""
    if isinstance(change, SetField):
        return plain(getattr(spec.at[change.site].op, change.name)), plain(change.value)
    if isinstance(change, Use):
        has_it = change.argument in dict(spec.at[change.site].weights)
        name, other = stored_name(change.name), stored_name(change.other)
        return (name if has_it else None), (other or name if change.tensor is not None else None)
    if isinstance(change, Leave):
        return "present", None
    if isinstance(change, Restore):
        return None, "present"
    if isinstance(change, Rewire | Rebuilt):
        return change.was, change.value
    return 0 if isinstance(change.value, int) else "as given", change.value


def plain(value: Any) -> Any:
    """A field's value as a plain Python one: dtypes by name."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return float(value) if isinstance(value, Tensor) else value


def _enters(spec: Spec, change: Change, changed: Collection[Any]) -> str:
    """The site where the vocabulary says that the parameter enters; of steps that share it the first that has it so."""
    if isinstance(change, Feed):
        return change.name
    if isinstance(change, Rebuilt):
        return change.enters
    if isinstance(change, Rewire):
        return sites.block(sites.split(change.site)[0] or 0, "hook_resid_mid")
    layer, op = sites.split(change.site)[0], spec.at[change.site].op
    if isinstance(change, Use) and change.argument in op.weight_parameters and layer is not None:
        return sites.block(layer, op.weight_parameters[change.argument][1])
    if isinstance(change, SetField):
        enters = kind_of(op, change.name).enters
        if enters is not None and layer is not None:
            return sites.block(layer, enters)
        tied = twins(spec.steps, change.site, change.name)
        return next((s for s in tied if (s, change.name, change.value) in changed), change.site)
    return change.site


def _key(change: Change, cause: Cause) -> Any:
    if isinstance(change, Use):
        return sites.any_layer(change.name), sites.any_layer(change.kind), _apart(change.name, change.other)
    value = cause.candidate
    return (type(change).__name__, _rounded(cause.reference), _rounded(value))


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _apart(name: str, other: str) -> int:
    """How many layers on the tensor is that a weight holds; exchanged layers are two causes."""
    here, there = ([int(p) for p in n.split(".") if p.isdigit()] for n in (name, other or name))
    return there[0] - here[0] if here and there else 0


def _joined(a: Cause, b: Cause) -> Cause:
    changes = tuple({slot(c): c for c in (*a.changes, *b.changes)}.values())
    better = min((a, b), key=lambda c: (c.interval[1] - c.interval[0]) if c.interval else float("inf"))
    return dataclasses.replace(
        a,
        layers=sorted({*a.layers, *b.layers}),
        interval=better.interval,
        candidate=better.candidate,
        changes=changes,
        seen=a.seen | b.seen,
        rivals=a.rivals | b.rivals,
    )


def _place(spec: Spec, site: str) -> int:
    return spec.sites.index(site) if site in spec.at else -1
