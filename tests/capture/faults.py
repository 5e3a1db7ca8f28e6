"""Candidates with known faults: transformers models changed by hand, and what each site then holds.

A fault is planted in the module's own code or weights; the truth is the declaration with the same fault,
run by our operations, and it must give the same logits before it is used to judge a placement.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.families import declare
from twinlens.museum.tiny import FAMILIES, Tensors
from twinlens.sites import split
from twinlens.spec import Spec, Step


@dataclass
class Candidate:
    """A module, the declaration and weights it is held against, and what it really computes."""

    name: str
    module: nn.Module
    spec: Spec
    weights: Tensors
    truth: Spec
    truth_weights: Tensors
    absent: frozenset[str] = frozenset()
    """Sites, by their name within a block, that the candidate does not have; placing one is wrong."""
    hidden: frozenset[str] = frozenset()
    """Sites that its kernels hide."""


@dataclass
class Planted:
    """A fault: `plant` changes the module, `declare` the truth."""

    name: str
    family: str
    plant: Callable[[nn.Module], None]
    tell: Callable[[Spec, Tensors], Spec]
    absent: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    attn: str = "eager"


def build(fault: Planted, dtype: torch.dtype = torch.float32) -> Candidate:
    model = FAMILIES[fault.family](attn=fault.attn, dtype=dtype, **fault.config)
    spec = declare(model.config.to_dict(), dtype=dtype, attention=fault.attn)
    weights = Tensors.of(model)
    truth_weights = Tensors(weights)
    module = copy.deepcopy(model)
    with torch.no_grad():
        fault.plant(module)
    truth = fault.tell(spec, truth_weights)
    return Candidate(fault.name, module, spec, weights, truth, truth_weights, frozenset(fault.absent), spec.hidden)


# ----------------------------------------------------------------------------------- how to plant


def blocks(module: nn.Module) -> Any:
    return module.transformer.h if hasattr(module, "transformer") else module.model.layers


def norms(module: nn.Module) -> Iterator[nn.Module]:
    for m in module.modules():
        if type(m).__name__.endswith("RMSNorm"):
            yield m


def method(find: Callable[[nn.Module], Any], forward: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """Gives every module that `find` gives another forward."""

    def plant(module: nn.Module) -> None:
        for m in find(module):
            m.forward = MethodType(forward, m)

    return plant


def set_everywhere(rest: str, **changes: Any) -> Callable[[Spec, Tensors], Spec]:
    """The truth with fields changed at this site of every block."""

    def tell(spec: Spec, weights: Tensors) -> Spec:
        for name, value in changes.items():
            spec = spec.set_fields([s for s in spec.sites if split(s)[1] == rest], name, value)
        return spec

    return tell


def set_norms(**changes: Any) -> Callable[[Spec, Tensors], Spec]:
    def tell(spec: Spec, weights: Tensors) -> Spec:
        for name, value in changes.items():
            at = [s.writes for s in spec.steps if type(s.op).__name__ == "Normalize"]
            spec = spec.set_fields(at, name, value)
        return spec

    return tell


def same(spec: Spec, weights: Tensors) -> Spec:
    return spec


def both(*parts: Any) -> Callable[..., Any]:
    """Several faults at once."""

    def do(first: Any, *rest: Any) -> Any:
        for part in parts:
            first = part(first, *rest) if rest else (part(first), first)[1]
        return first

    return do


def rewired(site: str, reads: tuple[str, ...]) -> Callable[[Spec, Tensors], Spec]:
    """In every block the step that writes `site` reads others."""

    def tell(spec: Spec, weights: Tensors) -> Spec:
        steps: list[Step] = []
        for step in spec.steps:
            layer, rest = split(step.writes)
            if rest == site:
                step = replace(
                    step,
                    reads=tuple(
                        r if layer is None or ("." in r and r.startswith("ln_f")) else f"blocks.{layer}.{r}"
                        for r in reads
                    ),
                )
            steps.append(step)
        return replace(spec, steps=tuple(steps))

    return tell


# --------------------------------------------------------------------------------- other attention


def attention(
    scale: Callable[[float], float] = lambda s: s, *, cap: Any = "own", heads: str = "repeat", causal: bool = True,
    style: str = "exp", dtype: torch.dtype | None = None, window: bool = True,
) -> Callable[..., Any]:  # fmt: skip
    """An attention of their own, for transformers' registry: einsum, exp and sum, or softmax."""

    def forward(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **kw: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        if heads == "repeat":
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        else:
            k, v = k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)
        s = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale(scaling)
        limit = kw.get("softcap") if cap == "own" else cap
        if limit is not None:
            s = limit * torch.tanh(s / limit)
        if causal:
            if window and mask is not None:
                see = mask > torch.finfo(mask.dtype).min / 2
            else:
                p = q.shape[2]
                see = torch.ones(p, p, dtype=torch.bool).tril()
            s = torch.where(see, s, float("-inf")) if style == "where" else s.masked_fill(~see, -1e9)
        if dtype is not None:
            pattern = torch.softmax(s.to(dtype), -1).to(s.dtype)
        elif style == "softmax":
            pattern = torch.softmax(s.float(), -1).to(s.dtype)
        else:
            e = torch.exp(s - s.amax(-1, keepdim=True))
            pattern = e / e.sum(-1, keepdim=True)
        return torch.einsum("bhqk,bhkd->bqhd", pattern, v), pattern

    return forward


def with_attention(**how: Any) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = f"planted_{len(ALL_ATTENTION_FUNCTIONS)}_{id(module)}"
        ALL_ATTENTION_FUNCTIONS.register(name, attention(**how))
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

        ALL_MASK_ATTENTION_FUNCTIONS.register(name, eager_mask)
        module.config._attn_implementation = name

    return plant


def scaling(factor: float, layers: Any = slice(None)) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        for block in list(blocks(module))[layers]:
            block.self_attn.scaling = factor

    return plant


def activation(act: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        for block in blocks(module):
            name = "act_fn" if hasattr(block.mlp, "act_fn") else "act"
            delattr(block.mlp, name)
            setattr(block.mlp, name, act)

    return plant


def up_is_gate(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


def edit(
    name: str, change: Callable[[Tensor], Tensor]
) -> tuple[Callable[[nn.Module], None], Callable[[Spec, Tensors], Spec]]:
    """Changes a weight in the module and in the truth."""

    def plant(module: nn.Module) -> None:
        p = dict(module.named_parameters())[name]
        p.copy_(change(p.clone()))

    def tell(spec: Spec, weights: Tensors) -> Spec:
        weights[name] = change(weights[name].clone())
        return spec

    return plant, tell


def rows_halved(rows: list[int]) -> Callable[[Tensor], Tensor]:
    def change(w: Tensor) -> Tensor:
        w[rows] *= 0.5
        return w

    return change


def noise(w: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(9)
    return (torch.randn(w.shape, generator=draw) * w.float().std()).to(w.dtype)


def exchange(one: int, other: int) -> tuple[Callable[[nn.Module], None], Callable[[Spec, Tensors], Spec]]:
    def plant(module: nn.Module) -> None:
        layers = blocks(module)
        a, b = layers[one].state_dict(), layers[other].state_dict()
        a, b = ({k: v.clone() for k, v in s.items()} for s in (a, b))
        layers[one].load_state_dict(b)
        layers[other].load_state_dict(a)

    def tell(spec: Spec, weights: Tensors) -> Spec:
        old = dict(weights)
        for name in old:
            for x, y in ((one, other), (other, one)):
                if f".{x}." in name:
                    weights[name] = old[name.replace(f".{x}.", f".{y}.")]
        return spec

    return plant, tell


def rms(
    *,
    eps: float | None = None,
    offset: float = 0.0,
    mean: bool = False,
    dtype: torch.dtype = torch.float32,
    outside: bool = False,
) -> Callable[..., Tensor]:
    """Another norm for Llama or Gemma."""

    def forward(self: Any, x: Tensor) -> Tensor:
        gemma = "Gemma" in type(self).__name__
        h = x.to(dtype)
        if mean:
            h = h - h.mean(-1, keepdim=True)
        e = eps if eps is not None else (self.eps if gemma else self.variance_epsilon)
        size = h.square().mean(-1, keepdim=True)
        h = h / (size.sqrt() + e) if outside else h * torch.rsqrt(size + e)
        if gemma:
            return (h.float() * (offset + self.weight.float())).type_as(x)
        w = self.weight if offset == 0.0 else offset + self.weight
        return w * h.to(x.dtype)

    return forward


def rotary_base(base: float) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        r = module.model.rotary_emb
        n = r.inv_freq.numel() * 2
        r.inv_freq = 1.0 / (base ** (torch.arange(0, n, 2).float() / n))

    return plant


def interleaved_rotary(module: nn.Module) -> None:
    """Pairs 2i, 2i+1, as GPT-J, in this module's attention only."""
    for block in blocks(module):
        block.self_attn.forward = MethodType(_llama_attention(rotate_interleaved), block.self_attn)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1] // 2
    c, s = (t[..., :half].repeat_interleave(2, -1).unsqueeze(1) for t in (cos, sin))
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    return x * c + turned * s


def _llama_attention(rotate: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any = None, **kw: Any
    ) -> Any:
        b, p, _ = hidden_states.shape
        q, k, v = (
            proj(hidden_states).view(b, p, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(t, *position_embeddings) for t in (q, k))
        z, w = attention(style="softmax", cap=None)(self, q, k, v, attention_mask, self.scaling)
        return self.o_proj(z.reshape(b, p, -1)), w

    return forward


def residual_halved(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **kw: Any
) -> Tensor:
    x = hidden_states
    a, _ = self.self_attn(
        self.input_layernorm(x), position_embeddings=position_embeddings, attention_mask=attention_mask
    )
    x = x + a * 0.5
    return x + self.mlp(self.post_attention_layernorm(x)) * 0.5


def parallel(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **kw: Any
) -> Tensor:
    x = hidden_states
    a, _ = self.self_attn(
        self.input_layernorm(x), position_embeddings=position_embeddings, attention_mask=attention_mask
    )
    return x + a + self.mlp(self.post_attention_layernorm(x))


def gelu_erf(x: Tensor) -> Tensor:
    return F.gelu(x)


def no_embed_factor(module: nn.Module) -> None:
    embed = module.model.embed_tokens
    if hasattr(embed, "embed_scale"):
        embed.embed_scale = torch.tensor(1.0)
    module.config.hidden_size = 1  # older code multiplies by its root


def without(path: str) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        for block in (
            blocks(module)
            if path.startswith("block.")
            else [module.model if hasattr(module, "model") else module.transformer]
        ):
            setattr(block, path.removeprefix("block."), nn.Identity())

    return plant


def q(name: str) -> str:
    return f"model.layers.1.{name}.weight"


def planted() -> list[Planted]:
    """The faults of the table."""
    sqrt3 = both(set_everywhere("attn.hook_attn_scores", scale=3.0))
    found = [Planted(f"{f} honest, {a}", f, lambda m: None, same, attn=a) for f, a in (
        ("llama", "eager"), ("llama", "sdpa"), ("gpt2", "eager"), ("gpt2", "sdpa"), ("gemma2", "eager"))]  # fmt: skip
    found += [
        Planted(f"llama honest, rope {r}", "llama", lambda m: None, same, config={"rope": r})
        for r in ("linear", "llama3")
    ]
    for f in ("llama", "gemma2"):
        found += [
            Planted(f"{f} einsum, exp, sum", f, with_attention(), same),
            Planted(f"{f} einsum, where -inf, softmax", f, with_attention(style="where"), same),
            Planted(f"{f} scale", f, scaling(1 / 3.0), sqrt3),
            Planted(f"{f} scale, rewritten", f, with_attention(scale=lambda s: 1 / 3.0), sqrt3),
            Planted(f"{f} tiled heads", f, with_attention(heads="tile"), both(set_everywhere("attn.hook_attn_scores", kv_map="tile"), set_everywhere("attn.hook_z", kv_map="tile"))),
            Planted(f"{f} not causal", f, with_attention(causal=False), both(set_everywhere("attn.hook_attn_scores", causal="none"), set_everywhere("attn.hook_attn_scores", window=None))),
            Planted(f"{f} softmax in bfloat16", f, with_attention(dtype=torch.bfloat16), set_everywhere("attn.hook_pattern", dtype=torch.bfloat16)),
            Planted(f"{f} gelu erf", f, activation(gelu_erf), set_everywhere("mlp.hook_post", act="gelu")),
            Planted(f"{f} relu", f, activation(F.relu), set_everywhere("mlp.hook_post", act="relu")),
            Planted(f"{f} gate and up exchanged in code", f, method(lambda m: [b.mlp for b in blocks(m)], up_is_gate), set_everywhere("mlp.hook_post", roles="up")),
            Planted(f"{f} norm eps 0.1", f, method(norms, rms(eps=0.1, offset=float(f == "gemma2"))), set_norms(eps=0.1)),
            Planted(f"{f} norm eps outside", f, method(norms, rms(eps=0.1, outside=True, offset=float(f == "gemma2"))), set_norms(eps=0.1, eps_place="outside")),
            Planted(f"{f} norm offset", f, method(norms, rms(offset=float(f != "gemma2"))), _offset(float(f != "gemma2"))),
            Planted(f"{f} mean subtracted", f, method(norms, rms(mean=True, offset=float(f == "gemma2"))), set_norms(kind="layer")),
            Planted(f"{f} norm in bfloat16", f, method(norms, rms(dtype=torch.bfloat16, offset=float(f == "gemma2"))), set_norms(dtype=torch.bfloat16)),
            Planted(f"{f} rotary base", f, rotary_base(500.0), both(set_everywhere("rotary.hook_cos", base=500.0), set_everywhere("rotary.hook_sin", base=500.0))),
            Planted(f"{f} scale and rotary base and relu", f, both(scaling(1 / 3.0), rotary_base(500.0), activation(F.relu)), both(sqrt3, set_everywhere("rotary.hook_cos", base=500.0), set_everywhere("rotary.hook_sin", base=500.0), set_everywhere("mlp.hook_post", act="relu"))),
            Planted(f"{f} final norm missing", f, without("norm"), _removed("ln_final"), absent=("ln_final.hook_normalized",)),
        ]  # fmt: skip
        for name, change in (
            ("rows of down halved", (q("mlp.down_proj"), rows_halved([3, 4, 20]))),
            ("rows of q halved", (q("self_attn.q_proj"), rows_halved([3, 4, 20]))),
            ("all of v is noise", (q("self_attn.v_proj"), noise)),
            ("all of o is noise", (q("self_attn.o_proj"), noise)),
            ("all of gate is noise", (q("mlp.gate_proj"), noise)),
            ("embedding rows halved", ("model.embed_tokens.weight", rows_halved(list(range(0, 60, 2))))),
            ("a norm's weight is noise", (q("input_layernorm"), noise)),
            ("q rounded to bfloat16", (q("self_attn.q_proj"), lambda w: w.bfloat16().to(w.dtype))),
            ("down scaled", (q("mlp.down_proj"), lambda w: w * 3.0)),
        ):  # fmt: skip
            plant, tell = edit(*change)
            found.append(Planted(f"{f} {name}", f, plant, tell))
        plant, tell = exchange(1, 2)
        found.append(Planted(f"{f} layers 1 and 2 exchanged", f, plant, tell))
        found.append(Planted(f"{f} gate and up exchanged in weights", f, _swap_gate, _tell_swap))
    square = edit(q("self_attn.q_proj"), lambda w: w.T.contiguous())
    found += [
        Planted("llama q transposed", "llama", *square),
        Planted("llama interleaved rotary", "llama", interleaved_rotary, both(set_everywhere("attn.hook_rot_q", layout="interleaved"), set_everywhere("attn.hook_rot_k", layout="interleaved"))),
        Planted("llama interleaved rotary and scale", "llama", both(scaling(1 / 3.0), interleaved_rotary), both(sqrt3, set_everywhere("attn.hook_rot_q", layout="interleaved"), set_everywhere("attn.hook_rot_k", layout="interleaved"))),
        Planted("llama residual factor", "llama", method(blocks, residual_halved), both(set_everywhere("hook_resid_mid", factor=0.5), set_everywhere("hook_resid_post", factor=0.5))),
        Planted("llama parallel blocks", "llama", method(blocks, parallel), rewired("ln2.hook_normalized", ("hook_resid_pre",))),
        Planted("llama rope linear, declared default", "llama", _no_scaling, both(set_everywhere("rotary.hook_cos", scaling=None), set_everywhere("rotary.hook_sin", scaling=None)), config={"rope": "linear"}),
        Planted("llama rope llama3 off", "llama", _no_scaling, both(set_everywhere("rotary.hook_cos", scaling=None), set_everywhere("rotary.hook_sin", scaling=None)), config={"rope": "llama3"}),
        Planted("gemma2 cap off", "gemma2", with_attention(cap=None), set_everywhere("attn.hook_attn_scores", softcap=None)),
        Planted("gemma2 cap 20", "gemma2", with_attention(cap=20.0), set_everywhere("attn.hook_attn_scores", softcap=20.0)),
        Planted("gemma2 window off", "gemma2", with_attention(window=False), set_everywhere("attn.hook_attn_scores", window=None)),
        Planted("gemma2 windows swapped", "gemma2", _swap_windows, _tell_windows),
        Planted("gemma2 embed factor missing", "gemma2", no_embed_factor, set_everywhere("hook_embed", factor=1.0)),
        Planted("gemma2 post-norm missing", "gemma2", without("block.post_attention_layernorm"), _removed("ln1_post"), absent=("ln1_post.hook_normalized",)),
        Planted("gemma2 logit cap off", "gemma2", _no_final_cap, set_everywhere("logits", softcap=None)),
        Planted("gemma2 scale, cap off, windows swapped", "gemma2", both(scaling(1 / 3.0), _swap_windows, with_attention(cap=None)), both(sqrt3, set_everywhere("attn.hook_attn_scores", softcap=None), _tell_windows)),
        Planted("gpt2 relu", "gpt2", activation(F.relu), set_everywhere("mlp.hook_post", act="relu")),
        Planted("gpt2 gelu erf", "gpt2", activation(gelu_erf), set_everywhere("mlp.hook_post", act="gelu")),
        Planted("gpt2 scale", "gpt2", with_attention(scale=lambda s: 1 / 3.0, cap=None), sqrt3),
        Planted("gpt2 norm eps", "gpt2", _ln_eps, set_norms(eps=0.1)),
        Planted("gpt2 rows of c_attn halved", "gpt2", *edit("transformer.h.1.attn.c_attn.weight", rows_halved([1, 5]))),
        Planted("gpt2 c_proj transposed", "gpt2", *edit("transformer.h.1.attn.c_proj.weight", lambda w: w.T.contiguous())),
        Planted("gpt2 positions are noise", "gpt2", *edit("transformer.wpe.weight", noise)),
        Planted("gpt2 bias zeroed", "gpt2", *edit("transformer.h.1.mlp.c_fc.bias", torch.zeros_like)),
        Planted("gpt2 layers 1 and 2 exchanged", "gpt2", *exchange(1, 2)),
    ]  # fmt: skip
    return found


def _offset(value: float) -> Callable[[Spec, Tensors], Spec]:
    def tell(spec: Spec, weights: Tensors) -> Spec:
        return spec.set_fields([s.writes for s in spec.steps if type(s.op).__name__ == "NormWeight"], "offset", value)

    return tell


def _removed(norm: str) -> Callable[[Spec, Tensors], Spec]:
    """The norm's two steps become copies."""

    def tell(spec: Spec, weights: Tensors) -> Spec:
        from twinlens.ops import Add

        steps = [
            replace(s, op=Add(), weights=()) if split(s.writes)[1].startswith(f"{norm}.") else s for s in spec.steps
        ]
        return replace(spec, steps=tuple(steps))

    return tell


def _swap_gate(module: nn.Module) -> None:
    mlp = blocks(module)[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def _tell_swap(spec: Spec, weights: Tensors) -> Spec:
    gate, up = q("mlp.gate_proj"), q("mlp.up_proj")
    weights[gate], weights[up] = weights[up], weights[gate]
    return spec


def _no_scaling(module: nn.Module) -> None:
    rotary_base(7000.0)(module)


def _swap_windows(module: nn.Module) -> None:
    kinds = [b.attention_type if hasattr(b, "attention_type") else b.self_attn.layer_type for b in blocks(module)]
    swapped = {"sliding_attention": "full_attention", "full_attention": "sliding_attention"}
    for block, kind in zip(blocks(module), kinds, strict=True):
        block.attention_type = swapped[kind]
    module.config.layer_types = [swapped[k] for k in kinds]


def _tell_windows(spec: Spec, weights: Tensors) -> Spec:
    at = [s for s in spec.sites if s.endswith("attn_scores")]
    windows = [spec.at[s].op.window for s in at]
    found = max(w for w in windows if w is not None)
    for site, w in zip(at, windows, strict=True):
        spec = spec.set_fields([site], "window", None if w else found)
    return spec


def _no_final_cap(module: nn.Module) -> None:
    module.config.final_logit_softcapping = None


def _ln_eps(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.LayerNorm):
            m.eps = 0.1
