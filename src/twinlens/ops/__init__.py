"""Operations: frozen dataclasses whose fields say what they are; calling one computes."""

from twinlens.ops.attention import Mix, Scores, Softmax
from twinlens.ops.base import REGISTRY, Op
from twinlens.ops.embed import Add, Branch, Embed, PositionEmbed
from twinlens.ops.mlp import Activate, Gate
from twinlens.ops.norm import Normalize, NormWeight
from twinlens.ops.project import Half, Part, Project, Unembed
from twinlens.ops.rotary import RotaryTable, Rotate

__all__ = [
    "REGISTRY",
    "Activate",
    "Add",
    "Branch",
    "Embed",
    "Gate",
    "Half",
    "Mix",
    "NormWeight",
    "Normalize",
    "Op",
    "Part",
    "PositionEmbed",
    "Project",
    "RotaryTable",
    "Rotate",
    "Scores",
    "Softmax",
    "Unembed",
]
