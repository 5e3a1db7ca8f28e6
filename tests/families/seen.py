"""What transformers itself computes at our sites, by hooks and by listening to its functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

Seen = dict[str, Tensor]


def run(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None) -> Seen:
    """Every site that transformers shows, from one forward pass."""
    seen: Seen = {}
    place = {"gpt2": _gpt2, "llama": _llama, "gemma2": _gemma2}[model.config.model_type]
    handles = place(model, seen)
    with torch.no_grad(), _attention(model, seen):
        seen["logits"] = model(tokens, attention_mask=mask, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return seen


class _Hooks(list[Any]):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def out(self, module: nn.Module, *sites: str, turn: Callable[[Tensor], Tensor] = lambda x: x):
        """A module's output, under several names."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            self.seen.update(dict.fromkeys(sites, turn(first)))

        self.append(module.register_forward_hook(hook))

    def into(self, module: nn.Module, *sites: str) -> None:
        """A module's input."""

        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.seen.update(dict.fromkeys(sites, args[0] if args else kwargs["hidden_states"]))

        self.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def norm(self, module: nn.Module, site: str) -> None:
        """An rms norm's result, and its result with a weight that changes nothing."""
        self.out(module, f"{site}.hook_out")

        def hook(module: Any, args: Any, output: Tensor) -> None:
            if hasattr(module, "_norm"):  # Gemma's, which is written as two functions
                self.seen[f"{site}.hook_normalized"] = module._norm(args[0].float())
                return
            weight = module.weight.data
            module.weight.data = torch.ones_like(weight)
            self.seen[f"{site}.hook_normalized"] = type(module).forward(module, args[0])
            module.weight.data = weight

        self.append(module.register_forward_hook(hook))


def _heads(width: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.unflatten(-1, (-1, width))


def _rotary_model(model: Any, seen: Seen, second: str) -> _Hooks:
    h = _Hooks(seen)
    h.out(model.model.embed_tokens, "hook_embed")

    def tables(_: Any, __: Any, output: Any) -> None:
        seen["rotary.hook_cos"], seen["rotary.hook_sin"] = output

    h.append(model.model.rotary_emb.register_forward_hook(tables))
    for i, layer in enumerate(model.model.layers):
        at, attn, width = f"blocks.{i}", layer.self_attn, layer.self_attn.head_dim
        h.into(layer, f"{at}.hook_resid_pre")
        h.norm(layer.input_layernorm, f"{at}.ln1")
        for part in "qkv":
            site = f"{at}.attn.hook_{part}"
            h.out(getattr(attn, f"{part}_proj"), site, turn=_heads(width))
        h.out(attn.o_proj, f"{at}.attn.hook_out")
        h.into(getattr(layer, second), f"{at}.hook_resid_mid")
        h.norm(getattr(layer, second), f"{at}.ln2")
        h.out(layer.mlp.gate_proj, f"{at}.mlp.hook_pre")
        h.out(layer.mlp.up_proj, f"{at}.mlp.hook_pre_linear")
        h.into(layer.mlp.down_proj, f"{at}.mlp.hook_post")
        h.out(layer.mlp, f"{at}.mlp.hook_out")
        h.out(layer, f"{at}.hook_resid_post")
    h.norm(model.model.norm, "ln_final")
    return h


def _llama(model: Any, seen: Seen) -> _Hooks:
    h = _rotary_model(model, seen, "post_attention_layernorm")
    for i, layer in enumerate(model.model.layers):
        h.out(layer.self_attn, f"blocks.{i}.hook_attn_out")
        h.out(layer.mlp, f"blocks.{i}.hook_mlp_out")
    return h


def _gemma2(model: Any, seen: Seen) -> _Hooks:
    h = _rotary_model(model, seen, "pre_feedforward_layernorm")
    for i, layer in enumerate(model.model.layers):
        at = f"blocks.{i}"
        h.norm(layer.post_attention_layernorm, f"{at}.ln1_post")
        h.norm(layer.post_feedforward_layernorm, f"{at}.ln2_post")
        h.out(layer.post_attention_layernorm, f"{at}.hook_attn_out")
        h.out(layer.post_feedforward_layernorm, f"{at}.hook_mlp_out")
    return h


def _gpt2(model: Any, seen: Seen) -> _Hooks:
    h = _Hooks(seen)
    h.out(model.transformer.wte, "hook_embed")
    h.out(model.transformer.wpe, "hook_pos_embed")
    width = model.config.n_embd // model.config.n_head
    for i, layer in enumerate(model.transformer.h):
        at = f"blocks.{i}"
        h.into(layer, f"{at}.hook_resid_pre")
        h.out(layer.ln_1, f"{at}.ln1.hook_out")
        h.out(layer.attn.c_attn, f"{at}.attn.hook_qkv")
        for n, part in enumerate("qkv"):
            site = f"{at}.attn.hook_{part}"
            turn = lambda x, n=n: x.chunk(3, -1)[n].unflatten(-1, (-1, width))  # noqa: E731
            h.out(layer.attn.c_attn, site, turn=turn)
        h.out(layer.attn.c_proj, f"{at}.attn.hook_out")
        h.out(layer.attn, f"{at}.hook_attn_out")
        h.into(layer.ln_2, f"{at}.hook_resid_mid")
        h.out(layer.ln_2, f"{at}.ln2.hook_out")
        h.out(layer.mlp.c_fc, f"{at}.mlp.hook_pre")
        h.into(layer.mlp.c_proj, f"{at}.mlp.hook_post")
        h.out(layer.mlp.c_proj, f"{at}.mlp.hook_out")
        h.out(layer.mlp, f"{at}.hook_mlp_out")
        h.out(layer, f"{at}.hook_resid_post")
    h.out(model.transformer.ln_f, "ln_final.hook_out")
    return h


def _attention(model: PreTrainedModel, seen: Seen) -> Any:
    """Listens to the attention function, eager or sdpa, and to the softmax within the eager one."""
    rotary = model.config.model_type != "gpt2"
    layers = iter(range(1000))

    def file(q: Tensor, k: Tensor, z: Tensor, **more: Tensor) -> None:
        at = f"blocks.{next(layers)}.attn"
        if rotary:
            kv_heads = model.config.num_key_value_heads
            seen[f"{at}.hook_rot_q"] = q.transpose(1, 2)
            seen[f"{at}.hook_rot_k"] = k[:, :: k.shape[1] // kv_heads].transpose(1, 2)
        seen[f"{at}.hook_z"] = z
        seen.update({f"{at}.{name}": tensor for name, tensor in more.items()})

    if model.config._attn_implementation == "sdpa":
        kernel = F.scaled_dot_product_attention

        def sdpa(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
            z = kernel(q, k, v, **how)
            file(q, k, z.transpose(1, 2))
            return z

        return mock.patch.object(F, "scaled_dot_product_attention", sdpa)

    theirs = importlib.import_module(type(model).__module__)
    function, softmax = theirs.eager_attention_forward, F.softmax

    def eager(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        scores: list[Tensor] = []

        def listen(x: Tensor, **how: Any) -> Tensor:
            scores.append(x)
            return softmax(x, **how)

        with mock.patch.object(F, "softmax", listen):
            z, pattern = function(module, q, k, v, *args, **kwargs)
        file(q, k, z, hook_attn_scores=scores[0], hook_pattern=pattern)
        return z, pattern

    return mock.patch.object(theirs, "eager_attention_forward", eager)
