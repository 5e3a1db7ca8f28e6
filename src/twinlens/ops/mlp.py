"""The activation of an MLP, plain and gated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.fields import choice, order, precision
from twinlens.ops.base import Op
from twinlens.shapes import Float


def _gelu_tanh(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel 2016, section 2: the tanh approximation written out, as GPT-2 has it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _gelu_tanh_kernel(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "none": lambda x: x,
}
KERNELS = ACTIVATIONS | {"gelu_tanh": _gelu_tanh_kernel}
ACTIVATION_NAMES = tuple(ACTIVATIONS)


@dataclass(frozen=True)
class Activate(Op):
    """act(x). `formula="kernel"` uses torch's own kernel where it has one.

    `table` is a dtype to which argument and result are rounded, as by a table of all its numbers (llama.cpp's
    `ggml_vec_gelu_f32`); None: neither is.
    """

    act: str = choice(*ACTIVATION_NAMES, parameter="mlp.act")
    formula: str = order("plain", "kernel")
    table: torch.dtype | None = precision(None, torch.bfloat16, torch.float16, parameter="mlp.dtype")

    def __call__(self, x: Float[Tensor, "b p m"]) -> Float[Tensor, "b p m"]:
        return _through(self.table, lambda x: activated(self.act, self.formula, x), x)

    def magnitude(self, x: Tensor) -> Tensor:
        return act_size(self.act, x)


@dataclass(frozen=True)
class Gate(Op):
    """act(gate) · up (Shazeer 2020). `roles="up"` puts the activation on the other half; `table` as in `Activate`."""

    by_row: ClassVar[tuple[bool, ...]] = (True, True)

    act: str = choice(*ACTIVATION_NAMES, parameter="mlp.act")
    roles: str = choice("gate", "up", parameter="mlp.gate_order", enters="mlp.hook_pre")
    formula: str = order("plain", "kernel")
    table: torch.dtype | None = precision(None, torch.bfloat16, torch.float16, parameter="mlp.dtype")

    def __call__(self, gate: Float[Tensor, "b p m"], up: Float[Tensor, "b p m"]) -> Float[Tensor, "b p m"]:
        active, other = (gate, up) if self.roles == "gate" else (up, gate)
        return _through(self.table, lambda x: activated(self.act, self.formula, x), active) * other

    def magnitude(self, gate: Tensor, up: Tensor) -> Tensor:
        active, other = (gate, up) if self.roles == "gate" else (up, gate)
        return 2 * act_size(self.act, active) * other.abs()


def _through(table: torch.dtype | None, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An activation between two roundings."""
    return act(x) if table is None else act(x.to(table).to(x.dtype)).to(table).to(x.dtype)


def activated(name: str, formula: str, x: Tensor) -> Tensor:
    """An activation by its plain formula or by torch's kernel."""
    return (ACTIVATIONS if formula == "plain" else KERNELS)[name](x)


def act_size(name: str, x: Tensor) -> Tensor:
    """1 + erf(x) cancels for negative x: an error relative to x; a square has its own size."""
    return torch.maximum(x.abs(), activated(name, "plain", x).abs())
