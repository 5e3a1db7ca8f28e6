"""One layer, as rows that families share. A method returns rows; what differs is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from twinlens import sites
from twinlens.ops import (
    Activate,
    Add,
    Branch,
    Experts,
    Gate,
    Half,
    LatentKey,
    Mix,
    Normalize,
    NormWeight,
    Part,
    Project,
    Rotate,
    RouterLogits,
    RouterWeights,
    Scores,
    Select,
    SharedKey,
    Softmax,
    Span,
    WithShared,
)
from twinlens.spec import Shape, Step, Weight


@dataclass(frozen=True)
class Norm:
    """A norm as a model has it: what it computes, and the names of its weights below its own."""

    normalize: Normalize
    weight: NormWeight = field(default_factory=NormWeight)
    names: tuple[str, ...] = ("weight",)

    @classmethod
    def fused(cls, eps: float) -> Norm:
        """torch's layer norm, which rounds once, at its end."""
        weight = NormWeight(dtype=torch.float32, kernel="fused")
        return cls(Normalize(eps=eps, kind="layer", out=torch.float32), weight, ("weight", "bias"))

    @classmethod
    def wide(
        cls, eps: float, *, offset: float = 0.0, kind: str = "rms", out: torch.dtype | None = None
    ) -> Norm:  # fmt: skip
        """The product with the weight in float32 as well; stored in `out`, else in the weight's dtype."""
        normalize = Normalize(eps=eps, kind=kind, out=torch.float32)
        return cls(normalize, NormWeight(offset=offset, dtype=torch.float32, out=out))

    def rows(self, site: str, reads: str, name: str) -> Iterator[Step]:
        """`site.hook_normalized` and `site.hook_out`."""
        yield Step(f"{site}.hook_normalized", self.normalize, (reads,))
        weights = tuple(zip("wb", (Weight(f"{name}.{n}") for n in self.names), strict=False))
        yield Step(f"{site}.hook_out", self.weight, (f"{site}.hook_normalized",), weights)


PRE_NORMS = ("input_layernorm", None, "post_attention_layernorm", None)
"""What Llama and most of its kin call the norms before attention and MLP; there is none after them."""


@dataclass(frozen=True)
class Block:
    """A layer: its rows write sites of `blocks.LAYER`, and read weights whose names begin with `name`."""

    layer: int
    name: str
    shape: Shape

    def at(self, site: str) -> str:
        """A site of this block by its name in the block."""
        return sites.block(self.layer, site)

    @property
    def end(self) -> str:
        """The residual stream after this block."""
        return self.at("hook_resid_post")

    def start(self, *stream: str) -> Step:
        """The residual stream before this block: a sum where it is several sites."""
        return Step(self.at("hook_resid_pre"), Add(), stream)

    def norm(self, site: str, reads: str, norm: Norm, name: str) -> Iterator[Step]:
        """`SITE.hook_normalized` and `SITE.hook_out`."""
        return norm.rows(self.at(site), self.at(reads), f"{self.name}.{name}")

    def product(
        self, writes: str, reads: str, name: str, op: Project, *, bias: bool = False, transposed: bool = False
    ) -> Step:
        """A product with `name.weight`, and `name.bias` where there is one."""
        weights = [("W", Weight(f"{self.name}.{name}.weight", transposed))]
        if bias:
            weights.append(("b", Weight(f"{self.name}.{name}.bias")))
        return Step(self.at(writes), op, (self.at(reads),), tuple(weights))

    def in_sequence(
        self, stream: str, norm: Norm, attention: Iterable[Step], mlp: Iterable[Step], *,
        norms: tuple[str | None, str | None, str | None, str | None] = PRE_NORMS, factor: float = 1.0,
    ) -> Iterator[Step]:  # fmt: skip
        """Attention, then the MLP; `norms` are those before and after each of the two, `factor` is on both branches."""
        before, after, before_mlp, after_mlp = norms
        yield self.start(stream)
        yield from self.norm("ln1", "hook_resid_pre", norm, before) if before else ()
        yield from attention
        yield from self.norm("ln1_post", "attn.hook_out", norm, after) if after else ()
        yield from self.add_attention("ln1_post.hook_out" if after else "attn.hook_out", factor)
        yield from self.norm("ln2", "hook_resid_mid", norm, before_mlp) if before_mlp else ()
        yield from mlp
        yield from self.norm("ln2_post", "mlp.hook_out", norm, after_mlp) if after_mlp else ()
        yield from self.add_mlp("ln2_post.hook_out" if after_mlp else "mlp.hook_out", factor)

    # --- attention ------------------------------------------------------------------------------

    def heads(self, name: str, *, bias: bool = False, reads: str = "ln1.hook_out") -> Iterator[Step]:
        """Queries, keys and values by the products `name.q_proj`, `k_proj` and `v_proj`."""
        for part, heads in (("q", self.shape.heads), ("k", self.shape.kv_heads), ("v", self.shape.kv_heads)):
            yield self.product(f"attn.hook_{part}", reads, f"{name}.{part}_proj", Project(heads=heads), bias=bias)

    def fused_heads(
        self, name: str, part: Part, op: Project | None = None, *, bias: bool = False, transposed: bool = False
    ) -> Iterator[Step]:
        """The same by one product, of which each takes its part."""
        yield self.product("attn.hook_qkv", "ln1.hook_out", name, op or Project(), bias=bias, transposed=transposed)
        kv = self.shape.kv_heads if self.shape.kv_heads != self.shape.heads else 0
        for which in "qkv":
            op_of = part.replace(which=which, heads=self.shape.heads, kv_heads=kv)
            yield Step(self.at(f"attn.hook_{which}"), op_of, (self.at("attn.hook_qkv"),))

    def rotary_attention(
        self, name: str, rotate: Rotate | None, scores: Scores, *, bias: bool = False, out_bias: bool | None = None,
        head_norm: Norm | None = None, tables: str = "rotary", reads: str = "ln1.hook_out",
        softmax: Softmax | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """Separate products, norms of queries and keys where there are any, and the rotation, but where it is None."""
        yield from self.heads(name, bias=bias, reads=reads)
        q, k = "hook_q", "hook_k"
        if head_norm is not None:
            yield from self.head_norms(head_norm, name)
            q, k = "q_norm.hook_out", "k_norm.hook_out"
        if rotate is not None:
            yield from self.rotate(rotate, q=q, k=k, tables=tables)
            q, k = "hook_rot_q", "hook_rot_k"
        yield from self.attend(scores, q=q, k=k, softmax=softmax, sinks=f"{name}.sinks")
        yield self.output(f"{name}.o_proj", bias=bias if out_bias is None else out_bias)

    def latent_attention(
        self, name: str, rotate: Rotate, scores: Scores, norm: Norm, ranks: tuple[int | None, int], plain: int, *,
        bias: bool = False,
    ) -> Iterator[Step]:  # fmt: skip
        """Queries from a latent of `ranks[0]` (None: from the stream), keys and values from one of `ranks[1]`.

        What is rotated of a key is one for all heads and stands behind the latent; `plain` is the width of the rest.
        """
        heads, (of_q, of_kv) = Project(heads=self.shape.heads), ranks
        if of_q is None:
            yield self.product("attn.hook_q", "ln1.hook_out", f"{name}.q_proj", heads)
        else:
            yield self.product("attn.hook_q_latent", "ln1.hook_out", f"{name}.q_a_proj", Project(), bias=bias)
            yield from self.norm("attn.q_latent_norm", "attn.hook_q_latent", norm, f"{name}.q_a_layernorm")
            yield self.product("attn.hook_q", "attn.q_latent_norm.hook_out", f"{name}.q_b_proj", heads)
        yield self.product("attn.hook_kv_latent", "ln1.hook_out", f"{name}.kv_a_proj_with_mqa", Project(), bias=bias)
        yield Step(self.at("attn.hook_latent"), Span(0, of_kv), (self.at("attn.hook_kv_latent"),))
        yield from self.norm("attn.kv_latent_norm", "attn.hook_latent", norm, f"{name}.kv_a_layernorm")
        yield self.product("attn.hook_kv", "attn.kv_latent_norm.hook_out", f"{name}.kv_b_proj", heads)
        yield Step(self.at("attn.hook_k_shared"), SharedKey(of_kv), (self.at("attn.hook_kv_latent"),))
        yield self.turn("q", rotate.replace(at_end=True), "hook_q")
        yield self.turn("k_shared", rotate, "hook_k_shared")
        key = (self.at("attn.hook_kv"), self.at("attn.hook_rot_k_shared"))
        yield Step(self.at("attn.hook_rot_k"), LatentKey(plain), key)
        yield Step(self.at("attn.hook_v"), Span(plain, plain + (self.shape.value_width or 0)), key[:1])
        yield from self.attend(scores)
        yield self.output(f"{name}.o_proj", bias=bias)

    def head_norms(self, norm: Norm, name: str) -> Iterator[Step]:
        """`attn.q_norm` and `attn.k_norm`, with the weights `name.q_norm` and `name.k_norm`."""
        for part in "qk":
            yield from self.norm(f"attn.{part}_norm", f"attn.hook_{part}", norm, f"{name}.{part}_norm")

    def rotate(self, op: Rotate, *, q: str = "hook_q", k: str = "hook_k", tables: str = "rotary") -> Iterator[Step]:
        """`hook_rot_q` and `hook_rot_k`."""
        for part, reads in (("q", q), ("k", k)):
            yield self.turn(part, op, reads, tables)

    def turn(self, part: str, op: Rotate, reads: str, tables: str = "rotary") -> Step:
        """`hook_rot_PART`."""
        reads_all = (self.at(f"attn.{reads}"), f"{tables}.hook_cos", f"{tables}.hook_sin")
        return Step(self.at(f"attn.hook_rot_{part}"), op, reads_all)

    def attend(
        self, scores: Scores, *, softmax: Softmax | None = None, mix: Mix | None = None,
        q: str = "hook_rot_q", k: str = "hook_rot_k", sinks: str = "",
    ) -> Iterator[Step]:  # fmt: skip
        """From queries, keys and values to `hook_z`; `sinks` is the name of their weight, where there are any."""
        softmax = softmax or Softmax()
        beside = (("S", Weight(f"{self.name}.{sinks}")),) if softmax.sinks else ()
        at = self.at("attn")
        reads = (f"{at}.{q}", f"{at}.{k}", "mask", "slots")
        yield Step(f"{at}.hook_attn_scores", scores, reads)
        yield Step(f"{at}.hook_pattern", softmax, (f"{at}.hook_attn_scores",), beside)
        yield Step(f"{at}.hook_z", mix or Mix(), (f"{at}.hook_pattern", f"{at}.hook_v"))

    def output(self, name: str, op: Project | None = None, *, bias: bool = False, transposed: bool = False) -> Step:
        """What the heads read, by the output product."""
        op = (op or Project()).replace(from_heads=True)
        return self.product("attn.hook_out", "attn.hook_z", name, op, bias=bias, transposed=transposed)

    # --- MLP ------------------------------------------------------------------------------------

    def gated_mlp(
        self, name: str, act: str, *, bias: bool = False, fused: str | None = None, reads: str = "ln2.hook_out",
        under: str = "mlp",
    ) -> Iterator[Step]:  # fmt: skip
        """down(act(gate(x)) · up(x)), by `name.gate_proj`, `up_proj` and `down_proj`; or gate and up by one product."""
        if fused is None:
            yield self.product(f"{under}.hook_pre", reads, f"{name}.gate_proj", Project(), bias=bias)
            yield self.product(f"{under}.hook_pre_linear", reads, f"{name}.up_proj", Project(), bias=bias)
        else:
            yield self.product("mlp.hook_gate_up", reads, f"{name}.{fused}", Project(), bias=bias)
            for which, site in (("gate", "mlp.hook_pre"), ("up", "mlp.hook_pre_linear")):
                yield Step(self.at(site), Half(which), (self.at("mlp.hook_gate_up"),))
        both = (self.at(f"{under}.hook_pre"), self.at(f"{under}.hook_pre_linear"))
        yield Step(self.at(f"{under}.hook_post"), Gate(act, formula="kernel"), both)
        yield self.product(f"{under}.hook_out", f"{under}.hook_post", f"{name}.down_proj", Project(), bias=bias)

    def mlp(
        self, into: str, out: str, act: Activate, op: Project | None = None, *, bias: bool = True,
        transposed: bool = False, reads: str = "ln2.hook_out",
    ) -> Iterator[Step]:  # fmt: skip
        """out(act(into(x)))."""
        op = op or Project()
        yield self.product("mlp.hook_pre", reads, into, op, bias=bias, transposed=transposed)
        yield Step(self.at("mlp.hook_post"), act, (self.at("mlp.hook_pre"),))
        yield self.product("mlp.hook_out", "mlp.hook_post", out, op, bias=bias, transposed=transposed)

    def router(
        self, name: str, select: Select, weigh: RouterWeights, op: RouterLogits | None = None, *,
        bias: bool = False, correction: str | None = None, reads: str = "ln2.hook_out",
    ) -> Iterator[Step]:  # fmt: skip
        """`mlp.router`: a logit for each expert, the experts of a token, and their weights."""
        at = self.at("mlp.router")
        weights = [("W", Weight(f"{self.name}.{name}.weight"))]
        weights += [("b", Weight(f"{self.name}.{name}.bias"))] if bias else []
        yield Step(f"{at}.hook_logits", op or RouterLogits(), (self.at(reads),), tuple(weights))
        beside = () if correction is None else (("b", Weight(f"{self.name}.{name}.{correction}")),)
        yield Step(f"{at}.hook_indices", select, (f"{at}.hook_logits",), beside)
        yield Step(f"{at}.hook_weights", weigh, (f"{at}.hook_logits", f"{at}.hook_indices"), beside)

    def experts(
        self, name: str, op: Experts, *, bias: bool = False, transposed: bool = False, writes: str = "mlp.hook_out",
        reads: str = "ln2.hook_out",
    ) -> Step:  # fmt: skip
        """What the chosen experts give, by `name.gate_up_proj` and `name.down_proj`, a matrix for each expert."""
        under = f"{self.name}.{name}"
        weights = [("U", Weight(f"{under}.gate_up_proj", transposed)), ("V", Weight(f"{under}.down_proj", transposed))]
        if bias:
            weights += [("a", Weight(f"{under}.gate_up_proj_bias")), ("c", Weight(f"{under}.down_proj_bias"))]
        router = self.at("mlp.router")
        reads_all = (self.at(reads), f"{router}.hook_indices", f"{router}.hook_weights")
        return Step(self.at(writes), op, reads_all, tuple(weights))

    def with_shared(self) -> Step:
        """`mlp.hook_out`, of the experts that were chosen and of those that all tokens share."""
        return Step(
            self.at("mlp.hook_out"), WithShared(), (self.at("mlp.experts.hook_out"), self.at("mlp.shared.hook_out"))
        )

    # --- the residual stream --------------------------------------------------------------------

    def add_attention(self, reads: str = "attn.hook_out", factor: float = 1.0) -> Iterator[Step]:
        """`hook_attn_out` and `hook_resid_mid`."""
        return self._add("hook_attn_out", reads, "hook_resid_pre", "hook_resid_mid", factor)

    def add_mlp(self, reads: str = "mlp.hook_out", factor: float = 1.0) -> Iterator[Step]:
        """`hook_mlp_out` and `hook_resid_post`."""
        return self._add("hook_mlp_out", reads, "hook_resid_mid", "hook_resid_post", factor)

    def _add(self, branch: str, reads: str, stream: str, after: str, factor: float) -> Iterator[Step]:
        yield Step(self.at(branch), Branch(factor), (self.at(reads),))
        yield Step(self.at(after), Add(), (self.at(stream), self.at(branch)))

    def add_both(self, association: str) -> Iterator[Step]:
        """`hook_attn_out`, `hook_mlp_out` and `hook_resid_post`, where both read the stream before this block."""
        for part in ("attn", "mlp"):
            yield Step(self.at(f"hook_{part}_out"), Branch(), (self.at(f"{part}.hook_out"),))
        reads = tuple(self.at(site) for site in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out"))
        yield Step(self.end, Add(association=association), reads)
