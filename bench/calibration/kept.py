"""What was said of each pair, kept in a file, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import twinlens
from twinlens.museum.tiny import left_padded, random_tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEPT = Path("build/calibration")
SHAPES: dict[str, Callable[[Any, int], tuple[Tensor, Tensor | None]]] = {
    "plain": lambda m, seed: (random_tokens(m, 2, 40, seed), None),
    "padded": lambda m, seed: left_padded(m, (40, 17), seed),
    "one row": lambda m, seed: (random_tokens(m, 1, 23, seed), None),
    "long": lambda m, seed: (random_tokens(m, 1, 120, seed), None),
    "three rows": lambda m, seed: (random_tokens(m, 3, 11, seed), None),
}


def told(report: twinlens.Report) -> dict[str, Any]:
    """What a report says, as JSON."""
    return {
        "verdict": report.verdict,
        "causes": [f"{c.parameter} at {c.site}: {c.reference} → {c.candidate}" for c in report.causes],
        "unexplained": [f"{u.site} ({u.ratio.wide:.3g}, {u.ratio.tight:.3g})" for u in report.unexplained],
    }


def wrong(found: dict[Any, dict[str, Any]]) -> list[str]:
    """The pairs that are called different, or of which something is accused, as lines of a page."""
    return [
        f"- {', '.join(str(x) for x in asdict(pair).values())}: "
        f"{said['verdict']}, {said['causes']}, {said['unexplained']}"
        for pair, said in found.items()
        if not is_clean(said)
    ]


def moved(report: twinlens.Report) -> float:
    """How far the logits are apart, as a part of their size."""
    last = report.findings[-1]
    return last.total / last.size if last.size else 0.0


def measured(wanted: list[Any], kept: Path) -> dict[Any, dict[str, Any]]:
    """What is said of each, from the file where it was said before."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {type(wanted[0])(**row["of"]): row["said"] for row in map(json.loads, lines)}
    with kept.open("a", encoding="utf-8") as file:
        for pair in track([p for p in wanted if p not in known], kept.stem, transient=True):
            known[pair] = pair.run()
            print(json.dumps({"of": asdict(pair), "said": known[pair]}), file=file, flush=True)
    return {pair: known[pair] for pair in wanted}


def is_clean(said: dict[str, Any]) -> bool:
    """Nothing different, nothing accused."""
    return said["verdict"] != "different" and not said["causes"]
