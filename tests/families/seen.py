"""What transformers itself computes at our sites, by hooks and by listening to its functions.

A family's weights name the modules that hold them: a product's module gives the site that the step writes and is given
the site that it reads, and so with norms and lookups. What no module shows (a part of a fused product, a factor on a
branch) is left out; whatever comes of it is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

import twinlens
from twinlens.capture import record_calls
from twinlens.ops import (
    Add,
    Branch,
    Embed,
    Experts,
    Normalize,
    NormWeight,
    PositionEmbed,
    Project,
    RotaryTable,
    RouterLogits,
)
from twinlens.sites import axes, block, by_slot, split
from twinlens.spec import Spec, Step, stored_name

Seen = dict[str, Tensor]


def run(model: PreTrainedModel, spec: Spec, tokens: Tensor, mask: Tensor | None) -> Seen:
    """Every site that transformers shows, from one forward pass."""
    seen: Seen = {}
    with torch.no_grad(), ExitStack() as stack:
        for handle in _Hooks(model, spec, seen, tokens).place():
            stack.callback(handle.remove)
        stack.enter_context(_attention(model, spec, seen))
        logits = model(tokens, attention_mask=mask, use_cache=False).logits
    return _copied(spec, seen) | {"logits": logits}


def _copied(spec: Spec, seen: Seen) -> Seen:
    """With the sites that are others by another name, in both directions."""
    for steps in (spec.steps, spec.steps[::-1]):
        for step in steps:
            op, read = step.op, step.reads[0]
            if len(step.reads) == 1 and isinstance(op, Add | Branch) and op.factor == 1.0:
                for known, new in ((read, step.writes), (step.writes, read)):
                    if known in seen and new in spec.at:
                        seen.setdefault(new, seen[known])
    return seen


class _Hooks:
    """Hooks on the modules of one model."""

    def __init__(self, model: PreTrainedModel, spec: Spec, seen: Seen, tokens: Tensor) -> None:
        self.model, self.spec, self.seen, self.tokens = model, spec, seen, tokens

    def place(self) -> Iterator[Any]:
        """All of them; what they return takes them away again."""
        for layer in range(self.spec.shape.layers):
            yield from self._block(layer)
        for step in self.spec.steps:
            module = self._owner(step)
            if isinstance(step.op, Embed | PositionEmbed):
                if getattr(step.op, "constant", "rounded") == "rounded":  # else the factor is not the module's
                    yield self._out(module, step.writes)
            elif isinstance(step.op, NormWeight):
                yield from self._norm(module, step)
            elif isinstance(step.op, Experts):
                yield self._out(module, step.writes)
            elif isinstance(step.op, RouterLogits):
                yield self._router(module, step)
            elif isinstance(step.op, Project):
                yield self._out(module, step.writes)
                yield self._into(module, step.reads[0])
        for module in self.model.modules():
            if type(module).__name__.endswith("RotaryEmbedding"):
                yield module.register_forward_hook(self._tables, with_kwargs=True)

    def _owner(self, step: Step) -> Any:
        if not step.weights:
            return None
        name = stored_name(step.weights[0][1].name).rpartition(".")[0]
        return self.model.get_submodule(name)

    def _block(self, layer: int) -> Iterator[Any]:
        names = [w.name for s in self.spec.steps if split(s.writes)[0] == layer for _, w in s.weights]
        module = self.model.get_submodule(_common(names))
        yield self._into(module, block(layer, "hook_resid_pre"))
        yield self._out(module, block(layer, "hook_resid_post"))

    def _file(self, site: str, x: Tensor) -> None:
        """Rows may be merged, heads too, or they come before positions."""
        if x.shape[0] == self.tokens.numel():
            x = x.unflatten(0, self.tokens.shape)
        if x.ndim == 4 and x.shape[1] == 1:  # DeepSeek's latents, as if they were one head
            x = x.squeeze(1)
        heads = self.spec.shape.axes.get(axes(site)[2])
        if len(axes(site)) == 4:
            if x.ndim == 3:
                x = x.unflatten(-1, (heads, -1))
            elif x.shape[2] != heads:
                x = x.transpose(1, 2)
        self.seen[site] = x.clone()  # Falcon adds into what its MLP gave

    def _out(self, module: nn.Module, site: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._file(site, output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(hook)

    def _into(self, module: nn.Module, site: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._file(site, args[0] if args else kwargs["hidden_states"])

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _router(self, module: nn.Module, step: Step) -> Any:
        """Its logits, and the weights and the numbers of the experts of each token."""

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for what, x in zip(("logits", "weights", "indices"), output, strict=True):
                self._file(step.writes.replace("logits", what), x)

        return module.register_forward_hook(hook)

    def _norm(self, module: Any, step: Step) -> Iterator[Any]:
        """Its input, its result, and its result with a weight that changes nothing."""
        normalize = self.spec.at[step.reads[0]]
        assert isinstance(normalize.op, Normalize)
        yield self._out(module, step.writes)
        if normalize.reads[0].split(".")[-1].startswith("hook_resid"):
            yield self._into(module, normalize.reads[0])
        if isinstance(module, nn.LayerNorm):
            return  # torch's kernel does not show it

        def hook(_: Any, args: Any, __: Tensor) -> None:
            # where the normalised tensor stays in float32, a module that is given float32 does not round it
            out, offset = normalize.op.out or args[0].dtype, step.op.offset
            weight = module.weight.data
            module.weight.data = torch.full_like(weight, 1.0 - offset, dtype=out)
            self._file(step.reads[0], type(module).forward(module, args[0].to(out)))
            module.weight.data = weight

        yield module.register_forward_hook(hook)

    def _tables(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        kind = kwargs.get("layer_type", args[2] if len(args) > 2 else "full_attention")
        under = "rotary" if kind == "full_attention" else "rotary.local"
        for wave, table in zip(("cos", "sin"), output, strict=True):
            op = self.spec.at[f"{under}.hook_{wave}"].op
            assert isinstance(op, RotaryTable)
            half = table.shape[-1] == op.width // 2
            pairs = not half and bool((table[..., 0::2] == table[..., 1::2]).all())
            once = table[..., 0::2] if pairs else table
            self.seen[f"{under}.hook_{wave}"] = torch.cat((once, once), -1) if half or pairs else once


def _common(names: list[str]) -> str:
    """The longest path that all of them begin with."""
    parts = zip(*(n.split(".") for n in names), strict=False)
    return ".".join(p[0] for p in takewhile(lambda p: len(set(p)) == 1, parts))


@contextmanager
def _attention(model: PreTrainedModel, spec: Spec, seen: Seen) -> Iterator[None]:
    """Listens to the attention function, eager or sdpa, and to softmax wherever it is called."""
    layers = iter(range(1000))
    at = [""]
    kernel, softmax = F.scaled_dot_product_attention, F.softmax
    theirs = importlib.import_module(type(model).__module__)

    def given(q: Tensor, k: Tensor, v: Tensor) -> None:
        at[0] = block(next(layers), "attn")
        kv, rotates = spec.shape.kv_heads, f"{at[0]}.hook_rot_q" in spec.at
        q_site, k_site = ("hook_rot_q", "hook_rot_k") if rotates else spec.at[f"{at[0]}.hook_attn_scores"].reads[:2]
        for site, x in ((q_site, q), (k_site, k[:, :: k.shape[1] // kv]), ("hook_v", v[:, :: v.shape[1] // kv])):
            name = site if site.startswith("blocks") else f"{at[0]}.{site}"
            if not (name.endswith("hook_q") and name in seen):  # OPT hands over queries that are scaled already
                seen[name] = x.transpose(1, 2)

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        given(q, k, v)
        z = kernel(q, k, v, **how)
        seen[f"{at[0]}.hook_z"] = z.transpose(1, 2)
        return z

    def listen(x: Tensor, *args: Any, **how: Any) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != x.shape[-2]:  # a router's; gpt-oss has a column more
            return softmax(x, *args, **how)
        if "eager_attention_forward" not in vars(theirs):  # Falcon's attention is no function of its own
            at[0] = block(next(layers), "attn")
        pattern = softmax(x, *args, **how)
        seen[f"{at[0]}.hook_attn_scores"], seen[f"{at[0]}.hook_pattern"] = x, pattern.to(x.dtype)
        return pattern

    def eager(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
            given(q, k, v)
            z, pattern = function(module, q, k, v, *args, **kwargs)
            seen[f"{at[0]}.hook_z"], seen[f"{at[0]}.hook_pattern"] = z, pattern
            return z, pattern

        return call

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", sdpa))
        stack.enter_context(mock.patch.object(F, "softmax", listen))
        function = vars(theirs).get("eager_attention_forward")
        if function is not None:
            stack.enter_context(mock.patch.object(theirs, "eager_attention_forward", eager(function)))
        yield


def calls(model: Any, tokens: Tensor, mask: Tensor | None, lengths: Sequence[int]) -> Iterator[dict[str, bool]]:
    """For each call with a cache, by each site that is seen, whether the native model's is equal bit for bit."""
    native = twinlens.load(model)
    theirs = record_calls(model, native.spec, native.weight, tokens, mask, lengths)
    stepwise, start = native.stepwise(), 0
    for call, length in zip(theirs.calls, lengths, strict=True):
        now = slice(start, start + length)
        start += length
        _, ours = stepwise.run_with_cache(tokens[:, now], None if mask is None else mask[:, now])
        pairs = {s: (_real(s, ours[s], call.mask), _real(s, x, call.mask)) for s, x in call.sites.items()}
        yield {site: torch.equal(a[..., : b.shape[-1]], b) for site, (a, b) in pairs.items()}  # tables in half width


def _real(site: str, x: Tensor, mask: Tensor) -> Tensor:
    """Of tokens that are no padding; of slots those that all rows of a batch have real."""
    if site.endswith(("hook_attn_scores", "hook_pattern")):
        return x.transpose(1, 2)[mask.bool()]
    if by_slot(site):
        return x[:, -int(mask.sum(1).min()) :]
    return x.expand(len(mask), *x.shape[1:])[mask.bool()]
