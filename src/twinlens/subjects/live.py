"""A torch module in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.capture import device_of, invoke, record_calls, takes_cache
from twinlens.capture import record as capture_record
from twinlens.checkpoint import from_module
from twinlens.families import declare, is_declared
from twinlens.loading import kernel_of
from twinlens.recording import Recording
from twinlens.spec import Spec
from twinlens.subjects.side import Declaration, Say


@dataclass
class Live:
    """A torch module in this process."""

    module: nn.Module
    call: Callable[[Tensor, Tensor | None], Any] | None = None
    name: str = ""
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    def said(self) -> Spec | None:
        """From the module's own config, where it is a transformers model of a known family."""
        if not self._is_of_a_family():
            return None
        return declare(from_module(self.module).config, attention=kernel_of(self.module))

    def declaration(self) -> Declaration | None:
        """Of its config and its own parameters."""
        if not self._is_of_a_family():
            return None
        return Declaration.of(from_module(self.module), kernel_of(self.module))

    def _is_of_a_family(self) -> bool:
        config = getattr(self.module, "config", None)  # the border: any module may stand here
        return hasattr(config, "to_dict") and is_declared(getattr(config, "model_type", None))

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Its tensors, placed by weights and by replay."""
        say(f"recording {self.name}")
        with self._in_evaluation():
            if calls is not None:
                ids, mask = self._there(tokens, mask)
                return record_calls(
                    self.module, declared.spec, declared.weights, ids, mask, calls, call=self.call, about=self.about
                )
            return capture_record(
                self.module, declared.spec, declared.weights, *self._there(tokens, mask), call=self.call,
                about=self.about, known=declared.placements,
            )  # fmt: skip

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The logits of one more call."""
        with self._in_evaluation(), torch.no_grad():
            return invoke(self.module, *self._there(tokens, mask), self.call)

    @property
    def goes_on(self) -> bool:
        """As transformers' models can."""
        return self.call is None and takes_cache(self.module)

    def _there(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """On the module's device."""
        at = device_of(self.module)
        return tokens.to(at), None if mask is None else mask.to(at)

    @contextmanager
    def _in_evaluation(self) -> Generator[None]:
        training = [m for m in self.module.modules() if m.training]
        self.module.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @property
    def drops(self) -> bool:
        """Whether a call as it stands would drop out at random what it computes."""
        return any(m.training and any(map(_is_chance, vars(m).items())) for m in self.module.modules())


def _is_chance(attribute: tuple[str, Any]) -> bool:
    """A probability of dropping out: `p` of torch's own modules, `attention_dropout`, `resid_pdrop` and the like."""
    name, value = attribute
    return (name == "p" or "drop" in name) and isinstance(value, float) and value > 0.0
