"""Why a key is not read: it stands in another place, under another name, or is misspelt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from twinlens.lint.keys import Key, dotted, drop, has, put, value_at
from twinlens.lint.runner import Trials

ROTARY = ("rope_parameters", "rope_scaling")
"""Where the numbers of rotary positions stand, since transformers 5.0 and before."""
SPELLINGS: tuple[tuple[str, ...], ...] = (
    ("max_position_embeddings", "n_positions", "n_ctx"),
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    ("hidden_act", "hidden_activation", "activation_function"),
    ("rope_theta", "rotary_emb_base", "rope_base"),
    ("partial_rotary_factor", "rotary_pct"),
    ("rope_type", "type"),
    ("attention_factor", "attn_factor"),
    ("sliding_window", "attention_window"),
    ("num_experts_per_tok", "top_k", "moe_top_k"),
    ("num_local_experts", "num_experts", "n_routed_experts"),
    ("attn_logit_softcapping", "attn_logit_soft_cap"),
    ("final_logit_softcapping", "final_logit_soft_cap"),
    ("tie_word_embeddings", "tie_embeddings"),
)
"""Names under which configs say one thing."""
ROTARY_NAMES = (
    "rope_theta", "rope_type", "factor", "attention_factor", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "original_max_position_embeddings", "short_factor", "long_factor", "mscale", "mscale_all_dim",
    "truncate", "partial_rotary_factor",
)  # fmt: skip
_NEAR, _MOST = 0.7, 6
"""How alike two names are of which one may be meant for the other, and how many are tried."""


@dataclass(frozen=True)
class Move:
    """A config in which what a key says stands elsewhere."""

    key: Key
    to: Key
    config: dict[str, Any]

    @property
    def is_renamed(self) -> bool:
        """Whether it stands in its own place, under another name."""
        return self.key[:-1] == self.to[:-1]

    @property
    def words(self) -> str:
        """What is wrong where this move is what the implementation hears."""
        if self.is_renamed:
            return f"this implementation reads {dotted(self.to)}"
        name = self.to[-1]
        where = f"under {dotted(self.key[:-1])}" if len(self.key) > 1 else "at the top"
        there = f"in {dotted(self.to[:-1])}" if len(self.to) > 1 else "at the top"
        return f"the key stands {where}; this implementation reads {name} {there}"


def moves(config: Mapping[str, Any], key: Key, reads: Iterable[str]) -> list[Move]:
    """The config with one key elsewhere: in another place, under another spelling, under a near name that is read."""
    value = value_at(config, key)
    bare = drop(config, key)
    found = [Move(key, to, put(bare, to, value)) for to in _places(key) if not has(config, to)]
    found += _whole(config, key)
    named = [(*key[:-1], name) for name in _names(key, reads)]
    return found + [Move(key, to, put(bare, to, value)) for to in named if not has(config, to)]


def _places(key: Key) -> Iterator[Key]:
    """A key of a rotary part at the top, one from the top in a rotary part."""
    if len(key) == 2 and key[0] in ROTARY:
        yield key[1:]
    elif len(key) == 1 and key[0] in ROTARY_NAMES:
        yield from ((part, key[0]) for part in ROTARY)


def _whole(config: Mapping[str, Any], key: Key) -> Iterator[Move]:
    """A rotary part as a whole under its other name, as its numbers mean nothing alone."""
    if len(key) > 1 and key[0] in ROTARY:
        other = ROTARY[1 - ROTARY.index(key[0])]
        if config.get(other) is None:
            yield Move(key, (other, *key[1:]), put(drop(config, key[:1]), (other,), config[key[0]]))


def _names(key: Key, reads: Iterable[str]) -> list[str]:
    own = key[-1]
    alike = [name for group in SPELLINGS if own in group for name in group if name != own]
    beside = f"{dotted(key[:-1])}." if len(key) > 1 else ""
    read = [name.removeprefix(beside) for name in reads if name.startswith(beside)]
    pool = {name for name in read if "." not in name and not name.startswith("_")}
    pool |= set(ROTARY_NAMES) if beside else {name for group in SPELLINGS for name in group}
    near = get_close_matches(own, sorted(pool - {own}), _MOST, _NEAR)
    return list(dict.fromkeys([*alike, *near]))[:_MOST]


def heard(these: Sequence[Move], run: Callable[[list[dict[str, Any]]], Trials]) -> dict[Key, Move]:
    """For each key the first move that changes the output; what cannot be built tells nothing."""
    if not these:
        return {}
    outcomes = run([move.config for move in these]).outcomes
    found: dict[Key, Move] = {}
    for move, outcome in zip(these, outcomes, strict=True):
        if outcome.kind == "changed":
            found.setdefault(move.key, move)
    return found
