"""Llama, Gemma-2 and GPT-2 by hand, each part in several honest ways; every run notes its own sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


def pieces(x: Tensor, W: Tensor, n: int) -> Tensor:
    """A sum of n products, each of one part of the inner axis, as n devices would do it."""
    parts = zip(x.tensor_split(n, -1), W.tensor_split(n, -1), strict=True)
    return torch.stack([a @ b.T for a, b in parts]).sum(0)


def turned(x: Tensor, W: Tensor) -> Tensor:
    """The inner axis from its end."""
    return x.flip(-1) @ W.flip(-1).T


def one_by_one(x: Tensor, W: Tensor) -> Tensor:
    """One running sum: every term is rounded into it."""
    total = torch.zeros(*x.shape[:-1], W.shape[0], dtype=x.dtype)
    for i in range(x.shape[-1]):
        total = total + x[..., i : i + 1] * W[:, i]
    return total


PRODUCTS: dict[str, Product] = {
    "einsum": lambda x, W: torch.einsum("...i,oi->...o", x, W),
    "two parts": lambda x, W: pieces(x, W, 2),
    "eight parts": lambda x, W: pieces(x, W, 8),
    "from the end": turned,
    "terms summed": lambda x, W: (x[..., None, :] * W).sum(-1),
    "float64": lambda x, W: (x.double() @ W.double().T).to(x.dtype),
}
SERIAL = PRODUCTS | {"one by one": one_by_one}
"""In float32 also a running sum; in bfloat16 nobody keeps one in the storage dtype."""

ROOTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, v: x * torch.rsqrt(v),
    "sqrt": lambda x, v: x / v.sqrt(),
    "power": lambda x, v: x * v.pow(-0.5),
    "reciprocal": lambda x, v: x * (1.0 / v.sqrt()),
    "float64": lambda x, v: (x.double() / v.double().sqrt()).to(x.dtype),
}
SCALES: dict[str, Callable[[Product, Tensor, Tensor, float], Tensor]] = {
    "divide": lambda dot, q, k, c: dot(q, k) / c,
    "multiply": lambda dot, q, k, c: dot(q, k) * (1.0 / c),
    "query": lambda dot, q, k, c: dot(q / c, k),
    "both": lambda dot, q, k, c: dot(q / math.sqrt(c), k / math.sqrt(c)),
}


def exp_and_sum(s: Tensor) -> Tensor:
    """With the largest taken off."""
    e = (s - s.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def running(s: Tensor) -> Tensor:
    """In two parts of the keys, joined as a streaming kernel does."""
    a, b = s.tensor_split(2, -1)
    top, more = a.amax(-1, keepdim=True), b.amax(-1, keepdim=True)
    both = torch.maximum(top, more)
    x, y = (a - top).exp() * (top - both).exp(), (b - more).exp() * (more - both).exp()
    return torch.cat((x, y), -1) / (x.sum(-1, keepdim=True) + y.sum(-1, keepdim=True))


SOFTMAXES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp and sum": exp_and_sum,
    "running": running,
    "log": lambda s: (s - torch.logsumexp(s, -1, keepdim=True)).exp(),
    "float64": lambda s: s.double().softmax(-1).to(s.dtype),
    "torch": lambda s: s.softmax(-1),
}
ACTIVATIONS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": {
        "sigmoid": lambda x: x * torch.sigmoid(x),
        "quotient": lambda x: x / (1.0 + (-x).exp()),
        "torch": F.silu,
    },
    "gelu_tanh": {
        "torch": lambda x: F.gelu(x, approximate="tanh"),
        "sigmoid": lambda x: x * torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)),
        "horner": lambda x: 0.5 * x * (1.0 + torch.tanh(x * (0.7978845608 + 0.7978845608 * 0.044715 * x * x))),
    },
}


@dataclass(frozen=True)
class Ways:
    """How each part is computed, by the names above."""

    product: str
    root: str
    scale: str
    softmax: str
    act: int
    """A place in the row of its activation."""
    rotary: str = "float32"

    @classmethod
    def number(cls, n: int, dtype: torch.dtype) -> Ways:
        """The n-th mixture: every way of every part comes up, in changing company."""
        products = tuple(SERIAL if dtype == torch.float32 else PRODUCTS)
        return cls(
            products[n % len(products)],
            tuple(ROOTS)[(n // 2) % len(ROOTS)],
            tuple(SCALES)[(n + n // 4) % len(SCALES)],
            tuple(SOFTMAXES)[(2 * n + 1) % len(SOFTMAXES)],
            n,
            ("float32", "float64")[n % 2],
        )

    def activation(self, name: str) -> Callable[[Tensor], Tensor]:
        """The way of an activation."""
        ways = list(ACTIVATIONS[name].values())
        return ways[self.act % len(ways)]


class Port:
    """One run of one model by hand. Norms and softmax are computed in float32, as all three models do."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor], ways: Ways) -> None:
        self.config, self.weights, self.ways = config, weights, ways
        self.dot = SERIAL[ways.product]
        self.seen: dict[str, Tensor] = {}

    def __call__(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every site of it."""
        self.seen = {}
        with torch.no_grad():
            (self._gpt2 if self.config.model_type == "gpt2" else self._rotary)(tokens)
        return self.seen

    def note(self, site: str, value: Tensor) -> Tensor:
        self.seen[site] = value
        return value

    def norm(self, site: str, x: Tensor, name: str, eps: float) -> Tensor:
        w, wide = self.weights[f"{name}.weight"], x.float()
        bias = self.weights.get(f"{name}.bias")
        if bias is not None:
            wide = wide - wide.mean(-1, keepdim=True)
        n = ROOTS[self.ways.root](wide, wide.pow(2).mean(-1, keepdim=True) + eps)
        if self.config.model_type == "llama":
            return self.note(f"{site}.hook_out", w * self.note(f"{site}.hook_normalized", n.to(x.dtype)))
        self.note(f"{site}.hook_normalized", n)
        y = n * (1.0 + w.float()) if bias is None else n * w.float() + bias.float()
        return self.note(f"{site}.hook_out", y.to(x.dtype))

    def attend(
        self, at: str, q: Tensor, k: Tensor, v: Tensor, c: float, cap: float | None, window: int | None
    ) -> Tensor:
        """Heads last of all: q [b p h e]."""
        groups = q.shape[2] // k.shape[2]
        k, v = (t.repeat_interleave(groups, 2).transpose(1, 2) for t in (k, v))
        s = SCALES[self.ways.scale](lambda a, b: self._batched(a, b), q.transpose(1, 2), k, c)
        if cap is not None:
            s = cap * torch.tanh(s / cap)
        p = torch.arange(q.shape[1])
        see = p[:, None] >= p
        if window is not None:
            see = see & (p[:, None] - p < window)
        s = self.note(f"{at}.hook_attn_scores", s.masked_fill(~see, torch.finfo(s.dtype).min))
        a = self.note(f"{at}.hook_pattern", SOFTMAXES[self.ways.softmax](s.float()).to(s.dtype))
        return self.note(f"{at}.hook_z", self._batched(a, v.transpose(2, 3)).transpose(1, 2))

    def _batched(self, x: Tensor, y: Tensor) -> Tensor:
        rows = [self.dot(a, b) for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]
        return torch.stack(rows).unflatten(0, x.shape[:2])

    def _rotary(self, tokens: Tensor) -> None:
        c, w, gemma = self.config, self.weights, self.config.model_type == "gemma2"
        table = w["model.embed_tokens.weight"]
        x = table[tokens]
        if gemma:
            x = x * torch.tensor(c.hidden_size**0.5, dtype=x.dtype)
        self.note("hook_embed", x)
        e, eps = c.head_dim, c.rms_norm_eps
        fine = torch.float64 if self.ways.rotary == "float64" else torch.float32
        base = c.rope_parameters["rope_theta"]
        angles = torch.arange(tokens.shape[1], dtype=fine)[:, None] / base ** (torch.arange(0, e, 2, dtype=fine) / e)
        angles = torch.cat((angles, angles), -1).expand(*tokens.shape, -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        self.note("rotary.hook_cos", cos), self.note("rotary.hook_sin", sin)
        for i in range(c.num_hidden_layers):
            at, m = f"blocks.{i}", f"model.layers.{i}"
            self.note(f"{at}.hook_resid_pre", x)
            n = self.norm(f"{at}.ln1", x, f"{m}.input_layernorm", eps)
            q, k, v = (
                self.note(
                    f"{at}.attn.hook_{p}", self.dot(n, w[f"{m}.self_attn.{p}_proj.weight"]).unflatten(-1, (-1, e))
                )
                for p in "qkv"
            )
            q = self.note(f"{at}.attn.hook_rot_q", self._turn(q, cos, sin))
            k = self.note(f"{at}.attn.hook_rot_k", self._turn(k, cos, sin))
            scale = math.sqrt(c.query_pre_attn_scalar if gemma else e)
            local = gemma and c.layer_types[i] == "sliding_attention"
            cap = c.attn_logit_softcapping if gemma else None
            z = self.attend(f"{at}.attn", q, k, v, scale, cap, c.sliding_window if local else None)
            o = self.note(f"{at}.attn.hook_out", self.dot(z.flatten(2), w[f"{m}.self_attn.o_proj.weight"]))
            if gemma:
                o = self.norm(f"{at}.ln1_post", o, f"{m}.post_attention_layernorm", eps)
            self.note(f"{at}.hook_attn_out", o)
            x = self.note(f"{at}.hook_resid_mid", x + o)
            second = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
            n = self.norm(f"{at}.ln2", x, f"{m}.{second}", eps)
            gate = self.note(f"{at}.mlp.hook_pre", self.dot(n, w[f"{m}.mlp.gate_proj.weight"]))
            up = self.note(f"{at}.mlp.hook_pre_linear", self.dot(n, w[f"{m}.mlp.up_proj.weight"]))
            h = self.ways.activation("gelu_tanh" if gemma else "silu")(gate)
            h = self.note(f"{at}.mlp.hook_post", h * up)
            o = self.note(f"{at}.mlp.hook_out", self.dot(h, w[f"{m}.mlp.down_proj.weight"]))
            if gemma:
                o = self.norm(f"{at}.ln2_post", o, f"{m}.post_feedforward_layernorm", eps)
            self.note(f"{at}.hook_mlp_out", o)
            x = self.note(f"{at}.hook_resid_post", x + o)
        n = self.norm("ln_final", x, "model.norm", eps)
        y = self.dot(n, w.get("lm_head.weight", table))
        if gemma:
            y = c.final_logit_softcapping * torch.tanh(y / c.final_logit_softcapping)
        self.note("logits", y)

    @staticmethod
    def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Half by half, written into a new buffer."""
        half = x.shape[-1] // 2
        a, b, c, s = x[..., :half], x[..., half:], cos[..., None, :half], sin[..., None, :half]
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    def _gpt2(self, tokens: Tensor) -> None:
        c, w, eps = self.config, self.weights, self.config.layer_norm_epsilon
        e = c.n_embd // c.n_head
        x = self.note("hook_embed", w["transformer.wte.weight"][tokens])
        at = w["transformer.wpe.weight"][: tokens.shape[1]].expand(*tokens.shape, -1)
        x = x + self.note("hook_pos_embed", at)
        for i in range(c.n_layer):
            at, m = f"blocks.{i}", f"transformer.h.{i}"

            def conv(x: Tensor, name: str, m: str = m) -> Tensor:
                return self.dot(x, w[f"{m}.{name}.weight"].T) + w[f"{m}.{name}.bias"]

            self.note(f"{at}.hook_resid_pre", x)
            n = self.norm(f"{at}.ln1", x, f"{m}.ln_1", eps)
            fused = self.note(f"{at}.attn.hook_qkv", conv(n, "attn.c_attn"))
            parts = zip("qkv", fused.chunk(3, -1), strict=True)
            q, k, v = (self.note(f"{at}.attn.hook_{p}", t.unflatten(-1, (-1, e))) for p, t in parts)
            z = self.attend(f"{at}.attn", q, k, v, math.sqrt(e), None, None)
            o = self.note(f"{at}.attn.hook_out", conv(z.flatten(2), "attn.c_proj"))
            self.note(f"{at}.hook_attn_out", o)
            x = self.note(f"{at}.hook_resid_mid", x + o)
            n = self.norm(f"{at}.ln2", x, f"{m}.ln_2", eps)
            h = self.note(f"{at}.mlp.hook_pre", conv(n, "mlp.c_fc"))
            h = self.note(f"{at}.mlp.hook_post", self.ways.activation("gelu_tanh")(h))
            o = self.note(f"{at}.mlp.hook_out", conv(h, "mlp.c_proj"))
            self.note(f"{at}.hook_mlp_out", o)
            x = self.note(f"{at}.hook_resid_post", x + o)
        n = self.norm("ln_final", x, "transformer.ln_f", eps)
        self.note("logits", self.dot(n, w.get("lm_head.weight", w["transformer.wte.weight"])))
