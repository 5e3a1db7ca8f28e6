"""Names of the tensors of a forward pass, and the axes of each.

The names are TransformerLens's hook names where it has one. Axes: `b` batch, `p` position, `s` key
position, `u` of earlier calls, `h` query head, `k` key/value head, `e` head width, `d` model width, `m` MLP width,
`r` rotary width, `f` width of fused queries, keys and values, `g` of a fused gate and its other half, `v` vocabulary,
`w` width of a head's values, `x` expert, `t` expert of a token, or an id whose log-probability is shown, `a` width of
the experts that all tokens share. Latent attention (DeepSeek-V2) has `l` for the latent of queries, `n` for that of
keys and values with what is rotated, `c` without it, `j` and `z` for the one head of what is rotated and its width, `y`
for a head's keys and values together.
"""

from __future__ import annotations

import re
from functools import lru_cache

INPUTS = ("tokens", "positions", "mask", "slots", "key_mask")
"""What a model is given. `slots` [p] is where this call's tokens stand among the keys, `key_mask` [b s] the mask of
all keys: without a cache that of the tokens."""
_PAST = ("attn.hook_k_past", "attn.hook_v_past", "attn.hook_latent_past", "attn.hook_k_shared_past")
"""What earlier calls left: given to a call with a cache, as tokens are."""
ASKED = ("logprobs.following", "logprobs.top_ids")
"""Of which ids log-probabilities are shown: the token that follows [b p], -1 where none does; the n best of a side."""

_BLOCK: dict[str, str] = {
    "hook_resid_pre": "b p d",
    "ln1.hook_normalized": "b p d",
    "ln1.hook_out": "b p d",
    "attn.hook_qkv": "b p f",
    "attn.hook_q_latent": "b p l",
    "attn.q_latent_norm.hook_normalized": "b p l",
    "attn.q_latent_norm.hook_out": "b p l",
    "attn.hook_kv_latent": "b p n",
    "attn.hook_latent": "b p c",
    "attn.kv_latent_norm.hook_normalized": "b p c",
    "attn.kv_latent_norm.hook_out": "b p c",
    "attn.hook_kv": "b p k y",
    "attn.hook_k_shared": "b p j z",
    "attn.hook_rot_k_shared": "b p j z",
    "attn.hook_q": "b p h e",
    "attn.hook_k": "b p k e",
    "attn.hook_v": "b p k w",
    "attn.q_norm.hook_normalized": "b p h e",
    "attn.q_norm.hook_out": "b p h e",
    "attn.k_norm.hook_normalized": "b p k e",
    "attn.k_norm.hook_out": "b p k e",
    "attn.hook_rot_q": "b p h e",
    "attn.hook_rot_k": "b p k e",
    "attn.hook_k_past": "b u k e",
    "attn.hook_v_past": "b u k w",
    "attn.hook_latent_past": "b u c",
    "attn.hook_k_shared_past": "b u j z",
    "attn.hook_latent_cache": "b s c",
    "attn.hook_k_shared_cache": "b s j z",
    "attn.hook_kv_cache": "b s k y",
    "attn.hook_k_cache": "b s k e",
    "attn.hook_v_cache": "b s k w",
    "attn.hook_attn_scores": "b h p s",
    "attn.hook_pattern": "b h p s",
    "attn.hook_z": "b p h w",
    "attn.hook_result": "b p h d",
    "attn.hook_out": "b p d",
    "ln1_post.hook_normalized": "b p d",
    "ln1_post.hook_out": "b p d",
    "hook_attn_out": "b p d",
    "hook_resid_mid": "b p d",
    "ln2.hook_normalized": "b p d",
    "ln2.hook_out": "b p d",
    "mlp.hook_gate_up": "b p g",
    "mlp.hook_pre": "b p m",
    "mlp.hook_pre_linear": "b p m",
    "mlp.hook_post": "b p m",
    "mlp.router.hook_logits": "b p x",
    "mlp.router.hook_indices": "b p t",
    "mlp.router.hook_weights": "b p t",
    "mlp.experts.hook_out": "b p d",
    "mlp.shared.hook_pre": "b p a",
    "mlp.shared.hook_pre_linear": "b p a",
    "mlp.shared.hook_post": "b p a",
    "mlp.shared.hook_out": "b p d",
    "mlp.hook_out": "b p d",
    "ln2_post.hook_normalized": "b p d",
    "ln2_post.hook_out": "b p d",
    "hook_mlp_out": "b p d",
    "hook_resid_post": "b p d",
}
_MODEL: dict[str, str] = {
    "tokens": "b p",
    "positions": "b p",
    "mask": "b p",
    "slots": "p",
    "allowed": "b j p s",  # where a query may look: given where a run shows a mask that no field says
    "key_mask": "b s",
    "hook_embed": "b p d",
    "hook_pos_embed": "b p d",
    "rotary.hook_cos": "b p r",
    "rotary.hook_sin": "b p r",
    "rotary.local.hook_cos": "b p r",
    "rotary.local.hook_sin": "b p r",
    "ln_final.hook_normalized": "b p d",
    "ln_final.hook_out": "b p d",
    "logits": "b p v",
    "logprobs.following": "b p",
    "logprobs.chosen": "b p t",
    "logprobs.top_ids": "b p t",
    "logprobs.top": "b p t",
}
_BETWEEN_DOTS = re.compile(r"(?<=\.)\d+(?=\.)")
_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


def block(layer: int, rest: str) -> str:
    """`block(3, "attn.hook_q")` is `blocks.3.attn.hook_q`."""
    return f"blocks.{layer}.{rest}"


@lru_cache(maxsize=1 << 14)
def split(site: str) -> tuple[int | None, str]:
    """The layer of a site (None outside the blocks) and its name within the block."""
    match = _BLOCK_NAME.fullmatch(site)
    return (int(match[1]), match[2]) if match else (None, site)


@lru_cache(maxsize=1 << 14)
def axes(site: str) -> tuple[str, ...]:
    """The axes of a known site, also of one that is computed once more (`SITE@WORD`). Raises KeyError for others."""
    layer, rest = split(site.partition("@")[0])
    return tuple((_MODEL if layer is None else _BLOCK)[rest].split())


def is_known(site: str) -> bool:
    """Whether a tensor of this name has a meaning here (inputs included)."""
    layer, rest = split(site)
    return rest in (_MODEL if layer is None else _BLOCK)


def is_input(site: str) -> bool:
    """Whether a call is given it."""
    return site in INPUTS or site in ASKED or split(site)[1] in _PAST


def by_slot(site: str) -> bool:
    """Whether its rows are slots of a cache, those of earlier calls among them."""
    return axes(site)[1:2] == ("s",)


def any_layer(text: str) -> str:
    """`model.layers.3.mlp` as `model.layers.*.mlp`: names and words about them, alike in all layers."""
    return _BETWEEN_DOTS.sub("*", text)


def generic(site: str) -> str:
    """`blocks.3.attn.hook_q` as `blocks.L.attn.hook_q`: the same place in any layer."""
    layer, rest = split(site)
    return site if layer is None else f"blocks.L.{rest}"
