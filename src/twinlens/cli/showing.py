"""`twinlens show`: what a recording holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinlens.cli import SAME
from twinlens.errors import RecordingError
from twinlens.recording import Recording
from twinlens.recording.record import Call
from twinlens.report.table import Table
from twinlens.report.terminal import table_text
from twinlens.report.words import some


def show(folder: Path, site: str | None) -> int:
    """Print a recording, or one site of it."""
    recording = Recording.load(folder)
    if site is not None:
        _check_there(recording, site, folder)
    for line in head(recording, folder):
        print(line)
    for number, call in enumerate(recording.calls):
        if site is None or site in call.sites:
            print(f"\n{_call(number, call)}")
            print(table_text(sites(call, None if site is None else [site])))
        if site is not None and site in call.sites:
            print(_numbers(call.sites[site]))
    return SAME


def head(recording: Recording, folder: Path) -> Iterator[str]:
    """Implementation, versions, checkpoint, what is missing."""
    calls = len(recording.calls)
    yield f"{folder}: {recording.about.get('implementation', 'an implementation')}"
    if recording.partial:
        yield "  PARTIAL: the run was interrupted; what is here is whole, but more was to come"
    for name, value in _said(recording.about):
        yield f"  {name:<14} {value}"
    for name, value in (recording.checkpoint or {}).items():
        yield f"  {'checkpoint':<14} {name} {value}"
    if recording.config is not None:
        yield f"  {'model type':<14} {recording.config.get('model_type', 'not said')}"
    if recording.weights or recording.weights_equal:
        equal = f"{len(recording.weights_equal)} equal to the checkpoint's"
        yield f"  {'weights':<14} {equal}, {len(recording.weights)} kept here"
    if recording.unknown:
        yield f"  {'unknown names':<14} {some(recording.unknown)}"
    yield f"  {'calls':<14} {calls}"


def _said(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in about.items():
        if name == "implementation" or value in ("", [], {}, None):
            continue
        yield name, some([str(v) for v in value]) if isinstance(value, list) else str(value)


def _call(number: int, call: Call) -> str:
    padded = int((call.mask == 0).sum())
    hidden = f", {padded} padded" if padded else ""
    batch, positions = call.tokens.shape
    return f"call {number}: {batch} × {positions} tokens{hidden}, {len(call.sites)} sites"


def sites(call: Call, names: list[str] | None = None) -> Table:
    """Of each site: shape, dtype, mean, standard deviation, how it was placed."""
    rows = tuple(_row(name, call) for name in (names or call.sites))
    return Table("sites", ("site", "shape", "dtype", "mean", "std", "placed"), rows)


def _row(name: str, call: Call) -> tuple[str, ...]:
    tensor = call.sites[name]
    shape = " ".join(str(n) for n in tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return (name, shape, dtype, *_moments(tensor), call.placed.get(name, ""))


def _moments(tensor: Tensor) -> tuple[str, str]:
    """Mean and standard deviation of what is finite and no mask."""
    real = _real(tensor)
    if real.numel() == 0:
        return "–", "–"
    return f"{float(real.mean()):.4g}", f"{float(real.std(correction=0)):.4g}"


def _real(tensor: Tensor) -> Tensor:
    values = tensor.double().flatten()
    return values[values.isfinite() & (values > torch.finfo(torch.float32).min / 2)]


def _numbers(tensor: Tensor) -> str:
    """Range, what is not finite, and the first entries of the first row."""
    real, whole = _real(tensor), tensor.numel()
    lines = [f"  {'masked or -inf':<14} {whole - real.numel() - int(tensor.isnan().sum())} of {whole}"]
    if nans := int(tensor.isnan().sum()):
        lines.append(f"  {'NaN':<14} {nans} of {whole}")
    if real.numel():
        lines.insert(0, f"  {'range':<14} {float(real.min()):.6g} to {float(real.max()):.6g}")
    first = ", ".join(f"{float(x):.6g}" for x in tensor.flatten()[:8])
    return "\n".join([*lines, f"  {'begins':<14} {first}"])


def _check_there(recording: Recording, site: str, folder: Path) -> None:
    known = list(dict.fromkeys(name for call in recording.calls for name in call.sites))
    if site not in known:
        near = get_close_matches(site, known, n=1, cutoff=0)
        hint = f"the nearest is {near[0]}" if near else "it holds none"
        raise RecordingError(f"{folder} has no site {site!r}; {hint}. See twinlens show {folder}.")
