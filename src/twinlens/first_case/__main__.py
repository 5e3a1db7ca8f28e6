"""`python -m twinlens.first_case [--full] [--write FILE]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from twinlens.cli.watch import Watch
from twinlens.environments.make import make
from twinlens.environments.plan import cache_root, plan
from twinlens.errors import TwinlensError
from twinlens.first_case import checkpoints, second
from twinlens.first_case.case import HF, TL, Bench, Case, candidate_of, run
from twinlens.first_case.checkpoints import FULL, SMALL, Size
from twinlens.first_case.page import Measured, markdown, text
from twinlens.subjects import Say

LENGTHS = {"small": 64, "full": 32}
ROOM = 13e9
"""Bytes of free disk for the full geometry: weights of 10.5 GB and recordings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 only if both cases end identical and nothing else was changed."""
    parser = argparse.ArgumentParser(prog="python -m twinlens.first_case", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the geometry of 2b: 10.5 GB, 24 GB of memory")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page, as Markdown")
    given = parser.parse_args(arguments)
    if not given.full:
        _one_thread()
    try:
        with Watch() as watch, tempfile.TemporaryDirectory(prefix="twinlens-first-case-") as folder:
            say = _said(watch)
            measured = measure(Path(folder), say, full=given.full)
            print(text(measured))
            if given.write is not None:
                given.write.write_text(markdown(measured), encoding="utf-8")
    except (TwinlensError, OSError) as error:
        print(f"twinlens: {error}", file=sys.stderr)
        return 2
    return 0 if measured.as_promised else 1


def _one_thread() -> None:
    """Here and in the environments: among tensors this small a second thread only waits.

    Measured on two busy cores: 100 s of processor time with one, 430 s with two.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _said(watch: Watch) -> Say:
    """A line that moves where somebody watches; else one line each, so that a log tells."""
    if sys.stderr.isatty():
        return watch.say
    started = time.monotonic()
    return lambda words: print(f"[{time.monotonic() - started:4.0f} s] {words}", file=sys.stderr, flush=True)


def measure(folder: Path, say: Say, *, full: bool = False) -> Measured:
    """Both cases and the second model, in a folder for what is temporary."""
    size, length = (FULL, LENGTHS["full"]) if full else (SMALL, LENGTHS["small"])
    say("making the checkpoint")
    path = checkpoint(folder, size, full=full)
    environments = [environment(requirements, say) for requirements in (HF, TL)]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.vocabulary, (1, length), generator=draw)
    recordings = folder / "recordings"
    recordings.mkdir()
    bench = Bench(path, tokens, recordings, say)
    candidate = candidate_of(path)
    before = checkpoints.digest(path)
    installed = [checkpoints.listing(e) for e in environments]
    tl = bench.record(str(candidate))
    cases: list[Case] = [run(bench, candidate, tl, attention) for attention in ("eager", "sdpa")]
    unchanged = checkpoints.digest(path) == before
    kept = [checkpoints.listing(e) for e in environments] == installed
    llama = [] if full else second.run(folder, say)
    return Measured(size, length, cases, llama, checkpoint_unchanged=unchanged, environments_unchanged=kept)


def environment(requirements: str, say: Say) -> Path:
    """The folder of an environment, made if it is not there."""
    these = tuple(requirements.split(","))
    make(these, say)
    return plan(these).folder


def checkpoint(folder: Path, size: Size, *, full: bool) -> Path:
    """The Gemma 2 of a run; the full one is written once, into the cache."""
    if not full:
        return checkpoints.gemma2(folder / "gemma-2", size)
    kept = cache_root().parent / "gemma-2-2b-random"
    if not (kept / "config.json").is_file():
        checkpoints.check_room(kept.parent, ROOM)
    return checkpoints.gemma2(kept, size)


if __name__ == "__main__":
    sys.exit(main())
