"""One case: recorded once, compared, mended stage by stage, compared again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from twinlens.comparison import Report
from twinlens.comparison import run as compared
from twinlens.environments.make import make
from twinlens.environments.run import run_recorder
from twinlens.first_case.measure import Apart, apart
from twinlens.parity.rounding import equal
from twinlens.recording import Recording
from twinlens.repair import wanted
from twinlens.repair.instructions import Instruction, read, to_json
from twinlens.sources.parse import SourceString, parse
from twinlens.spec import Spec
from twinlens.subjects import Declaration, Recorded, Say, declared_at, subject
from twinlens.text import format_spec

HF = "transformers==4.43.2"
TL = "transformer-lens==2.3.0,transformers==4.43.2"


@dataclass(frozen=True)
class Stage:
    """What was mended, and how far apart the two were then."""

    title: str
    apart: Apart
    recording: Recording


@dataclass(frozen=True)
class Case:
    """All that was measured against one of the reference's kernels."""

    attention: str
    reference: Recording
    candidate: Recording
    report: Report
    stages: list[Stage]
    after: Report
    taken_back: bool
    """Whether the candidate gives the bits that it was shipped with, once all is taken back."""

    @property
    def identical(self) -> bool:
        """Equal bit for bit at every site after the fix."""
        return self.after.verdict == "identical" and self.taken_back


@dataclass(frozen=True)
class Bench:
    """The checkpoint and the prompt on which everything is run, and a place for recordings."""

    checkpoint: Path
    tokens: Tensor
    folder: Path
    say: Say

    def declared(self, attention: str) -> Declaration:
        """What the checkpoint's config says."""
        return declared_at(str(self.checkpoint), attn=attention)

    def record(self, source: str, attention: str = "eager") -> Recording:
        """One run of a source in its environment."""
        side = subject(source)
        made = side.record(self.declared(attention), self.tokens, None, self.say)
        kept = self.folder / f"recording-{len(list(self.folder.iterdir()))}"
        made.save(kept)
        return Recording.load(kept)


Wanted = Callable[[Instruction], bool]

SCALE_AND_LAYERS, CAP_OFF = "scale, layers", "scale, layers, cap off"
NORM = "and the norm as x · rsqrt(mean + eps)"


def steps(report: Report) -> list[tuple[str, Wanted]]:
    """What is mended at each stage: first apart, then one after the other, then everything."""
    cap = any(c.parameter == "attn.softcap" for c in report.causes)
    kernel = any(o.parameter.endswith("kernel") for o in report.orders)
    found: list[tuple[str, Wanted]] = [
        ("nothing", lambda i: False),
        ("scale", _scale),
        ("local and global layers only", _layers),
        (SCALE_AND_LAYERS, _any(_scale, _layers)),
    ]
    now = _any(_scale, _layers)
    if cap:
        now = _any(now, lambda i: i.parameter == "attn.softcap")
        found.append((CAP_OFF, now))
    now = _any(now, _order("rotary."))
    found.append(("and rotary tables", now))
    now = _any(now, lambda i: i.name == "division")
    found.append((NORM, now))
    if kernel:
        now = _any(now, lambda i: i.name in ("kernel", "product"))
        found.append(("and the sdpa kernel, one output product", now))
    return [*found, ("everything that the report names", lambda i: True)]


def _scale(i: Instruction) -> bool:
    return i.parameter == "attn.scale"


def _layers(i: Instruction) -> bool:
    return i.parameter == "attn.window"


def _order(room: str) -> Wanted:
    return lambda i: i.parameter == "order" and i.sites[0].startswith(room)


def _any(*these: Wanted) -> Wanted:
    return lambda i: any(wants(i) for wants in these)


def run(bench: Bench, candidate: SourceString, tl: Recording, attention: str) -> Case:
    """Compare with one of the reference's kernels, mend in stages, compare again."""
    source = f"hf:{bench.checkpoint}?attn={attention}@{HF}"
    reference, declared = bench.record(source, attention), bench.declared(attention)
    sides = Recorded(reference, source), Recorded(tl, str(candidate))
    report = compared(sides, declared, bench.tokens, None)
    titles = steps(report)
    made = _mended(bench, candidate, report, [wants for _, wants in titles])
    spec = declared.spec
    stages = [
        Stage(title, apart(spec, reference.sites, recording.sites, reference.mask), recording)
        for (title, _), recording in zip(titles, made, strict=False)
    ]
    last = Recorded(stages[-1].recording, str(candidate))
    after = compared((sides[0], last), declared, bench.tokens, None)
    shipped = [apart(spec, tl.sites, recording.sites, tl.mask) for recording in (made[0], made[-1])]
    return Case(attention, reference, tl, report, stages, after, not any(a.unequal for a in shipped))


def _mended(bench: Bench, candidate: SourceString, report: Report, stages: Sequence[Wanted]) -> list[Recording]:
    """A recording after each stage, and a last one with everything taken back."""
    assert report.judge is not None
    spec, these = report.judge.computed.spec, wanted(report, order=True)
    chosen = [[i for i in these if wants(i)] for wants in (*stages, lambda i: False)]
    python = make(candidate.requirements, bench.say)
    out = Path(tempfile.mkdtemp(prefix="stages-", dir=bench.folder))
    save_file({"tokens": bench.tokens.to(torch.int64)}, out / "tokens.safetensors")
    job = {
        "source": str(SourceString(candidate.kind, candidate.path, candidate.options)),
        "tokens": str(out / "tokens.safetensors"),
        "stages": [{"spec": format_spec(target(spec, these, stage)), "mend": to_json(stage)} for stage in chosen],
        "out": str(out),
    }
    run_recorder(python, job, bench.say, module="twinlens.first_case.stages")
    return [Recording.load(out / str(number)) for number in range(len(chosen))]


def target(spec: Spec, these: list[Instruction], chosen: list[Instruction]) -> Spec:
    """What the candidate computes once `chosen` is mended: the rest is as it has it.

    Judged by the reference alone, a handle that mends one of two faults in a step may look worse.
    """
    for i in these:
        if i not in chosen:
            spec = spec.set_fields(i.sites, i.name, read(i.candidate))
    return spec


def tried(case: Case, field: str, value: str) -> tuple[int, int]:
    """Of the score steps, how many give other bits where one field is replayed otherwise."""
    judge = case.after.judge
    assert judge is not None
    sites, changed, total = judge.reference.sites, 0, 0
    for step in judge.computed.spec.steps:
        if step.writes.endswith("hook_attn_scores") and all(r in sites for r in step.reads):
            total += 1
            reads = [sites[name] for name in step.reads]
            plain, other = step.op(*reads), step.op.replace(**{field: value})(*reads)
            changed += not equal(step.writes, plain, other, judge.mask)
    return changed, total


def candidate_of(checkpoint: Path, requirements: str = TL) -> SourceString:
    """TransformerLens as released, on this checkpoint."""
    return parse(f"tl:{checkpoint}@{requirements}").absolute()
