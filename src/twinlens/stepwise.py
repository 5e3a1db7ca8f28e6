"""The native model call by call: prefill, chunks, steps of decoding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from twinlens.cached import Past, appended, cached
from twinlens.ids import Ids
from twinlens.inputs import prepare
from twinlens.model import HookFunction, Model
from twinlens.spec import Spec, Weights


class Stepwise(Model):
    """A model that reads the keys and values of its calls before, and adds each call's own.

    Its sites are the model's, with `attn.hook_k_cache` and `attn.hook_v_cache`: what a call reads, by slot. The
    `attention_mask` of a call is that of its own tokens; positions go on from the calls before.

    Example:
        >>> from twinlens.museum.tiny import tiny_llama, random_tokens
        >>> import torch, twinlens
        >>> theirs = tiny_llama()
        >>> tokens = random_tokens(theirs)
        >>> run = twinlens.load(theirs).stepwise()
        >>> prefill = run(tokens[:, :20])
        >>> logits, cache = run.run_with_cache(tokens[:, 20:21])
        >>> tuple(cache["blocks.0.attn.hook_k_cache"].shape), len(run.past)
        ((2, 21, 2, 12), 21)
    """

    def __init__(self, spec: Spec, weights: Weights) -> None:
        super().__init__(cached(spec), weights)
        self.past = Past()

    def _inputs(self, tokens: Tensor, mask: Ids | None, positions: Ids | None) -> dict[str, Tensor]:
        inputs = prepare(self.spec, tokens, mask, positions, self.past.mask)
        given = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return given | self.past.before(self.spec, given["tokens"])

    def _run(
        self, values: dict[str, Tensor], wanted: Mapping[str, object], cache: dict[str, Tensor],
        hooks: Mapping[str, list[HookFunction]] | None = None,
    ) -> Tensor:  # fmt: skip
        mask, found = values["key_mask"], dict[str, Tensor]()
        kept = dict.fromkeys(step.writes for step in appended(self.spec))
        logits = super()._run(values, {**wanted, **kept}, found, hooks)
        self.past.add(self.spec, found, mask)
        cache.update({site: tensor for site, tensor in found.items() if site in wanted})
        return logits
