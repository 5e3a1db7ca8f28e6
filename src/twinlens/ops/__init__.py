"""Operations: frozen dataclasses whose fields say what they are; calling one computes."""

from twinlens.ops.attention import Mix, Scores, Softmax
from twinlens.ops.base import REGISTRY, Op
from twinlens.ops.cache import Append
from twinlens.ops.embed import Add, Branch, Embed, PositionEmbed
from twinlens.ops.experts import Experts, WithShared
from twinlens.ops.logprobs import ChosenLogProb, TopLogProbs
from twinlens.ops.mlp import Activate, Gate
from twinlens.ops.norm import Normalize, NormWeight
from twinlens.ops.project import Half, LatentKey, Part, Project, SharedKey, Span, Unembed
from twinlens.ops.remade import Clipped, Rounded, Scaled, Taken
from twinlens.ops.rotary import RotaryTable, Rotate
from twinlens.ops.router import RouterLogits, RouterWeights, Select

__all__ = [
    "REGISTRY",
    "Activate",
    "Add",
    "Append",
    "Branch",
    "ChosenLogProb",
    "Clipped",
    "Embed",
    "Experts",
    "Gate",
    "Half",
    "LatentKey",
    "Mix",
    "NormWeight",
    "Normalize",
    "Op",
    "Part",
    "PositionEmbed",
    "Project",
    "RotaryTable",
    "Rotate",
    "Rounded",
    "RouterLogits",
    "RouterWeights",
    "Scaled",
    "Scores",
    "Select",
    "SharedKey",
    "Softmax",
    "Span",
    "Taken",
    "TopLogProbs",
    "Unembed",
    "WithShared",
]
