"""Numbers by derivative: Gauss-Newton in float64 over the fields of a merged step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from twinlens.fields import FACTOR, Kind, from_smooth, kinds, to_smooth
from twinlens.ops.base import LARGE
from twinlens.parity.changes import Change, SetField, Use, Variant, twins
from twinlens.parity.oracle import Oracle
from twinlens.parity.rounding import by_rows, difference
from twinlens.sites import split
from twinlens.spec import Step, Weights

_ITERATIONS = 12
_NEAR_OFF = 1e-12
SIGMAS = 4.0


@dataclass(frozen=True)
class Number:
    """A number field of a step and those tied to it, from which a fit starts."""

    sites: tuple[str, ...]
    name: str
    kind: Kind
    value: float | None

    @property
    def site(self) -> str:
        """The first of the sites."""
        return self.sites[0]

    @property
    def start(self) -> float:
        """Its smooth coordinate; just beside off where it is off."""
        return to_smooth(self.kind, self.value) if self.value is not None else _NEAR_OFF

    def change(self, value: Any) -> Change:
        """The change that gives it a value."""
        return SetField(self.sites, self.name, value)


_FACTOR = Kind("number", "weight", signed=True, within=(-FACTOR[1], FACTOR[1]))


@dataclass(frozen=True)
class Factor(Number):
    """A factor of all entries of a weight that nobody saw; its field's name is the step's for the weight."""

    weight: str
    """The checkpoint's name."""
    tensor: Tensor = field(compare=False, repr=False)

    def change(self, value: Any) -> Change:
        """The scaled tensor in the weight's place; in float64 while a derivative is taken."""
        scaled = value * self.tensor.double()
        if isinstance(value, Tensor):
            return Use(self.site, self.name, scaled, self.weight, "")
        rounded = scaled.to(self.tensor.dtype)
        return Use(self.site, self.name, rounded, self.weight, f"all entries: times {value:.6g}", self.weight)


def factors(steps: Iterable[Step], weights: Weights, seen: Collection[str]) -> list[Factor]:
    """One for each weight of some steps but those that were seen or stand in another's place; biases are none of them,
    nor tables so large that scaled copies would fill the memory: embeddings, whose steps have a factor of their own.
    """
    steps = tuple(steps)
    known = set(seen).union(w.name for s in steps for _, w in s.weights if w.name.startswith("candidate:"))
    return [
        Factor((step.writes,), argument, _FACTOR, 1.0, weight.name, weights(weight.name))
        for step in steps
        for argument, weight in step.weights
        if argument != "b" and weight.name not in known and weights(weight.name).numel() <= LARGE
    ]


@dataclass(frozen=True)
class Fitted:
    """What a fit found: values with standard errors, and the weighted error that is left."""

    numbers: tuple[Number, ...]
    values: tuple[float | None, ...]
    errors: tuple[float, ...]
    rms: float


def numbers(steps: Iterable[Step]) -> list[Number]:
    """Every number field of some steps."""
    steps = tuple(steps)
    return [
        Number(tied, name, kind, value)
        for step in steps
        for name, kind, value in kinds(step.op)
        if kind.name == "number"
        and not (kind.read and value is None)
        and (tied := twins(steps, step.writes, name))[0] == step.writes
    ]


def alike(steps: Iterable[Step]) -> list[Number]:
    """Each number that several of some steps have alike, as one number: a constant of the code is one everywhere."""
    steps = tuple(steps)
    alone = {n.sites for n in numbers(steps)}
    return [n for n in constants(steps) if n.sites not in alone]


def constants(steps: Iterable[Step]) -> list[Number]:
    """Each number of some steps, as one number where several have it alike; those outside the layers by themselves
    too.
    """
    steps = tuple(steps)
    groups: dict[tuple[str, str, float | None], list[Number]] = {}
    at = {s.writes: s for s in steps}
    for n in numbers(steps):
        groups.setdefault((type(at[n.site].op).__name__, n.name, n.value), []).append(n)
    tied = [
        Number(tuple(s for n in like for s in n.sites), like[0].name, like[0].kind, like[0].value)
        for like in groups.values()
    ]
    alone = [n for like in groups.values() for n in like if len(like) > 1 and split(n.site)[0] is None]
    return [*tied, *alone]


def in_one_part(steps: Iterable[Step]) -> list[Number]:
    """Each number as one in one part of every layer, where others have it alike: the norms of queries and keys."""
    found = list[Number]()
    for whole in alike(steps):
        parts = dict[str, list[str]]()
        for site in whole.sites:
            layer, name = split(site)
            parts.setdefault("" if layer is None else name.partition(".")[0], []).append(site)
        found += [replace(whole, sites=tuple(parts[p])) for p in parts if p and len(parts) > 1]
    return found


class Fit:
    """A merged step's own value on some rows, against the oracle as a function of its numbers."""

    def __init__(self, oracle: Oracle, base: Variant, weights: Tensor) -> None:
        self.oracle, self.base, self.weights = oracle, base, weights
        self.site = oracle.merged.target
        self.mask = oracle.rows.of("mask", oracle.merged.sites["mask"])
        self.goal = oracle.rows.of(self.site, oracle.merged.value)

    def residual(self, out: Tensor) -> Tensor:
        """Weighted difference, flat."""
        error = difference(self.site, self.goal, out)
        return (by_rows(self.site, error, self.mask) * self.weights).flatten()

    def function(self, chosen: Sequence[Number]) -> Callable[[Tensor], Tensor]:
        """The oracle's output as a function of the smooth coordinates."""

        def f(at: Tensor) -> Tensor:
            there = at.to(self.goal.device)
            changes = [n.change(from_smooth(n.kind, there[i])) for i, n in enumerate(chosen)]
            return self.oracle(self.base + changes)

        return f

    def columns(self, chosen: Sequence[Number], at: Tensor) -> tuple[Tensor, Tensor]:
        """The residual and its derivative by every coordinate, [entries] and [entries, numbers]."""
        f = self.function(chosen)
        found: list[Tensor] = []
        out = f(at) if not chosen else None
        self.oracle.times = 2.0
        for i in range(len(chosen)):
            direction = torch.zeros_like(at)
            direction[i] = 1.0
            out, slope = cast(tuple[Tensor, Tensor], torch.func.jvp(f, (at,), (direction,)))
            found.append(
                (by_rows(self.site, _finite(slope)[..., : self.goal.shape[-1]], self.mask) * self.weights).flatten()
            )
        self.oracle.times = 1.0
        assert out is not None
        return self.residual(out), torch.stack(found, dim=1)

    def promises(self, chosen: Sequence[Number], free: Sequence[Number]) -> tuple[list[tuple[float, Number]], float]:
        """What each free number, beside those chosen, would leave of the error by its derivative; and all of it."""
        at = torch.tensor([n.start for n in (*chosen, *free)], dtype=torch.float64)
        r, J = self.columns((*chosen, *free), at)
        promise: list[tuple[float, Number]] = []
        for i, n in enumerate(free):
            columns = J[:, [*range(len(chosen)), len(chosen) + i]]
            if not bool(columns[:, -1].any()):
                continue
            small = columns.numel() < 4e6
            by = torch.linalg.pinv(columns) @ r if small else _lstsq(columns, r)
            promise.append((float((r - columns @ by).norm()), n))
        return promise, float(r.norm())

    def run(self, chosen: Sequence[Number], start: Sequence[float] | None = None) -> Fitted:
        """Gauss-Newton with step halving, from the numbers' own values or from `start`."""
        at = torch.tensor([n.start for n in chosen] if start is None else list(start), dtype=torch.float64)
        f = self.function(chosen)
        r, slopes = self.columns(chosen, at)
        for _ in range(_ITERATIONS):
            cost = r.square().sum()
            step = solve(slopes, r)
            size = 1.0
            while size > 1e-3:
                to = self._legal(chosen, at + size * step)
                with torch.no_grad():
                    better = self.residual(f(to)).square().sum() < cost
                if bool(better):
                    break
                size /= 2
            else:
                break
            moved = ((to - at).abs() / at.abs().clamp_min(1e-300)).max()
            at = to
            before = cost
            r, slopes = self.columns(chosen, at)
            if float(moved) < 1e-12 or float((before - r.square().sum()) / before) < 1e-9:
                break
        return self._fitted(chosen, at, r, slopes)

    @staticmethod
    def _legal(chosen: Sequence[Number], at: Tensor) -> Tensor:
        """No further than a little beyond what a model may have, nor below what is off."""
        free = [n.kind.signed or n.kind.power == 0.0 for n in chosen]
        low = torch.tensor([-torch.inf if f else _NEAR_OFF for f in free], dtype=torch.float64)
        high = [max(to_smooth(n.kind, abs(v)) for v in n.kind.within if v) for n in chosen]
        return torch.minimum(torch.maximum(at, low), 2.0 * torch.tensor(high, dtype=torch.float64))

    def _fitted(self, chosen: Sequence[Number], at: Tensor, r: Tensor, J: Tensor) -> Fitted:
        covariance = self.covariance(r, J)
        errors, values = [], []
        for n, u, e in zip(chosen, at.tolist(), covariance.diagonal().clamp_min(0).sqrt().tolist(), strict=True):
            is_off = n.kind.off and u <= max(SIGMAS * e, 2 * _NEAR_OFF)
            value = None if is_off else float(from_smooth(n.kind, torch.tensor(u, dtype=torch.float64)))
            values.append(value)
            errors.append(0.0 if value is None else abs(slope(n.kind, u)) * e)
        return Fitted(tuple(chosen), tuple(values), tuple(errors), float(r.square().mean().sqrt()))

    def covariance(self, r: Tensor, J: Tensor) -> Tensor:
        """Of the coordinates [n n], robust against errors that a row or a column has in common (a rounded root)."""
        if not bool(torch.isfinite(J).all() and torch.isfinite(r).all()):
            return torch.full((J.shape[1], J.shape[1]), torch.inf, dtype=J.dtype)  # nothing is known of them
        inner = torch.linalg.pinv(J.T @ J)
        width = len(r) // len(self.weights)  # a changed table may be narrower than the candidate's
        scores = (J * r[:, None]).reshape(-1, width, J.shape[1])
        meats = [c.T @ c * len(c) / max(len(c) - 1, 1) for c in (scores.sum(1), scores.sum(0))]
        plain = inner * r.square().mean()
        return torch.stack([plain, *(inner @ m @ inner for m in meats)]).amax(0)


def slope(kind: Kind, u: float) -> float:
    """d value / d coordinate."""
    h = max(abs(u), 1e-12) * 1e-6
    up, down = (from_smooth(kind, torch.tensor(u + s, dtype=torch.float64)) for s in (h, -h))
    return float((up - down) / (2 * h))


def solve(J: Tensor, r: Tensor) -> Tensor:
    """Least squares step, on the CPU, with columns brought to one length; a column of zeros moves nothing, and nothing
    moves where some entry is not finite.
    """
    length = J.norm(dim=0).clamp_min(1e-300)
    A = J / length
    square, right = (A.T @ A).cpu(), (A.T @ r).cpu()
    if not bool(torch.isfinite(square).all() and torch.isfinite(right).all()):
        return torch.zeros_like(right)
    return torch.linalg.lstsq(square + 1e-14 * torch.eye(len(square), dtype=A.dtype), right).solution / length.cpu()


def _lstsq(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.lstsq(A.T @ A, A.T @ b).solution


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


def interval(value: Any, error: float, u: float) -> tuple[float, float]:
    """Statistical, and two roundings of the constant itself (rule 3)."""
    half = SIGMAS * error + 2 * u * abs(value)
    return value - half, value + half
