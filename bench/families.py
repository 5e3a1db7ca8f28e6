"""The table of docs/families.md: each family against transformers at every site, and against itself by another kernel.

A tiny model of each family, with weights that make scores of several units, runs as transformers computes it and as
the native model does; equal means `torch.equal`. "seen" are the sites that a module or a function of transformers
hands over. Then the eager model is compared with itself run by sdpa: rounding, and no cause.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

import twinlens
from bench.pages import conditions, page
from tests.families.seen import calls, run
from twinlens.families import FAMILIES
from twinlens.museum.tiny import ALL, CONFIGS, EAGER_ONLY, ROPE, left_padded, random_tokens
from twinlens.report.table import Table
from twinlens.report.terminal import rendered

DTYPES = (torch.float32, torch.bfloat16)
LENGTH, PADDED = 40, (40, 23)
"""Beyond every window (8, 9) and every context that rotary tables are stretched from (16, 20)."""


def equal_sites(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None) -> tuple[int, int, int]:
    """How many sites are equal in every bit, of how many that transformers shows, of how many that are visible."""
    native = twinlens.load(model)
    theirs = run(model, native.spec, tokens, mask)
    _, ours = native.run_with_cache(tokens, mask)
    real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
    equal = sum(torch.equal(_rows(s, ours[s], real), _rows(s, x, real)) for s, x in theirs.items())
    return equal, len(theirs), len(native.spec.sites) - len(native.spec.hidden)


def _rows(site: str, x: Tensor, real: Tensor) -> Tensor:
    x = x.transpose(1, 2) if site.endswith(("hook_attn_scores", "hook_pattern")) else x
    return x.expand(len(real), *x.shape[1:])[real]


def cell(model: PreTrainedModel, seed: int) -> str:
    """A plain and a left-padded call of one model: sites that are equal, of those seen, of those that are visible."""
    calls = ((random_tokens(model, 2, LENGTH, seed), None), left_padded(model, PADDED, seed))
    (equal, seen, visible), (again, *_) = (equal_sites(model, *call) for call in calls)
    if (equal, again) == (seen, seen):
        return f"{seen} of {visible}" if seen < visible else f"all {visible}"
    return f"**{min(equal, again)} of {seen}**"


def family(name: str, seed: int) -> tuple[str, ...]:
    """A row of the table."""
    kind = CONFIGS[name][0]
    lines = len(Path(str(FAMILIES[kind].__file__)).read_text(encoding="utf-8").splitlines())
    cells = list[str]()
    for attn in ("eager", "sdpa"):
        for dtype in DTYPES:
            refused = attn == "sdpa" and name in EAGER_ONLY
            cells.append("–" if refused else cell(ALL[name](seed, attn=attn, dtype=dtype), seed))
    other = "–"
    if name not in EAGER_ONLY:
        model = ALL[name](seed)
        report = twinlens.compare(model, ALL[name](seed, attn="sdpa"), tokens=random_tokens(model, 2, LENGTH, seed))
        other = report.verdict + "".join(f", {c.parameter}" for c in report.causes)
    return name, str(lines), *cells, other


def scaling(rope: str, seed: int) -> tuple[str, ...]:
    """A row of the table of rotary scalings, shorter and longer than what they stretch."""
    longest = {"dynamic": 20}.get(rope, 256)
    cells = list[str]()
    for dtype in DTYPES:
        model = ALL["llama"](seed, rope=rope, dtype=dtype, max_position_embeddings=longest)
        found = [equal_sites(model, random_tokens(model, 2, n, seed), None) for n in (12, LENGTH)]
        cells.append(f"all {found[0][2]}" if all(e == s for e, s, _ in found) else f"**{found}**")
    return rope, *cells


CALLS = (18, 12, 1, 1)
"""Prefill, a chunk, two steps of decoding: beyond every window in each of them."""


def cached(name: str, seed: int) -> tuple[str, ...]:
    """A row of the table of calls with a cache: sites of all calls that are equal, of those that are seen."""
    cells = list[str]()
    for attn in ("eager", "sdpa"):
        for dtype in DTYPES:
            if attn == "sdpa" and name in EAGER_ONLY:
                cells.append("–")
                continue
            model = ALL[name](seed, attn=attn, dtype=dtype)
            found = [
                e for call in calls(model, *left_padded(model, (sum(CALLS), 23), seed), CALLS) for e in call.values()
            ]
            cells.append(f"all {len(found)}" if all(found) else f"**{sum(found)} of {len(found)}**")
    return name, *cells


def tables(seed: int) -> Iterator[Table]:
    """All."""
    heads = ("family", "lines", "eager, float32", "eager, bfloat16", "sdpa, float32", "sdpa, bfloat16", "eager / sdpa")
    rows = [family(name, seed) for name in track(ALL, "families", transient=True)]
    yield Table("Sites equal bit for bit, plain and left-padded", heads, tuple(rows))
    kinds = [scaling(rope, seed) for rope in track(ROPE, "scalings", transient=True)]
    yield Table("Rotary scalings, in a Llama", ("kind", "float32", "bfloat16"), tuple(kinds))
    several = [cached(name, seed) for name in track(ALL, "calls with a cache", transient=True)]
    title = f"Calls of {', '.join(map(str, CALLS))} tokens with a key/value cache, left-padded"
    yield Table(title, heads[:1] + heads[2:-1], tuple(several))


def is_whole(shown: Iterable[Table]) -> bool:
    """Whether everything that transformers shows is equal, and nothing was accused."""
    cells = [cell for table in shown for row in table.rows for cell in row]
    return not any("**" in cell or cell.startswith(("different", "rounding,")) for cell in cells)


def main() -> int:
    """Measure, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables as Markdown")
    asked = parser.parse_args()
    console, shown = Console(highlight=False, width=120), list(tables(asked.seed))
    for table in shown:
        console.print(rendered(table))
    said = (
        f"Seed {asked.seed}; two rows of {LENGTH} tokens, then one of them with {LENGTH - PADDED[1]} of padding on the "
        f"left; {conditions()}. A number is of sites that transformers' modules and functions hand over, where that is "
        "fewer than are visible; what is made of the others is among them."
    )
    console.print(said)
    if asked.write:
        asked.write.write_text(page("Families", "make families", said, shown), encoding="utf-8")
    return 0 if is_whole(shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
