"""Whether a report says of a fault what it must, and a recording of what few sites show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import twinlens
from tests.parity.faults import ANY, FAULTS, Fault, Want, layers
from twinlens.parity.result import Cause, Result
from twinlens.sites import split

BY_NAME = {fault.title: fault for fault in FAULTS}


def compared(fault: Fault, *, afar: bool = False) -> tuple[Any, twinlens.Report]:
    """The candidate, and the comparison with it, or with its sublayer outputs alone."""
    reference = fault.reference()
    torch.manual_seed(0)  # a plant may draw
    candidate = fault.candidate(reference)
    tokens, mask = fault.inputs(reference)
    seen = sublayers(candidate, tokens, mask) if afar else candidate
    return candidate, twinlens.compare(reference, seen, tokens=tokens, mask=mask)


def misses(fault: Fault, report: Result) -> list[str]:
    """What a report should have said and did not, and what it should not have said; empty where it is right."""
    bad = list[str]()
    honest = ("identical", "rounding")
    if (report.verdict in honest) != fault.benign:
        bad.append(f"verdict {report.verdict}")
    if report.explained not in honest:
        bad.append(f"explained {report.explained}")
    bad += [
        f"unexplained {u.site} ({u.ratio.wide:.3g}, {u.ratio.tight:.3g}), nearest {u.nearest}"
        for u in report.unexplained
    ]
    bad += [f"accuses the reference: {c.parameter} at {c.site}" for c in report.reference_edits]
    used = set[int]()
    for want in fault.causes:
        rows = [c for c in report.causes if fits(want, c)]
        used |= {id(c) for c in rows}
        if not rows:
            bad.append(f"not named: {want.parameter} {want.reference} -> {want.candidate}")
            continue
        found = tuple(sorted({i for c in rows for i in c.layers}))
        if want.layers is not None and found != want.layers:
            bad.append(f"{want.parameter} in layers {found}, expected {want.layers}")
        if want.at and {part(c.site) for c in rows} != set(want.at):
            bad.append(f"{want.parameter} at {sorted({part(c.site) for c in rows})}, expected {sorted(want.at)}")
        bad += [f"{c.parameter} at {c.site} is {c.status}" for c in rows if c.status != "proved"]
    bad += [
        f"accused: {c.parameter} {c.reference} -> {c.candidate} at {c.site} {c.layers} {c.status}: {c.evidence[:120]}"
        for c in report.causes
        if id(c) not in used
    ]
    return bad


def part(site: str) -> str:
    """`ln1` of `blocks.0.ln1.hook_out`."""
    return split(site)[1].split(".")[0]


def fits(want: Want, cause: Cause) -> bool:
    names = (want.parameter,) if isinstance(want.parameter, str) else want.parameter
    return (
        cause.parameter in names
        and alike(want.reference, cause.reference, 1e-3 * size(want.reference))
        and alike(want.candidate, cause.candidate, want.within * apart(want))
        and (cause.interval is None or not isinstance(want.candidate, float) or within(want.candidate, cause.interval))
    )


def within(value: float, interval: tuple[float, float]) -> bool:
    """Half as much again is allowed: an interval has a few standard errors on each side."""
    low, high = interval
    slack = 0.25 * (high - low) + 1e-6 * abs(value)
    return low - slack <= value <= high + slack


def size(value: Any) -> float:
    return abs(value) if isinstance(value, float) else 0.0


def apart(want: Want) -> float:
    if isinstance(want.reference, float) and isinstance(want.candidate, float):
        return abs(want.candidate - want.reference)
    return size(want.candidate)


def alike(wanted: Any, found: Any, slack: float) -> bool:
    if isinstance(wanted, str) and wanted == ANY:
        return True
    if isinstance(wanted, float) and isinstance(found, int | float):
        return abs(wanted - found) <= slack
    return wanted == found and type(wanted) is type(found)


@torch.no_grad()
def sublayers(model: Any, tokens: Tensor, mask: Tensor | None) -> twinlens.Recording:
    """What modules hand to each other, and nothing within them, by plain hooks on transformers' modules."""
    got = dict[str, Tensor]()
    kind = model.config.model_type
    hooks = list[Any]()

    def output(module: Any, site: str) -> None:
        def take(mod: Any, args: Any, out: Any) -> None:
            got[site] = (out[0] if isinstance(out, tuple) else out).detach().clone()

        hooks.append(module.register_forward_hook(take))

    def reads(module: Any, site: str) -> None:
        def take(mod: Any, args: Any, kwargs: Any) -> None:
            got[site] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

        hooks.append(module.register_forward_pre_hook(take, with_kwargs=True))

    output(model.transformer.wte if kind == "gpt2" else model.model.embed_tokens, "hook_embed")
    for i, x in enumerate(layers(model)):
        at = f"blocks.{i}"
        reads(x, f"{at}.hook_resid_pre")
        output(x, f"{at}.hook_resid_post")
        if kind == "gpt2":
            named = (x.attn, x.ln_2, x.mlp)
        elif kind == "llama":
            named = (x.self_attn, x.post_attention_layernorm, x.mlp)
        else:
            named = (x.post_attention_layernorm, x.pre_feedforward_layernorm, x.post_feedforward_layernorm)
        output(named[0], f"{at}.hook_attn_out")
        reads(named[1], f"{at}.hook_resid_mid")
        output(named[2], f"{at}.hook_mlp_out")
    try:
        out = model(tokens) if mask is None else model(tokens, attention_mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    return twinlens.Recording.from_tensors({**got, "logits": out.logits}, tokens=tokens, mask=mask)
