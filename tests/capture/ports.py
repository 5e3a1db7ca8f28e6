"""Ports as people write them: fused, interleaved, flattened, heads first, in place. Each notes its own truth.

None of them is a module tree like a checkpoint's, and none names a tensor as it does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.families import declare
from twinlens.museum.tiny import Tensors, tiny_gpt2, tiny_llama
from twinlens.spec import Spec

Truth = dict[str, Tensor]


class FusedLlama(nn.Module):
    """Query, key and value interleaved by group in one product, gate and up in another; rows flattened."""

    def __init__(
        self,
        weights: Truth,
        *,
        layers: int,
        heads: int,
        kv: int,
        width: int,
        base: float,
        eps: float,
        flat: bool = True,
    ) -> None:
        super().__init__()
        self.shape = layers, heads, kv, width
        self.base, self.eps, self.flat = base, eps, flat
        self.table = nn.Parameter(weights["model.embed_tokens.weight"].clone())
        self.head = nn.Parameter(weights["lm_head.weight"].T.contiguous())
        self.last = nn.Parameter(weights["model.norm.weight"].clone())
        for i in range(layers):
            w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if f"layers.{i}." in k}
            q = w["self_attn.q_proj.weight"].view(kv, heads // kv, width, -1)
            k, v = (w[f"self_attn.{n}_proj.weight"].view(kv, 1, width, -1) for n in "kv")
            self.register_parameter(f"qkv{i}", nn.Parameter(torch.cat((q, k, v), 1).reshape(-1, q.shape[-1])))
            self.register_parameter(f"o{i}", nn.Parameter(w["self_attn.o_proj.weight"].T.contiguous()))
            self.register_parameter(
                f"up{i}", nn.Parameter(torch.cat((w["mlp.up_proj.weight"], w["mlp.gate_proj.weight"])))
            )
            self.register_parameter(f"down{i}", nn.Parameter(w["mlp.down_proj.weight"].clone()))
            self.register_parameter(f"a{i}", nn.Parameter(w["input_layernorm.weight"].clone()))
            self.register_parameter(f"b{i}", nn.Parameter(w["post_attention_layernorm.weight"].clone()))
        angle = torch.arange(512)[:, None].float() / (base ** (torch.arange(0, width, 2).float() / width))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        self.truth: Truth = {}

    def forward(self, tokens: Tensor) -> Tensor:
        layers, heads, kv, e = self.shape
        b, p = tokens.shape
        t = self.truth = {}
        x = self.table[tokens]
        t["hook_embed"] = x
        if self.flat:
            x = x.reshape(b * p, -1)
        c, s = self.cos[:p], self.sin[:p]
        t["rotary.hook_cos"], t["rotary.hook_sin"] = c.expand(b, p, e // 2), s.expand(b, p, e // 2)
        see = torch.ones(p, p, dtype=torch.bool).tril()
        for i in range(layers):
            at = f"blocks.{i}"

            def param(n: str, i: int = i) -> Tensor:
                return self.get_parameter(f"{n}{i}")

            t[f"{at}.hook_resid_pre"] = x
            n = x * (x.square().mean(-1, keepdim=True) + self.eps) ** -0.5
            t[f"{at}.ln1.hook_normalized"] = n
            n = n * param("a")
            t[f"{at}.ln1.hook_out"] = n
            qkv = (n @ param("qkv").T).view(b, p, kv, heads // kv + 2, e)
            q, k, v = qkv.split((heads // kv, 1, 1), 3)
            q = q.reshape(b, p, heads, e).permute(0, 2, 1, 3)
            k, v = k.squeeze(3).permute(0, 2, 1, 3), v.squeeze(3).permute(0, 2, 1, 3)
            for name, y in zip("qkv", (q, k, v), strict=True):
                t[f"{at}.attn.hook_{name}"] = y.transpose(1, 2)
            q, k = self._turn(q, c, s), self._turn(k, c, s)
            t[f"{at}.attn.hook_rot_q"], t[f"{at}.attn.hook_rot_k"] = q.transpose(1, 2), k.transpose(1, 2)
            k, v = (y.repeat_interleave(heads // kv, 1).reshape(b * heads, p, e) for y in (k, v))
            scores = torch.bmm(q.reshape(b * heads, p, e), k.mT) / math.sqrt(e)
            scores.masked_fill_(~see, float("-inf"))
            t[f"{at}.attn.hook_attn_scores"] = scores.view(b, heads, p, p)
            w = scores.softmax(-1)
            t[f"{at}.attn.hook_pattern"] = w.view(b, heads, p, p)
            z = torch.bmm(w, v).view(b, heads, p, e).transpose(1, 2)
            t[f"{at}.attn.hook_z"] = z
            a = z.reshape(*x.shape[:-1], heads * e) @ param("o")
            t[f"{at}.attn.hook_out"] = t[f"{at}.hook_attn_out"] = a.clone()
            x = x.clone()
            x += a
            t[f"{at}.hook_resid_mid"] = x.clone()
            n = x * (x.square().mean(-1, keepdim=True) + self.eps) ** -0.5
            t[f"{at}.ln2.hook_normalized"] = n
            n = n * param("b")
            t[f"{at}.ln2.hook_out"] = n
            up, gate = F.linear(n, param("up")).chunk(2, -1)
            t[f"{at}.mlp.hook_pre"], t[f"{at}.mlp.hook_pre_linear"] = gate, up
            h = gate * torch.sigmoid(gate) * up
            t[f"{at}.mlp.hook_post"] = h
            m = F.linear(h, param("down"))
            t[f"{at}.mlp.hook_out"] = t[f"{at}.hook_mlp_out"] = m
            x.add_(m)
            t[f"{at}.hook_resid_post"] = x.clone()
        n = x * (x.square().mean(-1, keepdim=True) + self.eps) ** -0.5
        t["ln_final.hook_normalized"] = n
        n = n * self.last
        t["ln_final.hook_out"] = n
        t["logits"] = (n @ self.head).view(b, p, -1)
        return t["logits"]

    @staticmethod
    def _turn(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        """Written into a new buffer, half by half."""
        half = x.shape[-1] // 2
        out = torch.empty_like(x)
        out[..., :half] = x[..., :half] * c - x[..., half:] * s
        out[..., half:] = x[..., half:] * c + x[..., :half] * s
        return out


class SplitGPT2(nn.Module):
    """Head-shaped weights and einsum, as interpretability libraries hold them; layer norm written out."""

    def __init__(self, weights: Truth, *, layers: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layers, self.heads, self.eps = layers, heads, eps
        self.w = {}
        d = weights["transformer.wte.weight"].shape[1]
        e = d // heads
        for i in range(layers):
            w = {k.removeprefix(f"transformer.h.{i}."): v for k, v in weights.items() if f".h.{i}." in k}
            for n, part, bias in zip(
                "qkv", w["attn.c_attn.weight"].chunk(3, 1), w["attn.c_attn.bias"].chunk(3), strict=True
            ):
                self.w[n, i] = part.view(d, heads, e).permute(1, 0, 2).contiguous()
                self.w["b" + n, i] = bias.view(heads, e).clone()
            self.w["o", i] = w["attn.c_proj.weight"].view(heads, e, d).clone()
            self.w["bo", i] = w["attn.c_proj.bias"].clone()
            for ours, theirs in (("in", "mlp.c_fc"), ("out", "mlp.c_proj"), ("l1", "ln_1"), ("l2", "ln_2")):
                self.w[ours, i], self.w["b" + ours, i] = w[f"{theirs}.weight"].clone(), w[f"{theirs}.bias"].clone()
        self.e, self.pos = weights["transformer.wte.weight"].clone(), weights["transformer.wpe.weight"].clone()
        self.lf, self.bf = weights["transformer.ln_f.weight"].clone(), weights["transformer.ln_f.bias"].clone()
        self.truth: Truth = {}

    def _norm(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, tokens: Tensor) -> Tensor:
        b, p = tokens.shape
        t = self.truth = {}
        x, pos = F.embedding(tokens, self.e), self.pos[:p]
        t["hook_embed"], t["hook_pos_embed"] = x, pos.expand(b, p, -1)
        x = x + pos
        see = torch.ones(p, p, dtype=torch.bool).tril()
        for i in range(self.layers):
            at = f"blocks.{i}"

            def w(n: str, i: int = i) -> Tensor:
                return self.w[n, i]

            t[f"{at}.hook_resid_pre"] = x
            t[f"{at}.ln1.hook_normalized"] = n = self._norm(x)
            t[f"{at}.ln1.hook_out"] = n = n * w("l1") + w("bl1")
            q, k, v = (torch.einsum("bpd,hde->bphe", n, w(c)) + w("b" + c) for c in "qkv")
            for name, y in zip("qkv", (q, k, v), strict=True):
                t[f"{at}.attn.hook_{name}"] = y
            s = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1])
            s = torch.where(see, s, torch.tensor(-torch.inf))
            t[f"{at}.attn.hook_attn_scores"] = s
            t[f"{at}.attn.hook_pattern"] = a = torch.softmax(s, -1)
            t[f"{at}.attn.hook_z"] = z = torch.einsum("bkhe,bhqk->bqhe", v, a)
            t[f"{at}.attn.hook_out"] = t[f"{at}.hook_attn_out"] = o = torch.einsum("bphe,hed->bpd", z, w("o")) + w("bo")
            t[f"{at}.hook_resid_mid"] = x = x + o
            t[f"{at}.ln2.hook_normalized"] = n = self._norm(x)
            t[f"{at}.ln2.hook_out"] = n = n * w("l2") + w("bl2")
            t[f"{at}.mlp.hook_pre"] = h = torch.einsum("bpd,dm->bpm", n, w("in")) + w("bin")
            t[f"{at}.mlp.hook_post"] = h = F.gelu(h, approximate="tanh")
            t[f"{at}.mlp.hook_out"] = t[f"{at}.hook_mlp_out"] = m = h @ w("out") + w("bout")
            t[f"{at}.hook_resid_post"] = x = x + m
        t["ln_final.hook_normalized"] = n = self._norm(x)
        t["ln_final.hook_out"] = n = n * self.lf + self.bf
        t["logits"] = n @ self.e.T
        return t["logits"]


def ports() -> list[tuple[str, nn.Module, Spec, Truth]]:
    """Each port, with the declaration and the checkpoint that it is held against."""
    found: list[tuple[str, nn.Module, Spec, Truth]] = []
    model = tiny_llama()
    spec, weights = declare(model.config.to_dict()), Tensors.of(model)
    how = {"layers": 3, "heads": 4, "kv": 2, "width": 12, "eps": model.config.rms_norm_eps}
    for name, change in (
        ("fused, interleaved, flattened, in place", {}),
        ("fused, interleaved, in place", {"flat": False}),
        ("fused, interleaved, flattened, rotary base", {"base": 500.0}),
    ):
        port = FusedLlama(weights, **({"base": 7000.0} | how | change))
        found.append((f"llama port: {name}", port, spec, weights))
    damaged = Tensors(weights)
    key = "model.layers.1.self_attn.k_proj.weight"
    damaged[key] = weights[key].clone()
    damaged[key][5:8] = 0.1
    port = FusedLlama(damaged, base=7000.0, **how)
    found.append(("llama port: fused, rows of k damaged", port, spec, weights))
    model = tiny_gpt2()
    spec, weights = declare(model.config.to_dict()), Tensors.of(model)
    port = SplitGPT2(weights, layers=3, heads=4, eps=model.config.layer_norm_epsilon)
    found.append(("gpt2 port: weights by head, einsum", port, spec, weights))
    return found
