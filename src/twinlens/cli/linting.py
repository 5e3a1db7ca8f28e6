"""`twinlens lint`."""

from __future__ import annotations

from pathlib import Path

from twinlens.cli import DIFFERENT, SAME
from twinlens.cli.watch import Watch
from twinlens.lint import page
from twinlens.lint.check import lint as linted
from twinlens.report import files


def lint(path: Path, source: str | None, json: Path | None) -> int:
    """Lint a checkpoint's config under an implementation; the exit status."""
    if json is not None:
        files.check(json)
    with Watch() as watch:
        found = linted(path, source, watch.say, watch.progress)
    print(found)
    if json is not None:
        files.write(json, page.as_text(found))
    return DIFFERENT if found.verdict == "matters" else SAME
