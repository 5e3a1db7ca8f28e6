"""Rows of the alignment table for implementations that live in environments of their own.

Run in TransformerLens's: `PYTHONPATH=src:. python -m tests.capture.foreign hooked FOLDER...`, where each
folder is a checkpoint that `twinlens.museum.tiny.save` wrote. The rows are kept in foreign.json beside this file.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinlens import sites as names
from twinlens.capture import align, trace
from twinlens.checkpoint import open_checkpoint
from twinlens.families import declare
from twinlens.sources import transformer_lens
from twinlens.spec import Weights

KEPT = Path(__file__).with_name("foreign.json")
EVIDENCE = ("weight+replay", "weight", "replay", "provisional", "hidden", "missing")


def hooked(folder: Path) -> str:
    """TransformerLens's model of a checkpoint, held against its own hooks."""
    built = transformer_lens.build(str(folder))
    config = json.loads((folder / "config.json").read_text())
    spec, weights = declare(config), checkpoint(folder)
    tokens = torch.randint(90, (2, 13), generator=torch.Generator().manual_seed(0))
    graph = trace(built.module, tokens, call=built.call)
    placement = align(graph, spec, weights)
    cache = built.module.run_with_cache(tokens)[1]
    wrong = [
        site
        for site, seen in placement.reads(graph, spec.shape)
        if (theirs := noted(cache, site, config)) is not None and not right(site, seen, theirs)
    ]
    name = f"TransformerLens {metadata.version('transformer-lens')}, {config['model_type']}"
    counts = Counter(placement.evidence(spec).values())
    placed = sum(counts.values()) - counts["hidden"] - counts["missing"]
    by_kind = " | ".join(str(counts[kind]) for kind in EVIDENCE)
    total = sum(counts.values())
    return f"| {name} | float32 | {placed} of {total} | {by_kind} | {len(wrong)} |"


def noted(cache: Any, site: str, config: dict[str, Any]) -> Tensor | None:
    """What its own hook saw; its layer norm's hook fires after the weight, its RMS norm's before."""
    bridged = metadata.version("transformer-lens") >= "3"  # there it fires before the weight
    layer_norm = config["model_type"] == "gpt2" and not bridged
    if layer_norm and site.endswith("hook_normalized"):
        return None
    if layer_norm and ".ln" in f".{site}" and site.endswith("hook_out"):
        site = site.replace("hook_out", "hook_normalized")
    return cache[site] if names.is_known(site) and site in cache.keys() else None  # noqa: SIM118


def right(site: str, seen: Tensor, theirs: Tensor) -> bool:
    theirs = theirs.reshape(seen.shape)
    if site.endswith("scores"):
        allowed = theirs > -1e30
        seen, theirs = seen[allowed], theirs[allowed]
    return float((seen - theirs).norm()) <= 1e-4 * float(theirs.norm())


def checkpoint(folder: Path) -> Weights:
    return open_checkpoint(folder).weight


def main() -> None:
    kept: list[str] = json.loads(KEPT.read_text()) if KEPT.exists() else []
    for folder in sys.argv[2:]:
        found = hooked(Path(folder))
        print(found)
        name = found.split("|")[1]
        kept = [r for r in kept if r.split("|")[1] != name] + [found]
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
