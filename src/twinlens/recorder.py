"""Runs inside another environment: `python -m twinlens.recorder JOB.json`.

Needs nothing but torch, safetensors and the implementation. Told a source, tokens and a folder, it records; told
instructions as well, it mends first. What it has to say goes to standard output as JSON lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from twinlens.capture import Placement, record, record_calls
from twinlens.checkpoint import from_module, open_checkpoint
from twinlens.errors import TwinlensError
from twinlens.families import declare
from twinlens.recording import Recording
from twinlens.sources.build import build
from twinlens.sources.parse import parse
from twinlens.spec import Spec, Weights


def say(**words: Any) -> None:
    """One line for whoever started this."""
    print(json.dumps(words), flush=True)


def run(job: dict[str, Any]) -> None:
    """Build, mend if asked to, record, save."""
    source = parse(job["source"])
    given = load_file(job["tokens"])
    tokens, mask = given["tokens"], given.get("mask")
    say(progress=f"building {source.kind}:{Path(source.path).name}")
    built = build(source)
    spec, weights = declaration(source.path, built.module, source.options)
    about, placement = mended(job, built, spec, weights, tokens, mask) if job.get("mend") else ({}, None)
    about = {**built.about, "mended": [], **about}
    say(progress="recording")
    if (calls := job.get("calls")) is not None:
        made = record_calls(built.module, spec, weights, tokens, mask, calls, call=built.call, about=about)
    else:
        made = record(built.module, spec, weights, tokens, mask=mask, call=built.call, about=about, placement=placement)
    made.config = dict(built.config or {})
    made.checkpoint = hashed(built.checkpoint)
    say(progress="writing")
    made.save(job["out"], overwrite=bool(job.get("overwrite")))
    say(done=str(job["out"]))


def hashed(path: Path | None) -> dict[str, Any] | None:
    """Where the checkpoint is and, for a folder, which it is."""
    if path is None:
        return None
    return {"path": str(path)} | ({"sha256": open_checkpoint(path).fingerprint()} if path.is_dir() else {})


def declaration(path: str, module: torch.nn.Module, options: dict[str, str]) -> tuple[Spec, Weights]:
    """What the checkpoint is declared to be; the module itself says it where there is no folder."""
    checkpoint = open_checkpoint(path) if Path(path).is_dir() else from_module(module)
    dtype = getattr(torch, options.get("dtype", "float32"))
    spec = declare(checkpoint.config, dtype=dtype)
    return spec, spec.in_dtype(checkpoint.weight)


def mended(
    job: dict[str, Any], built: Any, spec: Spec, weights: Weights, tokens: torch.Tensor, mask: torch.Tensor | None
) -> tuple[dict[str, Any], Placement | None]:
    """Apply the instructions under the reference's steps: what was done, and where the sites still are."""
    from twinlens.repair.instructions import from_json
    from twinlens.repair.mend import Mender
    from twinlens.text import parse_spec

    say(progress="mending")
    reference = parse_spec(job["spec"])
    own = load_file(job["own"])
    mender = Mender(
        built.module, reference, lambda n: own[n] if n in own else weights(n), tokens, mask, built.call, declared=spec
    )
    these = from_json(job["mend"])
    done = mender(these)
    return {"mended": done.words, "patch": done.patch}, mender.kept(these)


def main() -> int:
    """The job in the file that is named; errors that a user can mend in one line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        run(job)
    except TwinlensError as error:
        say(error=str(error), kind=type(error).__name__)
        return 2
    except OSError as error:
        say(error=f"{error.strerror or error} ({error.filename or job['out']})", kind="RecordingError")
        return 2
    return 0


__all__ = ["Recording", "main", "run"]

if __name__ == "__main__":
    sys.exit(main())
