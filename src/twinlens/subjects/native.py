"""The declared model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.cached import calls_of
from twinlens.capture import compared_weights
from twinlens.model import Model
from twinlens.paging import held
from twinlens.recording import Call, Recording
from twinlens.spec import Spec
from twinlens.subjects.side import Declaration, Once, Say


@dataclass
class Native(Once):
    """The declared model itself."""

    model: Model
    name: str = "native"
    goes_on = True

    def said(self) -> Spec:
        """Its own."""
        return self.model.spec

    def declaration(self) -> Declaration:
        """Its own."""
        return Declaration(self.model.spec, self.model.weight)

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Every site that its kernels show."""
        say(f"running {self.name}")
        model = self.model if calls is None else self.model.stepwise()
        names, made = [s for s in model.spec.sites if s not in model.spec.hidden], list[Call]()
        for ids, key_mask in calls_of(tokens, mask, calls or tokens.shape[1:]):
            rows = None if mask is None else key_mask[:, -ids.shape[1] :]
            logits, cache = model.run_with_cache(ids, rows, names=names)
            slots = torch.arange(key_mask.shape[1] - ids.shape[1], key_mask.shape[1])
            sites = {site: held(tensor) for site, tensor in {**cache, "logits": logits}.items()}
            made.append(Call.of(sites, ids, mask=rows, positions=slots, later=bool(made)))
        own = {name: self.model.weight(name) for name in declared.spec.weight_names}
        differ, alike = compared_weights(own, declared.weights)
        about = {"implementation": "twinlens"}
        return Recording(calls=made, about=about, weights=differ, weights_equal=frozenset(alike))
