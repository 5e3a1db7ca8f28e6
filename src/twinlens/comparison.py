"""The whole of the main job in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinlens import probes
from twinlens.asking import Pair, ask, pairs
from twinlens.cached import befores, cached, check_lengths
from twinlens.errors import ComparisonError, InputError
from twinlens.ids import Ids, padding, tensor_of
from twinlens.inputs import prepare
from twinlens.paging import paged
from twinlens.parity.honest import check_recording
from twinlens.parity.judge import Judge, Progress, silent
from twinlens.parity.result import Result
from twinlens.parity.rounding import equal
from twinlens.parity.together import together
from twinlens.recording import Recording
from twinlens.spec import Spec
from twinlens.subjects import (
    Declaration,
    Live,
    Recorded,
    Say,
    Subject,
    agreed,
    declared_at,
    dtype_stored,
    say_nothing,
    subject,
)
from twinlens.visibility import VISIBLE, seen


@dataclasses.dataclass
class Report(Result):
    """What `compare` found, with the means to mend it.

    `print(report)` is the table for people, `to_json`, `to_markdown` write files, `fix` mends a live candidate.
    """

    judge: Judge | None = dataclasses.field(default=None, repr=False)
    declared: Declaration | None = dataclasses.field(default=None, repr=False)
    sides: tuple[Subject, Subject] | None = dataclasses.field(default=None, repr=False)
    tokens: Tensor | None = dataclasses.field(default=None, repr=False)
    mask: Tensor | None = dataclasses.field(default=None, repr=False)
    level: str = "all"
    """Which sites were compared."""
    questions: list[Pair] = dataclasses.field(default_factory=list[Pair], repr=False)
    """What this run does not tell apart, and the run that would; `pairs` are the same in words."""
    lengths: Sequence[int] | None = None
    """Of several calls with a cache; `judge` is then the first one's."""

    def __str__(self) -> str:
        from twinlens.report import terminal

        return terminal.text(self)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON."""
        from twinlens.report import as_json, files

        files.write(Path(path), as_json.text(self))

    def to_markdown(self, path: str | Path) -> None:
        """Write the tables as Markdown."""
        from twinlens.report import files, markdown

        files.write(Path(path), markdown.text(self))

    @property
    def coverage(self) -> dict[str, dict[str, str]]:
        """By site and parameter: to what precision this run verified it, or why not."""
        from twinlens.parity.coverage import coverage

        assert self.judge is not None
        return coverage(self.judge)

    def fix(self, candidate: object = None, *, order: bool = False, progress: Progress = silent) -> Report:
        """Apply the inverse edits to the candidate, record it again, compare again.

        `candidate`: the live module that was compared; by default the one that was given to `compare`.
        `order=True` mends the orders of evaluation too, to the last bit.
        """
        from twinlens.repair import fix

        return fix(self, candidate, order=order, progress=progress)

    def ask(self, *, progress: Progress = silent, say: Say = say_nothing) -> Report:
        """Run once more what would tell apart what this run does not, and what is left unexplained with all sites.

        Raises:
            InputError: a side is a recording, which cannot be run again.
        """
        return ask(self, progress, say)

    def patch(self, *, order: bool = False) -> str:
        """What to change, in the candidate's own words."""
        from twinlens.repair import patch

        return patch(self, order=order)


def compare(
    reference: object,
    candidate: object,
    *,
    tokens: Ids | None = None,
    mask: Ids | None = None,
    probe: str | None = None,
    call: Callable[..., Any] | None = None,
    sites: str = "all",
    calls: Sequence[int] | None = None,
    model: str | Path | None = None,
    layers_at_a_time: bool = False,
    progress: Progress = silent,
    say: Say = say_nothing,
) -> Report:
    """Are these two the same model? If not, where does it begin, why, and what is to be changed?

    Args:
        reference, candidate: a live transformers model (or, as candidate, any torch module of a declared family), a
            Recording, a native model, a path, or a source such as "hf:PATH".
        tokens: ids [b p]; by default those of a recording that is given, else random ids, longer than the window.
        mask: [b p], 1 = a real token.
        probe: "auto" instead of tokens: two rows past every threshold of the declared model, one of them padded; the
            last tokens by decoding, where both sides can be called with a key/value cache.
        call: how the candidate is called, `(tokens, mask) -> logits`.
        sites: "all", or only the "sublayers", the "residual" stream, the "logits", or the "logprobs" of both sides: of
            the tokens that follow, and of the n best, as a server shows them.
        calls: lengths of calls that together run the tokens with a key/value cache, such as [20, 1, 1]: prefill and
            two steps of decoding; what they leave over is one more. Each is judged by itself. By default one call, or
            those of a recording that is given.
        model: a checkpoint whose config says what both are, where neither side does.
        layers_at_a_time: weights that are mapped from disk, as those of sources are, are in memory only while they are
            read, and recorded tensors are held on disk too: for a checkpoint larger than memory.
        progress, say: told how far it is.

    Raises:
        TwinlensError: they cannot be compared; the sentence says what to do.
    """
    if not isinstance(sites, str) or sites not in VISIBLE:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"sites={sites!r} is none of {', '.join(VISIBLE)}.")
    with paged(layers_at_a_time):
        sides = subject(reference, mapped=layers_at_a_time), subject(candidate, call, mapped=layers_at_a_time)
        stored = {"dtype": dtype_stored(str(model))} if layers_at_a_time and model is not None else {}
        declared = agreed(*sides) if model is None else declared_at(str(model), **stored)
        if probe is not None:
            if tokens is not None or any(isinstance(side, Recorded) for side in sides):
                raise InputError("tokens are known already; leave the probe out.")
            tokens, mask = probes.named(probe, declared.spec)
            if calls is None and all(side.goes_on for side in sides):
                calls = probes.decoding(tokens.shape[1])
        if calls is None and tokens is None:
            calls = next((lengths for side in sides if (lengths := lengths_of(side)) is not None), None)
        ids, mask = inputs_of(sides, declared.spec, tokens, mask)
        lengths = None if calls is None else check_lengths(calls, ids.shape[1])
        return run(sides, declared, ids, mask, progress, say, sites=sites, calls=lengths)


def run(
    sides: tuple[Subject, Subject], declared: Declaration, tokens: Tensor, mask: Tensor | None,
    progress: Progress = silent, say: Say = say_nothing, reference: Recording | None = None, sites: str = "all",
    calls: Sequence[int] | None = None,
) -> Report:  # fmt: skip
    """Record both sides and judge them, on the sites of one level of visibility."""
    first = reference or sides[0].record(declared, tokens, mask, say, calls)
    second = sides[1].record(declared, tokens, mask, say, calls)
    if calls is None:
        judged, found = _judged(sides, declared, first, second, progress, sites)
    else:
        steps = cached(declared.spec)
        several = dataclasses.replace(declared, spec=steps)
        parts, before = list[tuple[Judge, Result]](), None
        for a, b in zip(*(each_call(steps, r, len(calls)) for r in (first, second)), strict=True):
            parts.append(_judged(sides, several, a, b, progress, sites, before))
            before = parts[-1][0]
        found = together([result for _, result in parts], calls)
        judged = parts[0][0]
    for name, side in zip(("reference", "candidate"), sides, strict=True):
        if isinstance(side, Live) and side.drops:
            found.training.append(name)
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    report = Report(**values, judge=judged, declared=declared, sides=sides, tokens=tokens, mask=mask, level=sites)
    report.lengths = calls
    report.questions = pairs(report)
    report.pairs = [str(q) for q in report.questions]
    return report


def _judged(
    sides: tuple[Subject, Subject], declared: Declaration, first: Recording, second: Recording, progress: Progress,
    level: str, before: Judge | None = None,
) -> tuple[Judge, Result]:  # fmt: skip
    """One call of both."""
    runs = (first, second)
    spec, first, second = seen(declared.spec, first, second, level)
    judged = Judge(spec, declared.weights, first, second, progress, before)
    for side, recording in zip(sides, (first, second), strict=True):
        if isinstance(side, Recorded):  # what was captured here is placed by its values
            check_recording(spec, declared.weights, recording, side.name)
    found = judged.run()
    if found.verdict == "different" and not first.first.before:
        names = ("reference", "candidate")
        found.unsteady = [n for n, side, run in zip(names, sides, runs, strict=True) if not _is_steady(side, run)]
    return judged, found


def each_call(steps: Spec, recording: Recording, count: int) -> Iterator[Recording]:
    """The calls of a recording by themselves, each with what those before it left.

    Raises ComparisonError where it has another number of calls.
    """
    if len(recording.calls) != count:
        raise ComparisonError(f"{recording!r} has not {count} calls; record both sides with the same --calls")
    for call, before in zip(recording.calls, befores(steps, recording.calls), strict=True):
        yield dataclasses.replace(recording, calls=[dataclasses.replace(call, before=before)])


def lengths_of(side: Subject) -> list[int] | None:
    """The lengths of a recording's calls, where it has several."""
    if not isinstance(side, Recorded) or len(side.recording.calls) < 2:
        return None
    return [call.tokens.shape[1] for call in side.recording.calls]


def _is_steady(side: Subject, recording: Recording) -> bool:
    """Whether one more run gives the logits that were recorded."""
    call = recording.first
    if "logits" not in call.sites:
        return True  # nothing to hold a second run against
    logits = side.again(call.tokens, None if bool(call.mask.all()) else call.mask)
    return logits is None or equal("logits", call.sites["logits"], logits.detach(), call.mask)


def inputs_of(
    sides: tuple[Subject, Subject], spec: Spec, tokens: Ids | None, mask: Ids | None
) -> tuple[Tensor, Tensor | None]:
    """The tokens and the mask that both sides run. Raises InputError if they are none."""
    for side in sides:
        if tokens is None and isinstance(side, Recorded):
            calls = side.recording.calls or [side.recording.first]
            ids, real = (torch.cat([getattr(call, name) for call in calls], dim=1) for name in ("tokens", "mask"))
            return ids, None if bool(real.all()) else real
    if tokens is None:
        tokens = probes.short(spec)
    ids = tensor_of("tokens", tokens)
    ids = ids[None] if ids.ndim == 1 else ids
    prepare(spec, ids)
    return ids, None if mask is None else padding(mask, ids)
