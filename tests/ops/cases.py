"""Every operation with random fields and tensors of the right shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.drawn import Case, Drawer, between
from twinlens import ops
from twinlens.ops import REGISTRY

Make = Callable[[Drawer, Callable[[st.SearchStrategy[Any]], Any]], Case]


def _scores(t: Drawer, draw: Any) -> Case:
    window, chunk, lowest = draw(st.sampled_from([None, 1, 3])), draw(st.sampled_from([None, 2])), draw(between(-9, -1))
    op = ops.Scores(draw(between(1, 20)), draw(between(3, 60)), window, chunk, masked=lowest)
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    q, k = t.normal("b p h e"), t.normal("b s k e")
    return Case(op, (("b p h e", q), ("b s k e", k), ("b s", mask), ("p", torch.arange(5))))


def _softmax(t: Drawer, draw: Any) -> Case:
    scores = t.normal("b h p s").masked_fill(~torch.ones(5, 5).tril().bool(), -3.4028e38)
    return Case(ops.Softmax(draw(st.sampled_from([torch.float32, None]))), (("b h p s", scores),))


def _mix(t: Drawer, draw: Any) -> Case:
    pattern = t.normal("b h p s").softmax(-1)
    return Case(ops.Mix(), (("b h p s", pattern), ("b s k e", t.normal("b s k e"))))


def _normalize(t: Drawer, draw: Any) -> Case:
    axes = draw(st.sampled_from(["b p d", "b p h e"]))
    return Case(ops.Normalize(eps=draw(between(1e-3, 1))), ((axes, t.normal(axes)),))


def _norm_weight(t: Drawer, draw: Any) -> Case:
    weights = {"w": t.normal("d"), "b": t.normal("d")}
    return Case(ops.NormWeight(draw(between(0.1, 2))), (("b p d", t.normal("b p d")),), weights)


def _project(t: Drawer, draw: Any) -> Case:
    how = draw(st.sampled_from(["plain", "out", "in"]))
    bias = {"b": t.normal("d")} if draw(st.booleans()) else {}
    if how == "in":
        weight = t.normal("d d").repeat(1, 2)
        x = t.normal("b p h e")
        return Case(ops.Project(from_heads=True), (("b p h e", x),), {"W": weight} | bias)
    op = ops.Project(heads=4 if how == "out" else 0)
    return Case(op, (("b p d", t.normal("b p d")),), {"W": t.normal("d d")} | bias)


def _part(t: Drawer, draw: Any) -> Case:
    op = ops.Part(draw(st.sampled_from("qkv")), *draw(st.sampled_from([(4, 0), (4, 2), (2, 1)])))
    return Case(op, (("b p f", t.normal("b p f")),))


def _unembed(t: Drawer, draw: Any) -> Case:
    op = ops.Unembed(softcap=draw(between(3, 60)), factor=draw(between(0.3, 3)))
    weights = {"W": t.normal("v d"), "b": t.normal("v")}
    return Case(op, (("b p d", t.normal("b p d")),), weights)


def _embed(t: Drawer, draw: Any) -> Case:
    tokens = t.whole("b p", 11)
    return Case(ops.Embed(draw(between(0.3, 60))), (("b p", tokens),), {"W": t.normal("v d")})


def _position_embed(t: Drawer, draw: Any) -> Case:
    op = ops.PositionEmbed(draw(st.sampled_from([0, 2])))
    return Case(op, (("b p", t.whole("b p", 9)),), {"W": t.normal("v d")})


def _branch(t: Drawer, draw: Any) -> Case:
    return Case(ops.Branch(draw(between(0.1, 3))), (("b p d", t.normal("b p d")),))


def _add(t: Drawer, draw: Any) -> Case:
    op = ops.Add(draw(between(0.1, 3)))
    return Case(op, (("b p d", t.normal("b p d")), ("b p d", t.normal("b p d"))))


def _activate(t: Drawer, draw: Any) -> Case:
    return Case(ops.Activate("silu"), (("b p m", t.normal("b p m")),))


def _gate(t: Drawer, draw: Any) -> Case:
    return Case(ops.Gate("silu"), (("b p m", t.normal("b p m")), ("b p m", t.normal("b p m"))))


def _rotary_table(t: Drawer, draw: Any) -> Case:
    op = ops.RotaryTable(
        wave=draw(st.sampled_from(["cos", "sin"])),
        width=12,
        base=draw(between(50, 1e5)),
        factor=draw(between(1.5, 8)),
        low_freq_factor=draw(between(0.8, 2)),
        high_freq_factor=draw(between(3, 5)),
        beta_fast=draw(between(3, 5)),
        beta_slow=draw(between(0.8, 2)),
        short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
        long_factor=(1.2, 1.5, 2.0, 3.0, 5.0, 8.0),
        original_max_position=draw(between(20, 90)),
        attention_factor=draw(between(0.5, 2)),
    )
    positions = t.whole("b p", 100)
    assume(not _at_a_kink(op, max(positions.flatten().tolist()) + 1))
    return Case(op, (("b p", positions), ("b p", positions)))


def _at_a_kink(op: Any, length: int) -> bool:
    """Whether it stands where two pieces of a scaling meet: there is no derivative there, and none to hold it to."""
    waves = [2 * math.pi * op.base ** (2 * i / op.width) for i in range(op.width // 2)]
    turns = [op.original_max_position / wave for wave in waves]
    llama3 = any(abs(turn / at - 1) < 0.01 for turn in turns for at in (op.low_freq_factor, op.high_freq_factor))
    ends = [
        op.width * math.log(op.original_max_position / (beta * 2 * math.pi)) / (2 * math.log(op.base))
        for beta in (op.beta_fast, op.beta_slow)
    ]
    yarn = any(abs(end - round(end)) < 0.01 for end in ends) or abs(ends[0] - ends[1]) < 0.01
    return llama3 or yarn or abs(length - op.original_max_position) < 1


def _half(t: Drawer, draw: Any) -> Case:
    return Case(ops.Half(draw(st.sampled_from(["gate", "up"]))), (("b p f", t.normal("b p f")),))


def _rotate(t: Drawer, draw: Any) -> Case:
    half = t.normal("b p e")[..., :3]
    tables = [torch.cat((x, x), -1) for x in (half.cos(), half.sin())]
    op = ops.Rotate(draw(st.sampled_from([4, 6])))
    cut = [torch.cat((x[..., : op.width // 2],) * 2, -1) for x in tables]
    return Case(op, (("b p h e", t.normal("b p h e")), ("b p r", cut[0]), ("b p r", cut[1])))


def _router_logits(t: Drawer, draw: Any) -> Case:
    weights = {"W": t.normal("x d"), "b": t.normal("x")}
    return Case(ops.RouterLogits(), (("b p d", t.normal("b p d")),), weights)


def _select(t: Drawer, draw: Any) -> Case:
    axes, groups = draw(st.sampled_from([("b p x", 1), ("b p e", 3)]))
    op = ops.Select(draw(st.sampled_from([1, 3])), groups=groups, top_groups=2)
    return Case(op, ((axes, t.normal(axes)),), {"b": t.normal(axes[-1])})


def _router_weights(t: Drawer, draw: Any) -> Case:
    logits = t.normal("b p x")
    chosen = logits.topk(2).indices
    op = ops.RouterWeights(scale=draw(between(0.3, 3)), dtype=None)
    return Case(op, (("b p x", logits), ("b p t", chosen)), {"b": t.normal("x").abs()})


def _between_entries(sizes: Tensor) -> float:
    """A cut where the entries leave the widest gap, about the middle: at an entry there is no derivative."""
    middle = sizes.sort().values[int(0.4 * len(sizes)) : int(0.7 * len(sizes))]
    at = int(middle.diff().argmax())
    return float(middle[at] + middle[at + 1]) / 2


def _experts(t: Drawer, draw: Any) -> Case:
    x, weights = t.normal("b p D"), {"U": t.normal("x F D"), "V": t.normal("x D M"), "a": t.normal("x F")}
    on = t.normal("b p t")
    read = torch.cat((torch.ones_like(on[..., :1]), on), dim=-1)[..., None] * x[:, :, None]
    first = torch.einsum("bptd,xfd->bptxf", read, weights["U"]) + weights["a"]
    limit = _between_entries(first.abs().flatten())
    op = ops.Experts(slope=draw(between(1.1, 2)), shift=draw(between(0.3, 1)), limit=limit)
    reads = (("b p D", x), ("b p t", t.normal("b p x").topk(2).indices), ("b p t", on))
    return Case(op, reads, weights | {"c": t.normal("x D")})


def _with_shared(t: Drawer, draw: Any) -> Case:
    op = ops.WithShared(draw(between(0.1, 3)))
    return Case(op, (("b p d", t.normal("b p d")), ("b p d", t.normal("b p d"))))


def _latent_key(t: Drawer, draw: Any) -> Case:
    return Case(ops.LatentKey(6), (("b p k y", t.normal("b p k y")), ("b p j z", t.normal("b p j z"))))


def _append(t: Drawer, draw: Any) -> Case:
    return Case(ops.Append(), (("b u k e", t.normal("b u k e")), ("b p k e", t.normal("b p k e"))))


def _chosen_log_prob(t: Drawer, draw: Any) -> Case:
    return Case(ops.ChosenLogProb(), (("b p v", t.normal("b p v")), ("b p", t.whole("b p", 11))))


def _top_log_probs(t: Drawer, draw: Any) -> Case:
    return Case(ops.TopLogProbs(), (("b p v", t.normal("b p v")), ("b p t", t.whole("b p t", 11) - 1)))


def _scaled(t: Drawer, draw: Any) -> Case:
    along = draw(st.sampled_from([None, 2, 3]))
    x = t.normal("b p h e")
    factors = tuple(draw(between(0.1, 3)) for _ in range(1 if along is None else x.shape[along]))
    return Case(ops.Scaled(factors, along or 0), (("b p h e", x),))


def _taken(t: Drawer, draw: Any) -> Case:
    x = t.normal("b p h e")
    axis = draw(st.sampled_from([1, 2]))
    return Case(ops.Taken(tuple(draw(st.permutations(range(x.shape[axis])))), axis), (("b p h e", x),))


MAKE: dict[str, Make] = {
    "Activate": _activate,
    "Add": _add,
    "Append": _append,
    "Branch": _branch,
    "ChosenLogProb": _chosen_log_prob,
    "Clipped": lambda t, draw: Case(ops.Clipped(draw(between(0.1, 3))), (("b p d", t.normal("b p d")),)),
    "Embed": _embed,
    "Experts": _experts,
    "Gate": _gate,
    "Half": _half,
    "LatentKey": _latent_key,
    "Mix": _mix,
    "NormWeight": _norm_weight,
    "Normalize": _normalize,
    "Part": _part,
    "PositionEmbed": _position_embed,
    "Project": _project,
    "RotaryTable": _rotary_table,
    "Rotate": _rotate,
    "Rounded": lambda t, draw: Case(ops.Rounded("bfloat16"), (("b p d", t.normal("b p d")),)),
    "RouterLogits": _router_logits,
    "RouterWeights": _router_weights,
    "Scaled": _scaled,
    "Scores": _scores,
    "Select": _select,
    "SharedKey": lambda t, draw: Case(ops.SharedKey(5), (("b p n", t.normal("b p n")),)),
    "Softmax": _softmax,
    "Taken": _taken,
    "TopLogProbs": _top_log_probs,
    "Span": lambda t, draw: Case(ops.Span(2, 7), (("b p n", t.normal("b p n")),)),
    "Unembed": _unembed,
    "WithShared": _with_shared,
}
OURS = sorted(
    name for name, op in REGISTRY.items() if op.__module__.startswith("twinlens.") and not name.startswith("_")
)


@st.composite
def cases(draw: Any, name: str) -> Case:
    seed, size = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.1, 1.0, 5.0]))
    return MAKE[name](Drawer(seed, size), draw)
