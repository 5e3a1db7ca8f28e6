"""What the two branches of a layer read, and to what they are added."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from twinlens.ops import Add, NormWeight, WithShared
from twinlens.parity.rebuilt import AGAIN, Otherwise
from twinlens.sites import axes, block, split
from twinlens.spec import Step, needed


def in_sequence(rows: Mapping[str, Step], layer: int) -> Iterator[Otherwise]:
    """Of two branches that are added to the stream, the second reads the stream with the first one added."""
    for end in rows.values():
        stream, *branches = end.reads
        if isinstance(end.op, Add) and len(branches) == 2 and all(b in rows for b in branches):
            mid = Step(f"{stream}{AGAIN}", Add(), (stream, branches[0]))
            made = tuple(_behind(rows, branches[1], branches[0], {stream: mid.writes}))
            if made:
                yield Otherwise(
                    (mid, *made), "block.parallel", block(layer, "hook_resid_mid"), "parallel", "sequential",
                    "the second branch reads the stream with the first one added",
                )  # fmt: skip


def overwritten(rows: Mapping[str, Step], layer: int) -> Iterator[Otherwise]:
    """Experts that all tokens share read what the chosen ones give: one tensor was written over."""
    for end in rows.values():
        if isinstance(end.op, WithShared) and all(r in rows for r in end.reads):
            chosen, shared = end.reads
            above, branch = leading_to(rows, chosen), leading_to(rows, shared)
            given = [r for s in reversed(branch) if s not in above for r in rows[s].reads if r in above]
            if given:
                yield Otherwise(
                    tuple(_behind(rows, shared, chosen, {given[0]: chosen})), "experts.shared",
                    block(layer, "hook_mlp_out"), "what the chosen read", "what the chosen give",
                    "the shared experts read what the chosen ones give",
                )  # fmt: skip


def _behind(rows: Mapping[str, Step], branch: str, before: str, moved: dict[str, str]) -> Iterator[Step]:
    """The rows of a branch that read what is given to both, reading it as it is after the other branch; what is made of
    that for both, a norm, is made once more.
    """
    first = set(leading_to(rows, before))
    for site in leading_to(rows, branch):
        step = rows[site]
        if site in first:
            if any(r in moved for r in step.reads):
                moved[site] = f"{site}{AGAIN}"
                yield dataclasses.replace(step, writes=moved[site], reads=with_reads(step.reads, moved))
        elif any(r in moved for r in step.reads):
            yield dataclasses.replace(step, reads=with_reads(step.reads, moved))


def leading_to(rows: Mapping[str, Step], site: str) -> list[str]:
    """A site of the layer and those that it is computed from, in their order."""
    return [step.writes for step in needed(rows.values(), site)]


def with_reads(reads: Iterable[str], moved: Mapping[str, str]) -> tuple[str, ...]:
    """Reads, of which some are moved to another site."""
    return tuple(moved.get(r, r) for r in reads)


def streams(rows: Mapping[str, Step]) -> Iterator[Otherwise]:
    """A branch is added to the stream as it is normed (BLOOM's `apply_residual_connection_post_layernorm`), to the
    stream before the other branch, or to nothing.
    """
    sums = [s for s in rows.values() if isinstance(s.op, Add) and len(s.reads) > 1]
    for end in sums:
        stream, *branches = end.reads
        for normalize, weight in norms(rows):
            if normalize.reads[0] == stream and axes(weight.writes) == axes(stream):
                yield Otherwise(
                    (dataclasses.replace(end, reads=(weight.writes, *branches)),), "norm.order", normalize.writes,
                    "on the branch", "on the stream", f"{split(end.writes)[1]} takes the stream as it is normed",
                )  # fmt: skip
        others = [s.reads[0] for s in sums if s.reads[0] != stream and s.writes != end.writes]
        for other in dict.fromkeys([r for r in others if r not in rows or _is_before(rows, r, stream)]):
            yield _stream(end, (other, *branches), split(other)[1], f"the stream is that of {split(other)[1]}")
        yield _stream(end, tuple(branches), None, "the stream is not added")


def _stream(end: Step, reads: tuple[str, ...], value: str | None, words: str) -> Otherwise:
    was = split(end.reads[0])[1]
    row = dataclasses.replace(end, reads=reads)
    return Otherwise((row,), "residual.stream", end.writes, was, value, f"{split(end.writes)[1]}: {words}")


def _is_before(rows: Mapping[str, Step], site: str, other: str) -> bool:
    return other in rows and site in leading_to(rows, other)


def norms(rows: Mapping[str, Step]) -> list[tuple[Step, Step]]:
    """The two rows of each norm."""
    ends = [s for s in rows.values() if isinstance(s.op, NormWeight) and s.reads[0] in rows]
    return [(rows[s.reads[0]], s) for s in ends]
