"""`twinlens record`."""

from __future__ import annotations

import os
from pathlib import Path

from twinlens.cached import check_lengths
from twinlens.cli import SAME, inputs
from twinlens.cli.watch import Watch
from twinlens.comparison import inputs_of
from twinlens.environments.elsewhere import record_elsewhere
from twinlens.errors import RecordingError, SourceError
from twinlens.recording import Recording
from twinlens.sources.parse import SourceString, parse
from twinlens.subjects import Declaration, Elsewhere, Subject, declared_at, subject


def record(
    source: str,
    out: Path,
    text: str | None,
    tokens: Path | None,
    model: Path | None,
    calls: str | None = None,
    *,
    overwrite: bool,
) -> int:
    """Record one run of a source into a folder."""
    parsed = parse(source)
    if parsed.kind == "recording":
        raise SourceError(f"{source} is a recording already; see it with twinlens show {source}.")
    _check_free(out, overwrite=overwrite)
    ids, mask = inputs.given(text, tokens, model or inputs.checkpoint_of(source))
    with Watch() as watch:
        watch.say(f"building {source}")
        side = subject(source)
        declared = declared_at(str(model)) if model is not None else side.declaration()
        if declared is None:
            raise SourceError(f"{source} does not say what model it is; give --model PATH of its checkpoint.")
        ids, mask = inputs_of((side, side), declared.spec, ids, mask)
        given = inputs.lengths(calls)
        lengths = None if given is None else check_lengths(given, ids.shape[1])
        if isinstance(side, Elsewhere):
            made = record_elsewhere(side.source, ids, mask, out, say=watch.say, overwrite=overwrite, calls=lengths)
        else:
            made = _described(side.record(declared, ids, mask, watch.say, lengths), side, declared, parsed)
            watch.say(f"writing {out}")
            made.save(out, overwrite=overwrite)
    print(f"{out}: {len(made.sites)} sites, {ids.numel()} tokens; twinlens show {out}")
    return SAME


def _described(made: Recording, side: Subject, declared: Declaration, source: SourceString) -> Recording:
    """With what `explain` needs later: config and checkpoint, and how it was made."""
    made.about["source"] = str(source)
    if declared.checkpoint is not None:
        made.config = dict(declared.checkpoint.config)
        path = declared.checkpoint.path or (None if source.kind == "torch" else source.path)
        if path is not None:
            sha256 = declared.checkpoint.fingerprint()
            made.checkpoint = {"path": str(Path(path).absolute()), "sha256": sha256}
    return made


def _check_free(out: Path, *, overwrite: bool) -> None:
    """The writer refuses as well, but only after the run."""
    if out.is_dir() and os.listdir(out) and not overwrite:
        raise RecordingError(f"{out} is not empty; choose another folder, or give --overwrite.")
    if out.exists() and not out.is_dir():
        raise RecordingError(f"{out} is a file where a folder was expected; choose another path.")
