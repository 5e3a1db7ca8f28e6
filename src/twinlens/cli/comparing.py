"""`twinlens compare` and `twinlens explain`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from twinlens import comparison
from twinlens.cli import DIFFERENT, SAME, inputs
from twinlens.cli.watch import Watch
from twinlens.comparison import Report
from twinlens.errors import ComparisonError, InputError
from twinlens.recording import Recording
from twinlens.report import as_json, files, markdown, terminal
from twinlens.sources.parse import parse
from twinlens.subjects import Declaration, Recorded, check_alike, declared_at


@dataclass(frozen=True)
class Files:
    """Where reports are written besides the terminal."""

    json: Path | None = None
    markdown: Path | None = None

    def check(self) -> None:
        """Raises OSError where one cannot be written, before anything long begins."""
        for path in (self.json, self.markdown):
            if path is not None:
                files.check(path)

    def write(self, report: Report, after_fix: Report | None = None) -> None:
        """Write them; of a mended candidate both comparisons."""
        if self.json is not None:
            files.write(self.json, as_json.text(report, after_fix=after_fix))
        if self.markdown is not None:
            parts = [report] if after_fix is None else [report, after_fix]
            files.write(self.markdown, "\n".join(markdown.text(part) for part in parts))


def refuse_later(html: Path | None) -> None:
    """Raises InputError for what a later version will do."""
    if html is not None:
        raise InputError("--html is not there yet, it comes later; give --markdown or --json.")


def compare(
    sources: tuple[str, str],
    *,
    text: str | None,
    tokens: Path | None,
    probe: str | None,
    sites: str,
    calls: str | None,
    ask: bool,
    fix: bool,
    order: bool,
    files: Files,
    model: Path | None,
    layers_at_a_time: bool = False,
) -> int:
    """Compare two sources, mend the second one if that is wanted; the exit status."""
    files.check()
    if fix:
        _refuse_unmendable(sources[1])
    if probe is not None and (text is not None or tokens is not None):
        raise InputError("--probe is given beside --text or --tokens; leave one out.")
    ids, mask = inputs.given(text, tokens, model or inputs.checkpoint_of(sources[0]))
    with Watch() as watch:
        chosen: dict[str, Any] = {"sites": sites, "probe": probe, "progress": watch.progress, "say": watch.say}
        chosen |= {"calls": inputs.lengths(calls), "layers_at_a_time": layers_at_a_time}
        report = comparison.compare(*sources, tokens=ids, mask=mask, model=model, **chosen)
    _print(report)
    if ask:
        report = _asked(report)
    files.write(report)
    return _mended(report, order=order, files=files) if fix else status(report)


def _refuse_unmendable(candidate: str) -> None:
    kind = parse(candidate).kind
    if kind in ("recording", "native"):
        what = "a recording" if kind == "recording" else "twinlens's own model"
        raise InputError(f"--fix mends an implementation, and {candidate} is {what}; leave --fix out.")


def _asked(report: Report) -> Report:
    """The report of what told more, if anything was left to ask."""
    with Watch() as watch:
        after = report.ask(progress=watch.progress, say=watch.say)
    if after is report:
        print("\nThere is nothing to ask.")
    else:
        print("\nAsked again\n")
        _print(after)
    return after


def _mended(report: Report, *, order: bool, files: Files) -> int:
    if not report.causes and not (order and report.orders):
        print("\nThere is nothing to mend.")
        return status(report)
    with Watch() as watch:
        watch.say("mending")
        after = report.fix(order=order, progress=watch.progress)
    print("\nAfter the fix\n")
    _print(after)
    files.write(report, after)
    return status(after)


def explain(recordings: tuple[Path, Path], model: Path | None, *, files: Files) -> int:
    """Compare two recordings; the exit status."""
    files.check()
    a, b = (Recorded(Recording.load(path), str(path)) for path in recordings)
    with Watch() as watch:
        declared = _declared(a, model)
        for side in (a, b):
            if (said := side.said()) is not None:
                check_alike(declared.spec, said)
        ids, mask = comparison.inputs_of((a, b), declared.spec, None, None)
        calls = comparison.lengths_of(a)
        report = comparison.run((a, b), declared, ids, mask, watch.progress, watch.say, calls=calls)
    _print(report)
    files.write(report)
    return status(report)


def _declared(reference: Recorded, model: Path | None) -> Declaration:
    where = model or (reference.recording.checkpoint or {}).get("path")
    if where is None:
        raise ComparisonError(
            f"the manifest of {reference.name} names no checkpoint; give --model PATH of a folder "
            "with config.json and weights, or of a .gguf file."
        )
    if not Path(where).exists():
        whose = "" if model else f", the checkpoint of {reference.name},"
        raise ComparisonError(f"{where}{whose} does not exist; give the path of one by --model.")
    declared = None if model else reference.declaration()
    return declared or declared_at(str(where), **reference.options)


def status(report: Report) -> int:
    """0 for the same model, to rounding; 1 for another one."""
    return DIFFERENT if report.verdict == "different" else SAME


def _print(report: Report) -> None:
    if sys.stdout.isatty():
        terminal.show(report, Console())
    else:
        print(terminal.text(report))
