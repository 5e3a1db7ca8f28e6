"""Results at random: long names, odd numbers, any number of layers.

Drawn from a seed, since beartype uses `random` where a dataclass is made, which hypothesis forbids
inside its own strategies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

from twinlens.parity.result import Cause, Finding, Order, Result, Unexplained
from twinlens.parity.rounding import Ratio

INSIDE = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "attn.q_norm.hook_normalized",
    "attn.hook_attn_scores",
    "hook_mlp_out",
)
OUTSIDE = ("hook_embed", "rotary.hook_cos", "ln_final.hook_out", "logits")
SITES = (*OUTSIDE, *(f"blocks.{n}.{rest}" for n in range(121) for rest in INSIDE))
VERDICTS = ("identical", "rounding", "different")
STATUSES = ("equal", "innocent", "order", "rounding", "explained", "different")
PARAMETERS = ("attn.scale", "weight", "rotary.attention_factor", "norm.missing")
ODD = (0.0, math.nan, math.inf, 1.0, 5e-324, 1e300)
SIGNS = "abc .|*_<[]\\/→日é−="


def drawn(seed: int) -> Result:
    """The result of a seed."""
    r = Random(seed)
    return Result(
        r.choice(VERDICTS),
        [finding(r, site) for site in r.sample(SITES, r.randint(0, 40))],
        causes=some(r, cause, 3),
        orders=some(r, order, 3),
        gauges=some(r, words, 2),
        flips=r.randint(0, 3),
        unexplained=some(r, lambda r: Unexplained(site(r), ratio(r), some(r, words, 4)), 20),
        explained=r.choice(VERDICTS),
        first_difference=r.choice((None, site(r))),
        unmatched=some(r, words, 9),
        assumed=some(r, words, 9),
        reference_edits=some(r, cause, 2),
        reference_orders=some(r, order, 2),
        scope=words(r),
        cost=error(r),
        diagnosis_cost=error(r),
        unsteady=some(r, words, 2),
        training=some(r, words, 2),
        mended=some(r, words, 3),
    )


def some(r: Random, draw: Callable[[Random], Any], most: int) -> list[Any]:
    return [draw(r) for _ in range(r.randint(0, most))]


def words(r: Random) -> str:
    return "".join(r.choices(SIGNS, k=r.choice((0, 1, 20, 160))))


def site(r: Random) -> str:
    return r.choice(SITES)


def error(r: Random) -> float:
    return r.choice((*ODD, 10 ** r.uniform(-12, 3)))


def ratio(r: Random) -> Ratio:
    return Ratio(error(r), error(r), r.choice((0, 7, 10**9)))


def value(r: Random) -> Any:
    weight = f"model.layers.{r.randint(0, 120)}.mlp.down_proj.weight"
    return r.choice((None, -error(r), error(r), r.randint(-9, 10**12), weight, "half"))


def layers(r: Random) -> list[int]:
    return sorted(r.sample(range(121), r.choice((0, 1, 9, 60, 121))))


def cause(r: Random) -> Cause:
    return Cause(
        site(r), site(r), r.choice(PARAMETERS), value(r), value(r),
        r.choice((None, (error(r), error(r)))), layers(r), r.choice(("proved", "partial")),
        r.choice(("", "= sqrt(224); ")) + words(r),
    )  # fmt: skip


def order(r: Random) -> Order:
    return Order(site(r), r.choice(PARAMETERS), value(r), value(r), layers(r))


def finding(r: Random, at: str) -> Finding:
    errors = (error(r), error(r), error(r), error(r), error(r))
    return Finding(at, r.choice(STATUSES), *errors, r.choice((None, ratio(r))))
