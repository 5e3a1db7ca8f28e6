"""Several calls of one text, each judged by itself, told as one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from twinlens.parity.changes import Feed
from twinlens.parity.result import Cause, Order, Result, Unexplained, Verdict
from twinlens.sites import block

T = TypeVar("T")
_WORST: tuple[Verdict, ...] = ("identical", "rounding", "different")


def together(results: Sequence[Result], lengths: Sequence[int]) -> Result:
    """The worst of the calls, with what was found in any of them, each thing once."""
    worst = max(results, key=lambda r: _WORST.index(r.verdict))  # the first of equals
    scope = f"{len(results)} calls of {', '.join(map(str, lengths))} tokens with a cache"
    return replace(
        worst,
        causes=_once([r.causes for r in results], _cause, lambda c, n: _in_calls(_of_cache(c, n), n, len(results))),
        orders=_once([r.orders for r in results], _order, lambda o, _: o),
        gauges=list(dict.fromkeys(g for r in results for g in r.gauges)),
        unexplained=[_at(u, i) for i, r in enumerate(results) for u in r.unexplained],
        reference_edits=_once([r.reference_edits for r in results], _cause, lambda c, _: c),
        reference_orders=_once([r.reference_orders for r in results], _order, lambda o, _: o),
        explained=max((r.explained for r in results), key=_WORST.index),
        exact=all(r.exact for r in results),
        flips=sum(r.flips for r in results),
        cost=sum(r.cost for r in results),
        diagnosis_cost=sum(r.diagnosis_cost for r in results),
        unsteady=list(dict.fromkeys(side for r in results for side in r.unsteady)),
        scope=f"{scope}; shown is call {results.index(worst)}, {worst.scope}",
        calls=list(results),
    )


def _once(found: Sequence[Sequence[T]], key: Callable[[T], Any], tell: Callable[[T, list[int]], T]) -> list[T]:
    first, where = dict[Any, T](), dict[Any, list[int]]()
    for number, these in enumerate(found):
        for one in these:
            first.setdefault(key(one), one)
            where.setdefault(key(one), []).append(number)
    return [tell(one, where[k]) for k, one in first.items()]


def _cause(cause: Cause) -> tuple[Any, ...]:
    return cause.site, cause.parameter, _rounded(cause.reference), _rounded(cause.candidate), tuple(cause.layers)


def _order(order: Order) -> tuple[Any, ...]:
    return order.site, order.parameter, order.reference, order.candidate, tuple(order.layers)


def _rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _in_calls(cause: Cause, calls: list[int], count: int) -> Cause:
    if len(calls) == count:
        return cause
    word = "call" if len(calls) == 1 else "calls"
    return replace(cause, evidence=f"{cause.evidence}; in {word} {', '.join(map(str, calls))}")


def _of_cache(cause: Cause, calls: list[int]) -> Cause:
    """Positions that are off only where earlier calls left slots are the cache's."""
    if 0 in calls or not any(isinstance(c, Feed) and c.name == "positions" for c in cause.changes):
        return cause
    return replace(cause, parameter="cache.position", site=block(0, "attn.hook_rot_k"))


def _at(left: Unexplained, call: int) -> Unexplained:
    return replace(left, site=f"{left.site} (call {call})")
