"""Embedding and positions."""

from __future__ import annotations

import math

import torch

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import called, method, positions_of_mask, tables

WING = Wing("embedding and positions")
exhibit = WING.exhibit
ROOT48 = math.sqrt(48)


@exhibit("gemma-embed-scale-missing", "gemma2", Want("embed.scale", ROOT48, 1.0, ()), source="allenzren/open-pi-zero#9")
def _(m: Model) -> None:
    """The token embedding of Gemma is used without its factor sqrt(hidden_size)."""
    m.model.embed_tokens.embed_scale.fill_(1.0)


@exhibit(
    "gemma-embed-scale-bf16-rounding",
    "gemma",
    Want("embed.scale", ROOT48, 6.9375, ()),
    build={"dtype": torch.float32},
    source="huggingface/transformers#29402; google/gemma_pytorch#67",
)
def _(m: Model) -> None:
    """The embedding factor is rounded to bfloat16 in a float32 model."""
    m.model.embed_tokens.embed_scale.fill_(6.9375)


@exhibit(
    "gemma3-embed-scale-missing",
    "gemma3_text",
    Want("embed.scale", ROOT48, 1.0, ()),
    source="allenzren/open-pi-zero#9",
    like="gemma-embed-scale-missing",
)
def _(m: Model) -> None:
    """Gemma 3 run by a block without the embedding factor."""
    m.model.embed_tokens.embed_scale.fill_(1.0)


@exhibit(
    "granite-embedding-multiplier-ignored",
    "granite",
    Want("embed.scale", 6.0, 1.0, ()),
    source="OpenNMT/CTranslate2#1882",
)
def _(m: Model) -> None:
    """Granite's embedding multiplier is not read by a loader shaped like Llama's."""
    m.model.embedding_multiplier = 1.0


@exhibit("minicpm-scale-emb-ignored", "llama", Want("embed.scale", 1.0, 12.0, ()), source="ggml-org/llama.cpp#5276")
def _(m: Model) -> None:
    """A factor 12 on the embedding, as in MiniCPM, which one side has and the other, of Llama's code, not."""
    m.model.embed_tokens.register_forward_hook(lambda mod, x, y: y * 12.0)


@exhibit(
    "bart-position-row-zeroed-at-padding-idx",
    "gpt2",
    Want("weight", layers=()),
    source="huggingface/transformers#10200",
)
def _(m: Model) -> None:
    """One row of the learned positions is zero, because it stands at the padding's id."""
    m.transformer.wpe.weight[5] = 0


@exhibit(
    "opt-position-offset-2-missing",
    "opt",
    Want("pos_embed.offset", 2, 0),
    source="EleutherAI/gpt-neox#650; huggingface/transformers#20761",
)
def _(m: Model) -> None:
    """OPT's position table is read from its first row, not from its third."""
    m.model.decoder.embed_positions.offset = 0


@exhibit(
    "opt-position-table-rotated-instead-of-sliced",
    "opt",
    Want(("pos_embed.offset", "weight", "positions.offset"), layers=()),
    source="PaddlePaddle/PaddleNLP#2659",
)
def _(m: Model) -> None:
    """The rows of OPT's position table are rotated by two, where two should be cut off."""
    w = m.model.decoder.embed_positions.weight
    w.copy_(w.roll(-2, 0).clone())


@exhibit(
    "gpt2-left-pad-no-position-ids",
    "gpt2",
    Want("positions.offset"),
    padded=True,
    source="ndif-team/nnsight#672; huggingface/transformers#18388; huggingface/trl#469",
)
def _(m: Model) -> None:
    """Learned positions with left padding: one side counts the padding, the other not."""
    called(m, positions_of_mask)


@exhibit(
    "opt-left-pad-mask-derived-positions",
    "opt",
    Want("positions.offset"),
    padded=True,
    source="huggingface/transformers#18388",
)
def _(m: Model) -> None:
    """OPT counts real tokens only; the port counts the padding too."""
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None].expand_as(ids)})


@exhibit("learned-positions-start-at-one", "gpt2", Want("positions.offset", 0, 1), source="bytedance/lightseq#144")
def _(m: Model) -> None:
    """Learned positions are counted from one."""
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + 1})


@exhibit(
    "bigcode-positions-start-at-one",
    "gpt_bigcode",
    Want("positions.offset", 0, 1),
    source="bytedance/lightseq#144",
    like="learned-positions-start-at-one",
)
def _(m: Model) -> None:
    """Learned positions of a code model are counted from one."""
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + 1})


@exhibit(
    "rope-positions-start-at-one",
    "llama",
    source="RoFormer paper, arXiv 2104.09864 (scores depend on position differences only)",
)
def _(m: Model) -> None:
    """Rotary positions are counted from one: only differences matter."""
    called(m, lambda ids, given: {"position_ids": torch.arange(ids.shape[1])[None] + 1})


@exhibit("gptj-left-pad-no-position-ids-rotary", "llama", padded=True, source="ndif-team/nnsight#673")
def _(m: Model) -> None:
    """Rotary positions with left padding that is counted or not: only differences matter."""
    called(m, positions_of_mask)


@exhibit(
    "internlm3-positions-doubled",
    "llama",
    Want(("rotary.scaling", "positions.offset"), layers=None),
    source="lablup/mlxcel#1324",
)
def _(m: Model) -> None:
    """Positions are multiplied by two, where only the base should grow past the trained length."""
    method(m.model.rotary_emb, tables(lambda p, f: 2 * p.float() * f))


@exhibit(
    "positions-as-bf16-integers",
    "qwen2",
    Want("rotary.dtype"),
    length=300,
    build={"max_position_embeddings": 512},
    source="huggingface/candle#3520",
)
def _(m: Model) -> None:
    """Position ids are rounded to bfloat16: past 256 several tokens stand at one place."""
    method(m.model.rotary_emb, tables(lambda p, f: p.bfloat16().float() * f))


@exhibit(
    "final-norm-folded-into-tied-embedding",
    "llama",
    Want("weight", layers=()),
    build={"tie_word_embeddings": True},
    source="TransformerLensOrg/TransformerLens#1510",
)
def _(m: Model) -> None:
    """The final norm's weight is folded into the unembedding that the embedding shares."""
    m.model.embed_tokens.weight.mul_(m.model.norm.weight)
    m.model.norm.weight.fill_(1.0)
