"""How often the verdict is wrong, and how small a fault it sees: docs/calibration.md.

Clean pairs, of which nothing may be called different: our own, with a part computed in another way, and those against
implementations that we did not write. Planted faults, to see how small a one is seen. What was done is kept in files,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from bench import pages
from bench.calibration import clean, foreign, planted
from bench.calibration.kept import KEPT, measured, wrong
from twinlens.report.terminal import rendered


def main() -> int:
    """Compare, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(200, 203), metavar=("FIRST", "END"))
    parser.add_argument("--foreign", type=int, nargs=2, default=(400, 405), metavar=("FIRST", "END"))
    parser.add_argument("--planted", type=int, nargs=2, default=(300, 301), metavar=("FIRST", "END"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables as Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    own = measured(list(clean.pairs(range(*asked.seeds))), KEPT / "clean.jsonl")
    others = measured(list(foreign.foreign(range(*asked.foreign))), KEPT / "foreign.jsonl")
    faults = measured(list(planted.faults(range(*asked.planted))), KEPT / "planted.jsonl")
    bad = [*wrong(own), *wrong(others)]
    shown = [clean.table(own), foreign.table(others), *planted.curves(faults, own)]
    console = Console(highlight=False, width=120)
    for each in shown:
        console.print(rendered(each))
    said = (
        f"{len(own)} clean pairs of our own, of seeds {_span(asked.seeds)}, {len(wrong(own))} wrong; {len(others)} "
        f"against implementations that we did not write, of seeds {_span(asked.foreign)}, {len(wrong(others))} wrong; "
        f"{len(faults)} faults of seeds {_span(asked.planted)}; {pages.conditions()}. The constants of rounding are "
        "those of [another page](rounding.md), from gpt2, llama and gemma2 in transformers with other seeds, frozen "
        "before: no seed and no other implementation of this page had a part in them. The second side of a fault is "
        "the native model."
    )
    after = [*bad, *(["", "Left out:", "", *foreign.left_out()])]
    console.print(said, *after, sep="\n", markup=False)
    if asked.write:
        asked.write.write_text(pages.page("Calibration", "make calibrate", said, shown, after), encoding="utf-8")
    return 1 if bad else 0


def _span(seeds: tuple[int, int]) -> str:
    first, end = seeds
    return f"{first} to {end - 1}" if end > first + 1 else f"{first}"


if __name__ == "__main__":
    raise SystemExit(main())
