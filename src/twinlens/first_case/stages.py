"""Runs where the candidate lives: mends it stage by stage, and records after each stage.

`python -m twinlens.first_case.stages JOB.json`, spoken to as `twinlens.recorder`. Between stages
everything is taken back: each stage is one set of changes on the implementation as shipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from twinlens.capture import Placement, record
from twinlens.errors import TwinlensError
from twinlens.recorder import declaration, say
from twinlens.repair.instructions import from_json
from twinlens.repair.mend import Mender
from twinlens.sources.build import build
from twinlens.sources.parse import parse
from twinlens.text import parse_spec


def run(job: dict[str, Any]) -> None:
    """Build once; for each stage mend, record, save, take back."""
    source, tokens = parse(job["source"]), load_file(job["tokens"])["tokens"]
    say(progress=f"building {source.kind}:{Path(source.path).name}")
    built = build(source)
    spec, weights = declaration(source.path, built.module, source.options)
    placement: Placement | None = None
    for number, stage in enumerate(job["stages"]):
        say(progress=f"mending, stage {number + 1} of {len(job['stages'])}")
        mender = Mender(built.module, parse_spec(stage["spec"]), weights, tokens, None, built.call, placement)
        these = from_json(stage["mend"])
        done = mender(these)
        about = {**built.about, "mended": done.words}
        placement = mender.kept(these)
        made = record(built.module, spec, weights, tokens, call=built.call, about=about, placement=placement)
        made.save(Path(job["out"]) / str(number))
        for undo in reversed(done.undo):
            undo()
    say(done=job["out"])


def main() -> int:
    """The job in the file that is named; an error that a user can mend as one line."""
    try:
        run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except TwinlensError as error:
        say(error=str(error), kind=type(error).__name__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
