"""The figures of `make bench`: what recording, comparing and diagnosing cost, as ratios of runs that alternate.

A ratio is the least time of the one over the least time of the other, measured in turns within one process, so that
whatever else the machine does hits both. CPU time stands beside wall time: on a loaded machine only that is steady.
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import twinlens
from bench.pages import conditions, page
from twinlens.capture import record
from twinlens.capture.recorder import placed
from twinlens.capture.tracer import Tracer
from twinlens.demo import HALVED, ROW, SCALED, damaged, smollm2
from twinlens.recording import Recording
from twinlens.report.table import Table
from twinlens.report.terminal import rendered
from twinlens.sources import hf
from twinlens.subjects import Declaration, subject

LENGTH = 256
ROUNDS, QUICK = 7, 2
Run = Callable[[], object]


@dataclass
class Clock:
    """Times of one thing, run after run: on the wall, and of all cores together."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])

    def time(self, run: Run) -> None:
        """One more run; what it returns is freed outside of it."""
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        kept = run()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        if isinstance(kept, tempfile.TemporaryDirectory):
            kept.cleanup()
        del kept


@dataclass
class Figure:
    """One ratio: what is run, against how many runs of what; the most that it should be, where that is said."""

    what: str
    run: Run
    against: str
    base: Run
    times: int = 1
    most: float | None = None
    clocks: tuple[Clock, Clock] = field(default_factory=lambda: (Clock(), Clock()))

    def measure(self, rounds: int) -> None:
        """Both in turns, after one run of each that does not count."""
        for run in (self.run, self.base):
            Clock().time(run)
        for _ in range(rounds):
            self.clocks[1].time(self.base)
            self.clocks[0].time(self.run)

    def ratio(self, of: str) -> float:
        """Of the least times."""
        above, below = (min(getattr(clock, of)) for clock in self.clocks)
        return above / (self.times * below)

    def spread(self, of: str) -> tuple[float, float]:
        """The least and the largest ratio of two runs that followed one another."""
        pairs = zip(*(getattr(clock, of) for clock in self.clocks), strict=True)
        ratios = [above / (self.times * below) for above, below in pairs]
        return min(ratios), max(ratios)


class Models:
    """The same weights three times: eager, sdpa, and a copy with the demo's two faults."""

    def __init__(self) -> None:
        path = smollm2()
        self.eager = hf.build(str(path)).module
        self.sdpa: Any = copy.deepcopy(self.eager)
        self.sdpa.set_attn_implementation("sdpa")
        self.faulty = damaged(self.eager)
        draw = torch.Generator().manual_seed(0)
        size = self.eager.config.vocab_size
        self.tokens = torch.randint(size, (1, LENGTH), generator=draw)
        declared = subject(self.eager).declaration()
        assert declared is not None
        self.declared: Declaration = declared
        self.native = {"eager": twinlens.load(self.eager), "sdpa": twinlens.load(self.sdpa)}

    def forward(self, module: Any) -> Tensor:
        """What somebody would run who only wants logits."""
        with torch.no_grad():
            return module(self.tokens, use_cache=False).logits

    def twice(self) -> tuple[Tensor, Tensor]:
        """Both sides of a comparison, only run."""
        return self.forward(self.eager), self.forward(self.sdpa)

    def own(self, kernel: str) -> Tensor:
        """The native model."""
        with torch.no_grad():
            return self.native[kernel](self.tokens)

    def record(self, **more: Any) -> Recording:
        """All sites, in memory."""
        return record(self.eager, self.declared.spec, self.declared.weights, self.tokens, **more)

    def hold(self) -> list[Tensor | None]:
        """What recording cannot cost less than: a mode that holds the same tensors and does nothing else."""
        with Holding(self.calls) as held:
            self.forward(self.eager)
        return held.seen

    @cached_property
    def calls(self) -> frozenset[int]:
        """Which calls of torch make the tensors that are recorded."""
        keys = placed(self.eager, self.declared.spec, self.declared.weights).keys()
        with Holding() as every:
            graph = Tracer(self.eager, self.tokens, None, keys).run(self.eager, None)
        sites = {id(node.value) for node in graph.nodes if node.value is not None}
        return frozenset(i for i, tensor in enumerate(every.seen) if id(tensor) in sites)

    def save(self) -> tempfile.TemporaryDirectory[str]:
        """All sites, on disk, hashed."""
        folder = tempfile.TemporaryDirectory(prefix="twinlens-bench-")
        self.record().save(Path(folder.name) / "recording")
        return folder

    def compare(self, candidate: nn.Module) -> twinlens.Report:
        """Two live models."""
        return twinlens.compare(self.eager, candidate, tokens=self.tokens)


class Holding(TorchFunctionMode):
    """Keeps what some calls give, by their number; or what all give."""

    def __init__(self, these: frozenset[int] | None = None) -> None:
        super().__init__()
        self.these, self.seen = these, list[Tensor | None]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs) if kwargs else func(*args)
        wanted = isinstance(out, Tensor) and (self.these is None or len(self.seen) in self.these)
        self.seen.append(out if wanted else None)
        return out


def figures(models: Models) -> list[Figure]:
    """All ratios, in the order in which they are printed."""
    m = models
    place = placed(m.eager, m.declared.spec, m.declared.weights)
    equal = copy.deepcopy(m.eager)
    plain: tuple[str, Run] = ("a plain forward", lambda: m.forward(m.eager))
    two: tuple[str, Run] = ("two plain forwards", m.twice)
    return [
        Figure("recording every site in memory", m.record, *plain, most=1.15),
        Figure("the same tensors held, and nothing else done", m.hold, *plain),
        Figure("the same, where the sites are is known", lambda: m.record(placement=place), *plain),
        Figure("recorded, saved and hashed", m.save, *plain, most=3.0),
        Figure("comparing two live models, every byte equal", lambda: m.compare(equal), *two, most=1.5),
        Figure("the same, apart by rounding (eager, sdpa)", lambda: m.compare(m.sdpa), *two, most=4.0),
        Figure("native forward, eager", lambda: m.own("eager"), "transformers, eager", plain[1], most=1.05),
        Figure(
            "native forward, sdpa", lambda: m.own("sdpa"), "transformers, sdpa", lambda: m.forward(m.sdpa), most=1.05
        ),
    ]


def table(done: Iterable[Figure]) -> Table:
    """The ratios as rows."""
    rows = list[tuple[str, ...]]()
    for f in done:
        columns = [(f"{f.ratio(of):.2f}", "{:.2f}–{:.2f}".format(*f.spread(of))) for of in ("wall", "cpu")]
        target = "" if f.most is None else f"≤ {f.most:g}"
        rows.append((f.what, f.against, *columns[0], *columns[1], target))
    heads = ("what", "against", "wall", "spread", "CPU", "spread", "target")
    return Table("Ratios of the least times, in turns", heads, tuple(rows))


def diagnosis(models: Models, plain: float) -> tuple[Table, twinlens.Report]:
    """What finding the demo's two faults costs; `plain`: CPU seconds of one forward."""
    clock, honest, kept = Clock(), Clock(), list[twinlens.Report]()

    def run() -> None:
        kept.append(models.compare(models.faulty))

    clock.time(run)
    honest.time(lambda: models.compare(models.sdpa))
    report = kept[-1]
    beyond = (clock.cpu[0] - honest.cpu[0]) / plain
    rows = (
        ("diagnosing, counted (report.diagnosis_cost)", f"{report.diagnosis_cost:.2f} forwards", "≤ 15"),
        ("replaying and diagnosing, counted (report.cost)", f"{report.cost:.2f} forwards", ""),
        ("the whole comparison, measured", f"{clock.cpu[0] / plain:.2f} forwards of CPU, {clock.wall[0]:.1f} s", ""),
        ("beyond a comparison that ends in rounding, measured", f"{beyond:.2f} forwards of CPU", ""),
    )
    title = f"Layer {SCALED}'s scale off by 1 %, row {ROW} of layer {HALVED}'s down projection halved"
    return Table(title, ("diagnosis", "cost", "target"), rows), report


def said(rounds: int) -> str:
    """On what this was measured."""
    return (
        f"SmolLM2-135M-Instruct, float32, {LENGTH} tokens; {conditions()}; {rounds} rounds. Spread: the least and the "
        "largest ratio of two runs that followed one another."
    )


def main() -> None:
    """Measure, print, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds instead of {ROUNDS}")
    parser.add_argument("--threads", type=int, help="threads of torch; 1 makes CPU time exact on a loaded machine")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables as Markdown")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rounds, console = QUICK if asked.quick else ROUNDS, Console(highlight=False, width=120)
    models = Models()
    done = figures(models)
    for figure in done:
        figure.measure(rounds)
        wall, cpu = figure.ratio("wall"), figure.ratio("cpu")
        console.print(f"{figure.what}: {wall:.2f} on the wall, {cpu:.2f} of CPU", style="dim")
    found, report = diagnosis(models, min(done[0].clocks[1].cpu))
    tables = (table(done), found)
    causes = "; ".join(f"`{c.parameter}` at {c.site}, layers {c.layers}, {c.status}" for c in report.causes) or "none"
    for t in tables:
        console.print(rendered(t))
    console.print(f"Named: {causes}\n{said(rounds)}", markup=False)
    if asked.write:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        named = [f"Named in that diagnosis: {causes}."]
        asked.write.write_text(page("What it costs", "make bench", said(rounds), tables, named), encoding="utf-8")


if __name__ == "__main__":
    main()
